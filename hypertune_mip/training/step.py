"""One training step: many settings, each on its own part of the batch, each counting the same."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from hypertune_mip.errors import DataError, LossError
from hypertune_mip.evaluation import batch_size
from hypertune_mip.execution import FORMED, Execution, Weigh
from hypertune_mip.execution.choice import without_trace
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.training.options import Loss, Options

_FEW = 3  # settings that have a whole batch each where the network is small
_LITTLE = 2**24  # operations of a forward pass, about: below, a step takes hardly longer than its overhead


class TrainingStep(nn.Module):
    """What a step minimises, as one module, so that wrapping it for several devices covers all there is to synchronise.

    Args:
        hypernet: What is trained.
        loss: Written for one setting.
        precision: In which the loss runs; what the hypernetwork predicts keeps its own.
    """

    def __init__(self, hypernet: HyperNetwork, loss: Loss, precision: str = "float32") -> None:
        """See the class."""
        super().__init__()
        self.hypernet = hypernet
        self.loss = loss
        self.precision = precision
        self.reads: set[str] = set()

    def forward(
        self, units: Float[Tensor, "S d"], batch: Any, split: bool, weigh: Weigh, execution: Execution | None = None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "S"]]:
        """Sum of weights x losses, whose gradients are those of the step, and the losses without history.

        Args:
            units: The settings.
            batch: Of which each setting has its own part if `split`, else the whole.
            split: See `batch`.
            weigh: From losses of some settings, and the slice that these are, to their weights.
            execution: How settings are run.
        """
        data = split_batch(batch, len(units)) if split else batch
        return self.hypernet.weighted(
            self.scalar, units, data, split=split, weigh=weigh, execution=execution, reads=self.reads
        )

    def scalar(self, model: nn.Module, batch: Any, config: Any) -> Tensor:
        """The loss, 0-d and not in half precision; raises LossError if it is none."""
        with autocast(self.hypernet.device, self.precision):
            value = self.loss(model, batch, config)
        if not isinstance(value, Tensor) or value.ndim != 0 or not value.is_floating_point():
            shown = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else repr(value)
            raise LossError(
                f"The loss must return a 0-d floating-point tensor for one setting, but got {shown}."
                " Take the mean over the batch."
            )
        return value if value.dtype == torch.float64 else value.float()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """A block in mixed precision, or as it is for "float32"."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def split_batch(batch: Any, settings: int) -> Any:
    """Tensors of shape (N, ...) as (S, N // S, ...); up to S - 1 examples at the end are left out.

    Raises:
        DataError: If N < S.
    """
    size = batch_size(batch)
    if size < settings:
        raise DataError(
            f"A batch of {size} examples cannot be split over {settings} settings. Use larger batches, fewer"
            ' `settings_per_step`, or batching="full".'
        )
    part = size // settings
    return tree_map(lambda t: t[: part * settings].reshape(settings, part, *t.shape[1:]), batch)


def settings_of_a_step(size: int, largest: int, options: Options, *, small: bool) -> tuple[int, bool]:
    """How many settings share a step, and whether they split its batch.

    Args:
        size: Of the batch.
        largest: Of the largest batch so far: an epoch's last one may be smaller.
        options: See `fit`.
        small: Whether the network does little work on a batch; see `is_small`.
    """
    settings, batching = options.settings_per_step, options.batching
    if settings == "auto":
        settings = automatic_settings(largest) if batching == "split" else _FEW if small else 1
    split = splits(options)
    return (min(settings, size) if size < largest else settings) if split else settings, split


def splits(options: Options) -> bool:
    """Whether the settings of a step have a part of the batch each, instead of the whole."""
    return options.batching == "split" or (options.batching == "auto" and options.settings_per_step != "auto")


def leaves_number_open(options: Options) -> bool:
    """Whether the number of settings depends on `is_small`."""
    return options.settings_per_step == "auto" and options.batching != "split"


def is_small(step: TrainingStep, batch: Any) -> bool:
    """Whether a forward pass on a batch is so little work that a step is mostly overhead, with a few settings as well.

    Multiplications are counted, not parameters, of which a convolution has few, nor seconds, which would make what is
    learned depend on the machine.
    """
    hypernet = step.hypernet
    with without_trace(hypernet, hypernet.device), torch.no_grad(), FlopCounterMode(display=False) as counter:
        hypernet(step.scalar, hypernet.space.sample(1), batch, split=False, execution=FORMED)
    operations: int = counter.get_total_flops()
    return operations <= _LITTLE


def automatic_settings(size: int) -> int:
    """Settings a step for batches of `size`: near the square root, at most 16, a divisor of it where there is one."""
    root = max(1, min(16, math.isqrt(size)))
    divisors = [k for k in range(root, (root + 1) // 2, -1) if size % k == 0]
    return divisors[0] if divisors else root
