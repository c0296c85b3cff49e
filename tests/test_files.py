"""Model files: what goes in comes out, and nothing hostile or broken comes in."""

import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torchlasso import files
from torchlasso.checkpoints import read_checkpoint
from torchlasso.errors import InputError, ModelFileError, OutputError
from torchlasso.files import output_folder, read_tensors, text_bytes, write_files, write_tensors

CONFIG: dict[str, Any] = {"penalty": "l1", "strength": 0.1, "columns": ["größe", "a\nb"], "sizes": []}
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two dicts hold the same tensors bit by bit (NaN and signed zeros included)."""

    def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, list[int]]:
        flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
        return tensor.dtype, tensor.shape, flat.tolist()

    return left.keys() == right.keys() and all(bits(left[k]) == bits(right[k]) for k in left)


def one_line(error: pytest.ExceptionInfo[Exception], path: Path) -> str:
    """Check that a message is one printable line that names the file, and return it."""
    message = str(error.value)
    assert message.isprintable()
    assert repr(str(path)) in message
    return message


def raw_safetensors(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def ours(path: Path, text: str) -> Path:
    """Write a valid safetensors file whose torchlasso metadata is ``text``."""
    save_file({"w": torch.ones(2)}, path, metadata={"torchlasso": text})
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(-0.0)}, CONFIG)
    return path


# ---- round trip -------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    values = torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
    )
    return (values * 10).abs().to(dtype)


@given(
    content=st.dictionaries(st.text(max_size=5).filter(lambda n: n != "__metadata__"), tensors(), max_size=4),
    config=st.dictionaries(st.text(), JSON, max_size=3),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Tensor], config: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("trip") / "m.safetensors"
    write_tensors(path, content, config)
    found, found_config = read_tensors(path)
    assert same(found, content)
    assert found_config == config


def test_special_values_and_views_come_back_as_they_are(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    content = {
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "transposed": base.T,
        "tied": base,
        "tied again": base,
        "a row": base[1],
        "strided": base[:, ::2],
        "expanded": torch.ones(1).expand(5),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
        "parameter": nn.Parameter(torch.ones(2)),
    }
    write_tensors(tmp_path / "m", content, {})
    found, _ = read_tensors(tmp_path / "m")
    content["conjugate"] = content["conjugate"].resolve_conj()
    content["negative"] = content["negative"].resolve_neg()
    assert same(found, content)
    assert all(type(tensor) is Tensor and not tensor.requires_grad for tensor in found.values())


def test_what_was_read_does_not_hang_on_the_file(model: Path) -> None:
    found, _ = read_tensors(model)
    model.write_bytes(b"")
    assert found["w"].sum() == 15
    found["w"].zero_()


def test_the_file_is_plain_safetensors_for_everybody(model: Path) -> None:
    assert same(load_file(model), read_tensors(model)[0])


def test_tuples_come_back_as_lists(tmp_path: Path) -> None:
    write_tensors(tmp_path / "m", {}, {"sizes": (3, 4)})
    assert read_tensors(tmp_path / "m") == ({}, {"sizes": [3, 4]})


def nested(depth: int) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for _ in range(depth):
        config = {"deeper": config}
    return config


def test_every_depth_that_can_be_written_can_be_read(tmp_path: Path) -> None:
    written = 0
    for depth in range(40):
        path = tmp_path / str(depth)
        try:
            write_tensors(path, {}, nested(depth))
        except InputError:
            assert not path.exists()
        else:
            assert read_tensors(path) == ({}, nested(depth))
            written += 1
    assert 20 <= written < 40


@pytest.mark.parametrize(
    ("content", "config"),
    [
        ({"w": torch.ones(2, device="meta")}, {}),
        ({"w": torch.eye(2).to_sparse()}, {}),
        ({"w": torch.ones(2, dtype=torch.complex128)}, {}),
        ({"w": [1.0, 2.0]}, {}),
        ({3: torch.ones(2)}, {}),
        ({"__metadata__": torch.ones(2)}, {}),
        ({"\ud800": torch.ones(2)}, {}),
        ({}, {"strength": float("nan")}),
        ({}, {"strength": torch.ones(1)}),
        ({}, ["no dict"]),
        ({}, nested(10_000)),
        ({}, {"long": "x" * (files._MAX_HEADER + 1)}),
    ],
)
def test_what_cannot_be_stored_is_refused_before_the_disk_is_touched(
    tmp_path: Path, content: dict[str, Tensor], config: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="cannot store") as error:
        write_tensors(tmp_path / "m", content, config)
    assert str(error.value).isprintable()
    assert list(tmp_path.iterdir()) == []


# ---- atomic writing ---------------------------------------------------------------------------


def write_plain(path: Path) -> None:
    write_files({path: b"new"})


def write_model(path: Path) -> None:
    write_tensors(path, {"w": torch.ones(3)}, {})


@pytest.mark.parametrize("write", [write_plain, write_model])
@pytest.mark.parametrize("broken", ["os.replace", "os.fsync"])
@pytest.mark.parametrize("raised", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
    broken: str,
    raised: BaseException,
) -> None:
    path = tmp_path / "result"
    path.write_text("old")

    def fail(*_: object) -> None:
        # The temporary file must lie beside the target, or os.replace could not be atomic.
        assert len(list(tmp_path.iterdir())) == 2
        raise raised

    monkeypatch.setattr(broken, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else OutputError):
        write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_while_serialising_leaves_the_old_file(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model.read_bytes()

    def interrupt(*_: object, **__: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_model(model)
    assert model.read_bytes() == before
    assert list(model.parent.iterdir()) == [model]


@pytest.mark.parametrize("write", [write_plain, write_model])
@pytest.mark.parametrize("place", ["missing/result", "file/result", "folder", "pipe", "n\0l", "x" * 300])
def test_an_unwritable_place_is_one_clear_line(
    tmp_path: Path, write: Callable[[Path], None], place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    path = tmp_path / place
    with pytest.raises(OutputError, match="give a path in an existing, writable folder") as error:
        write(path)
    one_line(error, path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_files({tmp_path / "link": b"new"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_new_file_has_the_rights_that_open_would_give(tmp_path: Path) -> None:
    write_files({tmp_path / "ours": b""})
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("text", ["", "a\r\nb\n", "größe 🙂"])
def test_text_is_written_byte_for_byte(tmp_path: Path, text: str) -> None:
    write_files({tmp_path / "t": text_bytes(text)})
    assert (tmp_path / "t").read_bytes() == text.encode()


def test_an_odd_file_name_in_a_report_does_not_cost_the_report(tmp_path: Path) -> None:
    write_files({tmp_path / "t": text_bytes("from \udcff.csv")})
    assert (tmp_path / "t").read_text(encoding="utf-8") == "from \\udcff.csv"


def test_output_folder_is_made_or_taken_as_it_is(tmp_path: Path) -> None:
    folder = output_folder(tmp_path / "out")
    assert folder == tmp_path / "out"
    (folder / "kept").write_text("kept")
    assert output_folder(str(folder)) == folder
    assert [entry.name for entry in folder.iterdir()] == ["kept"]


@pytest.mark.parametrize("place", ["file", "file/below", "missing/out", "n\0l", "/proc/nope"])
def test_an_impossible_output_folder_is_one_clear_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / place
    with pytest.raises(OutputError, match="give a path") as error:
        output_folder(path)
    one_line(error, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs the proc file system")
def test_a_folder_that_takes_no_files_is_noticed_up_front() -> None:
    with pytest.raises(OutputError, match="cannot write"):
        output_folder("/proc/self")


# ---- reading our own --------------------------------------------------------------------------


def test_every_truncation_is_refused(model: Path) -> None:
    whole = model.read_bytes()
    for kept in [*range(0, len(whole), 7), len(whole) - 1]:
        model.write_bytes(whole[:kept])
        for read in (read_tensors, read_checkpoint):
            with pytest.raises(ModelFileError) as error:
                read(model)
            one_line(error, model)
    model.write_bytes(whole + b"\0")
    with pytest.raises(ModelFileError):
        read_tensors(model)


@given(data=st.data())
def test_a_damaged_header_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flip") / "m.safetensors"
    content = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.arange(6).reshape(3, 2)}
    write_tensors(path, content, CONFIG)
    damaged = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(damaged[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        found, config = read_tensors(path)
    except ModelFileError as error:
        assert str(error).isprintable()  # noqa: PT017 - both outcomes are allowed
    else:
        assert same(found, content)
        assert config == CONFIG


@pytest.mark.parametrize(
    ("before", "after"), [(b"F32", b"I32"), (b'"w"', b'"v"'), (b"0.1", b"0.7"), (b"[2,3]", b"[3,2]")]
)
def test_plausible_damage_is_found_by_the_checksum(model: Path, before: bytes, after: bytes) -> None:
    whole = model.read_bytes()
    assert before in whole
    model.write_bytes(whole.replace(before, after))
    with pytest.raises(ModelFileError, match="checksum"):
        read_tensors(model)


def test_damaged_values_are_found_by_the_checksum(model: Path) -> None:
    whole = bytearray(model.read_bytes())
    whole[-1] ^= 1
    model.write_bytes(whole)
    with pytest.raises(ModelFileError, match="checksum"):
        read_tensors(model)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "recursion|nested"),
        ('{"a":' * 900 + "1" + "}" * 900, "nested more than"),
        ("9" * 10_000, "digits|no JSON object"),
        ("{}", "its format is None"),
        ('{"format": true, "config": {}}', "its format is True"),
        ('{"format": 2, "sha256": "", "config": {}}', "its format is 2"),
        ('{"format": 1, "sha256": ""}', "got NoneType"),
        ('{"format": 1, "sha256": "", "config": [1]}', "got list"),
        ('{"format": 1, "config": {}}', "checksum"),
        ('{"format": 1, "sha256": [1], "config": {}}', "checksum"),
        ('{"format": 1, "sha256": "", "config": {"a": NaN}}', "Out of range"),
        ('{"format": 1, "sha256": "", "config": {"a": 1e999}}', "Out of range"),
        (" " * (files._MAX_HEADER + 1), "at most"),
    ],
)
def test_bad_metadata_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = ours(tmp_path / "m.safetensors", text)
    with pytest.raises(ModelFileError, match=match) as error:
        read_tensors(path)
    one_line(error, path)


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> bytes:
    return json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


LIES = [
    (b"", b""),
    (b"null", b""),
    (b"{" * 1000, b""),
    (entry(shape=[2**61]), b"\0" * 4),
    (entry(shape=[2**40], offsets=[0, 2**42]), b"\0" * 4),
    (entry(shape=[2]), b"\0" * 4),
    (entry(shape=[0, 2**63], offsets=[0, 0]), b""),
    (entry(shape=[-1]), b"\0" * 4),
    (entry(offsets=[4, 0]), b"\0" * 4),
    (entry(offsets=[4, 8]), b"\0" * 8),
    (entry(offsets=[0, 4]), b"\0" * 8),
    (entry(dtype="F6_E2M3", shape=[4], offsets=[0, 3]), b"\0" * 3),
    (entry(dtype="\x1b[31m"), b"\0" * 4),
    (b'{"__metadata__":{"torchlasso":[1]}}', b""),
]


@pytest.mark.parametrize(("header", "data"), LIES)
@pytest.mark.parametrize("read", [read_tensors, read_checkpoint])
def test_a_lying_header_is_refused(
    tmp_path: Path, read: Callable[[Path], object], header: bytes, data: bytes
) -> None:
    path = raw_safetensors(tmp_path / "m.safetensors", header, data)
    with pytest.raises(ModelFileError) as error:
        read(path)
    one_line(error, path)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**32, 100])
def test_a_lying_header_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(ModelFileError, match="too few"):
        read_tensors(path)


@pytest.mark.parametrize("read", [read_tensors, read_checkpoint])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_no_file_at_all(tmp_path: Path, read: Callable[[Path], object], suffix: str) -> None:
    (tmp_path / f"folder.{suffix}").mkdir()
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    for name in ("missing", "folder", "pipe", "n\0l", "missing/below", "x" * 300, "new\nline"):
        path = tmp_path / f"{name}.{suffix}"
        with pytest.raises(ModelFileError) as error:
            read(path)
        one_line(error, path)


def test_other_peoples_safetensors_is_a_checkpoint_but_no_model(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata={"format": "pt"})
    assert same(read_checkpoint(path), {"w": torch.ones(2)})
    with pytest.raises(ModelFileError, match="not one that torchlasso wrote"):
        read_tensors(path)
