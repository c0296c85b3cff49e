"""The benchmark of file sizes runs, and shows what it is there to show."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bench_files.py"
ROW = re.compile(r"^ *(\d+)%  (.{18})  +([\d,]+) +([\d.]+) +[\d.]+ +[\d.]+$", re.MULTILINE)


def test_the_benchmark_runs(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), "--runs", "1"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {(int(zeros), name.strip()): float(ratio) for zeros, name, _, ratio in ROW.findall(result.stdout)}
    assert len(rows) == 12
    assert rows[95, "torchlasso.save"] >= 12
    assert all(rows[zeros, "torchlasso.save"] > rows[zeros, "safetensors, CSR"] for zeros in (90, 95, 99))
