"""The duality gap of the last linear layer: a bound on how far its objective is above its minimum.

With everything before it held fixed, a linear layer under a convex loss and a convex penalty is a convex
problem, ``min (1/n)·Σ_i ℓ_i(W·x_i + b) + P(W)``.  Any ``θ_i`` with ``Σ_i θ_i = 0`` (where the intercept is
fitted) bounds it from below by ``−(1/n)·Σ_i ℓ_i*(θ_i) − P*(−G)``, with ``G = (1/n)·Σ_i θ_i·x_iᵀ``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchlasso.conjugates import LOSSES, Loss
from torchlasso.gradients import Batches, LossFn, batch_size, evaluation_mode, uncompiled
from torchlasso.penalties.base import Penalty
from torchlasso.penalties.separable import L1, ElasticNet
from torchlasso.penalties.structured import GroupLasso
from torchlasso.terms import Term

_CONVEX = (L1, ElasticNet, GroupLasso)
_PROBES = (0.1, 10.0, 1e4)  # sizes of the random outputs at which a loss is compared with the known ones
_SAME = 1e-6  # relative
_FAR = 1e20


class _NoGap(Exception):
    """Raised when the model, the loss or the penalty is not of the kind whose minimum can be bounded."""


@dataclass(frozen=True)
class LayerGap:
    """The duality gap of one layer.

    Attributes:
        layer: the name of the layer; empty if it is the whole model.
        value: how far the objective is, at most, above its minimum over this layer.
    """

    layer: str
    value: float


def duality_gap(
    model: nn.Module, terms: Sequence[Term], loss_fn: LossFn, batches: Batches
) -> LayerGap | None:
    """Bound how far the objective is above its minimum over the last linear layer, the rest held fixed.

    ``gap = primal − dual``, in float64, with the dual point ``θ = α·(∇ℓ + shift)``: the shift meets the
    intercept's condition, and ``α ≤ 1`` brings ``G`` within the dual norm of the penalty; the best of
    several is taken.

    The layer is the ``nn.Linear`` whose output the model returns.  Its weight must be penalised, all of it
    and alone, by ``L1``, ``ElasticNet`` or ``GroupLasso``, its bias must not.  The loss is recognised by its
    values, up to a positive factor: the mean squared error, the binary cross-entropy with logits, or the
    cross-entropy, all without weights.

    Args:
        model: the module, left as it was.
        terms: what is penalised, with numbers for strengths.
        loss_fn: the mean loss of a batch.
        batches: pairs of input and target that cover the data once; they are read twice.

    Returns:
        The gap, or None if the problem is of another kind, or the batches can be read only once.

    References:
        Fercoq, Gramfort and Salmon, "Mind the duality gap: safer rules for the lasso", arXiv 1505.03410.
    """
    if iter(batches) is batches:
        return None
    try:
        with evaluation_mode(model), torch.no_grad(), uncompiled():
            return _LastLayer(model, terms, loss_fn, batches).gap()
    except _NoGap:
        return None


class _LastLayer:
    """The convex problem of the last layer."""

    def __init__(self, model: nn.Module, terms: Sequence[Term], loss_fn: LossFn, batches: Batches) -> None:
        self.model, self.loss_fn, self.batches = model, loss_fn, batches
        self.candidates = _candidates(model, terms)
        if not self.candidates:
            raise _NoGap
        self.found: tuple[str, nn.Linear, Penalty] | None = None
        self.loss: Loss | None = None
        self.factor = 0.0
        self.generator = torch.Generator().manual_seed(0)

    def gap(self) -> LayerGap:
        """Return the primal minus the dual objective."""
        primal, gradient, adapt = self._first_pass()
        name, layer, penalty = self._known()
        largest = penalty.strength_max(gradient)
        within = min(1.0, penalty.current_strength / largest) if largest > 0 else 1.0
        # Within the dual norm the best multiple is often a smaller one; 0 bounds the gap by the objective.
        alphas = torch.cat([torch.linspace(0, within, 9, dtype=torch.float64), torch.ones(1)])
        conjugates = [_conjugate(penalty, -float(alpha) * gradient, _wide(layer.weight)) for alpha in alphas]
        dual = max(d - p for d, p in zip(self._second_pass(adapt, alphas), conjugates, strict=True))
        gap = primal + float(penalty.value(_wide(layer.weight))) - dual
        if not gap < torch.inf:  # NaN too
            raise _NoGap
        return LayerGap(name, max(gap, 0.0))

    def _first_pass(self) -> tuple[float, Tensor, Callable[[Tensor], Tensor]]:
        """Return the mean loss, ``G`` of the shifted gradients, and the shift of the predictions."""
        count, value = 0, 0.0
        sums: list[Tensor] = []
        for x, z, y in self._rows():
            loss, _ = self._recognised()
            m = loss.mean(z)
            parts = [x.sum(0), m.sum(0), y.sum(0), m.T @ x, y.T @ x]
            sums = [s + p for s, p in zip(sums, parts, strict=True)] if sums else parts
            value += float(loss.value(z, y).sum())
            count += len(x)
        if count == 0:
            raise _NoGap
        loss, factor = self._recognised()
        x, m, y, mx, yx = (s / count for s in sums)
        slope, shift = torch.ones_like(m), torch.zeros_like(m)
        if self._fits_intercept():
            slope = loss.slope(m, y)
            shift = y - slope * m
        gradient = factor * (slope[:, None] * mx + torch.outer(shift, x) - yx)
        return factor * value / count, gradient, lambda predicted: slope * predicted + shift

    def _second_pass(self, adapt: Callable[[Tensor], Tensor], alphas: Tensor) -> list[float]:
        """Return ``(1/n)·Σ_i (θ_i·b − ℓ_i*(θ_i))`` for each multiple ``α`` of the dual point."""
        totals, count = torch.zeros_like(alphas), 0
        loss, factor = self._recognised()
        _, layer, _ = self._known()
        # A fitted intercept meets Σθ = 0 and drops out; a fixed one is part of the loss.
        offset = None if layer.bias is None or self._fits_intercept() else _wide(layer.bias)
        for _, z, y in self._rows():
            theta = adapt(loss.mean(z)) - y
            for i, alpha in enumerate(alphas):
                rows = -loss.conjugate(y + alpha * theta, y)
                if offset is not None:
                    rows = rows + alpha * (theta @ offset)
                totals[i] += factor * float(rows.sum())
            count += len(y)
        return [float(total) / count for total in totals]

    def _rows(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the layer's inputs, outputs and targets of each batch, as matrices in float64."""
        for inputs, target in self.batches:
            size = batch_size(inputs, target)
            if size == 0:
                continue
            features, output = self._run(inputs)
            _, layer, _ = self._known()
            if features.ndim != 2 or len(features) != size:
                raise _NoGap
            bias = None if layer.bias is None else _wide(layer.bias)
            x = _wide(features.to_dense())  # of sparse rows one batch is filled in at a time
            z = nn.functional.linear(x, _wide(layer.weight), bias)
            yield x, z, self._target(output, target, z)

    def _run(self, inputs: object) -> tuple[Tensor, Tensor]:
        """Return the last layer's input and what the model makes of it, which must be its output."""
        calls: list[tuple[nn.Module, Tensor, Tensor, int]] = []
        counts: dict[nn.Module, int] = {}

        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            calls[:] = [(module, args[0], output, output._version)]
            counts[module] = counts.get(module, 0) + 1

        hooks = [layer.register_forward_hook(note) for _, layer, _ in self.candidates]
        try:
            output = self.model(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        if not calls:
            raise _NoGap
        module, features, own, version = calls[0]
        if counts[module] != 1 or own._version != version or not _is_same(output, own):
            raise _NoGap
        found = next(c for c in self.candidates if c[1] is module)
        if self.found not in (None, found):
            raise _NoGap
        self.found = found
        return features, output

    def _target(self, output: Tensor, target: object, z: Tensor) -> Tensor:
        """Return the target as a matrix, after comparing the loss with the known one on this batch."""
        for loss in LOSSES if self.loss is None else [self.loss]:
            y = loss.target(target, z) if isinstance(target, Tensor) else None
            factor = None if y is None else self._factor(loss, output, target, y)
            if y is not None and factor is not None:
                self.loss, self.factor = loss, factor
                return y
        raise _NoGap

    def _factor(self, loss: Loss, output: Tensor, target: object, y: Tensor) -> float | None:
        """Return the constant ratio of the user's loss to a known one, or None if there is none."""
        if isinstance(target, Tensor) and target.is_floating_point():
            target = _wide(target)
        ratios = [self.factor] if self.factor > 0 else []
        for scale in _PROBES:
            z = scale * torch.randn(y.shape, generator=self.generator, dtype=torch.float64).to(y.device)
            try:
                value = float(self.loss_fn(z.reshape(output.shape), target))
            except Exception:  # the user's loss takes no float64, say
                return None
            ratios.append(value / float(loss.value(z, y).mean()))
        constant = all(abs(ratio - ratios[0]) <= _SAME * ratios[0] for ratio in ratios)
        return ratios[0] if constant and 0 < ratios[0] < torch.inf else None

    def _fits_intercept(self) -> bool:
        _, layer, _ = self._known()
        return layer.bias is not None and layer.bias.requires_grad

    def _known(self) -> tuple[str, nn.Linear, Penalty]:
        if self.found is None:
            raise _NoGap
        return self.found

    def _recognised(self) -> tuple[Loss, float]:
        if self.loss is None:
            raise _NoGap
        return self.loss, self.factor


def _candidates(model: nn.Module, terms: Sequence[Term]) -> list[tuple[str, nn.Linear, Penalty]]:
    """Return the linear layers that would be a convex problem of their own."""
    penalties: dict[Tensor, Penalty] = {
        term.parameters[0]: term.penalty for term in terms if len(term.members) == 1
    }
    penalised = {p for term in terms for p in term.parameters}
    uses = [p for _, p in model.named_parameters(remove_duplicate=False)]
    found: list[tuple[str, nn.Linear, Penalty]] = []
    for name, module in model.named_modules():
        if type(module) is not nn.Linear or module.weight not in penalties:
            continue
        penalty = penalties[module.weight]
        tied = any(sum(p is q for q in uses) > 1 for p in module.parameters())
        if tied or module.bias in penalised or module.weight.device.type == "mps":  # which has no float64
            continue
        if isinstance(penalty, _CONVEX) and _penalises_all(penalty, module.weight):
            found.append((name, module, penalty))
    return found


def _penalises_all(penalty: Penalty, w: Tensor) -> bool:
    """Return whether no entry is free: a dual point would have to be exactly orthogonal to its input."""
    return not bool((penalty.prox(torch.ones_like(_wide(w)), _FAR) > 0.5).any())


def _conjugate(penalty: Penalty, u: Tensor, w: Tensor) -> float:
    """Return ``P*(u) = sup_v ⟨u, v⟩ − P(v)``, huge where it is infinite.

    The maximiser is the limit of ``prox(s·u, s)`` for large ``s``.  What is left out at a finite ``s`` is
    at most ``‖v‖²/(2s)`` at the optimal weights ``v``.
    """
    far = _FAR * (1 + float(w.square().sum()))
    v = penalty.prox(far * u, far)
    return float((u * v).sum() - penalty.value(v))


def _is_same(output: object, own: Tensor) -> bool:
    """Return whether the model's output is the layer's, perhaps without its dimension of length 1."""
    if not isinstance(output, Tensor) or output.data_ptr() != own.data_ptr() or output.dtype != own.dtype:
        return False
    return output.shape == own.shape or output.shape == own.squeeze(-1).shape


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().double()
