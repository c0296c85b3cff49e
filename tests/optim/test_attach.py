"""The proximal step in a user's own loop: exact zeros, one meaning of the strength, nothing else changed."""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.terms import Member, Term

Build = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, Build] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.02, momentum=0.9),
    "dampened": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "nesterov": lambda p: SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "fused momentum": lambda p: SGD(p, lr=0.02, momentum=0.9, fused=True),
    "adam": lambda p: Adam(p, lr=0.05),
    "amsgrad": lambda p: Adam(p, lr=0.05, amsgrad=True),
    "adamw": lambda p: AdamW(p, lr=0.05, weight_decay=0.0),
    "fused adamw": lambda p: AdamW(p, lr=0.05, weight_decay=0.0, fused=True),
}
each_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


def _lasso_data() -> tuple[Tensor, Tensor]:
    """Return 200 rows of 20 features of which the first 3 matter."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 20))
    y = x[:, :3] @ np.array([3.0, -2.0, 1.5]) + 0.5 * rng.normal(size=200)
    return torch.tensor(x), torch.tensor(y)[:, None]


def _solution(x: Tensor, y: Tensor) -> tuple[np.ndarray, float]:
    """Return scikit-learn's lasso at λ = 0.4: its loss is ½·MSE, so its alpha is λ/2."""
    found = Lasso(0.2, tol=1e-12).fit(x.numpy(), y[:, 0].numpy())  # type: ignore[no-untyped-call]
    return found.coef_, float(found.intercept_)


def _linear(features: int = 20) -> nn.Linear:
    return nn.Linear(features, 1, dtype=torch.float64)


def _step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, sign: float = 1.0) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(sign * nn.functional.mse_loss(model(x), y))
    optimizer.step()


def _weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


# ---- zeros, and where they come from ------------------------------------------------------------


@each_optimizer
def test_the_null_weights_of_a_lasso_are_exactly_zero(kind: str) -> None:
    """All 17 of them, and the other 3 are scikit-learn's."""
    x, y = _lasso_data()
    model = _linear()
    optimizer = OPTIMIZERS[kind](model.parameters())
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)))
    for _ in range(600):
        _step(model, optimizer, x, y)
    w = model.weight.detach()[0]
    expected, intercept = _solution(x, y)
    assert int((w == 0).sum()) == 17
    assert torch.equal(w[3:], torch.zeros(17, dtype=w.dtype))
    np.testing.assert_allclose(w.numpy(), expected, atol=1e-6)
    assert model.bias.item() == pytest.approx(intercept, abs=1e-6)


def test_changing_lr_and_momentum_leads_to_the_same_zeros() -> None:
    x, y = _lasso_data()
    expected, _ = _solution(x, y)
    for build in (OPTIMIZERS["momentum"], OPTIMIZERS["adamw"]):
        model = _linear()
        optimizer = build(model.parameters())
        schedule = OneCycleLR(optimizer, max_lr=0.1, total_steps=1001, cycle_momentum=True)
        tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)))
        for _ in range(1000):
            _step(model, optimizer, x, y)
            schedule.step()
        np.testing.assert_allclose(model.weight.detach().numpy()[0], expected, atol=1e-5)
        assert int((model.weight == 0).sum()) == 17


@each_optimizer
def test_maximizing_the_negative_loss_is_the_same(kind: str) -> None:
    x, y = _lasso_data()
    down = _linear()
    up = copy.deepcopy(down)
    first = OPTIMIZERS[kind](down.parameters())
    second = OPTIMIZERS[kind](up.parameters())
    second.param_groups[0]["maximize"] = True
    tl.attach(first, tl.Regularizer(down, tl.L1(0.4)))
    tl.attach(second, tl.Regularizer(up, tl.L1(0.4)))
    for _ in range(20):
        _step(down, first, x, y)
        _step(up, second, x, y, sign=-1.0)
    assert torch.allclose(down.weight, up.weight, atol=1e-14)
    assert torch.equal(down.weight == 0, up.weight == 0)


def test_weight_decay_of_sgd_is_the_ridge_part_of_an_elastic_net() -> None:
    x, y = _lasso_data()
    model, other = _linear(), _linear()
    groups: list[dict[str, Any]] = [{"params": [model.weight], "weight_decay": 0.3}, {"params": [model.bias]}]
    decayed = SGD(groups, lr=0.1)
    plain = SGD(other.parameters(), lr=0.1)
    tl.attach(decayed, tl.Regularizer(model, tl.L1(0.3)))
    tl.attach(plain, tl.Regularizer(other, tl.ElasticNet(0.6, l1_ratio=0.5)))
    for _ in range(300):
        _step(model, decayed, x, y)
        _step(other, plain, x, y)
    assert torch.allclose(model.weight, other.weight, atol=1e-8)
    assert torch.equal(model.weight == 0, other.weight == 0)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_gradient_accumulation_shrinks_once_a_step(kind: str) -> None:
    x, y = _lasso_data()
    whole = _linear()
    parts = copy.deepcopy(whole)
    first, second = OPTIMIZERS[kind](whole.parameters()), OPTIMIZERS[kind](parts.parameters())
    tl.attach(first, tl.Regularizer(whole, tl.L1(0.4)))
    tl.attach(second, tl.Regularizer(parts, tl.L1(0.4)))
    for _ in range(30):
        _step(whole, first, x, y)
        second.zero_grad()
        for a, b in zip(x.tensor_split(4), y.tensor_split(4), strict=True):
            torch.autograd.backward(nn.functional.mse_loss(parts(a), b) / 4)
        second.step()
    assert torch.allclose(whole.weight, parts.weight, atol=1e-10)


# ---- nothing moves that should not ---------------------------------------------------------------


@each_optimizer
def test_lr_zero_moves_nothing(kind: str) -> None:
    x, y = _lasso_data()
    model = _linear()
    optimizer = OPTIMIZERS[kind](model.parameters())
    optimizer.param_groups[0]["lr"] = 0.0
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(10.0)))
    before = _weights(model)
    for _ in range(3):
        _step(model, optimizer, x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, _weights(model), strict=True))


@each_optimizer
@pytest.mark.parametrize("penalty", [tl.L1(0.0), tl.ElasticNet(0.0), tl.GroupLasso(0.0, groups="columns")])
def test_strength_zero_is_the_plain_optimizer_to_the_last_bit(kind: str, penalty: Any) -> None:
    x, y = _lasso_data()
    model = _linear()
    plain = copy.deepcopy(model)
    optimizer, other = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](plain.parameters())
    tl.attach(optimizer, tl.Regularizer(model, penalty))
    for _ in range(5):
        _step(model, optimizer, x, y)
        _step(plain, other, x, y)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@each_optimizer
def test_what_is_not_penalised_is_not_touched(kind: str) -> None:
    x, y = torch.randn(30, 4), torch.randn(30, 1)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    plain = copy.deepcopy(model)
    optimizer, other = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](plain.parameters())
    tl.attach(optimizer, tl.Regularizer(model, {"0.weight": tl.L1(100.0), "*": None}))
    before = copy.deepcopy(model)
    _step(model, optimizer, x, y)
    _step(plain, other, x, y)
    assert (model.get_parameter("0.weight").abs() < before.get_parameter("0.weight").abs()).all()
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name))


@each_optimizer
def test_a_parameter_without_a_gradient_is_not_shrunk(kind: str) -> None:
    used, unused = nn.Linear(3, 1), nn.Linear(3, 1)
    model = nn.ModuleDict({"used": used, "unused": unused})
    optimizer = OPTIMIZERS[kind](model.parameters())
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(100.0)))
    before = unused.weight.detach().clone()
    for _ in range(10):
        _step(used, optimizer, torch.randn(5, 3), torch.randn(5, 1))
    assert torch.equal(unused.weight, before)
    assert not used.weight.any()


def test_the_momentum_of_a_parameter_that_skips_steps_is_followed() -> None:
    """torch's buffer stands still without a gradient, and so must its metric: λ means the same."""
    metrics = []
    w = nn.Parameter(torch.tensor([1e6], dtype=torch.float64))
    model = nn.Module()
    model.w = w
    optimizer = SGD([w], lr=0.1, momentum=0.5)
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(1.0)))
    for skip in (False, True, True, False, False):
        before = w.item()
        w.grad = None if skip else torch.zeros_like(w)
        optimizer.step()
        metrics.append(before - w.item())
    assert metrics == pytest.approx([0.1, 0.0, 0.0, 0.15, 0.175], abs=1e-9)


def test_attach_adds_nothing_to_a_plain_sgd() -> None:
    model = _linear()
    optimizer = SGD(model.parameters(), lr=0.1)
    handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.1)))
    _step(model, optimizer, *_lasso_data())
    assert len(optimizer.state) == 0
    assert optimizer.state_dict()["state"] == {}
    handle.remove()
    assert optimizer.state_dict().keys() == {"state", "param_groups"}


def test_the_shrinkage_is_not_part_of_any_graph() -> None:
    model = _linear()
    optimizer = SGD(model.parameters(), lr=0.1)
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.1)))
    _step(model, optimizer, *_lasso_data())
    assert model.weight.requires_grad
    assert model.weight.is_leaf
    assert model.weight.grad_fn is None


# ---- learning rates --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_warm_up_from_zero_starts_without_a_jump_or_a_nan(kind: str) -> None:
    x, y = _lasso_data()
    model = _linear()
    optimizer = OPTIMIZERS[kind](model.parameters())
    schedule = LambdaLR(optimizer, lambda step: min(1.0, step / 10))
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)))
    before = model.weight.detach().clone()
    _step(model, optimizer, x, y)
    assert torch.equal(model.weight, before)
    for _ in range(500):
        schedule.step()
        _step(model, optimizer, x, y)
    assert int((model.weight == 0).sum()) == 17


def test_each_group_is_shrunk_by_its_own_learning_rate() -> None:
    model = nn.ModuleList([nn.Linear(2, 1, bias=False) for _ in range(2)])
    first, second = model.parameters()
    for weight in (first, second):
        nn.init.ones_(weight)
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": [second], "lr": 0.01}]
    optimizer = SGD(groups, lr=0.1)
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(2.0)))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(first, torch.full((1, 2), 0.8))
    assert torch.allclose(second, torch.full((1, 2), 0.98))


def test_a_closure_is_stepped_once_and_returns_its_loss() -> None:
    x, y = _lasso_data()
    model = _linear()
    other = copy.deepcopy(model)
    optimizer, plain = SGD(model.parameters(), lr=0.1), SGD(other.parameters(), lr=0.1)
    for each, m in ((optimizer, model), (plain, other)):
        tl.attach(each, tl.Regularizer(m, tl.L1(0.4)))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        torch.autograd.backward(loss)
        return loss

    expected = nn.functional.mse_loss(other(x), y).item()
    assert optimizer.step(closure).item() == expected
    _step(other, plain, x, y)
    assert torch.equal(model.weight, other.weight)


# ---- strengths that change ---------------------------------------------------------------------------


def test_a_schedule_is_read_at_every_step_from_zero_on() -> None:
    seen: list[int] = []

    def strength(step: int) -> float:
        seen.append(step)
        return 0.0 if step == 0 else 100.0

    model = _linear()
    optimizer = SGD(model.parameters(), lr=0.01)
    regularizer = tl.Regularizer(model, tl.L1(strength))
    handle = tl.attach(optimizer, regularizer)
    seen.clear()
    _step(model, optimizer, *_lasso_data())
    assert model.weight.all()
    _step(model, optimizer, *_lasso_data())
    assert not model.weight.any()
    assert (set(seen), seen[-1]) == ({0, 1}, 1)
    assert (handle.steps, regularizer.step) == (2, 2)


def test_attaching_anew_starts_the_schedule_anew() -> None:
    model = _linear()
    regularizer = tl.Regularizer(model, tl.L1(lambda step: float(step)))
    optimizer = SGD(model.parameters(), lr=0.01)
    handle = tl.attach(optimizer, regularizer)
    _step(model, optimizer, *_lasso_data())
    handle.remove()
    tl.attach(SGD(model.parameters(), lr=0.01), regularizer)
    assert regularizer.step == 0


# ---- what is refused ----------------------------------------------------------------------------------


def test_a_second_attach_is_refused_until_the_first_is_removed() -> None:
    model = _linear()
    optimizer, regularizer = SGD(model.parameters(), lr=0.1), tl.Regularizer(model, tl.L1(1.0))
    handle = tl.attach(optimizer, regularizer)
    with pytest.raises(InputError, match="attached already"):
        tl.attach(optimizer, regularizer)
    nn.init.ones_(model.weight)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert torch.allclose(model.weight, torch.full_like(model.weight, 0.9))  # shrunk once, not twice
    handle.remove()
    handle.remove()  # once more is harmless
    tl.attach(optimizer, regularizer)


def test_parameters_that_the_optimizer_does_not_hold_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"does not hold \['1.weight'\]"):
        tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.1)))
    tl.attach(optimizer, tl.Regularizer(model, {"0.*": tl.L1(0.1)}))  # the failure left nothing behind


@pytest.mark.parametrize("which", ["optimizer", "regularizer"])
def test_arguments_of_another_kind_are_refused(which: str) -> None:
    model = _linear()
    arguments: dict[str, Any] = {
        "optimizer": SGD(model.parameters(), lr=0.1),
        "regularizer": tl.Regularizer(model, tl.L1(0.1)),
    }
    arguments[which] = tl.L1(0.1)
    with pytest.raises(InputError, match="got L1"):
        tl.attach(**arguments)


@each_optimizer
def test_after_remove_it_is_the_plain_optimizer_again(kind: str) -> None:
    x, y = _lasso_data()
    model = _linear()
    other = copy.deepcopy(model)
    optimizer, plain = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](other.parameters())
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(1.0))).remove()
    for _ in range(3):
        _step(model, optimizer, x, y)
        _step(other, plain, x, y)
    assert torch.equal(model.weight, other.weight)


def test_the_handle_need_not_be_kept() -> None:
    model = _linear()
    optimizer = SGD(model.parameters(), lr=0.1)
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(100.0)))
    _step(model, optimizer, *_lasso_data())
    assert not model.weight.any()


# ---- frozen zeros --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda p: SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1),
        lambda p: Adam(p, lr=0.05, weight_decay=0.1),
        lambda p: AdamW(p, lr=0.05, weight_decay=0.1),
    ],
)
def test_frozen_zeros_stay_and_the_rest_trains_as_without_a_penalty(build: Build) -> None:
    x, y = _lasso_data()
    model = _linear()
    optimizer = build(model.parameters())
    handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)))
    for _ in range(300):
        _step(model, optimizer, x, y)
    zero = (model.weight == 0).clone()
    assert 0 < int(zero.sum()) < 20
    handle.freeze_zeros()
    assert handle.frozen
    other = copy.deepcopy(model)
    plain = build(other.parameters())
    plain.load_state_dict(
        {k: v for k, v in copy.deepcopy(optimizer.state_dict()).items() if k != "torchlasso"}
    )
    for _ in range(50):
        _step(model, optimizer, x, y)
        _step(other, plain, x, y)
        with torch.no_grad():
            other.weight.masked_fill_(zero, 0.0)
        assert torch.equal(model.weight == 0, zero)
        assert torch.equal(model.weight, other.weight)


def test_freezing_removes_the_bias_of_the_lasso() -> None:
    x, y = _lasso_data()
    model = _linear()
    optimizer = SGD(model.parameters(), lr=0.1)
    handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)))
    for _ in range(300):
        _step(model, optimizer, x, y)
    handle.freeze_zeros()
    for _ in range(300):
        _step(model, optimizer, x, y)
    design = np.column_stack([x[:, :3].numpy(), np.ones(200)])
    expected = np.linalg.lstsq(design, y.numpy()[:, 0], rcond=None)[0]
    np.testing.assert_allclose(model.weight.detach().numpy()[0, :3], expected[:3], atol=1e-10)
    assert not model.weight[0, 3:].any()


def test_unfrozen_zeros_move_again_and_the_penalty_is_back() -> None:
    x, y = _lasso_data()
    model = _linear()
    nn.init.zeros_(model.weight)
    optimizer = SGD(model.parameters(), lr=0.1)
    handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)))
    handle.freeze_zeros()
    _step(model, optimizer, x, y)
    assert not model.weight.any()
    handle.unfreeze_zeros()
    assert not handle.frozen
    for _ in range(300):
        _step(model, optimizer, x, y)
    expected, _ = _solution(x, y)
    np.testing.assert_allclose(model.weight.detach().numpy()[0], expected, atol=1e-8)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_frozen_weights_stay_within_the_constraints(kind: str) -> None:
    """Without shrinkage the gradient would pull the second weight below zero."""
    x = torch.randn(100, 2, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    model = _linear(2)
    nn.init.constant_(model.weight, 0.5)
    optimizer = OPTIMIZERS[kind](model.parameters())
    regularizer = tl.Regularizer(model, tl.L1(0.01, nonnegative=True))
    tl.attach(optimizer, regularizer).freeze_zeros()
    for _ in range(200):
        _step(model, optimizer, x, y)
    assert (model.weight >= 0).all()
    assert math.isfinite(regularizer().item())


# ---- save and resume -----------------------------------------------------------------------------------


def _session(kind: str, seed: int, *, frozen_from: int | None) -> tuple[nn.Module, Optimizer, Any, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(20, 6, dtype=torch.float64), nn.ReLU(), nn.Linear(6, 1, dtype=torch.float64)
    )
    optimizer = OPTIMIZERS[kind](model.parameters())
    rules: dict[Any, Any] = {
        "0.weight": tl.GroupLasso(lambda step: 0.002 * step, groups="columns"),
        "2.weight": tl.L1(lambda step: 0.001 * step),
    }
    handle = tl.attach(optimizer, tl.Regularizer(model, rules))

    def run(start: int, stop: int) -> None:
        x, y = _lasso_data()
        for step in range(start, stop):
            if step == frozen_from:
                handle.freeze_zeros()
            _step(model, optimizer, x, y)

    return model, optimizer, handle, run


@each_optimizer
@pytest.mark.parametrize("frozen_from", [None, 40, 60])
def test_a_hundred_steps_are_fifty_and_fifty_after_a_reload_to_the_last_bit(
    kind: str, frozen_from: int | None
) -> None:
    model, _, whole, run = _session(kind, 0, frozen_from=frozen_from)
    run(0, 100)

    first, optimizer, _, run = _session(kind, 0, frozen_from=frozen_from)
    run(0, 50)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, optimizer, handle, run = _session(kind, 99, frozen_from=frozen_from)
    optimizer.load_state_dict(saved["optimizer"])
    second.load_state_dict(saved["model"])
    assert (handle.steps, handle.regularizer.step) == (50, 50)
    assert handle.frozen == (frozen_from == 40)
    run(50, 100)

    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second.parameters(), strict=True))
    assert 0 < tl.sparsity(model).total < 1
    assert handle.steps == whole.steps == 100


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_after_loading_the_learning_rate_is_read_from_the_loaded_groups(kind: str) -> None:
    """torch replaces the groups when it loads: a schedule then changes the new ones."""
    x, y = _lasso_data()
    model = _linear()
    optimizer = OPTIMIZERS[kind](model.parameters())
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(10.0)))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.param_groups[0]["lr"] = 0.0
    before = model.weight.detach().clone()
    _step(model, optimizer, x, y)
    assert torch.equal(model.weight, before)


def test_loading_restores_unfrozen_zeros_too() -> None:
    _, optimizer, _, _ = _session("adam", 0, frozen_from=None)
    saved = optimizer.state_dict()
    _, other, handle, _ = _session("adam", 1, frozen_from=None)
    handle.freeze_zeros()
    other.load_state_dict(saved)
    assert not handle.frozen


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_loading_a_foreign_state_warns_and_goes_on(kind: str) -> None:
    x, y = _lasso_data()
    model = _linear()
    plain = OPTIMIZERS[kind](model.parameters())
    _step(model, plain, x, y)
    other = _linear()
    optimizer = OPTIMIZERS[kind](other.parameters())
    handle = tl.attach(optimizer, tl.Regularizer(other, tl.L1(0.4)))
    with pytest.warns(UserWarning, match="saved without torchlasso.*step 0, and zeros are not frozen"):
        optimizer.load_state_dict(plain.state_dict())
    for _ in range(600):
        _step(other, optimizer, x, y)
    assert int((other.weight == 0).sum()) == 17
    assert handle.steps == 600


def test_a_foreign_momentum_is_taken_in_its_steady_state() -> None:
    w = nn.Parameter(torch.full((1,), 1e3, dtype=torch.float64))
    model = nn.Module()
    model.w = w
    plain, optimizer = SGD([w], lr=0.1, momentum=0.9), SGD([w], lr=0.1, momentum=0.9)
    w.grad = torch.zeros_like(w)
    plain.step()
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(1.0)))
    with pytest.warns(UserWarning, match="saved without torchlasso"):
        optimizer.load_state_dict(plain.state_dict())
    optimizer.step()
    assert w.item() == pytest.approx(1e3 - 0.1 / (1 - 0.9))


def test_a_state_with_a_handle_loads_into_a_plain_optimizer() -> None:
    model, optimizer, _, run = _session("adam", 0, frozen_from=None)
    run(0, 3)
    plain = Adam(model.parameters(), lr=0.5)
    plain.load_state_dict(optimizer.state_dict())
    assert plain.param_groups[0]["lr"] == 0.05
    assert plain.state_dict().keys() == {"state", "param_groups"}


def test_frozen_zeros_of_other_parameters_are_refused_before_anything_is_loaded() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    narrow = SGD(model.parameters(), lr=0.1)
    tl.attach(narrow, tl.Regularizer(model, {"0.weight": tl.L1(0.1)})).freeze_zeros()
    wide = SGD(model.parameters(), lr=0.5)
    handle = tl.attach(wide, tl.Regularizer(model, tl.L1(0.1)))
    with pytest.raises(InputError, match="frozen zeros of other parameters"):
        wide.load_state_dict(narrow.state_dict())
    assert wide.param_groups[0]["lr"] == 0.5
    assert not handle.frozen


def test_attaching_to_a_momentum_that_runs_already_uses_its_steady_state() -> None:
    w = nn.Parameter(torch.full((1,), 1e3, dtype=torch.float64))
    model = nn.Module()
    model.w = w
    optimizer = SGD([w], lr=0.1, momentum=0.9)
    for _ in range(300):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(1.0)))
    optimizer.step()
    assert w.item() == pytest.approx(1e3 - 0.1 / (1 - 0.9))


# ---- joint groups ----------------------------------------------------------------------------------------


class Additive(nn.Module):
    """Two outputs; feature j enters by column j of one matrix and by entry j of a vector on its square."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(20, 2, dtype=torch.float64)
        self.curve = nn.Parameter(torch.randn(20, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(x) + ((x.square() - 1) @ self.curve)[:, None]
        return output


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_joint_groups_reach_the_optimum_in_any_metric_and_vanish_whole(kind: str) -> None:
    x, y = _lasso_data()
    y = torch.cat([y, 0.5 * x[:, 3:4].square()], dim=1)
    model = Additive()
    members = (
        Member("linear.weight", model.get_parameter("linear.weight"), dim=1),
        Member("curve", model.curve),
    )
    regularizer = tl.Regularizer.from_terms([Term(tl.GroupLasso(0.3, weights=None), members)])
    optimizer = OPTIMIZERS[kind](model.parameters())
    schedule = LambdaLR(optimizer, lambda step: 0.99 ** max(0, step - 200))
    tl.attach(optimizer, regularizer)
    for _ in range(900):
        _step(model, optimizer, x, y)
        schedule.step()
    gradients = torch.autograd.grad(nn.functional.mse_loss(model(x), y), [model.linear.weight, model.curve])
    dead = 0
    for j in range(20):  # the problem is convex: stationary, feature by feature, is optimal
        w = torch.cat([model.linear.weight[:, j], model.curve[j : j + 1]]).detach()
        grad = torch.cat([gradients[0][:, j], gradients[1][j : j + 1]])
        if not w.any():
            dead += 1
            assert float(grad.norm()) <= 0.3
        else:
            assert w.all()
            assert torch.allclose(grad, -0.3 * w / w.norm(), atol=1e-5)
    assert dead == 16


def test_a_joint_member_without_a_gradient_stays_where_it_is() -> None:
    a, b = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 2))
    regularizer = tl.Regularizer.from_terms(
        [Term(tl.GroupLasso(0.5, weights=None), (Member("a", a), Member("b", b)))]
    )
    optimizer = SGD([a, b], lr=0.1)
    tl.attach(optimizer, regularizer)
    a.grad = torch.zeros_like(a)
    optimizer.step()
    assert torch.equal(b, torch.ones(2, 2))
    assert (a < 1).all()
    assert (a > 0).all()


# ---- trouble stays visible ---------------------------------------------------------------------------------


@each_optimizer
@pytest.mark.parametrize("penalty", [tl.L1(0.4), tl.ElasticNet(0.4), tl.GroupLasso(0.4, groups="tensor")])
def test_a_nan_gradient_is_not_hidden_by_a_zero(kind: str, penalty: Any) -> None:
    model = _linear()
    optimizer = OPTIMIZERS[kind](model.parameters())
    tl.attach(optimizer, tl.Regularizer(model, penalty))
    model.weight.grad = torch.full_like(model.weight, math.nan)
    optimizer.step()
    assert model.weight.isnan().all()


@pytest.mark.parametrize(
    "build",
    [
        lambda p: SGD(p, lr=0.1),
        lambda p: SGD(p, lr=0.1, fused=True),
        lambda p: Adam(p, lr=0.1),
        lambda p: Adam(p, lr=0.1, fused=True),
        lambda p: AdamW(p, lr=0.1, fused=True),
    ],
)
def test_a_step_that_the_grad_scaler_skips_shrinks_nothing(build: Build) -> None:
    model = nn.Linear(3, 1)
    optimizer = build(model.parameters())
    handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(1.0)))
    scaler = torch.amp.GradScaler("cpu")
    before = model.weight.detach().clone()
    for factor, skipped in ((math.inf, True), (1.0, False)):
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale((model(torch.ones(2, 3)) * factor).sum()))
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model.weight, before) == skipped
        assert handle.steps == (0 if skipped else 1)
    assert model.weight.isfinite().all()


def test_scaled_training_ends_where_unscaled_training_ends() -> None:
    x, y = _lasso_data()
    results = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = _linear()
        optimizer = Adam(model.parameters(), lr=0.05, fused=True)
        tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)))
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, growth_interval=50)
        for _ in range(300):
            optimizer.zero_grad()
            torch.autograd.backward(scaler.scale(nn.functional.mse_loss(model(x), y)))
            scaler.step(optimizer)
            scaler.update()
        results.append(model.weight.detach())
    assert torch.allclose(results[0], results[1], atol=1e-7)
    assert torch.equal(results[0] == 0, results[1] == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_keeps_its_dtype_and_reaches_the_zeros(dtype: torch.dtype) -> None:
    x, y = _lasso_data()
    model = nn.Linear(20, 1).to(dtype)
    optimizer = Adam(model.parameters(), lr=0.05)
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.5)))
    for _ in range(200):
        _step(model, optimizer, x.to(dtype), y.to(dtype))
    assert model.weight.dtype == dtype
    assert model.weight[0, :3].all()
    assert int((model.weight == 0).sum()) >= 14
    assert not (torch.signbit(model.weight) & (model.weight == 0)).any()
