"""Tables to matrices: independent truths for every kind of column, and one line for every bad table."""

import copy
import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchlasso.errors import InputError, ModelFileError, TableError
from torchlasso.tabular.columns import Boolean, Categorical, Column, Dates, Numeric
from torchlasso.tabular.data import bundled
from torchlasso.tabular.encoding import Encoder
from torchlasso.tabular.scaling import Scale
from torchlasso.tabular.targets import Task, infer_task, split_rows, usable_rows

preprocessing: Any = pytest.importorskip("sklearn.preprocessing")

N = 40
SICK = [False, True] * (N // 2)
DOSE = [0.5 * (i * 7 % 11) for i in range(N)]


def table(**columns: Any) -> pl.DataFrame:
    """A table whose target is ``sick``, with one sound feature beside those given."""
    return pl.DataFrame({"dose": DOSE, **columns, "sick": SICK}, strict=False)


def fit(**columns: Any) -> Encoder:
    return Encoder.fit(table(**columns), "sick")


def refusal(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(TableError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The task


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["a", "b", None], "classification"),
        ([True, False], "classification"),
        ([0, 1] * 5, "classification"),
        ([-1.0, 1.0, None, float("nan")] * 5, "classification"),
        ([0, 1, 2] * 50, "classification"),
        ([0, 1, 2] * 3, "regression"),
        (list(range(1, 11)) * 20, "classification"),
        (list(range(1, 11)) * 19, "regression"),
        (list(range(20)) * 20, "classification"),
        (list(range(21)) * 100, "regression"),
        ([0.5, 1.5] * 100, "regression"),
        (list(range(100)), "regression"),
        ([1, 2**70], "classification"),
    ],
)
def test_task_of_a_column(values: list[Any], task: Task) -> None:
    assert infer_task(pl.Series("y", values, strict=False)) == task


def test_task_of_a_category_and_of_a_decimal() -> None:
    assert infer_task(pl.Series("y", ["a", "b"], dtype=pl.Categorical)) == "classification"
    assert infer_task(pl.Series("y", ["a", "b"], dtype=pl.Enum(["b", "a"]))) == "classification"
    assert infer_task(pl.Series("y", ["1.25", "2.5"]).cast(pl.Decimal(10, 2))) == "regression"


@pytest.mark.parametrize("values", [[dt.date(2024, 1, 1)], [[1, 2]], [{"a": 1}], [dt.time(1)]])
def test_types_that_are_no_target(values: list[Any]) -> None:
    assert "choose a target of numbers, text or true/false" in refusal(infer_task, pl.Series("y", values))


# Which rows


def test_rows_without_a_target_are_left_out_and_noted() -> None:
    frame = pl.DataFrame({"y": [1.5, None, float("nan"), *range(10)]}, strict=False)
    usable = usable_rows(frame, "y")
    assert usable.rows.tolist() == [0, *range(3, 13)]
    assert usable.task == "regression"
    assert usable.notes == ("left out 2 of 13 rows, whose target 'y' is missing",)


def test_whole_numbers_taken_for_classes_are_noted_unless_asked_for() -> None:
    frame = pl.DataFrame({"y": [0, 1, None] * 10})
    assert "took the 2 different whole numbers of 'y' for classes" in usable_rows(frame, "y").notes[1]
    assert len(usable_rows(frame, "y", "classification").notes) == 1
    assert usable_rows(frame, "y", "regression").task == "regression"


def test_absent_target_names_close_matches_and_columns() -> None:
    frame = table(age=range(N))
    message = refusal(usable_rows, frame, "Sickk")
    assert "no target column 'Sickk'; did you mean 'sick'?" in message
    assert "its columns are 'dose', 'age', 'sick'" in message
    assert "did you mean" not in refusal(Encoder.fit, frame, "zzz")
    many = pl.DataFrame({f"c{i}": [1] for i in range(100)})
    assert "and 80 more" in refusal(usable_rows, many, "zzz")


@pytest.mark.parametrize(
    ("values", "task", "reason"),
    [
        ([None] * 20, None, "holds no value"),
        ([float("nan")] * 20, None, "holds no value"),
        ([3] * 20, None, "is 3 in every row"),
        ([3.5] * 20, None, "is 3.5 in every row"),
        (["a", None] * 20, None, "is 'a' in every row"),
        ([True] * 20, None, "is True in every row"),
        (["a"] * 20 + ["b"], None, "'b' (1); each needs 3, one each to train, validate and test"),
        (["a"] * 20 + ["b"] * 2, None, "'b' (2); each needs 3"),
        (["a"] * 3 + [f"c{i}" for i in range(9)], None, "'c4' (1) and 4 more"),
        ([1.5, float("inf")] * 20, None, "infinite value in data row 2"),
        ([1.0, 2.0, float("-inf")] * 20, "classification", "infinite value in data row 3"),
        ([f"k{i}" for i in range(20)], None, "differs in every row, like an identifier"),
        ([1.5] + [2.5] * 8, None, "known in 9 rows; at least 10 rows are needed"),
        ([1.5], None, "known in 1 row;"),
        (["1", "2"] * 20 + ["two"], None, "holds numbers but for 'two' in data row 41"),
        (["yes", "no"] * 10, "regression", "must hold numbers, but holds 'yes' in data row 1"),
        ([dt.date(2024, 1, 1)] * 20, None, "choose a target of numbers"),
    ],
)
def test_bad_targets(values: list[Any], task: Task | None, reason: str) -> None:
    frame = pl.DataFrame({"x": range(len(values)), "y": values}, strict=False)
    assert reason in refusal(usable_rows, frame, "y", task)


def test_unknown_task() -> None:
    with pytest.raises(InputError, match="unknown task 'cluster'"):
        usable_rows(table(), "sick", "cluster")  # type: ignore[arg-type]


def test_column_names_of_our_own_are_free_for_the_table() -> None:
    frame = pl.DataFrame({"rows": ["a", "b"] * 10, "text": [0.5, 1.0] * 10, "label": ["u", "v"] * 10})
    assert len(usable_rows(frame, "rows").rows) == 20
    assert Encoder.fit(frame, "label").feature_names == ("rows", "text")


# Splits


@given(st.integers(3, 40), st.integers(7, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.15, 0.2, 0.25]))
@settings(deadline=None, max_examples=50)
def test_split_is_a_stratified_partition(few: int, many: int, seed: int, fraction: float) -> None:
    codes = np.repeat([0, 1], [few, many])
    first, second = split_rows(codes, "classification", fraction=fraction, seed=seed)
    assert sorted([*first, *second]) == list(range(len(codes)))
    assert len(second) == np.ceil(fraction * len(codes))
    assert abs((codes[second] == 0).sum() - len(second) * few / len(codes)) < 1
    again, _ = split_rows(codes, "classification", fraction=fraction, seed=seed)
    assert (first == again).all()
    third, fourth = split_rows(codes[first], "classification", fraction=0.25, seed=seed)
    assert {0, 1} <= set(codes[first][third])
    assert len(third) + len(fourth) == len(first)


def test_split_takes_labels_or_numbers() -> None:
    first, second = split_rows(pl.Series(["a", "b"] * 10), "classification", fraction=0.2, seed=0)
    assert (len(first), len(second)) == (16, 4)
    first, second = split_rows(np.linspace(0, 1, 10), "regression", fraction=0.25, seed=1)
    assert (len(first), len(second)) == (7, 3)


def test_splits_that_cannot_be() -> None:
    message = refusal(split_rows, np.array([0, 0, 1]), "classification", fraction=0.5, seed=0)
    assert "class 1 has one row" in message
    message = refusal(split_rows, np.repeat(range(5), 2), "classification", fraction=0.2, seed=0)
    assert "10 rows split into 8 and 2, but each part needs 5 or more" in message
    assert "1 row split into 0 and 1" in refusal(split_rows, np.ones(1), "regression", fraction=0.5, seed=0)
    assert "0 rows" in refusal(split_rows, np.ones(0), "classification", fraction=0.5, seed=0)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            split_rows(np.ones(9), "regression", fraction=fraction, seed=0)


# Kinds of columns


def test_numbers_agree_with_scikit_learn() -> None:
    frame, target = bundled("breast_cancer")
    train = np.arange(0, 569, 2)
    encoder = Encoder.fit(frame, target, rows=train)
    raw = frame.drop(target).to_numpy()
    truth = preprocessing.StandardScaler().fit(raw[train]).transform(raw)
    matrix = encoder.transform(frame)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, truth, rtol=2e-6, atol=2e-6)
    assert encoder.kinds == ("numeric",) * 30
    assert encoder.classes == ("benign", "malignant")


def test_missing_numbers_take_the_training_median_and_a_flag() -> None:
    values = [1.0, None, 5.0, 2.0, float("nan"), 100.0]
    frame = pl.DataFrame({"x": values, "y": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]}, strict=False)
    encoder = Encoder.fit(frame, "y", rows=range(5))
    filled = np.array([1.0, 2.0, 5.0, 2.0, 2.0, 100.0])
    truth = (filled - filled[:5].mean()) / filled[:5].std()
    np.testing.assert_allclose(encoder.transform(frame)[:, 0], truth, rtol=1e-6)
    assert encoder.transform(frame)[:, 1].tolist() == [0, 1, 0, 0, 1, 0]
    assert encoder.column_names == ("x", "x (missing)")
    assert encoder.groups == [[0, 1]]


def test_numbers_missing_for_the_first_time_are_noted() -> None:
    encoded = fit().encode(pl.DataFrame({"dose": [None, 1.0, None]}))
    assert encoded.notes == ("'dose': 2 missing values, none in training; took the training median",)
    assert np.isfinite(encoded.matrix).all()


@pytest.mark.parametrize("factor", [1e-310, 1e-200, 1e200, 1e308])
def test_extreme_numbers_keep_their_spread(factor: float) -> None:
    encoder = fit(x=[(i % 4 + 1) / 5 * factor for i in range(N)])
    matrix = encoder.transform(table(x=[(i % 4 + 1) / 5 * factor for i in range(N)]))
    np.testing.assert_allclose(matrix[:4, 1], np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25), rtol=1e-5)
    assert Encoder.from_config(encoder.to_config()) == encoder


def test_true_and_false() -> None:
    values = [True, True, False, None] * (N // 4)
    encoder = fit(flag=values)
    assert encoder.columns[1] == Boolean("flag", filler=True, indicator=True)
    assert encoder.transform(table(flag=values))[:4, 1:].tolist() == [[1, 0], [1, 0], [0, 0], [1, 1]]
    assert encoder.transform(table(flag=[1, 0] * (N // 2)))[:2, 1].tolist() == [1, 0]
    assert "must hold true or false, but holds 2 in data row 2" in refusal(
        encoder.transform, table(flag=[1, 2] * (N // 2))
    )


def test_categories_agree_with_scikit_learn() -> None:
    values = ["m", "s", "l", "s"] * (N // 4)
    encoder = fit(size=values)
    truth = preprocessing.OneHotEncoder(sparse_output=False).fit_transform(np.array(values)[:, None])
    assert (encoder.transform(table(size=values))[:, 1:] == truth).all()
    assert encoder.column_names == ("dose", "size=l", "size=m", "size=s")
    assert encoder.groups == [[0], [1, 2, 3]]
    assert encoder.kinds == ("numeric", "categorical")
    enum = pl.Series(values, dtype=pl.Enum(["s", "m", "l"]))
    assert fit(size=enum) == fit(size=enum.cast(pl.Categorical)) == encoder


def test_a_missing_category_counts_only_if_training_has_one() -> None:
    seen = fit(size=["s", None] * (N // 2))
    assert seen.column_names[1:] == ("size=s", "size=(missing)")
    assert seen.transform(table(size=["s", None] * (N // 2)))[:2, 1:].tolist() == [[1, 0], [0, 1]]
    unseen = fit(size=["s", "m"] * (N // 2))
    encoded = unseen.encode(pl.DataFrame({"dose": [1.0, 2.0], "size": ["s", None]}))
    assert encoded.matrix[:, 1:].tolist() == [[0, 1], [0, 0]]
    assert encoded.notes == ("'size': 1 missing value, none in training; encoded as zeros",)


def test_unseen_categories_are_zeros_and_noted() -> None:
    encoder = fit(size=["s", "m"] * (N // 2))
    encoded = encoder.encode(pl.DataFrame({"dose": [1.0] * 4, "size": ["xl", "m", "xs", "xl"]}))
    assert encoded.matrix[:, 1:].tolist() == [[0, 0], [1, 0], [0, 0], [0, 0]]
    note = "'size': 3 values never seen in training ('xl', 'xs'); encoded as zeros"
    assert encoded.notes == (note,)


def test_codes_read_as_numbers_elsewhere_are_still_their_category() -> None:
    encoder = fit(code=["1", "2", "A", "B"] * (N // 4))
    matrix = encoder.transform(pl.DataFrame({"dose": [0.0, 0.0], "code": [2, 1]}))
    assert matrix[:, 1:].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_many_categories_share_a_column() -> None:
    values = [f"c{i:02}" for i in range(60) for _ in range(1 + (i < 35) + (i < 10))]
    frame = pl.DataFrame({"city": values, "y": np.linspace(0, 1, len(values))})
    encoder = Encoder.fit(frame, "y")
    assert encoder.columns == (Categorical("city", tuple(f"c{i:02}" for i in range(30)), True, False),)
    assert encoder.notes == ("'city': kept the 30 most frequent of 60 texts, the rest is '(other)'",)
    encoded = encoder.encode(pl.DataFrame({"city": ["c00", "c31", "new"]}))
    assert encoded.matrix[:, [0, 30]].tolist() == [[1, 0], [0, 1], [0, 1]]
    assert encoded.notes == ()


def test_mostly_different_texts_keep_those_that_repeat() -> None:
    encoder = fit(name=["ann", "bob"] * 5 + [f"n{i}" for i in range(30)])
    assert encoder.column_names[1:] == ("name=ann", "name=bob", "name=(other)")


DAYS = [dt.date(2023, 11, 1) + dt.timedelta(days=9 * i) for i in range(N)]


def test_dates_of_every_type_become_the_same_numbers() -> None:
    typed = fit(when=DAYS)
    assert typed.column_names[1:] == ("when (day)", "when (month)", "when (weekday)")
    assert typed.groups == [[0], [1, 2, 3]]
    assert typed.kinds[1] == "date"
    matrix = typed.transform(table(when=DAYS))
    raw: Any = np.array([[day.toordinal(), day.month, day.isoweekday()] for day in DAYS])
    np.testing.assert_allclose(
        matrix[:, 1:], preprocessing.StandardScaler().fit_transform(raw), rtol=1e-5, atol=1e-5
    )
    texts = [day.isoformat() for day in DAYS]
    assert fit(when=texts) == typed
    times = pl.Series([dt.datetime(day.year, day.month, day.day) for day in DAYS])
    assert fit(when=times.cast(pl.Datetime("ms"))) == typed
    assert fit(when=times.dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")) == typed
    assert (typed.transform(table(when=[f"{text}T00:00:00Z" for text in texts])) == matrix).all()


def test_times_of_day_and_offsets() -> None:
    cells = [f"2024-03-{i % 28 + 1:02} {i % 24:02}:30:15.5{'+02:00' if i % 2 else '-0130'}" for i in range(N)]
    encoder = fit(when=cells)
    assert encoder.column_names[1:] == ("when (day)", "when (weekday)", "when (hour)")
    truth = [dt.datetime.fromisoformat(cell).astimezone(dt.UTC).replace(tzinfo=None) for cell in cells]
    assert fit(when=truth) == encoder


def test_cells_that_are_no_dates_are_missing_and_noted() -> None:
    texts = [day.isoformat() for day in DAYS]
    encoder = fit(when=[*texts[:-1], "2023-02-30"])
    assert encoder.notes == ("'when': 1 value not an ISO date; taken for missing",)
    assert encoder.column_names[-1] == "when (missing)"
    encoded = fit(when=texts).encode(pl.DataFrame({"dose": [1.0] * 3, "when": ["2024-01-01", "soon", None]}))
    assert encoded.notes == (
        "'when': 1 value not an ISO date; taken for missing",
        "'when': 2 missing values, none in training; took the training median",
    )
    assert "its texts all differ" in fit(when=[*texts[:-3], "x", "y", "z"]).notes[0]


def test_other_types_of_numbers() -> None:
    seconds = [dt.timedelta(seconds=dose) for dose in DOSE]
    decimal = pl.Series([str(dose) for dose in DOSE]).cast(pl.Decimal(10, 2))
    wide = pl.Series([int(2 * dose) for dose in DOSE], dtype=pl.Int128)
    matrix = fit(a=seconds, b=decimal, c=wide).transform(table(a=seconds, b=decimal, c=wide))
    for column in range(1, 4):
        np.testing.assert_allclose(matrix[:, column], matrix[:, 0], rtol=1e-6)


# Columns left out


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("unit", ["cm"] * N, "it is 'cm' in every training row"),
        ("x", [2.5] * N, "it is 2.5 in every training row"),
        ("x", [0.1] * (N - 1) + [None], "it is 0.1 in every training row that has it"),
        ("flag", [True, None] * (N // 2), "it is true in every training row that has it"),
        ("when", [dt.date(2024, 1, 1)] * N, "its date never changes"),
        ("x", [None] * N, "it is missing in every training row"),
        ("x", [float("nan")] * N, "it is missing in every training row"),
        ("row", list(range(N)), "like a row number or an identifier"),
        ("row", list(range(N, 0, -1)), "like a row number or an identifier"),
        ("PatientId", [(i * 17) % 41 for i in range(1, N + 1)], "like a row number or an identifier"),
        ("user_id", [(i * 17) % 41 for i in range(1, N + 1)], "like a row number or an identifier"),
        ("name", [f"n{i}" for i in range(N)], "its texts all differ, like an identifier"),
        ("price", [f"{i}.5" for i in range(N)], "store them as numbers to use them"),
        ("tags", [["a"], ["b"]] * (N // 2), "its type List(String) is not supported"),
        ("at", [dt.time(i % 24) for i in range(N)], "its type Time is not supported"),
        ("x\nx", [1] * N, "it is 1 in every"),
    ],
)
def test_columns_left_out(name: str, values: list[Any], reason: str) -> None:
    encoder = fit(**{name: values})
    assert encoder.feature_names == ("dose",)
    assert encoder.dropped == (name,)
    (note,) = encoder.notes
    assert note.startswith(f"left out {name!r}: ")
    assert reason in note
    assert "\n" not in note
    assert encoder.encode(table(**{name: values})).notes == ()


def test_numbers_that_only_happen_to_differ_are_kept() -> None:
    assert fit(weight=[(i * 17) % 41 for i in range(1, N + 1)]).feature_names == ("dose", "weight")
    assert fit(valid=[float(i) for i in range(N)]).feature_names == ("dose", "valid")


def test_few_texts_that_never_repeat() -> None:
    frame = pl.DataFrame({"x": [0.5, 1.0] * 5, "name": [f"n{i}" for i in range(10)], "y": [0, 1] * 5})
    assert Encoder.fit(frame, "y").notes == ("left out 'name': its texts never repeat",)


def test_what_is_constant_is_decided_by_the_training_rows() -> None:
    frame = table(x=[1.0] * 20 + [2.0] * 20)
    assert Encoder.fit(frame, "sick", rows=range(20)).dropped == ("x",)
    assert Encoder.fit(frame, "sick", rows=range(30)).dropped == ()


def test_nothing_left_to_learn_from() -> None:
    message = refusal(Encoder.fit, pl.DataFrame({"u": ["m"] * N, "sick": SICK}), "sick")
    assert "no column to predict 'sick' from: left out 'u': it is 'm'" in message
    assert "no column but the target" in refusal(Encoder.fit, pl.DataFrame({"sick": SICK}), "sick")


# Bad cells


@pytest.mark.parametrize("values", [[*DOSE[:-1], float("inf")], [*DOSE[:-1], float("-inf")]])
def test_infinite_values(values: list[float]) -> None:
    message = refusal(fit, x=values)
    assert "column 'x' holds an infinite value in data row 40" in message
    assert "infinite value in data row 40" in refusal(fit(x=DOSE).transform, table(x=values))


@pytest.mark.parametrize("bad", ["forty", "1,5", "-", "12 mg"])
def test_text_among_numbers_is_refused_wherever_it_is(bad: str) -> None:
    frame = table(x=[*map(str, DOSE[:-1]), bad])
    message = refusal(Encoder.fit, frame, "sick", rows=range(20))
    assert f"column 'x' holds numbers but for {bad!r} in data row 40" in message


def test_text_among_few_numbers_is_refused() -> None:
    frame = pl.DataFrame({"x": [*"123456789", "ten"], "y": [0, 1] * 5})
    assert "but for 'ten' in data row 10" in refusal(Encoder.fit, frame, "y")


def test_numbers_with_a_comma_are_refused_not_guessed() -> None:
    message = refusal(fit, x=[f" {i},5 " for i in range(N)])
    assert "column 'x' holds numbers with a comma, such as ' 0,5 ' in data row 1" in message


def test_numbers_among_text_are_categories() -> None:
    assert fit(children=["0", "1", "2", "3+"] * (N // 4)).kinds == ("numeric", "categorical")


def test_absent_columns_are_named() -> None:
    encoder = fit(weight=DOSE, height=DOSE)
    frame = table(weight=DOSE, heigth=DOSE)
    assert "no feature column 'height'; did you mean 'heigth'?" in refusal(encoder.transform, frame)
    assert "no feature columns 'weight', 'height';" in refusal(encoder.transform, table())


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (DOSE, ["1", "tall"] * (N // 2), "must hold numbers, but holds 'tall' in data row 2"),
        (DOSE, ["1", "2"] * (N // 2), "must hold numbers, but holds '1' in data row 1"),
        (DOSE, DAYS, "must hold numbers, but holds datetime.date(2023, 11, 1) in data row 1"),
        (SICK, ["yes", "no"] * (N // 2), "must hold numbers, but holds 'yes'"),
        (DAYS, DOSE, "must hold dates, but has the type Float64"),
        (["a", "b"] * (N // 2), [["a"]] * N, "must hold text, but has the type List(String)"),
        (["a", "b"] * (N // 2), [b"\xff"] * N, "must hold text, but has the type Binary"),
        (DOSE, [1e300] * N, "1e+300 in data row 1, too far from the training mean"),
    ],
)
def test_columns_of_another_type(old: list[Any], new: list[Any], reason: str) -> None:
    encoder = fit(x=old)
    message = refusal(encoder.transform, table(x=new))
    assert "'x'" in message
    assert reason in message


@pytest.mark.parametrize("old", [DOSE, SICK, DAYS, ["a", "b"] * (N // 2)])
@pytest.mark.parametrize("dtype", [pl.Null, pl.String, pl.Float64, pl.List(pl.Int64), pl.Date])
def test_a_column_without_values_fits_every_type(old: list[Any], dtype: pl.DataType) -> None:
    encoder = fit(x=old)
    encoded = encoder.encode(table(x=pl.Series([None] * N, dtype=dtype)))
    assert len(encoded.notes) == 1
    assert encoder.transform(pl.DataFrame(schema={"dose": pl.Float64, "x": dtype})).shape[0] == 0


# Replays


def test_order_is_free_and_extra_columns_are_noted() -> None:
    frame = table(size=["s", "m"] * (N // 2), name=[f"n{i}" for i in range(N)])
    encoder = Encoder.fit(frame, "sick")
    matrix = encoder.transform(frame)
    other = frame.select(["name", "size", "dose"]).with_columns(new=1, more=2)
    encoded = encoder.encode(other)
    assert (encoded.matrix == matrix).all()
    assert encoded.notes == ("ignored columns that training did not have: 'new', 'more'",)


def test_only_training_rows_are_learnt_from() -> None:
    frame = table(size=["s", "m"] * 10 + ["l", "xl"] * 10)
    whole = Encoder.fit(frame, "sick", rows=list(range(19, -1, -1)))
    part = Encoder.fit(frame[:20], "sick")
    assert whole == part
    assert whole.column_names == ("dose", "size=m", "size=s")


def test_rows_without_a_target_are_not_learnt_from() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0, 1e9], "y": [0.5, 1.5, None]})
    assert Encoder.fit(frame, "y") == Encoder.fit(frame[:2], "y")
    assert "no training row has a target 'y'" in refusal(Encoder.fit, frame, "y", rows=[2])


@pytest.mark.parametrize("rows", [[], [-1], [3], [True, False, True], [0.0], [[0]]])
def test_rows_that_are_no_positions(rows: list[Any]) -> None:
    with pytest.raises(InputError, match="from 0 to 2"):
        Encoder.fit(pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": [1.0, 2.5, 3.0]}), "y", rows=rows)


def test_column_names_are_distinct() -> None:
    encoder = fit(**{"size=s": DOSE, "size": ["s", "m"] * (N // 2)})
    assert encoder.column_names == ("dose", "size=s", "size=m", "size=s #2")


# Targets


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        (["no", "yes"], None),
        ([3, 7], pl.Int8),
        ([False, True], None),
        ([1.0, 2.0], None),
        (["a", "b"], pl.Categorical),
    ],
)
def test_labels_come_back_in_their_type(labels: list[Any], dtype: pl.DataType | None) -> None:
    values = pl.Series("y", labels * 10, dtype=dtype)
    encoder = Encoder.fit(pl.DataFrame({"x": [0.5, 1.5] * 10, "y": values}), "y")
    codes = encoder.encode_target(values)
    assert codes.dtype == np.int64
    assert codes.tolist() == [0, 1] * 10
    found = encoder.decode_target(codes).tolist()
    assert found == labels * 10
    assert {type(label) for label in found} == {type(labels[0])}
    read = Encoder.from_config(json.loads(json.dumps(encoder.to_config())))
    assert {type(label) for label in read.classes} == {type(labels[0])}


def test_quantities_pass_as_they_are() -> None:
    encoder = Encoder.fit(pl.DataFrame({"x": [0.5, 1.5], "y": [3.25, 4.5]}), "y")
    assert (encoder.task, encoder.classes) == ("regression", ())
    values = encoder.encode_target(pl.DataFrame({"y": [1, 2]}))
    assert values.dtype == np.float64
    assert encoder.decode_target(values).tolist() == [1.0, 2.0]
    assert "is missing in data row 2" in refusal(encoder.encode_target, pl.Series("y", [1.0, None]))
    assert "no target column 'y'" in refusal(encoder.encode_target, pl.DataFrame({"z": [1]}))
    assert "infinite" in refusal(encoder.encode_target, pl.Series("y", [float("inf")]))


def test_numbers_where_the_labels_are_text() -> None:
    encoder = Encoder.fit(pl.DataFrame({"x": [0.5, 1.5] * 2, "y": ["1", "2"] * 2}), "y")
    assert encoder.encode_target(pl.Series("y", [2, 1])).tolist() == [1, 0]


def test_labels_and_codes_of_no_class() -> None:
    encoder = fit()
    text = Encoder.fit(pl.DataFrame({"x": [0.5, 1.5] * 2, "y": ["a", "b"] * 2}), "y")
    message = refusal(text.encode_target, pl.Series("y", ["a", "c"]))
    assert "holds 'c' in data row 2; its classes are 'a', 'b'" in message
    assert "is missing in data row 1" in refusal(encoder.encode_target, pl.Series("sick", [None, True]))
    for codes in ([-1], [2], [0.0]):
        with pytest.raises(InputError, match="from 0 to 1"):
            encoder.decode_target(codes)


@pytest.mark.parametrize(
    ("values", "task", "reason"),
    [
        ([3] * 4, None, "is 3 in every row"),
        ([None] * 4, None, "holds no value"),
        ([0.5, 1.5, 2.5, float("inf")], None, "infinite"),
        (["a", "b"] * 2, "regression", "must hold numbers"),
    ],
)
def test_fit_refuses_targets_by_itself(values: list[Any], task: Task | None, reason: str) -> None:
    frame = pl.DataFrame({"x": [0.5, 1.5, 2.5, 3.5], "y": values})
    assert reason in refusal(Encoder.fit, frame, "y", task)


# Configurations

cells = {
    "numeric": st.floats(allow_nan=True, allow_infinity=False, width=32),
    "whole": st.integers(-(2**40), 2**40),
    "boolean": st.booleans(),
    "text": st.text(max_size=4),
    "date": st.dates(),
    "time": st.datetimes(),
}


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    height = draw(st.integers(4, 30))
    columns: dict[str, Any] = {}
    for name in draw(st.lists(st.text(max_size=5).map("c{}".format), unique=True, max_size=5)):
        cell = st.one_of(st.none(), cells[draw(st.sampled_from(sorted(cells)))])
        columns[name] = draw(st.lists(cell, min_size=height, max_size=height))
    targets: list[list[Any]] = [[0.5, 1.5, 2.5, 3.5], ["a", "b"], [True, False], [1, 2]]
    target = draw(st.sampled_from(targets))
    columns |= {"x": [0.5, 0.25], "target": target}
    return pl.DataFrame({name: (values * height)[:height] for name, values in columns.items()})


@settings(deadline=None, max_examples=80)
@given(frames(), st.randoms(use_true_random=False))
def test_round_trip_and_order(frame: pl.DataFrame, random: Any) -> None:
    try:
        encoder = Encoder.fit(frame, "target")
    except TableError:  # text among numbers, by chance
        return
    read = Encoder.from_config(json.loads(json.dumps(encoder.to_config(), allow_nan=False)))
    assert read == encoder
    matrix = encoder.transform(frame)
    assert matrix.shape == (len(frame), len(encoder.column_names))
    assert [i for group in encoder.groups for i in group] == list(range(matrix.shape[1]))
    assert len(encoder.groups) == len(encoder.feature_names) == len(encoder.kinds)
    assert np.isfinite(matrix).all()
    names = list(frame.columns)
    random.shuffle(names)
    np.testing.assert_array_equal(read.transform(frame.select(names)), matrix)
    rows = random.sample(range(len(frame)), len(frame))
    np.testing.assert_array_equal(read.transform(frame[rows]), matrix[rows])
    target = frame["target"]
    assert encoder.decode_target(encoder.encode_target(frame)).tolist() == target.to_list()


SCALE = Scale(0.0, 0.0, 1.0)
EVERY_KIND: tuple[Column, ...] = (
    Numeric("n", SCALE, indicator=True),
    Boolean("b", filler=True, indicator=False),
    Categorical("c", ("u", "v"), other=True, missing=False),
    Dates("d", ("day", "hour"), (SCALE, SCALE), indicator=False),
)
GOOD = Encoder("y", "classification", ("no", "yes"), EVERY_KIND, ("id",), ("left out 'id': x",)).to_config()


def broken(path: tuple[str | int, ...], value: Any) -> Any:
    config = copy.deepcopy(GOOD)
    place: Any = config
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return config


def test_the_good_configuration_is_good() -> None:
    assert Encoder.from_config(GOOD).columns == EVERY_KIND


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("target",), 3),
        (("target",), "n"),
        (("task",), "cluster"),
        (("task",), "regression"),
        (("task",), None),
        (("classes",), "no"),
        (("classes",), []),
        (("classes",), ["no"]),
        (("classes",), ["no", "no"]),
        (("classes",), ["no", 1]),
        (("classes",), [True, 1]),
        (("classes",), [[0], [1]]),
        (("classes",), [None, None]),
        (("classes",), [0.0, float("nan")]),
        (("columns",), []),
        (("columns",), {}),
        (("columns", 0), None),
        (("columns", 0), ["numeric"]),
        (("columns", 0, "kind"), "polynomial"),
        (("columns", 0, "kind"), ["numeric"]),
        (("columns", 0, "kind"), "boolean"),
        (("columns", 0, "name"), "b"),
        (("columns", 0, "name"), None),
        (("columns", 0, "extra"), 1),
        (("columns", 0, "indicator"), 1),
        (("columns", 0, "scale"), None),
        (("columns", 0, "scale", "sd"), 0.0),
        (("columns", 0, "scale", "sd"), -1.0),
        (("columns", 0, "scale", "sd"), float("inf")),
        (("columns", 0, "scale", "mean"), float("nan")),
        (("columns", 0, "scale", "mean"), 10**400),
        (("columns", 0, "scale", "mean"), [10**5000]),
        (("columns", 0, "scale", "median"), "0"),
        (("columns", 0, "scale", "median"), True),
        (("columns", 1, "filler"), "true"),
        (("columns", 2, "categories"), []),
        (("columns", 2, "categories"), ["u", "u"]),
        (("columns", 2, "categories"), ["u", 1]),
        (("columns", 2, "categories"), "uv"),
        (("columns", 2, "other"), 0),
        (("columns", 2, "missing"), None),
        (("columns", 3, "parts"), []),
        (("columns", 3, "parts"), ["day", "year"]),
        (("columns", 3, "parts"), ["day", "day"]),
        (("columns", 3, "scales"), []),
        (("columns", 3, "scales", 1), {"sd": 1.0}),
        (("dropped",), ["n"]),
        (("dropped",), ["y"]),
        (("dropped",), [1]),
        (("notes",), ["a\nb"]),
        (("notes",), ["\x1b[2J"]),
        (("notes",), None),
        (("extra",), 1),
    ],
)
def test_broken_configurations(path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(ModelFileError) as caught:
        Encoder.from_config(broken(path, value))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("config", [None, [], "encoder", {}, {"target": "y"}, {1: 2, "a": 3}, 3])
def test_things_that_are_no_configuration(config: object) -> None:
    with pytest.raises(ModelFileError, match="must have exactly the keys"):
        Encoder.from_config(config)


def test_fields_of_a_hostile_scale_do_not_overflow_silently() -> None:
    config = broken(("columns", 0, "scale", "sd"), 5e-324)
    encoder = Encoder.from_config(config)
    frame = pl.DataFrame({"n": [1.0], "b": [True], "c": ["u"], "d": [dt.date(2024, 1, 1)]})
    assert "too far from the training mean" in refusal(encoder.transform, frame)
