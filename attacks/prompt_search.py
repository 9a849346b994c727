"""A prompt of token ids that draws given tokens out of a model, sought by greedy coordinate gradient (GCG).

Source: Zou et al. 2023, arXiv 2307.15043.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from memdefense import LM

# Passes add up in another order in a batch than in generation; an arg-max that leads by less, in nats, could turn.
_CLEAR_LEAD = 1e-3


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """A prompt, and what comes after it.

    Attributes:
        ids: its tokens, without what the tokenizer puts before every text.
        loss: mean negative log-probability of the tokens sought, in nats.
        exact: whether greedy decoding begins with them.
    """

    ids: list[int]
    loss: float
    exact: bool


def descend(lm: LM, body: Sequence[int], length: int, *, steps: int, candidates: int, top_k: int, seed: int) -> Attempt:
    """Greedy coordinate gradient at one length, from random tokens: a prompt that draws ``body`` out, or the best seen.

    A step replaces the prompt by the best of its candidates, even by a worse one, as the paper's code does; the first
    that draws the tokens out ends the search. No prompt holds a special token.

    Args:
        lm: the model; left as it was.
        body: the tokens sought.
        length: tokens of the prompt.
        steps: at most.
        candidates: prompts tried in a step.
        top_k: replacements at a place from which candidates are drawn.
        seed: of all draws.
    """
    import torch

    draws = torch.Generator().manual_seed(seed)
    allowed = _allowed(lm)  # (V,)
    choices = allowed.nonzero()[:, 0]
    k = min(top_k, len(choices))
    prompt = choices[torch.randint(len(choices), (length,), generator=draws)]  # (n,)
    with lm.evaluating():
        best, _ = _best(lm, prompt[None], body)
        for _ in range(steps):
            if best.exact:
                break
            slope = gradient(lm, prompt.tolist(), body)  # (n, V)
            proposed = slope.masked_fill(~allowed, math.inf).topk(k, largest=False).indices  # (n, k)
            places = torch.randint(length, (candidates,), generator=draws)
            picks = torch.randint(k, (candidates,), generator=draws)
            tried = prompt.repeat(candidates, 1)  # (C, n)
            tried[torch.arange(candidates), places] = proposed[places, picks]
            found, row = _best(lm, tried, body)
            prompt = tried[row]
            if found.exact or found.loss < best.loss:
                best = found
    return best


def gradient(lm: LM, prompt: Sequence[int], body: Sequence[int]) -> Tensor:
    """The slope of the loss along every token at every place of a prompt: (n, V), on the CPU.

    The loss is the mean negative log-probability of ``body``, in nats, and the slope its derivative by the one-hot
    row of a place. To first order, a replacement changes the loss by the new token's slope less that of the old.
    """
    import torch

    head = lm.encode("")
    embedding = lm.model.get_input_embeddings()
    ids = torch.tensor([[*head, *prompt, *body]], device=lm.device)
    with torch.enable_grad():
        embedded = embedding(ids).detach().requires_grad_()  # (1, T, H)
        logprobs = _logprobs(lm, len(body), inputs_embeds=embedded)
        loss = -logprobs[0].gather(-1, ids[0, -len(body) :, None]).mean()
        # By the embeddings alone: nothing is left on the weights.
        (slope,) = torch.autograd.grad(loss, embedded)
    inner = slope[0, len(head) : len(head) + len(prompt)]  # (n, H)
    slopes: Tensor = inner @ embedding.get_parameter("weight").detach().T
    return slopes.float().cpu()


def _best(lm: LM, prompts: Tensor, body: Sequence[int]) -> tuple[Attempt, int]:
    """The best of prompts (C, n) and its row: the likeliest of those that draw ``body`` out, else of all.

    That every token sought is the arg-max after those before it is what greedy decoding means, so one teacher-forced
    pass decides.
    """
    import torch

    from memdefense.passes import batches

    head = torch.tensor(lm.encode(""), dtype=torch.long).expand(len(prompts), -1)
    sought = torch.tensor(body)
    rows = torch.cat([head, prompts, sought.expand(len(prompts), -1)], 1)  # (C, T)
    losses, leads = torch.empty(len(rows)), torch.empty(len(rows))
    with torch.no_grad():
        for part in batches(lm, [rows.shape[1]] * len(rows)):
            logprobs = _logprobs(lm, len(body), input_ids=rows[part].to(lm.device))  # (C, T', V)
            wanted = sought.to(lm.device).expand(len(part), -1)[:, :, None]
            own = logprobs.gather(-1, wanted)[:, :, 0]
            other = logprobs.scatter(-1, wanted, -math.inf).amax(-1)
            losses[part], leads[part] = -own.mean(-1).cpu(), (own - other).amin(-1).cpu()
    exact = leads >= _CLEAR_LEAD
    row = int(losses.masked_fill(~exact, math.inf).argmin() if exact.any() else losses.argmin())
    return Attempt(prompts[row].tolist(), float(losses[row]), bool(exact[row])), row


def _logprobs(lm: LM, last: int, **inputs: Tensor) -> Tensor:
    """Log-probabilities (B, last, V) of the last tokens of rows of one length."""
    import torch

    from memdefense.keyvalues import last_logits

    # Nothing is padding, although a beginning of text may look like it.
    mask = torch.ones(next(iter(inputs.values())).shape[:2], dtype=torch.long, device=lm.device)
    made = lm.model(**inputs, attention_mask=mask, use_cache=False, **last_logits(lm.model, last + 1))
    logits: Tensor = made.logits[:, -last - 1 : -1]
    return torch.log_softmax(logits.float(), -1)


def _allowed(lm: LM) -> Tensor:
    """Which ids a prompt may hold, (V,): those of the tokenizer that are not special."""
    import torch

    ids = torch.arange(len(lm.model.get_input_embeddings().get_parameter("weight")))
    return (ids < len(lm.tokenizer)) & ~torch.isin(ids, torch.tensor(lm.tokenizer.all_special_ids))


__all__ = ["Attempt", "descend", "gradient"]
