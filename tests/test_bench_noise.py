"""The benchmark of training on small batches runs, and tells the ways apart."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "bench_noise.py"
OPTIMIZERS = ("SGD, momentum 0.9, lr 0.3", "Adam, lr 0.03", "Adam, lr 0.1")
WAYS = {
    "L1 in the loss",
    "step, then soft(lr · strength)",
    "attach, memory=0 (last iterate)",
    "**attach**",
    "attach, memory=20",
    "attach, memory=100",
    "attach, memory=1000",
    "last iterate with a gate",
    "told the support beforehand",
}


@dataclass(frozen=True)
class Cell:
    """What the table says of a way under an optimizer: by seed, and the mean excess in thousandths."""

    nonzero: list[int]
    wrong: list[int]
    excess: float


def digits_cells(text: str) -> tuple[dict[tuple[str, str], Cell], dict[tuple[str, str], Cell]]:
    """Return the table's two halves, without and with the batch of left-over rows."""
    halves: tuple[dict[tuple[str, str], Cell], ...] = ({}, {})
    for line in re.findall(r"^\| (.+\| .*lr [\d.]+ \| \d.*) \|$", text, re.MULTILINE):
        way, optimizer, *rest = line.split(" | ")
        for half, (nonzero, wrong, excess) in zip(halves, (rest[:3], rest[3:]), strict=True):
            by_seed = [[int(n) for n in part.split(", ")] for part in (nonzero, wrong)]
            half[way, optimizer] = Cell(*by_seed, float(excess.split(" ± ")[0]))
    return halves[0], halves[1]


def quick(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), "--quick", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file like MNIST's, of noisy images that a few pixels tell apart."""
    generator = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("data") / "images.npz"
    arrays = {}
    for part, rows in (("train", 6_000), ("test", 300)):
        y = generator.integers(10, size=rows)
        x = generator.integers(60, size=(rows, 28, 28), dtype=np.uint8)
        x[np.arange(rows), 5, 5 + y] = 255
        arrays |= {f"x_{part}": x, f"y_{part}": y}
    np.savez(file, **arrays)
    return file


@pytest.fixture(scope="module")
def printed(mnist: Path) -> str:
    return quick(mnist.parent, "--mnist", str(mnist), "--keep", "runs.jsonl")


def test_the_optimum_is_that_of_scikit_learn(printed: str) -> None:
    strength = float(re.findall(r"strength_max = ([\d.]+)", printed)[0])
    nonzero, objective = re.findall(r"optimum: (\d+) of 640 nonzero, objective (\d\.\d+)", printed)[0]
    inputs, y = load_digits(return_X_y=True)
    x = StandardScaler().fit_transform(inputs)
    c = 1 / (len(y) * strength)
    model = LogisticRegression(l1_ratio=1, C=c, solver="saga", tol=1e-3, max_iter=2_000).fit(x, y)
    logits = x @ model.coef_.T + model.intercept_
    loss = np.log(np.exp(logits - logits[np.arange(len(y)), y][:, None]).sum(axis=1)).mean()
    close = loss + strength * np.abs(model.coef_).sum()  # stopped early, so above the optimum
    assert close * (1 - 1e-3) < float(objective) <= close
    assert int(nonzero) == pytest.approx((model.coef_ != 0).sum(), rel=0.1)


def test_a_few_epochs_tell_the_ways_apart(printed: str) -> None:
    full, rest = digits_cells(printed)
    assert set(full) == set(rest)
    assert {way for way, _ in full} == WAYS | {"DualAveraging"}
    for half in (full, rest):
        for name in OPTIMIZERS:
            assert half["L1 in the loss", name].nonzero == [640]
            assert half["step, then soft(lr · strength)", name].excess > 500
            assert half["**attach**", name].wrong[0] < half["attach, memory=0 (last iterate)", name].wrong[0]
            told = half["told the support beforehand", name]
            assert told.wrong[0] == 97 - told.nonzero[0] < 10  # nothing off the support


def test_the_net_has_no_exact_zero_without_a_proximal_step(printed: str) -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| 1 \| ([\d.]+) \| ([\d.]+) × \| ([\d.]+) \|$", printed, re.MULTILINE
    )
    zeros = {(method, shown): float(zero) for method, shown, zero, _, _ in rows}
    assert len(rows) == len(zeros) == 6
    for (method, _), zero in zeros.items():
        assert (zero == 0) == method.startswith("L1 in the loss")
    pruned = next(row for row in rows if row[0] == "magnitude pruning")
    assert pruned[1] == f"to {pruned[3]} ×"


def test_finished_runs_are_not_repeated(printed: str, mnist: Path) -> None:
    kept = mnist.parent / "runs.jsonl"
    before = kept.read_text(encoding="utf-8")
    again = quick(mnist.parent, "--mnist", str(mnist), "--keep", "runs.jsonl")
    assert again.split("### A deep net")[1] == printed.split("### A deep net")[1]
    assert kept.read_text(encoding="utf-8") == before


def test_the_document_shows_a_whole_run() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "bench_noise.py" in text
    full, rest = digits_cells(text.split("## Zeros under gradient noise")[1])
    for half in (full, rest):
        assert {way for way, _ in half} == WAYS | {"DualAveraging"}
        for name in OPTIMIZERS:
            assert all(abs(n - 97) <= 9 for n in half["**attach**", name].nonzero)
    for name in OPTIMIZERS:
        assert full["**attach**", name].excess <= 1.0  # thousandths
