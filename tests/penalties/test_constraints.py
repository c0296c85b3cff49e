"""Constraints: what the laws do not say, and how they behave in training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

import torchlasso as tl
from tests.penalties.cases_constraints import best_subset, blocks_of, nearest_in_ball
from torchlasso.errors import InputError, UnsupportedOptimizerError
from torchlasso.penalties.constraints import NM, Constraint, L1Ball, TopK

EVERY = [TopK(0.5), NM(2, 4), L1Ball(2.0)]
each = pytest.mark.parametrize("constraint", EVERY, ids=lambda c: c.describe())

weights = hnp.arrays(np.float64, 8, elements=st.integers(-6, 6).map(lambda i: i / 4))
step_sizes = hnp.arrays(np.float64, 8, elements=st.sampled_from([0.0, 2.0**-20, 0.25, 1.0, 4.0, 2.0**20]))


@given(w=weights, d=step_sizes, sparsity=st.floats(0, 1))
def test_topk_is_the_best_subset(w: np.ndarray, d: np.ndarray, sparsity: float) -> None:
    constraint = TopK(sparsity)
    expected = best_subset(w, d, round((1 - sparsity) * 8))
    found = constraint.prox(torch.tensor(w), torch.tensor(d)).numpy()
    cost = np.divide((found - w) ** 2, d, out=np.zeros_like(w), where=d > 0).sum()
    least = np.divide((expected - w) ** 2, d, out=np.zeros_like(w), where=d > 0).sum()
    assert np.array_equal(found[d == 0], w[d == 0])
    assert np.count_nonzero(found) <= max(round((1 - sparsity) * 8), np.count_nonzero(w[d == 0]))
    assert cost == pytest.approx(least, rel=1e-12)


@given(w=weights, d=step_sizes, radius=st.sampled_from([0.0, 0.125, 1.0, 3.0, 100.0]))
def test_the_ball_is_met_exactly(w: np.ndarray, d: np.ndarray, radius: float) -> None:
    found = L1Ball(radius).prox(torch.tensor(w), torch.tensor(d)).numpy()
    held = np.abs(w[d == 0]).sum()
    assert np.array_equal(found[d == 0], w[d == 0])
    if d.any():
        assert np.abs(found).sum() == pytest.approx(max(min(np.abs(w).sum(), radius), held), abs=1e-12)
        np.testing.assert_allclose(found, nearest_in_ball(w, d, radius), atol=1e-9)


@pytest.mark.parametrize(("count", "kept"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2])])
def test_of_equal_entries_the_first_are_kept(count: int, kept: list[int]) -> None:
    w = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert TopK(1 - count / 4).prox(w, 1.0).nonzero().flatten().tolist() == kept
    assert NM(count, 4).prox(w, 1.0).nonzero().flatten().tolist() == kept
    many = torch.ones(10_000)
    assert int(TopK(0.9).prox(many, 1.0).sum()) == 1_000


@pytest.mark.parametrize(
    ("sparsity", "kept"), [(0.0, 10), (0.04, 10), (0.1, 9), (0.9, 1), (0.96, 0), (1.0, 0)]
)
def test_sparsity_is_rounded_to_whole_entries(sparsity: float, kept: int) -> None:
    result = TopK(sparsity).prox(torch.arange(1.0, 11.0), 0.1)
    assert int(result.count_nonzero()) == kept
    assert result.tolist() == [0.0] * (10 - kept) + list(np.arange(11.0 - kept, 11.0))


@pytest.mark.parametrize("shape", [(8,), (3, 8), (3, 8, 2, 2)])
def test_blocks_lie_along_the_inputs(shape: tuple[int, ...]) -> None:
    w = torch.tensor(np.random.default_rng(0).normal(size=shape))
    result = NM(2, 4).prox(w, 1.0).numpy()
    for block in blocks_of(result, 4):
        at = tuple(np.array(block).T)
        assert np.count_nonzero(result[at]) == 2
        assert np.abs(result[at]).sum() == pytest.approx(np.sort(np.abs(w.numpy()[at]))[2:].sum())


def test_two_of_four_is_what_torch_calls_semi_structured() -> None:
    """torch counts along the last dimension of a linear weight, in fours."""
    w = NM(2, 4).prox(torch.randn(16, 32), 1.0)
    assert (w.reshape(-1, 4).count_nonzero(1) == 2).all()


@each
def test_what_cannot_move_stays_even_outside(constraint: Constraint) -> None:
    w = torch.tensor([3.0, -2.0, 1.0, 0.5])
    assert torch.equal(constraint.prox(w, 0.0), w)
    assert torch.equal(constraint.prox(w, torch.zeros(4)), w)
    held = constraint.prox(w, torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert held.tolist() == [3.0, -2.0, 1.0, 0.0]


@each
def test_the_size_of_one_step_plays_no_part(constraint: Constraint) -> None:
    w = torch.randn(3, 4)
    expected = constraint.prox(w, 1.0)
    for step in (1e-30, 0.3, 1e300, torch.tensor(7.0), torch.full((3, 4), 1e-3), torch.full((3, 4), 1e38)):
        assert torch.allclose(constraint.prox(w, step), expected, rtol=1e-5, atol=1e-6)


@each
def test_projecting_twice_is_projecting_once(constraint: Constraint) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        w = torch.randn(3, 64).to(dtype)
        once = constraint.prox(w, 1.0)
        assert float(constraint.value(once)) == 0.0
        assert torch.allclose(
            constraint.prox(once, 1.0), once, rtol=1e-2 if once.dtype.itemsize == 2 else 1e-5
        )


@each
def test_value_is_zero_or_infinite_and_has_no_gradient(constraint: Constraint) -> None:
    for w, value in ((torch.zeros(4, 4), 0.0), (torch.ones(4, 4), math.inf)):
        leaf = w.requires_grad_()
        found = constraint.value(leaf)
        found.backward()
        assert found.item() == value
        assert torch.equal(leaf.grad, torch.zeros(4, 4))
    assert not math.isfinite(float(constraint.value(torch.full((4, 4), math.nan))))


@each
def test_a_constraint_has_no_strength(constraint: Constraint) -> None:
    assert constraint.strength == constraint.current_strength == 0.0
    assert constraint.with_strength(3.0) is constraint
    assert constraint.at(7) is constraint
    assert constraint.kink(torch.ones(4)) is None
    assert constraint.strength_max(torch.ones(4)) == math.inf
    assert not constraint.separable
    with pytest.raises(TypeError):
        type(constraint)(1, 2, 3, strength=1.0)  # type: ignore[call-arg]


def test_other_fields_can_be_replaced() -> None:
    assert replace(TopK(0.5), sparsity=0.75).sparsity == 0.75
    assert replace(NM(1, 4), n=2).describe() == "NM(2:4)"
    assert replace(L1Ball(1.0), radius=2.5).describe() == "L1Ball(radius=2.5)"
    assert TopK(0.9).describe() == "TopK(sparsity=0.9)"
    assert [c.convex for c in EVERY] == [False, False, True]


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, 90, math.nan, "0.9", None])
def test_a_bad_sparsity_is_refused(sparsity: float) -> None:
    with pytest.raises(InputError, match="sparsity must lie between 0"):
        TopK(sparsity)


@pytest.mark.parametrize("radius", [-1.0, math.inf, math.nan, "1", None])
def test_a_bad_radius_is_refused(radius: float) -> None:
    with pytest.raises(InputError, match="radius must be a finite number"):
        L1Ball(radius)


@pytest.mark.parametrize(("n", "m"), [(5, 4), (-1, 4), (0, 0), (2, 4.0), ("2", 4)])
def test_bad_blocks_are_refused(n: int, m: int) -> None:
    with pytest.raises(InputError, match=r"0 <= n <= m"):
        NM(n, m)


@pytest.mark.parametrize("shape", [(), (6,), (4, 6), (4, 3, 2, 2)])
def test_blocks_must_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="multiple of 4"):
        NM(2, 4).validate(torch.Size(shape))


# ---- the residual -----------------------------------------------------------------------------


def test_residual_of_a_budget() -> None:
    w, g = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.5, -2.0, 3.0, 0.0])
    assert TopK(0.75).residual(w, g).tolist() == [0.5, 0.0, 0.0, 0.0]  # used up: the zeros are kept
    assert TopK(0.5).residual(w, g).tolist() == [0.5, 2.0, 3.0, 0.0]  # one more may become nonzero
    assert TopK(1.0).residual(w, g).tolist() == [math.inf] * 4
    both = torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0]])
    assert NM(2, 4).residual(both, torch.ones(1, 8)).tolist() == [[1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]]


def test_residual_of_a_ball() -> None:
    w = torch.tensor([1.5, -0.5, 0.0])
    ball = L1Ball(2.0)
    assert ball.residual(w, torch.tensor([-3.0, 3.0, 2.0])).tolist() == [0.0, 0.0, 0.0]
    assert ball.residual(w, torch.tensor([-3.0, 3.0, 4.0])).tolist() == [0.0, 0.0, 1.0]
    assert ball.residual(w, torch.tensor([3.0, -3.0, 0.0])).tolist() == [
        3.0,
        3.0,
        0.0,
    ]  # inwards: nothing holds
    assert L1Ball(9.0).residual(w, torch.tensor([-3.0, 3.0, 2.0])).tolist() == [3.0, 3.0, 2.0]
    assert L1Ball(1.0).residual(w, torch.zeros(3)).tolist() == [math.inf] * 3
    assert L1Ball(0.0).residual(torch.zeros(3), torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


@each
def test_nan_in_the_residual(constraint: Constraint) -> None:
    w = torch.tensor([math.nan, 0.0, 0.0, 0.0])
    assert constraint.residual(w, torch.zeros(4))[0].isnan()
    assert constraint.residual(torch.zeros(4), w).isnan().any()


# ---- in training ------------------------------------------------------------------------------


def _fit(constraint: Constraint, optimizer: str, steps: int) -> tuple[nn.Linear, tl.Regularizer, list]:
    torch.manual_seed(0)
    x = torch.randn(200, 16, dtype=torch.float64)
    y = x[:, :3] @ torch.tensor([[2.0], [-1.0], [0.5]], dtype=torch.float64) + 0.1 * torch.randn(200, 1)
    layer = nn.Linear(16, 1).double()
    regularizer = tl.Regularizer(layer, constraint)
    made = {
        "sgd": lambda: torch.optim.SGD(layer.parameters(), lr=0.1),
        "momentum": lambda: torch.optim.SGD(layer.parameters(), lr=0.02, momentum=0.9),
        "adam": lambda: torch.optim.Adam(layer.parameters(), lr=0.03),
    }[optimizer]()
    handle = tl.attach(made, regularizer)
    for _ in range(steps):
        made.zero_grad()
        nn.functional.mse_loss(layer(x), y).backward()
        made.step()
    assert float(constraint.value(layer.weight.detach())) == 0.0
    handle.freeze_zeros()
    before = layer.weight.detach().clone()
    made.step()
    assert torch.equal(layer.weight == 0, before == 0)
    return layer, regularizer, [(x, y)]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("constraint", [TopK(13 / 16), NM(1, 4), L1Ball(2.0)], ids=lambda c: c.describe())
def test_training_ends_at_a_stationary_point_of_the_constraint(
    constraint: Constraint, optimizer: str
) -> None:
    layer, regularizer, data = _fit(constraint, optimizer, 1500)
    found = tl.certificate(layer, regularizer, nn.functional.mse_loss, data)
    assert found.residual < 0.02
    assert found.penalty == 0.0
    kept = layer.weight[0].nonzero().flatten().tolist()
    if isinstance(constraint, TopK):
        assert kept == [0, 1, 2]
    if isinstance(constraint, L1Ball):
        assert float(layer.weight.detach().abs().sum()) == pytest.approx(2.0)
        assert len(kept) < 16


def test_an_optimizer_without_a_metric_refuses() -> None:
    layer = nn.Linear(8, 1)
    with pytest.raises(UnsupportedOptimizerError, match="no slope at zero"):
        tl.attach(torch.optim.LBFGS(layer.parameters()), tl.Regularizer(layer, TopK(0.5)))


@pytest.mark.parametrize("radius", [300.0, 1000.0])
def test_a_large_projection_is_on_the_ball(radius: float) -> None:
    """A million roundings in float32 would add up to more than the set allows."""
    w = torch.randn(10**6, generator=torch.Generator().manual_seed(1))
    ball = tl.L1Ball(radius)
    x = ball.prox(w, 1.0)
    assert float(x.double().abs().sum()) == pytest.approx(radius, rel=1e-6)
    assert float(ball.value(x)) == 0.0
    assert float(ball.residual(x, -x.sign()).max()) == 0.0  # the gradient is normal to the ball


def test_in_a_loss_a_constraint_says_that_it_does_nothing() -> None:
    layer = torch.nn.Linear(4, 4)
    regularizer = tl.Regularizer(layer, tl.TopK(0.5))
    with pytest.raises(InputError, match="constraint, which has no gradient"):
        regularizer()
    with torch.no_grad():
        assert float(regularizer()) == float("inf")  # for a certificate
        layer.weight.copy_(tl.TopK(0.5).prox(layer.weight, 1.0))
    assert float(regularizer().detach()) == 0.0
