"""The benchmark of feature selection runs, and its recipe tells features from noise."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bench_features.py"
ROW = re.compile(r"^\| ([^|]+) \| (\d+) \| ([\d.]+)[^|]*\| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)


@pytest.mark.slow
def test_the_quick_benchmark_finds_pixels_among_noise(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), "--quick", "--seeds", "1", "--keep", "runs.jsonl"],
        cwd=tmp_path,
        env=os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {name: (float(accuracy), float(true)) for name, _, accuracy, true, _ in ROW.findall(result.stdout)}
    everything = float(re.findall(r"all 128 features: ([\d.]+) %", result.stdout)[0])
    accuracy, true = rows["torchlasso"]
    assert true == 100.0
    assert accuracy > rows["F statistic, each feature alone"][0]
    assert accuracy > everything - 8
    lines = (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["method"] for line in lines] == list(rows)
