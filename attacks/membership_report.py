"""What membership outcomes come to: AUC, TPR at low FPR, signed leakage, and the baseline that has no model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from memdefense import Outcome, Score, Scores
from memdefense.attack import Term
from memdefense.roc import auc, auc_interval, auc_terms, tpr_at_fpr
from memdefense.score import rate

_RATES = ((0.1, "10%"), (0.01, "1%"), (0.001, "0.1%"))


def membership(outcomes: Sequence[Outcome], names: Sequence[str], headline: str) -> Scores:
    """Leakage is 2 AUC - 1 of the headline, signed; beside it every score's AUC and the headline's TPR at low FPR.

    ``threshold_at_10%`` is the least score that is called a member there; infinite where not even the highest score
    keeps to the rate.

    Args:
        outcomes: whose values hold the scores and ``model_free``; their groups are the clusters.
        names: of the scores, the headline among them.
        headline: the one that leakage and TPR are of.
    """
    labels = [outcome.member for outcome in outcomes]
    groups = [outcome.group for outcome in outcomes]
    areas = {name: _area(outcomes, name, labels, groups) for name in names}
    areas["model_free"] = dataclasses.replace(_area(outcomes, "model_free", labels, groups), higher_is_better=None)
    head = areas[headline]
    leakage = Score(2 * head.value - 1, 2 * head.low - 1, 2 * head.high - 1, head.n, False)
    beside = {f"auc_{name}": area for name, area in areas.items()}
    if not any(labels) or all(labels):
        return Scores(leakage, beside)
    column = [outcome.values[headline] for outcome in outcomes]
    for fpr, name in _RATES:
        found = tpr_at_fpr(column, labels, fpr)
        accused = [value >= found.threshold for value in column]
        hits, alarms = (
            rate(
                [a for a, is_in in zip(accused, labels, strict=True) if is_in == side],
                [g for g, is_in in zip(groups, labels, strict=True) if is_in == side],
            )
            for side in (True, False)
        )
        beside[f"tpr_at_{name}_fpr"] = hits if found.resolvable else dataclasses.replace(hits, value=math.nan)
        beside[f"realised_fpr_at_{name}"] = dataclasses.replace(alarms, higher_is_better=None)
        beside[f"threshold_at_{name}"] = Score(found.threshold, math.nan, math.nan, found.non_members)
    return Scores(leakage, beside)


def membership_terms(outcomes: Sequence[Outcome], headline: str, names: Sequence[str] = ()) -> list[Term]:
    """What each unit adds to the leakage of the headline, and, as readings of their own, to those of further scores."""
    labels = [outcome.member for outcome in outcomes]
    found = []
    for name in dict.fromkeys((headline, *names)):
        values = auc_terms([outcome.values[name] for outcome in outcomes], labels).tolist()
        reading = "" if name == headline else name
        pairs = zip(outcomes, values, strict=len(values) > 0)
        found += [Term(o.unit, o.group, v, reading, "members" if o.member else "others") for o, v in pairs]
    return found


def _area(outcomes: Sequence[Outcome], name: str, labels: Sequence[bool], groups: Sequence[str]) -> Score:
    column = [outcome.values[name] for outcome in outcomes]
    low, high = auc_interval(column, labels, groups=groups, resamples=200)
    return Score(auc(column, labels), low, high, len(column), False)


__all__ = ["membership", "membership_terms"]
