"""What the cross-validated estimators share: folds, the choice of a strength, the fit to all rows."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv
from sklearn.utils.validation import _num_samples
from torch import nn

from torchlasso.certify import certificate
from torchlasso.cross_validation import (
    CrossValidation,
    Floats,
    Fold,
    begin,
    cross_validate,
    make_fitter,
    path_at,
)
from torchlasso.errors import InputError
from torchlasso.estimators_base import _LassoMLP
from torchlasso.estimators_checks import is_real, is_whole, require
from torchlasso.estimators_rows import Rows
from torchlasso.fit.run import threads_for
from torchlasso.path import Path, Rule, strength_grid
from torchlasso.tasks import Task

_SMALLEST = 1e-3  # the path begins at this fraction of the largest strength, as scikit-learn's LassoCV does

Scoring = str | Callable[..., float] | None


class _CrossValidated(_LassoMLP):
    """Folds, the choice among the strengths, and the fit to all rows."""

    cv: Any
    strengths: int | ArrayLike
    selection: Rule
    scoring: Scoring
    n_jobs: int | None

    strengths_: Floats
    cv_errors_: CrossValidation
    n_splits_: int

    def _fit_folds(
        self, X: ArrayLike, prepared: tuple[Rows, Task, NDArray[Any] | None], groups: ArrayLike | None
    ) -> None:
        """Choose the strength over folds and fit to all rows at it."""
        rows, task, classes = prepared
        settings = self._settings(self._seed())
        require(self.selection in ("min", "1se"), "selection", "'min' or '1se'", self.selection)
        asked = _checked_strengths(self.strengths)
        score = None if self.scoring is None else _Scorer(self, check_scoring(self, self.scoring), task)
        folds = self._folds(rows, classes, groups, _num_samples(X))
        inputs = torch.empty(rows.inputs.shape, device="meta")  # for its shape alone
        with threads_for(inputs, settings):
            fitter = make_fitter(rows, None, task, settings)
            limit = begin(fitter)
            strengths = strength_grid(limit, _SMALLEST, asked) if isinstance(asked, int) else asked
            points = path_at(fitter, strengths)
        found = cross_validate(rows, task, settings, strengths, folds, score=score, n_jobs=self.n_jobs)
        chosen = points[found.best(self.selection)]
        with threads_for(inputs, settings):
            fitter.model.load_state_dict(chosen.state)
            fitter.settle(chosen.strength)
            regularizer = fitter.regularizer.with_strength(chosen.strength)
            self.certificate_ = certificate(fitter.model, regularizer, task.loss, fitter.train)
        self.module_, self.task_, self.strength_ = fitter.finished(), task, chosen.strength
        self.strengths_, self.cv_errors_, self.n_splits_ = found.strengths, found, len(folds)
        # The points are of all rows, which no longer can judge them: the errors are those of the folds.
        errors = torch.from_numpy(found.errors)
        self.path_ = Path(tuple(replace(point, valid_losses=errors[:, i]) for i, point in enumerate(points)))

    def _folds(
        self, rows: Rows, classes: NDArray[Any] | None, groups: ArrayLike | None, given: int
    ) -> list[Fold]:
        if groups is not None and len(rows) != given:
            msg = f"groups need rows of a weight above zero, but {given - len(rows)} have none; drop them"
            raise InputError(msg)
        splitter = check_cv(self.cv, rows.target, classifier=classes is not None)
        folds = list(splitter.split(rows.inputs, rows.target, groups))
        if not folds:
            msg = f"cv must give one split or more, got none from {self.cv!r}"
            raise InputError(msg)
        return folds


@final
@dataclass(frozen=True, eq=False)
class _Scorer:
    """A scorer of scikit-learn on modules.

    Attributes:
        estimator: what the scorer asks for predictions, once it is given a module.
        scorer: called with an estimator, inputs and target.
        task: the loss.
    """

    estimator: _LassoMLP
    scorer: Callable[..., float]
    task: Task

    def __call__(self, module: nn.Module, rows: Rows) -> float:
        """Return the score of a module on rows."""
        fitted = copy.copy(self.estimator)
        fitted.__dict__.pop("feature_names_in_", None)  # the rows of a fold are arrays, checked before
        fitted.module_, fitted.task_ = module, self.task
        coded = self.task.kind in ("binary", "multiclass")
        target = fitted.classes_[rows.target] if coded else rows.target
        return float(self.scorer(fitted, rows.inputs, target))


def _checked_strengths(strengths: object) -> int | list[float]:
    """Return how many strengths are asked for, or the strengths, ascending."""
    what = "a whole number of 1 or more, or strengths of 0 or more"
    if is_whole(strengths):
        require(strengths >= 1, "strengths", what, strengths)
        return int(strengths)
    listed = list(strengths) if isinstance(strengths, Iterable) and not isinstance(strengths, str) else []
    good = [float(strength) for strength in listed if is_real(strength) and 0 <= strength < np.inf]
    require(len(good) == len(listed) > 0, "strengths", what, strengths)
    return sorted(set(good))
