"""Optimizers with the proximal step built in; ``torchlasso.attach`` adds it to any other."""

from torchlasso.optim.averaging import DualAveraging
from torchlasso.optim.fused import ProxAdamW, ProxSGD

__all__ = ["DualAveraging", "ProxAdamW", "ProxSGD"]
