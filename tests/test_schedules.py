"""Schedules of the strength: their values, their ends, and what is refused."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from torch import nn

import torchlasso as tl
from torchlasso import schedules
from torchlasso.errors import InputError
from torchlasso.schedules import Schedule

KINDS: dict[str, tuple[Callable[..., Schedule], Callable[[float], float]]] = {
    "linear": (schedules.linear, lambda u: u),
    "cosine": (schedules.cosine, lambda u: np.sin(np.pi * u / 2) ** 2),
    "cubic": (schedules.cubic, lambda u: u**3 - 3 * u**2 + 3 * u),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.3), (0.5, 0.1), (0.2, 0.2)])
def test_the_way_is_that_of_its_formula(kind: str, start: float, end: float) -> None:
    make, shape = KINDS[kind]
    schedule = make(start, end, steps=40, begin=7)
    for step in range(60):
        done = min(max((step - 7) / 40, 0.0), 1.0)
        assert schedule(step) == pytest.approx(start + (end - start) * shape(done), abs=1e-12)


@each_kind
def test_both_ends_are_exact_and_hold(kind: str) -> None:
    schedule = KINDS[kind][0](0.1, 0.7, steps=3, begin=5)
    assert [schedule(step) for step in (0, 5, 8, 10**9)] == [0.1, 0.1, 0.7, 0.7]


def test_warmup_is_linear_from_zero() -> None:
    assert schedules.warmup(0.3, 10, begin=2) == schedules.linear(0.0, 0.3, 10, begin=2)


@each_kind
def test_schedules_compare_print_copy_and_pickle(kind: str) -> None:
    make = KINDS[kind][0]
    schedule = make(0.0, 0.25, steps=8)
    assert schedule == make(0.0, 0.25, steps=8)
    assert schedule != make(0.0, 0.25, steps=9)
    assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
    assert repr(schedule) == f"{kind}(0, 0.25, steps=8)"
    assert repr(make(1.0, 0.5, steps=8, begin=3)) == f"{kind}(1, 0.5, steps=8, begin=3)"


@each_kind
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"start": -1.0}, "start"),
        ({"end": float("inf")}, "end"),
        ({"end": float("nan")}, "end"),
        ({"start": "0.1max"}, "start"),
        ({"start": None}, "start"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"begin": -1}, "begin"),
    ],
)
def test_what_is_no_schedule_is_refused(kind: str, arguments: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        KINDS[kind][0](**{"start": 0.0, "end": 1.0, "steps": 10, **arguments})


def test_the_table_shows_the_strength_of_the_step() -> None:
    regularizer = tl.Regularizer(nn.Linear(2, 1), tl.L1(schedules.linear(0.0, 0.5, steps=10)))
    regularizer.step = 5
    assert regularizer.terms[0].at(5).penalty.strength == 0.25
    assert "0.25" in str(regularizer)
