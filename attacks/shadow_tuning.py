"""What an attack with shadow models sets by them: it attacks one of them with the others."""

from __future__ import annotations

from memdefense.roc import auc

from .shadow_scores import Bools, Floats, rmia


def tuned_a(shadows: Floats, inside: Bools, population: Bools) -> float:
    """RMIA's offline ``a``, the best of 0, 0.1, ... 1 for attacking the first shadow model with the later pairs.

    Units of the population that the first model was trained on are no z here. The larger of two that do as well.

    Args:
        shadows: (K, U) log p(x | model), in pairs that were trained on what the other was not.
        inside: (K, U) what they were trained on.
        population: (U,) the units that are set aside as z.
    """
    others, left, known = shadows[2:], inside[2:], ~population
    z = population & ~inside[0]

    def area(a: float) -> float:
        found = rmia(shadows[0], others, left, z, a=a)
        return auc(found[known], inside[0][known])

    return max((step / 10 for step in range(10, -1, -1)), key=area)
