"""What each worker of a Ray Train run does: the core's training loop on its part of the data."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
from ray.train import Checkpoint
from torch.utils.data import DataLoader

from hypertune_mip import HyperNetwork, HypertuneWarning, StorageError
from hypertune_mip.evaluation import Evaluator, Metric
from hypertune_mip.training import Loss, Options, train
from hypertune_mip.training.checkpoint import check_readable
from hypertune_mip_ray.data import DatasetBatches, LoaderFactory, own_loader
from hypertune_mip_ray.mailbox import Sender
from hypertune_mip_ray.strategy import RayStrategy

SHARD = "train"  # the data set's name within Ray Train


@dataclass(frozen=True)
class Job:
    """What a worker needs; arguments of `fit`.

    Args:
        hypernet: To train.
        loss: Of one setting.
        train_loader: To divide, or a function that makes each worker's own.
        metric: For validation.
        val_loader: For validation.
        options: How to train.
        checkpoint_seconds: Time between checkpoints at least.
        sender: To the driver.
    """

    hypernet: HyperNetwork
    loss: Loss
    train_loader: DataLoader[Any] | LoaderFactory
    metric: Metric | None
    val_loader: Iterable[Any] | None
    options: Options
    checkpoint_seconds: float
    sender: Sender | None = None


@dataclass(frozen=True)
class ShardOf:
    """Makes a worker's loader of its shard of a `ray.data.Dataset`.

    Args:
        batch_size: Of each worker.
        examples: Of the whole data set.
        shuffle_buffer: As in `DatasetBatches`.
    """

    batch_size: int
    examples: int
    shuffle_buffer: int | None

    def __call__(self) -> DatasetBatches:
        """Ray's shards are of equal size; what is left over is left out."""
        own = self.examples // ray.train.get_context().get_world_size()
        return DatasetBatches(ray.train.get_dataset_shard(SHARD), self.batch_size, own, self.shuffle_buffer)


def work(config: dict[str, Any]) -> None:
    """Train; `config` refers to the `Job`, which lies in the object store: Ray's controller need not load it."""
    job: Job = ray.get(config["job"])
    sender = job.sender
    assert sender is not None
    context = ray.train.get_context()
    loader = own_loader(job.train_loader, context.get_world_rank(), context.get_world_size())
    strategy = RayStrategy(loader, job.options.epochs, job.checkpoint_seconds)
    hypernet = job.hypernet.to(ray.train.torch.get_device())
    evaluator = None
    if strategy.rank == 0 and job.metric is not None and job.val_loader is not None:
        evaluator = Evaluator(hypernet, job.metric, job.val_loader)
    options = dataclasses.replace(
        job.options, callbacks=[*job.options.callbacks, lambda r: sender.progress(r["epoch"], r["loss"])]
    )
    with _warnings_to(sender if strategy.rank == 0 else None), _latest(ray.train.get_checkpoint()) as folder:
        train(hypernet, job.loss, loader, options, evaluator=evaluator, strategy=strategy, resume_from=folder)


@contextmanager
def _warnings_to(sender: Sender | None) -> Iterator[None]:
    """Pass on what is warned of in the block: a worker's own output is not shown to users."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HypertuneWarning)
        try:
            yield
        finally:
            for each in caught:
                if sender is not None and issubclass(each.category, HypertuneWarning):
                    sender.warning(str(each.message))


@contextmanager
def _latest(checkpoint: Checkpoint | None) -> Iterator[Path | None]:
    """A folder with the last checkpoint that can be read, if there is one; damaged ones are passed over.

    Raises:
        StorageError: If there are checkpoints, but none can be read.
    """
    if checkpoint is None:
        yield None
        return
    parent = checkpoint.path.rsplit("/", 1)[0]
    listed = checkpoint.filesystem.get_file_info(pyarrow.fs.FileSelector(parent))
    older = [i.path for i in listed if i.type == pyarrow.fs.FileType.Directory and i.path < checkpoint.path]
    damaged: list[str] = []
    for path in [checkpoint.path, *sorted(older, reverse=True)]:
        with Checkpoint(path, checkpoint.filesystem).as_directory() as folder:
            try:
                check_readable(folder)
            except StorageError as error:
                damaged.append(str(error))
                continue
            if damaged:
                warnings.warn(
                    f"Training goes on from '{path}', because: {' '.join(damaged)}", HypertuneWarning, stacklevel=2
                )
            yield Path(folder)
            return
    raise StorageError(f"No checkpoint in '{parent}' can be read: {' '.join(damaged)}")
