"""Metrics and paths as a fit writes them, for every test of the monitor."""

from collections.abc import Callable

import pytest
from monitor_samples import NAMES, Metrics, features, layer, walk


@pytest.fixture
def path() -> list[Metrics]:
    return walk()


@pytest.fixture
def metrics() -> Metrics:
    """A classification in which the sparse network wins."""
    return {
        "torchlasso": "0.1.0",
        "table": {
            "source": "breast_cancer",
            "rows": 569,
            "columns": 17,
            "target": "diagnosis",
            "task": "classification",
            "classes": ["benign", "malignant"],
            "notes": ["column 'id' dropped: every value is different (looks like an identifier)"],
        },
        "split": {"train": 341, "valid": 114, "test": 114, "seed": 0, "test_source": "20% of the rows"},
        "model": {"hidden": [64, 32], "penalty": "l1", "parameters": 3234},
        "strength": {"value": 0.0289, "chosen_by": "one standard error", "max": 0.31},
        "metric": "accuracy",
        "scores": {
            "sparse": {"train": 0.984, "valid": 0.9737, "test": 0.9737, "test_se": 0.015, "gap": 0.0103},
            "dense": {"train": 1.0, "valid": 0.9649, "test": 0.9561, "test_se": 0.0192, "gap": 0.0439},
            "difference_se": 0.0244,
        },
        "refit": {"used": True, "valid_loss_penalised": 0.104, "valid_loss_refit": 0.083},
        "weights": {
            "nonzero": 98,
            "total": 3136,
            "layers": [
                layer("hidden.0", 64, 16, 60, (50, 7)),
                layer("hidden.1", 32, 64, 31, (24, 50)),
                layer("output", 2, 32, 7, (0, 24)),
            ],
        },
        "features": features(NAMES, 9),
        "certificate": {
            "residual": 0.00312,
            "slack": 0.0214,
            "rows": [
                {"name": "hidden.0.weight", "residual": 0.00312, "slack": 0.0514},
                {"name": "hidden.1.weight", "residual": 0.0017, "slack": 0.0214},
                {"name": "output.weight", "residual": 0.0004, "slack": None},
            ],
        },
        "seconds": 7.94,
    }


@pytest.fixture
def regression(metrics: Metrics) -> Metrics:
    """A regression with a given strength, in which the ordinary network wins and nothing has a slack."""
    metrics["table"] |= {"source": "diabetes.csv", "target": "progression", "task": "regression"}
    metrics["table"] |= {"classes": None, "notes": []}
    metrics["metric"] = "R2"
    metrics["strength"] = {"value": 0.05, "chosen_by": "given", "max": None}
    metrics["scores"] = {
        "sparse": {"train": 0.551, "valid": 0.482, "test": 0.4471, "test_se": 0.061, "gap": 0.1039},
        "dense": {"train": 0.562, "valid": 0.471, "test": 0.4632, "test_se": 0.065, "gap": 0.0988},
        "difference_se": 0.0891,
    }
    metrics["refit"] = {"used": False, "valid_loss_penalised": 0.51, "valid_loss_refit": 0.54}
    metrics["certificate"]["slack"] = None
    return metrics


@pytest.fixture
def with_features(metrics: Metrics) -> Callable[[list[str], int], Metrics]:
    """Exchange the features: names, and how many of them are selected."""

    def change(names: list[str], selected: int) -> Metrics:
        metrics["features"] = features(names, selected)
        metrics["table"]["columns"] = len(names) + 1
        return metrics

    return change
