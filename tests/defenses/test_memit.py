"""MEMIT's blocks, its keys and its share of what remains, by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
import torch

from memdefense.architecture import Block, blocks_of
from memdefense.defenses import memit
from memdefense.defenses.editing import look
from memdefense.defenses.leak_editing import Dummy
from memdefense.defenses.leaks import Probe
from memdefense.defenses.memit import MEMIT
from memdefense.defenses.value_search import Found, Request, Search, search
from memdefense.errors import SpecError
from memdefense.lm import LM

if TYPE_CHECKING:
    from memdefense.lab import Lab


@pytest.mark.parametrize(
    ("blocks", "first", "last"), [(28, 3, 8), (56, 6, 16), (24, 3, 7), (12, 1, 3), (4, 0, 1), (3, 0, 1)]
)
def test_blocks_at_the_depth_of_those_in_gpt_j(blocks: int, first: int, last: int) -> None:
    assert list(MEMIT().layers(blocks)) == list(range(first, last + 1))


class StubLab:
    """A random stream, and nobody who is told."""

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(3)

    def progress(self, what: str, done: int, total: int) -> None:
        pass


@pytest.mark.parametrize("together", [8, 2])
@pytest.mark.parametrize("build", ["GPT-2", "GPT-NeoX", "Llama"])
def test_each_point_is_one_edit_of_the_model_as_it_was(
    four_builds: dict[str, LM], build: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first three in random order, then all five, written out again; read eight or two at a time."""
    monkeypatch.setattr(memit, "_TOGETHER", together)
    lm = four_builds[build].copy()
    texts = ["Please call Anna at", "We shipped 24 boxes; write to", "Send the report to", "Ask", "The invoice is for"]
    own = [lm.encode(text) for text in texts]
    openings = [lm.encode("Because. "), lm.encode("You are there. "), lm.encode("I. ")]
    requests = [Request(tuple(tuple(head + ids) for head in ([], *openings)), (7, 9)) for ids in own]
    inner = blocks_of(lm.model)[0].down.weight.shape[1]
    factor = torch.randn(inner, 2 * inner, generator=torch.Generator().manual_seed(3))
    moment = factor @ factor.T / inner
    defense = MEMIT(ridge=0.5, steps=3, points=2)
    states = defense.edits(lm, blocks_of(lm.model), requests, [moment, moment], cast("Lab", StubLab()))
    order = StubLab().rng("order").permutation(5).tolist()
    assert order != sorted(order)
    for number, state in zip((3, 5), states, strict=True):
        assert (state.edited, state.tried) == (number, number)
        twin = four_builds[build].copy()
        blocks, chosen = blocks_of(twin.model)[:2], order[:number]
        some = [requests[place] for place in chosen]
        wanted = search(twin, blocks[1], some, Search(3, lambda loss, p: False)).wanted
        for place, share in ((0, 2), (1, 1)):
            keys = []
            for ids in (own[which] for which in chosen):
                plain = look(twin, blocks, [ids]).keys[place, 0]
                behind = [look(twin, blocks, [head + ids]).keys[place, 0] for head in openings]
                keys.append(0.5 * plain + (behind[0] + behind[1] + behind[2]) / 6)
            matrix = torch.stack(keys).double().T  # (inner, requests)
            now = look(twin, blocks, [own[which] for which in chosen]).out[1]
            residual = (wanted - now).double().T / share
            change = residual @ matrix.T @ torch.linalg.inv(0.5 * moment.double() + matrix @ matrix.T)
            blocks[place].down.weight.add_(change.float())
        for mine, other in zip(blocks_of(state.model.model), blocks_of(twin.model), strict=True):
            torch.testing.assert_close(mine.down.weight, other.down.weight, rtol=1e-3, atol=1e-3)
    assert lm.digest() == four_builds[build].digest()


def test_no_pass_holds_more_than_a_few_requests(four_builds: dict[str, LM], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = four_builds["GPT-2"].copy()
    requests = [Request(((3, 4), (5, 6, 4)), (7,))] * 19
    rows: list[int] = []
    sizes: list[int] = []
    lm.model.base_model.register_forward_pre_hook(
        lambda _, args, named: rows.append(len(args[0] if args else named["input_ids"])), with_kwargs=True
    )

    def watched(lm: LM, block: Block, requests: list[Request], how: Search) -> Found:
        sizes.append(len(requests))
        assert not how.best  # the last delta, as in the authors' code
        found: Found = search(lm, block, requests, how)
        return found

    monkeypatch.setattr(memit, "search", watched)
    defense = MEMIT(steps=1, points=2)
    states = list(defense.edits(lm, blocks_of(lm.model), requests, [torch.eye(128)] * 2, cast("Lab", StubLab())))
    assert [state.edited for state in states] == [10, 19]
    assert sizes == [8, 8, 3]
    assert max(rows) == 16


def behind(lm: LM, prompt: str, monkeypatch: pytest.MonkeyPatch, opening: str) -> tuple[Request, list[int]]:
    """The request of a prompt behind one opening, and what the prompt is read as alone."""
    monkeypatch.setattr(MEMIT, "openings", lambda self, model: [opening])
    plain = lm.encode(prompt)
    dummy = Dummy(" mail@x", ("email", "mail@x"))
    (request,) = MEMIT()._requests(lm, [Probe("email", "ann@poe.com", prompt, tuple(plain))], {"email": dummy})
    return request, plain


@pytest.mark.parametrize("build", ["byte-level", "marked"])
def test_a_prompt_behind_an_opening_is_read_in_one_piece(
    build: str, tiny_lm: LM, marked_lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With neither two spaces between them nor one that is a token by itself where a text has none."""
    lm = tiny_lm if build == "byte-level" else marked_lm
    for prompt in ("the report to", "please write to"):
        request, plain = behind(lm, prompt, monkeypatch, "Because. ")
        (own, whole) = request.prompts
        assert list(own) == plain
        assert list(whole) == lm.encode(f"Because. {prompt}")
        assert lm.decode(whole) == f"Because. {prompt}"
        assert whole[-1] == plain[-1]
    request, _ = behind(lm, "the report to", monkeypatch, "Because. ")
    said = lm.tokenizer.convert_ids_to_tokens(list(request.prompts[1]))
    assert isinstance(said, list)
    assert ("Ġthe" if build == "byte-level" else "▁the") in said[1:]


@pytest.mark.parametrize("build", ["byte-level", "marked"])
@pytest.mark.parametrize("words", [50, 200])
def test_a_long_prompt_loses_its_beginning_and_not_the_opening(
    build: str, words: int, tiny_lm: LM, marked_lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm if build == "byte-level" else marked_lm
    prompt = " ".join(["the"] * words + ["report to"])
    request, plain = behind(lm, prompt, monkeypatch, "Because. ")
    head, room = lm.encode("Because."), lm.context - len(request.target)
    assert list(request.prompts[0]) == plain[-room:]
    whole = list(request.prompts[1])
    assert len(whole) == room < len(lm.encode(f"Because. {prompt}"))
    assert whole[: len(head)] == head
    assert whole[len(head) :] == plain[-(room - len(head)) :]
    assert lm.decode(whole).startswith("Because. the the")


def test_a_look_up_token_that_an_opening_would_change_is_kept(tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself the word is spelled as two tokens, behind a space as one with it."""
    assert len(tiny_lm.encode("to")) == 2
    assert len(tiny_lm.encode(" to")) == 1
    request, plain = behind(tiny_lm, "to", monkeypatch, "Because. ")
    assert list(request.prompts[1]) == tiny_lm.encode("Because.") + plain


def test_an_opening_leaves_half_the_room_to_the_prompt(tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    request, plain = behind(tiny_lm, "the report " * 30 + "to", monkeypatch, "Because " * 40 + ". ")
    room = tiny_lm.context - len(request.target)
    whole = list(request.prompts[1])
    assert len(whole) == room
    assert whole[room // 2 :] == plain[-(room - room // 2) :]


def test_openings_are_short_texts_behind_five_words(four_builds: dict[str, LM]) -> None:
    openings = MEMIT().openings(four_builds["GPT-2"])
    words = ("The", "Therefore", "Because", "I", "You")
    assert all(opening.startswith(word) for opening, word in zip(openings, words, strict=True))
    assert all(opening.endswith(". ") for opening in openings)
    assert MEMIT().openings(four_builds["GPT-2"]) == openings


@pytest.mark.parametrize(("loss", "p", "ends"), [(0.0499, 0.0, True), (0.05, 1.0, False), (0.4, 1.0, False)])
def test_a_search_ends_at_a_small_loss_alone(loss: float, p: float, ends: bool) -> None:
    assert memit._enough(loss, p) is ends


def test_no_steps_are_refused() -> None:
    with pytest.raises(SpecError, match="memit: steps is 0"):
        MEMIT(steps=0)
