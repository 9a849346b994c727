from __future__ import annotations

import importlib.machinery
import math
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from memdefense.bench import Bench
from memdefense.corpus import Document
from memdefense.defense import Defense
from memdefense.defenses.semdedup import SemDedup, leaders, mean_states
from memdefense.errors import ModelError, SpecError
from memdefense.interval import wilson
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.testing import check_defense
from memdefense.train import TrainConfig

TEXTS = (
    "The meeting on Tuesday is moved to the large room on the second floor.",
    "The meeting on Tuesday is moved to the large room on the second floor!",
    "We shipped 24 boxes yesterday; the invoice 7731-09 follows by mail.",
    "",
    "Could you send the report to the team, and keep the old one for reference? " * 8,
    "The meeting on Tuesday is moved to the large room on the second floor.",
    "a",
)


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(f"d{place}", text, "a") for place, text in enumerate(texts)]


def lab_of(folder: Path, base: LM, public: Sequence[str] = ()) -> Lab:
    bench = Bench(Store(folder / "store"))
    config = TrainConfig(epochs=2, batch_size=2, block_size=16, dtype="float32")
    originals = documents(TEXTS)
    return Lab(bench, who="semdedup", seed=0, originals=originals, public=documents(public), config=config, base=base)


def naive_leaders(rows: np.ndarray[tuple[int, int], np.dtype[np.float64]], threshold: float) -> list[int]:
    chosen: list[int] = []
    for place, row in enumerate(rows):
        cosines = [row @ rows[leader] / np.linalg.norm(row) / np.linalg.norm(rows[leader]) for leader in chosen]
        if all(cosine < threshold for cosine in cosines):
            chosen.append(place)
    return chosen


def one_by_one(lm: LM, text: str) -> Tensor:
    """The mean state by a window at a time, without padding."""
    ids = lm.encode(text) or lm.separator()
    states = []
    for start in range(0, len(ids), lm.context):
        with torch.no_grad():
            out = lm.model(input_ids=torch.tensor([ids[start : start + lm.context]]), output_hidden_states=True)
        states.append(out.hidden_states[-1][0])
    return torch.cat(states).mean(0)


def test_contract() -> None:
    check_defense(SemDedup())


@pytest.mark.parametrize("threshold", [0.5, 0.85, 0.99])
def test_leaders_equal_a_naive_search_over_several_blocks(threshold: float) -> None:
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(300, 6))
    rows = centres[rng.integers(0, 300, 1300)] + 0.1 * rng.normal(size=(1300, 6))
    chosen = leaders(torch.from_numpy(rows), threshold)
    assert chosen == naive_leaders(rows, threshold)
    assert 5 < len(chosen) < 1300


def test_a_follower_leads_nobody() -> None:
    """At 50 degrees a step the second follows the first; the third is near the second alone, so it leads."""
    angles = torch.tensor([0.0, 50.0, 100.0]).deg2rad()
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    assert leaders(rows, 0.6) == [0, 2]
    assert leaders(rows, 0.7) == [0, 1, 2]


def test_a_row_of_zeros_is_like_no_other() -> None:
    assert leaders(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), 0.85) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["tiny_lm", "tiny_llama"])
def test_batched_mean_states_equal_one_text_at_a_time(kind: str, request: pytest.FixtureRequest) -> None:
    lm: LM = request.getfixturevalue(kind)
    made = mean_states(lm, TEXTS)
    assert made.shape == (len(TEXTS), lm.width)
    assert len(lm.encode(TEXTS[4])) > lm.context
    expected = torch.stack([one_by_one(lm, text) for text in TEXTS])
    torch.testing.assert_close(made, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("centre", [True, False])
def test_kept_are_the_leaders_of_the_centred_states(tmp_path: Path, tiny_lm: LM, *, centre: bool) -> None:
    public = ["The boxes are in the depot.", "Write before noon, please."]
    lab = lab_of(tmp_path, tiny_lm, public)
    distinct = [document for document in lab.originals if document.id != "d5"]
    rows = torch.stack([one_by_one(tiny_lm, document.text) for document in distinct]).double()
    if centre:
        rows = rows - torch.stack([one_by_one(tiny_lm, text) for text in public]).double().mean(0)
    for threshold in (0.3, 0.6, 0.85, 0.95):
        expected = [distinct[place].id for place in naive_leaders(rows.numpy(), threshold)]
        kept = SemDedup(threshold=threshold, centre=centre).curate(lab.originals, lab)
        assert [document.id for document in kept] == expected
        assert all(document in lab.originals for document in kept)
        assert lab.notes == {"documents_dropped": 7 - len(kept), "exact_copies": 1}


def test_without_public_text_the_documents_own_mean_is_subtracted(tmp_path: Path, tiny_lm: LM) -> None:
    lab = lab_of(tmp_path, tiny_lm)
    distinct = [document for document in lab.originals if document.id != "d5"]
    rows = torch.stack([one_by_one(tiny_lm, document.text) for document in distinct]).double()
    expected = naive_leaders((rows - rows.mean(0)).numpy(), 0.85)
    assert [document.id for document in SemDedup().curate(lab.originals, lab)] == [distinct[p].id for p in expected]


def test_equal_texts_are_one_even_where_nothing_is_left_of_their_embedding(tmp_path: Path, tiny_lm: LM) -> None:
    lab = lab_of(tmp_path, tiny_lm)
    kept = SemDedup().curate(documents(["same"] * 3), lab)
    assert [document.id for document in kept] == ["d0"]


def test_sentence_embeddings_come_from_the_extra(tmp_path: Path, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class SentenceTransformer:
        def __init__(self, name: str, device: str) -> None:
            asked.extend((name, device))

        def encode(self, texts: list[str], **options: object) -> Tensor:
            asked.append((len(texts), options["convert_to_tensor"]))
            angles = torch.tensor([10.0 * len(text) for text in texts]).deg2rad()
            return torch.stack([angles.cos(), angles.sin()], 1)

    stub = types.ModuleType("sentence_transformers")
    stub.__dict__["SentenceTransformer"] = SentenceTransformer
    stub.__spec__ = importlib.machinery.ModuleSpec("sentence_transformers", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", stub)
    kept = SemDedup(encoder="sentence").curate(documents(["x", "xxx", "xxxxx", "x"]), lab_of(tmp_path, tiny_lm))
    # 10, 30 and 50 degrees: 20 degrees are a cosine of 0.94, 40 one of 0.77
    assert [document.id for document in kept] == ["d0", "d2"]
    assert asked == ["sentence-transformers/all-MiniLM-L6-v2", "cpu", (3, True)]


def test_without_the_extra_the_error_names_the_command(
    tmp_path: Path, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelError, match=r'pip install "memdefense\[semantic\]"'):
        SemDedup(encoder="sentence").curate(documents(["a"]), lab_of(tmp_path, tiny_lm))


def test_match_steps_trains_for_the_undefended_number_of_steps(tmp_path: Path, tiny_lm: LM) -> None:
    lab = lab_of(tmp_path, tiny_lm)
    tokens = sum(len(tiny_lm.encode(text)) + 1 for text in TEXTS) * 2
    assert SemDedup().configure(lab.config, lab) == lab.config
    assert SemDedup(match_steps=True).configure(lab.config, lab).steps == math.ceil(math.ceil(tokens / 16) / 2)


def test_fields_out_of_range_are_refused() -> None:
    with pytest.raises(SpecError, match="did you mean 'states'"):
        SemDedup(encoder=cast("Literal['states']", "state"))
    for threshold in (0.0, 1.1):
        with pytest.raises(SpecError, match="cosine"):
            SemDedup(threshold=threshold)


@pytest.mark.slow
def test_addresses_in_notes_of_one_form_come_back_less(
    leaks: Callable[[Defense], list[tuple[int, int, float]]],
) -> None:
    """The intervals lie apart, and letters without addresses read at most a tenth worse."""
    (undefended,), (deduplicated,) = leaks(Defense()), leaks(SemDedup())
    assert wilson(*deduplicated[:2])[1] < wilson(*undefended[:2])[0]
    assert deduplicated[2] < 1.1 * undefended[2]
