"""What a defender finds personal data with; the class itself reads by patterns, and others add what patterns miss."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from memdefense import pii
from memdefense.pii import Pii
from memdefense.plugin import Plugin


@dataclasses.dataclass(frozen=True)
class Detector(Plugin):
    """The suite's own patterns (`memdefense.pii.find`), and the base class of every detector.

    It finds e-mail addresses, phone, account and card numbers, US social security numbers, IP addresses and URLs, and
    no names. A detector of one's own is a frozen dataclass that overrides `find`, and may add to what this one finds
    with `joined`. It is the defender's: what attacks are scored on is not made by it.
    """

    name: ClassVar[str] = "patterns"
    summary: ClassVar[str] = "The suite's own patterns: addresses and numbers, no names."

    def find(self, text: str) -> list[Pii]:
        """Every mention, in the order of the text and none over another; the same for the same text.

        Kinds are of `memdefense.pii.KINDS` or `memdefense.pii.NAMES`, canonical forms those of
        `memdefense.pii.canonical`.
        """
        return pii.find(text)


def joined(first: Iterable[Pii], more: Iterable[Pii]) -> list[Pii]:
    """What one detector finds, and of what another does all that lies over none of it, in the order of the text.

    Of ``more`` that overlap each other the one that begins first counts, and of those the longest.
    """
    kept = sorted(first, key=_start)
    for hit in sorted(more, key=lambda hit: (hit.start, -hit.end)):
        place = bisect.bisect(kept, hit.start, key=_start)
        before, after = kept[max(0, place - 1) : place], kept[place : place + 1]
        if all(other.end <= hit.start for other in before) and all(hit.end <= other.start for other in after):
            kept.insert(place, hit)
    return kept


def _start(hit: Pii) -> int:
    return hit.start


__all__ = ["Detector", "joined"]
