"""Files for other programs give what the model gives: for modules, and for tables with their raw columns."""

import builtins
import datetime
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from torchlasso import export as export_module
from torchlasso.errors import InputError, ModelFileError, OutputError
from torchlasso.export import Exported, export_model
from torchlasso.exporting.calls import difference
from torchlasso.exporting.table_graph import TableGraph
from torchlasso.exporting.table_probe import probe, reference
from torchlasso.mlp import build_mlp
from torchlasso.sparse_layers import SparseLinear
from torchlasso.tabular.columns import Dates, date_parts
from torchlasso.tabular.encoding import Encoder
from torchlasso.tabular.predictor import Predictor

ROWS = 120


def people(seed: int = 0) -> pl.DataFrame:
    """Return a table with every kind of column, with gaps, and names that are hard to keep."""
    generator = np.random.default_rng(seed)
    start = datetime.datetime(1961, 3, 1)

    def some(values: list[Any]) -> list[Any]:
        return [values[i] for i in generator.integers(0, len(values), ROWS)]

    minutes = generator.integers(0, 60 * 365 * 1440, ROWS)
    return pl.DataFrame(
        {
            "age": pl.Series(generator.normal(50, 10, ROWS)).set(
                pl.Series(generator.random(ROWS) < 0.1), None
            ),
            "prediction": generator.normal(0, 1e-3, ROWS),
            "job title": some(["cook", "smith", None, 'größer, "x"']),
            "ok": some([True, False, None]),
            "no gaps": some([True, False]),
            "when": [start + datetime.timedelta(minutes=int(m)) for m in minutes],
            "city": some(["A", "B"]),
            "class": some(["no", "yes", "may be"]),
            "sick": some([0, 1]),
            "cost": generator.normal(1e4, 2e3, ROWS),
        }
    )


def predictor_of(target: str, hidden: tuple[int, ...] = (8,)) -> Predictor:
    torch.manual_seed(0)
    frame = people().drop([name for name in ("class", "sick", "cost") if name != target])
    encoder = Encoder.fit(frame, target)
    outputs = len(encoder.classes) if len(encoder.classes) > 2 else 1
    rescale = (2e3, 1e4) if target == "cost" and hidden else None
    return Predictor(encoder, build_mlp(len(encoder.column_names), hidden, outputs, rescale=rescale).eval())


def onnx_inputs(predictor: Predictor, frame: pl.DataFrame) -> dict[str, np.ndarray]:
    """Return the columns as the documentation says that they are given to onnxruntime."""
    inputs = {}
    for name, kind in zip(predictor.encoder.feature_names, predictor.encoder.kinds, strict=True):
        column = frame[name]
        if kind == "categorical":
            array = column.fill_null("").to_numpy().astype(object)
        elif kind == "date":
            array = column.dt.epoch("us").to_numpy() / 86_400e6
        else:
            array = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        inputs[name] = array[:, None]
    return inputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "hidden", "label"),
    [("class", (8,), "tensor(string)"), ("sick", (), "tensor(int64)"), ("cost", (8, 5), "tensor(double)")],
)
def test_a_table_model_in_onnx_takes_raw_columns_and_gives_labels(
    tmp_path: Path, target: str, hidden: tuple[int, ...], label: str
) -> None:
    predictor = predictor_of(target, hidden)
    predictor.save(tmp_path / "model.safetensors")
    written = export_model(tmp_path / "model.safetensors", tmp_path / "model.onnx")
    assert written.format == "onnx"
    assert written.size == (tmp_path / "model.onnx").stat().st_size
    assert written.max_difference < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_outputs()[0].name == "prediction_"  # a column has the other name
    assert session.get_outputs()[0].type == label
    described = json.loads(session.get_modelmeta().custom_metadata_map["torchlasso"])
    assert described["target"] == target
    assert described["classes"] == list(predictor.encoder.classes)
    assert str(tmp_path) not in (tmp_path / "model.onnx").read_bytes().decode("latin-1")
    assert b"table_graph.py" not in (tmp_path / "model.onnx").read_bytes()

    for frame in (people(1), people(2)[:1]):
        expected, _ = predictor.predict(frame)
        found = session.run(None, onnx_inputs(predictor, frame))
        if target == "cost":
            np.testing.assert_allclose(found[0], expected["prediction"].to_numpy(), rtol=1e-5)
        else:
            assert found[0].tolist() == expected["prediction"].to_list()
            np.testing.assert_allclose(found[1], expected.drop("prediction").to_numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("columns", [["city", "job title"], ["age", "ok"]])
def test_a_table_of_one_sort_of_columns(tmp_path: Path, columns: list[str]) -> None:
    frame = people().select(*columns, "sick")
    encoder = Encoder.fit(frame, "sick")
    predictor = Predictor(encoder, build_mlp(len(encoder.column_names), (), 1).eval())
    export_model(predictor, tmp_path / "model.pt2")
    if "city" in columns:
        export_model(predictor, tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        assert [value.name for value in session.get_inputs()] == columns
        assert [value.name for value in session.get_outputs()] == ["prediction", "probabilities"]


@pytest.mark.slow
@pytest.mark.parametrize("labels", [[True, False], [0.5, 1.5, 2.5], [2**40, 5]], ids=str)
def test_labels_of_every_type_come_back_from_onnx(tmp_path: Path, labels: list[Any]) -> None:
    generator = np.random.default_rng(0)
    names = ["torchlasso/labels", "a/b"]  # the first is what the graph would call a tensor of its own
    frame = pl.DataFrame({name: generator.normal(size=60) for name in names})
    frame = frame.with_columns(y=pl.Series([labels[i] for i in generator.integers(0, len(labels), 60)]))
    encoder = Encoder.fit(frame, "y", "classification")
    predictor = Predictor(encoder, build_mlp(2, (), len(labels) if len(labels) > 2 else 1).eval())
    export_model(predictor, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    found = session.run(["prediction"], onnx_inputs(predictor, frame))[0]
    assert found.tolist() == predictor.predict(frame)[0]["prediction"].to_list()


def test_a_column_without_a_name_is_refused_in_onnx(tmp_path: Path) -> None:
    frame = pl.DataFrame({"": np.arange(20.0), "y": np.arange(20.0) ** 2})
    predictor = Predictor(Encoder.fit(frame, "y"), nn.Linear(1, 1))
    with pytest.raises(InputError, match="cannot be exported to ONNX: Field 'name'"):
        export_model(predictor, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_table_model_in_pt2(tmp_path: Path) -> None:
    predictor = predictor_of("class")
    assert export_model(predictor, tmp_path / "model.pt2").max_difference < 1e-6
    extra = {"torchlasso.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    described = json.loads(extra["torchlasso.json"])
    assert described["classes"] == ["may be", "no", "yes"]
    assert described["codes"]["job title"] == {"cook": 0, 'größer, "x"': 1, "smith": 2, "": 3}
    frame = people(3)
    arrays = onnx_inputs(predictor, frame)
    numbers = np.column_stack([arrays[name][:, 0] for name in described["numbers"]])
    codes = np.column_stack(
        [
            [known.get(text, described["other_code"][name]) for text in arrays[name][:, 0]]
            for name, known in described["codes"].items()
        ]
    )
    _, probabilities = program.module()(torch.from_numpy(numbers), torch.from_numpy(codes))
    expected = predictor.predict(frame)[0].drop("prediction").to_numpy()
    np.testing.assert_allclose(probabilities.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("target", ["class", "sick", "cost"])
def test_the_graph_is_the_predictor(target: str) -> None:
    predictor = predictor_of(target)
    for seed in range(20):
        rows = probe(predictor, seed)
        with torch.no_grad():
            found = TableGraph(predictor)(*rows.tensors)
        assert difference(found[-1:], reference(predictor, rows.frame)) < 1e-6


def test_the_calendar_of_the_graph_is_that_of_the_table() -> None:
    start = datetime.datetime(1583, 1, 1)
    generator = np.random.default_rng(0)
    minutes = np.unique(
        np.concatenate([np.arange(0, 800 * 365 * 1440, 1440 * 11), generator.integers(0, 4 * 10**8, 5000)])
    )
    moments = pl.Series("when", [start]).dt.offset_by("0d").extend_constant(start, len(minutes) - 1)
    moments = (moments.dt.epoch("us") + pl.Series(minutes) * 60_000_000).cast(pl.Datetime("us"))
    frame = pl.DataFrame({"when": moments, "y": generator.normal(size=len(minutes))})
    encoder = Encoder.fit(frame, "y")
    predictor = Predictor(encoder, nn.Linear(4, 1))
    expected = date_parts(moments)
    days = torch.from_numpy(moments.dt.epoch("us").to_numpy() / 86_400e6)[:, None]
    graph = TableGraph(predictor)
    kept: list[Tensor] = []
    graph.module.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    graph(days)
    column = encoder.columns[0]
    assert isinstance(column, Dates)
    assert column.parts == ("day", "month", "weekday", "hour")
    for place, (part, scale) in enumerate(zip(column.parts, column.scales, strict=True)):
        wanted = ((expected[part] - scale.mean) / scale.sd).astype(np.float32)
        np.testing.assert_allclose(kept[0][:, place].numpy(), wanted, atol=1e-5, err_msg=part)


def test_the_weights_of_a_table_model(tmp_path: Path) -> None:
    predictor = predictor_of("class")
    assert export_model(predictor, tmp_path / "weights.safetensors").max_difference == 0.0
    state = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(state[name], x) for name, x in predictor.module.state_dict().items())
    with safe_open(tmp_path / "weights.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert Encoder.from_config(json.loads(metadata["encoder.json"])) == predictor.encoder
    assert json.loads(metadata["torchlasso.json"])["task"] == "classification"


# ---- any module ---------------------------------------------------------------------------------------


class Two(nn.Module):
    """Takes two inputs and returns a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        return {"sum": self.linear(x) + y, "parts": (x.relu(), y.sum(dim=1))}


def convolution() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    return model.train(), (torch.randn(1, 1, 6, 6),)


MODULES = {
    "convolution": convolution,
    "two inputs": lambda: (Two(), (torch.randn(2, 4), torch.randn(2, 3))),
    "sparse": lambda: (nn.Sequential(SparseLinear(5, 2, nonzero=4), nn.Tanh()), (torch.randn(3, 5),)),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_modules_in_pt2_take_any_number_of_rows(tmp_path: Path, make: Any) -> None:
    model, inputs = make()
    training = model.training
    written = export_model(model, tmp_path / "model.pt2", example_inputs=inputs)
    assert written.max_difference < 1e-6
    assert model.training == training
    program = torch.export.load(tmp_path / "model.pt2").module()
    more = tuple(torch.randn(7, *x.shape[1:]) for x in inputs)
    found, expected = program(*more), model.eval()(*more)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_modules_in_onnx_take_any_number_of_rows(tmp_path: Path, make: Any) -> None:
    model, inputs = make()
    assert export_model(model, tmp_path / "model.onnx", example_inputs=inputs).max_difference < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    more = tuple(torch.randn(7, *x.shape[1:]) for x in inputs)
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: x.numpy() for name, x in zip(names, more, strict=True)})
    with torch.no_grad():
        outputs = model.eval()(*more)
    expected = [outputs["sum"], *outputs["parts"]] if isinstance(outputs, dict) else [outputs]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-6)


def test_weights_of_a_module(tmp_path: Path) -> None:
    model = nn.Sequential(SparseLinear(5, 2, nonzero=4), nn.BatchNorm1d(2))
    written = export_model(model, tmp_path / "weights.bin", format="safetensors")
    assert str(written) == (
        f"wrote {tmp_path / 'weights.bin'} (safetensors, {written.size:,} bytes; "
        "differs from the model by 0.0e+00 at most, relative)"
    )
    state = load_file(tmp_path / "weights.bin")
    assert set(state) == {
        *("0.weight", "0.bias", "1.weight", "1.bias"),
        *("1.running_mean", "1.running_var", "1.num_batches_tracked"),
    }


# ---- what is refused ----------------------------------------------------------------------------------


def test_a_model_that_is_no_function_of_its_inputs_is_not_written(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    with pytest.raises(InputError, match=r"would differ from the model by .* was not written"):
        export_model(Counting(), tmp_path / "model.pt2", example_inputs=torch.ones(2, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_a_model_that_torch_cannot_trace_says_why(tmp_path: Path, format: str) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(
        InputError, match=f"cannot be exported to {format if format == 'pt2' else 'ONNX'}: "
    ) as caught:
        export_model(Branching(), tmp_path / f"model.{format}", example_inputs=torch.ones(2, 3))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "inputs", [None, (), (torch.ones(2), "text"), torch.tensor(1.0), torch.ones(0, 3)], ids=str
)
def test_inputs_without_a_batch_are_refused(tmp_path: Path, inputs: Any) -> None:
    with pytest.raises(InputError, match="expected example_inputs"):
        export_model(nn.Linear(3, 2), tmp_path / "model.pt2", example_inputs=inputs)


@pytest.mark.parametrize(("name", "said"), [("model", "without an ending"), ("model.h5", "'h5'")])
def test_other_formats_are_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=f"format must be one of onnx, pt2, safetensors, got .*{said}"):
        export_model(nn.Linear(3, 2), tmp_path / name)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        export_model(tmp_path / "missing.safetensors", tmp_path / "model.pt2")
    with pytest.raises(OutputError):
        export_model(nn.Linear(3, 2), tmp_path / "missing" / "model.safetensors")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxscript":
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        InputError, match=re.escape("onnxscript, which is not installed; pip install torchlasso[onnx]")
    ):
        export_model(nn.Linear(3, 2), tmp_path / "model.onnx", example_inputs=torch.ones(2, 3))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("found", "expected", "worst"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([0.0, 0.5], [0.0, 0.0], 0.5),
        ([NAN, 1.0], [NAN, 1.0], 0.0),
        ([NAN, 1.0], [1.0, 1.0], INF),
        ([INF, 1.0], [INF, 2.0], 0.5),
        ([NAN, 1.0], [0.5, 1.0], INF),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([1.0], [1.0, 2.0], INF),
        ([], [], 0.0),
    ],
)
def test_differences(found: list[float], expected: list[float], worst: float) -> None:
    assert difference([torch.tensor(found)], [torch.tensor(expected)]) == worst


def test_a_result_can_be_printed() -> None:
    assert str(Exported("m.onnx", "onnx", 1234, 2e-7)).startswith("wrote m.onnx (onnx, 1,234 bytes; differs")
    assert export_module.FORMATS == ("onnx", "pt2", "safetensors")
