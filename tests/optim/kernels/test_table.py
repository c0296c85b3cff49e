"""Many rows at once: layouts, threads, torch's own optimizers, and what a table refuses."""

import copy
import itertools
import multiprocessing
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchlasso.optim.kernels.cpu import adam_step, sgd_step
from torchlasso.optim.kernels.library import available, why_not
from torchlasso.optim.kernels.table import CHUNK, Table, usable

needs_library = pytest.mark.skipif(not available(), reason=why_not())

SHAPES = [(5,), (0,), (3, 7), (1,), (2, 3, 5, 4), (), (257, 1031), (16, 16)]
STATES = {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq", "step": "step"}


def tensors(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    channels_last = torch.randn(4, 3, 5, 6).to(dtype, memory_format=torch.channels_last)
    return [*parameters, nn.Parameter(channels_last), nn.Parameter(torch.randn(6, 5).to(dtype).T)]


def gradients(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))


class Ours:
    """What torch's optimizer does, by the library and on torch's state."""

    def __init__(self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.parameters, self.optimizer = parameters, optimizer
        self.table = Table(parameters, [0] * len(parameters))
        self.rho: list[Tensor] = []

    def with_evidence(self) -> "Ours":
        self.rho = [torch.copysign(torch.full_like(p, 4.0), p) for p in self.parameters]
        assert self.table.point("rho", self.rho) == []
        self.table.rows["slope"], self.table.rows["memory"] = 1.0, 20.0
        return self

    def step(self) -> None:
        gradients = [p.grad for p in self.parameters]
        assert self.table.point("w", self.parameters) == []
        assert self.table.point("g", gradients) == []
        groups, states = self.optimizer.param_groups, [self.optimizer.state[p] for p in self.parameters]
        if isinstance(self.optimizer, torch.optim.SGD):
            assert self.table.point("m", [s.get("momentum_buffer") for s in states]) == []
            sgd_step(self.table, groups)
            return
        for column, key in STATES.items():
            assert self.table.point(column, [s.get(key) for s in states]) == []
        decoupled = groups[0]["decoupled_weight_decay"]
        adam_step(self.table, groups, decoupled=decoupled, noise=bool(self.rho))


OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.AdamW, {"amsgrad": True, "maximize": True}),
    (torch.optim.Adam, {"weight_decay": 0.1, "betas": (0.3, 0.9)}),
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
    (torch.optim.SGD, {"momentum": 0.8, "dampening": 0.5}),
    (torch.optim.SGD, {}),
]


@needs_library
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_without_a_penalty_it_is_torchs_own_step(
    kind: Any, options: dict[str, Any], dtype: torch.dtype, fused: bool
) -> None:
    half = dtype in (torch.bfloat16, torch.float16)
    if half and fused and kind is torch.optim.SGD:
        pytest.skip("torch 2.13's fused SGD does not compute SGD on half-precision CPU tensors")
    if half and kind is not torch.optim.SGD:
        options = {**options, "eps": 1e-3}  # the usual one is 0 in float16, and torch divides 0 by 0
    theirs = tensors(dtype)
    optimizer = kind(theirs, lr=1e-2, fused=fused, **options)
    gradients(theirs)
    optimizer.step()
    mine = [nn.Parameter(p.detach().clone(memory_format=torch.preserve_format)) for p in theirs]
    twin = kind(mine, lr=1e-2, **options)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ours = Ours(mine, twin)
    # torch's unfused step rounds to the half after every operation, its fused one in the end.
    eps = torch.finfo(dtype).eps * (32 if half and not fused else 4)
    for _ in range(1 if half else 5):
        gradients(theirs)
        for p, q in zip(mine, theirs, strict=True):
            p.grad = q.grad
        optimizer.step()
        ours.step()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=eps, atol=eps)
        for key, value in optimizer.state[q].items():
            if value is not None:
                torch.testing.assert_close(twin.state[p][key], value, rtol=eps, atol=eps)


@needs_library
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_no_number_depends_on_the_threads(threads: int) -> None:
    results = []
    before = torch.get_num_threads()
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            parameters = tensors()
            optimizer = torch.optim.AdamW(parameters, lr=0.1)
            gradients(parameters)
            optimizer.step()
            ours = Ours(parameters, optimizer).with_evidence()
            for _ in range(20):
                gradients(parameters)
                ours.step()
            rows = ours.table.rows
            results.append((parameters, ours.rho, rows["noise"].copy(), rows["dead"].copy()))
    finally:
        torch.set_num_threads(before)
    (w, rho, noise, dead), (w2, rho2, noise2, dead2) = results
    assert sum(p.numel() for p in w) > 2 * CHUNK
    assert all(map(torch.equal, w, w2))
    assert all(map(torch.equal, rho, rho2))
    assert (noise == noise2).all()
    assert (dead == dead2).all()
    assert 0 < dead.sum() < sum(p.numel() for p in w)


@needs_library
def test_two_threads_of_the_program_may_step_at_once() -> None:
    def trained(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        parameter = nn.Parameter(torch.randn(300_000, generator=generator))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        ours = Ours([parameter], optimizer).with_evidence()
        for _ in range(20):
            parameter.grad = torch.randn(300_000, generator=generator)
            ours.table.rows["metric"] = 0.1
            ours.step()
        return [parameter.detach(), *ours.rho]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wanted = [trained(seed) for seed in range(2)]
        got: dict[int, list[Tensor]] = {}
        workers = [threading.Thread(target=lambda s=s: got.update({s: trained(s)})) for s in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for seed in range(2) for a, b in zip(got[seed], wanted[seed], strict=True))


def _stepped(queue: Any) -> None:
    queue.put(_one_step())


def _one_step() -> float:
    parameter = nn.Parameter(torch.ones(300_000))
    parameter.grad = torch.ones(300_000)
    ours = Ours([parameter], torch.optim.SGD([parameter], lr=0.25))
    torch.set_num_threads(2)
    try:
        ours.step()
    finally:
        torch.set_num_threads(1)  # torch's own threads do not survive a fork
    return float(parameter.detach().sum())


@needs_library
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_its_own_threads() -> None:
    assert _one_step() == 0.75 * 300_000  # the pool has a thread now, which the child will not have
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_stepped, args=(queue,))
    child.start()
    child.join(20)
    child.kill()
    assert child.exitcode == 0
    assert queue.get() == 0.75 * 300_000


@needs_library
def test_rows_without_a_gradient_stay_as_they_are() -> None:
    parameters = tensors()
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    gradients(parameters)
    optimizer.step()
    ours = Ours(parameters, optimizer)
    gradients(parameters)
    parameters[2].grad = None
    before = [p.detach().clone() for p in parameters]
    ours.step()
    moved = [not torch.equal(p, q) for p, q in zip(parameters, before, strict=True)]
    assert moved == [p.numel() > 0 and p is not parameters[2] for p in parameters]
    assert [float(optimizer.state[p]["step"]) for p in parameters[1:4]] == [2.0, 1.0, 2.0]


@needs_library
def test_rows_that_lack_their_state_stay_as_they_are() -> None:
    w, grad = torch.ones(3), torch.ones(3)
    table = Table([w], [0])
    table.point("g", [grad])
    group = torch.optim.SGD([torch.ones(3)], lr=0.1, momentum=0.9).param_groups[0]
    sgd_step(table, [group])
    adam_step(table, torch.optim.AdamW([torch.ones(3)]).param_groups, decoupled=True)
    assert w.tolist() == [1.0, 1.0, 1.0]


@needs_library
def test_groups_without_rows_are_passed_over() -> None:
    w, grad = torch.ones(2), torch.ones(2)
    table = Table([w], [1])
    table.point("g", [grad])
    groups = [{"params": [torch.ones(1)], "lr": lr} for lr in (1.0, 0.25, 2.0)]
    sgd_step(table, torch.optim.SGD(groups).param_groups)
    assert w.tolist() == [0.75, 0.75]


@needs_library
def test_tiny_steps_of_half_precision_add_up() -> None:
    """The weight 1 in bfloat16 moves by steps of 1e-5, of which torch's own would lose every one."""
    parameter = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    plain = torch.optim.SGD([parameter], lr=1e-5)
    parameter.grad = torch.ones(8, dtype=torch.bfloat16)
    plain.step()
    assert float(parameter[0].detach()) == 1.0
    table = Table([parameter], [0])
    rho = torch.full((8,), 4.0)
    table.point("g", [parameter.grad])
    table.point("rho", [rho])
    table.rows["slope"], table.rows["metric"] = 1.0, 1e-5
    for _ in range(2_000):  # the gradient and the penalty pull by 1e-5 each
        sgd_step(table, plain.param_groups)
    assert float(parameter[0].detach()) == pytest.approx(1 - 2_000 * 2e-5, rel=2**-8)


def test_what_is_usable() -> None:
    w = torch.zeros(4, 6)
    assert usable(w, torch.ones(4, 6), None)
    assert usable(w.T, torch.ones(6, 4).T.contiguous().T)
    assert usable(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    assert usable(torch.zeros(1, 5), torch.zeros(5, 1).T)  # the stride of a dimension of one means nothing
    assert usable(torch.zeros(0, 3))
    assert not usable(w, w.T.contiguous().T)
    assert not usable(w, torch.zeros(6, 4))
    assert not usable(w, w.double())
    assert not usable(w[:, ::2])
    assert not usable(torch.zeros(3).expand(2, 3))
    assert not usable(w.to_sparse())
    assert not usable(w, w.to_sparse())
    assert not usable(torch.zeros(3, dtype=torch.int32))
    assert not usable(torch.zeros(3, dtype=torch.complex64))
    assert not usable(torch.zeros(3, device="meta"))
    assert not usable(torch.zeros(2, dtype=torch.complex64).conj().imag)  # a view that is negated when read


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")  # torch says so once a process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_table_refuses_what_it_would_misread(dtype: torch.dtype) -> None:
    table = Table([torch.zeros(3, 2, dtype=dtype)], [0])
    wide = torch.promote_types(dtype, torch.float32)
    for column, other in itertools.product(("g", "m", "rho", "c", "d"), (torch.float16, torch.float32)):
        wanted = dtype if column in ("g", "m") else wide
        assert table.point(column, [torch.zeros(3, 2, dtype=other)]) == ([] if other == wanted else [0])
        assert bool(table.rows[column][0]) == (other == wanted)
    assert table.point("g", [torch.zeros(2, 3, dtype=dtype).T]) == [0]
    assert table.point("g", [torch.zeros(3, 2, dtype=dtype).to_sparse()]) == [0]
    assert table.point("g", [None]) == []
    assert table.point("step", [torch.tensor(1.0)]) == []
    assert table.point("step", [torch.tensor(1.0, dtype=torch.float64)]) == [0]


def test_a_table_follows_a_tensor_to_its_new_memory() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    table = Table([parameter], [0])
    parameter.data = torch.ones(3)
    assert table.point("w", [parameter]) == []
    assert int(table.rows["w"][0]) == parameter.data_ptr()
    parameter.data = torch.ones(4)
    assert table.point("w", [parameter]) == [0]
