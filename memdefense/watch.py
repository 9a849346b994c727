"""Shows how far a long run is: a bar for what takes over a second, silence where nobody watches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from memdefense.bench import Progress


@contextlib.contextmanager
def watching() -> Iterator[Progress]:
    """A callback for `run`, drawn on standard error; on a pipe, one line per stage."""
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
        last = ""

        def say(what: str, done: int, total: int) -> None:
            nonlocal last
            if what != last:
                console.print(what, highlight=False, soft_wrap=True)
                last = what

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
