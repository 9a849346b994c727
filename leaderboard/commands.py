"""``memdefense leaderboard`` prints the table of results folders, ``memdefense pool`` makes one of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from memdefense.results import Row

    from .figure import Format


@click.command()
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option("--points", is_flag=True, help="Also list every operating point.")
@click.option("--markdown", is_flag=True, help="Print Markdown instead.")
@click.option("--figures", type=click.Path(path_type=Path), help="Also draw every table into this folder.")
@click.option(
    "--format", "kind", type=click.Choice(["svg", "pdf", "png"]), default="svg", show_default=True, help="Of figures."
)
def leaderboard(results: tuple[Path, ...], points: bool, markdown: bool, figures: Path | None, kind: Format) -> None:
    """Print the MaxTER table of RESULTS folders; without any, the results that come with memdefense."""
    from memdefense.results import read_rows

    from .table import print_tables, shipped

    if results:
        rows = [row for folder in results for row in read_rows(folder)]
        print_tables(rows, points=points, markdown=markdown)
        if figures:
            _draw(rows, figures, kind)
        return
    # Runs that come with memdefense were not made as one, and stand apart.
    files = {path.stem: list(read_rows(path)) for path in shipped()}
    told = {name: rows for name, rows in files.items() if any(row["row"] == "entry" for row in rows)}
    for name, rows in told.items():
        click.echo(f"## {name}\n" if markdown else f"=== {name}\n")
        print_tables(rows, points=points, markdown=markdown, legend=name == list(told)[-1])
        if figures:
            _draw(rows, figures / name, kind)


def _draw(rows: list[Row], folder: Path, kind: Format) -> None:
    from .figure import draw

    for path in draw(rows, folder, kind):
        click.echo(f"figure: {path}")


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The new results folder.")
def pool(results: tuple[Path, ...], output: Path) -> None:
    """Put the runs of RESULTS folders together and score them anew from their outcomes: no model is run.

    Of one benchmark, model and training; seeds, defenses and attacks may differ. One folder alone is scored anew.
    """
    from memdefense.pool import pool as put_together
    from memdefense.results import read_rows

    from .table import print_tables

    put_together(results, output)
    print_tables(list(read_rows(output)))
    click.echo(f"results: {output}")
