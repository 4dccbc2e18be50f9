"""How to train: every choice of `fit` that is not data, validated in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from hypertune_mip.errors import DataError, HypertuneError

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]
Callback = Callable[[dict[str, Any]], None]
Loss = Callable[[nn.Module, Any, Any], Tensor]


class OptionError(HypertuneError, ValueError):
    """An option of `fit` is invalid."""


def adam(parameters: Iterable[Any]) -> Optimizer:
    """The default optimiser: Adam at learning rate 6e-3, in one fused kernel."""
    return torch.optim.Adam(parameters, lr=6e-3, fused=True)


def cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The default schedule: from the optimiser's learning rate to zero along half a cosine over all steps."""
    return CosineAnnealingLR(optimizer, steps)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `fit`; see there for each."""

    epochs: int = 40
    settings_per_step: int | Literal["auto"] = "auto"
    batching: Literal["auto", "split", "full"] = "auto"
    endpoints: float = 0.0
    normalize: bool = True
    optimizer: OptimizerFactory = adam
    schedule: ScheduleFactory | None = cosine
    gradient_clip: float | None = None
    accumulate: int = 1
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | torch.device = "auto"
    seed: int = 0
    progress: bool = True
    callbacks: Sequence[Callback] = ()
    validate_every: int | None = None
    validation_settings: int = 4
    checkpoint: str | Path | None = None
    checkpoint_every: int = 1
    resume: bool = False

    def __post_init__(self) -> None:
        """Validate."""
        at_least(1, epochs=self.epochs, validation_settings=self.validation_settings)
        at_least(1, checkpoint_every=self.checkpoint_every, accumulate=self.accumulate)
        if self.settings_per_step != "auto":
            at_least(1, settings_per_step=self.settings_per_step)
        if self.validate_every is not None:
            at_least(1, validate_every=self.validate_every)
        _one_of(("auto", "split", "full"), batching=self.batching)
        _one_of(("float32", "bfloat16", "float16"), precision=self.precision)
        if not 0.0 <= self.endpoints < 1.0:
            raise OptionError(f"`endpoints` must lie in [0, 1), but got {self.endpoints!r}.")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise OptionError(f"`gradient_clip` must be positive or None, but got {self.gradient_clip!r}.")
        if self.resume and self.checkpoint is None:
            raise OptionError("`resume=True` needs `checkpoint`, the folder that the run to go on with wrote to.")

    def resolved_device(self) -> torch.device:
        """The device: for "auto" CUDA where there is one, else the CPU."""
        if self.device != "auto":
            device = torch.device(self.device)
            if device.type == "cuda" and not torch.cuda.is_available():
                raise OptionError(f"`device={self.device!r}` was asked for, but PyTorch sees no CUDA device.")
            return device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def total_steps(
    loader: Iterable[Any], epochs: int, schedule: ScheduleFactory | None, *, accumulate: int = 1
) -> int | None:
    """Optimiser steps of a whole run, each of `accumulate` batches, or None where the loader has no length.

    Raises:
        OptionError: If a schedule needs to know.
        DataError: If the loader holds no batch.
    """
    try:
        length = len(loader)  # type: ignore[arg-type]
    except TypeError:
        if schedule is not None:
            raise OptionError(
                f"The schedule needs the number of steps, but a {type(loader).__name__} has no length. Pass"
                " schedule=None, or a loader with __len__."
            ) from None
        return None
    if length == 0:
        raise DataError("The training loader holds no batch. Is the data set smaller than one batch with drop_last?")
    return -(-length // accumulate) * epochs


def at_least(low: int, **values: Any) -> None:
    """Raise OptionError unless each value is a whole number of at least `low`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise OptionError(f"`{name}` must be a whole number of at least {low}, but got {value!r}.")


def _one_of(allowed: tuple[str, ...], **values: Any) -> None:
    for name, value in values.items():
        if value not in allowed:
            raise OptionError(f"`{name}` must be one of {allowed}, but got {value!r}.")
