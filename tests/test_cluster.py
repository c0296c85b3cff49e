"""A cluster is one context manager: a real one of two processes gives the same bits, also when one dies."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.base import BaseEstimator
from sklearn.linear_model import LassoLars

from torchlasso.estimators_cv import LassoMLPRegressorCV
from torchlasso.fit.settings import Budget
from torchlasso.stability import stability_selection

pytest.importorskip("distributed")

from distributed import Client, LocalCluster


@contextlib.contextmanager
def _cluster(**more: Any) -> Iterator[Client]:
    """Start two worker processes that talk over TCP on this machine."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
            **more,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8))
    return x, x[:, :2].sum(axis=1) + 0.5 * rng.normal(size=60)


class _KillsItsWorker(BaseEstimator):
    """A lasso that kills the process it runs in, the first time anybody fits it."""

    def __init__(self, flag: str, parent: int) -> None:
        self.flag = flag
        self.parent = parent

    def fit(self, X: np.ndarray, y: np.ndarray) -> "_KillsItsWorker":
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
            if os.getpid() != self.parent:
                os.kill(os.getpid(), signal.SIGKILL)
        lars = LassoLars(alpha=0.1).fit(X, y)
        self.coef_ = lars.coef_
        return self


@pytest.mark.slow
def test_a_cluster_gives_the_same_bits_also_when_a_worker_dies(tmp_path) -> None:
    x, y = _data()
    model = LassoMLPRegressorCV(
        (3,), cv=2, strengths=2, budget=Budget(dense=20, point=10, settle=20), random_state=0
    )
    local = model.fit(x, y)
    errors, predictions = local.cv_errors_.errors, local.predict(x)
    flag = tmp_path / "killed"
    flag.touch()
    fragile = _KillsItsWorker(str(flag), os.getpid())
    alone = stability_selection(fragile, x, y, pairs=5, random_state=0)
    flag.unlink()
    with _cluster() as client, parallel_config("dask"):
        pids = set(client.run(os.getpid).values())
        far = model.fit(x, y)
        assert np.array_equal(far.cv_errors_.errors, errors)
        assert np.array_equal(far.predict(x), predictions)
        survived = stability_selection(fragile, x, y, pairs=5, random_state=0)
        client.wait_for_workers(2, timeout=20)
        after = set(client.run(os.getpid).values())
    assert flag.exists()
    assert len(pids - after) == 1  # one process died, and another came in its place
    np.testing.assert_array_equal(survived.probabilities, alone.probabilities)
