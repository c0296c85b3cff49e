"""What ``compact`` made goes into a file and comes out of it without the code of its class."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchlasso.blueprint import named_tensors
from torchlasso.compaction.compact import compact
from torchlasso.saving import load, save


class Residual(nn.Module):
    """Two convolutions with a norm, a residual sum and a head, some channels of them dead."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)
        with torch.no_grad():
            for layer in (self.first, self.norm, self.second):
                layer.weight[:3] = 0.0
                layer.bias[:3] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu()
        out: Tensor = self.head((y + self.second(y)).mean((2, 3)))
        return out


class Reader(nn.Module):
    """A recurrent net with several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(20, 8), nn.Linear(6, 3)
        self.lstm = nn.LSTM(8, 6, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y, (h, c) = self.lstm(self.words(x))
        return {"out": self.out(y[:, -1]), "state": (h, c)}


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "x"),
    [
        (Residual, torch.randn(4, 3, 8, 8)),
        (Reader, torch.randint(0, 20, (4, 7))),
        (encoder, torch.randn(2, 5, 16)),
        (bert, torch.randint(0, 50, (2, 6))),
    ],
)
@pytest.mark.filterwarnings("ignore")  # those of tracing other people's models
def test_a_compacted_model_comes_back(tmp_path: Path, make: Any, x: Tensor) -> None:
    torch.manual_seed(0)
    small = compact(make().eval(), x).model
    save(small, tmp_path / "small.safetensors")
    back = load(tmp_path / "small.safetensors")
    assert back.training == small.training
    assert list(named_tensors(back)) == list(named_tensors(small))
    with torch.no_grad():
        (left, left_spec), (right, right_spec) = (pytree.tree_flatten(model(x)) for model in (small, back))
    assert left_spec == right_spec
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
