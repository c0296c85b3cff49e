"""Each metric against its definition, measured on the real torch optimizers.

The metric is how far a constant unit gradient would have moved a weight at the step just taken.  Three
measurements, none of which uses a formula of the package: feed one (SGD and ASGD, whose steps are linear);
run a twin whose gradients are all one larger, its divisor held at the first's (every other); nudge the first
moment (Adam, with a momentum that changes between steps).
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

from torchlasso.optim.metric import Memory, Metric
from torchlasso.optim.metrics import metric_of

STEPS = 12
Kind = Callable[..., Optimizer]
Change = Callable[[int, dict[str, Any]], None]
Row = tuple[Kind, dict[str, Any]]


def _name(value: Any) -> str | None:
    """Return a short name for a part of a row in a test's name."""
    if isinstance(value, dict):
        return ",".join(f"{key}={entry}" for key, entry in value.items()) or "plain"
    return str(value) if isinstance(value, torch.dtype) else getattr(value, "__name__", None)


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


def _metric(optimizer: Optimizer) -> Metric:
    metric = metric_of(optimizer)
    assert metric is not None
    return metric


def _displacement(optimizer: Optimizer, parameter: Tensor, memory: Memory) -> Any:
    group, state = optimizer.param_groups[0], optimizer.state.get(parameter, {})
    assert parameter.grad is not None
    return _metric(optimizer).displacement(group, state, parameter.grad, memory)


def _step(optimizer: Optimizer, parameter: Tensor, grad: Tensor, memory: Memory) -> Any:
    """Take a step with a gradient and return the metric of it."""
    group = optimizer.param_groups[0]
    _metric(optimizer).before(group, optimizer.state.get(parameter, {}), memory)
    parameter.grad = grad.clone()  # foreach works in it
    optimizer.step()
    return _displacement(optimizer, parameter, memory)


def _sparse(indices: list[list[int]], shape: tuple[int, ...], values: Tensor | None = None) -> Tensor:
    """Return an uncoalesced gradient, of ones if no values are given, such as an embedding has."""
    if values is None:
        values = torch.ones(len(indices[0]), *shape[len(indices) :])
    places = torch.tensor(indices, dtype=torch.int64)
    return torch.sparse_coo_tensor(places, values, shape, check_invariants=True)


def _real(values: Tensor) -> Tensor:
    return torch.view_as_real(values) if values.is_complex() else values


# ---- SGD and ASGD: feed a constant unit gradient ------------------------------------------------

IMPLEMENTATIONS: list[dict[str, Any]] = [{"foreach": False}, {"foreach": True}, {"fused": True}]
LINEAR: list[Row] = [
    (SGD, {**momentum, "maximize": maximize, **implementation})
    for momentum in [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.5, "dampening": 1.0},
    ]
    for maximize in (False, True)
    for implementation in IMPLEMENTATIONS
]
LINEAR += [
    (ASGD, {"lambd": lambd, "maximize": maximize, "foreach": foreach})
    for lambd, maximize, foreach in [(0.0, False, False), (0.3, True, False), (0.3, False, True)]
]


def _tolerance(kind: Kind) -> float:
    return 1e-7 if kind is ASGD else 1e-12  # its first step size is the learning rate in float32


CHANGED_LINEAR = [
    (kind, arguments, change)
    for (kind, arguments), change in itertools.product(LINEAR, CHANGES)
    if kind is SGD or change is not _cycle
]
DTYPES = [torch.float64, torch.complex128]


@pytest.mark.parametrize(
    ("kind", "arguments", "change", "dtype"),
    [(*row, d) for row in CHANGED_LINEAR for d in DTYPES if not (d.is_complex and "fused" in row[1])],
    ids=_name,
)
def test_a_linear_optimizer_moves_by_its_metric_under_a_constant_unit_gradient(
    kind: Kind, arguments: dict[str, Any], change: Change, dtype: torch.dtype
) -> None:
    moved = torch.zeros(3, dtype=dtype, requires_grad=True)
    optimizer = kind([moved], lr=0.1, **arguments)
    memory: Memory = {}
    for step in range(STEPS):
        change(step, optimizer.param_groups[0])
        moved.data.zero_()  # ASGD decays what is there
        metric = _step(optimizer, moved, torch.ones_like(moved), memory)
        expected = torch.full((3,), metric, dtype=torch.float64)
        assert torch.allclose(moved.detach().abs(), expected, rtol=_tolerance(kind), atol=1e-16)


@pytest.mark.parametrize(("kind", "arguments", "change"), CHANGED_LINEAR, ids=_name)
def test_the_metric_is_what_one_more_unit_of_gradient_adds(
    kind: Kind, arguments: dict[str, Any], change: Change
) -> None:
    """Two copies, one fed noise and one fed the same noise plus a constant 1."""
    a = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    first, second = kind([a], lr=0.1, **arguments), kind([b], lr=0.1, **arguments)
    memory: Memory = {}
    for step in range(STEPS):
        change(step, first.param_groups[0])
        change(step, second.param_groups[0])
        b.data.copy_(a.detach())
        noise = torch.randn_like(a)
        metric = _step(first, a, noise, memory)
        b.grad = noise + 1
        second.step()
        measured = (b - a).detach().abs()
        expected = torch.full_like(measured, metric)
        assert torch.allclose(measured, expected, rtol=1e3 * _tolerance(kind), atol=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_weight_decay_does_not_change_the_metric_of_sgd(nesterov: bool) -> None:
    metrics = []
    for decay in (0.0, 0.1):
        w = torch.ones(2, requires_grad=True)
        optimizer = SGD([w], lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=decay)
        memory: Memory = {}
        metrics += [_step(optimizer, w, torch.ones_like(w), memory) for _ in range(3)]
    assert metrics[:3] == metrics[3:]


def test_a_sparse_gradient_leaves_the_metric_of_sgd_the_same_on_all_rows() -> None:
    w = torch.zeros(4, 2, requires_grad=True)
    optimizer = SGD([w], lr=0.1, momentum=0.5)
    memory: Memory = {}
    assert _step(optimizer, w, _sparse([[1]], (4, 2)), memory) == pytest.approx(0.1)
    assert _step(optimizer, w, _sparse([[2]], (4, 2)), memory) == pytest.approx(0.15)


# ---- the others: a twin with the same divisor ---------------------------------------------------


def _post(state: dict[str, Any], group: dict[str, Any], grad: Tensor) -> dict[str, Tensor]:
    """Return the buffers before a step with which it ends on the given ones: the divisor is held fixed."""
    signed = _real(-grad if group.get("maximize") else grad)
    decay = group["betas"][1] if "betas" in group else group.get("alpha", group.get("rho"))
    held = {}
    for name, value in state.items():
        after = _real(value) if isinstance(value, Tensor) else value
        if name in ("exp_avg_sq", "square_avg"):
            held[name] = (after - (1 - decay) * signed.square()) / decay
        elif name == "grad_avg":
            held[name] = (after - (1 - decay) * signed) / decay
        elif name == "sum":
            held[name] = after - signed.square()
        elif name == "exp_inf":
            held[name] = after / decay
        elif name == "max_exp_avg_sq":
            held[name] = after
    return held


class Twin:
    """A second optimizer whose every gradient is a unit larger, and whose divisor is the first one's."""

    def __init__(self, kind: Kind, arguments: dict[str, Any], weight: Tensor) -> None:
        self.weight = torch.zeros_like(weight).requires_grad_()
        self.optimizer = kind([self.weight], **arguments)
        # The state of a fresh optimizer is empty: give it one to hold the divisor in.
        template, spare = torch.zeros_like(weight).requires_grad_(), torch.ones_like(weight)
        other = kind([template], **arguments)
        template.grad = spare
        other.step()
        start = {"mu_product": 1.0}
        for name, value in other.state[template].items():
            fresh = torch.full_like(value, start.get(name, 0.0))
            self.optimizer.state[self.weight][name] = fresh

    def step(self, start: Tensor, grad: Tensor, first: dict[str, Any], past: Tensor | None) -> None:
        """Follow a step that took the first optimizer to a state, from the same weights."""
        group, state = self.optimizer.param_groups[0], self.optimizer.state[self.weight]
        self.weight.data.copy_(start)
        one = torch.ones_like(grad)
        self.weight.grad = grad + (torch.complex(one.real, one.real) if grad.is_complex() else one)
        for name, value in _post(first, group, self.weight.grad).items():
            _real(state[name]).copy_(value)
        if past is not None:
            state["acc_delta"].copy_(past)
        self.optimizer.step()


FLAGS: list[dict[str, Any]] = [{"foreach": False}, {"foreach": True}, {"foreach": False, "maximize": True}]
PRECONDITIONED: list[Row] = [
    (kind, {**options, **flags})
    for kind, options, flag_rows in [
        (Adam, {"betas": (0.9, 0.99)}, [*FLAGS, {"fused": True}]),
        (Adam, {"betas": (0.9, 0.99), "amsgrad": True}, [*FLAGS, {"fused": True}]),
        (AdamW, {"betas": (0.9, 0.99), "eps": 1e-2, "weight_decay": 0.1}, [*FLAGS, {"fused": True}]),
        (NAdam, {"betas": (0.9, 0.99)}, FLAGS),
        (NAdam, {"betas": (0.8, 0.9), "momentum_decay": 0.1, "eps": 1e-2}, FLAGS),
        (NAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}, FLAGS),
        (RAdam, {"betas": (0.9, 0.99)}, FLAGS),
        (RAdam, {"betas": (0.8, 0.9), "eps": 1e-2}, FLAGS),
        (RAdam, {"betas": (0.9, 0.6)}, FLAGS),  # never rectified
        (RAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}, FLAGS),
        (Adamax, {"betas": (0.9, 0.9)}, FLAGS),
        (Adamax, {"betas": (0.8, 0.99), "eps": 1.0}, FLAGS),
        (Adagrad, {}, [*FLAGS, {"fused": True}]),
        (Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-2}, FLAGS),
        (RMSprop, {}, FLAGS),
        (RMSprop, {"alpha": 0.9, "eps": 1e-2}, FLAGS),
        (Adadelta, {}, FLAGS),
        (Adadelta, {"rho": 0.95, "eps": 1e-2}, FLAGS),
    ]
    for flags in flag_rows
]


@pytest.mark.parametrize("change", [_keep, _warm_up], ids=_name)
@pytest.mark.parametrize(
    ("kind", "arguments", "dtype"),
    [(*row, d) for row in PRECONDITIONED for d in DTYPES if not (d.is_complex and "fused" in row[1])],
    ids=_name,
)
def test_the_metric_is_what_one_more_unit_of_gradient_adds_over_the_same_divisor(
    kind: Kind, arguments: dict[str, Any], dtype: torch.dtype, change: Change
) -> None:
    scales = torch.tensor([1.0, 10.0, 0.1, 0.5, 30.0, 100.0], dtype=torch.float64)
    w = torch.zeros(6, dtype=dtype, requires_grad=True)
    arguments = {"lr": 0.1, **arguments}
    optimizer, twin = kind([w], **arguments), Twin(kind, arguments, w)
    memory: Memory = {}
    for step in range(STEPS):
        change(step, optimizer.param_groups[0])
        change(step, twin.optimizer.param_groups[0])
        start, grad = torch.randn_like(w), torch.randn_like(w) * scales
        if kind is Adamax and step == 0:  # so large that a unit more changes no later maximum
            grad = torch.full_like(w, -500 * (1 + 1j) if dtype.is_complex else -500.0)
        past = optimizer.state[w]["acc_delta"].clone() if step and kind is Adadelta else None
        w.data.copy_(start)
        metric = torch.as_tensor(_step(optimizer, w, grad, memory), dtype=torch.float64)
        twin.step(start, grad, optimizer.state[w], past)
        measured = _real((twin.weight - w).detach()).abs()
        assert metric.dim() == 0 or metric.shape == measured.shape
        assert not any(isinstance(value, Tensor) for value in memory.values())
        assert torch.allclose(measured, metric.expand_as(measured), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("flags", FLAGS, ids=_name)
def test_rmsprop_collects_in_its_buffer_what_the_metric_says(momentum: float, flags: dict[str, Any]) -> None:
    """Gradients of random sign and constant size: the bias-corrected mean square stays as it is."""
    size = torch.tensor([1.0, 10.0, 1e-3], dtype=torch.float64)
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    arguments = {"lr": 0.1, "alpha": 0.9, "momentum": momentum, "eps": 1e-30, **flags}
    optimizer, twin = RMSprop([w], **arguments), Twin(RMSprop, arguments, w)
    memory: Memory = {}
    for _ in range(STEPS):
        grad = size * torch.randn(3).sign()
        w.data.zero_()
        metric = _step(optimizer, w, grad, memory)
        twin.step(torch.zeros_like(w), grad, optimizer.state[w], None)
        assert torch.allclose((twin.weight - w).detach().abs(), metric, rtol=1e-9)


CONSTANT = [
    (kind, {**options, **decay})
    for kind, options in [
        (Adam, {"betas": (0.9, 0.99)}),
        (AdamW, {"betas": (0.9, 0.99)}),
        (NAdam, {"betas": (0.9, 0.99)}),
        (RAdam, {"betas": (0.9, 0.99)}),
        (Adamax, {"betas": (0.9, 0.99)}),
        (Adagrad, {"lr_decay": 0.1}),
        (RMSprop, {"eps": 1e-30}),
        (RMSprop, {"momentum": 0.9, "eps": 1e-30}),
        (Adadelta, {}),
    ]
    for decay in ({}, {"weight_decay": 0.1})
]


@pytest.mark.parametrize(("kind", "arguments"), CONSTANT, ids=_name)
def test_a_constant_gradient_moves_a_weight_by_the_metric_times_the_gradient(
    kind: Kind, arguments: dict[str, Any]
) -> None:
    gradient = torch.tensor([1.0, -0.01, 100.0], dtype=torch.float64)
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = kind([w], lr=0.1, **arguments)
    memory: Memory = {}
    for _ in range(40):
        w.data.zero_()  # so that there is nothing to decay
        metric = _step(optimizer, w, gradient, memory)
        assert torch.allclose(-w.detach(), metric * gradient, rtol=1e-9)


# ---- Adam: nudge the first moment ---------------------------------------------------------------

ADAM: list[Row] = [
    (kind, {"amsgrad": amsgrad, "eps": eps, "maximize": maximize, **implementation})
    for kind, amsgrad, (eps, maximize), implementation in itertools.product(
        (Adam, AdamW), (False, True), ((1e-8, False), (1e-2, False), (1e-8, True)), IMPLEMENTATIONS
    )
]


@pytest.mark.parametrize("change", CHANGES, ids=_name)
@pytest.mark.parametrize(("kind", "arguments"), ADAM, ids=_name)
def test_adam_displaces_by_its_metric_times_the_corrected_first_moment(
    kind: Kind, arguments: dict[str, Any], change: Change
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
        grad = torch.randn(6, dtype=torch.float64) * scales
        nudged.grad = grad.clone()
        metric = _step(optimizer, w, grad, {})
        other.step()
        if step:
            assert torch.allclose((w - nudged).detach(), metric, rtol=1e-7, atol=1e-12)


# ---- SparseAdam ---------------------------------------------------------------------------------


def test_sparse_adam_displaces_the_touched_rows_by_its_metric_and_no_other() -> None:
    """Rows 1 and 4 are nudged in their first moment; row 1 comes twice in the same gradient."""
    w = torch.zeros(6, 2, dtype=torch.float64, requires_grad=True)
    nudged = torch.zeros_like(w).requires_grad_()
    optimizer, other = SparseAdam([w], lr=0.1), SparseAdam([nudged], lr=0.1)
    for step in range(STEPS):
        rows = [1, 4, 1] if step % 2 else [4, 1, step // 2]
        grad = _sparse([rows], (6, 2), torch.randn(3, 2, dtype=torch.float64))
        if step:
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            other.state[nudged]["exp_avg"].add_((1 - 0.9 ** (step + 1)) / 0.9)
            nudged.data.copy_(w.detach())
        nudged.grad = grad.clone()
        metric = _step(optimizer, w, grad, {})
        other.step()
        if step:
            assert torch.allclose((w - nudged).detach(), metric, rtol=1e-9, atol=1e-14)
            assert (metric != 0).any(1).nonzero().flatten().tolist() == sorted(set(rows))


def test_sparse_adam_takes_a_gradient_that_is_sparse_in_every_dimension_or_empty() -> None:
    w = torch.zeros(3, 2, requires_grad=True)
    optimizer = SparseAdam([w], lr=0.1)
    metric = _step(optimizer, w, _sparse([[0, 2], [1, 0]], (3, 2)), {})
    assert (metric > 0).tolist() == [[False, True], [False, False], [True, False]]
    assert not _step(optimizer, w, _sparse([[]], (3, 2)), {}).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=_name)
def test_sparse_adam_moves_settled_rows_by_its_metric_and_never_beyond_the_limit(dtype: torch.dtype) -> None:
    w = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    optimizer = SparseAdam([w], lr=0.1)
    for _ in range(50):
        w.data.zero_()
        values = torch.tensor([[1.0, 0.01], [10.0, 1e-4]], dtype=dtype)
        metric = _step(optimizer, w, _sparse([[0, 2]], (3, 2), values), {})
        assert metric.isfinite().all()
        if dtype is torch.float64:
            assert torch.allclose(-w.detach()[[0, 2]], metric[[0, 2]] * values, rtol=1e-9)
    group = optimizer.param_groups[0]
    limit = _metric(optimizer).limit(group, {})
    assert limit == group["lr"]
    if dtype is torch.float64:  # in float16 torch's own step overflows
        assert 0.5 * limit < float(w.detach().abs().max()) <= limit * (1 + 1e-12)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # from torch's own Adagrad
def test_adagrad_takes_a_row_without_an_entry_for_one_with_a_zero_gradient() -> None:
    rows, dense = torch.zeros(4, 2, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    first, second = Adagrad([rows], lr=0.1), Adagrad([dense], lr=0.1)
    for row in (1, 2, 1):
        grad = _sparse([[row]], (4, 2))
        metric = _step(first, rows, grad, {})
        assert torch.equal(metric, _step(second, dense, grad.to_dense(), {}))


# ---- the limit ----------------------------------------------------------------------------------

LIMITED: list[tuple[Kind, dict[str, Any], float]] = [
    (Adam, {}, 1.0),
    (Adam, {"amsgrad": True}, 1.0),
    (AdamW, {}, 1.0),
    (NAdam, {}, 1 / 1.5),
    (NAdam, {"betas": (0.99, 0.999), "momentum_decay": 1.0}, 1 / 1.5),
    (RAdam, {"betas": (0.9, 0.99)}, 1.0),
    (Adamax, {}, 1.0),
    (RMSprop, {}, 1.0),
    (RMSprop, {"momentum": 0.9, "alpha": 0.9}, 1.0),
    (Adagrad, {}, 0.0),  # its displacements tend to zero
    (Adagrad, {"lr_decay": 0.1}, 0.0),
]


@pytest.mark.parametrize(("kind", "arguments", "reached"), LIMITED, ids=_name)
def test_no_constant_gradient_moves_a_weight_by_more_than_the_limit(
    kind: Kind, arguments: dict[str, Any], reached: float
) -> None:
    gradient = torch.logspace(-6, 3, 10, dtype=torch.float64)
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = kind([w], lr=0.1, **arguments, **({"weight_decay": 0} if kind is AdamW else {}))
    memory: Memory = {}
    share, highest = torch.zeros(10), torch.zeros(10)
    for step in range(600):
        w.data.zero_()
        _step(optimizer, w, gradient, memory)
        limit = _metric(optimizer).limit(optimizer.param_groups[0], memory)
        if limit is None:
            assert kind is RAdam
            assert step < 6
            continue
        share = w.detach().abs() / limit
        highest = torch.maximum(highest, share)
    assert highest.max() <= 1 + 1e-12
    assert highest.min() >= 0.5
    assert torch.allclose(share, torch.full_like(share, max(reached, float(share[-1]))), rtol=0.05)
    assert float(share[-1]) >= 0.95 * reached


@pytest.mark.parametrize(("kind", "arguments", "reached"), LIMITED, ids=_name)
def test_a_threshold_bounded_by_twice_the_limit_balances_the_gradients_that_it_should(
    kind: Kind, arguments: dict[str, Any], reached: float
) -> None:
    """Constant gradients of 1e-6 to 10 times the strength: only those above it outweigh the threshold."""
    strength = 0.3
    ratio = torch.tensor([1e-6, 1e-3, 0.4, 0.6, 0.99, 1.01, 3.0, 10.0], dtype=torch.float64)
    w = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    optimizer = kind([w], lr=0.1, **arguments, **({"weight_decay": 0} if kind is AdamW else {}))
    memory: Memory = {}
    for _ in range(400):
        w.data.zero_()
        threshold = strength * torch.as_tensor(_step(optimizer, w, strength * ratio, memory))
        limit = _metric(optimizer).limit(optimizer.param_groups[0], memory)
        if limit is not None:
            threshold = threshold.clamp(max=2 * limit)
        moved = w.detach().abs()
        assert ((moved > threshold) == (ratio > 1)).all()
        assert (threshold > 1.5 * moved)[ratio < 0.65].all()  # shrunk in earnest, not by a share of epsilon


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (SGD, {"momentum": 0.9}),
        (ASGD, {}),
        (Adadelta, {"eps": 1e5}),
        (RAdam, {"betas": (0.9, 0.6)}),
    ],
    ids=_name,
)
def test_there_is_no_limit_where_displacements_grow_without_bound(
    kind: Kind, arguments: dict[str, Any]
) -> None:
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = kind([w], lr=0.1, **arguments)
    memory: Memory = {}
    for _ in range(30):
        w.data.zero_()
        _step(optimizer, w, torch.tensor([1.0, 1e3], dtype=torch.float64), memory)
        assert _metric(optimizer).limit(optimizer.param_groups[0], memory) is None
    assert float(w[1].detach().abs()) > 10


# ---- a metric that begins late ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "steps"),
    [
        (SGD, {"momentum": 0.9}, 400),
        (SGD, {"momentum": 0.9, "dampening": 0.5}, 400),
        (SGD, {"momentum": 0.8, "nesterov": True}, 400),
        (RMSprop, {}, 3),
        (RMSprop, {"momentum": 0.9, "alpha": 0.9}, 400),
        (RAdam, {}, 5),
        (RAdam, {}, 20),
        (NAdam, {}, 5),
        (Adagrad, {"lr_decay": 0.1}, 5),
    ],
    ids=_name,
)
def test_a_metric_that_begins_late_goes_on_as_one_that_began_early(
    kind: Kind, arguments: dict[str, Any], steps: int
) -> None:
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = kind([w], lr=0.1, **arguments)
    early: Memory = {}
    for _ in range(steps):
        _step(optimizer, w, torch.ones_like(w), early)
    group = optimizer.param_groups[0]
    late = _metric(optimizer).resume(group, optimizer.state[w])
    for _ in range(3):
        metric = _step(optimizer, w, torch.ones_like(w), early)
        assert _displacement(optimizer, w, late) == pytest.approx(metric, rel=1e-9)
        limits = [_metric(optimizer).limit(group, memory) or 0.0 for memory in (early, late)]
        assert limits[0] == pytest.approx(limits[1], rel=1e-9)


def test_a_late_metric_of_rmsprop_with_momentum_begins_near_the_truth() -> None:
    """The buffer's history is not known; it is forgotten as fast as the momentum forgets."""
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = RMSprop([w], lr=0.1, momentum=0.5)
    early: Memory = {}
    for _ in range(30):
        _step(optimizer, w, torch.ones_like(w), early)
    late = _metric(optimizer).resume(optimizer.param_groups[0], optimizer.state[w])
    assert late == pytest.approx(early, rel=0.05)


def test_nothing_is_resumed_where_nothing_has_begun() -> None:
    w = torch.zeros(1, requires_grad=True)
    for optimizer in (SGD([w], lr=0.1, momentum=0.9), SGD([w], lr=0.1), Adam([w]), Adagrad([w])):
        state = optimizer.state.get(w, {})
        assert _metric(optimizer).resume(optimizer.param_groups[0], state) == {}
    assert not optimizer.state[w]["step"]  # Adagrad has a state from the start


# ---- what every metric keeps to -----------------------------------------------------------------

ALL: list[tuple[Kind, dict[str, Any]]] = [
    (SGD, {"momentum": 0.9}),
    (SGD, {}),
    (ASGD, {}),
    (Adam, {"amsgrad": True}),
    (AdamW, {"fused": True, "betas": (0.7, 0.9)}),
    (NAdam, {}),
    (RAdam, {"betas": (0.5, 0.9)}),
    (Adamax, {}),
    (Adagrad, {}),
    (RMSprop, {"momentum": 0.5}),
    (Adadelta, {}),
]


@pytest.mark.parametrize(("kind", "arguments"), ALL, ids=_name)
def test_reading_the_metric_changes_nothing(kind: Kind, arguments: dict[str, Any]) -> None:
    w = torch.ones(3, requires_grad=True)
    optimizer = kind([w], lr=0.1, **arguments)
    group = optimizer.param_groups[0]
    memory: Memory = {}
    for step in range(8):
        _metric(optimizer).before(group, optimizer.state.get(w, {}), memory)
        w.grad = torch.randn(3)
        optimizer.step()
        before = copy.deepcopy((optimizer.state.get(w), group, w.grad))
        metric = _displacement(optimizer, w, memory)
        _metric(optimizer).limit(group, memory)
        _metric(optimizer).resume(group, optimizer.state.get(w, {}))
        if isinstance(metric, Tensor):
            metric.fill_(7.0)  # nor does what one does with it
        after = (optimizer.state.get(w), group, w.grad)
        assert repr(after) == repr(before), step
        assert not any(isinstance(value, Tensor) for value in memory.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=_name)
@pytest.mark.parametrize(("kind", "arguments"), ALL, ids=_name)
def test_in_half_precision_the_metric_is_finite_and_wide(
    kind: Kind, arguments: dict[str, Any], dtype: torch.dtype
) -> None:
    """An epsilon of 1e-8 is zero in float16, and a small second moment too."""
    w = torch.ones(3, dtype=dtype, requires_grad=True)
    exact = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer, wide = kind([w], lr=1e-3, **arguments), kind([exact], lr=1e-3, **arguments)
    memory: Memory = {}
    truth: Memory = {}
    for _ in range(8):
        grad = torch.tensor([1.0, 1e-4, 0.0], dtype=dtype)
        metric = torch.as_tensor(_step(optimizer, w, grad, memory))
        expected = torch.as_tensor(_step(wide, exact, grad.double(), truth))
        assert metric.dtype in (torch.float32, torch.float64)
        assert metric.isfinite().all()
        assert float(metric.flatten()[0]) == pytest.approx(float(expected.flatten()[0]), rel=0.05)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize(("kind", "eps"), [(Adam, 1e-3), (NAdam, 1e-3), (Adamax, 1e-3), (Adagrad, 1e-3)])
def test_a_weight_without_any_gradient_has_the_metric_of_epsilon(
    kind: Kind, eps: float, fraction: float
) -> None:
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = kind([w], lr=0.1 * fraction, eps=eps)
    metric = _step(optimizer, w, torch.tensor([0.0, 1.0], dtype=torch.float64), {})
    assert float(metric[0]) == pytest.approx(100.0 * fraction, rel=0.1)


def test_a_learning_rate_in_a_tensor_is_read() -> None:
    for kind, arguments in ALL:
        w = torch.zeros(2, requires_grad=True)
        flags = {**arguments, **({} if arguments.get("fused") else {"foreach": False})}
        for lr in (torch.tensor(0.1), torch.tensor([0.1])):
            plain, boxed = kind([w], lr=0.1, **flags), kind([w], lr=lr, **flags)
            metrics = [torch.as_tensor(_step(o, w, torch.ones_like(w), {})) for o in (plain, boxed)]
            assert torch.allclose(metrics[0], metrics[1]), kind


@pytest.mark.parametrize(("kind", "arguments"), ALL, ids=_name)
def test_no_metric_reads_a_number_back_from_an_accelerator(kind: Kind, arguments: dict[str, Any]) -> None:
    """On the meta device there is no number to read: an attempt raises."""
    w = torch.ones(3, requires_grad=True)
    optimizer = kind([w], lr=0.1, **arguments)
    w.grad = torch.ones_like(w)
    optimizer.step()
    away = {k: v.to("meta") for k, v in optimizer.state.get(w, {}).items()}
    group = {**optimizer.param_groups[0], "lr": torch.tensor(0.1, device="meta")}
    memory: Memory = {}
    _metric(optimizer).before(group, away, memory)
    metric = _metric(optimizer).displacement(group, away, w.grad.to("meta"), memory)
    limit = _metric(optimizer).limit(group, memory)
    assert isinstance(metric, Tensor)
    assert metric.is_meta
    assert metric.shape in ((), (3,))
    assert limit is None or torch.as_tensor(limit).is_meta
    assert not any(isinstance(value, Tensor) for value in memory.values())


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        *((kind, {"capturable": True}) for kind in (ASGD, Adam, NAdam, RAdam, Adamax, RMSprop, Adadelta)),
        *((kind, {"fused": True}) for kind in (SGD, Adam, AdamW, Adagrad)),
    ],
    ids=_name,
)
def test_on_an_accelerator_the_metric_is_that_on_the_cpu(kind: Kind, arguments: dict[str, Any]) -> None:
    w = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    away = torch.zeros(5, dtype=torch.float64, device="cuda", requires_grad=True)
    here, there = kind([w], lr=0.1), kind([away], lr=torch.tensor(0.1, device="cuda"), **arguments)
    memories: tuple[Memory, Memory] = ({}, {})
    for _ in range(STEPS):
        grad = torch.randn(5, dtype=torch.float64)
        expected = torch.as_tensor(_step(here, w, grad, memories[0])).double()
        metric = torch.as_tensor(_step(there, away, grad.cuda(), memories[1])).double().cpu()
        assert torch.allclose(metric, expected, rtol=1e-5)  # counters and rates are in float32 there


# ---- the choice ---------------------------------------------------------------------------------


class MyAdam(Adam):
    """A subclass may step differently."""


@pytest.mark.parametrize("kind", [MyAdam, Muon, Adafactor, LBFGS, Rprop])
def test_there_is_no_metric_where_none_is_known(kind: Kind) -> None:
    assert metric_of(kind([torch.zeros(1, 1, requires_grad=True)], lr=0.1)) is None


def test_centered_rmsprop_has_none_as_its_divisor_vanishes_where_it_should_rest() -> None:
    w = torch.zeros(1, requires_grad=True)
    assert metric_of(RMSprop([w])) is not None
    assert metric_of(RMSprop([{"params": [w]}, {"params": [], "centered": True}])) is None
