"""The losses are those of torch and of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_squared_error
from torch import nn

from torchlasso.tasks import Task


def test_regression_is_half_the_mean_squared_error() -> None:
    output, target = torch.randn(50, 1, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    loss = Task("regression").loss(output, target)
    torch.testing.assert_close(loss, 0.5 * nn.MSELoss()(output[:, 0], target))
    assert float(loss) == pytest.approx(0.5 * mean_squared_error(target, output[:, 0]))


def test_the_unit_makes_the_loss_independent_of_the_targets_units() -> None:
    output, target = torch.randn(50, 1), torch.randn(50)
    here = Task("regression", unit=3.0).loss(output, target)
    there = Task("regression", unit=3000.0).loss(output * 1000, target * 1000)
    torch.testing.assert_close(here, there)
    torch.testing.assert_close(here * 9, Task("regression").loss(output, target))


def test_binary_is_the_logistic_loss() -> None:
    output, target = 4 * torch.randn(50, 1, dtype=torch.float64), torch.randint(2, (50,)).double()
    task = Task("binary")
    torch.testing.assert_close(task.loss(output, target), nn.BCEWithLogitsLoss()(output[:, 0], target))
    assert float(task.loss(output, target)) == pytest.approx(log_loss(target, task.probabilities(output)))


def test_multiclass_is_the_cross_entropy() -> None:
    output, target = 4 * torch.randn(50, 4, dtype=torch.float64), torch.randint(4, (50,))
    task = Task("multiclass", 4)
    torch.testing.assert_close(task.loss(output, target), nn.CrossEntropyLoss()(output, target))
    expected = log_loss(target, task.probabilities(output), labels=np.arange(4))
    assert float(task.loss(output, target)) == pytest.approx(expected)


def _cases() -> list[tuple[Task, torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [
        (Task("regression", unit=2.0), torch.randn(9, 1), torch.randn(9)),
        (Task("binary"), torch.randn(9, 1), torch.randint(2, (9,)).float()),
        (Task("multiclass", 3), torch.randn(9, 3), torch.randint(3, (9,))),
    ]


@pytest.mark.parametrize(("task", "output", "target"), _cases(), ids=lambda v: getattr(v, "kind", ""))
def test_there_is_one_loss_a_row_and_their_mean_is_the_loss(
    task: Task, output: torch.Tensor, target: torch.Tensor
) -> None:
    rows = task.loss_rows(output, target)
    assert rows.shape == (9,)
    assert (rows >= 0).all()
    torch.testing.assert_close(rows.mean(), task.loss(output, target))
    for i in range(9):
        torch.testing.assert_close(rows[i], task.loss(output[i : i + 1], target[i : i + 1]))


@pytest.mark.parametrize("scale", [1.0, 50.0, 1000.0])
@pytest.mark.parametrize(("task", "outputs"), [(Task("binary"), 1), (Task("multiclass", 5), 5)])
def test_probabilities_sum_to_one_at_any_size(task: Task, outputs: int, scale: float) -> None:
    output = scale * torch.randn(40, outputs, dtype=torch.float64)
    p = task.probabilities(output)
    assert p.shape == (40, max(outputs, 2))
    assert ((p >= 0) & (p <= 1)).all()
    torch.testing.assert_close(p.sum(dim=1), torch.ones(40, dtype=torch.float64))
    best = (output[:, 0] > 0).long() if outputs == 1 else output.argmax(dim=1)
    assert torch.equal(p.argmax(dim=1), best)


def test_an_extreme_logit_has_a_finite_loss() -> None:
    rows = Task("binary").loss_rows(torch.tensor([[1e4], [-1e4]]), torch.tensor([0.0, 1.0]))
    assert rows.tolist() == [1e4, 1e4]
