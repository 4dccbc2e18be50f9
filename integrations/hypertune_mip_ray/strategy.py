"""Training on many workers of Ray Train: gradients and losses shared, checkpoints reported."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from hypertune_mip import DataError
from hypertune_mip.folders import LOCK


class RayStrategy:
    """This worker among the others of a Ray Train run; see `hypertune_mip.training.Strategy`.

    Args:
        loader: This worker's; its sampler is told the epoch, so that all workers shuffle alike.
        seconds: Time that lies between checkpoints at least, but before the last. Each costs Ray two seconds, whatever
            its size.

    Raises:
        DataError: If workers have different numbers of batches: they would wait for each other forever.
    """

    keeps = True

    def __init__(self, loader: Iterable[Any], seconds: float) -> None:
        """See the class."""
        context = ray.train.get_context()
        self._seconds = seconds
        self._last = time.monotonic()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self._sampler = getattr(loader, "sampler", None)
        self._device = ray.train.torch.get_device()
        try:
            own = len(loader)  # type: ignore[arg-type]
        except TypeError:  # also a DataLoader may have none
            own = -1
        lengths = self.gather(torch.tensor([own], device=self._device)).tolist()
        if len(set(lengths)) > 1:
            raise DataError(
                f"The workers' loaders have {lengths} batches. Let them have equally many: the workers make each step"
                " together."
            )

    def prepare(self, step: nn.Module) -> nn.Module:
        """The step in DistributedDataParallel, which averages gradients."""
        if self.world_size == 1:
            return step
        return DistributedDataParallel(step, device_ids=[self._device] if self._device.type == "cuda" else None)

    def apart(self, step: nn.Module) -> AbstractContextManager[None]:
        """DistributedDataParallel's own block."""
        return step.no_sync() if isinstance(step, DistributedDataParallel) else nullcontext()

    def gather(self, values: Float[Tensor, "N ..."]) -> Float[Tensor, "WN ..."]:
        """The values of all workers, in the order of their ranks."""
        if self.world_size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def start_epoch(self, epoch: int) -> None:
        """Let the sampler shuffle anew, the same on all workers."""
        if isinstance(self._sampler, DistributedSampler):
            self._sampler.set_epoch(epoch)

    def agreed(self, own: bool) -> bool:
        """What the first worker says."""
        return bool(self.gather(torch.tensor([own], device=self._device))[0])

    def end_epoch(self, record: dict[str, Any], save: Callable[[str | Path], None] | None, *, last: bool) -> None:
        """Report a checkpoint, written by the first worker, where one is due."""
        if save is None or not self.agreed(last or self._late()):
            return
        self._last = time.monotonic()
        metrics = {name: value for name, value in record.items() if isinstance(value, (int, float))}
        if self.rank > 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save(folder)
            Path(folder, LOCK).unlink()  # nobody else writes there, and a lock has no place in the run's storage
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _late(self) -> bool:
        return time.monotonic() - self._last >= self._seconds
