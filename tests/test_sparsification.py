"""Layers become sparse only where that was measured to be faster; the outputs stay, the model too."""

import copy
import pickle
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from torchlasso import sparsification as sparsify_module
from torchlasso.errors import InputError
from torchlasso.semi_structured import follows_two_of_four, semi_structured, unpacked
from torchlasso.sparse_layers import SparseLinear
from torchlasso.sparsification import SparsifyTable, densify, sparsify, sparsify_table

Times = Mapping[str, float]
Clock = Callable[[Callable[[tuple[int, ...]], Times]], list[tuple[int, ...]]]


def with_zeros(model: nn.Module, zeros: float = 0.9) -> nn.Module:
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight[torch.rand_like(layer.weight) < zeros] = 0.0
    return model


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock: what is measured follows from the shape of the inputs."""

    def install(times: Callable[[tuple[int, ...]], Times]) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []

        def medians(ways: Mapping[str, nn.Module], like: Tensor, shape: tuple[int, ...]) -> dict[str, float]:
            assert ways["dense"](torch.zeros(shape)).shape == ways["sparse"](torch.zeros(shape)).shape
            shapes.append(shape)
            return dict(times(shape))

        monkeypatch.setattr(sparsify_module, "_medians", medians)
        return shapes

    return install


def always_faster(shape: tuple[int, ...]) -> Times:
    return {"dense": 2e-5, "sparse": 1e-5}


def test_faster_layers_are_replaced_and_the_outputs_stay(timed: Clock) -> None:
    shapes = timed(always_faster)
    model = with_zeros(mlp())
    before = copy.deepcopy(model.state_dict())
    fast = sparsify(model)
    assert [type(layer) for layer in fast] == [SparseLinear, nn.ReLU, SparseLinear, nn.ReLU, SparseLinear]
    assert shapes == [(1, 20), (64, 20), (1, 16), (64, 16), (1, 8), (64, 8)]
    x = torch.randn(5, 20)
    torch.testing.assert_close(fast(x), model(x))
    assert [type(layer) for layer in model[::2]] == [nn.Linear] * 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not fast.training


def test_a_layer_that_is_slower_at_one_number_of_rows_stays(timed: Clock) -> None:
    timed(lambda shape: {"dense": 1e-5, "sparse": 5e-6 if shape[0] == 1 else 1.2e-5})
    fast = sparsify(with_zeros(mlp()))
    assert not any(isinstance(layer, SparseLinear) for layer in fast)
    table = sparsify_table(fast)
    assert {row.chosen for row in table.rows} == {"dense"}
    assert [row.rows for row in table.rows] == [1, 64] * 3


@pytest.mark.parametrize(("ratio", "replaced"), [(1.0, False), (1.09, False), (1.11, True)])
def test_faster_means_by_a_margin(timed: Clock, ratio: float, replaced: bool) -> None:
    timed(lambda shape: {"dense": ratio * 1e-5, "sparse": 1e-5})
    assert isinstance(sparsify(with_zeros(mlp()))[0], SparseLinear) is replaced


def test_where_torch_has_no_sparse_products_everything_stays(timed: Clock) -> None:
    timed(lambda shape: {"dense": 1e-5})
    fast = sparsify(with_zeros(mlp()))
    assert not any(isinstance(layer, SparseLinear) for layer in fast)
    assert all(row.sparse is None for row in sparsify_table(fast).rows)
    assert "–" in str(sparsify_table(fast))


def test_layers_with_few_zeros_are_not_tried(timed: Clock) -> None:
    shapes = timed(always_faster)
    fast = sparsify(with_zeros(mlp(), 0.1))
    assert shapes == []
    assert {row.chosen for row in sparsify_table(fast).rows} == {"dense, few zeros"}


def test_example_inputs_say_how_many_rows_each_layer_gets(timed: Clock) -> None:
    shapes = timed(always_faster)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.Linear(8, 8)
            self.pooled = nn.Linear(8, 2)
            self.never = nn.Linear(8, 2)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.pooled(self.each(x).mean(dim=1)) * scale

    model = with_zeros(Tokens().train())
    x, scale = torch.randn(4, 7, 8), torch.tensor(2.0)
    fast = sparsify(model, (x, scale))
    assert shapes == [(4, 7, 8), (4, 8)]
    rows = {row.name: (row.rows, row.chosen) for row in sparsify_table(fast).rows}
    assert rows == {"each": (28, "sparse"), "pooled": (4, "sparse"), "never": (None, "dense, not reached")}
    torch.testing.assert_close(fast(x, scale), model(x, scale))
    assert fast.training
    assert not any(layer._forward_pre_hooks for layer in fast.modules())


def test_a_failing_call_leaves_no_hooks_and_keeps_the_mode() -> None:
    model = with_zeros(mlp().train())
    with pytest.raises(RuntimeError):
        sparsify(model, torch.randn(2, 5))
    assert model.training
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_a_layer_by_itself_and_a_layer_in_two_places(timed: Clock) -> None:
    timed(always_faster)
    alone = with_zeros(nn.Linear(8, 8))
    fast = sparsify(alone)
    assert isinstance(fast, SparseLinear)
    assert sparsify_table(fast).rows[0].name == "(itself)"
    shared = sparsify(nn.Sequential(alone, nn.ReLU(), alone))
    assert shared[0] is shared[2]
    x = torch.randn(3, 8)
    torch.testing.assert_close(shared(x), alone(alone(x).relu()))


def test_transformers_keep_what_their_kernels_read(timed: Clock) -> None:
    timed(always_faster)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = with_zeros(nn.Sequential(block, nn.Linear(8, 4)).eval())
    fast = sparsify(model)
    assert {row.name: row.chosen for row in sparsify_table(fast).rows if row.rows != 64} == {
        "0.linear1": "dense, in a fused kernel",
        "0.linear2": "dense, in a fused kernel",
        "1": "sparse",
    }
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))


def test_subclasses_of_linear_are_left_alone(timed: Clock) -> None:
    timed(always_faster)

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = with_zeros(nn.Sequential(Doubled(8, 8)))
    x = torch.randn(3, 8)
    assert torch.equal(sparsify(model)(x), model(x))
    assert str(sparsify_table(sparsify(model)))


def test_the_table_travels_with_copies(timed: Clock) -> None:
    timed(always_faster)
    fast = sparsify(with_zeros(mlp()))
    table = sparsify_table(fast)
    assert isinstance(table, SparsifyTable)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert sparsify_table(twin) == table
    text = str(table)
    assert "16×20" in text
    assert "2.00" in text
    with pytest.raises(InputError, match="expected a model that sparsify returned"):
        sparsify_table(mlp())


def test_densify_gives_the_weights_back_bit_by_bit(timed: Clock) -> None:
    timed(always_faster)
    model = with_zeros(mlp())
    fast = sparsify(model)
    back = densify(fast)
    assert [type(layer) for layer in back] == [type(layer) for layer in model]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert isinstance(fast[0], SparseLinear)
    assert isinstance(densify(fast[0]), nn.Linear)


def test_a_large_layer_of_mostly_zeros_really_is_faster() -> None:
    linear = with_zeros(nn.Linear(2048, 2048), 0.98)
    fast = sparsify(linear, torch.randn(1, 2048))
    row = sparsify_table(fast).rows[0]
    assert isinstance(fast, SparseLinear), row
    assert row.dense is not None
    assert row.sparse is not None
    assert row.dense > 1.1 * row.sparse
    x = torch.randn(2, 2048)
    torch.testing.assert_close(fast(x), linear(x), rtol=1e-4, atol=1e-4)


def test_a_small_layer_really_is_not() -> None:
    fast = sparsify(with_zeros(nn.Linear(10, 4)), torch.randn(1, 10))
    assert isinstance(fast, nn.Linear)


def test_two_of_four() -> None:
    assert follows_two_of_four(torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 0]]))
    assert not follows_two_of_four(torch.tensor([[1.0, 0, 0, 2], [1, 1, 1, 0]]))
    assert not follows_two_of_four(torch.zeros(2, 6))
    assert not follows_two_of_four(torch.zeros(8))
    on_the_cpu = nn.Linear(64, 64).half()
    on_the_cpu.weight.data.zero_()
    assert semi_structured(on_the_cpu) is None
    assert unpacked(on_the_cpu) is on_the_cpu


@pytest.mark.gpu
def test_two_of_four_on_a_device() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a CUDA device of capability 8.0")
    linear = nn.Linear(256, 128).half().cuda()
    with torch.no_grad():
        linear.weight.unflatten(1, (-1, 4))[..., 2:] = 0.0
    layer = semi_structured(linear)
    assert layer is not None
    x = torch.randn(64, 256).half().cuda()
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-2, atol=1e-2)
    assert torch.equal(unpacked(layer).weight, linear.weight)
    fast = sparsify(nn.Sequential(linear), x)
    torch.testing.assert_close(fast(x), linear(x), rtol=1e-2, atol=1e-2)
    assert torch.equal(densify(fast)[0].weight, linear.weight)
