"""Evidence about a fit: how far the weights are from a stationary point, and which strength zeros a block."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchlasso.coupling import scale_notes
from torchlasso.gaps import duality_gap
from torchlasso.gradients import Batches, LossFn, largest_strength, mean_gradient, readable_twice
from torchlasso.regularizer import Regularizer
from torchlasso.tables import render_table
from torchlasso.terms import Term


@dataclass(frozen=True)
class CertificateRow:
    """The optimality of one penalised block.

    Attributes:
        name: the parameter's name (several joined by ``+`` for a joint group).
        strength: λ.
        residual: the largest ``r/λ`` of its entries or groups; 0 at a stationary point.  With strength 0
            it is ``r`` itself.
        slack: ``1 − max |g|/λ`` over what is zero: positive if every zero is strictly kept, the nearer
            to 0 the closer one is to returning; None if nothing is zero or the strength is.
    """

    name: str
    strength: float
    residual: float
    slack: float | None


@dataclass(frozen=True)
class Certificate:
    """How stationary a model is for ``mean loss + penalty``; ``print`` it for the table.

    Attributes:
        rows: one a penalised block.
        loss: the mean data loss.
        penalty: the penalty.
        duality_gap: how far the objective is, at most, above its minimum over the last linear layer (for a
            linear model: over all of it) with everything before it held fixed; None where that problem is
            not known to be convex.
        gap_layer: the name of that layer; empty for a linear model, None without a gap.
        notes: what makes a strength mean less than it says: penalised weights whose scale is free.
    """

    rows: tuple[CertificateRow, ...]
    loss: float
    penalty: float
    duality_gap: float | None = None
    gap_layer: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def residual(self) -> float:
        """The largest relative residual of all blocks, NaN if one is."""
        return _largest(row.residual for row in self.rows)

    @property
    def slack(self) -> float | None:
        """The smallest slack of all blocks (NaN if one is), or None if no block has one."""
        slacks = [row.slack for row in self.rows if row.slack is not None]
        return -_largest(-slack for slack in slacks) if slacks else None

    @property
    def objective(self) -> float:
        """The mean data loss plus the penalty."""
        return self.loss + self.penalty

    def __str__(self) -> str:
        cells: list[tuple[object, ...]] = [(r.name, r.strength, r.residual, r.slack) for r in self.rows]
        cells.append(("all", None, self.residual, self.slack))
        lines = [render_table(("parameter", "strength", "residual / strength", "slack"), cells)]
        if self.duality_gap is not None:
            what = f"layer {self.gap_layer}, the rest held fixed" if self.gap_layer else "the whole model"
            lines.append(f"duality gap: {self.duality_gap:.3g} of {self.objective:.4g} ({what})")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def certificate(model: nn.Module, regularizer: Regularizer, loss_fn: LossFn, batches: Batches) -> Certificate:
    """Measure how far a model is from a stationary point of ``mean loss + penalty``.

    For every penalised entry ``r = |g + λ·sign(w)|`` where ``w ≠ 0`` and ``max(|g| − λ, 0)`` where it is
    zero (for groups the same with norms), with ``g`` the gradient of the mean loss over all batches, in
    evaluation mode.  A model that ends in an ``nn.Linear``, with a mean squared error, a binary cross-entropy
    with logits or a cross-entropy for the loss, also gets the duality gap of that layer.

    Args:
        model: the module, whose mode, buffers and gradients are left as they were.
        regularizer: what is penalised, at its current step.
        loss_fn: the mean loss of a batch.
        batches: pairs of input and target that cover the data once.  One batch is held at a time; they
            are read three times for the duality gap, which a generator does not get.

    Raises:
        InputError: there are no batches.

    Example:
        >>> import torchlasso as tl
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 1.75)
        >>> batches = [(torch.tensor([[1.0]]), torch.tensor([[2.0]]))]
        >>> tl.certificate(layer, tl.Regularizer(layer, tl.L1(0.5)), nn.functional.mse_loss, batches).residual
        0.0
    """
    terms = regularizer.current_terms()
    parameters = [p for term in terms for p in term.parameters]
    first: list[Any] = []
    loss, gradients = mean_gradient(model, loss_fn, _noting_the_first(batches, first), parameters)
    by_parameter = dict(zip(parameters, gradients, strict=True))
    gap = duality_gap(model, terms, loss_fn, batches)
    with torch.no_grad():
        rows = tuple(_row(term, [by_parameter[p] for p in term.parameters]) for term in terms)
        return Certificate(
            rows,
            loss,
            float(regularizer()),
            None if gap is None else gap.value,
            None if gap is None else gap.layer,
            scale_notes(model, [term for term in terms if term.penalty.current_strength > 0], first[0]),
        )


def strength_max(
    model: nn.Module, regularizer: Regularizer, loss_fn: LossFn, batches: Batches
) -> dict[str, float]:
    """Return, for every penalised parameter, the smallest strength at which it is zero.

    The rest of the model is held fixed: for a block with gradient ``g`` at ``block = 0`` this is
    ``max|g_j|/c_j`` (L1), divided by ``l1_ratio`` (elastic net), or ``max ‖g_g‖₂/c_g`` (groups).  For a
    linear model with its intercept fitted it is the ``lambda_max`` of the whole path; for a deep net it
    is local, and changes as the other layers do.

    Args:
        model: the module; its weights, mode and gradients are left as they were.
        regularizer: what is penalised; its strengths play no part.
        loss_fn: the mean loss of a batch.
        batches: pairs of input and target that cover the data once.

    Raises:
        InputError: there are no batches.

    Example:
        >>> import torchlasso as tl
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> batches = [(torch.tensor([[1.0]]), torch.tensor([[2.0]]))]
        >>> tl.strength_max(layer, tl.Regularizer(layer, tl.L1(0.5)), nn.functional.mse_loss, batches)
        {'weight': 4.0}
    """
    pairs = readable_twice(batches)
    result = {}
    for term in regularizer.terms:
        largest = largest_strength(model, term, loss_fn, pairs)
        result.update({member.name: largest for member in term.members})
    return result


def _noting_the_first(batches: Batches, first: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Pass the batches on and put the first input into a list."""
    for inputs, target in batches:
        if not first:
            first.append(inputs)
        yield inputs, target


def _row(term: Term, gradients: list[Tensor]) -> CertificateRow:
    penalty, w, g = term.penalty, term.gather(term.parameters), term.gather(gradients)
    strength = penalty.current_strength
    largest = penalty.residual(w, g)
    residual = float(largest.max()) / (strength or 1.0) if largest.numel() else 0.0
    return CertificateRow(term.name, strength, residual, penalty.slack(w, g))


def _largest(values: Iterable[float]) -> float:
    """Return the largest value, NaN if one is: with ``max`` alone that would hang on their order."""
    listed = list(values)
    return math.nan if any(math.isnan(value) for value in listed) else max(listed)
