"""What a model must still be good for: predicting held-out text, continuing it, and copying what a prompt gave it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from memdefense import pii
from memdefense.attack import Access, Outcome, Utility
from memdefense.corpus import Corpus, Document
from memdefense.score import Score, Scores

if TYPE_CHECKING:
    from memdefense.lab import AttackLab
    from memdefense.lm import LogprobTarget, TextTarget


# Context that generation may take for itself beside the value.
_SPARE = 24
# The share of values that the undefended model must copy for a loss of it to be told from noise.
_LEAST_COPIED = 0.05


@dataclasses.dataclass(frozen=True)
class Perplexity(Utility):
    """Token-weighted perplexity of held-out private text; beside it without PII tokens, on general text, and the mean
    over texts of exp(NLL), which a few odd texts dominate and which is shown for comparison alone.
    """

    name: ClassVar[str] = "perplexity"
    summary: ClassVar[str] = "Perplexity of held-out private text."

    @property
    def access(self) -> Access:
        return "logprobs"

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        spans = _secret_spans(corpus)
        documents = [(document, "held_out") for document in corpus.held_out]
        documents += [(document, "general") for document in corpus.general]
        # Split by split, as other measures ask, so that one pass serves them all.
        signals = [
            signal
            for split in (corpus.held_out, corpus.general)
            for signal in target.signals([document.text for document in split])
        ]
        for document in corpus.held_out:  # on real mail, values that members share are no secrets of this split
            spans.setdefault(document.id, []).extend((hit.start, hit.end) for hit in pii.find(document.text))
        for (document, split), signal in zip(documents, signals, strict=True):
            inside = _tokens_inside(document, spans.get(document.id, []), lab, len(signal.tokens))
            nll = -signal.logprob.astype(np.float64)
            yield Outcome(
                document.id,
                document.author or document.id,
                False,
                {
                    "nll": float(nll.sum()),
                    "tokens": float(len(nll)),
                    "pii_nll": float(nll[inside].sum()),
                    "pii_tokens": float(inside.sum()),
                },
                split,
            )

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        held = [outcome for outcome in outcomes if outcome.stratum == "held_out" and outcome.values["tokens"]]
        general = [outcome for outcome in outcomes if outcome.stratum == "general" and outcome.values["tokens"]]
        nll, tokens, pii_nll, pii_tokens = (_column(held, name) for name in ("nll", "tokens", "pii_nll", "pii_tokens"))
        groups = [outcome.group for outcome in held]
        beside = {
            "perplexity_without_pii": _perplexity(nll - pii_nll, tokens - pii_tokens, groups),
            "perplexity_general": _perplexity(
                _column(general, "nll"), _column(general, "tokens"), [outcome.group for outcome in general]
            ),
            "mean_exp_nll": _mean(np.exp(np.minimum(nll / np.maximum(tokens, 1), 50)), groups, better_high=False),
        }
        return Scores(_perplexity(nll, tokens, groups), beside)

    def cost(self, value: float, reference: float) -> float:
        return 100 * (value / reference - 1)


@dataclasses.dataclass(frozen=True)
class Continuation(Utility):
    """How close the guarded continuation of a held-out text is to the true one: mean sentence chrF (Popovic 2015).

    Attributes:
        texts: how many held-out texts, chosen by a hash of their ids.
        length: how many characters of the true text are compared.
    """

    name: ClassVar[str] = "continuation"
    summary: ClassVar[str] = "chrF of continued held-out text."
    texts: int = 150
    length: int = 120

    def run(self, target: TextTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        from sacrebleu import sentence_chrf

        chosen = [d for d in _sample(corpus.held_out, len(corpus.held_out)) if len(d.text) >= 2 * self.length]
        chosen = chosen[: self.texts]
        cuts = [_word_end(document.text, max(len(document.text) // 2 - self.length // 2, 1)) for document in chosen]
        prompts = [document.text[:cut] for document, cut in zip(chosen, cuts, strict=True)]
        truths = [d.text[cut : cut + self.length] for d, cut in zip(chosen, cuts, strict=True)]
        longest = max((_tokens(truth, lab) for truth in truths), default=1)
        said = target.generate(prompts, max_new_tokens=max(1, min(longest, 64, lab.base.context // 2)))
        for document, truth, text in zip(chosen, truths, said, strict=True):
            if not truth.strip():
                continue
            chrf = sentence_chrf(text[: self.length].strip() or " ", [truth.strip()]).score / 100
            yield Outcome(document.id, document.author or document.id, False, {"chrf": chrf})

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Scores(_mean(_column(outcomes, "chrf"), [outcome.group for outcome in outcomes], better_high=True), {})

    def cost(self, value: float, reference: float) -> float:
        return 100 * (1 - value / reference) if reference > 0 else float("nan")


@dataclasses.dataclass(frozen=True)
class Copy(Utility):
    """Whether the model repeats a value that its prompt gave it: a mail merge, a quoted address, a form filled twice.

    Where the undefended model hardly can, there is no cost: a handful of hits would decide it.

    Attributes:
        places: how many repeated mentions in held-out text, chosen by a hash.
    """

    name: ClassVar[str] = "copy"
    summary: ClassVar[str] = "Accuracy on values that stand in the prompt."
    places: int = 200

    def run(self, target: TextTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        texts = {document.id: document.text for document in corpus.held_out}
        repeats: list[tuple[str, str, str, str]] = []
        for secret in corpus.secrets:
            first: dict[str, str] = {}
            for place in sorted(secret.occurrences, key=lambda o: (o.document, o.start)):
                if place.document not in texts or place.form != "plain":
                    continue
                written = texts[place.document][place.start : place.end]
                before = texts[place.document][: place.start]
                if first.setdefault(place.document, written) == written and written in before:
                    repeats.append((f"{secret.id}@{place.document}/{place.start}", secret.group, before, written))
        repeats.sort(key=lambda repeat: hashlib.sha256(repeat[0].encode()).digest())
        repeats = list(itertools.islice((repeat for repeat in repeats if _in_sight(*repeat[2:], lab)), self.places))
        copied = target.continues(
            [prompt.rstrip(" ") for _, _, prompt, _ in repeats],
            [(" " if prompt.endswith(" ") else "") + written for _, _, prompt, written in repeats],
        )
        for (unit, group, _, _), right in zip(repeats, copied, strict=True):
            yield Outcome(unit, group, False, {"copied": float(right)})

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Scores(_mean(_column(outcomes, "copied"), [outcome.group for outcome in outcomes], better_high=True), {})

    def cost(self, value: float, reference: float) -> float:
        return 100 * (1 - value / reference) if reference >= _LEAST_COPIED else float("nan")


def _column(outcomes: Sequence[Outcome], name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([outcome.values[name] for outcome in outcomes], dtype=np.float64)


def _sample(documents: Sequence[Document], count: int) -> list[Document]:
    return sorted(documents, key=lambda document: hashlib.sha256(document.id.encode()).digest())[:count]


def _tokens(text: str, lab: AttackLab) -> int:
    return len(lab.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _in_sight(prompt: str, written: str, lab: AttackLab) -> bool:
    """Whether a value stands in the part of the prompt that the model's context holds."""
    after = prompt[prompt.rindex(written) :]
    return _tokens(after, lab) + len(written.encode("utf-8", "replace")) + _SPARE <= lab.base.context


def _word_end(text: str, place: int) -> int:
    while place < len(text) and not text[place].isspace():
        place += 1
    return place


def _secret_spans(corpus: Corpus) -> dict[str, list[tuple[int, int]]]:
    spans: dict[str, list[tuple[int, int]]] = {}
    for secret in corpus.secrets:
        for place in secret.occurrences:
            spans.setdefault(place.document, []).append((place.start, place.end))
    return spans


def _tokens_inside(
    document: Document, spans: list[tuple[int, int]], lab: AttackLab, tokens: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(T - 1,) which of the tokens 2..T touch a secret."""
    inside = np.zeros(max(tokens - 1, 0), dtype=bool)
    if not spans:
        return inside
    offsets = lab.tokenizer(document.text, return_offsets_mapping=True, verbose=False)["offset_mapping"][:tokens]
    for place, (start, end) in enumerate(offsets[1:]):
        inside[place] = any(start < last and end > first for first, last in spans)
    return inside


def _clustered(residuals: np.ndarray[tuple[int], np.dtype[np.float64]], groups: Sequence[str]) -> float:
    """The standard error of a sum of residuals whose groups are independent."""
    sums: dict[str, float] = {}
    for group, residual in zip(groups, residuals, strict=True):
        sums[group] = sums.get(group, 0.0) + float(residual)
    count = len(sums)
    return float(np.sqrt(sum(value**2 for value in sums.values()) * count / max(count - 1, 1)))


def _perplexity(
    nll: np.ndarray[tuple[int], np.dtype[np.float64]],
    tokens: np.ndarray[tuple[int], np.dtype[np.float64]],
    groups: Sequence[str],
) -> Score:
    total = float(tokens.sum())
    if total == 0:
        return Score(float("nan"), float("nan"), float("nan"), 0, False)
    mean = float(nll.sum()) / total
    error = 1.96 * _clustered((nll - mean * tokens) / total, groups)
    return Score(float(np.exp(mean)), float(np.exp(mean - error)), float(np.exp(mean + error)), len(groups), False)


def _mean(values: np.ndarray[tuple[int], np.dtype[np.float64]], groups: Sequence[str], *, better_high: bool) -> Score:
    if not len(values):
        return Score(float("nan"), float("nan"), float("nan"), 0, better_high)
    mean = float(values.mean())
    error = 1.96 * _clustered((values - mean) / len(values), groups)
    return Score(mean, mean - error, mean + error, len(values), better_high)
