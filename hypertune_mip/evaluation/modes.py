"""In which modes evaluation runs, whatever those of the caller are; they are his again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def gradients(enabled: bool) -> Iterator[None]:
    """PyTorch's gradients on or off within the block, and its inference mode off in any case."""
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode within the block."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
