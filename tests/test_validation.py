"""Validation losses are those of the rows wherever a loss is a mean over rows, and of batches elsewhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from torchlasso.errors import InputError
from torchlasso.validation import Validation

MODEL = nn.Linear(4, 3)
X = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(11) % 3
VALUES = X[:, :3] + 1


def _batches(target: Tensor, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(size), target.split(size), strict=True))


BY_ROWS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "function": (functional.cross_entropy, LABELS),
    "module": (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS),
    "several outputs": (functional.mse_loss, VALUES),
    "module of several outputs": (nn.SmoothL1Loss(), VALUES),
    "own": (lambda output, target: (output - target).abs().pow(1.5).mean(), VALUES),
    "own, by a column": (lambda output, target: functional.mse_loss(output[:, 0], target[:, 0]), VALUES),
    "own, labels": (lambda output, target: 2 * functional.cross_entropy(output, target), LABELS),
}


@pytest.mark.parametrize("name", BY_ROWS)
def test_a_mean_over_rows_is_split_into_its_rows(name: str) -> None:
    loss_fn, target = BY_ROWS[name]
    found = Validation(loss_fn, _batches(target)).losses(MODEL)
    alone = [float(loss_fn(MODEL(X[i : i + 1]), target[i : i + 1]).detach()) for i in range(11)]
    assert found.values.tolist() == pytest.approx(alone, rel=1e-5)
    assert found.values.dtype == torch.float64
    assert found.sizes.tolist() == [1.0] * 11
    assert not found.is_constant


BY_BATCHES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "class weights": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0])), LABELS),
    "pairs": (lambda output, target: torch.cdist(output, target).min(dim=1).values.mean(), VALUES),
    "spread": (lambda output, target: (output - target).std(), VALUES),
    "numbers": (lambda output, target: torch.tensor((output - target).square().mean().item()), VALUES),
    "a sum": (nn.MSELoss(reduction="sum"), VALUES),
}


@pytest.mark.parametrize("name", BY_BATCHES)
def test_what_cannot_be_split_counts_by_batch(name: str) -> None:
    loss_fn, target = BY_BATCHES[name]
    found = Validation(loss_fn, _batches(target)).losses(MODEL)
    batches = [float(loss_fn(MODEL(x), y).detach()) for x, y in _batches(target)]
    assert found.values.tolist() == pytest.approx(batches, rel=1e-5)
    assert found.sizes.tolist() == [4.0, 4.0, 3.0]


def test_outputs_and_targets_that_are_no_tensors_count_by_batch() -> None:
    class Two(nn.Module):
        def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"out": MODEL(x["x"])}

    def loss_fn(output: dict[str, Tensor], target: tuple[Tensor]) -> Tensor:
        return functional.cross_entropy(output["out"], target[0])

    batches = [({"x": x}, (y,)) for x, y in _batches(LABELS)]
    found = Validation(loss_fn, batches).losses(Two())
    assert found.sizes.tolist() == [4.0, 4.0, 3.0]
    assert not found.is_constant


def test_a_last_batch_of_one_row_and_empty_ones_count_as_they_are() -> None:
    batches = [(X[:0], LABELS[:0]), *_batches(LABELS, 5)]
    found = Validation(functional.cross_entropy, batches).losses(MODEL)
    assert len(found.values) == 11
    assert found.sizes.tolist() == [1.0] * 11
    single = Validation(functional.cross_entropy, [(X[:1], LABELS[:1])]).losses(MODEL)
    assert single.values.shape == single.sizes.shape == (1,)


def test_a_constant_output_is_noticed_over_all_batches() -> None:
    flat = nn.Linear(4, 3)
    nn.init.zeros_(flat.weight)
    assert Validation(functional.cross_entropy, _batches(LABELS)).losses(flat).is_constant
    by_batch = [(torch.ones(4, 4), LABELS[:4]), (torch.zeros(4, 4), LABELS[4:8])]
    assert not Validation(functional.cross_entropy, by_batch).losses(MODEL).is_constant


def test_the_model_is_measured_in_evaluation_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9))
    measure = Validation(functional.cross_entropy, _batches(LABELS))
    assert torch.equal(measure.losses(model).values, measure.losses(model).values)
    assert model[1].training


def test_another_order_of_the_rows_is_refused() -> None:
    batches = _batches(LABELS)
    measure = Validation(functional.cross_entropy, batches)
    measure.losses(MODEL)
    batches[0] = (X[:4], LABELS[1:5])
    with pytest.raises(InputError, match="same order"):
        measure.losses(MODEL)


def test_no_rows_are_refused() -> None:
    with pytest.raises(InputError, match="holds no rows"):
        Validation(functional.cross_entropy, [(X[:0], LABELS[:0])]).losses(MODEL)
