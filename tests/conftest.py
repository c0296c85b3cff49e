"""What every test starts from: one thread, fixed seeds, a hypothesis profile that repeats itself."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # the problems are tiny: a second thread would only wait

settings.register_profile("torchlasso", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("torchlasso")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state, in whatever order the tests run."""
    torch.manual_seed(0)
    np.random.seed(0)


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
