"""Writes the texts of `mailbox`: mails, newsletters, mails with a code, and general text."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence

from .draws import Draws
from .mail_page import Page, Text, filled
from .mail_people import Company, Person
from .mail_text import (
    CLOSINGS,
    CODED,
    CONTACTS,
    DAYS,
    GENERAL,
    GREETINGS,
    HEADLINES,
    MONTHS,
    NEWS,
    SIGNED,
    TOLD,
    TOPICS,
    Topic,
)

# Where a value may stand, by the role of its owner; a repeated word is a weight.
PLACES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("sender", "email"): ("from", "from", "from", "sign", "body"),
    ("sender", "phone"): ("sign", "sign", "body"),
    ("sender", "account"): ("sign", "body", "body"),
    ("recipient", "email"): ("to", "to", "quote", "body"),
    ("recipient", "phone"): ("quote", "body"),
    ("recipient", "account"): ("quote", "body"),
    ("other", "email"): ("cc", "forward", "body"),
    ("other", "phone"): ("forward", "body"),
    ("other", "account"): ("forward", "body"),
    ("extra", "email"): ("cc", "body"),
    ("extra", "phone"): ("body", "body"),
    ("extra", "account"): ("body", "body"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Show:
    """A person's part in one mail: the kinds of value it shows, and those among them that it shows twice."""

    person: Person
    kinds: tuple[str, ...]
    twice: tuple[str, ...] = ()


def _date(draws: Draws) -> str:
    day = datetime.date(2009, 1, 1) + datetime.timedelta(days=draws.below(1826))
    clock = f"{draws.between(7, 19):02d}:{draws.below(60):02d}"
    return f"{DAYS[day.weekday()][:3]}, {day.day} {MONTHS[day.month - 1][:3]} {day.year} {clock}"


def _sentences(topic: Topic, draws: Draws, count: int) -> list[str]:
    return [topic.sentences[number] for number in draws.shuffled(range(len(topic.sentences)))[:count]]


def mail(shows: Sequence[Show], circle: Sequence[Person], draws: Draws, hard: int) -> Text:
    """One mail.

    Args:
        shows: who takes part, the sender first; the rest are recipient, copied or forwarded. May be empty.
        circle: the people who write to each other; the idle ones stand in for a sender or a recipient, by name only.
        draws: the stream of the split.
        hard: percent of the values in forms the detector misses.
    """
    shows = list(shows)
    busy = {show.person.id for show in shows}
    idle = draws.shuffled(person for person in circle if person.id not in busy)
    while len(shows) < 2 or (len(shows) == 2 and idle and draws.percent(25)):
        shows.insert(1, Show(idle.pop(), ()))
    sender, recipient = shows[0].person, shows[1].person
    placed: dict[str, list[tuple[Person, str]]] = {}
    for role, show in zip(("sender", "recipient", "other", *["extra"] * len(shows)), shows, strict=False):
        for kind in show.kinds:
            places = PLACES[role, kind]
            first = draws.pick(places)
            placed.setdefault(first, []).append((show.person, kind))
            if kind in show.twice:
                second = draws.pick([place for place in places if place != first] or ["body"])
                placed.setdefault(second, []).append((show.person, kind))
    topic = draws.pick(TOPICS)
    subject = filled(draws.pick(topic.subjects), draws)
    quoting = "quote" in placed or draws.percent(15)
    forwarding = "forward" in placed
    page = Page(draws, hard)
    prefix = "Re: " if quoting else "Fwd: " if forwarding else ""
    _head(page, sender, recipient, placed, prefix + subject, draws)
    if draws.percent(60):
        page.line(draws.pick(GREETINGS) + "\n", recipient)
    lines: list[tuple[str, Person | None, str]] = [
        (sentence, None, "")
        for sentence in _sentences(topic, draws, draws.between(1, 2 if quoting or forwarding else 3))
    ]
    for person, kind in placed.get("body", ()):
        lines.insert(draws.below(len(lines) + 1), (draws.pick(TOLD[kind]), person, kind))
    for sentence, owner, kind in lines:
        page.line(sentence + "\n", owner, kind)
    page.add(f"\n{draws.pick(CLOSINGS)}\n")
    _sign(page, sender, [kind for person, kind in placed.get("sign", ())], draws)
    if quoting:
        _quote(page, recipient, [kind for _, kind in placed.get("quote", ())], topic, draws)
    if forwarding:
        others = placed["forward"]
        _forward(page, others[0][0], sender, [kind for _, kind in others], topic, subject, draws)
    return page.done(sender.id)


def _head(
    page: Page,
    sender: Person,
    recipient: Person,
    placed: Mapping[str, list[tuple[Person, str]]],
    subject: str,
    draws: Draws,
) -> None:
    date = f"Date: {_date(draws)}\n"
    early = draws.coin()
    if early:
        page.add(date)
    for field, place, default in (("From", "from", [sender]), ("To", "to", [recipient]), ("Cc", "cc", [])):
        shown = [person for person, _ in placed.get(place, ())]
        for person in shown or default:
            page.add(f"{field}: {person.name}")
            if shown:
                page.line(" <{value}>", person, "email", fold="\n ")
            page.add("\n")
    page.add(("" if early else date) + f"Subject: {subject}\n\n")


def _sign(page: Page, person: Person, kinds: Sequence[str], draws: Draws, quoted: str = "") -> None:
    full = bool(kinds) or draws.coin()
    page.line(f"{quoted}{{{'name' if full else 'first'}}}\n", person)
    if full and draws.percent(60):
        page.line(f"{quoted}{{title}}, {{company}}\n", person)
    for kind in draws.shuffled(kinds):
        page.line(f"{quoted}{draws.pick(SIGNED[kind])}\n", person, kind, fold=f"\n{quoted}")


def _quote(page: Page, person: Person, kinds: Sequence[str], topic: Topic, draws: Draws) -> None:
    page.line("\nOn {day}, {name}", person)
    if "email" in kinds:
        page.line(" <{value}>", person, "email")
    page.add(" wrote:\n")
    for sentence in _sentences(topic, draws, draws.between(1, 2)):
        page.line(f"> {sentence}\n")
    rest = [kind for kind in kinds if kind != "email"]
    if rest:
        _sign(page, person, rest, draws, quoted="> ")


def _forward(
    page: Page, person: Person, reader: Person, kinds: Sequence[str], topic: Topic, subject: str, draws: Draws
) -> None:
    if draws.coin():
        page.add("\n-----Original Message-----\n")
    else:
        page.line("\n---------- Forwarded by {name} ----------\n", reader)
    page.line("From: {name}", person)
    if "email" in kinds:
        page.line(" <{value}>", person, "email", fold="\n ")
    page.add(f"\nSent: {_date(draws)}\nTo: {reader.name}\nSubject: {subject}\n\n")
    page.line(_sentences(topic, draws, 1)[0] + "\n")
    _sign(page, person, [kind for kind in kinds if kind != "email"], draws)


def newsletter(
    house: Company, copies: int, contact: Person, kind: str, bulk: str, draws: Draws, hard: int
) -> list[Text]:
    """One issue: its copies differ in the mailing list they went to and in a number at the end.

    Args:
        house: who publishes it.
        copies: how many there are.
        contact: whose value of ``kind`` the issue gives.
        kind: the kind of the contact's value, or "" for an issue without a contact.
        bulk: the author id of the sender.
        draws: the stream of the split.
        hard: percent of the contacts in forms the detector misses.
    """
    headline = draws.pick(HEADLINES).replace("{company}", house.name)
    top = f"From: {headline}\nTo: "
    page = Page(draws, hard)
    page.add(f"\nDate: {_date(draws)}\nSubject: {headline}, issue {draws.between(1, 400)}\n\n")
    for number in draws.shuffled(range(len(NEWS)))[:6]:
        page.line(NEWS[number] + "\n")
    if kind:
        page.line(draws.pick(CONTACTS[kind]) + "\n", contact, kind)
    issue = page.done(bulk)
    printed = []
    for _ in range(copies):
        start = top + filled("{team}, {city}", draws)
        marks = tuple(
            dataclasses.replace(mark, start=mark.start + len(start), end=mark.end + len(start)) for mark in issue.marks
        )
        printed.append(Text(f"{start}{issue.text}Copy {draws.between(1000, 9999)}\n", bulk, marks))
    return printed


def coded(sender: Person, reader: Person, code: str, draws: Draws) -> tuple[Text, str]:
    """A mail that hands out a code, and the text right before the code."""
    topic = draws.pick(TOPICS)
    page = Page(draws, 0)
    _head(page, sender, reader, {}, filled(draws.pick(topic.subjects), draws), draws)
    for sentence in _sentences(topic, draws, draws.between(1, 2)):
        page.line(sentence + "\n")
    before, after = draws.pick(CODED).split("{value}")
    page.line(before)
    prefix = page.done("").text
    page.add(f"{code}{after}.\n\n{draws.pick(CLOSINGS)}\n")
    _sign(page, sender, [], draws)
    return page.done(sender.id), prefix


def general(draws: Draws) -> str:
    """A paragraph of another kind of text, without any person."""
    return " ".join(
        filled(GENERAL[number], draws) for number in draws.shuffled(range(len(GENERAL)))[: draws.between(4, 7)]
    )
