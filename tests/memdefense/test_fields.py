from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from memdefense.attacks.mia import MIA
from memdefense.attacks.paraphrase_prefix import ParaphrasePrefix
from memdefense.benchmarks.mailbox import Mailbox
from memdefense.defense import Defense
from memdefense.defenses.dedup import Dedup
from memdefense.defenses.rmft import RMFT
from memdefense.errors import SpecError
from memdefense.fields import fits
from memdefense.train import TrainConfig


@pytest.mark.parametrize(
    ("value", "kind", "fit"),
    [
        (3, int, True),
        (np.int64(3), int, True),
        (3.0, int, False),
        (True, int, False),
        ("3", int, False),
        (3, float, True),
        (np.float32(0.5), float, True),
        (True, float, False),
        ("0.5", float, False),
        (None, float, False),
        (None, float | None, True),
        (True, bool, True),
        (1, bool, False),
        ("a", str, True),
        (b"a", str, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (1, Literal[True], False),
        ((1, 2), tuple[int, ...], True),
        ([1, 2], tuple[int, ...], True),
        ((1, "2"), tuple[int, ...], False),
        ("ab", tuple[str, ...], False),
        ((), tuple, True),
        ((1, "2"), tuple[int, str], True),
        ((1, 2), tuple[int, str], False),
        ((1,), tuple[int, str], False),
        (object(), RMFT, True),  # what is not plain is not judged
    ],
)
def test_a_value_is_of_its_type(value: object, kind: object, fit: bool) -> None:
    assert fits(value, kind) is fit


def loose(kind: type) -> Any:
    """A class that type checkers let anything be given to."""
    return kind


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: loose(RMFT)(keep=3), "rmft: keep cannot be 3; known: first, last, none"),
        (lambda: loose(RMFT)(kinds="email"), "rmft: kinds is 'email'; it takes a tuple, each of which is text"),
        (
            lambda: loose(ParaphrasePrefix)(changes=("swop",)),
            "paraphrase-prefix: changes cannot be 'swop'; did you mean 'swap'",
        ),
        (lambda: loose(Dedup)(cap="1"), "dedup: cap is '1'; it takes a whole number"),
        (lambda: loose(Mailbox)(documents="100"), "mailbox: documents is '100'; it takes a whole number"),
        (lambda: loose(Mailbox)(documents=100.5), r"mailbox: documents is 100\.5"),
        (lambda: loose(MIA)(headline="lss"), "mia: headline cannot be 'lss'; did you mean 'loss'"),
        (lambda: loose(TrainConfig)(epochs="3"), "training: epochs is '3'; it takes a number"),
        (lambda: loose(TrainConfig)(block_size=64.5), r"training: block-size is 64\.5; it takes a whole number"),
    ],
)
def test_a_wrong_value_is_told_where_it_is_given(make: Any, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        make()


@dataclasses.dataclass(frozen=True)
class Halved(Defense):
    """Computes with its field as it is made."""

    name: ClassVar[str] = "halved"
    share: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "half", self.share / 2)


@dataclasses.dataclass(frozen=True)
class Quartered(Halved):
    """Inherits the computing."""

    name: ClassVar[str] = "quartered"
    deep: bool = False


def test_fields_are_checked_before_a_plugin_computes_with_them() -> None:
    wrong: Any = "much"
    for kind in (Halved, Quartered):
        assert vars(kind(share=0.5))["half"] == 0.25
        with pytest.raises(SpecError, match=f"{kind.name}: share is 'much'; it takes a number"):
            kind(share=wrong)
    with pytest.raises(SpecError, match="quartered: deep is 'much'; it takes true or false"):
        Quartered(deep=wrong)
