"""Projections as pure functions on tensors: the nearest point of a set in a diagonal metric.

The projection of ``w`` in the metric ``d`` is the minimiser over a set of ``½·Σ_i (x_i − w_i)²/d_i``.  An
entry with ``d_i = 0`` has an infinite price on moving, so it stays, even where the set cannot be reached
without it.
"""

import torch
from torch import Tensor


def moving_cost(w: Tensor, step: Tensor | None) -> Tensor:
    """Return what it costs to set each entry to zero, as a length ``|w|/√d``.

    Args:
        w: in float32 or wider.
        step: ``d ≥ 0``, broadcast to ``w``, or None for 1.

    Returns:
        A tensor of the shape of ``w`` without NaN: what is not finite, or cannot move, costs infinity.

    Example:
        >>> moving_cost(torch.tensor([2.0, 3.0, 1.0, 0.0]), torch.tensor([1.0, 9.0, 0.0, 0.0]))
        tensor([2., 1., inf, 0.])
    """
    size = w.abs()
    if step is not None:
        # A zero is where it is wanted already, whatever moving it would cost.
        size = torch.where(size == 0, 0.0, size / step.to(w.dtype).sqrt())
    return torch.where(w.isfinite(), size, torch.inf).nan_to_num(torch.inf, torch.inf)


def largest_entries(cost: Tensor, count: int) -> Tensor:
    """Return where the ``count`` largest entries are; of equal ones the first in memory order are taken.

    Args:
        cost: any tensor without NaN.
        count: from 0 to the number of entries.

    Returns:
        A boolean tensor of the shape of ``cost`` with ``count`` times True.

    Example:
        >>> largest_entries(torch.tensor([1.0, 3.0, 1.0, 1.0]), 2)
        tensor([ True,  True, False, False])
    """
    flat = cost.reshape(-1)
    if count == 0:
        return torch.zeros_like(cost, dtype=torch.bool)
    edge = flat.topk(count, sorted=False).values.min()  # kthvalue has no deterministic form on CUDA
    above, level = flat > edge, flat == edge
    wanted = count - above.sum()
    return (above | (level & (level.cumsum(0) <= wanted))).reshape(cost.shape)


def largest_of_each(cost: Tensor, count: int) -> Tensor:
    """Return where the ``count`` largest entries of each row are; of equal ones the first are taken.

    Args:
        cost: a matrix without NaN.
        count: from 0 to the length of a row.

    Returns:
        A boolean matrix of the shape of ``cost`` with ``count`` times True in every row.

    Example:
        >>> largest_of_each(torch.tensor([[1.0, 3.0, 1.0, 1.0]]), 2)
        tensor([[ True,  True, False, False]])
    """
    first = cost.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(cost, dtype=torch.bool).scatter(1, first, True)


def project_l1_ball(w: Tensor, radius: float, step: Tensor | None = None) -> Tensor:
    """Return the nearest point with ``‖x‖₁ ≤ radius`` in the metric ``step``.

    ``x_i = sign(w_i)·max(|w_i| − θ·d_i, 0)``, with ``θ`` the root of ``Σ_i max(|w_i| − θ·d_i, 0) = radius``
    (0 inside).  That sum is convex and piecewise linear in ``θ``, so Newton's method rises to the root in a
    few steps, each of which drops entries from the support, and stops on the root itself.  Sums and ``θ`` are
    in float64, and every entry is rounded once: in float32 a million roundings would leave the ball.

    Args:
        w: in float32 or wider.
        radius: ``≥ 0``.
        step: ``d ≥ 0``, broadcast to ``w``, or None for 1.

    Returns:
        A new tensor of the shape of ``w``; all NaN if an entry of ``w`` or ``step`` is.

    Example:
        >>> project_l1_ball(torch.tensor([3.0, -1.0, 0.5]), 2.0)
        tensor([2., 0., 0.])

    References:
        Duchi, Shalev-Shwartz, Singer and Chandra, "Efficient projections onto the l1-ball for learning in
        high dimensions", ICML (2008).  The iteration: Michelot, J. Optim. Theory Appl. 50 (1986).
    """
    size = w.double().abs().reshape(-1)
    if not size.numel():
        return w.clone()
    d = torch.ones_like(size) if step is None else step.double().expand_as(w).reshape(-1)
    largest = d.max()
    d = d / torch.where(largest > 0, largest, 1.0)  # θ absorbs the scale, and sums of huge steps overflow
    theta = _l1_root(size, d, radius)
    # θ·d is NaN where an entry that cannot move meets an infinite θ.
    shrunk = (size - torch.where(d == 0, 0.0, theta * d)).clamp_min(0.0).reshape(w.shape).to(w.dtype)
    result = torch.where(size.sum() <= radius, w, torch.copysign(shrunk, w))
    return torch.where(size.isnan().any() | d.isnan().any(), torch.nan, result) + 0.0


def _l1_root(size: Tensor, d: Tensor, radius: float) -> Tensor:
    """Return the ``θ ≥ 0`` at which ``Σ max(size − θ·d, 0)`` is the radius, or infinity if there is none."""
    theta = torch.zeros((), dtype=size.dtype, device=size.device)
    while True:
        on = size > theta * d
        steps = torch.where(on, d, 0.0).sum()
        excess = torch.where(on, size, 0.0).sum() - radius
        following = torch.where(steps > 0, excess / torch.where(steps > 0, steps, 1.0), theta)
        if not bool(following > theta):
            break  # nothing was dropped, or what is left cannot move
        theta = following
    held = torch.where(d == 0, size, 0.0).sum()
    return torch.where(held >= radius, torch.inf, theta)  # what cannot move uses up the whole radius
