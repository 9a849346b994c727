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
from memdefense.interval import clustered_error, normal_quantile
from memdefense.score import Score, Scores

if TYPE_CHECKING:
    from memdefense.access import Target
    from memdefense.lab import AttackLab

_LEAST_LENGTH, _LEAST_TEXTS = 20, 10  # characters of a true continuation that can be compared, and how many of them
_SPARE = 24  # context that generation may take for itself beside a value
_LEAST_PLACES = 10  # below which a handful of values would decide what copying costs
_ABLE, _ABLE_PLACES = 0.8, 100  # the share of so many values that must be copied for a loss to be told from noise
_AFTER = 60  # characters of the true text behind a value that is said
_OTHERS = range(1, 141, 7)  # which other texts say what chance is


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

    def run(self, target: Target, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        spans = _secret_spans(corpus)
        documents = [(document, "held_out") for document in corpus.held_out]
        documents += [(document, "general") for document in corpus.general]
        target = _drawn_plainly(target)
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

    def cost(self, own: Sequence[Outcome], reference: Sequence[Outcome]) -> float:
        mine, theirs = (self.score(outcomes).headline.value for outcomes in (own, reference))
        if math.isnan(theirs):
            return math.nan
        return 100 * (mine / theirs - 1) if math.isfinite(mine) else math.inf


@dataclasses.dataclass(frozen=True)
class Continuation(Utility):
    """How much of the answers to held-out prompts a guard takes away, in percent.

    What acts on weights is priced by perplexity and accuracy; so is a guard's law, but a law can spoil answers (end
    them, say) where that hardly costs a likelihood. So a guard pays here, for two things on top of each other:

    - What acts on text: the answer is compared with what comes before that (sentence chrF, Popovic 2015): 0 for the
      same, 1 for one no closer to it than the answers to other prompts are. Refusing to speak costs 100; so does one
      fine sentence to everything, and an answer made of the prompt in the model's stead, however true. What is taken
      away costs as much where the model was wrong; texts to which it says nothing do not count.
    - Laws, and draws that a guard insists on: what they lose against the most likely tokens of the same weights, in
      chrF with the true continuation, as a share of what the undefended model has beyond ``chance`` (the chrF of other
      texts' true continuations). Where that is not above chance by 95 % limits, the cost is not known.

    Weights that say less than their perplexity tells are not found here, but by `memdefense.accuracy`: a small model is
    hardly above chance, and a difference of two models' chrF is mostly noise. So a defense without a guard is not asked
    at all. The chrF of what is said in the end stands beside.

    Attributes:
        texts: how many held-out texts, chosen by a hash of their ids, long ones first.
        length: how many characters of the true text are compared; of a shorter text at most half.
    """

    name: ClassVar[str] = "continuation"
    summary: ClassVar[str] = "What a guard leaves of the model's continuations of held-out text."
    of_guards: ClassVar[bool] = True
    texts: int = 150
    length: int = 120

    def run(self, target: Target, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        from memdefense.target import LocalTarget

        whole = [d for d in _sample(corpus.held_out, len(corpus.held_out)) if len(d.text) >= 2 * _LEAST_LENGTH]
        chosen = sorted(whole, key=lambda document: len(document.text) < 2 * self.length)[: self.texts]
        lengths = [min(self.length, len(document.text) // 2) for document in chosen]
        cuts = [_word_end(d.text, max(len(d.text) // 2 - n // 2, 1)) for d, n in zip(chosen, lengths, strict=True)]
        prompts = [document.text[:cut] for document, cut in zip(chosen, cuts, strict=True)]
        truths = [d.text[cut : cut + n] for d, cut, n in zip(chosen, cuts, lengths, strict=True)]
        chance = lab.cached("chrF of other texts", lambda: _chance(truths, range(len(truths))), truths)
        longest = max((_tokens(truth, lab) for truth in truths), default=1)
        new = max(1, min(longest, 64, lab.base.context // 2))
        unfiltered = target.unfiltered()
        drawn = bare = unfiltered.generate(prompts, max_new_tokens=new)
        if isinstance(_inner(target), LocalTarget):  # then it is what `generate` gives, without a generation
            said = target.filtered(prompts, drawn, max_new_tokens=new)
        else:
            said = target.generate(prompts, max_new_tokens=new)
        if not _plain(unfiltered):
            bare = LocalTarget(target.model).generate(prompts, max_new_tokens=new)
        taken = _taken(said, drawn)
        for row, (document, truth) in enumerate(zip(chosen, truths, strict=True)):
            if truth.strip():
                texts = {"chrf": said[row], "drawn": drawn[row], "bare": bare[row]}
                values = {name: _chrf(text[: len(truth)], truth) for name, text in texts.items()}
                answered = any(text.strip() for text in texts.values())
                values |= {"chance": chance[row], "taken": taken[row], "answered": float(answered)}
                yield Outcome(document.id, document.author or document.id, False, values)

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        groups = [outcome.group for outcome in outcomes]
        floor = dataclasses.replace(_mean(_column(outcomes, "chance"), groups, better_high=True), higher_is_better=None)
        answered = [outcome for outcome in outcomes if outcome.values["answered"]]
        taken = _mean(_column(answered, "taken"), [outcome.group for outcome in answered], better_high=False)
        beside = {"continuation_chance": floor, "continuation_taken": taken}
        return Scores(_mean(_column(outcomes, "chrf"), groups, better_high=True), beside)

    def cost(self, own: Sequence[Outcome], reference: Sequence[Outcome]) -> float:
        if not own:
            return math.nan
        answered = [outcome for outcome in own if outcome.values["answered"]]
        if not answered:  # from a model that says nothing, nothing can be taken
            return math.nan
        taken, lost = float(_column(answered, "taken").mean()), 0.0
        less = _column(own, "bare") - _column(own, "drawn")
        if not np.isfinite(less).all():
            return math.inf
        if less.any():
            room = _column(reference, "chrf") - _column(reference, "chance")
            error = clustered_error(room - room.mean(), [outcome.group for outcome in reference]) if len(room) else 0.0
            if len(room) < _LEAST_TEXTS or room.sum() <= normal_quantile(0.95) * error:
                return math.nan
            lost = min(max(float(less.sum() / room.sum()), 0.0), 1.0)
        return 100 * (1 - (1 - taken) * (1 - lost))


@dataclasses.dataclass(frozen=True)
class Copy(Utility):
    """Whether a value that the prompt gave is repeated: a mail merge, a quoted address, a form filled twice.

    Two things are asked of values that stand a second time in a held-out text. Does the model, before any guard on
    text, go on with the value there? And do the guards on text let the value through, supposed a model says it and then
    what follows it in truth? The second asks nothing of the model, so a filter pays for the percent of values that it
    blocks, whatever the model can do. What is copied and let through in the end counts as well, and the larger loss is
    the cost, where the undefended model copies at least four fifths of at least a hundred values: of fewer, a loss of
    the model's own would be noise.

    Attributes:
        places: how many repeated mentions in held-out text, chosen by a hash.
    """

    name: ClassVar[str] = "copy"
    summary: ClassVar[str] = "Values that stand in the prompt, and what a guard lets through of them."
    places: int = 200

    def run(self, target: Target, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        found = sorted(_repeats(corpus), key=lambda repeat: hashlib.sha256(repeat.unit.encode()).digest())
        repeats = list(itertools.islice((r for r in found if _in_sight(r.before, r.value, lab)), self.places))
        prompts = [repeat.before.rstrip(" ") for repeat in repeats]
        blanks = [" " if repeat.before.endswith(" ") else "" for repeat in repeats]
        values = [blank + repeat.value for blank, repeat in zip(blanks, repeats, strict=True)]
        copied = target.unfiltered().continues(prompts, values)
        truths = [value + repeat.after for value, repeat in zip(values, repeats, strict=True)]
        let = target.filtered(prompts, truths, max_new_tokens=min(64, lab.base.context // 2))
        for repeat, right, text in zip(repeats, copied, let, strict=True):
            values_of = {"copied": float(right), "passed": float(text.lstrip().startswith(repeat.value))}
            yield Outcome(repeat.unit, repeat.group, False, values_of)

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        groups = [outcome.group for outcome in outcomes]
        copied, passed = (_column(outcomes, name) for name in ("copied", "passed"))
        beside = {"copy_passed": _mean(passed, groups, better_high=True)}
        return Scores(_mean(copied * passed, groups, better_high=True), beside)

    def cost(self, own: Sequence[Outcome], reference: Sequence[Outcome]) -> float:
        if not own:
            return math.nan
        copied, passed, able = _column(own, "copied"), _column(own, "passed"), _column(reference, "copied")
        blocked = 1 - float(passed.mean()) if len(own) >= _LEAST_PLACES else math.nan
        if len(able) < _ABLE_PLACES or able.mean() < _ABLE:
            return 100 * blocked
        return 100 * max(blocked, 1 - float((copied * passed).mean() / able.mean()))


@dataclasses.dataclass(frozen=True, slots=True)
class _Repeat:
    """A value that stands a second time in a held-out text: what goes before it there, and what comes after it."""

    unit: str
    group: str
    before: str
    value: str
    after: str


def _repeats(corpus: Corpus) -> Iterator[_Repeat]:
    texts = {document.id: document.text for document in corpus.held_out}
    for secret in corpus.secrets:
        first: dict[str, str] = {}
        for place in sorted(secret.occurrences, key=lambda o: (o.document, o.start)):
            if place.document not in texts or place.form != "plain":
                continue
            text = texts[place.document]
            before, value = text[: place.start], text[place.start : place.end]
            if first.setdefault(place.document, value) == value and value in before:
                unit = f"{secret.id}@{place.document}/{place.start}"
                yield _Repeat(unit, secret.group, before, value, text[place.end : place.end + _AFTER])


def _plain(target: Target) -> bool:
    """Whether nothing stands before the weights; of a target of another make, that something may."""
    from memdefense.target import LocalTarget

    inner = _inner(target)
    return isinstance(inner, LocalTarget) and not (inner.laws or inner.texts or inner.owned)


def _drawn_plainly(target: Target) -> Target:
    """The target with its laws, drawn from as they are where a guard insists on another temperature or on a top k.

    What such a scheme rules out has no probability at all, and one word of it would make perplexity infinite; what it
    costs in answers is seen in `Continuation`.
    """
    from memdefense.access import PLAIN
    from memdefense.target import LocalTarget

    inner = _inner(target)
    scheme = inner.owned if isinstance(inner, LocalTarget) else None
    plain = scheme is None or dataclasses.replace(scheme, seed=PLAIN.seed) == PLAIN
    return target if plain else target.guarded(sampling=PLAIN)


def _inner(target: Target) -> Target:
    from memdefense.remember import Remembered

    return target.behind if isinstance(target, Remembered) else target


def _taken(said: Sequence[str], meant: Sequence[str]) -> list[float]:
    """Which share of what a model meant to say is not said, per text: 0 for the same text, 1 at the level of chance."""
    both = enumerate(zip(said, meant, strict=True))
    changed = [place for place, (mine, theirs) in both if mine.strip() != theirs.strip()]
    lost = dict.fromkeys(range(len(said)), 0.0)
    for place, floor in zip(changed, _chance(meant, changed, blanks=True), strict=True):
        room = 1 - floor
        less = 1 - _chrf(said[place], meant[place], blanks=True)
        lost[place] = min(less / room, 1.0) if room > 0 else 1.0
    return list(lost.values())


def _chance(texts: Sequence[str], places: Sequence[int], *, blanks: bool = False) -> list[float]:
    """The mean chrF of the texts at some places with some of the others."""
    found = []
    for place in places:
        others = [texts[(place + step) % len(texts)] for step in _OTHERS if step % len(texts)]
        scores = [_chrf(other, texts[place], blanks=blanks) for other in others if texts[place].strip()]
        found.append(math.fsum(scores) / len(scores) if scores else 0.0)
    return found


def _chrf(text: str, truth: str, *, blanks: bool = False) -> float:
    """Sentence chrF of a text with the true one, 0 to 1; with ``blanks`` white space counts too."""
    from sacrebleu import sentence_chrf

    if not text.strip() or not truth.strip():
        return 0.0
    return sentence_chrf(text.strip(), [truth.strip()], remove_whitespace=not blanks).score / 100


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
    error = normal_quantile(0.95) * clustered_error((nll - mean * tokens) / total, groups)
    return Score(float(np.exp(mean)), float(np.exp(mean - error)), float(np.exp(mean + error)), len(groups), False)


def _mean(values: np.ndarray[tuple[int], np.dtype[np.float64]], groups: Sequence[str], *, better_high: bool) -> Score:
    if not len(values):
        return Score(math.nan, math.nan, math.nan, 0, better_high)
    mean = float(values.mean())
    error = normal_quantile(0.95) * clustered_error((values - mean) / len(values), groups)
    return Score(mean, mean - error, mean + error, len(values), better_high)
