"""How to train: every choice of `fit` that is not data, declared, documented and validated in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from hypertune_mip.arguments import real_number, seed_number, whole_number
from hypertune_mip.errors import DataError, OptionError
from hypertune_mip.execution import Execution
from hypertune_mip.training.optimizers import OptimizerFactory, ScheduleFactory, adam, check_factory, cosine

Callback = Callable[[dict[str, Any]], bool | None]
"""Gets the record of an epoch; True ends training after it, and nothing else does."""
Loss = Callable[[nn.Module, Any, Any], Tensor]
Precision = Literal["float32", "bfloat16", "float16"]
EXAMPLE = "optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"
_T = TypeVar("_T")


class UnknownOptionError(OptionError, TypeError):
    """There is no option of this name."""


def option(default: _T, description: str, *, may_differ: bool = False) -> _T:
    """A field of `Options`.

    Args:
        default: Its default.
        description: For the documentation of every function that takes it.
        may_differ: Whether a run may be resumed with another value.
    """
    made: Any = field(default=default, metadata={"description": description, "may_differ": may_differ})
    return made  # type: ignore[no-any-return]  # as `dataclasses.field` itself is typed


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `fit`. `keywords` gives them to functions, with these defaults and descriptions.

    Raises:
        OptionError: If one is invalid.
    """

    epochs: int = option(40, "Passes over `train_loader`; as many as one plain training takes is a good start.")
    settings_per_step: int | Literal["auto"] = option(
        "auto",
        'Settings K that share a step; "auto" takes three where the network does little work on a batch, else one. With'
        ' batching="split" it is about the square root of the batch size, up to 16.',
    )
    batching: Literal["auto", "split", "full"] = option(
        "auto",
        '"split" gives each setting its own part of the batch, for the cost of a step or two; "full" gives each setting'
        ' the whole batch, which is better and up to K times as dear; "auto" is "full", unless `settings_per_step` is a'
        " number.",
    )
    endpoints: float = option(0.0, "Share of settings moved to the ends of each range; see `SearchSpace.sample`.")
    normalize: bool = option(
        True,
        "Whether settings are weighted and heads hold back at first, so that strong penalties neither dominate nor"
        " crush the network; see `training.weighting` and `training.pace`.",
    )
    optimizer: OptimizerFactory = option(adam, "From parameters to any torch optimiser; the default is Adam at 6e-3.")
    schedule: ScheduleFactory | None = option(
        cosine, "From (optimiser, steps) to a torch schedule that is advanced every step; None keeps the rate."
    )
    gradient_clip: float | None = option(None, "Largest norm of the whole gradient.")
    accumulate: int = option(1, "Batches whose gradients are added up before each optimiser step.")
    precision: Precision = option("float32", '"bfloat16" or "float16" for mixed precision.')
    execution: Execution | Literal["measured", "usual"] = option(
        "measured",
        'How the settings of a step run, which decides about time alone. `Execution` says it by hand; "measured" times'
        ' a few steps of each way at the start of a run that is long enough; "usual" takes one after another where one'
        " setting has a step to itself, and all at once otherwise.",
    )
    capture: bool = option(
        True, "Whether steps on CUDA are captured in a CUDA graph, where they can be.", may_differ=True
    )
    device: str | torch.device = option("auto", '"auto" takes CUDA where there is one.', may_differ=True)
    seed: int = option(0, "Of settings, batches and noise.")
    progress: bool = option(True, "Whether to show a bar with loss and time left.", may_differ=True)
    callbacks: Sequence[Callback] = option(
        (),
        "Each gets every epoch's record, a dict; see `hypertune_mip.callbacks`. If one returns True, and nothing else,"
        " training ends after that epoch, which is validated and kept as the last one always is. A run that was stopped"
        " so goes on, when it is resumed, only if none of the callbacks, given that record again, returns True.",
        may_differ=True,
    )
    validate_every: int | None = option(
        None, "Epochs between validations; None validates four times. The last epoch always is.", may_differ=True
    )
    validation_settings: int = option(
        4, "How many settings a validation looks at, the same each time.", may_differ=True
    )
    checkpoint: str | Path | None = option(
        None, "Folder for checkpoints; files of others may lie there, too.", may_differ=True
    )
    checkpoint_every: int = option(1, "Epochs between them.", may_differ=True)
    resume: bool = option(
        False,
        "Whether to go on from the one in `checkpoint`; on a CPU the result is the same bit for bit.",
        may_differ=True,
    )

    def __post_init__(self) -> None:
        """Validate."""
        counts = ["epochs", "validation_settings", "checkpoint_every", "accumulate"]
        if not isinstance(self.settings_per_step, str) or self.settings_per_step != "auto":
            counts.append("settings_per_step")
        if self.validate_every is not None:
            counts.append("validate_every")
        for name in counts:
            object.__setattr__(self, name, *at_least(1, **{name: getattr(self, name)}))
        object.__setattr__(self, "seed", seed_number(self.seed, error=OptionError))
        object.__setattr__(self, "endpoints", real_number("endpoints", self.endpoints, error=OptionError))
        object.__setattr__(self, "gradient_clip", checked_clip(self.gradient_clip))
        _one_of(("auto", "split", "full"), batching=self.batching)
        check_precision(self.precision)
        check_factory(self.optimizer, "parameters", whose="The `optimizer` of `fit`", example=EXAMPLE)
        if not isinstance(self.execution, Execution):
            _one_of(("measured", "usual"), execution=self.execution)
        if not 0.0 <= self.endpoints < 1.0:
            raise OptionError(f"`endpoints` must lie in [0, 1), but got {self.endpoints!r}.")
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


def at_least(low: int, **values: Any) -> tuple[int, ...]:
    """The values as ints, in their order; raises OptionError unless each is a whole number of at least `low`."""
    return tuple(whole_number(name, value, low=low, error=OptionError) for name, value in values.items())


def checked_clip(value: Any) -> float | None:
    """The largest norm of a gradient, or None; raises OptionError unless it is positive."""
    if value is None:
        return None
    clip = real_number("gradient_clip", value, error=OptionError)
    if not clip > 0:
        raise OptionError(f"`gradient_clip` must be positive or None, but got {value!r}.")
    return clip


def check_precision(value: Any) -> None:
    """Raise OptionError unless there is such a precision."""
    _one_of(get_args(Precision), precision=value)


def _one_of(allowed: tuple[str, ...], **values: Any) -> None:
    for name, value in values.items():
        if value not in allowed:
            raise OptionError(f"`{name}` must be one of {allowed}, but got {value!r}.")
