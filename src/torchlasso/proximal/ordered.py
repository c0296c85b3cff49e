"""The proximal map of the sorted L1 norm, exact in any diagonal metric.

Among the weights whose sizes lie in a given order the penalty is linear, and the minimiser is an isotonic
regression.  Where it ties entries, their order within the tie is free: the pull of each on the tie says which
order is better, and another regression follows.  The objective falls each time and there are finitely many
orders; a constant metric needs one.
"""

import numpy as np
import numpy.typing as npt
import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from torchlasso.prox import Step

Vector = npt.NDArray[np.float64]

_LARGEST = 1e300  # a level beyond it acts no differently, and would overflow in sums
_HELD = 1e12  # the price of moving a held entry, in units of the highest other price
_WARM_UPS = 20  # after them two regressions were enough for 10,000 entries in metrics of six decades
_ROUNDS = 1000  # far beyond what was ever needed


def sorted_l1_prox(w: Tensor, step: Step, levels: Tensor) -> Tensor:
    """Shrink the largest entry by the largest level, the next by the next, and tie what would cross.

    ``argmin_x Σ_i ½(x_i − w_i)²/d_i + Σ_i l_i·|x|_(i)`` with ``|x|_(1) ≥ |x|_(2) ≥ …``

    Args:
        w: any real tensor.
        step: ``d ≥ 0``, a number or a tensor that broadcasts against ``w``; an entry with 0 is held.
        levels: ``l``, not negative and never rising, one for each entry of ``w``.

    Returns:
        A new tensor of the shape and dtype of ``w``.  It is computed in float64 on the CPU.  Where anything
        is NaN or infinite, everything is NaN, since every entry may be tied to every other.

    Example:
        >>> sorted_l1_prox(torch.tensor([3.0, -2.9, 0.5]), 1.0, torch.tensor([2.0, 1.0, 1.0]))
        tensor([ 1.4500, -1.4500,  0.0000])

    References:
        Bogdan, van den Berg, Sabatti, Su and Candès, "SLOPE: adaptive variable selection via convex
        optimization", Ann. Appl. Stat. 9 (2015), for a constant step.
    """
    d = torch.as_tensor(step, dtype=torch.float64).clamp(max=_LARGEST).expand_as(w).reshape(-1)
    if w.numel() == 0 or not (d.any() and levels.any()):
        return w + 0.0
    point = w.detach().double().reshape(-1).cpu().numpy()
    largest = float(d.max())
    scaled = np.minimum(levels.detach().double().cpu().numpy() * largest, _LARGEST)
    if not (np.isfinite(point).all() and np.isfinite(largest)):
        return torch.full_like(w, torch.nan)
    found = np.sign(point) * _minimiser(np.abs(point), (largest / d).cpu().numpy(), scaled)
    return torch.from_numpy(found).reshape(w.shape).to(w.device, w.dtype) + 0.0


def _minimiser(size: Vector, price: Vector, levels: Vector) -> Vector:
    """Return ``argmin_{x ≥ 0} Σ ½·price·(x − size)² + Σ l_i·x_(i)``; an infinite price holds an entry."""
    held = np.isinf(price)
    price = np.where(held, _HELD * price[~held].max(), price)
    order = _likely_order(size, price, levels)
    for _ in range(_ROUNDS):
        y, p, fixed = size[order], price[order], held[order]
        x = np.maximum(isotonic_regression(y - levels / p, sample_weight=p, increasing=False), 0.0)
        x, pull = _with_held(x, np.where(fixed, 0.0, p * (y - x)), y, levels, fixed)
        # In each tie, those that are pulled up most come first.  If their pulls do not outweigh their levels,
        # no other order is better.
        ranked = np.lexsort((-pull, -x))
        excess = np.cumsum(pull[ranked] - levels)
        rounding = np.cumsum(1e-13 * levels + 1e-15 * np.where(fixed, 0.0, p * y)[ranked])
        if (excess <= rounding).all():
            break
        order = order[ranked]
    found = np.empty_like(size)
    found[order] = np.where(fixed, y, x)
    return found


def _with_held(
    x: Vector, pull: Vector, size: Vector, levels: Vector, held: npt.NDArray[np.bool_]
) -> tuple[Vector, Vector]:
    """Return a tie with a held entry at exactly its size, and the pull that the entry must exert for that.

    Args:
        x: the solution for an order, in that order.
        pull: of each entry on its tie, 0 for the held ones.
        size: the points.
        levels: of the ranks.
        held: which entries are.
    """
    if not held.any():
        return x, pull
    tie = np.cumsum(np.append(False, x[1:] != x[:-1]))
    at = np.flatnonzero(held & (x > 0))
    where = np.full(tie[-1] + 1, np.nan)
    where[tie[at]] = size[at]
    value = np.where(np.isnan(where[tie]), x, where[tie])
    missing = np.bincount(tie, weights=levels - pull)
    count = np.bincount(tie[at], minlength=tie[-1] + 1)
    pull[at] = missing[tie[at]] / count[tie[at]]
    return value, pull


def _likely_order(size: Vector, price: Vector, levels: Vector) -> npt.NDArray[np.intp]:
    """Return a good order to begin with: of the entries, each shrunk by the level of its own rank."""
    order = np.argsort(-size, kind="stable")
    if (price == price[0]).all():
        return order  # the best one
    shrunk, level = size, np.empty_like(size)
    for _ in range(_WARM_UPS):
        level[order] = levels
        shrunk = (shrunk + size - level / price) / 2  # halfway, or two that cross would swap for ever
        order = np.argsort(-shrunk, kind="stable")
    return order
