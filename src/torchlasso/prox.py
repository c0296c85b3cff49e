"""Proximal maps as pure functions on tensors.

The proximal map of a penalty ``h`` at ``w`` with step ``s`` is the minimiser over ``x`` of
``½·‖x − w‖² / s + h(x)``.  Every map here returns exact zeros (never ``-0.0``), leaves ``w``
unchanged where the threshold is zero, and lets NaN through, so that a diverged run stays visible.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Step = float | Tensor
"""A proximal step size: one number, or a tensor that broadcasts against ``w`` (a diagonal metric)."""


class GroupSums(Protocol):
    """What a grouping of a tensor's entries must offer to the group maps."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over each group, one entry a group."""

    def expand(self, per_group: Tensor) -> Tensor:
        """Return one value a group as a tensor that broadcasts against the grouped tensor."""


@dataclass(frozen=True, eq=False)
class Kink:
    """What a penalty is near zero: ``Σ slope·|w| + ridge·w²/2``, or ``Σ_g slope_g·‖w_g‖₂``.

    Attributes:
        slope: of the absolute value, a number or a tensor that broadcasts against the weights; with groups,
            a vector of one entry a group.  0 leaves an entry free, infinity holds it at zero.
        ridge: of half the square, shaped like ``slope``; 0 with groups.
        groups: the grouping of the entries, or None where each stands alone.
        nonnegative: whether the entries are also held at zero or above.
        gamma: of a slope that falls to 0 at ``|w| = gamma·slope`` in a straight line; None if it does not.
        epsilon: of a slope that falls as ``slope·epsilon/(|w| + epsilon)``; None if it does not.
        everywhere: whether the penalty has this form at all weights, so that a step needs nothing else of it.
    """

    slope: float | Tensor
    ridge: float | Tensor = 0.0
    groups: GroupSums | None = None
    nonnegative: bool = False
    gamma: float | None = None
    epsilon: float | None = None
    everywhere: bool = True

    @property
    def convex(self) -> bool:
        """Whether the penalty is the absolute value and half the square, and no more."""
        return self.everywhere and self.gamma is None and self.epsilon is None

    @property
    def entry_slope(self) -> float | Tensor:
        """The slope as a number, or as a tensor that broadcasts against the weights."""
        if self.groups is None or not isinstance(self.slope, Tensor):
            return self.slope
        return self.groups.expand(self.slope)

    def shrink(self, x: Tensor, amount: Step) -> Tensor:
        """Return the proximal map of the kink at slope 1: every entry or group is shrunk by ``amount``."""
        if self.groups is not None:
            return group_soft_threshold(
                x, torch.as_tensor(amount, dtype=x.dtype, device=x.device), self.groups
            )
        return (soft_threshold_nonnegative if self.nonnegative else soft_threshold)(x, amount)

    def size(self, x: Tensor) -> Tensor:
        """Return the absolute value of every entry, or the norm of its group spread over the group."""
        return (
            x.abs() if self.groups is None else self.groups.expand(group_norms(x, self.groups)).expand_as(x)
        )


def soft_threshold(w: Tensor, threshold: Step) -> Tensor:
    """Shrink every entry towards zero by ``threshold``, and to exactly zero within it.

    ``argmin_x ½(x − w)² + t|x| = sign(w)·max(|w| − t, 0)``

    Args:
        w: any real tensor.
        threshold: ``t ≥ 0``, a number or a tensor that broadcasts against ``w``.

    Returns:
        A new tensor of the shape of ``w``.

    Example:
        >>> soft_threshold(torch.tensor([-3.0, -0.5, 0.0, 2.0]), 1.0)
        tensor([-2.,  0.,  0.,  1.])

    References:
        Donoho, "De-noising by soft-thresholding", IEEE Trans. Inf. Theory 41 (1995).
    """
    wide = at_least_float32(w)
    t = _finite(threshold, wide)
    result = wide - torch.clamp(wide, -t, t)  # type: ignore[arg-type]  # number or tensor alike
    return _without_negative_zero(result, w.dtype)


def soft_threshold_nonnegative(w: Tensor, threshold: Step) -> Tensor:
    """Shrink by ``threshold`` and project onto the non-negative numbers.

    ``argmin_{x ≥ 0} ½(x − w)² + t·x = max(w − t, 0)``

    Args:
        w: any real tensor.
        threshold: ``t ≥ 0``, a number or a tensor that broadcasts against ``w``.

    Returns:
        A new tensor of the shape of ``w``.

    Example:
        >>> soft_threshold_nonnegative(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
        tensor([0., 0., 1.])
    """
    wide = at_least_float32(w)
    return _without_negative_zero((wide - _finite(threshold, wide)).clamp(min=0.0), w.dtype)


def group_soft_threshold(w: Tensor, threshold: Tensor, groups: GroupSums) -> Tensor:
    """Shrink the Euclidean norm of every group by its threshold.

    ``argmin_x ½‖x − w‖² + Σ_g t_g‖x_g‖₂``, that is ``w_g · max(1 − t_g/‖w_g‖, 0)``

    Args:
        w: any real tensor.
        threshold: ``t_g ≥ 0``, one entry a group (or one for all).
        groups: how the entries of ``w`` fall into groups.

    Returns:
        A new tensor of the shape of ``w``.

    References:
        Yuan and Lin, "Model selection and estimation in regression with grouped variables",
        J. R. Stat. Soc. B 68 (2006).
    """
    norm = group_norms(w, groups)
    dead = norm <= threshold
    scale = torch.where(dead, 0.0, 1 - threshold / torch.where(norm > 0, norm, 1.0))
    return _without_negative_zero(at_least_float32(w) * groups.expand(scale), w.dtype)


def group_norms(w: Tensor, groups: GroupSums) -> Tensor:
    """Return the Euclidean norm of every group of ``w``, in float32 or wider.

    Differentiable, with gradient 0 at a zero group.  Groups are scaled before they are squared, so that
    entries below 1e-19 or above 1e19 neither vanish nor overflow in float32.

    Args:
        w: any real tensor.
        groups: how the entries of ``w`` fall into groups.

    Returns:
        A vector of one norm a group.
    """
    wide = at_least_float32(w)
    size = groups.sum(wide.detach().abs())
    scale = usable_scale(size)
    squares = groups.sum((wide / groups.expand(scale)).square())
    zero = size == 0
    # sqrt has an infinite slope at 0: keep it away from the zero groups instead of masking a NaN.
    return torch.where(zero, 0.0, scale * torch.where(zero, 1.0, squares).sqrt())


def group_soft_threshold_metric(w: Tensor, threshold: Tensor, groups: GroupSums) -> Tensor:
    r"""Shrink every group in a diagonal metric, where the group lasso has no closed form.

    ``argmin_x ½·Σ_i (x_i − w_i)²/d_i + Σ_g τ_g‖x_g‖₂``.  A group is zero exactly when
    ``‖(w/d)_g‖ ≤ τ_g``; otherwise ``x_i = w_i · r/(r + d_i·τ_g)`` with ``r = ‖x_g‖`` the root of
    ``Σ_i w_i²/(r + d_i·τ_g)² = 1``.  Newton's method on ``1/‖w/(r + dτ)‖ − 1``, which is concave and
    increasing, rises monotonically to that root from any lower bound.

    Args:
        w: any real tensor.
        threshold: ``d_i·τ_g ≥ 0`` for every entry, broadcast against ``w``.
        groups: how the entries of ``w`` fall into groups.

    Returns:
        A new tensor of the shape of ``w``.

    References:
        Deleu and Bengio, "Structured sparsity inducing adaptive optimizers", arXiv 2102.03869.
        The root as a trust-region problem: Moré and Sorensen, SIAM J. Sci. Stat. Comput. 4 (1983).
    """
    wide = at_least_float32(w)
    t = at_least_float32(threshold).expand_as(wide)
    free = t == 0
    # ‖w/t‖ ≤ 1 decides whether the group dies; an entry with t = 0 keeps its group alive unless it is 0.
    ratio = torch.where(free, torch.where(wide == 0, 0.0, torch.inf), wide / torch.where(free, 1.0, t))
    dead = groups.sum(ratio.square()) <= 1
    scale = groups.expand(usable_scale(groups.sum(wide.abs())))  # the root in units of the group's size
    t = t / scale
    r = groups.expand(group_root(wide / scale, t, groups))
    # An infinite weight makes r infinite, and shrinks nothing else in its group.
    share = torch.where(free | r.isinf(), 1.0, r / (r + t).clamp_min(torch.finfo(wide.dtype).tiny))
    return _without_negative_zero(torch.where(groups.expand(dead), 0.0, wide * share), w.dtype)


def group_root(
    w: Tensor, t: Tensor, groups: GroupSums, edge: Tensor | None = None, iterations: int = 60
) -> Tensor:
    """Return the smallest ``r ≥ 0`` with ``Σ w²/(r + t)² = 1`` for each group (0 where none is positive).

    With an edge the threshold falls with the norm, ``t·(1 − r/edge)``, and is zero from there on.  Where it
    falls fast there may be no root below the edge, and the result is some number above it.

    Args:
        w: real weights, in units of the size of their group.
        t: the threshold of every entry, finite if there is an edge.
        groups: how the entries of ``w`` fall into groups.
        edge: of every entry (the same within a group), above 0; or None.
        iterations: the most of Newton's method.

    Returns:
        A vector of one root a group.
    """
    tiny = torch.finfo(w.dtype).tiny
    free_norm = groups.sum(torch.where(t == 0, w, 0.0).square()).sqrt()
    # Three lower bounds: ‖w‖ − ‖t‖ (Cauchy-Schwarz), the norm of the entries without a threshold, and
    # the root mean square of the |w| − t that are positive (each alone is a lower bound).
    excess = groups.sum((w.abs() - t).clamp_min(0.0).square()) / groups.sum(torch.ones_like(w)).clamp_min(1.0)
    r = torch.maximum(groups.sum(w.square()).sqrt() - groups.sum(t.square()).sqrt(), free_norm)
    r = torch.maximum(r, excess.sqrt())
    for _ in range(iterations):
        spread = groups.expand(r)
        threshold = t if edge is None else t * (1 - spread / edge).clamp_min(0.0)
        shifted = (spread + threshold).clamp_min(tiny)
        squares = (w / shifted).square()
        p = groups.sum(squares)
        slope = groups.sum(squares / shifted if edge is None else squares / shifted * (1 - t / edge))
        move = (p.sqrt() - 1) * p / slope.clamp_min(tiny)
        # A sum above 1 that does not fall any more never comes down to it.
        stuck = torch.where(p > 1, torch.inf, 0.0)
        move = torch.where(slope > 0, move.clamp_min(0.0), stuck)
        r = r + move
        if not bool((move > 4 * torch.finfo(w.dtype).eps * r).any()):
            break
    return r


def at_least_float32(w: Tensor) -> Tensor:
    """Return ``w`` in float32 if it is a half-precision tensor, else ``w`` itself."""
    return w.float() if w.dtype in (torch.float16, torch.bfloat16) else w


def usable_scale(size: Tensor) -> Tensor:
    """Return the sizes of groups where one can divide by them, else 1.

    Args:
        size: zero or more, one entry a group.
    """
    return torch.where((size > 0) & size.isfinite(), size, 1.0)


def _finite(threshold: Step, w: Tensor) -> Step:
    """Return a threshold that a number of ``w``'s type can hold: torch refuses a larger one in clamp."""
    return threshold if isinstance(threshold, Tensor) else min(threshold, torch.finfo(w.dtype).max)


def _without_negative_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x``, which nothing else holds, in a dtype and with every -0.0 turned into 0.0."""
    return x.to(dtype).add_(0.0)
