"""Models whose constants are none: sizes, numbers, memory that is shared; and what rides along."""

import pytest
import torch
from torch import Tensor, nn

import torchlasso as tl
from torchlasso.errors import InputError, ModelFileError


class Calls(nn.Module):
    """Two layers, the first with a unit that is constant, and some arithmetic between them."""

    def __init__(self, between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 2)
        nn.init.zeros_(self.first.weight[1].detach())
        self.between = between

    def forward(self, x: Tensor, *more) -> Tensor:
        return self.second(self.between(self.first(x), *more))


SIZES = {
    "divided": lambda h: h / h.shape[1],
    "scaled": lambda h: h * h.size(1) ** -0.5,
    "added": lambda h: h + h.shape[1],
    "full": lambda h: h + torch.full((1,), h.shape[1]),
    "new_full": lambda h: h + h.new_full((1,), h.shape[1]),
    "normalised": lambda h: nn.functional.normalize(h, dim=-1),
    "norm over an open size": lambda h: h.norm(dim=1),
}


@pytest.mark.parametrize("between", SIZES.values(), ids=SIZES)
def test_a_size_is_no_constant(between) -> None:
    model = Calls(between).double()
    small = tl.compact(model, torch.randn(5, 7, 6, dtype=torch.double)).model
    for shape in ((5, 7, 6), (2, 50, 6), (3, 2, 6)):
        x = torch.randn(shape, dtype=torch.double)
        torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_number_of_the_caller_is_refused() -> None:
    class Scaled(Calls):
        def forward(self, x: Tensor, k: float) -> Tensor:
            return self.second(self.first(x) * k)

    with pytest.raises(InputError, match=r"number 1\.5"):
        tl.compact(Scaled(None), (torch.randn(5, 6), 1.5))


def _masked_part(h: Tensor) -> Tensor:
    h[:, :3].mul_(0.5)
    return h


def _other_view(h: Tensor) -> Tensor:
    flat = h.view(-1, 4)
    h.add_(1.0)
    return flat


@pytest.mark.parametrize("between", [_masked_part, _other_view])
def test_shared_memory_that_changes_is_refused(between) -> None:
    with pytest.raises(InputError, match="in place"):
        tl.compact(Calls(between), torch.randn(5, 6))


def test_changes_in_place_that_nobody_else_sees_are_followed() -> None:
    model = Calls(lambda h: h.relu_().flatten(1).mul_(2.0)).double()
    x = torch.randn(5, 6, dtype=torch.double)
    small = tl.compact(model, x)
    assert small.model.get_submodule("first").out_features == 3
    torch.testing.assert_close(small.model(x), model(x), rtol=1e-12, atol=1e-12)


def test_parameters_of_others_stay_in_the_optimizer() -> None:
    model, head = Calls(torch.relu), nn.Linear(2, 1)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=0.1)
    x = torch.randn(5, 6)
    head(model(x)).sum().backward()
    optimizer.step()
    small = tl.compact(model, x, optimizer=optimizer).model
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in head.parameters()} <= held
    assert "exp_avg" in optimizer.state[head.weight]
    before = head.weight.detach().clone()
    optimizer.zero_grad()
    head(small(x)).sum().backward()
    optimizer.step()
    assert not torch.equal(head.weight, before)


def test_a_coupled_penalty_follows_flattened_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0.0, 0.0
    x = torch.randn(6, 1, 4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = tl.attach(
        optimizer, tl.coupled_groups(model, x).regularizer(tl.GroupLasso(0.1, groups="channels"))
    )
    small = tl.compact(model, x, optimizer=optimizer).model
    assert small.get_submodule("3").in_features == 12
    again = tl.coupled_groups(small, x).regularizer(tl.GroupLasso(0.1, groups="channels"))
    assert float(handle.regularizer().detach()) == pytest.approx(float(again().detach()), rel=1e-6)


def test_hooks_are_not_lost_in_a_file(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    tl.save(model, tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match="hook"):
        tl.load(tmp_path / "m.safetensors")
