"""The base model, as it was."""

from __future__ import annotations

from memdefense.bench import Bench
from memdefense.corpus import Document
from memdefense.defense import overrides
from memdefense.defenses.never_trained import NeverTrained
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.train import TrainConfig


def test_its_only_point_is_the_base_model(store: Store, tiny_lm: LM) -> None:
    documents = [Document("t", "Call Anna at 415-555-0134.")]
    lab = Lab(Bench(store), who="t", seed=0, originals=documents, public=(), config=TrainConfig(), base=tiny_lm)
    before = tiny_lm.digest()
    (point,) = NeverTrained().train(lab.fresh(), documents, lab)
    assert point.at == 0
    assert point.model.digest() == before
    assert not overrides(NeverTrained(), "curate")
    assert not any(store.folder.rglob("training"))
