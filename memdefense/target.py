"""A model in this process that answers an attacker, behind any number of guards."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from memdefense.access import (
    GREEDY,
    PLAIN,
    Again,
    Law,
    LogprobTarget,
    Sampling,
    Signals,
    Target,
    TextGuard,
    TextTarget,
    WeightTarget,
    limited,
)
from memdefense.errors import ModelError, PluginError, SpecError
from memdefense.keyvalues import last_logits, reserved, shared
from memdefense.laws import Caught, Drawn, applied, reach
from memdefense.passes import (
    Columns,
    Window,
    batches,
    beginnings,
    copies,
    joined,
    measure,
    pad,
    rows_at_once,
    windows,
)
from memdefense.spelling import budget, continued, cropped, decided, opened, spelled

if TYPE_CHECKING:
    from transformers import DynamicCache

    from memdefense.lm import LM


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    """What was asked at once: the prompts, as they are fed, how many new tokens each, and how those are drawn."""

    prompts: Sequence[str]
    ids: Sequence[list[int]]
    new: int
    sampling: Sampling


@dataclasses.dataclass(frozen=True)
class LocalTarget:
    """A model in this process, behind any number of guards.

    Attributes:
        lm: the model.
        batch_size: sequences per forward pass; 0 fills a budget of tokens and of logits.
        laws: applied to the next-token log-probabilities, in order.
        texts: applied to each continuation, in order.
        owned: the sampling a guard insists on, whatever is asked for; a seed that is asked for is added to its own.
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
        """This target behind one more guard.

        Raises:
            ModelError: the laws look back on more than half the context, the least that goes before a scored token.
        """
        laws = self.laws + ((law,) if law else ())
        if reach(laws) >= self.lm.context // 2:
            raise ModelError(
                f"the guards look back on {reach(laws)} tokens; a context of {self.lm.context} has room for fewer than "
                f"{self.lm.context // 2}"
            )
        return dataclasses.replace(
            self,
            laws=laws,
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
        return self._said(self._call(prompts, max_new_tokens, sampling), range(len(prompts)), self.texts)

    def unfiltered(self) -> LocalTarget:
        """The same weights, laws and sampling, before the text guards."""
        return dataclasses.replace(self, texts=())

    def filtered(self, prompts: Sequence[str], continuations: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """What the text guards make of given continuations; what they draw anew is what `generate` would draw."""
        if not self.texts:
            return list(continuations)
        call = self._call(prompts, max_new_tokens, GREEDY)
        return self._behind(call, range(len(prompts)), list(continuations), self.texts)

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]:
        """Whether greedy generation begins with the value, leading white space aside.

        One teacher-forced pass decides wherever it provably equals generation: every token of the value is the clear
        arg-max, or the first other arg-max already spells something else. Only the rest is generated, with enough
        tokens for any spelling of the value, byte by byte at worst.
        """
        answers: list[bool | None] = [None] * len(prompts)
        bodies = [self.lm.encode(value, special=False) for value in values]
        budgets = [budget(self.lm, value, body) for value, body in zip(values, bodies, strict=True)]
        # In half precision no lead is clear.
        exact = self.lm.model.dtype in (torch.float32, torch.float64)
        if exact and not self.texts and (self.owned is None or self.owned.temperature == 0):
            answers = self._forced(prompts, values, bodies, budgets)
        for most in sorted(set(budgets)):
            rest = [row for row, answer in enumerate(answers) if answer is None and budgets[row] == most]
            if not rest:
                continue
            texts = self.generate([prompts[row] for row in rest], max_new_tokens=most)
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
            contexts: what stands before each text and is not scored; its tail is kept where both do not fit. The text
                is spelled as it would go on (`spelling.continued`), and all its tokens are scored.
            sampling: the scheme whose probabilities are asked for.

        Raises:
            ModelError: a log-probability is NaN; of what cannot be drawn at all it is -inf.
        """
        if contexts is None:
            before, bodies = [list[int]() for _ in texts], [self.lm.encode(text) for text in texts]
        else:
            before = [opened(self.lm, context) for context in contexts]
            bodies = [continued(self.lm, context, text) for context, text in zip(contexts, texts, strict=True)]
        jobs = [
            job
            for text, (head, body) in enumerate(zip(before, bodies, strict=True))
            for job in windows(text, head, body, self.lm.context)
        ]
        parts: list[list[tuple[int, Columns]]] = [[] for _ in texts]
        drawn = self._drawn(sampling)
        # A law may look at what went before a token, which a beginning that is passed over once no longer shows.
        groups = [(0, list(range(len(jobs))))] if self.laws else beginnings(self.lm, jobs)
        for begun, group in groups:
            cache = shared(self.lm.model, jobs[group[0]].ids[:begun]) if begun else None
            lengths = [len(jobs[row].ids) - begun for row in group]
            most = copies(self.lm, begun)
            for places in batches(self.lm, lengths, size=self.batch_size, most=most):
                rows = [group[place] for place in places]
                for row, found in zip(rows, self._score([jobs[r] for r in rows], drawn, begun, cache), strict=True):
                    parts[jobs[row].text].append((jobs[row].place, found))
        answers = [
            joined(np.asarray(body, np.int64), sorted(part, key=lambda item: item[0]))
            for body, part in zip(bodies, parts, strict=True)
        ]
        broken = sum(bool(np.isnan(one.logprob).any()) for one in answers)
        if broken:  # compared with anything, NaN would pass for a hit
            raise ModelError(
                f"the model gives no numbers for {broken} of {len(texts)} texts (NaN log-probabilities); its weights"
                f"{', or a law it is guarded by,' if self.laws else ''} are broken"
            )
        return answers

    def _drawn(self, sampling: Sampling) -> Sampling:
        if self.owned is None:
            return sampling
        return dataclasses.replace(self.owned, seed=self.owned.seed + sampling.seed)

    def _call(self, prompts: Sequence[str], new: int, sampling: Sampling) -> _Call:
        ids = [cropped(self.lm, opened(self.lm, prompt), new) for prompt in prompts]
        return _Call(prompts, ids, new, sampling)

    def _said(self, call: _Call, places: Sequence[int], guards: Sequence[TextGuard]) -> list[str]:
        """The continuations at some places of a call, behind some of the text guards."""
        drawn, kept = self._drawn(call.sampling), 1 + reach(self.laws)
        said = [""] * len(places)
        lengths = [len(call.ids[place]) + call.new for place in places]
        for rows in batches(self.lm, lengths, size=self.batch_size, kept=kept):
            asked = [places[row] for row in rows]
            made = self._continue([call.ids[place] for place in asked], asked, call.new, drawn)
            for row, place, tokens in zip(rows, asked, made, strict=True):
                said[row] = spelled(self.lm, call.ids[place], tokens)
        return self._behind(call, places, said, guards)

    def _behind(self, call: _Call, places: Sequence[int], said: list[str], guards: Sequence[TextGuard]) -> list[str]:
        """What some of the text guards make of the continuations at some places of a call."""
        chosen = [call.prompts[place] for place in places]
        for number, guard in enumerate(guards):

            def again(rows: Sequence[int], seed: int, before: Sequence[TextGuard] = guards[:number]) -> list[str]:
                scheme = call.sampling if call.sampling.temperature else PLAIN
                moved = dataclasses.replace(scheme, seed=_moved(call.sampling.seed, seed))
                return self._said(dataclasses.replace(call, sampling=moved), [places[row] for row in rows], before)

            said = list(guard(chosen, said, again))
            if len(said) != len(chosen):
                raise PluginError(f"a text guard made {len(said)} continuations of {len(chosen)}; it must answer each")
        return said

    @torch.inference_mode()
    def _continue(self, ids: list[list[int]], rows: list[int], new: int, sampling: Sampling) -> list[list[int]]:
        padded, mask = pad(ids, left=True)
        device = self.lm.device
        eos = self.lm.tokenizer.eos_token_id
        model = self.lm.model
        processors = LogitsProcessorList()
        caught = Caught(model) if self.laws else None
        if self.laws or sampling.temperature > 0:
            processors.append(Drawn(self.laws, sampling, rows, caught, padded.shape[1], mask.to(device)))
        # Unless it is told otherwise, the pass over the prompts makes the logits of their last tokens alone.
        history = last_logits(model, 1 + reach(self.laws))
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
                **history,
                **reserved(model, padded.shape[1] + new),
            )
        finally:
            model.generation_config = theirs
            if caught:
                caught.remove()
        fresh = out[:, padded.shape[1] :].tolist()
        return [row[: row.index(eos)] if eos in row else row for row in fresh]

    @torch.inference_mode()
    def _forced(
        self, prompts: Sequence[str], values: Sequence[str], bodies: list[list[int]], budgets: list[int]
    ) -> list[bool | None]:
        answers: list[bool | None] = [None] * len(prompts)
        heads = [cropped(self.lm, opened(self.lm, prompt), most) for prompt, most in zip(prompts, budgets, strict=True)]
        lengths = [len(head) + len(body) for head, body in zip(heads, bodies, strict=True)]
        for rows in batches(self.lm, lengths, size=self.batch_size):
            logprobs, _ = self._forward([heads[r] + bodies[r] for r in rows])
            for place, row in enumerate(rows):
                start, body = len(heads[row]) - 1, bodies[row]
                top = logprobs[place, start : start + len(body)].topk(2, -1)
                lead = (top.values[:, 0] - top.values[:, 1]).tolist()
                answers[row] = decided(self.lm, heads[row], body, values[row], top.indices[:, 0].tolist(), lead)
        return answers

    def _forward(self, ids: list[list[int]], cache: DynamicCache | None = None) -> tuple[Tensor, Tensor]:
        """Guarded log-probabilities (B, T, V) of right-padded rows, and the padded ids (B, T)."""
        padded, mask = pad(ids, left=False)
        padded, mask = padded.to(self.lm.device), mask.to(self.lm.device)
        if cache is not None:
            seen = padded.new_ones(len(ids), cache.get_seq_length() + padded.shape[1])
            passed = self.lm.model(input_ids=padded, attention_mask=seen, past_key_values=cache, use_cache=True)
            return passed.logits, padded
        caught = Caught(self.lm.model) if self.laws else None
        try:
            # Nothing is masked: no token sees what stands behind it, and attention without a mask is faster.
            logits = self.lm.model(input_ids=padded, attention_mask=torch.ones_like(padded), use_cache=False).logits
        finally:
            if caught:
                caught.remove()
        if not caught:
            return logits, padded
        seen, logprobs = padded.masked_fill(mask == 0, -1), torch.log_softmax(logits.float(), -1)
        return applied(self.laws, seen, caught.hidden, logprobs, logprobs.shape[1]), padded

    def _score(
        self, windows: list[Window], sampling: Sampling, begun: int, cache: DynamicCache | None
    ) -> list[Columns]:
        logits, padded = self._forward([window.ids[begun:] for window in windows], cache)
        size = logits.shape[-1]
        flat, targets = logits.reshape(-1, size), padded.roll(-1, 1).reshape(-1)
        step = rows_at_once(logits.device.type, size)
        banning = bool(self.laws) or sampling != PLAIN
        pieces = [
            measure(flat[start : start + step], targets[start : start + step], sampling, banning)
            for start in range(0, len(flat), step)
        ]
        columns = torch.cat(pieces).double().cpu().numpy().reshape(*padded.shape, 4)
        return [
            list(columns[row, window.scored - 1 - begun : len(window.ids) - 1 - begun].T)
            for row, window in enumerate(windows)
        ]


def _moved(seed: int, by: int) -> int:
    """A query's seed moved on for a redraw; not by addition, or the redraws of the next seed would be the same."""
    if not by:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{by}".encode()).digest()[:8], "little") >> 1


__all__ = [
    "GREEDY",
    "PLAIN",
    "Again",
    "Law",
    "LocalTarget",
    "LogprobTarget",
    "Sampling",
    "Signals",
    "Target",
    "TextGuard",
    "TextTarget",
    "WeightTarget",
    "limited",
]
