"""What each worker of a Ray Train run does: the core's training loop on its part of the data."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.train.torch
from torch.utils.data import DataLoader

from hypertune_mip import HyperNetwork, HypertuneError, HypertuneWarning, StorageError
from hypertune_mip.directions import Direction
from hypertune_mip.evaluation import Metric
from hypertune_mip.surrogate.arguments import evaluator_of
from hypertune_mip.training import Loss, Options, train
from hypertune_mip_ray.checkpoints import RunFolder, newest, opened
from hypertune_mip_ray.data import LoaderFactory, own_loader
from hypertune_mip_ray.mailbox import Sender
from hypertune_mip_ray.strategy import RayStrategy


@dataclass(frozen=True)
class Job:
    """What a worker needs; arguments of `fit`.

    Args:
        hypernet: To train.
        loss: Of one setting.
        train_loader: To divide, or a function that makes each worker's own.
        metric: For validation.
        val_loader: For validation.
        directions: Of the metrics.
        options: How to train.
        folder: Of the run.
        checkpoint_seconds: Time between checkpoints at least.
    """

    hypernet: HyperNetwork
    loss: Loss
    train_loader: DataLoader[Any] | LoaderFactory
    metric: Metric | None
    val_loader: Iterable[Any] | None
    directions: Mapping[str, Direction]
    options: Options
    folder: RunFolder
    checkpoint_seconds: float


def work(config: dict[str, Any]) -> None:
    """Train.

    Args:
        config: A reference to the `Job`, which lies in the object store, so that Ray's controller need not load it; and
            the `Sender`.
    """
    sender: Sender = config["sender"]
    if sender.has_failed():  # Ray starts workers again after any error, also after one that would come again
        return
    try:
        _train(ray.get(config["job"]), sender)
    except StorageError:
        raise  # the storage may answer next time
    except HypertuneError as error:
        sender.failed(error)
        raise


def _train(job: Job, sender: Sender) -> None:
    context = ray.train.get_context()
    loader = own_loader(job.train_loader, context.get_world_rank(), context.get_world_size(), seed=job.options.seed)
    strategy = RayStrategy(loader, job.checkpoint_seconds)
    hypernet = job.hypernet.to(ray.train.torch.get_device())
    own = strategy.rank == 0
    evaluator = evaluator_of(hypernet, job.metric, job.val_loader, directions=job.directions) if own else None
    options = dataclasses.replace(
        job.options, callbacks=[*job.options.callbacks, lambda r: sender.progress(r["epoch"], r["loss"])]
    )
    with _warnings_to(sender if strategy.rank == 0 else None), _checkpoint(job.folder, strategy.rank) as checkpoint:
        train(hypernet, job.loss, loader, options, evaluator=evaluator, strategy=strategy, resume_from=checkpoint)


@contextmanager
def _checkpoint(folder: RunFolder, rank: int) -> Iterator[Path | None]:
    """The one to go on from, the same on all workers: the first one chooses; None to start anew."""
    expected = ray.train.get_checkpoint() is not None
    chosen = newest(folder, expected=expected) if rank == 0 else None
    name = ray.train.collective.broadcast_from_rank_zero(chosen)
    with ExitStack() as stack:
        yield stack.enter_context(opened(folder, name)) if name is not None else None


@contextmanager
def _warnings_to(sender: Sender | None) -> Iterator[None]:
    """Pass on what is warned of in the block, at once: a worker's own output is not shown to users."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if sender is not None and issubclass(category, HypertuneWarning):
            sender.warning(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", HypertuneWarning)
        warnings.showwarning = show
        yield
