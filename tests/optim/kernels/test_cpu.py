"""The C library computes what the torch reference computes, in every form of both steps."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from torchlasso.optim.kernels import reference
from torchlasso.optim.kernels.cpu import adam_step, sgd_step, shrink, shrink_adam
from torchlasso.optim.kernels.library import available, why_not
from torchlasso.optim.kernels.reference import Row
from torchlasso.optim.kernels.table import Table, wide_dtype

pytestmark = pytest.mark.skipif(not available(), reason=why_not())

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALF = (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
ADAM = {
    **{
        "lr": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "maximize": False,
        "amsgrad": False,
    }
}
SGD = {
    **{
        "lr": 1e-2,
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "maximize": False,
    }
}
EVIDENCE = Row(slope=0.3, limit=0.02, memory=10.0)


@dataclass
class Setting:
    """Weights of which half are dead or near zero, in the middle of a run."""

    dtype: torch.dtype
    row: Row
    group: dict[str, Any]
    shape: tuple[int, ...] = (1027,)
    evidence: bool = False
    frozen: bool = False
    scale: float = 1.0
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        w = torch.randn(self.shape, dtype=torch.float64) * torch.logspace(-4, 0, self.count).view(self.shape)
        dead = torch.rand(self.shape) < 0.4
        w = w.abs() if self.row.nonnegative else w
        self.w = torch.where(dead, 0.0, w).to(self.dtype)
        self.grad = torch.randn(self.shape, dtype=torch.float64).to(self.dtype)
        wide = wide_dtype(self.dtype)
        inside = torch.rand(self.shape) * 2.4 - 1.2
        rho = torch.where(dead, inside.clamp(-1, 1), torch.sign(w) * 4).to(wide)
        if self.dtype in HALF:
            rest = torch.rand(self.shape) - 0.5
            rho = torch.where(dead, rho, torch.copysign(4 + rest, rho))
        self.rho = rho if self.evidence else None

    @property
    def count(self) -> int:
        return torch.Size(self.shape).numel()

    def with_adam_state(self) -> "Setting":
        self.state = {
            "step": torch.tensor(7.0),
            "exp_avg": (torch.randn(self.shape) * 0.3).to(self.dtype),
            "exp_avg_sq": (torch.rand(self.shape) * 0.01).to(self.dtype),
        }
        if self.group["amsgrad"]:
            self.state["max_exp_avg_sq"] = (torch.rand(self.shape) * 0.01).to(self.dtype)
        return self

    def copy(self) -> "Setting":
        other = replace(self, state={k: v.clone() for k, v in self.state.items()})
        other.w, other.grad = self.w.clone(), self.grad.clone()
        other.rho = None if self.rho is None else self.rho.clone()
        return other

    def table(self) -> Table:
        table = Table([self.w], [0])
        table.point("g", [self.grad])
        for column in ("slope", "ridge", "knee", "epsilon", "limit", "memory", "nonnegative"):
            table.rows[column] = getattr(self.row, column)
        columns = {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq", "step": "step"}
        for column, key in columns.items():
            assert table.point(column, [self.state.get(key)]) == []
        assert table.point("rho", [self.rho]) == []
        assert table.point("c", [self.row.c]) == []
        return table


def agree(got: Setting, wanted: Setting) -> None:
    tolerance = TOLERANCE[got.dtype]
    scale = float(wanted.w.abs().max()) if wanted.count else 1.0
    fine = tolerance if got.rho is None or got.dtype not in HALF else 1e-6
    close(reference.wide(got.w, got.rho), reference.wide(wanted.w, wanted.rho), fine, fine * scale)
    assert not bool(torch.signbit(got.w[got.w == 0]).any())
    for key, value in wanted.state.items():
        close(got.state[key].double(), value.double(), tolerance, tolerance * 1e-2)
    if got.rho is not None and wanted.rho is not None:
        # A rest of a half is as good on either side; the weights above say whether it is right.
        alive = wanted.rho.abs() > 2
        assert torch.equal(got.rho.abs() > 2, alive)
        assert torch.equal(torch.signbit(got.rho[alive]), torch.signbit(wanted.rho[alive]))
        close(got.rho[~alive], wanted.rho[~alive], 20 * fine, 20 * fine)


def close(got: Tensor, wanted: Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol, equal_nan=True)


def run_adam(setting: Setting, *, decoupled: bool = True) -> tuple[Setting, Setting]:
    got, wanted = setting.with_adam_state(), setting.copy()
    adam_step(got.table(), [got.group], decoupled=decoupled, frozen=got.frozen, scale=got.scale)
    wide = reference.wide(wanted.w, wanted.rho)
    moved, metric = reference.adam(
        wide, wanted.grad, wanted.group, wanted.state, decoupled=decoupled, scale=wanted.scale
    )
    reference.settle(wanted.w, moved, metric, wanted.row, wanted.rho, frozen=wanted.frozen)
    return got, wanted


def run_sgd(setting: Setting, *, fresh: bool = False, metric: float = 0.02) -> tuple[Setting, Setting]:
    momentum = setting.group["momentum"] != 0
    buffer = (torch.randn(setting.shape) * 0.3).to(setting.dtype)
    state = {"momentum_buffer": buffer} if momentum and not fresh else {}
    wanted = setting.copy()
    table = setting.table()
    setting.state = {"momentum_buffer": buffer.clone()} if momentum else {}
    table.point("m", [setting.state.get("momentum_buffer")])
    table.rows["metric"], table.rows["fresh"] = metric, fresh
    sgd_step(table, [setting.group], frozen=setting.frozen, scale=setting.scale)
    wide = reference.wide(wanted.w, wanted.rho)
    moved = reference.sgd(wide, wanted.grad, wanted.group, state, scale=wanted.scale)
    reference.settle(wanted.w, moved, metric, wanted.row, wanted.rho, frozen=wanted.frozen)
    wanted.state = state
    return setting, wanted


ROWS: dict[str, Callable[[torch.dtype], tuple[Row, bool, bool]]] = {
    "nothing": lambda _: (Row(), False, False),
    "lasso": lambda _: (Row(slope=0.3), False, False),
    "bounded": lambda _: (Row(slope=0.3, limit=0.004), False, False),
    "elastic net": lambda _: (Row(slope=0.3, ridge=0.7), False, False),
    "ridge": lambda _: (Row(ridge=0.7), False, False),
    "nonnegative": lambda _: (Row(slope=0.3, nonnegative=True), False, False),
    "concave": lambda _: (Row(slope=0.3, knee=0.9), False, False),
    "concave, evidence": lambda _: (Row(slope=0.3, knee=0.9, limit=0.02, memory=10.0), True, False),
    "very concave": lambda _: (Row(slope=0.3, knee=0.002, nonnegative=True), False, False),
    "reweighted": lambda _: (Row(slope=0.3, epsilon=0.2), False, False),
    "reweighted, evidence": lambda _: (Row(slope=0.3, epsilon=0.01, limit=0.02, memory=10.0), True, False),
    "very reweighted": lambda _: (Row(slope=9.0, epsilon=0.002), False, False),
    "reweighted, weights": lambda dtype: (Row(slope=0.3, epsilon=0.1, c=weights(dtype)), False, False),
    "concave, weights": lambda dtype: (Row(slope=0.3, knee=0.9, limit=0.02, c=weights(dtype)), False, False),
    "weights": lambda dtype: (Row(slope=0.3, ridge=0.1, limit=0.01, c=weights(dtype)), False, False),
    "frozen": lambda _: (Row(slope=0.3), False, True),
    "frozen, nonnegative": lambda _: (Row(slope=0.3, nonnegative=True), False, True),
    "evidence": lambda _: (EVIDENCE, True, False),
    "evidence, short": lambda _: (replace(EVIDENCE, memory=1.0), True, False),
    "evidence, unbounded": lambda _: (replace(EVIDENCE, limit=torch.inf), True, False),
    "evidence, elastic net": lambda _: (replace(EVIDENCE, ridge=0.7), True, False),
    "evidence, nonnegative": lambda _: (replace(EVIDENCE, nonnegative=True), True, False),
    "evidence, weights": lambda dtype: (replace(EVIDENCE, c=weights(dtype)), True, False),
    "evidence, no strength": lambda _: (replace(EVIDENCE, slope=0.0, nonnegative=True), True, False),
    "evidence, no memory": lambda _: (replace(EVIDENCE, memory=0.0), True, False),
    "evidence, frozen": lambda _: (EVIDENCE, True, True),
}


def weights(dtype: torch.dtype) -> Tensor:
    c = torch.rand(1027).to(wide_dtype(dtype)) * 2
    c[::5], c[1::7] = 0.0, torch.inf
    return c


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROWS)
class TestEveryRow:
    def test_adam(self, name: str, dtype: torch.dtype) -> None:
        row, evidence, frozen = ROWS[name](dtype)
        agree(*run_adam(Setting(dtype, row, ADAM, evidence=evidence, frozen=frozen)))

    def test_sgd(self, name: str, dtype: torch.dtype) -> None:
        row, evidence, frozen = ROWS[name](dtype)
        agree(*run_sgd(Setting(dtype, row, SGD, evidence=evidence, frozen=frozen)))

    def test_shrinking_after_adam(self, name: str, dtype: torch.dtype) -> None:
        row, evidence, frozen = ROWS[name](dtype)
        if frozen and not evidence:
            pytest.skip("which weights were zero before the step cannot be seen after it")
        group = {**ADAM, "amsgrad": name == "lasso"}
        got = Setting(dtype, row, group, evidence=evidence).with_adam_state()
        got.w += torch.where(got.w == 0, torch.randn(got.shape) * 1e-2, 0.0).to(dtype)  # the displacement
        wanted = got.copy()
        shrink_adam(got.table(), [group], frozen=frozen)
        second = wanted.state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        second = second.to(wide_dtype(dtype))
        metric = group["lr"] / ((second / (1 - 0.999**7)).sqrt() + group["eps"])
        moved = reference.wide(wanted.w, wanted.rho)
        reference.settle(wanted.w, moved, metric, row, wanted.rho, frozen=frozen)
        agree(got, wanted)

    def test_shrinking_in_any_metric(self, name: str, dtype: torch.dtype) -> None:
        row, evidence, frozen = ROWS[name](dtype)
        if frozen and not evidence:
            pytest.skip("which weights were zero before the step cannot be seen after it")
        got = Setting(dtype, row, {}, evidence=evidence)
        got.w += torch.where(got.w == 0, torch.randn(got.shape) * 1e-2, 0.0).to(dtype)
        each = (torch.rand(got.shape) * 0.05).to(wide_dtype(dtype))
        each[::3] = 0.0
        if evidence:  # where the metric is 0 a dead weight has not moved
            got.w[(each == 0) & (got.rho.abs() < 2)] = 0.0  # type: ignore[union-attr]
        for metric in (each, 0.03):
            tried, wanted = got.copy(), got.copy()
            table = tried.table()
            if isinstance(metric, Tensor):
                assert table.point("d", [metric]) == []
            else:
                table.rows["metric"] = metric
            shrink(table, frozen=frozen)
            moved = reference.wide(wanted.w, wanted.rho)
            reference.settle(wanted.w, moved, metric, row, wanted.rho, frozen=frozen)
            agree(tried, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("evidence", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"weight_decay": 0.1},
        {"amsgrad": True},
        {"maximize": True},
        {"betas": (0.4, 0.9)},
        {"eps": 1e-2, "lr": 1e-3},
        {"lr": 0.0},
    ],
    ids=str,
)
def test_every_form_of_adam(
    change: dict[str, Any], decoupled: bool, evidence: bool, dtype: torch.dtype
) -> None:
    setting = Setting(dtype, EVIDENCE, {**ADAM, **change}, evidence=evidence, scale=0.5)
    agree(*run_adam(setting, decoupled=decoupled))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("evidence", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"momentum": 0.0},
        {"weight_decay": 0.1},
        {"nesterov": True},
        {"dampening": 0.5},
        {"maximize": True},
    ],
    ids=str,
)
def test_every_form_of_sgd(change: dict[str, Any], fresh: bool, evidence: bool, dtype: torch.dtype) -> None:
    setting = Setting(dtype, EVIDENCE, {**SGD, **change}, evidence=evidence, scale=0.5)
    agree(*run_sgd(setting, fresh=fresh))


@pytest.mark.parametrize("evidence", [False, True])
def test_nothing_moves_without_a_learning_rate(evidence: bool) -> None:
    setting = Setting(torch.float32, EVIDENCE, {**ADAM, "lr": 0.0}, evidence=evidence)
    w, rho = setting.w.clone(), None if setting.rho is None else setting.rho.clone()
    got, _ = run_adam(setting)
    assert torch.equal(got.w, w)
    assert rho is None or torch.equal(got.rho, rho)  # type: ignore[arg-type]


def test_the_noise_of_the_dead_weights() -> None:
    c = weights(torch.float32)
    for row in (EVIDENCE, replace(EVIDENCE, c=c)):
        setting = Setting(torch.float32, row, ADAM, evidence=True).with_adam_state()
        assert setting.rho is not None
        dead = setting.rho.abs() < 2
        if row.c is not None:
            dead &= (c > 0) & c.isfinite()
        share = setting.grad.double() * 0.25 / (row.slope * (1.0 if row.c is None else c.double()))
        table = setting.table()
        adam_step(table, [ADAM], decoupled=True, noise=True, scale=0.25)
        assert int(table.rows["dead"][0]) == int(dead.sum()) > 0
        assert float(table.rows["noise"][0]) == pytest.approx(float(share[dead].square().sum()), rel=1e-6)


@pytest.mark.parametrize("evidence", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_visible(dtype: torch.dtype, value: float, evidence: bool) -> None:
    setting = Setting(dtype, EVIDENCE, ADAM, evidence=evidence)
    setting.grad[:20] = value
    setting.w[20:40] = value
    if setting.rho is not None:
        setting.rho[20:40] = 4.0
    got, wanted = run_adam(setting)
    assert bool(got.w[:20].isnan().all())
    assert not bool(got.w[20:40].isfinite().any())
    close(got.w[20:], wanted.w[20:], TOLERANCE[dtype], TOLERANCE[dtype])
