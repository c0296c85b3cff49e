"""The networks behind the estimators: a plain multilayer perceptron, and which of its parts are in use."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_generator = threading.Lock()  # torch's generator is one for all threads


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Have torch's own initialisation draw from a seed, and put the generator back afterwards.

    Threads that fit beside one another wait here for their turn.

    Args:
        seed: of the weights that are made inside.
    """
    with _generator, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone, where the weights are made
        yield


class Rescale(nn.Module):
    """Map standardised predictions back to the units of the target: ``x · scale + shift``.

    Args:
        scale: the target's standard deviation.
        shift: the target's mean.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("shift", torch.tensor(float(shift)))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x · scale + shift``."""
        return x * self.scale + self.shift


def build_mlp(
    inputs: int, hidden: Sequence[int], outputs: int, *, rescale: tuple[float, float] | None = None
) -> nn.Module:
    """Return Linear and ReLU in turn, a plain ``nn.Linear`` if there are no hidden layers.

    Args:
        inputs: number of features.
        hidden: widths of the hidden layers.
        outputs: number of outputs.
        rescale: scale and shift of a last, fixed map, for regression.

    Example:
        >>> build_mlp(4, (3,), 1)
        Sequential(
          (hidden1): Linear(in_features=4, out_features=3, bias=True)
          (relu1): ReLU()
          (output): Linear(in_features=3, out_features=1, bias=True)
        )
    """
    if not hidden and rescale is None:
        return nn.Linear(inputs, outputs)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = inputs
    for number, units in enumerate(hidden, start=1):
        layers[f"hidden{number}"] = nn.Linear(width, units)
        layers[f"relu{number}"] = nn.ReLU()
        width = units
    layers["output"] = nn.Linear(width, outputs)
    if rescale is not None:
        layers["rescale"] = Rescale(*rescale)
    return nn.Sequential(layers)


def linear_layers(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Return the linear layers from input to output, with the names of their weights.

    Args:
        module: what ``build_mlp`` returned.
    """
    return [
        (f"{n}.weight" if n else "weight", m) for n, m in module.named_modules() if isinstance(m, nn.Linear)
    ]


def used_features(module: nn.Module) -> Tensor:
    """Return which inputs reach an output through nonzero weights.

    A weight into a hidden unit that nothing reads does not count: such an input changes no prediction.

    Args:
        module: what ``build_mlp`` returned.

    Returns:
        A boolean vector of one entry an input.
    """
    layers = [layer for _, layer in linear_layers(module)]
    read = torch.ones(layers[-1].out_features, dtype=torch.bool, device=layers[-1].weight.device)
    for layer in reversed(layers):
        read = (layer.weight.detach()[read] != 0).any(dim=0)
    return read


@torch.no_grad()
def clear_unread_units(module: nn.Module) -> None:
    """Set to zero what leads into hidden units that nothing reads; no prediction changes.

    Args:
        module: what ``build_mlp`` returned.
    """
    layers = [layer for _, layer in linear_layers(module)]
    for layer, reader in zip(reversed(layers[:-1]), reversed(layers[1:]), strict=True):
        unread = (reader.weight == 0).all(dim=0)
        layer.weight[unread] = 0.0
        layer.bias[unread] = 0.0
