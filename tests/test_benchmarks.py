"""The benchmark script runs, and its document shows what it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "bench_tables.py"
ROW = re.compile(
    r"^\| (attach|L1 in the loss|step, then soft) \| ([^|]+) \| (\d+) \| ([^|]+) \|$", re.MULTILINE
)
OPTIMIZERS = {"SGD", "SGD, momentum 0.9", "Adam"}


def tables(text: str) -> list[dict[tuple[str, str], tuple[int, float]]]:
    """Return, for both problems, nonzeros and excess by way and optimizer."""
    found = [
        {(way, name): (int(n), 0.0 if "below" in e else float(e)) for way, name, n, e in ROW.findall(part)}
        for part in text.split("\n**")[1:3]
    ]
    assert all(len(table) == 9 and {name for _, name in table} == OPTIMIZERS for table in found)
    return found


@pytest.mark.slow
def test_the_quick_benchmark_runs(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), "--quick"],
        cwd=tmp_path,
        env=os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for table in tables(result.stdout):
        for name in ("SGD, momentum 0.9", "Adam"):  # 50 steps tell these apart already
            assert table["attach", name][1] < table["step, then soft", name][1] / 5
        plain, ours = table["step, then soft", "SGD"], table["attach", "SGD"]  # the same but for the evidence
        assert ours[0] <= plain[0]
        assert ours[1] < 1.1 * plain[1]


def test_the_document_shows_a_whole_run() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "make bench" in text
    assert re.search(r"torchlasso [\d.]+, torch [\d.+a-z]+, .*OMP_WAIT_POLICY=passive, \d{4}-\d\d-\d\d", text)
    for table in tables(text):
        optimum = table["attach", "Adam"][0]
        for name in OPTIMIZERS:
            assert table["attach", name][0] == optimum
            assert table["attach", name][1] < 1e-6
            assert table["L1 in the loss", name][1] > 1e-4
