"""A path is walked in order, measured by counting, and its best point is the one the rule defines."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchlasso.errors import InputError
from torchlasso.mlp import build_mlp
from torchlasso.path import (
    Path,
    PathPoint,
    choose,
    measure_point,
    row_losses,
    standard_error,
    strength_grid,
    walk,
    weighted_mean,
)
from torchlasso.tasks import Task
from torchlasso.training import Batches


def _point(strength: float, losses: list[float]) -> PathPoint:
    return PathPoint(strength, 0.0, torch.tensor(losses, dtype=torch.float64), 1, 1, {})


def test_a_grid_is_geometric_and_ends_at_the_largest() -> None:
    grid = strength_grid(2.0, 1e-3, 7)
    assert len(grid) == 7
    assert grid[0] == pytest.approx(2e-3)
    assert grid[-1] == 2.0
    ratios = [b / a for a, b in itertools.pairwise(grid)]
    assert ratios == pytest.approx([10**0.5] * 6)


def test_a_grid_of_two_is_its_ends_and_of_nothing_is_zero() -> None:
    assert strength_grid(3.0, 0.1, 2) == pytest.approx([0.3, 3.0])
    assert strength_grid(0.0, 0.1, 9) == [0.0]


def test_a_grid_of_one_is_the_largest() -> None:
    assert strength_grid(3.0, 0.1, 1) == [3.0]


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_row_has_no_standard_error(values: list[float]) -> None:
    assert standard_error(torch.tensor(values)) == 0.0


def test_the_standard_error_is_the_textbook_one() -> None:
    # mean 2.5, squared deviations 2.25 + 0.25 + 0.25 + 2.25 = 5, s² = 5/3, se = √(5/3/4)
    assert standard_error(torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx(math.sqrt(5 / 12))
    point = _point(1.0, [1.0, 2.0, 3.0, 4.0])
    assert point.valid_loss == 2.5
    assert point.valid_se == pytest.approx(math.sqrt(5 / 12))


def test_means_of_batches_count_by_their_rows() -> None:
    values, sizes = torch.tensor([1.0, 4.0], dtype=torch.float64), torch.tensor([3.0, 1.0]).double()
    assert weighted_mean(values, sizes) == 1.75
    # deviations −0.75 and 2.25, weighted ¾ and ¼: ±0.5625; √(2/1 · 2 · 0.5625²)
    assert standard_error(values, sizes) == pytest.approx(2 * 0.5625)
    rows = torch.tensor([1.0, 2.0, 3.0, 7.0], dtype=torch.float64)
    ones = torch.ones(4, dtype=torch.float64)
    assert weighted_mean(rows, ones) == weighted_mean(rows)
    assert standard_error(rows, ones) == pytest.approx(standard_error(rows))
    assert standard_error(rows[:1], ones[:1]) == 0.0


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(InputError, match=r"'min'.*'1se'.*got '2se'"):
        choose([_point(0.1, [1.0])], "2se")  # type: ignore[arg-type]


def test_one_standard_error_pairs_the_rows() -> None:
    low = _point(0.1, [0.0, 1.0, 2.0])
    paired = _point(0.2, [0.3, 1.3, 2.3])  # worse by 0.3 on every row: the paired error is 0
    noisy = _point(0.15, [0.9, 1.0, 2.0])  # worse by 0.3 on average, with a paired error of 0.3
    path = Path((low, noisy, paired))
    assert path.best("min") is low
    assert path.best("1se") is noisy


def test_a_single_point_is_the_best() -> None:
    only = _point(0.5, [1.0, 2.0])
    assert Path((only,)).best("min") is Path((only,)).best("1se") is only


def test_ties_go_to_the_sparser() -> None:
    first, second, third = (_point(s, [1.0, 2.0]) for s in (0.1, 0.2, 0.3))
    for points in ((first, second, third), (third, second, first)):
        assert Path(points).best("min") is third
        assert Path(points).best("1se") is third


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_point_is_never_taken(bad: float) -> None:
    good, worse = _point(0.1, [1.0, 1.0]), _point(0.2, [5.0, 5.0])
    broken = [_point(s, [bad, 0.0]) for s in (0.05, 0.15, 9.0)]
    for points in ([*broken, good, worse], [good, *broken, worse], [worse, good, *broken]):
        assert Path(tuple(points)).best("min") is good
        assert Path(tuple(points)).best("1se") is good


def test_a_path_that_diverged_everywhere_says_so() -> None:
    with pytest.raises(InputError, match="finite validation loss"):
        Path((_point(0.1, [math.nan]),)).best()


_losses = st.lists(st.integers(0, 6).map(float), min_size=4, max_size=4)


@given(st.lists(_losses, min_size=1, max_size=6))
def test_best_is_a_brute_force_reading_of_the_rule(table: list[list[float]]) -> None:
    points = [_point(0.1 * (i + 1), losses) for i, losses in enumerate(table)]
    means = [sum(losses) / 4 for losses in table]
    low = max(i for i, mean in enumerate(means) if mean == min(means))
    allowed = []
    for i, losses in enumerate(table):
        excess = [a - b for a, b in zip(losses, table[low], strict=True)]
        mean = sum(excess) / 4
        variance = sum((e - mean) ** 2 for e in excess) / 3
        if mean <= math.sqrt(variance / 4) + 1e-12:
            allowed.append(i)
    assert Path(tuple(points)).best("min") is points[low]
    # An excess of exactly one standard error may fall to either side in floating point.
    chosen = points.index(Path(tuple(points)).best("1se"))
    assert chosen in allowed
    assert chosen >= low
    assert chosen == max(allowed) or _on_the_edge(table[max(allowed)], table[low])


def _on_the_edge(losses: list[float], lowest: list[float]) -> bool:
    excess = torch.tensor(losses, dtype=torch.float64) - torch.tensor(lowest, dtype=torch.float64)
    return abs(float(excess.mean()) - standard_error(excess)) < 1e-9


def test_a_walk_fits_measures_and_tells_in_order_and_stops() -> None:
    events: list[object] = []

    def measure(strength: float) -> PathPoint:
        events.append(("measure", strength))
        return _point(strength, [strength])

    points = walk(
        lambda strength: events.append(("fit", strength)),
        measure,
        [1.0, 2.0, 3.0, 4.0],
        stop=lambda point: point.strength >= 3.0,
        on_point=lambda: events.append("told"),
    )
    assert [point.strength for point in points] == [1.0, 2.0, 3.0]
    assert events == [e for s in (1.0, 2.0, 3.0) for e in (("fit", s), ("measure", s), "told")]


def test_a_walk_reads_its_strengths_as_it_goes() -> None:
    points: list[PathPoint] = []

    def strengths() -> Iterator[float]:
        while True:
            yield 1.0 if not points else 2 * points[-1].strength

    def measure(strength: float) -> PathPoint:
        points.append(_point(strength, [strength]))
        return points[-1]

    walk(lambda strength: None, measure, strengths(), stop=lambda point: point.strength >= 8)
    assert [point.strength for point in points] == [1.0, 2.0, 4.0, 8.0]


def test_a_point_is_measured_by_counting() -> None:
    model = build_mlp(3, (2,), 1)
    with torch.no_grad():
        model.hidden1.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
        model.hidden1.bias.copy_(torch.tensor([0.0, 1.0]))
        model.output.weight.copy_(torch.tensor([[3.0, 0.0]]))  # the second unit is not read
        model.output.bias.fill_(0.5)
    x = torch.tensor([[1.0, 5.0, 5.0], [-1.0, 5.0, 5.0], [2.0, 0.0, 0.0]])
    outputs = [3.5, 0.5, 6.5]
    target = torch.tensor([3.5, 1.5, 4.5])
    train, valid = Batches(x, target, 2), Batches(x[:2], target[:2], 1)
    point = measure_point(model, 0.7, train, valid, Task("regression").loss_rows)
    by_hand = [0.5 * (a - float(b)) ** 2 for a, b in zip(outputs, target, strict=True)]
    assert point.strength == 0.7
    assert point.train_loss == pytest.approx(sum(by_hand) / 3)
    assert point.valid_losses.tolist() == pytest.approx(by_hand[:2])
    assert point.valid_losses.dtype == torch.float64
    assert point.nonzero == 3
    assert point.features == 1
    with torch.no_grad():
        model.output.weight.zero_()
    assert point.state["output.weight"].tolist() == [[3.0, 0.0]]  # a copy


def test_row_losses_are_taken_in_evaluation_mode_without_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.9)).train()
    losses = [
        row_losses(model.train(), Batches(torch.ones(6, 2), torch.ones(6), 4), Task("regression").loss_rows)
        for _ in range(2)
    ]
    assert torch.equal(*losses)
    assert losses[0].shape == (6,)
    assert not losses[0].requires_grad
