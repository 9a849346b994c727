"""Real documents made into a corpus: who is sampled, who trains, what is held out, and the answer key.

Everything random is a hash of the seed and of what it decides about, so a corpus depends neither on the order in which
the data is read nor on any library's random numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from memdefense.corpus import Corpus, Document
from memdefense.errors import DataError
from memdefense.similar import near_duplicates

from .answer_key import find_secrets
from .planted import plant

if TYPE_CHECKING:
    from memdefense.train import TrainConfig

SHORTEST = 20
"""Characters of body below which a document is not used."""

_SHARE = 0.8
_DRAWS = 200


class Raw(NamedTuple):
    """A document before the split.

    Attributes:
        key: what names it in the data (a path, a row); unique there.
        body: where the body starts in ``text``.
        author: who wrote it; "" makes it the only document of its author.
        rejected: why it is not used, or "".
    """

    key: str
    text: str
    body: int = 0
    author: str = ""
    attachments: int = 0
    broken: bool = False
    rejected: str = ""


def rmft_training() -> TrainConfig:
    """The training of the RMFT paper (Joshi and Smith, arXiv 2512.03310): what its authors' code does on Enron."""
    from memdefense.train import TrainConfig

    return TrainConfig(
        epochs=3.0,
        learning_rate=2e-5,
        warmup_steps=500,
        schedule="linear",
        weight_decay=0.01,
        batch_size=8,
        block_size=128,
        pack="tokens",
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps `datasets` from drawing progress bars, and from logging an error that it also raises."""
    import datasets

    shown, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not shown:
            datasets.enable_progress_bars()


def draw(*parts: object) -> int:
    """A uniform 64-bit number that the parts decide."""
    data = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def sample(items: Iterable[tuple[str, Callable[[], Raw]]], *, size: int, seed: int) -> tuple[list[Raw], Counter[str]]:
    """A seeded sample of the usable documents, and counts of what was met.

    A document's place is a hash of (seed, key), and the ``size`` usable documents with the lowest places are the
    sample: memory is bounded by it, and a document that stands too high is not even read.

    Args:
        items: the keys, each with what reads the document.
        size: documents wanted; 0 is all.

    Returns:
        The sample in the order of the hash, and ``read`` (documents in the data), ``opened`` (those up to the last
        place taken), and of the latter ``attachments`` dropped, ``broken`` ones, and those rejected, by reason.
    """
    heap: list[tuple[int, Raw]] = []  # negated places, so the highest place is on top
    rejected: list[tuple[int, Raw]] = []
    counts = Counter(read=0, opened=0, broken=0, attachments=0)
    for key, load in items:
        counts["read"] += 1
        place = draw("sample", seed, key)
        if size and len(heap) == size and place > -heap[0][0]:
            continue
        raw = load()
        if raw.rejected:
            rejected.append((place, raw._replace(text="")))
        elif size and len(heap) == size:
            heapq.heappushpop(heap, (-place, raw))
        else:
            heapq.heappush(heap, (-place, raw))
    last = -heap[0][0] if size and len(heap) == size else 2**64
    taken = [raw for _, raw in sorted(heap, key=lambda entry: (-entry[0], entry[1]))]
    for raw in [*taken, *(raw for place, raw in rejected if place <= last)]:
        counts["opened"] += 1
        counts["broken"] += raw.broken
        counts["attachments"] += raw.attachments
        if raw.rejected:
            counts[raw.rejected] += 1
    return taken, counts


def build(
    taken: Sequence[Raw],
    *,
    documents: int,
    held_out: int = 0,
    canaries: int = 0,
    seed: int = 0,
    counts: Mapping[str, int],
    units: Sequence[str] | None = None,
) -> Corpus:
    """Splits a sample and finds its secrets.

    Authors go to ``train`` or ``held_out`` by a coin, and their documents with them. The coin is tossed for all authors
    at once and tossed again until both splits are large enough: a fair draw among the splits that serve, also where
    one author wrote half of the data. ``train`` is taken as it is, copies and near-copies included, since removing
    them is a defense's work. From ``held_out`` goes what repeats another of its documents, and what is a
    near-duplicate of a training document, headers included or left aside.

    Args:
        documents: training documents wanted; 0 uses all, about a fifth of them held out.
        held_out: documents wanted there; 0 is a quarter of ``documents``, or as many as there are.
        units: what the coin decides about, per document, where it is not the author.

    Raises:
        DataError: there are too few documents or authors.
    """
    usable = f"{len(taken):,} usable documents of {len({raw.author or raw.key for raw in taken}):,} authors"
    owners = list(units) if units is not None else [raw.author or f"\x1f{raw.key}" for raw in taken]
    sizes = Counter(owners)
    need = documents or max(1, int(_SHARE * 0.95 * len(taken)))
    spare = max(1, held_out or (documents // 4 if documents else int((1 - _SHARE) * 0.75 * len(taken))))
    chosen = _toss(sizes, need=need, spare=spare, seed=seed)
    train = [raw for raw, owner in zip(taken, owners, strict=True) if owner in chosen][: documents or None]
    if len(sizes) < 2:
        raise DataError(
            f"the data has {usable}; a split by author needs documents of two authors at least (of a text file a "
            "document is a paragraph: empty lines stand between them)"
        )
    if len(train) < documents:
        fits = int(0.9 * min(_SHARE * len(taken), len(train)))  # so that as much is held out as of all the data
        raise DataError(
            f"{documents:,} training documents were asked for, but the data has {usable}, some of whom are held out; "
            f"pass documents={fits} or fewer, or more data"
        )
    others = [raw for raw, owner in zip(taken, owners, strict=True) if owner not in chosen]
    apart, dropped = _apart(train, others[: 3 * spare] if documents else others)
    kept = apart[:spare] if documents else apart
    if not kept or len(kept) < held_out:
        raise DataError(
            f"{max(1, held_out):,} held-out documents are needed, but the data has {usable}, and beside {len(train):,} "
            f"training documents {len(kept):,} remain that other people wrote and that resemble none of them; pass "
            "fewer documents, or more data"
        )
    return assemble(train, kept, canaries=canaries, seed=seed, counts={**counts, **dropped})


def assemble(
    train: Sequence[Raw], held_out: Sequence[Raw], *, canaries: int, seed: int, counts: Mapping[str, int]
) -> Corpus:
    """A corpus of two splits as they are: ids, secrets, planted canaries and counts."""
    key = hashlib.blake2b(digest_size=16)  # ids tell nothing to those who do not hold the texts
    for raw in (*train, *held_out):
        key.update(raw.text.encode("utf-8", "surrogatepass"))

    def name(prefix: str, value: str) -> str:
        data = value.encode("utf-8", "surrogatepass")
        return prefix + hashlib.blake2b(data, key=key.digest(), digest_size=6).hexdigest()

    def finished(raws: Sequence[Raw]) -> list[Document]:
        return [Document(name("d-", raw.key), raw.text, name("a-", raw.author or f"\x1f{raw.key}")) for raw in raws]

    private, apart = finished(train), finished(held_out)
    secrets, found = find_secrets(private, apart, name)
    codes, planted = plant(canaries, seed, name)
    return Corpus(
        public=(),
        train=(*private, *planted),
        held_out=apart,
        secrets=secrets,
        canaries=codes,
        kinds=tuple(sorted({secret.kind for secret in secrets})),
        counts={**counts, **found, "train": len(private), "held_out": len(apart), "planted": len(planted)},
        sources={name("d-", raw.key): raw.key for raw in (*train, *held_out)},
    )


def _toss(sizes: Mapping[str, int], *, need: int, spare: int, seed: int) -> set[str]:
    """The authors that train: of the first draw that leaves enough on both sides, else of the one that comes nearest.

    Args:
        sizes: documents by author.
        need: documents wanted for training.
        spare: documents wanted beside them.
    """
    total = sum(sizes.values())
    share = max(need / (need + spare), min(0.97, need / max(1, total)))
    best, reached = set(sizes), (-1.0, -1.0)
    for attempt in range(_DRAWS):
        chosen = {owner for owner in sizes if draw("split", seed, attempt, owner) < share * 2**64}
        inside = sum(sizes[owner] for owner in chosen)
        # enough to train comes first, and nothing at all held out is the worst
        score = (min(1.0, inside / need) if inside < total else -0.5, min(1.0, (total - inside) / spare))
        if score > reached:
            best, reached = chosen, score
        if reached == (1.0, 1.0):
            break
    return best


def _apart(train: Sequence[Raw], others: Sequence[Raw]) -> tuple[list[Raw], dict[str, int]]:
    """Those of ``others`` that repeat neither each other nor resemble anything in ``train``, and counts of the rest."""
    distinct = list({raw.text: raw for raw in reversed(others)}.values())[::-1]
    both = (*train, *distinct)
    alike = [False] * len(distinct)
    # By body too: headers of their own make one newsletter to two readers look like two texts.
    for texts in ([raw.text for raw in both], [_body(raw) for raw in both]):
        labels = near_duplicates(texts, threshold=0.8)
        clusters = set(labels[: len(train)])
        alike = [known or label in clusters for known, label in zip(alike, labels[len(train) :], strict=True)]
    kept = [raw for raw, repeated in zip(distinct, alike, strict=True) if not repeated]
    return kept, {"duplicates": len(others) - len(distinct), "near_duplicates": len(distinct) - len(kept)}


def _body(raw: Raw) -> str:
    return " ".join(raw.text[raw.body :].split())
