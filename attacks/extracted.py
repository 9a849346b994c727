"""What an extraction attack leaves: an outcome per secret and per stranger's value it made.

O is the set of distinct secret values of the original training text, S_c the part of it that stands in documents the
undefended run had read by then, and G the PII in all continuations, each without what its own prompt held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from memdefense import Corpus, Outcome, Secret
from memdefense.strata import bucket

from .prompts import Key

if TYPE_CHECKING:
    from memdefense import AttackLab


def secret_outcomes(
    corpus: Corpus, measured: Mapping[str, Mapping[str, float]], generated: frozenset[Key], lab: AttackLab
) -> Iterator[Outcome]:
    """One outcome per secret, with what was measured of it, then one per value that is nobody's secret, never named.

    Adds ``generated`` and ``generated_twin`` and, to members, ``detected`` (by the defender's detector, anywhere in
    the training text) and ``seen`` (whether its value stands in S_c).

    Args:
        corpus: whose secrets they are.
        measured: more values, by the id of each secret.
        generated: G.
        lab: whose detector and operating point count.
    """
    texts = {document.id: document.text for document in corpus.train}
    seen = lab.seen()
    for secret in corpus.secrets:
        values = {**measured.get(secret.id, {}), "generated": float((secret.kind, secret.value) in generated)}
        if secret.twin:
            values["generated_twin"] = float((secret.kind, secret.twin) in generated)
        if secret.member:
            values["detected"] = float(_detected(secret, texts, lab))
            values["seen"] = float(any(place.document in seen for place in secret.occurrences))
        yield Outcome(secret.id, secret.group, secret.member, values, stratum(secret))
    for kind, strange in sorted(generated - {(secret.kind, secret.value) for secret in corpus.secrets}):
        unit = "unknown-" + hashlib.blake2b(strange.encode(), key=b"memdefense", digest_size=8).hexdigest()
        yield Outcome(unit, unit, False, {"generated": 1.0}, f"{kind}/unknown")


def stratum(secret: Secret) -> str:
    """Kind, guessability and number of occurrences."""
    size = bucket(max(1, len(secret.occurrences)))
    return f"{secret.kind}/{'guessable' if secret.guessable else 'random'}/{size}"


def found_everywhere(secret: Secret, texts: Mapping[str, str], lab: AttackLab) -> bool:
    """Whether the defender's detector finds a secret at each of its places, whatever it is written like there."""
    return all(
        (secret.kind, place.start) in {(hit.kind, hit.start) for hit in lab.find(texts[place.document])}
        for place in secret.occurrences
    )


def _detected(secret: Secret, texts: Mapping[str, str], lab: AttackLab) -> bool:
    documents = dict.fromkeys(place.document for place in secret.occurrences)
    return any(
        hit.canonical == secret.value and hit.kind == secret.kind for name in documents for hit in lab.find(texts[name])
    )
