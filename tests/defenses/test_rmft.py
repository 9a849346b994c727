from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pytest

from memdefense import pii
from memdefense.corpus import Document
from memdefense.defense import Defense
from memdefense.defenses.rmft import RMFT
from memdefense.errors import SpecError
from memdefense.score import wilson

if TYPE_CHECKING:
    from memdefense.lab import Lab

FILLER = ("please", "write", "to", "about", "the", "meeting\n", "call", "or", "at", "noon,", "regards\n\n", "cc:")
VALUES = (
    "Mary.Ann.Poe@Mail.Northgrid.com",
    "jsmith@northgrid.com",
    "k.lee@acme.co.uk",
    "212-555-0143",
    "(312) 555-0199",
    "http://www.northgrid.com/reports/q3.pdf",
)


class StubLab:
    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.notes: dict[str, float] = {}
        self.purposes: list[str] = []

    def find(self, text: str, kinds: Sequence[str] = ()) -> list[pii.Pii]:
        return pii.find(text, kinds or pii.KINDS)

    def rng(self, purpose: str) -> np.random.Generator:
        self.purposes.append(purpose)
        return np.random.default_rng([self.seed, *purpose.encode()])

    def note(self, **values: float) -> None:
        self.notes.update(values)


def curate(defense: RMFT, documents: Sequence[Document], *, epoch: int = 0, seed: int = 0) -> list[Document]:
    return list(defense.curate(documents, cast("Lab", StubLab(seed)), epoch=epoch))


def written(mentions: int, *, seed: int = 0) -> tuple[list[Document], list[list[tuple[str, int, str]]]]:
    """Documents with values planted between filler words, and per document what was planted, in pieces.

    A piece is (text, number of the value or -1, kind): the answer key the curated text is read against.
    """
    rng = np.random.default_rng(seed)
    documents, keys = [], []
    for number in range(mentions):
        key: list[tuple[str, int, str]] = []
        for _ in range(int(rng.integers(0, 4))):
            key.append((f" {' '.join(rng.choice(FILLER, 3))} ", -1, ""))
            value = int(rng.integers(0, len(VALUES)))
            text = VALUES[value].lower() if rng.random() < 0.3 and "@" in VALUES[value] else VALUES[value]
            key.append((text, value, "email" if "@" in text else "url" if "/" in text else "phone"))
        key.append((" see you", -1, ""))
        keys.append(key)
        documents.append(Document(f"d{number}", "".join(piece for piece, _, _ in key), author="a"))
    return documents, keys


def mentions(documents: Sequence[Document], keys: list[list[tuple[str, int, str]]]) -> list[tuple[int, str, str]]:
    """(number of the value, as planted, as it reads now) for each mention; fails if any other text moved."""
    result = []
    for document, key in zip(documents, keys, strict=True):
        found = iter(pii.find(document.text))
        at = 0
        for piece, value, kind in key:
            if value < 0:
                assert document.text.startswith(piece, at)
                at += len(piece)
            else:
                now = next(found)
                assert (now.start, now.kind) == (at, kind)
                result.append((value, piece, now.value))
                at = now.end
        assert at == len(document.text)
    return result


@pytest.mark.parametrize("keep", ["first", "last", "none"])
def test_one_mention_of_each_value_stays_and_no_other_is_an_original(keep: Literal["first", "last", "none"]) -> None:
    documents, keys = written(60)
    curated = curate(RMFT(keep=keep), documents)
    assert [document.id for document in curated] == [document.id for document in documents]
    assert {document.author for document in curated} == {"a"}
    true = {pii.canonical(kind, VALUES[value]) for key in keys for _, value, kind in key if kind}
    now: dict[int, list[tuple[str, str]]] = {}
    for value, before, after in mentions(curated, keys):
        now.setdefault(value, []).append((before, after))
    assert len(now) == len(VALUES)
    for value, pairs in now.items():
        kind = "email" if "@" in VALUES[value] else "url" if "/" in VALUES[value] else "phone"
        stayed = [place for place, (_, after) in enumerate(pairs) if pii.canonical(kind, after) in true]
        assert stayed == {"first": [0], "last": [len(pairs) - 1], "none": []}[keep]
        assert all(pairs[place][0] == pairs[place][1] for place in stayed)
        assert len(pairs) > 10
        assert len({after for _, after in pairs}) > 5  # drawn independently


def test_untouched_documents_are_the_same_objects() -> None:
    documents = [Document("0", "nothing here"), Document("1", "a jsmith@northgrid.com"), Document("2", VALUES[1])]
    curated = curate(RMFT(), documents)
    assert curated[0] is documents[0]
    assert curated[1] is documents[1]
    assert curated[2].text != documents[2].text


def parts(address: str) -> tuple[str, str, str]:
    local, domain = address.split("@")
    label, rest = domain.split(".", 1)
    return local, label, rest


def test_each_anchor_survives_a_third_of_the_time_and_dots_are_kept() -> None:
    true = ["Ann.Lee.Poe@Mail.Northgrid.com", "jsmith@northgrid.com", "k.lee@acme.co.uk"]
    documents = [Document(str(number), f"to {true[number % 3]} now") for number in range(3000)]
    survived: Counter[tuple[bool, bool, bool]] = Counter()
    for number, document in enumerate(curate(RMFT(keep="none"), documents)):
        before, after = parts(true[number % 3]), parts(document.text[3:-4])
        survived[before[0] == after[0], before[1] == after[1], before[2] == after[2]] += 1
        assert before[0].count(".") == after[0].count(".")
    assert set(survived) == {(True, False, False), (False, True, False), (False, False, True)}
    assert all(abs(count - 1000) < 5 * (3000 * 2 / 9) ** 0.5 for count in survived.values())


def test_without_an_anchor_no_part_survives() -> None:
    documents = [Document(str(number), "to k.lee@acme.co.uk now") for number in range(300)]
    for document in curate(RMFT(keep="none", anchor="none"), documents):
        after = parts(document.text[3:-4])
        assert not set(after) & {"k.lee", "acme", "co.uk"}
        assert not set(after[0].split(".")) & {"k", "lee"}


def test_pools_leave_out_what_stands_in_the_text() -> None:
    """Half of each pool stands in the originals, so a draw of it would be a true part."""
    pools = (pii.LOCALS[::2], pii.DOMAINS[::2], pii.SUFFIXES[::2])
    size = max(map(len, pools))
    local, label, rest = ([pool[number % len(pool)] for number in range(size)] for pool in pools)
    true = [f"{local[number]}@{label[number]}.{rest[number]}" for number in range(size)]
    documents = [Document(str(number), value) for number, value in enumerate(true * 4)]
    for document in curate(RMFT(keep="none", anchor="none"), documents):
        after = parts(document.text)
        assert after[0] not in pools[0]
        assert after[1] not in pools[1]
        assert after[2] not in pools[2]


def test_a_draw_that_hits_an_original_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both pools are wholly in the text: of the six addresses five are true, so the sixth is the only draw left."""
    monkeypatch.setattr(pii, "LOCALS", ("ann", "bob", "cid"))
    monkeypatch.setattr(pii, "DOMAINS", ("acme", "umbra"))
    monkeypatch.setattr(pii, "SUFFIXES", ("com",))
    true = ["ann@acme.com", "bob@acme.com", "cid@acme.com", "ann@umbra.com", "bob@umbra.com"]
    documents = [Document(str(number), value) for number, value in enumerate(true)]
    curated = curate(RMFT(keep="none", anchor="none"), documents)
    assert {document.text for document in curated} == {"cid@umbra.com"}


def test_other_kinds_avoid_every_original_of_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    avoided = []

    def fake(kind: str, value: str, rng: np.random.Generator, *, avoid: Container[str] = ()) -> str:
        avoided.append((kind, value, avoid))
        return "555-555-0100"

    monkeypatch.setattr(pii, "fake", fake)
    documents = [Document(str(number), value) for number, value in enumerate(["212-555-0143", "(312) 555-0199"])]
    assert [document.text for document in curate(RMFT(keep="none"), documents)] == ["555-555-0100"] * 2
    phones = {"2125550143", "3125550199"}
    assert avoided == [("phone", "212-555-0143", phones), ("phone", "(312) 555-0199", phones)]


def test_only_the_kinds_asked_for_are_replaced() -> None:
    documents, keys = written(40)
    for value, before, after in mentions(curate(RMFT(kinds=("email",), keep="none"), documents), keys):
        assert (before == after) == ("@" not in VALUES[value])


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    documents, _ = written(40)
    assert curate(RMFT(), documents) == curate(RMFT(), documents)
    assert curate(RMFT(), documents) != curate(RMFT(), documents, seed=1)


def test_epochs_differ_only_where_they_are_redrawn_and_keep_the_same_mention() -> None:
    documents, keys = written(40)
    assert not RMFT().redraws
    assert curate(RMFT(), documents, epoch=0) == curate(RMFT(), documents, epoch=3)
    defense = RMFT(redraw="epoch")
    assert defense.redraws
    epochs = [curate(defense, documents, epoch=epoch) for epoch in range(3)]
    assert epochs[0] == curate(defense, documents, epoch=0)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    kept = [[before == after for _, before, after in mentions(epoch, keys)] for epoch in epochs]
    assert kept[0] == kept[1] == kept[2]
    assert sum(kept[0]) == len(VALUES)


@pytest.mark.parametrize("anchor", ["part", "none"])
def test_epochs_show_one_mention_part_by_part_where_an_anchor_survives(anchor: Literal["part", "none"]) -> None:
    """What masks drawn per mention reveal over epochs: every part of an address, at one place, though never at once."""
    documents = [Document(str(n), "Write to k.lee@acme.co.uk today.") for n in range(2)]  # the first mention stays
    defense = RMFT(redraw="epoch", anchor=anchor)
    drawn = [curate(defense, documents, epoch=epoch)[1].text.split()[2] for epoch in range(30)]
    assert "k.lee@acme.co.uk" not in drawn
    seen = {
        "local": any(value.startswith("k.lee@") for value in drawn),
        "label": any("@acme." in value for value in drawn),
        "rest": any(value.endswith(".co.uk") for value in drawn),
    }
    assert set(seen.values()) == {anchor == "part"}


def test_notes_count_values_mentions_and_replacements() -> None:
    documents, keys = written(40)
    lab = StubLab()
    RMFT().curate(documents, cast("Lab", lab))
    planted = sum(value >= 0 for key in keys for _, value, _ in key)
    assert lab.notes == {"values": len(VALUES), "mentions": planted, "replaced": planted - len(VALUES)}


def test_no_pii_leaves_everything_as_it_is() -> None:
    documents = [Document("0", "nothing"), Document("1", "")]
    curated = curate(RMFT(), documents)
    assert all(before is after for before, after in zip(documents, curated, strict=True))


def test_unknown_values_are_refused_with_a_hint() -> None:
    with pytest.raises(SpecError, match="did you mean 'email'"):
        RMFT(kinds=("emial",))
    with pytest.raises(SpecError, match="keep cannot be 'frist'"):
        RMFT(keep=cast("Literal['first']", "frist"))


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["first", "none"])
def test_addresses_that_come_back_undefended_do_not(
    leaks: Callable[[Defense], list[tuple[int, int, float]]], keep: Literal["first", "none"]
) -> None:
    """The intervals of the rates lie apart, and letters without addresses read no worse."""
    (undefended,), (masked,) = leaks(Defense()), leaks(RMFT(keep=keep))
    assert wilson(*masked[:2])[1] < wilson(*undefended[:2])[0]
    assert masked[2] < 1.05 * undefended[2]
