"""The sparse layer is the dense one with the zeros left out: outputs, gradients, files, copies, types."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.sparse_layers import SparseLinear


def sparse_linear(
    inputs: int, outputs: int, zeros: float = 0.8, *, bias: bool = True, dtype: torch.dtype = torch.float64
) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias, dtype=dtype)
    with torch.no_grad():
        linear.weight[torch.rand(outputs, inputs) < zeros] = 0.0
    return linear


SHAPES = [(), (1,), (2,), (7,), (3, 4), (1, 1), (2, 1, 3), (0,), (3, 0), (0, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("zeros", [0.0, 0.8, 1.0])
def test_outputs_are_those_of_the_dense_layer(shape: tuple[int, ...], bias: bool, zeros: float) -> None:
    linear = sparse_linear(11, 5, zeros, bias=bias)
    layer = SparseLinear.from_linear(linear)
    x = torch.randn(*shape, 11, dtype=torch.float64)
    before = x.clone()
    found, expected = layer(x), linear(x)
    assert found.shape == expected.shape
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


@given(
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    rows=st.integers(0, 5),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_any_size_and_pattern(inputs: int, outputs: int, rows: int, zeros: float, seed: int) -> None:
    torch.manual_seed(seed)
    linear = sparse_linear(inputs, outputs, zeros)
    layer = SparseLinear.from_linear(linear)
    x = torch.randn(rows, inputs, dtype=torch.float64)
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.to_dense().weight, linear.weight)
    assert layer.values.numel() == int((linear.weight != 0).sum())


def test_strided_inputs_and_no_rows_at_all() -> None:
    linear = sparse_linear(6, 4)
    layer = SparseLinear.from_linear(linear)
    for x in (torch.randn(6, 5).double().T, torch.randn(5, 12).double()[:, ::2], torch.randn(6).double()):
        torch.testing.assert_close(layer(x), linear(x), rtol=1e-12, atol=1e-12)


def test_the_tensors_are_ordinary_and_their_indices_short() -> None:
    layer = SparseLinear.from_linear(sparse_linear(50, 30, 0.9))
    state = layer.state_dict()
    assert set(state) == {"crow_indices", "col_indices", "values", "bias"}
    assert all(tensor.layout == torch.strided for tensor in state.values())
    assert state["crow_indices"].dtype == state["col_indices"].dtype == torch.int32
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert repr(layer).startswith("SparseLinear(in_features=50, out_features=30, bias=True, nonzero=")


def test_the_dense_layer_is_left_alone_and_shares_nothing() -> None:
    linear = sparse_linear(6, 4)
    before = copy.deepcopy(linear.state_dict())
    layer = SparseLinear.from_linear(linear)
    layer.values.data.zero_()
    assert layer.bias is not None
    layer.bias.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in linear.state_dict().items())
    assert linear.weight.requires_grad


def test_a_dense_layer_comes_back_bit_by_bit_and_can_be_trained() -> None:
    linear = sparse_linear(6, 4).eval()
    back = SparseLinear.from_linear(linear).to_dense()
    assert torch.equal(back.weight, linear.weight)
    assert torch.equal(back.bias, linear.bias)
    assert back.weight.requires_grad
    assert not back.training


def test_a_change_of_the_values_is_seen() -> None:
    linear = sparse_linear(6, 4, bias=False)
    layer = SparseLinear.from_linear(linear)
    x = torch.randn(3, 6, dtype=torch.float64)
    first = layer(x)
    layer.values.data.mul_(2)
    torch.testing.assert_close(layer(x), 2 * first)
    layer.values = nn.Parameter(layer.values * 2, requires_grad=False)
    torch.testing.assert_close(layer(x), 4 * first)
    layer.values.data = layer.values.data / 4
    torch.testing.assert_close(layer(x), first)
    replaced = {"values": 3 * layer.values}
    torch.testing.assert_close(torch.func.functional_call(layer, replaced, x), 3 * first)
    torch.testing.assert_close(layer(x), first)


COPIES: dict[str, Callable[[SparseLinear], SparseLinear]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_stand_alone(make: Callable[[SparseLinear], SparseLinear]) -> None:
    layer = SparseLinear.from_linear(sparse_linear(6, 4))
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = layer(x)
    twin = make(layer)
    assert torch.equal(twin(x), expected)
    twin.values.data.zero_()
    assert torch.equal(layer(x), expected)
    assert not torch.equal(twin(x), expected)


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_of_another_number_of_weights_is_loaded(assign: bool) -> None:
    source = SparseLinear.from_linear(sparse_linear(6, 4, 0.5))
    model = nn.Sequential(SparseLinear(6, 4, dtype=torch.float64))
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(model(x), torch.zeros(3, 4, dtype=torch.float64))
    state = {f"0.{name}": tensor for name, tensor in source.state_dict().items()}
    assert str(model.load_state_dict(state, assign=assign)) == "<All keys matched successfully>"
    assert torch.equal(model(x), source(x))


def test_a_layer_without_data_is_filled() -> None:
    source = SparseLinear.from_linear(sparse_linear(6, 4, 0.5))
    with torch.device("meta"):
        layer = SparseLinear(6, 4, dtype=torch.float64)
    layer.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(layer(x), source(x))


@pytest.mark.parametrize("nonzero", [0, 1, 7, 24])
def test_a_new_layer_is_zero_and_can_be_filled(nonzero: int) -> None:
    layer = SparseLinear(6, 4, nonzero=nonzero)
    assert layer.nonzero == nonzero
    x = torch.ones(2, 6)
    assert torch.equal(layer(x), torch.zeros(2, 4))
    layer.values.data.fill_(1.0)
    expected = torch.arange(24).lt(nonzero).reshape(4, 6).sum(dim=1).float()
    assert torch.equal(layer(x), expected.expand(2, 4))


@pytest.mark.parametrize("nonzero", [-1, 25])
def test_more_weights_than_there_are_is_refused(nonzero: int) -> None:
    with pytest.raises(InputError, match="from 0 to 24"):
        SparseLinear(6, 4, nonzero=nonzero)


def test_a_layer_without_inputs_gives_its_bias() -> None:
    layer = SparseLinear(0, 2)
    assert torch.equal(layer(torch.zeros(3, 0)), torch.zeros(3, 2))
    assert torch.equal(layer(torch.zeros(1, 0)), torch.zeros(1, 2))


def test_a_file_gives_the_layer_back(tmp_path: Path) -> None:
    layer = SparseLinear.from_linear(sparse_linear(6, 4))
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    back = SparseLinear(6, 4, dtype=torch.float64)
    back.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(back(x), layer(x))


BAD = {
    "columns outside": {"col_indices": torch.tensor([0, 9], dtype=torch.int32)},
    "columns below zero": {"col_indices": torch.tensor([-1, 2], dtype=torch.int32)},
    "too many rows": {"crow_indices": torch.tensor([0, 1, 2, 2], dtype=torch.int32)},
    "rows that promise more": {"crow_indices": torch.tensor([0, 1, 3], dtype=torch.int32)},
    "fewer values": {"values": torch.zeros(1)},
    "a column twice": {
        "crow_indices": torch.tensor([0, 2, 2], dtype=torch.int32),
        "col_indices": torch.tensor([1, 1], dtype=torch.int32),
    },
    "fractions": {"col_indices": torch.tensor([0.0, 2.0])},
}


@pytest.mark.parametrize("wrong", BAD.values(), ids=BAD)
def test_a_state_that_is_no_matrix_is_refused_and_nothing_changes(wrong: dict[str, Tensor]) -> None:
    linear = nn.Linear(3, 2)
    linear.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    layer = SparseLinear.from_linear(linear)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"the layer: the stored indices are no sparse matrix of 2 rows"):
        layer.load_state_dict({**before, **wrong})
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_a_state_without_the_weights_is_reported_by_torch() -> None:
    layer = SparseLinear(3, 2)
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(nn.Linear(3, 2).state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5])
def test_half_precision_is_the_float32_result_rounded_once(dtype: torch.dtype, rows: int) -> None:
    linear = sparse_linear(40, 9, dtype=dtype)
    layer = SparseLinear.from_linear(linear)
    x = torch.randn(rows, 40, dtype=dtype)
    found = layer(x)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found, copy.deepcopy(linear).double()(x.double()).to(dtype), rtol=1e-2, atol=1e-3
    )
    layer.values.data.zero_()  # no stale copy
    assert layer.bias is not None
    assert torch.equal(layer(x), layer.bias.expand(rows, -1))


def test_casts() -> None:
    linear = sparse_linear(6, 4, dtype=torch.float32)
    layer = SparseLinear.from_linear(linear)
    x = torch.randn(3, 6)
    layer(x)  # a matrix is built before the cast
    torch.testing.assert_close(layer.double()(x.double()), linear.double()(x.double()), rtol=1e-12, atol=0)
    assert layer.crow_indices.dtype == torch.int32
    assert layer.half()(x.half()).dtype == torch.float16
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert layer.float()(x).dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 3])
def test_autocast_gives_the_type_that_the_dense_layer_gives(rows: int) -> None:
    for dtype in (torch.float32, torch.float64):
        linear = sparse_linear(6, 4, dtype=dtype)
        layer = SparseLinear.from_linear(linear)
        x = torch.randn(rows, 6, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = layer(x), linear(x)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_reach_the_input_and_a_bias_that_wants_one(rows: int) -> None:
    linear = sparse_linear(6, 4)
    layer = SparseLinear.from_linear(linear)
    assert layer.bias is not None
    layer.bias.requires_grad_()
    x = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        layer(x)  # the matrix built here must do for autograd too
    assert torch.autograd.gradcheck(layer, x)
    layer(x).square().sum().backward()
    found = x.grad
    x.grad = None
    linear(x).square().sum().backward()
    torch.testing.assert_close(found, x.grad)
    torch.testing.assert_close(layer.bias.grad, linear.bias.grad)


def test_weights_that_want_a_gradient_are_refused() -> None:
    layer = SparseLinear(6, 4).requires_grad_()
    x = torch.randn(3, 6)
    with pytest.raises(InputError, match=re.escape("train layer.to_dense()")):
        layer(x)
    with torch.no_grad():
        assert layer(x).shape == (3, 4)


def test_a_layer_made_in_inference_mode_works() -> None:
    linear = sparse_linear(6, 4)
    x = torch.randn(3, 6, dtype=torch.float64)
    with torch.inference_mode():
        layer = SparseLinear.from_linear(linear)
        found = layer(x)
    torch.testing.assert_close(found, linear(x))
    torch.testing.assert_close(layer(x.requires_grad_()), linear(x))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(3, 5), "expected inputs of length 6, got the shape (3, 5)"),
        (torch.zeros(()), "expected inputs of length 6, got the shape ()"),
        (torch.zeros(12), "expected inputs of length 6, got the shape (12,)"),
        (torch.zeros(3, 6, dtype=torch.float64), "expected inputs of torch.float32"),
        (torch.zeros(3, 6, dtype=torch.int64), "expected inputs of torch.float32"),
    ],
)
def test_other_inputs_are_refused(x: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        SparseLinear(6, 4)(x)


def test_nan_and_infinity_come_through_where_a_weight_reads_them() -> None:
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    layer = SparseLinear.from_linear(linear)
    found = layer(torch.tensor([[float("nan"), 1.0], [2.0, float("inf")]]))
    torch.testing.assert_close(
        found, torch.tensor([[float("nan"), 1.0], [2.0, float("inf")]]), equal_nan=True
    )
    linear.weight.data[0, 0] = float("nan")
    assert SparseLinear.from_linear(linear)(torch.ones(2)).isnan().tolist() == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True])
def test_torch_compile_gives_the_same(grad: bool) -> None:
    layer = SparseLinear.from_linear(sparse_linear(6, 4, dtype=torch.float32))
    model = nn.Sequential(layer, nn.ReLU())
    compiled = torch.compile(model, backend="eager")
    for factor in (1.0, 2.0):
        layer.values.data.mul_(factor)  # a matrix that was built before is not taken for a constant
        for rows in (1, 3, 5):
            x = torch.randn(rows, 6, requires_grad=grad)
            torch.testing.assert_close(compiled(x), model(x))
    layer.values = nn.Parameter(-layer.values, requires_grad=False)
    torch.testing.assert_close(compiled(x), model(x))
    if grad:
        found, expected = (torch.autograd.grad(run(x).sum(), x)[0] for run in (compiled, model))
        torch.testing.assert_close(found, expected)


def test_torch_export_is_refused_with_the_way_out() -> None:
    model = nn.Sequential(SparseLinear(6, 4))
    with pytest.raises(InputError, match="densify"):
        torch.export.export(model, (torch.randn(3, 6),))
