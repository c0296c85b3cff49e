"""The GPU's kernels in Triton's interpreter, and compiled for devices that need not be there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchlasso.optim.kernels import gpu

needs_triton = pytest.mark.skipif(not gpu.available(), reason="triton is not installed")
CASES = Path(__file__).with_name("gpu_cases.py")

COMPILE = """
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from torchlasso.optim.kernels.gpu_scalars import conclude, prepare
from torchlasso.optim.kernels.gpu_steps import step

def check(kernel, types, **constants):
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constants)
    return compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False}).asm

pointers = {"pointers": "*i64", "ready": "*fp32"}
rows = pointers | {"numbers": "*fp64", "state": "*fp64", "clock": "*i64", "count": "i32"}
signals = {"found_inf": "*fp32", "grad_scale": "*fp32"}
fixed = {"EVERY": 10, "MARGIN": 2.0, "LEAST": 20.0, "FACTOR": 16.0, "BLOCK": 128}
for adam in (True, False):
    check(prepare, rows | signals, ADAM=adam, **fixed)
check(prepare, rows, ADAM=True, found_inf=None, grad_scale=None, **fixed)
sums = {"ready": "*fp32", "state": "*fp64", "clock": "*i64", "spans": "*i64", "sums": "*fp32"}
check(conclude, sums | {"found_inf": "*fp32"}, SMOOTHING=0.9, BLOCK=1024)
table = pointers | {"chunks": "*i64", "sums": "*fp32"}
for stored, adam in ((tl.float32, True), (tl.bfloat16, False), (tl.float16, True)):
    kinds = {"T": stored, "F": tl.float32, "ADAM": adam}
    assembly = check(step, table, FROZEN=False, ALIGN=16, BLOCK=1024, **kinds)
    assert "ld.global.v4" in assembly["ptx"], "whole chunks are to be read in wide pieces"
    assert assembly["cubin"]
"""


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command], env=given | environment, capture_output=True, text=True, check=False
    )


@needs_triton
@pytest.mark.slow
def test_in_the_interpreter() -> None:
    """Triton reads the switch when it is imported, and so the cases run in a process of their own."""
    done = _run("-m", "pytest", "-q", "-x", str(CASES), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@needs_triton
def test_compiles_for_a_device(tmp_path: Path) -> None:
    done = _run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]


def test_works_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torchlasso.optim.kernels.gpu as gpu, torchlasso.optim.kernels.gpu_steps, torch\n"
        "assert not gpu.available() and not gpu.usable(torch.zeros(3))"
    )
    done = _run("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_package_does_not_import_triton() -> None:
    done = _run("-c", "import sys, torchlasso; assert 'triton' not in sys.modules")
    assert done.returncode == 0, done.stderr[-2000:]
