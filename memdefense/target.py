"""What an attacker may ask of a model: text, log-probabilities, or the weights; and what a guard may change of it.

One law governs generation and signals alike: a guard's ``law`` is applied to the next-token log-probabilities in
both, so a defense that hides something in one cannot leave it open in the other by accident.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from memdefense.errors import ModelError, PluginError, SpecError

if TYPE_CHECKING:
    from memdefense.lm import LM

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

Law = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``law(ids, hidden, logprobs) -> logprobs``: ids (B, T) with -1 where padded, hidden (B, K, H) and log-probabilities
(B, K, V) of the last K positions. Pure, and causal: position t may depend on ids up to t only."""
TextGuard = Callable[[str, str], str]
"""``text(prompt, continuation) -> continuation``."""

# Teacher-forced and incremental passes add up in another order; an arg-max with a smaller lead than this, in nats,
# could differ between them, so that only generation can tell.
_CLEAR_LEAD = 1e-3
# White space that may stand before a value `continues` looks for, in tokens; and what its budget is rounded up to, so
# that prompts with values of about one length can be generated together.
_SLACK, _ROUND = 8, 16
# Vocabulary-sized work done at a time: on a CPU what caches hold, in few enough steps that threads seldom wait for each
# other (a busy machine makes that dear); elsewhere what keeps the device busy.
_MEASURED_FLOATS = {"cpu": 1 << 20}
_BATCH_LOGITS = 1 << 27
_BATCH_TOKENS = {"cpu": 8192, "cuda": 131072, "mps": 16384}
_CACHE_BYTES = 1 << 28  # of keys and values in one batch, where the token budget would leave it smaller
# A pass without generation gains nothing from more rows on a CPU, and loses to padding and to the cache.
_PASS_TOKENS = {**_BATCH_TOKENS, "cpu": 2048}


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How a next token is drawn.

    Attributes:
        temperature: 0 is greedy decoding, whose distribution is all on the arg-max.
        top_k: only the k most probable tokens; 0 is the full vocabulary.
        seed: of the draws; the draw for a prompt depends on it and on the prompt's place in the call alone.
    """

    temperature: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf") or self.top_k < 0:
            raise SpecError(
                f"temperature {self.temperature}, top_k {self.top_k}: neither can be negative, and the temperature "
                "must be finite"
            )

    def warp(self, logprobs: Tensor) -> Tensor:
        """The log-probabilities (..., V) that this scheme draws from."""
        if self.temperature == 0:
            best = logprobs.argmax(-1, keepdim=True)
            return torch.full_like(logprobs, -torch.inf).scatter_(-1, best, 0.0)
        if self.temperature != 1:
            logprobs = torch.log_softmax(logprobs / self.temperature, -1)
        if 0 < self.top_k < logprobs.shape[-1]:
            least = logprobs.topk(self.top_k, -1).values[..., -1:]
            logprobs = torch.log_softmax(logprobs.masked_fill(logprobs < least, -torch.inf), -1)
        return logprobs


GREEDY = Sampling(temperature=0.0)
PLAIN = Sampling()


@dataclasses.dataclass(frozen=True, slots=True)
class Signals:
    """What a model says of the tokens of one text, from one teacher-forced pass.

    Attributes:
        tokens: (T,) token ids.
        logprob: (T - 1,) log-probability of tokens 2..T in nats (all T where a context stood before the text).
        mean: the expectation of the log-probability under the model, at the same places.
        std: its standard deviation.
        rank: how many tokens were more probable; 0 = the arg-max.
    """

    tokens: Ints
    logprob: Floats
    mean: Floats
    std: Floats
    rank: Ints


class TextTarget(Protocol):
    """Access ``text``: what a chat window gives."""

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]: ...

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]: ...


class LogprobTarget(TextTarget, Protocol):
    """Access ``logprobs``: what an API with log-probabilities gives."""

    def signals(
        self, texts: Sequence[str], *, contexts: Sequence[str] | None = None, sampling: Sampling = PLAIN
    ) -> list[Signals]: ...


class WeightTarget(LogprobTarget, Protocol):
    """Access ``weights``: the model itself, past every guard."""

    @property
    def model(self) -> LM: ...


class Target(LogprobTarget, Protocol):
    """What guards wrap."""

    def guarded(
        self, *, law: Law | None = None, text: TextGuard | None = None, sampling: Sampling | None = None
    ) -> Target: ...


@dataclasses.dataclass(frozen=True)
class LocalTarget:
    """A model in this process, behind any number of guards.

    Attributes:
        lm: the model.
        batch_size: sequences per forward pass; 0 fills a budget of tokens and of logits.
        laws: applied to the next-token log-probabilities, in order.
        texts: applied to each continuation, in order.
        owned: the sampling a guard insists on, whatever is asked for.
    """

    lm: LM
    batch_size: int = 0
    laws: tuple[Law, ...] = ()
    texts: tuple[TextGuard, ...] = ()
    owned: Sampling | None = None

    @property
    def model(self) -> LM:
        """The weights, past every guard."""
        return self.lm

    def guarded(
        self, *, law: Law | None = None, text: TextGuard | None = None, sampling: Sampling | None = None
    ) -> LocalTarget:
        """This target behind one more guard."""
        return dataclasses.replace(
            self,
            laws=self.laws + ((law,) if law else ()),
            texts=self.texts + ((text,) if text else ()),
            owned=sampling or self.owned,
        )

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        """Continues each prompt until an end of text or ``max_new_tokens``.

        A prompt longer than the context leaves room for keeps its last tokens. Prompts are padded on the left and
        sorted by length; with greedy decoding the result equals the model's own arg-max, token by token.
        """
        if max_new_tokens < 1:
            raise SpecError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        ids = [self._room(self._prompt(prompt), max_new_tokens) for prompt in prompts]
        drawn = self.owned or sampling
        new: list[list[int]] = [[] for _ in prompts]
        for rows in self._batches([len(row) + max_new_tokens for row in ids], kept=1):
            for row, tokens in zip(
                rows, self._continue([ids[r] for r in rows], rows, max_new_tokens, drawn), strict=True
            ):
                new[row] = tokens
        return [self._text(prompt, row, tokens) for prompt, row, tokens in zip(prompts, ids, new, strict=True)]

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]:
        """Whether greedy generation begins with the value, leading white space aside.

        One teacher-forced pass decides wherever it provably equals generation: every token of the value is the clear
        arg-max, or the first other arg-max already spells something else. Only the rest is generated, with enough
        tokens for any spelling of the value, byte by byte at worst.
        """
        answers: list[bool | None] = [None] * len(prompts)
        bodies = [self.lm.encode(value, special=False) for value in values]
        budgets = [self._budget(value, body) for value, body in zip(values, bodies, strict=True)]
        # In half precision no lead is clear.
        exact = self.lm.model.dtype in (torch.float32, torch.float64)
        if exact and not self.texts and (self.owned is None or self.owned.temperature == 0):
            answers = self._forced(prompts, values, bodies, budgets)
        for budget in sorted(set(budgets)):
            rest = [row for row, answer in enumerate(answers) if answer is None and budgets[row] == budget]
            if not rest:
                continue
            texts = self.generate([prompts[row] for row in rest], max_new_tokens=budget)
            for row, text in zip(rest, texts, strict=True):
                answers[row] = text.lstrip().startswith(values[row].strip())
        return [bool(answer) for answer in answers]

    @torch.inference_mode()
    def signals(
        self, texts: Sequence[str], *, contexts: Sequence[str] | None = None, sampling: Sampling = PLAIN
    ) -> list[Signals]:
        """Per-token signals of each text; texts longer than the context are read in half-overlapping windows.

        Args:
            texts: what is scored.
            contexts: what stands before each text and is not scored; its tail is kept where both do not fit.
            sampling: the scheme whose probabilities are asked for.
        """
        before = [self._prompt(context) for context in contexts] if contexts is not None else [[] for _ in texts]
        bodies = [self.lm.encode(text, special=contexts is None) for text in texts]
        jobs = [
            job
            for text, (head, body) in enumerate(zip(before, bodies, strict=True))
            for job in self._windows(text, head, body)
        ]
        parts: list[list[tuple[int, list[npt.NDArray[np.float64]]]]] = [[] for _ in texts]
        drawn = self.owned or sampling
        for rows in self._batches([len(job.ids) for job in jobs]):
            for row, found in zip(rows, self._score([jobs[r] for r in rows], drawn), strict=True):
                parts[jobs[row].text].append((jobs[row].place, found))
        return [
            _joined(np.asarray(body, np.int64), sorted(part, key=lambda item: item[0]))
            for body, part in zip(bodies, parts, strict=True)
        ]

    def _prompt(self, prompt: str) -> list[int]:
        ids = self.lm.encode(prompt)
        if ids:
            return ids
        tokenizer = self.lm.tokenizer
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ModelError("an empty prompt needs a tokenizer with a beginning or end of text; this one has neither")
        return [int(start)]

    def _room(self, ids: list[int], new: int) -> list[int]:
        room = self.lm.context - new
        if room < 1:
            raise ModelError(f"{new} new tokens do not fit the model's context of {self.lm.context}; ask for fewer")
        return ids[-room:]

    def _budget(self, value: str, body: list[int]) -> int:
        """New tokens within which generation must have begun with a value."""
        bytewise = -(-(len(value.encode("utf-8", "surrogatepass")) + _SLACK) // _ROUND) * _ROUND
        return min(bytewise, max(len(body) + _SLACK, self.lm.context // 2))

    def _text(self, prompt: str, ids: list[int], new: list[int]) -> str:
        text = self._spelled(ids, new)
        for guard in self.texts:
            text = guard(prompt, text)
        return text

    def _token_bytes(self) -> int:
        """What the key-value cache keeps of one token, in bytes."""
        config = self.lm.model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", 0)
        if not heads:  # no attention, so nothing grows with the tokens; the token budget stays as it is
            return _CACHE_BYTES
        per_head = getattr(config, "head_dim", None) or config.hidden_size // heads
        width = (getattr(config, "num_key_value_heads", None) or heads) * per_head
        return max(1, int(2 * config.num_hidden_layers * width * 4))

    def _batches(self, lengths: Sequence[int], *, kept: int = 0) -> Iterator[list[int]]:
        """Rows of similar length together, the longest first, so that a lack of memory shows at once.

        ``kept`` is at how many positions of a row logits are held at a time; 0 is all.
        """
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        tokens = (_BATCH_TOKENS if kept else _PASS_TOKENS).get(self.lm.device.type, 8192)
        if kept:  # a small model's cache is small too: a step then costs the same for many more rows
            tokens = max(tokens, _CACHE_BYTES // self._token_bytes())
        vocabulary = self.lm.model.config.vocab_size
        start = 0
        while start < len(order):
            longest = max(1, lengths[order[start]])
            logits = (kept or longest) * vocabulary
            size = self.batch_size or max(1, min(tokens // longest, _BATCH_LOGITS // logits, 512))
            yield order[start : start + size]
            start += size

    @torch.inference_mode()
    def _continue(self, ids: list[list[int]], rows: list[int], new: int, sampling: Sampling) -> list[list[int]]:
        padded, mask = _pad(ids, left=True)
        device = self.lm.device
        eos = self.lm.tokenizer.eos_token_id
        model = self.lm.model
        processors = LogitsProcessorList()
        hidden = _Hidden(model) if self.laws else None
        if self.laws or sampling.temperature > 0:
            processors.append(_Drawn(self.laws, sampling, rows, hidden, padded.shape[1], mask.to(device)))
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new, do_sample=False, num_beams=1, use_cache=True, pad_token_id=eos or 0, eos_token_id=eos
        )
        # A model's own generation defaults (a repetition penalty, say) would fill what is not set here.
        theirs, model.generation_config = model.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
        try:
            out = model.generate(  # type: ignore[operator]
                input_ids=padded.to(device),
                attention_mask=mask.to(device),
                generation_config=settings,
                logits_processor=processors,
            )
        finally:
            model.generation_config = theirs
            if hidden:
                hidden.remove()
        fresh = out[:, padded.shape[1] :].tolist()
        return [row[: row.index(eos)] if eos in row else row for row in fresh]

    @torch.inference_mode()
    def _forced(
        self, prompts: Sequence[str], values: Sequence[str], bodies: list[list[int]], budgets: list[int]
    ) -> list[bool | None]:
        answers: list[bool | None] = [None] * len(prompts)
        heads = [self._room(self._prompt(prompt), budget) for prompt, budget in zip(prompts, budgets, strict=True)]
        for rows in self._batches([len(heads[r]) + len(bodies[r]) for r in range(len(prompts))]):
            logprobs, _ = self._forward([heads[r] + bodies[r] for r in rows])
            for place, row in enumerate(rows):
                start, body = len(heads[row]) - 1, bodies[row]
                top = logprobs[place, start : start + len(body)].topk(2, -1)
                lead = (top.values[:, 0] - top.values[:, 1]).tolist()
                answers[row] = self._decided(heads[row], body, values[row], top.indices[:, 0].tolist(), lead)
        return answers

    def _decided(self, head: list[int], body: list[int], value: str, best: list[int], lead: list[float]) -> bool | None:
        """What the arg-max tokens prove: True, False, or None where only generation can tell."""
        value = value.strip()
        said: list[int] = []
        for token, first, margin in zip(body, best, lead, strict=True):
            if not margin >= _CLEAR_LEAD:  # written so that no number is no lead either
                return None
            said.append(first)
            if first != token:
                break
        eos = self.lm.tokenizer.eos_token_id
        if eos in said:
            return self._spelled(head, said[: said.index(eos)]).lstrip().startswith(value)
        text = self._spelled(head, said).lstrip()
        if "\ufffd" in text:
            return None
        if text.startswith(value):
            return True
        return None if value.startswith(text) else False

    def _spelled(self, head: list[int], new: list[int]) -> str:
        # Decoded with the prompt's tail, since some tokenizers drop a leading space from what begins a text.
        tail = head[-4:]
        before, whole = self.lm.decode(tail), self.lm.decode(tail + new)
        return whole[len(before) :] if whole.startswith(before) else self.lm.decode(new)

    def _windows(self, text: int, head: list[int], body: list[int]) -> Iterator[_Window]:
        """Pieces of one text that fit the context: each token is scored once, after at least half a context."""
        context = self.lm.context
        head = head[-max(context // 2, context - len(body)) :]
        ids, first = head + body, max(len(head), 1)
        if len(ids) <= first:
            return  # nothing to score
        step = context // 2
        for start in range(0, max(1, len(ids) - (context - step)), step):
            piece = ids[start : start + context]
            yield _Window(text, start, piece, first if start == 0 else context - step)

    def _forward(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Guarded log-probabilities (B, T, V) of right-padded rows, and the padded ids (B, T)."""
        padded, mask = _pad(ids, left=False)
        padded, mask = padded.to(self.lm.device), mask.to(self.lm.device)
        hidden = _Hidden(self.lm.model) if self.laws else None
        try:
            logits = self.lm.model(input_ids=padded, attention_mask=mask, use_cache=False).logits
        finally:
            if hidden:
                hidden.remove()
        if not hidden:
            return logits, padded
        logprobs = torch.log_softmax(logits.float(), -1)
        for law in self.laws:
            logprobs = law(padded.masked_fill(mask == 0, -1), hidden.value, logprobs)
        return logprobs, padded

    def _score(self, windows: list[_Window], sampling: Sampling) -> list[list[npt.NDArray[np.float64]]]:
        logits, padded = self._forward([window.ids for window in windows])
        size = logits.shape[-1]
        flat, targets = logits.reshape(-1, size), padded.roll(-1, 1).reshape(-1)
        step = max(1, _MEASURED_FLOATS.get(logits.device.type, 1 << 26) // size)
        banning = bool(self.laws) or sampling != PLAIN
        pieces = [
            _measure(flat[start : start + step], targets[start : start + step], sampling, banning)
            for start in range(0, len(flat), step)
        ]
        columns = torch.cat(pieces).double().cpu().numpy().reshape(*padded.shape, 4)
        return [list(columns[row, window.scored - 1 : len(window.ids) - 1].T) for row, window in enumerate(windows)]


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    text: int
    place: int
    ids: list[int]
    scored: int  # the first token of ``ids`` that is scored here


def _measure(logits: Tensor, targets: Tensor, sampling: Sampling, banning: bool) -> Tensor:
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


def _joined(tokens: Ints, parts: list[tuple[int, list[npt.NDArray[np.float64]]]]) -> Signals:
    columns = [np.concatenate([part[column] for _, part in parts]) if parts else np.zeros(0) for column in range(4)]
    logprob, mean, std = (column.astype(np.float32) for column in columns[:3])
    return Signals(tokens, logprob, mean, std, columns[3].astype(np.int64))


def _pad(ids: list[list[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in ids)
    padded = torch.zeros(len(ids), longest, dtype=torch.long)
    mask = torch.zeros(len(ids), longest, dtype=torch.long)
    for place, row in enumerate(ids):
        span = slice(longest - len(row), longest) if left else slice(0, len(row))
        padded[place, span] = torch.tensor(row, dtype=torch.long)
        mask[place, span] = 1
    return padded, mask


class _Hidden:
    """Catches what goes into the output embedding: the hidden state a law may look at."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.value = torch.empty(0)
        head = model.get_output_embeddings()  # type: ignore[operator]
        self._handle = head.register_forward_pre_hook(self._catch)

    def _catch(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.value = inputs[0]

    def remove(self) -> None:
        """Lets go of the model."""
        self._handle.remove()


class _Drawn(LogitsProcessor):
    """Applies laws and sampling; a draw is an arg-max after Gumbel noise, so it needs no batch-wide random state."""

    def __init__(
        self,
        laws: tuple[Law, ...],
        sampling: Sampling,
        rows: list[int],
        hidden: _Hidden | None,
        width: int,
        mask: Tensor,
    ) -> None:
        self._laws, self._sampling, self._hidden = laws, sampling, hidden
        self._width, self._mask = width, mask
        self._noise = [torch.Generator().manual_seed(_seed(sampling.seed, row)) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logprobs = torch.log_softmax(scores.float(), -1)
        if self._hidden:
            ids = input_ids.clone()
            ids[:, : self._width] = ids[:, : self._width].masked_fill(self._mask == 0, -1)
            for law in self._laws:
                logprobs = law(ids, self._hidden.value[:, -1:], logprobs[:, None])[:, 0]
        if self._sampling.temperature == 0:
            return logprobs
        logprobs = self._sampling.warp(logprobs)
        noise = torch.stack([torch.rand(logprobs.shape[-1], generator=source) for source in self._noise])
        return logprobs - torch.log(-torch.log(noise.clamp_(1e-20, 1 - 1e-7))).to(logprobs.device)


def _seed(seed: int, row: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:8], "little") >> 1


@dataclasses.dataclass(frozen=True, slots=True)
class _TextOnly:
    """Access ``text`` and nothing beside it."""

    generate: Callable[..., list[str]]
    continues: Callable[..., list[bool]]


@dataclasses.dataclass(frozen=True, slots=True)
class _WithLogprobs(_TextOnly):
    """Access ``logprobs``."""

    signals: Callable[..., list[Signals]]


@dataclasses.dataclass(frozen=True, slots=True)
class _WithWeights(_WithLogprobs):
    """Access ``weights``."""

    model: LM


def limited(target: Target, access: str) -> TextTarget:
    """The part of a target that an attack's declared access allows."""
    if access == "text":
        return _TextOnly(target.generate, target.continues)
    if access == "logprobs":
        return _WithLogprobs(target.generate, target.continues, target.signals)
    if access != "weights":
        raise PluginError(f"'{access}' is no access; an attack declares text, logprobs or weights")
    model: LM = target.model  # type: ignore[attr-defined]
    return _WithWeights(target.generate, target.continues, target.signals, model)
