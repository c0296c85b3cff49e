"""What the estimators have in common: parameters, fitting, outputs, and the selection of features."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.func import functional_call

from torchlasso.certify import Certificate
from torchlasso.devices import resolve_device
from torchlasso.errors import InputError
from torchlasso.estimators_checks import (
    checked_budget,
    checked_groups,
    checked_hidden,
    checked_keep,
    checked_strength,
    is_real,
    is_whole,
    require,
)
from torchlasso.estimators_rows import Rows, as_tensors, split_rows, tensors_of
from torchlasso.fit.fitter import Fit
from torchlasso.fit.online import Online, first_module
from torchlasso.fit.run import fit_mlp
from torchlasso.fit.settings import Budget, Settings
from torchlasso.mlp import linear_layers, used_features
from torchlasso.path import Path
from torchlasso.sparse_rows import from_scipy
from torchlasso.structure import PENALTIES
from torchlasso.tasks import Task

_SOLVED = 1e-3  # residual, relative to the strength, above which a linear model is not called solved
_SETTLED = 1.0  # likewise for a network: above it a zero weight is pulled twice as hard as it is held

FLOATS = [np.float64, np.float32]


class _LassoMLP(SelectorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Parameters, fitting, the outputs and the selected features."""

    module_: nn.Module
    task_: Task
    strength_: float
    certificate_: Certificate | None
    path_: Path | None
    n_features_in_: int
    _online: Online | None = None  # the run that ``partial_fit`` goes on with

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (100,),
        *,
        penalty: Literal["l1", "features", "neurons"] = "l1",
        strength: float | str = "auto",
        groups: Sequence[Sequence[int]] | None = None,
        always_keep: Sequence[int | str] | None = None,
        learning_rate: float = 1e-2,
        batch_size: int = 2048,
        validation_fraction: float = 0.2,
        budget: Budget | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.penalty = penalty
        self.strength = strength
        self.groups = groups
        self.always_keep = always_keep
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.budget = budget
        self.device = device
        self.random_state = random_state

    # ---- the features ------------------------------------------------------------------------------------

    @property
    def selected_features_(self) -> NDArray[Any]:
        """The features that the model uses: names if it was fitted on a DataFrame, else column indices."""
        used = self._get_support_mask()
        names = getattr(self, "feature_names_in_", None)
        return np.flatnonzero(used) if names is None else names[used]

    @property
    def feature_importances_(self) -> NDArray[np.float64]:
        """How much each feature can move the outputs, the largest being 1, and 0 where it is not used.

        The product of the layers' absolute weights, summed over the outputs: for inputs of one scale
        (standardised) a bound on the slope.
        """
        check_is_fitted(self)
        weights = [layer.weight.detach().double().cpu().abs() for _, layer in linear_layers(self.module_)]
        reach = torch.ones(1, weights[-1].shape[0], dtype=torch.float64)
        for weight in reversed(weights):
            reach = reach @ (weight / weight.max().clamp_min(torch.finfo(torch.float64).tiny))
        importances: NDArray[np.float64] = (reach[0] / reach.max().clamp_min(1e-300)).numpy()
        return importances

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        mask: NDArray[np.bool_] = used_features(self.module_).cpu().numpy()
        return mask

    # ---- fitting -----------------------------------------------------------------------------------------

    def _fit(self, rows: Rows, task: Task, stratify: NDArray[Any] | None) -> Fit:
        """Fit on validated rows and keep what was learnt."""
        seed = self._seed()
        settings = self._settings(seed)
        learnt, valid = rows, None
        if settings.strength is None:
            first, second = split_rows(np.arange(len(rows)), self.validation_fraction, stratify, seed)
            learnt, valid = rows.take(first), tensors_of(rows.take(second))
        result = fit_mlp(tensors_of(learnt), valid, task, settings)
        self._keep(result, task)
        if settings.strength is not None:
            _warn_if_unsettled(result, linear=not settings.hidden)
        return result

    def _learn(self, rows: Rows, task: Task) -> Self:
        """Go on with validated rows, or begin with them."""
        inputs, target = as_tensors(rows)
        online = self._online
        if online is None:
            fitted: nn.Module | None = getattr(self, "module_", None)
            task = task if fitted is None else replace(self.task_, weighted=task.weighted)
            settings = self._settings(self._seed())
            online = Online(task, settings, fitted or first_module(task, settings, inputs.shape[1], target))
        online.learn(inputs, target, weighted=task.weighted)
        self._online = online
        self.module_ = online.finished()
        self.task_ = online.task
        self.strength_ = float(self.strength)
        self.certificate_ = self.path_ = None
        return self

    def _keep(self, fit: Fit, task: Task) -> None:
        """Keep what was learnt."""
        self.module_ = fit.module
        self.task_ = task
        self.strength_ = fit.strength
        self.certificate_ = fit.certificate
        self.path_ = fit.path

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _settings(self, seed: int) -> Settings:
        """Check the parameters and return them as the settings of a fit."""
        if self.penalty not in PENALTIES:
            msg = f"penalty must be one of {', '.join(PENALTIES)}, got {self.penalty!r}"
            raise InputError(msg)
        rate, size, part = self.learning_rate, self.batch_size, self.validation_fraction
        require(is_real(rate) and 0 < rate < np.inf, "learning_rate", "a number above 0", rate)
        require(is_whole(size) and size >= 1, "batch_size", "a whole number of 1 or more", size)
        require(is_real(part) and 0 < part < 1, "validation_fraction", "a number between 0 and 1", part)
        names = getattr(self, "feature_names_in_", None)
        return Settings(
            checked_hidden(self.hidden_layer_sizes),
            self.penalty,
            checked_strength(self.strength),
            groups=checked_groups(self.groups, self.penalty),
            keep=checked_keep(self.always_keep, self.penalty, names, self.n_features_in_),
            learning_rate=float(rate),
            batch_size=int(size),
            seed=seed,
            device=resolve_device(self.device),
            budget=checked_budget(self.budget),
        )

    @torch.no_grad()
    def _outputs(self, X: ArrayLike) -> Tensor:
        """Return the outputs for rows, in float64."""
        check_is_fitted(self)
        inputs = validate_data(self, X, dtype=FLOATS, accept_sparse="csr", reset=False)
        rows = from_scipy(inputs) if issparse(inputs) else torch.tensor(inputs)
        # In float64 a row's outputs do not depend on how many rows stand beside it, in any digit that counts.
        state = {name: tensor.double() for name, tensor in self.module_.state_dict().items()}
        outputs: Tensor = functional_call(self.module_, state, (rows.double(),))
        return outputs

    @property
    def coef_(self) -> NDArray[np.float64]:
        """The weights of a linear model, ``[outputs, p]``; ``[p]`` for a regressor."""
        coefficients: NDArray[np.float64] = self._layer("coef_").weight.detach().numpy()
        return coefficients if self.__sklearn_tags__().classifier_tags else coefficients[0]

    @property
    def intercept_(self) -> Any:
        """The intercepts of a linear model, ``[outputs]``; a number for a regressor."""
        intercepts = self._layer("intercept_").bias.detach().numpy()
        return intercepts if self.__sklearn_tags__().classifier_tags else intercepts[0]

    def _layer(self, name: str) -> nn.Linear:
        """Return the one layer of a linear model; a network and a model that is not fitted have none."""
        layer = self.__dict__.get("module_")
        if not isinstance(layer, nn.Linear):
            msg = f"{name} belongs to a fitted model without hidden layers"
            raise AttributeError(msg)
        return layer

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _warn_if_unsettled(fit: Fit, *, linear: bool) -> None:
    """Warn if the weights are far from a stationary point of the objective at the strength asked for."""
    residual = fit.certificate.residual
    if fit.strength == 0 or residual <= (_SOLVED if linear else _SETTLED):
        return
    what = "network, whose zeros are not settled," if not linear else "linear model"
    advice = "lower learning_rate" if not linear else "drop duplicate columns"
    message = (
        f"the {what} stopped at a residual of {residual:.2g} of the strength, short of its optimum; "
        f"standardise the inputs, {advice}, or raise the strength"
    )
    warnings.warn(message, ConvergenceWarning, stacklevel=4)
