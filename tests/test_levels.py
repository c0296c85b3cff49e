"""The strengths of a path: placed, checked, and shared out among the rules."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.levels import (
    SMALLEST,
    beyond,
    check_relative,
    check_strengths,
    ladder,
    needs_largest,
    own_strengths,
    planned,
)


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


def test_a_number_gives_a_geometric_grid_that_ends_at_the_largest() -> None:
    found = planned(5, 2.0)
    assert found[-1] == 2.0
    assert found[0] == pytest.approx(2.0 * SMALLEST)
    ratios = [b / a for a, b in itertools.pairwise(found)]
    assert ratios == pytest.approx([ratios[0]] * 4)
    assert list(beyond(found, 2)) == pytest.approx([2.0 * ratios[0], 2.0 * ratios[0] ** 2])
    assert list(beyond([1.0], 0)) == []


def test_a_list_is_sorted_and_nothing_is_in_it_twice() -> None:
    assert planned(["0.5max", 3, 1.0, "0.1max", 1], 2.0) == pytest.approx([0.2, 1.0, 3.0])


@pytest.mark.parametrize(
    ("strengths", "needs"), [(3, True), (["0.1max", 1.0], True), ([1.0], False), ([0.1, 2], False)]
)
def test_the_largest_is_measured_only_if_it_is_needed(strengths: Any, needs: bool) -> None:
    assert needs_largest(check_strengths(strengths)) is needs


def test_arrays_are_lists_of_strengths() -> None:
    assert check_strengths(torch.tensor([0.5, 1.0])) == [0.5, 1.0]
    assert check_strengths((0.5, "1max")) == [0.5, "1max"]


def test_rules_keep_their_relation_on_every_level() -> None:
    model = _model()
    rules = {"0.weight": tl.L1(2e-3), "2.weight": tl.GroupLasso(5e-4), "0.bias": tl.L1(0.0)}
    regularizer = tl.Regularizer(model, rules)
    found = ladder(regularizer, own_strengths(regularizer))
    assert found.parts == pytest.approx((1.0, 0.0, 0.25))
    assert [term.name for term in found.shrunk] == ["0.weight", "2.weight"]
    found.level.value = 0.8
    now = [term.penalty.current_strength for term in found.regularizer.current_terms()]
    assert now == pytest.approx([0.8, 0.0, 0.2])
    assert [t.penalty.strength for t in found.at(0.4).terms] == pytest.approx([0.4, 0.0, 0.1])
    assert [t.penalty.strength for t in regularizer.terms] == [2e-3, 0.0, 5e-4]  # as it was


def test_a_constraint_stays_as_it_is() -> None:
    model = _model()
    regularizer = tl.Regularizer(model, {"0.weight": tl.L1(1.0), "2.weight": tl.TopK(0.5)})
    found = ladder(regularizer, own_strengths(regularizer))
    assert found.parts == (1.0, None)
    assert found.regularizer.terms[1].penalty is regularizer.terms[1].penalty
    assert [term.name for term in found.shrunk] == ["0.weight"]
    only = tl.Regularizer(model, {"2.weight": tl.TopK(0.5)})
    with pytest.raises(InputError, match="above zero"):
        ladder(only, own_strengths(only))


def test_the_largest_level_zeros_every_block_at_its_share() -> None:
    model = _model()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(20, 3, generator=generator), torch.randn(20, 1, generator=generator))]
    regularizer = tl.Regularizer(model, {"0.weight": tl.L1(1.0), "2.weight": tl.L1(0.1)})
    maxima = tl.strength_max(model, regularizer, nn.functional.mse_loss, batches)
    found = ladder(regularizer, own_strengths(regularizer)).largest(model, nn.functional.mse_loss, batches)
    assert found == pytest.approx(max(maxima["0.weight"], 10 * maxima["2.weight"]))
    assert math.isfinite(found)


def test_schedules_and_targets_are_refused() -> None:
    for strength in (lambda step: 0.1, tl.TargetSparsity(0.5, by_step=10)):
        with pytest.raises(InputError, match="changes by step"):
            check_relative(tl.Regularizer(_model(), tl.L1(strength)))
