"""Accuracy against sparsity: the penalties of torchlasso and magnitude pruning, all at one budget.

    OMP_WAIT_POLICY=passive python benchmarks/bench_accuracy.py --mnist mnist.npz --fashion FOLDER

``mnist.npz`` is the file that Keras distributes (``x_train``, ``y_train``, ``x_test``, ``y_test``), FOLDER
holds the four idx files of Fashion-MNIST, with or without ``.gz``.  A run takes one to four minutes of one
core; with ``--keep FOLDER`` finished ones are kept, and a second start goes on where the first was stopped.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sparse_runs import Method, Outcome, Plan, Riding, Rows, mlp, pruned, run, spread, weights
from torch import Tensor, nn
from torch.optim import Adam

import torchlasso as tl
from torchlasso.optim.evidence import MemorySteps

EPSILON, GAMMA = 0.02, 200.0  # of LogSum and MCP, chosen on the last 5,000 training rows of MNIST
SMOOTHING = 0.05  # of the labels, likewise
IN_THE_LOSS = 2e-5  # the strength of the penalty in the loss
FREEZE = 0.9  # of the steps with the penalty


@dataclass(frozen=True)
class Problem:
    """A network and its data.

    Attributes:
        title: for people.
        sizes: of the layers.
        levels: how many times fewer weights there are to be.
        middle: the level at which every method is run.
        load: reads the rows for training and testing.
    """

    title: str
    sizes: tuple[int, ...]
    levels: tuple[float, ...]
    middle: float
    load: Callable[[Path], tuple[Rows, Rows]]


def driven(make: Callable[[tl.TargetSparsity], tl.Penalty], memory: MemorySteps = "auto") -> Method:
    """Return a method that drives a penalty's strength to the compression that is asked for.

    The zeros are frozen before the learning rate has decayed to nothing: weights that come back in the last
    steps would have no time to leave again.
    """

    def method(model: nn.Module, compression: float, steps: int) -> Riding:
        optimizer = Adam(model.parameters())
        target = tl.TargetSparsity(1 - 1 / compression, by_step=round(FREEZE * steps))
        handle = tl.attach(optimizer, tl.Regularizer(model, make(target)), memory=memory)

        def on_step() -> None:
            if handle.steps == target.by_step:
                handle.freeze_zeros()

        return Riding(optimizer, handle.freeze_zeros, on_step=on_step)

    return method


def in_the_loss(model: nn.Module, compression: float, steps: int) -> Riding:
    """Add the penalty to the loss, and cut the smallest weights of the whole net before the refit."""
    optimizer, regularizer = Adam(model.parameters()), tl.Regularizer(model, tl.L1(IN_THE_LOSS))

    def loss_fn(output: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return nn.functional.cross_entropy(output, target, label_smoothing=label_smoothing) + regularizer()

    @torch.no_grad()
    def refit() -> None:
        sizes = torch.cat([w.abs().flatten() for w in weights(model)])
        least = sizes.kthvalue(round((1 - 1 / compression) * len(sizes))).values
        for w in weights(model):
            w[w.abs() <= least] = 0.0
        tl.attach(optimizer, regularizer).freeze_zeros()

    return Riding(optimizer, refit, loss_fn)


METHODS: dict[str, tuple[Method, float]] = {  # with the smoothing of the labels
    "LogSum, labels smoothed": (driven(partial(tl.LogSum, epsilon=EPSILON)), SMOOTHING),
    "magnitude pruning": (pruned, 0.0),
    "magnitude pruning, labels smoothed": (pruned, SMOOTHING),
    "LogSum (reweighted L1)": (driven(partial(tl.LogSum, epsilon=EPSILON)), 0.0),
    "L1": (driven(tl.L1), 0.0),
    "MCP": (driven(partial(tl.MCP, gamma=GAMMA)), 0.0),
    "ℓ½": (driven(tl.LHalf), 0.0),
    "L1, last iterate (memory=0)": (driven(tl.L1, memory=0), 0.0),
    "L1 in the loss, then cut": (in_the_loss, 0.0),
}
EVERYWHERE = tuple(METHODS)[:2]  # the others run at the middle level only


def npz(path: Path) -> tuple[Rows, Rows]:
    with np.load(path, allow_pickle=False) as arrays:
        return standardised(*(arrays[f"{kind}_{part}"] for part in ("train", "test") for kind in "xy"))


def idx(folder: Path) -> tuple[Rows, Rows]:
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return standardised(*(_read_idx(folder, name) for name in names))


def _read_idx(folder: Path, name: str) -> np.ndarray:
    plain, packed = folder / name, folder / f"{name}.gz"
    content = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def standardised(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> tuple[Rows, Rows]:
    """Return rows of pixels less their mean over their standard deviation, those of the training rows."""
    mean, scale = float(x.mean()), float(x.std())

    def rows(images: np.ndarray, labels: np.ndarray) -> Rows:
        pixels = (torch.from_numpy(images.copy()).flatten(1).float() - mean) / scale
        return pixels, torch.from_numpy(labels.copy()).long()

    return rows(x, y), rows(x_test, y_test)


PROBLEMS = {
    "mnist": Problem("MNIST, LeNet-300-100", (784, 300, 100, 10), (20, 50, 68, 100, 120), 68, npz),
    "fashion": Problem("Fashion-MNIST, 784-200-80-10", (784, 200, 80, 10), (1 / 0.06, 50), 1 / 0.06, idx),
}


@dataclass(frozen=True)
class Done:
    """A finished run."""

    method: str
    level: float
    seed: int
    outcome: Outcome
    minutes: float


def jobs(problem: Problem, seeds: Sequence[int]) -> list[tuple[str, float, int]]:
    """Return what is to be run, the most telling first, so that a stopped benchmark has whole rows."""
    middle = problem.middle
    others = tuple(level for level in reversed(problem.levels) if level != middle)
    parts = ((EVERYWHERE, (middle,)), (EVERYWHERE, others), (tuple(METHODS)[2:], (middle,)))
    return [
        (method, level, seed)
        for methods, levels in parts
        for level in levels
        for seed in seeds
        for method in methods
    ]


def done(name: str, data: Path, seeds: Sequence[int], plan: Plan, keep: Path | None) -> list[Done]:
    """Run what is not finished, and return all."""
    problem, file = PROBLEMS[name], keep and keep / f"{name}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file and file.exists() else []
    records = [json.loads(line) for line in lines]
    found = {(r["method"], r["level"], r["seed"]): r for r in records}
    train, test = problem.load(data)
    for method, level, seed in jobs(problem, seeds):
        if (method, level, seed) in found:
            continue
        ride, smoothing = METHODS[method]
        start = time.process_time()
        model = mlp(problem.sizes, seed)
        outcome = run(ride, level, model, seed, train, test, replace(plan, smoothing=smoothing))
        minutes = (time.process_time() - start) / 60
        done = Done(method, level, seed, outcome, minutes)
        found[method, level, seed] = asdict(done)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(done)) + "\n")
    return [Done(**{**record, "outcome": Outcome(**record["outcome"])}) for record in found.values()]


def table(problem: Problem, runs: Sequence[Done], plan: Plan) -> str:
    """Return the results as Markdown."""
    lines = [
        f"**{problem.title}**: {plan.epochs} epochs with the penalty, {plan.refit_epochs} of refit with the "
        "zeros frozen, Adam with cosine learning rate; trained on all training rows, tested once; mean ± "
        "standard deviation over seeds",
        "",
        "| method | asked for | seeds | weights left, % | compression | test accuracy, % | CPU minutes |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for level in problem.levels:
        for method in METHODS:
            same = [r for r in runs if (r.method, r.level) == (method, level)]
            if same:
                left = spread([100 / r.outcome.compression for r in same], 2)
                compression = spread([r.outcome.compression for r in same], 1)
                accuracy = spread([r.outcome.accuracy for r in same], 2)
                minutes = spread([r.minutes for r in same], 1)
                cells = (method, f"{level:.3g} ×", len(same), left, f"{compression} ×", accuracy, minutes)
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def draw(results: dict[str, list[Done]], file: Path) -> None:
    """Draw accuracy against the weights that are left."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(5.2 * len(results), 3.8), squeeze=False)
    for ax, (name, runs) in zip(axes[0], results.items(), strict=True):
        for method in METHODS:
            levels = [level for level in PROBLEMS[name].levels if any(r.level == level for r in runs)]
            groups = [[r for r in runs if (r.method, r.level) == (method, level)] for level in levels]
            groups = [group for group in groups if group]
            if not groups:
                continue
            x = [float(np.mean([100 / r.outcome.compression for r in group])) for group in groups]
            y = [[r.outcome.accuracy for r in group] for group in groups]
            style = {"marker": "o", "ms": 4, "capsize": 2, "lw": 1.2 if len(groups) > 1 else 0}
            ax.errorbar(
                x, [float(np.mean(v)) for v in y], [float(np.std(v)) for v in y], label=method, **style
            )
        ax.set(xscale="log", xlabel="weights left, %", ylabel="test accuracy, %", title=PROBLEMS[name].title)
        ticks = [100 / level for level in PROBLEMS[name].levels]
        ax.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        ax.minorticks_off()
        ax.grid(visible=True, alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", type=Path, help="the .npz file")
    parser.add_argument("--fashion", type=Path, help="the folder of idx files")
    parser.add_argument("--keep", type=Path, help="a folder for finished runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="where to draw (SVG)")
    parser.add_argument("--quick", action="store_true", help="one epoch each, to see that it runs")
    given = parser.parse_args()
    plan = Plan(epochs=1, refit_epochs=1) if given.quick else Plan()
    data = {name: getattr(given, name) for name in PROBLEMS if getattr(given, name)}
    if not data:
        parser.error("give --mnist FILE, --fashion FOLDER or both")
    results = {name: done(name, path, range(given.seeds), plan, given.keep) for name, path in data.items()}
    for name, runs in results.items():
        print(table(PROBLEMS[name], runs, plan), end="\n\n")
    if given.plot:
        draw(results, given.plot)


if __name__ == "__main__":
    main()
