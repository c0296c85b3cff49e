import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.compaction.models import CASES, Case, kill, unsettle
from torchlasso.compaction.compact import compact
from torchlasso.errors import CompactionError, InputError


def shaped(inputs: object, dtype: torch.dtype) -> object:
    return pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)


def outputs(model: nn.Module, inputs: object) -> list[Tensor]:
    with torch.no_grad():
        result = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def check(case: Case, share: float) -> None:
    """Kill a share, compact, and compare outputs on fresh inputs of other batch sizes in both precisions."""
    generator = torch.Generator().manual_seed(1)
    unsettle(case.model, generator)
    gone = kill(case, share, generator)
    case.model.double().eval()
    result = compact(case.model, shaped(case.inputs(1), torch.float64))
    before = sum(p.numel() for p in case.model.parameters())
    after = sum(p.numel() for p in result.model.parameters())
    assert before - after >= 0.95 * gone
    assert result.max_error < 1e-12
    assert not result.model.training
    for batch in (1, 5):
        inputs = shaped(case.inputs(batch), torch.float64)
        for a, b in zip(outputs(case.model, inputs), outputs(result.model, inputs), strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=1e-12)
    case.model.float()
    small = compact(case.model, shaped(case.inputs(2), torch.float32)).model
    inputs = shaped(case.inputs(3), torch.float32)
    for a, b in zip(outputs(case.model, inputs), outputs(small, inputs), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", list(CASES))
def test_outputs_stay_and_what_is_dead_goes(name: str, share: float) -> None:
    check(CASES[name](), share)


def test_names_layers_and_modes_are_the_original_ones() -> None:
    case = CASES["lenet"]()
    kill(case, 0.5, torch.Generator().manual_seed(0))
    small = compact(case.model, case.inputs(2)).model
    assert set(small.state_dict()) == set(case.model.state_dict())
    assert type(small.conv1) is nn.Conv2d
    assert small.conv1.out_channels == 5
    assert small.norm1.num_features == 5
    assert small.fc1.in_features == 90
    assert small.training
    assert small.norm1.training
    case.model.eval()
    assert not compact(case.model, case.inputs(2)).model.norm1.training


def test_the_original_is_left_as_it_is() -> None:
    case = CASES["lstm"]()
    kill(case, 0.5, torch.Generator().manual_seed(0))
    before = copy.deepcopy(case.model.state_dict())
    parameters = list(case.model.parameters())
    x = case.inputs(3)
    expected = case.model(x)
    small = compact(case.model, x).model
    assert all(a is b for a, b in zip(parameters, case.model.parameters(), strict=True))
    assert all(torch.equal(before[k], v) for k, v in case.model.state_dict().items())
    assert torch.equal(case.model(x), expected)
    shared = {p.data_ptr() for p in parameters} & {p.data_ptr() for p in small.parameters()}
    assert not shared


def test_copies_pickles_and_state_dicts() -> None:
    case = CASES["lenet"]()
    kill(case, 0.5, torch.Generator().manual_seed(0))
    small = compact(case.model.eval(), case.inputs(2)).model
    x = case.inputs(4)
    again = copy.deepcopy(small)
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its treespec
        assert torch.equal(pickle.loads(pickle.dumps(small))(x), small(x))


def test_tied_weights_stay_tied() -> None:
    case = CASES["tied"]()
    kill(case, 0.5, torch.Generator().manual_seed(0))
    small = compact(case.model, case.inputs(2)).model
    assert small.embed.weight is small.out.weight
    assert small.embed.weight.shape == (13, 10)


def test_the_tutorials_model() -> None:
    """Its network starts all ones: hidden units that an L1 path has set to zero go."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight[1:4] = 0
        model[0].bias[1:4] = torch.tensor([0.0, 0.5, -0.5])
        model[0].weight[:, 2] = 0
    result = compact(model, torch.randn(3, 6))
    assert result.model.get_submodule("0").weight.shape == (2, 5)
    assert result.model.get_submodule("2").weight.shape == (2, 2)
    x = torch.randn(7, 6)
    torch.testing.assert_close(result.model(x), model(x))


def test_a_constant_does_not_move_into_a_padded_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].bias.copy_(torch.tensor([1.0, 1.0, 1.0]))
    x = torch.randn(2, 2, 8, 8)
    result = compact(model, x)
    assert result.model.get_submodule("0").out_channels == 3
    assert any("constant other than 0" in each.reason for each in result.left_alone)
    model[2].padding = (0, 0)
    assert compact(model, x).model.get_submodule("0").out_channels == 2
    with torch.no_grad():
        model[0].bias[0] = -1.0  # behind the rectifier it is zero
    model[2].padding = (1, 1)
    assert compact(model, x).model.get_submodule("0").out_channels == 2


def test_a_branch_that_dies_whole_goes() -> None:
    case = CASES["resnet"]()
    with torch.no_grad():
        case.model.layer1[0].bn2.weight.zero_()
    x = case.inputs(2)
    case.model.eval()
    result = compact(case.model, x)
    names = dict(result.model.named_parameters())
    assert not any(name.startswith("layer1.0") for name in names)
    torch.testing.assert_close(result.model(x), case.model(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        case.model.layer1[0].bn2.bias.normal_()
    result = compact(case.model, x)
    assert not any(name.startswith("layer1.0") for name in dict(result.model.named_parameters()))
    torch.testing.assert_close(result.model(x), case.model(x), rtol=1e-5, atol=1e-5)


def test_the_scale_of_attention_stays_that_of_the_full_head() -> None:
    case = CASES["gpt"]()
    with torch.no_grad():
        for block in case.model.h:
            for row in range(0, 40, 2):  # one of the two dimensions of every query and key
                block.attn.qkv.weight[row] = 0
                block.attn.qkv.bias[row] = 0
    case.model.double().eval()
    x = case.inputs(2)
    result = compact(case.model, x)
    assert result.model.get_submodule("h.0.attn.qkv").out_features == 40
    torch.testing.assert_close(result.model(x), case.model(x), rtol=0, atol=1e-12)


def test_what_is_not_followed_is_left_alone_and_named() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).sort(-1).values)

    model = Sorted()
    with torch.no_grad():
        model.first.weight[1] = 0
        model.first.bias[1] = 0
        model.last.weight[:, 3] = 0
    x = torch.randn(3, 4)
    result = compact(model, x)
    assert sum(p.numel() for p in result.model.parameters()) == 44
    torch.testing.assert_close(result.model(x), model(x))
    assert any("sort" in str(each) and each.name == "first.weight" for each in result.left_alone)
    assert "left alone" in str(result)


def test_widths_are_multiples_on_demand() -> None:
    case = CASES["mlp"]()
    kill(case, 0.5, torch.Generator().manual_seed(0))
    small = compact(case.model, case.inputs(2), round_to=8).model
    assert small.get_submodule("0").out_features == 16
    assert small.get_submodule("3").out_features == 16
    x = case.inputs(9)
    torch.testing.assert_close(small.eval()(x), case.model.eval()(x))


def test_dropout_and_norms_follow_the_mode() -> None:
    case = CASES["mlp"]()
    small = compact(case.model, case.inputs(2)).model
    x = case.inputs(50)
    assert not torch.equal(small.train()(x), small(x))
    assert torch.equal(small.eval()(x), small(x))


def test_the_table_tells_what_went() -> None:
    case = CASES["lenet"]()
    gone = kill(case, 0.5, torch.Generator().manual_seed(0))
    result = compact(case.model, case.inputs(2))
    table = result.table
    assert table.before.parameters - table.after.parameters == gone
    assert table.removed == pytest.approx(gone / table.before.parameters)
    row = next(row for row in table.rows if row.name == "fc1.weight")
    assert (row.before, row.after) == ((30, 180), (15, 90))
    assert table.before.macs is not None
    assert table.after.macs is not None
    # of the first convolution: 2 images, 16×16 positions, 25 weights, 10 or 5 filters
    assert table.before.macs - table.after.macs > 2 * 256 * 25 * 5
    assert set(table.before.seconds) == {1, 64}
    text = str(result)
    assert "fc1.weight" in text
    assert "30×180" in text
    assert "ms, batch 64" in text


@pytest.mark.parametrize("bad", [0, -1, 2.5, True])
def test_bad_rounding_is_refused(bad: object) -> None:
    with pytest.raises(InputError, match="round_to"):
        compact(nn.Linear(2, 2), torch.randn(2, 2), round_to=bad)  # type: ignore[arg-type]


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(InputError, match="example_inputs"):
        compact(nn.Linear(2, 2), 3)
    with pytest.raises(InputError, match=r"torch\.export cannot trace"):
        compact(nn.Linear(2, 2), torch.randn(2, 5))


def test_a_model_that_would_differ_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchlasso.compaction import compact as module

    real = module.rebuild

    def broken(surgery: object) -> nn.Module:
        small = real(surgery)
        with torch.no_grad():
            next(iter(small.parameters())).add_(1.0)
        return small

    monkeypatch.setattr(module, "rebuild", broken)
    with pytest.raises(CompactionError, match="rounding"):
        compact(nn.Linear(3, 2), torch.randn(2, 3))
