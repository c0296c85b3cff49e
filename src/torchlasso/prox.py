"""Proximal maps as pure functions on tensors.

The proximal map of a penalty ``h`` at ``w`` with step ``s`` is the minimiser over ``x`` of
``½·‖x − w‖² / s + h(x)``.  Every map here returns exact zeros (never ``-0.0``), leaves ``w``
unchanged where the threshold is zero, and lets NaN through, so that a diverged run stays visible.
"""

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
    return w - torch.clamp(w, -threshold, threshold)  # type: ignore[arg-type]  # number or tensor alike


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
    return torch.clamp(w - threshold, min=0.0) + 0.0  # the sum turns -0.0 into 0.0


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
    dead = (norm <= threshold) & (threshold > 0)
    scale = 1 - threshold / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return _scale_groups(w, scale, dead, groups)


def group_norms(w: Tensor, groups: GroupSums) -> Tensor:
    """Return the Euclidean norm of every group of ``w``, in float32 or wider."""
    return groups.sum(_wide(w).square()).sqrt()


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
    wide = _wide(w)
    t = _wide(threshold).expand_as(wide)
    free = t == 0
    tiny = torch.finfo(wide.dtype).tiny
    # ‖w/t‖ ≤ 1 decides whether the group dies; an entry with t = 0 keeps its group alive unless it is 0.
    ratio = torch.where(free, torch.where(wide == 0, 0.0, torch.inf), wide / t.clamp_min(tiny))
    penalised = groups.sum((~free).to(wide.dtype)) > 0
    dead = (groups.sum(ratio.square()) <= 1) & penalised
    r = _group_root(wide, t, groups)
    # r is +inf for groups without any threshold: r/(r + 0) must be 1 there.
    share = torch.where(free, 1.0, groups.expand(r) / (groups.expand(r) + t).clamp_min(tiny))
    zero = torch.zeros((), dtype=w.dtype, device=w.device)
    return torch.where(groups.expand(dead), zero, (wide * share).to(w.dtype)) + 0.0


def _group_root(w: Tensor, t: Tensor, groups: GroupSums, iterations: int = 60) -> Tensor:
    """Return ``r ≥ 0`` with ``Σ w²/(r + t)² = 1`` for each group (0 where there is no positive root)."""
    tiny = torch.finfo(w.dtype).tiny
    free_norm = groups.sum(torch.where(t == 0, w, 0.0).square()).sqrt()
    # Three lower bounds: ‖w‖ − ‖t‖ (Cauchy-Schwarz), the norm of the entries without a threshold, and
    # the root mean square of the |w| − t that are positive (each alone is a lower bound).
    excess = groups.sum((w.abs() - t).clamp_min(0.0).square()) / groups.sum(torch.ones_like(w))
    r = torch.maximum(groups.sum(w.square()).sqrt() - groups.sum(t.square()).sqrt(), free_norm)
    r = torch.maximum(r, excess.sqrt())
    for _ in range(iterations):
        shifted = (groups.expand(r) + t).clamp_min(tiny)
        p = groups.sum((w / shifted).square())
        slope = groups.sum((w / shifted).square() / shifted)
        move = (p.sqrt() - 1) * p / slope.clamp_min(tiny)
        move = torch.where(slope > 0, move.clamp_min(0.0), 0.0)
        r = r + move
        if bool((move <= 4 * torch.finfo(w.dtype).eps * r).all()):
            break
    return r


def _scale_groups(w: Tensor, scale: Tensor, dead: Tensor, groups: GroupSums) -> Tensor:
    """Multiply each group by its scale and write exact zeros over the dead ones."""
    zero = torch.zeros((), dtype=w.dtype, device=w.device)
    return torch.where(groups.expand(dead), zero, (_wide(w) * groups.expand(scale)).to(w.dtype))


def _wide(w: Tensor) -> Tensor:
    """Return ``w`` in float32 if it is a half-precision tensor, else ``w`` itself."""
    return w.float() if w.dtype in (torch.float16, torch.bfloat16) else w
