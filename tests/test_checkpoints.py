"""Other people's checkpoints: every tensor is found, and nothing in the file is ever run."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_files import one_line, same
from torchlasso.checkpoints import read_checkpoint
from torchlasso.errors import ModelFileError
from torchlasso.files import read_tensors


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.marker), "w")


def saved(path: Path, content: object, *, new: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=new)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PT"])
@pytest.mark.parametrize("new", [True, False])
def test_checkpoints_flatten_to_dotted_names(tmp_path: Path, suffix: str, new: bool) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": module.state_dict(),
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "optimizer_states": [{"momentum": torch.ones(1)}],
        "training": {"inner": optimizer.state_dict(), "best": [torch.ones(1), (torch.zeros(2), "text")]},
        "optim.weight": torch.ones(1),
    }
    path = saved(tmp_path / f"c{suffix}", content, new=new)
    found = read_checkpoint(path)
    expected = {f"state_dict.{name}": tensor for name, tensor in module.state_dict().items()}
    expected |= {
        "training.best.0": torch.ones(1),
        "training.best.1.0": torch.zeros(2),
        "optim.weight": torch.ones(1),
    }
    assert list(found) == list(expected)
    assert same(found, expected)


def test_a_parameter_and_a_lone_tensor_are_read_as_plain_tensors(tmp_path: Path) -> None:
    assert same(read_checkpoint(saved(tmp_path / "a.pt", torch.ones(2))), {"tensor": torch.ones(2)})
    found = read_checkpoint(saved(tmp_path / "b.pt", {"w": nn.Parameter(torch.ones(2)), 0: torch.ones(1)}))
    assert list(found) == ["w", "0"]
    assert type(found["w"]) is Tensor
    assert not found["w"].requires_grad


@pytest.mark.parametrize("new", [True, False])
def test_a_hostile_pickle_is_refused_and_never_run(tmp_path: Path, new: bool) -> None:
    marker = tmp_path / "marker"
    path = saved(tmp_path / "evil.pt", {"w": torch.ones(2), "x": Hostile(marker)}, new=new)
    with pytest.raises(ModelFileError, match="needs code execution") as error:
        read_checkpoint(path)
    message = one_line(error, path)
    assert "torch.save(model.state_dict(), path)" in message
    assert "weights_only" not in message
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_a_bare_hostile_pickle_is_refused_and_never_run(tmp_path: Path, protocol: int, suffix: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / f"evil{suffix}"
    path.write_bytes(pickle.dumps(Hostile(marker), protocol))
    for read in (read_checkpoint, read_tensors):
        with pytest.raises(ModelFileError) as error:
            read(path)
        assert "weights_only" not in one_line(error, path)
    assert not marker.exists()


def test_a_hostile_pickle_is_refused_even_where_the_environment_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = saved(tmp_path / "evil.pt", Hostile(tmp_path / "marker"))
    with pytest.raises(ModelFileError, match="code execution"):
        read_checkpoint(path)
    assert not (tmp_path / "marker").exists()


def test_a_whole_module_needs_code(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="needs code execution"):
        read_checkpoint(saved(tmp_path / "m.pt", nn.Linear(2, 1)))


def cyclic() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["again"] = content
    return content


def laughs() -> list[Any]:
    """Few bytes that unfold to 10¹² entries."""
    content: list[Any] = []
    for _ in range(12):
        content = [content] * 10
    return content


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({}, "no tensors"),
        ({"epoch": 3, "name": "x"}, "no tensors"),
        (torch.optim.SGD([torch.ones(1, requires_grad=True)]).state_dict(), "no tensors"),
        ({"optimizer": {"momentum": torch.ones(1)}}, "no tensors"),
        (cyclic(), "nested more than"),
        (laughs(), "more than"),
        ({"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}, "two of its tensors"),
        ({"w": torch.ones(1).expand(10**9)}, "claims more"),
        ({"w": torch.eye(2).to_sparse()}, "sparse"),
        ({"w": torch.ones(2, device="meta")}, "without data"),
    ],
)
def test_useless_checkpoints_are_refused(tmp_path: Path, content: object, match: str) -> None:
    path = saved(tmp_path / "c.pt", content)
    with pytest.raises(ModelFileError, match=match) as error:
        read_checkpoint(path)
    one_line(error, path)


def rewritten(source: Path, before: bytes, after: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    target = source.with_name(f"lie{source.suffix}")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content.replace(before, after) if name.endswith("data.pkl") else content)
    return target


def test_lies_about_sizes_in_a_zipped_checkpoint_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "c.pt", {"w": torch.zeros(2, 3)})
    assert same(read_checkpoint(rewritten(source, b"", b"")), read_checkpoint(source))
    for before, after in [
        (b"K\x06t", b"J\x00\x00\x00\x20t"),  # the storage has 2²⁹ values
        (b"K\x02K\x03\x86", b"J\x00\x00\x10\x00K\x03\x86"),  # the tensor has 2²⁰ rows
    ]:
        with pytest.raises(ModelFileError):
            read_checkpoint(rewritten(source, before, after))


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "c.pt", {"w": torch.zeros(100_000)})
    with pytest.raises(ModelFileError, match="unpack to more bytes"):
        read_checkpoint(rewritten(source, b"", b"", zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("new", [True, False])
def test_damaged_checkpoints_are_refused_or_read(tmp_path: Path, new: bool) -> None:
    path = saved(tmp_path / "c.pt", {"w": torch.arange(6.0), "n": {"b": torch.ones(2)}}, new=new)
    whole = path.read_bytes()
    for kept in range(0, len(whole), 31):
        path.write_bytes(whole[:kept])
        with pytest.raises(ModelFileError) as error:
            read_checkpoint(path)
        one_line(error, path)
    for position in range(0, len(whole), 17):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        try:
            assert all(isinstance(tensor, Tensor) for tensor in read_checkpoint(path).values())
        except ModelFileError as error_:
            assert str(error_).isprintable()  # noqa: PT017 - both outcomes are allowed


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02", b"\0" * 1000])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as error:
        read_checkpoint(path)
    one_line(error, path)


def test_an_unknown_ending_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"\.safetensors, \.pt, \.pth, \.bin, \.ckpt, got '\.npz'"):
        read_checkpoint(tmp_path / "c.npz")
