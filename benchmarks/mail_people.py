"""The people of `mailbox`: names, companies, and for every slot a value and its exchangeable twin.

A slot is one person's e-mail address, phone number or account number. Two values are drawn from the same law given
everything else (for a guessable address: two patterns of the same name), and a fair coin decides which of them is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from .draws import Draws
from .mail_text import AREA_CODES, FIRM_HEADS, FIRM_TAILS, FIRST_NAMES, HANDLE_HEADS, HANDLE_TAILS, LAST_NAMES, TRADES

KINDS = ("email", "phone", "account")


@dataclasses.dataclass(frozen=True, slots=True)
class Company:
    """An invented firm and its mail domain."""

    name: str
    domain: str


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """A person's value of one kind, and the twin that the coin left out; both canonical."""

    value: str
    twin: str
    guessable: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Person:
    """Somebody who writes mail; ``slots`` by kind."""

    id: str
    first: str
    last: str
    name: str
    company: Company
    slots: Mapping[str, Slot]


def companies(draws: Draws, count: int) -> list[Company]:
    """Invented firms with distinct domains; at most as many as the pools can name."""
    combinations = len(FIRM_HEADS) * len(FIRM_TAILS) * len(TRADES)
    made = []
    for number in draws.shuffled(range(combinations))[:count]:
        number, trade = divmod(number, len(TRADES))
        head, tail = divmod(number, len(FIRM_TAILS))
        label = FIRM_HEADS[head] + FIRM_TAILS[tail]
        domain = f"{label}{TRADES[trade]}".lower() + draws.pick((".com", ".com", ".net", ".org"))
        made.append(Company(f"{label} {TRADES[trade]}", domain))
    return made


def people(draws: Draws, firms: list[Company]) -> Iterator[Person]:
    """Endless distinct people, whose values and twins are all distinct, none contained in another."""
    names: set[str] = set()
    taken = _Taken()
    number = 0
    while True:
        first, last = draws.pick(FIRST_NAMES), draws.pick(LAST_NAMES)
        name = f"{first} {last}"
        if name in names:
            name = f"{first} {draws.pick('ABCDEFGHIJKLMNOPQRSTUVWXYZ')}. {last}"
        if name in names:
            continue
        names.add(name)
        firm = draws.pick(firms)
        slots = {kind: _slot(kind, first, last, firm, draws, taken) for kind in KINDS}
        yield Person(f"p-{number:04d}", first, last, name, firm, slots)
        number += 1


class _Taken:
    """The values and twins in use, so that none is ever equal to another or a tail of it."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._tails: set[str] = set()

    def admits(self, value: str) -> bool:
        tails = (value[start:] for start in range(1, _local(value)))
        return value not in self._tails and not any(tail in self._values for tail in tails)

    def add(self, value: str) -> None:
        self._values.add(value)
        self._tails.update(value[start:] for start in range(_local(value)))


def _local(value: str) -> int:
    return value.index("@") if "@" in value else 1


def _slot(kind: str, first: str, last: str, firm: Company, draws: Draws, taken: _Taken) -> Slot:
    guessable = kind == "email" and draws.coin()
    attempts = 0
    while True:
        one, other = _pair(kind, first, last, firm, draws, guessable)
        if not one.endswith(other) and not other.endswith(one) and taken.admits(one) and taken.admits(other):
            break
        attempts += 1  # namesakes in one firm can use up the patterns of their name
        guessable = guessable and attempts < 50
    taken.add(one)
    taken.add(other)
    return Slot(one, other, guessable) if draws.coin() else Slot(other, one, guessable)


def _pair(kind: str, first: str, last: str, firm: Company, draws: Draws, guessable: bool) -> tuple[str, str]:
    if kind == "phone":
        return _phone(draws), _phone(draws)
    if kind == "account":
        return _account(draws), _account(draws)
    if guessable:
        given, family = first.lower(), last.lower()
        patterns = (
            f"{given}.{family}", f"{given[0]}{family}", f"{given}{family[0]}", f"{given}_{family}", f"{family}.{given}",
            f"{given}-{family}", f"{family}{given[0]}", f"{given[0]}.{family}",
        )  # fmt: skip
        one, other = draws.shuffled(patterns)[:2]
    else:
        one, other = _handle(draws), _handle(draws)
    return f"{one}@{firm.domain}", f"{other}@{firm.domain}"


def _phone(draws: Draws) -> str:
    return f"{draws.pick(AREA_CODES)}555{draws.below(10_000):04d}"


def _account(draws: Draws) -> str:
    return str(draws.between(10**11, 10**12 - 1))


def _handle(draws: Draws) -> str:
    return f"{draws.pick(HANDLE_HEADS)}{draws.pick(HANDLE_TAILS)}{draws.between(10, 99)}"


def write(kind: str, value: str, form: str, fold: str, draws: Draws) -> str:
    """A canonical value as a mail writes it.

    Args:
        kind: ``email``, ``phone`` or ``account``.
        value: the canonical value.
        form: ``plain``, or one of the forms a detector misses: ``wrapped``, ``at-dot`` (e-mail), ``split`` (digits).
        fold: what stands at a line break here: a newline, and what the next line begins with.
        draws: decides between the ways of writing one form.
    """
    if kind == "email":
        local, domain = value.split("@")
        if form == "at-dot":
            at, dot = draws.pick(((" at ", " dot "), (" (at) ", " (dot) "), (" [at] ", " [dot] ")))
            return local.replace(".", dot) + at + domain.replace(".", dot)
        return f"{local}@{fold if form == 'wrapped' else ''}{domain}"
    if kind == "phone":
        area, exchange, line = value[:3], value[3:6], value[6:]
        if form == "split":
            between = draws.pick((" / ", " - "))
            return between.join(" ".join(digits) for digits in (area, exchange, line))
        return f"({area}) {exchange}-{fold if form == 'wrapped' else ''}{line}"
    if form == "split":
        width = draws.pick((2, 3))
        return " ".join(value[start : start + width] for start in range(0, len(value), width))
    return f"{value[:4]}-{value[4:8]}-{fold if form == 'wrapped' else ''}{value[8:]}"
