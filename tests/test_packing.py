"""A tensor without its zeros: what comes back is what went in, and a lying file gets nothing allocated."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchlasso.errors import ModelFileError
from torchlasso.packing import pack, part_names, unpack

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
]


def bits(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().resolve_conj().resolve_neg().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors agree bit by bit, NaN payloads and signs of zero included."""
    return (left.dtype, left.shape, bits(left)) == (right.dtype, right.shape, bits(right))


def size(parts: dict[str, Tensor]) -> int:
    return sum(part.numel() * part.itemsize for part in parts.values())


def noise(dtype: torch.dtype, count: int, seed: int) -> Tensor:
    """Return entries of any bits (0 and 1 only for bool)."""
    if dtype == torch.bool:
        return torch.ones(count, dtype=dtype)
    raw = np.random.default_rng(seed).integers(0, 256, count * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype) if count else torch.empty(0, dtype=dtype)


def sparse(dtype: torch.dtype, shape: tuple[int, ...], density: float, seed: int) -> Tensor:
    """Return a tensor of random bits with about this share of entries that are not all zero bits."""
    count = math.prod(shape)
    kept = torch.from_numpy(np.random.default_rng(seed + 1).random(count) < density)
    wide = noise(dtype, count, seed).view(torch.uint8).reshape(count, dtype.itemsize)
    return torch.where(kept[:, None], wide, 0).to(torch.uint8).reshape(-1).view(dtype).reshape(shape)


@pytest.mark.parametrize("density", [0.0, 0.0005, 0.01, 0.05, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bit_by_bit(dtype: torch.dtype, density: float) -> None:
    w = sparse(dtype, (37, 41), density, 7)
    parts, entry = pack("w", w)
    assert same(unpack("w", entry, parts), w)
    assert size(parts) <= w.numel() * w.itemsize


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 40), max_size=3).map(tuple),
    density=st.sampled_from([0.0, 0.003, 0.03, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_round_trip(dtype: torch.dtype, shape: tuple[int, ...], density: float, seed: int) -> None:
    w = sparse(dtype, shape, density, seed)
    parts, entry = pack("w", w)
    assert sorted(parts) == sorted(part_names("w", entry))
    assert same(unpack("w", entry, parts), w)


@given(gaps=st.lists(st.sampled_from([0, 1, 100, 254, 255, 256, 509, 510, 511, 2000]), max_size=5))
def test_runs_of_zeros_around_the_longest_gap(gaps: list[int]) -> None:
    w = torch.tensor([float(v) for gap in gaps for v in [*[0] * gap, 1]] + [0.0] * 5000)
    for after in range(4480, 5001):
        if after % 255 in (0, 1, 254):
            v = w[: len(w) - 5000 + after]
            parts, entry = pack("w", v)
            assert entry["layout"] == "gaps"
            assert same(unpack("w", entry, parts), v)


def test_the_layout_of_the_fewest_bytes_is_taken() -> None:
    for density in (0.0, 0.01, 0.05, 0.1, 0.12, 0.13, 0.2, 0.5, 0.9, 0.97, 1.0):
        for dtype in (torch.float32, torch.float16, torch.int8):
            w = (torch.rand(9_000, generator=torch.Generator().manual_seed(3)) < density).to(dtype)
            count = int(w.count_nonzero())
            places = torch.cat([torch.tensor([-1]), w.nonzero().reshape(-1), torch.tensor([9_000])])
            runs = places.diff() - 1
            sizes = {
                "dense": 9_000 * w.itemsize - 128,
                "mask": 1125 + count * w.itemsize,
                "gaps": int((runs // 255).sum()) + count * (1 + w.itemsize),
            }
            parts, entry = pack("w", w)
            assert sizes[entry["layout"]] == min(sizes.values()), (density, dtype)
            if entry["layout"] != "dense":
                assert size(parts) == sizes[entry["layout"]]


def test_small_tensors_stay_readable() -> None:
    for w in (torch.tensor(0.0), torch.zeros(0), torch.zeros(0, 5), torch.zeros(30), torch.tensor(-0.0)):
        parts, entry = pack("w", w)
        assert entry["layout"] == "dense"
        assert same(unpack("w", entry, parts), w)


def test_odd_values_are_kept_and_signed_zeros_are_values() -> None:
    w = torch.zeros(2_000)
    w[[3, 700, 701, 900, 1999]] = torch.tensor([-0.0, math.inf, -math.inf, 1e-45, math.nan])
    w.view(torch.int32)[5] = 0x7FC12345  # a NaN with a payload
    w.view(torch.int32)[6] = 0x7F812345  # and a signalling one
    parts, entry = pack("w", w)
    assert parts["w.values"].numel() == 7
    assert same(unpack("w", entry, parts), w)


def test_views_conjugates_and_graphs() -> None:
    base = sparse(torch.complex64, (60, 40), 0.05, 1)
    base[base.isnan()] = 1
    for w in (base.T, base[::2, 3:], base.conj(), base.imag, base.conj().imag, base.expand(2, 60, 40)):
        parts, entry = pack("w", w)
        assert same(unpack("w", entry, parts), w.resolve_conj().resolve_neg().contiguous())
    w = torch.zeros(500, requires_grad=True)
    parts, _ = pack("w", w)
    assert not any(part.requires_grad for part in parts.values())


def test_the_input_is_not_changed_and_not_shared() -> None:
    w = sparse(torch.float32, (50, 50), 0.1, 2)
    before = bits(w)
    parts, entry = pack("w", w)
    unpack("w", entry, parts).zero_()
    assert bits(w) == before


def test_sparse_tensors_and_meta_tensors_are_refused() -> None:
    for w in (torch.eye(3).to_sparse(), torch.empty(3, device="meta")):
        with pytest.raises(ModelFileError, match="expected a dense tensor"):
            pack("w", w)


# ---- lies -------------------------------------------------------------------------------------

U8 = torch.uint8
VALUES = torch.ones(2)
GAPS = torch.tensor([0, 255, 9], dtype=U8)  # a value, 255 + 9 zeros, a value
MASK = torch.tensor([0b101, 0], dtype=U8)


def lie(layout: object, shape: object, dtype: object = "float32", **parts: Tensor) -> None:
    named = {f"w.{suffix}" if suffix != "w" else "w": part for suffix, part in parts.items()}
    entry: dict[str, Any] = {"dtype": dtype, "shape": shape, "layout": layout}
    part_names("w", entry)
    unpack("w", entry, named)


def test_the_truth_is_taken() -> None:
    lie("gaps", [266], gaps=GAPS, values=VALUES)
    lie("gaps", [266 + 254], gaps=GAPS, values=VALUES)
    lie("mask", [3, 5], mask=MASK, values=VALUES)
    lie("mask", [9], mask=MASK, values=VALUES)
    lie("dense", [2], w=VALUES)


@pytest.mark.parametrize(
    ("layout", "shape", "parts", "match"),
    [
        (
            "gaps",
            [2**40],
            {"gaps": GAPS, "values": VALUES},
            "make 266 entries, its shape makes 109951",
        ),
        ("gaps", [2**62, 2**62], {"gaps": GAPS, "values": VALUES}, "make 266 entries"),
        ("gaps", [265], {"gaps": GAPS, "values": VALUES}, "make 266 entries"),
        ("gaps", [266 + 255], {"gaps": GAPS, "values": VALUES}, "make 266 entries"),
        ("gaps", [0], {"gaps": GAPS, "values": VALUES}, "make 266 entries"),
        ("gaps", [266], {"gaps": GAPS, "values": torch.ones(3)}, "places for 2 values, it holds 3"),
        ("gaps", [266], {"gaps": GAPS, "values": torch.ones(0)}, "places for 2 values, it holds 0"),
        ("gaps", [266], {"gaps": GAPS.float(), "values": VALUES}, "no plain vectors"),
        ("gaps", [266], {"gaps": GAPS[None], "values": VALUES}, "no plain vectors"),
        ("gaps", [266], {"gaps": GAPS, "values": VALUES[None]}, "no plain vectors"),
        ("gaps", [266], {"gaps": GAPS}, "'w.values' is missing"),
        ("gaps", [266], {"values": VALUES}, "'w.gaps' is missing"),
        ("gaps", [266], {"gaps": GAPS, "values": VALUES.double()}, "are torch.float64, expected"),
        ("mask", [2**40], {"mask": MASK, "values": VALUES}, "has 2 bytes"),
        ("mask", [17], {"mask": MASK, "values": VALUES}, "has 2 bytes"),
        ("mask", [8], {"mask": MASK, "values": VALUES}, "has 2 bytes"),
        ("mask", [9], {"mask": torch.tensor([1, 2], dtype=U8), "values": VALUES}, "behind the last"),
        ("mask", [9], {"mask": MASK, "values": torch.ones(9)}, "places for 2 values, it holds 9"),
        ("dense", [2**40], {"w": VALUES}, "has the shape"),
        ("dense", [1, 2], {"w": VALUES}, "has the shape"),
        ("dense", [2], {}, "'w' is missing"),
        ("dense", [2], {"w": VALUES.int()}, "expected torch.float32"),
        ("dense", [-2], {"w": VALUES}, "list of sizes"),
        ("dense", [True], {"w": VALUES}, "list of sizes"),
        ("dense", [2.0], {"w": VALUES}, "list of sizes"),
        ("dense", [2**63], {"w": VALUES}, "list of sizes"),
        ("dense", "2", {"w": VALUES}, "list of sizes"),
        ("dense", None, {"w": VALUES}, "list of sizes"),
        ("dense", [1] * 65, {"w": VALUES}, "list of sizes"),
        ("csr", [2], {"w": VALUES}, "layouts dense, mask, gaps for 'w', got 'csr'"),
        ([], [2], {"w": VALUES}, "layouts"),
        (None, [2], {"w": VALUES}, "layouts"),
    ],
)
def test_lies_are_refused(layout: object, shape: object, parts: dict[str, Tensor], match: str) -> None:
    with pytest.raises(ModelFileError, match=match):
        lie(layout, shape, **parts)


@pytest.mark.parametrize("dtype", ["float31", "nn", "_dynamo", "float32\n", None, 3, [], {}])
def test_unknown_dtypes_are_refused(dtype: object) -> None:
    with pytest.raises(ModelFileError, match="dtype"):
        lie("dense", [2], dtype, w=VALUES)


@pytest.mark.parametrize("entry", [None, 3, "dense", [], {}])
def test_an_entry_must_be_one(entry: object) -> None:
    with pytest.raises(ModelFileError, match="layouts"):
        part_names("w", entry)


@pytest.mark.slow
def test_twenty_five_million_entries_take_seconds() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(25_000_000, generator=generator)
    w[torch.rand(w.shape, generator=generator) > 0.05] = 0
    parts, entry = pack("w", w)
    assert torch.equal(unpack("w", entry, parts), w)
    assert size(parts) < w.numel() * 4 / 15
