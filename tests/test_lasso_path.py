"""A path of any module is the one of its objective, is judged on paired rows, and takes bad input apart."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import lasso_path as reference_path
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.lasso_path import LassoPath, lasso_path
from torchlasso.lasso_points import LassoPoint

mse = nn.functional.mse_loss
cross_entropy = nn.functional.cross_entropy


def _half(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * mse(output, target)


def _rows(count: int, seed: int = 0, inputs: int = 10) -> tuple[Tensor, Tensor]:
    """Three classes that hang on the first three inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator)
    return x, (2 * x[:, :3] + 0.5 * torch.randn(count, 3, generator=generator)).argmax(dim=1)


def _loader(count: int = 120) -> list[tuple[Tensor, Tensor]]:
    x, y = _rows(count)
    return list(zip(x.split(30), y.split(30), strict=True))


VALID = [_rows(80, seed=1)]


def _net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 3))


def _path(model: nn.Module | None = None, **given: Any) -> LassoPath:
    model = model or _net()
    arguments: dict[str, Any] = {"strengths": 12, "steps": 200} | given
    regularizer = arguments.pop("regularizer", None) or tl.Regularizer(model, tl.L1(1.0))
    return lasso_path(model, regularizer, cross_entropy, _loader(), VALID, **arguments)


# ---- the truth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "tolerance"),
    [
        (lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9), 1e-9),
        (lambda groups: torch.optim.Adam(groups, lr=0.03), 1e-2),
    ],
    ids=["momentum", "adam"],
)
def test_a_linear_path_has_the_objectives_of_scikit_learn(
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 15, generator=generator, dtype=torch.float64)
    x[:, 5] = x[:, 0] + 0.3 * x[:, 5]
    x = x - x.mean(dim=0)
    y = x[:, :4] @ torch.tensor([2.0, -1.0, 0.5, 1.0], dtype=torch.float64)
    y = y + 0.5 * torch.randn(60, generator=generator, dtype=torch.float64)
    y = (y - y.mean())[:, None]
    model = nn.Linear(15, 1, dtype=torch.float64)
    alphas, coefs, _ = reference_path(x.numpy(), y[:, 0].numpy(), eps=1e-2, alphas=8, tol=1e-10)
    path = lasso_path(
        model,
        tl.Regularizer(model, tl.L1(1.0)),
        _half,
        [(x, y)],
        [(x, y)],
        strengths=alphas.tolist(),
        steps=3000,
        optimizer=optimizer,
    )
    assert [point.strength for point in path.points] == pytest.approx(sorted(alphas))
    for point, coef in zip(path.points, coefs.reshape(15, -1).T[::-1], strict=True):
        w, b = point.state["weight"], point.state["bias"]
        ours = _half(x @ w.T + b, y) + point.strength * w.abs().sum()
        best = _half(x @ torch.tensor(coef.copy())[:, None], y) + point.strength * np.abs(coef).sum()
        assert float(ours) <= float(best) * (1 + tolerance)
        assert float(ours) >= float(best) * (1 - 1e-9)
        assert point.residual is not None
        if tolerance < 1e-6:
            assert point.nonzero == np.count_nonzero(coef)


def test_the_largest_strength_is_where_scikit_learns_path_begins() -> None:
    x, _ = _rows(60)
    y = (x[:, :1] - x[:, :1].mean()).double()
    x = (x - x.mean(dim=0)).double()
    model = nn.Linear(10, 1, dtype=torch.float64)
    path = lasso_path(
        model, tl.Regularizer(model, tl.L1(1.0)), _half, [(x, y)], [(x, y)], ["0.5max", "1max"], steps=400
    )
    alphas, _, _ = reference_path(x.numpy(), y[:, 0].numpy(), alphas=2)
    assert [p.strength for p in path.points] == pytest.approx([alphas[0] / 2, alphas[0]], rel=1e-4)


def test_the_points_are_what_their_states_say() -> None:
    model = _net()
    path = _path(model)
    x, y = VALID[0]
    for point in path.points:
        model.load_state_dict(point.state)
        rows = cross_entropy(model(x), y, reduction="none").detach().double()
        torch.testing.assert_close(point.valid_losses, rows, atol=1e-6, rtol=1e-5)
        assert point.valid_loss == pytest.approx(float(rows.mean()), rel=1e-5)
        assert point.valid_se == pytest.approx(float(rows.std()) / math.sqrt(len(rows)), rel=1e-4)
        assert (
            point.nonzero
            == sum(point.groups)
            == int((model[0].weight != 0).sum()) + int((model[2].weight != 0).sum())
        )
        if point.residual is not None:
            report = tl.certificate(
                model, tl.Regularizer(model, tl.L1(point.strength)), cross_entropy, _loader()
            )
            assert point.residual == pytest.approx(report.residual, rel=1e-3)
            assert point.train_loss == pytest.approx(report.loss, rel=1e-5)


def test_a_path_goes_from_dense_to_empty() -> None:
    points = _path(strengths=25, steps=1600).points
    nonzeros = [point.nonzero for point in points]
    assert nonzeros[0] > 100
    assert nonzeros[-1] == 0
    assert all(b <= a + 5 for a, b in itertools.pairwise(nonzeros))
    strengths = [point.strength for point in points]
    ratios = [b / a for a, b in itertools.pairwise(strengths)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_a_path_of_fifty_takes_at_most_half_as_many_steps_again_as_one_fit() -> None:
    path = _path(strengths=50, steps=300)
    assert sum(point.steps for point in path.points) <= 1.5 * 300
    assert len(path.points) <= 60


def test_the_penalties_keep_their_relation_and_a_rule_at_zero_is_unpenalised() -> None:
    model = _net()
    rules = tl.Regularizer(model, {"0.weight": tl.L1(1e-3), "2.weight": tl.L1(0.0)})
    path = _path(model, regularizer=rules, strengths=[1e-3, 1e3], steps=1000)
    assert path.names == ("0.weight",)
    assert path.points[-1].nonzero == 0
    assert (path.points[-1].state["2.weight"] != 0).all()
    mixed = tl.Regularizer(model, {"0.weight": tl.L1(1e-4), "2.weight": tl.L1(1e-2)})
    at = _path(model, regularizer=mixed, strengths=[0.5]).regularizer(0)
    assert [term.penalty.strength for term in at.terms] == pytest.approx([0.005, 0.5])


def test_fractions_relate_every_block_to_its_own_strength_max() -> None:
    model = _net()
    maxima = tl.strength_max(model, tl.Regularizer(model, tl.L1(1.0)), cross_entropy, _loader())
    relative = tl.Regularizer(model, tl.L1("1max"))
    path = _path(model, regularizer=relative, strengths=["0.5max"], dense_steps=0, steps=40)
    found = [term.penalty.strength for term in path.regularizer(0).terms]
    assert found == pytest.approx([0.5 * maxima["0.weight"], 0.5 * maxima["2.weight"]])


# ---- any module --------------------------------------------------------------------------------------------


def test_batch_norm_and_dropout_train_in_training_and_are_measured_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    model.eval()
    model[3].train()
    path = _path(model, regularizer=tl.Regularizer(model, {nn.Linear: tl.L1(1.0)}), steps=400)
    assert [module.training for module in model] == [False, False, False, True, False]
    best = path.best("1se")
    assert best.state["1.num_batches_tracked"] > 0
    model.eval()
    x, y = VALID[0]
    assert float(cross_entropy(model(x), y).detach()) == pytest.approx(best.valid_loss, rel=1e-5)
    assert best.valid_loss < 0.75
    assert all(parameter.grad is None for parameter in model.parameters())


def test_filters_of_a_convolution_vanish_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 1, 6, 6, generator=generator)
    y = (x[:, 0, :, :3].mean(dim=(1, 2)) > 0).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    rules = tl.Regularizer(model, {"0.weight": tl.GroupLasso(1.0), "3.weight": tl.L1(0.3)})
    loader = DataLoader(TensorDataset(x[:60], y[:60]), batch_size=20, shuffle=True)
    path = lasso_path(model, rules, cross_entropy, loader, [(x[60:], y[60:])], 10, steps=200)
    for point in path.points:
        filters = point.state["0.weight"].flatten(1)
        assert point.groups[0] == int((filters != 0).any(dim=1).sum())
        assert ((filters == 0).all(dim=1) | (filters != 0).all(dim=1)).all()
    assert path.points[0].groups[0] == 8
    assert path.points[-1].groups[0] < 8


def test_the_path_leaves_the_best_weights_in_the_model_and_loads_others() -> None:
    model = _net()
    path = _path(model)
    assert torch.equal(model[0].weight, path.best("1se").state["0.weight"])
    for which, point in (("min", path.best("min")), (0, path.points[0]), (-1, path.points[-1])):
        assert path.load(which) is point
        assert torch.equal(model[0].weight, point.state["0.weight"])


def test_the_optimizer_is_the_users_and_is_let_go() -> None:
    made: list[torch.optim.Optimizer] = []

    def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made.append(torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0))
        return made[-1]

    path = _path(optimizer=optimizer, strengths=4)
    assert len(made) == 1
    assert made[0].param_groups[0]["eps"] == pytest.approx(path.points[-1].strength)
    assert made[0].param_groups[1]["eps"] == 1e-8
    tl.attach(made[0], path.regularizer(0)).remove()  # it was free


def test_a_model_that_is_trained_already_needs_no_dense_start() -> None:
    model = _net()
    before = model[0].weight.detach().clone()
    path = _path(model, dense_steps=0, strengths=[1e-8], steps=1)
    assert path.points[0].steps == 1
    assert float((path.points[0].state["0.weight"] - before).abs().max()) < 0.01


# ---- the ends ----------------------------------------------------------------------------------------------


def test_a_path_ends_where_nothing_is_left() -> None:
    path = _path(strengths=[1e-4, 1e2, 1e3, 1e4], steps=1500)
    assert path.points[-1].nonzero == 0
    assert len(path.points) < 4


def test_a_path_ends_where_the_output_no_longer_hangs_on_the_input() -> None:
    model = _net()
    only_first = tl.Regularizer(model, {"0.weight": tl.GroupLasso(1.0, groups="tensor"), "2.weight": None})
    path = _path(model, regularizer=only_first, strengths=[10.0, 20.0, 30.0, 40.0], steps=400)
    assert len(path.points) == 1
    assert path.points[0].is_constant


def test_the_callback_sees_every_point_and_may_stop() -> None:
    seen: list[LassoPoint] = []

    def callback(point: LassoPoint) -> bool:
        seen.append(point)
        return len(seen) == 3

    path = _path(callback=callback)
    assert len(path.points) == 3
    assert all(a is b for a, b in zip(path.points, seen, strict=True))


def test_what_a_callback_returns_but_true_does_not_stop() -> None:
    assert len(_path(callback=lambda point: point, strengths=[1e-4, 2e-4]).points) == 2


# ---- choice, refit, table, plot ----------------------------------------------------------------------------


def test_one_standard_error_is_paired_by_rows() -> None:
    path = _path(steps=400)
    low = min(path.points, key=lambda point: point.valid_loss)
    allowed = []
    for point in path.points:
        excess = (point.valid_losses - low.valid_losses).numpy()
        if excess.mean() <= excess.std(ddof=1) / math.sqrt(len(excess)):
            allowed.append(point.strength)
    assert path.best("min") is low
    assert path.best("1se").strength == max(allowed)


def test_a_refit_keeps_the_zeros_and_is_never_worse_on_the_validation_rows() -> None:
    model = _net()
    path = _path(model, steps=400)
    sparse = min(path.points, key=lambda point: abs(point.nonzero - 40))
    relaxed = path.refit(sparse, steps=200)
    assert relaxed.valid_losses[0.0] == pytest.approx(sparse.valid_loss, rel=1e-6)
    assert relaxed.valid_loss == min(relaxed.valid_losses.values())
    assert relaxed.valid_loss < sparse.valid_loss  # the penalty had shrunk it
    x, y = VALID[0]
    assert float(cross_entropy(model(x), y).detach()) == pytest.approx(relaxed.valid_loss, rel=1e-5)
    for name in ("0.weight", "2.weight"):
        zero = sparse.state[name] == 0
        assert (model.get_parameter(name)[zero] == 0).all()


def test_the_certificate_is_of_the_point() -> None:
    path = _path(steps=400)
    report = path.certificate("1se")
    assert [row.strength for row in report.rows] == [path.best("1se").strength] * 2
    if path.best("1se").residual is not None:
        assert report.residual == pytest.approx(path.best("1se").residual, rel=1e-3)


def test_the_table_has_a_row_a_strength_and_marks_the_choices() -> None:
    path = _path()
    lines = path.table().splitlines()
    assert len(lines) == len(path.points) + 2
    assert str(path) == path.table()
    assert all(word in lines[0] for word in ("strength", "nonzero", "valid loss", "± se", "in 0.weight"))
    assert lines[2 + path.points.index(path.best("1se"))].endswith("1se")
    assert sum("min" in line for line in lines) == 1
    assert f"{len(path.points)} strengths" in repr(path)


def test_the_plot_draws_losses_nonzeros_and_weights() -> None:
    path = _path()
    losses, left, norms = path.plot().axes
    strengths = [point.strength for point in path.points]
    drawn = {line.get_label(): line for line in losses.get_lines()}
    assert drawn["validation loss"].get_xdata().tolist() == strengths
    assert drawn["validation loss"].get_ydata().tolist() == [point.valid_loss for point in path.points]
    assert drawn["train loss"].get_ydata().tolist() == [point.train_loss for point in path.points]
    assert left.get_lines()[0].get_ydata().tolist() == [point.nonzero for point in path.points]
    assert norms.get_xscale() == "log"
    curves = [line for line in norms.get_lines() if len(line.get_xdata()) == len(strengths)]
    assert len(curves) == 60 + 36
    assert max(curves[0].get_ydata()) == pytest.approx(
        max(float(point.state["0.weight"].abs().max()) for point in path.points)
    )
    band = losses.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(max(point.valid_loss + point.valid_se for point in path.points))


def test_a_path_from_strength_zero_is_drawn_too() -> None:
    assert _path(strengths=[0.0, 0.01, 0.1]).plot().axes[2].get_xscale() == "symlog"


def test_kept_states_take_less_than_dense_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 400), nn.ReLU(), nn.Linear(400, 3))
    path = _path(model, strengths=20, steps=400)
    dense = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    last = path.points[-1]
    assert path.points[0].packed.nbytes <= dense
    unpenalised = sum(4 * len(model[layer].bias) for layer in (0, 2))
    assert last.packed.nbytes <= unpenalised + 8 * last.nonzero
    assert all(point.packed.nbytes <= dense for point in path.points)


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strengths": 0}, "one or more"),
        ({"strengths": []}, "empty"),
        ({"strengths": "0.1max"}, "number of strengths such as 50"),
        ({"strengths": None}, "number of strengths such as 50"),
        ({"strengths": True}, "number of strengths such as 50"),
        ({"strengths": [-1.0]}, "zero or more"),
        ({"strengths": ["much"]}, "a strength must be a number"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"dense_steps": -1}, "dense_steps must be a whole number"),
        ({"optimizer": lambda groups: None}, "must return a torch.optim.Optimizer, got NoneType"),
    ],
)
def test_bad_arguments_say_what_was_expected(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        _path(**given)


@pytest.mark.parametrize(
    ("train", "valid", "says"),
    [
        (((x, y) for x, y in _loader()), VALID, "train_batches is a generator"),
        (_loader(), iter(VALID), "valid_batches is a generator"),
        ([], VALID, "train_batches is empty"),
        (_loader(), [], "valid_batches is empty"),
        (3, VALID, "train_batches must be a DataLoader or a list"),
        (_loader(), [(torch.zeros(0, 10), torch.zeros(0).long())], "holds no rows"),
    ],
)
def test_bad_batches_say_what_was_expected(train: Any, valid: Any, says: str) -> None:
    model = _net()
    with pytest.raises(InputError, match=says):
        lasso_path(
            model, tl.Regularizer(model, tl.L1(1.0)), cross_entropy, train, valid, strengths=3, steps=4
        )


def test_validation_rows_in_a_new_order_each_time_are_refused() -> None:
    model = _net()
    x, y = _rows(80, seed=1)
    shuffled = DataLoader(TensorDataset(x, y), batch_size=40, shuffle=True)
    with pytest.raises(InputError, match="shuffle=False"):
        lasso_path(model, tl.Regularizer(model, tl.L1(1.0)), cross_entropy, _loader(), shuffled, 5, steps=20)


def test_bad_penalties_say_what_was_expected() -> None:
    model, other = _net(), _net()
    cases = [
        (tl.Regularizer(other, tl.L1(1.0)), "not of this model"),
        (tl.Regularizer(model, tl.L1(0.0)), "strength is above zero"),
        (tl.Regularizer(model, tl.L1(lambda step: 0.1)), "changes by step"),
        (tl.Regularizer(model, tl.L0(1.0)), "give the strengths as numbers"),
        ("l1", "expects a module and a Regularizer"),
    ]
    for regularizer, says in cases:
        with pytest.raises(InputError, match=says):
            lasso_path(model, regularizer, cross_entropy, _loader(), VALID, 4, steps=10)


def test_diverged_training_says_so() -> None:
    with pytest.raises(InputError, match="training diverged"):
        _path(optimizer=lambda groups: torch.optim.SGD(groups, lr=1e20), steps=50)


@pytest.mark.parametrize("which", [99, -99, "best", 1.0])
def test_a_point_that_is_not_there_says_so(which: Any) -> None:
    path = _path(strengths=[1e-3], steps=4)
    with pytest.raises(InputError, match="'min'"):
        path.load(which)


def test_a_dense_start_that_came_to_nothing_says_so() -> None:
    model = _net()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)  # every unit is dead, and stays so
    with pytest.raises(InputError, match="lower learning rate"):
        _path(model, steps=5)


def test_one_validation_row_is_not_a_constant_output() -> None:
    model = _net()
    x, y = VALID[0]
    path = lasso_path(
        model, tl.Regularizer(model, tl.L1(1.0)), cross_entropy, _loader(), [(x[:1], y[:1])], 4, steps=40
    )
    assert not any(point.is_constant for point in path.points)
    assert [point.valid_se for point in path.points] == [0.0] * len(path.points)


def test_an_optimizer_that_is_made_already_is_refused() -> None:
    model = nn.Linear(2, 1)
    batches = [(torch.ones(4, 2), torch.ones(4, 1))]
    made = torch.optim.Adam(model.parameters())
    with pytest.raises(InputError, match="function from parameter groups"):
        tl.lasso_path(
            model, tl.Regularizer(model, tl.L1(1.0)), nn.functional.mse_loss, batches, batches, optimizer=made
        )
