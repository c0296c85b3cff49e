"""A saved model predicts what it predicted before, and a damaged or hostile one predicts nothing."""

import datetime
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import Tensor

from torchlasso.errors import ModelFileError, TableError
from torchlasso.files import read_tensors, write_tensors
from torchlasso.mlp import build_mlp
from torchlasso.tabular import encoding, predictor
from torchlasso.tabular.data import read_table
from torchlasso.tabular.encoding import Encoder
from torchlasso.tabular.predictor import Predictor

ROWS = 40
TARGETS: dict[str, list[Any]] = {
    "regression": [i * 1.25 for i in range(ROWS)],
    "text": ["no", "yes"] * 20,
    "truth": [True, False] * 20,
    "numbers": [3, 7, 11, 7] * 10,
    "halves": [0.5, 1.5] * 20,
    "odd text": ["a,b", 'say "x"', "größe", ""] * 10,
}


def features() -> pl.DataFrame:
    generator = np.random.default_rng(0)
    start = datetime.date(2024, 1, 1)
    return pl.DataFrame(
        {
            "age": [None, *generator.normal(size=ROWS - 1)],
            "smoker": generator.random(ROWS) < 0.5,
            "job": generator.choice(["cook", "smith", "01", "1.50", "True"], ROWS),
            "since": [start + datetime.timedelta(days=int(d)) for d in generator.integers(0, 900, ROWS)],
        }
    )


def make(target: str = "text", hidden: tuple[int, ...] = (4, 3)) -> Predictor:
    """Return a model with random weights."""
    task = "regression" if target == "regression" else "classification"
    encoder = Encoder.fit(features().with_columns(pl.Series("y", TARGETS[target])), "y", task)  # type: ignore[arg-type]
    outputs = len(encoder.classes) if len(encoder.classes) > 2 else 1
    rescale = (2.0, -1.0) if task == "regression" and hidden else None
    module = build_mlp(len(encoder.column_names), hidden, outputs, rescale=rescale)
    return Predictor(encoder, module if hidden else module.double())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.safetensors"


# ---- round trip -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("hidden", [(), (4,), (4, 3)])
def test_a_saved_model_predicts_the_same(path: Path, target: str, hidden: tuple[int, ...]) -> None:
    model = make(target, hidden)
    before, notes = model.predict(features())
    model.save(path)
    assert path.read_bytes() == model.to_bytes()
    again = Predictor.load(path)
    after, same_notes = again.predict(features())
    assert_frame_equal(before, after)
    assert notes == same_notes == ()
    assert again.encoder == model.encoder
    assert again.module.training is False
    assert b"pickle" not in path.read_bytes()


@pytest.mark.parametrize("target", ["text", "truth", "numbers", "halves", "odd text"])
def test_probabilities_sum_to_one_and_the_largest_is_predicted(target: str) -> None:
    model = make(target)
    frame, _ = model.predict(features())
    labels = sorted(set(TARGETS[target]))
    assert frame.columns == ["prediction", *(f"probability of {label}" for label in labels)]
    probabilities = frame.drop("prediction").to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert frame["prediction"].to_list() == [labels[code] for code in probabilities.argmax(axis=1)]


def test_rows_do_not_depend_on_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    whole, _ = model.predict(features())
    parts = pl.concat([model.predict(features()[i : i + 1])[0] for i in range(ROWS)])
    assert_frame_equal(whole, parts)
    monkeypatch.setattr(predictor, "_ROWS_AT_ONCE", 7)
    assert_frame_equal(whole, model.predict(features())[0])


def test_a_row_of_text_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    """A file of a few rows does not show that "01" is a category: as a number it would be an unknown 1."""
    model = make()
    assert model.texts == ("job",)
    for job in ("01", "1.50", "True"):
        rows = features().filter(pl.col("job") == job)
        rows.write_csv(tmp_path / "t.csv")
        found, notes = model.predict(read_table(tmp_path / "t.csv", texts=model.texts))
        assert notes == ()
        assert_frame_equal(found, model.predict(rows)[0])


# ---- other tables -----------------------------------------------------------------------------


def test_the_order_of_the_columns_and_further_ones_change_nothing() -> None:
    model = make()
    expected, _ = model.predict(features())
    reordered, notes = model.predict(features().select(sorted(features().columns, reverse=True)))
    assert_frame_equal(expected, reordered)
    assert notes == ()
    further, notes = model.predict(features().with_columns(extra=pl.lit(1), y=pl.lit("no")))
    assert_frame_equal(expected, further)
    assert notes == ("ignored columns that training did not have: 'extra'",)


def test_a_column_that_lacks_is_named() -> None:
    with pytest.raises(
        TableError, match="no feature columns 'age', 'job'; its columns are 'smoker', 'since'"
    ):
        make().predict(features().drop("age", "job"))
    with pytest.raises(TableError, match="did you mean 'Age'"):
        make().predict(features().rename({"age": "Age"}))


def test_an_unseen_category_is_told() -> None:
    frame, notes = make().predict(features().with_columns(job=pl.lit("pilot")))
    assert frame.height == ROWS
    assert notes == ("'job': 40 values never seen in training ('pilot'); encoded as zeros",)


@pytest.mark.parametrize(
    ("column", "match"),
    [
        (pl.lit("old").alias("age"), "'age' must hold numbers, but holds 'old' in data row 1"),
        (pl.lit(float("inf")).alias("age"), "'age' holds an infinite value in data row 1"),
        (pl.lit(1e300).alias("age"), "'age' holds 1e\\+300 in data row 1, too far from"),
        (pl.lit(2).alias("smoker"), "'smoker' must hold true or false"),
        (pl.lit(7).alias("since"), "'since' must hold dates"),
        (pl.lit([1]).alias("job"), "'job' must hold text"),
    ],
)
def test_a_column_of_another_type_is_refused(column: pl.Expr, match: str) -> None:
    with pytest.raises(TableError, match=match):
        make().predict(features().with_columns(column))


def test_a_table_that_would_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    monkeypatch.setattr(encoding, "MAX_MATRIX_BYTES", 4 * ROWS * len(model.encoder.column_names))
    model.predict(features())
    with pytest.raises(TableError, match=r"41 rows of .* use fewer rows"):
        model.predict(pl.concat([features(), features()[:1]]))


# ---- damaged and hostile files ----------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as error:
        Predictor.load(path)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


def test_a_file_damaged_anywhere_is_refused(path: Path) -> None:
    make(hidden=(2,)).save(path)
    whole = path.read_bytes()
    for position in {*range(0, 16), *range(16, len(whole), 41), len(whole) - 1}:
        for damage in (0x01, 0x80):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ damage]) + whole[position + 1 :])
            # Spaces between the parts of the header carry nothing: what is read must then be the same.
            try:
                found = Predictor.load(path)
            except ModelFileError as error:
                assert str(error).isprintable()  # noqa: PT017 - both outcomes are allowed
            else:
                assert found.to_bytes() == whole
        path.write_bytes(whole[:position])
        refused(path)


Change = Callable[[dict[str, Tensor], dict[str, Any]], object]


def column(config: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in config["encoder"]["columns"] if c["name"] == name)
    return found


def swap(tensors: dict[str, Tensor], *names: str) -> None:
    first, second = names
    tensors[first], tensors[second] = tensors[second], tensors[first]


HOSTILE: dict[str, Change] = {
    "no kind": lambda t, c: c.pop("kind"),
    "another kind": lambda t, c: c.update(kind="module"),
    "no hidden": lambda t, c: c.pop("hidden"),
    "hidden of text": lambda t, c: c.update(hidden="4,3"),
    "hidden of floats": lambda t, c: c.update(hidden=[4.0, 3.0]),
    "hidden of truth": lambda t, c: c.update(hidden=[True, 3]),
    "hidden is a dict": lambda t, c: c.update(hidden={"0": 4}),
    "no layers": lambda t, c: c.update(hidden=[]),
    "a negative width": lambda t, c: c.update(hidden=[-4, 3]),
    "no width": lambda t, c: c.update(hidden=[0, 3]),
    "a huge width": lambda t, c: c.update(hidden=[2**62, 3]),
    "huge widths": lambda t, c: c.update(hidden=[10**9, 10**9]),
    "a width beyond integers": lambda t, c: c.update(hidden=[10**30, 3]),
    "a million layers": lambda t, c: c.update(hidden=[1] * 10**6),
    "a million layers without values": lambda t, c: (
        c.update(hidden=[2**40] * 9),
        t.update({f"t{i}": torch.ones(0, 2**40) for i in range(20)}),
    ),
    "another width": lambda t, c: c.update(hidden=[5, 3]),
    "swapped layers": lambda t, c: swap(t, "hidden1.weight", "hidden2.weight"),
    "a bias for a weight": lambda t, c: swap(t, "output.weight", "output.bias"),
    "a tensor missing": lambda t, c: t.pop("output.bias"),
    "no tensors": lambda t, c: t.clear(),
    "a tensor too many": lambda t, c: t.update(more=torch.ones(1)),
    "a tensor renamed": lambda t, c: t.update({"\x1b[2J": t.pop("output.bias")}),
    "a scalar": lambda t, c: t.update({"output.bias": torch.tensor(1.0)}),
    "whole numbers": lambda t, c: t.update({"output.bias": torch.ones(1, dtype=torch.int64)}),
    "mixed precision": lambda t, c: t.update({"output.bias": torch.ones(1, dtype=torch.float64)}),
    "half precision": lambda t, c: t.update({name: tensor.half() for name, tensor in t.items()}),
    "eighth precision": lambda t, c: t.update({n: v.to(torch.float8_e5m2) for n, v in t.items()}),
    "complex": lambda t, c: t.update({name: tensor.to(torch.complex64) for name, tensor in t.items()}),
    "not a number": lambda t, c: t["output.bias"].fill_(float("nan")),
    "infinite": lambda t, c: t["hidden1.weight"].fill_(float("inf")),
    "no encoder": lambda t, c: c.pop("encoder"),
    "an encoder of text": lambda t, c: c.update(encoder="x"),
    "an unknown task": lambda t, c: c["encoder"].update(task="clustering"),
    "regression with classes": lambda t, c: c["encoder"].update(task="regression"),
    "one class": lambda t, c: c["encoder"].update(classes=["no"]),
    "a third class": lambda t, c: c["encoder"].update(classes=["a", "b", "c"]),
    "equal classes": lambda t, c: c["encoder"].update(classes=["no", "no"]),
    "classes of two kinds": lambda t, c: c["encoder"].update(classes=["no", 1]),
    "a class of half a letter": lambda t, c: c["encoder"].update(classes=["no", "\ud800"]),
    "a class beyond integers": lambda t, c: c["encoder"].update(classes=[0, 10**30]),
    "classes that fit no integer": lambda t, c: c["encoder"].update(classes=[-1, 2**63]),
    "classes of lists": lambda t, c: c["encoder"].update(classes=[[1], [2]]),
    "no columns": lambda t, c: c["encoder"].update(columns=[]),
    "a column twice": lambda t, c: c["encoder"]["columns"].append(c["encoder"]["columns"][0]),
    "a column that is the target": lambda t, c: column(c, "age").update(name="y"),
    "a column of half a letter": lambda t, c: column(c, "age").update(name="\udfff"),
    "a column without a kind": lambda t, c: column(c, "age").pop("kind"),
    "a column of another kind": lambda t, c: column(c, "age").update(kind="Encoder"),
    "a column with more": lambda t, c: column(c, "age").update(__class__="os.system"),
    "no deviation": lambda t, c: column(c, "age")["scale"].update(sd=0.0),
    "a deviation beyond floats": lambda t, c: column(c, "age")["scale"].update(sd=10**400),
    "more categories than weights": lambda t, c: column(c, "job").update(
        categories=list(map(str, range(10**5)))
    ),
    "a category of half a letter": lambda t, c: column(c, "job").update(categories=["\ud800"] * 5),
    "a note that steers the terminal": lambda t, c: c["encoder"].update(notes=["\x1b[2J"]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_model_with_a_right_checksum_is_refused(path: Path, change: Change) -> None:
    make().save(path)
    tensors, config = read_tensors(path)
    change(tensors, config)
    write_tensors(path, tensors, config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


def test_a_hostile_configuration_that_is_no_json_is_refused(path: Path) -> None:
    model = make()
    model.save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"hidden", b"hid\xffen"))
    refused(path)
    path.write_bytes(content.replace(json.dumps([4, 3]).encode(), b"[4, 9]"))
    assert "checksum" in refused(path)


def test_a_model_file_larger_than_the_limit_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().save(path)
    monkeypatch.setattr(predictor, "MAX_BYTES", path.stat().st_size)
    Predictor.load(path)
    monkeypatch.setattr(predictor, "MAX_BYTES", path.stat().st_size - 1)
    assert "more than the limit" in refused(path)
    with path.open("wb") as stream:
        stream.truncate(2**40)
    assert "1,048,576 MiB" in refused(path)


@pytest.mark.parametrize("name", ["absent.safetensors", "folder", "missing/below"])
def test_no_model_at_all(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    assert name in refused(tmp_path / name)
