"""The sparse group lasso and the group MCP by routes of their own, and groups of real layers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from tests.penalties.brute import Array
from torchlasso.errors import InputError
from torchlasso.groups import Blocks, Heads, Units, layout_of
from torchlasso.penalties.base import Penalty
from torchlasso.penalties.group_mcp import GroupMCP
from torchlasso.penalties.nonconvex import MCP
from torchlasso.penalties.separable import L1
from torchlasso.penalties.sparse_group import SparseGroupLasso
from torchlasso.penalties.structured import GroupLasso
from torchlasso.proximal.groups import group_firm_threshold_metric
from torchlasso.terms import Member, Term

# ---- the sparse group lasso ---------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.0, 0.4, 1e6, "metric"])
def test_the_ends_of_the_ratio_are_the_lasso_and_the_group_lasso(step: Any) -> None:
    w, grad = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    step = torch.rand(4, 5, dtype=torch.float64) if step == "metric" else step
    lasso, group = SparseGroupLasso(0.7, l1_ratio=1.0), SparseGroupLasso(0.7, l1_ratio=0.0)
    assert torch.equal(lasso.prox(w, step), L1(0.7).prox(w, step))
    assert torch.equal(group.prox(w, step), GroupLasso(0.7).prox(w, step))
    for ours, other in ((lasso, L1(0.7)), (group, GroupLasso(0.7))):
        assert float(ours.value(w)) == pytest.approx(float(other.value(w)), rel=1e-14)
        assert ours.strength_max(grad) == pytest.approx(other.strength_max(grad), rel=1e-14)
    by_entry = L1(0.7).residual(w, grad).square().sum(1).sqrt()
    assert torch.allclose(lasso.residual(w, grad), by_entry)
    assert torch.allclose(group.residual(w, grad), GroupLasso(0.7).residual(w, grad))


def _strength_max(grad: Array, ratio: float, c: float) -> float:
    """Solve ``Σ_{i ≤ k}(|g|₍ᵢ₎ − λρ)² = λ²(1 − ρ)²c²`` exactly, for the right number of active entries."""
    sizes = np.sort(np.abs(grad))[::-1]
    for k in range(1, len(sizes) + 1):
        active = sizes[:k]
        square = k * ratio**2 - (1 - ratio) ** 2 * c**2
        polynomial = [square, -2 * ratio * active.sum(), np.sum(active**2)]
        for root in np.roots(polynomial):
            below = sizes[k] if k < len(sizes) else 0.0
            inside = below <= root.real * ratio * (1 + 1e-12) and root.real * ratio <= active[-1] * (
                1 + 1e-12
            )
            if abs(root.imag) < 1e-9 and inside:
                return float(root.real)
    raise AssertionError


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.9, 0.999])
def test_strength_max_is_the_exact_root(ratio: float) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 40):
        grad = rng.normal(size=size) * 10 ** rng.uniform(-3, 3, size=size)
        found = SparseGroupLasso(1.0, l1_ratio=ratio, groups="tensor").strength_max(torch.tensor(grad))
        assert found == pytest.approx(_strength_max(grad, ratio, math.sqrt(size)), rel=1e-9)


def test_strength_max_is_that_of_the_strongest_group_that_is_penalised() -> None:
    grad = torch.tensor([[9.0, 9.0], [3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
    weights = torch.tensor([math.inf, 1.0, 1.0])
    both = SparseGroupLasso(1.0, l1_ratio=0.5, weights=weights).strength_max(grad)
    assert both == pytest.approx(_strength_max(np.array([3.0, 4.0]), 0.5, 1.0), rel=1e-12)
    kept = SparseGroupLasso(1.0, l1_ratio=0.5, weights=torch.tensor([0.0, 1.0, 1.0])).strength_max(grad)
    assert kept == pytest.approx(18.0, rel=1e-12)  # its L1 part is left
    only = SparseGroupLasso(1.0, l1_ratio=0.0, weights=torch.tensor([0.0, 0.0, 0.0])).strength_max(grad)
    assert only == 0.0


@given(st.data())
def test_the_composition_is_optimal_in_any_metric(data: Any) -> None:
    """``(w − x)/d`` is a subgradient at ``x``, written out by cases."""
    n, rho = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    w = data.draw(hnp.arrays(np.float64, (1, n), elements=st.floats(-4, 4)))
    d = 10 ** data.draw(hnp.arrays(np.float64, (1, n), elements=st.floats(-3, 3)))
    strength = data.draw(st.sampled_from([0.01, 0.3, 1.0]))
    penalty = SparseGroupLasso(strength, l1_ratio=rho, weights=None)
    x = penalty.prox(torch.tensor(w), torch.tensor(d)).numpy()
    pull, entry, level = (w - x) / d, strength * rho, strength * (1 - rho)
    slack = 1e-9 * (1 + np.abs(w / d).max())
    if not x.any():
        left = np.maximum(np.abs(pull) - entry, 0.0)
        assert np.linalg.norm(left) <= level + slack
        return
    needed = entry * np.sign(x) + level * x / np.linalg.norm(x)
    assert np.all(np.abs(pull - needed)[x != 0] <= slack + 1e-12 / np.linalg.norm(x))
    assert np.all(np.abs(pull)[x == 0] <= entry + slack)


def test_ratios_outside_and_complex_weights_are_refused() -> None:
    for ratio in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="l1_ratio"):
            SparseGroupLasso(0.1, l1_ratio=ratio)
    with pytest.raises(InputError, match="complex"):
        SparseGroupLasso(0.1).for_complex(torch.Size((2, 3)))


# ---- the group MCP ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.0, 0.3, 2.9, 3.0, 3.1, 50.0])
def test_groups_of_one_entry_are_the_mcp_of_entries(step: float) -> None:
    w = torch.linspace(-9, 9, 301, dtype=torch.float64)
    ours, entries = GroupMCP(0.75, weights=None), MCP(0.75)
    for d in (step, torch.full_like(w, step)):
        assert torch.allclose(ours.prox(w, d), entries.prox(w, step), rtol=1e-14, atol=1e-14)
        assert torch.equal(ours.prox(w, d) == 0, entries.prox(w, step) == 0)
    assert torch.allclose(ours.residual(w, w / 7), entries.residual(w, w / 7))
    assert float(ours.value(w)) == pytest.approx(float(entries.value(w)))


@pytest.mark.parametrize("step", [0.2, 1.49, 1.5, 4.0, 100.0])
def test_a_constant_metric_is_a_step(step: float) -> None:
    w = torch.randn(200, 3, dtype=torch.float64) * torch.logspace(-1, 1, 200, dtype=torch.float64)[:, None]
    penalty = GroupMCP(0.4, gamma=1.5)
    found, expected = penalty.prox(w, torch.full_like(w, step)), penalty.prox(w, step)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found == 0, expected == 0)


def test_large_groups_are_not_shrunk_at_all() -> None:
    w = torch.randn(5, 4)
    w *= 10 / w.norm(dim=1, keepdim=True)
    penalty = GroupMCP(1.0, gamma=3.0, weights=None)
    for step in (0.1, 2.0, 10.0, torch.rand(5, 4)):
        assert torch.equal(penalty.prox(w, step), w)
    assert not penalty.residual(w, torch.zeros_like(w)).any()


def test_a_wide_gamma_is_the_group_lasso() -> None:
    w, d = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 5, dtype=torch.float64)
    for step in (0.3, d):
        expected = GroupLasso(0.4).prox(w, step)
        assert torch.allclose(GroupMCP(0.4, gamma=1e12).prox(w, step), expected, atol=1e-9)


@given(st.data())
def test_no_point_on_any_sphere_is_better(data: Any) -> None:
    """Metrics on both sides of γ within one group, where up to three stationary points compete."""
    n, gamma = data.draw(st.integers(2, 5)), data.draw(st.sampled_from([0.3, 1.5, 3.0]))
    w = data.draw(hnp.arrays(np.float64, (1, n), elements=st.floats(-6, 6)))
    d = 10 ** data.draw(hnp.arrays(np.float64, (1, n), elements=st.floats(-3, 3)))
    level = data.draw(st.sampled_from([0.1, 0.75, 2.0]))
    found = group_firm_threshold_metric(
        torch.tensor(w),
        torch.tensor([level], dtype=torch.float64),
        torch.tensor(d),
        gamma,
        layout_of("rows", (1, n)),
    ).numpy()

    def objective(x: Array) -> Array:
        norm = np.linalg.norm(x, axis=-1)
        inside = np.minimum(norm, gamma * level)
        return np.sum((x - w) ** 2 / d, axis=-1) / 2 + inside * level - inside**2 / (2 * gamma)

    others = [w, 0 * w, *(w / (1 + d * mu) for mu in np.logspace(-8, 8, 400))]
    others += [found + w * s for s in (-1e-3, 1e-3)]
    least = float(objective(found)[0])
    assert least <= min(float(objective(x)[0]) for x in others) + 1e-10 * (1 + least)


def test_many_metrics_at_once_agree_with_each_alone() -> None:
    w = torch.randn(300, 6, dtype=torch.float64) * 10 ** (torch.rand(300, 1, dtype=torch.float64) * 4 - 2)
    d = 10 ** (torch.rand(300, 6, dtype=torch.float64) * 6 - 3)
    penalty = GroupMCP(0.5, gamma=2.0)
    found = penalty.prox(w, d)
    alone = torch.cat([penalty.prox(w[i : i + 1], d[i : i + 1]) for i in range(300)])
    assert torch.allclose(found, alone, rtol=1e-12, atol=1e-14)
    dead = (found == 0).all(1)
    kept = (found == w).all(1)
    assert min(int(dead.sum()), int(kept.sum()), int((~dead & ~kept).sum())) > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15, 1e30])
def test_weights_and_strength_may_have_any_scale(dtype: torch.dtype, size: float) -> None:
    w, d = torch.randn(8, 3, dtype=dtype), torch.rand(8, 3, dtype=dtype) * 4
    for step in (0.5, 5.0, d):
        expected = GroupMCP(1.0, gamma=2.0).prox(w, step)
        found = GroupMCP(size, gamma=2.0).prox(w * size, step)
        assert torch.allclose(found / size, expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(found == 0, expected == 0)


def test_its_kink_is_that_of_the_group_lasso_at_zero_only() -> None:
    w = torch.zeros(3, 4)
    weights = torch.tensor([1.0, 0.0, math.inf])
    ours, lasso = GroupMCP(0.5, weights=weights).kink(w), GroupLasso(0.5, weights=weights).kink(w)
    assert torch.equal(torch.as_tensor(ours.slope), torch.as_tensor(lasso.slope))
    assert ours.groups is lasso.groups
    assert lasso.everywhere
    assert not ours.everywhere
    assert GroupLasso.convex
    assert not GroupMCP.convex


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.inf, math.nan])
def test_a_gamma_that_is_not_positive_is_refused(gamma: float) -> None:
    with pytest.raises(InputError, match="gamma"):
        GroupMCP(0.1, gamma=gamma)


# ---- what all of them share ---------------------------------------------------------------------

EVERY: list[Any] = [GroupLasso, SparseGroupLasso, GroupMCP]


@pytest.mark.parametrize("make", EVERY)
def test_excluded_groups_are_zero_and_kept_ones_stay(make: Any) -> None:
    w = torch.randn(3, 4)
    weights = torch.tensor([math.inf, 0.0, 1.0])
    for strength in (0.0, 0.3):
        penalty = make(strength, weights=weights)
        for step in (0.0, 1.0, 1e300, torch.rand(3, 4)):
            found = penalty.prox(w, step)
            assert not found[0].any()
            if make is not SparseGroupLasso or strength == 0:
                assert torch.equal(found[1], w[1])
        assert math.isinf(float(penalty.value(w)))
        assert penalty.residual(w, w).isinf().tolist() == [True, False, False]
    without = make(0.3, weights=torch.zeros(3))
    expected = L1(0.15) if make is SparseGroupLasso else L1(0.0)
    assert torch.equal(without.prox(w, 1.0), expected.prox(w, 1.0))


@pytest.mark.parametrize("make", EVERY)
def test_groups_are_shown_and_checked(make: Any) -> None:
    for groups, shown in (("rows", "rows"), ([[0], [1]], "2 lists"), (Blocks(2), "Blocks(size=2)")):
        assert make(0.1, groups=groups).describe().startswith(f"{make.__name__}({shown}")
    with pytest.raises(InputError, match="multiple of 4"):
        make(0.1, groups=Blocks(4)).validate(torch.Size((3, 6)))
    with pytest.raises(InputError, match="3 groups"):
        make(0.1, groups=Blocks(2), weights=torch.ones(4)).validate(torch.Size((1, 6)))


@pytest.mark.parametrize("make", [GroupLasso, GroupMCP])
def test_complex_groups_count_complex_weights(make: Any) -> None:
    w = torch.randn(4, 6, dtype=torch.complex128)
    for groups in ("rows", Blocks((2, 3)), Heads(2, fused=2), [[0, 1, 2], [3, 4, 5]]):
        found = make(0.3, groups=groups).for_complex(w.shape).prox(torch.view_as_real(w), 1.0)
        sizes = make(0.3, groups=groups).prox(w.abs(), 1.0) / w.abs()
        assert torch.allclose(torch.view_as_complex(found), w * sizes)
    with pytest.raises(InputError, match="complex vector"):
        make(0.3, groups=Blocks(2)).for_complex(torch.Size((6,)))


@pytest.mark.parametrize("make", EVERY)
def test_joint_blocks_are_groups_too(make: Any) -> None:
    """A filter with its bias and the next layer's columns: as one matrix, and as one term."""
    first, bias, second = (nn.Parameter(torch.randn(*shape)) for shape in ((3, 4), (3,), (2, 3)))
    members = (Member("first", first), Member("bias", bias), Member("second", second, dim=1))
    term = Term(make(0.2), members)
    block = torch.cat([first, bias[:, None], second.T], dim=1).detach()
    assert float(term.value().detach()) == pytest.approx(float(make(0.2).value(block)))
    gathered = term.gather([p.detach() for p in term.parameters])
    for step in (0.5, torch.rand(3, 7)):
        parts = term.scatter(term.penalty.prox(gathered, step))
        expected = make(0.2).prox(block, step)
        assert torch.equal(parts[0], expected[:, :4])
        assert torch.equal(parts[1], expected[:, 4])
        assert torch.equal(parts[2], expected[:, 5:].T)


# ---- real layers --------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("make", EVERY)
def test_exactly_the_weak_units_of_a_recurrent_layer_vanish(layer: Any, gates: int, make: Any) -> None:
    """All weights of a unit, biases included, are one joint group: without them its state is zero."""
    torch.manual_seed(1)
    net = layer(5, 8)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weak = [1, 4, 6]
    with torch.no_grad():
        for name in names:
            parameter = getattr(net, name).view(gates, 8, -1)
            parameter[:, weak] *= 0.01
    term = Term(make(0.02, groups=Units(gates)), tuple(Member(name, getattr(net, name)) for name in names))
    with torch.no_grad():
        new = term.scatter(term.penalty.prox(term.gather(term.parameters), 1.0))
        for parameter, part in zip(term.parameters, new, strict=True):
            parameter.copy_(part)
    for name in names:
        alive = getattr(net, name).detach().view(gates, 8, -1) != 0
        assert not alive[:, weak].any()
        others = [u for u in range(8) if u not in weak]
        assert alive[:, others].flatten(2).any(2).any(0).all()
    states, _ = net(torch.randn(7, 3, 5))
    assert (states != 0).any(0).any(0).tolist() == [u not in weak for u in range(8)]


def test_a_dead_head_of_a_fused_projection_is_its_queries_keys_and_values() -> None:
    torch.manual_seed(1)
    attention = nn.MultiheadAttention(embed_dim=12, num_heads=3)
    with torch.no_grad():
        attention.in_proj_weight.view(3, 3, 4, 12)[:, 1] *= 1e-3
    before = attention.in_proj_weight.detach().clone()
    penalty: Penalty = GroupLasso(0.05, groups=Heads(3, fused=3))
    for step in (1.0, torch.rand(36, 12) + 0.5):
        found = penalty.prox(before, step)
        heads = found.view(3, 3, 4, 12)
        assert not heads[:, 1].any()
        assert (heads[:, [0, 2]] != 0).all()
        for part in range(3):  # q, k and v of head 1 are rows 4 to 7 of each third
            assert not found[12 * part + 4 : 12 * part + 8].any()
    outgoing = GroupLasso(0.05, groups=Heads(3, dim=1)).prox(attention.out_proj.weight.detach(), 5.0)
    columns = (outgoing != 0).any(0).view(3, 4)
    assert torch.equal(columns.any(1), columns.all(1))


def test_blocks_of_filters_hold_whole_kernels() -> None:
    conv = nn.Conv2d(6, 4, 3)
    with torch.no_grad():
        conv.weight[:2, 3:] *= 1e-3
    found = GroupLasso(0.05, groups=Blocks((2, 3))).prox(conv.weight.detach(), 1.0)
    assert not found[:2, 3:].any()
    assert (found[:2, :3] != 0).all()
    assert (found[2:] != 0).all()
