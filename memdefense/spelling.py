"""Between text and tokens: what a prompt is read as, what new tokens spell, and whether they begin with a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdefense.errors import ModelError

if TYPE_CHECKING:
    from memdefense.lm import LM

# Teacher-forced and incremental passes add up in another order; an arg-max with a smaller lead than this, in nats,
# could differ between them, so that only generation can tell.
_CLEAR_LEAD = 1e-3
# White space that may stand before a value `continues` looks for, in tokens; and what its budget is rounded up to, so
# that prompts with values of about one length can be generated together.
_SLACK, _ROUND = 8, 16


def opened(lm: LM, prompt: str) -> list[int]:
    """The tokens of a prompt, at least one."""
    ids = lm.encode(prompt)
    if ids:
        return ids
    tokenizer = lm.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ModelError("an empty prompt needs a tokenizer with a beginning or end of text; this one has neither")
    return [int(start)]


def continued(lm: LM, context: str, text: str) -> list[int]:
    """The tokens of a text as the tokenizer spells it after a context, none of the context's among them.

    Where the two would share a token, whose beginning the context has said already, the text is spelled as after a
    line break.
    """
    # A text by itself will not do: SentencePiece begins every text with a blank, which a continuation has not.
    for before in (context, "\n"):
        head, whole = (lm.encode(said, special=False) for said in (before, before + text))
        if whole[: len(head)] == head:
            return whole[len(head) :]
    return lm.encode(text, special=False)


def cropped(lm: LM, ids: list[int], new: int) -> list[int]:
    """The last tokens of a prompt, as many as leave room for new ones."""
    room = lm.context - new
    if room < 1:
        raise ModelError(f"{new} new tokens do not fit the model's context of {lm.context}; ask for fewer")
    return ids[-room:]


def spelled(lm: LM, head: list[int], new: list[int]) -> str:
    """The text of new tokens after those of a prompt."""
    # Decoded with the prompt's tail, since some tokenizers drop a leading space from what begins a text.
    tail = head[-4:]
    before, whole = lm.decode(tail), lm.decode(tail + new)
    return whole[len(before) :] if whole.startswith(before) else lm.decode(new)


def budget(lm: LM, value: str, body: list[int]) -> int:
    """New tokens within which generation must have begun with a value."""
    bytewise = -(-(len(value.encode("utf-8", "surrogatepass")) + _SLACK) // _ROUND) * _ROUND
    return min(bytewise, max(len(body) + _SLACK, lm.context // 2))


def decided(lm: LM, head: list[int], body: list[int], value: str, best: list[int], lead: list[float]) -> bool | None:
    """What the arg-max tokens prove: True, False, or None where only generation can tell."""
    value = value.strip()
    said: list[int] = []
    for token, first, margin in zip(body, best, lead, strict=True):
        if not margin >= _CLEAR_LEAD:  # written so that no number is no lead either
            return None
        said.append(first)
        if first != token:
            break
    eos = lm.tokenizer.eos_token_id
    if eos in said:
        return spelled(lm, head, said[: said.index(eos)]).lstrip().startswith(value)
    text = spelled(lm, head, said).lstrip()
    if "\ufffd" in text:
        return None
    if text.startswith(value):
        return True
    return None if value.startswith(text) else False


__all__ = ["budget", "continued", "cropped", "decided", "opened", "spelled"]
