"""The scores are those of scikit-learn, their errors those of the textbook."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score
from torch import nn

from torchlasso.tabular.encoding import Encoder
from torchlasso.tabular.scoring import Part, Scorer


def encoder(target: list[object]) -> Encoder:
    values = np.arange(len(target)) * 1.5 + 0.25
    return Encoder.fit(pl.DataFrame({"x": values, "y": target}), "y")


def fixed(outputs: list[list[float]]) -> tuple[nn.Module, np.ndarray]:
    """Return a module and rows for which it gives these outputs."""
    wanted = torch.tensor(outputs, dtype=torch.float64)
    module = nn.Linear(len(wanted), wanted.shape[1], bias=False, dtype=torch.float64)
    module.weight.data.copy_(wanted.T)
    return module, np.eye(len(wanted), dtype=np.float32)


def test_a_regression_is_scored_by_r2() -> None:
    generator = np.random.default_rng(0)
    target = generator.normal(5, 2, 40)
    predicted = target + generator.normal(0, 1, 40)
    module, rows = fixed(predicted[:, None].tolist())
    parts: dict[str, Part] = {"train": (rows[:30], target[:30]), "test": (rows[30:], target[30:])}
    scorer = Scorer(encoder([0.5, 1.5, 2.5]), parts)
    scores = scorer.scores(module)
    assert scorer.metric == "R2"
    assert scores["valid"] is None
    assert scores["train"] == pytest.approx(r2_score(target[:30], predicted[:30]))
    assert scores["test"] == pytest.approx(r2_score(target[30:], predicted[30:]))
    assert scores["gap"] == pytest.approx(scores["train"] - scores["test"])  # type: ignore[operator]
    errors = (target[30:] - predicted[30:]) ** 2 / target[30:].var()
    assert scores["test_se"] == pytest.approx(errors.std(ddof=1) / math.sqrt(10))


def test_two_classes_share_one_output() -> None:
    module, rows = fixed([[2.0], [-1.0], [0.5], [-0.1], [3.0]])
    target = np.array([1, 0, 0, 0, 1])
    scorer = Scorer(
        encoder(["no", "yes", "no"]),
        {"train": (rows, target), "test": (rows[:4], target[:4]), "valid": (rows, target)},
    )
    scores = scorer.scores(module)
    assert scorer.metric == "accuracy"
    assert scores["train"] == scores["valid"] == accuracy_score(target, [1, 0, 1, 0, 1]) == 0.8
    assert scores["test"] == 0.75
    assert scores["gap"] == pytest.approx(0.05)
    assert scores["test_se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 3))


def test_several_classes_take_the_largest_output() -> None:
    module, rows = fixed([[1.0, 2.0, 0.0], [3.0, 2.0, 1.0], [0.0, 0.0, 0.1]])
    target = np.array([1, 2, 2])
    scores = Scorer(encoder(["a", "b", "c"]), {"train": (rows, target), "test": (rows, target)}).scores(
        module
    )
    assert scores["test"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "target",
    [np.array([1.0]), np.array([2.0, 2.0, 2.0]), np.array([1e-300, 2e-300, 3e-300])],
    ids=["one row", "constant", "below what floats can square"],
)
def test_no_score_where_r2_has_no_meaning(target: np.ndarray) -> None:
    module, rows = fixed([[1.0]] * len(target))
    good = (np.eye(len(target), dtype=np.float32), np.arange(len(target)) + 0.5)
    scores = Scorer(encoder([0.5, 1.5, 2.5]), {"train": good, "test": (rows, target)}).scores(module)
    assert scores["test"] is scores["test_se"] is scores["gap"] is None


def test_no_score_for_predictions_that_are_no_numbers() -> None:
    module, rows = fixed([[1.0], [float("inf")], [2.0]])
    target = np.array([1.0, 2.0, 3.0])
    scores = Scorer(encoder([0.5, 1.5, 2.5]), {"train": (rows, target), "test": (rows, target)}).scores(
        module
    )
    assert scores["train"] is scores["test_se"] is None


def test_the_error_of_a_difference_pairs_the_rows() -> None:
    better, rows = fixed([[2.0], [-1.0], [0.5], [0.1]])
    worse, _ = fixed([[2.0], [-1.0], [-0.5], [0.1]])
    target = np.array([1, 0, 1, 0])  # one is right on rows 0, 1 and 2, the other on rows 0 and 1
    scorer = Scorer(encoder(["no", "yes", "no"]), {"train": (rows, target), "test": (rows, target)})
    assert scorer.difference_se(better, worse) == pytest.approx(np.std([0, 0, 1, 0], ddof=1) / 2)
    assert scorer.difference_se(better, better) == 0.0
