"""The benchmark of accuracy against sparsity runs, keeps its runs, and draws them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "bench_accuracy.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write files like those of MNIST and Fashion-MNIST, of noisy images that a few pixels tell apart."""
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    arrays = {}
    for part, idx, rows in (("train", "train", 1_300), ("test", "t10k", 100)):
        y = generator.integers(10, size=rows, dtype=np.uint8)
        x = generator.integers(60, size=(rows, 28, 28), dtype=np.uint8)
        x[np.arange(rows), 5, 5 + y] = 255
        arrays |= {f"x_{part}": x, f"y_{part}": y}
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (folder / f"{idx}-{kind}-ubyte").write_bytes(head + array.tobytes())
    np.savez(folder / "images.npz", **arrays)
    return folder


@pytest.mark.slow
def test_the_quick_benchmark_runs_and_goes_on_where_it_was_stopped(images: Path, tmp_path: Path) -> None:
    arguments = ["--fashion", str(images), "--quick", "--seeds", "1", "--keep", "runs", "--plot", "a.svg"]
    for attempt in range(2):
        result = subprocess.run(
            [sys.executable, "-W", "ignore::UserWarning", str(SCRIPT), *arguments],
            cwd=tmp_path,
            env=os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        rows = [line for line in result.stdout.splitlines() if line.startswith("| ") and "×" in line]
        lines = (tmp_path / "runs" / "fashion.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(rows) == len(lines) == 11  # two methods at two levels, and seven at one
        if attempt == 0:
            (tmp_path / "runs" / "fashion.jsonl").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
        else:
            again = [json.loads(line) for line in lines]
            assert len({(r["method"], r["level"], r["seed"]) for r in again}) == 11
    for line in lines:
        run = json.loads(line)
        if "pruning" in run["method"] or "cut" in run["method"]:
            assert run["outcome"]["compression"] == pytest.approx(run["level"], rel=1e-3)
    assert (tmp_path / "a.svg").stat().st_size > 10_000


def test_both_formats_hold_the_same_rows(images: Path) -> None:
    sys.path.insert(0, str(SCRIPT.parent))  # its neighbours are imported by name
    try:
        spec = importlib.util.spec_from_file_location("bench_accuracy", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    (train, test), (other, other_test) = module.npz(images / "images.npz"), module.idx(images)
    for (x, y), (v, z) in ((train, other), (test, other_test)):
        assert (x == v).all()
        assert (y == z).all()
    assert abs(float(train[0].mean())) < 1e-4
