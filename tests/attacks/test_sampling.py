"""Untargeted sampling against sets counted by hand, and every way a prompt file can be wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from memdefense.attacks.sampling import UntargetedSampling, read_prompts, spoken
from memdefense.bench import Bench
from memdefense.corpus import Corpus, Document, Occurrence, Secret
from memdefense.defense import Defense
from memdefense.errors import DataError, NotApplicable, SpecError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.pipeline import defend, measure
from memdefense.runner import Settings, prepare
from memdefense.store import Store
from memdefense.target import GREEDY, LocalTarget, Sampling
from memdefense.testing import check_attack, tiny_benchmark
from memdefense.train import TrainConfig

VALUES = ["4155550134", "2125550187", "3125550199"]
TWINS = ["4155550177", "2125550111", "3125550122"]
TEXTS = [f"Please call {name} at {value} today." for name, value in zip(("Anna", "Bert", "Cleo"), VALUES, strict=True)]
TRAIN = [Document("d0", TEXTS[0], "Anna"), Document("d1", TEXTS[1], "Bert")]
HELD = [Document("d2", TEXTS[2], "Cleo")]
PUBLIC = [Document(f"p{n}", "The meeting on Tuesday is moved to the large room on the second floor.") for n in range(3)]
SECRETS = [
    Secret(f"s{n}", "phone", VALUES[n], n < 2, f"g{n}", (Occurrence(f"d{n}", 20, 30),), TWINS[n]) for n in range(3)
]
CORPUS = Corpus(PUBLIC, TRAIN, HELD, secrets=SECRETS, kinds=("phone",))


def lab_of(store: Store, base: LM, at: float = 1.0) -> AttackLab:
    return AttackLab(
        Bench(store),
        who="test",
        seed=0,
        originals=TRAIN,
        public=PUBLIC,
        config=TrainConfig(epochs=1.0, batch_size=1, block_size=64, pack="document"),
        base=base,
        curated=TRAIN,
        defended=None,
        at=at,
    )


class Talker:
    """Says one thing after another, whatever it is asked."""

    def __init__(self, said: Sequence[str]) -> None:
        self.said, self.asked = said, list[str]()
        self.sampling: Sampling | None = None

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        self.asked, self.sampling = list(prompts), sampling
        return [self.said[place % len(self.said)] for place in range(len(prompts))]

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]:
        raise NotImplementedError


@pytest.mark.parametrize(
    "attack",
    [
        UntargetedSampling(samples=6, new_tokens=12),
        UntargetedSampling(prompts="held-out", decoding="greedy", samples=6, new_tokens=12),
        UntargetedSampling(prompts="public", samples=4, new_tokens=12, baseline="none"),
    ],
)
def test_contract(attack: UntargetedSampling) -> None:
    check_attack(attack)


def test_ter_ser_and_precision_by_hand(store: Store, tiny_lm: LM) -> None:
    said = [f"call {VALUES[0]} or 6465550100", f"or {VALUES[2]} and {VALUES[0]}", "nothing"]
    attack = UntargetedSampling(samples=3, baseline="none")
    lab = lab_of(store, tiny_lm)
    outcomes = list(attack.run(Talker(said), CORPUS, lab))
    scores = attack.score(outcomes)
    assert scores.beside["ter"].value == 0.5  # s0 of s0 and s1
    assert scores.beside["ser"].value == 0.5
    assert scores.beside["precision"].value == pytest.approx(1 / 3)
    assert scores.beside["precision"].n == 3
    assert scores.headline.value == 0.5  # no twin was said
    assert lab.notes["values_said"] == 3
    assert not any(value in str(outcomes) for value in (*VALUES, "6465550100"))
    twins = list(attack.run(Talker([f"{TWINS[0]}, {TWINS[1]} or {VALUES[0]}"]), CORPUS, lab_of(store, tiny_lm)))
    assert attack.score(twins).beside["chance"].value == 1
    assert np.isnan(attack.score(twins).headline.value)
    half = list(attack.run(Talker([f"{TWINS[0]} or {VALUES[0]}"]), CORPUS, lab_of(store, tiny_lm, at=0.5)))
    assert attack.score(half).headline.value == pytest.approx(0)
    assert attack.score(half).beside["ser"].n == 1


def test_held_out_values_are_chance_where_there_are_no_twins(store: Store, tiny_lm: LM) -> None:
    bare = [Secret(s.id, s.kind, s.value, s.member, s.group, s.occurrences) for s in SECRETS]
    corpus = Corpus(PUBLIC, TRAIN, HELD, secrets=bare, kinds=("phone",))
    attack = UntargetedSampling(samples=1, baseline="none")
    outcomes = list(attack.run(Talker([VALUES[0]]), corpus, lab_of(store, tiny_lm)))
    assert attack.score(outcomes).headline.value == 0.5
    assert np.mean([term.value for term in attack.terms(outcomes)]) == pytest.approx(0.5)


def test_pii_of_the_own_prompt_does_not_count_and_of_another_does() -> None:
    prompts = [f"Not {VALUES[0]} but", "Ask for"]
    assert spoken(prompts, [f"{VALUES[0]}, yes", "nobody"]) == set()
    assert spoken(prompts, ["nobody", f"{VALUES[0]}"]) == {("phone", VALUES[0])}


def test_what_the_base_model_says_too_is_removed(store: Store, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Talker([f"{VALUES[0]} or {TWINS[1]}"])
    monkeypatch.setattr(AttackLab, "serve", lambda self, model: known)
    attack, lab = UntargetedSampling(samples=2), lab_of(store, tiny_lm)
    target = Talker([f"{VALUES[0]} or {VALUES[1]} or {TWINS[1]}"])
    outcomes = {o.unit: o.values for o in attack.run(target, CORPUS, lab)}
    assert (outcomes["s0"]["generated"], outcomes["s1"]["generated"]) == (0, 1)
    assert outcomes["s1"]["generated_twin"] == 0
    assert lab.notes["said_by_base_too"] == 2
    assert (known.asked, known.sampling) == (target.asked, target.sampling)  # the same prompts and draws
    # It says the same in every arm, so it is asked once.
    monkeypatch.setattr(AttackLab, "serve", lambda self, model: Talker([]))
    again = {o.unit: o.values for o in attack.run(target, CORPUS, lab_of(store, tiny_lm))}
    assert again == outcomes


@pytest.mark.parametrize("split", ["public", "held-out"])
def test_windows_are_of_the_split_and_of_the_length(store: Store, tiny_lm: LM, split: str) -> None:
    attack = UntargetedSampling(prompts=cast(Any, split), length=4, samples=30)
    target = Talker(["x"])
    list(attack.run(target, CORPUS, lab_of(store, tiny_lm)))
    texts = [d.text for d in (PUBLIC if split == "public" else HELD)]
    assert len(target.asked) == 30
    assert len(set(target.asked)) > 5
    for prompt in target.asked:
        assert any(prompt in text for text in texts)
        assert len(tiny_lm.encode(prompt)) <= 5  # a cut may split one token in two
    greedy = UntargetedSampling(prompts=cast(Any, split), length=4, samples=30, decoding="greedy")
    list(greedy.run(target, CORPUS, lab_of(store, tiny_lm)))
    assert len(target.asked) == len(set(target.asked)) < 30
    assert target.sampling == GREEDY


def test_a_corpus_without_what_is_asked_for_is_not_applicable(store: Store, tiny_lm: LM) -> None:
    with pytest.raises(NotApplicable, match="no PII"):
        list(UntargetedSampling().run(Talker(["x"]), Corpus(PUBLIC, TRAIN, HELD), lab_of(store, tiny_lm)))
    bare = Corpus((), TRAIN, HELD, secrets=SECRETS, kinds=("phone",))
    with pytest.raises(NotApplicable, match="no public text"):
        list(UntargetedSampling(prompts="public").run(Talker(["x"]), bare, lab_of(store, tiny_lm)))


def test_fields_that_make_no_sense_are_named() -> None:
    for fields in ({"samples": 0}, {"length": 0}, {"prompts": "file"}, {"file": "x"}, {"decoding": "greedy"}):
        with pytest.raises(SpecError, match="sampling"):
            UntargetedSampling(**fields)


WRITERS: list[Callable[[str], bytes]] = [
    lambda text: text.encode(),
    lambda text: text.encode("utf-8-sig"),
    lambda text: text.encode("utf-16"),
    lambda text: text.replace("\n", "\r\n").encode(),
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_prompt_file_in_utf8_or_with_a_byte_order_mark_is_read(
    store: Store, tiny_lm: LM, tmp_path: Path, write: Callable[[str], bytes]
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(write("Schöne Grüße\n\nDear all\n"))
    attack, target, lab = (
        UntargetedSampling(prompts="file", file=str(path), samples=4),
        Talker(["x"]),
        lab_of(store, tiny_lm),
    )
    list(attack.run(target, CORPUS, lab))
    assert target.asked == ["Schöne Grüße", "Dear all"] * 2
    assert lab.notes["empty_lines"] == 1


def test_a_prompt_file_that_cannot_be_read_is_a_clear_error(store: Store, tiny_lm: LM, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("Dear all\nSchöne Grüße\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 \(line 2\).*iconv"):
        read_prompts(str(path))
    for encoding in ("utf-32", "utf-32-be", "utf-16-le", "utf-16-be"):
        path.write_bytes("Dear all\n".encode(encoding))
        with pytest.raises(DataError, match=r"not UTF-8.*iconv"):
            read_prompts(str(path))
    path.write_text("\n \n")
    empty = UntargetedSampling(prompts="file", file=str(path))
    for told in (empty.ready, lambda: list(empty.run(Talker(["x"]), CORPUS, lab_of(store, tiny_lm)))):
        with pytest.raises(DataError, match="holds no prompt"):
            told()
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(str(tmp_path))


def test_another_content_of_the_prompt_file_is_another_result(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Dear all\n")
    attack = UntargetedSampling(prompts="file", file=str(path), samples=2, new_tokens=8)
    work = prepare(tiny_benchmark(), Settings(store=str(tmp_path / "store"), device="cpu"))
    undefended = defend(work, Defense(), 0)
    point = undefended.points[-1]
    first = measure(undefended, point, attack, lambda: point.load("cpu"))[1]
    assert measure(undefended, point, attack, lambda: pytest.fail("played again"))[1].key == first.key
    path.write_text("Hello\n")
    assert measure(undefended, point, attack, lambda: point.load("cpu"))[1].key != first.key


def test_draws_are_the_same_again_and_others_with_another_seed(store: Store, tiny_lm: LM) -> None:
    attack = UntargetedSampling(samples=3, new_tokens=8)

    def said(seed: int) -> list[str]:
        lab = lab_of(store, tiny_lm)
        lab.seed = seed
        list(attack.run(LocalTarget(tiny_lm), CORPUS, lab))
        return [sample["continuation"] for sample in lab.samples]

    assert said(0) == said(0) != said(1)


@pytest.mark.slow
def test_a_model_that_knows_its_text_by_heart_says_it_unasked(store: Store, tiny_lm: LM) -> None:
    lm = tiny_lm.copy()
    end = tiny_lm.tokenizer.eos_token_id
    rows = [torch.tensor([[end, *lm.encode(document.text, special=False), end]]) for document in TRAIN]
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=1e-2)
    lm.model.train()
    for _ in range(60):
        optimizer.zero_grad()
        sum(lm.model(input_ids=row, labels=row).loss for row in rows).backward()
        optimizer.step()
    lm.model.train(False)
    attack = UntargetedSampling(samples=16, new_tokens=40)
    knows = attack.score(list(attack.run(LocalTarget(lm), CORPUS, lab_of(store, tiny_lm))))
    assert (knows.headline.value, knows.beside["ter"].value, knows.beside["ser"].value) == (1, 1, 1)
    never = attack.score(list(attack.run(LocalTarget(tiny_lm), CORPUS, lab_of(store, tiny_lm))))
    assert never.headline.value == 0
