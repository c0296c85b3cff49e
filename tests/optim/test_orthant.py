"""The orthant rule: exact zeros under optimizers whose metric nobody knows."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor, nn
from torch.optim import LBFGS, Adafactor, Optimizer, Rprop

import torchlasso as tl
from torchlasso.errors import UnsupportedOptimizerError
from torchlasso.penalties.base import Penalty


class Descent(Optimizer):
    """A third party's gradient descent with momentum, that may also unscale by itself as fused ones do."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.0, *, amp: bool = False) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        if amp:
            self._step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and bool(found_inf):
            return loss
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    grad = parameter.grad if scale is None else parameter.grad / scale
                    state = self.state[parameter]
                    state["buffer"] = group["momentum"] * state.get("buffer", 0.0) + grad
                    parameter.sub_(state["buffer"], alpha=group["lr"])
        return loss


@dataclass(frozen=True, eq=False)
class Flat(Penalty):
    """A user's penalty without a slope at zero that the library knows of."""

    def validate(self, shape: torch.Size) -> None:
        pass

    def value(self, w: Tensor) -> Tensor:
        return self.current_strength * w.square().sum() / 2

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return w / (1 + step * self.current_strength)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        return (grad + self.current_strength * w).abs()

    def strength_max(self, grad: Tensor) -> float:
        return math.inf

    def support(self, w: Tensor) -> Tensor:
        return w != 0


def lasso_data() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 20))
    y = x[:, :3] @ np.array([3.0, -2.0, 1.5]) + 0.5 * rng.normal(size=200)
    return torch.tensor(x), torch.tensor(y)[:, None]


def linear() -> nn.Linear:
    return nn.Linear(20, 1, dtype=torch.float64)


def fit(model: nn.Module, optimizer: Optimizer, steps: int, *, sample: int = 0) -> None:
    x, y = lasso_data()
    for _ in range(steps):
        rows = torch.randint(200, (sample,)) if sample else slice(None)
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(model(x[rows]), y[rows]))
        optimizer.step()


def assert_lasso(model: nn.Linear, tolerance: float, *, positive: bool = False) -> None:
    """Compare with scikit-learn at λ = 0.4: its loss is half of torch's."""
    x, y = lasso_data()
    found = Lasso(0.2, tol=1e-12, positive=positive).fit(x.numpy(), y[:, 0].numpy())  # type: ignore[no-untyped-call]
    w = model.weight.detach().numpy()[0]
    np.testing.assert_allclose(w, found.coef_, atol=tolerance)
    assert np.array_equal(w != 0, found.coef_ != 0)


Build = Callable[[Iterable[Tensor]], Optimizer]
BUILDS: dict[str, Build] = {
    "descent": lambda p: Descent(p, lr=0.1),
    "momentum": lambda p: Descent(p, lr=0.02, momentum=0.9),
    "Rprop": lambda p: Rprop(p, lr=0.1, step_sizes=(1e-9, 1.0)),
}


# ---- where it comes to rest ----------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["auto", 0, 7])
@pytest.mark.parametrize("kind", BUILDS)
def test_it_rests_at_the_lasso(kind: str, memory: Any) -> None:
    model = linear()
    optimizer = BUILDS[kind](model.parameters())
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)), memory=memory)
    fit(model, optimizer, 500)
    assert_lasso(model, 1e-6)


@pytest.mark.parametrize("memory", ["auto", 0])
def test_the_solution_is_left_alone(memory: Any) -> None:
    x, y = lasso_data()
    found = Lasso(0.2, tol=1e-14).fit(x.numpy(), y[:, 0].numpy())  # type: ignore[no-untyped-call]
    model = linear()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(found.coef_))
        model.bias.fill_(float(found.intercept_))
    before = model.weight.detach().clone()
    optimizer = Descent(model.parameters(), lr=0.1)
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)), memory=memory)
    fit(model, optimizer, 50)
    torch.testing.assert_close(model.weight.detach(), before, rtol=0, atol=1e-7)
    assert torch.equal(model.weight == 0, before == 0)


@pytest.mark.parametrize("memory", ["auto", 0])
def test_nonnegative_weights_stay_above_zero_and_end_at_scikit_learns(memory: Any) -> None:
    model = linear()
    with torch.no_grad():
        model.weight.abs_()
    optimizer = Descent(model.parameters(), lr=0.1)
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4, nonnegative=True)), memory=memory)
    fit(model, optimizer, 600)
    assert_lasso(model, 1e-6, positive=True)


@pytest.mark.parametrize("memory", ["auto", 0])
def test_weights_of_a_group_die_when_they_leave_their_half_space(memory: Any) -> None:
    """The null columns of two outputs vanish whole, and the others are stationary."""
    x, y = lasso_data()
    y = torch.cat([y, 2 * x[:, 2:3] - 3 * x[:, 3:4]], dim=1)
    model = nn.Linear(20, 2, dtype=torch.float64)
    penalty = tl.GroupLasso(0.5, groups="columns", weights=None)
    regularizer = tl.Regularizer(model, penalty)
    optimizer = Descent(model.parameters(), lr=0.1)
    tl.attach(optimizer, regularizer, memory=memory)
    for _ in range(600):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(model(x), y) * 2)
        optimizer.step()
    found = tl.certificate(model, regularizer, lambda a, b: 2 * nn.functional.mse_loss(a, b), [(x, y)])
    assert found.residual < 1e-6
    zero = model.weight == 0
    assert torch.equal(zero[0], zero[1])
    assert zero[0].tolist() == [False] * 4 + [True] * 16


def test_a_strength_of_zero_is_the_plain_optimizer() -> None:
    model, plain = linear(), linear()
    plain.load_state_dict(model.state_dict())
    optimizer, other = Descent(model.parameters(), lr=0.1), Descent(plain.parameters(), lr=0.1)
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.0)))
    fit(model, optimizer, 10)
    fit(plain, other, 10)
    assert torch.equal(model.weight, plain.weight)


def test_a_complex_weight_dies_as_one() -> None:
    """``½|w − a|² + λ|w|`` has its minimum at ``a·max(1 − λ/|a|, 0)``."""
    goal = torch.tensor([1 + 1j, 0.3 + 0.2j, -2j, 0.1j], dtype=torch.complex128)
    model = nn.Module()
    w = nn.Parameter(torch.randn(4, dtype=torch.complex128))
    model.register_parameter("w", w)
    optimizer = Descent([w], lr=0.1)
    tl.attach(optimizer, tl.Regularizer(model, {"w": tl.L1(0.5)}), memory=0)
    for _ in range(400):
        optimizer.zero_grad()
        torch.autograd.backward((w - goal).abs().square().sum() / 2)
        optimizer.step()
    expected = goal * (1 - 0.5 / goal.abs()).clamp_min(0)
    torch.testing.assert_close(w.detach(), expected, rtol=0, atol=1e-8)
    assert torch.equal(w == 0, expected == 0)


# ---- noise ---------------------------------------------------------------------------------------------


def test_under_noise_the_evidence_leaves_fewer_false_nonzeros() -> None:
    counts = {}
    for memory in (0, "auto"):
        torch.manual_seed(0)
        model = linear()
        optimizer = Descent(model.parameters(), lr=0.02)
        tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)), memory=memory)  # type: ignore[arg-type]
        false = 0
        for step in range(800):
            fit(model, optimizer, 1, sample=4)
            false += int((model.weight[0, 3:] != 0).sum()) if step >= 400 else 0
        counts[memory] = false / 400
        assert model.weight[0, :3].all()
    assert counts[0] > 2
    assert counts["auto"] < counts[0] / 4


def test_an_adaptive_optimizer_without_a_metric_profits_too() -> None:
    counts = []
    for memory in (0, "auto"):
        torch.manual_seed(0)
        model = linear()
        optimizer = Adafactor(model.parameters(), lr=0.02, weight_decay=0)
        tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.6)), memory=memory)  # type: ignore[arg-type]
        fit(model, optimizer, 600, sample=16)
        counts.append(int((model.weight[0, 3:] != 0).sum()))
        assert model.weight[0, :3].all()
    assert counts[1] < counts[0]


# ---- what surrounds a step -----------------------------------------------------------------------------


def test_the_users_gradients_are_given_back() -> None:
    """They are those of the loss, for whoever logs or clips them afterwards."""
    x, y = lasso_data()
    model = linear()
    optimizer = Descent(model.parameters(), lr=0.1)
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)))
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        expected = torch.autograd.grad(loss, list(model.parameters()))
        torch.autograd.backward(nn.functional.mse_loss(model(x), y))
        kept = [p.grad for p in model.parameters()]
        optimizer.step()
        for p, before, grad in zip(model.parameters(), kept, expected, strict=True):
            assert p.grad is before
            assert torch.equal(grad, before)  # type: ignore[arg-type]  # it has one


@pytest.mark.parametrize("by_name", [True, False])
def test_a_closure_is_the_objective(by_name: bool) -> None:
    """Its gradients are those of loss plus penalty, and so is what ``step`` returns."""
    x, y = lasso_data()
    model, plain = linear(), linear()
    plain.load_state_dict(model.state_dict())
    regularizer = tl.Regularizer(model, tl.L1(0.4))
    optimizer, other = Descent(model.parameters(), lr=0.1), Descent(plain.parameters(), lr=0.1)
    tl.attach(optimizer, regularizer)
    tl.attach(other, tl.Regularizer(plain, tl.L1(0.4)))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        torch.autograd.backward(loss)
        return loss

    for _ in range(20):
        with torch.no_grad():
            expected = nn.functional.mse_loss(model(x), y) + 0.4 * model.weight.abs().sum()
        loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        assert loss is not None
        assert loss.item() == pytest.approx(expected.item())
        fit(plain, other, 1)
        assert torch.equal(model.weight, plain.weight)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_ends_at_the_lasso_and_forgets_its_history_on_a_new_face(search: str | None) -> None:
    x, y = lasso_data()
    model = linear()
    regularizer = tl.Regularizer(model, tl.L1(0.4))
    optimizer = LBFGS(
        model.parameters(), lr=0.5 if search is None else 1.0, max_iter=5, line_search_fn=search,
        tolerance_grad=0.0, tolerance_change=0.0,
    )  # fmt: skip
    tl.attach(optimizer, regularizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        torch.autograd.backward(loss)
        return loss

    state = optimizer.state[model.weight]
    resets = []
    for _ in range(40):
        zero = model.weight == 0
        with torch.no_grad():
            expected = nn.functional.mse_loss(model(x), y) + regularizer()
        assert optimizer.step(closure).item() == pytest.approx(expected.item())
        if bool(((model.weight == 0) & ~zero).any()):
            resets.append(state["n_iter"])
    assert_lasso(model, 1e-6)
    assert resets
    assert set(resets) == {0}  # from where torch begins a new history


def test_frozen_zeros_stay_zero_and_the_rest_is_the_plain_optimizer() -> None:
    model = linear()
    optimizer = Descent(model.parameters(), lr=0.02, momentum=0.9)
    handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)))
    fit(model, optimizer, 200)
    zero = model.weight == 0
    assert 0 < int(zero.sum()) < 20
    handle.freeze_zeros()
    fit(model, optimizer, 400)
    assert torch.equal(model.weight == 0, zero)
    x, y = lasso_data()
    design = np.column_stack([x[:, ~zero[0]].numpy(), np.ones(200)])
    expected = np.linalg.lstsq(design, y.numpy()[:, 0], rcond=None)[0]
    np.testing.assert_allclose(model.weight.detach()[~zero].numpy(), expected[:-1], atol=1e-6)
    handle.unfreeze_zeros()
    fit(model, optimizer, 500)
    assert_lasso(model, 1e-6)


@pytest.mark.parametrize("amp", [False, True])
def test_scaled_gradients(amp: bool) -> None:
    """The rule acts on unscaled gradients, and a step that the scaler skips leaves no trace."""
    x, y = lasso_data()
    ends = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = linear()
        optimizer = Descent(model.parameters(), lr=0.1, amp=amp)
        handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)))
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0, growth_interval=1000)
        for step in range(60):
            if scaled and step == 30:
                evidence = handle.saved()["evidence"][0].clone()
                before = model.weight.detach().clone()
                optimizer.zero_grad()
                torch.autograd.backward(scaler.scale(model(x).mean() * math.inf))
                scaler.step(optimizer)
                scaler.update()
                assert handle.steps == 30
                assert torch.equal(model.weight, before)
                assert torch.equal(handle.saved()["evidence"][0], evidence)
            optimizer.zero_grad()
            torch.autograd.backward(scaler.scale(nn.functional.mse_loss(model(x), y)))
            scaler.step(optimizer)
            scaler.update()
        ends.append((model.weight.detach(), handle.saved()["noise"]["weight"]))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=1e-12)
    assert torch.equal(ends[0][0] == 0, ends[1][0] == 0)
    assert ends[0][1] == pytest.approx(ends[1][1])


def test_a_parameter_without_a_gradient_stays_where_it_is() -> None:
    model = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
    optimizer = Descent(model.parameters(), lr=0.1)
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(100.0)))
    before = model[1].weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        torch.autograd.backward(model[0](torch.ones(2, 3)).sum())
        optimizer.step()
    assert torch.equal(model[1].weight, before)
    assert not model[0].weight.any()


# ---- what is refused -----------------------------------------------------------------------------------


def test_a_penalty_without_a_slope_is_refused_at_once_and_later() -> None:
    model = linear()
    optimizer = Descent(model.parameters(), lr=0.1)
    with pytest.raises(UnsupportedOptimizerError, match=r"Descent has no metric .* Flat no slope at zero"):
        tl.attach(optimizer, tl.Regularizer(model, Flat(1.0)))
    handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)))
    with pytest.raises(UnsupportedOptimizerError, match="Flat no slope at zero"):
        handle.update(tl.Regularizer(model, Flat(1.0)))
    fit(model, optimizer, 500)  # with the penalty that it had
    assert_lasso(model, 1e-6)
    handle.remove()
    tl.attach(optimizer, tl.Regularizer(model, Flat(1.0)), metric=lambda p, group, state: group["lr"])


def test_sparse_gradients_are_refused_with_what_to_do() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    optimizer = Descent(model.parameters(), lr=0.1)
    tl.attach(optimizer, tl.Regularizer(model, {model.weight: tl.L1(0.1)}))
    torch.autograd.backward(model(torch.tensor([1])).sum())
    with pytest.raises(UnsupportedOptimizerError, match=r"gradient of weight is sparse.*use SGD, Adagrad"):
        optimizer.step()


def test_a_known_metric_makes_it_the_proximal_step() -> None:
    """With ``metric`` the same descent is torch's SGD, step by step and to the last bit."""
    model, other = linear(), linear()
    other.load_state_dict(model.state_dict())
    optimizer, sgd = Descent(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    regularizer = tl.Regularizer(model, tl.ElasticNet(0.4))
    tl.attach(optimizer, regularizer, metric=lambda parameter, group, state: group["lr"])
    tl.attach(sgd, tl.Regularizer(other, tl.ElasticNet(0.4)))
    for _ in range(100):
        fit(model, optimizer, 1)
        fit(other, sgd, 1)
        assert torch.equal(model.weight, other.weight)
    assert (model.weight == 0).any()


def test_a_metric_may_differ_from_entry_to_entry() -> None:
    """A preconditioned descent of a third party, with its preconditioner as the metric, ends at the lasso."""

    class Preconditioned(Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                scale = torch.linspace(0.02, 0.15, parameter.numel(), dtype=parameter.dtype)
                self.state[parameter]["scale"] = scale.reshape(parameter.shape)
                parameter.sub_(parameter.grad * self.state[parameter]["scale"])

    model = linear()
    optimizer = Preconditioned(model.parameters())
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.4)), metric=lambda p, group, state: state["scale"])
    fit(model, optimizer, 800)
    assert_lasso(model, 1e-8)


def test_the_strength_may_change_by_step() -> None:
    model = linear()
    optimizer = Descent(model.parameters(), lr=0.1)
    penalty = replace(tl.L1(0.0), strength=lambda step: 0.0 if step < 20 else 0.4)
    tl.attach(optimizer, tl.Regularizer(model, penalty))
    fit(model, optimizer, 20)
    assert model.weight.all()
    fit(model, optimizer, 500)
    assert_lasso(model, 1e-6)
