"""What a model must still be good for: predicting held-out text, continuing it, and copying what a prompt gave it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
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
# Characters of a true continuation that can be compared at all, and how far limits reach, in standard errors.
_LEAST_LENGTH, _LIMIT = 20, 1.96
_LEAST_UNITS = 10  # texts or places below which no limits can be told
# Which other texts say what chance is.
_OTHERS = range(1, 141, 7)
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

    def cost(self, own: Sequence[Outcome], reference: Sequence[Outcome], unguarded: Sequence[Outcome]) -> float:
        mine, theirs = (self.score(outcomes).headline.value for outcomes in (own, reference))
        if math.isnan(theirs):
            return math.nan
        return 100 * (mine / theirs - 1) if math.isfinite(mine) else math.inf


@dataclasses.dataclass(frozen=True)
class Continuation(Utility):
    """How close the guarded continuation of a held-out text is to the true one: mean sentence chrF (Popovic 2015).

    Text of the same kind has letters in common whatever it says: ``chance`` is the chrF of other texts' true
    continuations. Where the reference does not exceed it, nothing can be lost and there is no cost. Between models the
    cost is that of chrF itself. A guard, which might say one fine sentence to everything, also pays for the share of
    what its model says beyond chance that it takes away, and the larger counts.

    Costs count as far as they exceed their 95 % limits (authors are the clusters): the worst of several noisy costs
    would else be noise.

    Attributes:
        texts: how many held-out texts, chosen by a hash of their ids, long ones first.
        length: how many characters of the true text are compared; of a shorter text at most half.
    """

    name: ClassVar[str] = "continuation"
    summary: ClassVar[str] = "chrF of continued held-out text."
    texts: int = 150
    length: int = 120

    def run(self, target: TextTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        from sacrebleu import sentence_chrf

        whole = [d for d in _sample(corpus.held_out, len(corpus.held_out)) if len(d.text) >= 2 * _LEAST_LENGTH]
        chosen = sorted(whole, key=lambda document: len(document.text) < 2 * self.length)[: self.texts]
        lengths = [min(self.length, len(document.text) // 2) for document in chosen]
        cuts = [_word_end(d.text, max(len(d.text) // 2 - n // 2, 1)) for d, n in zip(chosen, lengths, strict=True)]
        prompts = [document.text[:cut] for document, cut in zip(chosen, cuts, strict=True)]
        truths = [d.text[cut : cut + n] for d, cut, n in zip(chosen, cuts, lengths, strict=True)]
        chance = lab.cached("chrF of other texts", lambda: _chance(truths), truths)
        longest = max((_tokens(truth, lab) for truth in truths), default=1)
        said = target.generate(prompts, max_new_tokens=max(1, min(longest, 64, lab.base.context // 2)))
        for document, truth, text, floor in zip(chosen, truths, said, chance, strict=True):
            if not truth.strip():
                continue
            chrf = sentence_chrf(text[: len(truth)].strip() or " ", [truth.strip()]).score / 100
            yield Outcome(document.id, document.author or document.id, False, {"chrf": chrf, "chance": floor})

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        groups = [outcome.group for outcome in outcomes]
        floor = dataclasses.replace(_mean(_column(outcomes, "chance"), groups, better_high=True), higher_is_better=None)
        return Scores(_mean(_column(outcomes, "chrf"), groups, better_high=True), {"continuation_chance": floor})

    def cost(self, own: Sequence[Outcome], reference: Sequence[Outcome], unguarded: Sequence[Outcome]) -> float:
        if not _exceeds("chrf", "chance", reference):
            return math.nan
        cost = _lost("chrf", own, reference)
        # Of a model that says nothing beyond chance a guard can take nothing away.
        taken = _lost("chrf", own, unguarded, floor="chance") if _exceeds("chrf", "chance", unguarded) else cost
        return cost if own is unguarded else max(cost, taken)


@dataclasses.dataclass(frozen=True)
class Copy(Utility):
    """Whether the model repeats a value that its prompt gave it: a mail merge, a quoted address, a form filled twice.

    Where the undefended model hardly can, there is no cost: a handful of hits would decide it. Else it counts as far as
    it exceeds its 95 % limits.

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

    def cost(self, own: Sequence[Outcome], reference: Sequence[Outcome], unguarded: Sequence[Outcome]) -> float:
        copied = _column(reference, "copied")
        enough = len(copied) >= _LEAST_UNITS and copied.mean() >= _LEAST_COPIED
        return _lost("copied", own, reference) if enough else math.nan


def _exceeds(name: str, floor: str, outcomes: Sequence[Outcome]) -> bool:
    """Whether a mean exceeds that of its chance level by more than 95 % limits; not of a handful."""
    above = _column(outcomes, name) - _column(outcomes, floor)
    groups = [outcome.group for outcome in outcomes]
    return bool(len(above) >= _LEAST_UNITS and above.sum() > _LIMIT * _clustered(above - above.mean(), groups))


def _lost(name: str, own: Sequence[Outcome], reference: Sequence[Outcome], *, floor: str = "") -> float:
    """Percent of the reference's mean, or of what it has beyond its floor, that is lost; what noise may be is not.

    Paired by unit, so that of two answers that are alike nothing is noise; at most 100, and infinite where a value is
    no number.
    """
    mine = {outcome.unit: outcome.values[name] for outcome in own}
    theirs = _column(reference, name)
    gap = theirs - (_column(reference, floor) if floor else 0.0)
    less = theirs - np.array([mine.get(outcome.unit, 0.0) for outcome in reference])
    if not np.isfinite(less).all():
        return math.inf
    share = float(less.sum() / gap.sum())
    error = _clustered(less - share * gap, [outcome.group for outcome in reference]) / float(gap.sum())
    return 100 * min(math.copysign(max(abs(share) - _LIMIT * error, 0.0), share), 1.0)


def _chance(truths: Sequence[str]) -> list[float]:
    """The mean chrF of each text's truth with those of some others."""
    from sacrebleu import sentence_chrf

    texts = [truth.strip() for truth in truths]
    found = []
    for place, text in enumerate(texts):
        others = [texts[(place + step) % len(texts)] or " " for step in _OTHERS if step % len(texts)]
        scores = [sentence_chrf(other, [text]).score / 100 for other in others if text]
        found.append(math.fsum(scores) / len(scores) if scores else 0.0)
    return found


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
        return Score(math.nan, math.nan, math.nan, 0, False)
    mean = float(nll.sum()) / total
    if not math.isfinite(mean):  # a guard that rules out what is true, or weights that are no numbers
        return Score(math.exp(mean), math.nan, math.nan, len(groups), False)
    error = 1.96 * _clustered((nll - mean * tokens) / total, groups)
    return Score(float(np.exp(mean)), float(np.exp(mean - error)), float(np.exp(mean + error)), len(groups), False)


def _mean(values: np.ndarray[tuple[int], np.dtype[np.float64]], groups: Sequence[str], *, better_high: bool) -> Score:
    if not len(values):
        return Score(math.nan, math.nan, math.nan, 0, better_high)
    mean = float(values.mean())
    error = 1.96 * _clustered((values - mean) / len(values), groups)
    return Score(mean, mean - error, mean + error, len(values), better_high)
