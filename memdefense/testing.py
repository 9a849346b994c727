"""The public conformance check: does a plugin keep its contract? It runs offline in seconds, on a corpus made for it.

Example, in a plugin's own tests::

    from memdefense.testing import check_defense
    from my_plugin import MyDefense

    def test_contract():
        check_defense(MyDefense(strength=2))
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from memdefense import registry
from memdefense.attack import Attack, Outcome
from memdefense.corpus import Benchmark, Corpus, Secret
from memdefense.defense import Defense, Stack
from memdefense.detector import Detector
from memdefense.errors import MemdefenseError, PluginError
from memdefense.pii import KINDS, NAMES, canonical
from memdefense.pipeline import Defended, defend, measure
from memdefense.plugin import Plugin
from memdefense.runner import Settings, prepare
from memdefense.score import Score, Scores
from memdefense.target import Target
from memdefense.tiny import TinyBenchmark
from memdefense.train import TrainConfig
from memdefense.work import Work

__all__ = ["TinyBenchmark", "check_attack", "check_benchmark", "check_defense", "check_detector", "tiny_benchmark"]


def tiny_benchmark() -> TinyBenchmark:
    """The benchmark that the checks run on."""
    return TinyBenchmark()


def check_defense(defense: Defense) -> None:
    """Runs a defense on the tiny benchmark, twice from nothing, and checks what it did.

    Raises:
        PluginError: it broke the contract; the message says where and how to mend it.
    """
    for part in defense.parts if isinstance(defense, Stack) else (defense,):
        _check_plugin(part, "defenses")
    _check(defense, len({d.spec for d in type(defense).grid()}) > 0, "grid() gives no instance")
    with _bench() as work:
        first = defend(work, defense, 0)
        for point in first.points:
            _check(defense, bool(point.label), "yields a point without a label")
            _check(defense, 0 <= point.at <= 1, f"yields a point at {point.at}: `at` is a share of the run, 0 to 1")
        bad = sorted(name for name, value in first.notes.items() if not math.isfinite(value))
        _check(defense, not bad, f"notes numbers that are not finite: {', '.join(bad)}")
        said = _check_guard(first)
        _forget(work, keep="base")
        second = defend(work, defense, 0)
        same = first.curated_digest == second.curated_digest
        _check(defense, same, "gives other documents with the same seed: draw from lab.rng(purpose) alone")
        same = [(p.label, p.digest) for p in first.points] == [(p.label, p.digest) for p in second.points]
        _check(
            defense, same, "gives other weights with the same seed: draw from lab.rng(purpose), and train by lab.fit"
        )
        _check(
            defense, said == _check_guard(second), "answers otherwise with the same seed: a guard must be a function"
        )


def check_attack(attack: Attack, benchmark: Benchmark | None = None) -> None:
    """Plays an attack against the undefended tiny model, twice from nothing, and checks outcomes and scores.

    Args:
        attack: what is checked.
        benchmark: another small benchmark, for an attack that needs what `TinyBenchmark` has not, such as canaries.

    Raises:
        PluginError: it broke the contract; the message says where and how to mend it.
    """
    _check_plugin(attack, "attacks")
    _check(attack, attack.access in ("text", "logprobs", "weights"), f"declares access '{attack.access}'")
    family = getattr(attack, "family", "")
    _check(attack, family in ("extraction", "membership", "audit"), f"declares family '{family}'")
    with _bench(benchmark) as work:
        corpus, outcomes = work.corpus, _played(work, attack)
        _forget(work, keep="base fit")
        same = outcomes == _played(work, attack)
        _check(attack, same, "finds something else with the same seed: draw from lab.rng(purpose) alone")
    _check_outcomes(attack, outcomes, corpus)
    _check_scores(attack, outcomes)


def check_benchmark(benchmark: Benchmark) -> None:
    """Builds a benchmark's corpus twice and checks its answer key; `base` is not run, since it may train for long.

    Raises:
        PluginError: it broke the contract; the message says where and how to mend it.
    """
    _check_plugin(benchmark, "benchmarks")
    _check(benchmark, bool(benchmark.version), "has no version: a corpus that changes must be told from the old one")
    _check(benchmark, isinstance(benchmark.config, TrainConfig), "has a config that is no TrainConfig")
    corpus = benchmark.corpus()
    _check(benchmark, corpus.digest() == benchmark.corpus().digest(), "builds another corpus from the same fields")
    splits = {name: getattr(corpus, name) for name in ("public", "train", "held_out", "general")}
    _check_unique(benchmark, [d.id for split in splits.values() for d in split], "documents")
    _check_unique(benchmark, [s.id for s in corpus.secrets], "secrets")
    _check_unique(benchmark, [c.id for c in corpus.canaries], "canaries")
    texts = {name: {document.id: document.text for document in split} for name, split in splits.items()}
    for secret in corpus.secrets:
        _check_secret(benchmark, secret, texts["train" if secret.member else "held_out"])
    members = {(s.kind, s.value) for s in corpus.secrets if s.member}
    others = {(s.kind, s.value) for s in corpus.secrets if not s.member}
    _check(benchmark, not members & others, f"{len(members & others)} values are members and non-members at once")
    twins = {(s.kind, s.twin) for s in corpus.secrets if s.twin}
    _check(benchmark, not twins & members, f"{len(twins & members)} twins stand in the training text")
    for canary in corpus.canaries:
        written = sum(canary.prefix + canary.value in text for text in texts["train"].values())
        wanted = canary.copies if canary.member else 0
        _check(benchmark, written == wanted, f"canary {canary.id} stands {written} times in train instead of {wanted}")
        named = sum(canary.value in texts["train"].get(name, "") for name in set(canary.documents))
        right = named == len(canary.documents) == wanted
        _check(benchmark, right, f"canary {canary.id} names {named} of the {wanted} documents that it stands in")


def _check(plugin: Plugin, holds: bool, complaint: str) -> None:
    if not holds:
        raise PluginError(f"'{plugin.spec}' {complaint}")


def _check_unique(plugin: Plugin, ids: Sequence[str], what: str) -> None:
    twice = sorted(name for name, count in Counter(ids).items() if count > 1)[:3]
    _check(plugin, not twice, f"has {what} of one id: {', '.join(twice)}")


def check_detector(detector: Detector, texts: Sequence[str] = ()) -> None:
    """Reads the tiny benchmark's documents, an empty text and more with a detector, twice each.

    Args:
        detector: what is checked.
        texts: further ones, such as those that hold what only this detector finds.

    Raises:
        PluginError: it broke the contract; the message says where and how to mend it.
    """
    _check_plugin(detector, "detectors")
    detector.ready()
    for text in ("", *(document.text for document in tiny_benchmark().corpus().train), *texts):
        found = detector.find(text)
        _check(detector, found == detector.find(text), "finds something else in the same text")
        end = 0
        for hit in found:
            _check(detector, hit.kind in (*KINDS, *NAMES), f"finds a kind '{hit.kind}': it is none of KINDS and NAMES")
            _check(detector, hit.start >= end, "finds mentions out of order or over each other")
            _check(detector, hit.start < hit.end and hit.value == text[hit.start : hit.end], "finds what is not there")
            right = hit.canonical == canonical(hit.kind, hit.value)
            _check(detector, right, f"gives another canonical form of kind {hit.kind} than memdefense.pii.canonical")
            end = hit.end


def _check_plugin(plugin: Plugin, group: str) -> None:
    kind = type(plugin)
    where = f"{kind.__module__}.{kind.__qualname__}"
    wanted = registry.GROUPS[group]
    if not isinstance(plugin, wanted):
        raise PluginError(f"{where} is no {wanted.__name__}: derive it from memdefense.{wanted.__name__}")
    # A class without a decorator of its own inherits its base's: the fields it adds would be left out.
    parameters = vars(kind).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise PluginError(f"{where} is no frozen dataclass: decorate it with @dataclasses.dataclass(frozen=True)")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9+]+)*", kind.name) or (kind is not wanted and kind.name == wanted.name):
        raise PluginError(f"{where} is named '{kind.name}': set `name` to lower-case words joined by hyphens, its own")
    _check(
        plugin, bool(kind.summary) and (kind is wanted or kind.summary != wanted.summary), "has no summary of its own"
    )
    path = f"{kind.__module__}:{kind.__qualname__}"
    _check(plugin, "<locals>" not in path, f"cannot be found as {path}: define it at module level")
    fields = plugin.spec.partition(":")[2]
    try:
        found, again = registry.load(group, path), registry.build(group, f"{path}:{fields}" if fields else path)
    except MemdefenseError as error:
        raise PluginError(f"'{plugin.spec}' is not built again by its spec: {error}") from error
    _check(plugin, found is kind, f"is not the class found as {path}")
    _check(plugin, not fields or again == [plugin], "is not what its spec builds: no comma or | in a value")


@contextmanager
def _bench(benchmark: Benchmark | None = None) -> Iterator[Work]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for its other threads
    try:
        with tempfile.TemporaryDirectory(prefix="memdefense-check-") as folder:
            yield prepare(benchmark or tiny_benchmark(), Settings(store=str(Path(folder) / "store"), device="cpu"))
    finally:
        torch.set_num_threads(threads)


def _forget(work: Work, *, keep: str) -> None:
    """Empties the store of all but some kinds, so that the rest is made again."""
    for manifest in list(work.bench.store.manifests()):
        if manifest["kind"] not in keep.split():
            work.bench.store.drop(str(manifest["key"]))


def _check_guard(defended: Defended) -> list[object]:
    """Asks the guarded target, and returns all it said."""
    defense = defended.defense
    target: Target = defended.target(defended.points[-1].load("cpu"))
    for method in ("generate", "continues", "signals", "guarded", "unfiltered", "filtered"):
        lacks = f"guard() returns {type(target).__name__} without {method}(): return target.guarded(...), or a Target"
        _check(defense, callable(getattr(target, method, None)), lacks)
    texts = [document.text for document in defended.work.corpus.held_out[:3]]
    prompts = [text[:80] for text in texts]
    said = target.generate(prompts, max_new_tokens=6)
    right = len(said) == len(prompts) and all(isinstance(text, str) for text in said)
    _check(defense, right, "guard(): generate() must give one text per prompt")
    meant = target.unfiltered().generate(prompts, max_new_tokens=6)
    right = target.filtered(prompts, meant, max_new_tokens=6) == said
    _check(defense, right, "guard(): generate() must say what filtered() makes of what unfiltered() says")
    decided = target.continues(prompts, [text[80:84] for text in texts])
    _check(defense, len(decided) == len(prompts), "guard(): continues() must give one answer per prompt")
    signals = target.signals(texts)
    logprobs = [[float(value) for value in signal.logprob] for signal in signals]
    right = len(signals) == len(texts) and all(value <= 1e-4 for row in logprobs for value in row)
    _check(defense, right, "guard(): signals() must give log-probabilities, at most 0 and never NaN")
    return [said, decided, logprobs]


def _played(work: Work, attack: Attack) -> list[Outcome]:
    undefended = defend(work, Defense(), 0)
    last = undefended.points[-1]
    return measure(undefended, last, attack, lambda: last.load("cpu"))[0]


def _check_outcomes(attack: Attack, outcomes: Sequence[Outcome], corpus: Corpus) -> None:
    _check(attack, bool(outcomes), "run() leaves no outcome")
    _check_unique(attack, [outcome.unit for outcome in outcomes], "outcomes")
    private = [text for s in corpus.secrets for text in (s.value, s.twin) if text] + [c.value for c in corpus.canaries]
    for outcome in outcomes:
        bad = [name for name, value in outcome.values.items() if not math.isfinite(value)]
        _check(attack, not bad, f"gives {outcome.unit} a {', '.join(bad)} that is not finite: leave the value out")
        _check(
            attack, bool(outcome.group), f"gives {outcome.unit} no group: a person or an author, else the unit itself"
        )
        shown = " ".join((outcome.unit, outcome.group, outcome.stratum, *outcome.values))
        _check(
            attack, not any(text in shown for text in private), "writes a secret's value into an outcome: use its id"
        )


def _check_scores(attack: Attack, outcomes: Sequence[Outcome]) -> None:
    subsets = {
        "all outcomes": list(outcomes),
        "no outcome": [],
        "one outcome": list(outcomes[:1]),
        "members alone": [outcome for outcome in outcomes if outcome.member],
        "non-members alone": [outcome for outcome in outcomes if not outcome.member],
        "every other outcome": list(outcomes[::2]),
    }
    for name, subset in subsets.items():
        try:
            scores, again = attack.score(subset), attack.score(subset)
        except Exception as error:
            raise PluginError(f"'{attack.spec}' score() raises on {name}: {type(error).__name__}: {error}") from error
        right = isinstance(scores, Scores) and isinstance(scores.headline, Score)
        _check(attack, right, f"score() gives {type(scores).__name__}, not memdefense.Scores")
        value = scores.headline.value
        _check(attack, repr(scores) == repr(again), f"score() gives two answers on {name}: it must be a pure function")
        _check(attack, not value > 1, f"score() gives a leakage of {value} on {name}: 0 is chance, 1 is everything")
        if not subset:
            _check(attack, math.isnan(value), f"score() gives {value} on {name}: what was not measured is NaN")
        if type(attack).terms is not Attack.terms:
            _check_terms(attack, subset, value, name)


def _check_terms(attack: Attack, outcomes: Sequence[Outcome], leakage: float, name: str) -> None:
    """Checks an attack's own terms on some outcomes against the leakage of the same."""
    try:
        terms = [term.value for term in attack.terms(outcomes) if not term.reading]
    except Exception as error:
        raise PluginError(f"'{attack.spec}' terms() raises on {name}: {type(error).__name__}: {error}") from error
    if math.isnan(leakage):
        _check(attack, not terms, f"terms() gives {len(terms)} on {name}, but the leakage is NaN: give none")
    else:
        mean = math.fsum(terms) / len(terms) if terms else math.nan
        _check(attack, abs(mean - leakage) < 1e-6, f"terms() have mean {mean} on {name}, but the leakage is {leakage}")


def _check_secret(benchmark: Benchmark, secret: Secret, texts: dict[str, str]) -> None:
    split = "train" if secret.member else "held_out"
    _check(benchmark, bool(secret.occurrences), f"secret {secret.id} occurs nowhere")
    for place in secret.occurrences:
        text = texts.get(place.document)
        if text is None:
            raise PluginError(
                f"'{benchmark.spec}' secret {secret.id} occurs in {place.document}, not a text of {split}"
            )
        right = 0 <= place.start < place.end <= len(text)
        if right and place.form == "plain":
            right = canonical(secret.kind, text[place.start : place.end]) == secret.value
        _check(benchmark, right, f"secret {secret.id} is not what stands at {place.start} in {place.document}")
