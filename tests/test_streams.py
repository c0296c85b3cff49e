"""A stream goes through all batches for ever, and is found again where it was."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from torchlasso.errors import InputError
from torchlasso.streams import Stream, check_batches, count_batches

ROWS = TensorDataset(torch.arange(23.0))


class _Noisy:
    """Batches that draw from torch's generator as they come, as augmented images do."""

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.rand(2) for _ in range(4))


BATCHES: dict[str, Any] = {
    "list": list(range(5)),
    "in order": lambda: DataLoader(ROWS, batch_size=5),
    "shuffled": lambda: DataLoader(ROWS, batch_size=5, shuffle=True),
    "own generator": lambda: DataLoader(
        ROWS, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "noisy": _Noisy,
}


def _made(name: str) -> Any:
    return BATCHES[name]() if callable(BATCHES[name]) else BATCHES[name]


def _read(stream: Stream, count: int) -> list[Any]:
    """Read on, with random numbers drawn between batches as dropout does."""
    read = []
    for batch in islice(stream, count):
        read.append((str(batch), float(torch.rand(()))))
    return read


def test_a_stream_is_the_batches_again_and_again() -> None:
    assert list(islice(Stream([1, 2, 3]), 8)) == [1, 2, 3, 1, 2, 3, 1, 2]  # type: ignore[list-item]


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("taken", [0, 1, 4, 5, 7])
def test_a_stream_goes_on_where_it_was_saved(name: str, taken: int) -> None:
    torch.manual_seed(1)
    stream = Stream(_made(name))
    _read(stream, taken)
    saved = stream.saved()
    expected = _read(stream, 12)
    torch.manual_seed(77)
    resumed = Stream(_made(name))
    resumed.restore(saved)
    assert _read(resumed, 12) == expected


def test_a_shuffled_loader_is_in_a_new_order_each_pass() -> None:
    stream = Stream(_made("shuffled"))
    first, second = (list(islice(stream, 5)) for _ in range(2))
    assert str(first) != str(second)


def test_no_batches_at_all_are_refused() -> None:
    with pytest.raises(InputError, match="drop_last"):
        next(Stream(DataLoader(ROWS, batch_size=50, drop_last=True)))


def test_batches_are_counted_with_and_without_a_length() -> None:
    assert count_batches(_made("in order")) == 5
    assert count_batches(_Noisy()) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batches", "says"),
    [(iter([1]), "is a generator"), (7, "got int"), ([], "is empty"), (None, "got NoneType")],
)
def test_what_cannot_be_read_again_is_refused(batches: Any, says: str) -> None:
    with pytest.raises(InputError, match=f"rows.*{says}"):
        check_batches("rows", batches)


def test_lists_loaders_and_own_iterables_pass() -> None:
    for name in BATCHES:
        check_batches("rows", _made(name))
