"""The strength chosen over folds of the training rows, and the model fitted to all of them at it."""

from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from torchlasso.certify import certificate
from torchlasso.cross_validation import Fold, cross_validate, make_fitter, path_at
from torchlasso.errors import InputError
from torchlasso.estimators_rows import Rows
from torchlasso.fit.fitter import Fit, Fitter
from torchlasso.fit.run import threads_for
from torchlasso.fit.settings import Progress, Settings, Silent
from torchlasso.path import Path, PathPoint, strength_grid
from torchlasso.tasks import Task

_SMALLEST = 1e-3  # the path begins at this fraction of the largest strength, as scikit-learn's LassoCV does


@final
@dataclass(frozen=True, eq=False)
class FoldedPath:
    """A path over all training rows that the folds have judged.

    Attributes:
        fitter: the model and all training rows.
        dense: the unregularised model.
        path: the points of all rows, each with the losses of the folds in place of validation losses.
        chosen: the point that the one-standard-error rule takes.
    """

    fitter: Fitter
    dense: nn.Module
    path: Path
    chosen: PathPoint


def fit_folds(
    rows: Rows, task: Task, settings: Settings, folds: int, progress: Progress | None = None
) -> Fit:
    """Choose the strength over folds and fit to all rows at it; nothing is left over to judge a refit on.

    Args:
        rows: to train on.
        task: the loss.
        settings: the shape and the penalty.
        folds: how many, 2 to the number of rows.
        progress: whom to tell.

    Raises:
        InputError: that many folds cannot be made, or no strength has a finite error.
    """
    found = walk_folds(rows, task, settings, folds, progress)
    fitter, strength = found.fitter, found.chosen.strength
    with threads_for(torch.from_numpy(rows.inputs), settings):
        fitter.model.load_state_dict(found.chosen.state)
        fitter.settle(strength)
        report = certificate(
            fitter.model, fitter.regularizer.with_strength(strength), task.loss, fitter.train
        )
    module = fitter.finished()
    return Fit(module, found.dense, strength, "one standard error", report, found.path, found.chosen)


def walk_folds(
    rows: Rows, task: Task, settings: Settings, folds: int, progress: Progress | None = None
) -> FoldedPath:
    """Walk one path over all rows and one a fold at the same strengths, and choose among them.

    Args:
        rows: to train on.
        task: the loss.
        settings: the shape and the penalty.
        folds: how many, 2 to the number of rows.
        progress: whom to tell.

    Raises:
        InputError: that many folds cannot be made, or no strength has a finite error.
    """
    parts = deal(rows.target, folds, stratified=task.kind != "regression", seed=settings.seed)
    progress = progress or Silent()
    with threads_for(torch.from_numpy(rows.inputs), settings):
        fitter = make_fitter(rows, None, task, settings)
        fitter.progress = progress
        dense = fitter.fit_dense()
        strengths = strength_grid(fitter.limit(), _SMALLEST, settings.budget.points)
        progress.stage(f"path of strengths and {folds} folds", folds + 1)
        points = path_at(fitter, strengths)
        progress.advance()
    errors = cross_validate(rows, task, settings, strengths, parts)
    progress.advance(folds)
    losses = torch.from_numpy(errors.errors)
    judged = tuple(replace(point, valid_losses=losses[:, i]) for i, point in enumerate(points))
    return FoldedPath(fitter, dense, Path(judged), judged[errors.best("1se")])


def deal(target: NDArray[Any], folds: int, *, stratified: bool, seed: int) -> list[Fold]:
    """Deal rows to folds at random, each row left out once and every class in proportion.

    Args:
        target: of each row.
        folds: how many, 2 to the number of rows.
        stratified: deal one class after the other; a class of two rows or more is then trained on in
            every fold.
        seed: the same seed gives the same folds.

    Returns:
        For each fold the rows to train on and those left out, ascending.

    Raises:
        InputError: there are fewer than two folds, or fewer rows than folds.

    Example:
        >>> [left.tolist() for _, left in deal(np.array([0, 0, 1, 1]), 2, stratified=True, seed=0)]
        [[1, 2], [0, 3]]
    """
    if not 2 <= folds <= len(target):
        msg = f"the folds (--cv) must be 2 to {len(target):,}, the rows that are not for testing; got {folds}"
        raise InputError(msg)
    order = np.random.RandomState(seed).permutation(len(target))
    if stratified:
        order = order[np.argsort(target[order], kind="stable")]
    lefts = [np.sort(order[fold::folds]) for fold in range(folds)]
    return [(np.setdiff1d(order, left), left) for left in lefts]
