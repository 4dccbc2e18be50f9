"""The one training loop: an epoch of steps over batches and settings, on one device or, by a strategy, on many."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch import nn

from hypertune_mip.errors import DataError
from hypertune_mip.training.descent import Descent
from hypertune_mip.training.gradients import Gradients
from hypertune_mip.training.options import Options
from hypertune_mip.training.reports import FiniteLosses
from hypertune_mip.training.run_state import Record, RunState
from hypertune_mip.training.strategy import Strategy


class Loop:
    """Trains epoch by epoch.

    Args:
        gradients: Of a batch.
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
        gradients: Gradients,
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
        self.gradients = gradients
        self.prepared = prepared
        self.loader = loader
        self.options = options
        self.strategy = strategy
        self.descent = descent
        self.state = state
        self.total = total
        self.hypernet = state.hypernet

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
        self.gradients.start_epoch()
        for batch, share, last in grouped(self.loader, self.options.accumulate):
            progress = self._share(epoch, steps)
            with nullcontext() if last else self.strategy.apart(self.prepared):
                seen = self.gradients(batch, progress=progress, share=share)
            batches += 1
            if finite.add(*seen):
                self.gradients.learn()
                bar.set_postfix(epoch=epoch, loss=f"{float(seen[1].mean()):.4g}", refresh=False)
            total += seen[1].mean()
            if last:
                self.descent.step(progress)
                steps += 1
                bar.update()
        finite.check()
        self.gradients.learn()
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
