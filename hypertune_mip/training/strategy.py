"""Where training runs: the few places at which one process and many workers differ."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn


class Strategy(Protocol):
    """What the training loop asks of its surroundings."""

    rank: int
    world_size: int
    keeps: bool
    """Whether it keeps checkpoints."""

    def prepare(self, step: nn.Module) -> nn.Module:
        """The training step, wrapped so that its gradients are the mean over workers."""

    def apart(self, step: nn.Module) -> AbstractContextManager[None]:
        """A block in which gradients of the prepared step add up on each worker, for a later step to share."""

    def gather(self, values: Float[Tensor, "N ..."]) -> Float[Tensor, "WN ..."]:
        """The values of all workers, in the order of their ranks; no gradient flows through them."""

    def start_epoch(self, epoch: int) -> None:
        """Called on every worker before each epoch, counted from 1."""

    def agreed(self, own: bool) -> bool:
        """What the first worker says, on every worker; asked on all of them, once an epoch."""

    def end_epoch(self, record: dict[str, Any], save: Callable[[str | Path], None] | None, *, last: bool) -> None:
        """Called on every worker after each epoch, with its record.

        Args:
            record: Of the epoch.
            save: Writes a checkpoint to a folder; None where none is due.
            last: Whether training ends with this epoch; then a checkpoint is due.
        """


class SingleProcess:
    """One process, one device.

    Args:
        folder: Where checkpoints go, if anywhere; the one before is replaced.
    """

    rank = 0
    world_size = 1

    def __init__(self, folder: str | Path | None = None) -> None:
        """See the class."""
        self._folder = folder
        self.keeps = folder is not None

    def prepare(self, step: nn.Module) -> nn.Module:
        """The step as it is."""
        return step

    def apart(self, step: nn.Module) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()

    def gather(self, values: Float[Tensor, "N ..."]) -> Float[Tensor, "WN ..."]:
        """The values as they are."""
        return values

    def start_epoch(self, epoch: int) -> None:
        """Nothing to do."""

    def agreed(self, own: bool) -> bool:
        """What this process says."""
        return own

    def end_epoch(self, record: dict[str, Any], save: Callable[[str | Path], None] | None, *, last: bool) -> None:
        """Save if it is due."""
        if save is not None and self._folder is not None:
            save(self._folder)
