"""The GPU's kernels compute what the torch reference does; ``test_gpu.py`` runs this in the interpreter."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlasso as tl
from torchlasso.optim import fused_rule, rows
from torchlasso.optim.evidence import MARGIN, is_alive, memory_of, noise, widened
from torchlasso.optim.kernels import reference
from torchlasso.optim.kernels.gpu import Table, adam_step, interpreted, sgd_step, usable
from torchlasso.optim.kernels.reference import Row
from torchlasso.optim.kernels.table import wide_dtype
from torchlasso.optim.metrics import metric_of
from torchlasso.optim.shrinkage import NOISE_EVERY
from torchlasso.prox import Kink

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF = (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 2**-7, torch.float16: 2**-10}
SHAPES = [(5, 7), (1024,), (1,), (11, 101), (0,)]  # less than a chunk, a whole one, one and a rest
ADAM = {
    **{
        "lr": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "maximize": False,
        "amsgrad": False,
    }
}
SGD = {
    **{
        "lr": 1e-2,
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "maximize": False,
    }
}
PLAIN, EVIDENCE = Row(slope=0.3), Row(slope=0.3, memory=10.0)
PENALTIES = {
    "none": Row(),
    "plain": PLAIN,
    "evidence": EVIDENCE,
    "ridge": replace(EVIDENCE, ridge=2.0),
    "plain ridge": replace(PLAIN, ridge=2.0),
    "only ridge": Row(ridge=3.0, memory=10.0),
    "nonnegative": replace(EVIDENCE, nonnegative=True),
    "plain nonnegative": replace(PLAIN, nonnegative=True),
    "constraint": Row(nonnegative=True),
    "one step": replace(EVIDENCE, memory=1.0),
}
FORMS = [(torch.float32, name) for name in PENALTIES]
FORMS += [(dtype, name) for dtype in DTYPES[1:] for name in ("none", "plain", "evidence", "nonnegative")]


def test_the_interpreter_is_on() -> None:
    assert interpreted()
    assert usable(torch.zeros(3))


class Run:
    """Tensors in the middle of a run, a part of them dead or near zero, stepped on by both."""

    def __init__(
        self, dtype: torch.dtype, row: Row, group: dict[str, Any], *, weighted: bool = False
    ) -> None:
        self.dtype, self.row, self.group = dtype, row, group
        self.marked = row.memory > 0 or dtype in HALF
        self.ours = [self._made(shape, row) for shape in SHAPES]
        if "eps" in group:
            self._give_adam_state()
        self.rows = [row] * len(SHAPES)
        if weighted:
            choices = torch.tensor([0.0, 0.5, 1.0, 2.0, torch.inf], dtype=wide_dtype(dtype))
            cs = [choices[torch.randint(5, shape)] for shape in SHAPES]
            self.rows = [replace(row, c=c) for c in cs]
        self.theirs = [{key: t.clone() for key, t in tensors.items()} for tensors in self.ours]
        self.table = Table([t["w"] for t in self.ours], [0] * len(SHAPES))
        for name in ("slope", "ridge", "memory", "nonnegative"):
            self.table.rows[name] = getattr(row, name)
        self.table.clock.fill_(100)
        self.table.point("c", [r.c for r in self.rows])
        self.point()

    def _made(self, shape: tuple[int, ...], row: Row) -> dict[str, Tensor]:
        w = torch.randn(shape, dtype=torch.float64) * 10 ** (-4 * torch.rand(shape))
        w = w.abs() if row.nonnegative else w
        dead = (
            torch.rand(shape) < 0.4
            if self.marked and row.memory > 0
            else torch.zeros(shape, dtype=torch.bool)
        )
        w = torch.where(dead, 0.0, w).to(self.dtype)
        tensors = {"w": w, "g": torch.randn(shape).to(self.dtype)}
        if self.marked:
            alive = torch.copysign(
                4 + (torch.rand(shape) * 0.4 if self.dtype in HALF else torch.zeros(())), w
            )
            inside = (torch.rand(shape) * 2.4 - 1.2).clamp(-1, 1)
            inside = inside.abs() if row.nonnegative else inside
            tensors["rho"] = torch.where(dead, inside, alive).to(wide_dtype(self.dtype))
        return tensors

    def _give_adam_state(self) -> None:
        for t in self.ours:
            t["step"] = torch.tensor(7.0)
            t["exp_avg"] = (torch.randn(t["w"].shape) * 0.3).to(self.dtype)
            t["exp_avg_sq"] = (torch.rand(t["w"].shape) * 0.01).to(self.dtype)
            if self.group["amsgrad"]:
                t["max_exp_avg_sq"] = (torch.rand(t["w"].shape) * 0.01).to(self.dtype)

    def point(self) -> None:
        columns = {"g": "g", "rho": "rho", "m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}
        for column, key in (columns | {"step": "step"}).items():
            assert self.table.point(column, [t.get(key) for t in self.ours]) == []

    def expect(self, metric: Callable[[], float] | None = None, **options: Any) -> None:
        """Let the reference take the step, in Adam's metric or the given one."""
        frozen = options.pop("frozen", False)
        decoupled = options.pop("decoupled", True)
        for t, row in zip(self.theirs, self.rows, strict=True):
            wide = reference.wide(t["w"], t.get("rho"))
            if metric is None:
                moved, size = reference.adam(wide, t["g"], self.group, t, decoupled=decoupled, **options)
                row = replace(row, limit=MARGIN * float(self.group["lr"]))
            else:
                moved, size = reference.sgd(wide, t["g"], self.group, t, **options), metric()
            reference.settle(t["w"], moved, size, row, t.get("rho"), frozen=frozen)

    def check(self) -> None:
        tolerance = TOLERANCE[self.dtype]
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            for key in theirs.keys() - {"rho", "w"}:
                torch.testing.assert_close(ours[key], theirs[key], rtol=tolerance, atol=tolerance)
            assert torch.equal(ours["w"] == 0, theirs["w"] == 0)
            assert not torch.signbit(ours["w"][ours["w"] == 0]).any()
            exact = 1e-13 if self.dtype == torch.float64 else 2e-5
            if self.dtype in HALF and "rho" in ours:  # with what rounding left, half precision is float32
                pairs = [widened(t["w"], t["rho"]) for t in (ours, theirs)]
                torch.testing.assert_close(*pairs, rtol=exact, atol=1e-6)
            torch.testing.assert_close(ours["w"], theirs["w"], rtol=tolerance, atol=tolerance)
            if "rho" in ours:
                assert torch.equal(is_alive(ours["rho"]), is_alive(theirs["rho"]))
                dead = ~is_alive(ours["rho"])
                torch.testing.assert_close(ours["rho"][dead], theirs["rho"][dead], rtol=exact, atol=exact)
                assert torch.equal(ours["rho"].sign(), theirs["rho"].sign())


@pytest.mark.parametrize(("dtype", "name"), FORMS)
def test_adam_equals_the_reference(dtype: torch.dtype, name: str) -> None:
    run = Run(dtype, PENALTIES[name], ADAM | {"weight_decay": 0.1})
    adam_step(run.table, [run.group], decoupled=True)
    run.expect()
    run.check()


@pytest.mark.parametrize(("dtype", "name"), FORMS)
def test_sgd_equals_the_reference(dtype: torch.dtype, name: str) -> None:
    run = Run(dtype, PENALTIES[name], SGD | {"momentum": 0.0, "weight_decay": 0.1})
    sgd_step(run.table, [run.group])
    run.expect(lambda: run.group["lr"])
    run.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", [EVIDENCE, PLAIN, replace(EVIDENCE, ridge=2.0, nonnegative=True)])
@pytest.mark.parametrize("adam", [True, False])
def test_the_penaltys_weights(dtype: torch.dtype, row: Row, adam: bool) -> None:
    run = Run(dtype, row, ADAM if adam else SGD | {"momentum": 0.0}, weighted=True)
    if adam:
        adam_step(run.table, [run.group], decoupled=True)
        run.expect()
    else:
        sgd_step(run.table, [run.group])
        run.expect(lambda: run.group["lr"])
    for ours, theirs, row_ in zip(run.ours, run.theirs, run.rows, strict=True):
        assert row_.c is not None
        excluded = row_.c.isinf()  # held at zero: what its evidence is does not matter
        assert (ours["w"][excluded] == 0).all()
        if "rho" in ours:
            ours["rho"][excluded] = theirs["rho"][excluded] = 0.5
    run.check()


@pytest.mark.parametrize(
    "options",
    [{"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.3}, {"betas": (0.4, 0.9)}, {"lr": 0.0}],
)
@pytest.mark.parametrize("decoupled", [True, False])
def test_adams_settings(options: dict[str, Any], decoupled: bool) -> None:
    run = Run(torch.float32, EVIDENCE, ADAM | options)
    adam_step(run.table, [run.group], decoupled=decoupled)
    run.expect(decoupled=decoupled)
    run.check()


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": True}, {"dampening": 0.5}, {"weight_decay": 0.3, "maximize": True}]
)
def test_momentum_over_steps(options: dict[str, Any]) -> None:
    """From the first step on: the buffer begins as the gradient, and the metric grows with the momentum."""
    run = Run(torch.float64, EVIDENCE, SGD | options)
    metric = metric_of(torch.optim.SGD([torch.zeros(1)]))
    assert metric is not None
    memory: dict[str, Any] = {}
    for t in run.ours:
        t["momentum_buffer"] = torch.full_like(t["w"], torch.nan)
    run.table.point("m", [t["momentum_buffer"] for t in run.ours])
    for _ in range(4):
        sgd_step(run.table, [run.group])
        size = metric.displacement(run.group, {}, torch.zeros(1), memory)
        run.expect(lambda size=size: size)
        run.check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adam", [True, False])
def test_frozen_zeros_stay(dtype: torch.dtype, adam: bool) -> None:
    run = Run(dtype, replace(EVIDENCE, nonnegative=True), ADAM if adam else SGD | {"momentum": 0.0})
    for t, u in zip(run.ours, run.theirs, strict=True):
        t["w"].flatten()[::3] = u["w"].flatten()[::3] = 0.0
    if adam:
        adam_step(run.table, [run.group], decoupled=True, frozen=True)
        run.expect(frozen=True)
    else:
        sgd_step(run.table, [run.group], frozen=True)
        run.expect(lambda: run.group["lr"], frozen=True)
    run.check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_found_inf_leaves_everything_as_it_is(dtype: torch.dtype) -> None:
    for group in (ADAM, SGD):
        run = Run(dtype, EVIDENCE, group)
        if group is SGD:
            run.table.point("m", [torch.zeros_like(t["w"]) for t in run.ours])  # the table keeps them
            sgd_step(run.table, [group], look_every=1, found_inf=torch.ones(1))
        else:
            adam_step(run.table, [group], decoupled=True, look_every=1, found_inf=torch.ones(1))
        for ours, theirs in zip(run.ours, run.theirs, strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert run.table.clock.item() == 100
        assert not run.table.state.any()
    run = Run(dtype, EVIDENCE, ADAM)
    adam_step(run.table, [ADAM], decoupled=True, look_every=1, found_inf=torch.zeros(1))
    run.expect()
    run.check()
    assert run.table.clock.item() == 101


@pytest.mark.parametrize("adam", [True, False])
def test_scaled_gradients(adam: bool) -> None:
    run = Run(torch.float32, EVIDENCE, ADAM if adam else SGD | {"momentum": 0.0})
    scale = torch.tensor(1024.0)
    if adam:
        adam_step(run.table, [run.group], decoupled=True, grad_scale=scale)
        run.expect(scale=1 / 1024)
    else:
        sgd_step(run.table, [run.group], grad_scale=scale)
        run.expect(lambda: run.group["lr"], scale=1 / 1024)
    run.check()


def test_a_rate_on_the_device() -> None:
    run = Run(torch.float32, EVIDENCE, ADAM | {"lr": torch.tensor(1e-2)})
    adam_step(run.table, [run.group], decoupled=True)
    run.group["lr"].fill_(3e-2)  # as a scheduler does between replays
    adam_step(run.table, [run.group], decoupled=True)
    for lr in (1e-2, 3e-2):
        run.group = ADAM | {"lr": lr}
        run.expect()
    run.check()


def test_rows_have_their_own_groups_and_penalties() -> None:
    ws = [torch.ones(5), torch.ones(1500), torch.ones(7), torch.full((4,), 0.01)]
    table = Table(ws, [0, 1, 0, 1])
    grads = [torch.full((5,), 2.0), torch.full((1500,), 2.0), None, torch.zeros(4)]
    table.point("g", grads)
    table.rows["slope"] = [0.0, 1.0, 1.0, 1.0]
    sgd_step(table, [SGD | {"momentum": 0.0, "lr": 0.1}, SGD | {"momentum": 0.0, "lr": 0.2}])
    values = [0.8, 0.4, 1.0, 0.0]  # the third has no gradient
    for w, value in zip(ws, values, strict=True):
        torch.testing.assert_close(w, torch.full_like(w, value))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["w", "g", "exp_avg", "exp_avg_sq"])
def test_nan_shows(dtype: torch.dtype, place: str) -> None:
    for row in (PLAIN, EVIDENCE):
        run = Run(dtype, row, ADAM)
        for t in run.ours:
            t[place].flatten()[:1] = torch.nan
        adam_step(run.table, [ADAM], decoupled=True)
        assert all(t["w"].flatten()[:1].isnan().all() for t in run.ours)


def test_tiny_steps_add_up_in_half_precision() -> None:
    w, rho = torch.full((3,), 256.0, dtype=torch.bfloat16), torch.full((3,), 4.0)
    grad = torch.zeros_like(w)
    table = Table([w], [0])
    table.rows["slope"] = 1.0
    for column, tensor in (("g", grad), ("rho", rho)):
        assert table.point(column, [tensor]) == []
    for _ in range(12):
        sgd_step(table, [SGD | {"momentum": 0.0, "lr": 1 / 4}])
    assert w.tolist() == [253.0] * 3  # a quarter of the distance to the next number each time


def test_the_noise_is_averaged_and_sets_the_memory() -> None:
    run = Run(torch.float32, EVIDENCE, SGD | {"momentum": 0.0}, weighted=True)
    run.table.rows["memory"] = torch.inf
    shrinkage = tl.attach(torch.optim.SGD([w := nn.Parameter(torch.zeros(1))]), _of(w)).shrinkage
    looked = 0
    run.table.clock.fill_(NOISE_EVERY * 9)
    for step in range(NOISE_EVERY * 9, NOISE_EVERY * 10 + 3):
        shrinkage.steps = step
        spans = [shrinkage.noise.get(str(index)) for index in range(len(SHAPES))]
        looked += shrinkage.looks
        for index, (t, row) in enumerate(zip(run.theirs, run.rows, strict=True)):
            assert row.c is not None
            if shrinkage.looks:
                shrinkage.look(str(index), *noise(t["g"], Kink(row.slope * row.c), t["rho"]))
            run.rows[index] = replace(row, memory=float(memory_of(spans[index], step + 1)))
        sgd_step(run.table, [run.group], look_every=NOISE_EVERY)
        run.expect(lambda: run.group["lr"])
        known = [shrinkage.noise.get(str(index), 0.0) for index in range(len(SHAPES))]
        torch.testing.assert_close(
            run.table.noise, torch.tensor(known, dtype=torch.float64), rtol=1e-4, atol=1e-6
        )
        for ours, theirs, row in zip(run.ours, run.theirs, run.rows, strict=True):
            assert row.c is not None
            ours["rho"][row.c.isinf()] = theirs["rho"][row.c.isinf()] = 4.0
    assert looked > 1
    for ours, theirs in zip(run.ours, run.theirs, strict=True):
        torch.testing.assert_close(ours["w"], theirs["w"], rtol=1e-4, atol=1e-5)
    assert run.table.clock.item() == NOISE_EVERY * 10 + 3


def _of(w: nn.Parameter) -> tl.Regularizer:
    model = nn.Module()
    model.weight = w
    return tl.Regularizer(model, {"weight": tl.L1(1.0)})


def test_pointers_are_sent_only_when_they_change() -> None:
    run = Run(torch.float32, EVIDENCE, ADAM)
    adam_step(run.table, [ADAM], decoupled=True)
    before = run.table.on_device()
    run.point()
    adam_step(run.table, [ADAM], decoupled=True)
    assert all(a is b for a, b in zip(before, run.table.on_device(), strict=True))
    others = [t["g"].clone() for t in run.ours]
    run.table.point("g", others)
    pointers, numbers = run.table.on_device()
    assert pointers is not before[0]
    assert numbers is before[1]


def test_what_the_kernels_cannot_take() -> None:
    w = torch.zeros(4, 6)
    assert usable(w.T, w.clone().T)
    assert not usable(w, w.T.contiguous().T)
    assert not usable(w[:, ::2])
    assert not usable(w.to_sparse())
    assert not usable(w.long())
    table = Table([w], [0])
    assert table.point("g", [torch.zeros(6, 4).T]) == [0]
    assert table.point("rho", [w.double()]) == [0]


def test_memory_order_is_kept() -> None:
    w = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    grad = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    expected = w - 0.1 * grad
    table = Table([w], [0])
    assert table.point("g", [grad]) == []
    sgd_step(table, [SGD | {"momentum": 0.0, "lr": 0.1}])
    torch.testing.assert_close(w, expected)


# ---- through ProxAdamW and ProxSGD --------------------------------------------------------------


def _trained(
    build: Callable[[Any, tl.Regularizer], Any], dtype: torch.dtype, penalty: Any
) -> tuple[nn.Module, Any]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 2)).to(dtype)
    optimizer = build(model.parameters(), tl.Regularizer(model, {"*weight": penalty}))
    inputs = torch.randn(64, 12, dtype=dtype)
    target = inputs[:, :2] * 2
    for step in range(12):
        if step == 9:
            optimizer.handle.freeze_zeros()
        optimizer.zero_grad()
        batch = torch.randint(64, (16,))
        nn.functional.mse_loss(model(inputs[batch]), target[batch]).backward()
        optimizer.step()
    return model, optimizer


OPTIMIZERS = {
    "adam": lambda p, r, **o: tl.optim.ProxAdamW(p, r, lr=0.02, **o),
    "amsgrad": lambda p, r, **o: tl.optim.ProxAdamW(p, r, lr=0.02, amsgrad=True, **o),
    "sgd": lambda p, r, **o: tl.optim.ProxSGD(p, r, lr=0.02, momentum=0.9, **o),
    "plain sgd": lambda p, r, **o: tl.optim.ProxSGD(p, r, lr=0.1, **o),
}
MODELS = {
    "l1": tl.L1(0.3),
    "elastic net": tl.ElasticNet(0.3, nonnegative=True),
    "schedule": tl.L1(lambda step: 0.03 * step),
    "groups": tl.GroupLasso(0.3),
}


CASES = [(name, penalty, "auto") for name in ("adam", "sgd") for penalty in MODELS]
CASES += [("amsgrad", "l1", 0), ("plain sgd", "l1", 5)]


@pytest.mark.parametrize(("name", "penalty", "memory"), CASES)
def test_the_optimizers_take_it(
    name: str, penalty: str, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the C library CPU tensors are stepped on by the interpreter; without both, by torch."""
    for module in (fused_rule, rows):
        monkeypatch.setattr(module, "available", lambda: False)

    def build(parameters: Any, regularizer: tl.Regularizer) -> Any:
        return OPTIMIZERS[name](parameters, regularizer, memory=memory)

    model, optimizer = _trained(build, torch.float64, MODELS[penalty])
    assert optimizer._rule._there
    monkeypatch.setattr(fused_rule.gpu, "usable", lambda *_: False)
    expected, other = _trained(build, torch.float64, MODELS[penalty])
    assert not other._rule._there
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        assert torch.equal(ours == 0, theirs == 0)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_resuming_is_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fused_rule, rows):
        monkeypatch.setattr(module, "available", lambda: False)
    whole, parts = [nn.Linear(12, 3) for _ in range(2)]
    parts.load_state_dict(whole.state_dict())
    data = torch.randn(8, 16, 12)

    def train(model: nn.Module, optimizer: Any, batches: Tensor) -> None:
        for batch in batches:
            optimizer.zero_grad()
            (model(batch) - batch[:, :3]).square().mean().backward()
            optimizer.step()

    def make(model: nn.Module) -> Any:
        return OPTIMIZERS[name](model.parameters(), tl.Regularizer(model, tl.L1(0.5)))

    train(whole, make(whole), data)
    first = make(parts)
    train(parts, first, data[:4])
    second = make(parts)
    second.load_state_dict(first.state_dict())
    train(parts, second, data[4:])
    assert second._rule._there
    assert torch.equal(whole.weight, parts.weight)
    assert 0 < (whole.weight == 0).sum() < 36
