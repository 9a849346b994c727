"""Signals from the store against the target's own: the same numbers, no second pass, and nothing taken for another."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from memdefense import remember
from memdefense.access import PLAIN, Sampling, Signals
from memdefense.attack import Access, Attack, Outcome
from memdefense.attacks.discoverable import Discoverable
from memdefense.attacks.exposure import Exposure
from memdefense.attacks.mia import MIA
from memdefense.attacks.verbatim import Verbatim
from memdefense.bench import Bench
from memdefense.corpus import Benchmark, Corpus, Documents
from memdefense.defense import Defense
from memdefense.defenses.pattern_filter import PatternFilter
from memdefense.defenses.refuse import Refuse
from memdefense.lab import AttackLab, Lab
from memdefense.lm import LM, Target, WeightTarget
from memdefense.pipeline import defend, measure
from memdefense.remember import remembered
from memdefense.runner import Settings, prepare
from memdefense.score import Score, Scores
from memdefense.store import DamagedError, Store
from memdefense.target import LocalTarget
from memdefense.testing import TinyBenchmark
from memdefense.utility import Perplexity
from memdefense.work import retried

TEXTS = [
    f"The {thing} of {day} is ready, number {n}."
    for n, (thing, day) in enumerate(
        [(t, d) for t in ("box", "long invoice", "note") for d in ("Monday", "June", "this very year", "now")]
    )
]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[LM, tuple[str, ...]]]:
    """Every pass for signals: of which model, over which texts."""
    made: list[tuple[LM, tuple[str, ...]]] = []
    plain = LocalTarget.signals

    def counted(
        self: LocalTarget,
        texts: Sequence[str],
        *,
        contexts: Sequence[str] | None = None,
        sampling: Sampling = PLAIN,
    ) -> list[Signals]:
        made.append((self.lm, tuple(texts)))
        return plain(self, texts, contexts=contexts, sampling=sampling)

    monkeypatch.setattr(LocalTarget, "signals", counted)
    return made


def of(lm: LM, store: Store, model: str = "m", replay: Callable[[float], None] = lambda seconds: None) -> Target:
    return remembered(LocalTarget(lm), store, {"model": model}, replay)


def same(one: Sequence[Signals], other: Sequence[Signals], *, within: float = 0.0) -> bool:
    return len(one) == len(other) and all(
        getattr(a, field.name).dtype == getattr(b, field.name).dtype
        and np.allclose(getattr(a, field.name), getattr(b, field.name), rtol=0, atol=within)
        for a, b in zip(one, other, strict=True)
        for field in dataclasses.fields(Signals)
    )


def test_the_answer_is_the_targets_own_and_costs_one_pass(
    store: Store, tiny_lm: LM, passes: list[tuple[LM, tuple[str, ...]]]
) -> None:
    texts = [*TEXTS, TEXTS[3], "", "x", "word " * 200]  # one twice, one empty, one of a token, one beyond the context
    own = LocalTarget(tiny_lm).signals(texts)
    passes.clear()
    target = of(tiny_lm, store)
    first = target.signals(texts)
    assert same(first, own, within=1e-5)
    assert [len(asked) for _, asked in passes] == [len(texts) - 1]
    assert same(target.signals(texts), first)
    assert same(target.signals(texts[::-1]), first[::-1])
    assert same(of(tiny_lm, Store(store.folder)).signals(texts), first)  # as another process reads it
    assert len(passes) == 1


def test_only_what_is_missing_is_computed(store: Store, tiny_lm: LM, passes: list[tuple[LM, tuple[str, ...]]]) -> None:
    target = of(tiny_lm, store)
    known = target.signals(TEXTS[:9])
    both = target.signals(TEXTS)
    assert sorted(passes[1][1]) == sorted(TEXTS[9:])
    assert same(both[:9], known)
    assert same(both, LocalTarget(tiny_lm).signals(TEXTS), within=1e-5)


def test_the_order_of_asking_changes_no_bit(tmp_path: Path, tiny_lm: LM) -> None:
    stores = Store(tmp_path / "1"), Store(tmp_path / "2")
    one, other = (of(tiny_lm, store) for store in stores)
    held_out, members = TEXTS, [text.upper() for text in TEXTS]
    found = [one.signals(held_out), one.signals(members)]
    again = [other.signals(members[::-1])[::-1], other.signals(held_out[::-1])[::-1]]
    assert same(found[0], again[1])
    assert same(found[1], again[0])
    first, second = ({str(manifest["key"]) for manifest in store.manifests()} for store in stores)
    assert first == second


def test_what_differs_is_kept_apart(store: Store, tiny_lm: LM, tiny_llama: LM) -> None:
    def law(ids: torch.Tensor, hidden: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logprobs / 2, -1)

    targets: list[Target] = [LocalTarget(tiny_lm), LocalTarget(tiny_llama), LocalTarget(tiny_lm).guarded(law=law)]
    contexts = [f"Dear {n}," for n in range(len(TEXTS))]
    cold = Sampling(temperature=0.5, top_k=5)
    cases: list[tuple[Target, Target, Sequence[str] | None, Sampling]] = []
    for number, own in enumerate(targets):
        kept: Target = remembered(own, store, {"model": str(number)}, lambda seconds: None)
        cases += [(own, kept, None, PLAIN), (own, kept, contexts, PLAIN), (own, kept, None, cold)]
    for _ in range(2):
        for own, kept, before, scheme in cases:
            expected = own.signals(TEXTS, contexts=before, sampling=scheme)
            assert same(kept.signals(TEXTS, contexts=before, sampling=scheme), expected, within=1e-5)
    assert len({str(manifest["key"]) for manifest in store.manifests()}) == len(cases)


def test_a_context_is_not_part_of_the_text(store: Store, tiny_lm: LM) -> None:
    target = of(tiny_lm, store)
    first = target.signals(["b c"] * 8 + TEXTS, contexts=["a"] * 8 + TEXTS)[0]
    second = target.signals(["c"] * 8 + TEXTS, contexts=["ab "] * 8 + TEXTS)[0]
    assert len(first.tokens) != len(second.tokens)


def test_few_texts_are_answered_without_the_store(store: Store, tiny_lm: LM) -> None:
    target = of(tiny_lm, store)
    assert same(target.signals(TEXTS[:3]), LocalTarget(tiny_lm).signals(TEXTS[:3]))
    assert list(store.manifests()) == []


def test_another_guard_on_top_is_not_taken_for_what_is_under_it(store: Store, tiny_lm: LM) -> None:
    target = of(tiny_lm, store)
    plain = target.signals(TEXTS)
    flat = target.guarded(law=lambda ids, hidden, logprobs: torch.log_softmax(logprobs * 0, -1)).signals(TEXTS)
    assert not same(flat, plain, within=1e-3)
    assert np.allclose(flat[0].std, 0, atol=1e-5)


def test_a_text_guard_on_top_leaves_signals_what_they_were(
    store: Store, tiny_lm: LM, passes: list[tuple[LM, tuple[str, ...]]]
) -> None:
    target = of(tiny_lm, store)
    plain = target.signals(TEXTS)
    guarded = target.guarded(text=lambda prompts, said, again: [text.upper() for text in said])
    assert same(guarded.signals(TEXTS), plain)
    assert len(passes) == 1
    said = guarded.generate(TEXTS[:2], max_new_tokens=4)
    assert said == [text.upper() for text in target.generate(TEXTS[:2], max_new_tokens=4)]


def test_shards_are_bounded_and_an_interrupted_call_gives_the_same_bits(
    tmp_path: Path, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch, passes: list[tuple[LM, tuple[str, ...]]]
) -> None:
    monkeypatch.setattr(remember, "_TEXTS", 5)
    whole = of(tiny_lm, Store(tmp_path / "1")).signals(TEXTS)
    assert [len(asked) for _, asked in passes] == [5, 5, 2]
    broken, plain = Store(tmp_path / "2"), LocalTarget.signals

    def fails(self: LocalTarget, texts: Sequence[str], **rest: Sampling) -> list[Signals]:
        if len(passes) == 5:
            raise KeyboardInterrupt
        return plain(self, texts)

    monkeypatch.setattr(LocalTarget, "signals", fails)
    with pytest.raises(KeyboardInterrupt):
        of(tiny_lm, broken).signals(TEXTS)
    monkeypatch.setattr(LocalTarget, "signals", plain)
    assert same(of(tiny_lm, broken).signals(TEXTS), whole)
    assert len(passes) == 6  # the two shards that were finished were not made again
    monkeypatch.setattr(remember, "_CHARACTERS", 60)
    of(tiny_lm, Store(tmp_path / "3")).signals(TEXTS)
    assert len(passes) > 12


def test_no_text_is_written(store: Store, tiny_lm: LM) -> None:
    of(tiny_lm, store).signals(TEXTS, contexts=["Secret Context"] * len(TEXTS))
    for path in store.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"invoice" not in content
            assert b"Secret Context" not in content


def test_a_damaged_shard_is_made_again(store: Store, tiny_lm: LM) -> None:
    target = of(tiny_lm, store)
    first = target.signals(TEXTS)
    path = next(store.folder.glob("artifacts/signals/*/*/signals.safetensors"))
    path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(DamagedError):
        target.signals(TEXTS)
    assert same(retried(Bench(store), lambda: target.signals(TEXTS)), first)


def test_time_that_another_spent_is_counted(store: Store, tiny_lm: LM) -> None:
    spent: list[float] = []
    target = of(tiny_lm, store, replay=spent.append)
    target.signals(TEXTS)
    assert spent == []
    target.signals(TEXTS[:8])
    seconds = float(str(next(iter(store.manifests()))["facts"]["seconds"]))  # type: ignore[index]
    assert spent == [pytest.approx(seconds * 8 / len(TEXTS))]


_PROCESS = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from memdefense.lm import LM
from memdefense.remember import remembered
from memdefense.store import Store
from memdefense.target import LocalTarget
lm = LM.load(sys.argv[1])
target = remembered(LocalTarget(lm), Store(Path(sys.argv[2])), {"model": "m"}, lambda seconds: None)
first = int(sys.argv[3])
for start in range(first, first + 40, 10):
    texts = [f"Text number {n} of all, twice {2 * n}." for n in range(start, start + 30)]
    print(*[f"{one.logprob.sum():.3f}" for one in target.signals(texts)])
"""


def test_two_processes_on_one_store(tmp_path: Path, tiny_lm: LM) -> None:
    tiny_lm.save(tmp_path / "model")
    command = [sys.executable, "-c", _PROCESS, str(tmp_path / "model"), str(tmp_path / "store")]
    running = [subprocess.Popen([*command, start], stdout=subprocess.PIPE, text=True) for start in ("0", "10")]
    said = [process.communicate(timeout=120)[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    for first, lines in zip((0, 10), said, strict=True):
        for row, start in enumerate(range(first, first + 40, 10)):
            texts = [f"Text number {n} of all, twice {2 * n}." for n in range(start, start + 30)]
            expected = [float(one.logprob.sum()) for one in LocalTarget(tiny_lm).signals(texts)]
            assert list(map(float, lines[row].split())) == pytest.approx(expected, abs=2e-3)
    store = Store(tmp_path / "store")
    assert all(store.find("signals", str(manifest["key"])) for manifest in store.manifests())


@dataclasses.dataclass(frozen=True)
class Flat(Defense):
    """Answers with log-probabilities that are flatter."""

    name: ClassVar[str] = "flat"
    summary: ClassVar[str] = "Flatter log-probabilities."

    heat: float = 2.0

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        heat = self.heat
        return target.guarded(law=lambda ids, hidden, logprobs: torch.log_softmax(logprobs / heat, -1))


@dataclasses.dataclass(frozen=True)
class Peek(Attack):
    """Reads the signals with the weights at hand."""

    name: ClassVar[str] = "peek"
    family = "audit"
    summary: ClassVar[str] = "Signals and weights."

    @property
    def access(self) -> Access:
        return "weights"

    def run(self, target: WeightTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        target.signals([document.text for document in corpus.train])
        yield Outcome("u", "u", True, {})

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Scores(Score(0, 0, 0, 1), {})


def test_all_that_reads_signals_of_a_point_costs_one_pass_over_each_text(
    tmp_path: Path, passes: list[tuple[LM, tuple[str, ...]]]
) -> None:
    work = prepare(TinyBenchmark(), Settings(store=str(tmp_path), device="cpu"))
    held_out = {document.text for document in work.corpus.held_out}
    members = {document.text for document in work.corpus.train}
    defended = defend(work, Defense(), 0)
    point = defended.points[-1]
    model = point.load("cpu")
    for plugin in (Perplexity(), MIA(), MIA(headline="min-k++", scores=("loss",)), Verbatim(prefix=8, length=8)):
        measure(defended, point, plugin, lambda: model)
    met = [text for lm, texts in passes if lm is model for text in texts]
    assert held_out | members <= set(met)
    assert len(met) == len(set(met))
    base = [text for lm, texts in passes if lm is not model for text in texts]
    assert sorted(base) == sorted(held_out | members)
    # Another seed and another guard over the same base: its own passes, and none by the base model.
    flat = defend(work, Flat(), 1)
    passes.clear()
    other = flat.points[-1].load("cpu")
    measure(flat, flat.points[-1], MIA(), lambda: other)
    assert {lm is other for lm, _ in passes} == {True}
    # Nor does the model itself pass over a text again for a guard that acts on text alone.
    for guard in (Refuse(), PatternFilter()):
        silent = defend(work, guard, 0)
        assert silent.points[-1].digest == point.digest
        passes.clear()
        found, artifact = measure(silent, silent.points[-1], MIA(), lambda: model)
        assert not passes
        plain, other_artifact = measure(defended, point, MIA(), lambda: model)
        assert [outcome.values for outcome in found] == [outcome.values for outcome in plain]
        assert artifact.key != other_artifact.key
    # A guard with other fields is another target.
    passes.clear()
    hotter = defend(work, Flat(heat=3.0), 1)
    assert hotter.points[-1].digest == flat.points[-1].digest
    first = measure(flat, flat.points[-1], Perplexity(), lambda: other)[0]
    second = measure(hotter, hotter.points[-1], Perplexity(), lambda: other)[0]
    assert first[0].values["nll"] != second[0].values["nll"]


def test_what_is_asked_after_contexts_and_under_a_scheme_is_asked_once(
    tmp_path: Path, planted_benchmark: Benchmark, passes: list[tuple[LM, tuple[str, ...]]]
) -> None:
    work = prepare(planted_benchmark, Settings(store=str(tmp_path), device="cpu"))
    defended, filtered = (defend(work, defense, 0) for defense in (Defense(), PatternFilter()))
    point, same_weights = defended.points[-1], filtered.points[-1]
    assert point.digest == same_weights.digest
    model = point.load("cpu")
    drawn = Discoverable(temperature=0.7, top_k=10)
    for first, second in ((drawn, dataclasses.replace(drawn, n=7, p=0.1)), (Exposure(), None)):
        passes.clear()
        found, made = measure(defended, point, first, lambda: model)
        assert sum(len(texts) for _, texts in passes) > len(found)
        passes.clear()
        for where, at, attack in ((defended, point, second), (filtered, same_weights, first)):
            if attack is None:  # exposure has no field that leaves the question as it is
                continue
            again, artifact = measure(where, at, attack, lambda: model)
            assert artifact.key != made.key
            assert [outcome.values for outcome in again] == [outcome.values for outcome in found]
        assert not passes
    # Another scheme is another question.
    measure(defended, point, Discoverable(temperature=0.7, top_k=11), lambda: model)
    assert len(passes) == 1


def test_where_an_attack_has_the_weights_nothing_is_kept(tmp_path: Path) -> None:
    work = prepare(TinyBenchmark(), Settings(store=str(tmp_path), device="cpu"))
    defended = defend(work, Defense(), 0)
    measure(defended, defended.points[-1], Peek(), lambda: defended.points[-1].load("cpu"))
    assert not [event for event in work.bench.store.events if event["kind"] == "signals"]
