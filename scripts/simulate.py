"""Bias and coverage of every estimator on runs with a known truth, printed as JSON.

No effect and a true half; base rates of 2, 10 and 60 % of 300 secrets (and of 3,000 at 2 %); run noise of 0 and 20 %;
3 and 5 seeds, and a single run cut into folds; one operating point and five equal ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import click

from memdefense.simulation import Tried, Truth, tried, tried_membership


@click.command(help=__doc__)
@click.argument("runs", type=click.IntRange(1), default=1000)
def main(runs: int) -> None:
    """Runs the grid, so many data sets per cell."""
    sizes = ((0.02, 100), (0.02, 1000), (0.1, 100), (0.6, 100))
    layouts = ((1, 0.0), *itertools.product((3, 5), (0.0, 0.2)))
    for (base, persons), (seeds, noise), points, effect in itertools.product(sizes, layouts, (1, 5), (0.0, 0.5)):
        truth = Truth(base, noise, seeds, points, persons)
        found = tried(truth, effect, runs, resamples=200)
        _say({**dataclasses.asdict(truth), "effect": effect}, found)
    for leakage, seeds, noise in itertools.product((0.0, 0.2), (3, 5), (0.0, 0.2)):
        cell = {"membership": leakage, "seeds": seeds, "noise": noise}
        _say(cell, tried_membership(leakage, runs, seeds=seeds, noise=noise))


def _say(cell: dict[str, float], found: dict[str, Tried]) -> None:
    numbers = {name: dataclasses.asdict(one).items() for name, one in found.items()}
    rounded = {name: {key: round(x, 3) for key, x in items if not math.isnan(x)} for name, items in numbers.items()}
    print(json.dumps({"cell": cell, "found": rounded}), flush=True)


if __name__ == "__main__":
    main()
