"""Several processes on one run: each makes what nobody else is making, and the run then finds all in the store."""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import click
import torch

from memdefense.attack import Measure
from memdefense.bench import Progress
from memdefense.defense import Defense, overrides
from memdefense.errors import MemdefenseError, StoreError
from memdefense.lm import best_device
from memdefense.options import run_of
from memdefense.pipeline import defend, measure
from memdefense.runner import Plan, planned, prepare
from memdefense.work import Work, retried

logger = logging.getLogger(__name__)

_MODULE = "memdefense.team"
Unit = tuple[Defense, int]


def share_out(given: Mapping[str, Any], progress: Progress) -> None:
    """Has so many processes make the units of a run, and waits for them. What one fails to make is left to the run.

    On a machine with several GPUs each process sees one of them; on a CPU each has its share of the cores.

    Args:
        given: the options of ``memdefense run``.
        progress: told what each process does, as it says it.
    """
    environments = _environments(given["device"], given["processes"])
    for threads in filter(None, (environment.get("OMP_NUM_THREADS") for environment in environments)):
        torch.set_num_threads(int(threads))  # what is left to the run is made as the rest was
    team = [_started(given, place, environment) for place, environment in enumerate(environments)]
    listeners = [
        threading.Thread(target=_relay, args=(place, member, progress), daemon=True)
        for place, member in enumerate(team)
    ]
    try:
        for listener in listeners:
            listener.start()
        for place, member in enumerate(team):
            if member.wait():
                logger.warning("process %d ended early; what it was to make is made by the others, or last", place)
    finally:
        for member in team:
            member.terminate()
        for listener in listeners:
            listener.join()


def units(plan: Plan, seeds: Sequence[int], place: int, many: int) -> list[Unit]:
    """The units in the order in which one of many processes tries them.

    Each begins at another one. What starts from the undefended model comes last, since it would wait for that.
    """
    arms = [defense for specs in plan.arms.values() for defense in specs]
    first = [(defense, seed) for seed in seeds for defense in arms if not _waits(defense)]
    last = [(defense, seed) for seed in seeds for defense in arms if _waits(defense)]
    return [*_from(first, place, many), *_from(last, place, many)]


def help_out(plan: Plan, work: Work, seeds: Sequence[int], place: int = 0, many: int = 1) -> None:
    """Makes every unit that nobody is making: one defense on one seed, with all that is measured of it.

    What fails for its own reasons is left: the run meets it again, and gives it a row.

    Raises:
        StoreError: the store cannot be written.
    """
    for defense, seed in units(plan, seeds, place, many):
        claim = work.bench.store.claim({"unit": defense.spec, "seed": seed, "corpus": work.corpus_digest})
        if claim is None:
            continue
        try:
            retried(work.bench, functools.partial(_make, work, defense, seed, [*plan.utilities, *plan.attacks]))
        except StoreError:
            raise
        except MemdefenseError as error:
            logger.debug("%s, seed %d: %s", defense.spec, seed, error)
        finally:
            claim.leave()


def _make(work: Work, defense: Defense, seed: int, measures: Sequence[Measure]) -> None:
    defended = defend(work, defense, seed)
    for point in defended.points:
        model = functools.cache(functools.partial(point.load, work.bench.device))
        for one in measures:
            if work.bench.progress:
                work.bench.progress(f"{defense.spec}, seed {seed}: point {point.label}, {one.spec}", 0, 0)
            try:
                measure(defended, point, one, model)
            except StoreError:
                raise
            except MemdefenseError as error:  # an attack that cannot be played leaves the others to be
                logger.debug("%s, seed %d, %s: %s", defense.spec, seed, one.spec, error)


def _waits(defense: Defense) -> bool:
    """Whether it has no training of its own, so that it starts from the undefended model."""
    own = any(overrides(defense, hook) for hook in ("configure", "curate", "train"))
    return not own and any(overrides(defense, hook) for hook in ("edit", "guard"))


def _from(all_of_them: list[Unit], place: int, many: int) -> list[Unit]:
    start = place * len(all_of_them) // many
    return all_of_them[start:] + all_of_them[:start]


def _environments(device: str, many: int) -> list[dict[str, str]]:
    """What each process is told of the machine."""
    if (device or best_device()) == "cuda":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        cards = seen.split(",") if seen else [str(number) for number in range(torch.cuda.device_count())]
        return [{"CUDA_VISIBLE_DEVICES": cards[place % len(cards)]} for place in range(many)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // many))}] * many


def _started(given: Mapping[str, Any], place: int, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    member = subprocess.Popen(
        [sys.executable, "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    assert member.stdin is not None
    with member.stdin as told:
        json.dump({**given, "place": place}, told)
    return member


def _relay(place: int, member: subprocess.Popen[str], progress: Progress) -> None:
    assert member.stdout is not None
    with member.stdout as lines:
        for line in lines:
            progress(f"[{place}] {line.rstrip()}", 0, 0)


def main() -> None:
    """One process of a team: reads its options from standard input, and says what it does on standard output."""
    given = json.load(sys.stdin)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    benchmark, defenses, attacks, settings = run_of(given)
    last = ""

    def say(what: str, _done: int, _total: int) -> None:
        nonlocal last
        if what != last:
            click.echo(what)  # a run that is gone has closed the pipe, which ends this process too
            last = what

    plan = planned(benchmark, defenses, attacks, settings)
    work = prepare(plan.benchmark, settings, say)
    help_out(plan, work, settings.seeds, given["place"], given["processes"])


if __name__ == "__main__":
    try:
        main()
    except MemdefenseError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
