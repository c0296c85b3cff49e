"""The ways to take an optimizer step under a penalty, each on parameters of its own."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from torchlasso.optim.attach import attach
from torchlasso.optim.evidence import MemorySteps
from torchlasso.optim.fused import ProxAdamW, ProxSGD
from torchlasso.penalties.separable import L1
from torchlasso.regularizer import Regularizer

Step = Callable[[], object]
Shapes = Sequence[tuple[int, ...]]

LR = 1e-6  # the weights stay what they are, and the time of a step does not depend on them
STRENGTH = 1e-6


def transformer_shapes() -> list[tuple[int, ...]]:
    """Return the shapes of a small transformer: 25.2 million parameters in 86 tensors."""
    width = 512
    attention = [(width, width)] * 4 + [(width,)] * 4
    block = [*attention, (4 * width, width), (4 * width,), (width, 4 * width), *[(width,)] * 3]
    return [(8_192, width), *block * 6, (4_000, width)]


def small_shapes(count: int = 2_000) -> list[tuple[int, ...]]:
    """Return the shapes of many small tensors, of 1,024 entries each.

    Args:
        count: of the tensors.
    """
    return [(32, 32)] * count


def adam_ways(shapes: Shapes) -> dict[str, Step]:
    """Return the ways to take a step of AdamW, the base first, each on parameters of its own.

    Args:
        shapes: of the parameters.
    """
    return {
        "AdamW(fused=True), no penalty": Way(shapes).plain("AdamW"),
        "AdamW(foreach=True), no penalty": Way(shapes).plain("AdamW", fused=False),
        "penalty in the loss, fused": Way(shapes).in_the_loss("AdamW"),
        "fused, softshrink a tensor": Way(shapes).softshrink("AdamW"),
        "attach, memory=0": Way(shapes).attached("AdamW", 0),
        "attach": Way(shapes).attached("AdamW", "auto"),
        "ProxAdamW, memory=0": Way(shapes).proximal("AdamW", 0),
        "ProxAdamW": Way(shapes).proximal("AdamW", "auto"),
    }


def sgd_ways(shapes: Shapes) -> dict[str, Step]:
    """Return the ways to take a step of SGD with momentum, the base first.

    Args:
        shapes: of the parameters.
    """
    return {
        "SGD(fused=True), no penalty": Way(shapes).plain("SGD"),
        "fused, softshrink a tensor": Way(shapes).softshrink("SGD"),
        "attach, memory=0": Way(shapes).attached("SGD", 0),
        "attach": Way(shapes).attached("SGD", "auto"),
        "ProxSGD, memory=0": Way(shapes).proximal("SGD", 0),
        "ProxSGD": Way(shapes).proximal("SGD", "auto"),
    }


class Way:
    """Parameters with gradients, and the ways to make steps on them.

    Args:
        shapes: of the parameters.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.model = nn.ParameterList([nn.Parameter(0.05 * torch.randn(shape)) for shape in shapes])
        self.parameters = list(self.model.parameters())
        for parameter in self.parameters:
            parameter.grad = 0.01 * torch.randn_like(parameter)
        self.regularizer = Regularizer(self.model, {"*": L1(STRENGTH)})

    def plain(self, kind: str, *, fused: bool = True) -> Step:
        """Return torch's own step, fused or one tensor list at a time.

        Args:
            kind: ``"AdamW"`` or ``"SGD"``, as in every method.
            fused: which of torch's implementations.
        """
        return self._optimizer(kind, fused=fused).step

    def in_the_loss(self, kind: str) -> Step:
        """Return the tutorials' way: the penalty is part of the loss."""
        step = self.plain(kind)

        def tutorial() -> None:
            penalty = sum((parameter.abs().sum() for parameter in self.parameters), torch.zeros(()))
            (STRENGTH * penalty).backward()
            step()

        return tutorial

    def softshrink(self, kind: str) -> Step:
        """Return the step and torch's soft-threshold: cheap, and a penalty of another strength."""
        step = self.plain(kind)

        @torch.no_grad()
        def shrink() -> None:
            step()
            for parameter in self.parameters:
                torch.ops.aten.softshrink.out(parameter, LR * STRENGTH, out=parameter)

        return shrink

    def attached(self, kind: str, memory: MemorySteps) -> Step:
        """Return torch's fused step with the proximal step riding on it."""
        optimizer = self._optimizer(kind)
        attach(optimizer, self.regularizer, memory=memory)
        return optimizer.step

    def proximal(self, kind: str, memory: MemorySteps) -> Step:
        """Return the step and the proximal step in one pass."""
        if kind == "SGD":
            return ProxSGD(self.parameters, self.regularizer, lr=LR, momentum=0.9, memory=memory).step
        return ProxAdamW(self.parameters, self.regularizer, lr=LR, memory=memory).step

    def _optimizer(self, kind: str, *, fused: bool = True) -> torch.optim.Optimizer:
        if kind == "SGD":
            return torch.optim.SGD(self.parameters, lr=LR, momentum=0.9, fused=fused, foreach=not fused)
        return torch.optim.AdamW(self.parameters, lr=LR, fused=fused, foreach=not fused)
