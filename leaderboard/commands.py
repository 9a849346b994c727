"""``memdefense leaderboard``: the table of one or several results folders."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option("--points", is_flag=True, help="Also list every operating point.")
@click.option("--markdown", is_flag=True, help="Print Markdown instead.")
def leaderboard(results: tuple[Path, ...], points: bool, markdown: bool) -> None:
    """Print the MaxTER table of RESULTS folders; without any, the results that come with memdefense."""
    from memdefense.results import read_rows

    from .table import print_tables, shipped

    rows = [row for folder in results or shipped() for row in read_rows(folder)]
    print_tables(rows, points=points, markdown=markdown)
