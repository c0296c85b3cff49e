"""LassoNet's penalty: the exact minimiser in any metric, and everything that divides by zero elsewhere."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from tests.penalties.brute import Array
from tests.penalties.cases_hierarchical import argmin, value
from torchlasso.errors import InputError
from torchlasso.penalties.hierarchical import Hierarchical
from torchlasso.proximal.hierarchical import hierarchical_prox


def _hier_prox(theta: Array, rest: Array, lam: float, mu: float, bound: float) -> Array:
    """Return the map of one row at step 1 as the paper writes it: try every number of clipped weights.

    ``W`` is sorted by size; with ``m`` of them clipped the norm of ``θ`` becomes
    ``w_m = (‖θ‖ − λ + M·Σ_{i≤m} soft(|W_i|, μ))_+/(1 + m·M²)``, and the right ``m`` is the one for which
    ``M·w_m`` lies between the ``m``-th and the next of the soft-thresholded weights.
    """
    soft = np.sort(np.maximum(np.abs(rest) - mu, 0.0))[::-1]
    edges = np.concatenate([[np.inf], soft, [0.0]])
    norm = float(np.linalg.norm(theta))
    for m in range(rest.size + 1):
        radius = max(norm - lam + bound * soft[:m].sum(), 0.0) / (1 + m * bound**2)
        if edges[m + 1] <= bound * radius <= edges[m]:
            break
    x = theta * (radius / norm)
    return np.concatenate([x, np.sign(rest) * np.minimum(np.maximum(np.abs(rest) - mu, 0), bound * radius)])


def _objective(row: Array, w: Array, d: Array, penalty: Hierarchical) -> float:
    lam = penalty.current_strength
    return float(np.sum((row - w) ** 2 / d) / 2) + value(
        row[None], lam, penalty.M, penalty.skip, penalty.inner
    )


def _least(w: Array, d: Array, penalty: Hierarchical, seed: int) -> float:
    """Return the least objective that a search over ``θ`` finds from many starts; its norm gives ``W``."""
    k, lam = penalty.skip, penalty.current_strength

    def complete(theta: Array) -> Array:
        reach = np.maximum(np.abs(w[k:]) - d[k:] * lam * penalty.inner, 0.0)
        bounded = np.minimum(reach, penalty.M * np.linalg.norm(theta))
        return np.concatenate([theta, np.sign(w[k:]) * bounded])

    rng = np.random.default_rng(seed)
    starts = [w[:k], w[:k] / 3, w[:k] * 3 + 0.1, *(3 * rng.normal(size=(4, k)))]
    options = {"xatol": 1e-10, "fatol": 1e-13, "maxiter": 4000}
    found = [
        scipy.optimize.minimize(
            lambda theta: _objective(complete(theta), w, d, penalty), s, method="Nelder-Mead", options=options
        ).fun
        for s in starts
    ]
    return float(min([*found, _objective(np.zeros_like(w), w, d, penalty)]))


@pytest.mark.parametrize("bound", [0.3, 1.0, 10.0])
@pytest.mark.parametrize(("lam", "mu"), [(0.0, 0.0), (0.5, 0.0), (2.0, 0.3)])
@pytest.mark.parametrize("skip", [1, 3])
def test_it_is_the_algorithm_of_the_paper(skip: int, lam: float, mu: float, bound: float) -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(40, skip + 5)) * 10.0 ** rng.integers(-2, 2, size=(40, 1))
    for step in (1.0, 0.25):
        found = hierarchical_prox(torch.tensor(w), step, skip, lam, mu, bound).numpy()
        expected = [_hier_prox(r[:skip], r[skip:], lam * step, mu * step, bound) for r in w]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        spread = hierarchical_prox(torch.tensor(w), torch.full(w.shape, step), skip, lam, mu, bound)
        np.testing.assert_allclose(spread.numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("seed", range(40))
def test_no_search_finds_a_better_point(seed: int) -> None:
    rng = np.random.default_rng(seed)
    skip, others = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    w = rng.normal(size=skip + others) * rng.choice([0.0, 0.1, 1.0, 3.0], size=skip + others)
    d = 2.0 ** rng.integers(-4, 3, size=w.size)
    penalty = Hierarchical(
        float(rng.choice([0.0, 0.3, 1.0, 3.0])),
        M=float(rng.choice([0.0, 0.3, 1.0, 10.0])),
        skip=skip,
        inner=0.2,
    )
    found = penalty.prox(torch.tensor(w[None]), torch.tensor(d[None])).numpy()[0]
    assert _objective(found, w, d, penalty) <= _least(w, d, penalty, seed) + 1e-9
    point, steps = torch.tensor(found[None]), torch.tensor(d[None])
    residual = penalty.residual(point, (point - torch.tensor(w[None])) / steps)
    assert float(residual.max()) < 1e-8
    if found.any():
        moved = point * 1.01
        assert float(penalty.residual(moved, (moved - torch.tensor(w[None])) / steps).max()) > 1e-6


entries = hnp.arrays(np.float64, (2, 5), elements=st.integers(-8, 8).map(lambda i: i / 4))
sizes = hnp.arrays(np.float64, (2, 5), elements=st.sampled_from([0.0, 2.0**-7, 0.25, 1.0, 8.0]))


@settings(max_examples=40)
@given(w=entries, d=sizes, bound=st.sampled_from([0.0, 0.25, 2.0, 30.0]), inner=st.sampled_from([0.0, 0.5]))
def test_a_metric_with_holes(w: Array, d: Array, bound: float, inner: float) -> None:
    for skip in (1, 2):
        penalty = Hierarchical(0.75, M=bound, skip=skip, inner=inner)
        found = penalty.prox(torch.tensor(w), torch.tensor(d)).numpy()
        expected = argmin(w, d, 0.75, bound, skip, inner)
        assert np.isfinite(found).all()
        assert np.array_equal(found[d == 0], w[d == 0])
        norms = [np.linalg.norm(m[:, :skip], axis=1) for m in (found, expected)]
        np.testing.assert_allclose(norms[0], norms[1], atol=1e-6)
        np.testing.assert_allclose(found[:, skip:], expected[:, skip:], atol=1e-6 * max(1.0, bound))


# ---- what divides by zero ---------------------------------------------------------------------


ROWS = {
    "no skip weight": [0.0, 0.0, 3.0, -2.0],
    "nothing but skip": [2.0, -1.0, 0.0, 0.0],
    "nothing": [0.0, 0.0, 0.0, 0.0],
    "tiny": [1e-38, 0.0, 1e-38, 1e-40],
    "large": [1e37, 0.0, 1e38, 1.0],
    "equal": [1.0, 1.0, 1.0, 1.0],
    "one skip weight": [0.0, 1e-20, 5.0, 5.0],
}


@pytest.mark.parametrize("row", list(ROWS.values()), ids=list(ROWS))
@pytest.mark.parametrize("bound", [0.0, 1e-30, 1.0, 10.0, 1e30])
def test_nothing_is_ever_nan(row: list[float], bound: float) -> None:
    steps: list[float | Tensor] = [0.0, 1e-30, 1.0, 1e300, torch.zeros(1, 4), torch.full((1, 4), 1e30)]
    steps += [torch.tensor([[1e-12, 1.0, 1e6, 0.0]]), torch.tensor([[0.0, 1e30, 1e-30, 1.0]])]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        w = torch.tensor([row], dtype=torch.float64).clamp(max=torch.finfo(dtype).max).to(dtype)
        for strength, inner in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (1e30, 0.1)):
            penalty = Hierarchical(strength, M=bound, skip=2, inner=inner)
            for step in steps:
                result = penalty.prox(w, step)
                assert not result.isnan().any(), (dtype, strength, step)
                assert not (torch.signbit(result) & (result == 0)).any()
                if not isinstance(step, Tensor) and step > 0:
                    assert float(penalty.with_strength(0.0).value(result)) == 0.0  # within the bound
            assert not penalty.residual(torch.zeros_like(w), w).isnan().any()


def test_hidden_weights_bring_their_feature_back() -> None:
    """The paper's algorithm divides by ``‖θ‖``: at zero the least is at ``θ ≠ 0``, in any direction."""
    w = torch.tensor([[0.0, 0.0, 3.0, -2.0]], dtype=torch.float64)
    found = Hierarchical(1.0, M=1.0, skip=2).prox(w, 1.0)
    radius = (1 * 5.0 - 1.0) / (1 + 2)  # both are clipped
    assert found[0].tolist() == pytest.approx([radius, 0.0, radius, -radius])
    assert not Hierarchical(5.0, M=1.0, skip=2).prox(w, 1.0).any()  # M·‖W‖₁ ≤ λ
    longer = torch.tensor([[1.0, 2.0, 1.0, 1.0]])  # the entry that moves most takes it
    found = Hierarchical(1.0, M=1.0, skip=2).prox(w, longer)
    assert float(found[0, 0]) == 0.0
    assert float(found[0, 1]) > radius


def test_a_bound_of_zero_leaves_a_group_lasso() -> None:
    w = torch.tensor([[3.0, 4.0, 9.0], [0.3, 0.4, 9.0]])
    found = Hierarchical(1.0, M=0.0, skip=2).prox(w, 1.0)
    assert torch.allclose(found, torch.tensor([[2.4, 3.2, 0.0], [0.0, 0.0, 0.0]]))


def test_a_wide_bound_leaves_the_hidden_weights_alone() -> None:
    w = torch.tensor([[3.0, 4.0, 9.0, -0.5]])
    found = Hierarchical(1.0, M=1e6, skip=2, inner=0.5).prox(w, 1.0)
    assert torch.allclose(found, torch.tensor([[2.4, 3.2, 8.5, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_result_satisfies_its_own_bound(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    w = (torch.randn(300, 12) * torch.logspace(-6, 2, 300)[:, None]).to(dtype)
    for bound in (0.1, 0.7, 3.0, 100.0):
        for skip in (1, 3):
            penalty = Hierarchical(0.01, M=bound, skip=skip, inner=0.1)
            for step in (0.3, torch.rand(300, 12) + 0.01):
                result = penalty.prox(w, step)
                assert math.isfinite(float(penalty.value(result)))
                dead = (result[:, :skip] == 0).all(1)
                assert not result[dead].any()
                assert torch.equal(Hierarchical(0.0, M=bound, skip=skip).prox(result, 0.3), result)


def test_broken_numbers_stay_in_their_row() -> None:
    w = torch.ones(3, 4)
    for number in (math.nan, math.inf, -math.inf):
        for column in range(4):
            broken = w.clone()
            broken[1, column] = number
            for step in (0.0, 1.0, torch.full((3, 4), 0.5)):
                result = Hierarchical(0.1, skip=2).prox(broken, step)
                assert result[1].isnan().all()
                assert result[[0, 2]].isfinite().all()
    step = torch.ones(3, 4)
    step[1, 2] = math.nan
    assert Hierarchical(0.1, skip=2).prox(w, step)[1].isnan().all()
    assert Hierarchical(0.1, skip=2).prox(w, math.nan).isnan().all()


# ---- the rest of the interface ----------------------------------------------------------------


@pytest.mark.parametrize("inner", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("bound", [0.0, 1.0, 10.0])
def test_strength_max_by_bisection(bound: float, inner: float) -> None:
    grad = torch.tensor(np.random.default_rng(3).normal(size=(6, 5)))
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        pull = bound * (grad[:, 2:].abs() - inner * middle).clamp_min(0).sum(1)
        low, high = (
            (low, middle) if bool((grad[:, :2].norm(dim=1) + pull <= middle).all()) else (middle, high)
        )
    penalty = Hierarchical(1.0, M=bound, skip=2, inner=inner)
    assert penalty.strength_max(grad) == pytest.approx(high, rel=1e-9)
    zero = torch.zeros_like(grad)
    assert not penalty.with_strength(high * 1.0001).residual(zero, grad).any()
    assert penalty.with_strength(high * 0.9999).residual(zero, grad).any()


def test_residual_by_the_conditions_of_optimality() -> None:
    """With ``ρ_j`` the price of the bound: ``g_θ + (λ − M·Σρ)·θ/‖θ‖ = 0`` and ``g_j = −ρ_j·sign(W_j)``."""
    theta, rho = torch.tensor([0.6, 0.8]), torch.tensor([0.5, 1.0])
    w = torch.cat([theta, torch.tensor([2.0, -2.0, 0.5])])[None].double()
    grad = torch.cat([-(3.0 - 2.0 * rho.sum()) * theta, torch.tensor([-0.5, 1.0, 0.0])])[None].double()
    penalty = Hierarchical(3.0, M=2.0, skip=2)
    assert float(penalty.residual(w, grad)) < 1e-6
    for column in range(5):
        moved = grad.clone()
        moved[0, column] += 0.3
        assert 0.1 < float(penalty.residual(w, moved)) < 3.0
    outside = w.clone()
    outside[0, 2] = 2.1
    assert float(penalty.residual(outside, grad)) == math.inf
    assert float(penalty.value(outside)) == math.inf


def test_support_is_a_whole_row() -> None:
    w = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert Hierarchical(0.1).support(w).tolist() == [[False] * 3, [True] * 3, [True] * 3]
    assert Hierarchical(0.1).kink(w) is None
    assert Hierarchical(0.1, M=2.5).describe() == "Hierarchical(M=2.5)"
    assert not Hierarchical.convex


@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (3, 4, 2)])
def test_the_shape_must_be_a_matrix_with_hidden_weights(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="a matrix with one row a feature"):
        Hierarchical(0.1, skip=2).validate(torch.Size(shape))


@pytest.mark.parametrize(
    "arguments", [{"M": -1.0}, {"M": math.inf}, {"M": math.nan}, {"inner": -0.1}, {"M": "1"}]
)
def test_bad_numbers_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(arguments))} must be a finite number"):
        Hierarchical(0.1, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("skip", [0, -1, 1.0, "1"])
def test_the_number_of_skip_columns_is_whole(skip: int) -> None:
    with pytest.raises(InputError, match="skip must be the number"):
        Hierarchical(0.1, skip=skip)
