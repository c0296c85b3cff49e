"""Blocks of several parameters: gathered into one matrix, scattered back, refused when they do not fit."""

import pytest
import torch
from torch import nn

import torchlasso as tl
from torchlasso.errors import InputError, RuleError
from torchlasso.terms import Member, Term


def _block() -> tuple[Term, nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]:
    conv, norm, following = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
    members = (
        Member("conv.weight", conv.weight),
        Member("norm.weight", norm.weight),
        Member("norm.bias", norm.bias),
        Member("next.weight", following.weight, dim=1),
    )
    return Term(tl.GroupLasso(0.1, weights=None), members), conv, norm, following


def test_a_single_parameter_is_its_own_block() -> None:
    weight = nn.Parameter(torch.randn(2, 3, 4))
    term = Term(tl.L1(0.1), (Member("w", weight),))
    assert term.gather([weight]) is weight
    assert term.scatter(weight) == [weight]
    assert term.shape == (2, 3, 4)
    assert term.name == "w"


def test_row_g_of_a_joint_block_holds_all_that_belongs_to_channel_g() -> None:
    term, conv, norm, following = _block()
    nn.init.normal_(norm.weight)
    gathered = term.gather(term.parameters)
    assert gathered.shape == term.shape == (4, 18 + 1 + 1 + 5)
    for g in range(4):
        parts = [conv.weight[g].flatten(), norm.weight[g : g + 1], norm.bias[g : g + 1]]
        expected = torch.cat([*parts, following.weight[:, g].flatten()])
        assert torch.equal(gathered[g].sort().values, expected.sort().values)
    assert term.name == "conv.weight+norm.weight+norm.bias+next.weight"


def test_scatter_undoes_gather() -> None:
    term, *_ = _block()
    tensors = [torch.randn_like(p) for p in term.parameters]
    back = term.scatter(term.gather(tensors))
    assert all(torch.equal(a, b) for a, b in zip(tensors, back, strict=True))
    assert [b.shape for b in back] == [p.shape for p in term.parameters]


def test_value_of_a_joint_block_is_the_sum_of_its_group_norms_and_reaches_all_members() -> None:
    term, conv, norm, following = _block()
    value = term.value()
    expected = 0.0
    for g in range(4):
        squares = conv.weight[g].square().sum() + norm.weight[g] ** 2 + norm.bias[g] ** 2
        expected += 0.1 * float((squares + following.weight[:, g].square().sum()).detach().sqrt())
    assert value.item() == pytest.approx(expected, rel=1e-6)
    gradients = torch.autograd.grad(value, term.parameters)
    assert all(g.isfinite().all() for g in gradients)
    assert gradients[0].any()
    assert gradients[3].any()


def test_members_may_differ_in_dtype() -> None:
    a, b = nn.Parameter(torch.randn(3, 2).bfloat16()), nn.Parameter(torch.randn(3))
    term = Term(tl.GroupLasso(0.1), (Member("a", a), Member("b", b)))
    assert term.gather([a, b]).dtype == torch.float32


def test_members_may_be_empty() -> None:
    a, b = nn.Parameter(torch.zeros(0, 2)), nn.Parameter(torch.zeros(3, 0))
    term = Term(tl.GroupLasso(0.1), (Member("a", a), Member("b", b, dim=1)))
    assert term.gather([a, b]).shape == (0, 5)
    assert [tuple(p.shape) for p in term.scatter(torch.zeros(0, 5))] == [(0, 2), (3, 0)]


def test_dimensions_count_from_the_end_too() -> None:
    a, b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4, 5, 2))
    term = Term(tl.GroupLasso(0.1), (Member("a", a, dim=-1), Member("b", b, dim=-1)))
    assert term.shape == (2, 3 + 20)
    assert torch.equal(term.scatter(term.gather([a, b]))[1], b)


def test_members_must_agree_on_the_number_of_groups() -> None:
    a, b = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(4))
    with pytest.raises(RuleError, match=r"got \{'a': 3, 'b': 4\}"):
        Term(tl.GroupLasso(0.1), (Member("a", a), Member("b", b)))


@pytest.mark.parametrize("dim", [1, 2, -2])
def test_a_member_needs_the_dimension_it_names(dim: int) -> None:
    a, b = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(3))
    with pytest.raises(RuleError, match="b of shape"):
        Term(tl.GroupLasso(0.1), (Member("a", a), Member("b", b, dim=dim)))


def test_a_scalar_cannot_join_others() -> None:
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(()))
    with pytest.raises(RuleError, match="b of shape"):
        Term(tl.GroupLasso(0.1), (Member("a", a), Member("b", b)))


def test_an_empty_block_is_refused() -> None:
    with pytest.raises(RuleError, match="at least one parameter"):
        Term(tl.L1(0.1), ())


def test_the_penalty_is_checked_against_the_gathered_shape() -> None:
    a, b = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(3))
    members = (Member("a", a), Member("b", b))
    Term(tl.GroupLasso(0.1, groups=[[0, 1], [2]]), members)
    with pytest.raises(InputError, match=r"\[2\] are in no group"):
        Term(tl.GroupLasso(0.1, groups=[[0, 1]]), members)


def test_strength_is_read_at_a_step_and_a_fixed_one_costs_no_copy() -> None:
    a = nn.Parameter(torch.zeros(3, 2))
    fixed = Term(tl.L1(0.1), (Member("a", a),))
    changing = Term(tl.L1(lambda step: 0.5 * step), (Member("a", a),))
    assert fixed.at(3) is fixed
    assert changing.at(3).penalty.current_strength == 1.5
    assert changing.at(3).members is changing.members


def test_unshrunk_keeps_only_the_constraints() -> None:
    a = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0]))
    weights = torch.tensor([1.0, torch.inf, 1.0])
    for strength in (0.5, lambda step: 0.5):
        term = Term(tl.L1(strength, nonnegative=True, weights=weights), (Member("a", a),))
        assert term.unshrunk().penalty.prox(a.detach(), 1.0).tolist() == [0.0, 0.0, 2.0]
