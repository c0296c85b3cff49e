"""The estimators keep scikit-learn's contract and minimise what they say."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

import torchlasso as tl


@pytest.mark.slow
@parametrize_with_checks([tl.LassoMLPClassifier(), tl.LassoMLPRegressor()])
def test_scikit_learns_checks(estimator, check) -> None:
    check(estimator)
