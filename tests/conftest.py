"""Shared set-up: shapes of annotations are checked while tests run, on one thread."""

from __future__ import annotations

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


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
