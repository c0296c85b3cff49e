"""Proximal maps on groups beyond the group lasso: sparse groups, and the concave penalty of their norms."""

import torch
from torch import Tensor

from torchlasso.prox import (
    GroupSums,
    at_least_float32,
    group_norms,
    group_root,
    group_soft_threshold,
    group_soft_threshold_metric,
    soft_threshold,
    usable_scale,
)
from torchlasso.proximal.nonconvex import firm_threshold


def sparse_group_threshold(
    w: Tensor, entry: float | Tensor, group: Tensor, groups: GroupSums, *, metric: bool = False
) -> Tensor:
    """Shrink every entry, and then every group.

    ``argmin_x ½·Σ_i (x_i − w_i)²/d_i + Σ_i a|x_i| + Σ_g b_g‖x_g‖₂``

    Args:
        w: any real tensor.
        entry: ``d·a ≥ 0``, a number or a tensor that broadcasts against ``w``.
        group: ``d·b_g ≥ 0``, one entry a group; in a metric ``d_i·b_g``, one an entry.
        groups: how the entries of ``w`` fall into groups.
        metric: whether ``d`` differs from entry to entry.

    Returns:
        A new tensor of the shape of ``w``.

    References:
        Simon, Friedman, Hastie and Tibshirani, "A sparse-group lasso", J. Comput. Graph. Stat. 22 (2013).
    """
    # One map after the other is exact in any diagonal metric.  The first gives v with (w − v)/d = a·t, where
    # t_i is a subgradient of |·| at v_i; the second x with (v − x)/d = b·u, u a subgradient of ‖·‖ at x.  It
    # multiplies each entry by a number of [0, 1]: either x_i has the sign of v_i, of which t_i is the one
    # subgradient, or it is zero, where all of [−1, 1] are.  So t_i is a subgradient at x_i too, and the sum
    # (w − x)/d = a·t + b·u is the optimality condition of both penalties together.
    inner = soft_threshold(at_least_float32(w), entry)
    outer = group_soft_threshold_metric if metric else group_soft_threshold
    return outer(inner, group, groups).to(w.dtype) + 0.0


def group_firm_threshold(
    w: Tensor, level: Tensor, step: float | Tensor, gamma: float, groups: GroupSums
) -> Tensor:
    """Map the Euclidean norm of every group by the minimax concave penalty (MCP); its direction stays.

    ``argmin_x ½‖x − w‖²/step + Σ_g MCP(‖x_g‖; t_g, γ)``, the global one whatever the step

    Args:
        w: any real tensor.
        level: ``t_g ≥ 0``, the slope at zero, one entry a group.
        step: one number.
        gamma: γ > 0; the penalty of a group is flat from ``γ·t_g`` on.
        groups: how the entries of ``w`` fall into groups.

    Returns:
        A new tensor of the shape of ``w``.

    References:
        Breheny and Huang, "Group descent algorithms for nonconvex penalized linear and logistic regression
        models with grouped predictors", Stat. Comput. 25 (2015).
    """
    wide = at_least_float32(w)
    norm = group_norms(wide, groups)
    length = torch.as_tensor(step, dtype=wide.dtype, device=wide.device)
    length = length.clamp_max(torch.finfo(wide.dtype).max)
    shrunk = firm_threshold(norm, level, length, gamma)
    kept = (shrunk == norm) | (level == 0)  # infinite norms and zeros among them
    scale = torch.where(kept, 1.0, shrunk / torch.where(norm > 0, norm, 1.0))
    return (wide * groups.expand(scale)).to(w.dtype) + 0.0


def group_firm_threshold_metric(
    w: Tensor, level: Tensor, step: Tensor, gamma: float, groups: GroupSums
) -> Tensor:
    """Map every group by the MCP of its norm in a diagonal metric, to the global minimiser.

    ``argmin_x ½·Σ_i (x_i − w_i)²/d_i + Σ_g MCP(‖x_g‖; t_g, γ)``.  Where the norm ``r`` of a group is above 0
    and below ``γ·t``, ``x_i = w_i·r/(r + d_i·φ'(r))`` with ``φ'(r) = t − r/γ``, and ``r`` is a root of
    ``ψ(r) = 1`` for ``ψ(r) = 1/‖w/(r + d·φ'(r))‖``; along ``r`` the objective falls where ``ψ < 1`` and rises
    where ``ψ > 1``.  The denominators are linear in ``r`` and ``ψ`` is concave in them, so there are at most
    two roots, of which the smaller is the minimum.  It and zero exclude each other, since zero is a minimum
    only if ``ψ(0) ≥ 1``.  From ``γ·t`` on the only minimum is ``w`` itself.  That leaves two candidates, and
    the objective decides.

    Args:
        w: any real tensor.
        level: ``t_g ≥ 0``, the slope at zero, one entry a group.
        step: ``d_i ≥ 0``, a tensor that broadcasts against ``w``.
        gamma: γ > 0; the penalty of a group is flat from ``γ·t_g`` on.
        groups: how the entries of ``w`` fall into groups.

    Returns:
        A new tensor of the shape of ``w``.

    References:
        Breheny and Huang, Stat. Comput. 25 (2015), for one step size.
    """
    wide = at_least_float32(w)
    largest = torch.finfo(wide.dtype).max
    d = at_least_float32(step).to(wide.dtype).clamp_max(largest).expand_as(wide)
    scale = usable_scale(groups.sum(wide.abs()))  # everything in units of the group's size
    v, t = wide / groups.expand(scale), (level / scale).clamp_max(largest)
    edge = (gamma * t).clamp_max(largest)
    share, cost = _inner_minimum(v, t, edge, d, groups)
    # The penalty at w is t·edge/2.  NaN is kept by neither comparison, and shows.
    beyond = group_norms(v, groups) > edge
    keep = (level == 0) | (beyond & (cost > 0.5 * t * edge)) | cost.isposinf()
    return (wide * torch.where(groups.expand(keep), 1.0, share)).to(w.dtype) + 0.0


def _inner_minimum(
    w: Tensor, level: Tensor, edge: Tensor, step: Tensor, groups: GroupSums
) -> tuple[Tensor, Tensor]:
    """Return what is left of every entry at the minimum of norm below the edge, and the objective there.

    The objective is infinite where there is no such minimum.
    """
    t = (step * groups.expand(level)).clamp_max(torch.finfo(w.dtype).max)
    free = t == 0
    # As in the group lasso, zero is a minimum if no direction leads down from it.
    ratio = torch.where(free, torch.where(w == 0, 0.0, torch.inf), w / torch.where(free, 1.0, t))
    dead = groups.sum(ratio.square()) <= 1
    edge = torch.where(edge > 0, edge, 1.0)
    bend = groups.expand(edge)
    r = torch.where(dead, 0.0, group_root(w, t, groups, bend))
    spread = groups.expand(r)
    threshold = t * (1 - spread / bend).clamp_min(0.0)
    share = torch.where(free, 1.0, spread / (spread + threshold).clamp_min(torch.finfo(w.dtype).tiny))
    share = torch.where(groups.expand(dead), 0.0, share)
    held = step == 0
    missed = torch.where(held, 0.0, (w - w * share).square() / torch.where(held, 1.0, step))
    cost = 0.5 * groups.sum(missed) + r * level * (1 - 0.5 * r / edge)
    return share, torch.where(r > edge, torch.inf, cost)
