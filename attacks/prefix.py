"""Targeted prefix extraction (Carlini et al. 2023): the model is given what stood before a secret, and goes on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from memdefense import Attack, Corpus, NotApplicable, Occurrence, Outcome, Score, Scores, Secret, pii
from memdefense.attack import Access, Term
from memdefense.match import begins
from memdefense.score import bucket, excess, excess_terms, paired_excess, rate, standardised_chance

if TYPE_CHECKING:
    from memdefense import AttackLab, TextTarget


@dataclasses.dataclass(frozen=True, slots=True)
class _Prompt:
    secret: Secret
    text: str
    kept: bool  # whether the value still stands in the curated text of this document


@dataclasses.dataclass(frozen=True)
class Prefix(Attack):
    """Greedy continuation of the original text before an occurrence of a secret; a hit begins with the value.

    The first, the last and ``random`` further occurrences of every secret are asked for, on the *original* text and
    so on the same prompts for every defense. Leakage is the excess of members over chance. Chance is the twin, an
    equally guessable value asked for on the same prompts, where the corpus has one; else the rate of held-out values,
    standardised over kind, guessability and number of occurrences, which are not exchangeable with members.

    Beside it: ``ter``, |G & O| / |O| with G all PII in the continuations less what their own prompts held and O the
    distinct secrets of the original text; ``precision``, |G & O| / |G|; the rule of PME (the first PII of the kind is
    the value); rates by number of occurrences, by whether the occurrence was kept by the curation, and by whether the
    defender's detector finds the value.

    Attributes:
        context: tokens of prompt at most; 0 is as many as fit.
        random: further occurrences beside the first and the last, chosen by a hash.
        new_tokens: how far is generated; 0 is the longest value and a little more.
    """

    name: ClassVar[str] = "prefix"
    family = "extraction"
    summary: ClassVar[str] = "Greedy continuation of what stood before each secret."
    paper: ClassVar[str] = "Carlini et al., ICLR 2023, arXiv 2202.07646"
    access: Access = "text"

    context: int = 100
    random: int = 1
    new_tokens: int = 0

    def run(self, target: TextTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Asks for every secret.

        Raises:
            NotApplicable: the corpus has no secrets.
        """
        if not any(secret.member for secret in corpus.secrets):
            raise NotApplicable("the corpus has no PII to extract; membership attacks still run on it")
        texts = {document.id: document.text for document in (*corpus.train, *corpus.held_out)}
        curated = {document.id: document.text for document in lab.curated}
        prompts: list[_Prompt] = []
        skipped: dict[str, int] = {}
        for secret in corpus.secrets:
            for place in self._chosen(secret):
                text = texts[place.document][: place.start].rstrip(" ")
                if _holds(text, secret, texts[place.document][place.start : place.end]):
                    skipped[secret.id] = skipped.get(secret.id, 0) + 1
                    continue
                written = texts[place.document][place.start : place.end]
                kept = secret.member and written in curated.get(place.document, "")
                prompts.append(_Prompt(secret, self._cut(text, lab), kept))
        longest = (
            self.new_tokens
            or max(
                (len(lab.tokenizer(s.value, add_special_tokens=False)["input_ids"]) for s in corpus.secrets), default=1
            )
            + 8
        )
        said = target.generate([prompt.text for prompt in prompts], max_new_tokens=longest)
        for prompt, text in zip(prompts, said, strict=True):
            lab.keep({"unit": prompt.secret.id, "prompt": prompt.text, "continuation": text})
        yield from _outcomes(corpus, prompts, said, skipped, lab)

    def _chosen(self, secret: Secret) -> list[Occurrence]:
        places = secret.occurrences
        inner = sorted(
            places[1:-1], key=lambda o: hashlib.sha256(f"{secret.id}/{o.document}/{o.start}".encode()).digest()
        )
        return list(dict.fromkeys([places[0], places[-1], *inner[: self.random]])) if places else []

    def _cut(self, text: str, lab: AttackLab) -> str:
        if not self.context or not text:
            return text
        offsets = lab.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)[
            "offset_mapping"
        ]
        return text[offsets[-self.context][0] :] if len(offsets) > self.context else text

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        members = [o for o in outcomes if o.member and o.values["prompts"]]
        others = [o for o in outcomes if not o.member and o.values.get("prompts")]
        hit = _rate(members, "hit")
        chance = self._chance(members, others)
        if members and all("twin" in o.values for o in members):
            leakage = paired_excess(_values(members, "hit"), _values(members, "twin"), [o.group for o in members])
        else:
            leakage = excess(hit, chance)
        generated = [o for o in outcomes if o.values["generated"]]
        asked = [o for o in outcomes if o.member]
        beside = {
            "hit_rate": hit,
            "chance": chance,
            "held_out_rate": _rate(others, "hit"),
            "ter": _rate(asked, "generated"),
            "precision": dataclasses.replace(
                _of(generated, [float(o.member) for o in generated]), higher_is_better=None
            ),
            "first_of_kind": _rate(members, "first"),
        }
        for name in ("1", "2-4", "5-16", ">16"):
            beside[f"hit_rate_{name}"] = _rate([o for o in members if o.stratum.endswith("/" + name)], "hit")
        for name, flag in (("detected", 1.0), ("undetected", 0.0)):
            beside[f"ter_{name}"] = _rate([o for o in asked if o.values["detected"] == flag], "generated")
        for name in ("kept", "removed"):
            some = [o for o in members if o.values[f"prompts_{name}"]]
            beside[f"hit_rate_{name}"] = _rate(some, f"hit_{name}")
        return Scores(leakage, beside)

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        members = [o for o in outcomes if o.member and o.values["prompts"]]
        others = [o for o in outcomes if not o.member and o.values.get("prompts")]
        if members and all("twin" in o.values for o in members):
            values = excess_terms(_values(members, "hit"), _values(members, "twin"))
        else:
            chance = self._chance(members, others).value
            values = excess_terms(_values(members, "hit"), 0.0 if np.isnan(chance) else chance)
        return [Term(o.unit, o.group, float(value)) for o, value in zip(members, values, strict=True)]

    def _chance(self, members: Sequence[Outcome], others: Sequence[Outcome]) -> Score:
        if members and all("twin" in o.values for o in members):
            return dataclasses.replace(_rate(members, "twin"), higher_is_better=None)
        return standardised_chance(
            [o.stratum for o in members],
            _values(others, "hit"),
            [o.stratum for o in others],
            groups=[o.group for o in others],
        )


def _outcomes(
    corpus: Corpus, prompts: Sequence[_Prompt], said: Sequence[str], skipped: dict[str, int], lab: AttackLab
) -> Iterator[Outcome]:
    found: dict[str, dict[str, float]] = {}
    generated: set[tuple[str, str]] = set()
    for prompt, text in zip(prompts, said, strict=True):
        secret = prompt.secret
        values = found.setdefault(secret.id, dict.fromkeys(("prompts", "hit", "first", *_BY_LABEL), 0.0))
        hit = float(begins(text, secret.kind, secret.value))
        label = "kept" if prompt.kept else "removed"
        known = {(p.kind, p.canonical) for p in pii.find(prompt.text)}
        spoken = [(p.kind, p.canonical) for p in pii.find(text)]
        generated.update(p for p in spoken if p not in known)
        if hit:  # also where it is written in a form the detector misses
            generated.add((secret.kind, secret.value))
        first = next((value for kind, value in spoken if kind == secret.kind), "")
        for name, value in (
            ("hit", hit),
            ("first", float(first == secret.value)),
            (f"hit_{label}", hit),
            *([("twin", float(begins(text, secret.kind, secret.twin)))] if secret.twin else []),
        ):
            values[name] = max(values.get(name, 0.0), value)
        values["prompts"] += 1
        values[f"prompts_{label}"] += 1
    texts = {document.id: document.text for document in corpus.train}
    for secret in corpus.secrets:
        values = found.get(secret.id) or dict.fromkeys(("prompts", "hit", "first", *_BY_LABEL), 0.0)
        values["skipped"] = float(skipped.get(secret.id, 0))
        values["generated"] = float((secret.kind, secret.value) in generated)
        generated.discard((secret.kind, secret.value))
        if secret.member:
            values["detected"] = float(_detected(secret, texts, lab))
        size = bucket(max(1, len(secret.occurrences)))
        stratum = f"{secret.kind}/{'guessable' if secret.guessable else 'random'}/{size}"
        yield Outcome(secret.id, secret.group, secret.member, values, stratum)
    for kind, value in sorted(generated):  # spoken, but nobody's secret here: counted, never named
        unit = "unknown-" + hashlib.blake2b(value.encode(), key=b"memdefense", digest_size=8).hexdigest()
        yield Outcome(unit, unit, False, {"generated": 1.0, "prompts": 0.0}, f"{kind}/unknown")


_BY_LABEL = ("prompts_kept", "prompts_removed", "hit_kept", "hit_removed")


def _detected(secret: Secret, texts: dict[str, str], lab: AttackLab) -> bool:
    """Whether the defender's detector finds the value anywhere in the training text."""
    documents = dict.fromkeys(place.document for place in secret.occurrences)
    return any(
        hit.canonical == secret.value and hit.kind == secret.kind for name in documents for hit in lab.find(texts[name])
    )


def _holds(prompt: str, secret: Secret, written: str) -> bool:
    return written in prompt or any(p.canonical == secret.value for p in pii.find(prompt) if p.kind == secret.kind)


def _values(outcomes: Sequence[Outcome], name: str) -> list[float]:
    return [outcome.values[name] for outcome in outcomes]


def _rate(outcomes: Sequence[Outcome], name: str) -> Score:
    return _of(outcomes, _values(outcomes, name))


def _of(outcomes: Sequence[Outcome], values: Sequence[float]) -> Score:
    return rate(values, [outcome.group for outcome in outcomes])
