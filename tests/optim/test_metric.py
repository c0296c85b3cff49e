"""Each metric against its definition, measured on the real torch optimizers.

The metric is how far a constant unit gradient would have moved a weight at the step just taken: for SGD
that is measured by feeding one, for Adam (whose step divides by what the gradients were) by the
derivative of the displacement with respect to the bias-corrected first moment.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from torchlasso.errors import UnsupportedOptimizerError
from torchlasso.optim.metric import Memory, metric_of

STEPS = 12
Change = Callable[[int, dict[str, Any]], None]


def _keep(step: int, group: dict[str, Any]) -> None:
    """Change nothing."""


def _cycle(step: int, group: dict[str, Any]) -> None:
    """Change the learning rate and the momentum between steps, as OneCycleLR does."""
    group["lr"] = 0.1 * (1 + step % 4)
    if "momentum" in group:
        group["momentum"] = 0.5 + 0.1 * (step % 5)
    else:
        group["betas"] = (0.8 + 0.03 * (step % 5), group["betas"][1])


def _warm_up(step: int, group: dict[str, Any]) -> None:
    group["lr"] = 0.05 * step


CHANGES = [_keep, _cycle, _warm_up]


def _displacement(optimizer: Optimizer, parameter: Tensor, memory: Memory) -> Any:
    group = optimizer.param_groups[0]
    return metric_of(optimizer).displacement(group, optimizer.state.get(parameter, {}), memory)


# ---- SGD --------------------------------------------------------------------------------------

SGD_ARGUMENTS: list[dict[str, Any]] = [
    {**momentum, "maximize": maximize, **implementation}
    for momentum in [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.5, "dampening": 1.0},
    ]
    for maximize in (False, True)
    for implementation in ({"foreach": False}, {"foreach": True}, {"fused": True})
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("arguments", SGD_ARGUMENTS, ids=str)
def test_sgd_moves_by_its_metric_under_a_constant_unit_gradient(
    arguments: dict[str, Any], change: Change
) -> None:
    moved = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([moved], lr=0.1, **arguments)
    memory: Memory = {}
    for step in range(STEPS):
        change(step, optimizer.param_groups[0])
        before = moved.detach().clone()
        moved.grad = torch.ones_like(moved)
        optimizer.step()
        measured = (moved.detach() - before).abs()
        metric = _displacement(optimizer, moved, memory)
        assert torch.allclose(measured, torch.full_like(measured, metric), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("arguments", SGD_ARGUMENTS, ids=str)
def test_the_metric_is_what_one_more_unit_of_gradient_adds(arguments: dict[str, Any], change: Change) -> None:
    """Two copies, one fed noise and one fed the same noise plus a constant 1."""
    a = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    first, second = SGD([a], lr=0.1, **arguments), SGD([b], lr=0.1, **arguments)
    memory: Memory = {}
    for step in range(STEPS):
        change(step, first.param_groups[0])
        change(step, second.param_groups[0])
        gap = (b - a).detach()
        a.grad = torch.randn_like(a)
        b.grad = a.grad + 1
        first.step()
        second.step()
        measured = ((b - a).detach() - gap).abs()
        metric = _displacement(first, a, memory)
        assert torch.allclose(measured, torch.full_like(measured, metric), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_weight_decay_does_not_change_the_metric_of_sgd(nesterov: bool) -> None:
    metrics = []
    for decay in (0.0, 0.1):
        w = torch.ones(2, requires_grad=True)
        optimizer = SGD([w], lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=decay)
        memory: Memory = {}
        for _ in range(3):
            w.grad = torch.ones_like(w)
            optimizer.step()
            metrics.append(_displacement(optimizer, w, memory))
    assert metrics[:3] == metrics[3:]


@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"), [(0.9, 0.0, False), (0.9, 0.5, False), (0.8, 0.0, True)]
)
def test_a_buffer_that_began_before_is_taken_in_its_steady_state(
    momentum: float, dampening: float, nesterov: bool
) -> None:
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([w], lr=0.1, momentum=momentum, dampening=dampening, nesterov=nesterov)
    for _ in range(400):
        before = w.detach().clone()
        w.grad = torch.ones_like(w)
        optimizer.step()
    memory = metric_of(optimizer).resume(optimizer.param_groups[0], optimizer.state[w])
    assert _displacement(optimizer, w, memory) == pytest.approx(float(before - w.detach()), rel=1e-9)


def test_nothing_is_resumed_without_a_buffer() -> None:
    w = torch.zeros(1, requires_grad=True)
    for optimizer in (SGD([w], lr=0.1, momentum=0.9), SGD([w], lr=0.1), Adam([w])):
        assert metric_of(optimizer).resume(optimizer.param_groups[0], {}) == {}


def test_a_learning_rate_in_a_tensor_is_read() -> None:
    w = torch.zeros(2, requires_grad=True)
    sgd, adam = SGD([w], lr=torch.tensor(0.1), foreach=False), Adam([w], lr=torch.tensor(0.1), foreach=False)
    for optimizer in (sgd, adam):
        w.grad = torch.ones_like(w)
        optimizer.step()
    assert _displacement(sgd, w, {}) == pytest.approx(0.1)
    assert torch.allclose(_displacement(adam, w, {}), torch.full((2,), 0.1))


# ---- Adam -------------------------------------------------------------------------------------

ADAM_ARGUMENTS: list[tuple[type[Adam], dict[str, Any]]] = [
    (kind, {"amsgrad": amsgrad, "eps": eps, "maximize": maximize, **implementation})
    for kind, amsgrad, (eps, maximize), implementation in itertools.product(
        (Adam, AdamW),
        (False, True),
        ((1e-8, False), (1e-2, False), (1e-8, True)),
        ({"foreach": False}, {"foreach": True}, {"fused": True}),
    )
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("kind", "arguments"), ADAM_ARGUMENTS, ids=str)
def test_adam_displaces_by_its_metric_times_the_corrected_first_moment(
    kind: type[Adam], arguments: dict[str, Any], change: Change
) -> None:
    """A copy whose first moment is nudged, its corrected value one larger, ends one metric away."""
    scales = torch.tensor([1.0, 10.0, 0.1, 1e-3, 0.0, 100.0], dtype=torch.float64)
    w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    nudged = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    options = {"lr": 0.1, "betas": (0.9, 0.99), **arguments}
    optimizer, other = kind([w], **options), kind([nudged], **options)
    for step in range(STEPS):
        change(step, optimizer.param_groups[0])
        if step:
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            beta = optimizer.param_groups[0]["betas"][0]
            other.state[nudged]["exp_avg"].add_((1 - beta ** (step + 1)) / beta)
            nudged.data.copy_(w.detach())
        w.grad = torch.randn(6, dtype=torch.float64) * scales
        nudged.grad = w.grad.clone()
        optimizer.step()
        other.step()
        if step:
            metric = _displacement(optimizer, w, {})
            assert torch.allclose((w - nudged).detach(), metric, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_constant_gradient_moves_adam_by_its_metric_times_the_gradient(
    kind: type[Adam], decay: float
) -> None:
    """The bias-corrected first moment of a constant gradient is that gradient, at every step."""
    gradient = torch.tensor([1.0, -0.01, 100.0], dtype=torch.float64)
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = kind([w], lr=0.1, betas=(0.9, 0.99), weight_decay=decay)
    for _ in range(STEPS):
        before = w.detach().clone()
        if kind is Adam:  # its decay is part of the gradient
            before.zero_()
            w.data.zero_()
        w.grad = gradient.clone()
        optimizer.step()
        shrunk = before * (1 - 0.1 * decay) if kind is AdamW else before
        metric = _displacement(optimizer, w, {})
        assert torch.allclose(shrunk - w.detach(), metric * gradient, rtol=1e-9)


def test_a_weight_without_any_gradient_has_the_metric_of_epsilon() -> None:
    w = torch.ones(2, requires_grad=True)
    optimizer = Adam([w], lr=0.1, eps=1e-3)
    w.grad = torch.tensor([0.0, 1.0])
    optimizer.step()
    assert _displacement(optimizer, w, {})[0] == pytest.approx(100.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adam_in_half_precision_has_a_finite_metric(dtype: torch.dtype) -> None:
    """An epsilon of 1e-8 is zero in float16, and a small second moment too."""
    w = torch.ones(2, dtype=dtype, requires_grad=True)
    optimizer = Adam([w], lr=1e-3, fused=True)
    w.grad = torch.tensor([1.0, 1e-4], dtype=dtype)
    optimizer.step()
    metric = _displacement(optimizer, w, {})
    assert metric.isfinite().all()
    assert float(metric[0]) == pytest.approx(1e-3, rel=1e-2)


def test_reading_the_metric_does_not_change_the_optimizer() -> None:
    for optimizer_of in (lambda w: Adam([w], amsgrad=True), lambda w: SGD([w], lr=0.1, momentum=0.9)):
        w = torch.ones(3, requires_grad=True)
        optimizer = optimizer_of(w)
        w.grad = torch.randn(3)
        optimizer.step()
        before = {k: torch.as_tensor(v).clone() for k, v in optimizer.state[w].items()}
        _displacement(optimizer, w, {})
        assert all(torch.equal(torch.as_tensor(v), before[k]) for k, v in optimizer.state[w].items())
        assert optimizer.state[w].keys() == before.keys()


# ---- the others -------------------------------------------------------------------------------


class MyAdam(Adam):
    """A subclass may step differently."""


@pytest.mark.parametrize("kind", [torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam, MyAdam])
def test_an_unknown_optimizer_is_refused_by_name_with_the_known_ones(kind: type[Optimizer]) -> None:
    optimizer = kind([torch.zeros(1, requires_grad=True)], lr=0.1)  # type: ignore[call-arg]
    with pytest.raises(UnsupportedOptimizerError, match=rf"{kind.__name__} is not known.*Adam, AdamW, SGD"):
        metric_of(optimizer)
