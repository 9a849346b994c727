"""How a run is run: the options that the command line and `memdefense.run` share."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from memdefense.detector import Detector


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run is run; ``batch_size``, ``micro_batch`` and ``output`` change no number.

    Dropout is the exception: its masks are drawn for each training pass, so that they depend on ``micro_batch``.

    Attributes:
        model: hub id or folder; "" for the benchmark's own.
        revision: of a hub model.
        seeds: one run of every defense each.
        training: fields of `TrainConfig` that override the benchmark's.
        store: where artifacts are kept; "" is ``$MEMDEFENSE_STORE`` or ``~/.cache/memdefense``.
        output: where results are written; "" writes none.
        device: ``cpu`` or ``cuda``; "" is the best there is.
        batch_size: sequences per evaluation pass; 0 chooses.
        micro_batch: rows per training pass; 0 is the whole batch.
        general_text: a text file for the general perplexity.
        detector: what the defender finds personal data with, or its spec.
        detector_recall: drops values from the defender's detector by a seeded hash.
        edit_all: edits every training point, not the last alone.
        limit: so many secrets and held-out documents, sampled; 0 takes all.
        log_samples: writes prompts and generations beside the results; they hold private text.
        baselines: trivial defenses that come along in every run.
    """

    model: str = ""
    revision: str = ""
    seeds: Sequence[int] = (0,)
    training: Mapping[str, object] = dataclasses.field(default_factory=dict)
    store: str = ""
    output: str = ""
    device: str = ""
    batch_size: int = 0
    micro_batch: int = 0
    general_text: str = ""
    detector: str | Detector = "patterns"
    detector_recall: float = 1.0
    edit_all: bool = False
    limit: int = 0
    log_samples: bool = False
    baselines: str = "never-trained,refuse"

    def told(self) -> dict[str, object]:
        """What a results folder says of them: all but the folders of this machine, and the detector (see `Bench`)."""
        left = ("store", "output", "detector")
        own = {name: value for name, value in dataclasses.asdict(self).items() if name not in left}
        return {**own, "model": nameplate(self.model), "general_text": nameplate(self.general_text)}


def nameplate(name: str, *fields: object) -> str:
    """A name without the folders of this machine: what is published says which file or model, not where it lay.

    Args:
        name: a folder, a hub id, or a spec.
        fields: values that may stand in it and be paths; none given, the name itself may be one.
    """
    for value in fields or (name,):
        if isinstance(value, str) and value:
            path = Path(os.path.expanduser(value))  # noqa: PTH111  (Path's own raises for a user who is none)
            if path.exists():
                name = name.replace(value, (path if path.name.strip(".") else path.resolve()).name)
    return name
