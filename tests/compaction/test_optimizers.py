from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchlasso as tl
from torchlasso.compaction.compact import compact

KEPT = [0, 2, 5]


def network() -> nn.Sequential:
    """Six hidden units, of which three are dead."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    bury(model)
    return model.double()


@torch.no_grad()
def bury(model: nn.Sequential) -> None:
    dead = torch.tensor([i for i in range(6) if i not in KEPT])
    for tensor, dim in ((model[0].weight, 0), (model[0].bias, 0), (model[2].weight, 1)):
        tensor.index_fill_(dim, dead, 0.0)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    return float(optimizer.step(closure).detach())


OPTIMIZERS: list[Callable[[object], torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.02),
    lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
    lambda p: torch.optim.RMSprop(p, lr=0.01),
    lambda p: torch.optim.Adagrad(p, lr=0.05),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_next_step_is_the_one_that_was_due(make: Callable[[object], torch.optim.Optimizer]) -> None:
    model = network()
    optimizer = make(model.parameters())
    x, y = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    for _ in range(3):
        step(model, optimizer, x, y)
        bury(model)
    twin = network()
    twin.load_state_dict(model.state_dict())
    other = make(twin.parameters())
    other.load_state_dict(optimizer.state_dict())
    small = compact(model, x[:2], optimizer=optimizer).model
    assert [tuple(p.shape) for p in small.parameters()] == [(3, 4), (3,), (2, 3), (2,)]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(held, small.parameters(), strict=True))
    first = step(twin, other, x, y)
    assert step(small, optimizer, x, y) == pytest.approx(first, rel=1e-12)
    torch.testing.assert_close(small.get_submodule("0").weight, twin[0].weight[KEPT], rtol=0, atol=1e-12)
    torch.testing.assert_close(small.get_submodule("2").weight, twin[2].weight[:, KEPT], rtol=0, atol=1e-12)
    losses = [step(small, optimizer, x, y) for _ in range(30)]
    assert losses[-1] < first


@pytest.mark.parametrize("memory", [0, "auto"])
@pytest.mark.parametrize("penalty", [tl.L1(0.02), tl.GroupLasso(0.02)])
def test_an_attached_penalty_goes_along(penalty: tl.Penalty, memory: object) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    handle = tl.attach(optimizer, tl.Regularizer(model, {"0.weight": penalty, "*": None}), memory=memory)
    x, y = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    for _ in range(3):
        step(model, optimizer, x, y)
        bury(model)
    twin = network()
    twin.load_state_dict(model.state_dict())
    other = torch.optim.Adam(twin.parameters(), lr=0.02)
    tl.attach(other, tl.Regularizer(twin, {"0.weight": penalty, "*": None}), memory=memory)
    other.load_state_dict(optimizer.state_dict())
    small = compact(model, x[:2], optimizer=optimizer).model
    assert handle.steps == 3
    assert handle.regularizer.terms[0].members[0].parameter is small.get_submodule("0").weight
    for _ in range(3):
        step(small, optimizer, x, y)
        step(twin, other, x, y)
        bury(twin)
        torch.testing.assert_close(small.get_submodule("0").weight, twin[0].weight[KEPT], rtol=0, atol=1e-9)


def test_frozen_zeros_stay_frozen() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[0, 1] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = tl.attach(optimizer, tl.Regularizer(model, {"0.weight": tl.L1(0.01), "*": None}))
    handle.freeze_zeros()
    x, y = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    small = compact(model, x[:2], optimizer=optimizer).model
    for _ in range(3):
        step(small, optimizer, x, y)
    weight = small.get_submodule("0").weight
    assert weight[0, 1] == 0
    assert int((weight != 0).sum()) == 11


def test_the_shipped_optimizers_go_along() -> None:
    from torchlasso.optim.fused import ProxAdamW

    model = network()
    regularizer = tl.Regularizer(model, {"0.weight": tl.L1(0.01), "*": None})
    optimizer = ProxAdamW(model.parameters(), regularizer, lr=0.02)
    x, y = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    for _ in range(3):
        step(model, optimizer, x, y)
        bury(model)
    small = compact(model, x[:2], optimizer=optimizer).model
    losses = [step(small, optimizer, x, y) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert all(p.shape == optimizer.state[p]["exp_avg"].shape for p in small.parameters())


def test_a_schedule_goes_on_with_the_same_optimizer() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    x, y = torch.randn(5, 4).double(), torch.randn(5, 2).double()
    small = compact(model, x, optimizer=optimizer).model
    step(small, optimizer, x, y)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
