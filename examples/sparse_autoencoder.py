"""A sparse autoencoder: each image of a digit as the sum of a few parts, out of a dictionary of 128.

`tl.ActivationL1` penalises what the ReLU in the middle lets through, summed over the units and averaged over
the images. The weights stay dense; it is the code of each image that gets zeros. The parts (the columns of
the decoder) are held at length one: else long parts with tiny codes would draw the same at almost no penalty.

`--plot FILE.png` draws the dictionary.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import torchlasso as tl

UNITS, EPOCHS, BATCH = 128, 60, 100
STRENGTHS = (0.0, 0.03, 0.1, 0.3, 1.0)
SHOWN = 0.3


class Autoencoder(nn.Module):
    """One ReLU layer in between; `code` has a name, and that is what the penalty needs."""

    def __init__(self, mean):
        super().__init__()
        self.encoder = nn.Linear(64, UNITS)
        self.code = nn.ReLU()
        self.decoder = nn.Linear(UNITS, 64)
        with torch.no_grad():
            self.normalise_parts()
            self.encoder.weight.copy_(self.decoder.weight.T)  # from random directions most units die early
            self.decoder.bias.copy_(mean)

    def forward(self, x):
        """Return the images drawn again from their parts."""
        return self.decoder(self.code(self.encoder(x)))

    @torch.no_grad()
    def normalise_parts(self):
        """Give every part length one."""
        self.decoder.weight /= self.decoder.weight.norm(dim=0)


def train(images, strength):
    torch.manual_seed(0)
    model = Autoencoder(images.mean(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    activity = tl.ActivationL1(model, "code", strength)
    for _ in range(EPOCHS):
        for batch in images[torch.randperm(len(images))].split(BATCH):
            optimizer.zero_grad()
            loss = (model(batch) - batch).square().sum(1).mean() + activity()
            loss.backward()
            optimizer.step()
            model.normalise_parts()
    return model.eval(), activity


@torch.no_grad()
def r_squared(model, images, mean):
    return 1 - ((model(images) - images).square().sum() / (images - mean).square().sum()).item()


@torch.no_grad()
def specialists(model, images, digits):
    """Return (count, digit, part), the parts first whose 20 strongest images show one digit most often."""
    codes = model.code(model.encoder(images))
    found = []
    for part in range(UNITS):
        if (codes[:, part] > 0).sum() >= 20:
            strongest = digits[codes[:, part].topk(20).indices]
            digit = strongest.mode().values.item()
            found.append(((strongest == digit).sum().item(), digit, part))
    return sorted(found, reverse=True)


def drawing(part):
    """Return a part as eight lines of text: ink that it adds, and dots where it adds none."""
    shades = (part / part.max() * 4).round().clamp(min=0).int().reshape(8, 8)
    return ["".join("·░▒▓█"[shade] * 2 for shade in row) for row in shades.tolist()]


def plot(model, rate, file):
    """Draw the parts, those first that the most test images use."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    parts = model.decoder.weight.detach().T[rate.argsort(descending=True)].reshape(UNITS, 8, 8)
    for axes, part in zip(figure.subplots(8, 16).flat, parts, strict=True):
        bound = part.abs().max()
        axes.imshow(part.numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound)
        axes.set_axis_off()
    figure.suptitle(f"The dictionary at strength {SHOWN}, most used first: red adds ink, blue takes it away")
    figure.savefig(file, dpi=100)


parser = argparse.ArgumentParser(description="Sparse autoencoder of digits.")
parser.add_argument("--plot", metavar="FILE.png", help="where to draw the dictionary")
arguments = parser.parse_args()

pixels, digits = load_digits(return_X_y=True)
pixels = torch.tensor(pixels / 16, dtype=torch.float32)
split = train_test_split(pixels, torch.tensor(digits), test_size=0.25, random_state=0, stratify=digits)
train_images, test_images, _, test_digits = split

print("strength   parts an image   dead parts   R² of test images")
for strength in STRENGTHS:
    trained, activity = train(train_images, strength)
    activity.reset()  # from here on its statistics are of the trained model on the test images
    fit = r_squared(trained, test_images, train_images.mean(0))
    print(f"{strength:<8}   {activity.l0:14.1f}   {int(activity.dead.sum()):10}   {fit:17.3f}")
    if strength == SHOWN:
        model, rate = trained, activity.rate

print(f"\nFour parts at strength {SHOWN}, and what the 20 test images that use each most show:")
best = {}
for count, digit, part in specialists(model, test_images, test_digits):
    best.setdefault(digit, (count, part))  # the first is the purest of its digit
chosen = [(digit, count, part) for digit, (count, part) in best.items()][:4]
print("   ".join(f"{f'{count} of 20 a {digit}':16}" for digit, count, _ in chosen).rstrip())
for lines in zip(*(drawing(model.decoder.weight.detach()[:, part]) for *_, part in chosen), strict=True):
    print("   ".join(lines))
if arguments.plot:
    plot(model, rate, arguments.plot)
    print(f"The dictionary is in {arguments.plot}")
