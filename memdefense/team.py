"""Several processes on one run: each makes what nobody else is making, and the run then finds all in the store."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any

import click
import torch
from rich.markup import escape

from memdefense.attack import Measure
from memdefense.bench import Progress
from memdefense.defense import Defense, overrides
from memdefense.errors import MemdefenseError, StoreError
from memdefense.lm import best_device
from memdefense.options import logs, run_of
from memdefense.pipeline import defend, measure, pricing
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
    device = given["device"] or best_device()
    environments = _environments(device, given["processes"])
    for threads in filter(None, (environment.get("OMP_NUM_THREADS") for environment in environments)):
        torch.set_num_threads(int(threads))  # what is left to the run is made as the rest was
    team: list[_Member] = []
    try:
        for place, environment in enumerate(environments):
            team.append(_Member({**given, "device": device, "place": place}, environment, progress))
        for member in team:
            member.wait()
    finally:
        for member in team:
            member.end()


class _Member:
    """One process, and a thread that passes on what it says. It ends when we do, however we end."""

    def __init__(self, given: Mapping[str, Any], environment: Mapping[str, str], progress: Progress) -> None:
        self._place, self._progress, self._last = given["place"], progress, ""
        # Not from the folder we are in, as -m would: a file there may have the name of a library.
        found = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **found, **environment},
        )
        self._listener = threading.Thread(target=self._relay, daemon=True)
        self._listener.start()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone, which waiting for it tells
            self._process.stdin.write(json.dumps(given) + "\n")
            self._process.stdin.flush()  # and left open: its end tells the process that ours is gone

    def wait(self) -> None:
        """Until it has ended; says so where it ended early."""
        if self._process.wait():
            logger.warning(
                "process %d ended early (%s); what it was to make is made by the others, or last",
                self._place,
                self._last or "it said nothing",
            )

    def end(self) -> None:
        """Ends it, if it has not ended."""
        self._process.terminate()
        self._process.wait()
        self._listener.join(timeout=5)
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def _relay(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._last = line.strip() or self._last
                self._progress(escape(f"[{self._place}] {self._last}"), 0, 0)


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
        measures: list[Measure] = [*pricing(defense, plan.utilities), *plan.attacks]
        claim = work.bench.store.claim(
            {
                **work.inputs(defense, seed),
                "corpus": work.corpus_digest,
                "config": dataclasses.asdict(work.config),
                "edit_all": work.edit_all,
                "measures": [one.spec for one in measures],
            }
        )
        if claim is None:
            continue
        try:
            retried(work.bench, functools.partial(_make, work, defense, seed, measures))
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
    """What each process is told of the machine; nothing where all are to use one named card."""
    if device == "cuda":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        cards = [card for card in seen.split(",") if card] if seen else list(map(str, range(torch.cuda.device_count())))
        return [{"CUDA_VISIBLE_DEVICES": cards[place % len(cards)]} if cards else {} for place in range(many)]
    if device != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return [{}] * many
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [{"OMP_NUM_THREADS": str(max(1, cores // many))}] * many


def main() -> None:
    """One process of a team: reads its options from standard input, and says what it does on standard output."""
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with, args=(sys.stdin,), daemon=True).start()
    logs(verbose=False)
    benchmark, defenses, attacks, settings = run_of(given)
    last = ""

    def say(what: str, _done: int, _total: int) -> None:
        nonlocal last
        if what != last:
            click.echo(what)
            last = what

    plan = planned(benchmark, defenses, attacks, settings)
    work = prepare(plan.benchmark, settings, say)
    help_out(plan, work, settings.seeds, given["place"], given["processes"])


def _leave_with(lifeline: IO[str]) -> None:
    """Ends this process, whatever it is doing, when the one that started it is gone: the store is fit for that."""
    lifeline.read()
    os._exit(1)


if __name__ == "__main__":
    try:
        main()
    except MemdefenseError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
