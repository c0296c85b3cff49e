"""The rows of an estimator between scikit-learn's checks and torch: inputs, targets and weights."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor

from torchlasso.errors import InputError
from torchlasso.sparse_rows import from_scipy


@dataclass(frozen=True, eq=False)
class Rows:
    """Validated rows.

    Attributes:
        inputs: ``[n, p]``, a numpy array or a SciPy matrix in CSR form.
        target: ``[n]`` or ``[n, k]``.
        weights: positive weights ``[n]``, or None for 1.
    """

    inputs: Any
    target: NDArray[Any]
    weights: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.target)

    def take(self, chosen: NDArray[Any]) -> "Rows":
        """Return some of the rows.

        Args:
            chosen: their numbers, or a mask.
        """
        weights = None if self.weights is None else self.weights[chosen]
        return Rows(self.inputs[chosen], self.target[chosen], weights)

    def without_weightless(self) -> "Rows":
        """Return the rows whose weight is not zero; the others are as good as not there.

        Raises:
            InputError: that leaves less than two.
        """
        if self.weights is None or bool((self.weights > 0).all()):
            return self
        kept = self.take(np.flatnonzero(self.weights > 0))
        if len(kept) < 2:
            msg = f"sample_weight must leave two rows or more with a weight above zero, got {len(kept)}"
            raise InputError(msg)
        return kept


def checked_weights(sample_weight: ArrayLike | None, inputs: Any) -> NDArray[Any] | None:
    """Return the weights of the rows, in float64.

    Args:
        sample_weight: one number a row, one number for all, or None.
        inputs: the rows.

    Raises:
        InputError: a negative weight.
    """
    if sample_weight is None:
        return None
    weights: NDArray[Any] = np.asarray(_check_sample_weight(sample_weight, inputs, dtype=np.float64))
    if bool((weights < 0).any()):
        msg = "sample_weight must be zero or more, got negative weights"
        raise InputError(msg)
    return weights


def tensors_of(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return inputs and target as torch tensors, the weights scaled to mean 1."""
    weights = None if rows.weights is None else rows.weights / rows.weights.mean()
    return as_tensors(Rows(rows.inputs, rows.target, weights))


def as_tensors(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return inputs and target as torch tensors, the weights as they are as the target's last column.

    Args:
        rows: validated rows.
    """
    inputs = from_scipy(rows.inputs) if issparse(rows.inputs) else torch.tensor(rows.inputs)
    target = torch.tensor(rows.target)
    if rows.weights is None:
        return inputs, target
    weights = torch.tensor(rows.weights)[:, None]
    return inputs, torch.cat([target.reshape(len(target), -1).double(), weights], dim=1)


def split_rows(
    rows: NDArray[Any], fraction: float, stratify: NDArray[Any] | None, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Hold out a part of the rows, every class in both parts where there are enough rows."""
    if stratify is not None:
        classes, counts = np.unique(stratify, return_counts=True)
        smaller = min(fraction, 1 - fraction) * len(rows)
        stratify = stratify if counts.min() >= 2 and smaller >= len(classes) else None
    first, second = train_test_split(rows, test_size=fraction, random_state=seed, stratify=stratify)
    return first, second
