"""The scikit-learn face: sparse networks and linear models that choose their own strength."""

from typing import Self, final

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call
from sklearn.utils.validation import validate_data

from torchlasso.errors import InputError
from torchlasso.estimators_base import FLOATS, _LassoMLP
from torchlasso.estimators_checks import is_real
from torchlasso.estimators_kinds import _Classifier, _Regressor
from torchlasso.estimators_rows import Rows, checked_weights


def _has_a_number(model: _LassoMLP) -> bool:
    """Return whether the strength is a number, or say what ``partial_fit`` needs."""
    if not is_real(model.strength):
        msg = f"partial_fit needs a number for the strength, got {model.strength!r}"
        raise AttributeError(msg)
    return True


@final
class LassoMLPClassifier(_Classifier):
    """A sparse neural network for classes, its strength chosen on held-out rows.

    Minimises ``mean cross-entropy + strength · R(weights)``; two classes use one output and the logistic
    loss, so that without hidden layers ``strength = 1/(n·C)`` of scikit-learn's ``LogisticRegression``.

    With a matrix of 0 and 1 for ``y``, one column a label, the logistic losses of the labels are summed.
    Rows may be sparse (SciPy), and stay so.

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
        always_keep: columns (indices, or names of a DataFrame) whose weights into the first layer are never
            penalised, for ``"l1"`` and ``"features"``.
        class_weight: a weight for each label, or ``"balanced"``: all classes weigh the same in sum.
        learning_rate: of Adam, for networks.
        batch_size: rows a step, for networks; the whole table if it is smaller.
        validation_fraction: the part of the rows held out by ``strength="auto"``.
        budget: how many steps each stage takes, a ``Budget``; None for the usual one.
        device: ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"``, …
        random_state: of the split, the initial weights and the shuffling.

    Attributes:
        classes_: the labels.
        module_: the fitted ``nn.Module`` (an ``nn.Linear`` without hidden layers), from rows to logits.
        strength_: the λ used.
        selected_features_: names or indices of the features that the model uses; ``transform`` returns them.
        feature_importances_: how much each feature can move the outputs; 0 where it is not used.
        coef_, intercept_: of a model without hidden layers.
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

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to rows.

        Args:
            X: ``[n, p]``, an array, a DataFrame or a sparse matrix.
            y: labels ``[n]``, or 0 and 1 for several labels, ``[n, labels]``.
            sample_weight: weights ``[n]`` that are zero or more; only their ratios count.
        """
        self._online = None
        self._fit(*self._prepare(X, y, sample_weight))
        return self

    @available_if(_has_a_number)  # type: ignore[untyped-decorator]
    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Take one step of Adam for each batch of some rows, for data that are larger than memory.

        A model that is fitted already goes on from there.

        Args:
            X: ``[n, p]``; what comes first also sets the number of columns.
            y: labels ``[n]``.
            classes: all labels that there will be, needed at the first call.
            sample_weight: weights ``[n]`` that are zero or more, of mean 1 over all the data.
        """
        first = _check_partial_fit_first_call(self, classes)
        inputs, labels = validate_data(self, X, y, dtype=FLOATS, accept_sparse="csr", reset=first)
        codes = np.searchsorted(self.classes_, labels).clip(max=len(self.classes_) - 1)
        if bool((self.classes_[codes] != labels).any()):
            msg = f"y must have labels among classes={self.classes_}, got others"
            raise InputError(msg)
        if self.class_weight == "balanced":
            msg = "class_weight='balanced' needs all rows at once; give partial_fit a dict of weights"
            raise InputError(msg)
        rows = Rows(inputs, labels, checked_weights(sample_weight, inputs))
        return self._learn(*self._of_classes(rows, codes))


@final
class LassoMLPRegressor(_Regressor):
    """A sparse neural network for quantities, its strength chosen on held-out rows.

    Minimises ``½ · mean squared error + strength · R(weights)``.  Without hidden layers this is the lasso in
    the units of ``y``: ``strength`` is scikit-learn's ``Lasso(alpha)``.  With hidden layers the error counts
    in standard deviations of ``y`` (the module ends in a fixed map back to its units), so that the
    strength does not depend on the units of ``y``.

    Other losses: ``"huber"``, which large errors pull at with a bounded force; ``"quantile"``; ``"poisson"``
    for counts, whose logarithm is predicted; ``"cox"`` for survival times, with ``y`` of two columns: time,
    and 1 for an event or 0 for a censored row.  The pinball loss of a quantile is rounded within 0.01
    standard deviations of ``y``, which puts the objective at most 0.0025 of them above its minimum.

    The choice of the strength, the parameters and the attributes are those of ``LassoMLPClassifier``.

    Args:
        hidden_layer_sizes: widths of the hidden layers; ``()`` is the linear lasso, solved to its optimum.
        loss: ``"squared_error"``, ``"huber"``, ``"quantile"``, ``"poisson"`` or ``"cox"``.
        quantile: which one, between 0 and 1.
        delta: where Huber's loss becomes linear, in units of ``y``; None is 1.35 robust standard deviations
            of ``y`` (1.4826 times its median absolute deviation).
        penalty: ``"l1"`` (every weight alone), ``"features"`` (inputs vanish whole) or ``"neurons"``.
        strength: λ ≥ 0 in units of the mean loss; a fraction such as ``"0.1max"`` of the strength that zeros
            everything; or ``"auto"``.
        groups: for ``"features"``: lists of column indices that are selected together.
        always_keep: columns whose weights into the first layer are never penalised.
        learning_rate: of Adam, for networks.
        batch_size: rows a step, for networks.
        validation_fraction: the part of the rows held out by ``strength="auto"``.
        budget: how many steps each stage takes, a ``Budget``; None for the usual one.
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

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to rows.

        Args:
            X: ``[n, p]``, an array, a DataFrame or a sparse matrix.
            y: values ``[n]``; times and events ``[n, 2]`` with ``loss="cox"``.
            sample_weight: weights ``[n]`` that are zero or more; only their ratios count.
        """
        self._online = None
        self._fit(*self._prepare(X, y, sample_weight))
        return self

    @available_if(_has_a_number)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Take one step of Adam for each batch of some rows, for data that are larger than memory.

        A model that is fitted already goes on from there.

        Args:
            X: ``[n, p]``; what comes first also sets the number of columns, and the unit of the errors.
            y: values ``[n]``; times and events ``[n, 2]`` with ``loss="cox"``.
            sample_weight: weights ``[n]`` that are zero or more, of mean 1 over all the data.
        """
        rows, task, _ = self._prepare(X, y, sample_weight, reset=not hasattr(self, "module_"))
        return self._learn(rows, task)
