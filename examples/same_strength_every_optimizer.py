"""One strength, one answer: the lasso of scikit-learn under SGD, momentum and Adam, and what fails.

`loss = ½·MSE`, so `strength` is scikit-learn's `alpha`. Three ways to train at the same strength:

* `torchlasso.attach`: the proximal step in the optimizer's own metric;
* L1 in the loss, as in the tutorials;
* `optimizer.step()` and then `soft_threshold(lr * strength)`, right for plain SGD only.
"""

import torch
from sklearn.linear_model import Lasso
from torch import nn

import torchlasso as tl

STRENGTH = 0.2
STEPS = 1500

torch.manual_seed(0)
x = torch.randn(200, 30, dtype=torch.float64)
true = torch.zeros(30, dtype=torch.float64)
true[:4] = torch.tensor([2.0, -1.5, 1.0, 0.5])
y = (x @ true + 0.5 * torch.randn(200, dtype=torch.float64)).unsqueeze(1)

reference = Lasso(alpha=STRENGTH, tol=1e-12, max_iter=100_000).fit(x.numpy(), y[:, 0].numpy())
optimum = torch.tensor(reference.coef_)

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD, momentum 0.9": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02),
}


def train(make_optimizer, way):
    model = nn.Linear(30, 1, dtype=torch.float64)
    nn.init.zeros_(model.bias)
    optimizer = make_optimizer(model.parameters())
    lr = optimizer.param_groups[0]["lr"]
    if way == "attach":
        tl.attach(optimizer, tl.Regularizer(model, tl.L1(STRENGTH)))
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = 0.5 * nn.functional.mse_loss(model(x), y)
        if way == "L1 in the loss":
            loss = loss + STRENGTH * model.weight.abs().sum()
        loss.backward()
        optimizer.step()
        if way == "step, then soft":
            with torch.no_grad():
                w = model.weight
                w.copy_(w.sign() * (w.abs() - lr * STRENGTH).clamp_min(0.0))
    return model.weight.detach()[0]


print(f"scikit-learn's Lasso(alpha={STRENGTH}): {int((optimum != 0).sum())} nonzero of 30\n")
print(f"{'way':<18}{'optimizer':<20}{'nonzero':>8}{'largest difference':>21}")
for way in ("attach", "L1 in the loss", "step, then soft"):
    for name, make_optimizer in OPTIMIZERS.items():
        torch.manual_seed(1)
        weights = train(make_optimizer, way)
        difference = (weights - optimum).abs().max().item()
        print(f"{way:<18}{name:<20}{int((weights != 0).sum()):>8}{difference:>21.1e}")
