"""Fitting on rows as they come, for data that are larger than memory: one step a batch."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from torchlasso.errors import InputError
from torchlasso.fit.settings import Settings
from torchlasso.mlp import build_mlp, seeded
from torchlasso.optim.attach import Handle, attach
from torchlasso.penalties.base import check_strength
from torchlasso.sparse_rows import split_rows
from torchlasso.structure import structured_regularizer
from torchlasso.tasks import Task

_SMALLEST_EPS = 1e-8  # torch's default


def first_module(task: Task, settings: Settings, inputs: int, target: Tensor) -> nn.Module:
    """Return a model to begin with.

    Args:
        task: the loss.
        settings: the shape and the seed.
        inputs: number of features.
        target: of the first rows, which a regression takes its scale from.
    """
    rescale = task.rescale(target) if settings.hidden else None
    with seeded(settings.seed):
        module = build_mlp(inputs, settings.hidden, task.outputs, rescale=rescale)
    return module.to(torch.float32 if settings.hidden else torch.float64)


class Online:
    """A model that takes one step of Adam with the proximal step for every batch that it is given.

    Args:
        task: the loss.
        settings: the shape, the penalty and its strength, a number.
        module: where to begin; it is left as it is.
    """

    def __init__(self, task: Task, settings: Settings, module: nn.Module) -> None:
        self.task, self.settings = task, settings
        strength = check_strength(settings.strength)
        self.model = copy.deepcopy(module).to(settings.device)
        self.dtype = next(self.model.parameters()).dtype
        self.regularizer = structured_regularizer(
            self.model, settings.penalty, strength, settings.groups, keep=settings.keep
        )
        penalised = {p for term in self.regularizer.terms for p in term.parameters}
        first = [p for p in self.model.parameters() if p in penalised]
        second = [p for p in self.model.parameters() if p not in penalised]
        # An ε of the size of the strength bounds a step's shrinkage, as in ``fit.network``.
        groups: list[dict[str, Any]] = [
            {"params": first, "eps": max(strength, _SMALLEST_EPS)},
            {"params": second},
        ]
        self.optimizer = Adam(groups, lr=settings.learning_rate)
        self._handle: Handle | None = None

    def learn(self, inputs: Tensor, target: Tensor, *, weighted: bool) -> None:
        """Take one step for each batch of some rows, in their order.

        Args:
            inputs: ``[n, p]``, dense or sparse rows.
            target: as the task takes it.
            weighted: whether its last column holds weights.

        Raises:
            InputError: a weight is not finite any more.
        """
        if self._handle is None:
            self._handle = attach(self.optimizer, self.regularizer)
        task = replace(self.task, weighted=weighted)
        if task.kind != "multiclass":
            target = target.to(self.dtype)
        size, device = self.settings.batch_size, self.settings.device
        self.model.train()
        for x, y in zip(split_rows(inputs, size), target.split(size), strict=True):
            self.optimizer.zero_grad()
            task.loss(self.model(x.to(device, self.dtype)), y.to(device)).backward()
            self.optimizer.step()
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            msg = "training diverged: standardise the inputs (StandardScaler), or lower the learning rate"
            raise InputError(msg)

    def finished(self) -> nn.Module:
        """Return a copy of the model as it is, on the CPU and in evaluation mode."""
        return copy.deepcopy(self.model).cpu().eval()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: all but the hooks, which its first step puts on again."""
        return {**self.__dict__, "_handle": None}
