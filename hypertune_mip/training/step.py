"""One training step: many settings, each on its own part of the batch, each counting the same."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hypertune_mip.errors import DataError, LossError
from hypertune_mip.execution import FORMED, Execution, Function, Weigh
from hypertune_mip.execution.choice import without_trace
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.training.options import Loss, Options
from hypertune_mip.trees import hidden_tensors, leaves, mapped, tensors_of, with_tensors

_FEW = 3  # settings that have a whole batch each where the network is small
_FOR_ALL = (Tensor, int, float, type(None))  # what a batch that is divided may hold: numbers go to every setting
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
        options: dict[str, Any] = {"split": split, "weigh": weigh, "execution": execution, "reads": self.reads}
        if not split:
            return self.hypernet.weighted(self.scalar, units, batch, **options)
        parts = split_batch(batch, len(units))
        return self.hypernet.weighted(self.of_part(parts), units, tensors_of(parts), **options)

    def of_part(self, parts: Any) -> Function:
        """The loss as a function of the tensors of a setting's part alone, the containers being those of `parts`."""

        def scalar(model: nn.Module, tensors: list[Tensor], config: Any) -> Tensor:
            return self.scalar(model, with_tensors(parts, tensors), config)

        return scalar

    def scalar(self, model: nn.Module, batch: Any, config: Any) -> Tensor:
        """The loss, 0-d and not in half precision; raises LossError if it is none."""
        with autocast(self.hypernet.device, self.precision):
            value = self.loss(model, batch, config)
        return checked_loss(value)


def checked_loss(value: Any) -> Tensor:
    """What a loss has returned, not in half precision; raises LossError unless it is a 0-d tensor."""
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
    """A batch whose tensors (N, ...) have become (S, N // S, ...); up to S - 1 examples at the end are left out.

    Raises:
        DataError: If N < S, or the batch holds what cannot be divided.
    """
    size = examples_to_split(batch)
    if size < settings:
        raise DataError(
            f"A batch of {size} examples cannot be split over {settings} settings. Use larger batches, fewer"
            ' `settings_per_step`, or batching="full".'
        )
    part = size // settings

    def divided(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if not leaf.ndim:
            return leaf.expand(settings)
        return leaf[: part * settings].reshape(settings, part, *leaf.shape[1:])

    return mapped(divided, batch)


def examples_to_split(batch: Any) -> int:
    """Number of examples of a batch that can be divided among settings.

    Tensors without dimensions, numbers and None go to every setting.

    Raises:
        DataError: If its tensors have different first dimensions, or it holds other objects.
    """
    tensors = [tensor for tensor in tensors_of(batch) if tensor.ndim]
    sizes = sorted({tensor.shape[0] for tensor in tensors})
    strangers = {type(leaf).__name__ for leaf in leaves(batch) if not isinstance(leaf, _FOR_ALL)}
    strangers |= set(hidden_tensors(batch))
    if len(sizes) != 1 or strangers:
        raise DataError(
            "A batch is divided among settings along the first dimension of its tensors, the examples, but got tensors"
            f' with first dimensions {sizes} and other objects {sorted(strangers)}. Use batching="full", with which'
            " each setting gets the whole batch."
        )
    return sizes[0]


def settings_of_a_step(size: int, largest: int, options: Options, *, small: bool, least: int = 1) -> tuple[int, bool]:
    """How many settings share a step, and whether they split its batch.

    Args:
        size: Of the batch.
        largest: Of the largest batch so far: an epoch's last one may be smaller.
        options: See `fit`.
        small: Whether the network does little work on a batch; see `is_small`.
        least: Examples that each part of a smaller batch must have.
    """
    asked, split = options.settings_per_step, splits(options)
    if asked != "auto":
        settings = asked
    else:
        settings = automatic_settings(largest) if split else _FEW if small else 1
    if split and size < largest:
        settings = max(1, min(settings, size // least))
    return settings, split


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
    with without_trace(hypernet, hypernet.device), _Operations() as operations:
        hypernet(step.scalar, hypernet.space.sample(1), batch, split=False, execution=FORMED)
    count: int = operations.count
    return count <= _LITTLE


class _Operations(TorchDispatchMode):
    """Counts multiplications and additions by torch's own formulas.

    Why not `FlopCounterMode`: it follows modules by hooks, which a loss that goes backward itself does not survive.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=result)
        return result


def automatic_settings(size: int) -> int:
    """Settings a step for batches of `size`: near the square root, at most 16, a divisor of it where there is one."""
    root = max(1, min(16, math.isqrt(size)))
    divisors = [k for k in range(root, (root + 1) // 2, -1) if size % k == 0]
    return divisors[0] if divisors else root
