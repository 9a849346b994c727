from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from memdefense.defense import Defense, Stack
from memdefense.defenses.dp_decoding import DPDecoding
from memdefense.defenses.entropy_filter import EntropyFilter
from memdefense.defenses.layered import Layered
from memdefense.defenses.pattern_filter import PatternFilter
from memdefense.defenses.semdedup import SemDedup
from memdefense.errors import SpecError
from memdefense.interval import wilson
from memdefense.pipeline import defend
from memdefense.runner import Settings, prepare
from memdefense.store import Store
from memdefense.testing import check_defense, tiny_benchmark


def test_contract() -> None:
    check_defense(Layered(lam=0.5))


def test_it_is_the_stack_of_its_layers(store: Store) -> None:
    work = prepare(tiny_benchmark(), Settings(store=str(store.folder), device="cpu"))
    parts: tuple[Defense, ...] = (SemDedup(), EntropyFilter(tau=3.0), DPDecoding(lam=0.7), PatternFilter())
    texts = [document.text for document in work.corpus.held_out[:3]]
    said = []
    for defense in (Layered(tau=3.0, lam=0.7), Stack(parts)):
        defended = defend(work, defense, 0)
        assert [point.label for point in defended.points] == ["1.0"]
        target, notes = defended.served(defended.points[0].load("cpu"))
        assert notes["epsilon_per_token"] == pytest.approx(parts[2].epsilon(work.base.model.config.vocab_size))  # type: ignore[attr-defined]
        signals = [signal.logprob.tolist() for signal in target.signals(texts)]
        said.append((defended.curated, signals))  # what is drawn is each plugin's own
    assert said[0] == said[1]


def test_fields_are_refused_by_their_layers() -> None:
    with pytest.raises(SpecError, match="semdedup: threshold"):
        Layered(threshold=2.0)
    with pytest.raises(SpecError, match="dp-decoding: lam"):
        Layered(lam=1.0)
    with pytest.raises(SpecError, match="did you mean 'redact'"):
        Layered(action=cast(Any, "redakt"))


@pytest.mark.slow
def test_it_keeps_addresses_from_coming_back(leaks: Callable[[Defense], list[tuple[int, int, float]]]) -> None:
    ((plain, of, before),) = leaks(Defense())
    ((hits, _, after),) = leaks(Layered())
    assert wilson(plain, of)[0] > 0.8  # 30 of 30
    assert wilson(hits, of)[1] < 0.2  # none
    assert after < 1.3 * before
