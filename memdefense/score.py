"""Scores: pure functions of outcomes, each with its interval and the number it rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """A number that does not stand alone.

    Attributes:
        value: the estimate; NaN where nothing could be measured.
        low: lower limit of the 95 % interval.
        high: upper limit.
        n: how many units it rests on.
        higher_is_better: for the defender; None where neither is.
        events: how many of the units counted (hits), where the score is a rate.
    """

    value: float
    low: float
    high: float
    n: int
    higher_is_better: bool | None = None
    events: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Scores:
    """What an attack or a utility found: one headline (``leakage`` for attacks), and everything beside it."""

    headline: Score
    beside: Mapping[str, Score]
