"""The path of strengths of any module: from dense to empty in about the time of two or three fits."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, final

from torch import nn
from torch.optim import Adam, Optimizer

from torchlasso.certify import Certificate, certificate
from torchlasso.errors import InputError
from torchlasso.files import AnyPath
from torchlasso.gradients import Batches, LossFn
from torchlasso.lasso_checkpoint import arguments_of, load_run, save_run
from torchlasso.lasso_points import LassoPoint, table_of
from torchlasso.lasso_refit import Relaxed, refit
from torchlasso.lasso_run import OptimizerFn, Problem, Run
from torchlasso.levels import Ladder, Strengths, check_relative, check_strengths
from torchlasso.path import Rule, choose
from torchlasso.regularizer import Regularizer
from torchlasso.schedules import whole
from torchlasso.streams import check_batches
from torchlasso.validation import Validation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Which = int | Rule | LassoPoint
"""A point: its position, ``"min"`` or ``"1se"``, or itself."""


@final
class LassoPath:
    """A model at growing strengths; ``print`` it for the table.

    Args:
        points: in the order of their strengths.
        problem: what was asked for.
        ladder: the penalties.

    Attributes:
        points: dense to sparse.
        names: the penalised blocks, in the order of ``point.groups``.
    """

    def __init__(self, points: Sequence[LassoPoint], problem: Problem, ladder: Ladder) -> None:
        self.points = tuple(points)
        self.names = tuple(term.name for term in ladder.shrunk)
        self._problem, self._ladder = problem, ladder

    def best(self, rule: Rule = "1se") -> LassoPoint:
        """Return the point with the lowest validation loss, or the sparsest that is as good.

        ``"1se"`` takes the largest strength whose validation loss exceeds the lowest by no more than the
        standard error of that difference, with the losses of the two models paired row by row.

        Args:
            rule: ``"min"`` or ``"1se"``.

        Raises:
            InputError: no point has a finite validation loss, or the rule is neither.
        """
        return choose(self.points, rule)

    def load(self, which: Which = "1se") -> LassoPoint:
        """Load the weights of a point into the model, and return the point.

        Args:
            which: the position of a point, ``"min"`` or ``"1se"``, or a point.

        Raises:
            InputError: there is no such point.
        """
        point = self._point(which)
        self._problem.model.load_state_dict(point.state)
        return point

    def regularizer(self, which: Which = "1se") -> Regularizer:
        """Return the regularizer with the strengths of a point, to train on or to certify with.

        Args:
            which: the position of a point, ``"min"`` or ``"1se"``, or a point.

        Raises:
            InputError: there is no such point.
        """
        return self._ladder.at(self._point(which).strength)

    def certificate(self, which: Which = "1se") -> Certificate:
        """Measure how far a point is from a stationary one; its weights are left in the model.

        Args:
            which: the position of a point, ``"min"`` or ``"1se"``, or a point.

        Raises:
            InputError: there is no such point.
        """
        point, p = self.load(which), self._problem
        return certificate(p.model, self.regularizer(point), p.loss_fn, p.train_batches)

    def refit(self, which: Which = "1se", *, steps: int | None = None) -> Relaxed:
        """Train the nonzero weights of a point without a penalty, and leave the result in the model.

        A penalty also shrinks what it keeps.  The zeros are held, the penalty is off, and of the blends
        ``(1 − a)·penalised + a·refit`` with ``a`` = 0, ¼, ½, ¾, 1 the one with the lowest validation loss
        is taken, so that it is never worse there than the point was.

        Args:
            which: the position of a point, ``"min"`` or ``"1se"``, or a point.
            steps: of a new optimizer with the learning rate falling to zero; None for a quarter of the
                path's ``steps``.

        Returns:
            The blend and the validation losses of all.  The lowest of them is chosen on these rows and
            therefore a little too good; judge the model on others.

        Raises:
            InputError: there is no such point, or the training diverged.

        References:
            The blend: Hastie, Tibshirani and Tibshirani, "Best subset, forward stepwise or lasso?", Stat.
            Sci. 35 (2020); Meinshausen, "Relaxed lasso", Comput. Stat. Data Anal. 52 (2007).
        """
        most = max(1, self._problem.steps // 4) if steps is None else whole(steps, "steps", 1)
        return refit(self._problem, self._ladder, self._point(which), most)

    def table(self) -> str:
        """Return the path as text, one row a strength; ``min`` and ``1se`` mark the two choices."""
        marks = [self._mark(point) for point in self.points]
        return table_of(self.points, self.names, marks)

    def plot(self) -> "Figure":
        """Return a figure of the losses with their error band, the nonzeros, and every weight or group.

        ``figure.savefig("path.png")`` writes it; no window opens.
        """
        from torchlasso.lasso_plots import lasso_figure  # matplotlib takes a second to load

        return lasso_figure(self.points, self._ladder.shrunk, self.best("min"), self.best("1se"))

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        span = f"{self.points[0].strength:.3g} to {self.points[-1].strength:.3g}"
        return f"<LassoPath: {len(self.points)} strengths from {span}; print it for the table>"

    def _mark(self, point: LassoPoint) -> str:
        rules: tuple[Literal["min", "1se"], ...] = ("min", "1se")
        return " ".join(rule for rule in rules if point is self.best(rule))

    def _point(self, which: Which) -> LassoPoint:
        if isinstance(which, LassoPoint):
            return which
        if isinstance(which, str):
            return self.best(which)
        if not isinstance(which, int) or not -len(self.points) <= which < len(self.points):
            msg = f"expected 'min', '1se' or a position from 0 to {len(self.points) - 1}, got {which!r}"
            raise InputError(msg)
        return self.points[which]


def lasso_path(
    model: nn.Module,
    regularizer: Regularizer,
    loss_fn: LossFn,
    train_batches: Batches,
    valid_batches: Batches,
    strengths: Strengths = 50,
    *,
    steps: int = 2000,
    dense_steps: int | None = None,
    optimizer: OptimizerFn | None = None,
    callback: Callable[[LassoPoint], object] | None = None,
    checkpoint: AnyPath | None = None,
) -> LassoPath:
    r"""Train a model at many strengths from dense to empty, each from where the last one ended.

    For every strength λ of the path the objective is ``mean loss + λ·Σ_i s_i·R_i(w_i)``, where ``s_i`` is the
    strength of a rule over the largest one of all rules: the strengths of the regularizer say how the
    penalties relate (``L1("1max")`` everywhere: each block to its own ``strength_max``), the path how strong
    they are together.  A rule at strength 0 or None stays unpenalised, a constraint holds throughout.

    The model is first trained without a penalty.  A number of strengths is then placed geometrically up
    to the strength at which each block alone would vanish, starting from a ten-thousandth of it; the path
    ends early where nothing is left, and goes on by up to a fifth where something is.  One optimizer, never
    reset, takes the model along.  At each strength it stops once loss and nonzeros have settled, or
    when its share of the steps is used up, so a point is not as near to its optimum as a long fit
    would come (``residual``, ``path.certificate``): see how good it is by its validation loss, and
    train on at ``path.regularizer("1se")`` or ``path.refit("1se")`` what you keep.

    Afterwards the model has the weights of ``best("1se")``.

    Args:
        model: any module; trained in place, in training mode, and measured in evaluation mode.
        regularizer: what is penalised.
        loss_fn: the mean loss of a batch.
        train_batches: pairs of input and target that can be read again and again: a ``DataLoader`` or a list.
        valid_batches: likewise, in the same order each time.
        strengths: how many; or the strengths themselves, each a number or a fraction such as ``"0.1max"``
            of the one that ends the path.
        steps: optimizer steps of one fit of this model: epochs times batches.  The dense start takes as
            many, all strengths together at most half as many again.
        dense_steps: of the start without a penalty, if not ``steps``; 0 for a model that is trained already.
        optimizer: from parameter groups to an optimizer, as in ``lambda groups: SGD(groups, lr=0.1)``; None
            for ``Adam`` with a learning rate of 0.003.  Adam's ε is raised to the strength on the way.
        callback: called with every new point; the path ends where it returns True.
        checkpoint: a file that is written after the dense start and after every strength.  Where it is there
            already, the path goes on from it, bit for bit on the CPU.  Other data are not noticed, and
            batches must draw from torch's generators only.

    Returns:
        The points with their losses and weights, the choice of one, table, plot and refit.

    Raises:
        InputError: an argument cannot be used, the checkpoint is of another path, or training diverged.

    Example:
        >>> import torch, torchlasso as tl
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(120, 8)
        >>> y = x[:, :2].sum(dim=1, keepdim=True) + 0.1 * torch.randn(120, 1)
        >>> model = nn.Linear(8, 1)
        >>> path = lasso_path(
        ...     model,
        ...     tl.Regularizer(model, tl.L1(1.0)),
        ...     nn.functional.mse_loss,
        ...     [(x[:80], y[:80])],
        ...     [(x[80:], y[80:])],
        ...     strengths=["0.01max", "0.1max", "1max"],
        ...     optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        ...     steps=600,
        ... )
        >>> [point.nonzero for point in path.points]
        [3, 2, 0]

    References:
        Friedman, Hastie and Tibshirani, "Regularization paths for generalized linear models via coordinate
        descent", J. Stat. Softw. 33 (2010).  From dense to sparse: Lemhadri, Ruan, Abraham and
        Tibshirani, "LassoNet", J. Mach. Learn. Res. 22 (2021).
    """
    _check_optimizer(optimizer)
    check_batches("train_batches", train_batches)
    check_batches("valid_batches", valid_batches)
    problem = Problem(
        _checked_model(model, regularizer),
        regularizer,
        loss_fn,
        train_batches,
        Validation(loss_fn, valid_batches),
        optimizer or default_optimizer,
        check_strengths(strengths),
        whole(steps, "steps", 1),
        steps if dense_steps is None else whole(dense_steps, "dense_steps", 0),
    )
    check_relative(regularizer)
    modes = {module: module.training for module in model.modules()}
    run = Run(problem)
    try:
        _go(run, callback, checkpoint)
    finally:
        run.finish()
        for module, mode in modes.items():
            module.training = mode
    path = LassoPath(run.points, problem, run.ladder)
    path.load("1se")
    return path


def default_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """Return Adam, fused where it can be.

    Args:
        groups: of parameters.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return Adam(groups, lr=3e-3, fused=fused)


def _go(run: Run, callback: Callable[[LassoPoint], object] | None, checkpoint: AnyPath | None) -> None:
    """Start or go on, and write the file after everything that must not be lost."""
    arguments = arguments_of(run.problem, run)
    wants_no_more = False

    def keep() -> None:
        if checkpoint is not None:
            save_run(checkpoint, run, arguments)

    def on_point() -> None:
        nonlocal wants_no_more
        keep()
        wants_no_more = callback is not None and callback(run.points[-1]) is True

    if checkpoint is None or not load_run(checkpoint, run, arguments):
        run.start()
        keep()
    run.walk(on_point, stopped=lambda: wants_no_more)


def _check_optimizer(optimizer: object) -> None:
    if optimizer is not None and not callable(optimizer):
        msg = (
            "optimizer must be a function from parameter groups to an optimizer, such as "
            f"lambda groups: torch.optim.SGD(groups, lr=0.1), got {type(optimizer).__name__}"
        )
        raise InputError(msg)


def _checked_model(model: object, regularizer: object) -> nn.Module:
    if not isinstance(model, nn.Module) or not isinstance(regularizer, Regularizer):
        msg = (
            "lasso_path expects a module and a Regularizer of it, got "
            f"{type(model).__name__} and {type(regularizer).__name__}"
        )
        raise InputError(msg)
    own = set(model.parameters())
    foreign = [m.name for term in regularizer.terms for m in term.members if m.parameter not in own]
    if foreign:
        msg = f"the regularizer penalises {foreign[:8]}, which are not of this model; build it from the model"
        raise InputError(msg)
    return model
