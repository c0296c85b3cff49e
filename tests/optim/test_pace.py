"""Evidence counts by what a step moves: a decayed learning rate lengthens the memory."""

import pytest
import torch
from torch import nn

import torchlasso as tl
from torchlasso.optim.pace import Pace

MEMORY, LARGE, STRENGTH = 20, 0.1, 1.0
PENALTIES = {
    "l1": tl.L1(STRENGTH),
    "user": tl.SCAD(STRENGTH, a=50.0),
    "group": tl.GroupLasso(STRENGTH, weights=None),
}


def steps_to_return(penalty: tl.Penalty, kind: str, small: float) -> int:
    """Let a weight die at a large learning rate; then pull at 1.5 strengths, at another rate."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 1e-3)
    regularizer = tl.Regularizer(model, penalty)
    if kind == "attach":
        optimizer = torch.optim.SGD(model.parameters(), lr=LARGE)
        tl.attach(optimizer, regularizer, memory=MEMORY)
    else:
        optimizer = tl.optim.ProxSGD(model.parameters(), regularizer, lr=LARGE, memory=MEMORY)

    def step(pull: float) -> bool:
        optimizer.zero_grad()
        (-pull * model.weight.sum()).backward()
        optimizer.step()
        return bool(model.weight != 0)

    for _ in range(2 * MEMORY):  # the memory is no longer than the steps taken
        step(0.0)
    assert model.weight.item() == 0.0
    optimizer.param_groups[0]["lr"] = small
    return next(n for n in range(1, 100_000) if step(1.5 * STRENGTH))


@pytest.mark.parametrize("kind", ["attach", "fused"])
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
def test_at_a_tenth_of_the_learning_rate_a_zero_weighs_ten_times_as_long(penalty, kind):
    usual, later = (steps_to_return(penalty, kind, lr) for lr in (LARGE, LARGE / 10))
    # Half a unit of evidence a step, of 20 units.
    assert usual == pytest.approx(2 * MEMORY, abs=2)
    assert later == pytest.approx(10 * 2 * MEMORY, abs=2)


def test_a_larger_learning_rate_than_ever_is_the_new_measure():
    assert steps_to_return(tl.L1(STRENGTH), "attach", 10 * LARGE) == pytest.approx(
        steps_to_return(tl.L1(STRENGTH), "attach", LARGE), abs=2
    )


def test_groups_of_an_optimizer_each_have_their_own_pace():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    pace = Pace()
    pace.note([{"params": [first], "lr": 1.0}])
    pace.note([{"params": [first], "lr": 0.5}, {"params": [second], "lr": torch.tensor(1.0)}])
    pace.note([{"params": [first], "lr": 2.0}, {"params": [second], "lr": torch.tensor(0.25)}])
    assert (pace.of(first), pace.of(second), pace.largest) == (1.0, 4.0, [2.0, 1.0])


@pytest.mark.parametrize(("rates", "stretch"), [((0.0, 0.0), 1.0), ((0.0, 0.1), 1.0), ((0.1, 0.0), 1e6)])
def test_a_learning_rate_of_zero_is_finite(rates, stretch):
    pace = Pace()
    for lr in rates:
        pace.note([{"params": [], "lr": lr}])
    assert pace.stretch == [stretch]


def test_an_optimizer_without_a_learning_rate_keeps_its_memory():
    pace = Pace()
    pace.note([{"params": []}])
    assert pace.stretch == [1.0]


def test_the_largest_learning_rate_is_saved_and_restored():
    def fresh():
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=LARGE)
        return optimizer, tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.1)))

    optimizer, _ = fresh()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = LARGE / 8
    again, handle = fresh()
    again.load_state_dict(optimizer.state_dict())
    again.step()
    assert handle.shrinkage.pace.stretch == pytest.approx([8.0])
