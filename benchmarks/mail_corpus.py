"""Puts the corpus of `mailbox` together: who is in which split, how often a value is shown, and the canaries."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence

from memdefense import Canary, Corpus, Document, Occurrence, Secret

from .draws import Draws
from .mail_page import Text
from .mail_people import KINDS, Company, Person, companies, people
from .mail_writer import Show, coded, general, mail, newsletter

CAP = 80  # the largest number of mails a value is shown in, before repetitions within a mail
CIRCLE = 3  # people who write to each other and to nobody else
_EACH = 4  # canaries with each number of copies, before those with one
_DRAWN = "mailbox/1"  # names the draws; another name is another corpus
_CODE = ("bcdfghjkmnpqrstvwxz", "23456789")


@dataclasses.dataclass(frozen=True, slots=True)
class Shares:
    """Parts of a split, in percent."""

    hard: int
    newsletters: int
    duplicates: int
    repeats: int


def generate(*, documents: int, seed: int, canaries: int, shares: Shares) -> Corpus:
    """Builds the corpus.

    Args:
        documents: texts in ``train`` before canaries, and in ``public``; ``held_out`` has a third, ``general`` a fifth.
        seed: decides everything that is drawn.
        canaries: how many canaries there are, half of which are put in on average.
        shares: percent of hard forms, newsletters, exact duplicates and repeated mentions.
    """
    sizes = {"public": documents, "train": documents, "held_out": documents // 3}
    crowds = {split: max(CIRCLE, size // 10) for split, size in sizes.items()}
    draws = Draws(_DRAWN, seed, "people")
    firms = companies(draws, max(6, documents // 40))
    crowd = people(draws, firms)
    # A deck dealt at random rather than a coin per person, so that no split is crowded and lengths stay alike.
    deck = draws.shuffled(itertools.islice(crowd, sum(crowds.values())))
    texts: dict[str, list[Text]] = {}
    for split, size in sizes.items():
        stream = Draws(_DRAWN, seed, split)
        texts[split], deck = _split(split, size, deck[: crowds[split]], firms, shares, stream), deck[crowds[split] :]
    documents_of = {split: _named(seed, split, written) for split, written in texts.items()}
    secrets = [
        *_secrets(texts["train"], documents_of["train"], member=True, first=0),
        *_secrets(texts["held_out"], documents_of["held_out"], member=False, first=crowds["train"] * len(KINDS)),
    ]
    planted, copies = _canaries(canaries, documents, seed, crowd)
    stream = Draws(_DRAWN, seed, "general")
    return Corpus(
        public=documents_of["public"],
        train=_interleaved(documents_of["train"], copies, Draws(_DRAWN, seed, "order")),
        held_out=documents_of["held_out"],
        general=[Document(_opaque("d-", seed, "general", n), general(stream)) for n in range(documents // 5)],
        secrets=secrets,
        canaries=planted,
        kinds=KINDS,
        counts={
            "newsletters": sum(text.author.startswith("bulk") for text in texts["train"]),
            "duplicates": documents - len({text.text for text in texts["train"]}),
            "canary documents": len(copies),
        },
    )


def _opaque(prefix: str, *parts: object) -> str:
    """An id that tells neither the split nor a canary to whoever reads it."""
    return prefix + hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=6).hexdigest()


def _named(seed: int, split: str, texts: Sequence[Text]) -> list[Document]:
    return [Document(_opaque("d-", seed, split, number), text.text, text.author) for number, text in enumerate(texts)]


def _split(
    split: str, size: int, persons: Sequence[Person], firms: Sequence[Company], shares: Shares, draws: Draws
) -> list[Text]:
    news = size * shares.newsletters // 100
    copied = size * shares.duplicates // 100
    mails = size - news - copied
    written = [
        mail(shows, circle, draws, shares.hard) for circle, shows in _deal(mails, persons, shares.repeats, draws)
    ]
    written += [written[draws.below(mails)] for _ in range(copied)]
    issue = 0
    while news > 0:
        count = min(news, draws.between(3, 8))
        kind = draws.pick(KINDS) if draws.coin() else ""
        bulk = _opaque("bulk-", split, issue)
        written += newsletter(draws.pick(firms), count, draws.pick(persons), kind, bulk, draws, shares.hard)
        news -= count
        issue += 1
    return draws.shuffled(written)


def quota(slots: int, cap: int) -> list[int]:
    """How many mails each of ``slots`` values is shown in: a law that falls as k**-1.5 up to ``cap``, in equal slices.

    Every slot gets the mean of its slice of the law and passes what rounding left on to the next, so that few slots and
    many have the same mean and the splits stay alike. Values shown once are half as many again as the law says.
    """
    weights = [10**12 // math.isqrt(k**3 * 10**6) for k in range(1, cap + 1)]  # k**-1.5 in integers
    weights[0] += weights[0] // 2
    total = sum(weights)
    counts, k, left, carried = [], 1, weights[0] * slots, 0
    for _ in range(slots):
        slice_left, mass = total, carried
        while slice_left > left:
            mass += k * left
            slice_left -= left
            k += 1
            left = weights[k - 1] * slots
        left -= slice_left
        mass += k * slice_left
        counts.append(max(1, (2 * mass + total) // (2 * total)))
        carried = mass - counts[-1] * total
    return counts


def _deal(
    mails: int, persons: Sequence[Person], repeats: int, draws: Draws
) -> Iterator[tuple[Sequence[Person], list[Show]]]:
    """Gives every person its parts in distinct mails of its circle; yields circle and parts, mail by mail.

    Circles are closed, so that a document tells nothing about the split of another circle's documents. Their members
    are about equally active, which keeps the number of parts per mail nearly the same everywhere.
    """
    order = draws.shuffled(range(len(persons)))
    cap = max(1, min(CAP, mails // 3))
    while True:
        counts = list(zip(*(draws.shuffled(quota(len(persons), cap)) for _ in KINDS), strict=True))
        order.sort(key=lambda index: -max(counts[index]))
        circles = [order[start : start + CIRCLE] for start in range(0, len(order) - CIRCLE + 1, CIRCLE)]
        circles[-1] += order[len(circles) * CIRCLE :]
        busiest = [max(max(counts[index]) for index in circle) for circle in circles]
        if sum(busiest) <= mails:
            break
        cap = cap * 3 // 4  # too few mails for this many parts
    parts = [sum(max(counts[index]) for index in circle) for circle in circles]
    sizes = [max(least, mails * part // sum(parts)) for least, part in zip(busiest, parts, strict=True)]
    turn = 0
    while (missing := mails - sum(sizes)) != 0:
        place = turn % len(sizes)
        sizes[place] = max(busiest[place], sizes[place] + (1 if missing > 0 else -1))
        turn += 1
    for circle, size in zip(circles, sizes, strict=True):
        dealt: list[list[Show]] = [[] for _ in range(size)]
        lap: list[int] = []
        for index in circle:
            person, shown = persons[index], counts[index]
            where = [set(draws.sample(max(shown), count)) for count in shown]
            used: set[int] = set()
            for turn in range(max(shown)):
                if not lap:
                    # Those that the person has a part in already are popped last.
                    lap = sorted(draws.shuffled(range(size)), key=lambda place: place not in used)
                used.add(place := lap.pop())
                kinds = tuple(kind for kind, turns in zip(KINDS, where, strict=True) if turn in turns)
                # A value shown in one mail only is never repeated: it stands for "seen once".
                many = [kind for kind, count in zip(KINDS, shown, strict=True) if count > 1 and kind in kinds]
                dealt[place].append(Show(person, kinds, tuple(kind for kind in many if draws.percent(repeats))))
        for shows in dealt:
            yield [persons[index] for index in circle], draws.shuffled(shows)


def _secrets(written: Sequence[Text], documents: Sequence[Document], *, member: bool, first: int) -> list[Secret]:
    found: dict[tuple[str, str], list[Occurrence]] = {}
    owners: dict[str, Person] = {}
    for text, document in zip(written, documents, strict=True):
        for mark in text.marks:
            owners[mark.person.id] = mark.person
            place = Occurrence(document.id, mark.start, mark.end, mark.form)
            found.setdefault((mark.person.id, mark.kind), []).append(place)
    secrets = []
    for number, (owner, kind) in enumerate(sorted(found), start=first):
        slot = owners[owner].slots[kind]
        secrets.append(
            Secret(
                f"s-{number:06d}", kind, slot.value, member, owner, tuple(found[owner, kind]), slot.twin, slot.guessable
            )
        )
    return secrets


def _canaries(count: int, documents: int, seed: int, crowd: Iterator[Person]) -> tuple[list[Canary], list[Document]]:
    """The canaries, and the documents of those that the coin put in.

    The first have 1, 2, 4, ... up to 64 copies, and never more than a fifteenth of the documents, `_EACH` of every
    number. All others have one, which costs the least text for what they tell of epsilon.
    """
    draws = Draws(_DRAWN, seed, "canaries")
    levels = min(7, max(1, documents // 15).bit_length())
    codes: set[str] = set()
    planted: list[Canary] = []
    copies: list[Document] = []
    for number in range(count):
        while (code := "".join(draws.pick(_CODE[place % 2]) for place in range(8))) in codes:
            pass
        codes.add(code)
        text, prefix = coded(next(crowd), next(crowd), code, draws)
        count_of, member = 1 << number % levels if number < _EACH * levels else 1, draws.coin()
        names = tuple(_opaque("d-", seed, "canary", number, copy) for copy in range(count_of)) if member else ()
        planted.append(Canary(f"canary-{number:03d}", names, prefix, code, count_of, member))
        copies += [Document(each, text.text, text.author) for each in names]
    return planted, copies


def _interleaved(documents: Sequence[Document], copies: Sequence[Document], draws: Draws) -> list[Document]:
    """The documents in their order, with the copies at random places among them."""
    total = len(documents) + len(copies)
    places = set(draws.sample(total, len(copies)))
    plain, extra = iter(documents), iter(copies)
    return [next(extra if place in places else plain) for place in range(total)]
