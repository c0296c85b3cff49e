"""A classifier and a regressor that do not fit yet: what they take for ``y``, and what they predict."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d, validate_data

from torchlasso.errors import InputError
from torchlasso.estimators_base import FLOATS, _LassoMLP
from torchlasso.estimators_checks import checked_hidden, class_weights, is_real, require
from torchlasso.estimators_rows import Rows, checked_weights
from torchlasso.fit.settings import Budget
from torchlasso.loss_base import Loss
from torchlasso.losses import CoxLoss, HuberLoss, PoissonLoss, QuantileLoss, SquaredLoss
from torchlasso.survival import concordance_index
from torchlasso.tasks import Task

RegressionLoss = Literal["squared_error", "huber", "quantile", "poisson", "cox"]

_NORMAL = 1.4826  # a standard deviation in median absolute deviations, for a normal distribution
_EFFICIENT = 1.35  # Huber's δ in standard deviations that is 95% efficient for normal errors
_SMOOTHING = 1e-2  # of the pinball loss, in standard deviations of the target


class _Classifier(ClassifierMixin, _LassoMLP):  # type: ignore[misc]  # scikit-learn has no types
    """Labels in, labels and probabilities out."""

    classes_: NDArray[Any]

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (100,),
        *,
        penalty: Literal["l1", "features", "neurons"] = "l1",
        strength: float | str = "auto",
        groups: Sequence[Sequence[int]] | None = None,
        always_keep: Sequence[int | str] | None = None,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        learning_rate: float = 1e-2,
        batch_size: int = 2048,
        validation_fraction: float = 0.2,
        budget: Budget | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            penalty=penalty,
            strength=strength,
            groups=groups,
            always_keep=always_keep,
            learning_rate=learning_rate,
            batch_size=batch_size,
            validation_fraction=validation_fraction,
            budget=budget,
            device=device,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def _prepare(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[Rows, Task, NDArray[Any] | None]:
        """Check the rows, and return them with the task and what to stratify by."""
        inputs, labels = validate_data(
            self, X, y, dtype=FLOATS, accept_sparse="csr", multi_output=True, ensure_min_samples=2
        )
        weights = checked_weights(sample_weight, inputs)
        if type_of_target(labels) == "multilabel-indicator":
            return self._several_labels(inputs, labels, weights)
        labels = column_or_1d(labels, warn=True)
        check_classification_targets(labels)
        rows = Rows(inputs, labels, weights).without_weightless()
        self.classes_, codes = np.unique(rows.target, return_inverse=True)
        if len(self.classes_) < 2:
            msg = f"classification needs two classes or more, got one class: {self.classes_[0]!r}"
            raise InputError(msg)
        rows, task = self._of_classes(rows, codes)
        rows = rows.without_weightless()
        return rows, task, rows.target

    def _of_classes(self, rows: Rows, codes: NDArray[Any]) -> tuple[Rows, Task]:
        """Return rows with class numbers and the weights of the classes."""
        weights = class_weights(self.class_weight, self.classes_, codes, rows.weights)
        coded = Rows(rows.inputs, codes, weights)
        count, weighted = len(self.classes_), weights is not None
        task = Task("binary", weighted=weighted)
        if count > 2:
            task = Task("multiclass", count, weighted=weighted)
        return coded, task

    def _several_labels(
        self, inputs: Any, labels: Any, weights: NDArray[Any] | None
    ) -> tuple[Rows, Task, None]:
        """Return rows with a matrix of labels, each of which is there or not."""
        if self.class_weight is not None:
            msg = "class_weight belongs to one label a row; give sample_weight for several labels"
            raise InputError(msg)
        matrix = labels.toarray() if issparse(labels) else np.asarray(labels)
        self.classes_ = np.arange(matrix.shape[1])
        rows = Rows(inputs, matrix.astype(np.float64), weights).without_weightless()
        return rows, Task("multilabel", matrix.shape[1], weighted=weights is not None), None

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logits: ``[n]`` for two classes, else ``[n, classes]``."""
        outputs = self._outputs(X)
        return (outputs.squeeze(1) if self.task_.kind == "binary" else outputs).numpy()

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each class, ``[n, classes]``, in the order of ``classes_``.

        For several labels a row, the probability of each label.
        """
        outputs = self._outputs(X)
        return self.task_.probabilities(outputs).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable label of each row, or 0 and 1 for each of several labels."""
        probabilities = self.predict_proba(X)  # says so if the model is not fitted
        if self.task_.kind == "multilabel":
            return (probabilities > 0.5).astype(np.int64)
        labels: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class _Regressor(RegressorMixin, _LassoMLP):  # type: ignore[misc]  # scikit-learn has no types
    """Quantities, counts or survival times in, and what is expected of them out."""

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (100,),
        *,
        loss: RegressionLoss = "squared_error",
        quantile: float = 0.5,
        delta: float | None = None,
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
        super().__init__(
            hidden_layer_sizes,
            penalty=penalty,
            strength=strength,
            groups=groups,
            always_keep=always_keep,
            learning_rate=learning_rate,
            batch_size=batch_size,
            validation_fraction=validation_fraction,
            budget=budget,
            device=device,
            random_state=random_state,
        )
        self.loss = loss
        self.quantile = quantile
        self.delta = delta

    def _prepare(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, *, reset: bool = True
    ) -> tuple[Rows, Task, None]:
        """Check the rows, and return them with the task and what to stratify by: nothing."""
        if self.loss not in get_args(RegressionLoss):
            msg = f"loss must be one of {', '.join(get_args(RegressionLoss))}, got {self.loss!r}"
            raise InputError(msg)
        inputs, values = validate_data(
            self,
            X,
            y,
            dtype=FLOATS,
            accept_sparse="csr",
            y_numeric=True,
            multi_output=self.loss == "cox",
            ensure_min_samples=2 if reset else 1,
            reset=reset,
        )
        weights = checked_weights(sample_weight, inputs)
        rows = Rows(inputs, np.asarray(values, dtype=np.float64), weights)
        rows = rows.without_weightless() if reset else rows
        return rows, self._task(rows), None

    def _task(self, rows: Rows) -> Task:
        """Return the loss; that of an error counts in standard deviations of the target for a network."""
        weighted = rows.weights is not None
        if self.loss in ("poisson", "cox"):
            loss: Loss = PoissonLoss() if self.loss == "poisson" else CoxLoss()
            loss.check(torch.tensor(rows.target))
            _check_informative(self.loss, rows.target)
            kind: Literal["counts", "survival"] = "counts" if self.loss == "poisson" else "survival"
            return Task(kind, measure=loss, weighted=weighted)
        mean = np.average(rows.target, weights=rows.weights)
        deviation = float(np.sqrt(np.average((rows.target - mean) ** 2, weights=rows.weights))) or 1.0
        unit = deviation if checked_hidden(self.hidden_layer_sizes) else 1.0
        measure = self._measure(rows.target, deviation, unit)
        return Task("regression", unit=unit, measure=measure, weighted=weighted)

    def _measure(self, target: NDArray[Any], deviation: float, unit: float) -> Loss:
        """Return the loss of an error given in units."""
        if self.loss == "huber":
            good = self.delta is None or (is_real(self.delta) and 0 < self.delta < np.inf)
            require(good, "delta", "a number above 0, in units of y, or None", self.delta)
            spread = _NORMAL * float(np.median(np.abs(target - np.median(target)))) or deviation
            return HuberLoss((_EFFICIENT * spread if self.delta is None else float(self.delta)) / unit)
        if self.loss == "quantile":
            good = is_real(self.quantile) and 0 < self.quantile < 1
            require(good, "quantile", "a number between 0 and 1", self.quantile)
            return QuantileLoss(float(self.quantile), smoothing=_SMOOTHING * deviation / unit)
        return SquaredLoss()

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the predicted value of each row.

        That is the mean or median or quantile that the loss asks for; the rate with ``loss="poisson"``; the
        logarithm of the hazard, up to a constant, with ``loss="cox"``.
        """
        outputs = self._outputs(X)
        return self.task_.predictions(outputs).squeeze(1).numpy()

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return R², or the concordance index with ``loss="cox"``, which knows no weights."""
        if self.loss != "cox":
            return float(super().score(X, y, sample_weight))
        target = np.asarray(y, dtype=np.float64)
        return concordance_index(torch.tensor(self.predict(X)), torch.tensor(target))


def _check_informative(loss: str, target: NDArray[Any]) -> None:
    """Raise for a target at which the loss has no minimum, or none that depends on the inputs."""
    if loss == "poisson" and not np.any(target > 0):
        msg = "loss='poisson' needs a count above zero in y, got zeros only, whose rate has no logarithm"
        raise InputError(msg)
    if loss == "cox" and not np.any(target[:, 1] > 0):
        msg = "loss='cox' needs an event in the second column of y, got censored rows only"
        raise InputError(msg)
