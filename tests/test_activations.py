"""The penalty on activations against sums by hand, wherever a model may run."""

import copy
import pickle
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from torchlasso.activations import ActivationL1
from torchlasso.errors import InputError, RuleError

X = torch.arange(24.0).reshape(8, 3).sin()
Y = X.sum(1, keepdim=True)


class Net(nn.Module):
    """An encoder with a named activation, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
        self.head = nn.Linear(5, 1)
        self.segment: Callable[..., Tensor] = lambda module, x: module(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.segment(self.encoder, x))


@pytest.fixture
def model() -> Net:
    return Net()


def grads(model: nn.Module) -> list[Tensor]:
    """Return the gradients of all parameters and clear them."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found


def by_hand(model: Net, x: Tensor, y: Tensor, strength: float) -> list[Tensor]:
    """Return the gradients of loss plus penalty, the penalty's with the formulas of a ReLU layer."""
    mse_loss(model.head(torch.relu(model.encoder[0](x))), y).backward()
    alive = (model.encoder[0](x) > 0).to(x.dtype)
    extra = [strength * alive.T @ x / len(x), strength * alive.sum(0) / len(x), 0.0, 0.0]
    return [g + e for g, e in zip(grads(model), extra, strict=True)]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


# ---- the penalty -------------------------------------------------------------------------------


@pytest.mark.parametrize("by_name", [True, False])
def test_the_gradient_is_the_one_computed_by_hand(model: Net, by_name: bool) -> None:
    wanted = by_hand(model, X, Y, 0.3)
    activity = ActivationL1(model, "encoder.1" if by_name else model.encoder[1], 0.3)
    assert activity.name == "encoder.1"
    loss = mse_loss(model(X), Y) + activity()
    loss.backward()
    assert_same(grads(model), wanted)


def test_the_value_is_the_sum_over_units_and_the_mean_over_rows(model: Net) -> None:
    activity = ActivationL1(model, "encoder.0", 2.0)
    a = model.encoder(X)
    raw = model.encoder[0](X)
    assert activity.rows == 16
    wanted = 2.0 * raw.abs().sum() / 8
    torch.testing.assert_close(activity(), wanted)  # two equal passes
    assert a.shape == (8, 5)


@pytest.mark.parametrize(
    ("shape", "features", "rows"),
    [
        ((4, 6), None, 4),
        ((4, 6), 0, 6),
        ((2, 3, 4), -1, 6),
        ((2, 3, 4), 1, 8),
        ((2, 3, 4, 5), 1, 40),
        ((2, 3, 4, 5), -3, 40),
        ((6,), -1, 1),
        ((0, 6), None, 0),
    ],
)
def test_rows_are_all_but_the_dimension_of_units(
    shape: tuple[int, ...], features: int | None, rows: int
) -> None:
    layer = nn.Identity()
    activity = ActivationL1(layer, layer, 0.5, features=features)
    x = torch.randn(shape).relu().requires_grad_()
    layer(x)
    total = activity()
    total.backward()
    assert activity.rows == rows
    torch.testing.assert_close(total.detach(), 0.5 * x.detach().sum() / max(rows, 1))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 0.5 * x.detach().sign() / max(rows, 1))
    if rows:
        dim = 1 if features is None else features
        units = torch.stack([unit.flatten() for unit in x.detach().unbind(dim)])
        torch.testing.assert_close(activity.rate, (units != 0).double().mean(1))


def test_micro_batches_give_the_gradient_of_the_whole_batch(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    (mse_loss(model(X), Y) + activity()).backward()
    whole = grads(model)
    for x, y in zip(X.chunk(4), Y.chunk(4), strict=True):
        ((mse_loss(model(x), y) + activity()) / 4).backward()
    assert_same(grads(model), whole)


def test_a_repeated_batch_costs_the_same(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    model(X)
    once = activity()
    model(torch.cat([X] * 5))
    torch.testing.assert_close(activity(), once)


def test_several_passes_are_one_mean_over_all_their_rows(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    model(X)
    whole = activity()
    model(X[:3])
    model(X[3:])
    parts = activity()
    torch.testing.assert_close(parts, whole)
    whole.backward()
    wanted = grads(model)
    parts.backward()
    assert_same(grads(model), wanted)


def test_the_slope_at_zero_is_zero() -> None:
    layer = nn.Identity()
    activity = ActivationL1(layer, layer, 1.0)
    x = torch.tensor([[0.0, -2.0, 3.0]], requires_grad=True)
    layer(x)
    activity().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, -1.0, 1.0]]


def test_complex_activations_have_a_modulus() -> None:
    layer = nn.Identity()
    activity = ActivationL1(layer, layer, 1.0)
    layer(torch.tensor([[3 + 4j, 0j]], requires_grad=True))
    assert activity().item() == 5.0
    assert activity.l0 == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_propagate(bad: float) -> None:
    layer = nn.Identity()
    activity = ActivationL1(layer, layer, 1.0)
    layer(torch.tensor([[bad, 0.0]], requires_grad=True))
    torch.testing.assert_close(activity().detach(), torch.tensor(bad), equal_nan=True)
    assert activity.l0 == 1.0


def test_float64_stays_and_the_input_is_not_modified() -> None:
    layer = nn.Identity()
    activity = ActivationL1(layer, layer, 1.0)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    layer(x)
    assert activity().dtype == torch.float64
    assert torch.equal(x, before)


def test_it_changes_what_is_learnt(model: Net) -> None:
    def train(strength: float) -> float:
        net = copy.deepcopy(model)
        activity = ActivationL1(net, "encoder.1", strength)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            (mse_loss(net(X), Y) + activity()).backward()
            optimizer.step()
        return net.encoder(X).sum(1).mean().item()

    assert train(0.5) < 0.5 * train(0.0)


# ---- once per pass, and nothing kept -------------------------------------------------------------


def test_the_penalty_is_cleared_when_read(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    model(X)
    activity()
    with pytest.raises(InputError, match=r"no pass to penalise came through layer 'encoder\.1'"):
        activity()


def test_nothing_keeps_a_graph_after_the_call(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    model(X)
    activity().backward()
    kept = [value for value in vars(activity).values() if isinstance(value, Tensor)]
    assert kept
    assert all(not value.requires_grad for value in kept)


def without_gradients(model: Net) -> None:
    with torch.no_grad():
        model(X)


def under_inference(model: Net) -> None:
    with torch.inference_mode():
        model(X)


def evaluating(model: Net) -> None:
    model.eval()
    model(X)


def frozen(model: Net) -> None:
    model.requires_grad_(False)
    model(X)


@pytest.mark.parametrize("forward", [without_gradients, under_inference, evaluating, frozen])
def test_passes_without_a_graph_are_counted_but_not_penalised(
    model: Net, forward: Callable[[Net], None]
) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    forward(model)
    with pytest.raises(InputError, match=r"training mode with gradients; leave it out of validation"):
        activity()
    assert activity.rows == 8
    model.train().requires_grad_(True)
    model(X)
    assert activity.rows == 16  # also after inference mode
    activity().backward()


def test_before_any_pass(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    with pytest.raises(InputError, match="no pass to penalise"):
        activity()
    for read in (lambda: activity.l0, lambda: activity.dead, lambda: activity.rate):
        with pytest.raises(InputError, match=r"no rows came through layer 'encoder.1'"):
            read()
    assert activity.rows == 0
    assert "–" in str(activity)


def test_a_forgotten_penalty_is_told_and_does_not_pile_up(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    mse_loss(model(X), Y).backward()
    with pytest.warns(UserWarning, match=r"backward\(\) ran before the penalty .* so it was not in the loss"):
        model(X)
    model.zero_grad()
    wanted = by_hand(model, X, Y, 0.3)  # passes by the encoder, not by its activation
    (mse_loss(model(X), Y) + activity()).backward()
    assert_same(grads(model), wanted)


def test_a_backward_that_comes_late_takes_nothing_from_the_next_pass(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    first = mse_loss(model(X), Y) + activity()
    second = mse_loss(model(X), Y)
    first.backward()
    second = second + activity()
    second.backward()
    found = grads(model)
    assert_same(found, [2 * g for g in by_hand(model, X, Y, 0.3)])


def test_the_penalty_alone_after_a_backward_that_kept_the_graph(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    mse_loss(model(X), Y).backward(retain_graph=True)
    activity().backward()
    assert_same(grads(model), by_hand(model, X, Y, 0.3))


# ---- the strength --------------------------------------------------------------------------------


def test_a_schedule_reads_the_number_of_calls(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", lambda step: 0.1 * step)
    values = []
    for _ in range(4):
        model(X)
        values.append(activity().item())
    assert activity.step == 4
    assert values[0] == 0.0
    for before, after in pairwise(values):
        assert after - before == pytest.approx(values[1])
    activity.step = 2  # as after loading a checkpoint
    model(X)
    assert activity().item() == pytest.approx(values[2])


def test_strength_zero_changes_nothing(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.0)
    (mse_loss(model(X), Y) + activity()).backward()
    assert_same(grads(model), by_hand(model, X, Y, 0.0))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), "0.1max", None, "1", torch.ones(2)])
def test_bad_strengths_are_refused(model: Net, bad: object) -> None:
    with pytest.raises(InputError, match="strength must be"):
        ActivationL1(model, "encoder.1", bad)
    activity = ActivationL1(model, "encoder.1", lambda step: bad)
    model(X)
    with pytest.raises(InputError, match="the schedule at step 0 must be"):
        activity()
    assert not model.encoder[0]._forward_hooks


# ---- the layer -----------------------------------------------------------------------------------


def test_a_misspelt_layer_is_refused_with_the_nearest_names(model: Net) -> None:
    with pytest.raises(RuleError, match=r"no layer 'encodr\.1'; did you mean 'encoder\.1'"):
        ActivationL1(model, "encodr.1", 0.1)
    with pytest.raises(RuleError, match=r"it has: encoder, encoder\.0, encoder\.1, head"):
        ActivationL1(model, "zzz", 0.1)


def test_other_layers_are_refused(model: Net) -> None:
    with pytest.raises(RuleError, match="this ReLU is no part of the model Net"):
        ActivationL1(model, nn.ReLU(), 0.1)
    with pytest.raises(InputError, match="layer must be the name of a submodule or the submodule, got int"):
        ActivationL1(model, 3, 0.1)
    with pytest.raises(InputError, match=r"expects a model \(nn.Module\) first, got str"):
        ActivationL1("encoder", model, 0.1)


def test_an_output_that_is_no_tensor_is_refused() -> None:
    model = nn.Sequential(nn.LSTM(3, 4, batch_first=True))
    ActivationL1(model, "0", 0.1, features=-1)
    with pytest.raises(InputError, match=r"must be one tensor, got tuple; pass .* nn.Identity"):
        model(torch.randn(2, 5, 3))


def test_an_output_with_tokens_or_pixels_needs_the_dimension_of_units() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with ActivationL1(model, "1", 0.1), pytest.raises(InputError, match=r"\(2, 2, 4, 4\); say which dim"):
        model(torch.randn(2, 1, 6, 6))
    with (
        ActivationL1(model, "1", 0.1, features=4),
        pytest.raises(InputError, match="no dimension 4 of units"),
    ):
        model(torch.randn(2, 1, 6, 6))


def test_one_module_in_places_of_different_width_is_refused() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 5), act, nn.Linear(5, 4), act)
    ActivationL1(model, act, 0.1)
    with pytest.raises(InputError, match="had 5 units and now has 4; give each place"):
        model(X)


# ---- statistics ------------------------------------------------------------------------------------


def test_statistics_count_zeros_and_dead_units() -> None:
    layer = nn.ReLU()
    activity = ActivationL1(layer, layer, 0.1)
    layer(torch.tensor([[1.0, -1.0, -1.0], [2.0, 1.0, -1.0]]))
    assert activity.rows == 2
    assert activity.l0 == 1.5
    assert activity.rate.tolist() == [1.0, 0.5, 0.0]
    assert activity.dead.tolist() == [False, False, True]
    layer(torch.tensor([[-1.0, -1.0, 5.0]]))  # one row is enough to live
    assert activity.dead.tolist() == [False, False, False]
    assert activity.l0 == pytest.approx(4 / 3)
    assert str(activity).splitlines()[-1].split() == ["3", "3", "1.333", "55.6%", "0"]
    activity.reset()
    assert activity.rows == 0
    layer(torch.zeros(1, 3))
    assert activity.dead.all()


def test_the_table_and_the_repr_name_the_layer(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    model(X)
    assert str(activity).splitlines()[-1].split()[:3] == ["encoder.1", "5", "8"]
    assert repr(activity).startswith("<ActivationL1 on 'encoder.1': strength 0.3;")


# ---- letting go --------------------------------------------------------------------------------------


def test_remove_takes_the_hook_off_and_may_be_called_twice(model: Net) -> None:
    with ActivationL1(model, "encoder.1", 0.3) as activity:
        model(X)
    activity.remove()
    assert not model.encoder[1]._forward_hooks
    with pytest.raises(InputError, match=r"the penalty on layer 'encoder\.1' was removed"):
        activity()
    assert "removed" in repr(activity)
    model(X)
    assert activity.rows == 8  # the statistics stay


def test_a_removed_penalty_leaves_a_model_that_copies_and_pickles(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", lambda step: 0.1)
    model(X)
    activity.remove()
    del model.segment  # a lambda of this test
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not other.encoder[1]._forward_hooks


def test_a_copy_of_a_hooked_model_is_not_penalised(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    model(X)  # a graph is waiting
    del model.segment
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.segment = model.__class__().segment
        (hook,) = other.encoder[1]._forward_hooks.values()
        assert hook.__self__ is not activity
        other(X)
        assert hook.__self__._total is None
        assert hook.__self__.rows == 8  # what the original had seen
    activity().backward()


def test_state_dicts_do_not_change(model: Net) -> None:
    before = list(model.state_dict())
    ActivationL1(model, "encoder.1", 0.3)
    model(X)
    assert list(model.state_dict()) == before


# ---- wherever a model may run ------------------------------------------------------------------------


def test_autocast_sums_in_float32() -> None:
    model = nn.Sequential(nn.Linear(3, 4096, bias=False), nn.ReLU())
    nn.init.ones_(model[0].weight)
    activity = ActivationL1(model, "1", 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.full((3, 3), 0.1))
    assert output.dtype == torch.bfloat16
    penalty = activity()
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(output.double().sum().item() / 3, rel=1e-6)
    penalty.backward()
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model(dtype: torch.dtype) -> None:
    layer = nn.Identity()
    activity = ActivationL1(layer, layer, 1.0)
    x = torch.full((1, 70000), 1.0, dtype=dtype, requires_grad=True)
    layer(x)
    assert activity().item() == 70000.0  # more than float16 holds, and more digits than bfloat16 has


def compiled(model: nn.Module, graphs: list[int]) -> Callable[..., Tensor]:
    from torch._dynamo.backends.debugging import aot_eager

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor], **options: object) -> object:
        graphs.append(1)
        return aot_eager(graph, inputs)

    return torch.compile(model, backend=count, fullgraph=True)


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
def test_the_hook_is_a_part_of_one_compiled_graph(model: Net) -> None:
    wanted = by_hand(model, X, Y, 0.3)
    activity = ActivationL1(model, "encoder.1", 0.3)
    graphs: list[int] = []
    fast = compiled(model, graphs)  # fullgraph: a graph break is an error
    for step in range(6):
        (mse_loss(fast(X), Y) + activity()).backward()
        assert_same(grads(model), wanted)
        assert activity.rows == 8 * (step + 1)
    assert len(graphs) == 2  # the first pass makes the counters, all others add to them
    with pytest.raises(InputError):
        activity()
    assert activity.l0 == pytest.approx((model.encoder(X) != 0).double().sum(1).mean().item())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks
@pytest.mark.usefixtures("_fresh_dynamo")
def test_compiled_passes_add_up_and_stop_when_removed(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    model(X)
    whole = activity()
    graphs: list[int] = []
    fast = compiled(model, graphs)
    for _ in range(2):
        for x in X.chunk(8):
            fast(x)
        torch.testing.assert_close(activity(), whole)
    assert len(graphs) <= 4
    model.eval()
    fast(X)
    with pytest.raises(InputError):
        activity()
    model.train()
    activity.remove()
    rows = activity.rows
    fast(X)
    assert activity.rows == rows
    assert activity._total is None


@pytest.mark.usefixtures("_fresh_dynamo")
def test_a_compiled_model_that_has_run_does_not_see_a_new_penalty(model: Net) -> None:
    fast = compiled(model, [])
    fast(X)
    activity = ActivationL1(model, "encoder.1", 0.3)
    fast(X)
    with pytest.raises(InputError, match="make it before the first call of a compiled model"):
        activity()


def test_checkpointing_penalises_each_pass_once(model: Net) -> None:
    wanted = by_hand(model, X, Y, 0.3)
    activity = ActivationL1(model, "encoder.1", 0.3)
    for early_stop in (True, False):
        model.segment = lambda module, x, stop=early_stop: checkpoint(
            module, x, use_reentrant=False, early_stop=stop
        )
        for step in range(3):
            activity.reset()
            (mse_loss(model(X), Y) + activity()).backward()
            assert_same(grads(model), wanted)
            assert activity.rows == 8, step  # the run in backward is not counted
            assert activity._total is None  # and leaves no stale graph


def test_reentrant_checkpointing_is_refused_with_the_way_out(model: Net) -> None:
    activity = ActivationL1(model, "encoder.1", 0.3)
    model.segment = lambda module, x: checkpoint(module, x, use_reentrant=True)
    output = model(X.clone().requires_grad_())
    with pytest.raises(InputError, match="checkpoint with use_reentrant=False"):
        activity()
    mse_loss(output, Y).backward()
    assert activity._total is None
    assert activity.rows == 8


def on_a_rank(rank: int, meeting: str, weights: dict[str, Tensor], wanted: list[Tensor]) -> None:
    limit = timedelta(seconds=60)  # a rank that fails leaves the other one waiting
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=limit)
    model = Net()
    model.load_state_dict(weights)
    parallel = nn.parallel.DistributedDataParallel(model)
    activity = ActivationL1(parallel, "module.encoder.1", 0.3)
    x, y = X.chunk(2)[rank], Y.chunk(2)[rank]
    for _ in range(2):
        (mse_loss(parallel(x), y) + activity()).backward()
        assert_same(grads(model), wanted)
    assert activity.rows == 8


def on_rank_one(index: int, *arguments: object) -> None:
    torch.set_num_threads(1)
    on_a_rank(1, *arguments)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.distributed about itself
def test_two_processes_with_equal_shards_give_the_gradient_of_one(
    model: Net, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    arguments = (tmp_path / "meeting").as_uri(), model.state_dict(), by_hand(model, X, Y, 0.3)
    other = torch.multiprocessing.spawn(on_rank_one, args=arguments, nprocs=1, join=False)
    try:
        on_a_rank(0, *arguments)  # this process is the first rank, which saves starting one more
        assert other.join(timeout=60)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.gpu
def test_the_hook_does_not_wait_for_the_device(model: Net) -> None:
    model = model.cuda()
    activity = ActivationL1(model, "encoder.1", 0.3)
    x = X.cuda()
    model(x)
    activity()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=torch.float16):
            output = model(x)
        (output.float().mean() + activity()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert activity.rows == 16
