"""A packed state unpacks to the same bits and takes no more bytes than it has to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchlasso.sparse_states import Sparse, pack


@given(
    st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.5, -2.0, float("nan"), float("inf")]), max_size=30),
    st.sampled_from([torch.float16, torch.float32, torch.float64, torch.complex64, torch.int64]),
)
def test_a_tensor_comes_back_as_it_was(values: list[float], dtype: torch.dtype) -> None:
    finite = [v if abs(v) < 10 else 3.0 for v in values] if dtype == torch.int64 else values
    tensor = torch.tensor(finite, dtype=torch.float64).to(dtype)
    tensor = tensor.reshape(2, -1) if len(values) % 2 == 0 else tensor
    packed = pack({"w": tensor}, {"w"})
    back = packed.unpack()["w"]
    assert back.shape == tensor.shape
    assert back.dtype == dtype
    assert torch.equal(back.isnan(), tensor.isnan())
    assert torch.equal(back[~back.isnan()], tensor[~tensor.isnan()])
    assert packed.nbytes <= tensor.numel() * tensor.element_size()


def test_only_what_may_be_sparse_and_is_smaller_so_is_packed() -> None:
    sparse, full = torch.eye(20), torch.ones(20, 20)
    packed = pack({"a": sparse, "b": sparse, "c": full}, {"a", "c"})
    assert isinstance(packed.entries["a"], Sparse)
    assert isinstance(packed.entries["b"], Tensor)
    assert isinstance(packed.entries["c"], Tensor)
    assert packed.nbytes == 20 * 8 + 2 * 400 * 4


def test_nothing_is_shared_with_the_model_or_with_who_unpacks() -> None:
    w, extra = torch.ones(3), {"steps": [1]}
    packed = pack({"w": w, "extra": extra}, ())
    w.zero_()
    extra["steps"].append(2)
    first = packed.unpack()
    assert first["w"].tolist() == [1.0, 1.0, 1.0]
    first["w"].zero_()
    first["extra"]["steps"].clear()
    assert packed.unpack()["w"].tolist() == [1.0, 1.0, 1.0]
    assert packed.unpack()["extra"] == {"steps": [1]}


def test_gradients_are_not_kept() -> None:
    parameter = torch.nn.Parameter(torch.eye(9))
    assert not pack({"w": parameter}, {"w"}).unpack()["w"].requires_grad


def test_a_state_of_all_zeros_takes_nothing() -> None:
    packed = pack({"w": torch.zeros(50, 2)}, {"w"})
    assert packed.nbytes == 0
    assert packed.unpack()["w"].shape == (50, 2)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3)])
def test_scalars_and_empty_tensors_come_back(shape: tuple[int, ...]) -> None:
    assert pack({"w": torch.zeros(shape)}, {"w"}).unpack()["w"].shape == shape
