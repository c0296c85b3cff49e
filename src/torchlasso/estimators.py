"""The scikit-learn face: sparse networks and linear models that choose their own strength."""

import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Self, TypeGuard, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from torchlasso.certify import Certificate
from torchlasso.devices import resolve_device
from torchlasso.errors import InputError
from torchlasso.fit.fitter import Fit
from torchlasso.fit.run import fit_mlp
from torchlasso.fit.settings import Settings
from torchlasso.groups import normalise_groups
from torchlasso.mlp import used_features
from torchlasso.path import Path
from torchlasso.penalties.base import check_strength, fraction_of_max
from torchlasso.structure import PENALTIES
from torchlasso.tasks import Task

_SOLVED = 1e-3  # residual, relative to the strength, above which a linear model is not called solved
_SETTLED = 1.0  # likewise for a network: above it a zero weight is pulled twice as hard as it is held


class _LassoMLP(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What the classifier and the regressor have in common: parameters, fitting, the outputs."""

    module_: nn.Module
    strength_: float
    certificate_: Certificate
    path_: Path | None
    n_features_in_: int

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (100,),
        *,
        penalty: Literal["l1", "features", "neurons"] = "l1",
        strength: float | str = "auto",
        groups: Sequence[Sequence[int]] | None = None,
        learning_rate: float = 1e-2,
        batch_size: int = 2048,
        validation_fraction: float = 0.2,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.penalty = penalty
        self.strength = strength
        self.groups = groups
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state

    @property
    def selected_features_(self) -> NDArray[Any]:
        """The features that the model uses: names if it was fitted on a DataFrame, else column indices."""
        check_is_fitted(self)
        used = used_features(self.module_).numpy()
        names = getattr(self, "feature_names_in_", None)
        return np.flatnonzero(used) if names is None else names[used]

    def _fit(
        self, inputs: NDArray[Any], target: NDArray[Any], task: Task, stratify: NDArray[Any] | None
    ) -> Fit:
        """Fit on validated rows and keep what was learnt."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        settings = self._settings(seed)
        rows, valid = np.arange(len(target)), None
        if settings.strength is None:
            rows, held_out = _split(rows, self.validation_fraction, stratify, seed)
            valid = _tensors(inputs[held_out], target[held_out])
        result = fit_mlp(_tensors(inputs[rows], target[rows]), valid, task, settings)
        self.module_ = result.module
        self.strength_ = result.strength
        self.certificate_ = result.certificate
        self.path_ = result.path
        if settings.strength is not None:
            _warn_if_unsettled(result, linear=not settings.hidden)
        return result

    def _settings(self, seed: int) -> Settings:
        """Check the parameters and return them as the settings of a fit."""
        if self.penalty not in PENALTIES:
            msg = f"penalty must be one of {', '.join(PENALTIES)}, got {self.penalty!r}"
            raise InputError(msg)
        if self.groups is not None and self.penalty != "features":
            msg = f"groups belong to penalty='features', got penalty={self.penalty!r}"
            raise InputError(msg)
        rate, size, part = self.learning_rate, self.batch_size, self.validation_fraction
        _require(_is_real(rate) and 0 < rate < np.inf, "learning_rate", "a number above 0", rate)
        _require(_is_whole(size) and size >= 1, "batch_size", "a whole number of 1 or more", size)
        _require(_is_real(part) and 0 < part < 1, "validation_fraction", "a number between 0 and 1", part)
        return Settings(
            _hidden(self.hidden_layer_sizes),
            self.penalty,
            _strength(self.strength),
            groups=None if self.groups is None else _groups(self.groups),
            learning_rate=float(rate),
            batch_size=int(size),
            seed=seed,
            device=resolve_device(self.device),
        )

    @torch.no_grad()
    def _outputs(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        inputs = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        dtype = next(self.module_.parameters()).dtype
        outputs: Tensor = self.module_(torch.as_tensor(inputs, dtype=dtype))
        return outputs


@final
class LassoMLPClassifier(ClassifierMixin, _LassoMLP):  # type: ignore[misc]
    """A sparse neural network for classes, its strength chosen on held-out rows.

    Minimises ``mean cross-entropy + strength · R(weights)``; two classes use one output and the logistic
    loss, so that without hidden layers ``strength = 1/(n·C)`` of scikit-learn's ``LogisticRegression``.

    With ``strength="auto"`` a part of the rows is held out; the network is trained without a penalty, then
    along a path of growing strengths; the largest strength within one standard error of the best is
    taken, and its nonzero weights are retrained without shrinkage if the held-out rows are the better
    for it.  With a number, all rows are used and the model is trained towards a
    stationary point of the objective at that strength; ``certificate_`` says how near it came.

    Args:
        hidden_layer_sizes: widths of the hidden layers; ``()`` is the linear lasso, solved to its optimum.
        penalty: ``"l1"`` (every weight alone), ``"features"`` (inputs vanish whole) or ``"neurons"``.
        strength: λ ≥ 0 in units of the mean loss; a fraction such as ``"0.1max"`` of the strength that zeros
            everything; or ``"auto"``.
        groups: for ``"features"``: lists of column indices that are selected together (the one-hot
            columns of a category), every column once.
        learning_rate: of Adam, for networks.
        batch_size: rows a step, for networks; the whole table if it is smaller.
        validation_fraction: the part of the rows held out by ``strength="auto"``.
        device: ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"``, …
        random_state: of the split, the initial weights and the shuffling.

    Attributes:
        classes_: the labels.
        module_: the fitted ``nn.Module`` (an ``nn.Linear`` without hidden layers), from rows to logits.
        strength_: the λ used.
        selected_features_: names or indices of the features that the model uses.
        certificate_: how far the penalised weights, before any retraining, are from a stationary point of
            the objective.
        path_: the strengths tried, or None.
        n_features_in_: number of columns.

    Raises:
        InputError: a parameter cannot be used; the data are checked as scikit-learn does.

    Example:
        >>> from sklearn.datasets import make_classification
        >>> X, y = make_classification(200, 20, n_informative=3, n_redundant=0, shuffle=False, random_state=0)
        >>> model = LassoMLPClassifier(hidden_layer_sizes=(), strength=0.1).fit(X, y)
        >>> model.selected_features_
        array([1])

    References:
        Tibshirani, J. R. Stat. Soc. B 58 (1996).  Feature selection with networks: Lemhadri, Ruan,
        Abraham and Tibshirani, "LassoNet", J. Mach. Learn. Res. 22 (2021).
    """

    classes_: NDArray[Any]

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to rows ``X`` of shape ``[n, p]`` with labels ``y`` of shape ``[n]``."""
        inputs, labels = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            msg = f"classification needs two classes or more, got one class: {self.classes_[0]!r}"
            raise InputError(msg)
        several = len(self.classes_) > 2
        self._fit(inputs, codes, Task("multiclass", len(self.classes_)) if several else Task("binary"), codes)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each class, ``[n, classes]``, in the order of ``classes_``."""
        outputs = self._outputs(X).double()
        task = Task("multiclass") if len(self.classes_) > 2 else Task("binary")
        return task.probabilities(outputs).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable label of each row."""
        probabilities = self.predict_proba(X)  # says so if the model is not fitted
        labels: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return labels


@final
class LassoMLPRegressor(RegressorMixin, _LassoMLP):  # type: ignore[misc]
    """A sparse neural network for quantities, its strength chosen on held-out rows.

    Minimises ``½ · mean squared error + strength · R(weights)``.  Without hidden layers this is the lasso in
    the units of ``y``: ``strength`` is scikit-learn's ``Lasso(alpha)``.  With hidden layers the error counts
    in standard deviations of ``y`` (the module ends in a fixed map back to its units), so that the
    strength does not depend on the units of ``y``.

    The choice of the strength, the parameters and the attributes are those of ``LassoMLPClassifier``.

    Args:
        hidden_layer_sizes: widths of the hidden layers; ``()`` is the linear lasso, solved to its optimum.
        penalty: ``"l1"`` (every weight alone), ``"features"`` (inputs vanish whole) or ``"neurons"``.
        strength: λ ≥ 0 in units of the mean loss; a fraction such as ``"0.1max"`` of the strength that zeros
            everything; or ``"auto"``.
        groups: for ``"features"``: lists of column indices that are selected together.
        learning_rate: of Adam, for networks.
        batch_size: rows a step, for networks.
        validation_fraction: the part of the rows held out by ``strength="auto"``.
        device: ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"``, …
        random_state: of the split, the initial weights and the shuffling.

    Raises:
        InputError: a parameter cannot be used; the data are checked as scikit-learn does.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import Lasso
        >>> X, y = load_diabetes(return_X_y=True)
        >>> ours = LassoMLPRegressor(hidden_layer_sizes=(), strength=0.5).fit(X, y)
        >>> theirs = Lasso(alpha=0.5, tol=1e-12, max_iter=100_000).fit(X, y)
        >>> bool(abs(ours.module_.weight.detach().numpy() - theirs.coef_).max() < 1e-4)
        True

    References:
        Tibshirani, J. R. Stat. Soc. B 58 (1996).
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to rows ``X`` of shape ``[n, p]`` with values ``y`` of shape ``[n]``."""
        inputs, values = validate_data(
            self, X, y, dtype=[np.float64, np.float32], y_numeric=True, ensure_min_samples=2
        )
        values = np.asarray(values, dtype=np.float64)
        unit = float(values.std()) if len(np.atleast_1d(self.hidden_layer_sizes)) else 1.0
        self._fit(inputs, values, Task("regression", unit=unit if unit > 0 else 1.0), None)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the predicted value of each row."""
        return self._outputs(X).double().squeeze(1).numpy()


def _split(
    rows: NDArray[Any], fraction: float, stratify: NDArray[Any] | None, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Hold out a part of the rows, every class in both parts where there are enough rows."""
    if stratify is not None:
        classes, counts = np.unique(stratify, return_counts=True)
        smaller = min(fraction, 1 - fraction) * len(rows)
        stratify = stratify if counts.min() >= 2 and smaller >= len(classes) else None
    first, second = train_test_split(rows, test_size=fraction, random_state=seed, stratify=stratify)
    return first, second


def _tensors(inputs: NDArray[Any], target: NDArray[Any]) -> tuple[Tensor, Tensor]:
    return torch.tensor(inputs), torch.tensor(target)


def _require(holds: bool, name: str, what: str, value: object) -> None:
    if not holds:
        msg = f"{name} must be {what}, got {value!r}"
        raise InputError(msg)


def _is_real(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


def _hidden(sizes: object) -> tuple[int, ...]:
    """Return the widths of the hidden layers; one number is one layer."""
    listed = [sizes] if isinstance(sizes, Real) else sizes
    widths = list(listed) if isinstance(listed, Iterable) else [None]
    good = [width for width in widths if _is_whole(width) and width >= 1]
    _require(len(good) == len(widths), "hidden_layer_sizes", "whole numbers of 1 or more", sizes)
    return tuple(map(int, good))


def _warn_if_unsettled(fit: Fit, *, linear: bool) -> None:
    """Warn if the weights are far from a stationary point of the objective at the strength asked for."""
    residual = fit.certificate.residual
    if fit.strength == 0 or residual <= (_SOLVED if linear else _SETTLED):
        return
    what, advice = (
        "network",
        "which weights are zero is not settled; raise the strength, or lower learning_rate",
    )
    if linear:
        what, advice = "linear model", "drop duplicate columns, or raise the strength"
    message = (
        f"the {what} stopped at a residual of {residual:.2g} of the strength, short of its optimum; "
        f"standardise the inputs, {advice}"
    )
    warnings.warn(message, ConvergenceWarning, stacklevel=4)


def _strength(strength: object) -> float | str | None:
    """Return the strength, or None if it is to be chosen."""
    if isinstance(strength, str):
        if strength == "auto":
            return None
        if fraction_of_max(strength) is not None:
            return strength
    expected = "'auto', a number of 0 or more or a fraction such as '0.1max'"
    _require(_is_real(strength), "strength", expected, strength)
    return check_strength(strength)


def _groups(groups: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    checked = normalise_groups(groups)
    _require(isinstance(checked, tuple), "groups", "lists of column indices", groups)
    return checked if isinstance(checked, tuple) else ()
