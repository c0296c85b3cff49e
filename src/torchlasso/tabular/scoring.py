"""Scores of a model on parts of a table, with their standard error."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, r2_score
from torch import nn

from torchlasso.tabular.encoding import Encoder
from torchlasso.tabular.predictor import Predictor

Part = tuple[NDArray[np.float32], NDArray[Any]]
"""Encoded rows and their encoded target."""


@dataclass(frozen=True)
class Scorer:
    """Accuracy for classes, R² for quantities.

    Attributes:
        encoder: of the table.
        parts: ``"train"``, ``"test"`` and perhaps ``"valid"``.
    """

    encoder: Encoder
    parts: dict[str, Part]

    @property
    def metric(self) -> str:
        """The name of the score."""
        return "R2" if self.encoder.task == "regression" else "accuracy"

    def scores(self, module: nn.Module) -> dict[str, float | None]:
        """Return the score on every part, the standard error on the test part, and train minus test.

        Args:
            module: from encoded rows to outputs.
        """
        predicted = {name: self._predict(module, inputs) for name, (inputs, _) in self.parts.items()}
        result: dict[str, float | None] = {"valid": None}
        for name, (_, target) in self.parts.items():
            result[name] = self._score(target, predicted[name])
        train, test = result["train"], result["test"]
        result["test_se"] = standard_error(self._test_rows(predicted["test"]))
        result["gap"] = None if train is None or test is None else train - test
        return result

    def difference_se(self, one: nn.Module, other: nn.Module) -> float | None:
        """Return the standard error of the difference of two test scores.

        Both models are scored on the same rows, so their scores rise and fall together; the spread of the
        rows' own differences is what counts.

        Args:
            one: a model.
            other: another model.
        """
        inputs, _ = self.parts["test"]
        first, second = (self._test_rows(self._predict(module, inputs)) for module in (one, other))
        return None if first is None or second is None else standard_error(first - second)

    def _predict(self, module: nn.Module, inputs: NDArray[np.float32]) -> NDArray[Any]:
        predictor = Predictor(self.encoder, module)
        return predictor.decide(predictor.outputs(inputs))

    def _score(self, target: NDArray[Any], predicted: NDArray[Any]) -> float | None:
        if self.encoder.task == "classification":
            return float(accuracy_score(target, predicted))
        # R² compares with the mean of the rows: it takes two rows that differ, and finite predictions.
        if len(target) < 2 or not np.var(target) or not np.isfinite(predicted).all():
            return None
        return float(r2_score(target, predicted))

    def _test_rows(self, predicted: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return the test rows' own scores, whose mean is the score, or None if there is none."""
        _, target = self.parts["test"]
        if self._score(target, predicted) is None:
            return None
        rows: NDArray[np.float64]
        if self.encoder.task == "classification":
            rows = (target == predicted).astype(np.float64)
        else:
            rows = 1 - np.square(target - predicted) / np.var(target)
        return rows


def standard_error(rows: NDArray[np.float64] | None) -> float | None:
    """Return the standard error of a mean, or None for fewer than two rows.

    Args:
        rows: the values.

    Example:
        >>> standard_error(np.array([0.0, 2.0]))
        1.0
    """
    if rows is None or len(rows) < 2:
        return None
    return float(rows.std(ddof=1)) / math.sqrt(len(rows))
