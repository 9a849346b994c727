"""MEMIT's blocks, its keys and its share of what remains, by hand."""

from __future__ import annotations

import pytest
import torch

from memdefense.architecture import blocks_of
from memdefense.defenses.editing import look
from memdefense.defenses.memit import MEMIT
from memdefense.defenses.value_search import Request, Search, search
from memdefense.errors import SpecError
from memdefense.lm import LM


@pytest.mark.parametrize(
    ("blocks", "first", "last"), [(28, 3, 8), (56, 6, 16), (24, 3, 7), (12, 1, 3), (4, 0, 1), (3, 0, 1)]
)
def test_blocks_at_the_depth_of_those_in_gpt_j(blocks: int, first: int, last: int) -> None:
    assert list(MEMIT().layers(blocks)) == list(range(first, last + 1))


@pytest.mark.parametrize("build", ["GPT-2", "GPT-NeoX", "Llama"])
def test_a_batch_is_the_written_rule(four_builds: dict[str, LM], build: str) -> None:
    lm, twin = four_builds[build].copy(), four_builds[build].copy()
    own = [lm.encode("Please call Anna at"), lm.encode("We shipped 24 boxes; write to")]
    openings = [lm.encode("Because. "), lm.encode("You are there. "), lm.encode("I. ")]
    requests = [Request(tuple(tuple(head + ids) for head in ([], *openings)), (7, 9)) for ids in own]
    inner = blocks_of(lm.model)[0].down.weight.shape[1]
    factor = torch.randn(inner, 2 * inner, generator=torch.Generator().manual_seed(3))
    moment = factor @ factor.T / inner
    assert MEMIT(ridge=0.5, steps=3).edit_batch(lm, blocks_of(lm.model), requests, [moment, moment]) == 2

    blocks = blocks_of(twin.model)[:2]
    wanted = search(twin, blocks[1], requests, Search(3, lambda loss, p: False)).wanted
    for place, share in ((0, 2), (1, 1)):
        keys = []
        for ids in own:
            plain = look(twin, blocks, [ids]).keys[place, 0]
            behind = [look(twin, blocks, [head + ids]).keys[place, 0] for head in openings]
            keys.append(0.5 * plain + (behind[0] + behind[1] + behind[2]) / 6)
        matrix = torch.stack(keys).double().T  # (inner, 2)
        residual = (wanted - look(twin, blocks, own).out[1]).double().T / share
        change = residual @ matrix.T @ torch.linalg.inv(0.5 * moment.double() + matrix @ matrix.T)
        blocks[place].down.weight.add_(change.float())
    for mine, other in zip(blocks_of(lm.model), blocks_of(twin.model), strict=True):
        torch.testing.assert_close(mine.down.weight, other.down.weight, rtol=1e-3, atol=1e-3)
    assert not torch.equal(blocks[0].down.weight, blocks_of(four_builds[build].model)[0].down.weight)


def test_openings_are_short_texts_behind_five_words(four_builds: dict[str, LM]) -> None:
    openings = MEMIT().openings(four_builds["GPT-2"])
    words = ("The", "Therefore", "Because", "I", "You")
    assert all(opening.startswith(word) for opening, word in zip(openings, words, strict=True))
    assert all(opening.endswith(". ") for opening in openings)
    assert MEMIT().openings(four_builds["GPT-2"]) == openings


def test_no_steps_are_refused() -> None:
    with pytest.raises(SpecError, match="memit: steps is 0"):
        MEMIT(steps=0)
