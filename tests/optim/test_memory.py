"""Memory: none for the plain step, one number a weight by default, and nothing that grows."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, Rprop

import torchlasso as tl

Make = Callable[[nn.Module, tl.Regularizer, Any], Optimizer]


def attached(kind: Any, **settings: Any) -> Make:
    def make(model: nn.Module, regularizer: tl.Regularizer, memory: Any) -> Optimizer:
        optimizer: Optimizer = kind(model.parameters(), **settings)
        tl.attach(optimizer, regularizer, memory=memory)
        return optimizer

    return make


MAKES: dict[str, Make] = {
    "sgd": attached(SGD, lr=0.01),
    "momentum": attached(SGD, lr=0.01, momentum=0.9),
    "adam": attached(Adam, lr=0.01),
    "fused adamw": attached(AdamW, lr=0.01, fused=True),
    "orthant": attached(Rprop, lr=0.01),
    "ProxSGD": lambda m, r, memory: tl.optim.ProxSGD(m.parameters(), r, lr=0.01, momentum=0.9, memory=memory),
    "ProxAdamW": lambda m, r, memory: tl.optim.ProxAdamW(m.parameters(), r, lr=0.01, memory=memory),
}
each_make = pytest.mark.parametrize("kind", MAKES)
PENALTIES = {"lasso": tl.L1(0.01), "groups": tl.GroupLasso(0.01)}


@pytest.fixture(autouse=True)
def _only_what_is_new() -> Iterator[None]:
    """Leave out of the counts what was there before: it is much, and takes long to look through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 1))


def run(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(8, 40)
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(model(x), x[:, :1]))
        optimizer.step()
    optimizer.zero_grad()


def entries() -> int:
    """Return the number of entries of all tensors that are alive, each storage counted once."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4 for t in tensors}.values())


@pytest.mark.parametrize(
    ("kind", "penalty"), [*((kind, "lasso") for kind in MAKES), ("adam", "groups"), ("ProxSGD", "groups")]
)
def test_one_number_a_weight_by_default_and_none_for_the_plain_step(kind: str, penalty: str) -> None:
    """Counted as what is alive beyond what the same optimizer keeps at strength 0 and memory 0."""
    counts = []
    for memory in (0, "auto", 100):
        model = net()
        before = entries()
        optimizer = MAKES[kind](model, tl.Regularizer(model, PENALTIES[penalty]), memory)
        run(model, optimizer, 12)
        counts.append(entries() - before)
        del optimizer, model
    weights = 40 * 50 + 50
    buffers = {
        "sgd": 0,
        "momentum": 1,
        "adam": 2,
        "fused adamw": 2,
        "orthant": 2,
        "ProxSGD": 1,
        "ProxAdamW": 2,
    }
    small = 400  # counters, biases, the sizes of groups
    assert counts[0] - buffers[kind] * weights < small
    assert counts[1] - counts[0] == pytest.approx(weights, abs=small)
    assert counts[2] - counts[0] == pytest.approx(weights, abs=small)


@pytest.mark.parametrize("kind", ["sgd", "adam", "orthant", "ProxAdamW"])
def test_nothing_grows_over_a_thousand_steps(kind: str) -> None:
    """Neither tensors nor Python's own objects."""
    model = net()
    optimizer = MAKES[kind](model, tl.Regularizer(model, tl.L1(lambda step: 0.01)), "auto")
    counts = []
    for steps in (50, 1000):
        run(model, optimizer, steps)
        counts.append((entries(), len(gc.get_objects())))
    assert counts[0][0] == counts[1][0]
    assert counts[1][1] - counts[0][1] < 100  # one object in ten steps would be seen


@each_make
def test_no_gradients_are_kept(kind: str) -> None:
    """What ``zero_grad`` lets go must not live on in a table or a reference of the rule."""
    model = net()
    optimizer = MAKES[kind](model, tl.Regularizer(model, tl.L1(0.01)), "auto")
    run(model, optimizer, 3)
    for step in range(12):  # one of them looks at the noise
        kept = []
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
            kept.append(weakref.ref(parameter.grad))
        optimizer.step()
        optimizer.zero_grad()
        assert [grad() for grad in kept] == [None] * 4, step
