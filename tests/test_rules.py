"""Which parameters a key selects, and which are left alone unless they are named."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from torchlasso.errors import RuleError
from torchlasso.rules import Candidate, candidates, describe_key, matches, names_exactly


class FooNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))


class FooNorm2d(FooNorm):
    pass


class Normal(nn.Module):
    """Its name only begins like a normalisation's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.unbiased = nn.Parameter(torch.ones(2))
        self.bias_table = nn.Parameter(torch.ones(2, 2))


def _all(model: nn.Module) -> dict[str, Candidate]:
    return {candidate.names[0]: candidate for candidate in candidates(model)}


def _matched(model: nn.Module, key: object) -> set[str]:
    return {name for name, candidate in _all(model).items() if matches(key, candidate)}


@pytest.fixture
def model() -> nn.Module:
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 2)))
    return nn.ModuleDict({"encoder": encoder, "head": nn.Linear(2, 2, bias=False)})


# ---- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("head.weight", {"head.weight"}),
        ("*", {"encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"}
         | {"encoder.2.0.weight", "encoder.2.0.bias", "head.weight"}),
        ("encoder.?.bias", {"encoder.0.bias", "encoder.1.bias"}),
        ("*.[02].weight", {"encoder.0.weight", "encoder.2.0.weight"}),
        ("encoder.2.*", {"encoder.2.0.weight", "encoder.2.0.bias"}),
        ("Head.weight", set()),
        ("head", set()),
        (re.compile(r".*\.2\..*"), {"encoder.2.0.weight", "encoder.2.0.bias"}),
        (re.compile("head"), set()),  # the whole name, not a part
        (re.compile("HEAD.weight", re.IGNORECASE), {"head.weight"}),
        (nn.Linear, {"encoder.2.0.weight", "encoder.2.0.bias", "head.weight"}),
        (nn.Sequential, set()),  # owns no parameter itself
        (nn.modules.conv._ConvNd, {"encoder.0.weight", "encoder.0.bias"}),
    ],
)  # fmt: skip
def test_keys_by_name_and_type(model: nn.Module, key: object, expected: set[str]) -> None:
    assert _matched(model, key) == expected


def test_a_module_selects_everything_inside_it(model: nn.Module) -> None:
    encoder = model.get_submodule("encoder")
    assert _matched(model, encoder) == {name for name in _all(model) if name.startswith("encoder.")}
    assert _matched(model, model) == set(_all(model))
    assert _matched(model, nn.Linear(2, 2)) == set()


def test_a_parameter_selects_itself_even_where_another_is_equal(model: nn.Module) -> None:
    weight = model.get_parameter("head.weight")
    assert _matched(model, weight) == {"head.weight"}
    assert _matched(model, nn.Parameter(weight.detach().clone())) == set()


@pytest.mark.parametrize("key", [3, None, torch.ones(2), int, ("head.weight",), b"head.weight"])
def test_other_keys_are_refused(model: nn.Module, key: object) -> None:
    with pytest.raises(RuleError, match="a rule's key must be a glob"):
        _matched(model, key)


def test_tied_parameters_are_one_candidate_with_all_their_names_and_owners() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    found = _all(nn.ModuleDict({"a": first, "b": second}))
    assert list(found) == ["a.weight", "a.bias", "b.bias"]
    tied = found["a.weight"]
    assert tied.names == ("a.weight", "b.weight")
    assert tied.owners == (first, second)
    for key in ("b.*", second, re.compile("b.weight")):
        assert matches(key, tied)


def test_a_module_used_twice_is_one_candidate_under_both_names() -> None:
    layer = nn.Linear(2, 2)
    found = _all(nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)}))
    assert found["a.weight"].names == ("a.weight", "b.0.weight")
    assert len(found) == 2


def test_a_parameter_of_the_model_itself_is_found() -> None:
    found = _all(nn.Linear(2, 2))
    assert list(found) == ["weight", "bias"]
    assert matches("weight", found["weight"])


def test_a_lazy_parameter_is_refused_with_the_way_out() -> None:
    with pytest.raises(RuleError, match=r"'0.weight' has no shape yet; pass one batch"):
        list(candidates(nn.Sequential(nn.LazyLinear(3))))


# ---- what is left alone -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: nn.Linear(2, 3), {"weight": None, "bias": "bias"}),
        (lambda: nn.Bilinear(2, 2, 3), {"weight": None, "bias": "bias"}),
        (lambda: nn.BatchNorm1d(3), {"weight": "normalisation", "bias": "bias"}),
        (lambda: nn.InstanceNorm2d(3, affine=True), {"weight": "normalisation", "bias": "bias"}),
        (lambda: nn.SyncBatchNorm(3), {"weight": "normalisation", "bias": "bias"}),
        (lambda: nn.LayerNorm(3), {"weight": "normalisation", "bias": "bias"}),
        (lambda: nn.GroupNorm(1, 3), {"weight": "normalisation", "bias": "bias"}),
        (lambda: nn.RMSNorm(3), {"weight": "normalisation"}),
        (FooNorm, {"weight": "normalisation", "scale": "normalisation"}),
        (FooNorm2d, {"weight": "normalisation", "scale": "normalisation"}),
        (Normal, {"weight": None}),
        (lambda: nn.Embedding(4, 3), {"weight": "embedding"}),
        (lambda: nn.EmbeddingBag(4, 3), {"weight": "embedding"}),
        (Scaled, {"logit_scale": "scalar", "unbiased": None, "bias_table": "bias"}),
        (
            lambda: nn.LSTM(2, 3),
            {"weight_ih_l0": None, "weight_hh_l0": None, "bias_ih_l0": "bias", "bias_hh_l0": "bias"},
        ),
        (
            lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
            {"in_proj_weight": None, "in_proj_bias": "bias", "bias_k": "bias", "bias_v": "bias"}
            | {"out_proj.weight": None, "out_proj.bias": "bias"},
        ),
    ],
)
def test_default_exclusions(build: Callable[[], nn.Module], expected: dict[str, str | None]) -> None:
    assert {name: candidate.exclusion for name, candidate in _all(build()).items()} == expected


def test_a_weight_tied_to_an_embedding_is_left_alone() -> None:
    embedding, output = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    output.weight = embedding.weight
    (candidate,) = candidates(nn.ModuleDict({"out": output, "in": embedding}))
    assert candidate.exclusion == "embedding"


# ---- naming exactly ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "exact"),
    [
        ("lin.bias", "lin.bias", True),
        ("lin.bias", "*.bias", True),
        ("lin.bias", "lin.*", False),
        ("lin.bias", "*bias", False),
        ("lin.bias", "lin.b?as", False),
        ("lin.bias", re.compile("lin.bias"), False),
        ("lin.bias", nn.Linear, False),
        ("norm.weight", "norm.weight", True),
        ("norm.weight", "*.norm.weight", True),
        ("norm.weight", "*.weight", False),  # says nothing of norms
        ("norm.weight", "*", False),
        ("norm.weight", "n*.weight", False),
        ("norm.weight", nn.BatchNorm1d, True),
        ("norm.weight", nn.Module, False),
        ("norm.bias", nn.BatchNorm1d, False),
        ("emb.weight", "emb.weight", True),
        ("emb.weight", "*.weight", False),
        ("emb.weight", nn.Embedding, True),
        ("scaled.logit_scale", "*.logit_scale", True),
        ("scaled.logit_scale", Scaled, False),
    ],
)
def test_what_names_a_parameter_exactly(name: str, key: object, exact: bool) -> None:
    modules = {
        "lin": nn.Linear(2, 2),
        "norm": nn.BatchNorm1d(2),
        "emb": nn.Embedding(2, 2),
        "scaled": Scaled(),
    }
    candidate = _all(nn.ModuleDict(modules))[name]
    assert names_exactly(key, candidate) is exact  # type: ignore[arg-type]


def test_the_parameter_or_its_own_module_name_it_but_the_module_around_does_not() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Scaled())
    found = _all(model)
    assert names_exactly(model[1].bias, found["1.bias"])
    assert names_exactly(model[1], found["1.weight"])
    assert not names_exactly(model[1], found["1.bias"])
    assert not names_exactly(model, found["1.weight"])
    assert not names_exactly(model[2], found["2.logit_scale"])


def test_a_bare_name_names_the_parameter_of_the_model_itself() -> None:
    assert names_exactly("weight", _all(nn.LayerNorm(2))["weight"])


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.*", "'a.*'"),
        (re.compile(r"a\d"), r"re 'a\\d'"),
        (nn.Linear, "Linear"),
        (nn.Linear(1, 1), "this Linear"),
        (nn.Parameter(torch.ones(1)), "this Parameter"),
    ],
)
def test_keys_are_shown_as_they_were_written(key: object, expected: str) -> None:
    assert describe_key(key) == expected
