"""Penalties on groups of entries, which vanish together: what they share, and the group lasso."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.groups import Grouping, layout_of, normalise_groups
from torchlasso.layouts import GroupLayout
from torchlasso.penalties.base import Penalty, check_weights, split_weights
from torchlasso.prox import (
    Kink,
    at_least_float32,
    group_norms,
    group_soft_threshold,
    group_soft_threshold_metric,
    soft_threshold,
)

Groups = str | Sequence[Sequence[int]] | Grouping
GroupWeights = str | Tensor | None


class GroupPenalty(Penalty):
    """A penalty that is a sum over groups, each of which has a weight ``c_g``.

    No dataclass itself, so that each penalty says in which order it takes its arguments.
    """

    groups: Groups
    weights: GroupWeights

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        object.__setattr__(self, "groups", normalise_groups(self.groups))
        if isinstance(self.weights, str):
            if self.weights != "sqrt":
                msg = f"weights must be 'sqrt' (of the group size), None or a tensor, got {self.weights!r}"
                raise InputError(msg)
        else:
            check_weights(self.weights)

    def validate(self, shape: torch.Size) -> None:
        """Raise ``InputError`` if the groups or their weights do not fit ``shape``."""
        count = self.layout(shape).count
        if isinstance(self.weights, Tensor) and self.weights.numel() not in (1, count):
            got = self.weights.numel()
            msg = f"weights must hold one entry a group ({count} groups in {tuple(shape)}), got {got}"
            raise InputError(msg)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return every group shrunk in the metric ``step``, or exactly zero.

        Args:
            w: the point to map.
            step: a number, or a tensor that broadcasts to ``w``.

        Returns:
            A new tensor of the shape and dtype of ``w``.
        """
        layout = self.layout(w.shape)
        c, excluded = self._weights(layout, at_least_float32(w))
        if self.current_strength == 0:
            result = w + 0.0
        elif isinstance(step, Tensor) and step.numel() != 1:
            result = self._shrink_in_metric(w, step, c, layout)
        else:
            number = step.reshape(()) if isinstance(step, Tensor) else step
            result = self._shrink(w, number, c, layout)
        return result if excluded is None else torch.where(layout.expand(excluded), 0.0, result)

    @abstractmethod
    def _shrink(self, w: Tensor, step: float | Tensor, c: Tensor, layout: GroupLayout) -> Tensor:
        """Return the proximal map for a step that is one number, at a strength above 0."""

    @abstractmethod
    def _shrink_in_metric(self, w: Tensor, step: Tensor, c: Tensor, layout: GroupLayout) -> Tensor:
        """Return the proximal map for an elementwise step, at a strength above 0."""

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance of ``−g`` to the subdifferential, one norm a group.

        With an entry's own slope ``a`` (0 but for ``SparseGroupLasso``) and the group's slope ``φ'``, a group
        of zeros has ``max(‖soft(g, a)‖ − φ'(0), 0)``.  In another an entry counts
        ``|g_i + a·sign(w_i) + φ'(‖w‖)·w_i/‖w‖|``, or ``max(|g_i| − a, 0)`` if it is zero.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.

        Returns:
            A vector of one residual a group (infinite for an excluded group that is not zero).
        """
        layout = self.layout(w.shape)
        w, grad = at_least_float32(w), at_least_float32(grad)
        c, excluded = self._weights(layout, w)
        entry, level = self._slopes_at_zero(c)
        norm = group_norms(w, layout)
        alive = norm != 0  # NaN counts as alive, so that it shows
        inner = soft_threshold(grad, entry)
        slope = self._slope(norm, level)
        pull = w / layout.expand(torch.where(alive, norm, 1.0)) * layout.expand(slope)
        on = torch.where(w == 0, inner, grad + entry * w.sign() + pull)
        off = (group_norms(inner, layout) - level).clamp_min(0.0)
        result = torch.where(alive, group_norms(on, layout), off)
        return result if excluded is None else held_residual(result, alive, excluded)

    @abstractmethod
    def _slopes_at_zero(self, c: Tensor) -> tuple[float, Tensor]:
        """Return the slope of every single entry at zero, and that of the groups with weights ``c``."""

    @abstractmethod
    def _slope(self, norm: Tensor, level: Tensor) -> Tensor:
        """Return ``φ'`` at the norms of groups that are not zero, ``level`` being that at zero."""

    def support(self, w: Tensor) -> Tensor:
        """Return True over every entry of a group that has a nonzero entry."""
        layout = self.layout(w.shape)
        return layout.expand(layout.sum((w != 0).to(torch.float32)) > 0).expand_as(w)

    @property
    def _named_groups(self) -> str:
        """The groups, as ``describe`` shows them."""
        return f"{len(self.groups)} lists" if isinstance(self.groups, tuple) else str(self.groups)

    def layout(self, shape: torch.Size) -> GroupLayout:
        """Return the groups of a tensor.

        Args:
            shape: of the weights.
        """
        return layout_of(self.groups, tuple(shape))

    def _weights(self, layout: GroupLayout, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``c``, one entry a group (0 for the excluded ones), and which groups are excluded."""
        if isinstance(self.weights, Tensor):
            c, excluded = split_weights(self.weights.reshape(-1), like.device, like.dtype)
            return c.expand(layout.count), excluded.expand(layout.count)
        if self.weights is None:
            return torch.ones(layout.count, dtype=like.dtype, device=like.device), None
        return layout.sizes.sqrt().to(like.device, like.dtype), None


class NormPenalty(GroupPenalty):
    """A penalty on norms alone, ``Σ_g φ(‖w_g‖)``, whose slope at zero is ``φ'(0) = strength·c_g``."""

    def _slopes_at_zero(self, c: Tensor) -> tuple[float, Tensor]:
        return 0.0, self.current_strength * c

    def strength_max(self, grad: Tensor) -> float:
        """Return ``max_g ‖g_g‖₂ / c_g`` over the penalised groups.

        Args:
            grad: the gradient of the data loss at ``w = 0``.

        Returns:
            The smallest strength at which zero is stationary.
        """
        layout = self.layout(grad.shape)
        norms = group_norms(grad, layout)
        c, _ = self._weights(layout, norms)
        ratio = torch.where(c > 0, norms / torch.where(c > 0, c, 1.0), 0.0)
        return float(ratio.max()) if ratio.numel() else 0.0

    def kink(self, w: Tensor) -> Kink:
        """Return ``λc`` of every group, infinite for the excluded ones."""
        layout = self.layout(w.shape)
        c, excluded = self._weights(layout, w)
        slope = self.current_strength * c
        slope = slope if excluded is None else torch.where(excluded, torch.inf, slope)
        return Kink(slope, groups=layout, everywhere=self.convex)

    def for_complex(self, shape: torch.Size) -> Penalty:
        """Return the same groups, of twice as many real numbers; ``"sqrt"`` still counts complex weights.

        Args:
            shape: of the complex weights.

        Raises:
            InputError: the groups are runs or lists of a vector, which as real numbers is a matrix.
        """
        layout = self.layout(shape)
        if not isinstance(self.groups, str) and self.layout(torch.Size((*shape, 2))).count != layout.count:
            msg = f"groups={self.groups!r} mean something else on a complex vector; use a matrix of one row"
            raise InputError(msg)
        return self if self.weights != "sqrt" else replace(self, weights=layout.sizes.sqrt())  # type: ignore[call-arg]  # which every penalty on norms takes


def held_residual(residual: Tensor, alive: Tensor, excluded: Tensor) -> Tensor:
    """Return the residuals with those of excluded groups: infinite while they are not zero, else 0.

    Args:
        residual: of every group without its exclusion.
        alive: whether the group is not zero.
        excluded: whether it has to be.
    """
    return torch.where(excluded, torch.where(alive, torch.inf, 0.0), residual)


def held_value(value: Tensor, norm: Tensor, excluded: Tensor | None) -> Tensor:
    """Return the value of a penalty, infinite if an excluded group is not zero.

    Args:
        value: of the groups that are not excluded.
        norm: of every group.
        excluded: whether the group has to be zero, or None.
    """
    return value if excluded is None else torch.where((excluded & (norm != 0)).any(), torch.inf, value)


@final
@dataclass(frozen=True, eq=False)
class GroupLasso(NormPenalty):
    """The group lasso ``strength · Σ_g c_g ‖w_g‖₂``: rows, columns, tiles, heads or units vanish whole.

    Prox with a scalar step: ``w_g · max(1 − step·strength·c_g/‖w_g‖, 0)``.  With an elementwise step
    (the metric of an adaptive optimizer) there is no closed form; the one-dimensional root is solved.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per unit of ``w``, or a function of the step.
        groups: ``"rows"`` (dimension 0: neurons, filters), or ``"channels"`` for the same in a coupled set,
            ``"columns"`` (dimension 1: inputs),
            ``"kernels"`` (one spatial kernel each), ``"pairs"`` (what lies along the last dimension),
            ``"tensor"``, ``Blocks``, ``Heads``, ``Units``, or lists of indices along dimension 1 that cover
            it once.
        weights: ``c``: ``"sqrt"`` of the group size, ``None`` for 1, or a tensor of one entry a group;
            0 keeps a group, infinity excludes it.

    Raises:
        InputError: a negative strength, unknown or overlapping groups, or negative weights.

    Example:
        >>> w = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> GroupLasso(1.0, groups="rows", weights=None).prox(w, 1.0)
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])

    References:
        Yuan and Lin, J. R. Stat. Soc. B 68 (2006).  In a diagonal metric: Deleu and Bengio,
        "Structured sparsity inducing adaptive optimizers", arXiv 2102.03869.
    """

    # Positional here, where nothing else stands before them.
    groups: Groups = "rows"
    weights: GroupWeights = "sqrt"

    def value(self, w: Tensor) -> Tensor:
        """Return ``strength · Σ_g c_g ‖w_g‖₂``, with gradient 0 at a zero group."""
        layout = self.layout(w.shape)
        norms = group_norms(w, layout)
        c, excluded = self._weights(layout, norms)
        return held_value(self.current_strength * (c * norms).sum(), norms, excluded)

    def describe(self) -> str:
        """Return the penalty without its strength."""
        return f"GroupLasso({self._named_groups})"

    def _shrink(self, w: Tensor, step: float | Tensor, c: Tensor, layout: GroupLayout) -> Tensor:
        threshold = torch.where(c > 0, step * self.current_strength * c, 0.0)
        return group_soft_threshold(w, threshold, layout)

    def _shrink_in_metric(self, w: Tensor, step: Tensor, c: Tensor, layout: GroupLayout) -> Tensor:
        price = layout.expand(c)  # where it is 0 the group is free, even if the step overflowed
        threshold = torch.where(price > 0, step * self.current_strength * price, 0.0)
        return group_soft_threshold_metric(w, threshold, layout)

    def _slope(self, norm: Tensor, level: Tensor) -> Tensor:
        return level
