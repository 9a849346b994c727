from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor

from memdefense import pii
from memdefense.bench import Bench
from memdefense.corpus import Document
from memdefense.defense import Defense
from memdefense.defenses.pattern_filter import PatternFilter, _Filter
from memdefense.errors import SpecError
from memdefense.interval import wilson
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.target import LocalTarget, Sampling, TextGuard
from memdefense.testing import check_defense
from memdefense.train import TrainConfig

ANNA, BERT, PHONE = "anna.bell@example.com", "bert@fenwick.org", "212-555-0187"


@pytest.mark.parametrize("defense", [PatternFilter(), PatternFilter(action="resample", prompted="block")])
def test_contract(defense: PatternFilter) -> None:
    check_defense(defense)


@pytest.fixture
def lab(store: Store, tiny_lm: LM) -> Lab:
    return Lab(Bench(store), who="test", seed=0, originals=(), public=(), config=TrainConfig(), base=tiny_lm)


def guard_of(defense: PatternFilter, lab: Lab) -> TextGuard:
    target = cast(LocalTarget, defense.guard(LocalTarget(lab.fresh()), (), lab))
    (text,) = target.texts
    return text


def never(rows: Sequence[int], seed: int) -> list[str]:
    raise AssertionError("drawn again")


def test_every_value_is_masked_and_nothing_else_is_touched(lab: Lab) -> None:
    text = guard_of(PatternFilter(), lab)
    prompts = ["Hello, ", "Hello, ", "Hello, ", ""]
    said = [f" write to {ANNA}, or {PHONE}; {ANNA}!", "nothing to see", "", BERT]
    found = text(prompts, said, never)
    assert found == [" write to <EMAIL>, or <PHONE>; <EMAIL>!", "nothing to see", "", "<EMAIL>"]
    assert not any(pii.find(prompt + out) for prompt, out in zip(prompts, found, strict=True))
    some = guard_of(PatternFilter(kinds=("phone",)), lab)
    assert some(prompts[:1], said[:1], never) == [f" write to {ANNA}, or <PHONE>; {ANNA}!"]


def test_a_value_that_a_mask_uncovers_is_masked_too(lab: Lab) -> None:
    said = "x12acct 12345678+1 415 555 0134(312) 555-0199"
    (once,) = guard_of(PatternFilter(kinds=("phone",)), lab)([""], [said], never)
    assert once.endswith("<PHONE><PHONE>")
    (found,) = guard_of(PatternFilter(), lab)([""], [said], never)
    assert found.endswith("<PHONE><PHONE>")
    assert not pii.find(found)


def test_what_masking_comes_to_no_end_with_is_not_said() -> None:
    def find(text: str) -> list[pii.Pii]:
        return [pii.Pii("phone", 0, len(text), text, text)] if text else []

    assert _Filter(PatternFilter(), find, 0)([""], ["a"], never) == [""]


def test_a_value_that_the_prompt_begins_is_found_and_one_it_holds_may_be_said(lab: Lab) -> None:
    prompts = ["To anna.bell@exam", f"From {ANNA} to", f"From {ANNA.upper()} to", f"From {BERT} to"]
    said = ["ple.com soon", f" {ANNA}", f" {ANNA} and {BERT}", f" {ANNA}"]
    free, strict = guard_of(PatternFilter(), lab), guard_of(PatternFilter(prompted="block"), lab)
    assert free(prompts, said, never) == ["<EMAIL> soon", said[1], f" {ANNA} and <EMAIL>", " <EMAIL>"]
    assert strict(prompts, said, never) == ["<EMAIL> soon", " <EMAIL>", " <EMAIL> and <EMAIL>", " <EMAIL>"]


def test_a_value_that_the_prompt_hides_is_found_alone(lab: Lab) -> None:
    """After a digit and a point the phone number is no phone number any more, but it is still said."""
    prompt = "Section 3."
    assert not pii.find(prompt + PHONE)
    assert guard_of(PatternFilter(), lab)([prompt], [PHONE], never) == ["<PHONE>"]


def test_refusal_answers_nothing_at_all(lab: Lab) -> None:
    text = guard_of(PatternFilter(action="refuse"), lab)
    assert text(["a", "b"], [f"so {ANNA}", "so what"], never) == ["", "so what"]


def test_resampling_draws_only_what_holds_pii_and_masks_what_is_left(lab: Lab) -> None:
    asked: list[tuple[tuple[int, ...], int]] = []

    def again(rows: Sequence[int], seed: int) -> list[str]:
        asked.append((tuple(rows), seed))
        return ["fine" if row == 2 or (row == 3 and len(asked) == 2) else f"try {BERT}" for row in rows]

    text = guard_of(PatternFilter(action="resample", tries=2), lab)
    assert text(["p"] * 4, [ANNA, "kept", ANNA, ANNA], again) == ["try <EMAIL>", "kept", "fine", "fine"]
    assert [rows for rows, _ in asked] == [(0, 2, 3), (0, 3)]
    assert len({seed for _, seed in asked}) == 2


def test_in_a_model_that_says_an_address(tiny_lm: LM, lab: Lab) -> None:
    """It says an address or another text, by the toss of a coin: what is drawn again is drawn from the same law."""
    ways = [tiny_lm.encode(text, special=False) for text in (f" {BERT} now", " nothing of note")]
    end = int(str(tiny_lm.tokenizer.eos_token_id))
    assert ways[0][0] != ways[1][0]

    def say(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        out = torch.full_like(logprobs, -torch.inf)
        for row, tokens in enumerate(ids.tolist()):
            said = tokens[1:]  # the prompt is one token
            if not said:
                out[row, -1, [way[0] for way in ways]] = 0.0
                continue
            way = next((way for way in ways if way[0] == said[0]), [])
            out[row, -1, way[len(said)] if len(said) < len(way) else end] = 0.0
        return torch.log_softmax(out, -1)

    target, new = LocalTarget(tiny_lm).guarded(law=say), max(map(len, ways))
    plain = target.generate(["Q"] * 20, max_new_tokens=new, sampling=Sampling(seed=1))
    leaked = [BERT in text for text in plain]
    assert 2 < sum(leaked) < 18
    instead = {"redact": " <EMAIL> now", "resample": " nothing of note", "refuse": ""}
    for action, text in instead.items():
        guarded = PatternFilter(action=cast(Any, action), tries=9).guard(target, (), lab)
        said = guarded.generate(["Q"] * 20, max_new_tokens=new, sampling=Sampling(seed=1))
        assert said == [text if leak else before for leak, before in zip(leaked, plain, strict=True)]
        assert guarded.continues(["Q"], [BERT]) == [False]


def test_false_positives_on_public_text_are_noted(store: Store, tiny_lm: LM) -> None:
    """Of four public texts two hold a value in what would be generated, one of them a value that its prompt gave."""
    texts = [
        f"{'word ' * 10}{ANNA}",
        f"{ANNA} {'word ' * 10}",
        f"mail {ANNA} or else {'word ' * 4} mail {ANNA}",
        "no value at all in this text",
        "x",
    ]
    public = [Document(str(place), text) for place, text in enumerate(texts)]
    lab = Lab(Bench(store), who="t", seed=0, originals=(), public=public, config=TrainConfig(), base=tiny_lm)
    PatternFilter().guard(LocalTarget(tiny_lm), (), lab)
    assert lab.notes == {"clean_texts": 4, "false_positive_rate": 0.25}
    PatternFilter(prompted="block").guard(LocalTarget(tiny_lm), (), lab)
    assert lab.notes["false_positive_rate"] == 0.5


def test_unknown_values_are_refused_with_a_hint() -> None:
    with pytest.raises(SpecError, match="did you mean 'refuse'"):
        PatternFilter(action=cast(Any, "refuze"))
    with pytest.raises(SpecError, match="did you mean 'email'"):
        PatternFilter(kinds=("emial",))
    with pytest.raises(SpecError, match="tries"):
        PatternFilter(tries=0)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["redact", "resample", "refuse"])
def test_it_keeps_addresses_from_coming_back(
    action: Literal["redact", "resample", "refuse"], leaks: Callable[[Defense], list[tuple[int, int, float]]]
) -> None:
    ((plain, of, before),) = leaks(Defense())
    ((hits, _, after),) = leaks(PatternFilter(action=action))
    assert wilson(plain, of)[0] > 0.8  # 30 of 30
    assert wilson(hits, of)[1] < 0.2  # none
    assert after == before  # log-probabilities are not its business
