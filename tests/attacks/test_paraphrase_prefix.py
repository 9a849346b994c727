"""Each kind of change by what it leaves, and prompts that are the same for every defense."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch

from memdefense.attacks.paraphrase_prefix import CHANGES, ParaphrasePrefix
from memdefense.attacks.prefix import Prefix
from memdefense.bench import Bench
from memdefense.corpus import Corpus, Document, Occurrence, Secret
from memdefense.errors import SpecError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.target import GREEDY, LocalTarget, Sampling
from memdefense.testing import check_attack
from memdefense.train import TrainConfig

if TYPE_CHECKING:
    from memdefense.store import Store

PROMPT = "one two,\n three  four five\nsix seven eight nine ten"
WORDS = PROMPT.split()
NEW = ["alpha", "beta"]


def reworded(change: Any, salt: str, strength: float = 0.1) -> str:
    found: str = ParaphrasePrefix(strength, (change,)).reword(PROMPT, NEW, salt)
    return found


def without(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {(*words[:place], *words[place + 1 :]) for place in range(len(words))}


@pytest.mark.parametrize("salt", [str(n) for n in range(40)])
def test_one_change_of_each_kind(salt: str) -> None:
    swapped = reworded("swap", salt).split()
    (first, second) = (place for place, pair in enumerate(zip(swapped, WORDS, strict=True)) if pair[0] != pair[1])
    assert second == first + 1
    assert (swapped[first], swapped[second]) == (WORDS[second], WORDS[first])
    shifted = reworded("shift", salt).split()
    assert shifted != WORDS
    assert sorted(shifted) == sorted(WORDS)
    assert without(shifted) & without(WORDS)
    assert tuple(reworded("delete", salt).split()) in without(WORDS)
    inserted = reworded("insert", salt).split()
    assert tuple(WORDS) in without(inserted)
    assert len(set(inserted) & set(NEW)) == 1
    replaced = reworded("replace", salt).split()
    changed = [pair for pair in zip(replaced, WORDS, strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1
    assert changed[0][0] in NEW


def test_white_space_stays_in_its_place() -> None:
    for change in ("swap", "shift", "replace"):
        found = reworded(change, "x", 0.5)
        assert [part for part in found if part.isspace()] == [part for part in PROMPT if part.isspace()]
    assert ParaphrasePrefix(1.0).reword(" \n", NEW) == " \n"
    assert ParaphrasePrefix(1.0, ("replace",)).reword("word \n", NEW) in ("alpha \n", "beta \n")
    assert ParaphrasePrefix(1.0, ("delete", "swap", "shift")).reword("word", NEW) == "word"
    assert ParaphrasePrefix(1.0, ("replace",)).reword("a b", []).split()[0] in ("a", "b")


def test_strength_is_how_much_changes_and_draws_depend_on_prompt_and_salt_alone() -> None:
    assert ParaphrasePrefix(0.0).reword(PROMPT, NEW) == PROMPT
    changed = [len(set(WORDS) - set(reworded("replace", "x", strength).split())) for strength in (0.1, 0.3, 1.0)]
    assert changed == sorted(changed)
    assert changed[0] == 1
    assert changed[-1] > 5  # ten draws of ten places, with replacement
    attack = ParaphrasePrefix(0.3)
    assert attack.reword(PROMPT, NEW, "x") == attack.reword(PROMPT, NEW, "x")
    assert len({attack.reword(PROMPT, NEW, salt) for salt in "abcdefgh"}) > 4
    seen = {change: len({reworded(change, str(salt)) for salt in range(60)}) for change in CHANGES}
    assert min(seen.values()) > 5, seen  # every place has its turn


VALUES = [f"41555501{n:02d}" for n in range(10, 22)]
NAMES = ["Anna", "Bert", "Cleo", "Dora", "Emil", "Fred", "Gina", "Hugo", "Iris", "Jack", "Kate", "Leon"]
TRAIN = [
    Document(f"d{n}", f"Please {NAMES[(n + 5) % 12]} call {NAMES[n]} at {value} now.", NAMES[n])
    for n, value in enumerate(VALUES)
]
PUBLIC = [Document("p", "the report on budget 2024 for bob@example.com is late")]


def secret(number: int) -> Secret:
    text, value = TRAIN[number].text, VALUES[number]
    place = Occurrence(f"d{number}", text.index(value), text.index(value) + len(value))
    return Secret(f"s{number}", "phone", value, True, NAMES[number], (place,), value[:-2] + "99")


CORPUS = Corpus(PUBLIC, TRAIN, (), secrets=[secret(n) for n in range(12)], kinds=("phone",))


def lab_of(store: Store, base: LM) -> AttackLab:
    return AttackLab(
        Bench(store),
        who="test",
        seed=0,
        originals=TRAIN,
        public=PUBLIC,
        config=TrainConfig(),
        base=base,
        curated=TRAIN,
        defended=None,
    )


@dataclasses.dataclass
class Parrot:
    """Says nothing of worth, and remembers what it was asked."""

    asked: list[str] = dataclasses.field(default_factory=list)

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        self.asked += prompts
        return [" well" for _ in prompts]

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]:
        self.asked += prompts
        return [False for _ in prompts]


def test_prompts_are_changed_alike_for_all_and_never_hold_the_value(store: Store, tiny_lm: LM) -> None:
    plain, first, second = Parrot(), Parrot(), Parrot()
    list(Prefix().run(plain, CORPUS, lab_of(store, tiny_lm)))
    list(ParaphrasePrefix().run(first, CORPUS, lab_of(store, tiny_lm)))
    # The same prompts in another order of asking.
    backwards = dataclasses.replace(CORPUS, secrets=CORPUS.secrets[::-1])
    list(ParaphrasePrefix().run(second, backwards, lab_of(store, tiny_lm)))
    assert set(first.asked) == set(second.asked)
    assert len(first.asked) == len(plain.asked) > 0
    assert not set(first.asked) & set(plain.asked)
    for prompt in first.asked:
        assert not any(value in prompt for value in VALUES)
    fresh = set(" ".join(first.asked).split()) - set(" ".join(plain.asked).split())
    assert fresh
    assert fresh <= {"the", "report", "on", "budget", "for", "is", "late"}  # words in letters alone


def test_the_prompts_that_are_kept_are_those_that_were_asked(store: Store, tiny_lm: LM) -> None:
    parrot, lab = Parrot(), lab_of(store, tiny_lm)
    list(ParaphrasePrefix().run(parrot, CORPUS, lab))
    assert {kept["prompt"] for kept in lab.samples} == set(parrot.asked)
    assert {kept["continuation"] for kept in lab.samples} == {" well"}


def test_without_strength_it_is_prefix(store: Store, tiny_lm: LM) -> None:
    lab = lab_of(store, tiny_lm)
    found = list(ParaphrasePrefix(0.0).run(LocalTarget(tiny_lm), CORPUS, lab))
    assert found == list(Prefix().run(LocalTarget(tiny_lm), CORPUS, lab))
    assert repr(ParaphrasePrefix().score(found)) == repr(Prefix().score(found))  # NaN is not equal to itself
    assert ParaphrasePrefix().terms(found) == Prefix().terms(found)


def test_fields_out_of_range() -> None:
    for strength in (-0.1, 1.1):
        with pytest.raises(SpecError, match="share"):
            ParaphrasePrefix(strength)
    with pytest.raises(SpecError, match="did you mean 'swap'"):
        ParaphrasePrefix(changes=("swop",))  # type: ignore[arg-type, unused-ignore]
    with pytest.raises(SpecError, match="no changes"):
        ParaphrasePrefix(changes=())


def test_contract() -> None:
    check_attack(ParaphrasePrefix(0.3, ("swap", "insert")))


@pytest.mark.slow
def test_less_comes_back_the_more_is_changed(store: Store, tiny_lm: LM) -> None:
    lm = tiny_lm.copy()
    rows = [torch.tensor([lm.encode(document.text)]) for document in TRAIN]
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=3e-3)
    lm.model.train()
    for _ in range(60):
        for row in rows:
            optimizer.zero_grad()
            lm.model(input_ids=row, labels=row).loss.backward()
            optimizer.step()
    lm.model.train(False)
    rates = [
        ParaphrasePrefix(strength)
        .score(list(ParaphrasePrefix(strength).run(LocalTarget(lm), CORPUS, lab_of(store, tiny_lm))))
        .beside["hit_rate"]
        .value
        for strength in (0.0, 0.2, 1.0)
    ]
    assert rates[0] > 0.8
    assert rates[0] > rates[2]
    assert rates[0] >= rates[1]
