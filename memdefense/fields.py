"""Whether the fields of a plugin or of a configuration hold what their annotations say."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Hashable, Mapping
from typing import Literal, Union, get_args, get_origin

from memdefense.errors import SpecError, hint

_SAID = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_fields(thing: typing.Any, name: str) -> None:
    """Checks plain fields: numbers, truths, texts, choices, and tuples of them.

    Args:
        thing: a dataclass's instance.
        name: what the error calls it.

    Raises:
        SpecError: a field holds something else; it says what it takes.
    """
    owner: type = type(thing)
    hints = _hints(owner)
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name, None)
        kind = hints.get(field.name)
        if kind is None or fits(value, kind):
            continue
        where = f"{name}: {field.name.replace('_', '-')}"
        choices, wrong = kind, value
        if get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis and isinstance(value, tuple | list):
            choices = get_args(kind)[0]
            wrong = next(one for one in value if not fits(one, choices))
        if get_origin(choices) is Literal:
            raise SpecError(f"{where} cannot be {wrong!r}{hint(str(wrong), map(str, get_args(choices)))}")
        raise SpecError(f"{where} is {value!r}; it takes {_takes(kind)}")


def fits(value: object, kind: object) -> bool:
    """Whether a value is of a type as annotations write it; of types that are not plain, always."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin is tuple or kind is tuple:
        if not isinstance(value, tuple | list):
            return False
        if args and args[-1] is not Ellipsis:  # of so many, each of its own type
            return len(value) == len(args) and all(map(fits, value, args))
        return all(fits(one, args[0]) for one in value) if args else True
    if kind is float:  # of any library: a numpy number is one
        return not isinstance(value, bool | str) and hasattr(value, "__float__")
    if kind is int:
        return not isinstance(value, bool) and hasattr(value, "__index__")
    if kind in (bool, str):
        return isinstance(value, typing.cast(type, kind))
    return value is None if kind is type(None) else True


@functools.lru_cache
def _hints(owner: Hashable) -> Mapping[str, object]:
    try:
        return typing.get_type_hints(typing.cast(type, owner))
    except Exception:  # a name that only type checkers import: its fields are taken as they are
        return {}


def _takes(kind: object) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("None" if arg is type(None) else _takes(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple or kind is tuple:
        if not args:
            return "a tuple"
        each = ", ".join(_takes(arg) for arg in args if arg is not Ellipsis)
        return f"a tuple, each of which is {each}" if args[-1] is Ellipsis else f"a tuple of {each}"
    return _SAID.get(typing.cast(type, kind), str(kind))
