"""What all plugins share: a name, fields as hyper-parameters, and a spec that identifies an instance.

A plugin is a frozen dataclass. Its fields are its hyper-parameters, its constructor does nothing else, and its
*spec* is the canonical text that builds it again: ``rmft:keep=none,kinds=email|phone``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

from memdefense.fields import check_fields


class Plugin:
    """Base of Defense, Attack, Utility, Benchmark and Detector."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if dataclasses.is_dataclass(self):
            check_fields(self, self.name or type(self).__name__)

    def __init_subclass__(cls, **options: object) -> None:
        """Has the fields checked before a class's own ``__post_init__`` computes with them."""
        super().__init_subclass__(**options)
        own = cls.__dict__.get("__post_init__")
        if own is not None:

            @functools.wraps(own)
            def checked(self: Plugin) -> None:
                Plugin.__post_init__(self)
                own(self)

            cls.__post_init__ = checked  # type: ignore[method-assign]

    @property
    def fields(self) -> Mapping[str, object]:
        """The hyper-parameters by name."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def spec(self) -> str:
        """The canonical spec: the name, then every field that differs from its default, in the order declared."""
        if not dataclasses.is_dataclass(self):
            return self.name
        changed = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if value != default:
                changed.append(f"{field.name.replace('_', '-')}={spell(value)}")
        return self.name + (":" + ",".join(changed) if changed else "")

    def ready(self) -> None:
        """Called before anything is read or trained, so that what a field names, such as a file, is missed in time.

        Raises:
            MemdefenseError: it is not there, or cannot be used.
        """

    def outside(self) -> str:
        """A digest of what the fields only name, such as the content of a file: part of every key and recipe."""
        return ""


def spell(value: object) -> str:
    """A field's value as a spec writes it: tuples joined by ``|``, booleans in lower case."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "|".join(spell(item) for item in value)
    if isinstance(value, float):
        return repr(value)
    return str(value)
