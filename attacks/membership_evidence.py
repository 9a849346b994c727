"""What membership scores are made of: whose documents are compared, and what a target says of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from memdefense import Corpus, Document, NotApplicable, Sampling, Signals

from .membership_scores import Floats, Values, log_frequencies
from .neighbours import neighbours

if TYPE_CHECKING:
    from memdefense import AttackLab, LogprobTarget

# Documents asked about at a time, so that memory does not grow with the corpus.
_SLICE = 4096
_SHARE = 0.15  # of a text's tokens that a neighbour has anew
_SAMPLED = 50  # the most probable tokens that samia draws from


@dataclasses.dataclass(frozen=True)
class Sides:
    """The documents that are compared.

    Attributes:
        members: the training documents that are asked about, by a hash of their ids, which is the same for all attacks.
        others: all held-out documents, since one pass over the split serves everyone.
        left_out: ids among the two that are not compared: blank, or of a text that stands on both sides.
        shared: how many of them stand on both sides.
    """

    members: Sequence[Document]
    others: Sequence[Document]
    left_out: frozenset[str]
    shared: int


def sides(corpus: Corpus, members: int) -> Sides:
    """Members and non-members, canary documents aside.

    A text that was trained on and held out as well says nothing of either side, however it is spaced: both copies are
    left out and counted.

    Raises:
        NotApplicable: nothing was held out, or nothing trained on but canaries.
    """
    if not corpus.held_out:
        raise NotApplicable("the corpus holds no documents out, so there are no non-members to tell apart")
    trained = {_plain(document.text) for document in corpus.train} - {""}
    both = trained & {_plain(document.text) for document in corpus.held_out}
    planted = corpus.planted
    ordinary = [d for d in corpus.train if d.id not in planted and _plain(d.text)]
    inside = by_hash([d for d in ordinary if _plain(d.text) not in both])[:members]
    if not inside:
        raise NotApplicable("no training document is left to ask about: all are canaries, blank or held out as well")
    out = frozenset(d.id for d in corpus.held_out if _plain(d.text) in both or not _plain(d.text))
    if len(out) == len(corpus.held_out):
        raise NotApplicable("no held-out document is left to compare with: all are blank or trained on as well")
    shared = sum(_plain(d.text) in both for d in (*ordinary, *corpus.held_out))
    return Sides(inside, corpus.held_out, out, shared)


def by_hash(documents: Sequence[Document], purpose: str = "") -> list[Document]:
    """Documents in an order that only their ids and the purpose decide."""
    return sorted(documents, key=lambda d: hashlib.sha256(f"{purpose}{d.id}".encode()).digest())


def slices(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    """Documents in order, so many at a time that what is said of them fits the memory."""
    for start in range(0, len(documents), _SLICE):
        yield documents[start : start + _SLICE]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of one text; what no score asked for is empty.

    Attributes:
        text: the text.
        own: the target's signals.
        lower: of the text in lower case.
        before: the base model's.
        after_others: with known non-members before the text.
        after_members: with known members before it.
        behind: how many of its tokens are read with a whole prefix before them; of a longer text that is the beginning.
        near: of its neighbours.
        truth: the second half of the text.
        said: what the target says after the first half.
        log_frequency: of every token in public text.
    """

    text: str
    own: Signals
    lower: Signals
    before: Signals
    after_others: Signals
    after_members: Signals
    behind: int
    near: Sequence[Signals]
    truth: str
    said: Sequence[str]
    log_frequency: Floats


@dataclasses.dataclass(frozen=True)
class Gathering:
    """How evidence is gathered.

    Attributes:
        needs: the fields of `Evidence` that are asked for.
        other_shots: known non-members, which stand before a text.
        member_shots: known members.
        neighbours: of each text.
        samples: continuations of each text.
        new_tokens: of a continuation, at most.
        log_frequency: (V,) of the tokens of public text.
        rng: of the neighbours.
    """

    needs: Set[str]
    other_shots: str
    member_shots: str
    neighbours: int
    samples: int
    new_tokens: int
    log_frequency: Floats
    rng: np.random.Generator

    def of(self, texts: Sequence[str], target: LogprobTarget, lab: AttackLab) -> list[Evidence]:
        """What a target says of some texts: one pass for each kind of evidence."""
        nothing = [_NOTHING] * len(texts)
        own = target.signals(texts) if "own" in self.needs else nothing
        lower = target.signals([text.lower() for text in texts]) if "lower" in self.needs else nothing
        before = lab.serve(lab.base).signals(texts) if "before" in self.needs else nothing
        others, members = (
            target.signals(texts, contexts=[shots] * len(texts)) if name in self.needs else nothing
            for name, shots in (("after_others", self.other_shots), ("after_members", self.member_shots))
        )
        prefix = max(len(lab.base.encode(shots)) for shots in (self.other_shots, self.member_shots))
        near: Sequence[Sequence[Signals]] = [[]] * len(texts)
        if "near" in self.needs:
            near = self._near(texts, target, lab)
        cut = [_middle(text) for text in texts]
        said: Sequence[Sequence[str]] = [[]] * len(texts)
        if "said" in self.needs:
            said = self._said([text[:place] for text, place in zip(texts, cut, strict=True)], target)
        return [
            Evidence(
                text=text,
                own=own[row],
                lower=lower[row],
                before=before[row],
                after_others=others[row],
                after_members=members[row],
                behind=_behind(lab.base.context, prefix, max(len(others[row].tokens), len(members[row].tokens))),
                near=near[row],
                truth=text[cut[row] :],
                said=said[row],
                log_frequency=self.log_frequency,
            )
            for row, text in enumerate(texts)
        ]

    def _near(self, texts: Sequence[str], target: LogprobTarget, lab: AttackLab) -> list[list[Signals]]:
        made = neighbours(lab.base, texts, count=self.neighbours, share=_SHARE, rng=self.rng)
        found = iter(target.signals([text for own in made for text in own]))
        return [[next(found) for _ in own] for own in made]

    def _said(self, prompts: Sequence[str], target: LogprobTarget) -> list[tuple[str, ...]]:
        schemes = [Sampling(temperature=1.0, top_k=_SAMPLED, seed=number) for number in range(self.samples)]
        drawn = [target.generate(prompts, max_new_tokens=self.new_tokens, sampling=scheme) for scheme in schemes]
        return list(zip(*drawn, strict=True))


def longest_rest(documents: Sequence[Document], lab: AttackLab) -> int:
    """Tokens of the longest second half of a text, half the model's context at most, and at least one."""
    rest = [len(lab.base.encode(d.text[_middle(d.text) :], special=False)) for d in documents]
    return max(1, min(max(rest), lab.base.context // 2))


def of_shared_tokens(own: Signals, *after: Signals, behind: int = 1 << 62) -> list[Values]:
    """The log-probabilities of the tokens that are the same with and without a context before them.

    A text's first word may be spelled otherwise after a context than where a text begins, so tokens are compared from
    the end. Where not even the last ones agree, all of them.

    Args:
        own: of a text.
        after: of it behind some contexts.
        behind: how many tokens the contexts reach; the others were read without them, and are left out.
    """
    ids = [one.tokens[len(one.tokens) - len(one.logprob) :] for one in (own, *after)]
    least = min(map(len, ids))
    last = np.stack([tokens[len(tokens) - least :] for tokens in ids])  # (texts, least)
    other = np.flatnonzero((last != last[0]).any(0))
    same = least - 1 - int(other[-1]) if len(other) else least
    reached = max(1, behind - (max((len(one.tokens) for one in after), default=same) - same))
    return [one.logprob[-same:][:reached] for one in (own, *after)]


def public_frequencies(lab: AttackLab) -> Floats:
    """`log_frequencies` of the public text under the base model's tokenizer."""

    def frequencies() -> list[float]:
        vocabulary = int(lab.base.model.config.get_text_config().vocab_size)
        found: list[float] = log_frequencies([lab.base.encode(d.text) for d in lab.public], vocabulary).tolist()
        return found

    return np.array(lab.cached("token frequencies of public text", frequencies, lab.base, lab.public))


def _behind(context: int, prefix: int, length: int) -> int:
    """How many of a text's tokens stand in the first window, with the prefix before them, or what is kept of it."""
    return context - min(prefix, max(context // 2, context - length))


def _plain(text: str) -> str:
    return " ".join(text.split())


def _middle(text: str) -> int:
    """Where the word that holds the middle of a text ends."""
    place = len(text) // 2
    while place < len(text) and not text[place].isspace():
        place += 1
    return place


_NO_VALUES, _NO_IDS = np.zeros(0, np.float32), np.zeros(0, np.int64)
_NOTHING = Signals(_NO_IDS, _NO_VALUES, _NO_VALUES, _NO_VALUES, _NO_IDS)

__all__ = [
    "Evidence",
    "Gathering",
    "Sides",
    "by_hash",
    "longest_rest",
    "of_shared_tokens",
    "public_frequencies",
    "sides",
    "slices",
]
