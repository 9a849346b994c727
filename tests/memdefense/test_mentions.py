from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memdefense.bench import Bench
from memdefense.corpus import Document
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.mentions import Mention, best_known, known, mentions
from memdefense.store import Store
from memdefense.train import TrainConfig

TEXTS = (
    "k.lee@acme.com begins a text; k.lee@acme.com is predicted, and call 212-555-0187.",
    "Again 212-555-0187, and then ann@fenwick.com.",
    "nothing",
)


@pytest.fixture
def lab(tmp_path: Path, tiny_lm: LM) -> Lab:
    bench = Bench(Store(tmp_path / "store"))
    return Lab(bench, who="me", seed=0, originals=(), public=(), config=TrainConfig(), base=tiny_lm)


def documents() -> list[Document]:
    return [Document(f"d{place}", text) for place, text in enumerate(TEXTS)]


def test_the_first_predicted_mention_of_each_value_with_what_stands_before(tiny_lm: LM, lab: Lab) -> None:
    found = mentions(tiny_lm, documents(), lab, context=6)
    values = [tiny_lm.decode(one.ids[one.start :]).strip() for one in found]
    assert values == ["k.lee@acme.com", "212-555-0187", "ann@fenwick.com"]
    for one, text in zip(found, (TEXTS[0], TEXTS[0], TEXTS[1]), strict=True):
        assert one.start == 6
        assert tiny_lm.decode(one.ids) in text
    assert tiny_lm.decode(found[0].ids).startswith("text; ") or "; k.lee" in tiny_lm.decode(found[0].ids)


def test_a_window_never_exceeds_the_context(tiny_lm: LM, lab: Lab) -> None:
    long = [Document("d", "x " * 100 + f"write to {'very.' * 12}long@fenwick.com")]
    (one,) = mentions(tiny_lm, long, lab, context=1000)
    assert len(one.ids) == tiny_lm.context
    assert one.start >= 1


def test_known_is_the_mean_log_probability_one_by_one(tiny_lm: LM) -> None:
    given = [Mention((5, 9, 30, 31), 2), Mention((7, 8), 1), Mention(tuple(range(20, 60)), 30)]
    expected = []
    for one in given:
        with torch.no_grad():
            logprobs = torch.log_softmax(tiny_lm.model(input_ids=torch.tensor([one.ids])).logits[0], -1)
        own = [float(logprobs[place - 1, one.ids[place]]) for place in range(one.start, len(one.ids))]
        expected.append(sum(own) / len(own))
    assert known(tiny_lm, given) == pytest.approx(expected, abs=1e-5)
    order = sorted(range(3), key=lambda place: -expected[place])
    assert best_known(tiny_lm, given, 2) == [given[place] for place in order[:2]]
    assert best_known(tiny_lm, [], 2) == []
