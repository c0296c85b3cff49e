"""The evidence of dead weights, against the same walk in plain Python, and what it promises under noise."""

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import torchlasso as tl
from torchlasso.optim.evidence import ALIVE, begin, is_alive, narrowed, step_with_evidence, widened
from torchlasso.optim.kernels import library
from torchlasso.penalties.base import Penalty
from torchlasso.prox import Kink


@pytest.fixture(params=["library", "torch"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the C library, and without it as on a machine that has no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(library, "_load", lambda: "switched off")
    elif not library.available():
        pytest.skip(library.why_not())
    return str(request.param)


def model_of(*values: float, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Parameter]:
    model = nn.Module()
    w = nn.Parameter(torch.tensor([values], dtype=dtype))
    model.register_parameter("w", w)
    return model, w


def step(optimizer: torch.optim.Optimizer, w: nn.Parameter, grads: Sequence[float]) -> None:
    w.grad = torch.tensor([grads], dtype=w.dtype)
    optimizer.step()


# ---- the same walk, one number after the other ---------------------------------------------------------


def soft(x: float, t: float) -> float:
    return math.copysign(max(abs(x) - t, 0.0), x)


class Walk:
    """One weight under SGD in plain Python: a dead one counts units of the strength in ``evidence``."""

    def __init__(self, w: float, lr: float, memory: int, *, ridge: float = 0.0, nonnegative: bool = False):
        self.w, self.lr, self.most, self.ridge, self.nonnegative = w, lr, memory, ridge, nonnegative
        self.evidence: float | None = None
        self.side, self.steps, self.deaths, self.returns = math.copysign(1.0, w), 0, 0, 0
        self.edge = 1.0

    def step(self, grad: float, strength: float) -> None:
        self.steps += 1
        edge = float(min(self.most, self.steps))
        if self.evidence is not None:
            self.evidence *= edge / self.edge  # what was nearly enough is nearly enough when N changes
        self.edge = edge
        if self.evidence is None:
            self._alive(grad, strength)
        elif strength == 0:
            self.w, self.evidence = self._shrunk(-self.lr * grad, 0.0), None
            self.side = math.copysign(1.0, self.w if self.w else self.side)
        else:
            self._dead(grad, strength)

    def _shrunk(self, moved: float, t: float) -> float:
        kept = max(moved - t, 0.0) if self.nonnegative else soft(moved, t)
        return kept / (1 + self.lr * self.ridge)

    def _alive(self, grad: float, strength: float) -> None:
        t = self.lr * strength
        moved = self.w - self.lr * grad
        self.w = self._shrunk(moved, t)
        if self.w * self.side > 0 or strength == 0:
            self.side = math.copysign(1.0, self.w) if self.w else self.side
            return
        # It lacks a unit a step, and is inside the edge by what it lacks.
        lack = 1 - self.side * moved / t
        self.evidence = self.side * min(max(self.edge - lack, -self.edge), self.edge)
        self.w = 0.0
        self.deaths += 1

    def _dead(self, grad: float, strength: float) -> None:
        assert self.evidence is not None
        units = self.evidence - grad / strength
        self.evidence = max(units - 1, 0.0) if self.nonnegative else soft(units, 1.0)
        beyond = abs(self.evidence) - self.edge
        if beyond > 0:
            self.w = math.copysign(beyond * self.lr * strength, self.evidence)
            self.side, self.evidence = math.copysign(1.0, self.w), None
            self.returns += 1


def noisy(seed: int, steps: int) -> list[float]:
    """Return gradients with a drift that changes sides, so that weights die and come back on both."""
    draw = random.Random(seed)
    return [draw.gauss(1.5 * math.sin(i / 40), 2.0) for i in range(steps)]


@pytest.mark.parametrize("memory", [1, 5, 20])
@pytest.mark.parametrize("kind", ["lasso", "ridge", "nonnegative", "weighted"])
def test_a_weight_walks_as_in_plain_python(arithmetic: str, kind: str, memory: int) -> None:
    penalties: dict[str, Penalty] = {
        "lasso": tl.L1(0.7),
        "ridge": tl.ElasticNet(1.4),
        "nonnegative": tl.L1(0.7, nonnegative=True),
        "weighted": tl.L1(0.35, weights=torch.tensor([[2.0]])),
    }
    model, w = model_of(0.3)
    optimizer = SGD([w], lr=0.05)
    tl.attach(optimizer, tl.Regularizer(model, {w: penalties[kind]}), memory=memory)
    walk = Walk(0.3, 0.05, memory, ridge=0.7 if kind == "ridge" else 0.0, nonnegative=kind == "nonnegative")
    for grad in noisy(3, 400):
        step(optimizer, w, [grad])
        walk.step(grad, 0.7)
        assert w.item() == pytest.approx(walk.w, abs=1e-12)
        assert (w.item() == 0) == (walk.w == 0)
    assert walk.deaths > 2
    assert walk.returns > 1


def test_a_strength_that_comes_and_goes(arithmetic: str) -> None:
    """Before it comes nothing is held, and once it is gone a dead weight moves freely, at either sign."""

    def strength(step: int) -> float:
        return 0.7 if 50 <= step < 300 else 0.0

    model, w = model_of(-0.1)
    optimizer = SGD([w], lr=0.05)
    tl.attach(optimizer, tl.Regularizer(model, {w: tl.L1(strength)}), memory=10)
    walk = Walk(-0.1, 0.05, 10)
    for number, grad in enumerate(noisy(5, 400)):
        if number == 299:
            walk_was_dead = walk.evidence is not None
        step(optimizer, w, [grad])
        walk.step(grad, strength(number))
        assert w.item() == pytest.approx(walk.w, abs=1e-12)
    assert walk_was_dead
    assert walk.deaths > 2
    assert w.item() != 0


def test_a_group_walks_as_one(arithmetic: str) -> None:
    """The norm of the summed gradients decides, and the group comes back along their direction."""
    model, w = model_of(0.3, -0.2)
    optimizer = SGD([w], lr=0.05)
    tl.attach(optimizer, tl.Regularizer(model, {w: tl.GroupLasso(0.7, weights=None)}), memory=8)
    x, q, edge, deaths, returns = np.array([0.3, -0.2]), None, 1.0, 0, 0
    draw = np.random.default_rng(1)
    for number in range(500):
        drift = np.array([math.sin(number / 30), math.cos(number / 50)])
        grad = draw.normal(size=2) * 1.5 + 1.2 * drift + 2.0 * x
        step(optimizer, w, grad.tolist())
        before, edge = edge, float(min(8, number + 1))
        if q is None:
            moved = x - 0.05 * grad
            norm = np.linalg.norm(moved) / 0.035
            x = moved * max(1 - 1 / norm, 0.0)
            if norm <= 1:
                q, deaths = moved / 0.035 / norm * min(max(edge - (1 - norm), 0.0), edge), deaths + 1
        else:
            q = q * edge / before - grad / 0.7
            q = q * max(1 - 1 / np.linalg.norm(q), 0.0)
            norm = np.linalg.norm(q)
            if norm > edge:
                x, q, returns = q / norm * (norm - edge) * 0.035, None, returns + 1
        np.testing.assert_allclose(w.detach().numpy()[0], x, atol=1e-12)
    assert deaths > 2
    assert returns > 2


# ---- weights that are held or free ------------------------------------------------------------------------


def test_excluded_weights_never_return_and_kept_ones_never_die(arithmetic: str) -> None:
    model, w = model_of(0.5, 0.5, 0.5)
    optimizer = SGD([w], lr=0.1)
    c = torch.tensor([math.inf, 0.0, 1.0])
    tl.attach(optimizer, tl.Regularizer(model, {w: tl.L1(0.5, weights=c)}), memory=5)
    free = 0.5
    for number in range(200):
        grad = math.sin(number / 7) * 3
        step(optimizer, w, [grad, grad, grad])
        free -= 0.1 * grad
        assert w[0, 0].item() == 0
        assert w[0, 1].item() == pytest.approx(free, abs=1e-12)


def test_excluded_groups_never_return_and_kept_ones_never_die() -> None:
    model = nn.Module()
    w = nn.Parameter(torch.full((3, 2), 0.5, dtype=torch.float64))
    model.register_parameter("w", w)
    optimizer = SGD([w], lr=0.1)
    c = torch.tensor([math.inf, 0.0, 1.0])
    tl.attach(optimizer, tl.Regularizer(model, {w: tl.GroupLasso(0.5, weights=c)}), memory=5)
    free = 0.5
    for number in range(200):
        grad = math.sin(number / 7) * 3
        w.grad = torch.full_like(w, grad)
        optimizer.step()
        free -= 0.1 * grad
        assert not w[0].any()
        assert w[1, 0].item() == pytest.approx(free, abs=1e-12)


def test_with_lr_zero_the_evidence_stands_still(arithmetic: str) -> None:
    model, w = model_of(0.01, 0.9)
    optimizer = SGD([w], lr=0.1)
    handle = tl.attach(optimizer, tl.Regularizer(model, {w: tl.L1(1.0)}), memory=10)
    step(optimizer, w, [0.0, 0.0])
    assert (w[0, 0].item(), w[0, 1].item()) == (0.0, pytest.approx(0.8))
    before = handle.saved()["evidence"][0].clone(), w.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(50):
        step(optimizer, w, [-5.0, -5.0])
    assert torch.equal(w, before[1])
    assert torch.equal(handle.saved()["evidence"][0], before[0])


@pytest.mark.parametrize("penalty", [tl.L1(1.0), tl.ElasticNet(1.0), tl.GroupLasso(1.0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_dead_weight_shows_that_the_run_diverged(arithmetic: str, penalty: Penalty, bad: float) -> None:
    model, w = model_of(0.01, 0.01)
    optimizer = SGD([w], lr=0.1)
    tl.attach(optimizer, tl.Regularizer(model, {w: penalty}), memory=10)
    for _ in range(3):
        step(optimizer, w, [0.0, 0.0])
    assert not w.any()
    step(optimizer, w, [bad, bad])
    assert not w.isfinite().any()


def test_a_memory_of_zero_is_the_plain_proximal_step(arithmetic: str) -> None:
    model, w = model_of(0.3, -2.0, 0.01)
    optimizer = SGD([w], lr=0.05)
    handle = tl.attach(optimizer, tl.Regularizer(model, {w: tl.L1(0.7)}), memory=0)
    plain = [0.3, -2.0, 0.01]
    for grad in noisy(7, 100):
        step(optimizer, w, [grad, -grad, 2 * grad])
        plain = [soft(x - 0.05 * g, 0.05 * 0.7) for x, g in zip(plain, (grad, -grad, 2 * grad), strict=True)]
        assert w.detach()[0].tolist() == pytest.approx(plain, abs=1e-12)
    assert handle.saved()["evidence"] == {}


# ---- what it is for ---------------------------------------------------------------------------------------


def returns_under_noise(memory: float, size: float, drift: float, steps: int, count: int = 20_000) -> Tensor:
    """Return after how many steps dead weights came back; ``steps`` for those that did not.

    Gradients are in units of the strength.
    """
    kink = Kink(1.0)
    evidence = torch.zeros(count)
    first = torch.full((count,), float(steps))
    zero = torch.zeros(count)
    for number in range(steps):
        moved = -(drift + size * torch.randn(count)) * 0.1
        w, evidence = step_with_evidence(moved, tl.L1(1.0).prox(moved, 0.1), kink, evidence, 0.1, memory)
        back = is_alive(evidence)
        first = torch.where(back & (first == steps), float(number), first)
        assert torch.equal(w != 0, back)
        evidence = torch.where(back, zero, evidence)  # held dead, to count on
    return first


def test_noise_revives_as_seldom_as_stated() -> None:
    """With noise of s strengths, each N more divides the false returns by ``exp(2N/s²)``."""
    size, steps = 4.0, 400
    rates = []
    for memory in (20.0, 36.0, 52.0):
        hit = float((returns_under_noise(memory, size, 0.0, steps) < steps).double().mean())
        rates.append(-math.log1p(-hit) / steps)
    stated = math.exp(-2 * 16 / size**2)
    assert rates[1] / rates[0] == pytest.approx(stated, rel=0.4)
    assert rates[2] / rates[1] == pytest.approx(stated, rel=0.4)
    # And in absolute terms: the chance of an excursion, of which there is less than one in two steps.
    assert rates[2] < math.exp(-2 * 52.0 / size**2)


def test_a_drift_beyond_the_strength_always_returns_and_one_below_hardly_ever() -> None:
    """The sum grows by what is beyond the strength: N/0.5 steps on average for 1.5 strengths."""
    above = returns_under_noise(64.0, 2.0, -1.5, 600, 2_000)
    assert (above < 600).all()
    assert float(above.mean()) == pytest.approx(64 / 0.5, rel=0.15)
    below = returns_under_noise(64.0, 2.0, -0.5, 600, 2_000)
    assert float((below < 600).double().mean()) < 0.001


def test_the_automatic_memory_is_sixteen_times_the_noise_over_strength_squared(arithmetic: str) -> None:
    """Measured by what it does: dead weights under noise of 3 strengths weigh some 144 steps."""
    torch.manual_seed(1)
    model = nn.Module()
    w = nn.Parameter(torch.zeros(4_000))
    model.register_parameter("w", w)
    optimizer = SGD([w], lr=0.1)
    handle = tl.attach(optimizer, tl.Regularizer(model, {w: tl.L1(0.5)}))
    for _ in range(1000):
        w.grad = 1.5 * torch.randn_like(w)
        optimizer.step()
    assert handle.saved()["noise"]["w"] == pytest.approx(9.0, rel=0.1)
    assert float((w != 0).double().mean()) < 1e-3  # exp(−2·144/9) is 1e-14
    # A drift of two strengths gains one unit a step, from somewhere within the noise of zero.
    steps = 0
    while float((w != 0).double().mean()) < 0.5 and steps < 300:
        w.grad = 1.5 * torch.randn_like(w) - 1.0
        optimizer.step()
        steps += 1
    assert 100 < steps < 190


# ---- half precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["auto", 0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_thresholds_far_below_the_spacing_add_up(arithmetic: str, dtype: torch.dtype, memory: Any) -> None:
    """0.01 − 800 · 1e-6 in numbers that are 6e-5 (float16: 8e-6) apart, and later an exact zero."""
    model, w = model_of(0.01, -0.01, 0.5, dtype=dtype)
    optimizer = SGD([w], lr=1e-3)
    tl.attach(optimizer, tl.Regularizer(model, {w: tl.L1(1e-3)}), memory=memory)
    first = w.detach().double()[0]
    spacing = torch.finfo(dtype).eps * 2.0**-7
    for _ in range(800):
        step(optimizer, w, [0.0, 0.0, 0.0])
    assert w[0, 0].item() == pytest.approx(float(first[0]) - 8e-4, abs=spacing)
    assert w[0, 1].item() == pytest.approx(float(first[1]) + 8e-4, abs=spacing)
    assert w[0, 2].item() == pytest.approx(0.4992, abs=torch.finfo(dtype).eps * 0.5)
    optimizer.param_groups[0]["lr"] = 5e-2
    for _ in range(200):
        step(optimizer, w, [0.0, 0.0, 0.0])
    assert w[0, :2].tolist() == [0.0, 0.0]
    assert w.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_what_is_left_of_it_are_the_number(dtype: torch.dtype) -> None:
    wide = torch.cat([torch.randn(1000) * 10.0**e for e in (-6, -3, 0, 3)])
    evidence = begin(wide)
    w, evidence = narrowed(wide, evidence, dtype)
    assert torch.equal(w, wide.to(dtype))
    torch.testing.assert_close(widened(w, evidence), wide, rtol=1e-6, atol=1e-9)
    assert (evidence.abs() >= ALIVE - 1).all()  # never taken for a dead one


@pytest.mark.skipif(not library.available(), reason="the whole step in float32 needs the C library")
@pytest.mark.parametrize("memory", ["auto", 0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_proxadamw_keeps_updates_that_half_precision_would_lose(dtype: torch.dtype, memory: Any) -> None:
    """1,000 steps of 1e-5 at 0.5: torch's own AdamW has not moved by then."""
    ends = []
    for strength, proximal in ((0.0, True), (0.0, False), (2.0, True)):
        model, w = model_of(0.5, -0.5, dtype=dtype)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW([w], lr=1e-5, weight_decay=0.0)
        if proximal:
            regularizer = tl.Regularizer(model, {w: tl.L1(strength)})
            optimizer = tl.optim.ProxAdamW([w], regularizer, lr=1e-5, weight_decay=0.0, memory=memory)
        for _ in range(1000):
            step(optimizer, w, [1.0, 1.0])
        ends.append(w.detach().double()[0].tolist())
    spacing = torch.finfo(dtype).eps / 2
    assert ends[0] == pytest.approx([0.49, -0.51], abs=spacing)
    assert ends[1] == [0.5, -0.5]
    assert ends[2] == pytest.approx([0.47, -0.49], abs=spacing)  # D = lr/√v̂ = lr, so 2·lr more a step
