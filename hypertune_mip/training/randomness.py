"""Random state: a function of a seed, so that a run can be repeated or resumed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from hypertune_mip.arguments import SEEDS

SEED_STRIDE = 1_000_003
"""Between the seeds of runs, whose epochs have seeds of their own: keeps (seed, epoch) pairs apart."""


def set_seed(seed: int, loader: Iterable[Any], device: torch.device) -> None:
    """Seed PyTorch's global generators, on the CPU and on `device`, and the generator that a loader has of its own.

    Args:
        seed: Any whole number.
        loader: Its generator, and those of its samplers, are seeded along.
        device: Where random numbers are drawn.
    """
    if seed not in SEEDS:
        seed %= SEEDS.stop
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it would reseed every CUDA device
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    batches = getattr(loader, "batch_sampler", None)
    for source in (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
        generator = getattr(source, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
