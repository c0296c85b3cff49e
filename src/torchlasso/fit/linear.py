"""Fitting a linear model: every strength solved to its optimum, in float64."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from torchlasso.fit.fitter import Fitter
from torchlasso.mlp import linear_layers
from torchlasso.path import PathPoint, strength_grid, walk
from torchlasso.penalties.separable import L1
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Term
from torchlasso.training import solve_linear

_SMALLEST = 1e-3  # the path ends at this fraction of the largest strength
_PATH_TOLERANCE = 1e-3
_UNPENALISED_ITERATIONS = 2_000  # separable classes have no finite optimum without a penalty


@final
class LinearFitter(Fitter):
    """Fits a linear model, whose problem is convex."""

    dtype = torch.float64

    def build(self, target: Tensor) -> nn.Module:
        """Return a linear layer."""
        return nn.Linear(self.train.inputs.shape[1], self.task.outputs)

    def fit_dense(self) -> nn.Module:
        """Solve without a penalty and return a copy."""
        self.progress.stage("unregularised model", 1)
        self._clear()
        iterations = min(_UNPENALISED_ITERATIONS, self.budget.iterations)
        self._solve(self.regularizer, self.budget.tolerance, iterations)
        self.progress.advance()
        return self.finished()

    def limit(self) -> float:
        """Fit the intercept and what is kept, and return the strength at which nothing else comes in."""
        self._clear()
        kept = torch.zeros_like(self.layer.weight, dtype=torch.bool)
        kept[:, list(self.settings.keep)] = True
        self._solve(self._only(kept), self.budget.tolerance, self.budget.iterations)
        return self.largest_strength()

    def walk_path(self) -> list[PathPoint]:
        """Solve from the empty model to the dense one; the problem is convex, so the order is free."""
        strengths = strength_grid(self.limit(), _SMALLEST, self.budget.points)
        self.progress.stage("path of strengths", len(strengths))

        def fit_at(strength: float) -> None:
            self._solve(self.regularizer.with_strength(strength), _PATH_TOLERANCE, self.budget.iterations)

        points = walk(
            fit_at, self.measure, strengths[::-1], stop=lambda _: False, on_point=self.progress.advance
        )
        return points[::-1]

    def settle(self, strength: float) -> None:
        """Solve at a strength to the tolerance."""
        self.progress.stage("settling", 1)
        iterations = self.budget.iterations if strength > 0 else _UNPENALISED_ITERATIONS
        self._solve(self.regularizer.with_strength(strength), self.budget.tolerance, iterations)
        self.progress.advance()

    def fit_support(self) -> None:
        """Solve for the nonzero weights without a penalty."""
        self.progress.stage("refit on the support", 1)
        self._solve(self._only(self.layer.weight != 0), self.budget.tolerance, _UNPENALISED_ITERATIONS)
        self.progress.advance()

    @property
    def layer(self) -> nn.Linear:
        """The model."""
        return linear_layers(self.model)[0][1]

    def _solve(self, regularizer: Regularizer, tolerance: float, iterations: int) -> None:
        solve_linear(
            self.layer,
            regularizer,
            self.task.loss,
            self.train.inputs,
            self.train.target,
            tolerance=tolerance,
            max_iterations=iterations,
            weights=self.task.parts(self.train.target)[1],
        )

    def _only(self, support: Tensor) -> Regularizer:
        """Return a regularizer that holds everything off the support at zero, and else does nothing."""
        weights = torch.where(support, 0.0, torch.inf).to(self.layer.weight)
        term: Term = self.regularizer.terms[0]
        return Regularizer.from_terms([replace(term, penalty=L1(0.0, weights=weights))])

    @torch.no_grad()
    def _clear(self) -> None:
        for parameter in self.model.parameters():
            parameter.zero_()
