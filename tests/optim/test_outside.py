"""What is done between steps from outside: weights loaded or flipped, freezing undone, strengths changed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, Rprop

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.terms import Member, Term

Make = Callable[[nn.Module, tl.Regularizer], tuple[Optimizer, Any]]


def attached(kind: Callable[..., Optimizer], **arguments: Any) -> Make:
    def make(model: nn.Module, regularizer: tl.Regularizer) -> tuple[Optimizer, Any]:
        optimizer = kind(model.parameters(), **arguments)
        return optimizer, tl.attach(optimizer, regularizer)

    return make


def built_in(kind: Callable[..., Any], **arguments: Any) -> Make:
    def make(model: nn.Module, regularizer: tl.Regularizer) -> tuple[Optimizer, Any]:
        optimizer = kind(model.parameters(), regularizer, **arguments)
        return optimizer, optimizer.handle

    return make


MAKES: dict[str, Make] = {
    "SGD": attached(SGD, lr=0.01),
    "momentum": attached(SGD, lr=0.01, momentum=0.9),
    "Adam": attached(Adam, lr=0.01),
    "fused AdamW": attached(AdamW, lr=0.01, weight_decay=0.0, fused=True),
    "Rprop": attached(Rprop, lr=0.01),
    "ProxSGD": built_in(tl.optim.ProxSGD, lr=0.01),
    "ProxAdamW": built_in(tl.optim.ProxAdamW, lr=0.01, weight_decay=0.0),
}
each = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


def one(values: list[float]) -> nn.Module:
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    return model


def pull(model: Any, optimizer: Optimizer, target: Tensor, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(0.5 * (model.w - target).square().sum())
        optimizer.step()


@each
def test_weights_that_change_sign_from_outside_stay_alive(make: Make) -> None:
    model: Any = one([1.0, -2.0, 3.0])
    optimizer, _ = make(model, tl.Regularizer(model, tl.L1(1e-3)))
    pull(model, optimizer, model.w.detach().clone(), 5)
    with torch.no_grad():
        model.w.neg_()
    pull(model, optimizer, model.w.detach().clone())
    assert model.w.all()
    assert torch.allclose(model.w, torch.tensor([-1.0, 2.0, -3.0], dtype=torch.float64), atol=0.1)


@each
def test_a_rollback_loses_no_weight(make: Make) -> None:
    model = nn.Linear(30, 30)
    optimizer, _ = make(model, tl.Regularizer(model, tl.L1(1e-6)))
    early = copy.deepcopy(model.state_dict())
    x, y = torch.randn(20, 30), torch.randn(20, 30)
    for _ in range(100):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(model(x), y))
        optimizer.step()
    model.load_state_dict(early)
    optimizer.zero_grad()
    torch.autograd.backward(nn.functional.mse_loss(model(x), y))
    optimizer.step()
    assert int((model.weight == 0).sum()) <= 30  # those that this very step carries across zero


@each
def test_what_was_refitted_across_zero_survives_unfreezing(make: Make) -> None:
    model: Any = one([0.5, -0.5, 0.5, 0.0])
    optimizer, handle = make(model, tl.Regularizer(model, tl.L1(1e-3)))
    handle.freeze_zeros()
    pull(model, optimizer, torch.tensor([-2.0, 2.0, 2.0, 2.0], dtype=torch.float64), 600)
    refitted = model.w.detach().clone()
    assert (refitted[:3].sign() == torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)).all()
    assert refitted[3] == 0
    handle.unfreeze_zeros()
    pull(model, optimizer, refitted)
    assert torch.allclose(model.w[:3], refitted[:3], atol=0.05)


@pytest.mark.parametrize("make", [MAKES["SGD"], MAKES["Adam"], MAKES["ProxAdamW"]])
def test_zeros_that_are_begun_late_leave_to_both_sides_alike(make: Make) -> None:
    model: Any = one([1.0])
    optimizer, handle = make(model, tl.Regularizer(model, tl.L1(0.01)))
    pull(model, optimizer, torch.ones(1, dtype=torch.float64), 300)
    model.late = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer.add_param_group({"params": [model.late]})
    handle.update(tl.Regularizer(model, tl.L1(0.01)))
    target = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    for _ in range(10):
        optimizer.zero_grad()
        torch.autograd.backward(0.5 * (model.late - target).square().sum() + 0 * model.w.sum())
        optimizer.step()
    assert model.late.all()
    assert torch.allclose(model.late.abs(), model.late.abs().mean().expand(4), rtol=1e-9)


def test_a_changed_strength_does_not_inherit_the_noise_in_units_of_the_old_one() -> None:
    model: Any = one([0.0] * 50)
    optimizer = SGD(model.parameters(), lr=1e-3)
    strengths = [0.01, 0.5]
    handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(lambda step: strengths[step >= 200])))
    before = 0.0
    for step in range(230):
        model.w.grad = 0.5 * torch.randn(50, dtype=torch.float64)
        optimizer.step()
        before = float(handle.shrinkage.noise["w"]) if step == 198 else before
    assert before > 500  # (0.5 / 0.01)² if the memory had been long all along
    assert float(handle.shrinkage.noise["w"]) < 5
    handle.update(tl.Regularizer(model, tl.L1(0.1)))
    assert handle.shrinkage.noise == {}


def test_a_joint_block_is_shrunk_if_any_member_has_a_gradient_under_the_orthant_rule() -> None:
    a, b = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 2))
    term = Term(tl.GroupLasso(0.5, weights=None), (Member("a", a), Member("b", b)))
    optimizer = Rprop([a, b], lr=0.1)
    tl.attach(optimizer, tl.Regularizer.from_terms([term]))
    b.grad = torch.zeros_like(b)
    optimizer.step()
    assert (b < 1).all()
    assert torch.equal(a, torch.ones(2, 3))


def test_a_fused_optimizer_without_its_penalty_is_torchs_own() -> None:
    model: Any = one([1.0, -1.0])
    optimizer = tl.optim.ProxAdamW(
        model.parameters(), tl.Regularizer(model, tl.L1(10.0)), lr=0.1, weight_decay=0.0
    )
    optimizer.handle.remove()
    late = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones_like(late)
    pull(model, optimizer, model.w.detach().clone())
    assert late.item() == pytest.approx(0.0)  # zero_grad took its gradient
    late.grad = torch.ones_like(late)
    optimizer.step()
    assert late.item() < 0
    twin: Any = copy.deepcopy(optimizer)
    for parameter in twin.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    twin.step()
    assert twin.param_groups[0]["params"][0].all()
    with pytest.raises(InputError, match="own penalty"):
        tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.1)))


def test_an_unresolved_fraction_is_refused_when_it_is_taken() -> None:
    model: Any = one([1.0])
    handle = tl.attach(SGD(model.parameters(), lr=0.1), tl.Regularizer(model, tl.L1(0.1)))
    with pytest.raises(InputError, match="resolve"):
        handle.update(tl.Regularizer(model, tl.L1("0.1max")))
    with pytest.raises(InputError, match="resolve"):
        tl.optim.DualAveraging(model.parameters(), tl.Regularizer(model, tl.L1("0.1max")))
