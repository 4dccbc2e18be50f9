"""What each worker of a Ray Train run does: the core's training loop on its part of the data."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
from torch.utils.data import DataLoader

from hypertune_mip import HyperNetwork, HypertuneWarning
from hypertune_mip.evaluation import Evaluator, Metric
from hypertune_mip.training import Loss, Options, train
from hypertune_mip_ray.checkpoints import RunFolder, newest
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
        options: How to train.
        folder: Of the run.
        checkpoint_seconds: Time between checkpoints at least.
        sender: To the driver.
    """

    hypernet: HyperNetwork
    loss: Loss
    train_loader: DataLoader[Any] | LoaderFactory
    metric: Metric | None
    val_loader: Iterable[Any] | None
    options: Options
    folder: RunFolder
    checkpoint_seconds: float
    sender: Sender | None = None


def work(config: dict[str, Any]) -> None:
    """Train; `config` refers to the `Job`, which lies in the object store: Ray's controller need not load it."""
    job: Job = ray.get(config["job"])
    sender = job.sender
    assert sender is not None
    context = ray.train.get_context()
    loader = own_loader(job.train_loader, context.get_world_rank(), context.get_world_size(), seed=job.options.seed)
    strategy = RayStrategy(loader, job.options.epochs, job.checkpoint_seconds)
    hypernet = job.hypernet.to(ray.train.torch.get_device())
    expected = ray.train.get_checkpoint() is not None
    evaluator = None
    if strategy.rank == 0 and job.metric is not None and job.val_loader is not None:
        evaluator = Evaluator(hypernet, job.metric, job.val_loader)
    options = dataclasses.replace(
        job.options, callbacks=[*job.options.callbacks, lambda r: sender.progress(r["epoch"], r["loss"])]
    )
    with _warnings_to(sender if strategy.rank == 0 else None), newest(job.folder, expected=expected) as checkpoint:
        train(hypernet, job.loss, loader, options, evaluator=evaluator, strategy=strategy, resume_from=checkpoint)


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
