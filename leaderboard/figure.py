"""A MaxTER table as a figure: operating points with their front, and what each arm gains over early stopping."""

from __future__ import annotations

import importlib.util
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memdefense.errors import DataError, ModelError
from memdefense.results import Row, detector_of

from .cells import rank
from .groups import tables_of
from .notes import BUDGET, front_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = tuple[str, str]
"""Colour and marker."""
Format = Literal["svg", "pdf", "png"]
# Colours that are told apart by everybody (Okabe and Ito 2008), and in grey by their markers.
_LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#8C6D1F", "X"),
)
# Whose look it is wherever they have one of their own, so that figures of two folders can be laid side by side.
_OWNERS = ("rmft", "dedup", "sani", "pme", "dp-sgd", "unlearn", "scrub")
_OTHERS = ("#9A9A9A", ".")
_UNDEFENDED = ("#000000", "x")
_FARTHEST = 110.0  # percent; intervals of two runs may be endless
_STYLE: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "legend.fontsize": 7.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",  # the same in every viewer, whatever fonts it has
    "svg.hashsalt": "memdefense",
    "pdf.fonttype": 42,
}


def draw(rows: Sequence[Row], folder: Path, kind: Format = "svg") -> list[Path]:
    """Draws one figure per table into a folder, over what is there of the same name; same rows, same bytes.

    On the left every operating point by its utility cost and by what it takes away of the undefended leakage, means
    over seeds, and the front that no point beats; arms with the largest areas have a colour of their own. On the right
    the gain in AURC over early stopping with its 95 % interval. Tables in which nothing is resolvable have no figure.

    Args:
        rows: point and entry rows.
        folder: made where it is not there.
        kind: of file.

    Returns:
        The files.

    Raises:
        DataError: there is no entry, nothing to draw, or the folder cannot be written.
        ModelError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ModelError('figures need an extra: pip install "memdefense[plot]"')
    import matplotlib as mpl

    tables = [(title, group) for title, group in tables_of(rows) if any(map(_drawable, group))]
    if not tables:
        raise DataError("no table of these results has a resolvable entry, so that there is nothing to draw")
    looks = looks_of([group for _, group in tables])
    written: list[Path] = []
    with mpl.rc_context(_STYLE):
        for title, group in tables:
            path = folder / f"{_name(group[0], [done.stem for done in written])}.{kind}"
            stamps = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
            try:
                folder.mkdir(parents=True, exist_ok=True)
                figure_of(title, group, looks).savefig(path, metadata=stamps, dpi=200)
            except OSError as error:
                raise DataError(f"cannot write {path}: {error.strerror}; choose another folder") from error
            written.append(path)
    return written


def looks_of(groups: Sequence[Sequence[Row]]) -> dict[str, Look]:
    """A colour and a marker for each arm, the same in all tables.

    Those that take anything away and stand highest in some table have their own, all others share one.
    """
    best: dict[str, int] = {}
    for group in groups:
        arms = [entry for entry in sorted(filter(_drawable, group), key=rank) if entry["defense_label"] != "none"]
        for place, entry in enumerate(arms):
            if entry["aurc"]["value"] > 0:
                label = entry["defense_label"]
                best[label] = min(best.get(label, place), place)
    chosen = sorted(best, key=lambda label: best[label])[: len(_LOOKS)]
    own = {label: look for label, look in zip(_OWNERS, _LOOKS, strict=True) if label in chosen}
    free = [look for look in _LOOKS if look not in own.values()]
    own |= dict(zip((label for label in chosen if label not in own), free, strict=False))
    labels = {entry["defense_label"] for group in groups for entry in group}
    return {**{label: own.get(label, _OTHERS) for label in labels}, "none": _UNDEFENDED}


def figure_of(title: str, group: Sequence[Row], looks: Mapping[str, Look]) -> Figure:
    """One table's figure.

    Args:
        title: of the table.
        group: its entries.
        looks: of all arms, from `looks_of`.
    """
    from matplotlib.figure import Figure

    shown = sorted(filter(_drawable, group), key=rank)
    figure = Figure(figsize=(7.2, max(3.0, 1.4 + 0.17 * len(shown))), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, 120)), fontsize=8.0, x=0.01, ha="left")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    _points(left, shown, looks)
    _gains(right, shown, looks)
    handles, labels = left.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda at: (labels[at] in ("front", "others"), -at))
    ordered = [handles[at] for at in order], [labels[at] for at in order]
    figure.legend(*ordered, frameon=False, loc="outside lower left", ncols=6)  # inside it would lie on points
    return figure


def _points(axes: Axes, shown: Sequence[Row], looks: Mapping[str, Look]) -> None:
    front = front_of(shown)
    if front:
        x, y = [0.0, *(max(delta, 0.0) for delta, _, _ in front), BUDGET], [0.0, *(taken for _, taken, _ in front)]
        axes.plot(x, [*y, y[-1]], drawstyle="steps-post", color="#D0D0D0", linewidth=4.0, zorder=0, label="front")
    for entry in reversed(shown):  # the best arm on top
        colour, marker = looks[entry["defense_label"]]
        points = (entry.get("plain") or {}).get("points") or {}
        known = [p for p in points.values() if p["delta"] is not None and p["reduction"] is not None]
        grey = (colour, marker) == _OTHERS
        axes.plot(
            [max(p["delta"], 0.0) for p in known],
            [p["reduction"] for p in known],
            color=colour,
            marker=marker,
            markersize=4.0,
            linewidth=0.0 if grey else 0.9,
            linestyle="--" if (colour, marker) == _UNDEFENDED else "-",
            label="_" if grey else _called(entry),
        )
    if any(looks[entry["defense_label"]] == _OTHERS for entry in shown):
        axes.plot([], [], color=_OTHERS[0], marker=_OTHERS[1], linewidth=0.0, label="others")
    axes.set(xlim=(-0.4, BUDGET), ylim=(-5, 105), xlabel="utility cost d (%)", ylabel="leakage taken away (%)")
    axes.set_title("operating points", loc="left")


def _gains(axes: Axes, shown: Sequence[Row], looks: Mapping[str, Look]) -> None:
    arms = [entry for entry in shown if entry["defense_label"] != "none"]
    limits = [limits_of(entry["gain"]) for entry in arms]
    axes.axvline(0.0, color="#000000", linewidth=0.8, linestyle="--")
    for row, (entry, (low, high)) in enumerate(zip(arms, limits, strict=True)):
        colour, marker = looks[entry["defense_label"]]
        axes.plot([low, high], [row, row], color=colour, linewidth=1.2, solid_capstyle="butt")
        for end, arrow in ((low, "<"), (high, ">")):
            if abs(end) >= _FARTHEST:  # it goes on
                axes.plot([end], [row], color=colour, marker=arrow, markersize=4.0, linewidth=0.0)
        axes.plot([entry["gain"]["value"]], [row], color=colour, marker=marker, markersize=5.0, linewidth=0.0)
    axes.set_yticks(range(len(arms)), [entry["defense_label"] for entry in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    low, high = min([0.0, *(pair[0] for pair in limits)]), max([0.0, *(pair[1] for pair in limits)])
    axes.set_xlim(low - 3.0, high + 3.0)
    axes.set_xlabel("gain in AURC over early stopping (points)")
    axes.set_title("95 % intervals", loc="left")


def _drawable(entry: Row) -> bool:
    return bool(entry.get("resolvable")) and (entry.get("gain") or {}).get("value") is not None


def limits_of(gain: Mapping[str, float | None]) -> tuple[float, float]:
    """An interval as it is drawn: up to 110 points, at which an arrow says that it goes on; of no known end, too."""
    low, high = gain.get("low"), gain.get("high")
    return max(-_FARTHEST if low is None else low, -_FARTHEST), min(_FARTHEST if high is None else high, _FARTHEST)


def _called(entry: Row) -> str:
    return "none (early stopping)" if entry["defense_label"] == "none" else str(entry["defense_label"])


def _name(entry: Row, taken: Sequence[str]) -> str:
    """A file name of benchmark, detector and attack that is not taken yet."""
    attack = f"worst-{entry['attack_family']}" if entry.get("attacks") else entry["attack_spec"]
    detector, recall = detector_of(entry)
    parts = [
        entry["benchmark"].partition(":")[0],
        detector if detector != "patterns" else "",
        f"recall-{recall:g}" if recall < 1 else "",
        attack,
    ]
    name = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, parts))).strip("-")
    number = 1 + sum(re.fullmatch(re.escape(name) + r"(-\d+)?", other) is not None for other in taken)
    return name if number == 1 else f"{name}-{number}"
