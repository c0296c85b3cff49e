"""A compacted table model predicts what the other predicted, from fewer units and columns."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchlasso.errors import InputError
from torchlasso.mlp import build_mlp, linear_layers
from torchlasso.tabular.compacting import compact_model_file, compact_predictor
from torchlasso.tabular.encoding import Encoder
from torchlasso.tabular.predictor import Predictor

ROWS = 60


def table(seed: int = 0) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    columns = {f"x{i}": generator.normal(i, 2.0, ROWS) for i in range(4)}
    jobs = [("cook", "smith", "miller")[i] for i in generator.integers(0, 3, ROWS)]
    return pl.DataFrame({**columns, "job": jobs, "y": generator.normal(size=ROWS)})


def sparse_predictor(hidden: tuple[int, ...], zeros: float, seed: int = 0, target: str = "y") -> Predictor:
    torch.manual_seed(seed)
    encoder = Encoder.fit(table(), target)
    outputs = len(encoder.classes) or 1
    rescale = (2.0, 1.0) if hidden and not encoder.classes else None
    module = build_mlp(len(encoder.column_names), hidden, outputs, rescale=rescale).eval()
    with torch.no_grad():
        for _, layer in linear_layers(module):
            layer.weight[torch.rand_like(layer.weight) < zeros] = 0.0
    return Predictor(encoder, module)


def predictions(predictor: Predictor, frame: pl.DataFrame) -> np.ndarray:
    found, _ = predictor.predict(frame.select(predictor.encoder.feature_names))
    return found.select(pl.col(pl.Float64)).to_numpy()


@given(
    hidden=st.lists(st.integers(1, 6), max_size=3),
    zeros=st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]),
    seed=st.integers(0, 2**20),
    target=st.sampled_from(["y", "job"]),
)
def test_predictions_stay(hidden: list[int], zeros: float, seed: int, target: str) -> None:
    predictor = sparse_predictor(tuple(hidden), zeros, seed, target)
    small, what = compact_predictor(predictor)
    frame = table(1)
    np.testing.assert_allclose(predictions(small, frame), predictions(predictor, frame), rtol=1e-5, atol=1e-6)
    before, after = what.weights
    assert after <= before
    assert set(small.encoder.feature_names) | set(what.dropped) == set(predictor.encoder.feature_names)
    _, again = compact_predictor(small)
    assert again.weights == (after, after)


def test_units_and_columns_without_use_are_gone(tmp_path: Path) -> None:
    predictor = sparse_predictor((5, 3), 0.0)
    first, second, last = (layer for _, layer in linear_layers(predictor.module))
    with torch.no_grad():
        first.weight[:, [1, 3]] = 0.0  # two columns of the table
        first.weight[0] = 0.0  # a constant unit
        first.bias[0] = 2.0
        second.weight[:, 1] = 0.0  # a unit that nothing reads
        last.weight[:, 2] = 0.0  # another
        first.weight[:, 4] = 0.0  # one of three categories: its column of the table stays
    predictor.save(tmp_path / "model.safetensors")
    what = compact_model_file(tmp_path / "model.safetensors", tmp_path / "small.safetensors")
    assert what.hidden == ((5, 3), (3, 2))
    assert what.dropped == ("x1", "x3")
    assert what.max_difference < 1e-6
    assert str(what) == (
        f"{what.weights[0]} → {what.weights[1]} weights, hidden layers 5,3 → 3,2, "
        "2 columns of the table no longer needed"
    )
    small = Predictor.load(tmp_path / "small.safetensors")
    assert small.encoder.feature_names == ("x0", "x2", "job")
    frame = table(2)
    np.testing.assert_allclose(predictions(small, frame), predictions(predictor, frame), rtol=1e-5, atol=1e-6)
    _, notes = small.predict(frame)
    assert notes == ()  # the columns that are no longer needed are no strangers


def test_a_model_that_reads_nothing_keeps_one_column_and_its_constant() -> None:
    predictor = sparse_predictor((4,), 1.0)
    small, what = compact_predictor(predictor)
    assert small.encoder.feature_names == ("x0",)
    assert what.hidden == ((4,), (1,))
    np.testing.assert_allclose(predictions(small, table()), predictions(predictor, table()))


def test_the_predictor_stays_as_it_is() -> None:
    predictor = sparse_predictor((4,), 0.7)
    before = {name: tensor.clone() for name, tensor in predictor.module.state_dict().items()}
    small, _ = compact_predictor(predictor)
    for parameter in (*small.module.parameters(), *small.module.buffers()):
        parameter.data.fill_(7.0)
    after = predictor.module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_weights_that_are_not_finite_are_refused() -> None:
    predictor = sparse_predictor((4,), 0.0)
    layer = next(layer for layer in predictor.module.modules() if isinstance(layer, nn.Linear))
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="are its weights finite"):
        compact_predictor(predictor)
