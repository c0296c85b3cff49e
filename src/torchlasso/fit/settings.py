"""What a fit is asked for, and whom it tells how far it is."""

from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Whom a fit tells how far it is."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of so many advances."""

    def advance(self, n: int = 1) -> None:
        """Count advances of the current stage."""


class Silent:
    """A progress that nobody watches."""

    def stage(self, name: str, total: int) -> None:
        """Do nothing."""

    def advance(self, n: int = 1) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Budget:
    """How many optimizer steps each stage of a fit takes, and how fine the path is.

    Attributes:
        dense: steps of the unregularised network.
        points: strengths on the path.
        point: steps at each of them.
        settle: steps at the chosen strength, with the learning rate falling to zero.
        refit: steps on the support, likewise.
        tolerance: KKT residual, relative to the strength, of a linear model's solution.
        iterations: most steps of a linear solve.
    """

    dense: int = 400
    points: int = 30
    point: int = 40
    settle: int = 600
    refit: int = 150
    tolerance: float = 1e-6
    iterations: int = 20_000


@dataclass(frozen=True)
class Settings:
    """What a fit is asked for; the estimators check it.

    Attributes:
        hidden: widths of the hidden layers; none for a linear model.
        penalty: ``"l1"``, ``"features"`` or ``"neurons"``.
        strength: λ, a fraction such as ``"0.1max"`` of the strength at which the path ends empty, or None to
            choose it on the validation rows.
        groups: lists of inputs that belong together, or None.
        keep: inputs whose weights into the first layer are never penalised.
        learning_rate: of Adam.
        batch_size: rows a batch.
        seed: of the weights and the shuffling.
        device: where to train.
        budget: how long.
    """

    hidden: tuple[int, ...]
    penalty: str
    strength: float | str | None
    groups: tuple[tuple[int, ...], ...] | None = None
    keep: tuple[int, ...] = ()
    learning_rate: float = 1e-2
    batch_size: int = 2048
    seed: int = 0
    device: str = "cpu"
    budget: Budget = Budget()
