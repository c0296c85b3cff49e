"""L1 regularisation in PyTorch: the tutorial everybody finds, and the same net with exact zeros.

First the usual recipe, as it is usually written: a `SimpleNet` whose `l1_regularization()` is added to the
loss. Then the same net from the same start, trained with `torchlasso`, and one table with both. The data
are made here, so the truth is known: of 100 inputs, the first 10 matter.

`examples/tutorial.ipynb` is made from this file by `python examples/make_notebook.py`.
"""

# %%
import copy

import torch
from torch import nn, optim

import torchlasso as tl

torch.manual_seed(0)

# %% [markdown]
# ## Part 1: the tutorial as written
#
# ### Step 1: define the model
# Linear, ReLU, Linear, and an L1 term over all parameters. (`tl.SimpleNet` is this class.)


# %%
class SimpleNet(nn.Module):
    """Linear, ReLU, Linear, with an L1 term to add to the loss."""

    def __init__(self, input_size, hidden_size, output_size, l1_strength):
        super().__init__()
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden_size, output_size)
        self.l1_strength = l1_strength

    def forward(self, x):
        """Return the outputs for a batch of rows."""
        return self.fc2(self.relu(self.fc1(x)))

    def l1_regularization(self):
        """Return the strength times the sum of the absolute values of all parameters."""
        return self.l1_strength * sum(param.abs().sum() for param in self.parameters())


model = SimpleNet(input_size=100, hidden_size=25, output_size=5, l1_strength=0.1)
start = copy.deepcopy(model)  # every net below starts from the same weights
print("Step 1: the model\n", model)

# %% [markdown]
# ### Step 2: make data
# 1,000 rows to train and 2,000 to test, 5 classes. The class depends on the first 10 inputs only, with
# some noise; the other 90 inputs are pure chance, and a net that uses them has learnt its training rows
# by heart.

# %%
generator = torch.Generator().manual_seed(0)
truth = torch.randn(10, 5, generator=generator)


def make_rows(n):
    inputs = torch.randn(n, 100, generator=generator)
    scores = inputs[:, :10] @ truth + 0.5 * torch.randn(n, 5, generator=generator)
    return inputs, scores.argmax(dim=1)


inputs, target = make_rows(1000)
test_inputs, test_target = make_rows(2000)
print(f"Step 2: {len(target):,} training rows, {len(test_target):,} test rows, 10 of 100 inputs matter")

# %% [markdown]
# ### Step 3: the criterion and the optimizer

# %%
criterion = nn.CrossEntropyLoss()
optimizer = optim.Adam(model.parameters(), lr=0.03)
print("Step 3:", criterion, "and", type(optimizer).__name__)

# %% [markdown]
# ### Step 4: the loss with the L1 term

# %%
output = model(inputs)
loss = criterion(output, target)
data_loss = loss.item()
loss += model.l1_regularization()
print(f"Step 4: data loss {data_loss:.3f}, loss with L1 {loss.item():.3f}")

# %% [markdown]
# ### Step 5: train and print

# %%
STEPS = 1000  # full-batch steps; the learning rate falls to zero over them


def train_l1_in_loss(model, optimizer):
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        output = model(inputs)
        loss = criterion(output, target)
        loss += model.l1_regularization()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == STEPS - 1:
            print(f"  step {step + 1:4d}: loss {loss.item():.4f}")


print("Step 5: train with l1_strength=0.1")
train_l1_in_loss(model, optimizer)
print("Weights of the first hidden unit:", [round(w, 6) for w in model.fc1.weight[0, :5].tolist()])

# %% [markdown]
# The weights became small, and not one of them is zero. The net predicts next to nothing either: 0.1 was
# far too strong here, and nothing said so. So the first question is which strength.
#
# ## Part 2: the same net with exact zeros
#
# ### Which strength?
# `tl.strength_max` returns, for each weight matrix, the strength that would make all of it zero while the
# rest of the net stays as it is. 0.1 is above every one of them. We take 15% of the largest. For a deep net
# the number is local, so the fraction is a start and not a law; a validation set decides between
# fractions (`LassoMLPClassifier` does it by itself).

# %%
batches = [(inputs, target)]
limits = tl.strength_max(start, tl.Regularizer(start, tl.L1(1.0)), criterion, batches)
strength = 0.15 * max(limits.values())
print("strength_max:", {name: round(limit, 4) for name, limit in limits.items()})
print(f"strength: 15% of the largest = {strength:.4f}")

# %% [markdown]
# ### The rules and the two lines
# `tl.Regularizer` says what is penalised (print it), and `tl.attach` lets the proximal step ride on the
# optimizer. The loop loses its penalty term; nothing else in it changes.

# %%
sparse = copy.deepcopy(start)
optimizer = optim.Adam(sparse.parameters(), lr=0.03)
regularizer = tl.Regularizer(sparse, tl.L1(strength))
handle = tl.attach(optimizer, regularizer)
print(regularizer)

schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for _ in range(STEPS):
    optimizer.zero_grad()
    loss = criterion(sparse(inputs), target)
    loss.backward()
    optimizer.step()
    schedule.step()
print(tl.sparsity(sparse))

# %% [markdown]
# To be fair to the tutorial's way, it gets the same strength, and a net without any penalty runs along.

# %%
same_strength = copy.deepcopy(start)
same_strength.l1_strength = strength
print(f"L1 in the loss at {strength:.4f}")
train_l1_in_loss(same_strength, optim.Adam(same_strength.parameters(), lr=0.03))

unpenalised = copy.deepcopy(start)
unpenalised.l1_strength = 0.0
print("No penalty")
train_l1_in_loss(unpenalised, optim.Adam(unpenalised.parameters(), lr=0.03))

# %% [markdown]
# ### Side by side
# *Exact zeros* are weights that are `== 0`; *near zeros* are not, but lie below a thousandth of their
# tensor's largest weight. The *certificate* is the largest violation of the optimality conditions, in units
# of the strength: 0 at a stationary point of `loss + strength · Σ|w|`, and it counts weights only.


# %%
def accuracy(model, inputs, target):
    return (model(inputs).argmax(dim=1) == target).double().mean().item()


def print_row(name, model, strength):
    table = tl.sparsity(model)
    near = sum(row.near_zeros for row in table.rows)
    certificate = "–"
    if strength:
        report = tl.certificate(model, tl.Regularizer(model, tl.L1(strength)), criterion, batches)
        certificate = f"{report.residual:.2f}"
    train, test = accuracy(model, inputs, target), accuracy(model, test_inputs, test_target)
    zeros = f"{table.zeros:,} of {table.numel:,}"
    print(f"{name:<28}{zeros:>15}{near:>12,}{train:>10.1%}{test:>10.1%}{certificate:>13}")


print(f"{'':<28}{'exact zeros':>15}{'near zeros':>12}{'train':>10}{'test':>10}{'certificate':>13}")
print_row("no penalty", unpenalised, 0.0)
print_row("L1 in the loss, 0.1", model, 0.1)
print_row(f"L1 in the loss, {strength:.4f}", same_strength, strength)
print_row(f"tl.attach, {strength:.4f}", sparse, strength)

# %% [markdown]
# ### Why
# * **Never exactly zero.** The gradient of `|w|` is plus or minus one however small `w` is, so an
#   optimizer steps over zero and back. The proximal step sets a weight to zero when that is the
#   minimum, and leaves it there until the data pull harder than the strength.
# * **The strength means something else under each optimizer.** Adam divides the gradient by its own size,
#   the L1 part with it. `tl.attach` shrinks in the optimizer's own metric, so that the same strength has the
#   same stationary points under SGD, momentum and Adam (`examples/same_strength_every_optimizer.py`).
# * **Biases are shrunk too.** `model.parameters()` holds them; a bias shifts an output and selects nothing.
#   The rules above leave biases (and normalisation parameters and embeddings) alone, and say so.
# * **Cost.** The loop over all parameters goes through autograd, forward and backward, in every step; on a
#   small batch that can double the step. The proximal step is not free either: in this version it costs
#   more than the loop does (`docs/benchmarks.md` has the measured times of both). What it buys is the zeros.
