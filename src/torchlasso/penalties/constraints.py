"""Constraints: how many weights may be nonzero, in all or in every few, or how large their sum may be.

A constraint is a penalty that is 0 inside its set and infinite outside.  It has no strength, and its proximal
map is the projection onto the set, the same for every positive step size: only an elementwise metric plays a
part.  At step 0 nothing moves, as with every penalty, so a point outside the set stays outside.
"""

import math
import operator
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.penalties.base import Penalty, Strength
from torchlasso.prox import at_least_float32
from torchlasso.proximal.constraints import largest_entries, largest_of_each, moving_cost, project_l1_ball


@dataclass(frozen=True, eq=False)
class Constraint(Penalty):
    """A set that the weights must lie in; the subclasses say which.

    Attributes:
        strength: 0, and not to be set: there is nothing to trade off.
    """

    has_strength: ClassVar[bool] = False

    strength: Strength = field(default=0.0, init=False)

    def with_strength(self, strength: Strength) -> Self:
        """Return the constraint as it is.

        Args:
            strength: of the other penalties; it plays no part.
        """
        return self

    def validate(self, shape: torch.Size) -> None:
        """Take any shape."""

    def value(self, w: Tensor) -> Tensor:
        """Return 0 inside the set and infinity outside, with gradient 0."""
        nothing = (at_least_float32(w) * 0.0).sum()  # NaN where the weights are
        return torch.where(self._outside(w.detach()), torch.inf, nothing)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the nearest point of the set, ``argmin Σ_i (x_i − w_i)²/step_i``.

        Args:
            w: the point to project.
            step: a positive number, which plays no part, or a tensor that broadcasts to ``w``.  What has
                step 0 cannot move, even where the set cannot be reached without it.

        Returns:
            A new tensor of the shape and dtype of ``w``.
        """
        wide = at_least_float32(w)
        elementwise = isinstance(step, Tensor) and step.numel() != 1
        d = torch.as_tensor(step, dtype=wide.dtype, device=w.device)
        d = d if elementwise else d.reshape(())
        result = torch.where(d == 0, wide, self._project(wide, d if elementwise else None))
        return torch.where(d.isnan(), torch.nan, result).to(w.dtype) + 0.0

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance of ``−grad`` to the normal cone of the set at ``w``, infinite outside the set.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.

        Returns:
            A tensor of the shape of ``w``.
        """
        distance = self._distance(at_least_float32(w), at_least_float32(grad))
        distance = torch.where(self._outside(w), torch.inf, distance)
        return torch.where(w.isnan(), torch.nan, distance)

    def strength_max(self, grad: Tensor) -> float:
        """Return infinity: no strength makes zero stationary, since a constraint has none (0 for no weights).

        Args:
            grad: the gradient of the data loss at ``w = 0``.
        """
        return math.inf if grad.numel() else 0.0

    def support(self, w: Tensor) -> Tensor:
        """Return where ``w`` is not zero."""
        return w != 0

    @abstractmethod
    def _outside(self, w: Tensor) -> Tensor:
        """Return whether ``w`` lies outside the set, as a 0-d boolean tensor."""

    @abstractmethod
    def _project(self, w: Tensor, step: Tensor | None) -> Tensor:
        """Return the projection of a wide tensor in an elementwise metric, or in the plain one."""

    @abstractmethod
    def _distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance of ``−grad`` to the normal cone at a ``w`` that lies in the set."""


@final
@dataclass(frozen=True, eq=False)
class TopK(Constraint):
    """At most ``k = round((1 − sparsity)·n)`` of the ``n`` weights of a tensor are nonzero.

    Projection: the ``k`` entries with the largest ``w²/step`` stay as they are, the others become zero; of
    equal ones the first are kept.  What cannot move, and what is not finite, is always kept.

    Args:
        sparsity: the share of zeros, from 0 to 1.

    Raises:
        InputError: the sparsity lies outside that range.

    Example:
        >>> TopK(0.5).prox(torch.tensor([0.3, -2.0, 0.1, 1.0]), 1.0)
        tensor([ 0., -2.,  0.,  1.])

    References:
        Blumensath and Davies, "Iterative hard thresholding for compressed sensing", Appl. Comput. Harmon.
        Anal. 27 (2009).
    """

    convex: ClassVar[bool] = False

    sparsity: float

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if not _is_number(self.sparsity) or not 0.0 <= self.sparsity <= 1.0:
            msg = f"sparsity must lie between 0 (keep all) and 1 (keep none), got {self.sparsity!r}"
            raise InputError(msg)

    def describe(self) -> str:
        """Return the constraint."""
        return f"TopK(sparsity={self.sparsity:g})"

    def _count(self, w: Tensor) -> int:
        return round((1.0 - self.sparsity) * w.numel())

    def _outside(self, w: Tensor) -> Tensor:
        return (w != 0).sum() > self._count(w)

    def _project(self, w: Tensor, step: Tensor | None) -> Tensor:
        cost = moving_cost(w, step)
        return torch.where(largest_entries(cost, self._count(w)) | cost.isinf(), w, 0.0)

    def _distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return ``|g|`` where ``w ≠ 0``; the zeros count only while more entries may become nonzero."""
        full = (w != 0).sum() >= self._count(w)
        return torch.where((w == 0) & full, 0.0 * grad, grad).abs()


@final
@dataclass(frozen=True, eq=False)
class NM(Constraint):
    """At most ``n`` of every ``m`` consecutive weights along dimension 1 are nonzero.

    Dimension 1 holds the inputs of a linear layer and the input channels of a convolution; a vector is taken
    along its only dimension.  With 2 of 4 a linear weight is what ``torch.sparse.to_sparse_semi_structured``
    takes.

    Projection: in every block the ``n`` entries with the largest ``w²/step`` stay as they are; of equal ones
    the first are kept.  What cannot move, and what is not finite, is always kept.

    Args:
        n: how many of a block may be nonzero.
        m: the length of a block; it must divide the size of the dimension.

    Raises:
        InputError: ``m`` is not positive, or ``n`` not between 0 and ``m``.

    Example:
        >>> NM(2, 4).prox(torch.tensor([[0.3, -2.0, 0.1, 1.0, 5.0, 4.0, 3.0, 2.0]]), 1.0)
        tensor([[ 0., -2.,  0.,  1.,  5.,  4.,  0.,  0.]])

    References:
        Mishra et al., "Accelerating sparse deep neural networks", arXiv 2104.08378.
    """

    convex: ClassVar[bool] = False

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        try:
            fits = 0 <= operator.index(self.n) <= operator.index(self.m) and self.m > 0
        except TypeError:
            fits = False
        if not fits:
            given = f"{self.n!r} and {self.m!r}"
            msg = f"NM needs whole numbers 0 <= n <= m with m > 0, such as 2 and 4, got {given}"
            raise InputError(msg)

    def validate(self, shape: torch.Size) -> None:
        """Raise ``InputError`` if ``m`` does not divide the size of the dimension."""
        if not shape or shape[_dim(shape)] % self.m:
            msg = (
                f"{self.describe()} needs a dimension that is a multiple of {self.m} (the second, or a "
                f"vector's only one), got shape {tuple(shape)}; leave the layer out, or pad it"
            )
            raise InputError(msg)

    def describe(self) -> str:
        """Return the constraint."""
        return f"NM({self.n}:{self.m})"

    def _blocks(self, w: Tensor) -> Tensor:
        """Return a matrix with one block a row."""
        return w.movedim(_dim(w.shape), -1).reshape(-1, self.m)

    def _unblock(self, blocks: Tensor, shape: torch.Size) -> Tensor:
        """Return what belongs to the blocks as a tensor of a shape."""
        dim = _dim(shape)
        moved = (*shape[:dim], *shape[dim + 1 :], shape[dim])
        return blocks.expand(-1, self.m).reshape(moved).movedim(-1, dim)

    def _used(self, w: Tensor) -> Tensor:
        """Return the number of nonzero entries of each block, as a column."""
        return (self._blocks(w) != 0).sum(1, keepdim=True)

    def _outside(self, w: Tensor) -> Tensor:
        return (self._used(w) > self.n).any()

    def _project(self, w: Tensor, step: Tensor | None) -> Tensor:
        cost = moving_cost(w, step)
        kept = self._unblock(largest_of_each(self._blocks(cost), self.n), w.shape)
        return torch.where(kept | cost.isinf(), w, 0.0)

    def _distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return ``|g|`` where ``w ≠ 0``; the zeros count only in blocks with room for more."""
        full = self._unblock(self._used(w) >= self.n, w.shape)
        return torch.where((w == 0) & full, 0.0 * grad, grad).abs()


@final
@dataclass(frozen=True, eq=False)
class L1Ball(Constraint):
    """The weights of a tensor have ``‖w‖₁ ≤ radius``: the lasso in the form of a budget.

    Projection: ``sign(w)·max(|w| − θ·step, 0)`` with the one ``θ ≥ 0`` that brings the sum to the radius.

    Args:
        radius: the largest sum of absolute values, zero or more.

    Raises:
        InputError: the radius is negative or not finite.

    Example:
        >>> L1Ball(2.0).prox(torch.tensor([3.0, -1.0, 0.5]), 1.0)
        tensor([2., 0., 0.])

    References:
        Duchi, Shalev-Shwartz, Singer and Chandra, "Efficient projections onto the l1-ball for learning in
        high dimensions", ICML (2008).
    """

    radius: float

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if not _is_number(self.radius) or not 0.0 <= self.radius < math.inf:
            msg = f"radius must be a finite number, zero or more, got {self.radius!r}"
            raise InputError(msg)

    def describe(self) -> str:
        """Return the constraint."""
        return f"L1Ball(radius={self.radius:g})"

    def _slack(self, w: Tensor) -> float:
        """Return how far from the radius a sum may be that was rounded to the dtype of ``w``."""
        exact = torch.finfo(w.dtype)
        return 4 * exact.eps * self.radius + w.numel() * exact.smallest_normal * exact.eps

    def _outside(self, w: Tensor) -> Tensor:
        return w.double().abs().sum() > self.radius + self._slack(w)

    def _project(self, w: Tensor, step: Tensor | None) -> Tensor:
        return project_l1_ball(w, self.radius, step)

    def _distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return ``|g|`` inside; on the boundary ``|g + μ·sign(w)|``, or ``max(|g| − μ, 0)`` at the zeros.

        ``μ ≥ 0`` is the mean of ``−g·sign(w)`` over the nonzero entries, which all share it where ``w`` is
        stationary.
        """
        if self.radius == 0:
            return 0.0 * grad.abs()  # the set is a point, where every gradient is normal
        pull = (-grad * w.sign()).sum() / (w != 0).sum().clamp_min(1)
        inside = w.double().abs().sum() < self.radius - self._slack(w)
        price = torch.where(inside, 0.0, pull.clamp_min(0.0))
        return torch.where(w == 0, (grad.abs() - price).clamp_min(0.0), (grad + price * w.sign()).abs())


def _dim(shape: torch.Size) -> int:
    return min(1, len(shape) - 1)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not math.isnan(value)
