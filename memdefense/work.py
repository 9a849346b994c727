"""What all units of a run have in common, and how a plugin's code is called."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from memdefense.attack import Measure
from memdefense.bench import Bench
from memdefense.corpus import Benchmark, Corpus, Documents, digest_documents
from memdefense.defense import Defense
from memdefense.errors import MemdefenseError, PluginError
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.plugin import Plugin
from memdefense.recipe import code_of, code_of_run
from memdefense.settings import nameplate
from memdefense.store import DamagedError
from memdefense.train import TrainConfig

logger = logging.getLogger(__name__)
Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class Work:
    """What all units of a run have in common.

    Attributes:
        corpus_digest: of ``corpus``, so that it is read once.
        base_digest: of ``base``'s weights.
        config: how the undefended model is trained.
        again: loads the base anew.
        edit_all: whether every training point is edited, not the last alone.
    """

    bench: Bench
    benchmark: Benchmark
    corpus: Corpus
    corpus_digest: str
    base: LM
    base_digest: str
    config: TrainConfig
    again: Callable[[], LM]
    edit_all: bool = False

    @functools.cached_property
    def public_digest(self) -> str:
        """Of the documents anyone may use."""
        return digest_documents(self.corpus.public)

    @functools.cached_property
    def names(self) -> tuple[str, str]:
        """What results call the benchmark and the base model."""
        benchmark = nameplate(self.benchmark.spec, *self.benchmark.fields.values())
        return benchmark, nameplate(self.base.origin) or f"{self.benchmark.name} default"

    def lab(self, who: str, seed: int, originals: Documents | None = None) -> Lab:
        """A defense's lab."""
        return Lab(
            self.bench,
            who=who,
            seed=seed,
            originals=self.corpus.train if originals is None else originals,
            public=tuple(dataclasses.replace(document) for document in self.corpus.public),
            config=self.config,
            base=self.base,
        )

    @contextlib.contextmanager
    def untouched(self, plugin: Defense | Measure, *others: tuple[LM, Callable[[], LM]]) -> Iterator[None]:
        """Watches a plugin's code at work: the base model comes out of it as it went in.

        Args:
            plugin: whose code it is.
            others: further models that it must leave alone, each with what loads it anew.

        Raises:
            PluginError: weights changed; they are put right for those who come after.
        """
        kept = [(lm, again, lm.fingerprint()) for lm, again in [(self.base, self.again), *others]]
        spoiled = False
        try:
            yield
        finally:
            for lm, again, before in kept:
                if lm.fingerprint() != before:
                    lm.restore(again())
                    spoiled = True
        if spoiled:
            raise PluginError(f"'{plugin.spec}' changed the weights of a model it was shown; work on lm.copy()")

    def inputs(self, plugin: Defense | Measure, seed: int) -> dict[str, object]:
        """What every key of a plugin's work holds."""
        return {
            "plugin": plugin.spec,
            "outside": plugin.outside(),
            "code": code_of(plugin) if isinstance(plugin, Defense) else code_of_run(plugin),
            "core": code_of("memdefense.lab"),
            "seed": seed,
            "recall": self.bench.detector_recall,
            "detector": self.bench.detector_identity,
            "base": self.base_digest,
            "public": self.public_digest,
            **self.bench.surroundings(),
        }


def hooked(plugin: Plugin, name: str, call: Callable[[], Made]) -> Made:
    """Runs one hook; what it raises becomes an error that names it."""
    try:
        return call()
    except (MemdefenseError, DamagedError):
        raise
    except Exception as error:
        logger.debug("%s.%s failed", plugin.spec, name, exc_info=True)
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f" ({Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno})" if where else ""
        raise PluginError(f"'{plugin.spec}' failed in {name}(): {type(error).__name__}: {error}{line}") from error


def retried(store_of: Bench, task: Callable[[], Made]) -> Made:
    """Runs a unit again where it met a damaged artifact, which is dropped first."""
    for _ in range(20):
        try:
            return task()
        except DamagedError as damaged:
            logger.warning("the store's copy of %s; it is made again", damaged)
            store_of.store.drop(damaged.key)
    return task()
