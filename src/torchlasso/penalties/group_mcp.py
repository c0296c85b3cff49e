"""The minimax concave penalty on the norms of groups: groups vanish whole, and large ones are not shrunk."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from torchlasso.layouts import GroupLayout
from torchlasso.penalties.concave import check_above
from torchlasso.penalties.structured import Groups, GroupWeights, NormPenalty, held_value
from torchlasso.prox import group_norms
from torchlasso.proximal.groups import group_firm_threshold, group_firm_threshold_metric


@final
@dataclass(frozen=True, eq=False)
class GroupMCP(NormPenalty):
    """The group MCP ``Σ_g MCP(‖w_g‖₂; strength·c_g, γ)``: groups vanish whole, large ones are not shrunk.

    ``MCP(r; t, γ)`` is ``t·r − r²/(2γ)`` up to ``r = γt`` and ``γt²/2`` from there on.  Prox with a scalar
    ``step < γ``: the norm becomes ``min(r, max(r − step·t, 0)/(1 − step/γ))``; for larger steps the group
    stays as it is if ``r > t·√(step·γ)`` and vanishes otherwise.  With an elementwise step a one-dimensional
    root is solved.  Both are the global minimiser.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per unit of ``w``, or a function of the step.
        gamma: γ > 0; groups whose norm is above γλc are not shrunk at all.  The group lasso is γ → ∞.
        groups: as in ``GroupLasso``.
        weights: ``c``: ``"sqrt"`` of the group size, ``None`` for 1, or a tensor of one entry a group;
            0 keeps a group, infinity excludes it.

    Raises:
        InputError: a negative strength, a γ that is not positive, unknown or overlapping groups, or negative
            weights.

    Example:
        >>> w = torch.tensor([[3.0, 4.0], [0.9, 1.2], [0.3, 0.4]])
        >>> GroupMCP(1.0, gamma=3.0, weights=None).prox(w, 1.0)
        tensor([[3.0000, 4.0000],
                [0.4500, 0.6000],
                [0.0000, 0.0000]])

    References:
        Breheny and Huang, "Group descent algorithms for nonconvex penalized linear and logistic regression
        models with grouped predictors", Stat. Comput. 25 (2015).
        Zhang, "Nearly unbiased variable selection under minimax concave penalty", Ann. Stat. 38 (2010).
    """

    convex: ClassVar[bool] = False

    gamma: float = 3.0
    groups: Groups = "rows"
    weights: GroupWeights = "sqrt"

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        check_above(self.gamma, 0.0, "gamma", "where nothing would be penalised")

    def value(self, w: Tensor) -> Tensor:
        """Return ``Σ_g MCP(‖w_g‖₂; strength·c_g, γ)``, with gradient 0 at a zero group."""
        layout = self.layout(w.shape)
        norms = group_norms(w, layout)
        c, excluded = self._weights(layout, norms)
        level = self.current_strength * c
        inside = torch.minimum(norms, self.gamma * level)
        return held_value((inside * (level - inside / (2 * self.gamma))).sum(), norms, excluded)

    def describe(self) -> str:
        """Return the penalty without its strength."""
        return f"GroupMCP({self._named_groups}, gamma={self.gamma:g})"

    def _shrink(self, w: Tensor, step: float | Tensor, c: Tensor, layout: GroupLayout) -> Tensor:
        return group_firm_threshold(w, self._level(c), step, self.gamma, layout)

    def _shrink_in_metric(self, w: Tensor, step: Tensor, c: Tensor, layout: GroupLayout) -> Tensor:
        return group_firm_threshold_metric(w, self._level(c), step, self.gamma, layout)

    def _slope(self, norm: Tensor, level: Tensor) -> Tensor:
        return (level - norm / self.gamma).clamp_min(0.0)

    def _level(self, c: Tensor) -> Tensor:
        return (self.current_strength * c).clamp_max(torch.finfo(c.dtype).max)
