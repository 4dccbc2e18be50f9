"""Training data of many workers: each reads a part of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler

from hypertune_mip import DataError

LoaderFactory = Callable[[], Iterable[Any]]


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


def own_loader(given: DataLoader[Any] | LoaderFactory, rank: int, world_size: int) -> Iterable[Any]:
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
        worker_init_fn=given.worker_init_fn,
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
    if given.batch_sampler is not None and type(given.sampler).__name__ not in ("RandomSampler", "SequentialSampler"):
        raise DataError(
            f"A loader with a {type(given.sampler).__name__} cannot be divided. Pass a function that makes each"
            " worker's own loader."
        )
    check_enough(len(given.dataset), workers)  # type: ignore[arg-type]


def check_enough(examples: int, workers: int) -> None:
    """Raise DataError unless every worker gets an example."""
    if examples < workers:
        raise DataError(f"{workers} workers cannot share {examples} examples. Ask for fewer workers.")
