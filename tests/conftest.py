"""Shared set-up: shapes of annotations are checked, on one thread; each test starts with the same random numbers."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# Not those at the boundary: there wrong input must meet the library's own errors.
CHECKED = (
    "hypertune_mip.encoding",
    "hypertune_mip.evaluation",
    "hypertune_mip.training.settings",
    "hypertune_mip.training.weighting",
)

with install_import_hook(CHECKED, "beartype.beartype"):
    import hypertune_mip  # noqa: F401

torch.set_num_threads(1)

# The tests have to pass with any seed; another one shows which of them pass by chance.
SEED = int(os.environ.get("TEST_SEED", "0"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed what a test and its fixtures draw: no test depends on those before it, nor on how many workers run."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
