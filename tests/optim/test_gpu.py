"""On a CUDA device: the same weights and the same zeros as on the CPU."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import torchlasso as tl
from torchlasso.optim.kernels import gpu
from torchlasso.penalties.base import Penalty


@pytest.mark.gpu
@pytest.mark.parametrize("penalty", [tl.L1(0.02), tl.ElasticNet(0.02), tl.GroupLasso(0.02, groups="columns")])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_cuda_trains_like_the_cpu(penalty: Penalty, kind: type[torch.optim.Optimizer]) -> None:
    inputs, target = torch.randn(64, 10, dtype=torch.float64), torch.randn(64, 1, dtype=torch.float64)
    on_cpu = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    on_cuda = copy.deepcopy(on_cpu).cuda()
    for model, x, y in [(on_cpu, inputs, target), (on_cuda, inputs.cuda(), target.cuda())]:
        optimizer = kind(model.parameters(), lr=0.05)
        tl.attach(optimizer, tl.Regularizer(model, penalty))
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    for ours, theirs in zip(on_cuda.parameters(), on_cpu.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-7, atol=1e-9)
        assert torch.equal(ours.cpu() == 0, theirs == 0)


# ---- ProxAdamW and ProxSGD, whose step Triton takes there ---------------------------------------

PROX = {
    "adam": lambda p, r: tl.optim.ProxAdamW(p, r, lr=0.02),
    "amsgrad": lambda p, r: tl.optim.ProxAdamW(p, r, lr=0.02, amsgrad=True, memory=0),
    "sgd": lambda p, r: tl.optim.ProxSGD(p, r, lr=0.02, momentum=0.9),
}
needs_triton = pytest.mark.skipif(not gpu.available(), reason="triton is not installed")


def _made(kind: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 3)).to(dtype)
    inputs = torch.randn(256, 40, dtype=dtype)
    return (
        model,
        lambda m: PROX[kind](m.parameters(), tl.Regularizer(m, tl.L1(0.02))),
        inputs,
        inputs[:, :3] * 2,
    )


def _steps(model: nn.Module, optimizer: Any, x: torch.Tensor, y: torch.Tensor, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad(set_to_none=False)
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("kind", PROX)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_fused_cuda_trains_like_the_cpu(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    on_cpu, make, x, y = _made(kind, dtype)
    on_cuda = copy.deepcopy(on_cpu).cuda()
    optimizer = make(on_cuda)
    _steps(on_cpu, make(on_cpu), x, y, 40)
    _steps(on_cuda, optimizer, x.cuda(), y.cuda(), 40)
    assert optimizer._rule._there, "Triton was to take the step"
    for ours, theirs in zip(on_cuda.parameters(), on_cpu.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=tolerance, atol=tolerance)
    assert (on_cuda[0].weight == 0).any()


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("kind", PROX)
def test_a_cuda_graph_goes_on_as_without_it(kind: str) -> None:
    model, make, x, y = _made(kind)
    eager, captured = copy.deepcopy(model).cuda(), model.cuda()
    x, y = x.cuda(), y.cuda()
    _steps(eager, make(eager), x, y, 40)
    optimizer = make(captured)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _steps(captured, optimizer, x, y, 3)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _steps(captured, optimizer, x, y, 1)  # counted by the device at each replay, not here
    for _ in range(37):
        graph.replay()
    for ours, theirs in zip(captured.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("kind", PROX)
def test_the_host_never_waits(kind: str) -> None:
    model, make, x, y = _made(kind)
    model, x, y = model.cuda(), x.cuda(), y.cuda()
    optimizer = make(model)
    _steps(model, optimizer, x, y, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _steps(model, optimizer, x, y, 20)
    finally:
        torch.cuda.set_sync_debug_mode("default")
