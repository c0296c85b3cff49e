"""The knockoff filter: features selected with a bound on the share of false ones among them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_consistent_length

from torchlasso.errors import InputError
from torchlasso.gaussian_knockoffs import Floats, Method, gaussian_knockoffs
from torchlasso.importance import fitted_entry, fitted_norms
from torchlasso.selection import check_between, column_names, seeded
from torchlasso.tables import render_table

Statistic = Literal["difference", "signed max"]


@final
@dataclass(frozen=True, eq=False)
class KnockoffSelection:
    """What the knockoff filter found.

    Attributes:
        names: of the features: column names of a DataFrame, else indices.
        statistics: ``W``: large and positive where a feature matters more than its copy, ``[p]``.
        threshold: what ``W`` must reach; infinite if nothing can be selected at this level.
        fdr: the level asked for.
    """

    names: NDArray[Any]
    statistics: Floats
    threshold: float
    fdr: float

    @property
    def selected(self) -> NDArray[Any]:
        """The features selected: names or indices."""
        return self.names[self.statistics >= self.threshold]

    @property
    def estimated_fdp(self) -> float:
        """``(1 + #{W ≤ −T}) / #{W ≥ T}``: the estimated share of false features; 0 if none is selected."""
        if not len(self.selected):
            return 0.0
        return (1 + int((self.statistics <= -self.threshold).sum())) / len(self.selected)

    def table(self) -> str:
        """Return a row for each feature, the largest statistic first, as plain text."""
        order = np.argsort(-self.statistics, kind="stable")
        kept = self.statistics >= self.threshold
        rows = [(self.names[j], float(self.statistics[j]), "yes" if kept[j] else "no") for j in order]
        return render_table(["feature", "statistic", "selected"], rows)


def knockoff_threshold(statistics: ArrayLike, fdr: float) -> float:
    """Return the threshold of the knockoff+ filter.

    ``T = min {t > 0 : (1 + #{W_j ≤ −t}) / max(1, #{W_j ≥ t}) ≤ fdr}`` over ``t`` in ``|W|``.  Selecting
    ``W_j ≥ T`` keeps the false discovery rate at ``fdr``, since the signs of null statistics are coin flips.

    Args:
        statistics: ``W``, ``[p]``.
        fdr: the level, between 0 and 1.

    Returns:
        Infinity if no threshold reaches the level: at least ``1/fdr`` features must be selected.

    Raises:
        InputError: the level is not between 0 and 1, or a statistic is not finite.

    Example:
        >>> knockoff_threshold([5.0, 4.0, 3.0, -0.5, 2.0, 0.1], fdr=0.3)
        2.0

    References:
        Barber and Candès, "Controlling the false discovery rate via knockoffs", Ann. Stat. 43 (2015).
    """
    fdr = check_between(fdr, 0, 1, "fdr", "such as 0.1")
    w = np.asarray(statistics, dtype=np.float64)
    if w.ndim != 1 or not np.isfinite(w).all():
        msg = f"the statistics must be a vector of finite numbers, got shape {w.shape}"
        raise InputError(msg)
    t = np.unique(np.abs(w[w != 0]))
    ordered = np.sort(w)
    below = np.searchsorted(ordered, -t, side="right")
    above = len(w) - np.searchsorted(ordered, t, side="left")
    reached = t[1 + below <= fdr * np.maximum(above, 1)]
    return float(reached[0]) if len(reached) else np.inf


def knockoff_filter(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    fdr: float = 0.1,
    statistic: Statistic = "difference",
    covariance: ArrayLike | None = None,
    method: Method = "mvr",
    random_state: int | np.random.RandomState | None = None,
) -> KnockoffSelection:
    """Select features such that the expected share of false ones is at most ``fdr``.

    Every column gets a knockoff copy, which looks like it but has nothing to do with ``y``.  The estimator
    is fitted on columns and copies together, and a feature counts by how much it is preferred to its copy:

    * ``"difference"``: ``W_j = ‖w_j‖ − ‖w̃_j‖``, the weights that read the column and its copy; for a linear
      model the difference of absolute coefficients.
    * ``"signed max"``: ``W_j = max(Z_j, Z̃_j) · sign(Z_j − Z̃_j)``, where ``Z`` is the largest strength of the
      path at which a column is used.

    The guarantee needs no model of ``y``.  It needs independent rows, and columns that are Gaussian, or near
    enough in their first two moments.  The columns are standardised before the fit.

    Args:
        estimator: unfitted, with ``module_`` or ``coef_`` after fitting; for ``"signed max"`` with
            ``path_``, or scikit-learn's ``LassoLars``.
        X: ``[n, p]``.
        y: ``[n]``, what the estimator takes.
        fdr: the level; fewer than ``1/fdr`` features are never selected.
        statistic: how columns and copies are compared.
        covariance: of the columns, if it is known.
        method: ``"mvr"`` or ``"equicorrelated"``, see ``knockoff_diagonal``.
        random_state: of the copies and the estimator.

    Raises:
        InputError: a parameter cannot be used, or a column is constant; the data are checked as
            scikit-learn does.

    Example:
        >>> from sklearn.linear_model import LassoCV
        >>> rng = np.random.default_rng(1)
        >>> X = rng.normal(size=(300, 40))
        >>> y = X[:, :12].sum(axis=1) + rng.normal(size=300)
        >>> knockoff_filter(LassoCV(), X, y, fdr=0.1, random_state=0).selected
        array([ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11])

    References:
        Candès, Fan, Janson and Lv, "Panning for gold: model-X knockoffs for high-dimensional controlled
        variable selection", J. R. Stat. Soc. B 80 (2018).  With networks: Lu, Fan, Lv and Noble,
        "DeepPINK", NeurIPS (2018).
    """
    if statistic not in _STATISTICS:
        msg = f"statistic must be 'difference' or 'signed max', got {statistic!r}"
        raise InputError(msg)
    fdr = check_between(fdr, 0, 1, "fdr", "such as 0.1")  # before a long fit
    names = column_names(X)
    inputs = check_array(X, dtype=np.float64, ensure_min_samples=2)
    check_consistent_length(inputs, y)
    draws = check_random_state(random_state).randint(2**31 - 1, size=2)
    given = None if covariance is None else np.asarray(covariance, dtype=np.float64)
    copies = gaussian_knockoffs(inputs, covariance=given, method=method, seed=int(draws[0]))
    both = np.hstack([inputs, copies])
    half = inputs.shape[1]
    # The same map for a column and its copy, or the fit could tell them apart.
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    both = (both - np.tile(mean, 2)) / np.tile(scale, 2)
    fitted = seeded(clone(estimator), int(draws[1])).fit(both, y)
    statistics = _STATISTICS[statistic](fitted, half)
    return KnockoffSelection(names, statistics, knockoff_threshold(statistics, fdr), fdr)


def _difference(fitted: Any, half: int) -> Floats:
    norms = fitted_norms(fitted, 2 * half)
    return norms[:half] - norms[half:]


def _signed_max(fitted: Any, half: int) -> Floats:
    entry, _ = fitted_entry(fitted, 2 * half)
    first, second = entry[:half], entry[half:]
    return np.maximum(first, second) * np.sign(first - second)


_STATISTICS: Mapping[str, Callable[[Any, int], Floats]] = {
    "difference": _difference,
    "signed max": _signed_max,
}
