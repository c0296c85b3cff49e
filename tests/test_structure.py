"""The named penalties put every weight in one group and leave every bias alone."""

import pytest
import torch
from torch import nn

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.mlp import build_mlp
from torchlasso.structure import PENALTIES, structured_regularizer


def _net(hidden: tuple[int, ...] = (5, 3), outputs: int = 2) -> nn.Module:
    return build_mlp(4, hidden, outputs)


@pytest.mark.parametrize("hidden", [(), (3,), (5, 3), (4, 4, 4)])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_each_weight_is_covered_once_and_no_bias(penalty: str, hidden: tuple[int, ...]) -> None:
    if penalty == "neurons" and not hidden:
        pytest.skip("a linear model has no neurons")
    model = _net(hidden)
    regularizer = structured_regularizer(model, penalty, 0.5)
    covered = [id(p) for term in regularizer.terms for p in term.parameters]
    assert len(covered) == len(set(covered))
    assert set(covered) == {id(p) for p in model.parameters() if p.ndim == 2}
    assert all(term.penalty.current_strength == 0.5 for term in regularizer.terms)
    names = {m.name: m.parameter for term in regularizer.terms for m in term.members}
    assert all(dict(model.named_parameters())[name] is p for name, p in names.items())


def test_l1_is_the_sum_of_all_weights() -> None:
    model = _net()
    expected = sum(p.abs().sum() for p in model.parameters() if p.ndim == 2)
    torch.testing.assert_close(structured_regularizer(model, "l1", 0.3)(), 0.3 * expected)


def test_features_are_columns_of_the_first_layer_and_an_l1_behind() -> None:
    model = _net()
    first, *rest = [p for p in model.parameters() if p.ndim == 2]
    expected = 5**0.5 * first.norm(dim=0).sum() + sum(p.abs().sum() for p in rest)
    torch.testing.assert_close(structured_regularizer(model, "features", 0.3)(), 0.3 * expected)


def test_features_of_one_group_vanish_together() -> None:
    model = _net()
    first, *rest = [p for p in model.parameters() if p.ndim == 2]
    regularizer = structured_regularizer(model, "features", 0.3, groups=[[0, 2], [1], [3]])
    blocks = [first[:, [0, 2]], first[:, [1]], first[:, [3]]]
    expected = sum(b.numel() ** 0.5 * b.norm() for b in blocks) + sum(p.abs().sum() for p in rest)
    torch.testing.assert_close(regularizer(), 0.3 * expected)
    block = torch.ones_like(first)
    block[:, 1] = 100.0
    shrunk = regularizer.terms[0].penalty.prox(block, 20.0)
    assert (shrunk[:, [0, 2, 3]] == 0).all()
    assert (shrunk[:, 1] > 0).all()


def test_neurons_of_the_last_hidden_layer_take_their_readers_along() -> None:
    model = _net()
    one, two, out = [p for p in model.parameters() if p.ndim == 2]
    regularizer = structured_regularizer(model, "neurons", 0.3)
    together = torch.cat([two, out.T], dim=1)
    expected = 4**0.5 * one.norm(dim=1).sum() + 7**0.5 * together.norm(dim=1).sum()
    torch.testing.assert_close(regularizer(), 0.3 * expected)


def test_a_dead_neuron_is_dead_on_both_sides() -> None:
    model = _net()
    _, two, out = [p for p in model.parameters() if p.ndim == 2]
    with torch.no_grad():
        two[1] *= 1e-3
        out[:, 1] *= 1e-3
    term = structured_regularizer(model, "neurons", 0.01).terms[-1]
    parts = term.scatter(term.penalty.prox(term.gather(term.parameters), 1.0))
    assert (parts[0][1] == 0).all()
    assert (parts[1][:, 1] == 0).all()
    assert (parts[0][0] != 0).all()
    assert (parts[1][:, 0] != 0).all()


@pytest.mark.parametrize("penalty", ["L1", "", "rows"])
def test_an_unknown_name_is_an_error_that_lists_the_known(penalty: str) -> None:
    with pytest.raises(InputError, match=r"l1, features, neurons, got"):
        structured_regularizer(_net(), penalty, 0.1)


def test_neurons_need_a_hidden_layer() -> None:
    with pytest.raises(InputError, match="hidden layer"):
        structured_regularizer(_net(()), "neurons", 0.1)


@pytest.mark.parametrize("groups", [[[0, 1]], [[0, 1], [1, 2, 3]], [[0, 1, 2, 3, 4]], [[]], [[-1, 0, 1, 2]]])
def test_groups_must_cover_each_input_once(groups: list[list[int]]) -> None:
    with pytest.raises(InputError, match="groups"):
        structured_regularizer(_net(), "features", 0.1, groups=groups)


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_strength_must_be_finite_and_not_negative(penalty: str, strength: float) -> None:
    with pytest.raises(InputError, match="strength"):
        structured_regularizer(_net(), penalty, strength)


def test_the_penalty_is_what_attach_takes() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    tl.attach(optimizer, structured_regularizer(model, "neurons", 100.0))
    biases = [p.detach().clone() for p in model.parameters() if p.ndim == 1]
    (model(torch.randn(3, 4)).sum() * 0).backward()
    optimizer.step()
    assert all((p == 0).all() for p in model.parameters() if p.ndim == 2)
    assert all(
        torch.equal(a, b) for a, b in zip(biases, (p for p in model.parameters() if p.ndim == 1), strict=True)
    )
