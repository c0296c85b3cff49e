"""Which inputs does a net need? Groups are the columns of its first layer, one for each input.

Two ways to the same end on scikit-learn's breast cancer table: `GroupLasso(groups="columns")` in a loop of
your own, and the estimator `LassoMLPClassifier(penalty="features")`, which chooses the strength by itself.
"""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

import torchlasso as tl

STEPS = 600

frame = load_breast_cancer()
names = frame.feature_names
rows, test_rows, y, test_y = train_test_split(
    frame.data, frame.target, test_size=0.3, random_state=0, stratify=frame.target
)
scaler = StandardScaler().fit(rows)  # a penalty compares weights, so inputs must be on one scale
rows, test_rows = scaler.transform(rows), scaler.transform(test_rows)

# Your own loop.
torch.manual_seed(0)
x, target = torch.tensor(rows, dtype=torch.float32), torch.tensor(y)
model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 2))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
rules = {"0.weight": tl.GroupLasso(0.01, groups="columns"), "2.weight": tl.L1(0.01)}
tl.attach(optimizer, tl.Regularizer(model, rules))
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for _ in range(STEPS):
    optimizer.zero_grad()
    criterion(model(x), target).backward()
    optimizer.step()
    schedule.step()
used = (model[0].weight != 0).any(dim=0).numpy()
correct = model(torch.tensor(test_rows, dtype=torch.float32)).argmax(dim=1).numpy() == test_y
print(f"own loop: {used.sum()} of 30 inputs, test accuracy {correct.mean():.3f}")
print("  " + ", ".join(names[used]))

# The estimator: the strength comes from held-out rows of the training part. Which rows are held out is
# chance, and on a table this small it matters: look at more than one split before believing a list.
always = set(names)
for seed in range(3):
    estimator = tl.LassoMLPClassifier(
        hidden_layer_sizes=(20,), penalty="features", random_state=seed, device="cpu"
    )
    estimator.fit(rows, y)
    selected = names[estimator.selected_features_]
    always &= set(selected)
    accuracy = estimator.score(test_rows, test_y)
    print(
        f"estimator, split {seed}: strength {estimator.strength_:.1e}, {len(selected)} of 30 inputs, "
        f"test accuracy {accuracy:.3f}"
    )
print("selected in every split: " + ", ".join(sorted(always)))
