"""Group lasso on the rows of a hidden layer: whole neurons vanish, and the rest still answers.

The target needs a handful of hidden units; the net starts with 40. One group is everything that leads into
a unit, so that a unit either stays or is zero throughout, bias aside.
"""

import torch
from torch import nn

import torchlasso as tl

STEPS = 1000

torch.manual_seed(0)
x = torch.randn(500, 8)
test_x = torch.randn(1000, 8)


def truth(x):
    return (x[:, :1] + x[:, 1:2]).relu() - (x[:, 2:3] - x[:, 3:4]).relu()


y, test_y = truth(x) + 0.1 * torch.randn(500, 1), truth(test_x)
criterion = nn.MSELoss()


def train(penalty):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    # An L1 on the last layer as well: with the penalty on one layer only, a small first layer and a large
    # second one would compute the same and cost less.
    if penalty:
        rules = {"0.weight": tl.GroupLasso(penalty, groups="rows"), "2.weight": tl.L1(penalty)}
        tl.attach(optimizer, tl.Regularizer(model, rules))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return model


for strength in (0.0, 0.02):
    model = train(strength)
    table = tl.sparsity(model)
    error = criterion(model(test_x), test_y).item()
    print(
        f"strength {strength:g}: {40 - table.rows[0].dead_rows} of 40 neurons alive, test error {error:.4f}"
    )
print(table)
