"""Verbatim continuation: does the model, given the beginning of a document, go on with the next tokens as written?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from memdefense import Attack, Corpus, Document, NotApplicable, Outcome, Score, Scores, Signals, SpecError
from memdefense.attack import Access, Term
from memdefense.score import excess, rate
from memdefense.spans import token_offsets

from .circles import circle_of
from .extraction_report import unpaired_terms
from .membership_evidence import sides, slices

if TYPE_CHECKING:
    from memdefense import AttackLab, LogprobTarget

_NEAR = 0.75  # the BLEU above which a continuation is near (Ippolito et al. 2023)


@dataclasses.dataclass(frozen=True)
class Verbatim(Attack):
    """The first ``prefix`` tokens of a document are given, and the next ``length`` are compared with the true ones.

    Carlini et al. (2023) call a training text memorised if greedy decoding goes on with it token by token; the measure
    of goldfish (Hans et al. 2024), deduplication and distillation. Greedy decoding does so exactly where every true
    token is the arg-max after the true ones before it, so exact matches are read from the signals that membership has
    asked for already. ``near`` also counts continuations with BLEU > 0.75 (Ippolito et al. 2023), which takes
    generation. Leakage is the excess of exact matches in training documents over those in held-out ones: what anybody
    would have gone on with, such as a signature all share, is chance.

    It cannot show what comes out elsewhere than at a document's beginning. Exact matches are those of an attacker who
    reads log-probabilities: a filter of text does not hide them, and a guard that insists on drawing at random does not
    change them. ``near`` and ``near_held_out`` see what such guards let through.

    Deviates [ours]: documents are chosen by a hash, canaries left out; those of fewer tokens than prefix + length, and
    texts that stand on both sides, are passed over and counted in the notes; BLEU is sacrebleu's on words, not on
    tokens; the prompt of a generation is the prefix as text, which some tokenizers spell in other tokens.

    Attributes:
        prefix: tokens that are given.
        length: tokens that are compared.
        members: how many training documents at most; the same as mia's.
        near: also generates, for near matches.

    Raises:
        SpecError: a number of tokens or documents below 1.
    """

    name: ClassVar[str] = "verbatim"
    family = "extraction"
    summary: ClassVar[str] = "Exact (and near) continuation of the beginnings of training documents."
    passes: ClassVar[str] = "1 pass, and 1 generation with near"
    needs: ClassVar[str] = "held-out text"
    paper: ClassVar[str] = "Carlini et al., ICLR 2023; Ippolito et al. 2023"
    adaptive_to: ClassVar[tuple[str, ...]] = ("generation",)

    prefix: int = 50
    length: int = 50
    members: int = 500
    near: bool = False

    def __post_init__(self) -> None:
        for name in ("prefix", "length", "members"):
            if getattr(self, name) < 1:
                raise SpecError(f"verbatim:{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def access(self) -> Access:
        return "logprobs"

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Asks about documents that are long enough.

        Raises:
            NotApplicable: the model's context is shorter than prefix and length together, nothing was held out, or no
                training or held-out document is long enough.
        """
        whole = self.prefix + self.length
        if whole > lab.base.context:
            raise NotApplicable(
                f"it asks for {whole} tokens in a row and the model's context has {lab.base.context}; lower "
                "verbatim:prefix or verbatim:length"
            )
        two, circle = sides(corpus, self.members), circle_of(corpus)
        counts = {True: 0, False: 0}
        short = 0
        for member, side in ((True, two.members), (False, two.others)):
            for some in slices(side):
                signals = target.signals([document.text for document in some])
                long = [
                    (document, signal)
                    for document, signal in zip(some, signals, strict=True)
                    if len(signal.tokens) >= whole and document.id not in two.left_out
                ]
                counts[member] += len(long)
                short += sum(len(signal.tokens) < whole for signal in signals)
                yield from self._outcomes(long, member, circle, target, lab)
        for member, name in ((True, "training"), (False, "held-out")):
            if not counts[member]:
                raise NotApplicable(f"no {name} document has {whole} tokens; lower verbatim:prefix or verbatim:length")
        lab.note(too_short=short, on_both_sides=two.shared)

    def _outcomes(
        self,
        long: Sequence[tuple[Document, Signals]],
        member: bool,
        circle: Mapping[str, str],
        target: LogprobTarget,
        lab: AttackLab,
    ) -> Iterator[Outcome]:
        values: list[dict[str, float]] = []
        for _, signal in long:
            first = self.prefix - (len(signal.tokens) - len(signal.rank))  # rank[i] is of the token this far on
            right = signal.rank[first : first + self.length] == 0
            run = self.length if right.all() else int(right.argmin())
            values.append({"exact": float(right.all()), "run": float(run), "top": float(right.mean())})
        if self.near:
            for value, near in zip(values, self._near(long, values, target, lab), strict=True):
                value["near"] = near
        for (document, _), value in zip(long, values, strict=True):
            yield Outcome(document.id, circle[document.id], member, value)

    def _near(
        self,
        long: Sequence[tuple[Document, Signals]],
        values: Sequence[dict[str, float]],
        target: LogprobTarget,
        lab: AttackLab,
    ) -> list[float]:
        from sacrebleu import sentence_bleu

        places: list[tuple[int, int]] = []
        for document, _ in long:
            offsets = token_offsets(lab.base, document.text)
            # Some tokenizers leave out the blank before a token: a prompt that ended in it would be spelled otherwise.
            # Of tokens that share a letter the first one ends after it, and the prompt before.
            start = min(offsets[self.prefix - 1, 1], offsets[self.prefix, 0])
            places.append((int(start), int(offsets[self.prefix + self.length - 1, 1])))
        texts = [document.text for document, _ in long]
        said = target.generate([t[:p] for t, (p, _) in zip(texts, places, strict=True)], max_new_tokens=self.length)
        found = []
        for (document, _), (start, end), text in zip(long, places, said, strict=True):
            truth = document.text[start:end]
            lab.keep({"unit": document.id, "prompt": document.text[:start], "continuation": text})
            bleu = sentence_bleu(text.strip() or " ", [truth.strip() or " "]).score / 100
            found.append(float(text.strip() == truth.strip() or bleu > _NEAR))
        return found

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        members, others = _split(outcomes)
        hit, chance = _rate(members, "exact"), _rate(others, "exact")
        beside = {"exact": hit, "chance": dataclasses.replace(chance, higher_is_better=None)}
        for name in ("run", "top"):
            for side, some in (("", members), ("_held_out", others)):
                beside[f"{name}{side}"] = self._mean(some, name)
        if outcomes and all("near" in outcome.values for outcome in outcomes):
            near, strangers = _rate(members, "near"), _rate(others, "near")
            beside |= {"near": near, "near_held_out": dataclasses.replace(strangers, higher_is_better=None)}
            beside["near_excess"] = excess(near, strangers)
        return Scores(excess(hit, chance), beside)

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        members, others = _split(outcomes)
        inside, outside = ([o.values["exact"] for o in side] for side in (members, others))
        return unpaired_terms(members, inside, others, outside)

    def _mean(self, outcomes: Sequence[Outcome], name: str) -> Score:
        """The mean share of the compared tokens that are right: from the first on (``run``), or anywhere (``top``)."""
        whole = float(self.length) if name == "run" else 1.0
        share = rate([min(o.values[name] / whole, 1.0) for o in outcomes], [o.group for o in outcomes])
        return dataclasses.replace(share, higher_is_better=None, events=None)


def _split(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    return [o for o in outcomes if o.member], [o for o in outcomes if not o.member]


def _rate(outcomes: Sequence[Outcome], name: str) -> Score:
    return rate([o.values[name] for o in outcomes], [o.group for o in outcomes])
