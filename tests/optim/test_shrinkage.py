"""What a penalty remembers of a run: its memory argument, writes from outside, what is saved."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.optim.evidence import check_memory


def one(*values: float, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Parameter]:
    model = nn.Module()
    w = nn.Parameter(torch.tensor([values], dtype=dtype))
    model.register_parameter("w", w)
    return model, w


def step(optimizer: torch.optim.Optimizer, w: nn.Parameter, grad: float) -> None:
    w.grad = torch.full_like(w, grad)
    optimizer.step()


# ---- the argument --------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [-1, 1.5, "all", None, True, math.inf, [3]])
def test_a_memory_that_is_none_is_refused(memory: Any) -> None:
    with pytest.raises(InputError, match=r"memory must be 'auto' .* or a number of steps"):
        check_memory(memory)
    model, w = one(1.0)
    with pytest.raises(InputError, match="memory must be"):
        tl.attach(SGD([w], lr=0.1), tl.Regularizer(model, tl.L1(1.0)), memory=memory)
    with pytest.raises(InputError, match="memory must be"):
        tl.optim.ProxSGD([w], tl.Regularizer(model, tl.L1(1.0)), memory=memory)


def test_an_integer_of_any_kind_is_a_number_of_steps() -> None:
    assert check_memory(torch.tensor(7)) == 7
    assert check_memory(0) == 0


def test_a_fraction_that_was_not_resolved_is_refused_at_once() -> None:
    model, w = one(1.0)
    with pytest.raises(InputError, match=r"fraction of strength_max.*resolve"):
        tl.attach(SGD([w], lr=0.1), tl.Regularizer(model, tl.L1("0.1max")))


# ---- weights that somebody else writes -----------------------------------------------------------------


def dead_weight(*, fused: bool) -> tuple[nn.Module, nn.Parameter, Any]:
    """Return a weight that has died deep inside the edge: 200 steps of evidence hold it."""
    model, w = one(0.05)
    regularizer = tl.Regularizer(model, tl.L1(1.0))
    if fused:
        optimizer: Any = tl.optim.ProxSGD([w], regularizer, lr=0.1, memory=200)
    else:
        optimizer = SGD([w], lr=0.1)
        tl.attach(optimizer, regularizer, memory=200)
    for _ in range(300):
        step(optimizer, w, 0.0)
    assert w.item() == 0
    return model, w, optimizer


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("way", ["load_state_dict", "init", "copy_"])
def test_a_dead_weight_that_is_written_to_lives(way: str, fused: bool) -> None:
    """It goes on from what was written, by the ordinary proximal step."""
    model, w, optimizer = dead_weight(fused=fused)
    if way == "load_state_dict":
        model.load_state_dict({"w": torch.full_like(w, -0.7)})
    elif way == "init":
        nn.init.constant_(w, -0.7)
    else:
        with torch.no_grad():
            w.copy_(torch.full_like(w, -0.7))
    step(optimizer, w, 0.0)
    assert w.item() == pytest.approx(-0.6)
    step(optimizer, w, -1.5)
    assert w.item() == pytest.approx(-0.35)


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_written_after_loading_a_state_lives_too(fused: bool) -> None:
    """The optimizer's state came first, the weights of another run after it, as in many scripts."""
    _, _, optimizer = dead_weight(fused=fused)
    model, w, other = dead_weight(fused=fused)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    model.load_state_dict({"w": torch.full_like(w, 0.7)})
    step(other, w, 0.0)
    assert w.item() == pytest.approx(0.6)


def test_a_dead_weight_that_nobody_wrote_to_is_held() -> None:
    """A gradient of two strengths returns it when 200 steps of evidence are in, and not before."""
    _, w, optimizer = dead_weight(fused=False)
    count = 0
    while w.item() == 0:
        step(optimizer, w, -2.0)
        count += 1
        assert count < 500
    assert 195 <= count <= 205


# ---- other parameters, other penalties -----------------------------------------------------------------


def test_update_keeps_the_evidence_and_takes_the_new_strength() -> None:
    model, w, optimizer = one(0.05, 2.0)[0], None, None
    w = model.get_parameter("w")
    optimizer = SGD([w], lr=0.1)
    handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(1.0)), memory=50)
    for _ in range(60):
        step(optimizer, w, 0.0)
    assert not w.any()
    for _ in range(30):
        step(optimizer, w, -2.0)  # 30 of the 50 units that would bring them back
    handle.update(tl.Regularizer(model, tl.L1(0.5)))
    count = 0
    while not w.all():
        step(optimizer, w, -1.0)  # two of the new strengths
        count += 1
        assert count < 100
    assert 18 <= count <= 22
    assert handle.steps == 90 + count
    assert handle.regularizer.step == handle.steps


def test_update_is_refused_while_zeros_are_frozen_and_for_parameters_of_others() -> None:
    model, w = one(1.0)
    other, _ = one(1.0)
    handle = tl.attach(SGD([w], lr=0.1), tl.Regularizer(model, tl.L1(1.0)))
    with pytest.raises(InputError, match=r"does not hold \['w'\]"):
        handle.update(tl.Regularizer(other, tl.L1(1.0)))
    handle.freeze_zeros()
    with pytest.raises(InputError, match=r"frozen; call unfreeze_zeros\(\)"):
        handle.update(tl.Regularizer(model, tl.L1(0.5)))


# ---- saved and restored --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_everything_is_saved_as_plain_containers_and_tensors(dtype: torch.dtype) -> None:
    """``weights_only`` reads it, and the types are those that were written."""
    model = nn.Linear(12, 3).to(dtype)
    optimizer = Adam(model.parameters(), lr=0.05)
    handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.1)))
    for _ in range(30):
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.randn(8, 12, dtype=dtype)).square().mean())
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)["torchlasso"]
    assert saved.keys() == handle.saved().keys() >= {"steps", "evidence", "noise", "frozen"}
    assert saved["steps"] == 30
    assert saved["evidence"].keys() == {0}
    assert torch.equal(saved["evidence"][0], handle.saved()["evidence"][0])
    assert saved["evidence"][0].dtype == torch.promote_types(dtype, torch.float32)
    assert saved["noise"] == handle.saved()["noise"] != {}
    assert saved["frozen"] is None


def test_a_state_that_was_saved_in_another_memory_format_is_taken_over() -> None:
    """The evidence is copied into the layout of the weights that it belongs to now."""
    ends = []
    for last in (False, True):
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False)
        optimizers = []
        for model in (first, second):
            if model is second and last:
                model.to(memory_format=torch.channels_last)
            optimizers.append(SGD(model.parameters(), lr=0.1))
            tl.attach(optimizers[-1], tl.Regularizer(model, tl.L1(0.2)), memory=40)

        def go(model: nn.Conv2d, optimizer: SGD, start: int, stop: int) -> None:
            for number in range(start, stop):
                draw = torch.Generator().manual_seed(number)
                noise = torch.randn(model.weight.shape, generator=draw)
                model.weight.grad = torch.empty_like(model.weight).copy_(model.weight.detach() + noise)
                optimizer.step()

        go(first, optimizers[0], 0, 30)
        optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        second.load_state_dict(first.state_dict())
        go(second, optimizers[1], 30, 60)
        go(first, optimizers[0], 30, 60)
        torch.testing.assert_close(first.weight, second.weight, rtol=0, atol=1e-7)
        assert torch.equal(first.weight == 0, second.weight == 0)
        ends.append(first.weight.detach())
    assert torch.equal(ends[0], ends[1])
    assert (ends[0] == 0).any()
