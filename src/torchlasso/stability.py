"""Stability selection: features that a selection finds again in random halves of the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_consistent_length

from torchlasso.errors import InputError
from torchlasso.groups import normalise_groups
from torchlasso.importance import Floats, fitted_entry, fitted_norms
from torchlasso.selection import check_between, check_count, column_names, one_thread, seeded
from torchlasso.stability_bounds import pfer_bound, pfer_bound_r_concave
from torchlasso.tables import render_table

Columns = tuple[tuple[int, ...], ...]


@final
@dataclass(frozen=True, eq=False)
class StabilitySelection:
    """How often each feature was selected.

    Attributes:
        names: of the features (column names of a DataFrame, else indices), or the numbers of the groups.
        probabilities: the share of the halves that selected a feature, ``[p]``.
        threshold: the share that a feature must reach.
        average: how many features a half selected on average.
        pairs: how many pairs of halves there were.
    """

    names: NDArray[Any]
    probabilities: Floats
    threshold: float
    average: float
    pairs: int

    @property
    def selected(self) -> NDArray[Any]:
        """The features whose probability reaches the threshold: names or indices."""
        return self.names[self._reached]

    @property
    def pfer(self) -> float:
        """The bound on the expected number of features selected in error: ``q²/((2τ − 1)·p)``.

        "In error" are features that a half selects no more often than a draw by lot would.
        """
        return pfer_bound(self.average, len(self.names), self.threshold)

    @property
    def pfer_r_concave(self) -> float:
        """The tighter bound, under a mild assumption: see ``pfer_bound_r_concave``."""
        return pfer_bound_r_concave(self.average, len(self.names), self.threshold, self.pairs)

    def at(self, threshold: float) -> "StabilitySelection":
        """Return the same selections read at another threshold.

        Args:
            threshold: above a half, at most 1.

        Raises:
            InputError: it is not.
        """
        threshold = _check_threshold(threshold)
        return StabilitySelection(self.names, self.probabilities, threshold, self.average, self.pairs)

    def table(self) -> str:
        """Return a row for each feature, the most stable first, as plain text."""
        order = np.argsort(-self.probabilities, kind="stable")
        kept = self._reached
        rows = [(self.names[j], float(self.probabilities[j]), "yes" if kept[j] else "no") for j in order]
        return render_table(["feature", "probability", "selected"], rows)

    @property
    def _reached(self) -> NDArray[np.bool_]:
        return self.probabilities >= self.threshold - 1e-9  # 0.6 of 100 halves is reached by 60 of them


def stability_selection(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    first: int | None = None,
    threshold: float = 0.75,
    pairs: int = 50,
    groups: Sequence[Sequence[int]] | None = None,
    n_jobs: int | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> StabilitySelection:
    """Select the features that are found again in most random halves of the rows.

    The rows are split into two disjoint halves, ``pairs`` times, and the estimator is fitted on each half.
    A feature is kept if the share of halves that selected it reaches the threshold.

    The expected number of features kept in error is at most ``q²/((2·threshold − 1)·p)``, with ``q`` the
    number that a half selects on average, out of ``p``.  That asks nothing of the estimator or of the data
    beyond independent rows.  For an expected number of one take ``q = √((2·threshold − 1)·p)``.

    The result is the same whatever ``n_jobs`` and joblib's backend.

    Args:
        estimator: unfitted, with ``module_`` or ``coef_`` after fitting; with ``first``, with ``path_``
            (``strength="auto"``), or scikit-learn's ``LassoLars``.
        X: ``[n, p]``.
        y: ``[n]``, what the estimator takes.
        first: ``q``: a half selects the first so many features on its path, those in use at the largest
            strengths.  Without it, what the estimator uses at its own strength.
        threshold: above a half, at most 1.
        pairs: how many times the rows are split.
        groups: lists of column indices, every column once; groups are then selected instead of columns.
        n_jobs: of joblib.
        random_state: of the halves and the fits.

    Raises:
        InputError: an argument cannot be used; the data are checked as scikit-learn does.

    Example:
        >>> from sklearn.linear_model import LassoLars
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(100, 50))
        >>> y = X[:, :3].sum(axis=1) + rng.normal(size=100)
        >>> found = stability_selection(LassoLars(alpha=0.0), X, y, first=5, random_state=0)
        >>> found.selected, round(found.pfer, 6)
        (array([0, 1, 2]), 1.0)

    References:
        Meinshausen and Bühlmann, "Stability selection", J. R. Stat. Soc. B 72 (2010); complementary pairs:
        Shah and Samworth, J. R. Stat. Soc. B 75 (2013).
    """
    names, inputs = column_names(X), check_array(X, dtype=[np.float64, np.float32], ensure_min_samples=4)
    target = np.asarray(y)
    check_consistent_length(inputs, target)
    columns = _columns(groups, inputs.shape[1])
    if groups is not None:
        names = np.arange(len(columns))
    threshold = _check_threshold(threshold)
    pairs = check_count(pairs, 2, 1_000_000, "pairs")
    most = None if first is None else check_count(first, 1, len(columns), "first")
    generator = check_random_state(random_state)
    halves = [half for _ in range(pairs) for half in _halves(len(inputs), generator)]
    seeds = generator.randint(2**31 - 1, size=2 * pairs)
    # The rows of a half go as one tuple: Dask would store a bare array on one worker, and lose it with that.
    chosen = Parallel(n_jobs=n_jobs)(
        delayed(_select)(seeded(clone(estimator), int(seed)), (inputs[half], target[half]), columns, most)
        for half, seed in zip(halves, seeds, strict=True)
    )
    table = np.stack(list(chosen))
    return StabilitySelection(names, table.mean(axis=0), threshold, float(table.sum(axis=1).mean()), pairs)


def _select(
    estimator: Any, rows: tuple[Floats, NDArray[Any]], columns: Columns, first: int | None
) -> NDArray[np.bool_]:
    """Fit on one half and return which groups of columns it selects."""
    with one_thread():
        estimator.fit(*rows)
    width = rows[0].shape[1]
    if first is None:
        used = fitted_norms(estimator, width) > 0
        return np.array([used[list(group)].any() for group in columns])
    entry, norm = fitted_entry(estimator, width)
    of_group = np.array([entry[list(group)].max() for group in columns])
    size = np.array([norm[list(group)].max() for group in columns])
    order = np.lexsort((-size, -of_group))[:first]
    selected = np.zeros(len(columns), dtype=bool)
    selected[order] = of_group[order] > 0  # fewer than asked for, if fewer are ever in use
    return selected


def _halves(rows: int, generator: np.random.RandomState) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    order, half = generator.permutation(rows), rows // 2
    return np.sort(order[:half]), np.sort(order[half : 2 * half])


def _columns(groups: Sequence[Sequence[int]] | None, count: int) -> Columns:
    if groups is None:
        return tuple((j,) for j in range(count))
    checked = normalise_groups(groups)
    if not isinstance(checked, tuple) or sorted(j for group in checked for j in group) != list(range(count)):
        msg = f"groups must be lists of column indices with each of 0 to {count - 1} once, got {groups!r}"
        raise InputError(msg)
    return checked


def _check_threshold(threshold: float) -> float:
    return 1.0 if threshold == 1 else check_between(threshold, 0.5, 1, "threshold", "or 1")
