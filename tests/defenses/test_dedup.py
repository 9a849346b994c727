from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from memdefense import pii
from memdefense.corpus import Document
from memdefense.defense import Defense
from memdefense.defenses.dedup import Dedup
from memdefense.errors import ModelError, SpecError
from memdefense.score import wilson
from memdefense.train import TrainConfig

if TYPE_CHECKING:
    from memdefense.lab import Lab
    from memdefense.lm import LM


class StubLab:
    def __init__(self, tokenizer: PreTrainedTokenizerBase | None = None, originals: Sequence[Document] = ()) -> None:
        self.tokenizer = tokenizer
        self.originals = originals
        self.seed = 0
        self.notes: dict[str, float] = {}

    def find(self, text: str, kinds: Sequence[str] = ()) -> list[pii.Pii]:
        return pii.find(text, kinds or pii.KINDS)

    def note(self, **values: float) -> None:
        self.notes.update(values)

    def fresh(self) -> LM:
        return cast("LM", self)

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def separator(self) -> list[int]:
        return [0]


def documents(*texts: str) -> list[Document]:
    return [Document(f"d{number}", text) for number, text in enumerate(texts)]


def curate(defense: Dedup, given: Sequence[Document], lab: StubLab | None = None) -> list[Document]:
    return list(defense.curate(given, cast("Lab", lab or StubLab())))


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]


def characters() -> PreTrainedTokenizerFast:
    """One token for each character."""
    vocabulary = {character: number for number, character in enumerate("?abc\r\n ")}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return fast(tokenizer)


def words() -> PreTrainedTokenizerFast:
    """One token for each word; white space belongs to none."""
    vocabulary = {word: number for number, word in enumerate(["?", *"abcdefghij", "x@acme.com", "y@acme.com"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fast(tokenizer)


def utf8() -> PreTrainedTokenizerFast:
    """One token for each byte, so that a character can be several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return fast(tokenizer)


def repeats(texts: Sequence[Sequence[object]], span: int) -> list[list[bool]]:
    """Masks of the windows of ``span`` tokens that were seen before, by remembering every window."""
    masks = [[False] * len(text) for text in texts]
    seen = set()
    for text, mask in zip(texts, masks, strict=True):
        for at in range(len(text) - span + 1):
            window = tuple(text[at : at + span])
            if window in seen:
                mask[at : at + span] = [True] * span
            seen.add(window)
    return masks


def test_exact_keeps_the_first_of_equal_documents_and_their_order() -> None:
    given = documents("x", "y", "x", "z", "y", "x ")
    kept = curate(Dedup(level=("exact",)), given)
    assert [document.id for document in kept] == ["d0", "d1", "d3", "d5"]
    assert all(document is given[int(document.id[1:])] for document in kept)


def test_near_keeps_the_first_of_each_brute_force_cluster() -> None:
    rng = np.random.default_rng(7)
    texts = []
    for family in range(60):
        common = [f"w{word}" for word in rng.integers(0, 400, 20 + 2 * family)]
        for _ in range(5):
            own = list(common)
            for place in rng.integers(0, len(own), rng.integers(0, 4)):
                own[place] = f"w{rng.integers(0, 400)}"
            texts.append(" ".join(own))
    given = documents(*(texts[place] for place in rng.permutation(300)))
    sets = [{tuple(own[at : at + 5]) for at in range(len(own) - 4)} for own in (d.text.split() for d in given)]
    labels = list(range(300))
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(300), 2)
        if len(sets[i] & sets[j]) >= 0.8 * len(sets[i] | sets[j])
    ]
    for _ in range(300):
        for i, j in pairs:
            labels[i] = labels[j] = min(labels[i], labels[j])
    expected = [document.id for place, document in enumerate(given) if labels[place] == place]
    assert 60 < len(expected) < 280
    assert [document.id for document in curate(Dedup(level=("near",)), given)] == expected
    assert [document.id for document in curate(Dedup(), given)] == expected


@pytest.mark.parametrize("seed", range(40))
def test_substring_equals_a_naive_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    alphabet = [*("ab" if seed % 2 else "abc"), "\n", "\r\n", " "]
    texts = ["".join(rng.choice(alphabet, rng.integers(0, 40))) for _ in range(8)]
    span = int(rng.integers(2, 8))
    given, lab = documents(*texts), StubLab(characters())
    kept = {document.id: document for document in curate(Dedup(level=("substring",), span=span), given, lab)}
    removed = 0
    for document, mask in zip(given, repeats(texts, span), strict=True):
        text = "".join(c for c, cut in zip(document.text, mask, strict=True) if not cut or c in "\r\n")
        removed += len(document.text) - len(text)
        if text == document.text:
            assert kept[document.id] is document
        elif not text.strip():
            assert document.id not in kept
        else:
            assert kept[document.id].text == text
    assert lab.notes["characters_cut"] == removed
    assert lab.notes["documents_dropped"] == 8 - len(kept)


@pytest.mark.parametrize("seed", range(20))
def test_a_character_of_several_tokens_goes_whole_or_stays(seed: int) -> None:
    """In UTF-8 the letters é, è, ĩ and © share their first byte or their last."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("aéèĩ©😀😁"), rng.integers(1, 15))) for _ in range(6)]
    span = int(rng.integers(2, 7))
    masks = repeats([text.encode() for text in texts], span)
    expected = []
    for text, mask in zip(texts, masks, strict=True):
        cut, left = iter(mask), ""
        for character in text:
            own = [next(cut) for _ in character.encode()]
            left += "" if all(own) else character
        if left:
            expected.append(left)
    lab = StubLab(utf8())
    assert [
        document.text for document in curate(Dedup(level=("substring",), span=span), documents(*texts), lab)
    ] == expected


def test_substring_by_hand_keeps_lines_apart_and_takes_the_blanks_between_tokens() -> None:
    given = documents("a b  c\nd e f", "g a b  c\nd e f h", "c d e g", "a\tb\n")
    lab = StubLab(words())
    kept = curate(Dedup(level=("substring",), span=3), given, lab)
    assert [document.text for document in kept] == [given[0].text, "g \n h", " g", given[3].text]
    assert lab.notes == {"documents_dropped": 0, "spans_cut": 2, "characters_cut": 16}


def test_a_document_that_the_cuts_leave_blank_is_dropped_and_an_empty_one_is_not() -> None:
    lab = StubLab(words())
    kept = curate(Dedup(level=("substring",), span=3), documents("a b\nc", "", "a b\nc\n"), lab)
    assert [document.id for document in kept] == ["d0", "d1"]
    assert lab.notes == {"documents_dropped": 1, "spans_cut": 1, "characters_cut": 4}


def test_pii_keeps_at_most_cap_documents_per_value() -> None:
    given = documents(
        "ann.lee@acme.com",
        "Ann.Lee@Acme.com and bob@acme.com",  # its first value is used up at cap 1, so bob's is not counted
        "bob@acme.com bob@acme.com",
        "no value at all",
        "bob@acme.com",
        "ann.lee@acme.com",
    )
    assert [d.id for d in curate(Dedup(level=("pii",)), given)] == ["d0", "d2", "d3"]
    assert [d.id for d in curate(Dedup(level=("pii",), cap=2), given)] == ["d0", "d1", "d2", "d3"]


def test_levels_act_in_one_order_and_are_noted() -> None:
    """The passage of d2 stood in d0; PII is counted on what the cuts leave."""
    shared = "a b c d e f g h i j"
    given = documents(
        f"{shared} x@acme.com", f"{shared} x@acme.com", f"{shared} c", f"{shared} y@acme.com", "b x@acme.com"
    )
    lab = StubLab(words())
    kept = curate(Dedup(level=("pii", "substring", "exact"), span=10), given, lab)
    assert [(d.id, d.text) for d in kept] == [("d0", given[0].text), ("d2", " c"), ("d3", " y@acme.com")]
    assert lab.notes == {"documents_dropped": 2, "spans_cut": 2, "characters_cut": 38}


def test_something_is_always_left() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        texts = ["".join(rng.choice(list("ab \n"), rng.integers(1, 12))) for _ in range(5)]
        lab = StubLab(characters())
        assert curate(Dedup(level=("exact", "near", "substring", "pii"), span=1), documents(*texts), lab)
    assert curate(Dedup(level=("exact", "near", "substring", "pii")), [], StubLab(characters())) == []


def test_match_steps_trains_for_the_undefended_number_of_steps() -> None:
    """Four documents of 9 characters and an end: 40 tokens, 5 rows of 8, 2 passes in batches of 2: 5 steps."""
    given = documents(*["same text"] * 4)
    config = TrainConfig(epochs=2, batch_size=2, block_size=8)
    lab = cast("Lab", StubLab(originals=given))
    assert Dedup().configure(config, lab) == config
    matched = Dedup(match_steps=True).configure(config, lab)
    assert (matched.steps, matched.epochs, matched.batch_size) == (5, 2, 2)


def test_fields_out_of_range_are_refused() -> None:
    with pytest.raises(SpecError, match="did you mean 'near'"):
        Dedup(level=("neer",))
    with pytest.raises(SpecError, match="at least one level"):
        Dedup(level=())
    with pytest.raises(SpecError, match="threshold"):
        Dedup(threshold=0)
    with pytest.raises(SpecError, match="span"):
        Dedup(span=0)
    with pytest.raises(SpecError, match="cap"):
        Dedup(cap=0)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    lab = StubLab(cast(PreTrainedTokenizerBase, Slow()))
    with pytest.raises(ModelError, match="fast tokenizer"):
        curate(Dedup(level=("substring",)), documents("a"), lab)


@pytest.mark.slow
@pytest.mark.parametrize("match_steps", [False, True])
def test_passages_that_stood_four_times_are_recited_no_more(
    recite: Callable[[Defense], tuple[int, int, float]], match_steps: bool
) -> None:
    """The intervals of the rates lie apart; with as many steps as undefended, held-out letters read a fifth worse."""
    undefended, once = recite(Defense()), recite(Dedup(match_steps=match_steps))
    assert wilson(*once[:2])[1] < wilson(*undefended[:2])[0]
    assert once[2] < 1.25 * undefended[2]


@pytest.mark.slow
def test_an_address_that_is_kept_once_does_not_come_back(
    leaks: Callable[[Defense], list[tuple[int, int, float]]],
) -> None:
    """Notes that differ around an address are no duplicates; by the value in them they are."""
    (undefended,), (alike,), (values,) = leaks(Defense()), leaks(Dedup()), leaks(Dedup(level=("pii",)))
    assert alike[0] == undefended[0]
    assert wilson(*values[:2])[1] < wilson(*undefended[:2])[0]
    assert values[2] < 1.05 * undefended[2]
