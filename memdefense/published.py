"""What papers claim of their defenses, to stand beside what was measured here; never mixed with it.

A distribution brings its claims as an entry point of the group ``memdefense.published`` that names one of its packages;
the package holds ``published.jsonl``, one figure per line. Built-in claims and strangers' come in alike.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from memdefense.errors import PluginError

logger = logging.getLogger(__name__)
_FIELDS = frozenset({"defense", "paper", "model", "data", "metric", "baseline", "value", "unit", "source"})
Claim = dict[str, Any]
"""``defense, paper, model, data, metric, baseline, value, unit, source`` (``paper``, ``code`` or ``second-hand``)."""


def published() -> list[Claim]:
    """Every figure, in the order its authors' distribution lists it.

    A package that has no ``published.jsonl``, or one with a line that is no claim, is told and left out: what was
    measured can be shown without it.
    """
    claims: list[Claim] = []
    for entry in sorted(entry_points(group="memdefense.published"), key=lambda entry: entry.name):
        try:
            claims += [claim for folder in _folders(entry.value) for claim in _read(folder / "published.jsonl")]
        except (OSError, ValueError, ImportError, PluginError) as error:
            logger.warning("the published figures of '%s' cannot be read, and are left out: %s", entry.value, error)
    return claims


def _read(path: Path) -> list[Claim]:
    claims = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, claim in enumerate(claims, 1):
        if not isinstance(claim, dict) or not claim.keys() >= _FIELDS:
            raise PluginError(f"{path.name}, entry {number} lacks one of {', '.join(sorted(_FIELDS))}")
    return claims


def claim_lines(claims: Sequence[Claim]) -> list[str]:
    """Claims as text, one line per source."""
    found: dict[tuple[str, ...], list[str]] = {}
    for claim in claims:
        value = f"{claim['value']:+g}" if claim["unit"] == "% change" else f"{claim['value']:g}"
        before = "" if claim["baseline"] is None else f"{claim['baseline']:g} → "
        unit = " %" if claim["unit"].startswith("%") else f" {claim['unit']}".rstrip()
        place = tuple(str(claim[name]) for name in ("defense", "paper", "source", "model", "data"))
        found.setdefault(place, []).append(f"{claim['metric']} {before}{value}{unit}")
    return [
        f"published: {defense} {', '.join(figures)} ({', '.join(part for part in (model, data) if part)}"
        f"{'; ' if model or data else ''}{paper} [{source}])"
        for (defense, paper, source, model, data), figures in found.items()
    ]


def _folders(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise PluginError("there is no such package")
    yield from (Path(place) for place in spec.submodule_search_locations or ())
