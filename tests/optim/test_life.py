"""A training life: mixed precision, compiled steps, resuming, averaged copies, odd parameters."""

import copy
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, Rprop, SparseAdam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torchlasso as tl

Make = Callable[[nn.Module, tl.Regularizer], tuple[Optimizer, Any]]


def attached(kind: Any, **settings: Any) -> Make:
    def make(model: nn.Module, regularizer: tl.Regularizer) -> tuple[Optimizer, Any]:
        optimizer: Optimizer = kind(model.parameters(), **settings)
        return optimizer, tl.attach(optimizer, regularizer)

    return make


def fused(kind: Any, **settings: Any) -> Make:
    def make(model: nn.Module, regularizer: tl.Regularizer) -> tuple[Optimizer, Any]:
        optimizer = kind(model.parameters(), regularizer, **settings)
        return optimizer, optimizer.handle

    return make


MAKES: dict[str, Make] = {
    "momentum": attached(SGD, lr=0.05, momentum=0.9),
    "adam": attached(Adam, lr=0.02),
    "fused adamw": attached(AdamW, lr=0.02, fused=True),
    "rmsprop": attached(RMSprop, lr=0.005),
    "rprop": attached(Rprop, lr=0.01),
    "ProxSGD": fused(tl.optim.ProxSGD, lr=0.05, momentum=0.9),
    "ProxAdamW": fused(tl.optim.ProxAdamW, lr=0.02),
}
each_make = pytest.mark.parametrize("kind", MAKES)


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1)).to(dtype)


def rules(model: nn.Module) -> tl.Regularizer:
    return tl.Regularizer(model, {"0.weight": tl.L1(0.02), "2.weight": tl.GroupLasso(0.01, groups="columns")})


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return a batch that depends on the step alone."""
    x = torch.randn(16, 10, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x.to(dtype), (x[:, :1] - x[:, 3:4]).to(dtype)


def run(
    model: nn.Module,
    optimizer: Optimizer,
    start: int,
    stop: int,
    *,
    after: Callable[[], object] = lambda: None,
    step: Callable[[], object] | None = None,
) -> None:
    dtype = next(model.parameters()).dtype
    for number in range(start, stop):
        x, y = batch(number, dtype)
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(model(x), y))
        (step or optimizer.step)()
        after()


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


# ---- mixed precision -----------------------------------------------------------------------------------


@each_make
def test_autocast_in_bfloat16_reaches_the_same_zeros_of_the_inputs(kind: str) -> None:
    """Weights, evidence and metric stay in float32; only the products are rounded."""
    counts = []
    for enabled in (False, True):
        model = net()
        optimizer, _ = MAKES[kind](model, tl.Regularizer(model, {"0.weight": tl.L1(0.05), "*": None}))
        for number in range(100):
            x, y = batch(number)
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                output = model(x)
                assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
                loss = nn.functional.mse_loss(output.float(), y)
            torch.autograd.backward(loss)
            optimizer.step()
        weight = model.get_parameter("0.weight")
        assert weight.dtype == torch.float32
        used = (weight != 0).any(dim=0)
        assert used[0]
        assert used[3]
        counts.append(int((weight == 0).sum()))
    assert counts[0] > 20
    assert abs(counts[1] - counts[0]) <= 8


@each_make
def test_a_scaler_with_overflows_trains_as_without_one(kind: str) -> None:
    """Powers of two scale exactly, and a step that overflowed shrinks nothing and counts for nothing."""
    ends = []
    for scaled in (False, True):
        model = net()
        optimizer, handle = MAKES[kind](model, rules(model))
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0, growth_interval=7)
        skipped = 0
        for number in range(50):
            x, y = batch(number)
            if scaled and number % 10 == 4:
                before, steps = [p.detach().clone() for p in model.parameters()], handle.steps
                optimizer.zero_grad()
                torch.autograd.backward(scaler.scale(nn.functional.mse_loss(model(x), y) * math.inf))
                scaler.step(optimizer)
                scaler.update()
                assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
                assert handle.steps == steps
                skipped += 1
            optimizer.zero_grad()
            torch.autograd.backward(scaler.scale(nn.functional.mse_loss(model(x), y)))
            scaler.step(optimizer)
            scaler.update()
        assert skipped == (5 if scaled else 0)
        ends.append(model)
    for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        assert torch.equal(a == 0, b == 0)
    assert 0 < tl.sparsity(ends[0]).total < 1


@each_make
def test_accumulated_gradients_are_one_batch(kind: str) -> None:
    """Four micro-batches shrink once, and the noise is that of their sum."""
    ends = []
    for parts in (1, 4):
        model = net(torch.float64)
        optimizer, handle = MAKES[kind](model, rules(model))
        for number in range(40):
            x, y = batch(number, torch.float64)
            optimizer.zero_grad()
            for a, b in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
                torch.autograd.backward(nn.functional.mse_loss(model(a), b) / parts)
            optimizer.step()
        ends.append((model, handle.saved()))
    for a, b in zip(ends[0][0].parameters(), ends[1][0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
        assert torch.equal(a == 0, b == 0)
    assert ends[0][1]["steps"] == ends[1][1]["steps"] == 40
    assert ends[0][1]["noise"] == pytest.approx(ends[1][1]["noise"])


# ---- compiled ------------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("kind", ["momentum", "ProxAdamW", "rprop"])
def test_a_compiled_model_trains_as_one_that_is_not(kind: str) -> None:
    ends = []
    for compiled in (False, True):
        model = net()
        optimizer, _ = MAKES[kind](model, rules(model))
        called = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
        run(called, optimizer, 0, 30)
        ends.append(model)
    assert equal(ends[0], ends[1])
    assert 0 < tl.sparsity(ends[0]).total < 1


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # dynamo's own imports
@each_make
def test_a_compiled_step_is_the_step(kind: str) -> None:
    ends = []
    for compiled in (False, True):
        model = net(torch.float64)
        optimizer, handle = MAKES[kind](model, rules(model))
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        run(model, optimizer, 0, 25, step=step)
        assert handle.steps == 25
        ends.append(model)
    for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        # torch itself keeps Adam's counters in float32 tensors when it compiles the step.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 if kind == "adam" else 1e-9)
        assert torch.equal(a == 0, b == 0)
    assert 0 < tl.sparsity(ends[0]).total < 1


# ---- resuming ------------------------------------------------------------------------------------------


class Session:
    """A run with a learning-rate schedule, a strength schedule, noise, and zeros that may be frozen."""

    def __init__(self, kind: str) -> None:
        self.model = net()
        penalty = tl.L1(lambda step: 0.0008 * min(step, 60))
        self.optimizer, self.handle = MAKES[kind](
            self.model, tl.Regularizer(self.model, {"0.weight": penalty, "2.weight": tl.GroupLasso(0.01)})
        )
        self.schedule = SequentialLR(
            self.optimizer,
            [
                LambdaLR(self.optimizer, lambda step: step / 10),
                CosineAnnealingLR(self.optimizer, 100),
            ],
            [10],
        )

    def run(self, start: int, stop: int, frozen_from: int | None) -> None:
        for number in range(start, stop):
            if number == frozen_from:
                self.handle.freeze_zeros()
            run(self.model, self.optimizer, number, number + 1, after=self.schedule.step)

    def saved(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
        file.seek(0)
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
        return loaded


@each_make
@pytest.mark.parametrize(
    ("frozen_from", "order"),
    [(None, "model first"), (None, "optimizer first"), (40, "model first"), (70, "optimizer first")],
)
def test_a_hundred_steps_are_fifty_saved_loaded_and_fifty(
    kind: str, frozen_from: int | None, order: str
) -> None:
    whole = Session(kind)
    whole.run(0, 100, frozen_from)
    first = Session(kind)
    first.run(0, 50, frozen_from)
    saved = first.saved()
    second = Session(kind)
    for parameter in second.model.parameters():
        nn.init.normal_(parameter)
    run(second.model, second.optimizer, 200, 203)  # what it has seen so far must not matter
    second.schedule.load_state_dict(saved["schedule"])
    for name in ("model", "optimizer") if order == "model first" else ("optimizer", "model"):
        getattr(second, name).load_state_dict(saved[name])
    assert second.handle.steps == 50
    assert second.handle.frozen == (frozen_from == 40)
    second.run(50, 100, frozen_from)
    assert equal(whole.model, second.model)
    assert 0 < tl.sparsity(whole.model).total < 1
    ours, theirs = whole.saved()["optimizer"]["torchlasso"], second.saved()["optimizer"]["torchlasso"]
    assert ours["noise"] == theirs["noise"]
    assert all(torch.equal(t, theirs["evidence"][n]) for n, t in ours["evidence"].items())


# ---- after the zeros are found -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        attached(SGD, lr=0.02, momentum=0.9, weight_decay=0.1),
        attached(AdamW, lr=0.01, weight_decay=0.5),
        attached(Adam, lr=0.01, weight_decay=0.1, fused=True),
        fused(tl.optim.ProxAdamW, lr=0.01, weight_decay=0.5),
        fused(tl.optim.ProxSGD, lr=0.02, momentum=0.9, weight_decay=0.1),
    ],
)
def test_fine_tuning_with_decay_keeps_the_set_of_zeros(make: Make) -> None:
    model = net()
    optimizer, handle = make(model, tl.Regularizer(model, tl.L1(0.05)))
    run(model, optimizer, 0, 100)
    handle.freeze_zeros()
    zeros = [p == 0 for p in model.parameters()]
    before = [p.detach().clone() for p in model.parameters()]
    run(model, optimizer, 100, 160)
    for p, zero, old in zip(model.parameters(), zeros, before, strict=True):
        assert torch.equal(p == 0, zero)
        assert not torch.equal(p, old)
    assert int(zeros[0].sum()) > 10


@each_make
@pytest.mark.parametrize("average", ["ema", "swa"])
def test_averages_taken_after_the_step_keep_the_zeros(kind: str, average: str) -> None:
    """What stays zero is zero in the copy too; the plain mean of weights that were zero is zero."""
    model = net()
    optimizer, handle = MAKES[kind](model, tl.Regularizer(model, tl.L1(0.05)))
    run(model, optimizer, 0, 100)
    handle.freeze_zeros()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9) if average == "ema" else None)
    run(model, optimizer, 100, 130, after=lambda: averaged.update_parameters(model))
    zero = model.get_parameter("0.weight") == 0
    assert int(zero.sum()) > 10
    copied = averaged.module.get_parameter("0.weight")
    assert torch.equal(copied == 0, zero)
    assert not torch.equal(copied, model.get_parameter("0.weight"))


@pytest.mark.parametrize("first", ["attach", "average"])
def test_an_averaging_hook_must_come_after_attach(first: str) -> None:
    """Hooks run in the order in which they came: one that is older than ``attach`` sees unshrunk weights."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.05)
    optimizer = SGD(model.parameters(), lr=0.1)
    seen: list[float] = []
    if first == "average":
        optimizer.register_step_post_hook(lambda *_: seen.append(model.weight.item()))
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(1.0)))
    if first == "attach":
        optimizer.register_step_post_hook(lambda *_: seen.append(model.weight.item()))
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert model.weight.item() == 0
    assert seen == [0.0 if first == "attach" else pytest.approx(0.05)]


# ---- the loop around it --------------------------------------------------------------------------------


@each_make
def test_parameters_added_later_are_penalised_after_update(kind: str) -> None:
    model = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
    first, second = model[0], model[1]
    optimizer, handle = MAKES[kind](first, tl.Regularizer(first, tl.L1(0.5)))
    x = torch.randn(32, 4)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(sum((m(x).square().mean() for m in model), torch.zeros(())))
            optimizer.step()

    train(100)
    assert not first.weight.any()
    optimizer.add_param_group({"params": list(second.parameters()), "lr": 0.01})
    before = second.weight.detach().abs().sum()
    train(1)
    assert second.weight.any()
    handle.update(tl.Regularizer(model, tl.L1(0.5)))
    train(150)
    assert not first.weight.any()
    assert not second.weight.any()
    assert before > 0
    assert handle.steps == 251


@pytest.mark.parametrize("kind", ["momentum", "adam", "ProxSGD", "ProxAdamW"])
def test_clipped_gradients_change_the_way_and_not_the_end(kind: str) -> None:
    """At the optimum the clip does not act, so the solution is the one without it."""
    x, y = torch.randn(100, 6, dtype=torch.float64), torch.randn(100, 1, dtype=torch.float64)
    y = y + 2 * x[:, :1]
    ends = []
    for clip in (math.inf, 3.0):
        torch.manual_seed(1)
        model = nn.Linear(6, 1, dtype=torch.float64)
        optimizer, _ = MAKES[kind](model, tl.Regularizer(model, tl.L1(0.4)))
        if "weight_decay" in optimizer.defaults:
            optimizer.param_groups[0]["weight_decay"] = 0.0
        optimizer.param_groups[0]["lr"] = 0.05
        schedule = CosineAnnealingLR(optimizer, 400)
        for _ in range(400):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.mse_loss(model(x), y))
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
        ends.append(model.weight.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-3)
    assert torch.equal(ends[0] == 0, ends[1] == 0)
    assert (ends[0] == 0).any()


@pytest.mark.parametrize("kind", ["adam", "fused adamw", "ProxAdamW"])
def test_a_weight_that_never_had_a_gradient_shrinks_by_twice_the_learning_rate_a_step(kind: str) -> None:
    """Adam's ``lr/√v̂`` is infinite there, so the threshold is bounded: steadily to zero, not at once."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    optimizer, _ = MAKES[kind](model, tl.Regularizer(model, tl.L1(1e-6)))
    optimizer.param_groups[0]["weight_decay"] = 0.0
    lr = optimizer.param_groups[0]["lr"]
    x = torch.tensor([[1.0, 0.0]])  # a dead input
    for number in range(1, 21):
        optimizer.zero_grad()
        torch.autograd.backward((model(x) - 1).square().sum())
        optimizer.step()
        assert model.weight[0, 1].item() == pytest.approx(max(0.5 - 2 * lr * number, 0.0), abs=1e-6)
    assert model.weight[0, 1].item() == 0
    assert model.weight[0, 0].item() > 0.5


def test_a_weight_that_never_had_a_gradient_shrinks_by_the_strength_under_sgd() -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    optimizer, _ = attached(SGD, lr=0.1)(model, tl.Regularizer(model, tl.L1(0.2)))
    for number in range(1, 11):
        optimizer.zero_grad()
        torch.autograd.backward((model(torch.tensor([[1.0, 0.0]])) - 1).square().sum())
        optimizer.step()
        assert model.weight[0, 1].item() == pytest.approx(0.5 - 0.02 * number)


# ---- odd parameters ------------------------------------------------------------------------------------


@each_make
def test_tied_weights_are_penalised_once(kind: str) -> None:
    """The same as the model that uses one parameter twice under one name."""

    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(10, 10, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.a(torch.tanh(self.a(x)))[:, :1]
            return output

    class Tied(Once):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Linear(10, 10, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.b(torch.tanh(self.a(x)))[:, :1]
            return output

    ends = []
    for build in (Once, Tied):
        torch.manual_seed(0)
        model = build()
        regularizer = tl.Regularizer(model, tl.L1(0.02))
        assert len(regularizer.terms) == 1
        optimizer, _ = MAKES[kind](model, regularizer)
        run(model, optimizer, 0, 60)
        ends.append(model.a.weight.detach())
    assert torch.equal(ends[0], ends[1])
    assert (ends[0] == 0).any()


@pytest.mark.parametrize("make", [attached(SGD, lr=0.1, momentum=0.5), attached(Adam, lr=0.05)])
def test_complex_weights_die_by_their_modulus(make: Make) -> None:
    """As the group lasso on the two parts, whose optimum is known here: ``a·max(1 − λ/|a|, 0)``."""
    goal = torch.tensor([1 + 1j, 0.3 + 0.2j, -2j, 0.1j, 0.45 - 0.3j], dtype=torch.complex128)
    ends = []
    for as_complex in (True, False):
        torch.manual_seed(0)
        start = torch.randn(5, dtype=torch.complex128)
        model = nn.Module()
        w = nn.Parameter(start if as_complex else torch.view_as_real(start).clone())
        model.register_parameter("w", w)
        penalty = tl.L1(0.5) if as_complex else tl.GroupLasso(0.5, weights=None)
        optimizer, _ = make(model, tl.Regularizer(model, {"w": penalty}))
        schedule = CosineAnnealingLR(optimizer, 400)
        for _ in range(400):
            optimizer.zero_grad()
            value = w if as_complex else torch.view_as_complex(w)
            torch.autograd.backward((value - goal).abs().square().sum() / 2)
            optimizer.step()
            schedule.step()
        ends.append(w.detach() if as_complex else torch.view_as_complex(w.detach()))
    expected = goal * (1 - 0.5 / goal.abs()).clamp_min(0)
    torch.testing.assert_close(ends[0], expected, rtol=0, atol=1e-5)
    assert torch.equal(ends[0] == 0, expected == 0)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-12)


@pytest.mark.filterwarnings(
    "ignore:Sparse invariant checks:UserWarning"
)  # torch's Adagrad makes one unchecked
@pytest.mark.parametrize(
    "make",
    [
        attached(SGD, lr=0.5),
        attached(SGD, lr=0.2, momentum=0.5),
        attached(Adagrad, lr=0.3),
        fused(tl.optim.ProxSGD, lr=0.2, momentum=0.5),
    ],
)
def test_sparse_gradients_of_embeddings_are_those_of_dense_ones(make: Make) -> None:
    ends = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Embedding(12, 4, sparse=sparse, dtype=torch.float64)
        optimizer, handle = make(model, tl.Regularizer(model, {model.weight: tl.L1(0.05)}))
        for number in range(60):
            rows = torch.randint(6, (8,), generator=torch.Generator().manual_seed(number))
            optimizer.zero_grad()
            goal = (rows % 2).double()[:, None]
            torch.autograd.backward((model(rows) - goal).square().mean())
            optimizer.step()
        ends.append((model.weight.detach(), handle.saved()["noise"]))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=1e-12)
    assert ends[0][1] == pytest.approx(ends[1][1])
    assert ends[0][1] != {}
    assert not ends[0][0][[0, 2, 4]].any()
    assert ends[0][0][[1, 3, 5]].any(dim=1).all()


def test_sparseadam_shrinks_the_rows_that_it_touches() -> None:
    torch.manual_seed(0)
    model = nn.Embedding(12, 4, sparse=True)
    before = model.weight.detach().clone()
    optimizer, _ = attached(SparseAdam, lr=0.05)(model, tl.Regularizer(model, {model.weight: tl.L1(0.02)}))
    for _ in range(200):
        optimizer.zero_grad()
        rows = torch.arange(6)
        torch.autograd.backward((model(rows) - (rows % 2)[:, None]).square().mean())
        optimizer.step()
    assert torch.equal(model.weight[6:], before[6:])
    assert not model.weight[[0, 2, 4]].any()
    assert model.weight[[1, 3, 5]].all()


def test_adam_refuses_sparse_gradients_itself() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    optimizer, _ = attached(Adam)(model, tl.Regularizer(model, {model.weight: tl.L1(0.1)}))
    torch.autograd.backward(model(torch.tensor([0])).sum())
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


@each_make
def test_reinitialised_weights_live(kind: str) -> None:
    """Whoever loads other weights into the model trains on from those, whatever was dead before."""
    model = net()
    start = copy.deepcopy(model.state_dict())
    optimizer, _ = MAKES[kind](model, tl.Regularizer(model, tl.L1(0.1)))
    run(model, optimizer, 0, 150)
    weight = model.get_parameter("0.weight")
    dead = weight == 0
    assert int(dead.sum()) > 40
    model.load_state_dict(start)
    run(model, optimizer, 150, 151)
    assert float((weight[dead] != 0).double().mean()) > 0.5
