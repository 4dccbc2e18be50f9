"""Training data of many workers: each reads a part of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, NamedTuple

import ray.data
import ray.train
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from hypertune_mip import DataError, OptionError
from hypertune_mip.training.options import at_least
from hypertune_mip_ray.cluster import connect

LoaderFactory = Callable[[], Iterable[Any]]

SHARD = "train"  # the data set's name within Ray Train


class DatasetBatches:
    """A `ray.data.Dataset`, or one worker's shard of it, as batches that can be read once an epoch.

    Args:
        dataset: What to read; a batch is a dict of tensors by column.
        batch_size: Examples a batch.
        examples: How many `dataset` holds.
        shuffle_buffer: Examples among which the order is drawn anew each epoch; None keeps the order.
    """

    def __init__(self, dataset: Any, batch_size: int, examples: int, shuffle_buffer: int | None = None) -> None:
        """See the class."""
        self._dataset = dataset
        self._batch_size = batch_size
        self._examples = examples
        self._shuffle_buffer = shuffle_buffer

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self._examples // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of one epoch, on the CPU."""
        seed = int(torch.randint(2**31, ())) if self._shuffle_buffer else None
        batches: Iterator[dict[str, torch.Tensor]] = iter(
            self._dataset.iter_torch_batches(
                batch_size=self._batch_size,
                local_shuffle_buffer_size=self._shuffle_buffer,
                local_shuffle_seed=seed,
                device="cpu",
            )
        )
        return batches


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


def own_loader(given: DataLoader[Any] | LoaderFactory, rank: int, world_size: int, *, seed: int) -> Iterable[Any]:
    """This worker's part of the data: of a loader's, or what a function makes."""
    if not isinstance(given, DataLoader):
        return given()
    if world_size == 1:
        return given
    sampler: DistributedSampler[Any] = DistributedSampler(
        given.dataset,
        num_replicas=world_size,
        rank=rank,
        shuffle=isinstance(given.sampler, RandomSampler),
        seed=seed,
        drop_last=True,
    )
    return DataLoader(
        given.dataset,
        batch_size=given.batch_size,
        sampler=sampler,
        num_workers=given.num_workers,
        collate_fn=given.collate_fn,
        pin_memory=given.pin_memory,
        drop_last=given.drop_last,
        timeout=given.timeout,
        worker_init_fn=given.worker_init_fn,
        prefetch_factor=given.prefetch_factor,
        persistent_workers=given.persistent_workers,
    )


def check_divisible(given: Any, workers: int) -> None:
    """Raise DataError if data cannot be divided among so many workers."""
    if not isinstance(given, DataLoader):
        if not callable(given):
            raise DataError(
                "`train_loader` must be a DataLoader, a ray.data.Dataset or a function that makes a loader, but got a"
                f" {type(given).__name__}."
            )
        return
    if workers <= 1:
        return
    if isinstance(given.dataset, IterableDataset):
        raise DataError("An IterableDataset cannot be divided. Pass a function that makes each worker's own loader.")
    sampler: Any = given.sampler
    if type(given.batch_sampler) not in (BatchSampler, NoneType):
        sampler = given.batch_sampler
    plain = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    if not plain:
        raise DataError(
            f"A loader with a {type(sampler).__name__} of its own cannot be divided. Pass a function that makes each"
            " worker's own loader."
        )
    check_enough(len(given.dataset), workers)  # type: ignore[arg-type]


def check_enough(examples: int, workers: int) -> None:
    """Raise DataError unless every worker gets an example."""
    if examples < workers:
        raise DataError(f"{workers} workers cannot share {examples} examples. Ask for fewer workers.")


class Data(NamedTuple):
    """Training data as each place needs it.

    Args:
        of_worker: Loader to divide, or function.
        of_driver: To train a single network on; None if only workers can read it.
        datasets: For Ray to divide.
    """

    of_worker: DataLoader[Any] | LoaderFactory
    of_driver: Iterable[Any] | None
    datasets: dict[str, ray.data.Dataset]


def prepared(given: Any, batch_size: int | None, shuffle_buffer: int | None, workers: int) -> Data:
    """Check the data and prepare it."""
    if not isinstance(given, ray.data.Dataset):
        if batch_size is not None or shuffle_buffer is not None:
            raise OptionError("`batch_size` and `shuffle_buffer` are for a ray.data.Dataset; a loader has its own.")
        check_divisible(given, workers)
        return Data(given, given if isinstance(given, DataLoader) else None, {})
    if batch_size is None:
        raise OptionError("A ray.data.Dataset needs `batch_size`, the examples in a batch of each worker.")
    (batch_size,) = at_least(1, batch_size=batch_size)
    if shuffle_buffer is not None:
        (shuffle_buffer,) = at_least(1, shuffle_buffer=shuffle_buffer)
    connect()
    examples = given.count()
    check_enough(examples, max(1, workers))
    return Data(
        ShardOf(batch_size, examples, shuffle_buffer),
        DatasetBatches(given, batch_size, examples, shuffle_buffer),
        {SHARD: given},
    )
