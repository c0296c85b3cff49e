"""Dual averaging: the right zeros from noisy gradients, by the formulas of the papers."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import torchlasso as tl
from tests.oracles.cases import Problem, problems
from torchlasso.errors import InputError
from torchlasso.optim.averaging import DualAveraging
from torchlasso.penalties.base import Penalty
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Member, Term
from torchlasso.training import Batches, constant, cosine, solve_linear, train

METHODS = ("ftrl-proximal", "rda")
each_method = pytest.mark.parametrize("method", METHODS)


def _data(rows: int = 200) -> tuple[Tensor, Tensor]:
    """Return rows of 8 features of which the first 3 matter."""
    x = torch.randn(rows, 8, dtype=torch.float64)
    y = x[:, :3] @ torch.tensor([[3.0], [-2.0], [1.5]], dtype=torch.float64)
    return x, y + 0.5 * torch.randn(rows, 1, dtype=torch.float64)


def _step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(nn.functional.mse_loss(model(x), y))
    optimizer.step()


# ---- the iterates are those of the papers ------------------------------------------------------------


def _mcmahan(gradients: list[np.ndarray], alpha: float, beta: float, l1: float) -> list[np.ndarray]:
    """Return the weights by Algorithm 1 of McMahan et al. 2013, from 0, with λ₁ growing by l1 a step."""
    z = n = w = np.zeros_like(gradients[0])
    weights = []
    for t, g in enumerate(gradients, start=1):
        sigma = (np.sqrt(n + g**2) - np.sqrt(n)) / alpha
        z, n = z + g - sigma * w, n + g**2
        rate = (beta + np.sqrt(n)) / alpha
        w = np.where(np.abs(z) <= t * l1, 0.0, -(z - np.sign(z) * t * l1) / rate)
        weights.append(w)
    return weights


def _xiao(gradients: list[np.ndarray], gamma: float, l1: float) -> list[np.ndarray]:
    """Return the weights by equation 10 of Xiao 2010, from 0: ``−(√t/γ)(ḡ − λ·sign(ḡ))`` or 0."""
    weights = []
    for t in range(1, len(gradients) + 1):
        mean = np.mean(gradients[:t], axis=0)
        shrunk = mean - l1 * np.sign(mean)
        weights.append(np.where(np.abs(mean) <= l1, 0.0, -np.sqrt(t) / gamma * shrunk))
    return weights


def _given_gradients(
    gradients: list[np.ndarray], method: str, lr: float, beta: float, l1: float
) -> list[np.ndarray]:
    model = nn.Linear(gradients[0].size, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    regularizer = Regularizer(model, tl.L1(l1))
    optimizer = DualAveraging(model.parameters(), regularizer, lr=lr, method=method, beta=beta)
    weights = []
    for g in gradients:
        model.weight.grad = torch.tensor(g)[None]
        optimizer.step()
        weights.append(model.weight.detach().numpy()[0].copy())
    return weights


@each_method
def test_the_weights_are_those_of_the_published_algorithms(method: str) -> None:
    rng = np.random.default_rng(0)
    gradients = list(0.3 * rng.normal(size=(40, 12)) + np.linspace(-0.6, 0.6, 12))
    ours = _given_gradients(gradients, method, lr=0.7, beta=0.4, l1=0.2)
    theirs = _xiao(gradients, 1 / 0.7, 0.2) if method == "rda" else _mcmahan(gradients, 0.7, 0.4, 0.2)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert 0 < np.count_nonzero(ours[-1]) < 12


PENALTIES: dict[str, Callable[[], Penalty]] = {
    "l1": lambda: tl.L1(0.4),
    "nonnegative": lambda: tl.L1(0.1, nonnegative=True),
    "elastic net": lambda: tl.ElasticNet(0.4),
    "rows": lambda: tl.GroupLasso(0.3, groups="rows"),
    "columns": lambda: tl.GroupLasso(0.3, groups="columns"),
}


@each_method
@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_step_minimises_the_stated_objective(method: str, penalty: str) -> None:
    """By its optimality condition: the gradient of the smooth part, against ``t`` times the penalty."""
    model = nn.Linear(6, 3, bias=False, dtype=torch.float64)
    regularizer = Regularizer(model, PENALTIES[penalty]())
    optimizer = DualAveraging(model.parameters(), regularizer, lr=0.5, method=method)
    start, total = model.weight.detach().clone(), torch.zeros(3, 6, dtype=torch.float64)
    squares, before = torch.zeros_like(total), torch.zeros_like(total)  # Σg² and 1/s of the step before
    weighted = torch.zeros_like(total)  # Σ_τ (1/s_τ − 1/s_{τ−1})·w_τ
    for t in range(1, 21):
        w = model.weight.detach().clone()
        g = torch.randn(3, 6, dtype=torch.float64) * 0.5 + 0.3
        g[1] *= 0.1
        total, squares = total + g, squares + g**2
        if method == "rda":
            precision, centred = torch.full_like(w, math.sqrt(t) / 0.5), math.sqrt(t) / 0.5 * start
        else:
            precision = (1 + squares.sqrt()) / 0.5
            weighted, before = weighted + (precision - before) * w, precision
            centred = weighted
        model.weight.grad = g
        optimizer.step()
        smooth = total + precision * model.weight.detach() - centred
        term = regularizer.with_strength(t * regularizer.terms[0].penalty.current_strength).terms[0]
        assert float(term.penalty.residual(model.weight.detach(), smooth).max()) < 1e-8
    assert tl.sparsity(model).total > 0


@each_method
def test_a_joint_group_is_one_group(method: str) -> None:
    """The same numbers as when its members are the columns of one matrix."""
    whole = nn.Linear(5, 4, bias=False, dtype=torch.float64)
    a = nn.Parameter(whole.weight.detach()[:, :3].clone())
    b = nn.Parameter(whole.weight.detach()[:, 3:].T.clone())
    joint = Term(tl.GroupLasso(0.3), (Member("a", a), Member("b", b, dim=1)))
    one = DualAveraging(
        whole.parameters(), Regularizer(whole, tl.GroupLasso(0.3)), lr=0.5, method=method, beta=0.5
    )
    two = DualAveraging([a, b], Regularizer.from_terms([joint]), lr=0.5, method=method, beta=0.5)
    for _ in range(20):
        g = torch.randn(4, 5, dtype=torch.float64) * torch.tensor([[0.1], [0.5], [1.0], [2.0]]).double()
        whole.weight.grad, a.grad, b.grad = g, g[:, :3].clone(), g[:, 3:].T.clone()
        one.step()
        two.step()
        assert torch.allclose(torch.cat([a, b.T], dim=1), whole.weight, atol=1e-10)
    dead = (whole.weight == 0).all(dim=1)
    assert 0 < int(dead.sum()) < 4


def test_without_a_penalty_ftrl_proximal_is_adagrad() -> None:
    x, y = _data()
    model = nn.Linear(8, 1, dtype=torch.float64)
    other = copy.deepcopy(model)
    regularizer = Regularizer(model, {"weight": tl.L1(0.0)})
    optimizer = DualAveraging(model.parameters(), regularizer, lr=0.7, beta=0.5)
    plain = Adagrad(other.parameters(), lr=0.7, eps=0.5)
    for rows in range(0, 200, 5):
        _step(model, optimizer, x[rows : rows + 5], y[rows : rows + 5])
        _step(other, plain, x[rows : rows + 5], y[rows : rows + 5])
    assert torch.allclose(model.weight, other.weight, atol=1e-12)
    assert torch.allclose(model.bias, other.bias, atol=1e-12)


# ---- the right zeros under noise -------------------------------------------------------------------------


def _digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    x = torch.tensor(bunch.data)
    scale = x.std(dim=0, correction=0)
    return (x - x.mean(dim=0)) / torch.where(scale > 0, scale, 1.0), torch.tensor(bunch.target)


@pytest.fixture(scope="module")
def digits_optimum() -> tuple[float, float, Tensor]:
    """The strength, the smallest objective and its support, by the exact solver in float64."""
    x, y = _digits()
    model = nn.Linear(64, 10, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    loss = nn.functional.cross_entropy(model(x), y)
    strength = 0.1 * tl.L1(1.0).strength_max(torch.autograd.grad(loss, model.weight)[0])
    regularizer = Regularizer(model, tl.L1(strength))
    solve_linear(model, regularizer, nn.functional.cross_entropy, x, y, tolerance=1e-7, max_iterations=20_000)
    objective = nn.functional.cross_entropy(model(x), y) + regularizer()
    return strength, float(objective.detach()), model.weight.detach() != 0


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("decay", [constant, cosine])
def test_minibatches_find_the_support_of_the_digits(
    digits_optimum: tuple[float, float, Tensor], seed: int, decay: Callable[[float], float]
) -> None:
    strength, objective, support = digits_optimum
    x, y = _digits()
    torch.manual_seed(seed)
    model = nn.Linear(64, 10)
    optimizer = DualAveraging(model.parameters(), Regularizer(model, tl.L1(strength)))
    stream = Batches(x.float(), y, 128, seed=seed).stream()
    loss_fn = nn.functional.cross_entropy
    train(model, loss_fn, stream, optimizer, steps=1400, decay=decay)
    model.double()
    reached = float((loss_fn(model(x), y) + Regularizer(model, tl.L1(strength))()).detach())
    found = model.weight.detach() != 0
    assert int((found != support).sum()) <= 0.1 * int(support.sum())
    assert reached - objective <= 1e-3 * objective


def _stream(seed: int) -> tuple[Tensor, Tensor]:
    """Return 20,000 rows of 100 features; the first 10 decide a label by a logistic model."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20_000, 100, generator=generator)
    w = torch.linspace(0.5, 1.0, 10) * torch.tensor([1.0, -1.0]).repeat(5)
    y = torch.rand(20_000, generator=generator) < torch.sigmoid(x[:, :10] @ w)
    return x, y.float()[:, None]


def _one_pass(build: Callable[[nn.Module, Regularizer], tuple[Optimizer, Any]], seed: int) -> Tensor:
    """Return which weights are not zero after one pass in batches of 10."""
    x, y = _stream(seed)
    model = nn.Linear(100, 1)
    nn.init.zeros_(model.weight)
    optimizer, schedule = build(model, Regularizer(model, tl.L1(0.03)))
    for inputs, target in zip(x.split(10), y.split(10), strict=True):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(model(inputs), target))
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return model.weight.detach()[0] != 0


def _ftrl_proximal(model: nn.Module, regularizer: Regularizer) -> tuple[Optimizer, Any]:
    return DualAveraging(model.parameters(), regularizer), None


def _rda(model: nn.Module, regularizer: Regularizer) -> tuple[Optimizer, Any]:
    return DualAveraging(model.parameters(), regularizer, method="rda"), None


def _prox_sgd(model: nn.Module, regularizer: Regularizer) -> tuple[Optimizer, Any]:
    optimizer = SGD(model.parameters(), lr=1.0)
    tl.attach(optimizer, regularizer, memory=0)
    return optimizer, LambdaLR(optimizer, lambda step: 1 / math.sqrt(step + 1))


@pytest.mark.parametrize("seed", [0, 1])
def test_one_pass_over_a_stream_finds_the_true_features(seed: int) -> None:
    truth = torch.arange(100) < 10
    assert torch.equal(_one_pass(_ftrl_proximal, seed), truth)
    assert torch.equal(_one_pass(_rda, seed), truth)
    last = _one_pass(_prox_sgd, seed)
    assert int((last != truth).sum()) > 50


@each_method
def test_a_net_starts_from_its_initial_weights_and_learns(method: str) -> None:
    """A quadratic centred at 0 would hold both layers at zero, where no gradient flows."""
    x, y = _digits()
    x = x.float()
    model = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = DualAveraging(
        model.parameters(),
        Regularizer(model, tl.L1(3e-3)),
        lr=3.0 if method == "rda" else 1.0,
        method=method,
    )
    train(model, nn.functional.cross_entropy, Batches(x[:1200], y[:1200], 64).stream(), optimizer, steps=700)
    accuracy = float((model(x[1200:]).argmax(dim=1) == y[1200:]).float().mean())
    assert accuracy > 0.88
    assert tl.sparsity(model).total > 0.6


@pytest.mark.parametrize("problem", [p for p in problems() if p.fraction == 0.1], ids=lambda p: p.name)
def test_full_batches_reach_the_reference_optima(problem: Problem) -> None:
    model = problem.model()
    lr = 300.0 if "diabetes" in problem.name else 3.0  # the targets of diabetes are in the hundreds
    optimizer = DualAveraging(model.parameters(), Regularizer(model, problem.penalty), lr=lr)
    for step in range(1, 2001):
        optimizer.zero_grad()
        torch.autograd.backward(problem.loss(model))
        optimizer.step()
        if step % 200 == 0 and abs(problem.excess(model)) <= 1e-7 and problem.same_support(model):
            break
    assert abs(problem.excess(model)) <= 1e-6
    assert problem.same_support(model)


@pytest.mark.parametrize(
    "problem",
    [p for p in problems() if p.name.startswith("multinomial") and p.fraction == 0.5],
    ids=lambda p: p.name,
)
def test_rda_nears_the_reference_optima(problem: Problem) -> None:
    model = problem.model()
    optimizer = DualAveraging(model.parameters(), Regularizer(model, problem.penalty), lr=10.0, method="rda")
    for _ in range(500):
        optimizer.zero_grad()
        torch.autograd.backward(problem.loss(model))
        optimizer.step()
    assert abs(problem.excess(model)) <= 1e-4
    assert problem.same_support(model)


# ---- a torch optimizer ------------------------------------------------------------------------------------


def _session(
    method: str, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, DualAveraging, Callable[..., None]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)).to(dtype)
    rules: dict[Any, Any] = {"0.weight": tl.GroupLasso(0.02, groups="columns"), "2.weight": tl.L1(0.01)}
    optimizer = DualAveraging(model.parameters(), Regularizer(model, rules), lr=0.2, method=method)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 8, generator=generator).to(dtype)
    y = (x[:, :1] - x[:, 1:2]).relu()

    def run(model: nn.Module, optimizer: Optimizer, start: int, stop: int) -> None:
        for step in range(start, stop):
            rows = slice(step % 20 * 10, step % 20 * 10 + 10)
            _step(model, optimizer, x[rows], y[rows])

    return model, optimizer, run


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@each_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_hundred_steps_are_fifty_and_fifty_after_a_reload_to_the_last_bit(
    method: str, dtype: torch.dtype
) -> None:
    whole, optimizer, run = _session(method, 0, dtype)
    run(whole, optimizer, 0, 100)
    first, optimizer, run = _session(method, 0, dtype)
    run(first, optimizer, 0, 50)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, optimizer, run = _session(method, 99, dtype)
    optimizer.load_state_dict(saved["optimizer"])
    second.load_state_dict(saved["model"])
    run(second, optimizer, 50, 100)
    assert _same(whole, second)
    assert not _same(whole, first)
    assert 0 < tl.sparsity(whole).total < 1


def test_two_instances_that_loaded_one_state_do_not_share_it() -> None:
    model, optimizer, run = _session("ftrl-proximal", 0)
    run(model, optimizer, 0, 5)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved["state"])
    other, second, run = _session("ftrl-proximal", 1)
    second.load_state_dict(saved)
    run(other, second, 0, 5)
    for number, state in before.items():
        assert torch.equal(state["square_sum"], saved["state"][number]["square_sum"])


@each_method
@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_alike_and_alone(method: str, how: Callable[[Any], Any]) -> None:
    model, optimizer, run = _session(method, 0)
    run(model, optimizer, 0, 30)
    other, second = how((model, optimizer))
    held = copy.deepcopy(model)
    run(other, second, 30, 60)
    assert _same(model, held)
    run(model, optimizer, 30, 60)
    assert _same(model, other)
    assert not _same(model, held)


@each_method
def test_schedulers_closures_and_hooks_work_as_with_any_optimizer(method: str) -> None:
    x, y = _data()
    model = nn.Linear(8, 1, dtype=torch.float64)
    other = copy.deepcopy(model)
    optimizer, plain = (
        DualAveraging(m.parameters(), Regularizer(m, tl.L1(0.4)), lr=0.1, method=method)
        for m in (model, other)
    )
    schedule, same = CosineAnnealingLR(optimizer, 20), CosineAnnealingLR(plain, 20)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))

    def closure() -> float:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        torch.autograd.backward(loss)
        return float(loss.detach())

    for _ in range(10):
        assert optimizer.step(closure) is not None
        schedule.step()
        _step(other, plain, x, y)
        same.step()
    assert isinstance(optimizer, Optimizer)
    assert _same(model, other)
    assert len(calls) == 10
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@each_method
def test_a_step_that_a_scaler_skips_changes_nothing(method: str) -> None:
    model, optimizer, run = _session(method, 0, torch.float32)
    run(model, optimizer, 0, 3)
    before, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict()["state"])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaled = scaler.scale(model(torch.full((2, 8), torch.inf)).sum())
    optimizer.zero_grad()
    torch.autograd.backward(scaled)
    scaler.step(optimizer)
    scaler.update()
    assert _same(model, before)
    assert all(s["step"] == state[n]["step"] == 3 for n, s in optimizer.state_dict()["state"].items())


@each_method
def test_with_a_learning_rate_of_zero_nothing_moves_and_nothing_counts(method: str) -> None:
    model, optimizer, run = _session(method, 0)
    other, plain, _ = _session(method, 0)
    before = copy.deepcopy(model)
    optimizer.param_groups[0]["lr"] = 0.0
    run(model, optimizer, 0, 5)
    assert _same(model, before)
    optimizer.param_groups[0]["lr"] = 0.2
    run(model, optimizer, 5, 10)
    run(other, plain, 5, 10)
    assert _same(model, other)


@each_method
def test_parameters_without_a_gradient_stay_where_they_are(method: str) -> None:
    a, b, c = (nn.Parameter(torch.ones(2, n)) for n in (3, 2, 4))
    joint = Term(tl.GroupLasso(0.1, weights=None), (Member("a", a), Member("b", b)))
    optimizer = DualAveraging([a, b, c], Regularizer.from_terms([joint]), lr=0.1, method=method)
    a.grad = torch.zeros_like(a)
    optimizer.step()
    assert torch.equal(b, torch.ones(2, 2))
    assert torch.equal(c, torch.ones(2, 4))
    assert ((a < 1) & (a > 0)).all()
    assert set(optimizer.state) == {a}


def test_groups_have_their_own_rates_and_methods_and_can_come_later() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    terms = [Term(tl.L1(0.1), (Member("a", a),))]
    optimizer = DualAveraging([a], Regularizer.from_terms(terms), lr=0.5)
    optimizer.add_param_group({"params": [b], "lr": 0.25, "method": "rda"})
    a.grad, b.grad = torch.full((2,), 2.0), torch.full((2,), 2.0)
    optimizer.step()
    assert torch.allclose(a, torch.full((2,), 1 - (2 + 0.1) * 0.5 / (1 + 2)))
    assert torch.allclose(b, torch.full((2,), 1 - 2 * 0.25))


def test_sparse_gradients_lead_where_dense_ones_do() -> None:
    weights = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Embedding(10, 3, sparse=sparse)
        regularizer = Regularizer(model, {"weight": tl.GroupLasso(0.03)})
        optimizer = DualAveraging(model.parameters(), regularizer)
        for index in torch.randint(0, 5, (60, 4)):
            optimizer.zero_grad()
            torch.autograd.backward((model(index) - 1).square().mean())
            optimizer.step()
        weights.append(model.weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
    assert not weights[1][5:].any()  # never seen, so shrunk to zero
    assert weights[1][:5].all()


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_too_small_for_half_precision_add_up(method: str, dtype: torch.dtype) -> None:
    """One step would change 1 by 1e-4, which rounds to nothing."""
    model = nn.Linear(4, 1, bias=False, dtype=dtype)
    nn.init.ones_(model.weight)
    optimizer = DualAveraging(model.parameters(), Regularizer(model, tl.L1(0.1)), lr=1e-3, method=method)
    exact = copy.deepcopy(model).double()
    truth = DualAveraging(exact.parameters(), Regularizer(exact, tl.L1(0.1)), lr=1e-3, method=method)
    for _ in range(2000):
        model.weight.grad = torch.zeros_like(model.weight)
        exact.weight.grad = torch.zeros_like(exact.weight)
        optimizer.step()
        truth.step()
    assert float(exact.weight.detach().max()) < 0.999
    assert torch.equal(model.weight, exact.weight.to(dtype))
    state = optimizer.state[model.weight]
    assert all(v.dtype == torch.float32 for v in state.values() if isinstance(v, Tensor))


def test_float16_leaves_no_negative_zero() -> None:
    """The weight moves to −1e-9, which float16 cannot tell from zero."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float16)
    nn.init.zeros_(model.weight)
    optimizer = DualAveraging(model.parameters(), Regularizer(model, tl.L1(0.0)), lr=1e-9)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert model.weight.item() == 0
    assert not model.weight.signbit().any()


@each_method
def test_the_state_is_two_numbers_a_weight(method: str) -> None:
    model, optimizer, run = _session(method, 0)
    run(model, optimizer, 0, 1)
    for parameter in model.parameters():
        tensors = [v for v in optimizer.state[parameter].values() if isinstance(v, Tensor)]
        assert sum(v.numel() for v in tensors) == 2 * parameter.numel()


@each_method
def test_a_nan_gradient_is_not_hidden_by_a_zero(method: str) -> None:
    model, optimizer, _ = _session(method, 0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    optimizer.step()
    assert all(p.isnan().all() for p in model.parameters())


# ---- what is refused ---------------------------------------------------------------------------------------


def test_penalised_parameters_that_the_optimizer_does_not_hold_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"does not hold \['1.weight'\]"):
        DualAveraging(model[0].parameters(), Regularizer(model, tl.L1(0.1)))


def test_a_strength_by_step_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"\['weight'\] is a function of the step"):
        DualAveraging(model.parameters(), Regularizer(model, tl.L1(lambda step: 0.1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be finite and zero or more, got -1"),
        ({"lr": math.nan}, "lr must be finite"),
        ({"beta": 0.0}, "beta must be finite and more than zero"),
        ({"method": "ftrl"}, "method must be one of"),
    ],
)
def test_options_out_of_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match=message):
        DualAveraging(model.parameters(), Regularizer(model, tl.L1(0.1)), **options)


def test_complex_parameters_are_refused_and_nothing_is_left_behind() -> None:
    model = nn.Linear(2, 2)
    optimizer = DualAveraging(model.parameters(), Regularizer(model, tl.L1(0.1)))
    with pytest.raises(InputError, match="view_as_real"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1


def test_a_penalty_in_the_place_of_the_regularizer_is_refused() -> None:
    with pytest.raises(InputError, match="got L1"):
        DualAveraging(nn.Linear(2, 2).parameters(), tl.L1(0.1))  # type: ignore[arg-type]


def test_attach_refuses_what_shrinks_already() -> None:
    model = nn.Linear(2, 2)
    regularizer = Regularizer(model, tl.L1(0.1))
    with pytest.raises(InputError, match="DualAveraging has its own penalty"):
        tl.attach(DualAveraging(model.parameters(), regularizer), regularizer)
