"""Cross-validation of the strength: the same strengths in every fold, one warm-started path a fold."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import nn

from torchlasso.errors import InputError
from torchlasso.estimators_rows import Rows, tensors_of
from torchlasso.fit.fitter import Fitter
from torchlasso.fit.linear import LinearFitter
from torchlasso.fit.network import NetworkFitter
from torchlasso.fit.settings import Settings, Silent
from torchlasso.path import PathPoint, Rule, walk
from torchlasso.selection import one_thread
from torchlasso.tables import render_table
from torchlasso.tasks import Task

_SETTLING = 4  # times the steps of a point: what a fold judges is to be near what all rows will end as
_TOLERANCE = 1e-4  # KKT residual along a linear path, relative to the strength

Floats = NDArray[np.float64]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
"""The numbers of the rows to train on and to measure on."""

Score = Callable[[nn.Module, Rows], float]
"""How good a model is on rows: larger is better."""


@final
@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The error of every strength in every fold.

    Attributes:
        strengths: λ, ascending, ``[k]``.
        errors: ``[folds, k]``: the mean loss on the rows left out, or minus the score.
    """

    strengths: Floats
    errors: Floats

    @property
    def mean(self) -> Floats:
        """The mean of the folds' errors, ``[k]``; every fold counts the same."""
        return np.asarray(self.errors.mean(axis=0), dtype=np.float64)

    @property
    def se(self) -> Floats:
        """The standard error of the mean: the folds' standard deviation over ``√folds``; 0 for one fold."""
        folds = len(self.errors)
        if folds == 1:
            return np.zeros(len(self.strengths))
        with np.errstate(invalid="ignore"):  # where a fold diverged the error is NaN, and so it shall be
            return np.asarray(self.errors.std(axis=0, ddof=1) / np.sqrt(folds), dtype=np.float64)

    def best(self, rule: Rule = "1se") -> int:
        """Return the index of the strength to take.

        ``"min"`` takes the lowest mean, of equal ones the largest strength; ``"1se"`` the largest strength
        whose mean is at most one standard error of the lowest above it.  A strength without a finite mean
        is never taken.

        Args:
            rule: ``"min"`` or ``"1se"``.

        Raises:
            InputError: no strength has a finite error, or the rule is neither.

        Example:
            >>> errors = np.array([[1.0, 0.8, 0.95, 2.0], [1.2, 1.2, 1.05, 2.2]])
            >>> cv = CrossValidation(np.array([0.1, 0.2, 0.4, 0.8]), errors)
            >>> cv.best("min"), cv.best("1se")
            (2, 2)

        References:
            Breiman, Friedman, Olshen and Stone, "Classification and regression trees" (1984).
        """
        if rule not in ("min", "1se"):
            msg = f"selection must be 'min' (lowest error) or '1se' (the sparsest as good), got {rule!r}"
            raise InputError(msg)
        mean = np.where(np.isfinite(self.mean), self.mean, np.inf)
        if not len(mean) or mean.min() == np.inf:
            msg = "no strength has a finite error in all folds; standardise the inputs, or use fewer folds"
            raise InputError(msg)
        lowest = int(np.flatnonzero(mean == mean.min())[-1])
        if rule == "min":
            return lowest
        return int(np.flatnonzero(mean <= mean[lowest] + self.se[lowest])[-1])

    def table(self) -> str:
        """Return a row for each strength as plain text."""
        columns = zip(self.strengths.tolist(), self.mean.tolist(), self.se.tolist(), strict=True)
        return render_table(["strength", "error", "standard error"], columns)


def cross_validate(
    rows: Rows,
    task: Task,
    settings: Settings,
    strengths: Sequence[float],
    folds: Sequence[Fold],
    *,
    score: Score | None = None,
    n_jobs: int | None = None,
) -> CrossValidation:
    """Return the error of each strength on the rows that a fold leaves out.

    Every fold walks one path over the given strengths: a linear model is solved at each of them, a network
    is trained without a penalty and then goes from dense to sparse.  Folds have seeds of their own and use
    one thread each, so the result is the same, bit by bit, whatever ``n_jobs`` and joblib's backend.

    Args:
        rows: all of them.
        task: the loss.
        settings: the shape and the penalty.
        strengths: λ, ascending.
        folds: which rows to train on and which to measure on.
        score: what to measure; the mean loss if not given.
        n_jobs: of joblib.

    Raises:
        InputError: the training rows of a fold lack a class, or hold no count above zero.
    """
    _check_folds(rows, task, folds)
    seeds = np.random.RandomState(settings.seed).randint(2**31 - 1, size=len(folds))
    errors = Parallel(n_jobs=n_jobs)(
        delayed(_errors)(
            rows.take(train), rows.take(test), task, replace(settings, seed=int(seed)), strengths, score
        )
        for (train, test), seed in zip(folds, seeds, strict=True)
    )
    return CrossValidation(np.asarray(strengths, dtype=np.float64), np.stack(list(errors)))


def _check_folds(rows: Rows, task: Task, folds: Sequence[Fold]) -> None:
    """Raise for folds whose training rows cannot teach what the rows left out ask for."""
    coded = task.kind in ("binary", "multiclass")
    for number, (train, _) in enumerate(folds, start=1):
        target = rows.target[train]
        if coded and len(np.unique(target)) < len(np.unique(rows.target)):
            msg = (
                f"the training rows of fold {number} lack one of the classes; shuffle or stratify the folds "
                "(a number for cv does), or leave out classes of very few rows"
            )
            raise InputError(msg)
        if task.kind == "counts" and not np.any(target > 0):
            msg = f"the training rows of fold {number} hold no count above zero; shuffle the folds"
            raise InputError(msg)


def _errors(
    train: Rows, test: Rows, task: Task, settings: Settings, strengths: Sequence[float], score: Score | None
) -> Floats:
    """Return the error of each strength in one fold."""
    with one_thread():
        fitter = make_fitter(train, test, task, settings)
        begin(fitter)
        points = path_at(fitter, strengths)
        if score is None:
            return np.array([point.valid_loss for point in points])
        return np.array([-score(module_at(fitter, point), test) for point in points])


def make_fitter(rows: Rows, valid: Rows | None, task: Task, settings: Settings) -> Fitter:
    """Return what fits a model of these settings to rows.

    Args:
        rows: to train on.
        valid: to measure on; the rows to train on if not given.
        task: the loss.
        settings: the shape and the penalty.
    """
    kind: type[Fitter] = NetworkFitter if settings.hidden else LinearFitter
    return kind(tensors_of(rows), None if valid is None else tensors_of(valid), task, settings, Silent())


def begin(fitter: Fitter) -> float:
    """Bring a model to the start of its path and return the strength at which the path ends empty.

    A network starts trained without a penalty; a linear model starts empty, its path being the same
    from either end.

    Args:
        fitter: a new one.
    """
    if fitter.settings.hidden:
        fitter.fit_dense()
    return fitter.limit()


def path_at(fitter: Fitter, strengths: Sequence[float]) -> list[PathPoint]:
    """Walk over strengths from where ``begin`` left the model, and return a point for each, ascending.

    A network that has no feature left stays what it is at all larger strengths.

    Args:
        fitter: the model and its rows.
        strengths: λ, ascending.
    """
    whole = fitter.budget
    network = bool(fitter.settings.hidden)
    order = strengths if network else strengths[::-1]
    fitter.budget = replace(whole, settle=_SETTLING * whole.point, tolerance=max(whole.tolerance, _TOLERANCE))
    try:
        points = walk(
            fitter.settle, fitter.measure, order, stop=lambda point: network and point.features == 0
        )
    finally:
        fitter.budget = whole
    points += [replace(points[-1], strength=strength) for strength in order[len(points) :]]
    return points if network else points[::-1]


def module_at(fitter: Fitter, point: PathPoint) -> nn.Module:
    """Return a copy of the model at a point of its path, on the CPU and in evaluation mode.

    Args:
        fitter: whose path it is.
        point: of the path.
    """
    module = copy.deepcopy(fitter.model).cpu()
    module.load_state_dict(point.state)
    return module.eval()
