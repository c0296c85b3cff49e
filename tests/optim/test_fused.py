"""ProxAdamW and ProxSGD are torch's own optimizer with ``attach``, in one pass over memory."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.optim.kernels import library
from torchlasso.penalties.base import Penalty
from torchlasso.terms import Member, Term

ADAM: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.02, "weight_decay": 0.0},
    "decay": {"lr": 0.02, "weight_decay": 0.1},
    "amsgrad": {"lr": 0.02, "amsgrad": True},
    "maximize": {"lr": 0.02, "maximize": True},
    "betas": {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3},
}
MOMENTUM: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05},
    "momentum": {"lr": 0.02, "momentum": 0.9},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    "nesterov": {"lr": 0.02, "momentum": 0.9, "nesterov": True},
    "maximize, decay": {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.1, "maximize": True},
}
SETTINGS = [("adam", s) for s in ADAM.values()] + [("sgd", s) for s in MOMENTUM.values()]
names = [*ADAM, *MOMENTUM]
each_setting = pytest.mark.parametrize(("kind", "settings"), SETTINGS, ids=names)
TORCH: dict[str, Any] = {"adam": AdamW, "sgd": SGD}
OURS: dict[str, Any] = {"adam": tl.optim.ProxAdamW, "sgd": tl.optim.ProxSGD}
both = pytest.mark.parametrize("kind", OURS)
Rules = Callable[[nn.Module], tl.Regularizer]


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Return a net without a bias before its norm, whose gradient would be rounding alone."""
    torch.manual_seed(0)
    layers = (
        nn.Conv1d(1, 4, 3, bias=False),
        nn.BatchNorm1d(4),
        nn.Flatten(),
        nn.Linear(24, 6),
        nn.ReLU(),
        nn.Linear(6, 1),
    )
    return nn.Sequential(*layers).to(dtype)


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(64, 1, 8, generator=draw, dtype=torch.float64)
    return x.to(dtype), (x[:, :, 0] - x[:, :, 3]).to(dtype)


def penalised(penalty: Penalty) -> Rules:
    return lambda model: tl.Regularizer(model, penalty)


def joint(model: nn.Module) -> tl.Regularizer:
    """Return groups of a hidden unit's row and the next layer's column, and a lasso on the convolution."""
    incoming, outgoing = model.get_parameter("3.weight"), model.get_parameter("5.weight")
    members = (Member("3.weight", incoming), Member("5.weight", outgoing, dim=1))
    alone = Term(tl.L1(0.01), (Member("0.weight", model.get_parameter("0.weight")),))
    return tl.Regularizer.from_terms([Term(tl.GroupLasso(0.02), members), alone])


PENALTIES: dict[str, Rules] = {
    "lasso": penalised(tl.L1(0.03)),
    "schedule": penalised(tl.L1(lambda step: 0.002 * step)),
    "nonnegative": penalised(tl.L1(0.03, nonnegative=True)),
    "weighted elastic net": lambda model: tl.Regularizer(
        model,
        {"3.weight": tl.ElasticNet(0.05, weights=torch.linspace(0, 3, 24)), "*.weight": tl.ElasticNet(0.05)},
    ),
    "excluded": lambda model: tl.Regularizer(
        model, {"3.weight": tl.L1(0.01, weights=torch.tensor([math.inf, 0.0, 1.0, 2.0] * 6))}
    ),
    "groups": penalised(tl.GroupLasso(0.02)),
    "joint": joint,
}


def train(
    make: Callable[[nn.Module], Optimizer],
    steps: int = 40,
    *,
    dtype: torch.dtype = torch.float64,
    sign: float = 1.0,
    noise: float = 0.0,
) -> tuple[nn.Module, Optimizer]:
    model = net(dtype)
    optimizer = make(model)
    run(model, optimizer, 0, steps, sign=sign, noise=noise)
    return model, optimizer


def run(
    model: nn.Module, optimizer: Optimizer, start: int, stop: int, *, sign: float = 1.0, noise: float = 0.0
) -> None:
    """Train on batches that depend on the step alone."""
    dtype = next(model.parameters()).dtype
    x, y = data(dtype)
    for step in range(start, stop):
        draw = torch.Generator().manual_seed(step)
        rows = torch.randint(len(x), (16,), generator=draw)
        optimizer.zero_grad()
        target = y[rows] + noise * torch.randn(16, 1, generator=draw, dtype=torch.float64).to(dtype)
        torch.autograd.backward(sign * nn.functional.mse_loss(model(x[rows]), target))
        if step % 7 == 3:
            model.get_parameter("0.weight").grad = None  # an unused layer
        optimizer.step()


def attached(
    kind: str, settings: dict[str, Any], rules: Rules, memory: Any
) -> Callable[[nn.Module], Optimizer]:
    def make(model: nn.Module) -> Optimizer:
        optimizer: Optimizer = TORCH[kind](model.parameters(), **settings)
        tl.attach(optimizer, rules(model), memory=memory)
        return optimizer

    return make


def fused(kind: str, settings: dict[str, Any], rules: Rules, memory: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda model: OURS[kind](model.parameters(), rules(model), **settings, memory=memory)


def in_torch(monkeypatch: pytest.MonkeyPatch, make: Callable[[nn.Module], Optimizer], **given: Any) -> Any:
    """Train without the C library: torch's optimizer, and the proximal step in tensor operations."""
    with monkeypatch.context() as patch:
        patch.setattr(library, "_load", lambda: "switched off")
        return train(make, **given)


def assert_same(first: nn.Module, second: nn.Module, tolerance: float) -> None:
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )
        if tolerance < 1e-9:
            assert torch.equal(a == 0, b == 0)


def assert_same_state(first: Optimizer, second: Optimizer, tolerance: float) -> None:
    """Compare what torch itself keeps, key by key."""
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys() == {"state", "param_groups", "torchlasso"}
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for number, entries in a["state"].items():
        assert entries.keys() == b["state"][number].keys()
        for key, value in entries.items():
            other = b["state"][number][key]
            assert (value is None) == (other is None)
            if value is not None:
                assert value.dtype == other.dtype
                torch.testing.assert_close(value, other, rtol=tolerance, atol=tolerance)


# ---- the same numbers -----------------------------------------------------------------------------------


@each_setting
@pytest.mark.parametrize("memory", ["auto", 0, 15])
def test_it_is_attach_in_every_setting(
    kind: str, settings: dict[str, Any], memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = PENALTIES["lasso"]
    given = {"sign": -1.0 if settings.get("maximize") else 1.0, "noise": 1.0}
    model, optimizer = train(fused(kind, settings, rules, memory), **given)
    other, reference = in_torch(monkeypatch, attached(kind, settings, rules, memory), **given)
    assert_same(model, other, 1e-12)
    assert_same_state(optimizer, reference, 1e-12)
    assert 0 < tl.sparsity(model).total < 1


@both
@pytest.mark.parametrize("memory", ["auto", 0])
@pytest.mark.parametrize("name", PENALTIES)
def test_it_is_attach_for_every_penalty(
    kind: str, name: str, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ADAM["decay"] if kind == "adam" else MOMENTUM["dampening"]
    rules = PENALTIES[name]
    model, optimizer = train(fused(kind, settings, rules, memory), noise=1.0)
    other, reference = in_torch(monkeypatch, attached(kind, settings, rules, memory), noise=1.0)
    assert_same(model, other, 1e-12)
    assert_same_state(optimizer, reference, 1e-12)
    assert 0 < tl.sparsity(model).total < 1


@both
@pytest.mark.parametrize("memory", ["auto", 0])
def test_it_is_attach_in_float32(kind: str, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ADAM["decay"] if kind == "adam" else MOMENTUM["momentum"]
    given: dict[str, Any] = {"steps": 30, "dtype": torch.float32}
    model, _ = train(fused(kind, settings, PENALTIES["lasso"], memory), **given)
    other, _ = in_torch(monkeypatch, attached(kind, settings, PENALTIES["lasso"], memory), **given)
    assert_same(model, other, 1e-5)


@both
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_the_default_dtype_changes_torchs_counters_and_nothing_else(kind: str, default: torch.dtype) -> None:
    torch.set_default_dtype(default)
    try:
        settings = {"lr": 0.02}
        model, optimizer = train(fused(kind, settings, PENALTIES["lasso"], 0), steps=20)
        other, reference = train(attached(kind, settings, PENALTIES["lasso"], 0), steps=20)
        assert_same(model, other, 1e-12)
        assert_same_state(optimizer, reference, 1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


@both
def test_parameter_groups_schedules_and_closures(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    x, y = data()
    for ours in (True, False):
        with monkeypatch.context() as patch:
            if not ours:
                patch.setattr(library, "_load", lambda: "switched off")
            model = net()
            groups = [
                {"params": list(model[:3].parameters()), "lr": 0.01},
                {"params": list(model[3:].parameters()), "weight_decay": 0.2},
            ]
            regularizer = tl.Regularizer(model, tl.L1(0.02))
            if ours:
                optimizer = OURS[kind](groups, regularizer, lr=0.05)
            else:
                optimizer = TORCH[kind](groups, lr=0.05)
                tl.attach(optimizer, regularizer)
            schedule = LambdaLR(optimizer, [lambda step: min(1.0, step / 10), lambda step: 0.97**step])

            def closure(model: nn.Module = model, optimizer: Any = optimizer) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x), y)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                return loss

            losses = []
            for _ in range(60):
                losses.append(optimizer.step(closure).item())
                schedule.step()
            ends.append((model, optimizer, losses))
    assert ends[0][2] == pytest.approx(ends[1][2], abs=1e-12)
    assert_same(ends[0][0], ends[1][0], 1e-12)
    assert_same_state(ends[0][1], ends[1][1], 1e-12)
    assert 0 < tl.sparsity(ends[0][0]).total < 1


@both
@pytest.mark.parametrize("memory", ["auto", 0])
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "gaps", "gradient of another layout"])
def test_memory_layouts(kind: str, memory: Any, layout: str) -> None:
    """Whatever the memory looks like, the numbers are those of contiguous tensors."""
    ends = []
    for plain in (True, False):
        values = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        if layout == "channels_last" and not plain:
            values = values.to(memory_format=torch.channels_last)
        if layout == "transposed" and not plain:
            values = values.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
        if layout == "gaps" and not plain:
            values = torch.stack([values, values], dim=-1)[..., 0]
        model = nn.Module()
        w = nn.Parameter(values)
        model.register_parameter("w", w)
        optimizer = OURS[kind]([w], tl.Regularizer(model, tl.L1(0.5)), lr=0.05, memory=memory)
        for step in range(30):
            grad = (
                torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(step))
                + 0.3 * w.detach()
            )
            if layout == "gradient of another layout" and not plain:
                grad = grad.to(memory_format=torch.channels_last)
            w.grad = grad
            optimizer.step()
        ends.append(w.detach().clone())
        if layout != "gaps":
            assert w.stride() == values.stride()
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-13)
    assert 0 < int((ends[0] == 0).sum()) < ends[0].numel()


@pytest.mark.parametrize("make", ["attach", "fused"])
@both
def test_a_model_may_change_its_type_or_memory_format_on_the_way(kind: str, make: str) -> None:
    for change in ({"dtype": torch.float64}, {"memory_format": torch.channels_last}):
        model = nn.Conv2d(3, 4, 3, bias=False)
        nn.init.constant_(model.weight, 1.0)
        regularizer = tl.Regularizer(model, tl.L1(1.0))
        settings = {"lr": 0.1} if kind == "sgd" else {"lr": 0.1, "weight_decay": 0.0}
        if make == "fused":
            optimizer = OURS[kind](model.parameters(), regularizer, **settings)
        else:
            optimizer = TORCH[kind](model.parameters(), **settings)
            tl.attach(optimizer, regularizer)
        for _ in range(2):
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()
        if change.get("dtype") and kind == "adam":
            optimizer.state.clear()  # torch's own would refuse moments of the old type
        model.to(**change)
        shrunk = model.weight.detach().clone()
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        by = 0.1 if kind == "sgd" else 0.2  # never a gradient: bounded by twice the learning rate
        assert torch.allclose(model.weight, shrunk - by)


def test_sparse_gradients_of_sgd() -> None:
    """A row without an entry has a gradient of zero, so it is shrunk as under dense gradients."""
    ends = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Embedding(9, 3, sparse=sparse, dtype=torch.float64)
        regularizer = tl.Regularizer(model, {model.weight: tl.L1(0.05)})
        optimizer = tl.optim.ProxSGD(model.parameters(), regularizer, lr=0.3, momentum=0.5)
        for _ in range(40):
            optimizer.zero_grad()
            torch.autograd.backward((model(torch.tensor([0, 3, 3])) - 1).square().mean())
            optimizer.step()
        ends.append(model.weight.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-13)
    assert (ends[0] == 0).any()
    assert ends[0][3].all()


def test_sparse_gradients_of_adamw_are_refused_as_by_torch() -> None:
    model = nn.Embedding(9, 3, sparse=True)
    optimizer = tl.optim.ProxAdamW(model.parameters(), tl.Regularizer(model, {model.weight: tl.L1(0.05)}))
    torch.autograd.backward(model(torch.tensor([0])).sum())
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


@both
def test_complex_parameters(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for ours in (True, False):
        model = nn.Module()
        torch.manual_seed(0)
        w, b = (
            nn.Parameter(torch.randn(5, dtype=torch.complex128)),
            nn.Parameter(torch.zeros(5, dtype=torch.float64)),
        )
        model.register_parameter("w", w)
        model.register_parameter("b", b)
        regularizer = tl.Regularizer(model, {"w": tl.L1(0.3)})
        optimizer = (OURS if ours else TORCH)[kind]([w, b], *([regularizer] if ours else []), lr=0.05)
        if not ours:
            tl.attach(optimizer, regularizer)
        goal = torch.tensor([1 + 1j, 0.05, 0.05j, -1j, 2], dtype=torch.complex128)
        for _ in range(100):
            optimizer.zero_grad()
            torch.autograd.backward((w - goal + b).abs().square().sum())
            optimizer.step()
        ends.append(w.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-12)
    assert torch.equal(ends[0] == 0, ends[1] == 0)


# ---- the same files ---------------------------------------------------------------------------------------


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("more", [{}, {"fused": True}, {"foreach": True}, {"foreach": False}])
@both
def test_a_checkpoint_of_torchs_loads_into_it_and_goes_on(kind: str, more: dict[str, Any]) -> None:
    settings = {"lr": 0.02, "momentum": 0.9} if kind == "sgd" else {"lr": 0.02, "amsgrad": True}
    model, plain = train(lambda m: TORCH[kind](m.parameters(), **settings, **more), steps=20)
    other = copy.deepcopy(model)
    ours = OURS[kind](other.parameters(), tl.Regularizer(other, tl.L1(0.0)), lr=1.0)
    with pytest.warns(UserWarning, match="saved without torchlasso"):
        ours.load_state_dict(saved_and_loaded(plain.state_dict()))
    run(model, plain, 20, 40)
    run(other, ours, 20, 40)
    assert_same(model, other, 1e-12)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in plain.state[p].items():
            torch.testing.assert_close(ours.state[q][key], value, rtol=0, atol=1e-12)


@both
def test_its_checkpoint_loads_into_torchs_and_goes_on(kind: str) -> None:
    model, ours = train(fused(kind, {"lr": 0.02}, penalised(tl.L1(0.0)), "auto"), steps=20)
    other = copy.deepcopy(model)
    plain = TORCH[kind](other.parameters(), lr=1.0)
    plain.load_state_dict(saved_and_loaded(ours.state_dict()))
    run(model, ours, 20, 40)
    run(other, plain, 20, 40)
    assert_same(model, other, 1e-12)


@both
@pytest.mark.parametrize("name", ["schedule", "groups", "joint"])
@pytest.mark.parametrize("frozen_from", [None, 40, 60])
def test_a_hundred_steps_are_fifty_and_fifty_to_the_last_bit(
    kind: str, name: str, frozen_from: int | None
) -> None:
    settings = {"lr": 0.02, "momentum": 0.9} if kind == "sgd" else {"lr": 0.02}

    def go(model: nn.Module, optimizer: Any, start: int, stop: int) -> None:
        for step in range(start, stop):
            if step == frozen_from:
                optimizer.handle.freeze_zeros()
            run(model, optimizer, step, step + 1, noise=1.0)

    make = fused(kind, settings, PENALTIES[name], "auto")
    whole = net()
    optimizer: Any = make(whole)
    go(whole, optimizer, 0, 100)
    first = net()
    optimizer = make(first)
    go(first, optimizer, 0, 50)
    saved = saved_and_loaded({"model": first.state_dict(), "optimizer": optimizer.state_dict()})
    second = net()
    nn.init.normal_(second.get_parameter("3.weight"))
    optimizer = make(second)
    optimizer.load_state_dict(saved["optimizer"])
    second.load_state_dict(saved["model"])
    go(second, optimizer, 50, 100)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    assert 0 < tl.sparsity(second).total < 1


@both
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_carry_their_penalty(kind: str, way: str) -> None:
    """No attach is needed: the regularizer travels with the optimizer, onto the copy's own parameters."""
    rules = penalised(tl.L1(0.03))
    model, optimizer = train(fused(kind, {"lr": 0.02}, rules, "auto"), steps=30, noise=1.0)
    pair = (model, optimizer)
    second, other = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    run(second, other, 30, 60, noise=1.0)
    assert other.handle.steps == 60
    run(model, optimizer, 30, 60, noise=1.0)
    assert_same(model, second, 0.0)
    assert 0 < tl.sparsity(second).total < 1


# ---- the same life -----------------------------------------------------------------------------------------


@both
def test_frozen_zeros_stay_under_decay_and_momentum(kind: str) -> None:
    settings = {"lr": 0.05, "weight_decay": 0.1} | ({"momentum": 0.9} if kind == "sgd" else {})
    model, optimizer = train(fused(kind, settings, PENALTIES["lasso"], "auto"))
    zeros = [p == 0 for p in model.parameters()]
    optimizer.handle.freeze_zeros()  # type: ignore[attr-defined]
    before = copy.deepcopy(model)
    run(model, optimizer, 40, 60)
    for p, zero, old in zip(model.parameters(), zeros, before.parameters(), strict=True):
        assert torch.equal(p == 0, zero)
        assert not torch.equal(p, old) or bool(zero.all())
    assert any(bool(zero.any()) for zero in zeros)


@both
def test_removed_it_is_torchs_own(kind: str) -> None:
    model, optimizer = train(fused(kind, {"lr": 0.02}, PENALTIES["lasso"], "auto"), steps=20)
    other = copy.deepcopy(model)
    plain = TORCH[kind](other.parameters(), lr=0.02)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.handle.remove()  # type: ignore[attr-defined]
    run(model, optimizer, 20, 40)
    run(other, plain, 20, 40)
    assert_same(model, other, 1e-12)
    assert optimizer.state_dict().keys() == {"state", "param_groups"}


@both
def test_it_needs_no_attach_and_refuses_one(kind: str) -> None:
    model = net()
    optimizer = OURS[kind](model.parameters(), tl.Regularizer(model, tl.L1(0.1)))
    with pytest.raises(InputError, match="attached already"):
        tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.1)))


@both
def test_a_state_that_was_thrown_away_begins_anew(kind: str) -> None:
    settings = {"lr": 0.02, "momentum": 0.9} if kind == "sgd" else {"lr": 0.02}
    model, optimizer = train(fused(kind, settings, penalised(tl.L1(0.0)), "auto"), steps=10)
    other, plain = copy.deepcopy(model), None
    optimizer.state.clear()
    plain = TORCH[kind](other.parameters(), **settings)
    run(model, optimizer, 10, 20)
    run(other, plain, 10, 20)
    assert_same(model, other, 1e-12)


@both
def test_parameters_that_come_later(kind: str) -> None:
    model = nn.ModuleList([nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)])
    first, second = model.parameters()
    for weight in (first, second):
        nn.init.ones_(weight)
    optimizer = OURS[kind]([first], tl.Regularizer(model[0], tl.L1(1.0)), lr=0.01)
    first.grad = torch.zeros_like(first)
    optimizer.step()
    optimizer.add_param_group({"params": [second], "lr": 0.05})
    optimizer.handle.update(tl.Regularizer(model, tl.L1(1.0)))
    before = first.detach().clone()
    first.grad, second.grad = torch.zeros_like(first), torch.zeros_like(second)
    optimizer.step()
    by = 1.0 if kind == "sgd" else 2.0
    decay = 0.0 if kind == "sgd" else 1e-2
    assert torch.allclose(first, before * (1 - 0.01 * decay) - 0.01 * by)
    assert torch.allclose(second, torch.full((1, 3), 1 - 0.05 * decay - 0.05 * by))


@both
def test_a_step_that_the_scaler_skips_is_no_step(kind: str) -> None:
    model = nn.Linear(3, 1)
    optimizer = OURS[kind](model.parameters(), tl.Regularizer(model, tl.L1(1.0)), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    before = model.weight.detach().clone()
    for factor, skipped in ((math.inf, True), (1.0, False)):
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale((model(torch.ones(2, 3)) * factor).sum()))
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model.weight, before) == skipped
        assert optimizer.handle.steps == (0 if skipped else 1)
    plain = nn.Linear(3, 1)
    plain.load_state_dict({"weight": before, "bias": torch.zeros(1)})
    unscaled = OURS[kind](plain.parameters(), tl.Regularizer(plain, tl.L1(1.0)), lr=0.1)
    torch.autograd.backward(plain(torch.ones(2, 3)).sum())
    unscaled.step()
    assert torch.allclose(model.weight, plain.weight)


@both
def test_it_keeps_no_buffer_for_the_plain_step_and_one_by_default(kind: str) -> None:
    for memory, expected in ((0, 0), ("auto", 1), (100, 1)):
        _, optimizer = train(fused(kind, {"lr": 0.02}, PENALTIES["lasso"], memory), steps=3)
        kept = optimizer.handle.saved()["evidence"]  # type: ignore[attr-defined]
        assert len(kept) == expected * 3  # the weights, not the biases
