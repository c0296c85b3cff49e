"""What a penalty adds to the time of an optimizer step: ``torchlasso bench step``.

Every way to take the step is timed in turn, again and again in one process, so that a change of the
machine's load hits all of them; what is shown are medians and their ratios.  Set ``OMP_WAIT_POLICY=passive``:
with spinning threads and any other load, torch's many small parallel regions take far longer than they need.
"""

import argparse
import gc
import itertools
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchlasso.bench.ways import (
    STRENGTH,
    Shapes,
    Step,
    Way,
    adam_ways,
    sgd_ways,
    small_shapes,
    transformer_shapes,
)
from torchlasso.optim.attach import attach
from torchlasso.optim.fused import ProxAdamW
from torchlasso.optim.kernels.library import why_not
from torchlasso.penalties.separable import L1
from torchlasso.regularizer import Regularizer

# ---- measuring ----------------------------------------------------------------------------------------


def medians(ways: Mapping[str, Step], repeats: int) -> dict[str, float]:
    """Return the median time of each way in seconds, taken in turn after two steps that do not count.

    Args:
        ways: name to what is timed.
        repeats: how often.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    for turn in range(repeats + 2):
        for name, step in ways.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        big: shapes of the large model.
        small: shapes of the many small tensors.
        growth: numbers of parameters.
        width: of the network whose whole training step is timed.
        repeats: of every measurement.
        threads: numbers of threads.
    """

    big: Shapes
    small: Shapes
    growth: tuple[int, ...]
    width: int
    repeats: int
    threads: tuple[int, ...]


def whole(repeats: int = 25) -> Size:
    """Return the sizes that the documentation shows.

    Args:
        repeats: of every measurement.
    """
    threads = tuple(sorted({1, min(2, os.cpu_count() or 1)}))
    growth = tuple(10**exponent for exponent in range(5, 9))
    return Size(transformer_shapes(), small_shapes(), growth, 2_800, repeats, threads)


def quick() -> Size:
    """Return sizes that show no more than that everything runs."""
    return Size([(64, 64), (64,)], small_shapes(5), (1_000, 10_000), 32, 3, (1,))


# ---- the tables ---------------------------------------------------------------------------------------


def step_tables(size: Size) -> Iterator[str]:
    """Yield one table for each optimizer and set of shapes, a column a number of threads.

    Args:
        size: how much is measured.
    """
    kinds = (("AdamW", adam_ways), ("SGD, momentum 0.9", sgd_ways))
    for (kind, make), shapes in itertools.product(kinds, (size.big, size.small)):
        count = sum(torch.Size(shape).numel() for shape in shapes)
        title = (
            f"**{kind}, {count / 1e6:.1f}M parameters in {len(shapes):,} tensors**, {size.repeats} repeats"
        )
        ways = make(shapes)
        columns = {f"{n} thread{'s' * (n > 1)}": _with_threads(n, ways, size.repeats) for n in size.threads}
        yield "\n".join([title, "", *_rows(list(ways), columns, count)])


def growth_table(size: Size) -> Iterator[str]:
    """Yield the time a parameter from small to large models, all on the most threads.

    Args:
        size: how much is measured.
    """
    heads = ("AdamW(fused=True)", "ProxAdamW, memory=0", "ProxAdamW", "SGD(fused=True)", "ProxSGD")
    lines = [
        f"**Growth**, ns a parameter, {max(size.threads)} threads",
        "",
        f"| parameters | {' | '.join(heads)} |",
        "|---:" * (len(heads) + 1) + "|",
    ]
    for count in size.growth:
        shapes = [(n,) for n in _split(count)]
        needed = 4 * count * (4 + 4 + 5 + 3 + 4)
        if needed > 0.8 * _free_memory():
            lines.append(f"| {count:.0e} | not measured: needs {needed / 2**30:.0f} GiB" + " |" * len(heads))
            continue
        ways: dict[str, Step] = {
            heads[0]: Way(shapes).plain("AdamW"),
            heads[1]: Way(shapes).proximal("AdamW", 0),
            heads[2]: Way(shapes).proximal("AdamW", "auto"),
            heads[3]: Way(shapes).plain("SGD"),
            heads[4]: Way(shapes).proximal("SGD", "auto"),
        }
        times = _with_threads(max(size.threads), ways, max(3, size.repeats // 2))
        cells = " | ".join(f"{1e9 * times[head] / count:.2f}" for head in heads)
        lines.append(f"| {count:.0e} | {cells} |")
    yield "\n".join(lines)


def training_table(size: Size, batch: int = 256) -> Iterator[str]:
    """Yield the time of a whole training step of a network of two hidden layers.

    Args:
        size: how much is measured.
        batch: rows a batch.
    """
    ways = {name: _training(name, size.width, batch) for name in _TRAINING}
    times = _with_threads(max(size.threads), ways, size.repeats)
    base = next(iter(times.values()))
    count = sum(p.numel() for p in _network(size.width).parameters())
    lines = [
        f"**Whole training step, {count / 1e6:.1f}M parameters**, batch {batch}, {max(size.threads)} threads",
        "",
        "| way | median, ms | ratio |",
        "|---|---:|---:|",
    ]
    yield "\n".join([*lines, *(f"| {n} | {1e3 * t:.1f} | {t / base:.2f} |" for n, t in times.items())])


_TRAINING = (
    "AdamW(fused=True), no penalty",
    "ProxAdamW, memory=0",
    "ProxAdamW",
    "attach",
    "penalty in the loss",
)


def _training(way: str, width: int, batch: int) -> Step:
    """Return one step of training the network in one of the ways."""
    model = _network(width)
    x, y = torch.randn(batch, 784), torch.randint(10, (batch,))
    regularizer = Regularizer(model, L1(STRENGTH))
    optimizer: torch.optim.Optimizer
    if way.startswith("ProxAdamW"):
        optimizer = ProxAdamW(model.parameters(), regularizer, memory=0 if "memory=0" in way else "auto")
    else:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    if way == "attach":
        attach(optimizer, regularizer)

    def step() -> None:
        optimizer.zero_grad()
        loss: Tensor = nn.functional.cross_entropy(model(x), y)
        if way == "penalty in the loss":
            for parameter in model.parameters():
                loss = loss + STRENGTH * parameter.abs().sum()
        loss.backward()
        optimizer.step()

    return step


def _network(width: int) -> nn.Module:
    hidden = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def _with_threads(threads: int, ways: Mapping[str, Step], repeats: int) -> dict[str, float]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return medians(ways, repeats)
    finally:
        torch.set_num_threads(before)


def _rows(names: Sequence[str], columns: Mapping[str, Mapping[str, float]], count: int) -> list[str]:
    """Return the lines of a table: ns a parameter and the ratio to the first way, for every column."""
    heads = " | ".join(f"{head}, ns | ratio" for head in columns)
    lines = [f"| way | {heads} |", "|---" + "|---:" * (2 * len(columns)) + "|"]
    for name in names:
        cells = [f"{1e9 * t[name] / count:.2f} | {t[name] / t[names[0]]:.2f}" for t in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _split(count: int, most: int = 4_000_000) -> list[int]:
    """Return the sizes of tensors that hold ``count`` parameters together."""
    whole_ones, rest = divmod(count, most)
    return [most] * whole_ones + [rest] * (rest > 0)


def _free_memory() -> float:
    """Return the free memory in bytes, or infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables as Markdown.

    Args:
        argv: the arguments of the command line.
    """
    parser = argparse.ArgumentParser(prog="torchlasso bench step", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a test that it runs, no result")
    parser.add_argument("--repeats", type=int, default=25, help="of every measurement (25)")
    given = parser.parse_args(argv)
    size = quick() if given.quick else whole(given.repeats)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}, "
        f"C library: {why_not() or 'in use'}"
    )
    for table in itertools.chain(step_tables(size), growth_table(size), training_table(size)):
        print(f"\n{table}", flush=True)
