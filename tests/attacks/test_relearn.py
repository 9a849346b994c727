"""What is trained on, what is left to ask for, and something hidden that comes back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from memdefense.attacks.prefix import Prefix
from memdefense.attacks.relearn import Relearn
from memdefense.bench import Bench
from memdefense.corpus import Canary, Corpus, Document, Occurrence, Secret
from memdefense.errors import NotApplicable, SpecError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.target import LocalTarget
from memdefense.testing import check_attack
from memdefense.train import TrainConfig

if TYPE_CHECKING:
    from memdefense.store import Store

CONFIG = TrainConfig(
    epochs=1.0, learning_rate=5e-3, batch_size=4, block_size=48, pack="document", dtype="float32", warmup_steps=7
)


def corpus_of(people: int, copies: int = 2) -> Corpus:
    """Everybody writes some notes with their own number, and the first note quotes the next person's."""
    rng = np.random.default_rng(2)
    values = [f"415{rng.integers(2, 10)}55{n:04d}" for n in rng.choice(9999, people, replace=False)]
    names = [f"{first}{last}" for first in ("Anna", "Bert", "Cleo", "Dora", "Emil", "Fred") for last in "abcdefghij"]
    train, places = [], {n: [] for n in range(people)}  # type: ignore[var-annotated]
    for person in range(people):
        for copy in range(copies):
            text = f"{('As said', 'Dear all')[copy % 2]}, call {names[person]} at {values[person]} now."
            train.append(Document(f"d{person}-{copy}", text, names[person]))
            start = text.index(values[person])
            places[person].append(Occurrence(train[-1].id, start, start + len(values[person])))
    quoted = f"Then ask {names[1]} at {values[1]}."
    train.append(Document("q", quoted, names[0]))
    start = quoted.index(values[1])
    places[1].append(Occurrence("q", start, start + len(values[1])))
    secrets = [
        Secret(f"s{n}", "phone", values[n], True, names[n], tuple(places[n]), values[n][:-2] + "77")
        for n in range(people)
    ]
    canary = Canary("c", ("c", "c#2"), "note ", "AB", 2, True)
    train += [Document("c", "note AB", "z"), Document("c#2", "note AB", "z")]
    return Corpus((), train, (), secrets=secrets, canaries=[canary], kinds=("phone",))


def lab_of(store: Store, base: LM, corpus: Corpus, config: TrainConfig = CONFIG) -> AttackLab:
    return AttackLab(
        Bench(store),
        who="test",
        seed=0,
        originals=corpus.train,
        public=(),
        config=config,
        base=base,
        curated=corpus.train,
        defended=None,
    )


def test_the_part_is_of_whole_authors_and_small() -> None:
    corpus = corpus_of(20)
    for share in (0.01, 0.1, 0.3):
        part = Relearn(share=share).part(corpus)
        authors = {document.author for document in part}
        assert [d.id for d in part if d.author in authors] == [d.id for d in part]
        assert {d.id for d in corpus.train if d.author in authors} == {d.id for d in part}
        assert len(part) <= max(3, share * 41)
        assert not {"c", "c#2"} & {d.id for d in part}
    assert len(Relearn(share=0.3).part(corpus)) >= 11  # of 41, in authors of two
    backwards = dataclasses.replace(corpus, train=corpus.train[::-1])
    assert {d.id for d in Relearn().part(backwards)} == {d.id for d in Relearn().part(corpus)}


def test_secrets_of_the_part_are_left_out_and_the_others_asked_for_as_by_prefix(store: Store, tiny_lm: LM) -> None:
    corpus = corpus_of(12)
    # The author of the quoting note, so that the quoted value is known although its owner's notes are not.
    only = [d for d in corpus.train if d.author == corpus.train[0].author]
    attack = Relearn(share=0.2, steps=3)
    lab = lab_of(store, tiny_lm, corpus)
    part = attack.part(corpus)
    known = " ".join(document.text for document in part)
    before = tiny_lm.digest()
    found = list(attack.run(LocalTarget(tiny_lm), corpus, lab))
    asked = {outcome.unit for outcome in found if not outcome.unit.startswith("unknown")}
    assert asked == {secret.id for secret in corpus.secrets if secret.value not in known}
    assert 0 < len(asked) < 12
    assert tiny_lm.digest() == before
    assert lab.notes["secrets_left_out"] == 12 - len(asked)
    assert lab.notes["documents_relearned"] == len(part)
    config = dataclasses.replace(
        CONFIG, steps=3, checkpoints=1, warmup_steps=0, learning_rate=CONFIG.learning_rate / 10
    )
    *_, last = lab.fit(tiny_lm, part, config=config)
    expected = list(Prefix().run(LocalTarget(last.model), corpus, lab))
    assert found == [outcome for outcome in expected if outcome.unit in {o.unit for o in found}]
    quoting = dataclasses.replace(corpus, train=[*only, *(d for d in corpus.train if d not in only)])
    assert {d.id for d in attack.part(quoting)} == {d.id for d in part}  # by hash, in any order


def test_a_quoted_value_is_left_out_with_its_quotation(
    store: Store, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(6)
    monkeypatch.setattr(Relearn, "part", lambda *_: [d for d in corpus.train if d.id == "q"])
    found = {o.unit for o in Relearn(steps=1).run(LocalTarget(tiny_lm), corpus, lab_of(store, tiny_lm, corpus))}
    assert "s1" not in found
    assert "s0" in found


def test_one_author_leaves_nothing_to_ask_for(store: Store, tiny_lm: LM) -> None:
    corpus = corpus_of(6)
    alone = dataclasses.replace(corpus, train=[dataclasses.replace(d, author="Anna") for d in corpus.train])
    with pytest.raises(NotApplicable, match=r"13 of 15 documents.*takes more authors"):
        list(Relearn(steps=1).run(LocalTarget(tiny_lm), alone, lab_of(store, tiny_lm, alone)))


def test_fields_out_of_range() -> None:
    for fields in ({"share": 0.0}, {"share": 1.0}, {"steps": 0}, {"learning_rate": -1.0}):
        with pytest.raises(SpecError):
            Relearn(**fields)  # type: ignore[arg-type, unused-ignore]


def test_contract() -> None:
    check_attack(Relearn(steps=2))


@pytest.mark.slow
def test_what_was_only_hidden_comes_back_and_what_was_never_known_does_not(store: Store, tiny_lm: LM) -> None:
    """The output is shifted by a constant, which hides every value and removes none."""
    corpus = corpus_of(20)
    config = dataclasses.replace(CONFIG, epochs=60.0, learning_rate=5e-3, checkpoints=1, batch_size=8)
    lab = lab_of(store, tiny_lm, corpus, config)
    *_, last = lab.fit(tiny_lm, corpus.train)
    hidden = last.model.copy()
    norm = hidden.model.get_submodule("transformer.ln_f").get_parameter("bias")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm.add_(3 * torch.randn_like(norm))
    attack = Relearn()
    rates = {}
    for name, lm in {"leaky": last.model, "hidden": hidden, "base": tiny_lm}.items():
        asked = attack.score(list(attack.run(LocalTarget(lm), corpus, lab)))
        plain = Prefix().score(list(Prefix().run(LocalTarget(lm), corpus, lab)))
        rates[name] = (plain.beside["hit_rate"].value, asked.beside["hit_rate"].value)
    assert rates["leaky"][0] > 0.5
    assert rates["hidden"][0] == 0
    assert rates["hidden"][1] > 0.15
    assert rates["base"] == (0, 0)
