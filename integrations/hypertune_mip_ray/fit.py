"""`fit` on many workers: the training loop of `hypertune_mip.fit`, run by Ray Train."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Unpack

import ray
import ray.data
import ray.train
import ray.train.torch
from ray.train import RunConfig, ScalingConfig
from torch import nn
from torch.utils.data import DataLoader

from hypertune_mip import HyperNetwork, OptionError, SearchSpace, Surrogate
from hypertune_mip import fit as fit_in_one_process
from hypertune_mip.directions import Direction
from hypertune_mip.evaluation import Metric
from hypertune_mip.surrogate.arguments import (
    as_hypernetwork,
    check_functions,
    check_validation,
    evaluator_of,
    goal_of,
)
from hypertune_mip.surrogate.fit import finished
from hypertune_mip.tasks import Task
from hypertune_mip.training import Loss, Options
from hypertune_mip.training.checkpoint import load_result
from hypertune_mip.training.keywords import TrainingKeywords, check_names, takes_options
from hypertune_mip_ray.checkpoints import (
    IN_THIS_PROCESS,
    is_checkpoint,
    mend,
    newest,
    opened,
    run_folder,
    with_absolute_path,
)
from hypertune_mip_ray.cluster import check_resources, connect, own_error, sent
from hypertune_mip_ray.data import Data, LoaderFactory, own_loader, prepared
from hypertune_mip_ray.mailbox import delivered
from hypertune_mip_ray.worker import Job, work

_PAUSE = 30.0  # seconds between checkpoints at least, unless `checkpoint_every` says otherwise


_ELSEWHERE = {
    "device": "`scaling_config` says where to train.",
    "checkpoint": "`run_config` says where checkpoints go.",
}
_NOTES = {
    "settings_per_step": "Each worker has its own K.",
    "normalize": "Settings are weighted among those of all workers.",
    "schedule": "With another number of workers it goes on from the same share of training.",
    "accumulate": "Workers exchange gradients once an optimiser step.",
    "progress": "In the driver.",
    "callbacks": "They run in the first worker; where one ends training, all workers stop.",
}


@takes_options(TrainingKeywords.__annotations__, notes=_NOTES)
def fit(
    network: HyperNetwork | nn.Module,
    loss: Loss | Task,
    train_loader: DataLoader[Any] | LoaderFactory | ray.data.Dataset,
    *,
    space: SearchSpace | None = None,
    scaling_config: ScalingConfig | None = None,
    run_config: RunConfig | None = None,
    resume: bool | Literal["auto"] = False,
    batch_size: int | None = None,
    shuffle_buffer: int | None = None,
    metric: Metric | None = None,
    val_loader: Iterable[Any] | None = None,
    directions: Mapping[str, Direction] | None = None,
    checkpoint_every: int | None = None,
    **options: Unpack[TrainingKeywords],
) -> Surrogate:
    """`hypertune_mip.fit` on the workers of Ray Train, with its failure handling and checkpoints.

    Each worker trains on its own part of the data and its own part of the settings: W workers with batches of B and K
    settings a step do what one process does with batches of W x B that W x K settings split (with whole batches, as
    small networks have them, a setting sees those of its worker only). Losses are weighted over all
    workers, gradients are averaged by DistributedDataParallel. Checkpoints go to the storage of `run_config`; a run
    that loses a worker, a node or its driver goes on from the last one.

    Options are those of `hypertune_mip.fit`, but for `device` and `checkpoint`: `scaling_config` says where to train,
    `run_config` where checkpoints go.

    Args:
        network: A hypernetwork, which gets the trained weights at the end, on the CPU, while the workers train copies;
            or a plain network with `space`, as in `hypertune_mip.fit`.
        loss: As in `hypertune_mip.fit`.
        train_loader: A DataLoader, whose data is divided among the workers while its batch size is that of each; a
            `ray.data.Dataset`, whose batches are dicts of tensors by column; or a function without arguments that each
            worker calls for its own loader (`ray.train.get_context()` says which worker it is). All must have as many
            batches.
        space: As in `hypertune_mip.fit`.
        scaling_config: How many workers, and whether with GPUs; None is one. A range of workers makes Ray go on with
            fewer while a node is missing. 0 trains in this process, to find errors.
        run_config: Name, storage, failures, checkpoints to keep. None takes a fresh name below `~/ray_results`.
        resume: Whether to go on with the run of that name in that storage; "auto" does if there is one. Without it a
            name that exists is refused.
        batch_size: Of each worker, for a `ray.data.Dataset` only.
        shuffle_buffer: For a `ray.data.Dataset` only: examples among which the order is drawn anew each epoch.
        metric: As in `hypertune_mip.fit`.
        val_loader: Validation data, for the first worker.
        directions: As in `hypertune_mip.fit`.
        checkpoint_every: Epochs between checkpoints. None waits until half a minute has passed, since Ray takes in one
            every two seconds at most. After the last epoch there is one in any case.
        **options: How to train; `hypertune_mip.training.Options` declares each.

    Raises:
        OptionError: If an option is invalid or is none of these (then it is a TypeError as well), a name is taken, or
            GPUs are asked for on a single machine without one.
        DataError: If there are more workers than examples, or something cannot be sent to the workers.
        TrainingError: If a loss is not finite on any worker; all stop, and the setting is named. As with any error that
            would come again, training is not tried a second time, whatever `run_config` allows.
        StorageError: If no checkpoint of a run to resume can be read, or it belongs to another run.
        ray.train.TrainingFailedError: If workers failed more often than `run_config` allows.

    Warns:
        HypertuneWarning: As in `hypertune_mip.fit`; if a damaged checkpoint is passed over; or if the cluster has fewer
            resources than are asked for, so that Ray waits.
    """
    check_names(fit, options, elsewhere=_ELSEWHERE)
    hypernet = as_hypernetwork(network, space)
    loss, metric, directions = goal_of(loss, metric, directions, val_loader)
    check_functions(loss, metric)
    check_validation(metric, val_loader)
    asked = Options(**options)
    every = 1 if checkpoint_every is None else checkpoint_every
    chosen = dataclasses.replace(asked, progress=False, checkpoint_every=every)
    scaling = scaling_config or ScalingConfig(num_workers=1)
    workers = scaling.num_workers if isinstance(scaling.num_workers, int) else scaling.num_workers[-1]
    storage = run_config if run_config is not None else RunConfig(name=f"hypertune-mip-{uuid.uuid4().hex[:12]}")
    storage = with_absolute_path(storage)
    data = prepared(train_loader, batch_size, shuffle_buffer, workers)
    folder = run_folder(storage, resume=resume)
    job = Job(
        hypernet,
        loss,
        data.of_worker,
        metric,
        val_loader,
        directions,
        chosen,
        folder,
        checkpoint_seconds=_PAUSE if checkpoint_every is None else 0.0,
    )
    if workers == 0:
        return _fit_here(job, storage, data, progress=asked.progress)
    return _fit_there(job, storage, data, scaling, progress=asked.progress)


def _fit_there(job: Job, storage: RunConfig, data: Data, scaling: ScalingConfig, *, progress: bool) -> Surrogate:
    """On Ray's workers."""
    check_resources(scaling, own=connect())
    mend(job.folder)
    job.hypernet.to("cpu")
    with delivered(job.options.epochs, progress=progress) as mailbox:
        trainer: Any = ray.train.torch.TorchTrainer(
            work,
            train_loop_config={"job": sent(job, vars(job)), "sender": mailbox.sender},
            scaling_config=scaling,
            run_config=storage,
            datasets=data.datasets,
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            own = mailbox.failure() or own_error(error)
            if own is None:
                raise
            raise own from error
        if (failure := mailbox.failure()) is not None:
            raise failure
    last = newest(job.folder, expected=True)  # Ray's result may miss it, if a worker was lost just after it was written
    assert last is not None
    with opened(job.folder, last) as folder:
        trained = load_result(folder, job.hypernet)
    return finished(
        job.hypernet,
        trained,
        job.options,
        loss=job.loss,
        train_loader=data.of_driver,
        evaluator=evaluator_of(job.hypernet, job.metric, job.val_loader, directions=job.directions),
        stacklevel=4,
    )


def _fit_here(job: Job, storage: RunConfig, data: Data, *, progress: bool) -> Surrogate:
    """In this process, with Ray's context around it."""
    if not job.folder.is_local:
        raise OptionError("With num_workers=0 the storage of `run_config` must be on this machine.")
    kept = {path.name for path in Path(job.folder.path).glob("*") if is_checkpoint(path.name)}
    if kept - {IN_THIS_PROCESS}:
        raise OptionError(f"The run '{storage.name}' was trained by workers. Go on with as many, or take another name.")
    resume = bool(kept)
    checkpoint = f"{job.folder.path}/{IN_THIS_PROCESS}"
    options = {**vars(job.options), "checkpoint": checkpoint, "resume": resume, "progress": progress}

    def here() -> Surrogate:
        loader = own_loader(job.train_loader, rank=0, world_size=1, seed=job.options.seed)
        return fit_in_one_process(
            job.hypernet,
            job.loss,
            loader,
            metric=job.metric,
            val_loader=job.val_loader,
            directions=job.directions,
            **options,
        )

    trainer: Any = ray.train.torch.TorchTrainer(
        here, scaling_config=ScalingConfig(num_workers=0), run_config=storage, datasets=data.datasets
    )
    surrogate: Surrogate = trainer.fit().return_value
    return surrogate.replace(train_loader=data.of_driver)
