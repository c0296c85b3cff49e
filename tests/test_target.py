"""TargetSparsity and its controller by themselves: arguments, counting, steering on invented plants."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.penalties.structured import GroupLasso
from torchlasso.steering import Steering
from torchlasso.target import TargetSparsity

# ---- arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positional", "named", "message"),
    [
        ((), {"by_step": 10}, "give either"),
        ((0.5,), {"keep": 3, "by_step": 10}, "give either"),
        ((1.0,), {"by_step": 10}, "below 1"),
        ((-0.1,), {"by_step": 10}, "from 0"),
        ((90,), {"by_step": 10}, "90 % is 0.9"),
        ((float("nan"),), {"by_step": 10}, "sparsity"),
        (("0.9",), {"by_step": 10}, "sparsity"),
        ((0.5,), {"by_step": 0}, "by_step"),
        ((0.5,), {"by_step": 1.5}, "by_step"),
        ((), {"keep": 0, "by_step": 10}, "keep"),
        ((), {"keep": 2.0, "by_step": 10}, "keep"),
        ((0.5,), {"of": "rows", "by_step": 10}, "of must be"),
    ],
)
def test_bad_arguments_are_refused(
    positional: tuple[object, ...], named: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        TargetSparsity(*positional, **named)


def test_a_target_is_a_strength_and_reading_it_changes_nothing() -> None:
    target = TargetSparsity(0.5, by_step=10)
    before = target.saved()
    assert [target(step) for step in (0, 5, 1000)] == [0.0] * 3
    assert target.saved() == before
    assert tl.L1(target).at(3).strength == 0.0
    assert (target.sparsity_now, target.kept, target.reached) == (None, None, False)


def test_it_prints_the_request_and_the_state() -> None:
    assert repr(TargetSparsity(0.9, by_step=5)) == "TargetSparsity(0.9, by_step=5)"
    assert repr(TargetSparsity(keep=3, of="groups", by_step=5)) == (
        "TargetSparsity(keep=3, of='groups', by_step=5)"
    )
    target = TargetSparsity(0.9, by_step=500)
    assert str(target).endswith("not begun")
    _advance(target, tl.L1(target), torch.tensor([[0.0, 1.0, 0.0, 2.0]]), torch.full((1, 4), 3.0))
    assert str(target).endswith("50.00% zeros, 2 of 4 weights kept, at strength 0.003")


# ---- counting ------------------------------------------------------------------------------------------


def _advance(target: TargetSparsity, penalty: object, w: torch.Tensor, grad: torch.Tensor | None) -> None:
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data, layer.weight.grad = w, grad
    target.advance(1, target.blocks(tl.Regularizer(layer, penalty).terms))


def test_weights_and_groups_are_counted() -> None:
    w = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    weights = TargetSparsity(0.5, by_step=9)
    _advance(weights, GroupLasso(weights, groups="columns"), w, None)
    assert (weights.kept, weights.total) == (1, 6)
    columns = TargetSparsity(keep=1, of="groups", by_step=9)
    _advance(columns, GroupLasso(columns, groups="columns"), w, None)
    assert (columns.kept, columns.total, columns.reached) == (1, 3, True)
    rows = TargetSparsity(0.5, of="groups", by_step=9)
    _advance(rows, GroupLasso(rows, groups="rows"), w, None)
    assert (rows.kept, rows.sparsity_now) == (1, 0.5)


def test_groups_of_a_penalty_without_groups_are_refused() -> None:
    target = TargetSparsity(0.5, of="groups", by_step=9)
    with pytest.raises(InputError, match="L1 on weight has no groups"):
        target.blocks(tl.Regularizer(nn.Linear(2, 2), tl.L1(target)).terms)


def test_more_cannot_be_kept_than_there_are() -> None:
    target = TargetSparsity(keep=5, by_step=9)
    with pytest.raises(InputError, match="keep=5 is more than the 4 weights"):
        target.blocks(tl.Regularizer(nn.Linear(2, 2), tl.L1(target)).terms)


def test_the_first_strength_is_a_small_part_of_what_zeroes_all() -> None:
    target = TargetSparsity(0.5, by_step=500)
    _advance(target, tl.L1(target), torch.ones(2, 2), torch.tensor([[1.0, -4.0], [0.0, 2.0]]))
    assert target.strength == pytest.approx(4e-3)


@pytest.mark.parametrize("grad", [None, 0.0, float("nan"), float("inf")])
def test_without_a_usable_gradient_the_strength_stays_zero(grad: float | None) -> None:
    target = TargetSparsity(0.5, by_step=500)
    _advance(target, tl.L1(target), torch.ones(2, 2), None if grad is None else torch.full((2, 2), grad))
    assert target.strength == 0.0


def test_the_scale_of_the_gradients_is_taken_off() -> None:
    target, layer = TargetSparsity(0.5, by_step=500), nn.Linear(2, 2, bias=False)
    layer.weight.grad = torch.full((2, 2), 4096.0)
    target.advance(1, target.blocks(tl.Regularizer(layer, tl.L1(target)).terms), torch.tensor(1024.0))
    assert target.strength == pytest.approx(4e-3)


def test_its_state_travels_in_copies_and_as_numbers() -> None:
    target = TargetSparsity(0.5, by_step=500)
    _advance(target, tl.L1(target), torch.ones(2, 2), torch.ones(2, 2))
    for other in (copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        assert other is not target
        assert other.saved() == target.saved()
    other = TargetSparsity(0.5, by_step=500)
    other.restore(target.saved())
    assert other.strength == target.strength > 0
    other.restart()
    assert other.saved() == TargetSparsity(0.5, by_step=500).saved()


# ---- steering ------------------------------------------------------------------------------------------

TOTAL, STEPS = 2000, 1000


def _answer(strength: float) -> float:
    """Return the zeros of an invented plant that has settled: half of all at 0.01."""
    return TOTAL / (1 + 0.01 / max(strength, 1e-12))


def _at_once(zeros: float, strength: float) -> float:
    return _answer(strength)


def _slowly(zeros: float, strength: float) -> float:
    return zeros + 0.02 * (_answer(strength) - zeros)


def _reluctantly(zeros: float, strength: float) -> float:
    """What is zero returns twenty times as slowly as the rest dies."""
    way = _answer(strength) - zeros
    return zeros + (0.02 if way > 0 else 0.001) * way


@pytest.mark.parametrize("plant", [_at_once, _slowly, _reluctantly])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_plants_of_any_speed_are_brought_to_the_request_and_held(
    plant: Callable[[float, float], float], part: float
) -> None:
    wanted, zeros = round(part * TOTAL), 0.0
    steering = Steering(0, STEPS, wanted, TOTAL, 0)
    steering.bound(1.0)
    for step in range(3 * STEPS):
        if steering.due(step, 10, 100):
            steering.look(step, round(zeros), still=False)
        if step >= STEPS:
            assert abs(zeros - wanted) <= 0.005 * TOTAL
        zeros = plant(zeros, steering.strength)


def test_nothing_is_added_up_while_nothing_moves() -> None:
    steering = Steering(0, STEPS, 1000, TOTAL, 0)
    steering.bound(1.0)
    before = steering.strength
    for step in range(0, 500, 10):
        steering.look(step, 0, still=True)
    assert steering.strength == before


def test_the_strength_stays_within_what_could_make_sense() -> None:
    up, down = Steering(0, STEPS, 1000, TOTAL, 0), Steering(0, STEPS, 10, TOTAL, 1000)
    for steering, zeros in ((up, 0), (down, 1000)):
        for step in range(0, 3 * STEPS, 10):
            steering.bound(0.5)
            steering.look(step, zeros, still=False)
    assert up.strength == pytest.approx(1.2 * 0.5)
    assert down.strength == pytest.approx(1e-6 * 0.5)


def test_a_look_is_due_at_least_a_hundred_times() -> None:
    for steps, every in ((50, 1), (100, 1), (500, 5), (1000, 10), (100_000, 10)):
        steering = Steering(3, 3 + steps, 1, 2, 0)
        assert [s for s in range(3, 43) if steering.due(s, 10, 100)] == list(range(3, 43, every))


def test_one_weight_of_few_moves_the_strength_gently() -> None:
    """With ten weights one more is ten points; that must not throw the strength about."""
    steering = Steering(0, STEPS, 5, 10, 0)
    steering.bound(1.0)
    steering.level = math.log(0.01)
    for step, zeros in ((700, 5), (710, 5), (720, 6)):
        steering.look(step, zeros, still=False)
    assert -0.6 < steering.level - math.log(0.01) < 0


def test_in_a_loss_without_an_optimizer_it_says_so() -> None:
    """It would stay at strength 0 for ever."""
    model = nn.Linear(4, 1)
    regularizer = tl.Regularizer(model, tl.L1(TargetSparsity(0.5, by_step=10)))
    with pytest.raises(InputError, match=r"use torchlasso\.attach first"):
        regularizer()
    tl.attach(torch.optim.SGD(model.parameters(), lr=0.1), regularizer)
    assert float(regularizer().detach()) == 0.0  # for the log; no gradient was seen yet


@pytest.mark.parametrize(
    "penalty",
    [
        lambda s: tl.SparseGroupLasso(s, groups="columns"),
        lambda s: tl.GroupMCP(s, groups="columns"),
        lambda s: tl.GroupLasso(s, groups="columns"),
    ],
)
def test_the_groups_of_every_group_penalty_are_counted(penalty: Any) -> None:
    target = TargetSparsity(keep=2, of="groups", by_step=10)
    regularizer = tl.Regularizer(nn.Linear(4, 3), penalty(target))
    (block,) = target.blocks(regularizer.terms)
    assert block.total == 4
