"""The duality gap against known optima, by brute force, and where no gap may be claimed."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlasso as tl
from tests.oracles.cases import Problem, problems
from torchlasso.conjugates import LOSSES, Logistic, Loss, Multinomial, SquaredError
from torchlasso.optim.fista import fista

mse = nn.functional.mse_loss
cross_entropy = nn.functional.cross_entropy
logistic = nn.functional.binary_cross_entropy_with_logits
PROBLEMS = problems()
LossFn = Callable[[Any, Any], Tensor]


def _gap(model: nn.Module, penalty: Any, loss_fn: LossFn, batches: Any) -> tl.certify.Certificate:
    return tl.certificate(model, tl.Regularizer(model, penalty), loss_fn, batches)


def _solve(model: nn.Linear, penalty: Any, loss_fn: LossFn, x: Tensor, y: Tensor) -> float:
    """Solve to the last digits and return the objective."""
    regularizer = tl.Regularizer(model, penalty)
    free = [p for p in model.parameters() if p.requires_grad]
    fista(
        lambda: loss_fn(model(x), y),
        regularizer,
        free,
        metric={p: torch.ones_like(p) for p in free},
        tolerance=1e-9,
    )
    return float((loss_fn(model(x), y) + regularizer()).detach())


# ---- against the reference optima ----------------------------------------------------------------


def _at_the_optimum(problem: Problem) -> nn.Linear:
    """Return the reference weights with the intercept that belongs to them."""
    model = problem.model()
    model.weight.data.copy_(torch.tensor(problem.weight))
    optimizer = torch.optim.LBFGS([model.bias], max_iter=200, tolerance_grad=1e-14, tolerance_change=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss(model)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return model


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.name}-{p.fraction}")
def test_the_gap_bounds_the_distance_to_the_known_optimum(problem: Problem) -> None:
    batches = [(problem.inputs[i::3], problem.target[i::3]) for i in range(3)]
    optimum = _at_the_optimum(problem)
    solved = _gap(optimum, problem.penalty, problem.loss_fn, batches)
    assert solved.duality_gap is not None
    assert solved.gap_layer == ""
    assert solved.duality_gap <= 1e-8 * problem.objective
    state = {name: value.clone() for name, value in optimum.state_dict().items()}
    for size in (1e-3, 0.1, 10.0):
        optimum.load_state_dict(state)
        for parameter in optimum.parameters():
            noise = size * torch.randn_like(parameter)
            parameter.data.add_(noise.abs() if problem.penalty.__dict__.get("nonnegative") else noise)
        found = _gap(optimum, problem.penalty, problem.loss_fn, batches)
        assert found.duality_gap is not None
        assert found.duality_gap >= found.objective - problem.objective
    assert found.duality_gap <= found.objective  # the dual point is no worse than zero


# ---- by brute force ------------------------------------------------------------------------------


def _data(loss: Loss, outputs: int, rows: int = 40) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 5, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0]) + 0.5
    scores = x[:, :outputs] + torch.randn(rows, outputs, dtype=torch.float64)
    if isinstance(loss, SquaredError):
        return x, scores
    return x, scores.argmax(1) if isinstance(loss, Multinomial) else (scores > 0).double()


CASES: list[tuple[Loss, LossFn, int]] = [
    (SquaredError(), mse, 1),
    (SquaredError(), lambda z, y: 0.5 * mse(z, y), 3),
    (Logistic(), nn.BCEWithLogitsLoss(), 1),
    (Logistic(), lambda z, y: 7 * logistic(z, y), 3),
    (Multinomial(), nn.CrossEntropyLoss(), 3),
]
PENALTIES = [
    tl.L1(0.05),
    tl.ElasticNet(0.05, l1_ratio=0.5),
    tl.ElasticNet(0.05, l1_ratio=0.0),
    tl.L1(0.05, nonnegative=True),
    tl.L1(0.05, weights=torch.tensor([1.0, 0.5, 2.0, math.inf, 1.0])),
    tl.GroupLasso(0.05, groups="columns"),
    tl.GroupLasso(0.05, groups=[[0, 1], [2], [3, 4]]),
]


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: p.describe())
@pytest.mark.parametrize(("loss", "loss_fn", "outputs"), CASES, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("bias", ["fitted", "fixed", "none"])
def test_the_gap_is_an_upper_bound_and_closes(
    loss: Loss, loss_fn: LossFn, outputs: int, penalty: Any, bias: str
) -> None:
    x, y = _data(loss, outputs)
    model = nn.Linear(5, outputs, bias=bias != "none", dtype=torch.float64)
    if bias == "fixed":
        model.bias.requires_grad_(False)
    model.weight.data.copy_(penalty.prox(model.weight.data, 1e-9))  # within the constraints
    start = _gap(model, penalty, loss_fn, [(x, y)])
    minimum = _solve(model, penalty, loss_fn, x, y)
    end = _gap(model, penalty, loss_fn, [(x, y)])
    assert start.duality_gap is not None
    assert end.duality_gap is not None
    assert start.objective > minimum
    assert start.duality_gap >= start.objective - minimum
    assert end.duality_gap <= 1e-7 * minimum


@pytest.mark.parametrize("loss", LOSSES, ids=lambda v: type(v).__name__)
def test_conjugates_obey_fenchel_and_young(loss: Loss) -> None:
    """``ℓ(z) + ℓ*(θ) ≥ θ·z`` for every feasible ``θ``, with equality at the gradient."""
    z, other = torch.randn(2, 200, 3, dtype=torch.float64) * 3
    target = {SquaredError: torch.randn(200, 3), Logistic: torch.rand(200, 3)}.get(type(loss))
    target = torch.randint(3, (200,)) if target is None else target
    y = loss.target(target, z)
    assert y is not None
    for outputs, equal in ((z, True), (other, False)):
        theta = loss.mean(outputs) - y
        slack = loss.value(z, y) + loss.conjugate(theta + y, y) - (theta * z).sum(1)
        assert slack.min() >= -1e-12
        assert bool((slack.abs() < 1e-9).all()) == equal
    gradient = torch.autograd.functional.jacobian(lambda v: loss.value(v, y).sum(), z)
    torch.testing.assert_close(gradient, loss.mean(z) - y)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda v: type(v).__name__)
def test_shifted_predictions_are_predictions_with_the_mean_of_the_target(loss: Loss) -> None:
    z = torch.randn(50, 3, dtype=torch.float64) + torch.tensor([3.0, 0.0, -2.0])
    target = torch.rand(50, 3) if not isinstance(loss, Multinomial) else torch.randint(2, (50,))
    y = loss.target(target, z)
    assert y is not None
    m = loss.mean(z)
    slope = loss.slope(m.mean(0), y.mean(0))
    shifted = slope * m + y.mean(0) - slope * m.mean(0)
    torch.testing.assert_close(shifted.mean(0), y.mean(0))
    if isinstance(loss, Multinomial):
        torch.testing.assert_close(shifted.sum(1), torch.ones(50).double())
    if not isinstance(loss, SquaredError):
        assert shifted.min() >= -1e-15
        assert shifted.max() <= 1 + 1e-15


# ---- the last layer of a net -----------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, outputs: int = 1, *, squeeze: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(4, outputs)
        self.squeeze = squeeze

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(x))
        return output.squeeze(1) if self.squeeze else output


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_layer_with_its_features_frozen_is_the_linear_problem(dtype: torch.dtype) -> None:
    net = Net(3).to(dtype)
    x, y = torch.randn(60, 5, dtype=dtype), torch.randint(3, (60,))
    found = _gap(net, tl.L1(0.01), cross_entropy, [(x[:10], y[:10]), (x[10:], y[10:])])
    features = net.eval().body(x).detach()
    alone = _gap(net.head, tl.L1(0.01), cross_entropy, [(features, y)])
    assert found.duality_gap == pytest.approx(alone.duality_gap, rel=1e-5)
    assert (found.gap_layer, alone.gap_layer) == ("head", "")
    assert "(layer head, the rest held fixed)" in str(found)
    assert "(the whole model)" in str(alone)


def test_an_output_without_its_second_dimension_is_the_same() -> None:
    net = Net(squeeze=True)
    x, y = torch.randn(60, 5), torch.randn(60)
    found = _gap(net, tl.L1(0.01), mse, [(x, y)]).duality_gap
    net.squeeze = False
    assert found == _gap(net, tl.L1(0.01), mse, [(x, y[:, None])]).duality_gap
    assert found is not None


def test_the_gap_of_a_float32_model_closes_to_its_rounding() -> None:
    x, y = _data(SquaredError(), 1)
    model = nn.Linear(5, 1, dtype=torch.float64)
    _solve(model, tl.L1(0.05), mse, x, y)
    found = _gap(model.float(), tl.L1(0.05), mse, [(x.float(), y.float())])
    assert found.duality_gap is not None
    assert found.duality_gap < 1e-6 * found.objective


def test_a_class_that_never_occurs_and_targets_of_one_kind_only() -> None:
    x = torch.randn(30, 5)
    three, one = nn.Linear(5, 3), nn.Linear(5, 1)
    for gap in (
        _gap(three, tl.L1(0.1), cross_entropy, [(x, torch.randint(2, (30,)))]).duality_gap,
        _gap(one, tl.L1(0.1), logistic, [(x, torch.ones(30, 1))]).duality_gap,
    ):
        assert gap is not None
        assert 0 < gap < 10


# ---- no gap is claimed -------------------------------------------------------------------------------

X, Y = torch.randn(30, 5), torch.randn(30, 1)


def _inplace() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 1), nn.ReLU(inplace=True))


class Twice(nn.Module):
    """Runs its layer on its own output, or returns another output than the layer's."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(5, 5), scale

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(x)
        return self.fc(output) if self.scale == 1 else self.scale * output


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "rules", "loss_fn", "target"),
    [
        (nn.Linear(5, 1), tl.L1(0.0), mse, Y),
        (nn.Linear(5, 1), tl.L1(0.1, weights=torch.tensor([1.0, 0, 1, 1, 1])), mse, Y),
        (nn.Linear(5, 1), {"bias": tl.L1(0.1), "weight": tl.L1(0.1)}, mse, Y),
        (nn.Linear(5, 1), tl.L1(0.1), nn.HuberLoss(), Y),
        (nn.Linear(5, 1), tl.L1(0.1), nn.HuberLoss(delta=1000.0), Y),
        (nn.Linear(5, 1), tl.L1(0.1), nn.L1Loss(), Y),
        (nn.Linear(5, 1), tl.L1(0.1), nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0])), (Y > 0).float()),
        (nn.Linear(5, 1), tl.L1(0.1), lambda z, y: -mse(z, y), Y),
        (nn.Linear(5, 1), tl.L1(0.1), lambda z, y: mse(z, y) + 1, Y),
        (nn.Linear(5, 3), tl.L1(0.1), nn.CrossEntropyLoss(label_smoothing=0.1), torch.arange(30) % 3),
        (nn.Linear(5, 3), tl.L1(0.1), nn.CrossEntropyLoss(torch.tensor([1.0, 2, 1])), torch.arange(30) % 3),
        (
            nn.Linear(5, 3),
            tl.L1(0.1),
            nn.CrossEntropyLoss(ignore_index=-1),
            torch.arange(30) % 4 - 1,
        ),
        (nn.Sequential(nn.Linear(5, 1), nn.ReLU()), tl.L1(0.1), mse, Y),
        (_inplace(), tl.L1(0.1), mse, Y),
        (nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 1)), {"0.*": tl.L1(0.1), "*": None}, mse, Y),
        (Twice(1.0), tl.L1(0.1), mse, torch.randn(30, 5)),
        (Twice(2.0), tl.L1(0.1), mse, torch.randn(30, 5)),
        (_tied(), tl.L1(0.1), mse, torch.randn(30, 5)),
    ],
)
def test_no_gap_without_a_convex_problem(
    model: nn.Module, rules: Any, loss_fn: LossFn, target: Tensor
) -> None:
    found = _gap(model, rules, loss_fn, [(X, target)])
    assert found.duality_gap is None
    assert found.gap_layer is None
    assert "duality gap" not in str(found)


def test_a_loss_that_changes_between_batches_is_noticed() -> None:
    """With one class in a batch, a weighted cross-entropy equals the plain one there."""
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.arange(30) // 10
    batches = [(x[i : i + 10], y[i : i + 10]) for i in (0, 10, 20)]
    weighted = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    mixed = [*batches, (x[5:15], y[5:15])]
    model = nn.Linear(5, 3, dtype=torch.float64)
    assert _gap(model, tl.L1(0.1), weighted, batches).duality_gap is not None
    assert _gap(model, tl.L1(0.1), weighted, mixed).duality_gap is None


def test_a_summed_loss_has_no_mean_unless_all_batches_are_of_one_size() -> None:
    model = nn.Linear(5, 1)
    summed = nn.MSELoss(reduction="sum")
    assert _gap(model, tl.L1(0.1), summed, [(X[:10], Y[:10]), (X[10:20], Y[10:20])]).duality_gap is not None
    assert _gap(model, tl.L1(0.1), summed, [(X[:10], Y[:10]), (X[10:], Y[10:])]).duality_gap is None


@pytest.mark.parametrize(("loss", "loss_fn", "outputs"), CASES[2:], ids=lambda v: type(v).__name__)
def test_an_intercept_far_from_its_place_still_has_a_bound(loss: Loss, loss_fn: LossFn, outputs: int) -> None:
    x, y = _data(loss, outputs)
    model = nn.Linear(5, outputs, dtype=torch.float64)
    model.weight.data.mul_(5)
    model.bias.data[0] += 4.0
    start = _gap(model, tl.L1(0.05), loss_fn, [(x, y)])
    assert start.duality_gap is not None
    minimum = _solve(model, tl.L1(0.05), loss_fn, x, y)
    assert start.objective - minimum <= start.duality_gap < 0.98 * start.objective  # better than θ = 0


def test_nothing_outside_the_predictions_is_feasible() -> None:
    y = torch.tensor([[0.0, 1.0]]).double()
    for loss, u in (
        (Logistic(), [[0.5, 1.1]]),
        (Logistic(), [[-0.1, 0.5]]),
        (Multinomial(), [[-0.1, 1.1]]),
        (Multinomial(), [[0.5, 0.6]]),
    ):
        assert loss.conjugate(torch.tensor(u).double(), y).item() == math.inf
        assert loss.conjugate(y, y).item() == 0


def test_a_generator_gets_a_certificate_without_a_gap() -> None:
    model = nn.Linear(5, 1)
    found = _gap(model, tl.L1(0.1), mse, ((X, Y) for _ in range(2)))
    assert found.duality_gap is None
    assert found.residual == _gap(model, tl.L1(0.1), mse, [(X, Y)]).residual


def test_sequences_of_rows_have_no_gap() -> None:
    found = _gap(nn.Linear(5, 1), tl.L1(0.1), mse, [(torch.randn(4, 3, 5), torch.randn(4, 3, 1))])
    assert found.duality_gap is None


def test_a_diverged_model_has_no_gap() -> None:
    model = nn.Linear(5, 1)
    model.weight.data[0, 0] = math.nan
    assert _gap(model, tl.L1(0.1), mse, [(X, Y)]).duality_gap is None


def test_a_schedule_is_read_at_its_step() -> None:
    model = nn.Linear(5, 1)
    regularizer = tl.Regularizer(model, tl.L1(lambda step: 0.1 * step))
    regularizer.step = 2
    fixed = tl.certificate(model, tl.Regularizer(model, tl.L1(0.2)), mse, [(X, Y)])
    assert tl.certificate(model, regularizer, mse, [(X, Y)]).duality_gap == fixed.duality_gap
