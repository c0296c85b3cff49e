"""Concave penalties in a step: the C pass, the bound on how far a weight shrinks, stationary points."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlasso as tl
from torchlasso.optim.kernels.library import available
from torchlasso.optim.metric_rule import MetricRule
from torchlasso.optim.metrics import metric_of
from torchlasso.optim.shrinkage import Shrinkage

PENALTIES: dict[str, Callable[[float], tl.Penalty]] = {
    "mcp": lambda strength: tl.MCP(strength, gamma=30.0),
    "mcp-hard": lambda strength: tl.MCP(strength, gamma=0.05),
    "mcp-nonnegative": lambda strength: tl.MCP(strength, gamma=30.0, nonnegative=True),
    "scad": lambda strength: tl.SCAD(strength, a=30.0),
    "logsum": lambda strength: tl.LogSum(strength, epsilon=0.1),
    "logsum-weighted": lambda strength: tl.LogSum(
        strength, epsilon=0.1, weights=torch.tensor([1.0, 0.0, float("inf"), 2.0]).repeat(5)
    ),
    "lhalf": tl.LHalf,
    "l0": tl.L0,
}
each = pytest.mark.parametrize("name", PENALTIES)


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 20, generator=generator, dtype=torch.float64)
    truth = torch.zeros(20, 1, dtype=torch.float64)
    truth[:4, 0] = torch.tensor([1.5, -1.0, 0.7, 0.4])
    return x, x @ truth + 0.3 * torch.randn(60, 1, generator=generator, dtype=torch.float64)


def trained(
    name: str, kind: type[torch.optim.Optimizer], *, in_torch: bool, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Train on minibatches from the least-squares fit, so that zeros come and go, and return the weights."""
    x, y = (part.to(dtype) for part in problem())
    model = nn.Linear(20, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    optimizer = kind(model.parameters(), lr=0.01)  # type: ignore[call-arg]  # they all take it
    handle = tl.attach(optimizer, tl.Regularizer(model, PENALTIES[name](0.3)))
    if in_torch:
        known = metric_of(optimizer)
        assert known is not None
        handle._rule = MetricRule(optimizer, handle.shrinkage, known)
    generator = torch.Generator().manual_seed(1)
    for _ in range(120):
        rows = torch.randint(60, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.weight.detach()[0]


@pytest.mark.skipif(not available(), reason="no C library")
@each
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_the_c_pass_is_the_torch_step(name: str, kind: type[torch.optim.Optimizer]) -> None:
    fast, plain = (trained(name, kind, in_torch=in_torch) for in_torch in (False, True))
    torch.testing.assert_close(fast, plain, rtol=1e-6, atol=1e-9)  # rounding grows where the slope falls
    assert torch.equal(fast == 0, plain == 0)
    assert 0 < int((plain == 0).sum()) < 20


@each
@pytest.mark.parametrize("in_torch", [False, True])
def test_a_weight_that_gets_no_gradient_shrinks_by_twice_the_largest_step(name: str, in_torch: bool) -> None:
    """Adam's metric is lr/ε there: unbounded, the threshold would wipe the weight out at the first step."""
    if "weighted" in name:
        return  # its weights are of another shape
    model = nn.Linear(4, 1, bias=False)
    before = torch.tensor([[0.8, 0.5, 0.3, 0.1]])
    with torch.no_grad():
        model.weight.copy_(before)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    handle = tl.attach(optimizer, tl.Regularizer(model, PENALTIES[name](0.3)))
    if in_torch:
        handle._rule = MetricRule(optimizer, handle.shrinkage, metric_of(optimizer))  # type: ignore[arg-type]
    model.weight.grad = torch.zeros_like(model.weight)
    for step in range(1, 4):
        optimizer.step()
        moved = before - model.weight.detach()
        assert (moved <= 0.02 * step + 1e-6).all()
    assert (moved > 0.05).any()


def test_the_bound_keeps_the_constraints() -> None:
    weights = torch.tensor([1.0, float("inf"), 1.0])
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-5.0, 5.0, 5.0]]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    regularizer = tl.Regularizer(model, tl.SCAD(0.1, weights=weights, nonnegative=True))
    shrinkage = Shrinkage(regularizer, 0)
    (term,) = regularizer.terms
    shrinkage.step(term, 10.0, 1e-3)
    assert model.weight[0, :2].tolist() == [0.0, 0.0]
    assert model.weight[0, 2].item() == 5.0  # beyond the reach of SCAD
    assert optimizer.state == {}


@pytest.mark.parametrize("name", ["mcp", "scad", "logsum"])
@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.02),
        lambda p: torch.optim.NAdam(p, lr=0.02),
        lambda p: torch.optim.Rprop(p, lr=1e-3),
    ],
    ids=["momentum", "adam", "nadam", "rprop"],
)
def test_every_rule_ends_at_a_stationary_point(
    name: str, build: Callable[..., torch.optim.Optimizer]
) -> None:
    x, y = problem()
    model = nn.Linear(20, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    optimizer = build(model.parameters())
    regularizer = tl.Regularizer(model, PENALTIES[name](0.3))
    tl.attach(optimizer, regularizer)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.998)
    for _ in range(4000):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        schedule.step()
    found = tl.certificate(model, regularizer, nn.functional.mse_loss, [(x, y)])
    assert found.residual < 1e-5
    assert (model.weight[0] != 0).nonzero()[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [tl.L0, tl.LHalf])
@pytest.mark.parametrize("memory", [0, "auto"])
def test_half_precision_is_not_inert(make: Callable[[float], tl.Penalty], memory: Any) -> None:
    """The largest step is a tenth of what bfloat16 can tell from 1."""
    model = nn.Linear(4, 1, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    tl.attach(optimizer, tl.Regularizer(model, make(10.0)), memory=memory)
    for step in range(1500):
        model.weight.grad = torch.full_like(model.weight, 1e-3 * (-1) ** step)
        optimizer.step()
    assert (model.weight == 0).all()
