"""Sentences with a gap where a secret stood, filled with candidates, and which filling a model finds most probable."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from memdefense import Corpus, Secret

from .prompts import Key, held_in, secret_places

if TYPE_CHECKING:
    from memdefense import AttackLab, LogprobTarget


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """One ordinary mention of a secret, and the text around it.

    Attributes:
        secret: what stood there.
        before: the text before it, to the blank.
        written: the mention as it is written.
        after: the text after it.
        held: the PII in the text before and after.
    """

    secret: Secret
    before: str
    written: str
    after: str
    held: frozenset[Key]

    def filled(self, candidate: str) -> str:
        """The sentence with a candidate in its gap."""
        return f"{self.before}{candidate}{self.after}"


def gaps(corpus: Corpus, lab: AttackLab, *, secrets: int, before: int, after: int) -> tuple[list[Gap], list[Secret]]:
    """A gap for each of some members, and the members for which there is none.

    The first mention in ordinary form counts around which the value does not stand a second time.

    Args:
        corpus: whose training text it is.
        lab: whose tokenizer counts.
        secrets: members that are chosen by a hash, at most.
        before: tokens before the value, at most.
        after: tokens after it, at most.
    """
    texts = {document.id: document.text for document in corpus.train}
    places = secret_places(corpus.secrets)
    members = sorted((s for s in corpus.secrets if s.member), key=lambda s: hashlib.sha256(s.id.encode()).digest())
    found: list[Gap] = []
    without: list[Secret] = []
    for secret in members[:secrets]:
        own = (secret.kind, secret.value)
        for place in (o for o in secret.occurrences if o.form == "plain"):
            text = texts[place.document]
            head = _end(text[: place.start], before, lab)
            tail = _beginning(text[place.end :], after, lab)
            spots = places[place.document]
            held = held_in(text, place.start - len(head), place.start, spots)
            held |= held_in(text, place.end, place.end + len(tail), spots)
            if own not in held:
                found.append(Gap(secret, head, text[place.start : place.end], tail, held))
                break
        else:
            without.append(secret)
    return found, without


def most_probable(target: LogprobTarget, given: Sequence[tuple[Gap, Mapping[str, str]]]) -> list[dict[str, float]]:
    """Per gap, each candidate's share of being the filling of lowest perplexity: 1, 0, or a part of a tie.

    Args:
        target: the model.
        given: gaps, and for each the candidates as they are written, by canonical value.
    """
    signals = target.signals([gap.filled(written) for gap, candidates in given for written in candidates.values()])
    means = iter([float(s.logprob.astype(np.float64).mean()) if len(s.logprob) else -np.inf for s in signals])
    found = []
    for _, candidates in given:
        scores = {value: next(means) for value in candidates}
        best = [value for value, score in scores.items() if score == max(scores.values())]
        found.append({value: 1 / len(best) if value in best else 0.0 for value in scores})
    return found


def top_outcome(gap: Gap, shares: Mapping[str, float], known: Mapping[str, float], *, found: bool) -> dict[str, float]:
    """What an outcome says of one gap: the target's ``top``, and the base model's ``base``, for value and twin.

    Args:
        gap: what was asked about.
        shares: each candidate's share of being the target's guess.
        known: the same of the base model's.
        found: whether the defender's detector finds the value wherever it stands.
    """
    secret = gap.secret
    values = {"top": shares.get(secret.value, 0.0), "base": known.get(secret.value, 0.0)}
    values |= {"candidates": float(len(shares)), "base_twin": 0.0, "found": float(found)}
    if secret.twin:
        values |= {"twin": shares.get(secret.twin, 0.0), "base_twin": known.get(secret.twin, 0.0)}
    return values


def _end(text: str, tokens: int, lab: AttackLab) -> str:
    offsets = _offsets(text, lab)
    return text[offsets[-tokens][0] :] if len(offsets) > tokens else text


def _beginning(text: str, tokens: int, lab: AttackLab) -> str:
    offsets = _offsets(text[: 40 * tokens], lab)
    return text[: offsets[tokens - 1][1]] if len(offsets) > tokens else text[: offsets[-1][1]] if offsets else ""


def _offsets(text: str, lab: AttackLab) -> list[tuple[int, int]]:
    encoded = lab.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    return list(encoded["offset_mapping"])
