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
        result["test_se"] = self._standard_error(self.parts["test"][1], predicted["test"])
        result["gap"] = None if train is None or test is None else train - test
        return result

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

    def _standard_error(self, target: NDArray[Any], predicted: NDArray[Any]) -> float | None:
        """Return the standard error of the test score, from the spread of the rows' own scores."""
        if self._score(target, predicted) is None or len(target) < 2:
            return None
        if self.encoder.task == "classification":
            rows = (target == predicted).astype(float)
        else:
            rows = 1 - np.square(target - predicted) / np.var(target)
        return float(rows.std(ddof=1)) / math.sqrt(len(rows))
