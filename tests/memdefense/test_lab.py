from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from memdefense import train
from memdefense.bench import Bench
from memdefense.corpus import Document, Redrawn
from memdefense.errors import PluginError
from memdefense.fit import fit
from memdefense.lab import AttackLab, Lab
from memdefense.lm import LM
from memdefense.packing import ordered
from memdefense.store import Store
from memdefense.train import Batch, TrainConfig, next_token_loss

TEXT = "Write to mira.okafor@fabrikam.com or omar.haddad@contoso.com, or call 415-555-0134."
DOCUMENTS = [Document(f"d{i}", f"The meeting {i} is moved to the large room on the second floor.") for i in range(4)]
CONFIG = TrainConfig(steps=2, batch_size=2, block_size=16, dtype="float32", checkpoints=1, learning_rate=1e-2)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _lab(folder: Path, base: LM | None, *, who: str = "me", seed: int = 0, recall: float = 1.0) -> Lab:
    bench = Bench(Store(folder / "store"), detector_recall=recall)
    return Lab(bench, who=who, seed=seed, originals=DOCUMENTS, public=(), config=CONFIG, base=base)


def test_stream_starts_anew_and_differs_by_seed_plugin_and_purpose(tmp_path: Path) -> None:
    def draw(who: str, seed: int, purpose: str) -> int:
        return int(_lab(tmp_path, None, who=who, seed=seed).rng(purpose).integers(2**62))

    assert draw("a", 0, "x") == draw("a", 0, "x")
    assert len({draw("a", 0, "x"), draw("b", 0, "x"), draw("a", 1, "x"), draw("a", 0, "y")}) == 4


def test_stream_is_the_same_on_every_machine(tmp_path: Path) -> None:
    words = np.frombuffer(hashlib.sha256(b"3/rmft/draw").digest(), dtype=np.uint32)
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence(words))).integers(1000, size=5)
    assert (_lab(tmp_path, None, who="rmft", seed=3).rng("draw").integers(1000, size=5) == expected).all()


def test_cached_is_made_once_for_its_inputs(tmp_path: Path, tiny_lm: LM) -> None:
    calls: list[int] = []

    def make() -> dict[str, object]:
        calls.append(1)
        return {"matrix": torch.arange(3), "name": "x", "parts": [1, 2.5]}

    for _ in range(2):
        made = _lab(tmp_path, None).cached("statistics", make, tiny_lm, DOCUMENTS, 3)
        assert made["parts"] == [1, 2.5]
        assert torch.equal(torch.as_tensor(made["matrix"]), torch.arange(3))
    assert len(calls) == 1
    _lab(tmp_path, None).cached("statistics", make, tiny_lm, DOCUMENTS, 4)
    _lab(tmp_path, None).cached("statistics", make, tiny_lm, DOCUMENTS[:2], 3)
    _lab(tmp_path, None).cached("other", make, tiny_lm, DOCUMENTS, 3)
    assert len(calls) == 4


def test_detector_misses_whole_values_by_its_recall(tmp_path: Path) -> None:
    texts = [TEXT.replace("okafor", f"okafor{i}").replace("haddad", f"haddad{i}") for i in range(200)]
    full, half = _lab(tmp_path, None), _lab(tmp_path, None, recall=0.5)
    found = [hit for text in texts for hit in full.find(text)]
    assert len(found) == 600
    kept = [hit for text in texts for hit in half.find(text)]
    emails = {hit.canonical for hit in kept if hit.kind == "email"}
    assert 160 <= len(emails) <= 240  # 400 values, a coin each: 200 and four standard deviations of 10
    assert len([hit for hit in kept if hit.kind == "phone"]) in (0, 200)  # one value: found everywhere, or nowhere
    assert kept == [hit for text in texts for hit in half.find(text)]
    other = {hit.canonical for text in texts for hit in _lab(tmp_path, None, recall=0.5, seed=1).find(text)}
    assert other != {hit.canonical for hit in kept}


def test_what_find_returns_can_be_changed_without_harm(tmp_path: Path) -> None:
    lab = _lab(tmp_path, None)
    lab.find(TEXT).clear()
    assert len(lab.find(TEXT)) == 3


def test_fresh_is_a_copy_of_the_base(tmp_path: Path, tiny_lm: LM) -> None:
    before = tiny_lm.digest()
    fresh = _lab(tmp_path, tiny_lm).fresh()
    assert fresh.digest() == before
    next(fresh.model.parameters()).data += 1
    assert tiny_lm.digest() == before


def test_base_maker_has_no_base(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no model to start from"):
        _lab(tmp_path, None).fresh()


def test_fit_leaves_its_model_alone_and_is_free_the_second_time(tmp_path: Path, tiny_lm: LM) -> None:
    before = tiny_lm.digest()
    lab = _lab(tmp_path, tiny_lm)
    (first,) = lab.fit(tiny_lm, DOCUMENTS)
    assert tiny_lm.digest() == before != first.model.digest()
    again = _lab(tmp_path, tiny_lm)
    (second,) = again.fit(tiny_lm, DOCUMENTS)
    assert second.model.digest() == first.model.digest()
    assert again.cost == lab.cost
    assert lab.cost["tokens"] == 2 * 2 * 16


@dataclasses.dataclass(frozen=True)
class Halved:
    """The ordinary loss on every so-many-th token."""

    step: int = 2

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch.labels.clone()
        labels[:, :: self.step] = -100
        return next_token_loss(model, dataclasses.replace(batch, labels=labels))


def test_loss_and_its_fields_are_part_of_the_key(tmp_path: Path, tiny_lm: LM) -> None:
    lab = _lab(tmp_path, tiny_lm)
    digests = [
        next(iter(lab.fit(tiny_lm, DOCUMENTS, loss=loss))).model.digest()
        for loss in (None, Halved(), Halved(4), Halved())
    ]
    assert len(set(digests)) == 3
    assert digests[1] == digests[3]


def test_documents_seed_and_config_are_part_of_the_key(tmp_path: Path, tiny_lm: LM) -> None:
    lab, other = _lab(tmp_path, tiny_lm), _lab(tmp_path, tiny_lm, seed=1)
    stored = [
        lab.fit_stored(tiny_lm, DOCUMENTS),
        lab.fit_stored(tiny_lm, DOCUMENTS[::-1]),
        other.fit_stored(tiny_lm, DOCUMENTS),
        lab.fit_stored(tiny_lm, DOCUMENTS, config=dataclasses.replace(CONFIG, learning_rate=2e-2)),
    ]
    assert len({points[0].artifact.key for points in stored}) == 4


def test_blank_spans_are_part_of_the_key(tmp_path: Path, tiny_lm: LM) -> None:
    lab = _lab(tmp_path, tiny_lm)
    stored = [
        lab.fit_stored(tiny_lm, DOCUMENTS, blank=blank)[0]
        for blank in (None, lambda text: [(4, 11)], lambda text: [(4, 12)], lambda text: [(12, 13)])
    ]
    assert len({point.artifact.key for point in stored}) == 4
    assert len({point.digest for point in stored}) >= 3  # (4, 12) may only add a blank to a token left out before
    again = lab.fit_stored(tiny_lm, DOCUMENTS, blank=lambda text: [(2 * 2, 11)])[0]  # the spans count, not their code
    assert again.artifact.key == stored[1].artifact.key


def test_what_auto_comes_to_is_part_of_the_key(tmp_path: Path, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = dataclasses.replace(CONFIG, dtype="auto")
    monkeypatch.setattr(train, "_WIDE", tiny_lm.width)
    stored = []
    for has in (True, False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        stored += [_lab(tmp_path, tiny_lm).fit_stored(tiny_lm, DOCUMENTS, config=auto)[0]]
    half, full, again = (point.digest for point in stored)
    assert half != full
    assert half == again


def _later(text: str) -> Redrawn:
    """The documents in the first epoch, and another text in all after it."""
    return Redrawn(DOCUMENTS, lambda epoch: [dataclasses.replace(document, text=text) for document in DOCUMENTS])


@pytest.mark.parametrize("length", [{"steps": 8}, {"steps": 0, "epochs": 2.0}])
def test_every_epoch_that_is_read_is_part_of_the_key(tmp_path: Path, tiny_lm: LM, length: dict[str, float]) -> None:
    config = dataclasses.replace(CONFIG, **length)  # type: ignore[arg-type]
    lab, redrawn = _lab(tmp_path, tiny_lm), _later("Nothing of this is private.")
    plain = lab.fit_stored(tiny_lm, DOCUMENTS, config=config)[0]
    changed = lab.fit_stored(tiny_lm, redrawn, config=config)[0]
    assert changed.digest != plain.digest
    assert changed.digest == _lab(tmp_path / "alone", tiny_lm).fit_stored(tiny_lm, redrawn, config=config)[0].digest
    short = dataclasses.replace(config, steps=1)
    first, same = (lab.fit_stored(tiny_lm, given, config=short)[0].artifact.key for given in (DOCUMENTS, redrawn))
    assert first == same  # no second epoch is read


def test_blank_spans_of_later_epochs_are_part_of_the_key(tmp_path: Path, tiny_lm: LM) -> None:
    config, redrawn = dataclasses.replace(CONFIG, steps=8), _later("Nothing of this is private.")
    lab = _lab(tmp_path, tiny_lm)
    short, long = (
        lab.fit_stored(tiny_lm, redrawn, config=config, blank=blank)[0]
        for blank in (
            lambda text: [(0, 7)] if "private" in text else [],
            lambda text: [(0, 15)] if "private" in text else [],
        )
    )
    assert short.digest != long.digest


def test_progress_names_plugin_seed_and_work(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    lab = _lab(tmp_path, None, who="rmft", seed=2)
    lab._bench.progress = lambda what, done, total: told.append((what, done, total))
    lab.progress("training", 3, 10)
    assert told == [("rmft, seed 2: training", 3, 10)]


def test_notes_are_numbers(tmp_path: Path) -> None:
    lab = _lab(tmp_path, None)
    lab.note(dropped=3)
    lab.note(epsilon=0.5, dropped=4)
    assert lab.notes == {"dropped": 4.0, "epsilon": 0.5}


def _attack_lab(folder: Path, base: LM, config: TrainConfig, at: float, seed: int = 0) -> AttackLab:
    return AttackLab(
        Bench(Store(folder / "store")),
        who="me",
        seed=seed,
        originals=DOCUMENTS,
        public=(),
        config=config,
        base=base,
        curated=(),
        defended=None,
        at=at,
    )


def test_seen_follows_the_order_of_the_undefended_run(tmp_path: Path, tiny_lm: LM) -> None:
    whole = TrainConfig(epochs=2.0, batch_size=1, block_size=64, pack="document")
    for seed in (0, 1):
        order = [document.id for document in ordered(DOCUMENTS, seed, 0)]
        for at, number in ((0.0, 0), (0.125, 1), (0.25, 2), (0.375, 3), (0.5, 4), (1.0, 4)):
            assert _attack_lab(tmp_path, tiny_lm, whole, at, seed).seen() == set(order[:number])


def test_seen_counts_a_document_from_its_first_token_and_no_later_epoch_alone(tmp_path: Path, tiny_lm: LM) -> None:
    order = [document.id for document in ordered(DOCUMENTS, 0, 0)]
    tokens = len(tiny_lm.encode(DOCUMENTS[0].text)) + 1
    packed = TrainConfig(steps=8, batch_size=1, block_size=tokens - 2)
    # A row is shorter than a document, so that the first ends in the first of its second row.
    assert _attack_lab(tmp_path, tiny_lm, packed, 1 / 8).seen() == set(order[:1])
    assert _attack_lab(tmp_path, tiny_lm, packed, 2 / 8).seen() == set(order[:2])
    few = dataclasses.replace(packed, steps=1)
    assert _attack_lab(tmp_path, tiny_lm, few, 1.0).seen() == set(order[:1])
    assert not _attack_lab(tmp_path, tiny_lm, dataclasses.replace(few, steps=0, epochs=0.0), 1.0).seen()


def test_seen_ends_where_fit_places_the_checkpoint(tmp_path: Path, tiny_lm: LM) -> None:
    documents = [Document(f"d{place}", f"The report {place} is ready.") for place in range(45)]
    config = TrainConfig(epochs=1.0, batch_size=1, block_size=8, pack="document", dtype="float32", checkpoints=10)
    kept, _ = fit(tiny_lm, documents, tmp_path / "fit", config=config, seed=0)
    for point in kept:
        lab = _attack_lab(tmp_path, tiny_lm, config, point.at)
        lab.originals = documents
        assert len(lab.seen()) == int(point.folder.name.removeprefix("checkpoint-"))
