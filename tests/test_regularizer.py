"""Rules resolved on whole models: who is penalised and why, the differentiable sum, the table."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

import torchlasso as tl
from torchlasso.errors import InputError, RuleError
from torchlasso.terms import Member, Term


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.fc1 = nn.Linear(4, 5)
        self.fc2 = nn.Linear(5, 2)
        self.temperature = nn.Parameter(torch.tensor(1.0))


def _penalised(regularizer: tl.Regularizer) -> dict[str, float]:
    return {term.name: term.penalty.current_strength for term in regularizer.terms}


def _reason(regularizer: tl.Regularizer, name: str) -> str:
    (row,) = (row for row in regularizer.rows if name in row.names)
    return row.reason


def test_one_penalty_goes_to_all_weights_and_to_nothing_else() -> None:
    regularizer = tl.Regularizer(Net(), tl.L1(0.1))
    assert _penalised(regularizer) == {"conv.weight": 0.1, "fc1.weight": 0.1, "fc2.weight": 0.1}
    reasons = {row.names[0]: row.reason for row in regularizer.rows if row.penalty is None}
    assert reasons == {
        "temperature": "scalar, not penalised by default",
        "emb.weight": "embedding, not penalised by default",
        "conv.bias": "bias, not penalised by default",
        "norm.weight": "normalisation, not penalised by default",
        "norm.bias": "bias, not penalised by default",
        "fc1.bias": "bias, not penalised by default",
        "fc2.bias": "bias, not penalised by default",
    }


def test_each_kind_of_key_selects_and_the_first_match_wins() -> None:
    net = Net()
    rules = {
        net.fc2.bias: tl.L1(1.0),
        net.fc2: tl.L1(2.0),
        nn.Conv2d: tl.L1(3.0),
        re.compile(r"fc\d\..*"): tl.L1(4.0),
        "*": tl.L1(5.0),
        "emb.weight": tl.L1(6.0),
    }
    penalised = _penalised(tl.Regularizer(net, {**rules, "*": None}))
    assert penalised == {"fc2.bias": 1.0, "fc2.weight": 2.0, "conv.weight": 3.0, "fc1.weight": 4.0}


def test_a_shadowed_rule_has_no_effect_and_the_table_says_which_rule_decided() -> None:
    regularizer = tl.Regularizer(Net(), {"*": tl.L1(0.1), "fc1.weight": None, nn.Conv2d: tl.L1(9.0)})
    assert _penalised(regularizer) == {"conv.weight": 0.1, "fc1.weight": 0.1, "fc2.weight": 0.1}
    assert _reason(regularizer, "fc1.weight") == "rule '*'"
    assert _reason(regularizer, "conv.weight") == "rule '*'"


def test_none_leaves_alone_and_what_no_rule_matches_is_left_alone_too() -> None:
    regularizer = tl.Regularizer(Net(), {"fc1.*": None, "fc*": tl.L1(0.1)})
    assert _penalised(regularizer) == {"fc2.weight": 0.1}
    assert _reason(regularizer, "fc1.weight") == "rule 'fc1.*'"
    assert _reason(regularizer, "conv.weight") == "no rule matches"


@pytest.mark.parametrize(
    "key", ["fc1.bias", "norm.weight", "emb.weight", "temperature", "*.bias", nn.Embedding]
)
def test_naming_a_parameter_overrides_the_defaults(key: Any) -> None:
    assert _penalised(tl.Regularizer(Net(), {key: tl.L1(0.1)})).keys() >= {
        {"*.bias": "norm.bias", nn.Embedding: "emb.weight"}.get(key, key)
    }


def test_a_pattern_on_all_weights_spares_norms_and_embeddings() -> None:
    regularizer = tl.Regularizer(Net(), {"*.weight": tl.L1(0.1)})
    assert set(_penalised(regularizer)) == {"conv.weight", "fc1.weight", "fc2.weight"}


def test_frozen_parameters_are_never_penalised() -> None:
    net = Net()
    net.fc1.weight.requires_grad_(False)
    regularizer = tl.Regularizer(net, tl.L1(0.1))
    assert set(_penalised(regularizer)) == {"conv.weight", "fc2.weight"}
    assert _reason(regularizer, "fc1.weight") == "frozen (requires_grad is False)"
    for key in ("fc1.weight", net.fc1.weight):
        with pytest.raises(RuleError, match=r"frozen \(requires_grad is False\)"):
            tl.Regularizer(net, {key: tl.L1(0.1)})


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("fc1", "did you mean 'fc1.*'"),
        ("cnov.weight", "did you mean 'conv.weight'"),
        ("decoder.*", "The model has: temperature, emb.weight, conv.weight"),
        (re.compile("fc1"), r"rule re 'fc1' matches no parameter\. The model has"),
        (nn.Conv1d, r"rule Conv1d matches no parameter\. The model has"),
        (nn.Linear(1, 1), r"rule this Linear matches no parameter\."),
    ],
)
def test_a_rule_that_matches_nothing_raises_with_a_hint(key: Any, hint: str) -> None:
    with pytest.raises(RuleError, match=hint):
        tl.Regularizer(Net(), {"*": tl.L1(0.1), key: tl.L1(0.2)})
    with pytest.raises(RuleError, match=hint):
        tl.Regularizer(Net(), {key: None, "*": tl.L1(0.2)})


@pytest.mark.parametrize("key", ["norm.*", "*norm*", re.compile(".*bias"), "temp*", "emb*"])
def test_a_penalty_that_would_do_nothing_raises_and_says_why(key: Any) -> None:
    with pytest.raises(RuleError, match=r"penalises nothing \(.*not penalised by default.*name it exactly"):
        tl.Regularizer(Net(), {key: tl.L1(0.1), "*": tl.L1(0.2)})


def test_nothing_penalised_at_all_raises_with_the_table() -> None:
    with pytest.raises(RuleError, match=r"no parameter is penalised:\n[\s\S]*fc1\.weight"):
        tl.Regularizer(Net(), {"*": None})
    with pytest.raises(RuleError, match="no parameter is penalised"):
        tl.Regularizer(Net(), {})


def test_a_model_without_parameters_raises() -> None:
    with pytest.raises(RuleError, match="ReLU has no parameters"):
        tl.Regularizer(nn.ReLU(), tl.L1(0.1))


@pytest.mark.parametrize("rules", [0.1, None, [tl.L1(0.1)], "L1"])
def test_rules_of_another_kind_are_refused(rules: Any) -> None:
    with pytest.raises(RuleError, match="expected a penalty or a mapping"):
        tl.Regularizer(Net(), rules)


@pytest.mark.parametrize("penalty", [0.1, "l1", tl.L1])
def test_a_rule_must_give_a_penalty_or_none(penalty: Any) -> None:
    with pytest.raises(RuleError, match=r"rule '\*' must give a penalty such as L1"):
        tl.Regularizer(Net(), {"*": penalty})


def test_complex_parameters_are_penalised_by_their_modulus() -> None:
    net = nn.Module()
    net.a = nn.Parameter(torch.tensor([3 + 4j, 0.0], dtype=torch.complex64))
    net.b = nn.Parameter(torch.ones(2))
    assert tl.Regularizer(net, tl.L1(0.1))().item() == pytest.approx(0.1 * (5 + 2))


def test_a_penalty_without_a_meaning_for_complex_parameters_is_refused() -> None:
    net = nn.Module()
    net.a, net.b = nn.Parameter(torch.ones(2, dtype=torch.complex64)), nn.Parameter(torch.ones(2))
    with pytest.raises(RuleError, match=r"'a' cannot take the penalty.*not defined for complex"):
        tl.Regularizer(net, tl.ElasticNet(0.1))
    assert set(_penalised(tl.Regularizer(net, {"a": None, "*": tl.L1(0.1)}))) == {"b"}


def test_a_penalty_that_does_not_fit_names_the_parameter_and_the_rule() -> None:
    with pytest.raises(
        RuleError, match=r"parameter 'fc1.weight' cannot take the penalty of rule 'fc1\*': weights"
    ):
        tl.Regularizer(Net(), {"fc1*": tl.L1(0.1, weights=torch.ones(3))})
    with pytest.raises(RuleError, match=r"parameter 'fc1.bias' cannot take .* dimensions"):
        tl.Regularizer(Net(), {"fc1.bias": tl.GroupLasso(0.1, groups="columns")})


# ---- the differentiable sum -------------------------------------------------------------------


def _loop(pairs: list[tuple[float, Tensor]]) -> Tensor:
    total = torch.zeros(())
    for strength, weight in pairs:
        for entry in weight.flatten():
            total = total + strength * entry.abs()
    return total


def test_the_sum_and_its_gradient_equal_a_plain_loop() -> None:
    net = Net()
    regularizer = tl.Regularizer(net, {"fc*": tl.L1(0.3), "conv*": tl.L1(0.1)})
    value = regularizer()
    pairs = [(0.3, net.fc1.weight), (0.3, net.fc2.weight), (0.1, net.conv.weight)]
    expected = _loop(pairs)
    assert value.grad_fn is not None
    assert value.shape == ()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    weights = [weight for _, weight in pairs]
    found = torch.autograd.grad(value, weights)
    wanted = torch.autograd.grad(expected, weights)
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_sum_leaves_everything_else_without_a_gradient() -> None:
    net = Net()
    torch.autograd.backward(tl.Regularizer(net, tl.L1(0.1))())
    touched = {name for name, p in net.named_parameters() if p.grad is not None}
    assert touched == {"conv.weight", "fc1.weight", "fc2.weight"}


def test_the_sum_is_built_anew_at_every_call() -> None:
    net = Net()
    regularizer = tl.Regularizer(net, tl.L1(0.1))
    for _ in range(2):  # a cached graph would raise the second time
        torch.autograd.backward(regularizer())
    before = regularizer().item()
    with torch.no_grad():
        net.fc1.weight.mul_(2)
    assert regularizer().item() > before


def test_tied_weights_are_penalised_once() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    regularizer = tl.Regularizer(nn.Sequential(first, second), tl.L1(0.5))
    assert regularizer().item() == pytest.approx(0.5 * first.weight.detach().abs().sum().item())
    assert [row.names for row in regularizer.rows] == [("0.weight", "1.weight")]


def test_dtypes_may_be_mixed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double(), nn.Linear(3, 3).bfloat16())
    value = tl.Regularizer(model, tl.L1(0.5))()
    expected = sum(0.5 * float(layer.weight.detach().double().abs().sum()) for layer in model)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_half_precision_sums_do_not_overflow() -> None:
    model = nn.Linear(1000, 1000, bias=False).half()
    nn.init.constant_(model.weight, 1.0)
    assert tl.Regularizer(model, tl.L1(1.0))().item() == 1e6  # float16 ends at 65504


# ---- strengths that change --------------------------------------------------------------------


def test_a_schedule_is_read_at_the_step() -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    regularizer = tl.Regularizer(model, tl.L1(lambda step: 0.25 * step))
    found = []
    for step in (0, 1, 4):
        regularizer.step = step
        found.append((regularizer().item(), regularizer.current_terms()[0].penalty.current_strength))
    assert found == [(0.0, 0.0), (0.5, 0.25), (2.0, 1.0)]


def test_the_table_shows_the_strength_of_the_step() -> None:
    regularizer = tl.Regularizer(nn.Linear(2, 1), tl.L1(lambda step: 0.25 * step))
    assert "0.75" not in str(regularizer)
    regularizer.step = 3
    assert "0.75" in str(regularizer)


def test_with_strength_changes_the_strengths_and_nothing_else() -> None:
    net = Net()
    regularizer = tl.Regularizer(net, {"fc*": tl.L1(0.1), "conv*": tl.GroupLasso(lambda step: 0.2)})
    regularizer.step = 5
    other = regularizer.with_strength(0.7)
    assert _penalised(other) == {"conv.weight": 0.7, "fc1.weight": 0.7, "fc2.weight": 0.7}
    assert regularizer.terms[1].penalty.current_strength == 0.1
    assert other.step == 5
    assert [(row.names, row.reason) for row in other.rows] == [
        (row.names, row.reason) for row in regularizer.rows
    ]
    assert str(other).count("0.7") == 3
    assert [t.members for t in other.terms] == [t.members for t in regularizer.terms]


# ---- the table --------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_parameter() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[2].weight.requires_grad_(False)
    table = str(tl.Regularizer(model, {"0.weight": tl.GroupLasso(0.25), "*": None}))
    lines = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]
    assert lines[0] == ["parameter", "shape", "penalty", "strength", "reason"]
    assert set(lines[1][0]) == {"─"}
    assert lines[2:] == [
        ["0.weight", "3×2", "GroupLasso(rows)", "0.25", "rule '0.weight'"],
        ["0.bias", "3", "–", "–", "bias, not penalised by default"],
        ["1.weight", "3", "–", "–", "normalisation, not penalised by default"],
        ["1.bias", "3", "–", "–", "bias, not penalised by default"],
        ["2.weight", "1×3", "–", "–", "frozen (requires_grad is False)"],
        ["2.bias", "1", "–", "–", "bias, not penalised by default"],
    ]


def test_the_table_shows_tied_names_and_scalars() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    model = nn.ModuleDict({"a": first, "b": second})
    model.gain = nn.Parameter(torch.tensor(1.0))
    table = str(tl.Regularizer(model, tl.L1(0.1)))
    assert "a.weight = b.weight" in table
    assert re.search(r"gain\s+scalar\s+–", table)


def test_repr_counts_terms_and_weights() -> None:
    assert repr(tl.Regularizer(Net(), tl.L1(0.1))).startswith("<Regularizer: 3 terms on 84 weights")


# ---- joint terms ------------------------------------------------------------------------------


def _joint(build: Callable[[tuple[Member, ...]], Term]) -> tuple[tl.Regularizer, list[nn.Parameter]]:
    conv, norm, following = nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
    nn.init.normal_(norm.weight)
    members = (
        Member("conv.weight", conv.weight),
        Member("norm.weight", norm.weight),
        Member("next.weight", following.weight, dim=1),
    )
    return tl.Regularizer.from_terms([build(members)]), [conv.weight, norm.weight, following.weight]


def test_a_joint_group_shrinks_as_one_vector() -> None:
    """The prox of channel g is that of all its weights in one vector, found by minimising over it."""
    regularizer, (conv, norm, following) = _joint(lambda m: Term(tl.GroupLasso(0.8, weights=None), m))
    (term,) = regularizer.terms
    with torch.no_grad():
        found = term.scatter(term.penalty.prox(term.gather(term.parameters), 0.5))
    for g in range(3):
        w = (
            torch.cat([conv[g].flatten(), norm[g : g + 1], following[:, g].flatten()])
            .detach()
            .double()
            .numpy()
        )
        x = torch.cat([found[0][g].flatten(), found[1][g : g + 1], found[2][:, g].flatten()]).double().numpy()
        result = scipy.optimize.minimize(
            lambda v, w=w: ((v - w) ** 2).sum() / (2 * 0.5) + 0.8 * (v**2).sum() ** 0.5, w * 0.5, tol=1e-12
        )
        assert x == pytest.approx(result.x, abs=1e-5)


def test_joint_terms_show_in_the_table_and_in_the_sum() -> None:
    regularizer, weights = _joint(lambda m: Term(tl.GroupLasso(0.5, weights=None), m))
    assert "together with 2 more" in str(regularizer)
    assert len(regularizer.rows) == 3
    conv, norm, following = (w.detach() for w in weights)
    squares = conv.square().sum((1, 2, 3)) + norm.square() + following.square().sum((0, 2, 3))
    assert regularizer().item() == pytest.approx(0.5 * float(squares.sqrt().sum()), rel=1e-6)


def test_a_parameter_may_be_in_one_term_only() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    once = Term(tl.L1(0.1), (Member("w", weight),))
    with pytest.raises(RuleError, match=r"\['w'\] are in several"):
        tl.Regularizer.from_terms([once, Term(tl.L1(0.2), (Member("w", weight),))])
    with pytest.raises(RuleError, match="are in several"):
        tl.Regularizer.from_terms([Term(tl.L1(0.1), (Member("w", weight), Member("w", weight)))])


def test_no_terms_are_refused() -> None:
    with pytest.raises(RuleError, match="at least one term"):
        tl.Regularizer.from_terms([])


def test_weight_norm_is_left_alone_as_its_direction_must_not_reach_zero() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.PReLU(), nn.Linear(2, 1))
    regularizer = tl.Regularizer(model, tl.L1(0.3))
    assert [term.name for term in regularizer.terms] == ["2.weight"]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    tl.attach(optimizer, regularizer)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


# ---- strengths given as fractions -----------------------------------------------------------------


def test_fractions_become_numbers_once_the_data_are_known() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    batches = [(torch.randn(20, 3), torch.randn(20, 1))]
    rules: dict[Any, Any] = {
        "0.*": tl.GroupLasso("0.5max", groups="columns"),
        "2.weight": tl.ElasticNet("2e-1max", l1_ratio=0.25),
    }
    relative = tl.Regularizer(model, rules)
    resolved = relative.resolve(model, nn.functional.mse_loss, iter(batches))
    largest = tl.strength_max(model, relative, nn.functional.mse_loss, batches)
    expected = {"0.weight": 0.5 * largest["0.weight"], "2.weight": 0.2 * largest["2.weight"]}
    assert _penalised(resolved) == pytest.approx(expected)
    assert resolved.terms[1].penalty.l1_ratio == 0.25
    assert "0.5max" in str(relative)
    assert f"{expected['0.weight']:.4g}" in str(resolved)
    assert [term.penalty.strength for term in relative.terms] == ["0.5max", "2e-1max"]  # as it was


def test_just_above_the_whole_fraction_zero_is_the_optimum_and_below_it_is_not() -> None:
    model = nn.Linear(3, 1, bias=False)
    batches = [(torch.randn(20, 3), torch.randn(20, 1))]
    for fraction, holds in (("1.001max", True), ("0.999max", False)):
        regularizer = tl.Regularizer(model, tl.L1(fraction))
        resolved = regularizer.resolve(model, nn.functional.mse_loss, batches)
        nn.init.zeros_(model.weight)
        found = tl.certificate(model, resolved, nn.functional.mse_loss, batches)
        assert (found.residual == 0) == holds


def test_numbers_and_schedules_stay_beside_fractions() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def schedule(step: int) -> float:
        return 0.1 * step

    relative = tl.Regularizer(model, {"0.*": tl.L1(schedule), "2.*": tl.L1(0.3)})
    resolved = relative.resolve(model, nn.functional.mse_loss, [])
    assert [term.penalty.strength for term in resolved.terms] == [schedule, 0.3]


@pytest.mark.parametrize("use", ["value", "certificate", "attach"])
def test_a_fraction_that_was_not_resolved_says_what_to_do(use: str) -> None:
    model = nn.Linear(3, 1)
    relative = tl.Regularizer(model, tl.L1("0.1max"))
    x, y = torch.randn(20, 3), torch.randn(20, 1)

    def attached() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tl.attach(optimizer, relative)
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    actions: dict[str, Callable[[], object]] = {
        "value": relative,
        "certificate": lambda: tl.certificate(model, relative, nn.functional.mse_loss, [(x, y)]),
        "attach": attached,
    }
    with pytest.raises(InputError, match=r"'0.1max' .* needs data; use .*resolve"):
        actions[use]()


def test_a_block_without_a_largest_strength_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    batches = [(torch.randn(20, 3), torch.randn(20, 1))]
    with pytest.raises(InputError, match=r"unused.weight has no strength_max .* as it is 0"):
        tl.Regularizer(model, tl.L1("0.1max")).resolve(model, nn.functional.mse_loss, batches)
    ridge = tl.Regularizer(model, tl.ElasticNet("0.1max", l1_ratio=0.0))
    with pytest.raises(InputError, match=r"used.weight has no strength_max .* as it is inf"):
        ridge.resolve(model, nn.functional.mse_loss, batches)
