"""Two files of one's own: what a model was trained on, and what it was not."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import TYPE_CHECKING, ClassVar

from memdefense.corpus import Benchmark, Corpus
from memdefense.errors import DataError

from .jsonl import JSONL

if TYPE_CHECKING:
    from memdefense.train import TrainConfig

    from .real import Raw


@dataclasses.dataclass(frozen=True)
class Brought(Benchmark):
    """Members and non-members as the user names them, for ``memdefense attack``; nothing is split, sampled or dropped.

    Secrets are found by two detectors together; one that stands in both files is a member's. Whether the two files are
    exchangeable is for the user to know: the model-free baseline says whether they can be told apart without a model.

    Attributes:
        members: a file or folder of texts the model was trained on, of any kind that ``jsonl`` reads.
        non_members: texts of the same kind that it was not trained on.
        text_field: the field or column with the text; text files have none.
        author_field: the one with the author; "" is none.
    """

    name: ClassVar[str] = "brought"
    summary: ClassVar[str] = "members and non-members of a model of your own, for memdefense attack"
    version: ClassVar[str] = "1"

    members: str = ""
    non_members: str = ""
    text_field: str = "text"
    author_field: str = ""

    def corpus(self) -> Corpus:
        """Reads both files and finds their secrets.

        Raises:
            DataError: a file is missing, broken or empty, lacks a field, or the two share texts.
        """
        from .real import assemble

        members, rejected = self._read(self.members, "members")
        others, more = self._read(self.non_members, "non-members")
        known = {_plain(raw.text) for raw in members}
        shared = sum(_plain(raw.text) in known for raw in others)
        if shared:
            raise DataError(
                f"{shared:,} of the {len(others):,} non-members' texts are members' too; remove them from "
                f"{self.non_members}, or no attack can be judged by them"
            )
        counts = {"read": len(members) + len(others) + rejected + more, "empty": rejected + more}
        return assemble(members, others, canaries=0, seed=0, counts=counts)

    @property
    def config(self) -> TrainConfig:
        """Of no importance: nothing is trained, short of an attack that trains models of its own."""
        from .real import rmft_training

        return rmft_training()

    def _read(self, data: str, which: str) -> tuple[list[Raw], int]:
        if not data:
            raise DataError(f"the texts of the {which} are missing; name a file with --{which} PATH")
        with tempfile.TemporaryDirectory(prefix="memdefense-") as cache:
            raws = [load() for _, load in JSONL(data, self.text_field, self.author_field).read(cache)]
        usable = [raw._replace(key=f"{which}/{raw.key}") for raw in raws if not raw.rejected]
        if not usable:
            raise DataError(f"{data} has no document with text ({len(raws):,} were read)")
        return usable, len(raws) - len(usable)


def _plain(text: str) -> str:
    return " ".join(text.split())
