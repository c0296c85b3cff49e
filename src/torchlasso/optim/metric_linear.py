"""The metrics of the optimizers whose step is linear in the gradients: SGD and ASGD."""

from typing import Any, final

from torch import Tensor

from torchlasso.optim.metric import Memory, Metric, scalar


@final
class SGDMetric(Metric):
    """``lr · a_t``, with ``a_t`` the momentum buffer of a constant unit gradient.

    torch starts the buffer at the first gradient and then runs ``a ← μ·a + (1 − τ)`` (momentum μ,
    dampening τ), so ``a_t`` rises from 1 to ``(1 − τ)/(1 − μ)``; Nesterov moves by ``1 + μ·a_t``.
    A sparse gradient (an embedding's) is zero, not unknown, where it has no entry, so the metric is the same
    on all rows.
    """

    def displacement(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, memory: Memory
    ) -> float | Tensor:
        """Return ``lr · a_t``."""
        lr, momentum = scalar(group["lr"]), float(group["momentum"])
        if momentum == 0:
            return lr
        gain = momentum * memory["gain"] + 1 - float(group["dampening"]) if "gain" in memory else 1.0
        memory["gain"] = gain
        return lr * (1 + momentum * gain) if group["nesterov"] else lr * gain

    def limit(self, group: dict[str, Any], memory: Memory) -> float | Tensor | None:
        """Return None: the displacement grows with the gradient."""
        return None

    def resume(self, group: dict[str, Any], state: dict[str, Any]) -> Memory:
        """Return the steady state of the recurrence if there is a momentum buffer already."""
        momentum = float(group["momentum"])
        if state.get("momentum_buffer") is None or not 0 < momentum < 1:
            return {}
        return {"gain": (1 - float(group["dampening"])) / (1 - momentum)}


@final
class ASGDMetric(Metric):
    """``η_t``, the step size that torch's ASGD has computed at the step before.

    ASGD also multiplies the weights by ``1 − lambd·η_t``, which adds ``½·lambd·‖w‖²`` to the objective:
    ``lambd=0`` leaves it out.  Its averaged copy ``ax`` is an average of sparse weights, and not sparse.
    """

    def before(self, group: dict[str, Any], state: dict[str, Any], memory: Memory) -> None:
        """Note ``η_t``, which the step replaces by the next; the first is ``lr``."""
        eta = scalar(state.get("eta", group["lr"]))
        memory["eta"] = eta.clone() if isinstance(eta, Tensor) else eta

    def displacement(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, memory: Memory
    ) -> float | Tensor:
        """Return ``η_t``."""
        return memory.pop("eta")

    def limit(self, group: dict[str, Any], memory: Memory) -> float | Tensor | None:
        """Return None: the displacement grows with the gradient."""
        return None
