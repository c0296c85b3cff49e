"""The metrics of the optimizers that divide each gradient by a mean square: RMSprop, Adagrad, Adadelta."""

from typing import Any, final

from torch import Tensor

from torchlasso.optim.metric import Memory, Metric, scalar, wide


@final
class RMSpropMetric(Metric):
    """``lr · a_t / (√v + ε)``, with ``a_t`` the momentum buffer of a constant unit gradient.

    torch does not correct the bias of the mean square ``v``: a constant gradient has ``v = c_t·grad²`` with
    ``c_t = 1 − α^t``, so the first displacements are ``1/√c_t`` times too long, and the momentum buffer
    collects them, ``b_t = μ·b_{t−1} + 1/√c_t``.  Hence ``a_t = b_t·√c_t``, which is 1 without momentum and
    tends to ``1/(1 − μ)``.

    Centered RMSprop has no metric here: its divisor is a standard deviation, which vanishes under a constant
    gradient, so that the displacement has no bound.
    """

    def displacement(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, memory: Memory
    ) -> float | Tensor:
        """Return ``lr · a_t / (√v + ε)``."""
        alpha = float(group["alpha"])
        mass = alpha * memory.get("mass", 0.0) + 1 - alpha
        reach = float(group["momentum"]) * memory.get("reach", 0.0) + mass**-0.5
        memory.update(mass=mass, reach=reach)
        return scalar(group["lr"]) * (reach * mass**0.5) / wide(state["square_avg"]).sqrt().add_(group["eps"])

    def limit(self, group: dict[str, Any], memory: Memory) -> float | Tensor | None:
        """Return ``lr · b_t`` (→ ``lr/(1 − μ)``).

        A constant gradient moves by ``lr·Σ_k μ^k·|grad|/(√c_{t−k}·|grad| + ε)``, which is less.
        """
        if "reach" not in memory:
            return None
        return scalar(group["lr"]) * memory["reach"]

    def resume(self, group: dict[str, Any], state: dict[str, Any]) -> Memory:
        """Return ``c_t`` and ``b_t`` for the steps taken, as if ``c_t`` had been what it is all along."""
        steps, momentum = float(state["step"]), float(group["momentum"])
        mass = 1 - float(group["alpha"]) ** steps
        if mass == 0:
            return {}
        gain = (1 - momentum**steps) / (1 - momentum) if momentum != 1 else steps
        return {"mass": mass, "reach": gain * mass**-0.5}


@final
class AdagradMetric(Metric):
    """``lr_t / (√s + ε)``, with the sum of squares ``s`` and ``lr_t = lr/(1 + (t − 1)·lr_decay)``.

    A constant gradient moves by at most ``lr`` at its first step, and by less and less later.  A row without
    an entry in a sparse gradient is one with a zero gradient, for the sum and for the metric.
    """

    def displacement(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, memory: Memory
    ) -> float | Tensor:
        """Return ``lr_t / (√s + ε)``."""
        lr: float | Tensor = scalar(group["lr"]) / (1 + (scalar(state["step"]) - 1) * group["lr_decay"])
        return lr / wide(state["sum"]).sqrt().add_(group["eps"])

    def limit(self, group: dict[str, Any], memory: Memory) -> float | Tensor | None:
        """Return ``lr``.

        Not ``lr/√t``, the displacement of a gradient that was the same from the first step on: the sum never
        forgets, so a gradient that was smaller once moves by more for ever.
        """
        return scalar(group["lr"])


@final
class AdadeltaMetric(Metric):
    """``lr · √(u_{t−1} + ε) / √(v_t + ε)``, with ``u`` the mean square of the displacements so far.

    The displacement of a constant gradient tends to ``lr·|grad|``, so it has no bound.
    """

    def before(self, group: dict[str, Any], state: dict[str, Any], memory: Memory) -> None:
        """Keep a copy of ``u_{t−1}``, which the step overwrites; it starts at zero."""
        memory["acc_delta"] = state["acc_delta"].clone() if "acc_delta" in state else 0.0

    def displacement(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, memory: Memory
    ) -> float | Tensor:
        """Return ``lr · √(u_{t−1} + ε) / √(v_t + ε)``."""
        eps, past = group["eps"], memory.pop("acc_delta")
        length = (wide(past) if isinstance(past, Tensor) else past) + eps
        ratio: Tensor = length / (wide(state["square_avg"]) + eps)
        return scalar(group["lr"]) * ratio.sqrt_()

    def limit(self, group: dict[str, Any], memory: Memory) -> float | Tensor | None:
        """Return None: the displacement grows with the gradient."""
        return None
