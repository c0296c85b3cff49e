"""Selection one can trust, as tables: false discoveries and false selections beside what was promised.

Data with a known truth, many times over: which share of the features that the knockoff filter selects is
false, and how many false ones stability selection lets through.
"""

import argparse
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import sklearn
import torch
from scipy.linalg import toeplitz
from sklearn.linear_model import LassoCV, LassoLars

import torchlasso as tl
from torchlasso.knockoffs import Statistic, knockoff_filter, knockoff_threshold
from torchlasso.stability import stability_selection

ROWS, COLUMNS, TRUE = 300, 100, 20
LEVELS = (0.1, 0.2)

Data = tuple[np.ndarray, np.ndarray, set[int]]


def linear(seed: int) -> Data:
    rng = np.random.default_rng([seed, 0])
    x = rng.multivariate_normal(np.zeros(COLUMNS), toeplitz(0.5 ** np.arange(COLUMNS)), size=ROWS)
    support = rng.choice(COLUMNS, TRUE, replace=False)
    y = x[:, support] @ rng.choice([-0.4, 0.4], TRUE) + rng.normal(size=ROWS)
    return x, y, set(support.tolist())


def absolute(seed: int) -> Data:
    """Return data in which no straight line sees anything."""
    rng = np.random.default_rng([seed, 1])
    x = rng.normal(size=(500, 32))
    support = rng.choice(32, 12, replace=False)
    y = np.abs(x[:, support]).sum(axis=1) + 0.2 * rng.normal(size=500)
    return x, y, set(support.tolist())


def knockoff_rows(
    name: str, make: Callable[[int], Data], estimator: object, statistic: Statistic, method: str, repeats: int
) -> list[str]:
    started = time.perf_counter()
    shares: dict[float, list[float]] = {level: [] for level in LEVELS}
    power: dict[float, list[float]] = {level: [] for level in LEVELS}
    for seed in range(repeats):
        x, y, support = make(seed)
        found = knockoff_filter(estimator, x, y, statistic=statistic, method=method, random_state=seed)
        for level in LEVELS:
            reached = found.statistics >= knockoff_threshold(found.statistics, level)
            chosen = set(np.flatnonzero(reached).tolist())
            shares[level].append(len(chosen - support) / max(len(chosen), 1))
            power[level].append(len(chosen & support) / len(support))
    seconds = (time.perf_counter() - started) / repeats
    return [
        f"| {name} | {statistic} | {method} | {level:g} | {np.mean(shares[level]):.3f} ± "
        f"{np.std(shares[level], ddof=1) / repeats**0.5:.3f} | {np.mean(power[level]):.2f} | {repeats} | "
        f"{seconds:.2f} |"
        for level in LEVELS
    ]


def stability_rows(first: int, repeats: int) -> list[str]:
    thresholds = (0.6, 0.75, 0.9)
    false: dict[float, list[int]] = {t: [] for t in thresholds}
    true: dict[float, list[float]] = {t: [] for t in thresholds}
    for seed in range(repeats):
        x, y, support = linear(seed)
        estimator = LassoLars(alpha=0.0, max_iter=first + 20)
        found = stability_selection(estimator, x, y, first=first, pairs=25, random_state=seed)
        for threshold in thresholds:
            chosen = set(found.at(threshold).selected.tolist())
            false[threshold].append(len(chosen - support))
            true[threshold].append(len(chosen & support) / TRUE)
    return [
        f"| {first} | {t:g} | {np.mean(false[t]):.2f} ± {np.std(false[t], ddof=1) / repeats**0.5:.2f} | "
        f"{found.at(t).pfer:.2f} | {found.at(t).pfer_r_concave:.2f} | {np.mean(true[t]):.2f} | {repeats} |"
        for t in thresholds
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the selection tables as Markdown.")
    parser.add_argument("--quick", action="store_true", help="two repeats: a test that it runs, no result")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    few, many = (2, 2) if quick else (8, 60)
    print(
        f"torchlasso {tl.__version__}, torch {torch.__version__}, scikit-learn {sklearn.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, one thread, {datetime.now(UTC):%Y-%m-%d}"
    )
    print(
        f"\n### Knockoffs\n\nLinear: {ROWS} rows, {COLUMNS} features, {TRUE} true, neighbours correlated ½.\n"
    )
    print("| data | statistic | copies | level | false discovery rate | power | repeats | seconds |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    lars = LassoLars(alpha=0.0, max_iter=120)
    network = tl.LassoMLPRegressor((16,), penalty="features", strength="0.02max")
    for method in ("mvr", "equicorrelated"):
        print(*knockoff_rows("linear", linear, LassoCV(cv=3), "difference", method, many), sep="\n")
    print(*knockoff_rows("linear", linear, lars, "signed max", "mvr", many), sep="\n")
    print(*knockoff_rows("absolute values, network", absolute, network, "difference", "mvr", few), sep="\n")
    print(
        *knockoff_rows("absolute values, lasso", absolute, LassoCV(cv=3), "difference", "mvr", many), sep="\n"
    )
    print("\n### Stability selection\n\nThe linear data; 25 pairs of halves; the first q on the path.\n")
    print("| q | threshold | false, mean | bound | r-concave bound | power | repeats |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for first in (10, 25):
        print(*stability_rows(first, 2 if quick else 20), sep="\n")


if __name__ == "__main__":
    main()
