"""The parts of a pass over many texts: batches, windows and padding, and what is measured of each token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memdefense.access import PLAIN, Ints, Sampling, Signals
from memdefense.keyvalues import shares

if TYPE_CHECKING:
    from memdefense.lm import LM

Columns = list[npt.NDArray[np.float64]]
"""Log-probability, mean, standard deviation and rank of each token of a piece."""

# Vocabulary-sized work of a training step done at a time: on a CPU what caches hold, in few enough steps that threads
# seldom wait for each other (a busy machine makes that dear); elsewhere what keeps the device busy.
MEASURED_FLOATS = {"cpu": 1 << 20}
# Where nothing is trained, a piece for each thread whose three buffers fit a second-level cache of 2 MB: half the time.
_THREAD_FLOATS = 1 << 17
_BATCH_LOGITS = 1 << 27
_BATCH_TOKENS = {"cpu": 8192, "cuda": 131072, "mps": 16384}
# Keys and values of one batch, where the token budget would leave it smaller. Where a model's own cache copies them at
# each step, larger ones come as fresh pages each time, which took 40 % of a prefix attack on a CPU.
_CACHE_BYTES = {"cpu": 1 << 26}
# Keys and values of a beginning that rows share, copied for each row of a batch, one layer at a time.
_SHARED_BYTES = {"cpu": 1 << 26}
# A pass without generation gains nothing from more rows on a CPU, and loses to padding and to the cache.
_PASS_TOKENS = {**_BATCH_TOKENS, "cpu": 2048}


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A piece of a text that fits the context.

    Attributes:
        text: which text it is of.
        place: where in it the piece begins.
        ids: its tokens.
        scored: the first of them that is scored here.
    """

    text: int
    place: int
    ids: list[int]
    scored: int


def batches(lm: LM, lengths: Sequence[int], *, size: int = 0, kept: int = 0, most: int = 0) -> Iterator[list[int]]:
    """Rows of similar length together, the longest first, so that a lack of memory shows at once.

    Args:
        lm: the model.
        lengths: tokens of each row.
        size: rows of a batch; 0 fills a budget of tokens and of logits.
        kept: at how many positions of a row logits are held at a time; 0 is all.
        most: rows of a batch at most, whatever is asked for; 0 is any number.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    tokens = (_BATCH_TOKENS if kept else _PASS_TOKENS).get(lm.device.type, 8192)
    if kept:  # a small model's cache is small too: a step then costs the same for many more rows
        tokens = max(tokens, _CACHE_BYTES.get(lm.device.type, 1 << 28) // _token_bytes(lm))
    vocabulary = lm.model.config.vocab_size
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        logits = (kept or longest) * vocabulary
        rows = size or max(1, min(tokens // longest, _BATCH_LOGITS // logits, 512))
        rows = min(rows, most) if most else rows
        yield order[start : start + rows]
        start += rows


def windows(text: int, head: list[int], body: list[int], context: int) -> Iterator[Window]:
    """Pieces of one text that fit the context: each token is scored once, after at least half a context."""
    head = head[-max(context // 2, context - len(body)) :]
    ids, first = head + body, max(len(head), 1)
    if len(ids) <= first:
        return  # nothing to score
    step = context // 2
    for start in range(0, max(1, len(ids) - (context - step)), step):
        piece = ids[start : start + context]
        yield Window(text, start, piece, first if start == 0 else context - step)


def beginnings(lm: LM, jobs: Sequence[Window]) -> list[tuple[int, list[int]]]:
    """Windows that begin alike, before what is scored, put together where that saves a whole pass of tokens.

    Returns:
        The length of the beginning and its rows, for each; the rest last, as 0 and its rows.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, job in enumerate(jobs):
        # What the first scored token is told from belongs to each row: its logits come of the pass over the row.
        # Later pieces of a long text go on from that text alone.
        alike.setdefault(() if job.place else tuple(job.ids[: job.scored - 1]), []).append(row)
    least = _PASS_TOKENS.get(lm.device.type, 8192)
    together = [(len(key), rows) for key, rows in alike.items() if len(key) * (len(rows) - 1) >= least]
    if not together or not shares(lm.model):
        return [(0, list(range(len(jobs))))]
    taken = {row for _, rows in together for row in rows}
    rest = [row for row in range(len(jobs)) if row not in taken]
    return [*together, (0, rest)] if rest else together


def copies(lm: LM, tokens: int) -> int:
    """Rows of a batch at most, where each copies the keys and values of a beginning; 0, any number, without one."""
    if not tokens:
        return 0
    layers = max(1, int(lm.model.config.get_text_config().num_hidden_layers))
    room = _SHARED_BYTES.get(lm.device.type, 1 << 30) * layers // (tokens * _token_bytes(lm))
    return max(1, room)


def rows_at_once(device: str, vocabulary: int) -> int:
    """How many positions' logits `measure` is given at a time."""
    if device != "cpu":
        return max(1, (1 << 26) // vocabulary)
    return max(1, _THREAD_FLOATS // vocabulary) * torch.get_num_threads()


def measure(logits: Tensor, targets: Tensor, sampling: Sampling, banning: bool) -> Tensor:
    """(N, V) logits and (N,) targets to (N, 4): logprob, mean, std, rank."""
    scores = logits.float()
    if sampling != PLAIN:
        scores = sampling.warp(torch.log_softmax(scores, -1))
    mine = scores.gather(-1, targets[:, None])
    work = torch.empty_like(scores)  # one buffer throughout: the chunk stays in the cache
    rank = torch.gt(scores, mine, out=work).sum(-1, keepdim=True)
    top = scores.amax(-1, keepdim=True)
    weight = torch.sub(scores, top, out=work).exp()
    total = weight.sum(-1, keepdim=True)
    if banning:  # a token that cannot come adds nothing, but 0 times infinity is no number
        work.clamp_min_(torch.finfo(torch.float16).min)
    mean = (weight * work).sum(-1, keepdim=True) / total
    # Around the mean, and not as a difference of two large numbers.
    std = (work.sub_(mean).square_().mul_(weight).sum(-1, keepdim=True) / total).sqrt()
    return torch.cat([mine - top - total.log(), mean - total.log(), std, rank], -1)


def joined(tokens: Ints, parts: list[tuple[int, Columns]]) -> Signals:
    """The signals of one text from its pieces, in order."""
    columns = [np.concatenate([part[column] for _, part in parts]) if parts else np.zeros(0) for column in range(4)]
    logprob, mean, std = (column.astype(np.float32) for column in columns[:3])
    return Signals(tokens, logprob, mean, std, columns[3].astype(np.int64))


def pad(ids: list[list[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of token ids as a rectangle (B, T), and the mask that is 1 where it is filled."""
    longest = max(len(row) for row in ids)
    padded = torch.zeros(len(ids), longest, dtype=torch.long)
    mask = torch.zeros(len(ids), longest, dtype=torch.long)
    for place, row in enumerate(ids):
        span = slice(longest - len(row), longest) if left else slice(0, len(row))
        padded[place, span] = torch.tensor(row, dtype=torch.long)
        mask[place, span] = 1
    return padded, mask


def _token_bytes(lm: LM) -> int:
    """What the key-value cache keeps of one token, in bytes."""
    config = lm.model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0)
    if not heads:  # no attention, so nothing grows with the tokens; the token budget stays as it is
        return 1 << 28
    per_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    width = (getattr(config, "num_key_value_heads", None) or heads) * per_head
    return max(1, int(2 * config.num_hidden_layers * width * 4))


__all__ = [
    "MEASURED_FLOATS",
    "Columns",
    "Window",
    "batches",
    "beginnings",
    "copies",
    "joined",
    "measure",
    "pad",
    "rows_at_once",
    "windows",
]
