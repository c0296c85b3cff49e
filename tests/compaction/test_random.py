"""Random graphs: whatever is set to zero, the outputs stay."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchlasso.compaction.compact import compact


class Chain(nn.Module):
    """A chain of random blocks on images, and then on vectors."""

    def __init__(self, kinds: list[str], ends: list[str]) -> None:
        super().__init__()
        self.kinds, self.ends, self.parts = kinds, ends, nn.ModuleDict()
        width = 4
        for i, kind in enumerate(kinds):
            self.parts[f"c{i}"] = _image_part(kind, width)
            width = 6 if kind == "conv" else width + 2 if kind == "cat" else width
        self.fc = nn.Linear(width * 9, 5)
        self.tail = nn.ModuleList([nn.Linear(5, 5) for _ in ends])
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        for i, kind in enumerate(self.kinds):
            y = self.parts[f"c{i}"](x)
            x = x + y if kind in ("add", "depth") else torch.cat([x, y], 1) if kind == "cat" else y
        x = self.fc(x.flatten(1)).relu()
        for kind, part in zip(self.ends, self.tail, strict=True):
            y = part(x).tanh()
            x = x * y if kind == "mul" else x + y if kind == "add" else y
        return self.head(x)


def _image_part(kind: str, width: int) -> nn.Module:
    if kind == "norm":
        return nn.BatchNorm2d(width)
    if kind == "relu":
        return nn.ReLU()
    if kind == "depth":
        return nn.Conv2d(width, width, 3, padding=1, groups=width)
    out = {"conv": 6, "add": width, "cat": 2}[kind]
    return nn.Conv2d(width, out, 3, padding=1) if kind != "cat" else nn.Conv2d(width, out, 1)


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(["conv", "norm", "relu", "add", "cat", "depth"]), max_size=5),
    st.lists(st.sampled_from(["plain", "add", "mul"]), max_size=3),
    st.integers(0, 10_000),
)
def test_random_zeros_in_random_graphs(kinds: list[str], ends: list[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = Chain(kinds, ends).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            for dim in range(min(parameter.ndim, 2)):
                dead = torch.rand(parameter.shape[dim], generator=generator) < 0.4
                parameter.index_fill_(dim, dead.nonzero().flatten(), 0.0)
    x = torch.randn(2, 4, 3, 3, generator=generator).double()
    small = compact(model, x).model
    fresh = torch.randn(3, 4, 3, 3, generator=generator).double()
    with torch.no_grad():
        torch.testing.assert_close(small(fresh), model(fresh), rtol=1e-11, atol=1e-11)
    again = compact(small, x)
    assert again.table.after.parameters <= again.table.before.parameters


def test_what_was_compacted_has_nothing_left_to_remove() -> None:
    torch.manual_seed(3)
    model = Chain(["conv", "norm", "relu", "conv", "cat"], ["plain", "mul"]).double().eval()
    with torch.no_grad():
        model.parts["c0"].weight[2:4] = 0
        model.parts["c0"].bias[2:4] = 0
        model.fc.weight[1] = 0
    x = torch.randn(2, 4, 3, 3).double()
    first = compact(model, x)
    second = compact(first.model, x)
    assert second.table.after.parameters == first.table.after.parameters < first.table.before.parameters
