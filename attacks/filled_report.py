"""What the fillings of `memdefense.attacks.filled` come to: how often the right one is the most probable.

Chance is the twin's rate. What the base model gets right, or would of the twin, follows from the sentence and is left
out: of the rest value and twin are still exchangeable. A value without a twin has for chance what the base model gets
right in the same sentence, and nothing is left out: of what the base model misses even one that learnt nothing would
be right less often than any chance charged on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from memdefense import Outcome, Scores
from memdefense.attack import Term
from memdefense.score import excess_terms, paired_excess

from .extraction_report import rate_of, share

_BY_DETECTOR = (("found", 1.0), ("missed", 0.0))


def top_scores(outcomes: Sequence[Outcome]) -> Scores:
    """Leakage is the paired excess of the top-1 rate over chance, with twins without what the base model knows.

    ``top1_found`` is the rate of values that the defender's detector finds wherever they stand, ``top1_missed`` that of
    those it misses somewhere.
    """
    asked = [o for o in outcomes if o.member and o.values["asked"]]
    left = _left(outcomes)
    chance = [_chance(o) for o in left]
    # What outcomes of an older version do not tell has no rate.
    by_detector = {name: [o for o in left if o.values.get("found") == flag] for name, flag in _BY_DETECTOR}
    return Scores(
        paired_excess([o.values["top"] for o in left], chance, [o.group for o in left]),
        {
            "top1": rate_of(left, "top"),
            "chance": dataclasses.replace(share(left, chance), higher_is_better=None),
            **{f"top1_{name}": rate_of(some, "top") for name, some in by_detector.items()},
            "top1_with_known": rate_of(asked, "top"),
            "top1_of_base": dataclasses.replace(rate_of(asked, "base"), higher_is_better=None),
            "known_to_base": dataclasses.replace(
                share(asked, [float(_known(o)) for o in asked]), higher_is_better=None
            ),
            "not_asked": dataclasses.replace(
                share(members := [o for o in outcomes if o.member], [1 - o.values["asked"] for o in members]),
                higher_is_better=None,
            ),
        },
    )


def top_terms(outcomes: Sequence[Outcome]) -> list[Term]:
    """What each member adds to `top_scores`' leakage."""
    left = _left(outcomes)
    chance = [_chance(o) for o in left]
    if not left or np.mean(chance) == 1:
        return []
    terms = excess_terms([o.values["top"] for o in left], chance)
    return [Term(o.unit, o.group, float(value)) for o, value in zip(left, terms, strict=True)]


def _left(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [o for o in outcomes if o.member and o.values["asked"] and not ("twin" in o.values and _known(o))]


def _known(outcome: Outcome) -> bool:
    """Whether the base model gets it right, or would have got its twin right, had the coin fallen otherwise."""
    return outcome.values["base"] > 0 or outcome.values["base_twin"] > 0


def _chance(outcome: Outcome) -> float:
    return outcome.values["twin" if "twin" in outcome.values else "base"]
