"""Neighbours of a text: the same with a few tokens drawn anew from what a language model expects there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from memdefense.passes import batches, pad

if TYPE_CHECKING:
    from memdefense import LM


@torch.inference_mode()
def neighbours(lm: LM, texts: Sequence[str], *, count: int, share: float, rng: np.random.Generator) -> list[list[str]]:
    """Perturbed copies of each text.

    Mattern et al. (2023) ask a masked model for replacements; ours [ours] come from a causal one, which knows only what
    stands before. A replaced token is never itself, and replacements do not see one another. Only the first tokens that
    fit the model's context are replaced.

    Args:
        lm: whose expectation is drawn from.
        texts: what is perturbed; one without a predicted token has no neighbour.
        count: neighbours of each text.
        share: of the predicted tokens that are replaced in each neighbour, at least one.
        rng: of the places and the draws.
    """
    whole = [lm.encode(text) for text in texts]
    heads = [ids[: lm.context] for ids in whole]
    # Drawn text by text, so that they do not depend on how texts are batched.
    places = [
        [np.sort(rng.permutation(len(ids) - 1)[: max(1, round(share * (len(ids) - 1)))]) for _ in range(count)]
        if len(ids) > 1
        else []
        for ids in heads
    ]
    seeds = rng.integers(0, 1 << 62, len(texts))
    found: list[list[str]] = [[] for _ in texts]
    for rows in batches(lm, [len(ids) for ids in heads]):
        padded, mask = pad([heads[row] or [0] for row in rows], left=False)
        logits = lm.model(
            input_ids=padded.to(lm.device), attention_mask=mask.to(lm.device), use_cache=False
        ).logits.float()
        for line, row in enumerate(rows):
            source = np.random.default_rng(int(seeds[row]))
            for chosen in places[row]:
                expected = logits[line, torch.as_tensor(chosen)].cpu().numpy()  # (places, V), of the tokens after them
                ids = np.array(whole[row])
                expected[np.arange(len(chosen)), ids[chosen + 1]] = -np.inf
                # The arg-max after Gumbel noise is a draw by the probabilities.
                ids[chosen + 1] = (expected + source.gumbel(size=expected.shape)).argmax(-1)
                found[row].append(lm.decode(ids.tolist()))
    return found


__all__ = ["neighbours"]
