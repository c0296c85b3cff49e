"""The reference optima of optima.json as problems: data, loss and penalty."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from torch import Tensor, nn

import torchlasso as tl
from torchlasso.penalties.base import Penalty


@dataclass(frozen=True)
class Problem:
    """One case at one strength, with its optimum."""

    name: str
    fraction: float
    inputs: Tensor
    target: Tensor
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    penalty: Penalty
    objective: float
    weight: np.ndarray
    lipschitz: float

    def model(self) -> nn.Linear:
        """Return a randomly initialised linear model of the problem's shape."""
        outputs, features = self.weight.shape
        return nn.Linear(features, outputs, dtype=torch.float64)

    def loss(self, model: nn.Module) -> Tensor:
        return self.loss_fn(model(self.inputs), self.target)

    def excess(self, model: nn.Linear) -> float:
        """Return the objective above the optimum, relative to it, by the definition of the case."""
        with torch.no_grad():
            value = float(self.loss(model)) + float(self.penalty.value(model.weight))
        return (value - self.objective) / abs(self.objective)

    def same_support(self, model: nn.Linear) -> bool:
        return np.array_equal(model.weight.detach().numpy() != 0, self.weight != 0)


_CURVATURE = {"MSELoss": 1.0, "BCEWithLogitsLoss": 0.25, "CrossEntropyLoss": 0.5}


def problems() -> list[Problem]:
    """Return every reference optimum."""
    file = Path(__file__).with_name("optima.json")
    cases = json.loads(file.read_text())["cases"]
    return [_problem(case, point) for case in cases for point in case["points"]]


def _problem(case: dict[str, Any], point: dict[str, Any]) -> Problem:
    inputs, target = _data(case)
    criterion, factor = getattr(nn, case["torch_loss"])(), case["torch_loss_factor"]
    weight = np.zeros(point["shape"][::-1])
    for feature, output, value in point["nonzero"]:
        weight[output, feature] = value
    design = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1)
    curvature = float(torch.linalg.eigvalsh(design.T @ design / len(design))[-1])
    return Problem(
        case["name"],
        point["fraction"],
        inputs,
        target,
        lambda output, y: factor * criterion(output, y),
        _penalty(case, point["strength"]),
        point["objective"],
        weight,
        curvature * _CURVATURE[case["torch_loss"]],
    )


def _data(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    name, _, arguments = case["loader"].partition("(")
    bunch = getattr(sklearn.datasets, name)(**({"scaled": False} if "scaled" in arguments else {}))
    inputs = torch.tensor((bunch.data - bunch.data.mean(0)) / bunch.data.std(0))
    if case["torch_loss"] == "CrossEntropyLoss":
        return inputs, torch.tensor(bunch.target).long()
    return inputs, torch.tensor(bunch.target, dtype=torch.float64)[:, None]


def _penalty(case: dict[str, Any], strength: float) -> Penalty:
    builders: dict[str, Callable[[], Penalty]] = {
        "lasso_diabetes": lambda: tl.L1(strength),
        "elasticnet_diabetes_l1ratio0.5": lambda: tl.ElasticNet(strength, l1_ratio=0.5),
        "nonneg_lasso_diabetes": lambda: tl.L1(strength, nonnegative=True),
        "adaptive_lasso_diabetes": lambda: tl.L1(strength, weights=torch.tensor(case["weights"])),
        "logistic_breast_cancer": lambda: tl.L1(strength),
        "group_logistic_breast_cancer": lambda: tl.GroupLasso(strength, groups=case["groups"]),
        "multinomial_l1_wine": lambda: tl.L1(strength),
        "multinomial_group_wine": lambda: tl.GroupLasso(strength, groups="columns", weights=None),
    }
    return builders[case["name"]]()
