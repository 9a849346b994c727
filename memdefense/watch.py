"""Shows how far a long run is: a bar on a terminal, and in a log a line for each stage and each minute of one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from memdefense.bench import Progress

_EVERY = 60.0  # seconds between lines of one stage


@contextlib.contextmanager
def watching() -> Iterator[Progress]:
    """A callback for `run`, drawn on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        last, told = "", 0.0

        def say(what: str, done: int, total: int) -> None:
            nonlocal last, told
            now = time.monotonic()
            if what == last and (not total or now - told < _EVERY):
                return
            counted = f": {done:,} of {total:,}" if what == last else ""
            console.print(f"{what}{counted}", highlight=False, soft_wrap=True)
            last, told = what, now

        yield say
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        shown = ""

        def draw(what: str, done: int, total: int) -> None:
            nonlocal shown
            if what != shown:
                bar.reset(task, description=what, total=total or None, completed=done)
                shown = what
            else:
                bar.update(task, total=total or None, completed=done)

        yield draw
