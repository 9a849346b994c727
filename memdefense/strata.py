"""What must be alike for secrets to be compared."""

from __future__ import annotations

from memdefense.errors import DataError


def bucket(count: int) -> str:
    """The stratum of a number of occurrences: ``1``, ``2-4``, ``5-16`` or ``>16``.

    Raises:
        DataError: fewer than one occurrence.
    """
    if count < 1:
        raise DataError(f"a value with {count} occurrences belongs to no stratum: count them in the original text")
    return next((name for most, name in ((1, "1"), (4, "2-4"), (16, "5-16")) if count <= most), ">16")
