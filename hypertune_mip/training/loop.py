"""The one training loop: epochs of steps over batches and settings, on one device or, through a strategy, on many."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hypertune_mip.errors import DataError, HypertuneWarning, TrainingError
from hypertune_mip.evaluation import Evaluator, batch_size, to_device
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.training.checkpoint import load_checkpoint, save_checkpoint
from hypertune_mip.training.options import Loss, Options, total_steps
from hypertune_mip.training.pace import Pace
from hypertune_mip.training.randomness import forked_random_state, set_seed
from hypertune_mip.training.settings import SettingsStream
from hypertune_mip.training.step import TrainingStep, plan
from hypertune_mip.training.strategy import SingleProcess, Strategy
from hypertune_mip.training.weighting import SettingWeights

Record = dict[str, Any]
"""Of one epoch: epoch, step, loss (mean over steps and settings), learning_rate, seconds, validation figures."""


class Trained(NamedTuple):
    """What training reports.

    Args:
        history: One record an epoch.
        unread: Hyperparameters that neither the loss nor a layer has read.
    """

    history: list[Record]
    unread: frozenset[str]


_SEED_STRIDE = 1_000_003  # keeps the random states of (seed, epoch) pairs apart
_CHECK_EVERY_ON_CUDA = 20  # steps; to look at a loss is to wait for the device
_VALIDATIONS = 4  # over a run, unless `validate_every` says otherwise


def train(
    hypernet: HyperNetwork,
    loss: Loss,
    loader: Iterable[Any],
    options: Options,
    *,
    evaluator: Evaluator | None = None,
    strategy: Strategy | None = None,
    resume_from: str | Path | None = None,
) -> Trained:
    """Train `hypernet` in place, on the device that it is on.

    Args:
        hypernet: What is trained; on every worker the same.
        loss: Written for one setting.
        loader: Batches; of this worker, where there are several.
        options: See `fit`.
        evaluator: For validation, on the first worker.
        strategy: Where training runs; None is this process, with checkpoints as the options say.
        resume_from: Folder with the checkpoint to go on from; None takes what the options say.

    The global random state of PyTorch is left as it was. Each epoch's randomness is a function of (seed, epoch), which
    is why a resumed run goes on bit for bit on a CPU; a loader's own generator is seeded along.

    Raises:
        DataError: If the loader gives no batch, or a batch too small to split.
        LossError: If the loss does not return a 0-d tensor.
        TrainingError: If a loss is not finite; `hypernet` then has the weights of the start of that epoch.
        StorageError: If a checkpoint cannot be written, or the one to resume from does not fit.
    """
    run = _Run(hypernet, loss, loader, options, evaluator, strategy or SingleProcess(options.checkpoint))
    if resume_from is None and options.resume:
        resume_from = options.checkpoint
    if resume_from is not None:
        run.resume(resume_from)
    hypernet.train()
    try:
        with forked_random_state(hypernet.device):
            return Trained(run.epochs(), frozenset(hypernet.space) - run.step.reads)
    finally:
        hypernet.eval()


class _Run:
    """The state of one call of `train`: what a checkpoint holds, and what it is checked against."""

    def __init__(
        self,
        hypernet: HyperNetwork,
        loss: Loss,
        loader: Iterable[Any],
        options: Options,
        evaluator: Evaluator | None,
        strategy: Strategy,
    ) -> None:
        self.hypernet = hypernet
        self.loader = loader
        self.options = options
        self.evaluator = evaluator
        self.strategy = strategy
        self.step = TrainingStep(hypernet, loss, options.precision)
        self.prepared = strategy.prepare(self.step)
        self.size = sum(parameter.numel() for parameter in hypernet.network.parameters())
        self.stream = SettingsStream(
            hypernet.space,
            seed=options.seed,
            endpoints=options.endpoints,
            rank=strategy.rank,
            world_size=strategy.world_size,
        )
        self.total = total_steps(loader, options.epochs, options.schedule, accumulate=options.accumulate)
        self.optimizer = options.optimizer([p for p in hypernet.parameters() if p.requires_grad])
        balanced = options.normalize and hypernet.residual
        self.pace = Pace(self.optimizer, hypernet.network, active=balanced)
        self.schedule = (
            None if options.schedule is None or self.total is None else options.schedule(self.optimizer, self.total)
        )
        self.scaler = torch.amp.GradScaler(hypernet.device.type, enabled=options.precision == "float16")
        self.weights = SettingWeights(hypernet.encoded_size, normalize=options.normalize)
        self.largest_batch = 0
        self.history: list[Record] = []

    @property
    def steps(self) -> int:
        return int(self.history[-1]["step"]) if self.history else 0

    def epochs(self) -> list[Record]:
        options, leads = self.options, self.strategy.rank == 0
        with tqdm(
            total=self.total, initial=self.steps, disable=not (options.progress and leads), desc="fit", unit="step"
        ) as bar:
            for epoch in range(len(self.history) + 1, options.epochs + 1):
                self._seed(epoch)
                self.strategy.start_epoch(epoch)
                record = self._epoch(epoch, bar)
                if epoch == 1 and leads:
                    self._warn_unread()
                if self.evaluator is not None and leads and self._due(epoch, options.validate_every):
                    record |= _validation(self.evaluator, options)
                self.history.append(record)
                if leads:
                    for callback in options.callbacks:
                        callback(record)
                self.strategy.end_epoch(record, self.save if self._due(epoch, options.checkpoint_every) else None)
        return self.history

    def _epoch(self, epoch: int, bar: Any) -> Record:
        device = self.hypernet.device
        check_every = _CHECK_EVERY_ON_CUDA if device.type == "cuda" else 1
        good = {name: tensor.clone() for name, tensor in self.hypernet.state_dict().items()}
        start, batches, steps, total = time.perf_counter(), 0, 0, torch.zeros((), device=device)
        unchecked: list[tuple[Tensor, Tensor]] = []
        self.optimizer.zero_grad(set_to_none=True)
        for batch, share, last in grouped(self.loader, self.options.accumulate):
            progress = self._progress(epoch, steps)
            with nullcontext() if last else self.strategy.apart(self.prepared):
                seen = self._step(batch, progress=progress, share=share)
            unchecked.append(seen)
            batches += 1
            if batches % check_every == 0:
                self._check_finite(unchecked, good, epoch)
                bar.set_postfix(epoch=epoch, loss=f"{float(seen[1].mean()):.4g}", refresh=False)
            total += seen[1].mean()
            if last:
                self._update(progress)
                steps += 1
                bar.update()
        self._check_finite(unchecked, good, epoch)
        if batches == 0:
            raise DataError(
                f"The training loader gave no batch in epoch {epoch}. Pass a DataLoader or a list of batches; a"
                " generator is used up after one epoch."
            )
        return {
            "epoch": epoch,
            "step": self.steps + steps,
            "loss": float(total / batches),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "seconds": time.perf_counter() - start,
        }

    def _step(self, batch: Any, *, progress: float, share: float) -> tuple[Tensor, Tensor]:
        """Add this batch's share to the gradients; settings and losses of all workers."""
        size = batch_size(batch)
        self.largest_batch = max(self.largest_batch, size)
        options = self.options
        count, split = plan(
            self.largest_batch, self.size, settings=options.settings_per_step, batching=options.batching
        )
        if split and size < self.largest_batch:
            count = min(count, size)  # an epoch's last batch may be smaller
        units = self.stream.draw(count)
        device = self.hypernet.device
        encoded = self.hypernet.encoded(units).detach()
        settings = count * self.strategy.world_size

        # gradients are the mean over workers; in float16 they are scaled from the loss on
        factor = self.scaler.scale(torch.full((), share * self.strategy.world_size, device=device))

        def weigh(losses: Tensor, rows: slice) -> Tensor:
            return factor * self.weights(losses, encoded[rows], progress=progress, settings=settings)

        total, losses = self.prepared(units, to_device(batch, device), split, weigh)
        total.backward()
        units = units.to(device)
        everywhere = self.strategy.gather(torch.cat([units, losses.to(units.dtype).unsqueeze(1)], 1))
        units, losses = everywhere[:, :-1], everywhere[:, -1]
        self.weights.observe(losses, self.hypernet.encoded(units).detach(), progress=progress)
        return units, losses

    def _update(self, progress: float) -> None:
        """One step of optimiser and schedule."""
        if self.options.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.hypernet.parameters(), self.options.gradient_clip)
        with self.pace.at(progress):
            self.scaler.step(self.optimizer)
        scale = self.scaler.get_scale()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        skipped = self.scaler.get_scale() < scale  # float16 overflowed, so the optimiser made no step
        if self.schedule is not None and not skipped:
            self.schedule.step()

    def _progress(self, epoch: int, step: int) -> float:
        """Share of training that is over at a step of an epoch; by whole epochs where the loader has no length."""
        if self.total is None:
            return (epoch - 1) / self.options.epochs
        return ((epoch - 1) * self._steps_per_epoch(self.total) + step) / self.total

    def _steps_per_epoch(self, total: int) -> int:
        return total // self.options.epochs

    def _check_finite(self, unchecked: list[tuple[Tensor, Tensor]], good: dict[str, Tensor], epoch: int) -> None:
        for units, losses in unchecked:
            bad = ~torch.isfinite(losses)
            if bool(bad.any()):
                index = int(bad.nonzero()[0])
                self.hypernet.load_state_dict(good)
                config = self.hypernet.space.from_unit(units[index : index + 1].cpu())[0]
                raise TrainingError(
                    f"The loss is {float(losses[index])} in epoch {epoch} at the setting {config}. The hypernetwork"
                    f" has the weights from before epoch {epoch} again. Look for a logarithm or division in the loss"
                    " at that setting, lower the learning rate, or set `gradient_clip`."
                )
        unchecked.clear()

    def _warn_unread(self) -> None:
        for name in self.hypernet.space:
            if name not in self.step.reads:
                warnings.warn(
                    f"no metric responds to '{name}': neither the loss nor a layer reads it. Use"
                    f" config['{name}'] in the loss, or bind a layer to it.",
                    HypertuneWarning,
                    stacklevel=5,
                )

    def _due(self, epoch: int, every: int | None) -> bool:
        every = -(-self.options.epochs // _VALIDATIONS) if every is None else every
        return epoch % every == 0 or epoch == self.options.epochs

    def _seed(self, epoch: int) -> None:
        seed = self.options.seed * _SEED_STRIDE + epoch * self.strategy.world_size + self.strategy.rank
        set_seed(seed, self.loader, self.hypernet.device)

    def _fingerprint(self) -> dict[str, Any]:
        """What must not change between the parts of a resumed run."""
        return {
            "space": self.hypernet.space.to_json(),
            "hypernet": self.hypernet.extra_repr(),
            "epochs": self.options.epochs,
            "seed": self.options.seed,
            "batching": self.options.batching,
            "settings_per_step": self.options.settings_per_step,
        }

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint."""
        progress = {
            "fingerprint": self._fingerprint(),
            "position": self.stream.position,
            "largest_batch": self.largest_batch,
            "weights": self.weights.state(),
            "scaler": self.scaler.state_dict(),
            "reads": sorted(self.step.reads),
            "history": self.history,
            "total": self.total,
        }
        save_checkpoint(folder, self.hypernet, self.optimizer, self.schedule, progress)

    def resume(self, folder: str | Path) -> None:
        """Go on from a checkpoint."""
        progress = load_checkpoint(
            folder, self.hypernet, self.optimizer, self.schedule, fingerprint=self._fingerprint()
        )
        self.stream.move_to(progress["position"])
        self.largest_batch = progress["largest_batch"]
        self.weights.restore(progress["weights"])
        self.scaler.load_state_dict(progress["scaler"])
        self.step.reads.update(progress["reads"])
        self.history = progress["history"]
        if self.schedule is not None and self.total is not None and progress["total"] != self.total:
            self._rebuild_schedule(self.total)

    def _rebuild_schedule(self, total: int) -> None:
        """With another number of workers an epoch has another number of steps: go on from the same share of them."""
        assert self.options.schedule is not None
        for group in self.optimizer.param_groups:
            group["lr"] = group.pop("initial_lr", group["lr"])
        self.schedule = self.options.schedule(self.optimizer, total)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that no optimiser step came before
            for _ in range(len(self.history) * self._steps_per_epoch(total)):
                self.schedule.step()


def grouped(loader: Iterable[Any], size: int) -> Iterator[tuple[Any, float, bool]]:
    """Batches, each with its share of an optimiser step of `size` batches and whether it is the step's last.

    The last step of an epoch may have fewer batches.
    """
    batches = iter(loader)
    while group := list(islice(batches, size)):
        for index, batch in enumerate(group, start=1):
            yield batch, 1 / len(group), index == len(group)


def _validation(evaluator: Evaluator, options: Options) -> Record:
    """Best and mean of each metric over a fixed set of settings."""
    values = evaluator(evaluator.hypernet.space.sample(options.validation_settings, seed=options.seed))
    record: Record = {}
    for name, value in values.items():
        record[f"validation/{name}/best"] = float(value.min())
        record[f"validation/{name}/mean"] = float(value.mean())
    return record
