"""Exposure (Carlini et al. 2019, "The Secret Sharer"): how far up a planted value ranks among values never planted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from memdefense import Attack, Canary, Corpus, NotApplicable, Outcome, Score, Scores, SpecError
from memdefense.attack import Access, Term
from memdefense.strata import bucket

from .extraction_report import share

if TYPE_CHECKING:
    from memdefense import AttackLab, LogprobTarget

Floats = npt.NDArray[np.float64]
_TRIES = 20  # draws for each alternative that is wanted, before fewer are taken


@dataclasses.dataclass(frozen=True)
class Exposure(Attack):
    """log2((m + 1) / rank) of every canary's value among m values of its format that nobody inserted.

    Each value stands after the canary's own prefix, and the log-probability of all its tokens is what is ranked; of
    equals every order is as good as any other, and log2(rank) is averaged over the ranks they share [ours]: the usual
    form takes log2 of their mean rank, 1 + better + half the ties, and so gives tied values a little less. The m
    alternatives are the values of the canaries that were left out, and codes drawn anew in the same format. Nothing
    better than the ``ceiling`` log2(m + 1) can be seen, however well the model knows the value.

    Leakage is the mean over inserted canaries of (exposure - e0) / (ceiling - e0) [ours], where e0 is the mean exposure
    of a value whose every rank from 1 to m + 1 is equally probable: 0 is chance and 1 is every canary ranked first. It
    is exact, since a canary's value was drawn at random; canaries left out are ranked too, and ``exposure_left_out``
    shows it. Exposure rises with the number of copies, so it also stands by that.

    It is no extraction: a canary is nobody's data, a defense that acts on PII leaves it alone, and to prefer a code to
    127 others takes far less than to say it. So it stands beside the audit, and is never the worst way to draw out PII.

    Deviates [ours]: ranks among a sample and not among the whole space of values, which the paper estimates by a fit; a
    letter is redrawn among those of its class (upper case, lower case, digit) that the benchmark's canaries use.

    Attributes:
        alternatives: m, at most.
        context: tokens of the prefix at most; 0 is as many as fit.

    Raises:
        SpecError: a field is out of its range.
    """

    name: ClassVar[str] = "exposure"
    family = "audit"
    summary: ClassVar[str] = "How far up planted codes rank among codes that were never planted."
    passes: ClassVar[str] = "1 pass over many codes"
    needs: ClassVar[str] = "canaries"
    paper: ClassVar[str] = "Carlini et al., USENIX Security 2019, arXiv 1802.08232"
    adaptive_to: ClassVar[tuple[str, ...]] = ("generation",)

    alternatives: int = 127
    context: int = 48

    def __post_init__(self) -> None:
        if self.alternatives < 1 or self.context < 0:
            raise SpecError("exposure: alternatives must be at least 1, and context cannot be negative")

    @property
    def access(self) -> Access:
        return "logprobs"

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Ranks every canary.

        Raises:
            NotApplicable: no canary was inserted, or its value leaves nothing to draw.
        """
        if not any(canary.member for canary in corpus.canaries):
            raise NotApplicable("the corpus has no inserted canaries to rank")
        others = self._alternatives(corpus.canaries, lab)
        jobs = [
            (canary, [canary.value, *[v for v in others if v != canary.value][: self.alternatives]])
            for canary in corpus.canaries
        ]
        contexts, texts = [], []
        for canary, values in jobs:
            before = self._before(canary, lab)
            # The blank belongs to the value's first token.
            blank = canary.prefix[len(canary.prefix.rstrip(" ")) :]
            texts += [blank + value for value in values]
            contexts += [before] * len(values)
        signals = target.signals(texts, contexts=contexts)
        scores = np.array([float(one.logprob.astype(np.float64).sum()) for one in signals])
        start = 0
        for canary, values in jobs:
            own = scores[start : start + len(values)]
            start += len(values)
            found = {"exposure": exposure_of(own), "alternatives": float(len(values) - 1)}
            yield Outcome(canary.id, canary.id, canary.member, found, f"canary/{bucket(canary.copies)}")

    def _alternatives(self, canaries: Sequence[Canary], lab: AttackLab) -> list[str]:
        """Values that nobody inserted: those of canaries left out, one more than asked for, and new ones."""
        rng = lab.rng("alternatives")
        inserted = {canary.value for canary in canaries if canary.member}
        found = dict.fromkeys(canary.value for canary in canaries if not canary.member)
        classes = _classes([canary.value for canary in canaries])
        shapes = sorted(canary.value for canary in canaries)
        for number in range(_TRIES * self.alternatives):
            if len(found) > self.alternatives:
                break
            shape = shapes[number % len(shapes)]
            value = "".join(
                letters[int(rng.integers(len(letters)))] if (letters := classes.get(_class(letter), "")) else letter
                for letter in shape
            )
            if value not in inserted:
                found[value] = None
        if len(found) < 2:
            raise NotApplicable("the canaries' values have too few forms to rank them among others")
        return list(found)[: self.alternatives + 1]  # a canary that was left out does not rank against itself

    def _before(self, canary: Canary, lab: AttackLab) -> str:
        """The end of the prefix, without the blank before the value."""
        text = canary.prefix.rstrip(" ")
        encoded = lab.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        offsets = encoded["offset_mapping"]
        return text[offsets[-self.context][0] :] if 0 < self.context < len(offsets) else text

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        members, others = ([o for o in outcomes if o.member is side] for side in (True, False))
        top = max((_ceiling(o) for o in outcomes), default=math.nan)
        least = min((_normalised(o, 0.0) for o in members), default=math.nan)
        beside = {
            "exposure": _bounded(members, [o.values["exposure"] for o in members], 0.0, top),
            "ceiling": Score(top, top, top, len(members), higher_is_better=None),
            "exposure_left_out": dataclasses.replace(
                _bounded(others, [o.values["exposure"] for o in others], 0.0, top), higher_is_better=None
            ),
        }
        for name in ("1", "2-4", "5-16", ">16"):
            some = [o for o in members if o.stratum == f"canary/{name}"]
            beside[f"exposure_{name}"] = _bounded(some, [o.values["exposure"] for o in some], 0.0, top)
        leakage = _bounded(members, [_normalised(o, o.values["exposure"]) for o in members], least, 1.0)
        return Scores(leakage, beside)

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        return [Term(o.unit, o.group, _normalised(o, o.values["exposure"])) for o in outcomes if o.member]


def exposure_of(scores: Floats) -> float:
    """The exposure of the first of (m + 1,) scores among the rest, the mean over the ranks that ties leave open."""
    rest = scores[1:]
    first = 1 + np.count_nonzero(rest > scores[0])
    ranks = np.arange(first, first + np.count_nonzero(rest == scores[0]) + 1)
    return math.log2(len(scores)) - float(np.log2(ranks).mean())


def chance_exposure(alternatives: int) -> float:
    """The mean exposure of a value that is as probable to take any rank as any other."""
    return math.log2(alternatives + 1) - float(np.log2(np.arange(1, alternatives + 2)).mean())


def _ceiling(outcome: Outcome) -> float:
    return math.log2(outcome.values["alternatives"] + 1)


def _normalised(outcome: Outcome, exposure: float) -> float:
    """An exposure of an outcome's canary on the scale of leakage."""
    chance = chance_exposure(round(outcome.values["alternatives"]))
    return (exposure - chance) / (_ceiling(outcome) - chance)


def _class(letter: str) -> str:
    return next((name for name in ("isdecimal", "isupper", "islower") if getattr(letter, name)()), "")


def _classes(values: Sequence[str]) -> dict[str, str]:
    """The letters of each class that values use."""
    found: dict[str, set[str]] = {}
    for letter in "".join(values):
        if _class(letter):
            found.setdefault(_class(letter), set()).add(letter)
    return {name: "".join(sorted(letters)) for name, letters in found.items()}


def _bounded(outcomes: Sequence[Outcome], values: Sequence[float], low: float, high: float) -> Score:
    """The mean of values that lie between two bounds; its limits are Wilson's, which have width at either bound."""
    if not len(values):
        return Score(math.nan, math.nan, math.nan, 0, higher_is_better=False)
    span = high - low
    shares = np.clip((np.asarray(values) - low) / span, 0.0, 1.0)
    found = share(outcomes, [float(value) for value in shares])
    return Score(float(np.mean(values)), low + span * found.low, low + span * found.high, found.n, False)
