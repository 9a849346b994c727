"""From characters to tokens."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from tokenizers import processors

from memdefense import pii
from memdefense.lm import LM
from memdefense.spans import token_mask, token_offsets, token_spans

TEXT = "Please write to ann.lee@fenwick.com, or call (212) 555-0187 – café ☕ at noon."


def with_bos(lm: LM) -> LM:
    """The model with a tokenizer that begins, and also ends, every text with its end-of-text token."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end} $A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return LM(lm.model, tokenizer)


@pytest.mark.parametrize("special", [False, True])
def test_tokens_are_those_that_share_a_character(tiny_lm: LM, special: bool) -> None:
    """Byte by byte: with a byte-level vocabulary, the length of each token's bytes says which characters it spells."""
    lm = with_bos(tiny_lm) if special else tiny_lm
    ids = lm.encode(TEXT)
    owner = [place for place, character in enumerate(TEXT) for _ in character.encode()]
    backend = lm.tokenizer.backend_tokenizer
    own: list[set[int]] = []
    at = 0
    for token in ids:
        spelled = backend.id_to_token(token)
        count = 0 if token == lm.tokenizer.eos_token_id else len(spelled)  # one character of the alphabet per byte
        own.append(set(owner[at : at + count]))
        at += count
    assert at == len(owner)
    rng = np.random.default_rng(0)
    spans = [(int(a), int(a + n)) for a, n in zip(rng.integers(0, 70, 200), rng.integers(1, 20, 200), strict=True)]
    for span, (first, stop) in zip(spans, token_spans(lm, TEXT, spans), strict=True):
        expected = [place for place, chars in enumerate(own) if chars & set(range(*span))]
        assert list(range(first, stop)) == expected
        assert np.flatnonzero(token_mask(lm, TEXT, [span])).tolist() == expected
    assert len(token_offsets(lm, TEXT)) == len(ids)
    assert ids[0] == lm.tokenizer.eos_token_id or not special


def test_found_pii_is_spelled_by_its_tokens(tiny_lm: LM) -> None:
    found = pii.find(TEXT)
    assert [hit.kind for hit in found] == ["email", "phone"]
    ids = tiny_lm.encode(TEXT)
    spans = [(hit.start, hit.end) for hit in found]
    ranges = token_spans(tiny_lm, TEXT, spans)
    for hit, (first, stop) in zip(found, ranges, strict=True):
        assert hit.value in tiny_lm.decode(ids[first:stop])
        assert hit.value not in tiny_lm.decode(ids[first + 1 : stop])
        assert hit.value not in tiny_lm.decode(ids[first : stop - 1])
    inside = {place for first, stop in ranges for place in range(first, stop)}
    assert set(np.flatnonzero(token_mask(tiny_lm, TEXT, spans))) == inside


def test_nothing_found_is_no_token(tiny_lm: LM) -> None:
    assert token_spans(tiny_lm, TEXT, []) == []
    assert token_spans(tiny_lm, TEXT, [(5, 5), (900, 910)]) == [(0, 0), (0, 0)]
    assert not token_mask(tiny_lm, TEXT, []).any()
    assert len(token_mask(tiny_lm, TEXT, [])) == len(tiny_lm.encode(TEXT))
    assert token_mask(tiny_lm, "", [(0, 1)]).tolist() == []
