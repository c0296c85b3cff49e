"""The certificate and the largest strength, by hand, against scikit-learn, and without side effects."""

import math
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Lasso
from torch import Tensor, nn

import torchlasso as tl
from torchlasso.certify import Certificate, CertificateRow
from torchlasso.errors import InputError
from torchlasso.gradients import mean_gradient
from torchlasso.terms import Member, Term

mse = nn.functional.mse_loss
Pairs = list[tuple[Tensor, Tensor]]


def _line(*weights: float) -> nn.Linear:
    model = nn.Linear(len(weights), 1, bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.tensor([weights], dtype=torch.float64))
    return model


def _orthogonal() -> Pairs:
    """Return orthogonal columns of mean square 1, on which ½·MSE has the gradient ``w − (3, −1, ½)``."""
    signs = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    return [(signs, signs @ torch.tensor([[3.0], [-1.0], [0.5]], dtype=torch.float64))]


def half_mse(output: Tensor, target: Tensor) -> Tensor:
    return mse(output, target) / 2


# ---- by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "residual", "slack"),
    [
        ((2.25, -0.25, 0.0), 0.0, 1 - 0.5 / 0.75),  # the solution soft((3, −1, ½), ¾)
        ((2.0, -0.25, 0.0), 0.25 / 0.75, 1 - 0.5 / 0.75),  # |2 − 3 + ¾| = ¼
        ((2.25, 0.0, 0.0), (1 - 0.75) / 0.75, 1 - 1 / 0.75),  # a zero that wants to return
        ((2.25, 0.25, 0.0), (1.25 + 0.75) / 0.75, 1 - 0.5 / 0.75),  # the wrong sign
        ((2.25, -0.25, 0.1), abs(0.1 - 0.5 + 0.75) / 0.75, None),  # nothing is zero
        ((0.0, 0.0, 0.0), (3 - 0.75) / 0.75, 1 - 3 / 0.75),
    ],
)
def test_l1_certificate_by_hand(weights: tuple[float, ...], residual: float, slack: float | None) -> None:
    model = _line(*weights)
    found = tl.certificate(model, tl.Regularizer(model, tl.L1(0.75)), half_mse, _orthogonal())
    assert found.residual == pytest.approx(residual, abs=1e-12)
    assert found.slack == (None if slack is None else pytest.approx(slack))
    data = 0.5 * sum((w - v) ** 2 for w, v in zip(weights, (3, -1, 0.5), strict=True))
    assert found.loss == pytest.approx(data)
    assert found.penalty == pytest.approx(0.75 * sum(map(abs, weights)))
    assert found.objective == pytest.approx(found.loss + found.penalty)
    minimum = 0.6875 + 1.875  # at the solution, where the loss is ½(¾² + ¾² + ½²)
    assert found.duality_gap is not None
    assert found.duality_gap >= found.objective - minimum - 1e-12
    assert residual > 0 or found.duality_gap < 1e-12


def test_group_certificate_by_hand() -> None:
    """Groups {0, 1} with ‖g‖ = √10 and {2} with |g| = ½, at zero and at the solution."""
    model = _line(0.0, 0.0, 0.0)
    penalty = tl.GroupLasso(2.0, groups=[[0, 1], [2]], weights=None)
    at_zero = tl.certificate(model, tl.Regularizer(model, penalty), half_mse, _orthogonal())
    assert at_zero.residual == pytest.approx((math.sqrt(10) - 2) / 2)
    assert at_zero.slack == pytest.approx(1 - math.sqrt(10) / 2)
    shrink = 1 - 2 / math.sqrt(10)
    model.weight.data.copy_(torch.tensor([[3 * shrink, -shrink, 0.0]], dtype=torch.float64))
    solved = tl.certificate(model, tl.Regularizer(model, penalty), half_mse, _orthogonal())
    assert solved.residual == pytest.approx(0.0, abs=1e-12)
    assert solved.slack == pytest.approx(1 - 0.5 / 2)


def test_strength_zero_reports_the_gradient_itself() -> None:
    model = _line(2.0, -1.0, 0.5)
    found = tl.certificate(model, tl.Regularizer(model, tl.L1(0.0)), half_mse, _orthogonal())
    assert found.residual == pytest.approx(1.0)
    assert found.slack is None


def test_rows_are_per_block_and_the_worst_counts() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    regularizer = tl.Regularizer(model, {"0.*": tl.L1(0.3), "2.*": tl.GroupLasso(0.2, groups="columns")})
    batches = [(torch.randn(20, 3), torch.randn(20, 1))]
    found = tl.certificate(model, regularizer, mse, batches)
    assert [(row.name, row.strength) for row in found.rows] == [("0.weight", 0.3), ("2.weight", 0.2)]
    assert found.residual == max(row.residual for row in found.rows)
    gradient = torch.autograd.grad(mse(model(batches[0][0]), batches[0][1]), model[0].weight)[0]
    by_definition = (gradient + 0.3 * model[0].weight.sign()).abs().max().item() / 0.3
    assert found.rows[0].residual == pytest.approx(by_definition, rel=1e-5)


def test_joint_blocks_are_one_row() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    members = (Member("0.weight", model[0].weight), Member("1.weight", model[1].weight, dim=1))
    regularizer = tl.Regularizer.from_terms([Term(tl.GroupLasso(0.3, weights=None), members)])
    found = tl.certificate(model, regularizer, half_mse, _orthogonal())
    assert [row.name for row in found.rows] == ["0.weight+1.weight"]
    gradients = torch.autograd.grad(
        half_mse(model(_orthogonal()[0][0]), _orthogonal()[0][1]), model.parameters()
    )
    w = torch.cat([model[0].weight, model[1].weight.T], dim=1)
    g = torch.cat([gradients[0], gradients[1].T], dim=1)
    expected = (g + 0.3 * w / w.norm(dim=1, keepdim=True)).norm(dim=1).max().item() / 0.3
    assert found.residual == pytest.approx(expected)


def test_the_strength_of_the_current_step_is_used() -> None:
    model = _line(2.25, -0.25, 0.0)
    regularizer = tl.Regularizer(model, tl.L1(lambda step: 0.25 * step))
    regularizer.step = 3
    found = tl.certificate(model, regularizer, half_mse, _orthogonal())
    assert found.rows[0].strength == 0.75
    assert found.residual == pytest.approx(0.0, abs=1e-12)


def test_nan_shows_wherever_it_stands() -> None:
    good, bad = CertificateRow("a", 1.0, 0.5, 0.1), CertificateRow("b", 1.0, math.nan, math.nan)
    for rows in ((good, bad), (bad, good)):
        found = Certificate(rows, 0.0, 0.0)
        assert math.isnan(found.residual)
        assert found.slack is not None
        assert math.isnan(found.slack)
    none = CertificateRow("c", 1.0, 0.5, None)
    assert Certificate((good, none), 0.0, 0.0).slack == 0.1
    assert Certificate((none,), 0.0, 0.0).slack is None


def test_a_diverged_model_has_no_certificate_but_nan() -> None:
    model = _line(math.nan, 1.0, 0.0)
    found = tl.certificate(model, tl.Regularizer(model, tl.L1(0.5)), half_mse, _orthogonal())
    assert math.isnan(found.residual)
    assert math.isnan(found.objective)


def test_the_table_has_a_row_for_every_block_and_one_for_all() -> None:
    model = _line(2.25, -0.25, 0.0)
    table = str(tl.certificate(model, tl.Regularizer(model, tl.L1(0.75)), half_mse, _orthogonal()))
    cells = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]
    assert cells[0] == ["parameter", "strength", "residual / strength", "slack"]
    assert cells[2:4] == [["weight", "0.75", "0", "0.3333"], ["all", "–", "0", "0.3333"]]
    assert cells[4:] == [["duality gap: 0 of 2.562 (the whole model)"]]


def test_notes_stand_below_the_table() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    found = tl.certificate(model, tl.Regularizer(model, {"0.*": tl.L1(0.1), "*": None}), mse, _orthogonal())
    assert str(found).splitlines()[-1] == f"note: {found.notes[0]}"
    off = tl.Regularizer(model, {"0.*": tl.L1(0.0), "*": None})
    assert tl.certificate(model, off, mse, _orthogonal()).notes == ()  # at strength 0 nothing is penalised


# ---- against scikit-learn -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regression() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(70, 6))
    return torch.tensor(x), torch.tensor(x[:, :2] @ np.array([1.0, -2.0]) + rng.normal(size=70))[:, None]


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_the_solution_of_scikit_learn_is_certified(regression: tuple[Tensor, Tensor], ratio: float) -> None:
    """Its loss is ½·MSE, so its alpha is the strength for that and half of it for MSELoss."""
    x, y = regression
    solver = ElasticNet(0.2, l1_ratio=ratio, tol=1e-14).fit(x.numpy(), y[:, 0].numpy())
    model = nn.Linear(6, 1, dtype=torch.float64)
    model.weight.data.copy_(torch.tensor(solver.coef_)[None])
    model.bias.data.fill_(float(solver.intercept_))
    for loss_fn, strength in ((half_mse, 0.2), (mse, 0.4)):
        regularizer = tl.Regularizer(model, tl.ElasticNet(strength, l1_ratio=ratio))
        found = tl.certificate(model, regularizer, loss_fn, [(x, y)])
        assert found.residual < 1e-9
        assert found.slack is not None
        assert found.slack > 0
    model.weight.data.mul_(1.01)
    assert tl.certificate(model, regularizer, mse, [(x, y)]).residual > 1e-3


def test_above_strength_max_scikit_learn_selects_nothing_and_below_one(
    regression: tuple[Tensor, Tensor],
) -> None:
    x, y = regression
    model = nn.Linear(6, 1, dtype=torch.float64)
    model.bias.data.copy_(y.mean())
    largest = tl.strength_max(model, tl.Regularizer(model, tl.L1(0.1)), half_mse, [(x, y)])["weight"]
    for factor, count in ((1.001, 0), (0.999, 1)):
        assert (
            np.count_nonzero(Lasso(largest * factor, tol=1e-12).fit(x.numpy(), y[:, 0].numpy()).coef_)
            == count
        )


# ---- strength_max of nets -------------------------------------------------------------------------


def test_strength_max_is_by_definition_the_gradient_with_the_block_at_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(30, 3), torch.randn(30, 2)
    rules: dict[Any, Any] = {
        "0.*": tl.GroupLasso(9.0, groups="rows"),
        "2.*": tl.ElasticNet(9.0, l1_ratio=0.25),
    }
    found = tl.strength_max(model, tl.Regularizer(model, rules), mse, [(x, y)])
    expected = {}
    for index, size in (
        (0, lambda g: float(g.norm(dim=1).max() / math.sqrt(3))),
        (2, lambda g: float(g.abs().max()) / 0.25),
    ):
        other = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        other.load_state_dict(model.state_dict())
        other[index].weight.data.zero_()
        expected[f"{index}.weight"] = size(torch.autograd.grad(mse(other(x), y), other[index].weight)[0])
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


def test_all_members_of_a_joint_block_are_at_zero_together() -> None:
    """With both layers at zero the gradient vanishes: the trap that the docs warn of."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    members = (Member("0.weight", model[0].weight), Member("1.weight", model[1].weight, dim=1))
    regularizer = tl.Regularizer.from_terms([Term(tl.GroupLasso(0.3), members)])
    assert tl.strength_max(model, regularizer, half_mse, _orthogonal()) == {"0.weight": 0.0, "1.weight": 0.0}


def test_strength_max_reads_a_generator_once() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).double()
    regularizer = tl.Regularizer(model, tl.L1(0.1))
    expected = tl.strength_max(model, regularizer, half_mse, _orthogonal())
    assert tl.strength_max(model, regularizer, half_mse, (pair for pair in _orthogonal())) == expected
    assert all(value > 0 for value in expected.values())


# ---- batches --------------------------------------------------------------------------------------


def _cut(pairs: Pairs, sizes: list[int]) -> Pairs:
    (x, y) = pairs[0]
    return [(x[a : a + n], y[a : a + n]) for a, n in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)]


@pytest.mark.parametrize("sizes", [[4], [1, 3], [0, 3, 0, 1, 0], [1, 1, 1, 1]])
def test_batches_count_by_their_size_and_empty_ones_not_at_all(sizes: list[int]) -> None:
    model = _line(2.0, 0.0, 1.0)
    regularizer = tl.Regularizer(model, tl.L1(0.75))
    whole = tl.certificate(model, regularizer, half_mse, _orthogonal())
    parts = tl.certificate(model, regularizer, half_mse, iter(_cut(_orthogonal(), sizes)))
    assert parts.loss == pytest.approx(whole.loss)
    assert parts.residual == pytest.approx(whole.residual)
    found = tl.strength_max(model, regularizer, half_mse, iter(_cut(_orthogonal(), sizes)))
    assert found == {"weight": pytest.approx(3.0)}


@pytest.mark.parametrize(
    "batches", [[], iter([]), [(torch.zeros(0, 3).double(), torch.zeros(0, 1).double())]]
)
def test_no_examples_are_refused(batches: Any) -> None:
    model = _line(1.0, 0.0, 0.0)
    with pytest.raises(InputError, match="at least one example"):
        tl.certificate(model, tl.Regularizer(model, tl.L1(0.1)), half_mse, batches)


class Summed(nn.Module):
    """Takes its input in a dict or a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 1, bias=False, dtype=torch.float64)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        x, weight = (batch["x"], batch["w"]) if isinstance(batch, dict) else batch
        return {"out": self.fc(x) * weight}


@pytest.mark.parametrize("kind", [dict, tuple])
@pytest.mark.parametrize("target_too", [True, False])
def test_dicts_and_tuples_count_by_the_examples_in_them(kind: type, target_too: bool) -> None:
    model = Summed()
    x, w, y = torch.randn(6, 3).double(), torch.rand(6, 1).double(), torch.randn(6, 1).double()

    def batch(rows: slice) -> tuple[Any, Any]:
        inputs = {"x": x[rows], "w": w[rows]} if kind is dict else (x[rows], w[rows])
        return inputs, {"y": y[rows]} if target_too else None

    def loss(output: Any, target: Any) -> Tensor:
        return (output["out"] - target["y"]).square().mean() if target else output["out"].square().mean()

    regularizer = tl.Regularizer(model, tl.L1(0.1))
    whole = tl.certificate(model, regularizer, loss, [batch(slice(0, 6))])
    parts = tl.certificate(model, regularizer, loss, [batch(slice(0, 1)), batch(slice(1, 6))])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert parts.residual == pytest.approx(whole.residual, rel=1e-12)


def test_only_a_few_batches_are_alive_at_a_time() -> None:
    alive: list[int] = []
    seen: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(20):
            pair = torch.randn(4, 3), torch.randn(4, 1)
            seen.append(weakref.ref(pair[0]))
            yield pair
            del pair
            alive.append(sum(ref() is not None for ref in seen))

    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    tl.certificate(model, tl.Regularizer(model, tl.L1(0.1)), mse, batches())
    assert max(alive) <= 3  # the first (for the notes), the last with its graph, the new one


def test_tied_weights_are_one_block_with_the_sum_of_their_gradients() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False)).double()
    model[2].weight = model[0].weight
    x, y = _orthogonal()[0][0], torch.randn(4, 3).double()
    found = tl.certificate(model, tl.Regularizer(model, tl.L1(0.1)), mse, [(x, y)])
    assert [row.name for row in found.rows] == ["0.weight"]
    w = model[0].weight.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mse((x @ w.T).tanh() @ w.T, y), w)
    assert found.residual == pytest.approx(float((gradient + 0.1 * w.detach().sign()).abs().max()) / 0.1)


def test_complex_weights_beside_the_penalised_ones_do_no_harm() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Parameter(torch.randn(3, dtype=torch.complex128))
            self.fc = nn.Linear(3, 1, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.fc((x * self.turn).real)
            return output

    model = Spectral()
    found = tl.certificate(model, tl.Regularizer(model, {"turn": None, "*": tl.L1(0.1)}), mse, _orthogonal())
    assert math.isfinite(found.residual)


def test_a_spent_generator_is_refused_and_explained() -> None:
    model = _line(1.0, 0.0, 0.0)
    batches = (pair for pair in _orthogonal())
    tl.certificate(model, tl.Regularizer(model, tl.L1(0.1)), half_mse, batches)
    with pytest.raises(InputError, match="a generator can be read only once"):
        tl.certificate(model, tl.Regularizer(model, tl.L1(0.1)), half_mse, batches)


def test_a_data_loader_is_a_source_of_batches() -> None:
    x, y = _orthogonal()[0]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3)
    model = _line(2.25, -0.25, 0.0)
    found = tl.certificate(model, tl.Regularizer(model, tl.L1(0.75)), half_mse, loader)
    assert found.residual == pytest.approx(0.0, abs=1e-12)


def test_many_batches_in_half_precision_add_up() -> None:
    """In bfloat16 a running sum of ones stops at 256, in float16 one of 1024s overflows at 65504."""
    for dtype, count, size in ((torch.bfloat16, 1000, 1), (torch.float16, 100, 1024)):
        model = nn.Linear(1, 1, bias=False).to(dtype)
        nn.init.zeros_(model.weight)
        pair = (torch.ones(size, 1, dtype=dtype), -torch.ones(size, 1, dtype=dtype))
        _, (gradient,) = mean_gradient(model, half_mse, [pair] * count, [model.weight])
        assert gradient.item() == pytest.approx(1.0, rel=1e-2)


def test_a_penalised_parameter_that_the_loss_does_not_use_has_gradient_zero() -> None:
    model = nn.ModuleDict({"used": _line(1.0, 0.0, 0.0), "unused": _line(1.0, 0.0)})
    regularizer = tl.Regularizer(model, tl.L1(0.5))

    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = model["used"](x)
            return output

    found = tl.certificate(Wrapped(), regularizer, half_mse, _orthogonal())
    assert found.rows[1].residual == pytest.approx(1.0)  # |0 + λ·sign| / λ


def test_a_sparse_gradient_is_read() -> None:
    model = nn.Embedding(4, 2, sparse=True)
    regularizer = tl.Regularizer(model, {nn.Embedding: tl.L1(0.5)})
    batches = [(torch.tensor([0, 2]), torch.zeros(2, 2))]
    found = tl.strength_max(model, regularizer, lambda output, target: (output + 1).mean(), batches)
    assert found == {"weight": pytest.approx(0.25)}


def test_a_parameter_frozen_since_then_is_refused() -> None:
    model = _line(1.0, 0.0, 0.0)
    regularizer = tl.Regularizer(model, tl.L1(0.5))
    model.weight.requires_grad_(False)
    with pytest.raises(InputError, match="requires_grad=False by now"):
        tl.certificate(model, regularizer, half_mse, _orthogonal())


# ---- nothing is left changed ------------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.drop = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.fc2 = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(self.drop(self.norm(self.fc1(x))))
        return output


def _picture(model: nn.Module) -> dict[str, Any]:
    """Return everything that must stay: bits of weights and buffers, gradients, modes, the random state."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "signs": {name: torch.signbit(p.detach()) for name, p in model.named_parameters()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "modes": {name: torch.tensor(module.training) for name, module in model.named_modules()},
        "random": {"": torch.get_rng_state()},
    }


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    pairs = [(before[kind][name], after[kind][name]) for kind in before for name in before[kind]]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def noisy() -> nn.Module:
    model = Noisy()
    torch.autograd.backward(mse(model(torch.randn(5, 3)), torch.randn(5, 1)))
    model.fc2.weight.grad = None
    model.fc2.weight.data[0, 0] = -0.0
    model.norm.eval()  # a mode of its own
    return model


MEASURES: list[Callable[..., Any]] = [tl.certificate, tl.strength_max]


@pytest.mark.parametrize("measure", MEASURES)
def test_measuring_changes_nothing(noisy: nn.Module, measure: Callable[..., Any]) -> None:
    before = _picture(noisy)
    batches = [
        (torch.ones(4, 3), torch.ones(4, 1)),
        (torch.ones(1, 3), torch.ones(1, 1)),
    ]  # one row: needs eval mode
    measure(noisy, tl.Regularizer(noisy, tl.L1(0.1)), mse, batches)
    assert _same(before, _picture(noisy))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("where", ["loss", "batches"])
def test_an_error_on_the_way_changes_nothing_either(
    noisy: nn.Module, measure: Callable[..., Any], where: str
) -> None:
    before = _picture(noisy)

    def failing(output: Tensor, target: Tensor) -> Tensor:
        raise ZeroDivisionError

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.ones(4, 3), torch.ones(4, 1)
        if where == "batches":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure(noisy, tl.Regularizer(noisy, tl.L1(0.1)), failing if where == "loss" else mse, batches())
    assert _same(before, _picture(noisy))


@pytest.mark.parametrize("measure", MEASURES)
def test_measuring_works_under_no_grad(measure: Callable[..., Any]) -> None:
    model = _line(2.0, 0.0, 1.0)
    regularizer = tl.Regularizer(model, tl.L1(0.75))
    expected = measure(model, regularizer, half_mse, _orthogonal())
    with torch.no_grad():
        assert measure(model, regularizer, half_mse, _orthogonal()) == expected


@pytest.mark.parametrize("measure", MEASURES)
def test_evaluation_mode_is_used(measure: Callable[..., Any]) -> None:
    """With dropout active two measurements would differ, and a batch of one row would fail in BatchNorm."""
    model = Noisy()
    regularizer = tl.Regularizer(model, tl.L1(0.1))
    batches = [(torch.ones(1, 3), torch.ones(1, 1))]
    assert measure(model, regularizer, mse, batches) == measure(model, regularizer, mse, batches)
    assert model.training
