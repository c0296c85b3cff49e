"""How large a sparse model is in a file, and how long saving and loading take.

    OMP_NUM_THREADS=1 python benchmarks/bench_files.py

The model is a LeNet-300-100 (or ``--wide N``: two square layers of N units) with weights at zero at random.
Times are the fastest of several runs and include the disk; loading ends with all values in memory.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torchlasso.mlp import build_mlp
from torchlasso.saving import load, save

Way = tuple[str, Callable[[nn.Module, Path], None], Callable[[Path], object]]


def csr(model: nn.Module) -> dict[str, Tensor]:
    """Return the matrices as CSR with 32-bit indices, the rest as it is."""
    found = {}
    for name, tensor in model.state_dict().items():
        if tensor.dim() != 2:
            found[name] = tensor
            continue
        rows, columns = tensor.nonzero(as_tuple=True)
        found[f"{name}.crow"] = torch.searchsorted(rows, torch.arange(len(tensor) + 1)).int()
        found[f"{name}.col"] = columns.int()
        found[f"{name}.values"] = tensor[rows, columns]
    return found


def read_all(path: Path) -> dict[str, Tensor]:
    """Return copies: safetensors only maps a file, and reads it when the values are asked for."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


WAYS: list[Way] = [
    ("safetensors, dense", lambda model, path: save_file(model.state_dict(), path), read_all),
    ("torch.save, dense", lambda model, path: torch.save(model.state_dict(), path), torch.load),
    ("safetensors, CSR", lambda model, path: save_file(csr(model), path), read_all),
    ("torchlasso.save", save, load),
]


def thinned(model: nn.Module, zeros: float) -> nn.Module:
    """Set a share of the weights to zero, at random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter[torch.rand_like(parameter) < zeros] = 0.0
    return model


def fastest(run: Callable[[], object], runs: int) -> float:
    """Return the milliseconds of the fastest run."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wide", type=int, help="units of two square layers, in place of the LeNet-300-100")
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'zeros':>5}  {'file':<18}  {'bytes':>12}  {'smaller':>7}  {'save ms':>8}  {'load ms':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for zeros in (0.9, 0.95, 0.99):
            wide = (asked.wide, (asked.wide,), asked.wide) if asked.wide else (784, (300, 100), 10)
            model = thinned(build_mlp(*wide), zeros)
            dense = 0
            for name, write, read in WAYS:
                path = Path(folder) / "model"
                saving = fastest(lambda write=write, model=model, path=path: write(model, path), asked.runs)
                loading = fastest(lambda read=read, path=path: read(path), asked.runs)
                size = path.stat().st_size
                dense = dense or size
                row = f"{zeros:>5.0%}  {name:<18}  {size:>12,}  {dense / size:>7.1f}"
                print(f"{row}  {saving:>8.1f}  {loading:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
