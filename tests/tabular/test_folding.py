"""The strength of a table chosen over folds, and the walk over strengths: against loops of their own."""

from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso, LogisticRegression
from sklearn.metrics import log_loss

from torchlasso.errors import InputError
from torchlasso.mlp import linear_layers
from torchlasso.monitor.story import tell
from torchlasso.tabular.folding import deal
from torchlasso.tabular.job import Request, TableFit, fit_table, prepare
from torchlasso.tabular.walking import walk_table

ROWS = 90
LINEAR = Request("y", hidden=(), folds=5)
NETWORK = Request("y", hidden=(3,), folds=2)


@cache
def people(kind: str = "regression") -> pl.DataFrame:
    """Return a table whose target follows two numbers of six and a category, sorted by the target."""
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(ROWS, 6)).round(3)
    job = generator.choice(["clerk", "cook", "smith"], ROWS)
    target = 2 * numbers[:, 0] - numbers[:, 1] + 2 * (job == "cook") + generator.normal(0, 0.8, ROWS)
    columns = {f"x{i}": numbers[:, i] for i in range(6)} | {"job": job, "y": target}
    frame = pl.DataFrame(columns).sort("y")  # folds in the order of the table would extrapolate
    if kind == "regression":
        return frame
    cuts = {"binary": [0.5], "multiclass": [0.3, 0.7]}[kind]
    codes = np.digitize(frame["y"], np.quantile(frame["y"], cuts))
    return frame.with_columns(y=np.array(["low", "middle", "top"])[codes])


@cache
def linear(kind: str = "regression") -> TableFit:
    """Return a fit over folds, few of them where a path takes long; several tests look at it."""
    return fit_table(people(kind), LINEAR if kind == "regression" else replace(LINEAR, folds=2))


# ---- the folds --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.data(), st.booleans())
def test_every_row_is_left_out_once_and_classes_in_proportion(
    codes: list[int], data: st.DataObject, stratified: bool
) -> None:
    target, folds = np.array(codes), data.draw(st.integers(2, len(codes)))
    parts = deal(target, folds, stratified=stratified, seed=0)
    assert sorted(row for _, left in parts for row in left) == list(range(len(codes)))
    for train, left in parts:
        assert sorted([*train, *left]) == list(range(len(codes)))
        assert len(left) in (len(codes) // folds, -(-len(codes) // folds))
    for code in set(codes) if stratified else ():
        counts = [int((target[left] == code).sum()) for _, left in parts]
        assert max(counts) - min(counts) <= 1


def test_the_seed_decides_on_the_folds() -> None:
    target = np.arange(30)
    first, same, other = (deal(target, 3, stratified=False, seed=seed)[0][1] for seed in (1, 1, 2))
    assert first.tolist() == same.tolist() != other.tolist()


@pytest.mark.parametrize("folds", [-1, 0, 1, 73])
def test_folds_that_cannot_be_made(folds: int) -> None:
    for command in (fit_table, walk_table):
        with pytest.raises(InputError, match=rf"--cv\) must be 2 to 72, the rows .*; got {folds}$"):
            command(people(), replace(LINEAR, folds=folds))


def test_folds_choose_and_a_strength_leaves_nothing_to_choose() -> None:
    with pytest.raises(InputError, match=r"--cv\) choose the strength, but --strength 0.1 is given"):
        fit_table(people(), replace(LINEAR, strength=0.1))


# ---- the choice -------------------------------------------------------------------------------------


def test_a_linear_path_has_the_errors_of_scikit_learns_lasso_on_the_same_folds() -> None:
    inputs, target = (part.astype(np.float64) for part in prepare(people(), LINEAR).parts["train"])
    parts = deal(target, 5, stratified=False, seed=0)
    for row in linear().path[::4]:
        errors = []
        for train, left in parts:
            lasso = Lasso(row["strength"], tol=1e-9, max_iter=100_000).fit(inputs[train], target[train])
            errors.append(np.square(lasso.predict(inputs[left]) - target[left]).mean() / 2)
        assert row["valid_loss"] == pytest.approx(np.mean(errors), rel=1e-3)
        assert row["valid_se"] == pytest.approx(np.std(errors, ddof=1) / np.sqrt(5), rel=1e-2)


def test_the_chosen_model_is_scikit_learns_lasso_on_all_training_rows() -> None:
    fit = linear()
    inputs, target = (part.astype(np.float64) for part in prepare(people(), LINEAR).parts["train"])
    lasso = Lasso(fit.metrics["strength"]["value"], tol=1e-10, max_iter=100_000).fit(inputs, target)
    weight = linear_layers(fit.predictor.module)[0][1].weight.detach().double().numpy()[0]
    np.testing.assert_allclose(weight, lasso.coef_, rtol=1e-4, atol=1e-5)
    assert ((weight == 0) == (lasso.coef_ == 0)).all()


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
def test_the_rule_takes_the_strongest_within_one_standard_error(kind: str) -> None:
    path = linear(kind).path
    (lowest,), (chosen,) = ([row for row in path if row[mark]] for mark in ("best", "chosen"))
    assert lowest["valid_loss"] == min(row["valid_loss"] for row in path)
    good = [row for row in path if row["valid_loss"] <= lowest["valid_loss"] + lowest["valid_se"]]
    assert chosen["strength"] == max(row["strength"] for row in good)
    assert chosen["strength"] == linear(kind).metrics["strength"]["value"]


def test_the_errors_of_classes_are_those_of_scikit_learns_logistic_regression() -> None:
    inputs, target = prepare(people("binary"), LINEAR).parts["train"]
    (row,) = (row for row in linear("binary").path if row["chosen"])
    errors = []
    for train, left in deal(target, 2, stratified=True, seed=0):
        model = LogisticRegression(
            l1_ratio=1.0, C=1 / (len(train) * row["strength"]), solver="saga", tol=1e-9, max_iter=50_000
        )
        chances = model.fit(inputs[train], target[train]).predict_proba(inputs[left])
        errors.append(log_loss(target[left], chances))
    assert row["valid_loss"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert row["valid_se"] == pytest.approx(np.std(errors, ddof=1) / np.sqrt(2), rel=2e-2)


def test_test_rows_have_no_part_in_the_choice() -> None:
    frame = people()
    test = prepare(frame, LINEAR).parts["test"][1]
    tested = pl.Series(np.isin(frame["y"].to_numpy(), test))
    assert tested.sum() == len(test)
    other = frame.with_columns(x0=pl.when(tested).then(-9.0).otherwise("x0"))
    assert fit_table(other, LINEAR).path == linear().path


def test_a_network_is_fitted_to_all_training_rows_and_the_same_each_time() -> None:
    fit, again = (fit_table(people("binary"), NETWORK) for _ in range(2))
    assert fit.path == again.path
    ours, theirs = (f.predictor.module.state_dict() for f in (fit, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert fit.metrics["split"] == {
        "train": 72,
        "valid": 0,
        "test": 18,
        "folds": 2,
        "seed": 0,
        "test_source": "20% of the rows",
    }
    assert fit.metrics["refit"]["used"] is False
    assert fit.metrics["scores"]["dense"]["valid"] is None


# ---- what is told -----------------------------------------------------------------------------------


def test_the_report_says_how_the_strength_was_chosen() -> None:
    fit = linear()
    assert fit.metrics["strength"]["chosen_by"] == "5-fold cross-validation, one standard error"
    story = tell(fit.metrics, fit.path)
    assert "judged by 5-fold cross-validation: the validation loss is the mean" in story.strength[0]
    assert "is within one standard error of it" in story.strength[0]
    assert "were not retrained" in story.strength[1]
    facts = dict(story.facts)
    assert facts["Rows"].startswith("72 to train and, in 5 folds, to choose the strength, 18 to test")


# ---- the walk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        replace(LINEAR, folds=2),
        replace(LINEAR, folds=None),
        NETWORK,
        replace(NETWORK, folds=None, penalty="features"),
    ],
    ids=["linear, folds", "linear, split", "network, folds", "network, split"],
)
def test_a_walk_is_the_path_of_a_fit(request_: Request) -> None:
    frame = people("binary")
    walk = walk_table(frame, request_)
    assert walk.rows == fit_table(frame, request_).path
    assert [row["strength"] for row in walk.rows] == sorted(row["strength"] for row in walk.rows)


def test_a_walk_prints_a_line_for_each_strength_and_how_it_was_judged() -> None:
    walk = walk_table(people(), LINEAR)
    lines = str(walk).splitlines()
    assert len(lines) == 2 + len(walk.rows) + 2
    assert lines[0].split() == ["strength", "validation", "loss", "±", "nonzero", "weights", "features"]
    marks = [line.split()[5:] for line in lines[2:-2]]
    assert [mark for mark in marks if mark] == [["min"], ["1se"]]
    expected = "validation loss: 5-fold cross-validation over 72 rows; 18 rows left for testing"
    assert lines[-2] == expected
    split = str(walk_table(people(), replace(LINEAR, folds=None)))
    assert "validation loss: the mean over 18 rows, trained on 54; 18 rows left for testing" in split


def test_a_walk_tells_what_was_left_out() -> None:
    frame = people().with_columns(y=pl.when(pl.int_range(ROWS) == 3).then(None).otherwise("y"))
    assert "\nnote: left out 1 of 90 rows, whose target 'y' is missing" in str(walk_table(frame, LINEAR))
