from __future__ import annotations

import math

from memdefense import registry
from memdefense.published import claim_lines, published


def test_rows_are_complete_and_of_defenses_that_exist() -> None:
    fields = ["defense", "paper", "model", "data", "metric", "baseline", "value", "unit", "source"]
    known = registry.names("defenses")
    rows = published()
    assert rows
    for row in rows:
        assert list(row) == fields
        assert row["defense"] in known
        assert row["source"] in ("paper", "code", "second-hand")
        assert math.isfinite(row["value"])
        assert row["paper"]
        assert row["metric"]


def test_figures_of_one_source_stand_on_one_line() -> None:
    claim = {"defense": "a", "paper": "P", "model": "M", "data": "", "baseline": None, "source": "paper"}
    lines = claim_lines(
        [
            {**claim, "metric": "TER", "value": -80.5, "unit": "% change"},
            {**claim, "metric": "rate", "baseline": 0.5, "value": 0.1, "unit": "%"},
            {**claim, "metric": "loss", "value": 3.0, "unit": "", "source": "code"},
        ]
    )
    assert lines == [
        "published: a TER -80.5 %, rate 0.5 → 0.1 % (M; P [paper])",
        "published: a loss 3 (M; P [code])",
    ]
