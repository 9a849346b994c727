from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pytest

from memdefense import pii
from memdefense.corpus import Document
from memdefense.defense import Defense
from memdefense.defenses import shuffle
from memdefense.defenses.rmft import RMFT
from memdefense.defenses.shuffle import Shuffle
from memdefense.errors import SpecError
from memdefense.interval import wilson
from memdefense.testing import check_defense

if TYPE_CHECKING:
    from memdefense.lab import Lab


class StubLab:
    """Finds runs of capital X, or what the detector finds."""

    def __init__(self, seed: int = 0, *, marks: bool = True) -> None:
        self.seed, self.marks = seed, marks
        self.notes: dict[str, float] = {}

    def find(self, text: str, kinds: Sequence[str] = ()) -> list[pii.Pii]:
        if not self.marks:
            return pii.find(text, kinds or pii.KINDS)
        return [pii.Pii("email", m.start(), m.end(), m[0], str(len(m[0]))) for m in re.finditer("X+", text)]

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose.encode()])

    def note(self, **values: float) -> None:
        self.notes.update(values)


def documents(*texts: str) -> list[Document]:
    return [Document(f"d{place}", text, "a") for place, text in enumerate(texts)]


def curate(defense: Defense, given: Sequence[Document], lab: StubLab) -> list[Document]:
    return list(defense.curate(given, cast("Lab", lab)))


def runs(before: str, after: str) -> list[int]:
    """The lengths of what changed."""
    changed = "".join("#" if a != b else "." for a, b in zip(before, after, strict=True))
    return [len(run) for run in re.findall("#+", changed)]


def test_contract() -> None:
    check_defense(Shuffle())


@pytest.mark.parametrize("keep", ["first", "last", "none"])
def test_as_many_spans_of_the_same_lengths_in_the_same_documents(keep: Literal["first", "last", "none"]) -> None:
    """A draw leaves a letter as it is once in 26, so what changed may be a little less than a span, never more."""
    texts = ("a" * 400 + "XXXX" + "b" * 400 + "XXXXXX", "c" * 900 + "XXXX", "d" * 300, "e" * 500 + "XXXX")
    given, lab = documents(*texts), StubLab()
    noised = curate(Shuffle(keep=keep), given, lab)
    mentions = {"first": [[], [4], [], [4]], "last": [[4], [4], [], []], "none": [[4, 6], [4], [], [4]]}[keep]
    assert [(d.id, d.author, len(d.text)) for d in noised] == [(d.id, d.author, len(d.text)) for d in given]
    for before, after, lengths in zip(given, noised, mentions, strict=True):
        changed = [a != b for a, b in zip(before.text, after.text, strict=True)]
        assert sum(changed) <= sum(lengths)
        assert sum(changed) >= sum(lengths) / 2
        assert (after is before) == (not lengths)
        places = [place for place, differs in enumerate(changed) if differs]
        groups = 1 + sum(b - a > 6 for a, b in itertools.pairwise(places)) if places else 0
        assert groups <= len(lengths)
    counts = {"values": 2, "replaced": sum(map(len, mentions)), "characters": sum(map(sum, mentions))}
    assert lab.notes == counts


def test_the_amount_is_what_rmft_replaces() -> None:
    texts = [f"write to jsmith@northgrid.com or call 212-555-014{place % 3} before noon" for place in range(20)]
    given = documents(*texts)
    labs = StubLab(marks=False), StubLab(marks=False)
    replaced = curate(RMFT(), given, labs[0])
    noised = curate(Shuffle(), given, labs[1])
    assert labs[1].notes["replaced"] == labs[0].notes["replaced"] == 36
    touched = [document is not after for document, after in zip(given, replaced, strict=True)]
    assert [document is not after for document, after in zip(given, noised, strict=True)] == touched


def test_every_placement_is_equally_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of 1 and 2 in 5 characters: two orders of 6 placements each, seen by marking what a span covers."""
    monkeypatch.setattr(shuffle, "_noise", lambda text, _: str(len(text)) * len(text))
    rng = StubLab().rng("x")
    seen = Counter(shuffle._noised(Document("d", "....."), [1, 2], rng).text for _ in range(6000))
    assert len(seen) == 12
    assert {len(text) for text in seen} == {5}
    assert all(abs(count - 500) < 5 * 500**0.5 for count in seen.values())


def test_letters_stay_letters_and_digits_digits() -> None:
    """The one mention fills the text, so that its place is certain."""
    made = {curate(Shuffle(keep="none"), documents("aB3-\n(é) zZ9 X"), Whole(seed))[0].text for seed in range(50)}
    assert len(made) == 50
    assert all(re.fullmatch(r"[a-z][A-Z]\d-\n\(é\) [a-z][A-Z]\d [A-Z]", one) for one in made)


class Whole(StubLab):
    def find(self, text: str, kinds: Sequence[str] = ()) -> list[pii.Pii]:
        return [pii.Pii("email", 0, len(text), text, "v")]


def test_the_seed_decides() -> None:
    given = documents(*(f"{'a' * 50}XXXX" for _ in range(5)))
    assert curate(Shuffle(), given, StubLab()) == curate(Shuffle(), given, StubLab())
    assert curate(Shuffle(), given, StubLab()) != curate(Shuffle(), given, StubLab(seed=1))


def test_unknown_values_are_refused() -> None:
    with pytest.raises(SpecError, match="shuffle: kinds cannot be 'emial'; did you mean 'email'"):
        Shuffle(kinds=("emial",))


@pytest.mark.slow
def test_noise_alone_hides_addresses_that_fill_a_third_of_their_notes(
    leaks: Callable[[Defense], list[tuple[int, int, float]]],
) -> None:
    """Spans anywhere hit nearly every address of so short a note, so there the control is as good as a defense."""
    (undefended,), (noised,) = leaks(Defense()), leaks(Shuffle())
    assert wilson(*noised[:2])[1] < wilson(*undefended[:2])[0]
    assert noised[2] < 1.1 * undefended[2]
