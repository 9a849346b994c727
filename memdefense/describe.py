"""What is installed, what a plugin is, and what the store holds: the text behind ``list``, ``show`` and ``cache``."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import textwrap
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from memdefense import registry
from memdefense.errors import MemdefenseError, SpecError, hint
from memdefense.plugin import Plugin, spell
from memdefense.published import claim_lines, published
from memdefense.store import Store

_TITLES = {
    "defenses": "defense",
    "attacks": "attack",
    "utilities": "utility",
    "benchmarks": "benchmark",
    "detectors": "detector",
}
_READABLE = 100  # columns that running text fills at most
_WIDEST = {"passes": 14, "needs": 11}


def print_lists(groups: Sequence[str]) -> None:
    """Prints the plugins of some groups, or of all; a broken one is a line that says so.

    Raises:
        SpecError: an unknown group.
    """
    console = Console()
    wanted = []
    for group in groups or tuple(registry.GROUPS):
        match = next((known for known in registry.GROUPS if group.lower() in (known, _TITLES[known])), None)
        if match is None:
            raise SpecError(f"there is no list of '{group}'{hint(group, registry.GROUPS)}")
        wanted.append(match)
    for group in wanted:
        table = Table(title=group, title_justify="left", box=None, pad_edge=False)
        extras = {"defenses": ("family",), "attacks": ("access", "passes", "needs")}
        extra = extras.get(group, ())
        entries = registry.names(group)
        owners = {name: entry.dist.name if entry.dist else "?" for name, entry in entries.items()}
        ours = set(owners.values()) <= {"memdefense"}  # a column that says one thing only takes room from the others
        for column in ("name", *extra, "summary", *(() if ours else ("from",))):
            kept = column in ("name", "access", "family")
            table.add_column(column, overflow="fold", no_wrap=kept, max_width=_WIDEST.get(column))
        for name, owner in owners.items():
            try:
                kind = registry.load(group, name)
            except MemdefenseError as error:
                cells = [*("-" for _ in extra), f"[red]{error}[/red]"]
            else:
                cells = [*(_told(kind, attribute) for attribute in extra), kind.summary]
            table.add_row(name, *cells, *(() if ours else (owner,)))
        console.print(table)
        console.print()


def _flowed(text: str, width: int) -> str:
    """A docstring whose paragraphs, list items and described fields fill the width, whatever it was written for."""
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        pieces: list[tuple[int, str]] = []  # how far each is indented, and its words
        for line in block.splitlines():
            words, indent = line.strip(), len(line) - len(line.lstrip())
            opens = not pieces or words.startswith("- ") or re.fullmatch(r"\w+:", pieces[-1][1]) is not None
            # What is described stands indented below a heading, one after another; its further lines deeper still.
            if opens or indent < pieces[-1][0] or (indent and indent == pieces[-1][0]):
                pieces.append((indent, words))
            else:
                pieces[-1] = (pieces[-1][0], f"{pieces[-1][1]} {words}")
        for indent, words in pieces:
            deeper = " " * (indent + (2 if words.startswith("- ") else 4 if indent else 0))
            lines = textwrap.wrap(
                words, width, initial_indent=" " * indent, subsequent_indent=deeper, break_on_hyphens=False
            )
            blocks += lines
        blocks.append("")
    return "\n".join(blocks[:-1])


def print_plugin(name: str) -> None:
    """Prints one plugin's idea, source, hooks, fields with defaults, and what it does not protect against.

    Args:
        name: of a plugin, or a spec, whose fields are left out.

    Raises:
        SpecError: no group knows the name.
    """
    console = Console()
    plain = name.partition(":")[0]
    kinds = [(group, plain) for group in registry.GROUPS if plain.lower().replace("_", "-") in registry.names(group)]
    if not kinds and ":" in name:
        kinds = [(group, name) for group in registry.GROUPS if _is_of(group, name)]
    if not kinds:
        known = [known for group in registry.GROUPS for known in registry.names(group)]
        raise SpecError(f"no plugin is called '{name}'{hint(plain, known)}")
    for group, found in kinds:
        kind = registry.load(group, found)
        console.print(f"[bold]{kind.name}[/bold] ({_TITLES[group]})  {kind.summary}\n", highlight=False)
        console.print(
            _flowed(inspect.cleandoc(kind.__doc__ or ""), min(console.width, _READABLE)), markup=False, highlight=False
        )
        if kind.paper:
            console.print(f"\nsource: {kind.paper}", markup=False, highlight=False)
        hooks = _hooks(kind, group)
        if hooks:
            console.print(f"hooks: {', '.join(hooks)}", highlight=False)
        if dataclasses.is_dataclass(kind):
            table = Table(box=None, pad_edge=False)
            for column in ("field", "type", "default"):
                table.add_column(column)
            for field in dataclasses.fields(kind):
                default = "" if field.default is dataclasses.MISSING else spell(field.default) or "(empty)"
                table.add_row(field.name.replace("_", "-"), str(field.type), default)
            if table.row_count:
                console.print()
                console.print(table)
        adaptive = getattr(kind, "adaptive_to", ())
        if adaptive:
            console.print(f"\nthe attack of one who knows the defense, for: {', '.join(adaptive)}", highlight=False)
        weakness = getattr(kind, "protects_not", "")
        if weakness:
            console.print(f"\ndoes not protect against: {weakness}", markup=False, highlight=False)
        for line in claim_lines([claim for claim in published() if claim["defense"] == kind.name]):
            console.print(line, markup=False, highlight=False)


_UNNAMED = {"fit": "a training", "signals": "of texts"}  # work that arms share


def print_explanation(folder: Path, key: str | None) -> None:
    """Prints what the last run reused and made, and which part of a key was new; or what one key was made from.

    Raises:
        SpecError: nothing of that key, or no run yet.
    """
    console = Console()
    store = Store(folder)
    manifests = list(store.manifests())
    if key:
        found = [m for m in manifests if str(m["key"]).startswith(key)]
        if not found:
            raise SpecError(f"the store {folder} holds nothing of key {key}; see memdefense cache explain")
        for manifest in found:
            console.print_json(
                json.dumps({name: manifest[name] for name in ("kind", "key", "parts", "facts", "bytes")})
            )
        return
    try:
        events = json.loads((folder / "last-run.json").read_text())
    except (OSError, ValueError):
        raise SpecError(f"no run has used the store {folder} yet") from None
    table = Table(box=None, pad_edge=False)
    for column in ("", "kind", "what", "key", "why"):
        table.add_column(column, overflow="fold")
    made = {str(manifest["key"]): float(str(manifest["made"])) for manifest in manifests}
    once = {(event["what"], event["key"]): event for event in events}
    first = {event["key"]: event["what"] for event in reversed(events)}
    for event in once.values():
        parts = event["parts"]
        if event["what"] != "reused":
            earlier = [m for m in manifests if made[str(m["key"])] < made.get(event["key"], math.inf)]
            # What was there and had to be made all the same could not be read.
            why = "what the store held was damaged" if first[event["key"]] == "reused" else _why(event, earlier)
        elif event["key"] in made:  # shortly before, where another process of the run made it
            why = time.strftime("unchanged, made %Y-%m-%d %H:%M", time.localtime(made[event["key"]]))
        else:
            why = "unchanged, and removed since"
        what = str(
            parts.get("plugin") or parts.get("purpose") or parts.get("benchmark") or _UNNAMED.get(event["kind"], "")
        )
        seed = f", seed {parts['seed']}" if "seed" in parts else ""
        table.add_row(event["what"], event["kind"], what + seed, event["key"][:12], why)
    console.print(table)
    counts = Counter(str(event["what"]) for event in once.values())
    console.print(", ".join(f"{number} {what}" for what, number in sorted(counts.items())), highlight=False)


def prune_store(folder: Path, days: float, kind: str, really: bool) -> None:
    """Removes artifacts older than so many days, and what unfinished work left behind."""
    console = Console()
    store = Store(folder)
    horizon = time.time() - days * 86400
    manifests = list(store.manifests())
    kinds = sorted({str(manifest["kind"]) for manifest in manifests})
    if kind and kind not in kinds:
        raise SpecError(
            f"{folder} holds nothing of kind '{kind}'{hint(kind, kinds)}; it holds {', '.join(kinds) or 'nothing'}"
        )
    old = [m for m in manifests if float(str(m["made"])) <= horizon and kind in ("", m["kind"])]
    size = sum(int(str(manifest["bytes"])) for manifest in old)
    if really:
        for manifest in old:
            store.drop(str(manifest["key"]))
        if not kind:
            size += store.clear_work()
    verb = "removed" if really else "would remove"
    console.print(f"{verb} {len(old)} artifacts, {size / 1e6:.1f} MB, from {folder}", highlight=False)
    if not really:
        console.print("nothing was touched; add --yes to remove them")


def _why(event: Mapping[str, object], manifests: Sequence[Mapping[str, object]]) -> str:
    """Which parts differ from the nearest artifact of the same kind and plugin, among those there were before."""
    parts = event["parts"]
    if not isinstance(parts, dict):
        return ""
    nearest: tuple[int, list[str]] | None = None
    for manifest in manifests:
        other = manifest["parts"]
        if manifest["kind"] != event["kind"] or manifest["key"] == event["key"] or not isinstance(other, dict):
            continue
        if other.get("plugin") != parts.get("plugin") or other.get("purpose") != parts.get("purpose"):
            continue
        differing = sorted(name for name in parts.keys() | other.keys() if parts.get(name) != other.get(name))
        if nearest is None or len(differing) < nearest[0]:
            nearest = (len(differing), differing)
    return f"another {', '.join(nearest[1])}" if nearest else "the first of its kind"


def _told(kind: type[Plugin], attribute: str) -> str:
    """A class attribute, or what an instance with all defaults says where it is a property."""
    found = getattr(kind, attribute, "")
    if not isinstance(found, property):
        return ", ".join(found) if isinstance(found, tuple) else str(found)
    try:
        return str(getattr(kind(), attribute))
    except TypeError:  # it cannot be built without fields
        return "?"


def _is_of(group: str, name: str) -> bool:
    try:
        registry.load(group, name)
    except MemdefenseError:
        return False
    return True


def _hooks(kind: type[Plugin], group: str) -> list[str]:
    base = registry.GROUPS[group]
    names = ("configure", "curate", "train", "edit", "guard") if group == "defenses" else ()
    return [name for name in names if getattr(kind, name) is not getattr(base, name)]
