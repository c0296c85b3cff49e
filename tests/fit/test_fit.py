"""A fit does what it is asked for: the given strength, or the path's choice, refit on its support."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, LogisticRegression
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.fit.fitter import Fit, Fitter
from torchlasso.fit.linear import LinearFitter
from torchlasso.fit.network import NetworkFitter
from torchlasso.fit.run import fit_mlp
from torchlasso.fit.settings import Budget, Settings, Silent
from torchlasso.mlp import linear_layers, used_features
from torchlasso.path import row_losses
from torchlasso.tasks import Task
from torchlasso.training import Batches

SHORT = Budget(dense=60, points=8, point=15, settle=120, refit=40)
REGRESSION, BINARY, THREE = Task("regression"), Task("binary"), Task("multiclass", 3)
Rows = tuple[Tensor, Tensor]


def _rows(task: Task, rows: int = 80, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    if task.kind == "regression":
        return x, 2 * x[:, 0] - x[:, 1] + 0.3 * noise[:, 0] + 5
    if task.kind == "binary":
        return x, (2 * x[:, 0] - x[:, 1] + noise[:, 0] > 0.4).double()
    return x, (2 * x[:, :3] + noise).argmax(dim=1)


def _settings(hidden: tuple[int, ...], strength: float | None, **others: object) -> Settings:
    return replace(Settings(hidden, "l1", strength, budget=SHORT), **others)


def _weights(module: nn.Module) -> list[Tensor]:
    return [layer.weight.detach() for _, layer in linear_layers(module)]


def _nonzero(module: nn.Module) -> int:
    return sum(int((w != 0).sum()) for w in _weights(module))


def _fit(task: Task, settings: Settings) -> Fit:
    valid = None if settings.strength is not None else _rows(task, 40, seed=1)
    return fit_mlp(_rows(task), valid, task, settings)


@pytest.mark.parametrize("strength", [0.01, 0.2])
def test_a_linear_regression_is_scikit_learns_lasso(strength: float) -> None:
    x, y = _rows(REGRESSION)
    fit = _fit(REGRESSION, _settings((), strength))
    reference = Lasso(alpha=strength, tol=1e-12, max_iter=100_000).fit(x, y)
    np.testing.assert_allclose(_weights(fit.module)[0][0], reference.coef_, atol=1e-6)
    assert fit.module.bias.item() == pytest.approx(reference.intercept_, abs=1e-6)
    assert fit.certificate.residual <= 2e-6
    assert (fit.strength, fit.chosen_by, fit.path, fit.refit) == (strength, "given", None, None)


@pytest.mark.parametrize("task", [BINARY, THREE], ids=lambda t: t.kind)
def test_a_linear_classification_is_scikit_learns(task: Task) -> None:
    x, y = _rows(task)
    strength = 0.02
    fit = _fit(task, _settings((), strength))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn is renaming its penalty argument
        reference = LogisticRegression(
            penalty="l1", solver="saga", C=1 / (len(y) * strength), tol=1e-12, max_iter=100_000
        ).fit(x, y)
    np.testing.assert_allclose(_weights(fit.module)[0], reference.coef_, atol=2e-5)


@pytest.mark.parametrize("hidden", [(), (7,)], ids=["linear", "network"])
@pytest.mark.parametrize("task", [REGRESSION, BINARY, THREE], ids=lambda t: t.kind)
def test_auto_takes_the_paths_choice_and_refits_its_support(task: Task, hidden: tuple[int, ...]) -> None:
    fit = _fit(task, _settings(hidden, None))
    assert fit.chosen_by == "one standard error"
    assert fit.chosen is fit.path.best("1se")
    assert fit.strength == fit.chosen.strength
    strengths = [point.strength for point in fit.path.points]
    assert strengths == sorted(strengths)
    first, last = fit.path.points[0], fit.path.points[-1]
    assert last.nonzero < first.nonzero
    assert hidden or last.nonzero == 0
    assert _nonzero(fit.module) > 0
    valid = Batches(*(_rows(task, 40, seed=1)), 2048)
    valid = replace(valid, inputs=valid.inputs.to(next(fit.module.parameters()).dtype))
    loss = float(row_losses(fit.module, valid, task.loss_rows).mean())
    expected = fit.refit.valid_loss_refit if fit.refit.used else fit.refit.valid_loss_penalised
    assert loss == pytest.approx(expected, rel=1e-5)
    assert fit.refit.used == (fit.refit.valid_loss_refit < fit.refit.valid_loss_penalised)


def _fitter(task: Task, hidden: tuple[int, ...], penalty: str = "l1") -> Fitter:
    kind = NetworkFitter if hidden else LinearFitter
    return kind(
        _rows(task), _rows(task, 40, seed=1), task, _settings(hidden, None, penalty=penalty), Silent()
    )


@pytest.mark.parametrize(
    ("hidden", "penalty"), [((), "l1"), ((), "features"), ((7,), "l1"), ((7,), "features"), ((7,), "neurons")]
)
def test_a_refit_moves_the_support_and_nothing_else(hidden: tuple[int, ...], penalty: str) -> None:
    fitter = _fitter(BINARY, hidden, penalty)
    fitter.fit_dense()
    fitter.settle(0.05)
    before = [w.clone() for w in _weights(fitter.model)]
    fitter.fit_support()
    after = _weights(fitter.model)
    assert all(torch.equal(a != 0, b != 0) for a, b in zip(before, after, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert any((a == 0).any() for a in before)


@pytest.mark.parametrize("hidden", [(), (7,)], ids=["linear", "network"])
def test_a_worse_refit_is_undone(hidden: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    fitter = _fitter(BINARY, hidden)
    fitter.fit_dense()
    fitter.settle(0.02)
    before = copy.deepcopy(fitter.model.state_dict())

    def worse(self: Fitter) -> None:
        with torch.no_grad():
            for p in self.model.parameters():
                p.mul_(-10.0)

    monkeypatch.setattr(type(fitter), "fit_support", worse)
    refit = fitter.choose_refit()
    assert not refit.used
    assert refit.valid_loss_refit > refit.valid_loss_penalised
    assert all(torch.equal(before[name], value) for name, value in fitter.model.state_dict().items())


@pytest.mark.parametrize("penalty", ["l1", "features", "neurons"])
@pytest.mark.parametrize("task", [REGRESSION, BINARY, THREE], ids=lambda t: t.kind)
def test_nothing_is_left_of_a_network_at_a_huge_strength(task: Task, penalty: str) -> None:
    fit = _fit(task, _settings((7,), 1e3, penalty=penalty, budget=replace(SHORT, settle=600)))
    assert _nonzero(fit.module) == 0
    assert not used_features(fit.module).any()
    x, y = _rows(task)
    output = fit.module(x.float()).detach().double()
    # What is left is the intercept, and it must be the right one: the base rate.
    if task.kind == "regression":
        assert float(output.mean()) == pytest.approx(float(y.mean()), abs=0.02)
    else:
        p = task.probabilities(output)[0]
        rates = torch.bincount(y.long(), minlength=len(p)) / len(y)
        torch.testing.assert_close(p, rates.double(), atol=0.02, rtol=0)


@pytest.mark.parametrize("penalty", ["l1", "features"])
def test_nothing_is_left_of_a_linear_model_at_a_huge_strength(penalty: str) -> None:
    _, y = _rows(REGRESSION)
    fit = _fit(REGRESSION, _settings((), 1e3, penalty=penalty))
    assert _nonzero(fit.module) == 0
    assert fit.module.bias.item() == pytest.approx(float(y.mean()), abs=1e-6)


@pytest.mark.parametrize("hidden", [(), (7,)], ids=["linear", "network"])
def test_no_strength_leaves_a_dense_net(hidden: tuple[int, ...]) -> None:
    fit = _fit(BINARY, _settings(hidden, 0.0))
    assert all((w != 0).all() for w in _weights(fit.module))
    assert all((w != 0).all() for w in _weights(fit.dense))


@pytest.mark.parametrize("hidden", [(), (7,)], ids=["linear", "network"])
@pytest.mark.parametrize("strength", [None, 0.02])
def test_a_fit_is_a_function_of_its_seed_alone(hidden: tuple[int, ...], strength: float | None) -> None:
    settings = _settings(hidden, strength, batch_size=32, seed=3)
    first = _fit(BINARY, settings)
    torch.manual_seed(987)
    np.random.seed(987)
    state = torch.get_rng_state()
    second = _fit(BINARY, settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b) for a, b in zip(_weights(first.module), _weights(second.module), strict=True)
    )
    if hidden:
        other = _fit(BINARY, replace(settings, seed=4))
        assert not torch.equal(_weights(first.dense)[0], _weights(other.dense)[0])


class _Counted:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.stages: list[list] = []

    def stage(self, name: str, total: int) -> None:
        self.stages.append([name, total, 0])

    def advance(self, n: int = 1) -> None:
        self.stages[-1][2] += n


@pytest.mark.parametrize("hidden", [(), (7,)], ids=["linear", "network"])
@pytest.mark.parametrize("strength", [None, 0.02])
def test_every_stage_is_told_to_its_end(hidden: tuple[int, ...], strength: float | None) -> None:
    told = _Counted()
    fit_mlp(_rows(BINARY), _rows(BINARY, 40, seed=1), BINARY, _settings(hidden, strength), told)
    assert len(told.stages) == (4 if strength is None else 2)
    assert len({name for name, _, _ in told.stages}) == len(told.stages)
    assert all(total > 0 and done == total for _, total, done in told.stages)


@pytest.mark.parametrize("strength", [None, 0.1])
@pytest.mark.parametrize(("hidden", "size"), [((), 1e200), ((7,), 1e36)], ids=["linear", "network"])
def test_values_too_large_to_compute_with_raise(
    hidden: tuple[int, ...], size: float, strength: float | None
) -> None:
    x, y = _rows(REGRESSION)
    rows = (x * size, y * size)
    with pytest.raises(InputError, match=r"diverged|not finite"):
        fit_mlp(rows, rows, REGRESSION, _settings(hidden, strength))


@pytest.mark.parametrize("hidden", [(), (7,)], ids=["linear", "network"])
def test_a_target_without_variation_is_no_trouble(hidden: tuple[int, ...]) -> None:
    x, _ = _rows(REGRESSION)
    rows = (x, torch.full((80,), 3.0))
    fit = fit_mlp(rows, rows, REGRESSION, _settings(hidden, None))
    torch.testing.assert_close(
        fit.module(x.to(next(fit.module.parameters()).dtype)).double(),
        torch.full((80, 1), 3.0).double(),
        atol=0.05,
        rtol=0,
    )


def test_choosing_a_strength_needs_validation_rows() -> None:
    with pytest.raises(InputError, match="validation rows"):
        fit_mlp(_rows(BINARY), None, BINARY, _settings((7,), None))


def test_the_dense_net_plays_no_part_in_what_is_returned() -> None:
    fit = _fit(BINARY, _settings((7,), 0.05))
    assert not fit.module.training
    assert not fit.dense.training
    kept = fit.dense.state_dict()["output.weight"].clone()
    with torch.no_grad():
        fit.module.output.weight.zero_()
    assert torch.equal(fit.dense.state_dict()["output.weight"], kept)
    assert _nonzero(fit.dense) == sum(w.numel() for w in _weights(fit.dense))
