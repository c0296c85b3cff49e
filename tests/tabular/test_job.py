"""From a table to a model: honest splits, honest scores, and files that say what happened."""

import csv
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from sklearn.linear_model import Lasso, LinearRegression
from sklearn.metrics import accuracy_score, r2_score
from torch import Tensor

from torchlasso.errors import InputError, TableError
from torchlasso.files import output_folder
from torchlasso.fit.run import fit_mlp
from torchlasso.mlp import linear_layers
from torchlasso.tabular import job as tabular
from torchlasso.tabular.encoding import Encoder
from torchlasso.tabular.job import Request, TableFit, fit_table
from torchlasso.tabular.outputs import predict_command, write_fit
from torchlasso.tabular.predictor import Predictor
from torchlasso.tabular.targets import usable_rows

ROWS = 80
LINEAR = Request("y", hidden=())
GIVEN = Request("y", hidden=(), strength=0.05)
NETWORK = Request("y", hidden=(4,), strength=0.01)


def people(kind: str = "binary", rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    """Return a table whose target follows two numbers and a category; two numbers are noise."""
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=(rows, 4)).round(3)
    job = generator.choice(["clerk", "cook", "smith"], rows)
    score = 2 * numbers[:, 0] - numbers[:, 1] + 2 * (job == "cook") + generator.normal(0, 0.5, rows)
    target: Any = score * 10 + 50
    if kind == "binary":
        target = np.where(score > np.median(score), "sick", "well")
    elif kind == "multiclass":
        target = np.digitize(score, np.quantile(score, [0.33, 0.67])) + 5
    return pl.DataFrame({f"x{i}": numbers[:, i] for i in range(4)} | {"job": job, "y": target})


def weights(fit: TableFit) -> dict[str, Tensor]:
    return dict(fit.predictor.module.state_dict())


def same_weights(left: TableFit, right: TableFit) -> bool:
    ours, theirs = weights(left), weights(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def timeless(fit: TableFit) -> dict[str, Any]:
    return {name: part for name, part in fit.metrics.items() if name != "seconds"}


def split_of(frame: pl.DataFrame, request: Request) -> tabular._Rows:
    """Return which rows of a table a fit uses for what."""
    return tabular._split(frame, usable_rows(frame, "y"), request)


@cache
def linear(kind: str = "binary") -> TableFit:
    """Return a fit along a path; several tests look at it."""
    return fit_table(people(kind), LINEAR)


# ---- the split --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("strength", [None, 0.1])
def test_every_row_has_one_role(kind: str, strength: float | None) -> None:
    frame = people(kind)
    rows = split_of(frame, replace(LINEAR, strength=strength))
    roles = [rows.fitted, rows.valid, rows.test]
    assert sorted(np.concatenate(roles)) == list(range(ROWS))
    assert [len(role) for role in roles] == ([64, 0, 16] if strength else [48, 16, 16])
    if kind == "binary":
        for role in roles[:: 2 if strength else 1]:
            assert frame["y"][role].value_counts()["count"].to_list() == [len(role) // 2] * 2


@pytest.mark.parametrize("request_", [LINEAR, GIVEN, NETWORK], ids=["path", "given", "network"])
def test_what_is_in_the_test_rows_influences_nothing(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = people("regression")
    frame = frame.with_columns(rare=pl.Series(["a", "b"] * (ROWS // 2)))
    tested = pl.int_range(ROWS).is_in(split_of(frame, request_).test.tolist())
    other = frame.with_columns(
        pl.when(tested).then(pl.col("x0") * 100 - 7).otherwise(pl.col("x0")).alias("x0"),
        pl.when(tested).then(None).otherwise(pl.col("x1")).alias("x1"),
        pl.when(tested).then(pl.lit("stranger")).otherwise(pl.col("job")).alias("job"),
        pl.when(tested).then(pl.lit("c")).otherwise(pl.col("rare")).alias("rare"),
        pl.when(tested).then(pl.col("y") + 1000 * pl.col("x2")).otherwise(pl.col("y")).alias("y"),
    )
    first, second = fit_table(frame, request_), fit_table(other, request_)
    assert same_weights(first, second)
    assert first.predictor.encoder == second.predictor.encoder
    assert first.path == second.path
    assert first.metrics["features"] == second.metrics["features"]
    assert first.metrics["certificate"] == second.metrics["certificate"]
    for net in ("sparse", "dense"):
        assert first.metrics["scores"][net]["train"] == second.metrics["scores"][net]["train"]
        assert first.metrics["scores"][net]["valid"] == second.metrics["scores"][net]["valid"]
        assert first.metrics["scores"][net]["test"] != second.metrics["scores"][net]["test"]


def test_the_encoder_learns_from_the_training_rows_alone() -> None:
    frame = people()
    rows = split_of(frame, LINEAR)
    encoder = linear().predictor.encoder
    assert encoder == Encoder.fit(frame, "y", rows=rows.fitted)
    mean = float(frame["x0"][rows.fitted].mean())  # type: ignore[arg-type]
    assert encoder.columns[0].to_config()["scale"]["mean"] == pytest.approx(mean)
    assert encoder != Encoder.fit(frame, "y")


def test_a_test_table_tests_and_all_other_rows_train() -> None:
    test = people(seed=1).with_columns(extra=pl.lit(1), job=pl.lit("pilot"))
    fit = fit_table(people(), replace(GIVEN, test=test, test_source="later.csv"))
    assert fit.metrics["split"] == {
        "train": ROWS,
        "valid": 0,
        "test": ROWS,
        "seed": 0,
        "test_source": "later.csv",
    }
    predicted = fit.predictor.predict(test)[0]["prediction"]
    assert fit.metrics["scores"]["sparse"]["test"] == pytest.approx(accuracy_score(test["y"], predicted))
    notes = fit.metrics["table"]["notes"]
    assert "test table: ignored columns that training did not have: 'extra'" in notes
    assert any("never seen in training ('pilot')" in note for note in notes)
    assert same_weights(fit, fit_table(people(), replace(GIVEN, test=people(seed=2))))


def test_test_rows_without_a_target_are_left_out_and_told() -> None:
    gaps = pl.when(pl.int_range(ROWS) < 5)
    test = people("regression", seed=1).with_columns(y=gaps.then(float("nan")).otherwise(pl.col("y")))
    fit = fit_table(people("regression"), replace(GIVEN, test=test))
    assert fit.metrics["split"]["test"] == ROWS - 5
    assert (
        "left out 5 of 80 rows of the test table, whose target 'y' is missing"
        in fit.metrics["table"]["notes"]
    )
    predicted = fit.predictor.predict(test[5:])[0]["prediction"]
    assert fit.metrics["scores"]["sparse"]["test"] == pytest.approx(r2_score(test["y"][5:], predicted))


@pytest.mark.parametrize(
    ("test", "match"),
    [
        (people().drop("y"), "the test table has no column 'y'"),
        (people().with_columns(y=pl.lit(None, pl.String)), "no row of the test table has a value in 'y'"),
        (people().drop("x0"), "test table: the table has no feature column 'x0'"),
        (people().with_columns(y=pl.lit("dead")), "test table: target column 'y' holds 'dead' in data row 1"),
        (people().with_columns(x0=pl.lit("?")), "test table: column 'x0' must hold numbers"),
    ],
)
def test_a_test_table_that_does_not_fit_is_refused(test: pl.DataFrame, match: str) -> None:
    with pytest.raises(TableError, match=match):
        fit_table(people(), replace(GIVEN, test=test))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan"), float("inf")])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        fit_table(people(), replace(GIVEN, test=share))


def test_rows_without_a_target_are_left_out_and_told() -> None:
    gaps = pl.when(pl.int_range(ROWS) % 4 == 1)
    frame = people().with_columns(y=gaps.then(None).otherwise(pl.col("y")))
    fit = fit_table(frame, GIVEN)
    assert fit.metrics["split"]["train"] + fit.metrics["split"]["test"] == ROWS * 3 // 4
    assert "left out 20 of 80 rows, whose target 'y' is missing" in fit.metrics["table"]["notes"]
    rows = split_of(frame, GIVEN)
    assert frame["y"][np.concatenate([rows.fitted, rows.test])].null_count() == 0
    strange = frame.with_columns(x0=pl.when(pl.col("y").is_null()).then(99.0).otherwise(pl.col("x0")))
    assert same_weights(fit, fit_table(strange, GIVEN))


# ---- the fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        ("binary", LINEAR),
        ("regression", LINEAR),
        ("binary", NETWORK),
        ("multiclass", NETWORK),
        ("regression", NETWORK),
    ],
)
def test_the_reported_scores_are_those_of_the_predictions(kind: str, request_: Request) -> None:
    frame = people(kind)
    rows = split_of(frame, request_)
    fit = linear(kind) if request_ == LINEAR else fit_table(frame, request_)
    predicted = fit.predictor.predict(frame)[0]["prediction"].to_numpy()
    score = r2_score if kind == "regression" else accuracy_score
    assert fit.metrics["metric"] == ("R2" if kind == "regression" else "accuracy")
    assert fit.metrics["table"]["task"] == ("regression" if kind == "regression" else "classification")
    target = frame["y"].to_numpy()
    scores = fit.metrics["scores"]["sparse"]
    for name, part in {"train": rows.fitted, "valid": rows.valid, "test": rows.test}.items():
        expected = score(target[part], predicted[part]) if len(part) else None
        assert scores[name] == (pytest.approx(expected) if expected is not None else None)
    assert scores["gap"] == pytest.approx(scores["train"] - scores["test"])
    assert scores["test"] > (0.6 if kind != "multiclass" else 0.45)


def test_the_counts_are_those_of_the_weights() -> None:
    fit = linear()
    ((_, layer),) = linear_layers(fit.predictor.module)
    told = fit.metrics["weights"]
    assert told["nonzero"] == int((layer.weight != 0).sum())
    assert told["total"] == layer.weight.numel() == 7
    assert fit.metrics["model"]["parameters"] == 8
    chosen = next(row for row in fit.path if row["chosen"])
    assert chosen["strength"] == fit.metrics["strength"]["value"]


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_the_columns_of_a_category_vanish_together(hidden: tuple[int, ...]) -> None:
    frame = people().with_columns(noise=pl.Series(np.random.default_rng(3).choice(list("pqrs"), ROWS)))
    seen = set()
    for strength in (0.02, 0.1, 0.2):
        request = Request("y", hidden=hidden, penalty="features", strength=strength)
        fit = fit_table(frame, request)
        (_, first), *_ = linear_layers(fit.predictor.module)
        for group, name in zip(
            fit.predictor.encoder.groups, fit.predictor.encoder.feature_names, strict=True
        ):
            column = (first.weight[:, group] != 0).any(dim=0)
            assert column.all() or not column.any()
            if len(group) > 1:
                seen.add((name, bool(column.any())))
            told = next(feature for feature in fit.metrics["features"] if feature["name"] == name)
            assert told["selected"] <= bool(column.any())
    assert {("noise", False), ("job", True)} <= seen


def test_a_given_linear_strength_is_the_lasso_of_scikit_learn() -> None:
    frame = people("regression")
    fit = fit_table(frame, replace(GIVEN, strength=1.0, test=people("regression", seed=1)))
    matrix = fit.predictor.encoder.transform(frame).astype(np.float64)
    known = Lasso(alpha=1.0, tol=1e-10, max_iter=100_000).fit(matrix, frame["y"].to_numpy())  # type: ignore[no-untyped-call]
    layer = linear_layers(fit.predictor.module)[0][1]
    np.testing.assert_allclose(layer.weight.detach().numpy()[0], known.coef_, atol=1e-4)
    assert layer.bias.item() == pytest.approx(known.intercept_, abs=1e-4)
    assert fit.path == []
    assert fit.metrics["strength"] == {"value": 1.0, "chosen_by": "given", "max": None}
    plain = LinearRegression().fit(matrix, frame["y"].to_numpy())  # type: ignore[no-untyped-call]
    assert fit.metrics["scores"]["dense"]["train"] == pytest.approx(
        plain.score(matrix, frame["y"].to_numpy())
    )


@pytest.mark.parametrize("request_", [GIVEN, NETWORK], ids=["linear", "network"])
def test_the_seed_decides(request_: Request) -> None:
    frame = people()
    first, again, other = (fit_table(frame, replace(request_, seed=seed)) for seed in (3, 3, 4))
    assert timeless(first) == timeless(again)
    assert first.path == again.path
    assert first.predictor.to_bytes() == again.predictor.to_bytes()
    assert not same_weights(first, other)


def test_the_state_of_the_world_does_not() -> None:
    frame = people()
    before = torch.random.get_rng_state()
    first = fit_table(frame, NETWORK)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    np.random.seed(99)
    assert same_weights(first, fit_table(frame, NETWORK))
    assert_frame_equal(frame, people())


def test_features_come_in_the_order_of_their_importance() -> None:
    features = fit_table(people(), GIVEN).metrics["features"]
    importance = [feature["importance"] for feature in features]
    assert importance == sorted(importance, reverse=True)
    assert sum(importance) == pytest.approx(1)
    assert features[0]["name"] == "x0"
    assert {feature["name"] for feature in features} == {"x0", "x1", "x2", "x3", "job"}
    assert all(feature["importance"] == 0 for feature in features if not feature["selected"])


def test_columns_that_cannot_help_are_told() -> None:
    frame = people().with_columns(
        unit=pl.lit("cm"), number=pl.int_range(ROWS), name=pl.Series([f"n{i}" for i in range(ROWS)])
    )
    notes = fit_table(frame, GIVEN).metrics["table"]["notes"]
    for name in ("unit", "number", "name"):
        assert any(note.startswith(f"left out '{name}'") for note in notes)


def test_a_network_beyond_all_memory_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="more than the limit of 20,000,000"):
        fit_table(people(), Request("y", hidden=(100_000, 100_000)))
    monkeypatch.setattr(tabular, "MAX_WEIGHTS", 7 * 4 + 4)
    fit_table(people(), NETWORK)
    monkeypatch.setattr(tabular, "MAX_WEIGHTS", 7 * 4 + 3)
    with pytest.raises(InputError, match="7 inputs and hidden layers of 4 make 32 weights"):
        fit_table(people(), NETWORK)


def test_a_training_that_diverges_is_an_error_and_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fit_mlp

    def diverge(*args: Any) -> Any:
        fit = original(*args)
        next(fit.module.parameters()).data[0] = float("nan")
        return fit

    monkeypatch.setattr(tabular, "fit_mlp", diverge)
    with pytest.raises(TableError, match="diverged"):
        fit_table(people(), GIVEN)


# ---- the files --------------------------------------------------------------------------------


def no_constant(constant: str) -> None:
    raise AssertionError(constant)


def written(fit: TableFit, folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Write a fit and read its files with strict parsers."""
    write_fit(fit, output_folder(folder), predict_command(folder, Path("t.csv")), {})
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=no_constant)
    with (folder / "path.csv").open(encoding="utf-8", newline="") as stream:
        return metrics, list(csv.DictReader(stream))


def test_the_files_of_a_path(tmp_path: Path) -> None:
    fit = linear()
    metrics, path = written(fit, tmp_path / "out")
    assert metrics == fit.metrics
    for mark in ("best", "chosen"):
        assert [row[mark] for row in path].count("True") == 1
        assert {row[mark] for row in path} == {"True", "False"}
    strengths = [float(row["strength"]) for row in path]
    assert strengths == sorted(strengths)
    chosen, best = (next(row for row in path if row[mark] == "True") for mark in ("chosen", "best"))
    assert float(chosen["strength"]) == metrics["strength"]["value"] >= float(best["strength"])
    assert float(best["valid_loss"]) == min(float(row["valid_loss"]) for row in path)
    assert all(int(row["nonzero"]) >= int(row["features"]) >= 0 for row in path)
    assert int(path[-1]["features"]) == 0
    loaded = Predictor.load(tmp_path / "out" / "model.safetensors")
    assert_frame_equal(loaded.predict(people())[0], fit.predictor.predict(people())[0])
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for outside in ("http://", "https://", "<script", "<link", "src="):
        assert outside not in report.replace("http://www.w3.org", "").replace(
            "http://www.w3.org/1999/xlink", ""
        )


@pytest.mark.parametrize("strength", [0.0, 1e9])
@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_extreme_strengths_still_make_strict_files(tmp_path: Path, strength: float, kind: str) -> None:
    metrics, path = written(fit_table(people(kind), replace(GIVEN, strength=strength)), tmp_path / "out")
    assert path == []
    selected = [feature["name"] for feature in metrics["features"] if feature["selected"]]
    assert len(selected) == (5 if strength == 0 else 0)
    assert metrics["weights"]["nonzero"] == (7 if strength == 0 else 0)


def test_hostile_names_make_strict_files(tmp_path: Path) -> None:
    frame = people().rename({"x0": '<script>"x"</script>', "x1": "a,b\n\x1b[2J", "x2": "größe", "x3": " "})
    frame = frame.with_columns(y=pl.col("y").replace({"sick": "<b>sick</b>"}))
    metrics, _ = written(fit_table(frame, replace(GIVEN, source="\udcff.csv")), tmp_path / "out")
    assert {feature["name"] for feature in metrics["features"]} == {*frame.columns} - {"y"}
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in report
    assert "<b>sick" not in report
    loaded = Predictor.load(tmp_path / "out" / "model.safetensors")
    assert "probability of <b>sick</b>" in loaded.predict(frame)[0].columns


def test_a_test_part_that_cannot_be_scored_is_null(tmp_path: Path) -> None:
    test = people("regression", seed=1)[:1]
    metrics, _ = written(fit_table(people("regression"), replace(GIVEN, test=test)), tmp_path / "out")
    assert metrics["scores"]["sparse"]["test"] is metrics["scores"]["sparse"]["gap"] is None
