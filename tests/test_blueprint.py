"""How a model is put together, in JSON: what is built is what was described, and nothing else is built."""

import json
import math
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torch.utils import _pytree as pytree

from torchlasso.blueprint import construct, describe, foreign, named_tensors, outline
from torchlasso.blueprint_graphs import decode_graph, encode_graph
from torchlasso.blueprint_layers import LAYERS, arguments, build, decode, encode
from torchlasso.errors import ModelFileError
from torchlasso.mlp import Rescale
from torchlasso.simplenet import SimpleNet
from torchlasso.sparse_layers import SparseLinear

SAMPLES: list[nn.Module] = [
    nn.Linear(3, 2),
    nn.Linear(3, 2, bias=False),
    nn.Linear(3, 2, dtype=torch.float64),
    nn.Bilinear(2, 3, 4, bias=False),
    nn.Identity(3, what=4),
    nn.Flatten(0, 2),
    nn.Unflatten(1, (2, -1)),
    nn.Fold((4, 5), 2, stride=1, padding=1, dilation=(1, 2)),
    nn.Unfold(3, padding=(1, 2)),
    nn.Embedding(7, 3, padding_idx=-2, max_norm=1, norm_type=1.0, scale_grad_by_freq=True, sparse=True),
    nn.EmbeddingBag(7, 3, mode="sum", include_last_offset=True, padding_idx=2),
    nn.MultiheadAttention(8, 2, dropout=0.25, batch_first=True),
    nn.MultiheadAttention(8, 4, bias=False, add_bias_kv=True, add_zero_attn=True, kdim=3, vdim=5),
    nn.RNN(3, 4, 2, nonlinearity="relu", batch_first=True, dropout=0.5),
    nn.LSTM(3, 4, bidirectional=True, proj_size=2, bias=False),
    nn.GRU(input_size=3, hidden_size=4, num_layers=3),
    nn.RNNCell(3, 4, bias=False, nonlinearity="relu"),
    nn.LSTMCell(3, 4),
    nn.GRUCell(3, 4, bias=False),
    nn.LayerNorm((2, 3), eps=0.1, bias=False),
    nn.LayerNorm(3, elementwise_affine=False),
    nn.GroupNorm(2, 4, affine=False),
    nn.RMSNorm(5, eps=1e-3),
    nn.RMSNorm((5, 2), elementwise_affine=False),
    nn.LocalResponseNorm(2, alpha=1, k=2),
    nn.BatchNorm1d(3, momentum=None, affine=False),
    nn.BatchNorm2d(3, track_running_stats=False),
    nn.BatchNorm3d(3, eps=0.5),
    nn.InstanceNorm1d(3),
    nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    nn.InstanceNorm3d(3, eps=0.5),
    nn.Conv1d(4, 6, 3, padding="same"),
    nn.Conv2d(
        4, 6, (3, 1), stride=2, padding=(1, 0), dilation=2, groups=2, bias=False, padding_mode="circular"
    ),
    nn.Conv3d(1, 2, 3, padding="valid"),
    nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1),
    nn.ConvTranspose2d(4, 6, 3, dilation=2, groups=2),
    nn.ConvTranspose3d(1, 2, 2, bias=False),
    *[getattr(nn, f"Dropout{n}")(0.1, inplace=True) for n in ("", "1d", "2d", "3d")],
    nn.AlphaDropout(0.3),
    nn.FeatureAlphaDropout(0.3),
    nn.CELU(2, inplace=True),
    nn.ELU(0.5),
    nn.GELU("tanh"),
    nn.GLU(1),
    nn.LeakyReLU(0.3),
    nn.Mish(),
    nn.PReLU(3, init=0.1),
    nn.RReLU(0.2, 0.4),
    nn.ReLU(inplace=True),
    nn.ReLU6(inplace=True),
    nn.SELU(),
    nn.SiLU(inplace=True),
    nn.Hardshrink(0.1),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Hardtanh(-math.inf, 3),
    nn.Tanh(),
    nn.Tanhshrink(),
    nn.Threshold(0.1, 20),
    nn.LogSigmoid(),
    nn.LogSoftmax(1),
    nn.Sigmoid(),
    nn.Softmax(dim=-1),
    nn.Softmax2d(),
    nn.Softmin(0),
    nn.Softplus(2, 3),
    nn.Softshrink(0.2),
    nn.Softsign(),
    nn.Upsample(scale_factor=(2, 1.5), mode="bilinear", align_corners=True),
    nn.Upsample((3, 4), recompute_scale_factor=None),
    nn.UpsamplingBilinear2d(scale_factor=2),
    nn.UpsamplingNearest2d((3, 4)),
    nn.PixelShuffle(2),
    nn.PixelUnshuffle(3),
    nn.ChannelShuffle(2),
    *[getattr(nn, f"AdaptiveAvgPool{n}d")(2) for n in (1, 2, 3)],
    nn.AdaptiveAvgPool2d((None, 3)),
    *[getattr(nn, f"AdaptiveMaxPool{n}d")(2, return_indices=True) for n in (1, 2, 3)],
    nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    nn.AvgPool2d((3, 2), divisor_override=5),
    nn.AvgPool3d(3, divisor_override=2),
    *[getattr(nn, f"LPPool{n}d")(1.5, 3, stride=2) for n in (1, 2, 3)],
    *[getattr(nn, f"MaxPool{n}d")(3, 2, 1, 2, ceil_mode=True) for n in (1, 2, 3)],
    *[getattr(nn, f"MaxUnpool{n}d")(2, 3, 1) for n in (1, 2, 3)],
    *[
        getattr(nn, f"{kind}Pad{n}d")(2)
        for kind in ("Circular", "Reflection", "Replication", "Zero")
        for n in (1, 2, 3)
    ],
    nn.ZeroPad2d((1, 2, 3, 4)),
    *[getattr(nn, f"ConstantPad{n}d")(2, 3.5) for n in (1, 2, 3)],
    Rescale(2.0, 3.0),
    SimpleNet(4, 3, 2, 0.1),
    SparseLinear(4, 3, bias=False),
    SparseLinear.from_linear(nn.Linear(4, 3)),
]


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def attributes(module: nn.Module) -> dict[str, object]:
    """Return what a module was told, tensors and its parts aside."""
    return {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") or key.startswith("_reversed")
        if not isinstance(value, Tensor) and not (key == "init" and isinstance(module, nn.PReLU))
    }


@pytest.mark.parametrize("layer", SAMPLES, ids=repr)
def test_a_layer_is_built_as_it_was(layer: nn.Module) -> None:
    blueprint = through_json(describe(layer))
    assert foreign(blueprint) is None
    built = construct(blueprint, {})
    assert outline(built) == outline(layer)
    assert attributes(built) == attributes(layer)
    assert all(p.is_meta for p in built.parameters())
    if not isinstance(layer, SparseLinear):
        assert repr(built) == repr(layer)


def test_every_layer_that_a_file_may_name_has_a_sample() -> None:
    assert {type(layer).__name__ for layer in SAMPLES} == LAYERS.keys()


def test_attributes_that_were_changed_count() -> None:
    norm = nn.BatchNorm1d(3)
    norm.momentum, norm.eps = 0.5, 0.25
    assert arguments(norm) == {"num_features": 3, "momentum": 0.5, "eps": 0.25}
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(torch.ones(1, 3))
    why = foreign(describe(layer))
    assert why is not None
    assert "its tensors are not those" in why[1]
    layer.out_features, layer.bias = 1, None  # type: ignore[assignment]
    assert arguments(layer) == {"in_features": 3, "out_features": 1, "bias": False}


def test_building_uses_no_memory_and_no_random_numbers() -> None:
    before = torch.get_rng_state()
    assert build("Linear", {"in_features": 10**9, "out_features": 10**9}).weight.is_meta
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("value", [None, True, 3, -1.5, "same", (1, (2.0, None)), math.inf, -math.inf, ()])
def test_arguments_come_back(value: object) -> None:
    back = decode(through_json(encode(value)))
    assert back == value
    assert type(back) is type(value)
    assert math.isnan(decode(through_json(encode(math.nan))))


@pytest.mark.parametrize("value", [torch.ones(1), {"a": 1}, {1}, object(), 1j, print])
def test_other_arguments_are_refused(value: object) -> None:
    with pytest.raises(ModelFileError, match="cannot be stored"):
        encode(value)


# ---- containers -------------------------------------------------------------------------------


def test_containers_shared_parts_modes_and_own_tensors() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(
        shared, nn.ModuleList([nn.ReLU(), shared]), nn.ModuleDict({"a b": nn.Tanh(), "keys!": nn.Module()})
    )
    held = model[2]["keys!"]
    held.register_parameter("scale", nn.Parameter(torch.ones(3)))
    held.register_parameter("none", None)
    held.register_buffer("count", torch.tensor(4))
    held.register_buffer("table", torch.ones(2), persistent=False)
    model.eval()
    model[1].train()
    blueprint = through_json(describe(model))
    built = construct(blueprint, named_tensors(model))
    assert repr(built) == repr(model)
    assert built[0] is built[1][1]
    assert [m.training for m in built.modules()] == [m.training for m in model.modules()]
    assert named_tensors(built).keys() == named_tensors(model).keys()
    assert {n for n, _ in built.named_parameters()} == {n for n, _ in model.named_parameters()}
    assert built[2]["keys!"].state_dict().keys() == {"scale", "count"}


def test_classes_of_ones_own_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 2))

    class MyLinear(nn.Linear):
        pass

    blueprint = describe(Net())
    assert blueprint["layers.0"]["type"] == "Linear"
    for model in (Net(), nn.Sequential(MyLinear(2, 2))):
        unknown = foreign(describe(model))
        assert unknown is not None
        assert type(model if isinstance(model, Net) else model[0]).__qualname__ in unknown[0]
        with pytest.raises(ModelFileError, match="unknown type"):
            construct(describe(model), named_tensors(model))


def test_what_is_not_what_its_class_makes_is_foreign() -> None:
    patched = nn.ReLU()
    patched.forward = torch.tanh  # type: ignore[method-assign, assignment]
    other = SimpleNet(3, 2, 1, 0.1)
    other.relu = nn.Tanh()  # type: ignore[assignment]
    pruned = prune.l1_unstructured(nn.Linear(4, 3), "weight", amount=5)
    for model in (patched, other, pruned):
        assert foreign(describe(model)) is not None


def test_non_persistent_buffers_stay_out() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.ones(1))
            self.register_buffer("made", torch.ones(1), persistent=False)

    assert named_tensors(Net()).keys() == {"kept"}


LINEAR = {"type": "Linear", "args": {"in_features": 2, "out_features": 2}}
SEQUENTIAL = {"type": "Sequential"}


@pytest.mark.parametrize(
    ("blueprint", "match"),
    [
        (None, "how its model"),
        ([], "how its model"),
        ({}, "how its model"),
        ({"0": LINEAR}, "how its model"),
        ({"0": LINEAR, "": SEQUENTIAL}, "how its model"),
        ({"": None}, "no object"),
        ({"": {}}, "unknown type"),
        ({"": {"type": "os.system", "args": {"command": "true"}}}, "unknown type"),
        ({"": {"type": "Transformer", "args": {}}}, "unknown type"),
        ({"": {"type": ["Linear"], "args": {}}}, "unknown type"),
        ({"": {"type": "Linear"}}, "no arguments"),
        ({"": {"type": "Linear", "args": {"in_features": 2}}}, "missing"),
        (
            {"": {"type": "Linear", "args": {"in_features": 2, "out_features": 2, "device": "cpu"}}},
            "unknown argument",
        ),
        (
            {"": {"type": "Linear", "args": {"in_features": 2, "out_features": 2, "forward": 3}}},
            "unknown argument",
        ),
        (
            {"": {"type": "Embedding", "args": {"num_embeddings": 2, "embedding_dim": 2, "_weight": 3}}},
            "unknown arg",
        ),
        (
            {"": {"type": "Linear", "args": {"in_features": 10**20, "out_features": 2}}},
            "Overflow|too large|out of|int",
        ),
        (
            {"": {"type": "Linear", "args": {"in_features": 2**62, "out_features": 2**62}}},
            "overflow|size|large",
        ),
        (
            {"": {"type": "Linear", "args": {"in_features": {"x": 1}, "out_features": 2}}},
            "argument was expected",
        ),
        (
            {"": {"type": "Linear", "args": {"in_features": {"float": "1"}, "out_features": 2}}},
            "was expected",
        ),
        (
            {"": {"type": "RNN", "args": {"input_size": 2, "hidden_size": 2, "num_layers": 10**9}}},
            "at most 1000",
        ),
        (
            {"": {"type": "LSTM", "args": {"input_size": 2, "hidden_size": 2, "num_layers": "9"}}},
            "at most 1000",
        ),
        (
            {"": {"type": "GRU", "args": {"input_size": 2, "hidden_size": 2, "proj_size": 1}}},
            "unknown argument",
        ),
        ({"": LINEAR, "0": LINEAR}, "in no container"),
        ({"": SEQUENTIAL, "0.0": LINEAR}, "in no container"),
        ({"": SEQUENTIAL, "forward": LINEAR}, "forward"),
        ({"": SEQUENTIAL, "training": LINEAR}, "training"),
        ({"": SEQUENTIAL, ".": LINEAR}, "empty string"),
        ({"": {"type": "ModuleList"}, "1": LINEAR}, "not the next"),
        ({"": {"type": "ModuleList"}, "x": LINEAR}, "not the next"),
        ({"": SEQUENTIAL, ".".join("0" * 70): LINEAR}, "nested"),
        ({"": {"same": ""}}, "no earlier"),
        ({"": SEQUENTIAL, "0": {"same": "1"}, "1": LINEAR}, "no earlier"),
        ({"": SEQUENTIAL, "0": {"same": ["1"]}}, "no earlier"),
        ({"": SEQUENTIAL, "0": {"same": ""}}, "parts"),
        ({"": SEQUENTIAL, "0": SEQUENTIAL, "0.0": {"same": "0"}}, "parts"),
        ({"": {"type": "Module", "parameters": ["w"]}}, "missing"),
        ({"": {"type": "Module", "parameters": ["forward"]}}, "missing"),
        ({"": {"type": "Module", "buffers": 3}}, "iterable"),
        ({"": {"type": "Module", "parameters": ["there.x"]}}, "contain"),
        ({"": {"type": "Module", "buffers": ["train"]}}, "exists"),
    ],
)
def test_bad_blueprints_are_refused(blueprint: Any, match: str) -> None:
    tensors = {"there.x": torch.ones(1), "train": torch.ones(1)}
    with pytest.raises((ModelFileError, TypeError, RuntimeError, KeyError, OverflowError), match=match):
        construct(blueprint, tensors)


def test_parts_that_double_again_and_again_are_refused() -> None:
    blueprint: dict[str, Any] = {"": SEQUENTIAL, "a0": SEQUENTIAL, "a0.0": LINEAR}
    for level in range(1, 60):
        blueprint[f"a{level}"] = SEQUENTIAL
        blueprint |= {f"a{level}.{side}": {"same": f"a{level - 1}"} for side in (0, 1)}
    with pytest.raises(ModelFileError, match="more than 100000 parts"):
        construct(blueprint, {})


# ---- graphs -----------------------------------------------------------------------------------


def traced() -> fx.GraphModule:
    """Return a graph with every kind of node and argument."""
    root = nn.Module()
    root.add_module("block", nn.Module())
    root.block.add_module("conv", nn.Conv2d(3, 4, 3))  # type: ignore[union-attr]
    root.add_module("lstm", nn.LSTM(4, 3, batch_first=True))
    root.register_parameter("scale", nn.Parameter(torch.full((3,), 2.0)))
    root.register_buffer("shift", torch.ones(3), persistent=False)
    aten = torch.ops.aten
    graph = fx.Graph()
    x, start = graph.placeholder("x"), graph.placeholder("start", default_value=None)
    y = graph.call_module("block.conv", (x,))
    y = graph.call_function(aten.clamp.default, (y,), {"max": math.inf, "min": 0})
    y = graph.call_function(aten.flatten.using_ints, (y, 2))
    y = graph.call_function(aten.permute.default, (y, [0, 2, 1]))
    rows = graph.call_function(aten.sym_size.int, (y, 1))
    half = graph.call_function(operator.floordiv, (rows, 2))
    y = graph.call_function(operator.getitem, (y, (slice(None), slice(None, half))))
    pair = graph.call_module("lstm", (y, start))
    out = graph.call_function(operator.getitem, (pair, 0))
    out = graph.call_function(aten.mul.Tensor, (out, graph.get_attr("scale")))
    out = graph.call_function(operator.add, (out, graph.get_attr("shift")))
    zero = graph.call_function(
        aten.zeros.default,
        ([half, 2],),
        {"dtype": torch.int64, "device": torch.device("cpu"), "layout": torch.strided},
    )
    copy = graph.call_function(aten.clone.default, (zero,), {"memory_format": torch.contiguous_format})
    graph.output({"out": out, "more": (copy, [rows, None, 1.5, "text", True])})
    return fx.GraphModule(root, graph, "CompactedNet")


def rebuilt(model: nn.Module) -> nn.Module:
    built = construct(through_json(describe(model)), named_tensors(model))
    values = named_tensors(model)
    for name, tensor in named_tensors(built).items():
        prefix, _, key = name.rpartition(".")
        value = values[name].detach()
        setattr(
            built.get_submodule(prefix),
            key,
            nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value,
        )
    return built


def test_a_graph_comes_back() -> None:
    model = traced().eval()
    built = rebuilt(model)
    assert type(built).__name__ == "CompactedNet"
    assert isinstance(built, fx.GraphModule)
    assert built.code == model.code
    assert built.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3, 6, 6)
    (left, left_spec), (right, right_spec) = (pytree.tree_flatten(m(x)) for m in (model, built))
    assert left_spec == right_spec
    assert all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(left, right, strict=True)
    )


def test_nested_inputs_and_outputs_come_back() -> None:
    class Net(nn.Module):
        def forward(self, rows: dict[str, Tensor], *, factor: Tensor) -> dict[str, Any]:
            return {"0": rows["a"] * factor, "1": (rows["b"][1] - factor,)}

    rows = {"a": torch.ones(2), "b": [torch.ones(2), torch.ones(2)]}
    model = torch.export.export(Net(), (rows,), {"factor": torch.tensor(3.0)}, strict=False).module()
    for node in [node for node in model.graph.nodes if node.op == "call_module"]:
        model.graph.erase_node(node)
    plain = fx.GraphModule(nn.Module(), model.graph)
    built = rebuilt(plain)
    out = built(rows, factor=torch.tensor(3.0))
    assert torch.equal(out["0"], torch.full((2,), 3.0))
    assert torch.equal(out["1"][0], torch.full((2,), -2.0))


def test_other_graphs_are_foreign() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x).add_(1)

    in_place = fx.Graph()
    in_place.output(in_place.call_function(torch.ops.aten.add_.Tensor, (in_place.placeholder("x"), 1)))
    for model in (fx.symbolic_trace(Net()), fx.GraphModule(nn.Module(), in_place)):
        assert foreign(describe(model)) is not None


def test_a_plain_attribute_in_a_graph_is_foreign() -> None:
    root, graph = nn.Module(), fx.Graph()
    root.constant = 3  # type: ignore[assignment]
    graph.output(graph.get_attr("constant"))
    assert foreign(describe(fx.GraphModule(root, graph))) is not None


X = {"op": "placeholder", "name": "x", "target": "x"}
OUT = {"op": "output", "name": "output", "target": "output", "args": [{"node": "x"}]}
EVIL = "__import__('os').system('true')"


def call(target: object, *args: object, name: object = "y", **kwargs: object) -> dict[str, object]:
    return {"op": "call_function", "name": name, "target": target, "args": list(args), "kwargs": kwargs}


@pytest.mark.parametrize(
    "node",
    [
        call("aten.relu.default", {"node": "x"}, name=EVIL),
        call("aten.relu.default", {"node": "x"}, name="x"),
        call("aten.relu.default", {"node": "x"}, name="self"),
        call("aten.relu.default", {"node": "x"}, name="lambda"),
        call("aten.relu.default", {"node": "x"}, name=None),
        call("aten.relu.default", {"node": "y"}),
        call("aten.relu.default", {"node": ["x"]}),
        call("aten.relu.default", {"x": "x", "y": "y"}),
        call("aten.relu.default", {"dtype": "nn"}),
        call("aten.relu.default", {"dtype": "float32\n"}),
        call("aten.relu.default", {"device": "cuda"}),
        call("aten.relu.default", {"tuple": 3}),
        call("aten.relu.default", {"slice": [1, 2, 3, 4]}),
        call("aten.relu.default", **{EVIL: 3}),
        call("aten.relu.default", **{"a = 1, b": 3}),
        call("aten.relu_.default", {"node": "x"}),
        call("aten.relu.nothing", {"node": "x"}),
        call("aten.relu", {"node": "x"}),
        call("aten.nothing.default", {"node": "x"}),
        call("aten.__class__.mro", {"node": "x"}),
        call("aten.from_file.default", "/etc/passwd"),
        call("aten.add.out", {"node": "x"}, {"node": "x"}),
        call("aten._sparse_csr_tensor_unsafe.default", {"node": "x"}),
        call("aten.max_pool2d_with_indices_backward.default", {"node": "x"}),
        call("aten.fbgemm_linear_fp16_weight.default", {"node": "x"}),
        call("aten.set_.source_Tensor", {"node": "x"}),
        call("aten.set.source_Tensor", {"node": "x"}),
        call("aten.sparse_csr_tensor.crow_col_value_size", {"node": "x"}),
        call("prims.copy_to.default", {"node": "x"}),
        call("operator.setitem", {"node": "x"}, 0, 0),
        call("operator.methodcaller", "exit"),
        call("operator.attrgetter", "__class__"),
        call("operator.iadd", {"node": "x"}, 1),
        call("torch.load", "file.pt"),
        call("builtins.eval", EVIL),
        call("os.system", "true"),
        call(["aten"]),
        {"op": "call_method", "name": "y", "target": "numpy", "args": [{"node": "x"}]},
        {"op": "call_module", "name": "y", "target": "missing"},
        {"op": "call_module", "name": "y", "target": "part.__class__"},
        {"op": "get_attr", "name": "y", "target": "forward.__globals__"},
        {"op": "get_attr", "name": "y", "target": EVIL},
        {"op": "get_attr", "name": "y", "target": "__class__"},
        {"op": "placeholder", "name": "y", "target": f"a={EVIL}"},
        {"op": "placeholder", "name": "y", "target": "*args"},
        {"op": "exec", "name": "y", "target": "x"},
        {"op": "output", "name": "y", "target": "output", "args": [1]},
        {"name": "y"},
        {**X, "name": "y", "kwargs": []},
        {**X, "name": "y", "args": {}},
        "node",
    ],
)
def test_bad_nodes_are_refused(node: object) -> None:
    with pytest.raises((ModelFileError, TypeError, AssertionError)):
        decode_graph({"nodes": [X, node, OUT]}, ["part"], ["w"])


@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_names_that_would_be_code_are_refused(kind: str) -> None:
    """A name that is in the file may still not get into the source."""
    evil = 'x"); print("run"); ("'
    nodes = [{"op": "get_attr", "name": "y", "target": evil}, OUT | {"args": [{"node": "y"}]}]
    blueprint = {"": {"type": "GraphModule", "graph": {"name": "G", "nodes": nodes}, kind: [evil]}}
    with pytest.raises(ModelFileError, match="no plain name"):
        construct(blueprint, {evil: torch.ones(1)})


def test_layers_whose_names_would_be_code_are_refused() -> None:
    evil = 'x"); print("run"); ("'
    nodes = [X, {"op": "call_module", "name": "y", "target": evil, "args": [{"node": "x"}]}, OUT]
    blueprint = {
        "": {"type": "GraphModule", "graph": {"name": "G", "nodes": nodes}},
        evil: {"type": "ReLU", "args": {}},
    }
    with pytest.raises(ModelFileError, match="no plain name"):
        construct(blueprint, {})


def test_a_good_graph_of_that_kind_is_taken() -> None:
    nodes = [X, call("aten.relu.default", {"node": "x"}), {"op": "get_attr", "name": "w", "target": "w"}, OUT]
    assert len(decode_graph({"nodes": nodes}, ["part"], ["w"]).nodes) == 4


SPEC: dict[str, Any] = {"of": "builtins.tuple", "keys": None, "items": [None]}


@pytest.mark.parametrize(
    "extra",
    [
        {"arguments": ["x"], "inputs": 3},
        {"arguments": ["x"], "inputs": {**SPEC, "of": "os.system"}},
        {"arguments": ["x"], "inputs": {**SPEC, "of": "collections.defaultdict", "keys": {}}},
        {"arguments": ["x"], "inputs": {**SPEC, "of": "collections.namedtuple", "keys": "x"}},
        {"arguments": ["x"], "inputs": {**SPEC, "of": "builtins.dict", "keys": [EVIL]}},
        {"arguments": ["x"], "inputs": {**SPEC, "keys": 3}},
        {"arguments": ["x"], "inputs": {**SPEC, "items": 3}},
        {"arguments": [EVIL], "inputs": SPEC},
        {"arguments": None, "inputs": SPEC},
        {"arguments": ["x"], "inputs": SPEC, "outputs": 3},
        {"arguments": ["x"], "inputs": SPEC, "outputs": {"spec": "x"}},
    ],
)
def test_bad_nesting_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError):
        decode_graph({"nodes": [X, OUT], **extra}, [], [])


@pytest.mark.parametrize("encoded", [None, [], {}, {"nodes": 3}])
def test_a_graph_must_be_one(encoded: object) -> None:
    with pytest.raises(ModelFileError, match="no list of nodes"):
        decode_graph(encoded, [], [])


@pytest.mark.parametrize("nodes", [[], [X], [OUT | {"args": []}, X]])
def test_a_graph_ends_at_its_output(nodes: list[object]) -> None:
    with pytest.raises((ModelFileError, ValueError)):
        decode_graph({"nodes": nodes}, [], [])


def test_devices_become_the_cpu() -> None:
    graph = fx.Graph()
    zeros = graph.call_function(torch.ops.aten.zeros.default, ([2],), {"device": torch.device("cuda:1")})
    graph.output(zeros)
    nodes = encode_graph(fx.GraphModule(nn.Module(), graph))["nodes"]
    assert nodes[0]["kwargs"] == {"device": {"device": "cpu"}}
