"""memdefense: which defense keeps a fine-tuned language model from handing out its private text, and at what cost.

The public API: every name a plugin may use. Names load on first use, so importing the package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memdefense.attack import Attack, Outcome, Utility
    from memdefense.corpus import (
        Benchmark,
        Canary,
        Corpus,
        Document,
        Documents,
        Occurrence,
        Redrawn,
        Secret,
        read_documents,
        write_documents,
    )
    from memdefense.defense import Defense, Point, Stack
    from memdefense.detector import Detector
    from memdefense.errors import (
        DataError,
        MemdefenseError,
        ModelError,
        NotApplicable,
        PluginError,
        SpecError,
        StoreError,
    )
    from memdefense.lab import AttackLab, Lab
    from memdefense.lm import GREEDY, LM, PLAIN, LocalTarget, LogprobTarget, Sampling, Signals, Target, TextTarget
    from memdefense.pii import Pii
    from memdefense.runner import run
    from memdefense.score import Score, Scores
    from memdefense.train import Batch, Loss, TrainConfig

__version__ = "0.1.0"

_HOME = {
    "attack": ("Attack", "Outcome", "Utility"),
    "corpus": (
        "Benchmark",
        "Canary",
        "Corpus",
        "Document",
        "Documents",
        "Occurrence",
        "Redrawn",
        "Secret",
        "read_documents",
        "write_documents",
    ),
    "defense": ("Defense", "Point", "Stack"),
    "detector": ("Detector",),
    "errors": (
        "DataError",
        "MemdefenseError",
        "ModelError",
        "NotApplicable",
        "PluginError",
        "SpecError",
        "StoreError",
    ),
    "lab": ("AttackLab", "Lab"),
    "lm": ("GREEDY", "LM", "PLAIN", "LocalTarget", "LogprobTarget", "Sampling", "Signals", "Target", "TextTarget"),
    "pii": ("Pii",),
    "runner": ("run",),
    "score": ("Score", "Scores"),
    "train": ("Batch", "Loss", "TrainConfig"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "GREEDY",
    "LM",
    "PLAIN",
    "Attack",
    "AttackLab",
    "Batch",
    "Benchmark",
    "Canary",
    "Corpus",
    "DataError",
    "Defense",
    "Detector",
    "Document",
    "Documents",
    "Lab",
    "LocalTarget",
    "LogprobTarget",
    "Loss",
    "MemdefenseError",
    "ModelError",
    "NotApplicable",
    "Occurrence",
    "Outcome",
    "Pii",
    "PluginError",
    "Point",
    "Redrawn",
    "Sampling",
    "Score",
    "Scores",
    "Secret",
    "Signals",
    "SpecError",
    "Stack",
    "StoreError",
    "Target",
    "TextTarget",
    "TrainConfig",
    "Utility",
    "read_documents",
    "run",
    "write_documents",
]


def __getattr__(name: str) -> object:
    """Loads a public name from its module on first use."""
    if name not in _MODULE:
        raise AttributeError(f"module 'memdefense' has no attribute '{name}'")
    value: object = getattr(importlib.import_module(f"memdefense.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*globals(), *__all__])
