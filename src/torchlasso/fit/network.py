"""Fitting a network with hidden layers: Adam with the proximal step, from dense to sparse."""

from typing import final

import torch
from torch import Tensor, nn
from torch.optim import Adam

from torchlasso.errors import InputError
from torchlasso.fit.fitter import Fitter
from torchlasso.mlp import build_mlp, clear_unread_units
from torchlasso.optim.attach import attach
from torchlasso.path import PathPoint, strength_grid, walk
from torchlasso.training import constant, cosine, raise_eps, train

_SMALLEST = 1e-3  # the path begins at this fraction of the largest strength, as scikit-learn's LassoCV does


@final
class NetworkFitter(Fitter):
    """Fits a multilayer perceptron."""

    dtype = torch.float32

    def build(self, target: Tensor) -> nn.Module:
        """Return a network in torch's initialisation, its last layer rescaled to a regression target."""
        inputs, rescale = self.train.inputs.shape[1], self.task.rescale(target)
        return build_mlp(inputs, self.settings.hidden, self.task.outputs, rescale=rescale)

    def fit_dense(self) -> nn.Module:
        """Train without a penalty and return a copy."""
        self.progress.stage("unregularised network", self.budget.dense)
        self._train(self._adam(), self.budget.dense, decay=True, each=True)
        return self.finished()

    def limit(self) -> float:
        """Return the strength at which each layer alone would be zero, the largest of all layers."""
        return self.largest_strength()

    def walk_path(self) -> list[PathPoint]:
        """Walk from the dense network to the empty one, warm-started and with one optimizer throughout."""
        strengths = strength_grid(self.limit(), _SMALLEST, self.budget.points)
        self.progress.stage("path of strengths", len(strengths))
        optimizer = self._adam()

        def fit_at(strength: float) -> None:
            self._train_at(strength, optimizer, self.budget.point, decay=False)

        points = walk(fit_at, self.measure, strengths, stop=_is_empty, on_point=self.progress.advance)
        self.progress.advance(len(strengths) - len(points))
        return points

    def settle(self, strength: float) -> None:
        """Train at a strength with the learning rate falling to zero."""
        self.progress.stage("settling", self.budget.settle)
        self._train_at(strength, self._adam(), self.budget.settle, decay=True, each=True)
        clear_unread_units(self.model)

    def fit_support(self) -> None:
        """Train the nonzero weights without a penalty."""
        self.progress.stage("refit on the support", self.budget.refit)
        optimizer = self._adam()
        attach(optimizer, self.regularizer).freeze_zeros()
        self._train(optimizer, self.budget.refit, decay=True, each=True)

    def _adam(self) -> Adam:
        """Return Adam with the penalised weights in its first group and the rest in its second."""
        penalised = {p for term in self.regularizer.terms for p in term.parameters}
        first = [p for p in self.model.parameters() if p in penalised]
        second = [p for p in self.model.parameters() if p not in penalised]
        return Adam([{"params": first}, {"params": second}], lr=self.settings.learning_rate, fused=True)

    def _train_at(
        self, strength: float, optimizer: Adam, steps: int, *, decay: bool, each: bool = False
    ) -> None:
        """Train with the penalty on."""
        raise_eps(optimizer.param_groups[:1], strength)
        exact = self.settings.batch_size >= len(self.train.target)  # no noise, so nothing to weigh
        regularizer = self.regularizer.with_strength(strength)
        handle = attach(optimizer, regularizer, memory=0 if exact else "auto")
        self._train(optimizer, steps, decay=decay, each=each)
        handle.remove()

    def _train(self, optimizer: Adam, steps: int, *, decay: bool, each: bool = False) -> None:
        train(
            self.model,
            self.task.loss,
            self.stream,
            optimizer,
            steps=steps,
            decay=cosine if decay else constant,
            on_step=self.progress.advance if each else lambda: None,
        )
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            msg = "training diverged: standardise the inputs (StandardScaler), or lower the learning rate"
            raise InputError(msg)


def _is_empty(point: PathPoint) -> bool:
    return point.features == 0
