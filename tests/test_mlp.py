"""What the networks say of their own parts agrees with what their outputs do."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from torchlasso.mlp import Rescale, build_mlp, clear_unread_units, linear_layers, seeded, used_features

SHAPES = [(), (3,), (6, 4), (5, 4, 3)]


def _sparse(hidden: tuple[int, ...], seed: int, keep: float = 0.35) -> nn.Module:
    torch.manual_seed(seed)
    model = build_mlp(6, hidden, 2).double()
    with torch.no_grad():
        for _, layer in linear_layers(model):
            layer.weight *= torch.rand_like(layer.weight) < keep
            layer.bias += 3.0  # every unit is awake for most rows, so that what is read shows
    return model


def _matters(model: nn.Module, x: Tensor, feature: int) -> bool:
    changed = x.clone()
    changed[:, feature] += torch.randn(len(x), dtype=x.dtype)
    return not torch.equal(model(x), model(changed))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("hidden", SHAPES)
def test_used_features_are_those_that_change_an_output(hidden: tuple[int, ...], seed: int) -> None:
    model = _sparse(hidden, seed)
    x = torch.randn(40, 6, dtype=torch.float64)
    assert used_features(model).tolist() == [_matters(model, x, j) for j in range(6)]


@pytest.mark.parametrize("hidden", SHAPES)
def test_all_or_nothing_is_used(hidden: tuple[int, ...]) -> None:
    model = build_mlp(6, hidden, 2)
    assert used_features(model).all()
    nn.init.zeros_(linear_layers(model)[-1][1].weight)
    assert not used_features(model).any()
    assert used_features(model).shape == (6,)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("hidden", SHAPES)
def test_clearing_changes_no_output_and_no_feature(hidden: tuple[int, ...], seed: int) -> None:
    model = _sparse(hidden, seed, keep=0.25)
    x = torch.randn(40, 6, dtype=torch.float64)
    outputs, used = model(x), used_features(model)
    before = sum(int((layer.weight != 0).sum()) for _, layer in linear_layers(model))
    clear_unread_units(model)
    assert torch.equal(model(x), outputs)
    assert torch.equal(used_features(model), used)
    assert sum(int((layer.weight != 0).sum()) for _, layer in linear_layers(model)) <= before
    layers = [layer for _, layer in linear_layers(model)]
    for layer, reader in itertools.pairwise(layers):
        unread = (reader.weight == 0).all(dim=0)
        assert (layer.weight[unread] == 0).all()
        assert (layer.bias[unread] == 0).all()


def test_clearing_runs_through_chains_of_units() -> None:
    model = build_mlp(2, (2, 2), 1)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
        model.output.weight[0, 1] = 0.0  # so unit 1 of layer 2 is not read
        model.hidden2.weight[0, 0] = 0.0  # so unit 0 of layer 1 is read by that one alone
    clear_unread_units(model)
    assert model.hidden2.weight.tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert model.hidden1.weight.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert model.hidden1.bias.tolist() == [0.0, 1.0]


def test_the_layers_are_listed_from_input_to_output() -> None:
    model = build_mlp(6, (5, 4), 2, rescale=(2.0, 1.0))
    assert [name for name, _ in linear_layers(model)] == ["hidden1.weight", "hidden2.weight", "output.weight"]
    assert linear_layers(build_mlp(6, (), 2))[0][0] == "weight"
    assert dict(model.named_parameters())["hidden2.weight"] is linear_layers(model)[1][1].weight


def test_rescale_is_fixed_and_travels_in_the_state() -> None:
    model = build_mlp(3, (2,), 1, rescale=(2.0, 10.0))
    assert not any("rescale" in name for name, _ in model.named_parameters())
    assert model.state_dict()["rescale.scale"].item() == 2.0
    x = torch.randn(5, 3)
    bare = nn.Sequential(*list(model)[:-1])
    assert torch.equal(model(x), bare(x) * 2.0 + 10.0)
    assert Rescale()(torch.tensor(3.0)) == 3.0


def test_a_linear_model_can_be_rescaled_too() -> None:
    model = build_mlp(3, (), 1, rescale=(2.0, 10.0))
    assert [name for name, _ in linear_layers(model)] == ["output.weight"]
    assert used_features(model).all()


def test_networks_built_in_threads_are_those_built_one_after_the_other():
    def first_weight(seed: int) -> Tensor:
        with seeded(seed):
            time.sleep(0.01)  # let the other threads in, if they can
            return build_mlp(4, (3,), 1)[0].weight.detach()

    alone = [first_weight(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(first_weight, range(8)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
