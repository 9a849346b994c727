"""What unlearning minimises, and the windows of text it is about.

Losses take sums and counts of the negative log-likelihood (NLL) in nats, one per sequence (B,), and give a scalar.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from memdefense.spans import token_mask

if TYPE_CHECKING:
    from memdefense.corpus import Documents
    from memdefense.lm import LM
    from memdefense.spans import Span

Ids = list[int]


def nll(model: nn.Module, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of -log p(token | tokens before it) of each sequence, and how many tokens it is over: (B,) each.

    Args:
        model: a causal language model.
        ids: (B, T), padded on the right.
        labels: (B, T), -100 where nothing is to be predicted; position t is predicted from t - 1.
    """
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2).float(), labels[:, 1:], reduction="none", ignore_index=-100)
    return losses.sum(1), (labels[:, 1:] != -100).sum(1)


def descent(total: Tensor, count: Tensor) -> Tensor:
    """The mean NLL over all tokens of a batch; gradient ascent takes its negative."""
    return total.sum() / count.sum()


def npo(total: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Negative preference optimization: -(2 / beta) log sigmoid(-beta log(pi / pi_ref)), its mean over sequences.

    Args:
        total: NLL of each sequence under the model, so that log(pi / pi_ref) is ``reference - total``.
        reference: the same under the model before unlearning.
        beta: at 0 it becomes gradient ascent; the larger, the earlier a forgotten sequence is let go.
    """
    return -2 / beta * logsigmoid(beta * (total - reference)).mean()


def simnpo(total: Tensor, count: Tensor, beta: float, delta: float) -> Tensor:
    """The same without a reference, per token: -(2 / beta) log sigmoid(beta (NLL / length - delta))."""
    return -2 / beta * logsigmoid(beta * (total / count - delta)).mean()


def steering(hidden: Tensor, goal: Tensor, mask: Tensor) -> Tensor:
    """Mean squared distance of hidden states to a goal: over widths and tokens of a sequence, then over sequences.

    Args:
        hidden: (B, T, width).
        goal: what they are to become, of the same shape or one vector (width,).
        mask: (B, T), true at the tokens that count.
    """
    squared = (hidden - goal).square().mean(2)  # (B, T)
    return ((squared * mask).sum(1) / mask.sum(1)).mean()


@dataclasses.dataclass(frozen=True)
class Texts:
    """Runs of tokens, each of at least two and at most a row's length.

    Attributes:
        forget: windows around what is to be forgotten.
        retain: all that stands outside of them, and public text.
    """

    forget: Sequence[Ids]
    retain: Sequence[Ids]


def cut(
    lm: LM, private: Documents, public: Documents, spans: Sequence[Sequence[Span]], *, window: int, longest: int
) -> Texts:
    """Parts the private text into windows and the rest.

    Args:
        lm: whose tokens are counted.
        private: the documents.
        public: documents of which everything is retained.
        spans: for each private document, the characters to forget.
        window: tokens on each side of such a span; windows that touch become one.
        longest: tokens a run may have; longer ones are cut into pieces.
    """
    forget: list[Ids] = []
    retain: list[Ids] = []
    for document, own in zip(private, spans, strict=True):
        ids = np.asarray(lm.encode(document.text), dtype=np.int64)
        if not len(ids):
            continue
        near = np.convolve(token_mask(lm, document.text, own), np.ones(2 * window + 1), "full") > 0.5
        inside = near[window : window + len(ids)]
        edges = [0, *(np.flatnonzero(np.diff(inside)) + 1).tolist(), len(ids)]
        for start, stop in itertools.pairwise(edges):
            side = forget if start < stop and inside[start] else retain
            side.extend(_pieces(ids[start:stop].tolist(), longest))
    for document in public:
        retain.extend(_pieces(lm.encode(document.text), longest))
    return Texts(forget, retain)


def _pieces(ids: Ids, longest: int) -> list[Ids]:
    pieces = [ids[start : start + longest] for start in range(0, len(ids), longest)]
    return [piece for piece in pieces if len(piece) > 1]  # the first token of a run is never predicted


def padded(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and labels (B, T) of runs, padded on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows], device=device)
    return ids, labels
