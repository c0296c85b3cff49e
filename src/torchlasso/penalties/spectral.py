"""The nuclear norm: singular values vanish, so a matrix gets an exactly low rank."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.penalties.base import Penalty
from torchlasso.prox import at_least_float32
from torchlasso.proximal.coupled import prox_in_metric, singular_value_threshold


@final
@dataclass(frozen=True, eq=False)
class NuclearNorm(Penalty):
    """The nuclear norm ``strength · Σ_i σ_i(W)`` of a matrix: singular values become exactly zero.

    A tensor of more dimensions, such as a convolution's, is the matrix of its rows along dimension 0.
    Entries become zero only once all singular values are, so count the rank instead.  With an elementwise
    step (the metric of an adaptive optimizer) there is no closed form, and one step takes tens to hundreds of
    singular value decompositions; plain SGD takes one.

    Args:
        strength: λ ≥ 0 in units of the mean data loss per unit of ``w``, or a function of the step.

    Raises:
        InputError: a negative or non-finite strength.

    Example:
        >>> w = torch.diag(torch.tensor([3.0, 1.0]))
        >>> NuclearNorm(2.0).prox(w, 1.0)
        tensor([[1., 0.],
                [0., 0.]])
        >>> NuclearNorm(2.0).value(w)
        tensor(8.)

    References:
        Fazel, "Matrix rank minimization with applications", PhD thesis, Stanford University (2002).
        Cai, Candès and Shen, SIAM J. Optim. 20 (2010).
    """

    def validate(self, shape: torch.Size) -> None:
        """Raise ``InputError`` if ``shape`` has fewer than two dimensions."""
        if len(shape) < 2:
            msg = f"the nuclear norm needs two dimensions or more, got shape {tuple(shape)}; use L1 there"
            raise InputError(msg)

    def value(self, w: Tensor) -> Tensor:
        """Return ``strength · Σ_i σ_i(W)``, with gradient ``strength · UVᵀ`` over the positive ``σ_i``."""
        matrix = at_least_float32(w).flatten(1)
        if not bool(matrix.isfinite().all()):
            return self.current_strength * matrix.abs().sum()
        u, vt = _vectors(matrix.detach())
        # Exact in value and in gradient; the gradient of the singular values themselves is NaN at ties.
        return self.current_strength * ((u @ vt) * matrix).sum()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the matrix with every singular value shrunk, exactly for a step that is a number.

        Args:
            w: the point to map.
            step: a number, or a tensor that broadcasts to ``w``; an entry with step 0 is held where it is.

        Returns:
            A new tensor of the shape and dtype of ``w``.
        """
        strength = self.current_strength
        if w.numel() == 0 or strength == 0:
            return w + 0.0
        matrix = w.flatten(1)
        if isinstance(step, Tensor) and step.numel() != 1:
            d = step.expand_as(w).flatten(1)
            found = prox_in_metric(matrix, d, lambda v, s: singular_value_threshold(v, s * strength))
        else:
            threshold = float(step) * strength
            found = matrix + 0.0 if threshold == 0 else singular_value_threshold(matrix, threshold)
        return found.reshape(w.shape)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance of ``−G`` to ``λ·{UVᵀ + Z : UᵀZ = 0, ZV = 0, σ_max(Z) ≤ 1}``.

        ``U`` and ``V`` are the singular vectors of ``W`` whose singular values are not zero within rounding.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.

        Returns:
            A vector of one entry: all weights are one group.
        """
        matrix, g = at_least_float32(w).flatten(1), at_least_float32(grad).flatten(1)
        if not bool((matrix.isfinite() & g.isfinite()).all()):
            return g.new_full((1,), torch.nan)
        strength = self.current_strength
        u, vt = _vectors(matrix)
        rest = g - u @ (u.T @ g)
        rest = rest - (rest @ vt.T) @ vt  # what is left of G across the rows and columns that W has
        bound = g - rest + strength * (u @ vt)
        excess = (torch.linalg.svdvals(rest) - strength).clamp_min(0.0)
        both = torch.cat([bound.reshape(-1), excess])
        distance: Tensor = torch.linalg.vector_norm(both)
        return distance.reshape(1)

    def strength_max(self, grad: Tensor) -> float:
        """Return the largest singular value of the gradient.

        Args:
            grad: the gradient of the data loss at ``w = 0``.

        Returns:
            The smallest strength at which zero is stationary.
        """
        matrix = at_least_float32(grad).flatten(1)
        if matrix.numel() == 0:
            return 0.0
        if not bool(matrix.isfinite().all()):
            return float(matrix.abs().max())
        return float(torch.linalg.svdvals(matrix).max())

    def slack(self, w: Tensor, grad: Tensor) -> None:
        """Return None: it is singular values that vanish, and no entry is zero on its own account.

        Args:
            w: the current weights.
            grad: the gradient of the data loss at ``w``.
        """

    def support(self, w: Tensor) -> Tensor:
        """Return where ``w`` is not zero; this penalty zeroes singular values and not entries."""
        return w != 0


def _vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``U`` and ``Vᵀ`` over the singular values that are not zero within rounding."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    rounding = (max(matrix.shape) + 16) * torch.finfo(matrix.dtype).eps * s.max() if s.numel() else 0.0
    rank = int((s > rounding).sum())
    return u[:, :rank], vt[:rank]
