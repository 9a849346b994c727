"""What a pool of half-split models says of a text: each score is a pure function of what the pool's models say of it.

``inside`` (K, U) tells whether model k was trained on unit u, ``shadows`` (K, U) what it says of it, ``own`` (U,) what
the attacked model says, which is never one of the K. A larger score always says "member".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp  # type: ignore[import-untyped, unused-ignore]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# A log-probability is a float32, so a token's 1 - p is not known to be smaller than this.
_LEAST = 2.0**-24
_ROUNDING = 1e-5  # of a mean of such log-probabilities, between two passes with other neighbours
_NO_SPREAD = 1e-4  # of models that all say the same, such as one that never trains


def token_logits(logprob: npt.NDArray[np.floating]) -> Floats:
    """log p / (1 - p) of every token, from log p."""
    exact = logprob.astype(np.float64)
    return np.asarray(exact - np.log(np.maximum(-np.expm1(exact), _LEAST)), np.float64)


def lira(own: Floats, shadows: Floats, inside: Bools) -> Floats:
    """log N(phi; IN) - log N(phi; OUT) (Carlini et al. 2022, online), (U,).

    Means are a unit's own. A few models do not tell a unit's variance, so there is one variance of IN and one of OUT,
    each pooled over units from the spread about their own means; the variance of OUT is never taken from IN.
    """
    (mean_in, spread_in), (mean_out, spread_out) = _side(shadows, inside), _side(shadows, ~inside)
    of_in = -0.5 * ((own - mean_in) / spread_in) ** 2 - np.log(spread_in)
    return np.asarray(of_in + 0.5 * ((own - mean_out) / spread_out) ** 2 + np.log(spread_out), np.float64)


def lira_offline(own: Floats, shadows: Floats, inside: Bools) -> Floats:
    """(phi - mean OUT) / spread of OUT (Carlini et al. 2022, offline), (U,).

    Their score is the normal probability below it, which is in the same order and saturates.
    """
    mean, spread = _side(shadows, ~inside)
    return (own - mean) / spread


def rmia(
    own: Floats,
    shadows: Floats,
    inside: Bools,
    population: Bools,
    *,
    gamma: float = 1.0,
    a: float | None = None,
) -> Floats:
    """P_z[(p(x | model) / p(x)) / (p(z | model) / p(z)) >= gamma] (RMIA, Zarifzadeh et al. 2024), (U,).

    Args:
        own: log p(x | model).
        shadows: the same of the shadow models.
        inside: what they were trained on.
        population: (U,) which units are the z: known not to be members, and not evaluated.
        gamma: how much larger x's ratio has to be.
        a: None (online): p(x) is half the mean over IN and half that over OUT. A number (offline): IN is not used, and
            p(x) = ((1 + a) mean over OUT + 1 - a) / 2.
    """
    weight = np.exp(shadows)
    without = _mean(weight, ~inside)
    whole = (without + _mean(weight, inside)) / 2 if a is None else ((1 + a) * without + 1 - a) / 2
    ratio = own - np.log(whole)
    # How many z have a ratio of at most x's / gamma; what rounding alone sets apart is equal.
    others = np.sort(ratio[population])
    dominated = np.searchsorted(others, ratio - np.log(gamma) + _ROUNDING, side="right")
    return np.asarray(dominated / max(1, len(others)), np.float64)


def counterfactual(accuracy: Floats, inside: Bools) -> Floats:
    """The mean accuracy of the models trained on a text less that of the others (Zhang et al. 2021), (U,)."""
    return _mean(accuracy, inside) - _mean(accuracy, ~inside)


def cross_validated(likelihood: Floats, inside: Bools) -> Floats:
    """log mean p(x) over the models trained on x, less the same over the others (van den Burg & Williams 2021), (U,).

    Args:
        likelihood: (K, U) log p(x) of the whole text.
        inside: what the models were trained on.
    """
    with_it, without = (
        logsumexp(np.where(side, likelihood, -np.inf), axis=0) - np.log(side.sum(0)) for side in (inside, ~inside)
    )
    return np.asarray(with_it - without, np.float64)


def _mean(values: Floats, side: Bools) -> Floats:
    return np.asarray(np.where(side, values, 0.0).sum(0) / side.sum(0), np.float64)


def _side(values: Floats, side: Bools) -> tuple[Floats, float]:
    """The mean of every unit on one side, and the spread about it, pooled over units."""
    mean = _mean(values, side)
    squares = float((np.where(side, values - mean, 0.0) ** 2).sum())
    freedom = int((side.sum(0) - 1).sum())
    return mean, max(np.sqrt(squares / max(1, freedom)), _NO_SPREAD)


__all__ = [
    "counterfactual",
    "cross_validated",
    "lira",
    "lira_offline",
    "rmia",
    "token_logits",
]
