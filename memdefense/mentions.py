"""Where a model may give a detected value away: windows of text that end with the value, and how well it knows each.

For methods on weights that need to know what to forget. The values are those of the defender's detector.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memdefense.spans import token_spans

if TYPE_CHECKING:
    from memdefense.corpus import Documents
    from memdefense.lab import Lab
    from memdefense.lm import LM

_BATCH_TOKENS = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Mention:
    """One mention of a value, with the tokens before it.

    Attributes:
        ids: the context and then the value, in tokens.
        start: the first token of the value; at least 1.
    """

    ids: tuple[int, ...]
    start: int


def mentions(lm: LM, documents: Documents, lab: Lab, *, context: int) -> list[Mention]:
    """The first mention of every distinct value that the detector finds, in document order.

    A mention that begins a text, so that nothing predicts it, is passed over for the next one; a value is cut where it
    and one token before it are longer than the model's context.

    Args:
        lm: whose tokens they are.
        documents: where they are looked for.
        lab: whose detector it is.
        context: tokens before the value, at most.
    """
    seen: set[tuple[str, str]] = set()
    found: list[Mention] = []
    for document in documents:
        new = [hit for hit in lab.find(document.text) if (hit.kind, hit.canonical) not in seen]
        if not new:
            continue
        ids = lm.encode(document.text)
        ranges = token_spans(lm, document.text, [(hit.start, hit.end) for hit in new])
        for hit, (start, end) in zip(new, ranges, strict=True):
            if start < 1 or end <= start or (hit.kind, hit.canonical) in seen:
                continue
            seen.add((hit.kind, hit.canonical))
            end = min(end, start + lm.context - 1)
            first = max(0, start - context, end - lm.context)
            found.append(Mention(tuple(ids[first:end]), start - first))
    return found


def known(lm: LM, given: Sequence[Mention]) -> list[float]:
    """The mean log-probability of each mention's value, token by token, in nats."""
    scores = [0.0] * len(given)
    with torch.inference_mode():
        for places, ids, _ in batches(given, lm.device):
            logits = lm.model(input_ids=ids, use_cache=False).logits[:, :-1]
            logprobs = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None])[..., 0]  # (B, T - 1)
            for row, place in enumerate(places):
                mention = given[place]
                own = logprobs[row, mention.start - 1 : len(mention.ids) - 1]
                scores[place] = math.fsum(own.tolist()) / len(own)
    return scores


def best_known(lm: LM, given: Sequence[Mention], number: int) -> list[Mention]:
    """Those whose values the model predicts best, that many at most, the best first."""
    scores = known(lm, given)
    order = sorted(range(len(given)), key=lambda place: (-scores[place], place))
    return [given[place] for place in order[:number]]


def batches(
    given: Sequence[Mention], device: torch.device, *, tokens: int = _BATCH_TOKENS
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Mentions of similar length together: their places, ids (B, T) padded on the right, and where the value is (B, T).

    Padding on the right needs no attention mask: a causal model does not look ahead.
    """
    order = sorted(range(len(given)), key=lambda place: (-len(given[place].ids), place))
    while order:
        rows = max(1, tokens // len(given[order[0]].ids))
        places, order = order[:rows], order[rows:]
        longest = len(given[places[0]].ids)
        ids = torch.zeros(len(places), longest, dtype=torch.int64)
        value = torch.zeros(len(places), longest, dtype=torch.bool)
        for row, place in enumerate(places):
            own = given[place]
            ids[row, : len(own.ids)] = torch.tensor(own.ids)
            value[row, own.start : len(own.ids)] = True
        yield places, ids.to(device), value.to(device)


__all__ = ["Mention", "batches", "best_known", "known", "mentions"]
