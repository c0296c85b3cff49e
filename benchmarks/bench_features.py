"""Feature selection: the accuracy of a classifier on what was selected, and what the selection costs.

    OMP_NUM_THREADS=1 python benchmarks/bench_features.py --data FOLDER [--keep FILE] [--peer]

FOLDER of ``--data`` holds ``isolet1560.npz``, ``madelon.npz``, ``pcmac.npz`` (``X``, ``y``; the data of
scikit-feature), ``mnist.npz`` (that of Keras; its test half is used), ``mice_protein.npz`` (``X``, ``y``,
``mouse``) and ``splice_dna.npz``. Everything is chosen on the training rows; the test rows are read once a
seed. Times are CPU seconds of one thread, of the selection alone. ``--peer`` runs LassoNetClassifier of the
package lassonet in the same process.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from feature_data import PROBLEMS, Problem, tiny
from sklearn.feature_selection import f_classif
from sparse_runs import spread
from torch import Tensor, nn

import torchlasso as tl
from torchlasso.training import Batches, cosine, train

FRACTION = 0.9  # of the steps, by which the request is met


@dataclass(frozen=True)
class Recipe:
    """How ``select`` trains, the same for all data.

    Attributes:
        hidden: units of the hidden layer.
        steps: of SGD with momentum 0.9.
        batch: rows a step.
        lr: at first; it decays along a cosine.
        clip: standardised inputs are cut off here, so that no rare large value speaks for a whole feature.
        dropout: of the inputs.
        smoothing: of the labels.
        rounds: how often the group lasso is reweighted.
        epsilon: ε of the weights ``1/(‖w_j‖/max‖w‖ + ε)``.
    """

    hidden: int = 64
    steps: int = 2000
    batch: int = 64
    lr: float = 0.05
    clip: float = 3.0
    dropout: float = 0.5
    smoothing: float = 0.1
    rounds: int = 12
    epsilon: float = 0.1


def select(
    x: np.ndarray,
    y: np.ndarray,
    keep: int,
    seed: int,
    groups: Sequence[Sequence[int]] | None = None,
    recipe: Recipe | None = None,
) -> np.ndarray:
    """Return the features (or groups of them) that a sparse network uses, the most important first.

    A network with one hidden layer is trained under a group lasso on the columns of its first layer, whose
    strength is driven until ``keep`` columns are left.  The penalty of every column is reweighted as it goes,
    ``1/(‖w_j‖/max‖w‖ + ε)``: the logarithmic penalty of the norms, which no longer shrinks what is
    kept (Candès, Wakin and Boyd, J. Fourier Anal. Appl. 14, 2008).  Features are ordered by their norm, and
    those without one by when they vanished.

    Args:
        x: standardised rows ``[n, p]``.
        y: codes of the classes.
        keep: how many.
        seed: of the initial weights, the shuffling and the dropout.
        groups: lists of columns that are selected together; every column once.
        recipe: how to train.
    """
    recipe = recipe or Recipe()
    torch.manual_seed(seed)
    inputs, target = torch.from_numpy(x).float().clamp(-recipe.clip, recipe.clip), torch.from_numpy(y).long()
    first = nn.Linear(x.shape[1], recipe.hidden)
    rest = nn.Sequential(nn.ReLU(), nn.Linear(recipe.hidden, int(target.max()) + 1))
    model = nn.Sequential(nn.Dropout(recipe.dropout), first, *rest)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=0.9)
    strength = tl.TargetSparsity(keep=keep, of="groups", by_step=round(FRACTION * recipe.steps))
    columns = "columns" if groups is None else groups

    def norms() -> Tensor:
        sizes = first.weight.detach().square().sum(dim=0)
        parts = sizes if groups is None else torch.stack([sizes[list(group)].sum() for group in groups])
        return parts.sqrt()

    def regularizer(weights: Tensor | None) -> tl.Regularizer:
        return tl.Regularizer(first, {"weight": tl.GroupLasso(strength, groups=columns, weights=weights)})

    handle = tl.attach(optimizer, regularizer(None))
    until = round(0.6 * strength.by_step)  # where TargetSparsity reaches the request
    every = max(1, until // recipe.rounds)
    alive_until = torch.zeros(len(norms()))

    def on_step() -> None:
        if handle.steps % 10 == 0:
            alive_until[norms() > 0] = handle.steps
        if handle.steps % every == 0 and handle.steps <= until:
            share = norms() / norms().max()
            weights = (1 + recipe.epsilon) / (share + recipe.epsilon)
            handle.update(regularizer(weights))

    stream = Batches(inputs, target, recipe.batch, seed).stream()
    loss = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
    train(model, loss, stream, optimizer, steps=recipe.steps, decay=cosine, on_step=on_step)
    handle.remove()
    importance = norms().numpy()
    return np.lexsort((-alive_until.numpy(), -importance))[:keep]


# ---- what it is compared with ----------------------------------------------------------------------------


def univariate(problem: Problem, seed: int) -> np.ndarray:
    """Order the features by the F statistic of each alone, a group by its best."""
    inputs, target = problem.train
    varying = inputs.std(axis=0) > 0
    values = np.zeros(inputs.shape[1])
    values[varying] = f_classif(inputs[:, varying], target)[0]
    if problem.groups is not None:
        values = np.array([values[list(group)].max() for group in problem.groups])
    return np.argsort(-values, kind="stable")[: problem.keep]


def ours(problem: Problem, seed: int) -> np.ndarray:
    return select(*problem.train, problem.keep, seed, problem.groups)


def quick(problem: Problem, seed: int) -> np.ndarray:
    return select(*problem.train, problem.keep, seed, problem.groups, Recipe(hidden=16, steps=300))


class Enough(Exception):  # no error: it ends a path
    """The path is as far as it is needed, or its time is over."""


def lassonet(seconds: float) -> Callable[[Problem, int], np.ndarray]:
    """Return LassoNet's path with the defaults of its package.

    It ends at the first strength that leaves no more features than are asked for; those that vanished last
    make up for the missing ones.  When its time is over, the skip weights order the features that are left.
    """

    def run(problem: Problem, seed: int) -> np.ndarray:
        from lassonet import LassoNetClassifier

        groups = None if problem.groups is None else [list(group) for group in problem.groups]
        model = LassoNetClassifier(verbose=0, random_state=seed, torch_seed=seed, groups=groups)
        count = len(problem.groups or problem.train[0][0])
        alive_until, start = np.zeros(count), time.process_time()

        def watch(fitted: object, history: Sequence[object]) -> None:
            columns = history[-1].selected.numpy()  # type: ignore[attr-defined]
            chosen = columns if groups is None else np.array([columns[group].any() for group in groups])
            alive_until[chosen] = len(history)
            if chosen.sum() <= problem.keep or time.process_time() - start > seconds:
                raise Enough

        with contextlib.suppress(Enough):
            model.path(*problem.train, callback=watch)
        skip = model.model.skip.weight.detach().square().sum(dim=0).numpy()
        sizes = skip if groups is None else np.array([skip[group].sum() for group in groups])
        return np.lexsort((-sizes, -alive_until))[: problem.keep]

    return run


# ---- runs and tables -------------------------------------------------------------------------------------


def measured(method: Callable[[Problem, int], np.ndarray], problem: Problem, seed: int) -> dict[str, float]:
    """Select, and judge once."""
    start = time.process_time()
    chosen = method(problem, seed)
    seconds = time.process_time() - start
    found = {"seconds": seconds, "accuracy": problem.accuracy(chosen, seed)}
    if problem.truth is not None:
        found["true"] = 100 * len(problem.truth.intersection(chosen.tolist())) / len(chosen)
    return found


def table(problem: Problem, runs: dict[str, list[dict[str, float]]], everything: float) -> str:
    """Return the results of a problem as Markdown."""
    rows, features = problem.train[0].shape
    known = problem.truth is not None
    lines = [
        f"**{problem.title}**: {rows} training and {len(problem.test[1])} test rows; "
        f"all {features} features: {everything:.2f} %",
        "",
        f"| selection | seeds | test accuracy, % |{' which matter, % |' if known else ''} CPU seconds |",
        "|---|---:|---:|" + "---:|" * (1 + known),
    ]
    for name, found in runs.items():
        right = f" {spread([run['true'] for run in found], 1)} |" if known else ""
        accuracy = spread([run["accuracy"] for run in found], 2)
        seconds = spread([run["seconds"] for run in found], 1)
        lines.append(f"| {name} | {len(found)} | {accuracy} |{right} {seconds} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder of the npz files")
    parser.add_argument(
        "--only", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), help="some of the data"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="run lassonet as well, with one seed")
    parser.add_argument("--peer-seconds", type=float, default=600.0, help="CPU seconds it may take")
    parser.add_argument("--keep", type=Path, help="a file for the runs, a line of JSON each")
    parser.add_argument("--quick", action="store_true", help="a short run on digits: a test, no result")
    options = parser.parse_args()
    if options.data is None and not options.quick and set(options.only) != {"wide"}:
        parser.error("--data FOLDER is needed")
    torch.set_num_threads(1)
    methods = {
        "torchlasso": (quick if options.quick else ours, options.seeds),
        "F statistic, each feature alone": (univariate, 1),
    }
    if options.peer:
        methods["lassonet"] = (lassonet(options.peer_seconds), 1)
    problems = {"tiny": tiny} if options.quick else {name: PROBLEMS[name] for name in options.only}
    for key, load in problems.items():
        problem = load(options.data)
        runs: dict[str, list[dict[str, float]]] = {}
        for name, (method, seeds) in methods.items():
            for seed in range(seeds):
                runs.setdefault(name, []).append(measured(method, problem, seed))
                if options.keep:
                    with options.keep.open("a", encoding="utf-8") as stream:
                        line = {"data": key, "method": name, "seed": seed, **runs[name][-1]}
                        stream.write(json.dumps(line) + "\n")
        whole = problem.accuracy(np.arange(len(problem.groups or problem.train[0][0])), 0)
        print(table(problem, runs, whole), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
