"""Freeze the zeros and refit: the elastic net selects, and what it selected is then trained unshrunk.

A penalty does two things: it selects, and it shrinks what it selected. `handle.freeze_zeros()` keeps the
first and undoes the second (debiasing, the relaxed lasso). Same optimizer, same loop.
"""

import torch
from torch import nn

import torchlasso as tl

torch.manual_seed(0)
x = torch.randn(200, 20, dtype=torch.float64)
true = torch.zeros(20, dtype=torch.float64)
true[:3] = torch.tensor([3.0, -2.0, 1.5])
y = (x @ true + 0.5 * torch.randn(200, dtype=torch.float64)).unsqueeze(1)

model = nn.Linear(20, 1, dtype=torch.float64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
handle = tl.attach(optimizer, tl.Regularizer(model, tl.ElasticNet(0.5, l1_ratio=0.9)))


def train(steps):
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def show(stage):
    weights = model.weight.detach()[0]
    error = (weights - true).norm().item()
    kept = [round(w, 3) for w in weights[:3].tolist()]
    zeros = int((weights == 0).sum())
    print(
        f"{stage:<12} {zeros} of 20 weights are zero, the first three {kept}, distance to truth {error:.3f}"
    )


train(400)
show("elastic net")

handle.freeze_zeros()
train(400)
show("refitted")

support = model.weight.detach()[0] != 0
least_squares = torch.linalg.lstsq(torch.cat([x[:, support], torch.ones_like(y)], dim=1), y).solution[:-1, 0]
difference = (model.weight.detach()[0, support] - least_squares).abs().max().item()
print(f"{'':<12} the refit is least squares on the support: largest difference {difference:.1e}")
