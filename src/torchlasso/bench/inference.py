"""What zeros buy at inference: ``torchlasso bench inference``.

The same network is timed as it is, with sparse layers where these are measured to be faster, with its dead
units taken out, and with both, in turn, again and again in one process.  What is shown are medians, and
how many times as fast as the dense network each of them is.
"""

import argparse
import itertools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchlasso.bench.step import medians
from torchlasso.compaction.compact import compact
from torchlasso.sparse_layers import SparseLinear
from torchlasso.sparsification import sparsify

CALLS = 3
"""Calls in a row that are timed together: after the turn of a large network the first finds a cold cache."""

_HEADS = ("sparse", "compacted", "compacted, then sparse")


@dataclass(frozen=True)
class Zeros:
    """Where the zeros are.

    Attributes:
        scattered: the fraction of the weights that is zero, anywhere but in the last layer.
        dead: the fraction of the hidden units that is zero throughout.
    """

    scattered: float
    dead: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.scattered:.0%} scattered"] * (self.scattered > 0)
        return ", ".join([*parts, *[f"{self.dead:.0%} of the units dead"] * (self.dead > 0)])


PATTERNS = (Zeros(0.8), Zeros(0.9), Zeros(0.95), Zeros(0.0, 0.5), Zeros(0.0, 0.8), Zeros(0.9, 0.5))
"""The patterns that are shown."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        networks: name to the widths from input to output.
        batches: numbers of rows.
        patterns: where the zeros are.
        repeats: of every measurement.
    """

    networks: dict[str, tuple[int, ...]]
    batches: tuple[int, ...]
    patterns: tuple[Zeros, ...]
    repeats: int


def whole(repeats: int = 25) -> Size:
    """Return the sizes that the documentation shows.

    Args:
        repeats: of every measurement.
    """
    networks: dict[str, tuple[int, ...]] = {
        "LeNet-300-100": (784, 300, 100, 10),
        "wide": (2_048, 2_048, 2_048, 10),
    }
    return Size(networks, (1, 64), PATTERNS, repeats)


def quick() -> Size:
    """Return sizes that show no more than that everything runs."""
    return Size({"tiny": (16, 12, 8, 4)}, (1, 3), (Zeros(0.9), Zeros(0.9, 0.5)), 3)


def network(widths: Sequence[int], zeros: Zeros) -> nn.Sequential:
    """Return a network of random weights with zeros in it.

    Args:
        widths: from input to output.
        zeros: where the zeros are.
    """
    layers: list[nn.Module] = []
    alive = torch.ones(widths[0], dtype=torch.bool)
    for place, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=2):
        linear = nn.Linear(inputs, outputs)
        last = place == len(widths)
        with torch.no_grad():
            if not last:
                linear.weight[torch.rand(outputs, inputs) < zeros.scattered] = 0.0
            linear.weight[:, ~alive] = 0.0
            alive = torch.arange(outputs) >= (0 if last else round(zeros.dead * outputs))
            linear.weight[~alive] = 0.0
            linear.bias[~alive] = 0.0
        layers += [linear] if last else [linear, nn.ReLU()]
    return nn.Sequential(*layers).eval()


def inference_tables(size: Size) -> Iterator[str]:
    """Yield one table for each network and batch, a row a pattern of zeros.

    Args:
        size: how much is measured.
    """
    for name, widths in size.networks.items():
        for batch in size.batches:
            shape = "-".join(map(str, widths))
            heads = " | ".join(f"{head}, µs | faster" for head in _HEADS)
            lines = [
                f"**{name} ({shape}), batch {batch}**, {size.repeats} repeats",
                "",
                f"| zeros | dense, µs | {heads} | layers sparse |",
                "|---|---:" + "|---:|---:" * len(_HEADS) + "|---:|",
            ]
            yield "\n".join([*lines, *(_row(widths, zeros, batch, size.repeats) for zeros in size.patterns)])


def _row(widths: Sequence[int], zeros: Zeros, batch: int, repeats: int) -> str:
    """Return one line of a table."""
    x = torch.randn(batch, widths[0])
    dense = network(widths, zeros)
    sparse = sparsify(dense, x)
    small = compact(dense, x).model
    both = sparsify(small, x)
    models = dict(zip(("dense", *_HEADS), (dense, sparse, small, both), strict=True))
    with torch.inference_mode():
        turns = medians({name: _turn(model, x) for name, model in models.items()}, repeats)
    times = {name: seconds / CALLS for name, seconds in turns.items()}
    cells = [f"{1e6 * times[head]:,.1f} | {times['dense'] / times[head]:.2f}" for head in _HEADS]
    counts = " / ".join(
        str(sum(isinstance(layer, SparseLinear) for layer in model.modules())) for model in (sparse, both)
    )
    return f"| {zeros} | {1e6 * times['dense']:,.1f} | {' | '.join(cells)} | {counts} |"


def _turn(model: nn.Module, x: Tensor) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(CALLS):
            model(x)

    return turn


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables as Markdown.

    Args:
        argv: the arguments of the command line.
    """
    parser = argparse.ArgumentParser(prog="torchlasso bench inference", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a test that it runs, no result")
    parser.add_argument("--repeats", type=int, default=25, help="of every measurement (25)")
    given = parser.parse_args(argv)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}\n"
        "faster: the dense time divided by this one; layers sparse: without and after compaction"
    )
    for table in inference_tables(quick() if given.quick else whole(given.repeats)):
        print(f"\n{table}", flush=True)
