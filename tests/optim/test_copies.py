"""Copies and pickles of an attached optimizer: no step without the penalty, and no step lost."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, Rprop

import torchlasso as tl
from torchlasso.errors import InputError

Pair = tuple[nn.Module, Optimizer]


def by_pickle(pair: Pair) -> Pair:
    copied: Pair = pickle.loads(pickle.dumps(pair))
    return copied


def by_file(pair: Pair) -> Pair:
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    copied: Pair = torch.load(file, weights_only=False)
    return copied


each_way = pytest.mark.parametrize("way", [copy.deepcopy, by_pickle, by_file])
BUILDS: dict[str, Callable[[Any], Optimizer]] = {
    "momentum": lambda p: SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: Adam(p, lr=0.02),
    "fused adamw": lambda p: AdamW(p, lr=0.02, fused=True),
    "rprop": lambda p: Rprop(p, lr=0.01),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))


def strength(step: int) -> float:
    return 0.002 * step


def regularizer(model: nn.Module) -> tl.Regularizer:
    return tl.Regularizer(
        model, {"0.weight": tl.L1(strength), "2.weight": tl.GroupLasso(0.02, groups="columns")}
    )


def run(model: nn.Module, optimizer: Optimizer, start: int, stop: int) -> None:
    """Train on batches that depend on the step alone."""
    for step in range(start, stop):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(model(x), x[:, :1] - x[:, 3:4]))
        optimizer.step()


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@each_way
@pytest.mark.parametrize("kind", BUILDS)
def test_a_copy_refuses_to_step_until_it_is_attached_and_goes_on_bitwise(
    kind: str, way: Callable[[Pair], Pair]
) -> None:
    model = net()
    optimizer = BUILDS[kind](model.parameters())
    tl.attach(optimizer, regularizer(model))
    run(model, optimizer, 0, 40)
    second, other = way((model, optimizer))
    before = copy.deepcopy(second)
    with pytest.raises(InputError, match=r"copy of an attached one.*attach\(copy, regularizer\)"):
        run(second, other, 40, 41)
    assert equal(before, second)

    handle = tl.attach(other, regularizer(second))
    assert (handle.steps, handle.regularizer.step) == (40, 40)
    run(second, other, 40, 80)
    run(model, optimizer, 40, 80)  # the original did not notice
    assert equal(model, second)
    assert 0 < tl.sparsity(model).total < 1
    assert handle.steps == 80


def test_frozen_zeros_are_copied() -> None:
    model = net()
    optimizer = BUILDS["adam"](model.parameters())
    handle = tl.attach(optimizer, regularizer(model))
    run(model, optimizer, 0, 60)
    handle.freeze_zeros()
    zeros = [p == 0 for p in model.parameters()]
    second, other = copy.deepcopy((model, optimizer))
    copied = tl.attach(other, regularizer(second))
    assert copied.frozen
    run(second, other, 60, 80)
    assert all(torch.equal(p == 0, zero) for p, zero in zip(second.parameters(), zeros, strict=True))
    run(model, optimizer, 60, 80)
    assert equal(model, second)


def test_a_copy_does_not_share_what_the_original_remembers() -> None:
    model = net()
    optimizer = BUILDS["adam"](model.parameters())
    handle = tl.attach(optimizer, regularizer(model))
    run(model, optimizer, 0, 40)
    second, other = copy.deepcopy((model, optimizer))
    tl.attach(other, regularizer(second))
    evidence = {n: t.clone() for n, t in handle.saved()["evidence"].items()}
    run(second, other, 40, 60)
    assert all(torch.equal(t, handle.saved()["evidence"][n]) for n, t in evidence.items())
    assert handle.steps == 40


def test_a_copy_of_a_copy_refuses_too() -> None:
    model = net()
    optimizer = BUILDS["momentum"](model.parameters())
    tl.attach(optimizer, regularizer(model))
    run(model, optimizer, 0, 40)
    second, other = copy.deepcopy(copy.deepcopy((model, optimizer)))
    with pytest.raises(InputError, match="copy of an attached one"):
        other.step()
    tl.attach(other, regularizer(second))
    run(second, other, 40, 60)
    run(model, optimizer, 40, 60)
    assert equal(model, second)


def test_a_checkpoint_of_a_copy_that_was_not_attached_is_torchs_own() -> None:
    model = net()
    optimizer = BUILDS["momentum"](model.parameters())
    tl.attach(optimizer, regularizer(model))
    run(model, optimizer, 0, 5)
    other = copy.deepcopy(optimizer)
    assert other.state_dict().keys() == {"state", "param_groups"}


def test_after_remove_copies_are_plain_again() -> None:
    model = net()
    optimizer = BUILDS["momentum"](model.parameters())
    tl.attach(optimizer, regularizer(model)).remove()
    run(model, optimizer, 0, 10)
    second, other = copy.deepcopy((model, optimizer))
    run(second, other, 10, 20)
    run(model, optimizer, 10, 20)
    assert equal(model, second)


def test_the_users_own_hooks_stay_on_the_original() -> None:
    """torch copies no hooks, and a copy must not lose or gain any beside the guard."""
    model = net()
    optimizer = BUILDS["momentum"](model.parameters())
    seen: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(1))
    tl.attach(optimizer, regularizer(model))
    other = copy.deepcopy(optimizer)
    with pytest.raises(InputError, match="copy of an attached one"):
        other.step()
    assert seen == []
    run(model, optimizer, 0, 2)
    assert seen == [1, 1]
