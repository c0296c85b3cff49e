"""The estimators that choose their strength by cross-validation."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, final

import numpy as np
from numpy.typing import ArrayLike

from torchlasso.estimators_folds import Scoring, _CrossValidated
from torchlasso.estimators_kinds import RegressionLoss, _Classifier, _Regressor
from torchlasso.fit.settings import Budget
from torchlasso.path import Rule


@final
class LassoMLPClassifierCV(_CrossValidated, _Classifier):
    """A sparse neural network for classes, its strength chosen by cross-validation.

    Minimises what ``LassoMLPClassifier`` minimises.  A path of strengths is walked on all rows, and the same
    strengths on the training rows of every fold; the strength is chosen by the errors on the rows left
    out, and the model of all rows at that strength is the result.  It is penalised: nothing is refitted.

    Folds run side by side through joblib, on a cluster within ``joblib.parallel_config("dask")``; the result
    is the same bit by bit.

    Args:
        hidden_layer_sizes: widths of the hidden layers; ``()`` is the linear lasso, solved to its optimum.
        cv: a number of folds, a splitter of scikit-learn (repeated, stratified, grouped, in the order of
            time) or an iterable of splits.  A number stands for stratified folds.
        strengths: how many, in geometric steps from a thousandth to all of the strength that leaves
            nothing; or the strengths themselves.
        selection: ``"1se"``: the largest strength whose error is within one standard error of the lowest;
            ``"min"``: the lowest.
        scoring: a scorer of scikit-learn; None for the mean loss.
        n_jobs: how many folds at once, of joblib.
        penalty: as for ``LassoMLPClassifier``, like all that follow.
        groups: lists of columns that are selected together (groups of rows go to ``fit``).
        always_keep: columns whose weights into the first layer are never penalised.
        class_weight: weights of the classes.
        learning_rate: of Adam, for networks.
        batch_size: rows a step, for networks.
        budget: how many steps each stage takes, a ``Budget``.
        device: where to train.
        random_state: of the initial weights and the shuffling; the folds have their own.

    Attributes:
        strength_: the λ chosen.
        strengths_: those tried, ascending.
        cv_errors_: ``.errors`` of each fold and strength, ``.mean`` and ``.se`` of each strength,
            ``.table()``; minus the score if there is a scorer.
        path_: the models of all rows along the strengths, their validation losses the errors of the folds.
        n_splits_: number of folds.
        module_, certificate_, selected_features_, classes_, n_features_in_: as for ``LassoMLPClassifier``.

    Raises:
        InputError: a parameter cannot be used; the data are checked as scikit-learn does.

    Example:
        >>> random = np.random.default_rng(1)
        >>> X = random.normal(size=(200, 10))
        >>> y = np.where(X[:, 0] - X[:, 1] + random.normal(size=200) > 0, "left", "right")
        >>> LassoMLPClassifierCV(hidden_layer_sizes=(), cv=5, strengths=20).fit(X, y).selected_features_
        array([0, 1])

    References:
        Tibshirani, J. R. Stat. Soc. B 58 (1996); the rule of one standard error: Breiman, Friedman, Olshen
        and Stone, "Classification and regression trees" (1984).
    """

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (100,),
        *,
        cv: Any = 5,
        strengths: int | ArrayLike = 30,
        selection: Rule = "1se",
        scoring: Scoring = None,
        n_jobs: int | None = None,
        penalty: Literal["l1", "features", "neurons"] = "l1",
        groups: Sequence[Sequence[int]] | None = None,
        always_keep: Sequence[int | str] | None = None,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        learning_rate: float = 1e-2,
        batch_size: int = 2048,
        budget: Budget | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            penalty=penalty,
            groups=groups,
            always_keep=always_keep,
            class_weight=class_weight,
            learning_rate=learning_rate,
            batch_size=batch_size,
            budget=budget,
            device=device,
            random_state=random_state,
        )
        self.cv, self.strengths, self.selection = cv, strengths, selection
        self.scoring, self.n_jobs = scoring, n_jobs

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit to rows.

        Args:
            X: ``[n, p]``, an array, a DataFrame or a sparse matrix.
            y: labels ``[n]``, or 0 and 1 for each of several labels, ``[n, labels]``.
            sample_weight: weights ``[n]`` that are zero or more; only their ratios count.
            groups: which rows belong together, ``[n]``, for a splitter that keeps groups in one fold.
        """
        self._fit_folds(X, self._prepare(X, y, sample_weight), groups)
        return self


@final
class LassoMLPRegressorCV(_CrossValidated, _Regressor):
    """A sparse neural network for quantities, its strength chosen by cross-validation.

    Minimises what ``LassoMLPRegressor`` minimises.  Without hidden layers it is scikit-learn's ``LassoCV``,
    but for the default rule of one standard error.  The choice of the strength and the attributes are
    those of ``LassoMLPClassifierCV``.

    Args:
        hidden_layer_sizes: widths of the hidden layers; ``()`` is the linear lasso, solved to its optimum.
        cv: a number of folds, a splitter of scikit-learn or an iterable of splits.
        strengths: how many, or the strengths themselves.
        selection: ``"1se"`` or ``"min"``.
        scoring: a scorer of scikit-learn; None for the mean loss.
        n_jobs: how many folds at once, of joblib.
        loss: as for ``LassoMLPRegressor``, like all that follow.
        quantile: which one, for ``loss="quantile"``.
        delta: where Huber's loss becomes linear.
        penalty: ``"l1"``, ``"features"`` or ``"neurons"``.
        groups: lists of columns that are selected together (groups of rows go to ``fit``).
        always_keep: columns whose weights into the first layer are never penalised.
        learning_rate: of Adam, for networks.
        batch_size: rows a step, for networks.
        budget: how many steps each stage takes, a ``Budget``.
        device: where to train.
        random_state: of the initial weights and the shuffling; the folds have their own.

    Raises:
        InputError: a parameter cannot be used; the data are checked as scikit-learn does.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import LassoCV
        >>> X, y = load_diabetes(return_X_y=True)
        >>> ours = LassoMLPRegressorCV((), strengths=10, selection="min").fit(X, y)
        >>> theirs = LassoCV(alphas=ours.strengths_, tol=1e-8, max_iter=10_000).fit(X, y)
        >>> bool(ours.strength_ == theirs.alpha_)
        True

    References:
        Tibshirani, J. R. Stat. Soc. B 58 (1996).
    """

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (100,),
        *,
        cv: Any = 5,
        strengths: int | ArrayLike = 30,
        selection: Rule = "1se",
        scoring: Scoring = None,
        n_jobs: int | None = None,
        loss: RegressionLoss = "squared_error",
        quantile: float = 0.5,
        delta: float | None = None,
        penalty: Literal["l1", "features", "neurons"] = "l1",
        groups: Sequence[Sequence[int]] | None = None,
        always_keep: Sequence[int | str] | None = None,
        learning_rate: float = 1e-2,
        batch_size: int = 2048,
        budget: Budget | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            loss=loss,
            quantile=quantile,
            delta=delta,
            penalty=penalty,
            groups=groups,
            always_keep=always_keep,
            learning_rate=learning_rate,
            batch_size=batch_size,
            budget=budget,
            device=device,
            random_state=random_state,
        )
        self.cv, self.strengths, self.selection = cv, strengths, selection
        self.scoring, self.n_jobs = scoring, n_jobs

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit to rows.

        Args:
            X: ``[n, p]``, an array, a DataFrame or a sparse matrix.
            y: values ``[n]``; times and events ``[n, 2]`` with ``loss="cox"``.
            sample_weight: weights ``[n]`` that are zero or more; only their ratios count.
            groups: which rows belong together, ``[n]``, for a splitter that keeps groups in one fold.
        """
        self._fit_folds(X, self._prepare(X, y, sample_weight), groups)
        return self
