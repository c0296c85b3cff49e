"""Permutation importance, against scikit-learn's and against what is known beforehand."""

import numpy as np
import pytest
import torch
from sklearn.inspection import permutation_importance as reference
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

from torchlasso.mlp import build_mlp, linear_layers
from torchlasso.tabular import importance
from torchlasso.tabular.importance import permutation_importance
from torchlasso.tasks import Task

SINGLE = [[0], [1], [2]]


def linear(*weights: float, outputs: int = 1) -> nn.Linear:
    ((_, module),) = linear_layers(build_mlp(len(weights), (), outputs))
    module.weight.data.copy_(torch.tensor(weights).expand(outputs, -1))
    module.bias.data.zero_()
    return module


def rows(n: int = 1500, features: int = 3) -> Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(1))


def test_a_linear_model_agrees_with_scikit_learn() -> None:
    inputs = rows()
    target = inputs @ torch.tensor([2.0, -1.0, 0.5])
    shares = permutation_importance(
        linear(2.0, -1.0, 0.5), inputs, target, Task("regression"), SINGLE, seed=0
    )
    assert sum(shares) == pytest.approx(1)
    known = (inputs.numpy(), target.numpy())
    model = LinearRegression().fit(*known)  # type: ignore[no-untyped-call]
    theirs = reference(model, *known, scoring="neg_mean_squared_error", n_repeats=3, random_state=0)[
        "importances_mean"
    ]
    np.testing.assert_allclose(shares, theirs / theirs.sum(), atol=0.02)
    # The loss grows by the squared weight times twice the variance.
    np.testing.assert_allclose(shares, np.array([4, 1, 0.25]) / 5.25, atol=0.02)


def test_what_is_not_used_counts_nothing_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = rows()
    module = linear(1.0, 0.0, 0.0)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    shares = permutation_importance(module, inputs, inputs[:, 0], Task("regression"), SINGLE, seed=0)
    assert shares == [1.0, 0.0, 0.0]
    assert len(calls) == 1 + 3


def test_an_empty_model_has_no_important_feature() -> None:
    inputs = rows()
    assert (
        permutation_importance(
            linear(0.0, 0.0, 0.0), inputs, inputs[:, 0], Task("regression"), SINGLE, seed=0
        )
        == [0.0] * 3
    )


def test_a_feature_that_only_harms_counts_nothing() -> None:
    inputs = rows()
    shares = permutation_importance(
        linear(1.0, -3.0, 0.0), inputs, inputs[:, 0] + 3 * inputs[:, 1], Task("regression"), SINGLE, seed=0
    )
    assert shares == [1.0, 0.0, 0.0]


def test_the_columns_of_a_feature_are_shuffled_together() -> None:
    """Two columns that cancel: shuffled together nothing changes, one by one they matter."""
    column = rows(500, 1)
    inputs = torch.cat([column, column, rows(500, 1).flip(0)], dim=1)
    module = linear(1.0, -1.0, 1.0)
    target = inputs[:, 2]
    together = permutation_importance(module, inputs, target, Task("regression"), [[0, 1], [2]], seed=0)
    assert together == pytest.approx([0.0, 1.0], abs=1e-6)
    apart = permutation_importance(module, inputs, target, Task("regression"), SINGLE, seed=0)
    assert min(apart) > 0.2


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_classes(kind: str) -> None:
    inputs = rows()
    target = (inputs[:, 1] > 0).long()
    module = linear(0.0, 3.0, 0.1)
    task = Task("binary")
    if kind == "multiclass":
        module, task = linear(0.0, 3.0, 0.1, outputs=2), Task("multiclass", 2)
        module.weight.data[0] *= -1.0
    shares = permutation_importance(module, inputs, target, task, SINGLE, seed=0)
    assert shares[1] > 0.99
    assert shares[0] == 0


def test_the_seed_decides() -> None:
    inputs = rows(50)
    target = inputs.sum(dim=1)
    first, again, other = (
        permutation_importance(linear(1.0, 1.0, 1.0), inputs, target, Task("regression"), SINGLE, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_long_table_sorted_by_its_target_is_sampled_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the first rows alone, the feature that separates the classes would not vary at all."""
    monkeypatch.setattr(importance, "_MOST_ROWS", 200)
    inputs = torch.cat([torch.arange(2000.0)[:, None].ge(1000) * 2.0 - 1, rows(2000, 2)], dim=1)
    target = (inputs[:, 0] > 0).long()
    shares = permutation_importance(linear(3.0, 0.1, 0.1), inputs, target, Task("binary"), SINGLE, seed=0)
    assert shares[0] > 0.95


def test_nothing_is_changed() -> None:
    inputs = rows(60)
    before = inputs.clone()
    module = linear(1.0, 2.0, 3.0)
    state = torch.random.get_rng_state()
    permutation_importance(module, inputs, inputs[:, 0], Task("regression"), SINGLE, seed=0)
    assert torch.equal(inputs, before)
    assert torch.equal(torch.random.get_rng_state(), state)
