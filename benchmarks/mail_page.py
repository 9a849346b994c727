"""A text of `mailbox` in the making, which records where every personal value stands in it."""

from __future__ import annotations

import dataclasses
import functools
import re

from .draws import Draws
from .mail_people import Person, write
from .mail_text import POOLS

_SLOT = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A value in a text: ``text[start:end]`` is how it is written."""

    person: Person
    kind: str
    start: int
    end: int
    form: str


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A finished text without an id."""

    text: str
    author: str
    marks: tuple[Mark, ...] = ()


class Page:
    """A text in the making.

    Args:
        draws: the stream of the split.
        hard: percent of the values that are written in a form the detector misses.
    """

    def __init__(self, draws: Draws, hard: int) -> None:
        self._draws = draws
        self._hard = hard
        self._parts: list[str] = []
        self._length = 0
        self._marks: list[Mark] = []
        self._forms: dict[tuple[str, str], str] = {}

    def add(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)

    def value(self, person: Person, kind: str, fold: str = "\n") -> None:
        """Writes a value; a second mention in one text keeps the form of the first, as a quotation would."""
        key = (person.id, kind)
        form = self._forms.get(key) or self._form(kind)
        self._forms[key] = form
        written = write(kind, person.slots[kind].value, form, fold, self._draws)
        self._marks.append(Mark(person, kind, self._length, self._length + len(written), form))
        self.add(written)

    def line(self, template: str, person: Person | None = None, kind: str = "", fold: str = "\n") -> None:
        """Fills a template (no line end); ``fold`` is a newline and what a line begins with here, such as ``> ``."""
        for literal, slot in _pieces(template):
            self.add(literal)
            if slot == "value" and person is not None:
                self.value(person, kind, fold)
            elif slot:
                word = _word(slot, person, self._draws)
                self.add(word[0].upper() + word[1:] if literal in ("", "> ") else word)

    def done(self, author: str) -> Text:
        return Text("".join(self._parts), author, tuple(self._marks))

    def _form(self, kind: str) -> str:
        if not self._draws.percent(self._hard):
            return "plain"
        return self._draws.pick(("wrapped", "at-dot" if kind == "email" else "split"))


@functools.cache
def _pieces(template: str) -> tuple[tuple[str, str], ...]:
    parts = [*_SLOT.split(template), ""]
    return tuple(zip(parts[::2], parts[1::2], strict=True))


def _word(slot: str, person: Person | None, draws: Draws) -> str:
    if slot in POOLS:
        return draws.pick(POOLS[slot])
    if slot == "n":
        return str(draws.between(2, 28))
    if slot == "ref":
        return str(draws.between(1000, 9999))
    if slot == "time":
        return f"{draws.between(7, 18)}:{draws.pick(('00', '15', '30', '45'))}"
    if slot == "amount":
        return f"${draws.between(1, 98)},{draws.below(1000):03d}"
    if person is not None:
        return {"name": person.name, "first": person.first, "company": person.company.name}[slot]
    raise KeyError(f"no pool fills {{{slot}}}")


def filled(template: str, draws: Draws) -> str:
    """A template without a person, filled."""
    return "".join(literal + (_word(slot, None, draws) if slot else "") for literal, slot in _pieces(template))
