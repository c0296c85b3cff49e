"""Evidence about a fit: how far the weights are from a stationary point, and which strength zeros a block."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.regularizer import Regularizer
from torchlasso.tables import render_table
from torchlasso.terms import Term

LossFn = Callable[[Any, Any], Tensor]
"""``loss_fn(output, target)``: the mean loss of a batch."""
Batches = Iterable[tuple[Any, Any]]
"""Pairs of input and target, each with the examples along dimension 0."""


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
        duality_gap: None: no bound on the distance to the optimum is claimed for this model.
    """

    rows: tuple[CertificateRow, ...]
    loss: float
    penalty: float
    duality_gap: float | None = None

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
        return render_table(("parameter", "strength", "residual / strength", "slack"), cells)


def certificate(model: nn.Module, regularizer: Regularizer, loss_fn: LossFn, batches: Batches) -> Certificate:
    """Measure how far a model is from a stationary point of ``mean loss + penalty``.

    For every penalised entry ``r = |g + λ·sign(w)|`` where ``w ≠ 0`` and ``max(|g| − λ, 0)`` where it is
    zero (for groups the same with norms), with ``g`` the gradient of the mean loss over all batches, in
    evaluation mode.

    Args:
        model: the module, whose mode and gradients are left as they were.
        regularizer: what is penalised, at its current step.
        loss_fn: the mean loss of a batch.
        batches: pairs of input and target that cover the data once.

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
    loss, gradients = mean_gradient(model, loss_fn, batches, parameters)
    by_parameter = dict(zip(parameters, gradients, strict=True))
    with torch.no_grad():
        rows = tuple(_row(term, [by_parameter[p] for p in term.parameters]) for term in terms)
        return Certificate(rows, loss, float(regularizer()))


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
    pairs = list(batches) if iter(batches) is batches else batches  # several passes: a generator has one
    result = {}
    for term in regularizer.current_terms():
        with _zeroed(term):
            _, gradients = mean_gradient(model, loss_fn, pairs, term.parameters)
        largest = term.penalty.strength_max(term.gather(gradients))
        result.update({member.name: largest for member in term.members})
    return result


def mean_gradient(
    model: nn.Module, loss_fn: LossFn, batches: Batches, parameters: Sequence[nn.Parameter]
) -> tuple[float, list[Tensor]]:
    """Return the mean loss over all batches and its gradient, in evaluation mode.

    Args:
        model: the module.
        loss_fn: the mean loss of a batch.
        batches: pairs of input and target; batches of different sizes count by their size.
        parameters: what to differentiate by.

    Raises:
        InputError: there are no examples, or a parameter is frozen.
    """
    if not all(p.requires_grad for p in parameters):
        msg = "a penalised parameter has requires_grad=False by now; build the regularizer after freezing"
        raise InputError(msg)
    # In half precision a sum over batches would stop growing, or overflow.
    totals = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
    loss_sum, count = 0.0, 0
    with _evaluation_mode(model), torch.enable_grad():
        for inputs, target in batches:
            size = _batch_size(inputs, target)
            if size == 0:
                continue  # the mean over no examples is NaN
            loss = loss_fn(model(inputs), target)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for total, g in zip(totals, gradients, strict=True):
                if g is not None:
                    total.add_(g.detach().to_dense() if g.is_sparse else g.detach(), alpha=size)
            loss_sum += float(loss.detach()) * size
            count += size
    if count == 0:
        msg = "batches must hold at least one example, got none; a generator can be read only once"
        raise InputError(msg)
    return loss_sum / count, [total.div_(count) for total in totals]


def _row(term: Term, gradients: list[Tensor]) -> CertificateRow:
    penalty, w, g = term.penalty, term.gather(term.parameters), term.gather(gradients)
    strength = penalty.current_strength
    largest = penalty.residual(w, g)
    residual = float(largest.max()) / (strength or 1.0) if largest.numel() else 0.0
    support = penalty.support(w)
    slack = None
    if strength > 0 and not bool(support.all()):
        slack = 1 - penalty.strength_max(g.masked_fill(support, 0.0)) / strength
    return CertificateRow(term.name, strength, residual, slack)


def _largest(values: Iterable[float]) -> float:
    """Return the largest value, NaN if one is: with ``max`` alone that would hang on their order."""
    listed = list(values)
    return math.nan if any(math.isnan(value) for value in listed) else max(listed)


def _batch_size(inputs: Any, target: Any) -> int:
    for value in (target, inputs):
        if isinstance(value, Tensor) and value.ndim > 0:
            return int(value.shape[0])
    return 1


@contextmanager
def _zeroed(term: Term) -> Iterator[None]:
    """Hold a block at zero for a while."""
    saved = [p.detach().clone() for p in term.parameters]
    try:
        with torch.no_grad():
            for parameter in term.parameters:
                parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(term.parameters, saved, strict=True):
                parameter.copy_(old)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
