"""The random state of this process, which all of its threads share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

one_at_a_time = threading.RLock()
"""Held by whoever needs the process's random state for itself: what a seed gives must not depend on other threads."""


@contextmanager
def forked_random_state(device: torch.device | None = None, *, seed: int | None = None) -> Iterator[None]:
    """PyTorch's global random state, on the CPU and on `device`, is restored at the end of the block.

    Other threads that ask for the same wait until then.

    Args:
        device: Where random numbers are drawn, beside the CPU.
        seed: Of the CPU's generator in the block; None leaves it as it is.
    """
    with one_at_a_time, torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it would reseed every CUDA device
        yield
