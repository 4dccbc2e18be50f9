"""A run of training: its state, its epochs, what it tells and keeps after each, and going on with an earlier one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hypertune_mip.evaluation import Evaluator
from hypertune_mip.evaluation.modes import gradients
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.randomness import forked_random_state
from hypertune_mip.training.checkpoint import check_can_be_saved, check_place, load_checkpoint, save_checkpoint
from hypertune_mip.training.descent import Descent
from hypertune_mip.training.fingerprint import fingerprint
from hypertune_mip.training.gradients import Gradients
from hypertune_mip.training.loop import Loop
from hypertune_mip.training.options import Loss, Options, total_steps
from hypertune_mip.training.randomness import SEED_STRIDE, set_seed
from hypertune_mip.training.reports import is_due, validation, warn_of_shared_buffers, warn_of_unread
from hypertune_mip.training.run_state import Planned, Progress, Record, RunState, Trained
from hypertune_mip.training.settings import SettingsStream
from hypertune_mip.training.snapshot import Snapshot
from hypertune_mip.training.step import TrainingStep
from hypertune_mip.training.strategy import SingleProcess, Strategy
from hypertune_mip.training.weighting import SettingWeights


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
        StorageError: If a checkpoint cannot be written, or the one to resume from does not fit; before anything is
            trained, if an optimiser or schedule holds what no checkpoint can, or a checkpoint would replace a file of
            somebody else's.
    """
    if strategy is None:
        if options.checkpoint is not None:
            check_place(options.checkpoint)
        strategy = SingleProcess(options.checkpoint)
    run = _Run(hypernet, loss, loader, options, evaluator, strategy)
    if resume_from is None and options.resume:
        resume_from = options.checkpoint
    if resume_from is not None:
        run.resume(resume_from)
    hypernet.train()
    try:
        with forked_random_state(hypernet.device), gradients(True):
            history, state = run.epochs(), run.state
            unread = frozenset(hypernet.space) - state.progress.reads
            return Trained(history, unread, state.plan.state_dict(), state.snapshot.tensors)
    finally:
        hypernet.eval()


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        hypernet: HyperNetwork,
        loss: Loss,
        loader: Iterable[Any],
        options: Options,
        evaluator: Evaluator | None,
        strategy: Strategy,
    ) -> None:
        self.loader = loader
        self.options = options
        self.evaluator = evaluator
        self.strategy = strategy
        self.total = total_steps(loader, options.epochs, options.schedule, accumulate=options.accumulate)
        step = TrainingStep(hypernet, loss, options.precision)
        prepared = strategy.prepare(step)
        settings = SettingsStream(
            hypernet.space,
            seed=options.seed,
            endpoints=options.endpoints,
            rank=strategy.rank,
            world_size=strategy.world_size,
        )
        self.descent = Descent(hypernet, options, total=self.total)
        self.state = RunState(
            hypernet=hypernet,
            optimizer=self.descent.optimizer,
            schedule=self.descent.schedule,
            scaler=self.descent.scaler,
            settings=settings,
            weights=SettingWeights(hypernet.encoded_size, normalize=options.normalize),
            plan=Planned(),
            snapshot=Snapshot(hypernet, options.epochs),
            progress=Progress(reads=step.reads),
        )
        batch_gradients = Gradients(step, prepared, options, strategy, self.state, total=self.total)
        self.loop = Loop(
            batch_gradients, prepared, loader, options, strategy, self.descent, self.state, total=self.total
        )
        self._buffers = {name: buffer.clone() for name, buffer in hypernet.network.named_buffers()}
        self.fingerprint: dict[str, Any] = {}
        if strategy.keeps:
            check_can_be_saved(self.state)
            self.fingerprint = self._fingerprint(self.total)

    def epochs(self) -> list[Record]:
        """Train all epochs that are left, or until a callback stops; returns the history.

        A run that was stopped goes on if none of the callbacks, asked again, stops at its last epoch.
        """
        options, progress = self.options, self.state.progress
        hidden = not (options.progress and self._leads)
        if progress.stopped:
            progress.stopped = self._stops(progress.history[-1])
        with tqdm(total=self.total, initial=progress.steps, disable=hidden, desc="fit", unit="step") as bar:
            while progress.epochs < options.epochs and not progress.stopped:
                self._epoch(progress.epochs + 1, bar)
        return progress.history

    def _epoch(self, epoch: int, bar: Any) -> None:
        """Train for one epoch, tell of it and keep it."""
        options, progress, hypernet = self.options, self.state.progress, self.state.hypernet
        self._seed(epoch)
        self.strategy.start_epoch(epoch)
        record = self.loop.epoch(epoch, bar)
        if epoch == 1 and self._leads:
            warn_of_unread(hypernet.space, progress.reads, stacklevel=6)
            warn_of_shared_buffers(hypernet, self._buffers, stacklevel=6)
        progress.history.append(record)
        self.state.snapshot.take(epoch)
        validated = is_due(epoch, options.epochs, options.validate_every)
        if validated:
            self._validate(record)
        progress.stopped = self._stops(record)
        if progress.stopped and not validated:
            self._validate(record)
        last = progress.stopped or epoch == options.epochs
        due = last or is_due(epoch, options.epochs, options.checkpoint_every)
        self.strategy.end_epoch(record, self.save if due else None, last=last)

    @property
    def _leads(self) -> bool:
        return self.strategy.rank == 0

    def _validate(self, record: Record) -> None:
        """Add validation figures to a record, on the first worker."""
        if self.evaluator is not None and self._leads:
            record |= validation(self.evaluator, self.options)

    def _stops(self, record: Record) -> bool:
        """Whether a callback stops the run after an epoch, the same on all workers; each gets the record."""
        answers = [callback(record) for callback in self.options.callbacks] if self._leads else []
        return self.strategy.agreed(any(answer is True for answer in answers))

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint."""
        save_checkpoint(folder, self.state, self.fingerprint)

    def resume(self, folder: str | Path) -> None:
        """Go on from a checkpoint."""
        load_checkpoint(folder, self.state, self._fingerprint)

    def _fingerprint(self, total: int | None) -> dict[str, Any]:
        """What this run is, if it had so many steps."""
        descent = self.descent
        made = {"optimizer": descent.description, "schedule": descent.schedule.description(total)}
        return fingerprint(self.state.hypernet, self.options, **made)

    def _seed(self, epoch: int) -> None:
        seed = self.options.seed * SEED_STRIDE + epoch * self.strategy.world_size + self.strategy.rank
        set_seed(seed, self.loader, self.state.hypernet.device)
