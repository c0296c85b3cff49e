"""The group lasso against a solver that knows nothing of proximal maps, and its own corner cases."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch

import torchlasso as tl
from torchlasso.errors import InputError


def _solve(
    x: np.ndarray, y: np.ndarray, groups: list[list[int]], c: np.ndarray, strength: float
) -> np.ndarray:
    """Minimise ``½‖Xw − y‖²/n + strength·Σ c‖w_g‖`` by BFGS, which is smooth while no group is zero.

    A group without which the objective is no worse is dropped, and the rest is solved again.
    """
    n, p = x.shape
    alive = list(range(len(groups)))
    w = np.linalg.lstsq(x, y, rcond=None)[0]
    while True:
        kept = [i for g in alive for i in groups[g]]

        def objective(v: np.ndarray, kept: list[int] = kept, alive: list[int] = alive) -> float:
            full = np.zeros(p)
            full[kept] = v
            norms = [np.linalg.norm(full[groups[g]]) for g in alive]
            return float(np.sum((x @ full - y) ** 2) / (2 * n) + strength * np.dot(c[alive], norms))

        found = scipy.optimize.minimize(objective, w[kept], method="BFGS", options={"gtol": 1e-9})
        w = np.zeros(p)
        w[kept] = found.x
        weak = [g for g in alive if _better_without(objective, found.x, kept, groups[g])]
        if not weak:
            return w
        alive = [g for g in alive if g not in weak[:1]]


def _better_without(objective, v: np.ndarray, kept: list[int], group: list[int]) -> bool:  # type: ignore[no-untyped-def]
    without = np.where(np.isin(kept, group), 0.0, v)
    return bool(objective(without) <= objective(v) + 1e-12)


@pytest.mark.parametrize("weights", ["sqrt", None, "tensor"])
def test_residual_vanishes_at_an_independent_solution(weights: str | None) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 7))
    groups = [[0, 3], [1, 2, 5], [4], [6]]
    y = x @ np.array([1.0, 0, 0, -1.0, 0, 0, 0.5]) + 0.1 * rng.normal(size=80)
    given = torch.tensor([1.0, 0.5, 2.0, 0.25]) if weights == "tensor" else weights
    c = {"sqrt": np.sqrt([2, 3, 1, 1]), None: np.ones(4), "tensor": np.array([1.0, 0.5, 2.0, 0.25])}[weights]
    w = _solve(x, y, groups, c, 0.2)
    zero = [not np.any(w[g]) for g in groups]
    assert any(zero)
    assert not all(zero)
    penalty = tl.GroupLasso(0.2, groups=groups, weights=given)
    grad = torch.tensor((x.T @ (x @ w - y) / len(y))[None])
    residual = penalty.residual(torch.tensor(w[None]), grad)
    assert residual.shape == (4,)
    assert float(residual.max()) < 1e-6
    moved = w * 1.05
    grad = torch.tensor((x.T @ (x @ moved - y) / len(y))[None])
    assert float(penalty.residual(torch.tensor(moved[None]), grad).max()) > 1e-3


def test_one_number_stands_for_all_group_weights() -> None:
    w = torch.randn(3, 4)
    one = tl.GroupLasso(0.3, weights=torch.tensor(2.0))
    many = tl.GroupLasso(0.3, weights=torch.full((3,), 2.0))
    assert torch.equal(one.prox(w, 0.5), many.prox(w, 0.5))
    assert torch.equal(one.value(w), many.value(w))


@pytest.mark.parametrize(("groups", "count"), [("rows", 2), ("columns", 3), ("kernels", 6), ("tensor", 1)])
def test_weights_must_fit_the_groups(groups: str, count: int) -> None:
    tl.GroupLasso(0.1, groups=groups, weights=torch.ones(count)).validate(torch.Size((2, 3, 5)))
    wrong = tl.GroupLasso(0.1, groups=groups, weights=torch.ones(4))
    with pytest.raises(InputError, match=f"one entry a group \\({count} groups"):
        wrong.validate(torch.Size((2, 3, 5)))


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(InputError, match="'sqrt'"):
        tl.GroupLasso(0.1, weights="size")


@pytest.mark.parametrize("step", [torch.tensor(0.3), torch.tensor([0.3]), torch.tensor([[0.3]])])
def test_a_step_of_one_entry_is_a_number(step: torch.Tensor) -> None:
    w = torch.randn(2, 3)
    for groups in ("rows", "columns", "tensor", [[0, 2], [1]]):
        penalty = tl.GroupLasso(0.5, groups=groups)
        assert torch.allclose(penalty.prox(w, step), penalty.prox(w, 0.3))


def test_a_constant_metric_is_a_step() -> None:
    w = torch.randn(5, 6, dtype=torch.float64)
    penalty = tl.GroupLasso(0.7, groups="columns")
    assert torch.allclose(penalty.prox(w, torch.full_like(w, 0.3)), penalty.prox(w, 0.3), atol=1e-14)


def test_a_metric_may_broadcast() -> None:
    w, d = torch.randn(3, 4), torch.rand(3, 1)
    penalty = tl.GroupLasso(0.7)
    assert torch.equal(penalty.prox(w, d), penalty.prox(w, d.expand(3, 4).contiguous()))


def test_entries_without_a_metric_stay_and_keep_their_group_alive() -> None:
    w = torch.tensor([[0.5, 0.1, 0.2]], dtype=torch.float64)
    d = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    found = tl.GroupLasso(100.0).prox(w, d)
    assert float(found[0, 0]) == 0.5
    assert 0 < float(found[0, 1]) < 0.01


def test_excluded_group_is_zero_at_any_strength_and_step() -> None:
    w = torch.randn(3, 4)
    for strength in (0.0, 0.3):
        penalty = tl.GroupLasso(strength, weights=torch.tensor([math.inf, 0.0, 1.0]))
        for step in (0.0, 1.0, torch.rand(3, 4)):
            found = penalty.prox(w, step)
            assert not found[0].any()
            assert torch.equal(found[1], w[1])


def test_a_group_as_small_as_float32_allows_is_still_a_group() -> None:
    """Its squares vanish, yet it has a direction: value, gradient and residual must say so."""
    w = torch.full((1, 4), 1e-25, requires_grad=True)
    penalty = tl.GroupLasso(1.0, weights=None)
    value = penalty.value(w)
    (gradient,) = torch.autograd.grad(value, w)
    assert float(value.detach()) == pytest.approx(2e-25, rel=1e-5)
    assert torch.allclose(gradient, torch.full((1, 4), 0.5))
    residual = penalty.residual(w.detach(), torch.full((1, 4), 0.5))
    assert float(residual) == pytest.approx(2.0, rel=1e-5)


def test_half_precision_groups_do_not_vanish_in_their_squares() -> None:
    w = torch.full((2, 4), 1e-4, dtype=torch.float16)  # the square is 0 in float16
    penalty = tl.GroupLasso(1.0, weights=None)
    assert float(penalty.value(w)) == pytest.approx(4e-4, rel=1e-3)
    assert penalty.support(w).all()
    assert float(penalty.residual(w, torch.zeros_like(w)).max()) == pytest.approx(1.0, rel=1e-3)


def test_large_half_precision_groups_do_not_overflow() -> None:
    w = torch.full((2, 4), 3e4, dtype=torch.float16)
    found = tl.GroupLasso(1.0, weights=None).prox(w, torch.full_like(w, 2e4))
    assert torch.allclose(found.float(), torch.full((2, 4), 2e4), rtol=1e-3)
