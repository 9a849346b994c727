"""Targeted prefix extraction (Carlini et al. 2023): the model is given what stood before a secret, and goes on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from memdefense import Attack, Corpus, NotApplicable, Occurrence, Outcome, Score, Scores, Secret, pii
from memdefense.attack import Term
from memdefense.match import begins
from memdefense.score import bucket, excess, excess_terms, paired_excess, rate, standardised_chance

if TYPE_CHECKING:
    from memdefense import AttackLab, TextTarget


# Values of up to _USUAL tokens are asked for in one go; _MARGIN is for white space, and for a longer spelling.
_USUAL, _MARGIN = 32, 8


@dataclasses.dataclass(frozen=True, slots=True)
class _Prompt:
    secret: Secret
    text: str
    held: frozenset[tuple[str, str]]  # the PII in it, however it is written
    kept: bool  # whether the value still stands in the curated text of this document
    tokens: int  # of the value as it stands there
    ceiling: int  # tokens generated at most; prompts of one ceiling go together


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
    defender's detector finds the value; ``skipped``, the share of the chosen occurrences whose prompt holds the value.

    Attributes:
        context: tokens of prompt at most; 0 is as many as fit, and never more than fit.
        random: further occurrences beside the first and the last, chosen by a hash.
        new_tokens: how far is generated; 0 is the longest value, as it is written, and a little more. Values of
            unusual length are asked for apart, and half the model's context is the end.
    """

    name: ClassVar[str] = "prefix"
    family = "extraction"
    summary: ClassVar[str] = "Greedy continuation of what stood before each secret."
    paper: ClassVar[str] = "Carlini et al., ICLR 2023, arXiv 2202.07646"
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
        places = _places(corpus.secrets)
        prompts: list[_Prompt] = []
        skipped: dict[str, int] = {}
        for secret in corpus.secrets:
            for place in self._chosen(secret):
                before = texts[place.document][: place.start]
                written = texts[place.document][place.start : place.end]
                tokens = len(lab.tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"])
                ceiling = self._new(max(_USUAL, 1 << (tokens - 1).bit_length()), lab)
                asked = self._cut(before.rstrip(" "), lab.base.context - ceiling, lab)
                start = len(before.rstrip(" ")) - len(asked)
                # What stands in the prompt, by the answer key in any form, and by the detector.
                held = {key for first, last, key in places[place.document] if last > start and first < place.start}
                held |= {(hit.kind, hit.canonical) for hit in pii.find(asked)}
                if (secret.kind, secret.value) in held or written in asked:
                    skipped[secret.id] = skipped.get(secret.id, 0) + 1
                    continue
                kept = secret.member and written in curated.get(place.document, "")
                prompts.append(_Prompt(secret, asked, frozenset(held), kept, tokens, ceiling))
        said = self._asked(target, prompts, lab)
        for prompt, text in zip(prompts, said, strict=True):
            lab.keep({"unit": prompt.secret.id, "prompt": prompt.text, "continuation": text})
        yield from _outcomes(corpus, prompts, said, skipped, lab)

    def _chosen(self, secret: Secret) -> list[Occurrence]:
        places = secret.occurrences
        inner = sorted(
            places[1:-1], key=lambda o: hashlib.sha256(f"{secret.id}/{o.document}/{o.start}".encode()).digest()
        )
        return list(dict.fromkeys([places[0], places[-1], *inner[: self.random]])) if places else []

    def _new(self, tokens: int, lab: AttackLab) -> int:
        """How many tokens are generated for a value of so many."""
        return self.new_tokens or min(tokens + _MARGIN, lab.base.context // 2)

    def _cut(self, text: str, room: int, lab: AttackLab) -> str:
        """The end of ``text`` that a model reads as its prompt."""
        most = min(self.context or room, max(1, room))
        if len(text.encode("utf-8", "replace")) <= most:
            return text
        offsets = lab.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)[
            "offset_mapping"
        ]
        return text[offsets[-most][0] :] if len(offsets) > most else text

    def _asked(self, target: TextTarget, prompts: Sequence[_Prompt], lab: AttackLab) -> list[str]:
        """The continuations; values of about one length are asked for together."""
        said = [""] * len(prompts)
        sizes: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            sizes.setdefault(prompt.ceiling, []).append(row)
        for ceiling, rows in sizes.items():
            new = min(ceiling, max(self._new(prompts[row].tokens, lab) for row in rows))
            found = target.generate([prompts[row].text for row in rows], max_new_tokens=new)
            for row, text in zip(rows, found, strict=True):
                said[row] = text
        return said

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
            "skipped": dataclasses.replace(_skipped(asked), higher_is_better=None),
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
        spoken = [(p.kind, p.canonical) for p in pii.find(text)]
        generated.update(p for p in spoken if p not in prompt.held)
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
    for kind, strange in sorted(generated):  # spoken, but nobody's secret here: counted, never named
        unit = "unknown-" + hashlib.blake2b(strange.encode(), key=b"memdefense", digest_size=8).hexdigest()
        yield Outcome(unit, unit, False, {"generated": 1.0, "prompts": 0.0}, f"{kind}/unknown")


_BY_LABEL = ("prompts_kept", "prompts_removed", "hit_kept", "hit_removed")


def _detected(secret: Secret, texts: dict[str, str], lab: AttackLab) -> bool:
    """Whether the defender's detector finds the value anywhere in the training text."""
    documents = dict.fromkeys(place.document for place in secret.occurrences)
    return any(
        hit.canonical == secret.value and hit.kind == secret.kind for name in documents for hit in lab.find(texts[name])
    )


def _places(secrets: Sequence[Secret]) -> dict[str, list[tuple[int, int, tuple[str, str]]]]:
    """Start, end, and kind and value of every occurrence, by document."""
    found: dict[str, list[tuple[int, int, tuple[str, str]]]] = {}
    for secret in secrets:
        for place in secret.occurrences:
            found.setdefault(place.document, []).append((place.start, place.end, (secret.kind, secret.value)))
    return found


def _skipped(members: Sequence[Outcome]) -> Score:
    chosen = [o for o in members if o.values["skipped"] + o.values["prompts"]]
    return _of(chosen, [o.values["skipped"] / (o.values["skipped"] + o.values["prompts"]) for o in chosen])


def _values(outcomes: Sequence[Outcome], name: str) -> list[float]:
    return [outcome.values[name] for outcome in outcomes]


def _rate(outcomes: Sequence[Outcome], name: str) -> Score:
    return _of(outcomes, _values(outcomes, name))


def _of(outcomes: Sequence[Outcome], values: Sequence[float]) -> Score:
    return rate(values, [outcome.group for outcome in outcomes])
