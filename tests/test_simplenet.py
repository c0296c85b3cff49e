"""The tutorial's model runs as the tutorial writes it, and does what the tutorial says: no exact zeros."""

from typing import Any

import pytest
import torch
from torch import nn

import torchlasso as tl
from torchlasso.errors import InputError


def test_the_tutorial_runs_as_written() -> None:
    model = tl.SimpleNet(input_size=100, hidden_size=50, output_size=5, l1_strength=0.1)
    criterion = nn.CrossEntropyLoss()
    inputs, target = torch.randn(8, 100), torch.randint(5, (8,))
    output = model(inputs)
    loss = criterion(output, target)
    data_loss = loss.item()
    loss += model.l1_regularization()
    torch.autograd.backward(loss)
    assert output.shape == (8, 5)
    assert loss.item() > data_loss
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_the_term_is_the_sum_over_all_parameters_with_its_gradient() -> None:
    model = tl.SimpleNet(4, 3, 2, 0.25)
    term = model.l1_regularization()
    total = 0.0
    for parameter in model.parameters():
        total += 0.25 * sum(abs(value) for value in parameter.detach().flatten().tolist())
    assert term.shape == ()
    assert term.item() == pytest.approx(total, rel=1e-6)
    gradients = torch.autograd.grad(term, list(model.parameters()))
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.equal(gradient, 0.25 * parameter.detach().sign())


def test_it_is_linear_relu_linear() -> None:
    model = tl.SimpleNet(4, 3, 2, 0.0)
    x = torch.randn(5, 4)
    w1, b1, w2, b2 = model.parameters()
    assert torch.allclose(model(x), torch.relu(x @ w1.T + b1) @ w2.T + b2)
    assert [name for name, _ in model.named_parameters()] == [
        "fc1.weight",
        "fc1.bias",
        "fc2.weight",
        "fc2.bias",
    ]


def test_strength_zero_adds_nothing() -> None:
    assert tl.SimpleNet(4, 3, 2, 0.0).l1_regularization().item() == 0.0


def test_the_textbook_term_leaves_no_exact_zero_and_attach_does() -> None:
    x, target = torch.randn(60, 10), torch.randint(2, (60,))
    totals = {}
    for way in ("textbook", "attached"):
        torch.manual_seed(0)
        model = tl.SimpleNet(10, 6, 2, 0.02)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        if way == "attached":
            tl.attach(optimizer, tl.Regularizer(model, tl.L1(model.l1_strength)))
        for _ in range(150):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            if way == "textbook":
                loss = loss + model.l1_regularization()
            torch.autograd.backward(loss)
            optimizer.step()
        totals[way] = tl.sparsity(model).total
    assert totals["textbook"] == 0.0
    assert totals["attached"] > 0.3


@pytest.mark.parametrize("name", ["input_size", "hidden_size", "output_size"])
@pytest.mark.parametrize("size", [0, -1, 2.0, 2.5, "3", None, float("nan")])
def test_a_bad_size_is_refused_by_name(name: str, size: Any) -> None:
    sizes: dict[str, Any] = {"input_size": 4, "hidden_size": 3, "output_size": 2, name: size}
    with pytest.raises(InputError, match=f"{name} must be a whole number"):
        tl.SimpleNet(**sizes, l1_strength=0.1)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf"), "0.1", None])
def test_a_bad_strength_is_refused_by_name(strength: Any) -> None:
    with pytest.raises(InputError, match="l1_strength must be"):
        tl.SimpleNet(4, 3, 2, strength)
