"""The hierarchical regularizer on a residual network: what it penalises, and which features it leaves."""

import pytest
import torch
from torch import Tensor, nn

import torchlasso as tl
from torchlasso.errors import InputError, RuleError
from torchlasso.hierarchy import hierarchical


class ResidualNet(nn.Module):
    """A linear model plus one hidden layer."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.skip = nn.Linear(inputs, outputs, bias=False)
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.layers(x)


def test_a_row_of_the_block_is_a_feature() -> None:
    model = ResidualNet(5, 4, 3)
    (term,) = hierarchical(model, skip="skip", first="layers.0", strength=0.1, M=2.0, inner=0.5).terms
    assert tuple(term.shape) == (5, 7)
    block = term.gather([p.detach() for p in term.parameters])
    assert torch.equal(block[2, :3], model.skip.weight[:, 2])
    assert torch.equal(block[2, 3:], model.layers[0].weight[:, 2])
    assert (term.penalty.M, term.penalty.skip, term.penalty.inner) == (2.0, 3, 0.5)  # type: ignore[attr-defined]
    assert term.name == "skip.weight+layers.0.weight"


def test_the_value_is_the_definition() -> None:
    model = ResidualNet(4, 3, 2)
    with torch.no_grad():
        model.layers[0].weight.mul_(1e-3)
    regularizer = hierarchical(model, skip="skip", first="layers.0", strength=2.0, inner=0.5)
    expected = model.skip.weight.norm(dim=0).sum() + 0.5 * model.layers[0].weight.abs().sum()
    assert torch.allclose(regularizer(), 2.0 * expected)
    regularizer().backward()
    assert model.layers[2].weight.grad is None


@pytest.mark.parametrize("name", ["layers", "layers.1", "nothing", ""])
def test_a_name_that_is_no_linear_layer_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(RuleError, match=r"its linear layers are: skip, layers\.0, layers\.2"):
        hierarchical(ResidualNet(4, 3, 2), skip="skip", first=name, strength=0.1)


def test_layers_that_do_not_fit_are_refused() -> None:
    model = ResidualNet(4, 3, 2)
    with pytest.raises(RuleError, match=r"'skip' reads 4 and 'layers\.2' reads 3"):
        hierarchical(model, skip="skip", first="layers.2", strength=0.1)
    with pytest.raises(RuleError, match="are the same layer"):
        hierarchical(model, skip="skip", first="skip", strength=0.1)
    with pytest.raises(InputError, match="M must be"):
        hierarchical(model, skip="skip", first="layers.0", strength=0.1, M=-1.0)
    model.skip.weight.requires_grad_(False)
    with pytest.raises(RuleError, match=r"skip\.weight is frozen"):
        hierarchical(model, skip="skip", first="layers.0", strength=0.1)


def test_a_fraction_of_the_largest_strength_is_resolved() -> None:
    torch.manual_seed(0)
    model, batches = ResidualNet(4, 3, 1), [(torch.randn(20, 4), torch.randn(20, 1))]
    loss = nn.functional.mse_loss
    regularizer = hierarchical(model, skip="skip", first="layers.0", strength="0.5max")
    resolved = regularizer.resolve(model, loss, batches)
    largest = tl.strength_max(model, regularizer, loss, batches)
    assert largest["skip.weight"] == largest["layers.0.weight"] > 0
    assert resolved.terms[0].penalty.strength == pytest.approx(0.5 * largest["skip.weight"])


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_features_that_play_no_part_vanish(optimizer: str) -> None:
    """Three of twelve features matter, two of them not linearly; the fixed read-out fixes the scale."""
    torch.manual_seed(0)
    x = torch.randn(200, 12, dtype=torch.float64)
    y = 2 * x[:, :1] + (x[:, 1:2] + x[:, 1:2].abs()) + 2 * x[:, 2:3].sin()
    model = ResidualNet(12, 8, 1).double()
    out = model.layers[2].requires_grad_(False)
    out.weight.copy_(torch.tensor([[0.5, -0.5] * 4]))
    trained = [p for p in model.parameters() if p.requires_grad]
    made = {
        "momentum": lambda: torch.optim.SGD(trained, lr=0.01, momentum=0.9),
        "adam": lambda: torch.optim.Adam(trained, lr=0.01),
    }[optimizer]()
    regularizer = hierarchical(
        model, skip="skip", first="layers.0", strength=lambda step: 4.0 * min(1.0, step / 400), M=2.0
    )
    tl.attach(made, regularizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda t: 0.995 ** max(t - 800, 0))
    for _ in range(1500):
        made.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        made.step()
        schedule.step()
    used = model.layers[0].weight.detach().abs().amax(0).nonzero().flatten().tolist()
    assert used == model.skip.weight[0].nonzero().flatten().tolist() == [0, 1, 2]
    limit = 2.0 * model.skip.weight[0].abs() * (1 + 1e-12)
    assert bool((model.layers[0].weight.abs() <= limit).all())
    found = tl.certificate(model, regularizer, nn.functional.mse_loss, [(x, y)])
    assert found.residual < 0.01
    assert found.slack is not None
    assert found.slack > 0.2
