"""The promise of the demo sets: as good as the unregularised network, with a fraction of the weights."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import torchlasso as tl

SEEDS = range(3)
CASES = [
    ("breast_cancer", datasets.load_breast_cancer, "l1"),
    ("breast_cancer", datasets.load_breast_cancer, "features"),
    ("wine", datasets.load_wine, "l1"),
    ("digits", datasets.load_digits, "l1"),
    ("diabetes", datasets.load_diabetes, "l1"),
]


def _row_scores(model: object, inputs: np.ndarray, target: np.ndarray, regression: bool) -> np.ndarray:
    """Return numbers whose mean is the accuracy or R²."""
    predicted = model.predict(inputs)
    if regression:
        return 1 - (target - predicted) ** 2 / np.var(target)
    return (target == predicted).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "load", "penalty"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])
def test_sparse_is_as_good_as_dense(name: str, load: Callable[..., tuple], penalty: str) -> None:
    """Mean of three seeds: not below the dense network by more than one standard error of its test score."""
    inputs, target = load(return_X_y=True)
    regression = name == "diabetes"
    kind = tl.LassoMLPRegressor if regression else tl.LassoMLPClassifier
    sparse, dense, shares, features = [], [], [], []
    for seed in SEEDS:
        a, b, ya, yb = train_test_split(
            inputs, target, test_size=0.2, random_state=seed, stratify=None if regression else target
        )
        ours = make_pipeline(StandardScaler(), kind(penalty=penalty, random_state=seed)).fit(a, ya)
        plain = make_pipeline(StandardScaler(), kind(strength=0.0, random_state=seed)).fit(a, ya)
        sparse.append(_row_scores(ours, b, yb, regression))
        dense.append(_row_scores(plain, b, yb, regression))
        weights = [p for n, p in ours[-1].module_.named_parameters() if n.endswith("weight")]
        shares.append(sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights))
        features.append(len(ours[-1].selected_features_))
    rows = np.concatenate(dense)
    error = rows.std(ddof=1) / np.sqrt(len(rows))
    assert np.concatenate(sparse).mean() >= rows.mean() - error
    assert max(shares) <= 0.5
    if penalty == "features":
        assert max(features) <= 15
