"""A requested sparsity is met, under real optimizers and on real data, and stays met."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import torchlasso as tl
from torchlasso.errors import InputError
from torchlasso.optim.attach import Handle
from torchlasso.optim.fused import ProxAdamW
from torchlasso.penalties.base import Penalty
from torchlasso.target import TargetSparsity
from torchlasso.training import Batches, cosine, train

cross_entropy = nn.functional.cross_entropy
bce = nn.functional.binary_cross_entropy_with_logits
Make = Callable[[nn.Module, tl.Regularizer], tuple[Optimizer, Handle]]


def _attached(kind: Callable[..., Optimizer], **options: Any) -> Make:
    def make(model: nn.Module, regularizer: tl.Regularizer) -> tuple[Optimizer, Handle]:
        optimizer = kind(model.parameters(), **options)
        return optimizer, tl.attach(optimizer, regularizer)

    return make


def _fused(model: nn.Module, regularizer: tl.Regularizer) -> tuple[Optimizer, Handle]:
    optimizer = ProxAdamW(model.parameters(), regularizer, lr=2e-3, weight_decay=0.0)
    return optimizer, optimizer.handle


MAKES: dict[str, Make] = {
    "Adam": _attached(Adam, lr=2e-3),
    "SGD": _attached(SGD, lr=0.05, momentum=0.9),
    "ProxAdamW": _fused,
    "Adafactor": _attached(torch.optim.Adafactor, lr=2e-2),
}


@pytest.fixture(scope="module")
def digits() -> Batches:
    x, y = load_digits(return_X_y=True)
    return Batches(
        torch.from_numpy(StandardScaler().fit_transform(x)).float(), torch.from_numpy(y).long(), 64
    )


@pytest.fixture(scope="module")
def cancer() -> Batches:
    x, y = load_breast_cancer(return_X_y=True)
    return Batches(
        torch.from_numpy(StandardScaler().fit_transform(x)), torch.from_numpy(y)[:, None] * 1.0, 569
    )


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))


def _weights(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters() if p.ndim == 2]


def _zeros(*weights: Tensor) -> float:
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


# ---- the request is met --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("part", [0.5, 0.9, 0.98])
def test_a_net_on_minibatches_ends_at_the_request_and_refits_with_its_zeros(
    digits: Batches, kind: str, part: float
) -> None:
    model, target, stream = _net(), TargetSparsity(part, by_step=600), digits.stream()
    optimizer, handle = MAKES[kind](model, tl.Regularizer(model, tl.L1(target)))
    train(model, cross_entropy, stream, optimizer, steps=600)
    assert abs(_zeros(*_weights(model)) - part) <= 0.005
    assert target.reached
    assert target.sparsity_now == pytest.approx(_zeros(*_weights(model)), abs=1e-12)
    handle.freeze_zeros()
    zeros, strength = [w == 0 for w in _weights(model)], target.strength
    train(model, cross_entropy, stream, optimizer, steps=60)
    assert all(torch.equal(w == 0, zero) for w, zero in zip(_weights(model), zeros, strict=True))
    assert target.strength == strength


@pytest.mark.parametrize("make", [lambda s: tl.LogSum(s, epsilon=0.05), tl.LHalf], ids=["LogSum", "LHalf"])
def test_a_concave_penalty_is_driven_too(digits: Batches, make: Callable[[Any], Penalty]) -> None:
    """The slope of ℓ½ at zero is infinite, so that no gradient says at which strength all would be zero."""
    for part in (0.5, 0.95):
        model, target = _net(), TargetSparsity(part, by_step=800)
        optimizer, _ = MAKES["Adam"](model, tl.Regularizer(model, make(target)))
        train(model, cross_entropy, digits.stream(), optimizer, steps=800)
        assert abs(_zeros(*_weights(model)) - part) <= 0.005


def test_by_step_may_be_the_end_of_a_cosine_decay(digits: Batches) -> None:
    model, target = _net(), TargetSparsity(0.9, by_step=600)
    optimizer, _ = MAKES["Adam"](model, tl.Regularizer(model, tl.L1(target)))
    train(model, cross_entropy, digits.stream(), optimizer, steps=600, decay=cosine)
    assert abs(_zeros(*_weights(model)) - 0.9) <= 0.005


def test_the_request_is_held_afterwards(digits: Batches) -> None:
    model, target, stream = _net(), TargetSparsity(0.9, by_step=400), digits.stream()
    optimizer, _ = MAKES["SGD"](model, tl.Regularizer(model, tl.L1(target)))
    for _ in range(4):
        train(model, cross_entropy, stream, optimizer, steps=400)
        assert abs(_zeros(*_weights(model)) - 0.9) <= 0.005


@pytest.mark.parametrize("kind", ["Adam", "ProxAdamW", "SGD"])
def test_features_are_kept_in_number(digits: Batches, kind: str) -> None:
    model, target = _net(), TargetSparsity(keep=20, of="groups", by_step=1000)
    rules: dict[Any, Penalty] = {"0.weight": tl.GroupLasso(target, groups="columns"), "2.weight": tl.L1(1e-4)}
    optimizer, _ = MAKES[kind](model, tl.Regularizer(model, rules))
    train(model, cross_entropy, digits.stream(), optimizer, steps=1000, decay=cosine)
    assert int((_weights(model)[0] != 0).any(dim=0).sum()) == target.kept == 20


class _Unknown(Penalty):
    """The lasso as a user would write it, without a kink: only its zeros can be seen."""

    def validate(self, shape: torch.Size) -> None:
        """Take any shape."""

    def value(self, w: Tensor) -> Tensor:
        return tl.L1(self.strength).value(w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return tl.L1(self.strength).prox(w, step)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        return tl.L1(self.strength).residual(w, grad)

    def strength_max(self, grad: Tensor) -> float:
        return tl.L1(self.strength).strength_max(grad)

    def support(self, w: Tensor) -> Tensor:
        return w != 0


def test_of_the_penalty_only_the_zeros_are_seen(digits: Batches) -> None:
    model, target = _net(), TargetSparsity(0.9, by_step=1000)
    optimizer, _ = MAKES["SGD"](model, tl.Regularizer(model, _Unknown(target)))
    rows = Batches(digits.inputs, digits.target, 2000)  # noise would revive zeros: nothing weighs it here
    train(model, cross_entropy, rows.stream(), optimizer, steps=1000)
    assert abs(_zeros(*_weights(model)) - 0.9) <= 0.005


def test_one_object_is_one_request_for_all_and_several_are_one_each(digits: Batches) -> None:
    together, model = TargetSparsity(0.8, by_step=500), _net()
    optimizer, _ = MAKES["Adam"](model, tl.Regularizer(model, tl.L1(together)))
    train(model, cross_entropy, digits.stream(), optimizer, steps=500)
    assert abs(_zeros(*_weights(model)) - 0.8) <= 0.005
    assert abs(_zeros(_weights(model)[1]) - 0.8) > 0.05  # the layers share it out between them

    each = TargetSparsity(0.9, by_step=500), TargetSparsity(0.6, by_step=500)
    model = _net()
    regularizer = tl.Regularizer(model, {"0.weight": tl.L1(each[0]), "2.weight": tl.L1(each[1])})
    optimizer, _ = MAKES["Adam"](model, regularizer)
    train(model, cross_entropy, digits.stream(), optimizer, steps=500)
    for w, part in zip(_weights(model), (0.9, 0.6), strict=True):
        assert abs(_zeros(w) - part) <= 0.005
    assert each[0].strength != each[1].strength


# ---- full batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "kept"), [(0.8, 6), (0.9, 3)])
@pytest.mark.parametrize("options", [{"kind": Adam, "lr": 0.02}, {"kind": SGD, "lr": 0.1, "momentum": 0.9}])
def test_a_linear_model_ends_at_a_stationary_point_of_the_strength(
    cancer: Batches, options: dict[str, Any], part: float, kept: int
) -> None:
    torch.manual_seed(0)
    model, target = nn.Linear(30, 1, dtype=torch.float64), TargetSparsity(part, by_step=1500)
    regularizer = tl.Regularizer(model, tl.L1(target))
    optimizer, handle = _attached(**options)(model, regularizer)
    train(model, bce, cancer.stream(), optimizer, steps=1500)
    assert abs(int((model.weight != 0).sum()) - kept) <= 1
    assert target.reached
    handle.update(regularizer.with_strength(target.strength))
    train(model, bce, cancer.stream(), optimizer, steps=3000)
    assert tl.certificate(model, handle.regularizer, bce, list(cancer)).residual <= 1e-2


def test_a_model_at_its_dense_optimum_can_be_brought_to_the_request(cancer: Batches) -> None:
    """Its gradients are nearly zero at first: they say nothing about the strength."""
    torch.manual_seed(0)
    model = nn.Linear(30, 1, dtype=torch.float64)
    train(model, bce, cancer.stream(), Adam(model.parameters(), lr=0.02), steps=300)
    target = TargetSparsity(0.8, by_step=2000)
    optimizer, _ = _attached(Adam, lr=0.02)(model, tl.Regularizer(model, tl.L1(target)))
    train(model, bce, cancer.stream(), optimizer, steps=2000)
    assert abs(int((model.weight != 0).sum()) - 6) <= 1


# ---- what stops it -----------------------------------------------------------------------------------------


def test_no_zeros_asked_for_is_no_strength(cancer: Batches) -> None:
    model, target = nn.Linear(30, 1, dtype=torch.float64), TargetSparsity(0.0, by_step=50)
    optimizer, _ = _attached(Adam, lr=0.01)(model, tl.Regularizer(model, tl.L1(target)))
    train(model, bce, cancer.stream(), optimizer, steps=60)
    assert (target.strength, target.kept, target.reached) == (0.0, 30, True)


def test_a_request_that_cannot_be_met_warns_once_with_what_was(cancer: Batches) -> None:
    always = torch.zeros(30)
    always[15:] = 1.0
    model, target = nn.Linear(30, 1, dtype=torch.float64), TargetSparsity(0.9, by_step=200)
    optimizer, _ = _attached(Adam, lr=0.02)(model, tl.Regularizer(model, tl.L1(target, weights=always)))
    with pytest.warns(UserWarning, match=r"50.00% zeros, 15 of 30 weights kept"):
        train(model, bce, cancer.stream(), optimizer, steps=200)
    before = target.strength
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, bce, cancer.stream(), optimizer, steps=200)
    assert 0 < target.strength < 100 * before


def test_a_warm_up_at_rate_zero_winds_nothing_up(cancer: Batches) -> None:
    model, target = nn.Linear(30, 1, dtype=torch.float64), TargetSparsity(0.8, by_step=600)
    optimizer, _ = _attached(SGD, lr=0.0, momentum=0.9)(model, tl.Regularizer(model, tl.L1(target)))
    train(model, bce, cancer.stream(), optimizer, steps=200)
    first = target.strength
    assert (
        first
        <= 1.01e-3 * 10 * tl.strength_max(model, tl.Regularizer(model, tl.L1(1.0)), bce, [*cancer])["weight"]
    )
    optimizer.param_groups[0]["lr"] = 0.05
    train(model, bce, cancer.stream(), optimizer, steps=400)
    assert abs(int((model.weight != 0).sum()) - 6) <= 1


def test_a_skipped_step_is_not_counted(cancer: Batches) -> None:
    model, target = nn.Linear(30, 1, dtype=torch.float64), TargetSparsity(0.8, by_step=100)
    optimizer = Adam(model.parameters(), lr=0.01, fused=True)
    handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(target)))
    bce(model(cancer.inputs), cancer.target).backward()
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]  # as a GradScaler does
    optimizer.step()
    assert (handle.steps, target.kept) == (0, None)


def test_frozen_zeros_stop_it_and_unfreezing_lets_it_go_on(digits: Batches) -> None:
    model, target, stream = _net(), TargetSparsity(0.9, by_step=400), digits.stream()
    optimizer, handle = MAKES["Adam"](model, tl.Regularizer(model, tl.L1(target)))
    train(model, cross_entropy, stream, optimizer, steps=200)
    handle.freeze_zeros()
    before = target.saved()
    train(model, cross_entropy, stream, optimizer, steps=30)
    assert target.saved() == before
    handle.unfreeze_zeros()
    train(model, cross_entropy, stream, optimizer, steps=300)
    assert abs(_zeros(*_weights(model)) - 0.9) <= 0.005


def test_update_brings_another_request(digits: Batches) -> None:
    model, stream = _net(), digits.stream()
    first, second = TargetSparsity(0.6, by_step=300), TargetSparsity(0.9, by_step=800)
    optimizer, handle = MAKES["Adam"](model, tl.Regularizer(model, tl.L1(first)))
    train(model, cross_entropy, stream, optimizer, steps=300)
    handle.update(tl.Regularizer(model, tl.L1(second)))
    train(model, cross_entropy, stream, optimizer, steps=500)
    assert abs(_zeros(*_weights(model)) - 0.9) <= 0.005
    with pytest.raises(InputError, match="no groups"):
        handle.update(tl.Regularizer(model, tl.L1(TargetSparsity(0.5, of="groups", by_step=9))))


def test_attaching_anew_begins_anew(cancer: Batches) -> None:
    model, target = nn.Linear(30, 1, dtype=torch.float64), TargetSparsity(0.5, by_step=100)
    optimizer, handle = _attached(Adam, lr=0.01)(model, tl.Regularizer(model, tl.L1(target)))
    train(model, bce, cancer.stream(), optimizer, steps=20)
    handle.remove()
    tl.attach(optimizer, tl.Regularizer(model, tl.L1(target)))
    assert (target.strength, target.kept) == (0.0, None)


# ---- the state travels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKES)
def test_a_hundred_steps_are_fifty_saved_loaded_and_fifty(digits: Batches, kind: str) -> None:
    def session() -> tuple[nn.Module, TargetSparsity, Optimizer]:
        model, target = _net(), TargetSparsity(0.7, by_step=80)
        return model, target, MAKES[kind](model, tl.Regularizer(model, tl.L1(target)))[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # eighty steps may not be enough for the request
        whole, target, optimizer = session()
        train(whole, cross_entropy, digits.stream(), optimizer, steps=100)
        first, _, optimizer = session()
        stream = digits.stream()
        train(first, cross_entropy, stream, optimizer, steps=50)
        file = io.BytesIO()
        torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        second, again, optimizer = session()
        train(second, cross_entropy, digits.stream(), optimizer, steps=3)
        second.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        train(second, cross_entropy, stream, optimizer, steps=50)
    assert again.saved() == target.saved()
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_a_fused_optimizer_goes_on_where_it_was(
    digits: Batches, copied: Callable[..., Any]
) -> None:
    model, target, stream = _net(), TargetSparsity(0.9, by_step=1000), digits.stream()
    optimizer, _ = _fused(model, tl.Regularizer(model, tl.L1(target)))
    train(model, cross_entropy, stream, optimizer, steps=40)
    other, others = copied((model, optimizer))
    ours, theirs = digits.stream(), digits.stream()
    train(model, cross_entropy, ours, optimizer, steps=40)
    train(other, cross_entropy, theirs, others, steps=40)
    assert others.handle.regularizer.terms[0].penalty.strength is not target
    assert others.handle.regularizer.terms[0].penalty.strength.saved() == target.saved()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_saved_before_there_were_targets_still_loads(cancer: Batches) -> None:
    model, target = nn.Linear(30, 1, dtype=torch.float64), TargetSparsity(0.5, by_step=100)
    optimizer, handle = _attached(Adam, lr=0.01)(model, tl.Regularizer(model, tl.L1(target)))
    train(model, bce, cancer.stream(), optimizer, steps=20)
    state, strength = optimizer.state_dict(), target.strength
    del state["torchlasso"]["targets"]
    optimizer.load_state_dict(state)
    assert (handle.steps, target.strength) == (20, strength)
