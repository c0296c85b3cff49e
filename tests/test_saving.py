"""Models in files: the model that was saved comes back bit by bit, small, and nothing hostile is believed."""

import copy
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import save_file
from torch import Tensor, nn

from torchlasso.blueprint import named_tensors
from torchlasso.errors import InputError, ModelFileError, OutputError
from torchlasso.files import read_tensors, write_tensors
from torchlasso.mlp import build_mlp
from torchlasso.saving import load, save
from torchlasso.simplenet import SimpleNet
from torchlasso.sparse_layers import SparseLinear


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    flat = tensor.detach().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return tensor.dtype, tensor.shape, raw


def same(left: nn.Module, right: nn.Module) -> bool:
    """Whether two models hold the same tensors bit by bit."""
    a, b = named_tensors(left), named_tensors(right)
    return list(a) == list(b) and all(bits(a[name]) == bits(b[name]) for name in a)


def thinned(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """Set this share of all weight matrices to zero, at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter[torch.rand(parameter.shape, generator=generator) < share] = 0.0
    return model


def lenet(share: float = 0.95) -> nn.Module:
    """Return a LeNet-300-100 with a share of its weights at zero."""
    return thinned(build_mlp(784, (300, 100), 10), share)


class Net(nn.Module):
    """A class of one's own with tied and non-persistent tensors."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))
        self.out = nn.Linear(4, 9, bias=False)
        self.out.weight = self.words.weight
        self.scale, self.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("made", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.body(self.words(x)) * self.scale + self.shift)
        return y


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def one_line(error: pytest.ExceptionInfo[Exception], path: Path) -> None:
    assert str(error.value).isprintable()
    assert repr(str(path)) in str(error.value)


# ---- round trip -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lenet,
        lambda: nn.Linear(3, 2),
        lambda: thinned(
            nn.Sequential(
                *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
                *(nn.Dropout(), nn.Linear(8 * 9, 5)),
            ),
            0.9,
        ),
        lambda: SimpleNet(20, 10, 2, 0.1),
        lambda: build_mlp(20, (), 1, rescale=(2.0, 3.0)),
        lambda: thinned(nn.LSTM(20, 30, 2, bidirectional=True), 0.9),
        lambda: thinned(nn.MultiheadAttention(32, 4), 0.9),
        lambda: nn.Sequential(SparseLinear.from_linear(nn.Linear(40, 30)), nn.Tanh()),
        lambda: nn.Sequential(SparseLinear(4, 3)),
        lambda: lenet().half(),
        lambda: lenet().to(torch.bfloat16),
        lambda: lenet().double(),
        lambda: lenet().to(torch.complex128),
        lambda: nn.Sequential(),
        lambda: nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 0)),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element", "ignore:Complex modules")
def test_a_model_comes_back(path: Path, make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    save(model, path)
    back = load(path)
    assert same(back, model)
    assert repr(back) == repr(model)
    assert not any(m.training for m in back.modules())
    assert all(
        p.requires_grad == q.requires_grad for p, q in zip(back.parameters(), model.parameters(), strict=True)
    )


def test_outputs_gradients_and_updates_work_after_loading(path: Path) -> None:
    model = nn.Sequential(nn.LSTM(5, 4, batch_first=True))[0]
    save(model, path)
    back = load(path)
    x = torch.randn(2, 3, 5)
    assert torch.equal(back(x)[0], model(x)[0])
    optimizer = torch.optim.SGD(back.parameters(), lr=0.1)
    back(x)[0].sum().backward()
    optimizer.step()
    assert not torch.equal(back(x)[0], model(x)[0])


def test_modes_and_frozen_parameters_come_back(path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[1].eval().requires_grad_(False)
    model.append(SparseLinear(1, 1))
    model[3].bias.requires_grad_(True)
    save(model, path)
    back = load(path)
    assert [m.training for m in back] == [True, False, True, True]
    trained = [True, True, False, False, True, True, False, True]
    assert [p.requires_grad for p in back.parameters()] == trained


def test_tied_tensors_are_stored_once_and_tied_again(path: Path) -> None:
    shared = thinned(nn.Linear(60, 60), 0.9)
    model = nn.Sequential(shared, nn.ReLU(), nn.ModuleDict({"again": shared}), nn.Linear(60, 60))
    model[3].bias = shared.bias
    save(model, path)
    tensors, config = read_tensors(path)
    assert len(config["tensors"]) == 3
    assert config["ties"]["3.bias"] == "0.bias"
    back = load(path)
    assert same(back, model)
    assert back[0] is back[2]["again"]  # type: ignore[index]
    assert back[3].bias is back[0].bias  # type: ignore[index]
    assert not any("again" in name for name in tensors)


def test_odd_values_and_views(path: Path) -> None:
    layer = nn.Linear(60, 50)
    weight = torch.zeros(60, 50).T
    weight[0, :4] = torch.tensor([-0.0, math.nan, math.inf, 1e-45])
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(torch.ones(1).expand(50))
    before = bits(layer.weight)
    save(layer, path)
    assert bits(load(path).weight) == before  # type: ignore[arg-type]
    assert layer.weight.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bool])
def test_odd_parameters_come_back(path: Path, dtype: torch.dtype) -> None:
    held, linear = nn.Module(), nn.Linear(3, 2)
    held.w = nn.Parameter(torch.ones(3).to(dtype), requires_grad=False)
    save(held, path)
    assert same(load(path), held)
    linear.weight = nn.Parameter(torch.ones(2, 3).to(dtype), requires_grad=False)
    save(linear, path)
    if dtype.is_floating_point:
        assert same(load(path), linear)
        return
    with pytest.raises(ModelFileError, match="its tensors are not those"):
        load(path)
    instance = nn.Linear(3, 2)
    instance.weight = nn.Parameter(torch.zeros(2, 3).to(dtype), requires_grad=False)
    assert same(load(path, instance), linear)


@given(
    dtypes=st.lists(st.sampled_from(["float32", "float64", "float16", "int64", "uint8", "bool"]), max_size=3),
    shape=st.lists(st.integers(0, 30), max_size=3),
    share=st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    seed=st.integers(0, 999),
)
def test_any_tensors_come_back(
    tmp_path_factory: pytest.TempPathFactory, dtypes: list[str], shape: list[int], share: float, seed: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "m.safetensors"
    model, rng = nn.Module(), np.random.default_rng(seed)
    for number, dtype in enumerate(dtypes):
        values = torch.from_numpy(np.asarray(rng.normal(size=shape) * 50 * (rng.random(shape) > share)))
        model.register_buffer(f"b{number}", values.abs().to(getattr(torch, dtype)))
    save(model, path)
    assert same(load(path), model)


@pytest.mark.gpu
def test_models_on_a_gpu_come_back_on_the_cpu(path: Path) -> None:
    model = lenet()
    save(copy.deepcopy(model).cuda(), path)
    assert same(load(path), model)
    filled = load(path, lenet(0.0).cuda())
    assert next(filled.parameters()).is_cuda
    assert same(filled.cpu(), model)


# ---- size and layout --------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "least"), [(0.9, 7.5), (0.95, 12.0), (0.99, 60.0)])
def test_a_sparse_lenet_is_many_times_smaller_than_a_dense_file(
    tmp_path: Path, share: float, least: float
) -> None:
    model = lenet(share)
    save(model, tmp_path / "ours.safetensors")
    save_file(model.state_dict(), tmp_path / "dense.safetensors")
    sizes = {name: (tmp_path / f"{name}.safetensors").stat().st_size for name in ("ours", "dense")}
    assert sizes["dense"] / sizes["ours"] > least


def test_anybody_can_read_the_file_with_numpy(path: Path) -> None:
    model = nn.Sequential(
        thinned(nn.Linear(200, 100), 0.95), thinned(nn.Linear(100, 100), 0.7), nn.Linear(100, 9)
    )
    save(model, path)

    def read(path: Path) -> dict[str, Any]:
        header = path.read_bytes()
        header = json.loads(header[8 : 8 + struct.unpack("<Q", header[:8])[0]])
        arrays, found = load_arrays(path), {}
        for name, entry in json.loads(header["__metadata__"]["torchlasso"])["config"]["tensors"].items():
            if entry["layout"] == "dense":
                found[name] = arrays[name]
                continue
            size = math.prod(entry["shape"])
            if entry["layout"] == "mask":
                places = np.unpackbits(arrays[f"{name}.mask"], bitorder="little", count=size) == 1
            else:
                gaps = arrays[f"{name}.gaps"]
                places = (np.cumsum(gaps + (gaps < 255), dtype=int) - 1)[gaps < 255]
            flat = np.zeros(size, arrays[f"{name}.values"].dtype)
            flat[places] = arrays[f"{name}.values"]
            found[name] = flat.reshape(entry["shape"])
        return found

    found = read(path)
    layouts = {entry["layout"] for entry in read_tensors(path)[1]["tensors"].values()}
    assert layouts == {"dense", "mask", "gaps"}
    assert found.keys() == model.state_dict().keys()
    assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in model.state_dict().items())


# ---- a class of one's own ---------------------------------------------------------------------


def test_a_class_of_ones_own_needs_an_instance(path: Path) -> None:
    model = thinned(Net(), 0.5)
    save(model, path)
    with pytest.raises(
        ModelFileError, match=r"Net, which cannot be built from a file.*tl.load\(path, model\)"
    ) as error:
        load(path)
    one_line(error, path)
    instance = Net().eval()
    weight = instance.scale
    assert load(path, instance) is instance
    assert same(instance, model)
    assert instance.scale is weight
    assert instance.out.weight is instance.words.weight
    assert not instance.training
    assert torch.equal(instance.made, torch.ones(2))


def test_layers_of_other_shapes_are_replaced(path: Path) -> None:
    narrow = Net(3)
    save(narrow, path)
    wide = Net(7)
    first, last = wide.body[0], wide.body[3]
    wide.body[1].eval()
    first.weight.requires_grad_(False)
    load(path, wide)
    assert same(wide, narrow)
    assert repr(wide) == repr(narrow)
    assert wide.body[0] is not first
    assert wide.body[3] is not last
    assert [m.training for m in wide.body] == [True, False, True, True]
    assert [p.requires_grad for p in wide.body[0].parameters()] == [False, True]
    x = torch.tensor([1, 2])
    assert torch.equal(wide.eval()(x), narrow.eval()(x))


def test_a_shared_layer_is_replaced_at_both_names(path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first = nn.Linear(width, width)
            self.second = self.first

    save(Twice(2), path)
    model = load(path, Twice(3))
    assert model.first is model.second
    assert model.first.weight.shape == (2, 2)  # type: ignore[union-attr]


def test_a_linear_layer_becomes_a_sparse_one(path: Path) -> None:
    model = thinned(Net(), 0.5)
    model.body[0] = SparseLinear.from_linear(model.body[0])
    save(model, path)
    filled = load(path, Net())
    assert type(filled.body[0]) is SparseLinear  # type: ignore[index]
    assert same(filled, model)
    assert same(load(path, filled), model)


def test_a_model_without_data_is_filled(path: Path) -> None:
    model = Net()
    save(model, path)
    with torch.device("meta"):
        empty = Net()
    filled = load(path, empty)
    assert same(filled, model)
    assert filled.out.weight is filled.words.weight


def test_types_are_those_of_the_file(path: Path) -> None:
    save(nn.Linear(3, 2).half(), path)
    assert load(path, nn.Linear(3, 2)).weight.dtype == torch.float16


def test_a_tie_in_the_file_is_made_in_the_instance(path: Path) -> None:
    save(Net(), path)
    loose = Net()
    loose.out.weight = nn.Parameter(torch.ones(9, 4))
    assert load(path, loose).out.weight is loose.words.weight


def missing(net: Net) -> None:
    del net.scale


def surplus(net: Net) -> None:
    net.more = nn.Linear(1, 1)


def other_layer(net: Net) -> None:
    net.body[0] = nn.Bilinear(4, 4, 6)


def other_shape(net: Net) -> None:
    net.scale = nn.Parameter(torch.ones(5))


def other_kind(net: Net) -> None:
    net.steps = torch.tensor(3.0)


def tied(net: Net) -> None:
    net.shift = net.scale


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (missing, "the file has 'scale', the model has not"),
        (surplus, "the model has 'more.bias', the file has not"),
        (other_layer, "'body.0' is a Linear in the file and a Bilinear in the model"),
        (other_shape, r"the shape of 'scale' is \[4\] in the file and \[5\] in the model"),
        (other_kind, "the type of 'steps' is torch.int64 in the file and torch.float32"),
        (tied, "'scale' and 'shift' are one tensor in the model and two in the file"),
    ],
)
def test_an_instance_that_does_not_fit_is_refused_and_kept(
    path: Path, change: Callable[[Net], None], match: str
) -> None:
    save(Net(3), path)
    net = Net(6)
    change(net)
    before, shown = copy.deepcopy(net), repr(net)
    with pytest.raises(ModelFileError, match=match) as error:
        load(path, net)
    one_line(error, path)
    assert same(net, before)
    assert repr(net) == shown


# ---- what cannot be saved, or is no such file -------------------------------------------------


def test_what_is_no_model_is_refused(path: Path) -> None:
    for wrong in (None, {"w": torch.ones(1)}, torch.ones(1)):
        with pytest.raises(InputError, match="expected a model"):
            save(wrong, path)  # type: ignore[arg-type]
    save(nn.ReLU(), path)
    with pytest.raises(InputError, match="expected a model"):
        load(path, "cpu")  # type: ignore[arg-type]


def test_what_no_file_can_hold_is_refused(path: Path) -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

    sparse = nn.Module()
    sparse.register_buffer("w", torch.eye(3).to_sparse())
    for model, match in ((nn.Sequential(Extra()), "extra state"), (sparse, "expected a dense tensor")):
        with pytest.raises(InputError, match=match):
            save(model, path)
    lazy = nn.LazyLinear(3)
    with pytest.raises(InputError):
        save(lazy, path)
    with pytest.raises(OutputError):
        save(nn.ReLU(), path / "missing" / "m.safetensors")
    assert not path.exists()


def test_other_files_are_refused(path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file"):
        load(path)
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(ModelFileError, match="not one that torchlasso wrote"):
        load(path)
    write_tensors(path, {"w": torch.ones(1)}, {"kind": "table model"})
    with pytest.raises(ModelFileError, match="it holds a 'table model'") as error:
        load(path)
    one_line(error, path)


# ---- damage and lies --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, bytes]:
    path = tmp_path_factory.mktemp("whole") / "m.safetensors"
    model = nn.Sequential(thinned(nn.Linear(40, 30), 0.95), nn.ReLU(), thinned(nn.Linear(30, 30), 0.6))
    save(model, path)
    return model, path.read_bytes()


@given(data=st.data())
def test_flipped_and_cut_bytes_are_found(
    tmp_path_factory: pytest.TempPathFactory, whole: tuple[nn.Module, bytes], data: st.DataObject
) -> None:
    model, content = whole
    path = tmp_path_factory.mktemp("flip") / "m.safetensors"
    damaged = bytearray(
        content[: data.draw(st.sampled_from([len(content)] * 3 + [len(content) - 1, 900, 9]))]
    )
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        back = load(path)
    except ModelFileError as error:
        assert str(error).isprintable()  # noqa: PT017 - both outcomes are allowed
    else:
        assert same(back, model)


def containers(value: Any) -> list[Any]:
    """Return a JSON value's containers, itself first."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    inner = [c for child in children for c in containers(child)]
    return [value, *inner] if isinstance(value, dict | list) and value else inner


LIES = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        3,
        2**40,
        2**63,
        10**30,
        0.5,
        1e308,
        "",
        "0",
        "gaps",
        "Linear",
        "float64",
        [],
        [2**40],
        {},
    ]
)


@given(data=st.data())
def test_signed_lies_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, whole: tuple[nn.Module, bytes], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lie") / "m.safetensors"
    path.write_bytes(whole[1])
    tensors, config = read_tensors(path)
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(containers(config)))
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place))))
        )
        place[key] = data.draw(LIES)
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensors[name] = tensors[name][1:]
    write_tensors(path, tensors, config)
    for instance in (None, copy.deepcopy(whole[0])):
        try:
            assert isinstance(load(path, instance), nn.Module)
        except ModelFileError as error:
            assert str(error).isprintable()  # noqa: PT017 - both outcomes are allowed


def liar(path: Path, model: nn.Module, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> Path:
    """Save a model, change the file's content, and sign it again."""
    save(model, path)
    tensors, config = read_tensors(path)
    change(tensors, config)
    write_tensors(path, tensors, config)
    return path


CSR = nn.Sequential(SparseLinear.from_linear(nn.Linear(4, 3)))


@pytest.mark.parametrize(
    ("model", "change", "match"),
    [
        (
            lenet(),
            lambda t, c: c["tensors"]["hidden1.weight"].update(shape=[10**6, 10**6]),
            "its shape makes 1000000",
        ),
        (
            lenet(),
            lambda t, c: c["modules"]["hidden1"]["args"].update(out_features=10**9),
            "the shape of 'hidden1",
        ),
        (lenet(), lambda t, c: c["modules"]["hidden1"]["args"].update(out_features=10**18), "."),
        (lenet(), lambda t, c: t.update(more=torch.ones(1)), "is not what it holds .'more'"),
        (lenet(), lambda t, c: t.pop("hidden1.weight.gaps"), "is not what it holds .'hidden1.weight.gaps'"),
        (lenet(), lambda t, c: c["tensors"].pop("hidden1.bias"), "is not what it holds"),
        (
            lenet(),
            lambda t, c: c["tensors"].update({"hidden1.weight.gaps": c["tensors"]["hidden1.bias"]}),
            "not what",
        ),
        (lenet(), lambda t, c: c.pop("tensors"), "does not say what its tensors are"),
        (lenet(), lambda t, c: c.pop("ties"), "does not say what its tensors are"),
        (lenet(), lambda t, c: c.pop("modules"), "does not say how its model"),
        (lenet(), lambda t, c: c["ties"].update({"output.bias": "hidden1.bias"}), "said to be the same"),
        (lenet(), lambda t, c: c["ties"].update({"more": "most"}), "said to be the same as 'most'"),
        (lenet(), lambda t, c: c["ties"].update({"more": "hidden1.bias"}), "the file has 'more'"),
        (lenet(), lambda t, c: c["modules"].pop("output"), "the file has 'output.bias'"),
        (lenet(), lambda t, c: c["modules"].update(more=c["modules"]["output"]), "the model has 'more.bias'"),
        (
            lenet(),
            lambda t, c: c["modules"].update(output={"same": "hidden1"}),
            "one tensor in the model|shape",
        ),
        (lenet(), lambda t, c: c["modules"]["relu1"].update({"class": "os.system"}), "holds a os.system"),
        (CSR, lambda t, c: t["0.col_indices"].add_(100), "no sparse matrix"),
        (CSR, lambda t, c: t["0.crow_indices"].fill_(10**9), "no sparse matrix"),
        (CSR, lambda t, c: c["modules"]["0"]["args"].update(out_features=10**9), "the shape of .0.bias"),
        (CSR, lambda t, c: c["modules"]["0"]["args"].update(in_features=2), "nonzero must be"),
    ],
)
def test_signed_lies_are_refused(
    path: Path, model: nn.Module, change: Callable[[dict[str, Tensor], dict[str, Any]], object], match: str
) -> None:
    liar(path, model, change)
    with pytest.raises(ModelFileError, match=match) as error:
        load(path)
    one_line(error, path)


def test_a_lying_layer_changes_no_instance(path: Path) -> None:
    model, instance = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
    before = copy.deepcopy(instance)
    liar(path, model, lambda t, c: c["modules"]["0"]["args"].update(out_features=10**9))
    with pytest.raises(ModelFileError, match="the shape of '0"):
        load(path, instance)
    assert same(instance, before)
