"""The losses are what scikit-learn, torch and the definitions say, weighted or not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import HuberRegressor, PoissonRegressor
from sklearn.metrics import log_loss, mean_pinball_loss, mean_poisson_deviance
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.losses import (
    BinaryLoss,
    CoxLoss,
    HuberLoss,
    MultilabelLoss,
    MultinomialLoss,
    PoissonLoss,
    QuantileLoss,
    SquaredLoss,
)
from torchlasso.survival import concordance_index

ROWS = 12


def _outputs(columns: int | None = None, rows: int = ROWS) -> Tensor:
    shape = (rows,) if columns is None else (rows, columns)
    return torch.randn(shape, dtype=torch.float64)


def _survival(rows: int = ROWS) -> Tensor:
    time = torch.randint(1, 6, (rows,)).double()  # many ties
    return torch.stack([time, (torch.rand(rows) < 0.7).double()], dim=1)


def _cases() -> dict[str, tuple]:
    torch.manual_seed(3)
    zeros_and_ones = torch.randint(2, (ROWS,)).double()
    return {
        "squared": (SquaredLoss(), _outputs(1), _outputs()),
        "squared, two outputs": (SquaredLoss(), _outputs(2), _outputs(2)),
        "huber": (HuberLoss(0.7), _outputs(1), _outputs()),
        "quantile": (QuantileLoss(0.8), _outputs(1), _outputs()),
        "quantile, smoothed": (QuantileLoss(0.3, smoothing=0.5), _outputs(1), _outputs()),
        "poisson": (PoissonLoss(), _outputs(1), torch.randint(5, (ROWS,)).double()),
        "binary": (BinaryLoss(), _outputs(1), zeros_and_ones),
        "binary, weighted": (BinaryLoss((0.5, 2.0)), _outputs(1), zeros_and_ones),
        "multinomial": (MultinomialLoss(), _outputs(3), torch.randint(3, (ROWS,))),
        "multinomial, weighted": (MultinomialLoss((1.0, 0.2, 3.0)), _outputs(3), torch.randint(3, (ROWS,))),
        "multilabel": (MultilabelLoss(), _outputs(3), torch.randint(2, (ROWS, 3)).double()),
        "multilabel, weighted": (
            MultilabelLoss((1.0, 0.0, 2.0)),
            _outputs(3),
            torch.randint(2, (ROWS, 3)).double(),
        ),
        "cox, breslow": (CoxLoss("breslow"), _outputs(1), _survival()),
        "cox, efron": (CoxLoss("efron"), _outputs(1), _survival()),
    }


CASES = _cases()
every = pytest.mark.parametrize(("loss", "output", "target"), CASES.values(), ids=CASES)
row_by_row = pytest.mark.parametrize(
    ("loss", "output", "target"), [c for n, c in CASES.items() if "cox" not in n]
)


# --- what all of them do --------------------------------------------------------------------------------


@every
def test_the_gradient_is_the_slope(loss, output: Tensor, target: Tensor) -> None:
    weights = torch.rand(ROWS, dtype=torch.float64)
    weights[3] = 0.0
    z = output.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target), (z,))
    assert torch.autograd.gradcheck(lambda z: loss(z, target, weights), (z,))


@every
def test_a_loss_is_the_mean_of_its_rows_and_equal_weights_change_nothing(loss, output, target) -> None:
    rows = loss.rows(output, target)
    weights = loss.weights(target, None)
    assert rows.shape == (ROWS,)
    expected = rows.mean() if weights is None else rows.sum() / weights.sum()
    torch.testing.assert_close(loss(output, target), expected)
    # In Cox's loss a factor of all weights is a constant: the logarithm of it, for every event.
    shift = float(target[:, 1].mean()) * math.log(3) if isinstance(loss, CoxLoss) else 0.0
    equal = loss(output, target, torch.full((ROWS,), 3.0))
    torch.testing.assert_close(equal, loss(output, target) + shift)


@every
def test_a_weight_is_a_number_of_copies(loss, output: Tensor, target: Tensor) -> None:
    copies = torch.tensor([2, 0, 1, 3, 1, 1, 0, 2, 1, 1, 4, 1])
    if isinstance(loss, CoxLoss) and loss.ties == "efron":
        target = torch.stack([torch.arange(ROWS).double(), target[:, 1]], dim=1)
        copies.clamp_(max=1)  # copies are ties, which Efron's are not told apart from weights
    repeated = loss(output.repeat_interleave(copies, 0), target.repeat_interleave(copies, 0))
    torch.testing.assert_close(loss(output, target, copies.double()), repeated)


@row_by_row
def test_a_row_of_weight_zero_is_not_there_however_wild(loss, output: Tensor, target: Tensor) -> None:
    weights = torch.ones(ROWS)
    weights[0] = 0.0
    wild = output.clone()
    wild[0] = math.inf
    torch.testing.assert_close(loss(wild, target, weights), loss(output[1:], target[1:]))


@every
def test_the_input_is_not_modified_and_nan_is_not_hidden(loss, output: Tensor, target: Tensor) -> None:
    before = output.clone(), target.clone()
    loss(output, target)
    assert torch.equal(output, before[0])
    assert torch.equal(target, before[1])
    broken = output.clone()
    broken[int(target[:, 1].argmax()) if isinstance(loss, CoxLoss) else 0] = math.nan
    assert loss(broken, target).isnan()
    if target.is_floating_point():
        unknown = target.clone()
        unknown[0] = math.nan
        assert loss(output, unknown).isnan()


@every
def test_no_rows_have_no_mean(loss, output: Tensor, target: Tensor) -> None:
    assert loss.rows(output[:0], target[:0]).shape == (0,)
    assert loss(output[:0], target[:0]).isnan()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_outputs_are_computed_in_float32(loss, output, target, dtype: torch.dtype) -> None:
    narrow = output.to(dtype)
    rows = loss.rows(narrow, target)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), loss.rows(narrow.double(), target), atol=1e-5, rtol=1e-5)


@every
@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_outputs_have_finite_losses_and_gradients(loss, output, target, size, dtype) -> None:
    z = (output.sign() * size).to(dtype).requires_grad_()
    value = loss(z, target.to(dtype) if target.is_floating_point() else target)
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()


@every
def test_one_output_may_come_with_or_without_its_column(loss, output: Tensor, target: Tensor) -> None:
    if output.shape[1] == 1:
        assert torch.equal(loss(output, target), loss(output[:, 0], target))
    with pytest.raises(InputError, match="output must be"):
        loss(torch.randn(ROWS + 1, output.shape[1]), target)


@every
def test_weights_must_be_one_a_row_and_not_negative(loss, output: Tensor, target: Tensor) -> None:
    with pytest.raises(InputError, match="one a row"):
        loss(output, target, torch.ones(ROWS + 1))
    with pytest.raises(InputError, match="zero or more"):
        loss(output, target, -torch.ones(ROWS))


@pytest.mark.parametrize(
    ("loss", "output", "target", "message"),
    [
        (PoissonLoss(), torch.zeros(2), torch.tensor([1.0, -1.0]), "zero or more"),
        (PoissonLoss(), torch.zeros(2), torch.tensor([1.0, math.inf]), "finite"),
        (BinaryLoss(), torch.zeros(2), torch.tensor([0.0, 2.0]), "0 or 1"),
        (MultilabelLoss(), torch.zeros(2, 1), torch.tensor([[0.0], [-1.0]]), "0 or 1"),
        (MultilabelLoss(), torch.zeros(2), torch.zeros(2), r"\[n, labels\]"),
        (MultilabelLoss((1.0, 2.0)), torch.zeros(2, 3), torch.zeros(2, 3), "one entry a label"),
        (MultinomialLoss(), torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "integer type"),
        (MultinomialLoss(), torch.zeros(2, 3), torch.tensor([0, -1]), "negative"),
        (MultinomialLoss(), torch.zeros(2, 3), torch.tensor([0, 3]), "below 3"),
        (MultinomialLoss((1.0, 1.0)), torch.zeros(2, 3), torch.tensor([0, 2]), "below 2"),
        (CoxLoss(), torch.zeros(2), torch.zeros(2), "time and event"),
        (CoxLoss(), torch.zeros(2), torch.tensor([[1.0, 1.0], [2.0, 0.5]]), "censored"),
    ],
)
def test_a_target_that_cannot_be_is_an_error(loss, output: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loss(output, target)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (HuberLoss, {"delta": 0.0}, "delta"),
        (HuberLoss, {"delta": math.nan}, "delta"),
        (QuantileLoss, {"quantile": 1.0}, "quantile"),
        (QuantileLoss, {"smoothing": -1.0}, "smoothing"),
        (BinaryLoss, {"class_weights": (1.0, 2.0, 3.0)}, "class_weights"),
        (MultinomialLoss, {"class_weights": (1.0, -2.0)}, "class_weights"),
        (MultilabelLoss, {"label_weights": (math.inf,)}, "weights"),
        (CoxLoss, {"ties": "exact"}, "ties"),
    ],
)
def test_a_loss_that_cannot_be_is_an_error(kind: type, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**arguments)


# --- against scikit-learn and torch ---------------------------------------------------------------------


def test_squared_is_half_of_torchs() -> None:
    z, y = _outputs(), _outputs()
    torch.testing.assert_close(SquaredLoss()(z, y), nn.MSELoss()(z, y) / 2)


@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.9])
def test_quantile_is_the_pinball_loss(quantile: float) -> None:
    z, y, w = _outputs(), _outputs(), torch.rand(ROWS).double()
    expected = mean_pinball_loss(y, z, alpha=quantile, sample_weight=w)
    assert float(QuantileLoss(quantile)(z, y, w)) == pytest.approx(expected)


@pytest.mark.parametrize("smoothing", [1e-3, 0.1, 2.0])
def test_the_smoothed_pinball_loss_is_within_its_bound(smoothing: float) -> None:
    z, y = torch.linspace(-3, 3, 1001).double(), torch.zeros(1001).double()
    above = QuantileLoss(0.7, smoothing).rows(z, y) - QuantileLoss(0.7).rows(z, y)
    assert above.min() >= -1e-15
    assert above.max() <= smoothing / 4 + 1e-15
    zero = torch.zeros(1).double()
    assert float(QuantileLoss(0.7, smoothing)(zero, zero)) == pytest.approx(smoothing / 4)


def test_huber_is_torchs_and_minimised_where_scikit_learns_is() -> None:
    z, y = 3 * _outputs(), _outputs()
    torch.testing.assert_close(HuberLoss(0.8)(z, y), nn.HuberLoss(delta=0.8)(z, y))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    target = x @ [1.0, -2.0, 0.0] + rng.standard_t(1, size=60)
    theirs = HuberRegressor(epsilon=1.5, alpha=0.3, tol=1e-10, max_iter=10_000).fit(x, target)
    # Their objective is Σ 2/σ·huber(r; εσ) + α‖w‖²: its gradient by the weights, with ours for the loss.
    w = torch.tensor(theirs.coef_, requires_grad=True)
    output = torch.tensor(x) @ w + theirs.intercept_
    loss = HuberLoss(1.5 * theirs.scale_)(output, torch.tensor(target))
    (loss * 60 * 2 / theirs.scale_ + 0.3 * w.square().sum()).backward()
    assert float(w.grad.abs().max()) < 1e-3


def test_poisson_is_half_the_deviance_and_minimised_where_scikit_learns_is() -> None:
    z, y = _outputs(), torch.randint(4, (ROWS,)).double()
    assert float(PoissonLoss()(z, y)) == pytest.approx(mean_poisson_deviance(y, z.exp()) / 2)
    torch.testing.assert_close(
        PoissonLoss()(z, y), nn.PoissonNLLLoss()(z, y) + (torch.xlogy(y, y) - y).mean()
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    counts, weights = rng.poisson(np.exp(x[:, 0])), rng.uniform(0.5, 2, size=50)
    theirs = PoissonRegressor(alpha=0.2, tol=1e-10, max_iter=10_000).fit(x, counts, weights)
    w = torch.tensor(theirs.coef_, requires_grad=True)
    output = torch.tensor(x) @ w + theirs.intercept_
    loss = PoissonLoss()(output, torch.tensor(counts), torch.tensor(weights))
    (loss + 0.1 * w.square().sum()).backward()
    assert float(w.grad.abs().max()) < 1e-6


def test_the_tangent_begins_where_it_says_and_not_before() -> None:
    z = torch.tensor([43.0, 44.0], dtype=torch.float32)
    torch.testing.assert_close(PoissonLoss().rows(z, torch.zeros(2)), z.exp())
    assert PoissonLoss().rows(torch.tensor([1e6]), torch.zeros(1)).isfinite().all()


def test_binary_is_the_log_loss_with_weights_of_rows_and_classes() -> None:
    z, y, w = 3 * _outputs(), torch.randint(2, (ROWS,)).double(), torch.rand(ROWS).double()
    by_class = torch.where(y == 1, 2.5, 0.5)
    expected = log_loss(y, z.sigmoid(), sample_weight=w * by_class)
    assert float(BinaryLoss((0.5, 2.5))(z, y, w)) == pytest.approx(expected)


def test_multinomial_is_the_log_loss_and_torchs() -> None:
    z, y, w = _outputs(4), torch.randint(4, (ROWS,)), torch.rand(ROWS).double()
    expected = log_loss(y, z.softmax(1), sample_weight=w, labels=range(4))
    assert float(MultinomialLoss()(z, y, w)) == pytest.approx(expected)
    of_class = (0.5, 1.0, 2.0, 0.1)
    theirs = nn.CrossEntropyLoss(torch.tensor(of_class).double())(z, y)
    torch.testing.assert_close(MultinomialLoss(of_class)(z, y), theirs)


def test_multilabel_is_a_sum_of_log_losses() -> None:
    z, y, w = _outputs(3), torch.randint(2, (ROWS, 3)).double(), torch.rand(ROWS).double()
    y[0], y[1] = 0.0, 1.0
    expected = sum(log_loss(y[:, k], z[:, k].sigmoid(), sample_weight=w) for k in range(3))
    assert float(MultilabelLoss()(z, y, w)) == pytest.approx(expected)
    alone = log_loss(y[:, 1], z[:, 1].sigmoid(), sample_weight=w)
    assert float(MultilabelLoss((0.0, 2.0, 0.0))(z, y, w)) == pytest.approx(2 * alone)


# --- survival times -------------------------------------------------------------------------------------


def _cox(risk: np.ndarray, time: np.ndarray, event: np.ndarray, w: np.ndarray, ties: str) -> float:
    """Return ``−log PL`` from the definition, one time of events after the other."""
    total = 0.0
    for t in np.unique(time[event == 1]):
        at_risk = time >= t
        died = (time == t) & (event == 1)
        everyone, those = (w * np.exp(risk))[at_risk].sum(), (w * np.exp(risk))[died].sum()
        total -= (w * risk)[died].sum()
        d = died.sum()
        for number in range(d):
            share = number / d if ties == "efron" else 0.0
            total += w[died].mean() * np.log(everyone - share * those)
    return total


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_cox_is_the_partial_likelihood_over_explicit_risk_sets(ties: str, weighted: bool, seed: int) -> None:
    torch.manual_seed(seed)
    risk, target = _outputs(rows=30), _survival(30)
    weights = torch.rand(30).double() if weighted else torch.ones(30).double()
    expected = _cox(risk.numpy(), *target.T.numpy(), weights.numpy(), ties) / float(weights.sum())
    given = weights if weighted else None
    assert float(CoxLoss(ties)(risk, target, given)) == pytest.approx(expected, rel=1e-12)
    order = torch.randperm(30)  # the order of the rows is nothing
    shuffled = CoxLoss(ties).rows(risk[order], target[order], None if given is None else given[order])
    assert float(shuffled.sum() / weights.sum()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_a_constant_changes_no_cox_loss_and_the_censored_have_none(ties: str) -> None:
    risk, target = _outputs(), _survival()
    rows = CoxLoss(ties).rows(risk, target)
    torch.testing.assert_close(CoxLoss(ties)(risk + 1000, target), CoxLoss(ties)(risk, target))
    assert (rows[target[:, 1] == 0] == 0).all()
    censored = torch.stack([target[:, 0], torch.zeros(ROWS).double()], dim=1)
    assert float(CoxLoss(ties)(risk, censored)) == 0.0


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_concordance_is_counted_pair_by_pair(seed: int, rows: int) -> None:
    torch.manual_seed(seed)
    risk, target = torch.randint(5, (rows,)).double(), _survival(rows)
    points, pairs = 0.0, 0
    for i in range(rows):
        for j in range(rows):
            earlier = target[i, 0] < target[j, 0] or (target[i, 0] == target[j, 0] and target[j, 1] == 0)
            if target[i, 1] == 1 and earlier:
                pairs += 1
                points += 1.0 if risk[i] > risk[j] else 0.5 * float(risk[i] == risk[j])
    found = concordance_index(risk, target)
    assert found == pytest.approx(points / pairs) if pairs else math.isnan(found)


def test_concordance_of_a_perfect_order_is_one_in_blocks_too() -> None:
    time = torch.rand(2500)
    target = torch.stack([time, torch.ones(2500)], dim=1)
    assert concordance_index(-time, target) == 1.0
    assert concordance_index(time[:, None], target) == 0.0
    assert math.isnan(concordance_index(torch.full((2500,), math.nan), target))
    with pytest.raises(InputError, match="one entry a row"):
        concordance_index(time[:5], target)


def test_class_weights_are_one_a_class() -> None:
    with pytest.raises(InputError, match="one a class, 3, got 2"):
        MultinomialLoss((1.0, 2.0))(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_only_negative_class_numbers_are_called_negative() -> None:
    with pytest.raises(InputError, match=r"float32 of shape \(2,\)$"):
        MultinomialLoss()(torch.zeros(2, 3), torch.tensor([0.0, 1.0]))
    with pytest.raises(InputError, match="negative"):
        MultinomialLoss()(torch.zeros(2, 3), torch.tensor([0, -1]))
