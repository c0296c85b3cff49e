"""The path of 100 strengths of linear models, beside scikit-learn, skglm and celer.

    OMP_NUM_THREADS=1 python benchmarks/bench_linear_path.py --data FOLDER [--quick]

FOLDER holds ``spambase.npz`` and ``pcmac.npz`` (``X``, ``y``); without it there is diabetes alone. The
strengths fall from the largest that matters to a hundredth of it, columns are standardised, there is no
intercept. Every solver gets the loosest of its tolerances at which the objectives are within 1e-8, relative,
of the best known, and is then timed: the median of rounds in which all take turns, after runs that compile
what has to be compiled.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from celer import celer_path
from numpy.typing import NDArray
from skglm import Lasso, SparseLogisticRegression
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression, lasso_path
from torch import nn

import torchlasso as tl
from torchlasso.optim.fista import fista

Array = NDArray[np.float64]
Solver = Callable[["Problem", Array, float], Array]
EXCESS = 1e-8
TOLERANCES = tuple(10.0**-e for e in range(3, 15))


@dataclass(frozen=True, eq=False)
class Problem:
    """A convex problem: ``loss(X·w) + λ·‖w‖₁`` with the mean logistic loss or half the mean squared error.

    Attributes:
        name: for people.
        x: ``[n, p]``, standardised.
        y: ``[n]``: −1 and 1 for the logistic loss, centred for the other.
        logistic: which loss.
    """

    name: str
    x: Array
    y: Array
    logistic: bool

    @property
    def largest(self) -> float:
        """The strength from which on nothing but zero is optimal."""
        slope = self.y / 2 if self.logistic else self.y
        return float(np.abs(self.x.T @ slope).max()) / len(self.y)

    def objectives(self, strengths: Array, weights: Array) -> Array:
        """Return the objective at every strength; the weights are ``[strengths, p]``."""
        outputs = weights @ self.x.T
        losses = np.logaddexp(0, -self.y * outputs) if self.logistic else 0.5 * (self.y - outputs) ** 2
        return losses.mean(axis=1) + strengths * np.abs(weights).sum(axis=1)


def standardised(x: Array) -> Array:
    scale = x.std(axis=0)
    return np.asfortranarray((x - x.mean(axis=0)) / np.where(scale > 0, scale, 1))


def problems(folder: Path | None) -> list[Problem]:
    x, y = load_diabetes(return_X_y=True)
    found = [Problem("lasso, diabetes", standardised(x), y - y.mean(), False)]
    for name in ("spambase", "pcmac") if folder else ():
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            x, y = arrays["X"].astype(np.float64), arrays["y"].ravel()
        signs = np.where(y == y.max(), 1.0, -1.0)
        inputs = standardised(np.log1p(x) if name == "pcmac" else x)
        found.append(Problem(f"logistic, {name}", inputs, signs, True))
    return found


# ---- solvers: from a problem, strengths that fall and a tolerance to the weights of every strength --------


def ours(problem: Problem, strengths: Array, tolerance: float) -> Array:
    x, y = torch.from_numpy(np.ascontiguousarray(problem.x)), torch.from_numpy(problem.y)
    layer = nn.Linear(x.shape[1], 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)

    def loss() -> torch.Tensor:
        output = layer(x).squeeze(1)
        if problem.logistic:
            return nn.functional.softplus(-y * output).mean()
        return 0.5 * nn.functional.mse_loss(output, y)

    metric, weights = {layer.weight: torch.ones_like(layer.weight)}, []
    for strength in strengths:
        regularizer = tl.Regularizer(layer, tl.L1(float(strength)))
        fista(loss, regularizer, [layer.weight], metric=metric, tolerance=tolerance)
        weights.append(layer.weight.detach()[0].numpy().copy())
    return np.array(weights)


def scikit_lasso(problem: Problem, strengths: Array, tolerance: float) -> Array:
    _, weights, _ = lasso_path(problem.x, problem.y, alphas=strengths, tol=tolerance, max_iter=100_000)
    return weights.T


def scikit_logistic(solver: str) -> Solver:
    def solve(problem: Problem, strengths: Array, tolerance: float) -> Array:
        model = LogisticRegression(
            l1_ratio=1, solver=solver, fit_intercept=False, tol=tolerance, max_iter=10_000, warm_start=True
        )
        found = [
            model.set_params(C=1 / (len(problem.y) * s)).fit(problem.x, problem.y).coef_[0] for s in strengths
        ]
        return np.array(found)

    return solve


def skglm_lasso(problem: Problem, strengths: Array, tolerance: float) -> Array:
    model = Lasso(tol=tolerance, fit_intercept=False, max_iter=100, max_epochs=50_000)
    return model.path(problem.x, problem.y, strengths)[1].T


def skglm_logistic(problem: Problem, strengths: Array, tolerance: float) -> Array:
    model = SparseLogisticRegression(
        tol=tolerance, fit_intercept=False, warm_start=True, max_iter=100, max_epochs=50_000
    )
    found = [model.set_params(alpha=s).fit(problem.x, problem.y).coef_.ravel().copy() for s in strengths]
    return np.array(found)


def celer(problem: Problem, strengths: Array, tolerance: float) -> Array:
    kind, scale = ("logreg", len(problem.y)) if problem.logistic else ("lasso", 1)
    alphas = strengths * scale
    _, weights, _ = celer_path(problem.x, problem.y, pb=kind, alphas=alphas, tol=tolerance, max_iter=100)
    return weights.T


def solvers(problem: Problem) -> dict[str, Solver]:
    if problem.logistic:
        rest: dict[str, Solver] = {
            "scikit-learn, liblinear": scikit_logistic("liblinear"),
            "scikit-learn, saga": scikit_logistic("saga"),
            "skglm": skglm_logistic,
        }
    else:
        rest = {"scikit-learn, lasso_path": scikit_lasso, "skglm": skglm_lasso}
    return {"torchlasso (FISTA, warm starts)": ours, **rest, "celer": celer}


# ---- measuring -------------------------------------------------------------------------------------------


def timed(solver: Solver, problem: Problem, strengths: Array, tolerance: float) -> tuple[float, Array]:
    start = time.process_time()
    weights = solver(problem, strengths, tolerance)
    return time.process_time() - start, weights


def calibrated(
    solver: Solver, problem: Problem, strengths: Array, best: Array, limit: float
) -> tuple[float | None, float]:
    """Return the loosest tolerance that is good enough, and the excess there; None if none is in the time.

    Args:
        solver: any.
        problem: to solve.
        strengths: a part of the path is enough.
        best: the lowest objectives known.
        limit: CPU seconds for one tolerance.
    """
    excess = np.inf
    for tolerance in TOLERANCES:
        seconds, weights = timed(solver, problem, strengths, tolerance)
        excess = min(excess, float((problem.objectives(strengths, weights) / best - 1).max()))
        if excess <= EXCESS:
            return tolerance, excess
        if seconds > limit:
            break
    return None, excess


def reference(problem: Problem, strengths: Array) -> Array:
    """Return the lowest objectives of two coordinate descents at tight tolerances."""
    tight = skglm_logistic if problem.logistic else skglm_lasso
    return np.minimum(
        *(problem.objectives(strengths, solve(problem, strengths, 1e-13)) for solve in (tight, celer))
    )


def table(problem: Problem, points: int, rounds: int, limit: float) -> str:
    """Return the times of a problem as Markdown."""
    strengths = problem.largest * np.geomspace(1, 0.01, points)
    best = reference(problem, strengths)
    some = slice(None, None, 11)  # the calibration looks at every eleventh strength, the last among them
    tolerances: dict[str, float | None] = {}
    excess: dict[str, float] = {}
    for name, solver in solvers(problem).items():
        tolerances[name], excess[name] = calibrated(solver, problem, strengths[some], best[some], limit)
    seconds: dict[str, list[float]] = {name: [] for name in tolerances}
    for _ in range(rounds):
        for name, solver in solvers(problem).items():
            tolerance = tolerances[name]
            if tolerance is not None:
                taken, weights = timed(solver, problem, strengths, tolerance)
                seconds[name].append(taken)
                excess[name] = float((problem.objectives(strengths, weights) / best - 1).max())
    rows, columns = problem.x.shape
    lines = [
        f"**{problem.name}**, {rows:,} rows, {columns:,} columns, {points} strengths from "
        f"{problem.largest:.4g} to a hundredth of it, medians of {rounds} rounds",
        "",
        "| solver | tolerance | largest excess, relative | CPU seconds |",
        "|---|---:|---:|---:|",
    ]
    for name, found in seconds.items():
        shown = f"{statistics.median(found):.3f}" if found else f"not within {limit:g} s a tolerance"
        tolerance = tolerances[name]
        lines.append(
            f"| {name} | {'–' if tolerance is None else f'{tolerance:.0e}'} | {excess[name]:.1e} | {shown} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder of the npz files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--limit", type=float, default=20.0, help="CPU seconds to try a tolerance on 10 strengths"
    )
    parser.add_argument(
        "--quick", action="store_true", help="diabetes alone, few strengths: a test, no result"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of solvers that stop at their last iteration: the excess tells
    points, rounds = (12, 1) if options.quick else (100, options.rounds)
    for problem in problems(None if options.quick else options.data):
        print(table(problem, points, rounds, options.limit), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
