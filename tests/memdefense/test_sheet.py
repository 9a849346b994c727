from __future__ import annotations

import math

from memdefense.sheet import _worst


def test_a_cost_is_the_worst_that_is_known_and_never_a_gain() -> None:
    assert _worst({"perplexity": -9.0, "copy": math.nan}, ["perplexity"]) == 0
    assert _worst({"perplexity": -9.0, "copy": 2.0}, ["perplexity"]) == 2
    assert math.isnan(_worst({"perplexity": math.nan, "copy": 2.0}, ["perplexity"]))
