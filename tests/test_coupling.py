"""Free scales are named where they are, checked against the model's own outputs, and nowhere else."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torchlasso as tl
from torchlasso.coupling import scale_notes

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FIRST: dict[Any, Any] = {"0.*": tl.L1(0.1), "*": None}


def _notes(model: nn.Module, rules: Any = None, inputs: Any = X) -> tuple[str, ...]:
    return scale_notes(model, tl.Regularizer(model, rules or tl.L1(0.1)).terms, inputs)


def _mlp(*between: nn.Module, width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), *between, nn.Linear(width, 1))


# ---- normalisations --------------------------------------------------------------------------------

NORMALISED = {
    "batch": (_mlp(nn.BatchNorm1d(4), nn.ReLU()), "0.weight", "1.weight", X),
    "layer": (_mlp(nn.LayerNorm(4), nn.ReLU()), "0.weight", "1.weight", X),
    "group": (_mlp(nn.GroupNorm(2, 4), nn.ReLU()), "0.weight", "1.weight", X),
    "rms": (_mlp(nn.RMSNorm(4), nn.Tanh()), "0.weight", "1.weight", X),
    "after a relu": (_mlp(nn.ReLU(), nn.Dropout(), nn.LayerNorm(4), nn.Tanh()), "0.weight", "3.weight", X),
    "convolution": (
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Sigmoid()),
        "0.weight",
        "1.weight",
        IMAGES,
    ),
    "instance": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True)),
        "0.weight",
        "1.weight",
        IMAGES,
    ),
}


@pytest.mark.parametrize("case", NORMALISED.values(), ids=NORMALISED.keys())
def test_a_weight_before_a_normalisation_is_named_with_the_scale_to_penalise(case: Any) -> None:
    model, weight, scale, inputs = case
    note = _notes(model, inputs=inputs)[0]
    assert note.startswith("a normalisation undoes the scale of " + weight + ",")
    assert f"({scale}, named in the rules)" in note
    model.train()  # and it is so: a hundredth of the layer gives the same outputs, up to the norm's epsilon
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-12
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = model(inputs).detach()
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(0.01)
    torch.testing.assert_close(model(inputs).detach(), before, atol=1e-4, rtol=1e-3)


def test_a_normalisation_without_a_scale_needs_another_one() -> None:
    (note,) = _notes(_mlp(nn.LayerNorm(4, elementwise_affine=False), nn.Tanh()))
    assert note.endswith("choose normalisations with a scale of their own and penalise that")


def test_many_names_are_counted() -> None:
    layers = [m for _ in range(6) for m in (nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh())]
    (note,) = _notes(nn.Sequential(*layers))
    assert "0.weight, 3.weight, 6.weight, 9.weight and 2 more" in note


# ---- two layers ------------------------------------------------------------------------------------

RELU_LIKE = {
    "relu": _mlp(nn.ReLU()),
    "relu in place": _mlp(nn.ReLU(inplace=True)),
    "leaky, dropout": _mlp(nn.LeakyReLU(), nn.Dropout(), nn.Identity()),
    "prelu": _mlp(nn.PReLU()),
    "nothing": _mlp(),
}


@pytest.mark.parametrize("model", RELU_LIKE.values(), ids=RELU_LIKE.keys())
def test_one_penalised_layer_of_two_is_named_with_its_partner(model: nn.Sequential) -> None:
    last = f"{len(model) - 1}.weight"
    first_only = _notes(model, FIRST)
    last_only = _notes(model, {last: tl.L1(0.1), "*": None})
    assert [note.split(",")[0] for note in first_only] == [f"0.weight is penalised and {last} is not"]
    assert [note.split(",")[0] for note in last_only] == [f"{last} is penalised and 0.weight is not"]
    assert _notes(model) == ()  # both
    before = model.eval()(X).detach()
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(0.01)
        model[-1].weight.mul_(100)
    torch.testing.assert_close(model(X).detach(), before, atol=1e-5, rtol=1e-4)


def test_pooled_convolutions_are_coupled_with_the_layer_after() -> None:
    body = (nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *body, nn.Linear(4, 2))
    (note,) = _notes(model, FIRST, IMAGES)
    assert note.startswith("0.weight is penalised and 6.weight is not")
    assert _notes(model, inputs=IMAGES) == ()


def test_the_scale_of_a_normalisation_is_coupled_with_the_layer_after() -> None:
    """By default a normalisation's scale is not penalised, so it can grow while the next layer shrinks."""
    model = _mlp(nn.LayerNorm(4), nn.ReLU())
    assert _notes(model)[1].startswith("3.weight is penalised and 1.weight is not")
    both = {"1.weight": tl.L1(0.1), "3.weight": tl.L1(0.1), "*": None}
    assert _notes(model, both) == ()


# ---- models that are not sequential --------------------------------------------------------------


class Functional(nn.Module):
    """Written with functions: ``between`` stands between its two layers."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(6, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.between(self, self.fc1(x))
        return output


FUNCTIONAL = {
    "relu": (lambda m, h: m.fc2(functional.relu(h)), ["fc1.weight is penalised"]),
    "a method": (lambda m, h: m.fc2(h.relu().view(-1, 4)), ["fc1.weight is penalised"]),
    "a norm": (lambda m, h: m.norm(h), ["a normalisation undoes the scale of fc1.weight"]),
    "tanh": (lambda m, h: m.fc2(h.tanh()), []),
    "gelu": (lambda m, h: m.fc2(functional.gelu(h)), []),
    "plus one": (lambda m, h: m.fc2(functional.relu(h + 1)), []),
    "residual": (lambda m, h: h + m.fc2(functional.relu(h)), []),
    "residual around a norm": (lambda m, h: h + m.norm(h), []),
    "two readers": (lambda m, h: (m.norm(h), h), []),
    "read out": (lambda m, h: {"out": m.norm(h), "hidden": [h]}, []),
    "its weight used again": (lambda m, h: m.norm(h) @ m.fc1.weight, []),
    "a reader used twice": (lambda m, h: m.fc2(m.fc2(h).tanh()), []),
    "written into a tensor": (lambda m, h: _written(m.norm(h), h), []),
}


def _written(result: Tensor, h: Tensor) -> Tensor:
    buffer = torch.zeros(8, 4)
    buffer[:, :] = h
    return result + buffer


@pytest.mark.parametrize(("between", "expected"), FUNCTIONAL.values(), ids=FUNCTIONAL.keys())
def test_forwards_with_functions_are_followed_and_no_alarm_is_false(
    between: Any, expected: list[str]
) -> None:
    model = Functional(between)
    found = _notes(model, {"fc1.*": tl.L1(0.1), "*": None})
    assert [note[: len(start)] for note, start in zip(found, expected, strict=True)] == expected


def test_a_frozen_partner_cannot_grow() -> None:
    model = _mlp(nn.ReLU())
    model[2].weight.requires_grad_(False)
    assert _notes(model, FIRST) == ()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.conv2(functional.relu(self.conv1(x))))


def test_residual_nets_raise_no_alarm_when_all_of_a_branch_is_penalised() -> None:
    model = nn.Sequential(Block(), Block(), nn.Flatten(), nn.Linear(192, 2))
    assert _notes(model, inputs=IMAGES) == ()
    (note,) = _notes(model, {"1.conv1.*": tl.L1(0.1), "*": None}, IMAGES)
    assert note.startswith("1.conv1.weight is penalised and 1.conv2.weight is not")


# ---- nothing is said, raised or changed ------------------------------------------------------------


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Broken(), X),
        (_mlp(nn.ReLU()), "no tensor"),
        (nn.LSTM(6, 3), X),
        (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), X[None]),
    ],
)
def test_what_cannot_be_followed_is_passed_over(model: nn.Module, inputs: Any) -> None:
    assert all("norm" not in note for note in _notes(model, inputs=inputs))


def test_a_compiled_model_is_read_without_being_compiled() -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise NotImplementedError

    compiled = torch.compile(_mlp(nn.LayerNorm(4), nn.Tanh()), backend=backend)
    assert len(_notes(compiled)) == 1


def test_looking_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    _notes(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
