"""A path that was killed goes on from its file to the same bits, and from no other path's file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchlasso as tl
from torchlasso.errors import InputError, ModelFileError, OutputError
from torchlasso.files import read_tensors, write_tensors
from torchlasso.lasso_path import LassoPath, lasso_path
from torchlasso.lasso_points import LassoPoint
from torchlasso.nested import decode, encode

cross_entropy = nn.functional.cross_entropy


class _Killed(Exception):
    """As if the process had ended."""


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def _rows(seed: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, 0] + 0.3 * torch.randn(count, generator=generator) > 0).long()


def _batches(kind: str) -> Any:
    x, y = _rows(0, 70)
    if kind == "list":
        return list(zip(x.split(20), y.split(20), strict=True))
    generator = torch.Generator().manual_seed(5) if kind == "own generator" else None
    return DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True, generator=generator)


def _path(kind: str = "shuffled", seed: int = 0, **given: Any) -> LassoPath:
    torch.manual_seed(seed)
    model = _net()
    penalties = {"0.weight": tl.GroupLasso(1.0, groups="columns"), "4.weight": tl.L1(0.5)}
    arguments = {"strengths": 8, "steps": 90} | given
    rules = arguments.pop("rules", penalties)
    return lasso_path(
        model, tl.Regularizer(model, rules), cross_entropy, _batches(kind), [_rows(1, 40)], **arguments
    )


def _kill_after(count: int) -> Any:
    seen: list[LassoPoint] = []

    def callback(point: LassoPoint) -> None:
        seen.append(point)
        if len(seen) == count:
            raise _Killed

    return callback


def _assert_same(ours: LassoPath, other: LassoPath) -> None:
    assert len(ours.points) == len(other.points)
    for a, b in zip(ours.points, other.points, strict=True):
        assert (a.strength, a.steps, a.nonzero, a.groups) == (b.strength, b.steps, b.nonzero, b.groups)
        assert (a.train_loss, a.residual) == (b.train_loss, b.residual)
        assert torch.equal(a.valid_losses, b.valid_losses)
        assert all(torch.equal(value, b.state[name]) for name, value in a.state.items())


@pytest.mark.parametrize("kind", ["list", "shuffled", "own generator"])
@pytest.mark.parametrize("after", [1, 4])
def test_a_killed_path_goes_on_to_the_same_bits(kind: str, after: int, tmp_path: Path) -> None:
    file = tmp_path / "path.safetensors"
    with pytest.raises(_Killed):
        _path(kind, checkpoint=file, callback=_kill_after(after))
    seen: list[LassoPoint] = []
    resumed = _path(kind, seed=99, checkpoint=file, callback=seen.append)  # other weights and random state
    assert len(seen) == len(resumed.points) - after
    _assert_same(resumed, _path(kind))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
        lambda groups: torch.optim.Adagrad(groups, lr=0.05),
        lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True),
    ],
)
def test_any_optimizer_goes_on_to_the_same_bits(optimizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "path.safetensors"
    with pytest.raises(_Killed):
        _path(optimizer=optimizer, checkpoint=file, callback=_kill_after(3))
    _assert_same(_path(optimizer=optimizer, checkpoint=file), _path(optimizer=optimizer))


def test_a_finished_path_is_read_and_not_trained(tmp_path: Path) -> None:
    file = tmp_path / "path.safetensors"
    first = _path(checkpoint=file)
    written = file.read_bytes()

    def never(groups: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(groups, lr=3e-3, fused=True)
        optimizer.register_step_pre_hook(lambda *_: pytest.fail("a step was taken"))
        return optimizer

    again = _path(checkpoint=file, optimizer=never)
    _assert_same(again, first)
    assert file.read_bytes() == written


def test_a_path_that_the_callback_stopped_may_go_on(tmp_path: Path) -> None:
    file = tmp_path / "path.safetensors"
    assert len(_path(checkpoint=file, callback=lambda point: True).points) == 1
    _assert_same(_path(checkpoint=file), _path())


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"steps": 91, "dense_steps": 90}, "steps"),
        ({"dense_steps": 3}, "dense_steps"),
        ({"strengths": 9}, "strengths"),
        ({"strengths": [0.1]}, "strengths"),
        ({"rules": tl.L1(1.0)}, "regularizer"),
        ({"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1)}, "optimizer"),
        ({"kind": "list"}, None),
    ],
)
def test_other_arguments_are_refused(given: dict[str, Any], what: str | None, tmp_path: Path) -> None:
    file = tmp_path / "path.safetensors"
    with pytest.raises(_Killed):
        _path(checkpoint=file, callback=_kill_after(1))
    if what is None:
        return  # as many batches of other rows cannot be told apart
    with pytest.raises(InputError, match=f"another {what}:"):
        _path(checkpoint=file, **given)


def test_a_foreign_or_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "path.safetensors"
    write_tensors(file, {"w": torch.ones(1)}, {})
    with pytest.raises(ModelFileError, match="not the checkpoint of a path"):
        _path(checkpoint=file)
    file.unlink()
    _path(checkpoint=file, strengths=[0.1])
    tensors, config = read_tensors(file)
    write_tensors(file, tensors, config | {"content": {"dict": 3}})
    with pytest.raises(ModelFileError, match="damaged"):
        _path(checkpoint=file, strengths=[0.1])
    file.write_bytes(b"no such thing")
    with pytest.raises(ModelFileError):
        _path(checkpoint=file, strengths=[0.1])


def test_a_file_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        _path(checkpoint=tmp_path / "missing" / "path.safetensors")


def test_nested_containers_come_back_as_they_were() -> None:
    value = {
        0: (torch.arange(3), [1, 2.5, None, True, "text"]),
        "nan": {None: float("inf"), "deep": [{}, (), []]},
    }
    tensors, structure = encode(value)
    back = decode(tensors, structure)
    assert torch.equal(back[0][0], torch.arange(3))
    assert back[0][1] == [1, 2.5, None, True, "text"]
    assert isinstance(back[0], tuple)
    assert back["nan"] == {None: float("inf"), "deep": [{}, (), []]}


def test_what_is_no_container_is_refused() -> None:
    with pytest.raises(InputError, match="got object"):
        encode({"a": [object()]})


@pytest.mark.parametrize("bad", [{"tensor": "7"}, {"what": []}, {}, {"dict": [[1]]}, {"float": "x"}])
def test_a_damaged_structure_is_refused(bad: Any) -> None:
    with pytest.raises(ModelFileError, match="damaged"):
        decode({}, bad)
