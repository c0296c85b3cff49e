import pytest
import torch
from torch import nn

import torchlasso as tl
from tests.compaction.models import CASES, kill
from torchlasso.compaction.compact import compact
from torchlasso.compaction.coupled import coupled_groups
from torchlasso.errors import RuleError
from torchlasso.terms import Member, Term


def as_sets(slices: list[tuple[str, int, list[int]]]) -> frozenset[tuple[str, int, frozenset[int]]]:
    return frozenset((name, dim, frozenset(indices)) for name, dim, indices in slices)


@pytest.mark.parametrize(
    "name", ["mlp", "lenet", "resnet", "mobilenet", "gpt", "vit", "lstm", "multihead", "tied"]
)
def test_the_groups_are_those_written_down_by_hand(name: str) -> None:
    case = CASES[name]()
    coupled = coupled_groups(case.model, case.inputs(2))
    found = {as_sets([(s.name, s.dim, list(s.indices)) for s in group.slices]) for group in coupled.groups}
    for groups in case.groups:
        for group in groups:
            assert as_sets(group.makes + group.reads) in found


def test_outputs_and_normalised_channels_are_in_no_group() -> None:
    case = CASES["gpt"]()
    coupled = coupled_groups(case.model, case.inputs(2))
    names = {piece.name for group in coupled.groups for piece in group.slices}
    assert not names & {"wte.weight", "wpe.weight", "ln_f.weight", "h.0.ln_1.weight"}
    assert len(coupled.groups) == sum(map(len, case.groups))
    assert "slices of each" in str(coupled)


def test_the_makers_are_told_from_the_readers() -> None:
    case = CASES["lenet"]()
    coupled = coupled_groups(case.model, case.inputs(2))
    pieces = {(s.name, s.dim): s.makes for group in coupled.groups for s in group.slices}
    assert pieces["conv2.weight", 0]
    assert not pieces["conv2.weight", 1]
    assert pieces["norm1.bias", 0]


@pytest.mark.parametrize("name", ["lenet", "gpt", "resnet"])
def test_what_the_penalty_sets_to_zero_is_what_goes(name: str) -> None:
    """Shrink all weights of a random model by the proximal step alone: dead rows of the terms must go."""
    case = CASES[name]()
    coupled = coupled_groups(case.model, case.inputs(2))
    regularizer = coupled.regularizer(tl.GroupLasso(1.0, groups="channels"))
    dead = 0
    with torch.no_grad():
        for term in regularizer.terms:
            block = term.gather(term.parameters)
            step = float(block.norm(dim=1).median()) / block.shape[1] ** 0.5
            shrunk = term.penalty.prox(block, step)
            assert torch.equal(term.gather(term.scatter(shrunk)), shrunk)
            for parameter, part in zip(term.parameters, term.scatter(shrunk), strict=True):
                parameter.copy_(part)
            dead += int((shrunk == 0).all(1).sum()) * shrunk.shape[1]
    assert dead > 0
    case.model.eval()
    x = case.inputs(2)
    result = compact(case.model, x)
    before, after = result.table.before.parameters, result.table.after.parameters
    assert before - after >= dead
    torch.testing.assert_close(result.model(x), case.model(x), rtol=1e-4, atol=1e-4)


def test_training_with_the_penalty_and_compacting() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 1))
    x = torch.randn(200, 6)
    y = x[:, :1].relu() - x[:, 1:2]
    coupled = coupled_groups(model, x[:2])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    handle = tl.attach(optimizer, coupled.regularizer(tl.GroupLasso(0.03, groups="channels")))
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    result = compact(model, x[:2], optimizer=optimizer)
    units = result.model.get_submodule("0").out_features
    assert units < 20
    assert handle.regularizer.terms[0].shape == (units, 8)
    with torch.no_grad():
        before = float(nn.functional.mse_loss(result.model(x), y))
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.mse_loss(result.model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        assert float(nn.functional.mse_loss(result.model(x), y)) < before + 0.01


def test_members_that_own_several_slices() -> None:
    weight, bias = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(3))
    index = torch.tensor([[0, 3], [1, 4], [2, 5]])
    term = Term(tl.GroupLasso(0.1), (Member("w", weight, 0, index), Member("b", bias)))
    block = term.gather(term.parameters)
    assert block.shape == term.shape == (3, 5)
    assert torch.equal(block[1], torch.cat([weight[1], weight[4], bias[1:2]]))
    assert all(torch.equal(a, b) for a, b in zip(term.scatter(block), term.parameters, strict=True))
    with pytest.raises(RuleError, match="every position"):
        Term(tl.GroupLasso(0.1), (Member("w", weight, 0, index[:2]), Member("b", bias)))


def test_a_model_without_groups_is_refused() -> None:
    with pytest.raises(RuleError, match="no coupled set"):
        coupled_groups(nn.Linear(3, 2), torch.randn(2, 3)).regularizer(tl.GroupLasso(0.1))


def test_killed_groups_agree_with_the_table() -> None:
    case = CASES["lenet"]()
    gone = kill(case, 0.5, torch.Generator().manual_seed(0))
    table = compact(case.model, case.inputs(2)).table
    assert table.before.parameters - table.after.parameters == gone
