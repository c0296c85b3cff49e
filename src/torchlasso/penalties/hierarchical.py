"""LassoNet's penalty: a feature may be used by the network only as far as its linear skip weight allows."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.groups import layout_of
from torchlasso.layouts import GroupLayout, KeptDims
from torchlasso.penalties.base import Penalty
from torchlasso.prox import at_least_float32, group_norms
from torchlasso.proximal.hierarchical import hierarchical_prox


@final
@dataclass(frozen=True, eq=False)
class Hierarchical(Penalty):
    """``strength · Σ_j (‖θ_j‖₂ + inner·‖W_j‖₁)`` with ``‖W_j‖_∞ ≤ M·‖θ_j‖₂``: features vanish whole.

    Acts on a matrix with one row a feature: the first ``skip`` columns are the weights ``θ_j`` of a linear
    skip connection, the others the weights ``W_j`` into the first hidden layer.  A feature with ``θ_j = 0``
    is out of the network.  ``torchlasso.hierarchical`` builds the matrix from the two layers.

    Prox: the exact global minimiser, also in a diagonal metric, by a one-dimensional root for each row; see
    ``proximal/hierarchical.py``.  A row with ``θ = 0`` may leave zero on account of its ``W``: then ``θ`` can
    point anywhere, and points along its first entry.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per unit of ``θ``, or a function of the step.
        M: the bound, zero or more: at 0 the model is linear; the larger it is, the less ``θ`` counts.
        skip: how many columns are ``θ``: the number of outputs of the skip connection.
        inner: an L1 penalty on the entries of ``W``, as a multiple of the strength.

    Raises:
        InputError: a negative or non-finite strength, ``M`` or ``inner``, or no skip column.

    Example:
        >>> penalty = Hierarchical(1.0, M=2.0)
        >>> penalty.prox(torch.tensor([[2.0, 8.0, 1.0], [0.3, 0.2, 0.1]]), 1.0)
        tensor([[3.4000, 6.8000, 1.0000],
                [0.0000, 0.0000, 0.0000]])

    References:
        Lemhadri, Ruan, Abraham and Tibshirani, "LassoNet: a neural network with feature sparsity", J. Mach.
        Learn. Res. 22 (2021).
    """

    convex: ClassVar[bool] = False

    M: float = 10.0
    skip: int = 1
    inner: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        for name, value in (("M", self.M), ("inner", self.inner)):
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                msg = f"{name} must be a finite number, zero or more, got {value!r}"
                raise InputError(msg)
            object.__setattr__(self, name, float(value))
        if not isinstance(self.skip, int) or self.skip < 1:
            msg = f"skip must be the number of skip columns, 1 or more, got {self.skip!r}"
            raise InputError(msg)

    def validate(self, shape: torch.Size) -> None:
        """Raise ``InputError`` unless the shape is a matrix with more than ``skip`` columns."""
        if len(shape) != 2 or shape[1] <= self.skip:
            msg = (
                f"{self.describe()} needs a matrix with one row a feature, of {self.skip} skip columns and "
                f"one or more others, got shape {tuple(shape)}; build it with torchlasso.hierarchical"
            )
            raise InputError(msg)

    def value(self, w: Tensor) -> Tensor:
        """Return ``strength · Σ_j (‖θ_j‖₂ + inner·‖W_j‖₁)``, with gradient 0 at zero; infinite outside."""
        wide = at_least_float32(w)
        total = self.current_strength * _norms(wide[:, : self.skip]).sum()
        if self.inner > 0:
            total = total + self.current_strength * self.inner * wide[:, self.skip :].abs().sum()
        return torch.where(self._outside(w.detach()).any(), torch.inf, total)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the global minimiser for every row.

        Args:
            w: the point to map.
            step: a number or a tensor that broadcasts to ``w``; what has step 0 stays as it is, even where
                it breaks the bound.

        Returns:
            A new tensor of the shape and dtype of ``w``; NaN in every row with an entry that is no finite
            number.
        """
        strength = self.current_strength
        result = hierarchical_prox(w, step, self.skip, strength, strength * self.inner, self.M)
        if strength > 0:
            return result
        stays = ~self._outside(w)[:, None] & ~result.isnan()  # to the last bit
        return torch.where(stays, w, result) + 0.0

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return ``‖w − prox(w − t·g, t)‖/t`` of every row, infinite for a row that breaks the bound.

        Zero exactly where a row is stationary, since ``t = ½·‖θ‖/(λ + ‖g_θ‖ + M·‖g_W‖₁)`` is small against
        the curvature that the bound adds (for a row of zeros ``t = 1``, as it plays no part there).

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.

        Returns:
            A vector of one residual a row.
        """
        outside = self._outside(w)
        w, grad = at_least_float32(w), at_least_float32(grad)
        pull = self.current_strength + _norms(grad[:, : self.skip])
        pull = pull + self.M * grad[:, self.skip :].abs().sum(1)
        t = 0.5 * _norms(w[:, : self.skip]) / torch.where(pull > 0, pull, 1.0)
        t = torch.where((t > 0) & (pull > 0), t, 1.0)[:, None]
        moved = self.prox(w - t * grad, t.expand_as(w))
        return torch.where(outside, torch.inf, _norms((w - moved) / t))

    def strength_max(self, grad: Tensor) -> float:
        """Return the smallest λ at which ``‖g_θ‖ + M·Σ max(|g_W| − inner·λ, 0) ≤ λ`` in every row.

        With the ``k`` largest entries of ``|g_W|`` alone that is a division; the largest over ``k`` counts.

        Args:
            grad: the gradient of the data loss at ``w = 0``.

        Returns:
            The smallest strength at which zero is stationary.
        """
        grad = at_least_float32(grad)
        theta = _norms(grad[:, : self.skip])[:, None]
        largest = grad[:, self.skip :].abs().sort(dim=1, descending=True).values.cumsum(1)
        count = torch.arange(1, largest.shape[1] + 1, dtype=grad.dtype, device=grad.device)
        needed = torch.cat([theta, (theta + self.M * largest) / (1 + self.M * self.inner * count)], dim=1)
        return float(needed.max()) if needed.numel() else 0.0

    def layout(self, shape: torch.Size) -> GroupLayout:
        """Return the rows: each is a feature.

        Args:
            shape: of the weights.
        """
        return KeptDims(tuple(shape), (0,))

    def support(self, w: Tensor) -> Tensor:
        """Return True over every entry of a row that has a nonzero entry."""
        return (w != 0).any(1, keepdim=True).expand_as(w)

    def describe(self) -> str:
        """Return the penalty without its strength."""
        return f"Hierarchical(M={self.M:g})"

    def _outside(self, w: Tensor) -> Tensor:
        """Return which rows break the bound by more than the rounding of their dtype."""
        exact = torch.finfo(w.dtype)
        wide = at_least_float32(w)
        largest = wide[:, self.skip :].abs().amax(1)
        limit = self.M * _norms(wide[:, : self.skip]) * (1 + 4 * exact.eps)
        return ~(largest <= limit + exact.smallest_normal * exact.eps)  # NaN is outside


def _norms(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of every row, with gradient 0 at zero."""
    return group_norms(rows, layout_of("rows", tuple(rows.shape)))
