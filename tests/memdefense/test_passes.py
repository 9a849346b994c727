"""Rows that share a beginning, against each row by itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, MambaConfig, PreTrainedConfig

from memdefense import keyvalues, passes
from memdefense.lm import LM
from memdefense.passes import beginnings, copies
from memdefense.target import LocalTarget, Sampling, Signals

CONTEXTS = ["Could you send the report to", "We shipped 24 boxes yesterday; please call", "x"]
TEXTS = [" Anna", " +1 415 555 0134 before noon.", "", " b", " the team, and keep the old one", " 24"]
ASKED = [(context, text) for context in CONTEXTS for text in TEXTS]
SCHEMES = [Sampling(temperature=1.0), Sampling(temperature=0.7, top_k=5)]


@pytest.fixture(autouse=True)
def _few_tokens_are_worth_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(passes._PASS_TOKENS, "cpu", 16)


def answers(lm: LM, asked: list[tuple[str, str]], **extra: object) -> list[Signals]:
    contexts, texts = zip(*asked, strict=True)
    return LocalTarget(lm, **extra).signals(list(texts), contexts=list(contexts))  # type: ignore[arg-type]


def alone(lm: LM, sampling: Sampling) -> list[Signals]:
    """Each by itself, with no cache at all."""
    target = LocalTarget(lm)
    return [target.signals([text], contexts=[context], sampling=sampling)[0] for context, text in ASKED]


def same(found: list[Signals], expected: list[Signals]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        for name in ("logprob", "mean", "std"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=2e-5, atol=2e-5)
        assert one.rank.tolist() == other.rank.tolist()


def passed(lm: LM) -> list[tuple[int, int, bool]]:
    """Rows and tokens of every later pass over a model, and whether a beginning was ready before it."""
    seen: list[tuple[int, int, bool]] = []

    def note(_: object, args: object, given: dict[str, object]) -> None:
        ids = given["input_ids"]
        assert isinstance(ids, torch.Tensor)
        cache = given.get("past_key_values")
        ready = any(isinstance(at, keyvalues.SharedLayer) for at in getattr(cache, "layers", []))
        seen.append((*ids.shape, ready))

    lm.model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.mark.parametrize("build", ["GPT-2", "GPT-Neo", "GPT-NeoX", "Llama"])
@pytest.mark.parametrize("sampling", SCHEMES, ids=["plain", "warped"])
def test_rows_that_share_a_beginning_have_the_signals_of_each_alone(
    four_builds: dict[str, LM], build: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = four_builds[build].copy()
    expected = alone(lm, sampling)
    seen = passed(lm)
    contexts, texts = zip(*ASKED, strict=True)
    for size in (0, 1, 4):
        seen.clear()
        same(LocalTarget(lm, size).signals(list(texts), contexts=list(contexts), sampling=sampling), expected)
        begun = [tokens for rows, tokens, ready in seen if not ready and rows == 1]
        # Two of the contexts are long enough; each is passed over once, without its last token.
        lengths = {len(lm.encode(context)) - 1 for context in CONTEXTS[:2]}
        assert lengths <= set(begun)
        assert sum(ready for *_, ready in seen) >= 2


def test_a_beginning_is_passed_over_once(tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm.copy()
    seen = passed(lm)
    asked = [(CONTEXTS[0], text) for text in TEXTS] * 3
    answers(lm, asked)
    beginning = len(lm.encode(CONTEXTS[0])) - 1
    first, *rest = seen
    assert first == (1, beginning, False)
    assert all(ready for *_, ready in rest)
    longest = max(len(lm.encode(text)) for text in TEXTS)
    # An empty text has nothing to score and is no row.
    rows = sum(bool(text) for _, text in asked)
    assert sum(count for count, *_ in rest) == rows
    assert max(tokens for _, tokens, _ in rest) == longest + 1


def test_few_rows_or_short_beginnings_are_not_worth_a_pass(tiny_lm: LM) -> None:
    seen = passed(lm := tiny_lm.copy())
    answers(lm, [(context, " Anna") for context in CONTEXTS] + [("x", text) for text in TEXTS])
    assert seen
    assert not any(ready for *_, ready in seen)


def test_behind_a_law_every_row_is_read_whole(tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = passed(lm := tiny_lm.copy())
    answers(lm, ASKED, laws=(lambda ids, hidden, logprobs: logprobs,))
    assert seen
    assert not any(ready for *_, ready in seen)


SLIDING = Gemma2Config(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    sliding_window=4,
    max_position_embeddings=64,
    layer_types=["sliding_attention", "full_attention"],
)


@pytest.mark.parametrize(
    "config", [SLIDING, MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4)], ids=["sliding window", "state"]
)
def test_a_model_that_forgets_or_sums_up_shares_nothing(
    tiny_lm: LM, config: PreTrainedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config.vocab_size = tiny_lm.model.config.vocab_size
    lm = LM(AutoModelForCausalLM.from_config(config).eval(), tiny_lm.tokenizer)  # type: ignore[no-untyped-call]
    expected = alone(lm, SCHEMES[0])
    seen = passed(lm)
    same(answers(lm, ASKED), expected)
    assert not any(ready for *_, ready in seen)


def test_a_long_beginning_is_copied_for_few_rows_at_once(tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two heads of width 16, keys and values, four bytes: 256 bytes a token and layer.
    assert copies(tiny_lm, 30) > 100
    monkeypatch.setitem(passes._SHARED_BYTES, "cpu", 3 * 30 * 256)
    assert copies(tiny_lm, 30) == 3
    assert copies(tiny_lm, 300) == 1
    assert copies(tiny_lm, 0) == 0
    # Rows that are asked for are had, unless each needs a copy.
    assert [len(rows) for rows in passes.batches(tiny_lm, [1] * 700, size=600)] == [600, 100]
    assert [len(rows) for rows in passes.batches(tiny_lm, [1] * 7, size=5, most=3)] == [3, 3, 1]
    seen = passed(lm := tiny_lm.copy())
    asked = [(CONTEXTS[1], text) for text in TEXTS] * 3
    beginning = len(lm.encode(CONTEXTS[1])) - 1
    answers(lm, asked)
    assert max(rows for rows, *_ in seen) == copies(lm, beginning) < len(asked)


def test_what_does_not_share_comes_last(tiny_lm: LM) -> None:
    jobs = [
        passes.Window(0, 0, [*range(20), 40], 20),
        passes.Window(1, 0, [7, 8, 9], 1),
        passes.Window(2, 0, [*range(20), 41, 42], 20),
    ]
    assert beginnings(tiny_lm, jobs) == [(19, [0, 2]), (0, [1])]
    assert beginnings(tiny_lm, jobs[::2]) == [(19, [0, 1])]
    assert beginnings(tiny_lm, jobs[:2]) == [(0, [0, 1])]
    later = [dataclasses.replace(job, place=9) for job in jobs]  # of a long text, and of a copy of it
    assert beginnings(tiny_lm, later) == [(0, [0, 1, 2])]
