"""Which features a model uses, how strongly, and up to which strength: of a path or of a fitted estimator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.path import Path
from torchlasso.tables import render_table

Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class FeatureImportance:
    """How strongly each feature is used at every strength of a path.

    Attributes:
        names: of the features.
        strengths: λ, ascending, ``[k]``.
        norms: ``[k, p]``: the Euclidean norm of the weights that read a feature, 0 where it is not used.
    """

    names: tuple[str, ...]
    strengths: Floats
    norms: Floats

    @property
    def entry(self) -> Floats:
        """The largest strength at which each feature is used, 0 for one that never is, ``[p]``."""
        used = np.where(self.norms > 0, self.strengths[:, None], 0.0)
        return np.asarray(used.max(axis=0, initial=0.0), dtype=np.float64)

    @property
    def order(self) -> NDArray[np.intp]:
        """The features from the one that stays longest; ties by the norm where they are last used."""
        entry = self.entry
        last = np.searchsorted(self.strengths, entry).clip(max=len(self.strengths) - 1)
        norm = self.norms[last, np.arange(len(entry))]
        return np.lexsort((np.arange(len(entry)), -norm, -entry))

    def table(self) -> str:
        """Return a row for each feature, the longest used first, as plain text."""
        entry = self.entry
        dense = self.norms[0]  # at the smallest strength
        rows = [(self.names[j], float(entry[j]), float(dense[j])) for j in self.order]
        return render_table(["feature", "used up to strength", "norm at the smallest"], rows)


def feature_importance(
    path: Path, names: Sequence[str] | None = None, *, weight: str | None = None
) -> FeatureImportance:
    """Return the importance of every feature at every strength of a path.

    A feature is used where weights of the first layer that read it are nonzero and lead to an output; its
    norm is that of those weights.

    Args:
        path: of an estimator (``path_``), or of any module.
        names: of the features; ``x0``, ``x1``, … if not given.
        weight: the name of the parameter whose dimension 1 are the features.  Needed unless the module is
            a stack of fully connected layers; what the layers behind it do is then not looked at.

    Raises:
        InputError: the path is empty, there is no such parameter, or the names are too few or too many.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> from torchlasso import LassoMLPRegressor
        >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
        >>> path = LassoMLPRegressor(hidden_layer_sizes=(), random_state=0).fit(X, y).path_
        >>> importance = feature_importance(path, list(X.columns))
        >>> [importance.names[j] for j in importance.order[:3]]
        ['bmi', 's5', 'bp']
    """
    points = sorted(path.points, key=lambda point: point.strength)
    if not points:
        msg = "the path has no points; fit with more than zero strengths"
        raise InputError(msg)
    norms = np.stack([_input_norms(point.state, weight) for point in points])
    count = norms.shape[1]
    shown = tuple(f"x{j}" for j in range(count)) if names is None else tuple(names)
    if len(shown) != count:
        msg = f"names must be one for each of {count} features, got {len(shown)}"
        raise InputError(msg)
    return FeatureImportance(shown, np.array([point.strength for point in points]), norms)


def fitted_norms(estimator: Any, columns: int) -> Floats:
    """Return how strongly a fitted estimator uses each column, ``[columns]``, 0 where it does not.

    Args:
        estimator: with ``module_`` (ours) or ``coef_`` (scikit-learn's linear models), or a pipeline that
            ends in one.
        columns: how many it was fitted on.

    Raises:
        InputError: it has neither, or its last step saw another number of columns.
    """
    last = _last_step(estimator)
    if hasattr(last, "module_"):
        return _checked(_input_norms(last.module_.state_dict(), None), columns)
    if hasattr(last, "coef_"):
        coef = np.asarray(last.coef_, dtype=np.float64)
        return _checked(np.sqrt(np.square(np.atleast_2d(coef)).sum(axis=0)), columns)
    msg = f"the estimator must have module_ or coef_ when it is fitted, got {type(last).__name__}"
    raise InputError(msg)


def fitted_entry(estimator: Any, columns: int) -> tuple[Floats, Floats]:
    """Return, for each column, the largest strength at which it is used, and its norm there.

    Args:
        estimator: with ``path_`` (ours, with its strength chosen) or with ``alphas_`` and ``coef_path_``
            (scikit-learn's ``LassoLars``), or a pipeline that ends in one.
        columns: how many it was fitted on.

    Raises:
        InputError: it has no path, or its last step saw another number of columns.
    """
    last = _last_step(estimator)
    if getattr(last, "path_", None) is not None:
        importance = feature_importance(last.path_)
    elif hasattr(last, "coef_path_"):
        ascending = np.asarray(last.coef_path_, dtype=np.float64).T[::-1]
        strengths = np.asarray(last.alphas_, dtype=np.float64)[::-1]
        importance = FeatureImportance((), strengths, np.abs(ascending))
    else:
        msg = (
            f"the estimator must have a path when it is fitted, but {type(last).__name__} has none; use "
            "strength='auto', or scikit-learn's LassoLars"
        )
        raise InputError(msg)
    entry = _checked(importance.entry, columns)
    place = np.searchsorted(importance.strengths, entry).clip(max=len(importance.strengths) - 1)
    return entry, importance.norms[place, np.arange(columns)]


def _last_step(estimator: Any) -> Any:
    return estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator


def _checked(values: Floats, columns: int) -> Floats:
    if values.shape != (columns,):
        msg = (
            f"the estimator must see all {columns} columns as they are, but its last step saw {len(values)}; "
            "transform the columns before"
        )
        raise InputError(msg)
    return values


@torch.no_grad()
def _input_norms(state: Mapping[str, Tensor], weight: str | None) -> Floats:
    """Return the norms of the weights that read each input, without those that lead nowhere."""
    if weight is not None:
        if weight not in state or state[weight].ndim < 2:
            msg = f"weight must name a parameter of two dimensions or more, got {weight!r}; there are "
            raise InputError(msg + ", ".join(name for name, tensor in state.items() if tensor.ndim >= 2))
        return _norms(state[weight].transpose(0, 1).flatten(1).T)
    layers = [tensor for tensor in state.values() if tensor.ndim == 2]
    stacked = all(a.shape[0] == b.shape[1] for a, b in pairwise(layers))
    if not layers or not stacked or any(tensor.ndim > 2 for tensor in state.values()):
        msg = "the module is no stack of fully connected layers; name the parameter that reads the features"
        raise InputError(msg + " with weight=...")
    read = torch.ones(layers[-1].shape[0], dtype=torch.bool)
    for layer in reversed(layers[1:]):
        read = (layer.cpu()[read] != 0).any(dim=0)
    return _norms(layers[0].cpu()[read])


def _norms(matrix: Tensor) -> Floats:
    """Return the norm of each column; exactly 0 only for a column of zeros, however small its entries."""
    wide = matrix.detach().cpu().double()
    norms: Floats = wide.norm(dim=0).clamp_min(0.0).numpy()
    tiny = torch.finfo(torch.float64).tiny
    return np.where((wide != 0).any(dim=0).numpy(), np.maximum(norms, tiny), 0.0)
