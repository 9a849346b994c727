"""Untargeted extraction (Carlini et al. 2021; Lukas et al. 2023): let the model talk, and see whose PII comes out."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from memdefense import Attack, Corpus, DataError, Documents, NotApplicable, Outcome, Sampling, Scores, SpecError, pii
from memdefense.attack import Term

from .extracted import secret_outcomes
from .extraction_report import extraction_rates, leakage_of
from .prompts import Key

if TYPE_CHECKING:
    from memdefense import AttackLab, TextTarget

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclasses.dataclass(frozen=True)
class UntargetedSampling(Attack):
    """Continuations of prompts that aim at nobody, searched for PII; leakage is the excess of TER over chance.

    G is all PII of the continuations, each without what its own prompt held, less what the model before the private
    text says on the same prompts with the same draws (``baseline=base``): that was known before. Leakage is TER less
    the rate of the twins, which nobody wrote down, or of held-out values where the corpus has no twins; ``ser`` and
    ``precision`` stand beside it. All defenses get the same prompts and the same random numbers.

    It finds what the model says unasked, so a small number is no upper bound, and grows with ``samples``. A value in a
    form that the public detector does not read, such as one broken over a line, is not found.

    Deviates [ours]: the papers name neither one number of samples nor one length; prompts from documents are windows at
    random places, as the web prompts of Carlini et al. are.

    Attributes:
        prompts: what is continued: the beginning of a text (``bos``), windows of public text, windows of held-out text,
            which is of the private text's domain, or the lines of a file.
        file: UTF-8 text, one prompt per line, with ``prompts=file``; empty lines are left out and counted.
        decoding: greedy, or draws from the 40 most probable tokens.
        samples: continuations; greedy decoding continues each different prompt once, so that there may be fewer.
        length: tokens of a window of text.
        new_tokens: of each continuation; half the model's context is the end.
        baseline: whether what the base model says as well is removed.

    Raises:
        SpecError: a field is out of its range, or two do not go together.
    """

    name: ClassVar[str] = "sampling"
    family = "extraction"
    summary: ClassVar[str] = "PII in what the model says unasked, less what it said before the private text."
    passes: ClassVar[str] = "1 generation, 1 of the base"
    needs: ClassVar[str] = "secrets, base model"
    paper: ClassVar[str] = "Carlini et al., USENIX Security 2021; Lukas et al., S&P 2023"
    prompts: Literal["bos", "public", "held-out", "file"] = "bos"
    file: str = ""
    decoding: Literal["top-k", "greedy"] = "top-k"
    samples: int = 400
    length: int = 10
    new_tokens: int = 100
    baseline: Literal["base", "none"] = "base"

    def __post_init__(self) -> None:
        for field in ("samples", "length", "new_tokens"):
            if getattr(self, field) < 1:
                raise SpecError(f"sampling: {field} is {getattr(self, field)}; it must be at least 1")
        if (self.prompts == "file") != bool(self.file):
            raise SpecError("sampling: prompts=file and file=PATH go together")
        if self.prompts == "bos" and self.decoding == "greedy":
            raise SpecError("sampling: greedy decoding says one thing after an empty prompt; draw with decoding=top-k")

    def without_base(self) -> UntargetedSampling | None:
        return None if self.baseline == "base" else self

    def ready(self) -> None:
        """Reads the prompt file.

        Raises:
            DataError: it is not there, in another encoding, or holds no prompt.
        """
        if self.file:
            self._lines()

    def outside(self) -> str:
        """A digest of the prompt file; "" where it cannot be read, which `run` says."""
        try:
            return hashlib.sha256(_bytes(self.file)).hexdigest() if self.file else ""
        except DataError:
            return ""

    def run(self, target: TextTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Samples and searches.

        Raises:
            NotApplicable: the corpus has no secrets, or no text of the kind the prompts are taken from.
            DataError: the prompt file cannot be read.
        """
        if not any(secret.member for secret in corpus.secrets):
            raise NotApplicable("the corpus has no PII to extract; membership attacks still run on it")
        prompts = self._prompts(corpus, lab)
        new = min(self.new_tokens, lab.base.context // 2)
        seed = int(lab.rng("draws").integers(1 << 31))
        drawn = Sampling(temperature=0.0) if self.decoding == "greedy" else Sampling(top_k=40, seed=seed)
        said = target.generate(prompts, max_new_tokens=new, sampling=drawn)
        for place, (prompt, text) in enumerate(zip(prompts, said, strict=True)):
            lab.keep({"unit": f"sample-{place}", "prompt": prompt, "continuation": text})
        generated = spoken(prompts, said)
        known: set[Key] = set()
        if self.baseline == "base":
            base = lab.serve(lab.base)
            listed = lab.cached(
                "what the base model says",
                lambda: sorted(spoken(prompts, base.generate(prompts, max_new_tokens=new, sampling=drawn))),
                lab.base,
                [prompts, new, dataclasses.asdict(drawn)],
            )
            known = {(kind, value) for kind, value in listed}
        lab.note(samples=len(prompts), values_said=len(generated), said_by_base_too=len(generated & known))
        yield from secret_outcomes(corpus, {}, frozenset(generated - known), lab)

    def _lines(self) -> tuple[list[str], int]:
        """The prompts of the file, and how many lines of it are empty."""
        lines = read_prompts(self.file)
        full = [line for line in lines if line.strip()]
        if not full:
            raise DataError(f"the prompt file '{self.file}' holds no prompt; write one per line")
        return full, len(lines) - len(full)

    def _prompts(self, corpus: Corpus, lab: AttackLab) -> list[str]:
        if self.prompts == "bos":
            return [""] * self.samples
        if self.prompts == "file":
            full, empty = self._lines()
            lab.note(empty_lines=empty)
            made = [full[place % len(full)] for place in range(self.samples)]
        else:
            documents = corpus.public if self.prompts == "public" else corpus.held_out
            made = self._windows(documents, lab)
        return list(dict.fromkeys(made)) if self.decoding == "greedy" else made

    def _windows(self, documents: Documents, lab: AttackLab) -> list[str]:
        """Windows of ``length`` tokens at random places of random documents, all of a document that is shorter."""
        whole = [document.text for document in documents if document.text.strip()]
        if not whole:
            raise NotApplicable(f"the corpus has no {self.prompts} text; sampling:prompts=bos needs none")
        rng = lab.rng("prompts")
        order = rng.permutation(len(whole))
        made = []
        for place in range(self.samples):
            text = whole[order[place % len(order)]]
            encoded = lab.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
            offsets = encoded["offset_mapping"]
            start = int(rng.integers(max(1, len(offsets) - self.length + 1)))
            window = offsets[start : start + self.length]
            made.append(text[window[0][0] : window[-1][1]])
        return made

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        leakage, chance, _ = leakage_of(*_sides(outcomes), "generated", "generated_twin")
        return Scores(leakage, {**extraction_rates(outcomes), "chance": chance})

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        return leakage_of(*_sides(outcomes), "generated", "generated_twin")[2]


def spoken(prompts: Sequence[str], said: Sequence[str]) -> set[Key]:
    """All PII in continuations, each without what its own prompt held."""
    found: set[Key] = set()
    for prompt, text in zip(prompts, said, strict=True):
        held = {(hit.kind, hit.canonical) for hit in pii.find(prompt)}
        found |= {(hit.kind, hit.canonical) for hit in pii.find(text)} - held
    return found


def read_prompts(path: str) -> list[str]:
    """The lines of a prompt file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        DataError: it is not there, or is in another encoding.
    """
    content = _bytes(path)
    encoding = next((name for mark, name in _BOMS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"the prompt file '{path}' is not UTF-8 (line {line}); convert it first, for instance with "
            "iconv -f ISO-8859-1 -t UTF-8"
        ) from error
    if "\0" in text:  # as ASCII in UTF-16 without a mark is to UTF-8
        raise DataError(f"the prompt file '{path}' is not UTF-8; convert it first, for instance with iconv -t UTF-8")
    return text.splitlines()


def _bytes(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"the prompt file '{path}' cannot be read: {error.strerror}") from error


def _sides(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """The members, and the held-out values; what is nobody's secret is neither."""
    others = [o for o in outcomes if not o.member and not o.stratum.endswith("/unknown")]
    return [o for o in outcomes if o.member], others
