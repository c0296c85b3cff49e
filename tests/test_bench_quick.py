"""The benchmarks of selection and of removed neurons run, and print a table that adds up."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def output_of(script: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", str(BENCHMARKS / script), *arguments],
        env=os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_removed_neurons(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (400, 28, 28), dtype=np.uint8), random.integers(0, 10, 400)
    images[:, :, 14:] = 0  # half of the inputs say nothing
    file = tmp_path / "mnist.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:50], y_test=labels[:50])
    printed = output_of(
        "bench_neurons.py", "--mnist", str(file), "--quick", "--seeds", "1", "--strengths", "0.05"
    )
    widths, operations = re.search(r"\| 0.05 \| 1 \| ([\d-]+) \| ([\d.]+) \|", printed).groups()  # type: ignore[union-attr]
    first, second, third, last = map(int, widths.split("-"))
    assert first <= 392
    assert last == 10
    made = first * second + second * third + third * last
    assert float(operations) == pytest.approx(2 * made / 1000, abs=0.05)


@pytest.mark.slow
def test_false_discoveries() -> None:
    printed = output_of("bench_selection.py", "--quick")
    knockoffs = re.findall(r"\| (0\.[12]) \| ([\d.]+) ± [\d.]+ \| [\d.]+ \| 2 \|", printed)
    stability = re.findall(r"\| ([\d.]+) ± [\d.]+ \| ([\d.]+) \| ([\d.]+) \| [\d.]+ \| 2 \|", printed)
    assert len(knockoffs) == 10
    assert len(stability) == 6
    assert all(float(false) <= float(bound) for false, bound, _ in stability)
