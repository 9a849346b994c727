from __future__ import annotations

import pytest

from memdefense import watch


def test_a_log_has_a_line_for_each_stage_and_each_minute_of_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("memdefense.watch.time.monotonic", lambda: now)
    with watch.watching() as progress:
        for step in range(1, 7):
            progress("rmft, seed 0: training", step, 2000)
            now += 25.0
        progress("rmft, seed 0: point 1.0, prefix", 0, 1)
        now += 600.0
        progress("rmft, seed 0: point 1.0, prefix", 0, 0)
        progress("reading", 0, 0)
    assert capsys.readouterr().err.splitlines() == [
        "rmft, seed 0: training",
        "rmft, seed 0: training: 4 of 2,000",
        "rmft, seed 0: point 1.0, prefix",
        "reading",
    ]
