"""Accelerated proximal gradient for smooth convex losses on full data, solved to a certificate."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Term

_CHECK_EVERY = 10


@dataclass(frozen=True)
class Solution:
    """What a solve ended with; the weights are in the parameters.

    Attributes:
        iterations: proximal gradient steps taken.
        residual: the largest KKT residual of all penalised blocks, relative to the strength, and of all
            gradients without a strength, in the metric (``√D·|g|``) and relative to ``unit``.
        converged: whether the residual reached the tolerance.
    """

    iterations: int
    residual: float
    converged: bool


def fista(
    loss: Callable[[], Tensor],
    regularizer: Regularizer,
    parameters: Sequence[Tensor],
    *,
    metric: Mapping[Tensor, Tensor],
    tolerance: float = 1e-6,
    max_iterations: int = 20_000,
    unit: float | None = None,
    noise: float = 0.0,
) -> Solution:
    """Minimise ``loss() + regularizer()`` over the parameters, from where they are.

    ``x ← prox^D_{1/L}(y − D·∇loss(y)/L)`` with Nesterov's extrapolation ``y``, restarted when it points
    uphill, and ``L`` found by backtracking.  ``D`` is a fixed diagonal preconditioner.  It stops on the
    optimality residual, never because the weights hardly moved.

    Args:
        loss: returns the smooth convex loss at the current parameters, differentiable.
        regularizer: the penalties, at its current step; parameters without one are not penalised.
        parameters: all parameters of the problem.
        metric: the diagonal ``D > 0`` of each parameter, shaped like it.
        tolerance: the residual to reach, relative to the strength.
        max_iterations: when to give up.
        unit: the size, in the metric, of an unpenalised gradient that counts as 1; the largest one at the
            start if it is not given, which a start at the optimum makes too small.
        noise: the size, in the metric, below which a gradient is rounding and counts as zero.

    Raises:
        InputError: the loss or its gradient is not finite.

    References:
        Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009); O'Donoghue and Candès, "Adaptive restart for
        accelerated gradient schemes", Found. Comput. Math. 15 (2015).
    """
    solver = _Fista(loss, regularizer.current_terms(), list(parameters), metric, unit, noise)
    residual = solver.residual()
    iterations = 0
    while residual > tolerance and iterations < max_iterations:
        for _ in range(_CHECK_EVERY):
            solver.iterate()
        iterations += _CHECK_EVERY
        residual = solver.residual()
    return Solution(iterations, residual, residual <= tolerance)


class _Fista:
    """The state of one solve; between calls the parameters hold ``x``."""

    def __init__(
        self,
        loss: Callable[[], Tensor],
        terms: Sequence[Term],
        parameters: list[Tensor],
        metric: Mapping[Tensor, Tensor],
        unit: float | None,
        noise: float,
    ) -> None:
        self.loss, self.terms, self.parameters, self.metric = loss, terms, parameters, metric
        self.lipschitz, self.momentum = 1.0, 1.0
        self.x = [p.detach().clone() for p in parameters]
        self.y = [p.detach().clone() for p in parameters]
        self.unit, self.noise = unit, noise

    def iterate(self) -> None:
        """Take one accelerated step."""
        self._write(self.y)
        value, gradients = self._gradient()
        new = self._backtrack(value, gradients)
        # The restart rule: extrapolation has overshot if the step goes against the last one.
        uphill = sum(
            float(((y - n) * (n - x) / self.metric[p]).sum())
            for p, y, n, x in zip(self.parameters, self.y, new, self.x, strict=True)
        )
        if uphill > 0:
            self.momentum, self.lipschitz = 1.0, self.lipschitz / 2
        following = (1 + (1 + 4 * self.momentum**2) ** 0.5) / 2
        beta = (self.momentum - 1) / following
        self.y = [n + beta * (n - x) for n, x in zip(new, self.x, strict=True)]
        self.x, self.momentum = new, following

    @torch.no_grad()
    def residual(self) -> float:
        """Return the optimality residual at ``x``: see ``Solution``."""
        self._write(self.x)
        _, gradients = self._gradient()
        raw = dict(zip(self.parameters, gradients, strict=True))
        scaled = {p: g * self.metric[p].sqrt() for p, g in raw.items()}
        if self.unit is None:
            self.unit = max(float(g.abs().max()) for g in scaled.values()) or 1.0
        penalised = {p for term in self.terms for p in term.parameters}
        free = [float(scaled[p].abs().max()) for p in self.parameters if p not in penalised]
        return max(
            [
                *(max(g - self.noise, 0.0) / self.unit for g in free),
                *(self._relative(term, raw, scaled) for term in self.terms),
            ]
        )

    def _relative(self, term: Term, raw: Mapping[Tensor, Tensor], scaled: Mapping[Tensor, Tensor]) -> float:
        """Return the residual of a block relative to its strength, or to the unit if that is zero."""
        strength = term.penalty.current_strength
        gradients = raw if strength > 0 else scaled
        block = term.gather([gradients[p] for p in term.parameters])
        residual = term.penalty.residual(term.gather(term.parameters), block)
        noise = self.noise * term.gather([self.metric[p] for p in term.parameters]).rsqrt()
        if strength == 0 or residual.shape != noise.shape:  # already scaled, or one residual a group
            noise = noise.max() if strength > 0 else torch.full_like(residual, self.noise)
        return float((residual - noise).clamp_min(0.0).max()) / (strength or self.unit or 1.0)

    def _gradient(self) -> tuple[float, list[Tensor]]:
        with torch.enable_grad():
            loss = self.loss()
        gradients = list(torch.autograd.grad(loss, self.parameters))
        value = float(loss.detach())
        if not math.isfinite(value + sum(float(g.abs().sum()) for g in gradients)):
            msg = f"the loss ({value}) or its gradient is not finite; check the data for NaN, or scale them"
            raise InputError(msg)
        return value, gradients

    @torch.no_grad()
    def _backtrack(self, value: float, gradients: list[Tensor]) -> list[Tensor]:
        """Return the proximal gradient step at the smallest ``L`` (doubling) that majorises the loss."""
        while math.isfinite(self.lipschitz):
            new = self._proximal_gradient(gradients)
            self._write(new)
            move = [n - y for n, y in zip(new, self.y, strict=True)]
            if self._majorises(value, gradients, move):
                return new
            self.lipschitz *= 2
        msg = "the loss is not finite around the current weights; check the data for NaN, or scale them"
        raise InputError(msg)

    def _majorises(self, value: float, gradients: list[Tensor], move: list[Tensor]) -> bool:
        """Return whether the quadratic model at ``y`` lies above the loss after a move.

        The loss tells steps apart down to the root of its rounding only, and ``L`` would then drift.  Below
        that the change of the gradient along the move is compared, which for a quadratic is the same.
        """
        square = sum(
            float((m.square() / self.metric[p]).sum()) for p, m in zip(self.parameters, move, strict=True)
        )
        bound = self.lipschitz / 2 * square
        eps = torch.finfo(gradients[0].dtype).eps
        if bound > 1e4 * eps * abs(value):
            linear = sum(float((g * m).sum()) for g, m in zip(gradients, move, strict=True))
            return float(self.loss()) - value - linear <= bound
        _, after = self._gradient()
        bend = sum(float(((a - g) * m).sum()) for a, g, m in zip(after, gradients, move, strict=True))
        return bend / 2 <= bound * (1 + 1e-6) + max(8 * eps * (self.unit or 1.0), self.noise) * math.sqrt(
            square
        )

    def _proximal_gradient(self, gradients: list[Tensor]) -> list[Tensor]:
        steps = {p: self.metric[p] / self.lipschitz for p in self.parameters}
        moved = {p: y - steps[p] * g for p, y, g in zip(self.parameters, self.y, gradients, strict=True)}
        for term in self.terms:
            block = term.gather([moved[p] for p in term.parameters])
            new = term.penalty.prox(block, term.gather([steps[p] for p in term.parameters]))
            moved.update(zip(term.parameters, term.scatter(new), strict=True))
        return [moved[p] for p in self.parameters]

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
