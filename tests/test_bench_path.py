"""The benchmark of the path runs, and compares the three ways on both networks."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "bench_path.py"


def test_the_quick_benchmark_runs() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {7}
    ways = [row[1].strip() for row in rows[2:]]
    for way in ("one fit at 1se's strength", "**warm path**, min", "**warm path**, 1se", "cold path, min"):
        assert ways.count(way) == 2
    assert all(re.search(r"-?\d+\.\d{4} ± \d+\.\d{4}", row[5]) for row in rows[2:])
