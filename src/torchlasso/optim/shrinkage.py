"""The penalty's side of an optimizer step: what it remembers between steps, and the step itself.

Everything that shrinks weights (``attach``, the fused optimizers, the orthant rule) has one ``Shrinkage``.
It holds the step count, the evidence of the dead weights, the measured gradient noise and the frozen zeros,
and says how all of it is saved and restored.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchlasso.errors import InputError
from torchlasso.optim.evidence import (
    MemorySteps,
    begin,
    bounded,
    check_memory,
    is_alive,
    memory_of,
    narrowed,
    noise,
    shrunk_within,
    step_with_evidence,
    widened,
)
from torchlasso.optim.pace import Pace
from torchlasso.optim.targets import Targets
from torchlasso.prox import Kink, at_least_float32
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Term, real

NOISE_EVERY = 11
"""Steps between two looks at the gradient noise.

A prime, as epochs have round numbers of steps: if they have 15, every tenth never sees the small last batch.
"""

_NOISE_MEMORY = 0.9  # of its running average, in looks
HALF = (torch.float16, torch.bfloat16)


class Shrinkage:
    """What a regularizer remembers of a training run.

    Args:
        regularizer: what is penalised.
        memory: ``"auto"`` or a number of steps.

    Attributes:
        regularizer: as given.
        memory: as given.
        steps: optimizer steps taken.
        pace: how short the optimizer's steps have become.
        evidence: ρ of every parameter that has one.
        noise: per term, the mean of ``(grad/slope)²`` over dead weights, a number or a 0-d tensor.
        frozen: where each parameter is held at zero, or None.
        grad_scale: what the gradients are still multiplied with after a step (0-d tensor), or None.

    Raises:
        InputError: the memory is neither.
    """

    def __init__(self, regularizer: Regularizer, memory: MemorySteps) -> None:
        self.memory = check_memory(memory)
        self.steps = 0
        self.pace = Pace()
        self.evidence: dict[nn.Parameter, Tensor] = {}
        self.noise: dict[str, float | Tensor] = {}
        self.frozen: dict[nn.Parameter, Tensor] | None = None
        self.grad_scale: Tensor | None = None
        self._watched: list[tuple[nn.Parameter, Tensor]] = []
        self._versions: list[tuple[int, int]] = []
        self._begun: Regularizer | None = None
        self._levels: dict[str, float] = {}
        self.take(regularizer)

    def advance(self) -> None:
        """Count a step, and let strengths that follow the zeros take note of it."""
        self.steps += 1
        self.regularizer.step = self.steps
        if self.frozen is None:
            self._targets.advance(self.steps, 1.0 if self.grad_scale is None else self.grad_scale)

    def take(self, regularizer: Regularizer) -> None:
        """Go on with another regularizer; the evidence of parameters that both penalise stays.

        Args:
            regularizer: what is penalised from now on.

        Raises:
            InputError: a strength is a fraction that was not resolved.
        """
        regularizer.step = self.steps
        for term in regularizer.current_terms():
            _ = term.penalty.current_strength  # a fraction raises here
        penalised = {p for term in regularizer.terms for p in term.parameters}
        self.regularizer, self.noise, self._levels = regularizer, {}, {}
        self.evidence = {p: t for p, t in self.evidence.items() if p in penalised}
        self._targets = Targets(regularizer, restart=self.steps == 0)
        self._scheduled = [term for term in regularizer.terms if callable(term.penalty.strength)]

    def freeze(self) -> None:
        """Hold every penalised weight that is now zero at zero, without a penalty."""
        self.frozen = {p: p.detach() == 0 for term in self.regularizer.terms for p in term.parameters}

    def unfreeze(self) -> None:
        """Let the zeros move again; what was trained meanwhile is alive where it is."""
        self.frozen = self._begun = None

    # ---- one step of one term ------------------------------------------------------------------------------

    def kink_of(self, term: Term) -> Kink | None:
        """Return the form of a term's penalty.

        Args:
            term: at the current step.
        """
        first = term.parameters[0]
        dtype = torch.promote_types(real(first).dtype, torch.float32)
        return term.penalty.kink(torch.empty((), dtype=dtype, device=first.device).expand(term.shape))

    @torch.no_grad()
    def step(self, term: Term, metric: float | Tensor, limit: float | Tensor | None) -> None:
        """Replace the weights of a block by their proximal map.

        Args:
            term: at any step; its strength is read at the current one.
            metric: ``D`` of the block.
            limit: the optimizer's largest step, or None.
        """
        if self.frozen is not None:
            self._hold(term, metric)
            return
        term = term.at(self.steps)
        kink = self.kink_of(term)
        evidence = self.evidence_of(term, kink)
        block = term.gather(term.parameters)
        if evidence is None or kink is None:
            self._write(term, shrunk_within(term.penalty, kink, block, metric, limit))
            return
        half = term.parameters[0].dtype in HALF
        wide = widened(block, evidence) if half else at_least_float32(block)
        shrunk = shrunk_within(term.penalty, kink, wide, metric, limit)
        metric = bounded(metric, kink, limit)
        if self.memory == 0:
            new, evidence = shrunk, begin(shrunk)
        else:
            span = self.memory_of(term, kink, evidence) * max(self.pace.of(p) for p in term.parameters)
            new, evidence = step_with_evidence(wide, shrunk, kink, evidence, metric, span)
        if half:
            new, evidence = narrowed(new, evidence, block.dtype)
        self._write(term, new)
        for parameter, part in zip(term.parameters, term.scatter(evidence), strict=True):
            self.evidence[parameter].copy_(part)

    def evidence_of(self, term: Term, kink: Kink | None) -> Tensor | None:
        """Return ρ of a block, or None where the plain proximal step is to be taken."""
        if kink is None or (self.memory == 0 and term.parameters[0].dtype not in HALF):
            return None
        for parameter in term.parameters:
            if parameter not in self.evidence:
                self.evidence[parameter] = begin(real(parameter))
        return term.gather([self.evidence[p] for p in term.parameters])

    @property
    def looks(self) -> bool:
        """Whether this step is to measure the gradient noise."""
        return self.memory == "auto" and self.steps % NOISE_EVERY == 0

    def memory_of(
        self, term: Term, kink: Kink, evidence: Tensor, grad: Tensor | None = None
    ) -> float | Tensor:
        """Return ``N`` for this step, and look at the gradient noise for the next ones now and then.

        Args:
            term: at the current step.
            kink: the form of its penalty.
            evidence: ρ of the block.
            grad: of the block, where the parameters hold another: a GradScaler may have scaled it.
        """
        taken = self.steps + 1
        if self.memory != "auto":
            return float(min(self.memory, taken))
        span = memory_of(self.noise.get(term.name), taken)
        if self.looks and all(p.grad is not None for p in term.parameters):
            if grad is None:
                grad = term.gather([p.grad.detach().to_dense() for p in term.parameters])  # type: ignore[union-attr]
            self.look(term.name, *noise(grad, kink, evidence))
        return span

    def look(self, name: str, total: Tensor, count: Tensor) -> None:
        """Take a measurement of the gradient noise into its running average.

        Args:
            name: of the term.
            total: the sum of ``(grad/slope)²`` over dead weights.
            count: their number.
        """
        before = self.noise.get(name)
        if total.device.type == "cpu":
            if int(count) and bool(total.isfinite()):
                mean = float(total / count)
                self.noise[name] = mean if before is None else _average(float(before), mean)
            return
        mean_there = torch.where(count > 0, total / count.clamp_min(1), 0.0)  # without stalling the device
        old = mean_there if before is None else torch.as_tensor(before, device=total.device)
        seen = (count > 0) & mean_there.isfinite()
        first = old == 0
        self.noise[name] = torch.where(
            seen, torch.where(first, mean_there, _average(old, mean_there)), old.nan_to_num(0.0, 0.0)
        )

    def _hold(self, term: Term, metric: float | Tensor) -> None:
        """Keep the frozen zeros and the constraints."""
        frozen = self.frozen or {}
        free = term.unshrunk()
        self._write(free, free.penalty.prox(free.gather(free.parameters), metric))
        for parameter in term.parameters:
            if parameter in frozen:
                parameter.masked_fill_(frozen[parameter].to(parameter.device), 0.0)

    def _write(self, term: Term, block: Tensor) -> None:
        for parameter, part in zip(term.parameters, term.scatter(block), strict=True):
            real(parameter).copy_(part)

    def prepare(self) -> None:
        """Before a step: begin the evidence where it is wanted, and look for what was written from outside.

        Weights that somebody has written to since the last step, and that are not zero, are alive on the side
        where they now are.  What is written through ``.data`` in place cannot be seen.
        """
        if self.frozen is not None:
            return  # nothing is weighed meanwhile; unfreezing looks at everything
        self._follow_strengths()
        if self._begun is not self.regularizer:
            self._begun = self.regularizer
            for term in self.regularizer.current_terms():
                self.evidence_of(term, self.kink_of(term))
            self._watched = list(self.evidence.items())
            self._versions = []  # look at all of them: who knows what was loaded
        versions = self._written()
        if versions != self._versions:
            before = self._versions or [(-1, -1)] * len(versions)
            for (parameter, known), now, then in zip(self._watched, versions, before, strict=True):
                if now != then:
                    _look_at(parameter, known)

    def _follow_strengths(self) -> None:
        """Bring the noise, which is in units of the strength, in line with strengths that have changed."""
        for term in self._scheduled:
            now = term.at(self.steps).penalty.current_strength
            before = self._levels.get(term.name, now)
            if now > 0:
                self._levels[term.name] = now
                known = self.noise.get(term.name)
                if now != before and isinstance(known, Tensor):
                    known.mul_((before / now) ** 2)  # it may be a view of a table's
                elif now != before and known is not None:
                    self.noise = {**self.noise, term.name: known * (before / now) ** 2}

    def _written(self) -> list[tuple[int, int]]:
        return [(p._version, p.data_ptr()) for p, _ in self._watched]

    def lay_out(self, parameter: nn.Parameter, evidence: Tensor) -> None:
        """Take the evidence of a parameter in another type or memory layout.

        Args:
            parameter: one that has evidence.
            evidence: the same numbers.
        """
        self.evidence[parameter] = evidence
        self._begun = None

    def settle(self) -> None:
        """After a step: note the state that it leaves the weights in, for ``prepare``."""
        self._versions = self._written()

    # ---- saved and restored --------------------------------------------------------------------------------

    def saved(self, numbers: Mapping[nn.Parameter, int]) -> dict[str, Any]:
        """Return everything as plain containers and tensors.

        Args:
            numbers: the number that the optimizer's state dict gives each parameter.
        """
        return {
            "steps": self.steps,
            "rates": list(self.pace.largest),
            "evidence": {numbers[p]: t for p, t in self.evidence.items() if p in numbers},
            "noise": dict(self.noise),
            "levels": dict(self._levels),
            "targets": self._targets.saved(),
            "frozen": None if self.frozen is None else {numbers[p]: m for p, m in self.frozen.items()},
        }

    def restore(self, saved: Mapping[str, Any], numbered: Mapping[int, nn.Parameter]) -> None:
        """Take back what ``saved`` returned.

        Args:
            saved: the same containers.
            numbered: the parameters under their numbers.
        """
        self.steps = self.regularizer.step = int(saved["steps"])
        self.evidence = {
            numbered[n]: t.detach().clone().to(numbered[n].device)
            for n, t in saved.get("evidence", {}).items()
        }
        self.noise, self._levels = dict(saved.get("noise", {})), dict(saved.get("levels", {}))
        self.pace.largest = list(saved.get("rates", []))
        self._targets.restore(saved.get("targets", {}))
        self._begun = None
        frozen = saved["frozen"]
        self.frozen = frozen and {numbered[n]: m.to(numbered[n].device) for n, m in frozen.items()}

    def check_frozen(self, saved: Mapping[str, Any] | None, numbers: Sequence[int]) -> None:
        """Raise ``InputError`` if a saved state has frozen zeros of other parameters.

        Args:
            saved: what is to be restored, or None.
            numbers: of the parameters that the regularizer penalises.
        """
        frozen = saved and saved["frozen"]
        if frozen is not None and set(frozen) != set(numbers):
            msg = (
                "the loaded state holds frozen zeros of other parameters than the regularizer penalises; "
                "attach the regularizer that it was saved with"
            )
            raise InputError(msg)


def _average(old: Any, new: Any) -> Any:
    return _NOISE_MEMORY * old + (1 - _NOISE_MEMORY) * new


def _look_at(parameter: nn.Parameter, known: Tensor) -> None:
    """Bring the evidence of a parameter in line with weights that were written from outside.

    A zero that counts as alive has no side yet: it has the one to which its gradient pulls.
    """
    w = real(parameter.detach())
    grad = None if parameter.grad is None or parameter.grad.layout != torch.strided else real(parameter.grad)
    sided = w if grad is None else torch.where(w == 0, -grad, w)
    right = is_alive(known) & (torch.signbit(known) == torch.signbit(sided))
    stale = ((w != 0) | is_alive(known)) & ~right
    known.copy_(torch.where(stale, begin(sided), known))
