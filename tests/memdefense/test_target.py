from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedTokenizerFast

from memdefense.errors import ModelError, PluginError, SpecError
from memdefense.laws import Drawn
from memdefense.lm import LM
from memdefense.spelling import continued, spelled
from memdefense.target import GREEDY, PLAIN, Again, LocalTarget, Sampling, Signals, limited

PROMPTS = [
    "Please call Anna at",
    "",
    "The invoice",
    "Could you send the report to the team, and keep the old one",
    "x",
    "We shipped 24 boxes yesterday;",
]
TEXTS = [
    "Please call Anna at +1 415 555 0134 before noon.",
    "",
    "a",
    "The meeting on Tuesday is moved to the large room on the second floor, and the report follows by mail. " * 3,
    "ünïcode ✓ text",
]


@pytest.fixture(params=["tiny_lm", "tiny_llama"])
def lm(request: pytest.FixtureRequest) -> LM:
    found: LM = request.getfixturevalue(request.param)
    return found


def sharp(lm: LM, seed: int = 0, scale: float = 6.0) -> LM:
    """A copy with weights large enough to prefer some tokens clearly."""
    other = lm.copy()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for weight in other.model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn_like(weight) * 0.02 * scale)
    return other


def start(lm: LM, prompt: str, room: int) -> list[int]:
    ids = lm.encode(prompt) or [int(str(lm.tokenizer.eos_token_id))]
    return ids[-(lm.context - room) :]


@torch.inference_mode()
def arg_max_loop(lm: LM, prompt: str, new: int, change: Callable[[Tensor], Tensor] = lambda row: row) -> list[int]:
    """Greedy decoding with one whole pass per token and no cache."""
    ids, made = start(lm, prompt, new), list[int]()
    for _ in range(new):
        best = int(change(lm.model(input_ids=torch.tensor([ids + made])).logits[0, -1].double()).argmax())
        if best == lm.tokenizer.eos_token_id:
            break
        made.append(best)
    return made


def test_greedy_generation_is_the_models_own_arg_max_in_any_batch(lm: LM) -> None:
    model = sharp(lm)
    expected = [model.decode(arg_max_loop(model, prompt, 12)) for prompt in PROMPTS]
    assert len(set(expected)) > 3  # not one answer to all
    for size in (0, 1, 4):
        assert LocalTarget(model, size).generate(PROMPTS, max_new_tokens=12) == expected
    backwards = LocalTarget(model).generate(PROMPTS[::-1], max_new_tokens=12)
    assert backwards == expected[::-1]


def test_the_models_generation_defaults_are_not_used_and_stay(tiny_lm: LM) -> None:
    model = sharp(tiny_lm)
    plain = LocalTarget(model).generate(PROMPTS, max_new_tokens=8)
    model.model.generation_config.repetition_penalty = 50.0
    model.model.generation_config.min_length = 30
    assert LocalTarget(model).generate(PROMPTS, max_new_tokens=8) == plain
    assert model.model.generation_config.repetition_penalty == 50.0


def test_generation_ends_at_the_end_of_text(tiny_lm: LM) -> None:
    model = sharp(tiny_lm)
    third = arg_max_loop(model, PROMPTS[0], 5)
    assert len(third) == 5
    ending = LM(model.model, _with_eos(model, third[2]))
    before = next(place for place, token in enumerate(third) if token == third[2])
    assert LocalTarget(ending).generate([PROMPTS[0]], max_new_tokens=5) == [model.decode(third[:before])]


def test_long_prompts_keep_their_tail_and_impossible_lengths_are_errors(tiny_lm: LM) -> None:
    model = sharp(tiny_lm)
    long = " ".join(TEXTS[3] for _ in range(5))
    expected = model.decode(arg_max_loop(model, long, 10))
    assert LocalTarget(model).generate([long, "x"], max_new_tokens=10)[0] == expected
    with pytest.raises(ModelError, match="context of 64"):
        LocalTarget(model).generate(["x"], max_new_tokens=64)
    with pytest.raises(SpecError, match="at least 1"):
        LocalTarget(model).generate(["x"], max_new_tokens=0)
    assert LocalTarget(model).generate([], max_new_tokens=4) == []


def test_continues_equals_generation(lm: LM) -> None:
    target, model, rng = LocalTarget(sharp(lm)), sharp(lm), np.random.default_rng(0)
    prompts: list[str] = []
    values: list[str] = []
    for prompt in PROMPTS:
        ids = arg_max_loop(model, prompt, 12)
        clean = [end for end in range(1, 7) if "\ufffd" not in model.decode(ids[:end])]
        for end in clean:
            text = model.decode(ids[:end])
            values += [text, " " + text, text.strip() + "  ", text + "q", text[:-1], "z" + text, text[::-1]]
        values += ["", " ", model.decode(ids)[: int(rng.integers(1, 6))]]
        prompts += [prompt] * (len(values) - len(prompts))
    said = {prompt: target.generate([prompt], max_new_tokens=30)[0].lstrip() for prompt in PROMPTS}
    answers = [said[prompt].startswith(value.strip()) for prompt, value in zip(prompts, values, strict=True)]
    assert any(answers)
    assert not all(answers)
    assert target.continues(prompts, values) == answers
    some = slice(None, None, 17)
    assert [target.continues([p], [v])[0] for p, v in zip(prompts[some], values[some], strict=True)] == answers[some]


def rigged(lm: LM, order: list[int], tie: float = 0.0) -> LocalTarget:
    """Says the tokens of ``order`` after the first token, whatever the prompt; with ``tie``, by that lead only."""

    def law(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        out = torch.full_like(logprobs, -30.0)
        for row in range(len(ids)):
            first = int((ids[row] >= 0).nonzero()[0])
            for place in range(logprobs.shape[1]):
                step = ids.shape[1] - logprobs.shape[1] + place - first
                if 0 <= step < len(order):
                    out[row, place, order[step]] = 0.0
                    if tie:
                        out[row, place, (order[step] + 1) % out.shape[-1]] = -tie
        return torch.log_softmax(out, -1)

    return LocalTarget(lm).guarded(law=law)


def test_continues_sees_through_another_tokenisation_and_never_generates_without_need(
    tiny_lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = "anna.bell@example.com"
    usual = tiny_lm.encode(value, special=False)
    bytewise = [token for letter in value for token in tiny_lm.encode(letter, special=False)]
    assert len(bytewise) == len(value) > len(usual) + 8  # longer than a budget of so many tokens and some
    start = tiny_lm.encode("Q", special=False)
    assert len(start) == 1
    assert rigged(tiny_lm, bytewise).continues(["Q"], [value]) == [True]
    assert rigged(tiny_lm, bytewise[:-1] + start).continues(["Q"], [value]) == [False]
    near = rigged(tiny_lm, usual, tie=1e-5)
    assert near.continues(["Q"], [value]) == [True]

    def forbidden(*_: object, **__: object) -> list[str]:
        raise AssertionError("generated")

    monkeypatch.setattr(LocalTarget, "generate", forbidden)
    clear = rigged(tiny_lm, usual)
    assert clear.continues(["Q", "Q"], [value, "other"]) == [True, False]
    with pytest.raises(AssertionError, match="generated"):
        near.continues(["Q"], [value])


def test_continues_at_the_end_of_text(tiny_lm: LM) -> None:
    usual = tiny_lm.encode("before noon", special=False)
    eos = int(str(tiny_lm.tokenizer.eos_token_id))
    target = rigged(tiny_lm, [*usual, eos])
    assert target.continues(["Q"] * 3, ["before noon", "before noon.", "before"]) == [True, False, True]


def expected_signals(lm: LM, ids: list[int], first: int = 1, sampling: Sampling = PLAIN) -> list[tuple[float, ...]]:
    """Straight from the logits of one pass, in double precision."""
    if len(ids) <= first:
        return []
    with torch.inference_mode():
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0].double()
    found: list[tuple[float, ...]] = []
    for place in range(first, len(ids)):
        row = logits[place - 1]
        if sampling.top_k:
            row = row.masked_fill(row < row.sort(descending=True).values[sampling.top_k - 1], -torch.inf)
        p = torch.softmax(row / (sampling.temperature or 1.0), -1)
        logp = torch.where(p > 0, p.log(), 0.0)
        mean = float((p * logp).sum())
        std = float((p * (logp - mean) ** 2).sum() ** 0.5)
        found.append((float(p[ids[place]].log()), mean, std, float((p > p[ids[place]]).sum())))
    return found


def same(signals: Signals, expected: list[tuple[float, ...]], tolerance: float = 2e-4) -> None:
    assert signals.logprob.shape == signals.mean.shape == signals.std.shape == signals.rank.shape == (len(expected),)
    assert signals.logprob.dtype == signals.mean.dtype == signals.std.dtype == np.float32
    assert signals.rank.dtype == signals.tokens.dtype == np.int64
    columns = np.array(expected).reshape(-1, 4).T
    found = np.stack([signals.logprob, signals.mean, signals.std, signals.rank])
    np.testing.assert_allclose(found, columns, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("sampling", [PLAIN, Sampling(temperature=0.7), Sampling(top_k=5), Sampling(1.5, 10)])
def test_signals_equal_a_direct_computation(lm: LM, sampling: Sampling) -> None:
    model = sharp(lm)
    texts = [text for text in TEXTS if len(model.encode(text)) <= model.context]
    assert [len(model.encode(text)) for text in texts].count(1) == 1
    for size in (0, 1, 3):
        found = LocalTarget(model, size).signals(texts, sampling=sampling)
        for text, signals in zip(texts, found, strict=True):
            assert signals.tokens.tolist() == model.encode(text)
            same(signals, expected_signals(model, model.encode(text), sampling=sampling))


def test_logits_of_one_batch_alone_are_held(tiny_lm: LM) -> None:
    """Each batch's are gone before the next pass begins, however many texts there are."""
    held: Any = StorageWeakRef  # a view of the logits would keep their storage too
    made: list[Any] = []

    def before(*_: object) -> None:
        assert all(storage.expired() for storage in made)

    def after(_: object, __: object, output: Any) -> None:
        made.append(held(output.logits.untyped_storage()))

    hooks = [tiny_lm.model.register_forward_pre_hook(before), tiny_lm.model.register_forward_hook(after)]
    try:
        found = LocalTarget(tiny_lm, batch_size=2).signals([f"Text number {n} of nine." for n in range(9)])
    finally:
        for hook in hooks:
            hook.remove()
    assert len(found) == 9
    assert len(made) == 5


def test_greedy_signals_are_certain(tiny_lm: LM) -> None:
    model = sharp(tiny_lm)
    plain, greedy = (LocalTarget(model).signals(TEXTS[:1], sampling=s)[0] for s in (PLAIN, GREEDY))
    assert greedy.logprob.tolist() == [0.0 if rank == 0 else -np.inf for rank in plain.rank]
    assert greedy.mean.tolist() == greedy.std.tolist() == [0.0] * len(plain.rank)


def test_a_model_of_broken_weights_is_told_and_what_cannot_be_drawn_is_not(tiny_lm: LM) -> None:
    broken = tiny_lm.copy()
    with torch.no_grad():
        next(broken.model.parameters())[:] = torch.nan
    message = "gives no numbers for 4 of 5 texts .* its weights are broken"  # the second text has no token to score
    texts = [TEXTS[0], "", *TEXTS[3:], TEXTS[0]]
    with pytest.raises(ModelError, match=message):
        LocalTarget(broken).signals(texts)
    with pytest.raises(ModelError, match="its weights, or a law it is guarded by, are broken"):
        LocalTarget(tiny_lm).guarded(law=lambda ids, hidden, logprobs: logprobs * torch.nan).signals(texts)
    found = LocalTarget(tiny_lm).signals(texts, sampling=Sampling(1.0, top_k=1))
    assert any(np.isneginf(one.logprob).any() for one in found)


@pytest.mark.parametrize("context", [64, 63, 7])
def test_long_texts_are_read_in_windows_each_token_once(tiny_lm: LM, context: int) -> None:
    model = sharp(tiny_lm)
    model.model.config.n_positions = context
    ids = model.encode(TEXTS[3] * 2)
    assert model.context == context < len(ids)
    signals = LocalTarget(model).signals([TEXTS[3] * 2])[0]
    # Every token from the earliest window that holds it, windows half a context apart.
    step, expected, begin = context // 2, expected_signals(model, ids[:context]), 0
    while len(expected) < len(ids) - 1:
        begin += step
        window = expected_signals(model, ids[begin : begin + context])
        expected += window[len(expected) - begin :]
    assert len(signals.logprob) == len(ids) - 1
    same(signals, expected)


def test_contexts_condition_and_are_not_scored(lm: LM) -> None:
    model, target = sharp(lm), LocalTarget(sharp(lm))
    contexts = ["Please call Anna", "", "We shipped", TEXTS[3]]
    bodies = [" at noon", "The invoice", "", " by mail"]
    for context, body, signals in zip(contexts, bodies, target.signals(bodies, contexts=contexts), strict=True):
        ids = model.encode(body, special=False)
        head = start(model, context, len(ids))
        assert signals.tokens.tolist() == ids
        same(signals, expected_signals(model, head + ids, first=len(head)))
    long = TEXTS[3] * 2  # a text beyond the context keeps half of it for what stood before
    signals = target.signals([long], contexts=[TEXTS[3]])[0]
    ids, head = model.encode(long, special=False), model.encode(TEXTS[3])[-32:]
    assert len(signals.logprob) == len(ids)
    np.testing.assert_allclose(
        signals.logprob[:32], [row[0] for row in expected_signals(model, head + ids[:32], first=32)], atol=2e-4
    )


def test_a_continuation_is_spelled_as_in_the_whole_text(marked_lm: LM) -> None:
    target = LocalTarget(sharp(marked_lm))
    pairs = [
        ("Please call Anna at", " +1 415 555"),
        ("Please call Anna at", " noon"),
        ("invoice", "-7731 by mail"),
        ("The report is late.\n\n", "Anna ships"),
        ("mail", ""),
        ("", "The invoice"),
    ]
    found = target.signals([text for _, text in pairs], contexts=[context for context, _ in pairs])
    for (context, text), signals in zip(pairs, found, strict=True):
        (whole,) = target.signals([context + text])
        count = len(whole.tokens) - len(marked_lm.encode(context))
        first = len(whole.tokens) - count
        assert signals.tokens.tolist() == whole.tokens[first:].tolist(), text
        np.testing.assert_allclose(signals.logprob, whole.logprob[first - 1 :], atol=1e-5)
        assert signals.rank.tolist() == whole.rank[first - 1 :].tolist()


def test_a_continuation_that_would_share_a_token_is_spelled_as_after_a_line_break(marked_lm: LM, tiny_lm: LM) -> None:
    ids = marked_lm.encode("call Anna", special=False)
    assert ids[: len(marked_lm.encode("call ", special=False))] != marked_lm.encode("call ", special=False)
    spelled_out = continued(marked_lm, "call ", "Anna")
    assert marked_lm.tokenizer.convert_ids_to_tokens(spelled_out)[0][0] == "A"  # the blank has been said
    assert continued(marked_lm, "call\n", "Anna") == spelled_out
    # Byte-level tokenizers begin a text with nothing.
    for context, text in (("call ", "Anna"), ("call", " Anna"), ("two.\n\n", "Anna\n"), ("\n", "\n x"), ("", " x")):
        assert continued(tiny_lm, context, text) == tiny_lm.encode(text, special=False)


def test_a_law_rules_generation_and_signals_alike(lm: LM) -> None:
    model = sharp(lm)
    banned = arg_max_loop(model, PROMPTS[0], 3)

    def ban(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        assert hidden.shape[:2] == logprobs.shape[:2]
        assert hidden.shape[-1] == 32
        out = logprobs.clone()
        out[..., banned] = -torch.inf
        return out

    def silence(row: Tensor) -> Tensor:
        row = row.clone()
        row[banned] = -torch.inf
        return row

    guarded = LocalTarget(model).guarded(law=ban)
    expected = [model.decode(arg_max_loop(model, prompt, 10, silence)) for prompt in PROMPTS]
    assert guarded.generate(PROMPTS, max_new_tokens=10) == expected
    assert guarded.generate(PROMPTS, max_new_tokens=10) != LocalTarget(model).generate(PROMPTS, max_new_tokens=10)
    text = TEXTS[0] + model.decode(banned[:1])
    signals = guarded.signals([text, "x"])[0]
    ids = model.encode(text)
    with torch.inference_mode():
        logits = model.model(input_ids=torch.tensor([ids])).logits[0].double()
        logits[:, banned] = -torch.inf
    p = torch.softmax(logits, -1)[:-1]
    logp = torch.where(p > 0, p.log(), 0.0)
    mine = p.gather(1, torch.tensor(ids[1:])[:, None]).log()[:, 0]
    mean = (p * logp).sum(-1)
    np.testing.assert_allclose(signals.logprob, mine, atol=2e-4, rtol=2e-4)
    np.testing.assert_allclose(signals.mean, mean, atol=2e-4, rtol=2e-4)
    np.testing.assert_allclose(signals.std, ((p * (logp - mean[:, None]) ** 2).sum(-1)).sqrt(), atol=2e-4, rtol=2e-4)
    values = [model.decode(arg_max_loop(model, prompt, 2, silence)) for prompt in PROMPTS]
    assert guarded.continues(PROMPTS, values) == [
        text.lstrip().startswith(value.strip()) for text, value in zip(expected, values, strict=True)
    ]


def test_a_law_sees_the_same_ids_in_both_whatever_the_padding(tiny_lm: LM) -> None:
    seen: set[tuple[int, ...]] = set()

    def watch(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        first = ids.shape[1] - logprobs.shape[1]
        for row in ids:
            for end in range(first, ids.shape[1]):
                if row[end] >= 0:
                    seen.add(tuple(int(token) for token in row[: end + 1] if token >= 0))
        return logprobs

    target = LocalTarget(sharp(tiny_lm)).guarded(law=watch)
    made = target.generate(["The invoice", "Please call Anna at"], max_new_tokens=3)
    while_generating = {ids for ids in seen if len(ids) >= len(tiny_lm.encode("The invoice"))}
    seen.clear()
    texts = [prompt + text for prompt, text in zip(("The invoice", "Please call Anna at"), made, strict=True)]
    for prompt, text in zip(("The invoice", "Please call Anna at"), texts, strict=True):
        if tiny_lm.encode(text)[: len(tiny_lm.encode(prompt))] == tiny_lm.encode(prompt):
            target.signals([text, "padding " * 5])
    assert tuple(tiny_lm.encode("The invoice")) in while_generating & seen
    assert tuple(tiny_lm.encode("Please call Anna at")) in while_generating & seen


def test_text_guards_apply_in_order_and_to_continues(tiny_lm: LM) -> None:
    def open_with(prompts: Sequence[str], texts: Sequence[str], again: Again) -> list[str]:
        return [f"{prompt[:3]}|{text}" for prompt, text in zip(prompts, texts, strict=True)]

    def shout(prompts: Sequence[str], texts: Sequence[str], again: Again) -> list[str]:
        assert len(prompts) == len(texts)
        return [text.upper() for text in texts]

    target = LocalTarget(sharp(tiny_lm))
    plain = target.generate(PROMPTS, max_new_tokens=6)
    once = target.guarded(text=open_with)
    twice = once.guarded(text=shout)
    assert twice.generate(PROMPTS, max_new_tokens=6) == [
        f"{prompt[:3]}|{text}".upper() for prompt, text in zip(PROMPTS, plain, strict=True)
    ]
    assert twice.continues(["Please"], ["PLE|"]) == [True]
    assert target.continues(["Please"], ["PLE|"]) == [False]
    assert target.texts == ()
    short = target.guarded(text=lambda prompts, texts, again: texts[1:])
    with pytest.raises(PluginError, match="5 continuations of 6"):
        short.generate(PROMPTS, max_new_tokens=6)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.7, 9, seed=4)])
def test_a_text_guard_draws_rows_again_in_batches_behind_its_predecessors(tiny_lm: LM, sampling: Sampling) -> None:
    target = LocalTarget(sharp(tiny_lm))
    moved = int.from_bytes(hashlib.sha256(f"{sampling.seed}/11".encode()).digest()[:8], "little") >> 1
    drawn = Sampling(sampling.temperature or 1.0, sampling.top_k, seed=moved)
    plain = target.generate(PROMPTS, max_new_tokens=6, sampling=sampling)
    other = target.generate(PROMPTS, max_new_tokens=6, sampling=drawn)
    assert all(mine != theirs for mine, theirs in zip(plain, other, strict=True))

    def marked(prompts: Sequence[str], texts: Sequence[str], again: Again) -> list[str]:
        return ["*" + text for text in texts]

    def odd_anew(prompts: Sequence[str], texts: Sequence[str], again: Again) -> list[str]:
        said = list(texts)
        for row, text in zip((5, 1, 3), again((5, 1, 3), 11), strict=True):
            said[row] = text
        return said

    guarded = target.guarded(text=marked).guarded(text=odd_anew)
    expected = ["*" + (other if row % 2 else plain)[row] for row in range(6)]
    for size in (0, 1, 2):
        sized = dataclasses.replace(guarded, batch_size=size)
        assert sized.generate(PROMPTS, max_new_tokens=6, sampling=sampling) == expected


@pytest.mark.parametrize("owned", [None, Sampling(0.7, seed=3)])
def test_what_the_text_guards_make_of_what_was_meant_is_what_is_said(owned: Sampling | None, tiny_lm: LM) -> None:
    def first_anew(prompts: Sequence[str], texts: Sequence[str], again: Again) -> list[str]:
        return [*again([0], 7), *(f"{prompt[:2]}|{text}" for prompt, text in zip(prompts[1:], texts[1:], strict=True))]

    def tilted(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        return torch.log_softmax(logprobs - torch.arange(logprobs.shape[-1]) * 0.05, -1)

    open_target = LocalTarget(sharp(tiny_lm)).guarded(law=tilted, sampling=owned)
    target = open_target.guarded(text=first_anew)
    meant = target.unfiltered().generate(PROMPTS, max_new_tokens=6)
    assert meant == open_target.generate(PROMPTS, max_new_tokens=6)
    assert meant != LocalTarget(sharp(tiny_lm)).generate(PROMPTS, max_new_tokens=6)
    said = target.generate(PROMPTS, max_new_tokens=6)
    assert target.filtered(PROMPTS, meant, max_new_tokens=6) == said != meant
    assert target.filtered(PROMPTS, ["yes"] * 6, max_new_tokens=6)[1:] == [
        f"{prompt[:2]}|yes" for prompt in PROMPTS[1:]
    ]
    assert open_target.filtered(PROMPTS, meant, max_new_tokens=6) == meant


@pytest.mark.parametrize("owned", [None, Sampling(0.7, seed=3)])
def test_queries_of_consecutive_seeds_are_redrawn_apart(owned: Sampling | None, tiny_lm: LM) -> None:
    redraws: list[str] = []

    def keep(prompts: Sequence[str], texts: Sequence[str], again: Again) -> list[str]:
        assert again([0], 0) == list(texts)  # moved by nothing it is the same draw
        redraws.extend(again([0], attempt)[0] for attempt in (11, 12, 13))
        return list(texts)

    target = LocalTarget(sharp(tiny_lm, scale=2)).guarded(text=keep, sampling=owned)
    for seed in (4, 5, 6):
        target.generate(PROMPTS[:1], max_new_tokens=16, sampling=Sampling(seed=seed))
    assert len(set(redraws)) == len(redraws) == 9


@dataclasses.dataclass(frozen=True)
class Echo:
    """A law whose answer at every position depends on each of the distributions it looks back on."""

    lookback: int
    weight: float

    def __call__(self, ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        span = logprobs.shape[1]
        assert hidden.shape[:2] == (len(ids), span)
        said = torch.where((ids[:, -span:] >= 0)[..., None], logprobs, 0.0)
        total = logprobs.clone()
        for back in range(1, min(self.lookback, span - 1) + 1):
            total[:, back:] += self.weight / back * said[:, :-back]
        return torch.log_softmax(total, -1)


def echoed(rows: Tensor, laws: Sequence[Echo]) -> Tensor:
    """The same laws over all positions (T, V) of one text, position by position."""
    for law in laws:
        changed = []
        for place in range(len(rows)):
            total = rows[place].clone()
            for back in range(1, law.lookback + 1):
                if place >= back:
                    total += law.weight / back * rows[place - back]
            changed.append(torch.log_softmax(total, -1))
        rows = torch.stack(changed)
    return rows


@torch.inference_mode()
def echo_loop(lm: LM, prompt: str, new: int, laws: Sequence[Echo]) -> list[int]:
    ids, made = start(lm, prompt, new), list[int]()
    for _ in range(new):
        rows = torch.log_softmax(lm.model(input_ids=torch.tensor([ids + made])).logits[0].double(), -1)
        best = int(echoed(rows, laws)[-1].argmax())
        if best == lm.tokenizer.eos_token_id:
            break
        made.append(best)
    return made


ECHOES = [(Echo(1, 0.6),), (Echo(4, -0.5),), (Echo(2, 0.7), Echo(3, -0.6)), (Echo(0, 0.0), Echo(5, 0.4), Echo(1, -0.9))]


@pytest.mark.parametrize("laws", ECHOES, ids=lambda laws: "+".join(str(law.lookback) for law in laws))
def test_laws_that_look_back_see_one_history_in_generation_and_signals(lm: LM, laws: Sequence[Echo]) -> None:
    model = sharp(lm)
    guarded = LocalTarget(model)
    for law in laws:
        guarded = guarded.guarded(law=law)
    expected = [model.decode(echo_loop(model, prompt, 10, laws)) for prompt in PROMPTS]
    assert expected != [model.decode(arg_max_loop(model, prompt, 10)) for prompt in PROMPTS]
    for size in (0, 1, 4):
        assert dataclasses.replace(guarded, batch_size=size).generate(PROMPTS, max_new_tokens=10) == expected
    long = " ".join(TEXTS[3] for _ in range(2))
    assert guarded.generate([long, "x"], max_new_tokens=10)[0] == model.decode(echo_loop(model, long, 10, laws))
    texts = [TEXTS[0], "", "a", TEXTS[4]]
    for text, signals in zip(texts, guarded.signals(texts), strict=True):
        same(signals, echoed_signals(model, model.encode(text), 1, laws))
    values = [model.decode(echo_loop(model, prompt, 2, laws)) for prompt in PROMPTS]
    begun = [text.lstrip().startswith(value.strip()) for text, value in zip(expected, values, strict=True)]
    assert guarded.continues(PROMPTS, values) == begun


def echoed_signals(lm: LM, ids: list[int], first: int, laws: Sequence[Echo]) -> list[tuple[float, ...]]:
    if len(ids) <= first:
        return []
    with torch.inference_mode():
        rows = torch.log_softmax(lm.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    found: list[tuple[float, ...]] = []
    for place, logp in list(enumerate(echoed(rows, laws)))[first - 1 : len(ids) - 1]:
        p = logp.exp()
        mean = float((p * logp).sum())
        mine = logp[ids[place + 1]]
        found.append((float(mine), mean, float((p * (logp - mean) ** 2).sum() ** 0.5), float((logp > mine).sum())))
    return found


@pytest.mark.parametrize("laws", ECHOES, ids=lambda laws: "+".join(str(law.lookback) for law in laws))
def test_the_history_is_whole_at_the_first_scored_token_of_a_window_and_of_a_context(
    tiny_lm: LM, laws: Sequence[Echo]
) -> None:
    model = sharp(tiny_lm)
    guarded = LocalTarget(model)
    for law in laws:
        guarded = guarded.guarded(law=law)
    ids = model.encode(TEXTS[3] * 2)
    signals = guarded.signals([TEXTS[3] * 2])[0]
    expected = echoed_signals(model, ids[:64], 1, laws)
    for begin in range(32, len(ids) - 32, 32):
        expected += echoed_signals(model, ids[begin : begin + 64], 32, laws)
    assert len(ids) - 1 == len(signals.logprob) == len(expected)
    same(signals, expected[: len(ids) - 1])
    for context in ("Please call Anna", "x", ""):
        head = start(model, context, 8)
        body = model.encode(" at noon", special=False)
        found = guarded.signals([" at noon"], contexts=[context])[0]
        same(found, echoed_signals(model, head + body, len(head), laws))


def test_a_law_that_looks_back_draws_with_the_frequencies_of_its_signals(lm: LM) -> None:
    n, letters = 3000, [lm.encode(letter, special=False)[0] for letter in "abcdefgh"]

    def few(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        return torch.full_like(logprobs, -torch.inf).index_copy_(-1, torch.tensor(letters), logprobs[..., letters])

    target = LocalTarget(sharp(lm, scale=7)).guarded(law=Echo(2, 0.8)).guarded(law=few)
    drawn = target.generate(["Quick"] * n, max_new_tokens=1, sampling=PLAIN)
    p = np.exp([float(found.logprob[0]) for found in target.signals(list("abcdefgh"), contexts=["Quick"] * 8)])
    assert abs(p.sum() - 1) < 1e-5
    counts = np.array([drawn.count(letter) for letter in "abcdefgh"])
    assert counts.sum() == n
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 26  # as below


def test_laws_that_look_back_too_far_or_change_the_shape_are_errors(tiny_lm: LM) -> None:
    target = LocalTarget(tiny_lm).guarded(law=Echo(20, 0.1))
    assert target.guarded(law=Echo(11, 0.1)).signals(["a b"])
    with pytest.raises(ModelError, match="look back on 32 tokens; a context of 64 has room for fewer than 32"):
        target.guarded(law=Echo(12, 0.1))
    with pytest.raises(PluginError, match="must keep the shape"):
        target.guarded(law=lambda ids, hidden, logprobs: logprobs[:, -1:]).signals(["one and two"])


def test_owned_sampling_wins_in_generation_and_signals(tiny_lm: LM) -> None:
    target, own = LocalTarget(sharp(tiny_lm)), Sampling(0.5, 7, seed=3)
    guarded = target.guarded(sampling=own)
    assert guarded.generate(PROMPTS, max_new_tokens=6) == target.generate(PROMPTS, max_new_tokens=6, sampling=own)
    assert guarded.generate(PROMPTS, max_new_tokens=6, sampling=PLAIN) == guarded.generate(PROMPTS, max_new_tokens=6)
    mine, theirs = guarded.signals(TEXTS[:1])[0], target.signals(TEXTS[:1], sampling=own)[0]
    assert mine.logprob.tolist() == theirs.logprob.tolist()
    values = [text.lstrip()[:2] for text in guarded.generate(PROMPTS, max_new_tokens=16)]
    assert guarded.continues(PROMPTS, values) == [True] * len(PROMPTS)


def test_the_seed_asked_for_moves_an_owned_sampling(tiny_lm: LM) -> None:
    target = LocalTarget(sharp(tiny_lm))
    guarded = target.guarded(sampling=Sampling(0.5, 7, seed=3))
    for asked in (Sampling(seed=9), Sampling(0.0, seed=9)):
        expected = target.generate(PROMPTS, max_new_tokens=6, sampling=Sampling(0.5, 7, seed=12))
        assert guarded.generate(PROMPTS, max_new_tokens=6, sampling=asked) == expected


def test_draws_do_not_depend_on_the_batch(lm: LM) -> None:
    model, sampling = sharp(lm, scale=3), Sampling(seed=5)
    whole = LocalTarget(model).generate(PROMPTS, max_new_tokens=8, sampling=sampling)
    assert LocalTarget(model, 1).generate(PROMPTS, max_new_tokens=8, sampling=sampling) == whole
    assert LocalTarget(model, 4).generate(PROMPTS, max_new_tokens=8, sampling=sampling) == whole
    assert LocalTarget(model).generate(PROMPTS, max_new_tokens=8, sampling=Sampling(seed=6)) != whole


@pytest.mark.parametrize("sampling", [Sampling(seed=1), Sampling(0.6, 0, 2), Sampling(1.3, 4, 3)])
def test_draws_have_the_right_frequencies(tiny_lm: LM, sampling: Sampling) -> None:
    model, n = sharp(tiny_lm, scale=7), 3000
    letters = [tiny_lm.encode(letter, special=False)[0] for letter in "abcdefgh"]

    def few(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        return torch.full_like(logprobs, -torch.inf).index_copy_(-1, torch.tensor(letters), logprobs[..., letters])

    target = LocalTarget(model).guarded(law=few)
    drawn = target.generate(["Q"] * n, max_new_tokens=1, sampling=sampling)
    signals = target.signals(list("abcdefgh"), contexts=["Q"] * 8, sampling=sampling)
    p = np.exp([float(found.logprob[0]) for found in signals])
    assert abs(p.sum() - 1) < 1e-5
    counts = np.array([drawn.count(letter) for letter in "abcdefgh"])
    assert counts.sum() == n
    assert np.all(counts[p == 0] == 0)
    kept = p > 0
    chi2 = float(((counts[kept] - n * p[kept]) ** 2 / (n * p[kept])).sum())
    assert chi2 < 26  # seven degrees of freedom at most: exceeded once in two thousand seeds


def test_a_token_of_very_small_probability_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Gumbel noise has to exceed 25, and so its uniform number lies nearer to 1 than any of float32 does."""

    def rand(size: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        drawn = torch.full((size,), 0.5, dtype=torch.float64)
        drawn[3] = 1 - 2.0**-40
        return drawn.to(dtype)

    monkeypatch.setattr(torch, "rand", rand)
    logits = torch.zeros(1, 8)
    logits[0, 3] = -25.0
    draw = Drawn((), PLAIN, [0], None, 1, torch.ones(1, 1))
    ids = cast(torch.LongTensor, torch.zeros(1, 1, dtype=torch.long))
    assert int(draw(ids, cast(torch.FloatTensor, logits)).argmax()) == 3


def test_limited_access_shows_no_more_than_it_should(tiny_lm: LM) -> None:
    target = LocalTarget(tiny_lm)
    text, logprobs, weights = (limited(target, access) for access in ("text", "logprobs", "weights"))
    assert not hasattr(text, "signals")
    assert not any(hasattr(found, name) for found in (text, logprobs) for name in ("model", "lm", "guarded"))
    assert hasattr(logprobs, "signals")
    assert getattr(weights, "model") is tiny_lm  # noqa: B009  (the static type promises text alone)
    assert text.generate(["x"], max_new_tokens=3) == target.generate(["x"], max_new_tokens=3)
    with pytest.raises(PluginError, match="text, logprobs or weights"):
        limited(target, "everything")


def _with_eos(lm: LM, token: int | None) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(lm.tokenizer.backend_tokenizer.to_str())
    other = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)  # type: ignore[no-untyped-call]
    if token is not None:
        other.eos_token = lm.tokenizer.convert_ids_to_tokens(token)
    return other


def test_tokenizers_without_pad_bos_or_eos(tiny_lm: LM) -> None:
    model = sharp(tiny_lm)
    bare = LM(model.model, _with_eos(tiny_lm, None))
    assert bare.tokenizer.pad_token_id is bare.tokenizer.eos_token_id is bare.tokenizer.bos_token_id is None
    prompts = [prompt for prompt in PROMPTS if prompt]
    assert LocalTarget(bare).generate(prompts, max_new_tokens=6) == [
        bare.decode(arg_max_loop(bare, prompt, 6)) for prompt in prompts
    ]
    signals = LocalTarget(bare).signals(TEXTS[:3])
    assert [len(found.logprob) for found in signals] == [len(bare.encode(TEXTS[0])) - 1, 0, 0]
    assert LocalTarget(bare).continues(prompts[:1], ["zzz"]) == [False]
    with pytest.raises(ModelError, match="empty prompt"):
        LocalTarget(bare).generate([""], max_new_tokens=2)


def test_tokenizers_that_drop_a_leading_space_still_give_it_back(tiny_lm: LM) -> None:
    # In the manner of SentencePiece: a word begins with a mark for the space before it.
    words = ["<unk>", "<s>", "</s>", "▁mail", "▁Anna", "▁now", "s", "▁"]
    spelling = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, [], unk_token="<unk>"))
    spelling.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spelling.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=spelling, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    lm = LM(tiny_lm.model, tokenizer)
    assert spelled(lm, [1, 3], [4, 5]) == " Anna now"
    assert spelled(lm, [1, 3], [6]) == "s"


def test_sampling_that_makes_no_sense_is_an_error() -> None:
    for wrong in (
        functools.partial(Sampling, -1.0),
        functools.partial(Sampling, float("nan")),
        functools.partial(Sampling, 1.0, -2),
    ):
        with pytest.raises(SpecError):
            wrong()


def test_half_precision_is_never_decided_by_a_teacher_forced_pass(tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    half = dataclasses.replace(tiny_lm, model=tiny_lm.copy().model.to(torch.bfloat16))  # type: ignore[arg-type]
    monkeypatch.setattr(LocalTarget, "generate", lambda *_, **__: ["generated"])
    assert LocalTarget(half).continues(["Q"], ["gen"]) == [True]
