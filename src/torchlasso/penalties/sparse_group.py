"""The sparse group lasso: groups vanish whole, and entries within the groups that stay."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchlasso.layouts import GroupLayout
from torchlasso.penalties.base import check_ratio
from torchlasso.penalties.structured import GroupPenalty, Groups, GroupWeights, held_value
from torchlasso.prox import at_least_float32, group_norms, soft_threshold
from torchlasso.proximal.groups import sparse_group_threshold


@final
@dataclass(frozen=True, eq=False)
class SparseGroupLasso(GroupPenalty):
    """The sparse group lasso ``strength · Σ_g [ρ‖w_g‖₁ + (1 − ρ)c_g‖w_g‖₂]`` with ``ρ = l1_ratio``.

    Prox: soft thresholding by ``step·strength·ρ``, then the shrinkage of the group lasso at
    ``strength·(1 − ρ)``; exact for an elementwise step as well.  It has no kink of one form (entries have one
    within groups that have another), so that optimizers take the plain proximal step and weigh no evidence.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per unit of ``w``, or a function of the step.
        l1_ratio: ρ, from 0 (group lasso) to 1 (lasso).
        groups: as in ``GroupLasso``.
        weights: ``c``: ``"sqrt"`` of the group size, ``None`` for 1, or a tensor of one entry a group;
            0 leaves a group its L1 part only, infinity excludes it.

    Raises:
        InputError: a negative strength, a ratio outside [0, 1], unknown or overlapping groups, or negative
            weights.

    Example:
        >>> w = torch.tensor([[3.0, 4.0, 0.5], [0.9, 0.8, 0.0]])
        >>> SparseGroupLasso(2.0, l1_ratio=0.5, weights=None).prox(w, 1.0)
        tensor([[1.4453, 2.1679, 0.0000],
                [0.0000, 0.0000, 0.0000]])

    References:
        Simon, Friedman, Hastie and Tibshirani, "A sparse-group lasso", J. Comput. Graph. Stat. 22 (2013).
    """

    l1_ratio: float = 0.5
    groups: Groups = "rows"
    weights: GroupWeights = "sqrt"

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        check_ratio(self.l1_ratio)

    def value(self, w: Tensor) -> Tensor:
        """Return ``strength · Σ_g [ρ‖w_g‖₁ + (1 − ρ)c_g‖w_g‖₂]``, with gradient 0 at every kink."""
        layout = self.layout(w.shape)
        norms = group_norms(w, layout)
        c, excluded = self._weights(layout, norms)
        entries, groups = at_least_float32(w).abs().sum(), (c * norms).sum()
        total = self.current_strength * (self.l1_ratio * entries + (1 - self.l1_ratio) * groups)
        return held_value(total, norms, excluded)

    def strength_max(self, grad: Tensor) -> float:
        """Return the largest root λ over the groups of ``‖soft(g, λρ)‖₂ = λ(1 − ρ)c``.

        Args:
            grad: the gradient of the data loss at ``w = 0``.

        Returns:
            The smallest strength at which zero is stationary.
        """
        layout = self.layout(grad.shape)
        grad = at_least_float32(grad)
        c, excluded = self._weights(layout, grad)
        if excluded is not None:
            grad = torch.where(layout.expand(excluded), 0.0, grad)
        roots = _largest_strengths(grad, self.l1_ratio, c, layout)
        return float(roots.max()) if roots.numel() else 0.0

    def describe(self) -> str:
        """Return the penalty without its strength."""
        return f"SparseGroupLasso({self._named_groups}, l1_ratio={self.l1_ratio:g})"

    def _slopes_at_zero(self, c: Tensor) -> tuple[float, Tensor]:
        strength = self.current_strength
        return strength * self.l1_ratio, strength * (1 - self.l1_ratio) * c

    def _slope(self, norm: Tensor, level: Tensor) -> Tensor:
        return level

    def _shrink(self, w: Tensor, step: float | Tensor, c: Tensor, layout: GroupLayout) -> Tensor:
        entry, group = self._thresholds(step, c)
        return sparse_group_threshold(w, entry, group, layout)

    def _shrink_in_metric(self, w: Tensor, step: Tensor, c: Tensor, layout: GroupLayout) -> Tensor:
        entry, group = self._thresholds(at_least_float32(step), layout.expand(c))
        return sparse_group_threshold(w, entry, group, layout, metric=True)

    def _thresholds(self, step: float | Tensor, c: Tensor) -> tuple[float | Tensor, Tensor]:
        """Return the two thresholds, 0 where a factor is, even if the step overflowed."""
        rho, strength = self.l1_ratio, self.current_strength
        entry = step * (strength * rho) if rho > 0 else 0.0
        group = torch.where(c > 0, step * (strength * (1 - rho)) * c, 0.0) if rho < 1 else torch.zeros_like(c)
        return entry, group


def _largest_strengths(grad: Tensor, rho: float, c: Tensor, layout: GroupLayout) -> Tensor:
    """Return the root λ of ``‖soft(g, λρ)‖ = λ(1 − ρ)c`` for each group, 0 where nothing is penalised.

    The difference of the two sides is convex and falls, so Newton's method rises from 0 to the root.
    """
    price = (1 - rho) * c
    root = torch.zeros_like(c)
    for _ in range(100):
        left = soft_threshold(grad, layout.expand(root) * rho)
        norm = group_norms(left, layout)
        slope = price + rho * layout.sum(left.abs() / layout.expand(torch.where(norm > 0, norm, 1.0)))
        none = slope == 0  # nothing is penalised, or nothing is left
        move = torch.where(none, 0.0, (norm - root * price) / torch.where(none, 1.0, slope))
        root = root + move.clamp_min(0.0)
        if not bool((move > torch.finfo(root.dtype).eps * root).any()):
            break
    return root
