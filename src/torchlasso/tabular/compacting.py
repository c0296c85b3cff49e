"""The model of a table made smaller: hidden units and columns that change no prediction are taken out."""

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.mlp import build_mlp, linear_layers
from torchlasso.tabular.cells import counted
from torchlasso.tabular.predictor import Predictor

_TOLERANCE = 1e-5  # of float32 sums in another order, relative to the largest output


@dataclass(frozen=True)
class Compacted:
    """What became of a model; ``print`` it for one line.

    Attributes:
        weights: number of weights and biases before and after.
        hidden: widths of the hidden layers before and after.
        dropped: columns of the table that are no longer needed.
        max_difference: the largest difference between the outputs of the two models for random rows,
            relative to the largest output.
    """

    weights: tuple[int, int]
    hidden: tuple[tuple[int, ...], tuple[int, ...]]
    dropped: tuple[str, ...]
    max_difference: float

    def __str__(self) -> str:
        before, after = self.weights
        widths = " → ".join(",".join(map(str, hidden)) or "none" for hidden in self.hidden)
        columns = f"{counted(len(self.dropped), 'column')} of the table no longer needed"
        return f"{before:,} → {after:,} weights, hidden layers {widths}, {columns}"


def compact_model_file(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Compacted:
    """Read the model of a table, take out what changes no prediction, and write the rest.

    Args:
        path: what ``torchlasso fit`` wrote.
        out: the file to write; it predicts like the other, from fewer columns.

    Returns:
        What was taken out.

    Raises:
        ModelFileError: the model file cannot be read.
        OutputError: the file cannot be written there.
    """
    predictor = Predictor.load(path)
    small, what = compact_predictor(predictor)
    small.save(out)
    return what


def compact_predictor(predictor: Predictor) -> tuple[Predictor, Compacted]:
    """Return a predictor of the same predictions without unused hidden units and table columns.

    A unit that nothing reads goes; so does one that reads nothing, and its constant value moves into the
    biases of its readers.  A column of the table goes when no matrix column of it is read; at least one
    unit a layer and one column stay.

    Args:
        predictor: it stays as it is.

    Raises:
        InputError: the predictions would change, because weights are infinite or not numbers.
    """
    weights, biases = _parameters(predictor.module)
    before = tuple(len(bias) for bias in biases[:-1])
    _take_out_units(weights, biases)
    encoder = predictor.encoder
    read = (weights[0] != 0).any(dim=0)
    used = [bool(read[group].any()) for group in encoder.groups]
    used[0] |= not any(used)
    columns = [i for group, keep in zip(encoder.groups, used, strict=True) if keep for i in group]
    weights[0] = weights[0][:, columns]
    dropped = tuple(name for name, keep in zip(encoder.feature_names, used, strict=True) if not keep)
    kept = tuple(column for column, keep in zip(encoder.columns, used, strict=True) if keep)
    small = Predictor(
        replace(encoder, columns=kept, dropped=(*encoder.dropped, *dropped)),
        _built(predictor.module, weights, biases),
    )
    worst = _difference(predictor.module, small.module, columns)
    if not worst <= _TOLERANCE:
        msg = (
            f"the compacted model would differ by {worst:.1e} of the largest output; are its weights finite?"
        )
        raise InputError(msg)
    sizes = (_size(predictor.module), _size(small.module))
    return small, Compacted(sizes, (before, tuple(len(bias) for bias in biases[:-1])), dropped, worst)


def _parameters(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    layers = [layer for _, layer in linear_layers(module)]
    return [x.weight.detach().clone() for x in layers], [x.bias.detach().clone() for x in layers]


def _take_out_units(weights: list[Tensor], biases: list[Tensor]) -> None:
    """Shrink the matrices in place of the old: forwards what is constant, then backwards what is unread."""
    for i in range(len(weights) - 1):
        constant = ~(weights[i] != 0).any(dim=1)
        moved = weights[i + 1][:, constant].double() @ biases[i][constant].relu().double()
        biases[i + 1] = (biases[i + 1].double() + moved).to(biases[i + 1].dtype)
        weights[i + 1][:, constant] = 0.0
    for i in reversed(range(len(weights) - 1)):
        alive = (weights[i + 1] != 0).any(dim=0)
        if not alive.any():
            alive[0] = True
        weights[i], biases[i] = weights[i][alive], biases[i][alive]
        weights[i + 1] = weights[i + 1][:, alive]


def _built(module: nn.Module, weights: list[Tensor], biases: list[Tensor]) -> nn.Module:
    """Return the network of these matrices, with what else the old one holds."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    names = [name.removesuffix("weight") for name, _ in linear_layers(module)]
    for name, weight, bias in zip(names, weights, biases, strict=True):
        state |= {f"{name}weight": weight, f"{name}bias": bias}
    rescale = (1.0, 0.0) if "rescale.scale" in state else None
    small = build_mlp(
        weights[0].shape[1], [len(bias) for bias in biases[:-1]], len(biases[-1]), rescale=rescale
    )
    small.load_state_dict(state, assign=True)
    return small.eval()


@torch.no_grad()
def _difference(old: nn.Module, new: nn.Module, columns: list[int]) -> float:
    first = linear_layers(old)[0][1].weight
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(256, first.shape[1], generator=generator, dtype=first.dtype)
    expected, found = old(rows), new(rows[:, columns])
    scale = expected.abs().max()
    return float((found - expected).abs().max() / (scale if scale > 0 else 1.0))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
