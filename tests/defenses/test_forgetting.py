"""The losses of unlearning, and what they are about."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from memdefense.corpus import Document
from memdefense.defenses.forgetting import Texts, cut, descent, nll, npo, padded, simnpo, steering
from memdefense.lm import LM

# Two sequences of three and two predicted tokens, with these probabilities of the true token.
FIRST, SECOND = (0.5, 0.25, 0.125), (0.5, 0.5)
TOTAL = torch.tensor([6 * math.log(2), 2 * math.log(2)])
COUNT = torch.tensor([3, 2])


class Fixed(nn.Module):
    """Says the probabilities it was given, whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Fixed:
        assert input_ids.shape == self.logits.shape[:2]
        assert not use_cache
        return self


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def three_tokens() -> tuple[Fixed, Tensor, Tensor]:
    """A vocabulary of two: token 1 has the probabilities of `FIRST` and `SECOND` at the places that predict it."""
    true = torch.tensor([[*FIRST, 0.9], [*SECOND, 0.9, 0.9]])
    ids = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]])
    labels = torch.tensor([[1, 1, 1, 1], [0, 1, 1, -100]])
    return Fixed(torch.stack([1 - true, true], -1).log()), ids, labels


def test_nll_by_hand() -> None:
    total, count = nll(*three_tokens())
    assert torch.allclose(total, TOTAL)
    assert torch.equal(count, COUNT)


def test_descent_is_the_mean_over_tokens_by_hand() -> None:
    assert float(descent(TOTAL, COUNT)) == pytest.approx(8 * math.log(2) / 5)


def test_npo_by_hand() -> None:
    """The reference gives the first sequence 1/8 and the second 1/4: pi / pi_ref is 1/8 and 1."""
    reference = torch.tensor([3 * math.log(2), 2 * math.log(2)])
    expected = -(2 / 0.1) * (math.log(sigmoid(-0.1 * math.log(1 / 8))) + math.log(sigmoid(0.0))) / 2
    assert float(npo(TOTAL, reference, 0.1)) == pytest.approx(expected, rel=1e-6)


def test_npo_pushes_as_ascent_does_at_the_start_and_lets_go_of_what_is_forgotten() -> None:
    """Its gradient is that of ascent times 2 pi^beta / (pi^beta + pi_ref^beta) (Zhang et al. 2024, section 3)."""
    reference = torch.tensor([3.0, 4.0])
    total = torch.tensor([3.0, 34.0], requires_grad=True)
    torch.autograd.backward(npo(total, reference, 0.1))
    assert total.grad is not None
    ratio = math.exp(-0.1 * 30)
    assert total.grad.tolist() == pytest.approx([-1 / 2, -(2 * ratio / (ratio + 1)) / 2])


def test_simnpo_by_hand() -> None:
    """NLL per token: 2 log 2 and log 2."""
    for delta in (0.0, 0.3):
        per_token = [2 * math.log(2), math.log(2)]
        expected = -(2 / 4.5) * sum(math.log(sigmoid(4.5 * (own - delta))) for own in per_token) / 2
        assert float(simnpo(TOTAL, COUNT, 4.5, delta)) == pytest.approx(expected, rel=1e-6)


def test_steering_by_hand() -> None:
    """Of width two, towards (1, 0): squared distances 1, 2, 5 to the first row, of which two tokens count, and 4."""
    hidden = torch.tensor([[[0.0, 0.0], [2.0, 1.0], [0.0, 2.0]], [[1.0, 2.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    goal = torch.tensor([1.0, 0.0])
    assert float(steering(hidden, goal, mask)) == pytest.approx(((1 + 2) / 2 / 2 + 4 / 2 / 1) / 2)
    assert float(steering(hidden, goal.expand_as(hidden), mask)) == float(steering(hidden, goal, mask))


def test_nll_is_that_of_the_model_whatever_the_padding(tiny_lm: LM) -> None:
    rows = [tiny_lm.encode("Please call Anna before noon"), tiny_lm.encode("The meeting"), [3, 4]]
    with torch.no_grad():
        total, count = nll(tiny_lm.model, *padded(rows, tiny_lm.device))
        for row, ids in enumerate(rows):
            logprobs = log_softmax(tiny_lm.model(input_ids=torch.tensor([ids])).logits[0], -1)
            expected = -sum(float(logprobs[place - 1, ids[place]]) for place in range(1, len(ids)))
            assert float(total[row]) == pytest.approx(expected, rel=1e-5)
            assert int(count[row]) == len(ids) - 1


@pytest.mark.parametrize("window", [0, 2, 5])
def test_windows_by_brute_force(tiny_lm: LM, window: int) -> None:
    rng = np.random.default_rng(window)
    texts = ["".join(rng.choice(list("abc \n@."), int(rng.integers(0, 120)))) for _ in range(30)]
    private = [Document(str(place), text) for place, text in enumerate(texts)]
    spans = [[(int(start), int(start) + 4) for start in rng.integers(0, 110, int(rng.integers(0, 3)))] for _ in texts]
    public = [Document("p", "a public text of its own"), Document("q", "")]
    made = cut(tiny_lm, private, public, spans, window=window, longest=16)
    forget: list[list[int]] = []
    retain: list[list[int]] = []
    for text, own in zip(texts, spans, strict=True):
        ids, at, hit = tiny_lm.encode(text), 0, []
        for token in ids:  # a token of this text has as many letters as its byte-level name
            size = len(tiny_lm.tokenizer.backend_tokenizer.id_to_token(token))
            hit.append(any(at < end and start < at + size for start, end in own))
            at += size
        near = [any(hit[max(0, place - window) : place + window + 1]) for place in range(len(ids))]
        run: list[int] = []
        for place, token in enumerate(ids):
            if run and (near[place] != near[place - 1] or len(run) == 16):
                (forget if near[place - 1] else retain).append(run)
                run = []
            run.append(token)
        if run:
            (forget if near[-1] else retain).append(run)
    retain += [tiny_lm.encode(public[0].text)[start : start + 16] for start in range(0, 64, 16)]
    assert list(made.forget) == [row for row in forget if len(row) > 1]
    assert list(made.retain) == [row for row in retain if len(row) > 1]
    assert made.forget


def test_a_document_without_tokens_has_no_windows(tiny_lm: LM) -> None:
    text = Document("a", "Write to ann@poe.com before noon, please, and to no one else.")
    span = [(9, 20)]
    alone = cut(tiny_lm, [text], [], [span], window=2, longest=16)
    assert alone.forget
    empty = Document("e", "")
    assert cut(tiny_lm, [empty, text, empty], [], [[], span, []], window=2, longest=16) == alone
    assert cut(tiny_lm, [empty], [], [[]], window=0, longest=16) == Texts([], [])
