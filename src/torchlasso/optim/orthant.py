"""The orthant rule: exact zeros under optimizers that have no diagonal metric.

Before the step the gradient is replaced by the minimum-norm subgradient of loss plus penalty; after it, a
weight that crossed zero is set to zero, and so is a group that left the half-space of its old value.  Where
the rule comes to rest, 0 is a subgradient of the objective, whatever the optimizer does with its gradients.

References:
    Andrew and Gao, "Scalable training of L1-regularized log-linear models", ICML (2007); for groups: Chen et
    al., "A half-space stochastic projected gradient method for group-sparsity regularization",
    arXiv 2009.12078.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from torchlasso.errors import UnsupportedOptimizerError
from torchlasso.optim.evidence import begin, is_alive
from torchlasso.optim.shrinkage import Shrinkage
from torchlasso.prox import Kink
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Term, real

Closure = Callable[[], Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class OrthantRule:
    """What happens around each step of an optimizer without a metric.

    Args:
        optimizer: the user's optimizer.
        shrinkage: the penalty's memory of the run.

    Raises:
        UnsupportedOptimizerError: a penalty has no slope at zero, so the rule has no orthant.
    """

    def __init__(self, optimizer: Optimizer, shrinkage: Shrinkage) -> None:
        self.optimizer, self.shrinkage = optimizer, shrinkage
        self.reference: dict[Term, tuple[Tensor, Kink, Tensor | None]] = {}
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self.check(shrinkage.regularizer)

    def check(self, regularizer: Regularizer) -> None:
        """Raise ``UnsupportedOptimizerError`` for a penalty without a slope at zero.

        Args:
            regularizer: what is to be penalised.
        """
        for term in regularizer.current_terms():
            if self.shrinkage.kink_of(term) is None:
                kind = type(self.optimizer)
                msg = (
                    f"{kind.__module__}.{kind.__qualname__} has no metric that torchlasso knows, and "
                    f"{term.penalty.describe()} no slope at zero, so no step keeps the strength's meaning; "
                    "use another optimizer of torch.optim, or give attach(..., metric=)"
                )
                raise UnsupportedOptimizerError(msg)

    @torch.no_grad()
    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Replace the gradients, or have the closure do it after each of its evaluations.

        Args:
            args: of ``optimizer.step``.
            kwargs: likewise.
        """
        self.reference, self.gradients = {}, {}
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        if closure is None:
            self._replace_gradients()
            return None
        wrapped = self._wrapped(closure)
        return (
            ((args[0], wrapped, *args[2:]), kwargs)
            if len(args) > 1
            else (args, {**kwargs, "closure": wrapped})
        )

    def _wrapped(self, closure: Closure) -> Closure:
        def evaluate() -> Any:
            if self.reference:  # a later evaluation of the same step stays within the orthant of the first
                self._project()
            with torch.enable_grad():
                loss = closure()
            with torch.no_grad():
                penalty = self.shrinkage.regularizer() if self.shrinkage.frozen is None else 0.0
                self._replace_gradients()
            return loss + penalty

        return evaluate

    def _terms(self) -> Iterable[Term]:
        return (
            term
            for term in self.shrinkage.regularizer.terms
            if any(p.grad is not None for p in term.parameters)
        )

    def _replace_gradients(self) -> None:
        for term in self._terms():
            self.gradients.update({p: p.grad for p in term.parameters if p.grad is not None})
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in term.parameters]
            _check_dense(term, grads)
            block, w = term.gather(grads) / self._scale(), term.gather([p.detach() for p in term.parameters])
            if self.shrinkage.frozen is not None:
                continue
            current = term.at(self.shrinkage.steps)
            kink = self.shrinkage.kink_of(current)
            assert kink is not None  # checked at the start
            subgradient = minimum_subgradient(current, kink, w, block)
            subgradient = self._weighed(current, kink, w, block, subgradient)
            reference = torch.where(kink.size(w) > 0, w, -subgradient).clone()
            self.reference.setdefault(term, (reference, kink, self._may_stop_at_zero(kink, block)))
            for parameter, part in zip(term.parameters, term.scatter(subgradient), strict=True):
                if parameter.grad is not None:
                    parameter.grad = _like(parameter, part * self._scale())

    def _may_stop_at_zero(self, kink: Kink, grad: Tensor) -> Tensor | None:
        """Return which groups would rest at zero: they stop there if a step is as long as the way to it.

        Optimizers that scale each entry by itself turn a small group around instead of across zero.
        """
        if kink.groups is None or isinstance(self.optimizer, LBFGS):
            return None
        return kink.size(grad) <= torch.as_tensor(kink.entry_slope)

    def _scale(self) -> float | Tensor:
        """Return what the gradients are multiplied with while a fused optimizer has yet to unscale them."""
        scale = getattr(self.optimizer, "grad_scale", None)
        return 1.0 if scale is None else scale

    def _weighed(self, term: Term, kink: Kink, w: Tensor, grad: Tensor, subgradient: Tensor) -> Tensor:
        """Return the subgradient with that of dead weights held back until the evidence is in."""
        if isinstance(self.optimizer, LBFGS):  # deterministic: its line search needs the true subgradient
            return subgradient
        evidence = self.shrinkage.evidence_of(term, kink)
        if evidence is None or self.shrinkage.memory == 0:
            return subgradient
        span = self.shrinkage.memory_of(term, kink, evidence, grad)
        slope = torch.as_tensor(kink.entry_slope, dtype=evidence.dtype, device=evidence.device)
        usable = (slope > 0) & slope.isfinite()
        ratio = torch.where(usable, -grad / torch.where(usable, slope, 1.0), 0.0)
        alive = is_alive(evidence) | (slope == 0)
        drifted = kink.shrink(torch.where(alive, 0.0, evidence) + ratio / span, 1 / span)
        inside = kink.size(drifted) <= 1
        released = torch.copysign(begin(w), drifted)
        rho = torch.where(alive, evidence, torch.where(inside, drifted, released))
        for parameter, part in zip(term.parameters, term.scatter(rho), strict=True):
            self.shrinkage.evidence[parameter].copy_(part)
        pull = -kink.shrink(drifted, 1.0) * span * slope
        return torch.where(alive, subgradient, torch.where(inside, 0.0, pull.nan_to_num(0.0)))

    @torch.no_grad()
    def after(self) -> None:
        """Set to zero what left its orthant or half-space, and give the user's gradients back."""
        changed = self._project()
        for parameter, grad in self.gradients.items():
            parameter.grad = grad
        if self.shrinkage.frozen is not None:
            for term in self._terms():
                self.shrinkage.step(term, 0.0, None)
        if changed and isinstance(self.optimizer, LBFGS):
            # Its curvature pairs belong to the old face: begin anew on this one.
            first = self.optimizer.param_groups[0]["params"][0]
            self.optimizer.state[first]["n_iter"] = 0
        self.reference, self.gradients = {}, {}  # to keep gradients would keep their memory

    @torch.no_grad()
    def _project(self) -> bool:
        """Return whether the projection changed a weight."""
        changed = False
        for term, (reference, kink, may_stop) in self.reference.items():
            w = term.gather(term.parameters)
            left = left_half_space(kink, w, reference)
            if may_stop is not None:
                left |= may_stop & (kink.size(w - reference) >= kink.size(reference)) & (w != 0)
            known = self.shrinkage.evidence
            if bool(left.any()):
                changed = True
                for parameter, part in zip(term.parameters, term.scatter(left), strict=True):
                    real(parameter).masked_fill_(part, 0.0)
            if not isinstance(self.optimizer, LBFGS) and all(p in known for p in term.parameters):
                self._mark(term, kink, reference, left)
        return changed

    def _mark(self, term: Term, kink: Kink, reference: Tensor, left: Tensor) -> None:
        """Note which weights died, at the edge of the side where they were."""
        known = self.shrinkage.evidence
        evidence = term.gather([known[p] for p in term.parameters])
        size = kink.size(reference)
        edge = (reference / torch.where(size > 0, size, 1.0)).to(evidence.dtype)
        edge = torch.where(is_alive(evidence), edge, evidence)
        for parameter, part in zip(
            term.parameters, term.scatter(torch.where(left, edge, evidence)), strict=True
        ):
            known[parameter].copy_(part)


def minimum_subgradient(term: Term, kink: Kink, w: Tensor, grad: Tensor) -> Tensor:
    """Return the subgradient of smallest norm of loss plus penalty.

    ``grad + ∂R(w)`` where a block is not zero, else ``grad`` shrunk by the slope at zero.

    Args:
        term: at the current step.
        kink: the form of its penalty.
        w: the block's weights.
        grad: the gradient of the loss.
    """
    slope = torch.as_tensor(kink.entry_slope, dtype=w.dtype, device=w.device)
    usable = (slope > 0) & slope.isfinite()
    at_zero = -kink.shrink(torch.where(usable, -grad / torch.where(usable, slope, 1.0), 0.0), 1.0) * slope
    at_zero = torch.where(usable, at_zero, torch.where(slope == 0, grad, 0.0))
    with torch.enable_grad():
        here = w.detach().requires_grad_()
        (pull,) = torch.autograd.grad(term.penalty.value(here), here)
    return torch.where(kink.size(w) == 0, at_zero, grad + pull)


def left_half_space(kink: Kink, w: Tensor, reference: Tensor) -> Tensor:
    """Return which weights lie on the other side of zero than a reference, or whose group does.

    Args:
        kink: the form of the penalty; entries without a slope may go anywhere.
        w: the weights.
        reference: the old weights, or the way they were to go from zero.
    """
    product = w * reference
    if kink.groups is not None:
        product = kink.groups.expand(kink.groups.sum(product)).expand_as(w)
    slope = torch.as_tensor(kink.entry_slope, dtype=w.dtype, device=w.device)
    held = (slope > 0) | ((w < 0) if kink.nonnegative else torch.zeros_like(w, dtype=torch.bool))
    return (product <= 0) & held & (w != 0)


def _check_dense(term: Term, grads: Iterable[Tensor]) -> None:
    if any(grad.is_sparse for grad in grads):
        msg = (
            f"the gradient of {term.name} is sparse, and the orthant rule needs one for every weight; use "
            "SGD, Adagrad or SparseAdam, give attach(..., metric=), or make the gradient dense (sparse=False)"
        )
        raise UnsupportedOptimizerError(msg)


def _like(parameter: nn.Parameter, part: Tensor) -> Tensor:
    full = torch.view_as_complex(part.contiguous()) if parameter.is_complex() else part
    return full.to(parameter.dtype)
