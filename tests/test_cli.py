"""The command line: what it does when all is well, and one clear line when it is not."""

import contextlib
import gzip
import io
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from torchlasso import cli
from torchlasso.files import read_tensors, write_tensors
from torchlasso.tabular import job as tabular
from torchlasso.tabular.data import bundled, read_table
from torchlasso.tabular.outputs import table_bytes

ROWS = 60
FEATURES = ["age", "height", "smoker", "job"]
RESULTS = ["metrics.json", "model.safetensors", "path.csv", "report.html"]
QUICK = ("--target", "y", "--hidden", "none", "--strength", "0.05")
ERROR = "torchlasso: error: "


class Run(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*args: str | Path) -> Run:
    """Run a command in this process, as `main` does."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli._guarded(lambda: cli.app([str(arg) for arg in args], standalone_mode=False))
    return Run(code, out.getvalue(), err.getvalue())


def refused(result: Run, *parts: str) -> str:
    """Check that a command was refused in one line that holds all the parts, and return the line."""
    assert result.code == 2
    assert "Traceback" not in result.err
    (line,) = [line for line in result.err.splitlines() if line.strip()]
    assert line.startswith(ERROR)
    assert len(line) > len(ERROR) + 10
    for part in parts:
        assert part in line
    return line


def tree(folder: Path) -> dict[str, int]:
    """Return every path below a folder with its size."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*"))}


@contextlib.contextmanager
def nothing_new(folder: Path) -> Iterator[None]:
    before = tree(folder)
    yield
    assert tree(folder) == before


def people() -> pl.DataFrame:
    """Return a small table with a column of every kind and two classes."""
    generator = np.random.default_rng(0)
    age = generator.normal(50, 10, ROWS).round(1)
    job = generator.choice(["cook", "smith", "clerk"], ROWS)
    columns = {
        "age": age,
        "height": generator.normal(170, 8, ROWS).round(1),
        "smoker": generator.random(ROWS) < 0.4,
        "job": job,
        "y": np.where(age + 8 * (job == "cook") + generator.normal(0, 3, ROWS) > 52, "sick", "well"),
    }
    return pl.DataFrame(columns)


def table(path: str, frame: pl.DataFrame | None = None) -> Path:
    (people() if frame is None else frame).write_csv(path)
    return Path(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a fit."""
    folder = tmp_path_factory.mktemp("trained")
    people().write_csv(folder / "people.csv")
    assert run("fit", folder / "people.csv", *QUICK, "--out", folder / "out").code == 0
    return folder / "out"


# ---- all is well ------------------------------------------------------------------------------


def test_the_main_job_from_fit_to_predict() -> None:
    result = run("fit", table("people.csv"), "--target", "y", "--hidden", "4")
    assert result.code == 0
    assert result.err == ""
    folder = Path("torchlasso-people")
    assert sorted(path.name for path in folder.iterdir()) == RESULTS
    command = result.out.strip().splitlines()[-1].removeprefix("Predict: ")
    assert command in (folder / "report.html").read_text(encoding="utf-8")
    words = shlex.split(command)
    assert words[0] == "torchlasso"
    assert run(*words[1:]).code == 0
    predictions = pl.read_csv("predictions.csv")
    assert predictions.columns == ["prediction", "probability of sick", "probability of well"]
    assert predictions.height == ROWS
    assert set(predictions["prediction"]) <= {"sick", "well"}
    for told in (
        "Sparse network",
        "Ordinary network",
        "Gap",
        "Certificate",
        "hidden1",
        "selected",
        "classification",
    ):
        assert told in result.out


@pytest.mark.parametrize("suffix", [".tsv", ".parquet", ".jsonl", ".arrow", ".csv.gz"])
def test_every_format_gives_the_same_model(trained: Path, suffix: str) -> None:
    frame, path = people(), Path(f"people{suffix}")
    if suffix == ".csv.gz":
        path.write_bytes(gzip.compress(frame.write_csv().encode()))
    elif suffix == ".tsv":
        frame.write_csv(path, separator="\t")
    elif suffix == ".arrow":
        frame.write_ipc(path)
    else:
        path.write_bytes(table_bytes(frame, path))
    assert run("fit", path, *QUICK, "--out", "out").code == 0
    ours, theirs = (read_tensors(folder / "model.safetensors")[0] for folder in (Path("out"), trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_predictions_in_every_format(trained: Path, suffix: str) -> None:
    out = Path(f"p{suffix}")
    assert run("predict", trained / "model.safetensors", table("t.csv"), "-o", out).code == 0
    frame = read_table(out)
    assert frame.columns[0] == "prediction"
    assert frame.height == ROWS


@pytest.mark.slow
def test_the_demo_can_be_predicted_with_the_command_it_prints() -> None:
    result = run("demo", "wine", "--hidden", "none")
    assert result.code == 0
    assert run(*shlex.split(result.out.strip().splitlines()[-1].removeprefix("Predict: "))[1:]).code == 0
    assert set(pl.read_csv("predictions.csv")["prediction"]) == {"cultivar 1", "cultivar 2", "cultivar 3"}
    assert sorted(path.name for path in Path("torchlasso-wine").iterdir()) == [*RESULTS, "wine.csv"]


def test_a_strength_may_be_a_fraction_of_the_largest() -> None:
    table("people.csv")
    found = {}
    for strength in ("0.25max", "0.5max"):
        assert run("fit", "people.csv", *QUICK[:-1], strength, "--out", "out").code == 0
        found[strength] = json.loads(Path("out/metrics.json").read_text())["strength"]["value"]
    assert found["0.5max"] == pytest.approx(2 * found["0.25max"])
    assert found["0.25max"] > 0


def test_an_old_fit_is_replaced() -> None:
    table("people.csv")
    for strength in ("0.05", "0.5"):
        assert run("fit", "people.csv", *QUICK[:-1], strength, "--out", "out").code == 0
    assert json.loads(Path("out/metrics.json").read_text())["strength"]["value"] == 0.5
    assert sorted(path.name for path in Path("out").iterdir()) == RESULTS


def test_without_a_command_the_help_is_shown() -> None:
    result = run()
    assert result.code == 2
    assert "predict" in result.out + result.err
    assert ERROR not in result.err
    assert run("--help").code == 0
    assert run("fit", "--help").code == 0


# ---- folds, and the walk over strengths -------------------------------------------------------


def test_fit_and_path_over_folds_agree_from_a_file_to_the_report() -> None:
    frame, target = bundled("breast_cancer")
    options = (table("b.csv", frame), "--target", target, "--hidden", "4", "--cv", "3")
    fitted, walked = run("fit", *options, "--out", "out"), run("path", *options, "-o", "p.csv")
    assert (fitted.code, fitted.err, walked.code, walked.err) == (0, "", 0, "")
    assert sorted(path.name for path in Path("out").iterdir()) == RESULTS
    path = pl.read_csv("p.csv")
    assert path.equals(pl.read_csv("out/path.csv"))
    strength = json.loads(Path("out/metrics.json").read_text())["strength"]
    assert strength["chosen_by"] == "3-fold cross-validation, one standard error"
    assert path.filter("chosen")["strength"].to_list() == [pytest.approx(strength["value"])]
    for told in ("judged by 3-fold cross-validation", "455 to train and, in 3 folds, to choose"):
        assert told in " ".join(fitted.out.split())
        assert told in Path("out/report.html").read_text(encoding="utf-8")
    assert "3-fold cross-validation over 455 rows" in walked.out
    assert walked.out.endswith(f"wrote {path.height} strengths to p.csv\n")


def test_path_without_a_file_only_prints(tmp_path: Path) -> None:
    table("t.csv")
    with nothing_new(tmp_path):
        result = run("path", "t.csv", *QUICK[:4])
    assert (result.code, result.err) == (0, "")
    assert sum("min" in line.split() or "1se" in line.split() for line in result.out.splitlines()) in (1, 2)


# ---- inspect ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_inspect_counts_the_zeros_of_any_checkpoint(suffix: str) -> None:
    tensors = {"fc.weight": torch.tensor([[0.0, 1.0], [0.0, 0.0]]), "steps": torch.tensor(3)}
    path = Path(f"c{suffix}")
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    result = run("inspect", path)
    assert result.code == 0
    (row,) = [line.split() for line in result.out.splitlines() if "fc.weight" in line]
    assert row == ["fc.weight", "2×2", "4", "3", "75.00%", "0", "1", "1"]


DTYPES = [torch.bool, torch.bfloat16, torch.complex64, torch.int8, torch.uint16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inspect_reads_tensors_of_every_kind(dtype: torch.dtype) -> None:
    torch.save({"mask": torch.tensor([0, 1, 1, 1]).to(dtype), "empty": torch.ones(0, 3).to(dtype)}, "c.pt")
    result = run("inspect", "c.pt")
    assert result.code == 0
    assert "25.00%" in result.out


def test_a_hostile_name_does_not_steer_the_terminal() -> None:
    save_file({"\x1b[2J\nfc": torch.ones(1)}, "c.safetensors")
    result = run("inspect", "c.safetensors")
    assert result.code == 0
    assert "\x1b" not in result.out
    assert len([line for line in result.out.splitlines() if "fc" in line and "[2J" in line]) == 1


def hostile_pickle(path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return open, ("marker", "w")

    torch.save({"w": Hostile()}, path)


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "hostile": hostile_pickle,
    "no tensors": lambda path: torch.save({"epoch": 3}, path),
    "a gibibyte of nothing": lambda path: sparse_file(path, 2**30),
}


@pytest.mark.parametrize("make", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_inspect_refuses_what_is_no_checkpoint(
    tmp_path: Path, make: Callable[[Path], object], suffix: str
) -> None:
    path = tmp_path / f"c{suffix}"
    make(path)
    with nothing_new(tmp_path):
        refused(run("inspect", path), str(path))


# ---- bad tables -------------------------------------------------------------------------------


def sparse_file(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)


def changed(**columns: pl.Expr | pl.Series) -> bytes:
    return people().with_columns(**columns).write_csv().encode()


def one_cell(column: str, row: int, value: str) -> bytes:
    """Return the table with one cell replaced by a text."""
    cells = pl.when(pl.int_range(ROWS) == row).then(pl.lit(value)).otherwise(pl.col(column).cast(pl.String))
    return changed(**{column: cells})


UNREADABLE = {  # of a table to fit and of one to predict
    "empty": (b"", ["is empty"]),
    "blank lines": (b"\n\n\n", ["empty"]),
    "only column names": (b"age,height,smoker,job,y\n", ["no rows"]),
    "infinite": (one_cell("age", 6, "inf"), ["'age'", "infinite", "row 7"]),
    "minus infinite": (one_cell("height", 2, "-Infinity"), ["'height'", "infinite", "row 3"]),
    "text in a numeric column": (one_cell("age", 9, "forty"), ["'age'", "'forty'", "row 10"]),
    "a decimal comma": (changed(age=pl.lit("1,5")), ["'age'"]),
    "a short row": (changed() + b"31,170\n", ["line 62", "2 cells"]),
    "a long row": (b"age,height,smoker,job,y\n1,2,true,cook,sick,7\n", ["line 2", "6 cells"]),
    "no text": (bytes(range(256)) * 40, ["people.csv"]),
    "UTF-16": (people().write_csv().encode("utf-16"), ["UTF-16"]),
    "an open quote": (b'age,y\n1,"sick\n2,well\n', ["line 2"]),
}
UNLEARNABLE = {
    "one row": (people()[:1].write_csv().encode(), ["'y'", "1 row", "10"]),
    "few rows": (people()[:9].write_csv().encode(), ["9 rows", "10"]),
    "one class": (changed(y=pl.lit("sick")), ["'y'", "'sick'", "every row"]),
    "a constant quantity": (changed(y=pl.lit(1.5)), ["'y'", "1.5", "every row"]),
    "target missing everywhere": (changed(y=pl.lit(None, pl.String)), ["'y'", "no value"]),
    "all missing": (changed(**dict.fromkeys(FEATURES, pl.lit(None, pl.String))), ["no column", "missing"]),
    "everything missing": (b"age,y\n" + b",\n" * 30, ["'y'"]),
    "target absent": (people().drop("y").write_csv().encode(), ["'y'", "'age'"]),
    "target misspelt": (people().rename({"y": "Y"}).write_csv().encode(), ["did you mean 'Y'"]),
    "infinite target": (changed(y=pl.Series([np.inf, *range(1, ROWS)]) * 1.5), ["'y'", "infinite", "row 1"]),
    "target of names": (changed(y=pl.Series([f"n{i}" for i in range(ROWS)])), ["'y'", "identifier"]),
    "a rare class": (one_cell("y", 3, "ill"), ["'ill' (1)"]),
    "nothing but the target": (people().select("y").write_csv().encode(), ["no column"]),
    "nothing varies": (changed(**dict.fromkeys(FEATURES, pl.lit(3))), ["'age'", "every training row"]),
    "two columns of a name": (changed().replace(b"height", b"age", 1), ["'age'", "2 columns"]),
    "target too large": (changed(y=pl.col("age") * 1e300), ["'y'", "other units"]),
    "target too small": (changed(y=pl.col("age") * 1e-300), ["'y'", "other units"]),
    "target too far away": (changed(y=pl.col("age") + 1e12), ["'y'", "subtract"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "parts"), (UNREADABLE | UNLEARNABLE).values(), ids=UNREADABLE | UNLEARNABLE
)
def test_fit_refuses_a_bad_table(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    Path("people.csv").write_bytes(content)
    with nothing_new(tmp_path):
        refused(run("fit", "people.csv", "--target", "y", "--hidden", "4"), *parts)


@pytest.mark.parametrize(("content", "parts"), UNREADABLE.values(), ids=UNREADABLE)
def test_predict_refuses_a_bad_table(trained: Path, tmp_path: Path, content: bytes, parts: list[str]) -> None:
    Path("people.csv").write_bytes(content)
    with nothing_new(tmp_path):
        result = run("predict", trained / "model.safetensors", "people.csv", "-o", "p.csv")
        refused(result, *(["'age'"] if parts == ["'age'", "'forty'", "row 10"] else parts[:1]))


@pytest.mark.parametrize("name", ["big.csv", "big.parquet", "big.jsonl", "big.csv.gz"])
def test_a_file_of_a_gibibyte_is_refused_with_its_size_and_the_limit(
    trained: Path, tmp_path: Path, name: str
) -> None:
    sparse_file(Path(name), 2**30)
    started = time.monotonic()
    with nothing_new(tmp_path):
        refused(run("fit", name, *QUICK), "1,024.0 MiB", "512.0 MiB", name)
        refused(
            run("predict", trained / "model.safetensors", name, "-o", "p.csv"), "1,024.0 MiB", "512.0 MiB"
        )
        sparse_file(Path(name), 2**30)
        refused(run("fit", table("t.csv"), *QUICK, "--test", name), "1,024.0 MiB", "512.0 MiB")
        Path("t.csv").unlink()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "name", ["absent.csv", "folder.csv", "pipe.csv", "t.xlsx", "noending", "new\nline.csv"]
)
def test_what_is_no_table_is_refused(trained: Path, tmp_path: Path, name: str) -> None:
    Path("folder.csv").mkdir()
    os.mkfifo("pipe.csv")
    Path("t.xlsx").write_bytes(b"PK")
    with nothing_new(tmp_path):
        refused(run("fit", name, *QUICK))
        refused(run("predict", trained / "model.safetensors", name, "-o", "p.csv"))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"drop": ["age"]}, ["no feature column 'age'", "its columns are"]),
        ({"drop": ["age", "job"]}, ["'age', 'job'"]),
        ({"rename": {"age": "Age"}}, ["did you mean 'Age'"]),
    ],
)
def test_predict_refuses_a_table_that_lacks_a_column(
    trained: Path, tmp_path: Path, changes: dict[str, object], parts: list[str]
) -> None:
    frame = people()
    for method, argument in changes.items():
        frame = getattr(frame, method)(argument)
    table("t.csv", frame)
    with nothing_new(tmp_path):
        refused(run("predict", trained / "model.safetensors", "t.csv", "-o", "p.csv"), *parts)


def test_predict_takes_more_columns_in_any_order_and_says_what_it_never_saw(trained: Path) -> None:
    frame = people()
    table("t.csv", frame)
    odd = frame.select(pl.lit(7).alias("extra"), *reversed(frame.columns))
    table("odd.csv", odd)
    for name in ("t", "odd"):
        result = run("predict", trained / "model.safetensors", f"{name}.csv", "-o", f"{name}-p.csv")
        assert result.code == 0
    assert "note: ignored columns that training did not have: 'extra'" in result.err
    assert Path("t-p.csv").read_bytes() == Path("odd-p.csv").read_bytes()
    table("unseen.csv", frame.with_columns(job=pl.lit("astronaut")))
    result = run("predict", trained / "model.safetensors", "unseen.csv", "-o", "u.csv")
    assert result.code == 0
    assert "never seen in training ('astronaut')" in result.err


def test_one_row_is_enough_to_predict(trained: Path) -> None:
    table("t.csv", people()[:1])
    assert run("predict", trained / "model.safetensors", "t.csv", "-o", "p.csv").code == 0
    assert pl.read_csv("p.csv").height == 1


# ---- bad options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["bogus"], ["bogus"]),
        (["fit"], ["table"]),
        (["fit", "t.csv"], ["--target"]),
        (["fit", "t.csv", "--target", "y", "--wrong"], ["--wrong"]),
        (["fit", "t.csv", *QUICK, "--hidden", "0"], ["--hidden", "64,32"]),
        (["fit", "t.csv", *QUICK, "--hidden", "4,,4"], ["--hidden"]),
        (["fit", "t.csv", *QUICK, "--hidden", "-4"], ["--hidden"]),
        (["fit", "t.csv", *QUICK, "--hidden", "four"], ["--hidden", "'four'"]),
        (["fit", "t.csv", *QUICK, "--hidden", "1000000"], ["--hidden"]),
        (["fit", "t.csv", *QUICK, "--hidden", "100000,100000"], ["weights", "20,000,000"]),
        (["fit", "t.csv", *QUICK, "--penalty", "l2"], ["--penalty", "l1, features, neurons"]),
        (["fit", "t.csv", *QUICK, "--penalty", "neurons"], ["hidden layer"]),
        (["fit", "t.csv", *QUICK, "--strength", "strong"], ["--strength", "'strong'"]),
        (["fit", "t.csv", *QUICK, "--strength", "nan"], ["--strength"]),
        (["fit", "t.csv", *QUICK, "--strength", "inf"], ["--strength"]),
        (["fit", "t.csv", *QUICK, "--strength", "-1"], ["--strength"]),
        (["fit", "t.csv", *QUICK, "--test", "1"], ["between 0 and 1"]),
        (["fit", "t.csv", *QUICK, "--test", "nan"], ["between 0 and 1"]),
        (["fit", "t.csv", *QUICK, "--test", "0.999"], ["split"]),
        (["fit", "t.csv", *QUICK, "--test", "absent.csv"], ["'absent.csv' does not exist"]),
        (["fit", "t.csv", *QUICK, "--test", "t.csv"], ["the table itself"]),
        (["fit", "t.csv", *QUICK, "--test", "notarget.csv"], ["test table", "'y'"]),
        (["fit", "t.csv", *QUICK, "--test", "unscored.csv"], ["test table", "'y'"]),
        (
            ["fit", "t.csv", *QUICK, "--test", "strange.csv"],
            ["test table", "'dead'", "row 4", "'sick', 'well'"],
        ),
        (["fit", "t.csv", *QUICK, "--test", "narrow.csv"], ["test table", "'age'"]),
        (["fit", "t.csv", *QUICK, "--test", "infinite.csv"], ["test table", "'age'", "infinite", "row 6"]),
        (["fit", "t.csv", *QUICK, "--cv", "5"], ["--cv", "--strength 0.05", "leave one out"]),
        (["fit", "t.csv", *QUICK[:4], "--cv", "1"], ["--cv", "2 to 48", "got 1"]),
        (["fit", "t.csv", *QUICK[:4], "--cv", "49"], ["--cv", "2 to 48", "got 49"]),
        (["fit", "t.csv", *QUICK[:4], "--cv", "five"], ["--cv", "integer"]),
        (["path", "t.csv", *QUICK[:4], "--cv", "0"], ["--cv", "2 to 48", "got 0"]),
        (["path", "t.csv"], ["--target"]),
        (["path", "t.csv", "--target", "z"], ["'z'", "'age'"]),
        (["path", "t.csv", *QUICK[:4], "--penalty", "l2"], ["--penalty", "l1, features, neurons"]),
        (["path", "t.csv", *QUICK], ["--strength"]),
        (["path", "t.csv", *QUICK[:4], "-o", "p.txt"], ["strengths go to", ".parquet", "'p.txt'"]),
        (["path", "t.csv", *QUICK[:4], "-o", "t.csv"], ["own table"]),
        (["path", "t.csv", *QUICK[:4], "-o", "missing/p.csv"], ["missing"]),
        (["fit", "t.csv", *QUICK, "--seed", "-1"], ["--seed"]),
        (["fit", "t.csv", *QUICK, "--seed", "9999999999999"], ["--seed"]),
        (["fit", "t.csv", *QUICK, "--device", "toaster"], ["device 'toaster'"]),
        (["fit", "t.csv", *QUICK, "--device", "meta"], ["device 'meta'"]),
        (["fit", "t.csv", *QUICK, "--out", "t.csv"], ["'t.csv'"]),
        (["fit", "t.csv", *QUICK, "--out", "missing/out"], ["'missing/out'"]),
        (["fit", "t.csv", *QUICK, "--out", "/proc/self"], ["/proc/self"]),
        (["demo", "iris"], ["'iris'", "breast_cancer, digits, wine, diabetes"]),
        (["demo", "wine", "--out", "t.csv"], ["'t.csv'"]),
        (["demo", "../wine"], ["breast_cancer"]),
    ],
)
def test_a_bad_option_is_one_clear_line(tmp_path: Path, args: list[str], parts: list[str]) -> None:
    frame = people()
    table("t.csv")
    table("notarget.csv", frame.drop("y"))
    table("unscored.csv", frame.with_columns(y=pl.lit(None, pl.String)))
    dead = pl.when(pl.int_range(ROWS) == 3).then(pl.lit("dead")).otherwise("y")
    table("strange.csv", frame.with_columns(y=pl.when(pl.int_range(ROWS) < 2).then(None).otherwise(dead)))
    table("narrow.csv", frame.drop("age"))
    Path("infinite.csv").write_bytes(one_cell("age", 5, "inf"))
    with nothing_new(tmp_path):
        refused(run(*args), *parts)


@pytest.mark.parametrize(
    ("out", "part"),
    [
        ("p.txt", ".parquet"),
        ("p", ".csv"),
        ("folder.csv", "folder"),
        ("missing/p.csv", "missing"),
        ("t.csv", "own table"),
        ("/proc/self/p.csv", "/proc/self"),
    ],
)
def test_predictions_that_cannot_be_written(trained: Path, tmp_path: Path, out: str, part: str) -> None:
    Path("folder.csv").mkdir()
    table("t.csv")
    with nothing_new(tmp_path):
        refused(run("predict", trained / "model.safetensors", "t.csv", "-o", out), part)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_that_cannot_be_written_leaves_no_other_behind(tmp_path: Path, name: str) -> None:
    table("t.csv")
    Path("out", name).mkdir(parents=True)
    with nothing_new(tmp_path):
        refused(run("fit", "t.csv", *QUICK, "--out", "out"), name)


def test_a_folder_that_was_there_stays() -> None:
    Path("out").mkdir()
    refused(run("fit", table("t.csv"), *QUICK, "--out", "out", "--penalty", "neurons"))
    assert list(Path("out").iterdir()) == []


# ---- bad model files --------------------------------------------------------------------------


def rewritten(
    trained: Path, path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, object]], object]
) -> None:
    """Write a model whose checksum is right, but whose content somebody changed."""
    tensors, config = read_tensors(trained / "model.safetensors")
    change(tensors, config)
    write_tensors(path, tensors, config)


MODELS: dict[str, Callable[[Path, Path], object]] = {
    "absent": lambda trained, path: None,
    "a folder": lambda trained, path: path.mkdir(),
    "empty": lambda trained, path: path.write_bytes(b""),
    "cut short": lambda trained, path: path.write_bytes((trained / "model.safetensors").read_bytes()[:-1]),
    "a flipped bit": lambda trained, path: path.write_bytes(
        (content := (trained / "model.safetensors").read_bytes())[:-3]
        + bytes([content[-3] ^ 1])
        + content[-2:]
    ),
    "foreign": lambda trained, path: save_file({"weight": torch.ones(1, 6)}, path),
    "a pickle": lambda trained, path: hostile_pickle(path),
    "two gibibytes of nothing": lambda trained, path: sparse_file(path, 2**31),
    "no model of a table": lambda trained, path: write_tensors(path, {"w": torch.ones(1)}, {"kind": "other"}),
    "huge": lambda trained, path: rewritten(trained, path, lambda t, c: c.update(hidden=[2**40, 2**40])),
    "not a number": lambda trained, path: rewritten(
        trained, path, lambda t, c: t["weight"].fill_(float("nan"))
    ),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_predict_refuses_a_bad_model(
    trained: Path, tmp_path: Path, make: Callable[[Path, Path], object]
) -> None:
    path = tmp_path / "m.safetensors"
    make(trained, path)
    table("t.csv")
    with nothing_new(tmp_path):
        refused(run("predict", path, "t.csv", "-o", "p.csv"))
    assert not Path("marker").exists()


# ---- interrupted ------------------------------------------------------------------------------


@pytest.mark.parametrize("call", range(1, 5))
@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_ctrl_c_while_writing_leaves_no_part_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, broken: str
) -> None:
    table("t.csv")
    Path("out").mkdir()
    original, calls = getattr(os, broken), []

    def interrupt(*args: object) -> None:
        calls.append(args)
        if len(calls) == call + (broken == "fsync"):  # the first is the probe of the folder
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(os, broken, interrupt)
    refused(run("fit", "t.csv", *QUICK, "--out", "out"), "interrupted")
    left = sorted(path.name for path in Path("out").iterdir())
    assert left == sorted(
        ["model.safetensors", "metrics.json", "path.csv", "report.html"][: call - 1]
        if broken == "replace"
        else []
    )
    if "model.safetensors" in left:
        read_tensors("out/model.safetensors")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
def test_a_fit_that_stops_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    def stop(*_: object) -> None:
        raise raised

    table("t.csv")
    monkeypatch.setattr(tabular, "fit_mlp", stop)
    with nothing_new(tmp_path):
        refused(run("fit", "t.csv", *QUICK), "interrupted" if raised is KeyboardInterrupt else "memory")


def script() -> str:
    return str(Path(sys.executable).with_name("torchlasso"))


def child(*args: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", code] if code else [script()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, *args], capture_output=True, text=True, timeout=120, env=environment)


def test_the_installed_command_refuses_in_one_line(tmp_path: Path) -> None:
    Path("t.csv").write_bytes(b"")
    with nothing_new(tmp_path):
        done = child("fit", "t.csv", "--target", "y")
    refused(Run(done.returncode, done.stdout, done.stderr), "'t.csv' is empty")
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.1, 0.5, 1.5])
def test_ctrl_c_while_torch_is_imported(tmp_path: Path, delay: float) -> None:
    table("t.csv")
    before = tree(tmp_path)
    command = [script(), "fit", "t.csv", "--target", "y", "--hidden", "512,512", "--out", "out"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(delay + 0.2)  # the interpreter itself takes some 50 ms to start
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 2
    assert said.decode().splitlines() == ["torchlasso: error: interrupted; no file was left half-written"]
    assert tree(tmp_path) == before


def test_ctrl_c_while_training(tmp_path: Path) -> None:
    table("t.csv")
    before = tree(tmp_path)
    parent, terminal = pty.openpty()
    command = [script(), "fit", "t.csv", "--target", "y", "--hidden", "64,64", "--out", "out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"}
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal, env=environment)
    os.close(terminal)
    said = b""
    try:
        while b"%" not in said:  # the bar is there
            said += os.read(parent, 4096)
        running.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal is closed at the end
            while more := os.read(parent, 4096):
                said += more
        assert running.wait(timeout=60) == 2
    finally:
        running.kill()
        running.wait()
        os.close(parent)
    assert b"torchlasso: error: interrupted" in said
    assert b"Traceback" not in said
    assert tree(tmp_path) == before


INTERRUPT_ONCE = """
import os, signal, sys
from torchlasso.tabular import {module} as module
original = module.{name}
def interrupted(*args, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return original(*args, **options)
module.{name} = interrupted
from torchlasso.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name"), [("delimited", "_rows"), ("outputs", "render_report")])
def test_ctrl_c_while_reading_and_reporting(tmp_path: Path, module: str, name: str) -> None:
    table("t.csv")
    with nothing_new(tmp_path):
        done = child("fit", "t.csv", *QUICK, code=INTERRUPT_ONCE.format(module=module, name=name))
        refused(Run(done.returncode, done.stdout, done.stderr), "interrupted")


@pytest.mark.slow
def test_a_reader_that_goes_away_and_an_output_that_knows_no_boxes() -> None:
    torch.save({f"w{i}": torch.ones(2) for i in range(3000)}, "c.pt")
    code = "from torchlasso.cli import main; main()"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code, "inspect", "c.pt"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().isascii()
        running.stdout.close()
        assert running.stderr.read() == b""


# ---- bench ------------------------------------------------------------------------------------------


def test_bench_step_prints_a_ratio_for_every_way() -> None:
    result = run("bench", "step", "--quick", "--repeats", "1")
    assert (result.code, result.err) == (0, "")
    for way in ("AdamW(fused=True), no penalty", "attach", "ProxAdamW", "ProxSGD", "penalty in the loss"):
        rows = [line for line in result.out.splitlines() if line.startswith(f"| {way} ")]
        assert rows, way
        assert all(float(row.split("|")[-2]) > 0 for row in rows)
