"""Plugins by name: built-ins and strangers' alike come in through entry points.

Listing imports nothing, and a broken plugin breaks only itself. The grammar of specs::

    rmft                                   a name
    rmft:keep=none,kinds=email|phone       fields, parsed by the field's type; ``|`` separates a tuple's items
    dedup+rmft                             a stack, in order
    none,rmft:keep=none,dedup              a list; a piece with ``=`` and no ``name:`` belongs to the spec before it
    package.module:Class                   a class that was never registered; ``:field=value`` may follow
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, TypeVar, Union, get_args, get_origin

from memdefense.attack import Attack, Utility
from memdefense.corpus import Benchmark
from memdefense.defense import Defense, Stack
from memdefense.detector import Detector
from memdefense.errors import MemdefenseError, PluginError, SpecError, hint
from memdefense.plugin import Plugin

PluginT = TypeVar("PluginT", bound=Plugin)
logger = logging.getLogger(__name__)
Found = TypeVar("Found")

GROUPS: Mapping[str, type[Plugin]] = {
    "defenses": Defense,
    "attacks": Attack,
    "utilities": Utility,
    "benchmarks": Benchmark,
    "detectors": Detector,
}
_PATH = re.compile(r"^[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*$")
_PATH_HEAD = re.compile(r"^([A-Za-z_]\w*(?:\.\w+)*:[A-Za-z_]\w*)(?::(.*))?$", re.DOTALL)


def names(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by plugin name, nothing imported; of a name with two owners, the first."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"memdefense.{group}"):
        found.setdefault(entry.name, entry)
    return dict(sorted(found.items()))


def _sole(group: str, entry: EntryPoint) -> EntryPoint:
    for other in entry_points(group=f"memdefense.{group}", name=entry.name):
        if other.value != entry.value:
            raise PluginError(
                f"two plugins are called '{entry.name}' in {group}: {_owner(entry)} and {_owner(other)}; "
                "uninstall one, or name the class in full (package.module:Class)"
            )
    return entry


def load(group: str, name: str) -> type[Plugin]:
    """The class behind a name or a ``module:Class`` path.

    Raises:
        SpecError: unknown name, with the nearest known ones.
        PluginError: it cannot be imported, is not of the group's kind, or two distributions own the name.
    """
    kind = GROUPS[group]
    if _PATH.match(name):
        module, _, attribute = name.partition(":")
        advice = "; is its folder on PYTHONPATH?"
        found = _imported(name, lambda: getattr(importlib.import_module(module), attribute), advice)
    else:
        known = names(group)
        entry = known.get(name.strip().lower().replace("_", "-"))
        if entry is None:
            raise SpecError(
                f"unknown {_singular(group)} '{name}'{hint(name, known)} "
                "(a plugin just added needs its distribution installed again)"
            )
        found = _imported(f"{entry.name} ({_owner(entry)})", _sole(group, entry).load)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise PluginError(f"'{name}' is not a {kind.__name__}: derive its class from memdefense.{kind.__name__}")
    return found


def build(group: str, spec: str, **defaults: object) -> list[Plugin]:
    """The instances of one spec: a bare defense name gives its grid, anything with fields gives one."""
    if group == "defenses" and "+" in spec:
        parts = _stack_parts(spec)
        if len(parts) > 1:
            return [Stack(parts=tuple(typing.cast(Defense, _one(group, part)) for part in parts))]
    name, fields = _split(spec, group)
    kind = load(group, name)
    if not fields and not defaults and issubclass(kind, Defense):
        return list(kind.grid())
    return [_make(kind, name, fields, defaults)]


def parse(group: str, text: str | Iterable[str]) -> list[tuple[str, list[Plugin]]]:
    """A comma list of specs (or several such lists) as (spec as written, instances); ``all`` is every one installed."""
    pieces = [piece for part in ([text] if isinstance(text, str) else text) for piece in split_list(part)]
    specs: list[str] = []
    for piece in pieces:
        specs.extend(_sound(group) if piece == "all" else [piece])
    return [(spec, build(group, spec)) for spec in dict.fromkeys(specs)]


def _sound(group: str) -> list[str]:
    """All of a group that can be imported; a stranger's broken plugin is told and left out."""
    found = []
    for name in names(group):
        try:
            load(group, name)
        except PluginError as error:
            logger.warning("%s; left out of 'all'", error)
        else:
            found.append(name)
    return found


def versions_of(*plugins: Plugin) -> dict[str, str]:
    """The installed distributions, beside memdefense, that plugins or their parts come from, with their versions."""
    parts = [part for plugin in plugins for part in (plugin, *getattr(plugin, "parts", ()))]
    # Not by class: one file of a distribution may hold plugins that it registers and others that are named in full.
    return dict(_versions(frozenset(type(part).__module__.partition(".")[0] for part in parts) - {"memdefense"}))


@functools.cache
def _versions(packages: frozenset[str]) -> dict[str, str]:
    entries = [entry for group in GROUPS if packages for entry in entry_points(group=f"memdefense.{group}")]
    owners = [entry.dist for entry in entries if entry.module.partition(".")[0] in packages]
    return {owner.name: owner.version for owner in owners if owner}


def split_list(text: str) -> list[str]:
    """``none,rmft:keep=none,kinds=email,dedup`` to its three specs."""
    specs: list[str] = []
    for piece in text.split(","):
        piece = piece.strip()
        if not piece:
            continue
        field = "=" in piece and ":" not in piece.partition("=")[0]
        if field and specs and ":" in specs[-1]:
            specs[-1] += "," + piece
        elif field and specs:
            specs[-1] += ":" + piece
        else:
            specs.append(piece)
    return specs


def _one(group: str, spec: str) -> Plugin:
    name, fields = _split(spec, group)
    return _make(load(group, name), name, fields, {})


def _stack_parts(spec: str) -> list[str]:
    """Splits at each ``+`` that a plugin name follows, so that a value may hold one."""
    return re.split(r"\+(?=[A-Za-z][\w.-]*(?::|\+|$))", spec)


def _split(spec: str, group: str) -> tuple[str, dict[str, str]]:
    path = _PATH_HEAD.match(spec)
    # ``rmft:keep`` is a field without its value, not the class ``keep`` of a module ``rmft``.
    if path and (spec.partition(":")[0].lower().replace("_", "-") not in names(group)):
        name, rest = path.group(1), path.group(2) or ""
    else:
        name, _, rest = spec.partition(":")
    fields: dict[str, str] = {}
    for piece in filter(None, (part.strip() for part in rest.split(","))):
        field, equals, value = piece.partition("=")
        if not equals:
            raise SpecError(f"'{piece}' in '{spec}' is no field: write name=value, such as {name}:seed=1")
        fields[field.strip().replace("-", "_")] = value.strip()
    return name.strip(), fields


def _make(kind: type[PluginT], name: str, fields: Mapping[str, str], defaults: Mapping[str, object]) -> PluginT:
    known: set[str] = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    hints = _imported(name, lambda: typing.get_type_hints(kind)) if fields else {}
    values: dict[str, object] = {field: value for field, value in defaults.items() if field in known}
    for field, text in fields.items():
        if field not in known:
            raise SpecError(f"'{name}' has no field '{field}'{hint(field, known)}")
        values[field] = convert(text, hints[field], f"{name}:{field}")
    try:
        return kind(**values)
    except MemdefenseError:
        raise
    except Exception as error:
        raise PluginError(f"'{name}' cannot be built from {values or 'its defaults'}: {error}") from error


def convert(text: str, kind: object, where: str) -> object:
    """A field's value from its text, by the field's type.

    Raises:
        SpecError: the text is no such value.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in args and text.lower() in ("", "none"):
            return None
        return convert(text, next(arg for arg in args if arg is not type(None)), where)
    if origin is Literal:
        for choice in args:
            if str(choice) == text.replace("_", "-") or str(choice) == text:
                return choice
        raise SpecError(f"{where} is '{text}'{hint(text, (str(choice) for choice in args))}")
    if origin in (tuple, list) or kind in (tuple, list):
        item = args[0] if args else str
        return tuple(convert(part, item, where) for part in text.split("|") if part)
    if kind is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise SpecError(f"{where} is '{text}'; write true or false")
    if kind in (int, float):
        try:
            return int(text) if kind is int else float(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise SpecError(f"{where} is '{text}'; it takes {what}") from None
    if kind is str:
        return text
    raise SpecError(f"{where} cannot be set from a spec; build the object in Python")


def _imported(what: str, get: Callable[[], Found], advice: str = "") -> Found:
    try:
        return get()
    except Exception as error:
        raise PluginError(f"plugin {what} cannot be imported: {type(error).__name__}: {error}{advice}") from error


def _owner(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _singular(group: str) -> str:
    return {"utilities": "utility"}.get(group, group.rstrip("s"))


def instances(group: str, given: object) -> list[tuple[str, list[Plugin]]]:
    """What a caller named, as (label, instances): a text of specs, plugin objects, or a mix in a sequence."""
    if isinstance(given, str):
        return parse(group, given)
    if isinstance(given, Plugin):
        return [(given.spec, [given])]
    if isinstance(given, type):
        raise SpecError(f"{given.__name__} is a class; pass an instance, {given.__name__}(...)")
    whole: list[tuple[str, list[Plugin]]] = []
    for item in typing.cast(Sequence[object], given):
        whole.extend(instances(group, item))
    return list({label: (label, made) for label, made in whole}.values())


__all__ = ["GROUPS", "build", "convert", "instances", "load", "names", "parse", "split_list"]
