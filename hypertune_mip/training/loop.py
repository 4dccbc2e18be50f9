"""The one training loop: an epoch of steps over batches and settings, on one device or, by a strategy, on many."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hypertune_mip.errors import DataError
from hypertune_mip.evaluation import batch_size, to_device
from hypertune_mip.training.descent import Descent
from hypertune_mip.training.options import Options
from hypertune_mip.training.reports import FiniteLosses
from hypertune_mip.training.run_state import Record, RunState
from hypertune_mip.training.step import plan
from hypertune_mip.training.strategy import Strategy


class Loop:
    """Trains epoch by epoch.

    Args:
        prepared: The training step, as the strategy prepared it.
        loader: Batches.
        options: See `fit`.
        strategy: Where training runs.
        descent: What moves the weights.
        state: Of the run; changed in place, but for the history.
        total: Steps of the run, if that is known.
    """

    def __init__(
        self,
        prepared: nn.Module,
        loader: Iterable[Any],
        options: Options,
        strategy: Strategy,
        descent: Descent,
        state: RunState,
        *,
        total: int | None,
    ) -> None:
        """See the class."""
        self.prepared = prepared
        self.loader = loader
        self.options = options
        self.strategy = strategy
        self.descent = descent
        self.state = state
        self.total = total
        self.hypernet = state.hypernet
        self.size = sum(parameter.numel() for parameter in state.hypernet.network.parameters())
        self.stream = state.settings
        self.weights = state.weights
        self.scaler = state.scaler

    def epoch(self, epoch: int, bar: Any) -> Record:
        """Train for one epoch and return its record.

        Args:
            epoch: Counted from 1.
            bar: Of progress; told each step.

        Raises:
            DataError: If the loader gives no batch.
            TrainingError: If a loss is not finite.
        """
        device = self.hypernet.device
        start, batches, steps, total = time.perf_counter(), 0, 0, torch.zeros((), device=device)
        finite = FiniteLosses(self.hypernet, epoch)
        self.descent.optimizer.zero_grad(set_to_none=True)
        for batch, share, last in grouped(self.loader, self.options.accumulate):
            progress = self._share(epoch, steps)
            with nullcontext() if last else self.strategy.apart(self.prepared):
                units, losses = self._losses(to_device(batch, device))
                everywhere = self.strategy.gather(
                    torch.cat([units.to(device), losses.detach().to(units.dtype).unsqueeze(1)], 1)
                )
                seen = everywhere[:, :-1], everywhere[:, -1]
                batches += 1
                if finite.add(*seen):
                    bar.set_postfix(epoch=epoch, loss=f"{float(losses.detach().mean()):.4g}", refresh=False)
                self._backward(losses, *seen, progress=progress, share=share)
            total += seen[1].mean()
            if last:
                self.descent.step(progress)
                steps += 1
                bar.update()
        finite.check()
        if batches == 0:
            raise DataError(
                f"The training loader gave no batch in epoch {epoch}. Pass a DataLoader or a list of batches; a"
                " generator is used up after one epoch."
            )
        return {
            "epoch": epoch,
            "step": self.state.progress.steps + steps,
            "loss": float(total / batches),
            "learning_rate": float(self.descent.optimizer.param_groups[0]["lr"]),
            "seconds": time.perf_counter() - start,
        }

    @property
    def largest_batch(self) -> int:
        """Examples of the largest batch so far."""
        return self.state.plan.largest_batch

    @largest_batch.setter
    def largest_batch(self, size: int) -> None:
        self.state.plan.largest_batch = size

    def _losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The settings of this step, and the loss at each."""
        size = batch_size(batch)
        self.largest_batch = max(self.largest_batch, size)
        options = self.options
        count, split = plan(
            self.largest_batch, self.size, settings=options.settings_per_step, batching=options.batching
        )
        if split and size < self.largest_batch:
            count = min(count, size)  # an epoch's last batch may be smaller
        units = self.stream.draw(count)
        with _autocast(self.hypernet.device, self.options.precision):
            losses = self.prepared(units, batch, split)
        return units, losses if losses.dtype == torch.float64 else losses.float()

    def _backward(self, losses: Tensor, units: Tensor, everywhere: Tensor, *, progress: float, share: float) -> None:
        """Add this batch's share to the gradients: own losses, weighted among the units and losses of all workers."""
        weights = self.weights(everywhere, self.hypernet.encoded(units), progress=progress).to(losses.dtype)
        own = weights.chunk(self.strategy.world_size)[self.strategy.rank]
        total = (losses * own).sum() * self.strategy.world_size  # gradients are the mean over workers
        self.scaler.scale(total * share).backward()

    def _share(self, epoch: int, step: int) -> float:
        """Of training that is over at a step of an epoch; by whole epochs where the loader has no length."""
        if self.total is None:
            return (epoch - 1) / self.options.epochs
        return ((epoch - 1) * (self.total // self.options.epochs) + step) / self.total


def grouped(loader: Iterable[Any], size: int) -> Iterator[tuple[Any, float, bool]]:
    """Batches, each with its share of an optimiser step of `size` batches and whether it is the step's last.

    The last step of an epoch may have fewer batches.
    """
    batches = iter(loader)
    while group := list(islice(batches, size)):
        for index, batch in enumerate(group, start=1):
            yield batch, 1 / len(group), index == len(group)


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))
