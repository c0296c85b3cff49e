"""How many features stability selection can be expected to select in error.

A feature is of *low selection probability* if a random half of the rows selects it with probability
``θ = q/p`` or less, as drawing ``q`` of ``p`` features by lot would.  Both bounds are on the expected number
of such features whose share of selections reaches the threshold.
"""

import math
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar

Floats = NDArray[np.float64]

_LONGEST = 1e5  # an offset so large that the weights are all but equal
_SHORTEST = 1e-5


def pfer_bound(average: float, features: int, threshold: float) -> float:
    """Return the bound ``q²/((2τ − 1)·p)`` that holds without any assumption.

    Args:
        average: ``q``, how many features a half selects on average.
        features: ``p``.
        threshold: ``τ``, above a half.

    Returns:
        At most ``q``, which bounds it trivially.

    Example:
        >>> round(pfer_bound(10, 200, 0.75), 9)
        1.0

    References:
        Shah and Samworth, "Variable selection with error control: another look at stability selection",
        J. R. Stat. Soc. B 75 (2013), Theorem 1; Meinshausen and Bühlmann, J. R. Stat. Soc. B 72 (2010).
    """
    return min(average**2 / ((2 * threshold - 1) * features), average)


def pfer_bound_r_concave(average: float, features: int, threshold: float, pairs: int) -> float:
    """Return the bound if the shares of selections have r-concave laws, as they have in all but odd cases.

    ``min(D(θ², 2τ − 1, B, −½), D(θ, τ, 2B, −¼)) · p``, ``D(η, t, B, r)`` being the largest probability of
    ``t`` or more under any r-concave law on ``{0, 1/B, …, 1}`` of mean ``η``.

    Args:
        average: ``q``, how many features a half selects on average.
        features: ``p``.
        threshold: ``τ``, above a half.
        pairs: ``B``, how many pairs of halves there were.

    Returns:
        Never more than ``pfer_bound``.

    Example:
        >>> pfer_bound_r_concave(10, 200, 0.75, 50) < pfer_bound(10, 200, 0.75) / 4
        True

    References:
        Shah and Samworth, J. R. Stat. Soc. B 75 (2013), equation 8 and appendix A.4.
    """
    theta = average / features
    reached = math.ceil(round(threshold * 2 * pairs, 9))  # of the 2B halves
    both = tail_bound(theta**2, reached - pairs, pairs, -1 / 2)
    either = tail_bound(theta, reached, 2 * pairs, -1 / 4)
    return min(min(both, either) * features, pfer_bound(average, features, threshold))


def tail_bound(mean: float, at_least: int, count: int, r: float) -> float:
    """Return the largest ``P(N ≥ at_least)`` of the r-concave laws on ``0 … count`` with mean ``mean·count``.

    A law is r-concave for ``r < 0`` if the power ``r`` of its probabilities is convex.  The worst law has
    probabilities ``(a + i)^{1/r}`` for ``i ≤ k``, a smaller one at ``k + 1``, and none beyond; for each ``k``
    the mean leaves an interval of ``a``, which is searched.

    Args:
        mean: of ``N/count``.
        at_least: the edge of the tail.
        count: the largest value of ``N``.
        r: below zero.

    Returns:
        1 where the mean is too near the edge for the bound to be of use.

    Example:
        >>> tail_bound(0.05, 30, 50, -1 / 2) < 0.05 / 0.6  # Markov's inequality
        True
    """
    total = mean * count
    first = math.ceil(2 * total) + 1
    if at_least < first or first > count:
        return 1.0
    if total == 0:
        return 0.0
    offsets = {first - 1: _LONGEST}
    for k in range(first, count + 1):
        offsets[k] = _offset(k, total, 1 / r, offsets[k - 1])
    best = _tail(offsets[count], count, at_least, total, 1 / r)
    for k in range(max(first, at_least - 1), count):  # a shorter law does not reach the tail
        found = minimize_scalar(
            lambda a, k=k: -_tail(a, k, at_least, total, 1 / r),
            bounds=(offsets[k + 1], offsets[k]),
            method="bounded",
        )
        best = max(best, -float(found.fun))
    return min(max(best, 0.0), 1.0)


def _offset(k: int, total: float, power: float, longest: float) -> float:
    """Return the ``a`` at which the law ``(a + i)^power`` on ``0 … k`` has a mean of ``total``."""
    i = np.arange(k + 1)

    def excess(a: float) -> float:
        weights = (a + i) ** power
        return float((i * weights).sum() / weights.sum()) - total

    if excess(longest) <= 0 or excess(_SHORTEST) >= 0:  # beyond what the search can tell apart
        return longest if excess(longest) <= 0 else _SHORTEST
    return cast(float, brentq(excess, _SHORTEST, longest))


def _tail(a: float, k: int, at_least: int, total: float, power: float) -> float:
    """Return the tail of ``(a + i)^power`` on ``0 … k``, with what the mean asks for at ``k + 1``."""
    i = np.arange(k + 1)
    weights = (a + i) ** power
    share = (k + 1 - total) / ((k + 1 - i) * weights).sum()
    return 1 - float(share * weights[:at_least].sum())
