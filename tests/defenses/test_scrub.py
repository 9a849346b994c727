from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pytest

from memdefense import pii
from memdefense.corpus import Document
from memdefense.defense import Defense
from memdefense.defenses.scrub import Scrub
from memdefense.errors import SpecError
from memdefense.interval import wilson
from memdefense.testing import check_defense

if TYPE_CHECKING:
    from memdefense.lab import Lab

TEXTS = (
    "Mail Ann.Lee@Fenwick.com or k.lee@acme.co.uk, call (212) 555-0187;\n<ann.lee@fenwick.com> is better.",
    "nothing here",
    "212-555-0187, 312-555-0199 and http://www.fenwick.com/q3.pdf",
    "ANN.LEE@FENWICK.COM",
)
PATTERN = re.compile(
    r"[\w.]+@[\w.]*\w|\(?\d{3}\)?[ -]\d{3}-\d{4}|http\S+"
)  # knows these texts, not the detector's rules


class StubLab:
    def __init__(self, seed: int = 0, missed: str = "") -> None:
        self.seed, self.missed = seed, missed
        self.notes: dict[str, float] = {}

    def find(self, text: str, kinds: Sequence[str] = ()) -> list[pii.Pii]:
        return [found for found in pii.find(text, kinds or pii.KINDS) if found.canonical != self.missed]

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose.encode()])

    def note(self, **values: float) -> None:
        self.notes.update(values)


def documents(texts: Sequence[str] = TEXTS) -> list[Document]:
    return [Document(f"d{place}", text, "a") for place, text in enumerate(texts)]


def curate(defense: Scrub, lab: StubLab | None = None, texts: Sequence[str] = TEXTS) -> list[Document]:
    return list(defense.curate(documents(texts), cast("Lab", lab or StubLab())))


@pytest.mark.parametrize("method", ["mask", "pseudonymise"])
def test_contract(method: Literal["mask", "pseudonymise"]) -> None:
    check_defense(Scrub(method=method))


def test_masks_by_hand() -> None:
    lab = StubLab()
    assert [document.text for document in curate(Scrub(), lab)] == [
        "Mail <EMAIL> or <EMAIL>, call <PHONE>;\n<<EMAIL>> is better.",
        "nothing here",
        "<PHONE>, <PHONE> and <URL>",
        "<EMAIL>",
    ]
    assert lab.notes == {"values": 5, "replaced": 8}


def test_documents_keep_id_and_author_and_untouched_ones_are_the_same() -> None:
    given = documents()
    curated = list(Scrub().curate(given, cast("Lab", StubLab())))
    assert [(d.id, d.author) for d in curated] == [(d.id, d.author) for d in given]
    assert curated[1] is given[1]


def test_only_the_kinds_asked_for_are_scrubbed() -> None:
    assert curate(Scrub(kinds=("phone",)))[2].text == "<PHONE>, <PHONE> and http://www.fenwick.com/q3.pdf"


def test_what_the_detector_misses_stays() -> None:
    assert curate(Scrub(), StubLab(missed="k.lee@acme.co.uk"))[0].text.startswith("Mail <EMAIL> or k.lee@acme.co.uk, ")


def test_one_value_has_one_pseudonym_and_two_values_two() -> None:
    curated = curate(Scrub(method="pseudonymise"))
    pairs: dict[str, set[str]] = {}
    for text, document in zip(TEXTS, curated, strict=True):
        before, after = PATTERN.findall(text), PATTERN.findall(document.text)
        assert PATTERN.sub("", text) == PATTERN.sub("", document.text)
        for old, new in zip(before, after, strict=True):
            digits = re.sub(r"\D", "", old)
            pairs.setdefault(digits if len(digits) == 10 else old.lower(), set()).add(new)
    assert len(pairs) == 5
    assert all(len(drawn) == 1 for drawn in pairs.values())
    assert len(set.union(*pairs.values())) == 5
    true = {found.canonical for text in TEXTS for found in pii.find(text)}
    assert not true & {found.canonical for document in curated for found in pii.find(document.text)}


def test_no_two_values_share_a_pseudonym_where_few_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pii.words, "LOCALS", ("ann", "bob"))
    monkeypatch.setattr(pii.words, "DOMAINS", ("acme",))
    monkeypatch.setattr(pii.words, "SUFFIXES", ("com",))
    texts = [f"w{place}.x@fenwick.com" for place in range(4)]
    made = {document.text for document in curate(Scrub(method="pseudonymise"), texts=texts)}
    assert made == {"ann.ann@acme.com", "ann.bob@acme.com", "bob.ann@acme.com", "bob.bob@acme.com"}


def test_the_seed_decides() -> None:
    pseudonyms = Scrub(method="pseudonymise")
    assert curate(pseudonyms) == curate(pseudonyms)
    assert curate(pseudonyms) != curate(pseudonyms, StubLab(seed=1))


def test_unknown_values_are_refused_with_a_hint() -> None:
    with pytest.raises(SpecError, match="did you mean 'mask'"):
        Scrub(method=cast("Literal['mask']", "msk"))
    with pytest.raises(SpecError, match="did you mean 'email'"):
        Scrub(kinds=("emial",))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mask", "pseudonymise"])
def test_no_address_comes_back(
    leaks: Callable[[Defense], list[tuple[int, int, float]]], method: Literal["mask", "pseudonymise"]
) -> None:
    """The intervals of the rates lie apart, and letters without addresses read at most a fifth worse."""
    (undefended,), (scrubbed,) = leaks(Defense()), leaks(Scrub(method=method))
    assert scrubbed[0] == 0
    assert wilson(*scrubbed[:2])[1] < wilson(*undefended[:2])[0]
    assert scrubbed[2] < 1.2 * undefended[2]
