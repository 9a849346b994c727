"""What extraction outcomes come to: leakage over chance, TER, SER and precision.

With O, S_c and G as in `memdefense.attacks.extracted`, TER is |G & O| / |O|, SER is |G & S_c| / |S_c|, precision is
|G & O| / |G|.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from memdefense import Outcome, Score
from memdefense.attack import Term
from memdefense.score import excess, excess_terms, paired_excess, rate, standardised_chance


def extraction_rates(outcomes: Sequence[Outcome]) -> dict[str, Score]:
    """TER, SER and precision, and TER of what the defender's detector finds and of what it does not."""
    members = [o for o in outcomes if o.member]
    generated = [o for o in outcomes if o.values["generated"]]
    right = share(generated, [float(o.member) for o in generated])
    found = {
        "ter": rate_of(members, "generated"),
        "ser": rate_of([o for o in members if o.values["seen"]], "generated"),
        "precision": dataclasses.replace(right, higher_is_better=None),
    }
    for name, flag in (("detected", 1.0), ("undetected", 0.0)):
        found[f"ter_{name}"] = rate_of([o for o in members if o.values["detected"] == flag], "generated")
    return found


def leakage_of(
    members: Sequence[Outcome], others: Sequence[Outcome], hit: str, twin: str
) -> tuple[Score, Score, list[Term]]:
    """The excess of members over chance, chance, and what each member adds to the excess.

    Chance is the twins' rate where every member has one; where some have, theirs, spread over the strata as all members
    are; else that of held-out values, spread likewise, which are not exchangeable with members.

    Args:
        members: those that were asked for.
        others: the held-out values that were.
        hit: the name of what counts as a hit.
        twin: the name of the same of the twin, or of the value itself asked of a model that has not read it.
    """
    hits, groups = [o.values[hit] for o in members], [o.group for o in members]
    if members and all(twin in o.values for o in members):
        twins = [o.values[twin] for o in members]
        chance = dataclasses.replace(share(members, twins), higher_is_better=None)
        leakage, expected = paired_excess(hits, twins, groups), twins
    else:
        known = [(o, o.values[twin]) for o in members if twin in o.values] or [(o, o.values[hit]) for o in others]
        chance = standardised_chance(
            [o.stratum for o in members],
            [value for _, value in known],
            [o.stratum for o, _ in known],
            groups=[o.group for o, _ in known],
        )
        leakage, expected = excess(share(members, hits), chance), [0.0 if np.isnan(chance.value) else chance.value]
    if not members or np.mean(expected) == 1:
        return leakage, chance, []
    terms = excess_terms(hits, expected)
    return leakage, chance, [Term(o.unit, o.group, float(v)) for o, v in zip(members, terms, strict=True)]


def rate_of(outcomes: Sequence[Outcome], name: str) -> Score:
    """The rate of one value over outcomes."""
    return share(outcomes, [outcome.values[name] for outcome in outcomes])


def share(outcomes: Sequence[Outcome], values: Sequence[float]) -> Score:
    """A rate over outcomes whose groups are its clusters."""
    return rate(values, [outcome.group for outcome in outcomes])


def pooled(outcomes: Sequence[Outcome], part: str, whole: str) -> Score:
    """One count of prompts over another, all outcomes together; the prompts are the units, the persons the clusters."""
    hits: list[float] = []
    groups: list[str] = []
    for outcome in outcomes:
        count = round(outcome.values[whole])
        hits += [float(place < round(outcome.values[part])) for place in range(count)]
        groups += [outcome.group] * count
    return rate(hits, groups)
