"""Tables from files: what was written is what is read, and everything else is refused in one line."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes

from torchlasso.errors import InputError, TableError
from torchlasso.tabular import data
from torchlasso.tabular.data import bundled, read_table

ROWS = [(31, 1.5, "cook", True), (54, None, "smith", False), (47, -2.0, None, True)]
pd = pytest.importorskip("pandas")

NAMES = ["age", "dose", "job", "smoker"]
FRAME = pl.DataFrame(ROWS, schema=NAMES, orient="row")
CSV = "age,dose,job,smoker\n31,1.5,cook,True\n54,,smith,False\n47,-2,NA,True\n"


def put(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def refusal(file: str | Path) -> str:
    with pytest.raises(TableError) as caught:
        read_table(file)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_csv(tmp_path: Path) -> None:
    frame = read_table(put(tmp_path, "t.csv", CSV))
    assert frame.rows() == ROWS
    assert frame.columns == NAMES
    assert frame.dtypes == [pl.Int64, pl.Float64, pl.String, pl.Boolean]


def test_path_as_text_and_suffix_in_capitals(tmp_path: Path) -> None:
    assert read_table(str(put(tmp_path, "T.CSV", CSV))).rows() == ROWS


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_csv_with_another_separator(tmp_path: Path, separator: str) -> None:
    content = 'a~"b~c"\n1~"1,5"\n2~x\n'.replace("~", separator)
    assert read_table(put(tmp_path, "t.csv", content)).to_dict(as_series=False) == {
        "a": [1, 2],
        f"b{separator}c": ["1,5", "x"],
    }


@pytest.mark.parametrize("suffix", [".tsv", ".tab"])
def test_tsv_keeps_commas(tmp_path: Path, suffix: str) -> None:
    assert read_table(put(tmp_path, "t" + suffix, "a,b\tc\n1\t2,3\n")).to_dicts() == [{"a,b": 1, "c": "2,3"}]


def test_csv_of_one_column(tmp_path: Path) -> None:
    assert read_table(put(tmp_path, "t.csv", "a\n1\n\n2\n")).to_dicts() == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "marker", ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?", " ? ", '"NA"']
)
def test_missing_markers(tmp_path: Path, marker: str) -> None:
    frame = read_table(
        put(tmp_path, "t.csv", f"a,b,c,d\n1,x,0.5,true\n{marker},{marker},{marker},{marker}\n")
    )
    assert frame.row(1) == (None, None, None, None)
    assert frame.dtypes == [pl.Int64, pl.String, pl.Float64, pl.Boolean]


def test_a_late_text_value_is_seen(tmp_path: Path) -> None:
    frame = read_table(put(tmp_path, "t.csv", "a,b\n" + "1,2\n" * 45_000 + "x,2.5\n"))
    assert frame.dtypes == [pl.String, pl.Float64]
    assert frame.row(-1) == ("x", 2.5)
    assert len(frame) == 45_001


def test_csv_quirks(tmp_path: Path) -> None:
    content = (
        '\ufeff, age ,"note"\r\n0, 31 ,"say ""no"""\r\n\r\n1,+54,"two\nlines, a comma"\r\n'
        '   \r\n2,1e3,5" nail\r\n\r\n'
    )
    frame = read_table(put(tmp_path, "t.csv", content))
    assert frame.to_dict(as_series=False) == {
        "unnamed_1": [0, 1, 2],
        "age": [31.0, 54.0, 1000.0],
        "note": ['say "no"', "two\nlines, a comma", '5" nail'],
    }


def test_numbers_beyond_64_bits_and_infinite_ones_stay_numbers(tmp_path: Path) -> None:
    frame = read_table(put(tmp_path, "t.csv", "a,b\n1,1e999\n99999999999999999999,-inf\n"))
    assert frame.rows() == [(1.0, float("inf")), (1e20, float("-inf"))]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**62), 2**62),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(
                lambda text: f"<{text}>"
            ),
        ),
        min_size=1,
    )
)
def test_csv_of_the_standard_library_is_read_back(tmp_path: Path, rows: list[tuple[int, float, str]]) -> None:
    pd.DataFrame(rows, columns=["a", "b", "c"]).to_csv(tmp_path / "t.csv", index=False, lineterminator="\r\n")
    frame = read_table(tmp_path / "t.csv")
    assert frame["a"].to_list() == [row[0] for row in rows]
    assert frame["b"].cast(pl.Float64).to_list() == [row[1] for row in rows]
    assert frame["c"].to_list() == [row[2] for row in rows]


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_packed_text(tmp_path: Path, suffix: str, pack: object) -> None:
    assert callable(pack)
    assert read_table(put(tmp_path, "t.csv" + suffix, pack(CSV.encode()))).rows() == ROWS
    assert read_table(put(tmp_path, "t.jsonl" + suffix, pack(b'{"a":1}\n'))).rows() == [(1,)]
    assert "is empty" in refusal(put(tmp_path, "e.csv" + suffix, pack(b"")))
    whole = pack(CSV.encode())
    assert f"is not a whole {suffix} file" in refusal(put(tmp_path, "cut.csv" + suffix, whole[:-9]))
    message = refusal(put(tmp_path, "no.csv" + suffix, CSV))
    assert "is not a whole" in message or "cannot be read" in message


def test_zstd_is_read_or_refused_with_a_way_out(tmp_path: Path) -> None:
    packed = io.BytesIO()
    FRAME.write_csv(packed, compression="zstd")
    file = put(tmp_path, "t.csv.zst", packed.getvalue())
    if sys.version_info >= (3, 14):
        assert read_table(file).rows() == ROWS
    else:
        assert "unpack it or pack it with gzip" in refusal(file)


@pytest.mark.parametrize("suffix", [".parquet", ".pq"])
def test_parquet(tmp_path: Path, suffix: str) -> None:
    FRAME.to_pandas().to_parquet(tmp_path / f"t[1]{suffix}")
    assert read_table(tmp_path / f"t[1]{suffix}").rows() == ROWS


@pytest.mark.parametrize("suffix", [".arrow", ".feather", ".ipc"])
def test_arrow(tmp_path: Path, suffix: str) -> None:
    FRAME.to_pandas().to_feather(tmp_path / f"t{suffix}")
    assert read_table(tmp_path / f"t{suffix}").rows() == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    lines = "\n".join(json.dumps(dict(zip(NAMES, row, strict=True))) for row in ROWS)
    assert read_table(put(tmp_path, "t" + suffix, lines)).rows() == ROWS
    assert read_table(put(tmp_path, "bom" + suffix, "\ufeff" + lines + "\n\n")).rows() == ROWS


def test_json_list_and_late_types(tmp_path: Path) -> None:
    rows = [{"a": 1}] * 2000 + [{"a": "x"}]
    assert read_table(put(tmp_path, "t.json", json.dumps(rows)))["a"].dtype == pl.String
    lines = "\n".join(json.dumps(row) for row in rows)
    assert read_table(put(tmp_path, "t.jsonl", lines))["a"][-1] == "x"


def test_no_such_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.csv")
    assert "cannot be read" in refusal(tmp_path / ("x" * 5000 + ".csv"))
    assert "cannot be read" in refusal("a\0b.csv")
    assert "cannot be read" in refusal(put(tmp_path, "t.csv", CSV) / "inside.csv")


def test_not_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    assert "is a directory" in refusal(folder)
    os.mkfifo(tmp_path / "pipe.csv")
    assert "not a regular file" in refusal(tmp_path / "pipe.csv")


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(tmp_path, "t.csv", CSV)
    file.chmod(0)
    if os.access(file, os.R_OK):  # the superuser may read everything

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    assert "check its permissions" in refusal(file)


@pytest.mark.parametrize("name", ["table", "t.xlsx", "t.csv.zip", "t.parquet.gz", "t.gz", ".csv"])
def test_unknown_format(tmp_path: Path, name: str) -> None:
    message = refusal(put(tmp_path, name, CSV))
    assert all(
        suffix in message for suffix in (".csv", ".tsv", ".jsonl", ".parquet", ".feather", ".gz", ".xz")
    )


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.arrow"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    assert "is empty" in refusal(put(tmp_path, name, b""))


@pytest.mark.parametrize("content", ["\n\n  \n", "\ufeff", " "])
def test_blank_csv(tmp_path: Path, content: str) -> None:
    assert "is empty" in refusal(put(tmp_path, "t.csv", content))


def test_no_rows(tmp_path: Path) -> None:
    FRAME.clear().write_parquet(tmp_path / "t.parquet")
    FRAME.clear().write_ipc(tmp_path / "t.arrow")
    for file in (put(tmp_path, "t.csv", "a,b,c,d\n"), tmp_path / "t.parquet", tmp_path / "t.arrow"):
        assert "4 column names but no rows" in refusal(file)
    assert "no columns" in refusal(put(tmp_path, "t.json", "[]"))


def test_ragged_rows_name_their_line(tmp_path: Path) -> None:
    assert "line 3 has 3 cells where the header has 2" in refusal(put(tmp_path, "t.csv", "a,b\n1,2\n1,2,3\n"))
    assert "line 5 has 1 cell where the header has 2" in refusal(
        put(tmp_path, "s.csv", 'a,b\n1,"x\ny"\n\n3\n')
    )


@pytest.mark.parametrize(
    "content", ['a,b\n1,2\n"x,2\n3,4\n', 'a,b\n1,2\n"x"y,2\n', 'a,b\n1,2\n"' + "x" * 200_000]
)
def test_quotes_that_do_not_close(tmp_path: Path, content: str) -> None:
    message = refusal(put(tmp_path, "t.csv", content))
    assert "line 3 cannot be split" in message
    assert "check its quotes" in message


def test_duplicate_columns(tmp_path: Path) -> None:
    assert "2 columns are called 'a'" in refusal(put(tmp_path, "t.csv", "a,b, a\n1,2,3\n"))


def test_wrong_encoding(tmp_path: Path) -> None:
    message = refusal(put(tmp_path, "t.csv", "a,b\n1,2\n3,caf\xe9\n".encode("latin-1")))
    assert "line 3 is not UTF-8 text (byte 0xe9)" in message
    assert "UTF-16" in refusal(put(tmp_path, "u.csv", CSV.encode("utf-16")))
    assert "zero byte" in refusal(put(tmp_path, "z.csv", "a,b\n1,\0\n"))
    assert "line 1" in refusal(put(tmp_path, "t.jsonl", '{"a":"caf\xe9"}\n'.encode("latin-1")))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"a":1}\n{"a":\n', "line 2 is not JSON"),
        ('{"a":1}\n[1]\n', "line 2 holds a list"),
        ('{"a":1}\n\n{"a":NaN}\n', "line 3 is not JSON (NaN"),
        ('{"a":' * 100_000, "line 1"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[1, 2]", "cannot be read as JSON"),
        ("a,b\n1,2\n", "is not JSON"),
        ("3\n4\n", "is not JSON"),
    ],
)
def test_broken_json(tmp_path: Path, content: str, reason: str) -> None:
    assert reason in refusal(put(tmp_path, "t.json", content))


def test_packed_bytes_under_an_unpacked_suffix_are_not_unpacked(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"a":1}\n' * 1000)
    assert "is not JSON" in refusal(put(tmp_path, "t.jsonl", packed))
    assert "is not UTF-8" in refusal(put(tmp_path, "t.csv", packed))


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_corrupt_columnar_files(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    whole = io.BytesIO()
    FRAME.write_parquet(whole) if name.endswith("parquet") else FRAME.write_ipc(whole)
    for content in (b"\x00", b"PAR1 or ARROW1", whole.getvalue()[:-20], CSV.encode()):
        file.write_bytes(content)
        assert "is not a whole" in refusal(file)


def test_limit_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_BYTES", 2**18)
    message = refusal(put(tmp_path, "t.csv", "a\n" + "1\n" * 2**18))
    assert "0.5 MiB" in message
    assert "limit of 0.2 MiB" in message
    assert len(read_table(put(tmp_path, "s.csv", "a\n" + "1\n" * (2**17 - 1)))) == 2**17 - 1


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_limit_on_what_a_file_unpacks_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, pack: object
) -> None:
    monkeypatch.setattr(data, "MAX_BYTES", 2**20)
    assert callable(pack)
    file = put(tmp_path, "bomb.csv" + suffix, pack(b"1" * 2**22))
    assert file.stat().st_size < 2**15
    assert "unpacks to more than the limit of 1.0 MiB" in refusal(file)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_limit_on_what_a_columnar_file_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(data, "MAX_BYTES", 2**20)
    frame = pl.select(a=pl.repeat(0, 2**20, dtype=pl.Int64))
    if name.endswith("parquet"):
        frame.write_parquet(tmp_path / name)
    else:
        frame.write_ipc(tmp_path / name, compression="zstd")
    assert (tmp_path / name).stat().st_size < 2**16
    assert "1,048,576 values, 8.0 MiB in memory" in refusal(tmp_path / name)


def test_bundled_sets_hold_what_scikit_learn_holds() -> None:
    frame, target = bundled("breast_cancer")
    truth = load_breast_cancer()
    assert target == "diagnosis"
    assert (frame.drop(target).to_numpy() == truth.data).all()
    assert frame.columns[:2] == ["mean radius", "mean texture"]
    assert [truth.target_names[code] for code in truth.target] == frame[target].to_list()

    frame, target = bundled("diabetes")
    assert target == "progression"
    assert (frame.drop(target).to_numpy() == load_diabetes(scaled=False).data).all()
    assert frame["blood_pressure"].max() == 133.0

    frame, target = bundled("digits")
    assert (target, frame.shape, frame[target][0]) == ("digit", (1797, 65), 0)
    frame, target = bundled("wine")
    assert (target, frame.shape) == ("cultivar", (178, 14))
    assert frame[target].value_counts(sort=True)["count"].to_list() == [71, 59, 48]


def test_unknown_bundled_set() -> None:
    with pytest.raises(InputError, match="breast_cancer, digits, wine, diabetes"):
        bundled("iris")
