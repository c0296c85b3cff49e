"""One fit from data to a sparse model: the dense start, the path, the choice, the refit, the certificate."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from torchlasso.certify import Certificate, certificate, strength_max
from torchlasso.fit.settings import Progress, Settings
from torchlasso.mlp import seeded
from torchlasso.path import Path, PathPoint, measure_point, row_losses
from torchlasso.penalties.base import check_strength, fraction_of_max
from torchlasso.structure import structured_regularizer
from torchlasso.tasks import Task
from torchlasso.training import Batches


@dataclass(frozen=True)
class Refit:
    """The choice between the penalised weights and their refit on the support.

    Attributes:
        used: whether the refit was better on the validation rows.
        valid_loss_penalised: validation loss before it.
        valid_loss_refit: validation loss after it.
    """

    used: bool
    valid_loss_penalised: float
    valid_loss_refit: float


@dataclass(frozen=True, eq=False)
class Fit:
    """What came out.

    Attributes:
        module: the sparse model, in evaluation mode on the CPU.
        dense: the unregularised model of the same shape, trained on the same rows.
        strength: the λ used.
        chosen_by: ``"given"`` or ``"one standard error"``.
        certificate: of the weights before the refit.
        path: the strengths tried, dense to sparse; None for a given strength.
        chosen: the point of the path that was taken, before it settled.
        refit: how the refit was decided; None for a given strength.
    """

    module: nn.Module
    dense: nn.Module
    strength: float
    chosen_by: Literal["given", "one standard error"]
    certificate: Certificate
    path: Path | None = None
    chosen: PathPoint | None = None
    refit: Refit | None = None


class Fitter(ABC):
    """What fitting a network and a linear model have in common."""

    dtype: ClassVar[torch.dtype]

    def __init__(
        self,
        rows: tuple[Tensor, Tensor],
        valid: tuple[Tensor, Tensor] | None,
        task: Task,
        settings: Settings,
        progress: Progress,
    ) -> None:
        self.task, self.settings, self.progress = task, settings, progress
        self.budget = settings.budget
        self.train = self._batches(rows)
        self.valid = self.train if valid is None else self._batches(valid)
        self.stream = self.train.stream()
        with seeded(settings.seed):
            self.model = self.build(rows[1]).to(settings.device, self.dtype)
        self.regularizer = structured_regularizer(
            self.model, settings.penalty, 0.0, settings.groups, keep=settings.keep
        )

    def run(self) -> Fit:
        """Fit at the given strength, or along a path with the strength chosen on the validation rows."""
        dense = self.fit_dense()
        given = self.given_strength()
        if given is not None:
            self.settle(given)
            return self._result(given, "given", dense)
        path = Path(tuple(self.walk_path()))
        chosen = path.best("1se")
        self.model.load_state_dict(chosen.state)
        self.settle(chosen.strength)
        fit = self._result(chosen.strength, "one standard error", dense)
        refit = self.choose_refit()
        return replace(fit, module=self.finished(), path=path, chosen=chosen, refit=refit)

    def given_strength(self) -> float | None:
        """Return the strength that was asked for, a fraction as a number, or None if it is to be chosen."""
        asked = self.settings.strength
        fraction = fraction_of_max(asked)
        if fraction is not None:
            return fraction * self.limit()
        return None if asked is None else check_strength(asked)

    def choose_refit(self) -> Refit:
        """Retrain the support without a penalty, and keep it if the validation rows are the better for it."""
        before = copy.deepcopy(self.model.state_dict())
        penalised = float(row_losses(self.model, self.valid, self.task.loss_rows).mean())
        self.fit_support()
        refitted = float(row_losses(self.model, self.valid, self.task.loss_rows).mean())
        if not refitted < penalised:
            self.model.load_state_dict(before)
        return Refit(refitted < penalised, penalised, refitted)

    def measure(self, strength: float) -> PathPoint:
        """Return the model as it is as a point of the path."""
        return measure_point(self.model, strength, self.train, self.valid, self.task.loss_rows)

    def largest_strength(self) -> float:
        """Return the strength at which each block alone is zero, the largest of all blocks."""
        return max(strength_max(self.model, self.regularizer, self.task.loss, self.train).values())

    def _result(
        self, strength: float, chosen_by: Literal["given", "one standard error"], dense: nn.Module
    ) -> Fit:
        regularizer = self.regularizer.with_strength(strength)
        report = certificate(self.model, regularizer, self.task.loss, self.train)
        return Fit(self.finished(), dense, strength, chosen_by, report)

    def finished(self) -> nn.Module:
        """Return a copy of the model as it is, on the CPU and in evaluation mode."""
        return copy.deepcopy(self.model).cpu().eval()

    def _batches(self, rows: tuple[Tensor, Tensor]) -> Batches:
        inputs, target = rows
        if self.task.kind != "multiclass":
            target = target.to(self.dtype)
        device = self.settings.device
        return Batches(
            inputs.to(device, self.dtype), target.to(device), self.settings.batch_size, self.settings.seed
        )

    @abstractmethod
    def build(self, target: Tensor) -> nn.Module:
        """Return the model before training, given the training target."""

    @abstractmethod
    def fit_dense(self) -> nn.Module:
        """Train without a penalty and return a copy."""

    @abstractmethod
    def limit(self) -> float:
        """Return the strength that is the end of the path, from the model that ``fit_dense`` left."""

    @abstractmethod
    def walk_path(self) -> list[PathPoint]:
        """Return the points of the path, dense to sparse."""

    @abstractmethod
    def settle(self, strength: float) -> None:
        """Bring the model to a stationary point at a strength."""

    @abstractmethod
    def fit_support(self) -> None:
        """Train the nonzero weights without a penalty."""
