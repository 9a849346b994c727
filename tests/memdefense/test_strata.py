from __future__ import annotations

import pytest

from memdefense.errors import DataError
from memdefense.strata import bucket


def test_buckets() -> None:
    assert [bucket(k) for k in (1, 2, 4, 5, 16, 17, 64)] == ["1", "2-4", "2-4", "5-16", "5-16", ">16", ">16"]
    with pytest.raises(DataError, match="0 occurrences"):
        bucket(0)
