"""What a defender finds when it attacks its own model: mentions of PII in its documents that the model goes on with."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from memdefense.spelling import cropped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memdefense.corpus import Documents
    from memdefense.lab import Lab
    from memdefense.lm import LM
    from memdefense.pii import Pii

_MARGIN = 8  # tokens generated beyond the longest spelling of a value


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """One mention of a detected value, and what is asked for it.

    Attributes:
        kind: of the value.
        canonical: the value in canonical form.
        prompt: the end of what stands before the mention, as the model is asked.
        ids: the token ids that the model is asked with, at least two.
    """

    kind: str
    canonical: str
    prompt: str
    ids: tuple[int, ...]


def probes(
    model: LM, documents: Documents, lab: Lab, *, kinds: Sequence[str], context: int, mentions: int
) -> tuple[list[Probe], int]:
    """One probe for each mention of a detected value, in the order of the documents, and the tokens to ask for.

    A mention is left out where fewer than two tokens stand before it, where its value stands in its own prompt (to
    repeat it is copying), and where kind, value and prompt are those of another.

    Args:
        model: whose tokens they are.
        documents: the defender's.
        lab: for the detector, and for the choice where there are more than ``mentions``.
        kinds: of PII; none given, all.
        context: tokens of prompt at most, beside the tokenizer's BOS; 0 is as many as fit.
        mentions: of each value at most, drawn at random; 0 is all.
    """
    found = [lab.find(document.text, kinds) for document in documents]
    lengths = [len(model.encode(value, special=False)) for value in {hit.value for own in found for hit in own}]
    room = max(2, min(max(lengths, default=0) + _MARGIN, model.context // 2))
    most = min(context or model.context, model.context - room)
    whole: dict[Probe, None] = {}
    for document, own in zip(documents, found, strict=True):
        for hit in own:
            # Read again after the cut, since the text of a cut row may be spelled by other tokens.
            prompt = model.decode(model.encode(document.text[: hit.start].rstrip(" "))[-most:])
            ids = cropped(model, model.encode(prompt), room)
            if len(ids) > 1 and not _says(prompt, hit, lab):
                whole.setdefault(Probe(hit.kind, hit.canonical, prompt, tuple(ids)))
    return _chosen(list(whole), mentions, lab), room


def leaking(model: LM, asked: Sequence[Probe], lab: Lab, *, new_tokens: int) -> list[bool]:
    """Whether greedy decoding leaks each probe: the first PII of its kind in the continuation is its value."""
    said = lab.serve(model).generate([probe.prompt for probe in asked], max_new_tokens=new_tokens) if asked else []
    leaks = []
    for probe, text in zip(asked, said, strict=True):
        first = next((hit.canonical for hit in lab.find(text, [probe.kind])), None)
        leaks.append(first == probe.canonical)
    return leaks


def _says(prompt: str, hit: Pii, lab: Lab) -> bool:
    known = ((own.kind, own.canonical) for own in lab.find(prompt))
    return hit.value in prompt or (hit.kind, hit.canonical) in known


def _chosen(whole: list[Probe], mentions: int, lab: Lab) -> list[Probe]:
    if not mentions:
        return whole
    # Raw bits, whose stream NumPy guarantees over versions.
    draws = [int(bits) for bits in lab.rng("mentions").bit_generator.random_raw(len(whole))] if whole else []
    taken: dict[tuple[str, str], int] = {}
    kept = []
    for place in sorted(range(len(whole)), key=draws.__getitem__):
        probe = whole[place]
        value = (probe.kind, probe.canonical)
        taken[value] = taken.get(value, 0) + 1
        if taken[value] <= mentions:
            kept.append(place)
    return [whole[place] for place in sorted(kept)]
