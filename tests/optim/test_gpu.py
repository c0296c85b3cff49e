"""On a CUDA device: the same weights and the same zeros as on the CPU."""

import copy

import pytest
import torch
from torch import nn

import torchlasso as tl
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
