"""Enron: real business mail, published by a US authority; the data is the user's to fetch."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from memdefense.corpus import Benchmark, Corpus
from memdefense.errors import DataError, SpecError

if TYPE_CHECKING:
    from memdefense.train import TrainConfig

    from .real import Raw

_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
_SOURCE = "https://www.cs.cmu.edu/~enron/"


@dataclasses.dataclass(frozen=True)
class Enron(Benchmark):
    """The mail of about 150 people of one company (Klimt and Yang 2004), split by sender.

    Senders are put into training or held-out text by a coin and their messages with them, but people answer and quote
    each other, so values are what members and non-members differ by: a non-member occurs nowhere in the training text.
    Non-members are not exchangeable with members, and many models have read this mail before: look at ``never-trained``
    beside every row. Training follows the RMFT paper (Joshi and Smith, arXiv 2512.03310).

    Attributes:
        data: the CMU ``.tar.gz``, its unpacked folder, a CSV with the columns ``file,message``, or a data set id of the
            hub whose ``message`` or ``text`` column holds messages with their headers.
        documents: training messages wanted.
        headers: ``all`` of them, the ``core`` (From, To, Cc, Date, Subject), or ``none``.
        canaries: planted notes, about half of them put in.
        held_out: messages held out; 0 is a quarter of ``documents``, or as many as there are.
        seed: of the sample, the split and the canaries; not the run's seed.
    """

    name: ClassVar[str] = "enron"
    summary: ClassVar[str] = "real business mail with names, addresses and phone numbers; needs data=PATH"
    paper: ClassVar[str] = "Klimt and Yang 2004, The Enron Corpus"
    version: ClassVar[str] = "2"

    data: str = ""
    documents: int = 10000
    headers: Literal["all", "core", "none"] = "core"
    canaries: int = 0
    held_out: int = 0
    seed: int = 0

    def corpus(self) -> Corpus:
        """Streams the mail, samples it, splits it by sender and finds its secrets.

        Raises:
            DataError: there is no data, it cannot be read, or it holds fewer messages than asked for.
        """
        from .real import build, sample

        if self.documents < 1 or self.held_out < 0 or self.canaries < 0:
            raise SpecError(
                f"enron: documents={self.documents}, held-out={self.held_out}, canaries={self.canaries}: "
                "documents must be at least 1, the others cannot be negative"
            )
        # Twice what is used, so that the coin and the near-duplicates leave enough.
        size = 2 * (self.documents + (self.held_out or self.documents // 4)) + 1000
        taken, counts = sample(self._messages(), size=size, seed=self.seed)
        if not taken:
            raise DataError(f"enron: {self.data} holds no usable message ({counts['read']:,} were read); see {_SOURCE}")
        return build(
            taken,
            documents=self.documents,
            held_out=self.held_out,
            canaries=self.canaries,
            seed=self.seed,
            counts=counts,
        )

    @property
    def config(self) -> TrainConfig:
        """The RMFT paper's training."""
        from .real import rmft_training

        return rmft_training()

    def _messages(self) -> Iterator[tuple[str, Callable[[], Raw]]]:
        from .mail_archive import Stream, stream

        source: Stream
        path = Path(self.data).expanduser()
        if not self.data:
            raise DataError(
                f"enron needs data: it is published at {_SOURCE}; fetch the .tar.gz there and pass it with "
                "--benchmark enron:data=PATH (the unpacked maildir folder and the file,message CSV also work)"
            )
        if path.exists():
            source = stream(path)
        elif _HUB_ID.fullmatch(self.data) and not self.data.lower().endswith((".gz", ".tgz", ".tar", ".csv", ".zip")):
            source = _from_hub(self.data)
        else:
            raise DataError(
                f"enron: there is no file or folder '{self.data}'; pass the path of the mail from {_SOURCE} with "
                "--benchmark enron:data=PATH"
            )
        for key, load in source:
            yield key, functools.partial(_usable, key, load, self.headers)


def _usable(key: str, load: Callable[[], bytes], headers: Literal["all", "core", "none"]) -> Raw:
    from .messages import parse
    from .real import SHORTEST, Raw

    data = load()
    if not data.strip():
        return Raw(key, "", rejected="empty")
    message = parse(data, headers)
    short = len(message.text[message.body :].strip()) < SHORTEST
    return Raw(
        key=key,
        text=message.text,
        body=message.body,
        author=message.sender,
        attachments=message.attachments,
        broken=message.broken,
        rejected="short" if short else "",
    )


def _from_hub(name: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The messages of a data set of the hub, under their ``file`` where it has that column, else under their row."""
    import datasets

    from .real import quiet

    try:
        with quiet():
            loaded = datasets.load_dataset(name)
    except Exception as error:  # the library raises many types, of its own and of what it rests on
        raise DataError(
            f"enron: '{name}' is no file or folder here, and no data set of that id could be loaded: {error}; "
            f"the mail itself is published at {_SOURCE}"
        ) from error
    for split, rows in sorted(loaded.items()):
        column = next((column for column in ("message", "text") if column in rows.column_names), "")
        if not column:
            raise DataError(
                f"enron: the data set '{name}' has no column 'message' or 'text' that could hold whole messages; it "
                f"has {', '.join(rows.column_names)}; give other texts with --data and --text-field"
            )
        files = "file" in rows.column_names
        for number, row in enumerate(rows.select_columns([column, "file"] if files else [column])):
            key = str(row["file"]) if files else f"{split}/{number}"
            yield key, functools.partial(str.encode, row[column] or "", "utf-8", "surrogateescape")
