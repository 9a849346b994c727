from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import pytest

from memdefense import registry
from memdefense.attack import Access, Attack, Outcome, Term
from memdefense.corpus import Benchmark, Corpus, Document, Documents
from memdefense.defense import Defense, Point
from memdefense.errors import PluginError
from memdefense.score import Score, Scores
from memdefense.target import LocalTarget
from memdefense.testing import TinyBenchmark, check_attack, check_benchmark, check_defense

if TYPE_CHECKING:
    from memdefense.lab import AttackLab, Lab
    from memdefense.lm import LM, LogprobTarget, Target

CALLS = itertools.count()


@pytest.mark.parametrize("spec", ["none", "never-trained", "refuse", "rmft", "dedup+rmft:keep=none,redraw=epoch"])
def test_built_in_defenses_pass(spec: str) -> None:
    for made in registry.build("defenses", spec):
        check_defense(cast(Defense, made))


@pytest.mark.parametrize("spec", ["prefix", "mia"])
def test_built_in_attacks_pass(spec: str) -> None:
    check_attack(cast(Attack, registry.build("attacks", spec)[0]))


@pytest.mark.parametrize("spec", ["mailbox:documents=40", "mailbox:documents=40,seed=1,canaries=0"])
def test_built_in_benchmarks_pass(spec: str) -> None:
    check_benchmark(cast(Benchmark, registry.build("benchmarks", spec)[0]))


def test_tiny_benchmark_passes_with_any_seed() -> None:
    for seed in range(3):
        check_benchmark(TinyBenchmark(seed))
    assert TinyBenchmark(0).corpus().digest() != TinyBenchmark(1).corpus().digest()
    assert TinyBenchmark().corpus().exchangeable


# Defenses that each break one rule.


@dataclasses.dataclass(frozen=True)
class Broken(Defense):
    """A defense in order, whose subclasses are not."""

    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "Breaks a rule."


@dataclasses.dataclass(frozen=True)
class Nameless(Defense):
    """Keeps the name of its base."""

    summary: ClassVar[str] = "Nameless."


@dataclasses.dataclass(frozen=True)
class Silent(Defense):
    """Keeps the summary of its base."""

    name: ClassVar[str] = "silent"


class Undecorated(Broken):
    """Is no dataclass of its own."""

    strength: int = 1


@dataclasses.dataclass(frozen=True)
class Worded(Broken):
    """Takes any text."""

    word: str = ""


class Mutates(Broken):
    """Changes the documents it is given."""

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        object.__setattr__(documents[0], "text", "changed")
        return documents


class Renames(Broken):
    """Gives documents ids of its own."""

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        return [Document(f"new-{document.id}", document.text) for document in documents]


class Empties(Broken):
    """Leaves nothing."""

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        return []


class Restless(Broken):
    """Does something else every time."""

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        return [dataclasses.replace(documents[0], text=f"draw {next(CALLS)}"), *documents[1:]]


class RestlessWeights(Broken):
    """Trains to something else every time."""

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        trained = model.copy()
        next(trained.model.parameters()).data[0, 0] = float(next(CALLS))
        yield Point("1.0", 1.0, trained)


class InPlace(Broken):
    """Trains the base model itself."""

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        next(model.model.parameters()).data[0, 0] += 1.0
        yield Point("1.0", 1.0, model)


class Pointless(Broken):
    """Yields nothing."""

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        return iter(())


class Twins(Broken):
    """Yields two points of one label."""

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        yield Point("1", 1.0, model)
        yield Point("1", 1.0, model)


class Percent(Broken):
    """Takes percent for a share."""

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        yield Point("1", 100.0, model)


class _Hidden(LocalTarget):
    """A target that acts on text and tells nobody."""

    def filtered(self, prompts: Sequence[str], continuations: Sequence[str], *, max_new_tokens: int) -> list[str]:
        return list(continuations)


class TwoTongues(Broken):
    """Answers otherwise than by what it says it makes of the model's text."""

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        return _Hidden(target.model, texts=(lambda prompts, texts, again: ["no"] * len(texts),))


class Unguarded(Broken):
    """Forgets to return the target."""

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        return cast("Target", None)


class Raises(Broken):
    """Fails."""

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        raise ZeroDivisionError("by nothing")


class Infinite(Broken):
    """Notes what is no number."""

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        lab.note(epsilon=math.inf)
        return documents


_CURATING = (Mutates, Renames, Empties, Restless, Raises, Infinite)
_DEFENSES: tuple[type[Broken], ...] = (
    *_CURATING,
    RestlessWeights,
    InPlace,
    Pointless,
    Twins,
    Percent,
    TwoTongues,
    Unguarded,
)
for _kind in _DEFENSES:
    dataclasses.dataclass(frozen=True)(_kind)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (Nameless(), "is named 'none'"),
        (Silent(), "no summary of its own"),
        (Undecorated(), r"Undecorated is no frozen dataclass"),
        (Worded("a,b"), "a,b"),
        (Mutates(), "changed the documents it was given"),
        (Renames(), "keep the ids"),
        (Empties(), "left no documents"),
        (Restless(), "other documents with the same seed"),
        (RestlessWeights(), "other weights with the same seed"),
        (InPlace(), r"changed the base model in train\(\)"),
        (Pointless(), "no operating point"),
        (Twins(), "two points of one label"),
        (Percent(), r"a share of the run, 0 to 1"),
        (TwoTongues(), r"must say what filtered\(\) makes of"),
        (Unguarded(), r"guard\(\) returns NoneType without generate"),
        (Raises(), r"failed in curate\(\): ZeroDivisionError: by nothing \(test_testing.py:\d+\)"),
        (Infinite(), "not finite: epsilon"),
    ],
)
def test_broken_defense_is_told_what_is_wrong(made: Defense, complaint: str) -> None:
    with pytest.raises(PluginError, match=complaint):
        check_defense(made)


def test_class_inside_a_function_cannot_be_found_again() -> None:
    @dataclasses.dataclass(frozen=True)
    class Local(Broken):
        """Nobody finds it."""

    with pytest.raises(PluginError, match="module level"):
        check_defense(Local())


# Attacks that each break one rule.


@dataclasses.dataclass(frozen=True)
class Loss(Attack):
    """The mean log-likelihood; in order."""

    name: ClassVar[str] = "toy"
    family = "membership"
    summary: ClassVar[str] = "The mean log-likelihood."
    access: Access = "logprobs"

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        for member, split in ((True, corpus.train), (False, corpus.held_out)):
            for document, signal in zip(split, target.signals([d.text for d in split]), strict=True):
                yield self.outcome(document, float(np.mean(signal.logprob)), member=member)

    def outcome(self, document: Document, value: float, *, member: bool) -> Outcome:
        return Outcome(document.id, document.author, member, {"loss": value})

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        values = [outcome.values["loss"] for outcome in outcomes]
        mean = float(np.mean(values)) if values else math.nan
        return Scores(Score(mean, mean, mean, len(values), False), {})

    def terms(self, outcomes: Sequence[Outcome]) -> Sequence[Term]:
        return [Term(o.unit, o.group, o.values["loss"]) for o in outcomes]


class Doubled(Loss):
    """Names two units alike."""

    def outcome(self, document: Document, value: float, *, member: bool) -> Outcome:
        return Outcome("same", document.author, member, {"loss": value})


class NaNs(Loss):
    """Writes NaN for what it did not measure."""

    def outcome(self, document: Document, value: float, *, member: bool) -> Outcome:
        return Outcome(document.id, document.author, member, {"loss": value, "rank": math.nan})


class Leaky(Loss):
    """Writes the text itself."""

    def outcome(self, document: Document, value: float, *, member: bool) -> Outcome:
        return Outcome(document.id, document.author, member, {"loss": value}, stratum=document.text)


class Alone(Loss):
    """Belongs to nobody."""

    def outcome(self, document: Document, value: float, *, member: bool) -> Outcome:
        return Outcome(document.id, "", member, {"loss": value})


class Shaky(Loss):
    """Measures something else every time."""

    def outcome(self, document: Document, value: float, *, member: bool) -> Outcome:
        return Outcome(document.id, document.author, member, {"loss": value - next(CALLS)})


class Fragile(Loss):
    """Fails without members."""

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        next(outcome for outcome in outcomes if outcome.member)
        return super().score(outcomes)


class Zero(Loss):
    """Takes nothing for chance."""

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return super().score(outcomes) if outcomes else Scores(Score(0.0, 0.0, 0.0, 0), {})


class Impure(Loss):
    """Scores something else every time."""

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Scores(Score(-float(next(CALLS)), 0.0, 0.0, 0), {})


class Above(Loss):
    """Leaks more than everything."""

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Scores(Score(2.0 if outcomes else math.nan, 0.0, 0.0, 0), {})


class OffTerms(Loss):
    """Has terms of another mean."""

    def terms(self, outcomes: Sequence[Outcome]) -> Sequence[Term]:
        return [Term(o.unit, o.group, 1.0) for o in outcomes]


class Unmeasured(Loss):
    """Has terms where the leakage is not known."""

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        whole = super().score(outcomes)
        return whole if any(not o.member for o in outcomes) else Scores(Score(math.nan, 0.0, 1.0, 0, False), {})


class Torn(Loss):
    """Has terms of several outcomes alone."""

    def terms(self, outcomes: Sequence[Outcome]) -> Sequence[Term]:
        _, _, *_ = outcomes
        return super().terms(outcomes)


class Careless(Loss):
    """Changes the corpus."""

    def outcome(self, document: Document, value: float, *, member: bool) -> Outcome:
        object.__setattr__(document, "author", "x")
        return super().outcome(document, value, member=member)


class Idle(Loss):
    """Leaves nothing."""

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        return iter(())


class Trespasser(Loss):
    """Reads the weights without having declared it."""

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        target.model  # type: ignore[attr-defined]  # noqa: B018
        return super().run(target, corpus, lab)


_ATTACKS = (
    *(Doubled, NaNs, Leaky, Alone, Shaky, Fragile, Zero, Impure, Above),
    *(OffTerms, Unmeasured, Torn, Careless, Idle, Trespasser),
)
for _attack in _ATTACKS:
    dataclasses.dataclass(frozen=True)(_attack)


def test_attack_in_order_passes() -> None:
    check_attack(Loss())


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (Doubled(), "outcomes of one id: same"),
        (NaNs(), "a rank that is not finite"),
        (Leaky(), "a secret's value into an outcome"),
        (Alone(), "no group"),
        (Shaky(), "something else with the same seed"),
        (Fragile(), r"score\(\) raises on no outcome: StopIteration"),
        (Zero(), "what was not measured is NaN"),
        (Impure(), "must be a pure function"),
        (Above(), "a leakage of 2.0"),
        (OffTerms(), r"terms\(\) have mean 1.0 on all outcomes"),
        (Unmeasured(), r"terms\(\) gives 1 on one outcome, but the leakage is NaN: give none"),
        (Torn(), r"terms\(\) raises on no outcome: ValueError"),
        (Careless(), "changed the corpus"),
        (Idle(), "leaves no outcome"),
        (Trespasser(), r"failed in run\(\)"),
    ],
)
def test_broken_attack_is_told_what_is_wrong(made: Attack, complaint: str) -> None:
    with pytest.raises(PluginError, match=complaint):
        check_attack(made)


# Benchmarks that each break one rule.


@dataclasses.dataclass(frozen=True)
class Warped(TinyBenchmark):
    """The tiny corpus with one thing wrong."""

    name: ClassVar[str] = "warped"
    summary: ClassVar[str] = "One thing wrong."

    fault: str = ""

    def corpus(self) -> Corpus:
        corpus = super().corpus()
        first, *others = corpus.secrets
        place, *places = first.occurrences
        match self.fault:
            case "random":
                more = Document("d-more", f"draw {next(CALLS)}")
                return dataclasses.replace(corpus, general=[*corpus.general, more])
            case "ids":
                return dataclasses.replace(corpus, general=corpus.train[:1])
            case "span":
                moved = dataclasses.replace(place, start=place.start + 1)
                first = dataclasses.replace(first, occurrences=(moved, *places))
            case "split":
                first = dataclasses.replace(first, member=False)
            case "both":
                other = next(secret for secret in others if not secret.member)
                both = dataclasses.replace(first, id="both", member=False, occurrences=other.occurrences[:1])
                text = {d.id: d.text for d in corpus.held_out}[both.occurrences[0].document] + first.value
                spot = dataclasses.replace(place, document="d24", start=len(text) - len(first.value), end=len(text))
                held = [dataclasses.replace(d, text=text) if d.id == "d24" else d for d in corpus.held_out]
                both = dataclasses.replace(both, occurrences=(spot,))
                return dataclasses.replace(corpus, held_out=held, secrets=[*corpus.secrets, both])
            case "twin":
                first = dataclasses.replace(first, twin=others[0].value)
            case "nowhere":
                first = dataclasses.replace(first, occurrences=())
        return dataclasses.replace(corpus, secrets=[first, *others])


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("random", "another corpus from the same fields"),
        ("ids", "documents of one id: d00"),
        ("span", "secret s00 is not what stands at"),
        ("split", "not a text of held_out"),
        ("both", "1 values are members and non-members at once"),
        ("twin", "1 twins stand in the training text"),
        ("nowhere", "secret s00 occurs nowhere"),
    ],
)
def test_broken_benchmark_is_told_what_is_wrong(fault: str, complaint: str) -> None:
    check_benchmark(Warped())
    with pytest.raises(PluginError, match=complaint):
        check_benchmark(Warped(fault=fault))
