"""The data of the benchmark of feature selection, each with its split, its request and its judge."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

Groups = tuple[tuple[int, ...], ...]
Judge = Callable[[int], ClassifierMixin]


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows that are split and standardised, and what is asked of a selection.

    Attributes:
        title: for people.
        train: inputs and codes of the classes.
        test: likewise; for the final judgement only.
        keep: how many features, or groups of features, are to be selected.
        judge: from a seed to the classifier that is trained on the selected features.
        groups: columns that are selected together; each alone if there are none.
        truth: the columns that matter, where that is known.
    """

    title: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    keep: int
    judge: Judge
    groups: Groups | None = None
    truth: frozenset[int] | None = None

    def columns(self, chosen: np.ndarray) -> np.ndarray:
        """Return the columns of the chosen features or groups."""
        if self.groups is None:
            return chosen
        return np.array([column for group in chosen for column in self.groups[group]])

    def accuracy(self, chosen: np.ndarray, seed: int) -> float:
        """Return the test accuracy, in percent, of the judge on the chosen features."""
        columns = self.columns(chosen)
        judge = self.judge(seed).fit(self.train[0][:, columns], self.train[1])
        return 100 * float(judge.score(self.test[0][:, columns], self.test[1]))


def svc(seed: int) -> ClassifierMixin:
    return SVC()


def trees(seed: int) -> ClassifierMixin:
    return ExtraTreesClassifier(50, random_state=seed)


def problem(
    title: str,
    x: np.ndarray,
    y: np.ndarray,
    keep: int,
    judge: Judge = svc,
    split: tuple[np.ndarray, np.ndarray] | None = None,
    **more: Groups | frozenset[int] | None,
) -> Problem:
    """Split and standardise, with the means and deviations of the training rows."""
    codes = np.unique(y, return_inverse=True)[1].ravel()
    if split is None:
        split = tuple(train_test_split(np.arange(len(codes)), train_size=0.8, random_state=42))  # type: ignore[assignment]
    assert split is not None
    rows, held_out = split
    prepare = make_pipeline(SimpleImputer(), StandardScaler()).fit(x[rows].astype(np.float64))
    parts = [(prepare.transform(x[r]).astype(np.float32), codes[r]) for r in (rows, held_out)]
    return Problem(title, parts[0], parts[1], keep, judge, **more)  # type: ignore[arg-type]


def _plain(title: str, file: str, keep: int) -> Callable[[Path], Problem]:
    def load(folder: Path) -> Problem:
        with np.load(folder / file, allow_pickle=False) as arrays:
            return problem(title, arrays["X"], arrays["y"], keep)

    return load


def mnist(folder: Path) -> Problem:
    with np.load(folder / "mnist.npz", allow_pickle=False) as arrays:
        pixels = arrays["x_test"].reshape(len(arrays["y_test"]), -1)
        return problem("MNIST-10k, 50 of 784", pixels, arrays["y_test"], 50, trees)


def mice(folder: Path) -> Problem:
    """Split by mouse: the 15 rows of one are nearly copies of one another."""
    with np.load(folder / "mice_protein.npz", allow_pickle=False) as arrays:
        x, y, mouse = arrays["X"], arrays["y"], arrays["mouse"]
    split = next(GroupShuffleSplit(1, test_size=0.2, random_state=42).split(x, y, mouse))
    return problem("mice protein by mouse, 20 of 77", x, y, 20, trees, split)


def splice(folder: Path) -> Problem:
    with np.load(folder / "splice_dna.npz", allow_pickle=False) as arrays:
        x, y = arrays["X"], arrays["y"]
    groups = tuple(tuple(range(3 * i, 3 * i + 3)) for i in range(x.shape[1] // 3))
    return problem("splice junctions, 10 of 60 positions", x, y, 10, groups=groups)


def wide(folder: Path) -> Problem:
    """Return two classes that ten of 20,000 features tell apart, with 100 rows to train on."""
    return _wide(rows=100, features=20_000, informative=10)


def _wide(rows: int, features: int, informative: int) -> Problem:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows + 1000, features), dtype=np.float32)
    y = generator.integers(2, size=len(x))
    x[:, :informative] += 0.9 * (2 * y[:, None] - 1)
    order = generator.permutation(features)
    split = (np.arange(rows), np.arange(rows, len(x)))
    title = f"p ≫ n, synthetic, {rows} rows, {informative} of {features:,}"
    truth = frozenset(np.flatnonzero(order < informative).tolist())
    return problem(title, x[:, order], y, informative, svc, split, truth=truth)


def tiny(folder: Path) -> Problem:
    """Return digits among as many columns of noise, for a test that the benchmark runs."""
    pixels, y = load_digits(return_X_y=True)
    noise = np.random.default_rng(0).standard_normal(pixels.shape)
    return problem("digits, 16 of 128", np.hstack([pixels, noise]), y, 16, truth=frozenset(range(64)))


PROBLEMS: dict[str, Callable[[Path], Problem]] = {
    "isolet": _plain("ISOLET-1560, 100 of 617", "isolet1560.npz", 100),
    "madelon": _plain("Madelon, 20 of 500", "madelon.npz", 20),
    "madelon100": _plain("Madelon, 100 of 500", "madelon.npz", 100),
    "pcmac": _plain("PCMAC, 100 of 3,289", "pcmac.npz", 100),
    "mnist": mnist,
    "mice": mice,
    "splice": splice,
    "wide": wide,
}
