"""Random draws that are the same on every machine and in every version of every library.

The stream is splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), seeded by a
SHA-256 of the stream's purpose. It is integer arithmetic alone: no rounding, and no library whose generator may change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1


class Draws:
    """A stream of random draws, one per purpose.

    Args:
        purpose: what the stream is for, such as ``("mailbox", 0, "people")``; other purposes give unrelated streams.
    """

    __slots__ = ("_state",)

    def __init__(self, *purpose: str | int) -> None:
        seed = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
        self._state = int.from_bytes(seed[:8], "little")

    def bits(self) -> int:
        """The next 64 random bits."""
        self._state = mixed = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def below(self, limit: int) -> int:
        """A uniform integer in [0, ``limit``); the bias is at most ``limit`` / 2**64."""
        return (self.bits() * limit) >> 64

    def between(self, low: int, high: int) -> int:
        """A uniform integer in [``low``, ``high``], both ends included."""
        return low + self.below(high - low + 1)

    def coin(self) -> bool:
        """A fair coin."""
        return self.bits() >> 63 == 1

    def percent(self, share: int) -> bool:
        """True in ``share`` of 100 draws."""
        return self.below(100) < share

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, uniformly."""
        return items[self.below(len(items))]

    def shuffled(self, items: Iterable[T]) -> list[T]:
        """The items in uniformly random order (Fisher-Yates)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def sample(self, size: int, count: int) -> list[int]:
        """``count`` distinct integers below ``size``, in increasing order."""
        return sorted(self.shuffled(range(size))[:count])
