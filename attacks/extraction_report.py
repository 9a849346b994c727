"""What extraction outcomes come to: leakage over chance, TER, SER and precision.

With O, S_c and G as in `memdefense.attacks.extracted`, TER is |G & O| / |O|, SER is |G & S_c| / |S_c|, precision is
|G & O| / |G|.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
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
    """The excess of members over chance, chance, and what each unit adds to the excess.

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
        leakage = paired_excess(hits, twins, groups)
        return leakage, chance, paired_terms(members, hits, twins)
    known = [(o, o.values[twin]) for o in members if twin in o.values] or [(o, o.values[hit]) for o in others]
    asked, values = [o for o, _ in known], [value for _, value in known]
    chance = standardised_chance(
        [o.stratum for o in members], values, [o.stratum for o in asked], groups=[o.group for o in asked]
    )
    return excess(share(members, hits), chance), chance, unpaired_terms(members, hits, asked, values)


def paired_terms(members: Sequence[Outcome], hits: Sequence[float], twins: Sequence[float]) -> list[Term]:
    """What each member adds to the excess over its own twin; nothing where every twin is a hit."""
    if not members or np.mean(twins) == 1:
        return []
    terms = excess_terms(hits, twins)
    return [Term(o.unit, o.group, float(value)) for o, value in zip(members, terms, strict=True)]


def unpaired_terms(
    members: Sequence[Outcome], hits: Sequence[float], others: Sequence[Outcome], chances: Sequence[float]
) -> list[Term]:
    """What each unit adds to the excess over a chance that other units tell; the mean is the excess.

    With n units, m members of rate p and k others, which spread over the strata as members are have rate c, a unit's
    term is the excess 1 - (1 - p) / (1 - c) plus n times its influence: n/m (h - p) / (1 - c) of a member, and -n/k w
    (h - c) (1 - p) / (1 - c)^2 of another, with w its weight in c, of mean 1. The variance of their mean is that of
    both rates; the terms of members alone would leave out that the others were drawn too.

    Args:
        members: those that were asked for.
        hits: whether each came out.
        others: those that chance is the rate of; where they are some of the members, both influences are added.
        chances: whether each of these came out.

    Returns:
        Nothing where chance is unknown, or is 1, so that nothing can exceed it.
    """
    if not members or not others:
        return []
    inside, outside = [o.stratum for o in members], [o.stratum for o in others]
    p, c = float(np.mean(hits)), standardised_chance(inside, chances, outside).value
    if c == 1:
        return []
    # All units of a stratum weigh the same; its part of c is the chance were they all hits, and no others.
    weight = {
        name: standardised_chance(inside, [float(name == one) for one in outside], outside).value * len(others) / size
        for name, size in Counter(outside).items()
    }
    units = {o.unit: o for o in (*members, *others)}
    values = dict.fromkeys(units, 1 - (1 - p) / (1 - c))
    for o, hit in zip(members, hits, strict=True):
        values[o.unit] += len(units) / len(members) * (hit - p) / (1 - c)
    for o, hit in zip(others, chances, strict=True):
        values[o.unit] -= len(units) / len(others) * weight[o.stratum] * (hit - c) * (1 - p) / (1 - c) ** 2
    return [Term(o.unit, o.group, values[o.unit], "", "members" if o.member else "others") for o in units.values()]


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
