"""Accelerated proximal gradient for smooth convex losses on full data, solved to a certificate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchlasso.regularizer import Regularizer
from torchlasso.terms import Term

_CHECK_EVERY = 10


@dataclass(frozen=True)
class Solution:
    """What a solve ended with; the weights are in the parameters.

    Attributes:
        iterations: proximal gradient steps taken.
        residual: the largest KKT residual of all penalised blocks and gradients of the rest, each
            relative to its own scale: to the strength, or to the largest gradient at the start.
        converged: whether the residual reached the tolerance.
    """

    iterations: int
    residual: float
    converged: bool


def fista(
    loss: Callable[[], Tensor],
    regularizer: Regularizer,
    parameters: Sequence[nn.Parameter],
    *,
    metric: Mapping[nn.Parameter, Tensor],
    tolerance: float = 1e-6,
    max_iterations: int = 20_000,
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

    References:
        Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009); O'Donoghue and Candès, "Adaptive restart for
        accelerated gradient schemes", Found. Comput. Math. 15 (2015).
    """
    solver = _Fista(loss, regularizer.current_terms(), list(parameters), metric)
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
        parameters: list[nn.Parameter],
        metric: Mapping[nn.Parameter, Tensor],
    ) -> None:
        self.loss, self.terms, self.parameters, self.metric = loss, terms, parameters, metric
        self.lipschitz, self.momentum = 1.0, 1.0
        self.x = [p.detach().clone() for p in parameters]
        self.y = [p.detach().clone() for p in parameters]
        self.free_scale: float | None = None

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

    def residual(self) -> float:
        """Return the optimality residual at ``x``, relative to the strengths."""
        self._write(self.x)
        _, gradients = self._gradient()
        by_parameter = dict(zip(self.parameters, gradients, strict=True))
        penalised = {p for term in self.terms for p in term.parameters}
        free = max(
            (float(by_parameter[p].abs().max()) for p in self.parameters if p not in penalised), default=0.0
        )
        scale = min(
            (t.penalty.current_strength for t in self.terms if t.penalty.current_strength > 0), default=0.0
        )
        with torch.no_grad():
            worst = [
                float(
                    t.penalty.residual(
                        t.gather(t.parameters), t.gather([by_parameter[p] for p in t.parameters])
                    ).max()
                )
                / (t.penalty.current_strength or self._unit(gradients))
                for t in self.terms
            ]
        return max([*worst, free / (scale or self._unit(gradients))])

    def _unit(self, gradients: list[Tensor]) -> float:
        """Return the scale of a gradient where there is no strength: its size at the start."""
        if self.free_scale is None:
            self.free_scale = max(float(g.abs().max()) for g in gradients) or 1.0
        return self.free_scale

    def _gradient(self) -> tuple[float, list[Tensor]]:
        with torch.enable_grad():
            value = self.loss()
        return float(value.detach()), list(torch.autograd.grad(value, self.parameters))

    @torch.no_grad()
    def _backtrack(self, value: float, gradients: list[Tensor]) -> list[Tensor]:
        """Return the proximal gradient step at the smallest ``L`` (doubling) that majorises the loss."""
        rounding = 8 * torch.finfo(gradients[0].dtype).eps * max(abs(value), 1e-300)
        while True:
            new = self._proximal_gradient(gradients)
            self._write(new)
            move = [n - y for n, y in zip(new, self.y, strict=True)]
            linear = sum(float((g * m).sum()) for g, m in zip(gradients, move, strict=True))
            square = sum(
                float((m.square() / self.metric[p]).sum()) for p, m in zip(self.parameters, move, strict=True)
            )
            if float(self.loss()) <= value + linear + self.lipschitz / 2 * square + rounding:
                return new
            self.lipschitz *= 2

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
