"""`fit`: from a hypernetwork, a loss and data to a surrogate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from hypertune_mip.evaluation import Metric
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.surrogate.surrogate import Surrogate
from hypertune_mip.training import Loss, Options, adam, cosine, train
from hypertune_mip.training.options import Callback, OptimizerFactory, ScheduleFactory
from hypertune_mip.verification.response import warn_of_no_response
from hypertune_mip.verification.truth import Budget


def fit(
    hypernet: HyperNetwork,
    loss: Loss,
    train_loader: Iterable[Any],
    *,
    metric: Metric | None = None,
    val_loader: Iterable[Any] | None = None,
    epochs: int = 40,
    settings_per_step: int | Literal["auto"] = "auto",
    batching: Literal["auto", "split", "full"] = "auto",
    endpoints: float = 0.0,
    normalize: bool = True,
    optimizer: OptimizerFactory = adam,
    schedule: ScheduleFactory | None = cosine,
    gradient_clip: float | None = None,
    accumulate: int = 1,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    validate_every: int | None = None,
    validation_settings: int = 4,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
) -> Surrogate:
    """Train a hypernetwork once over its whole search space and return the surrogate that answers for any setting.

    Args:
        hypernet: Trained in place, and moved to `device`.
        loss: (model, batch, config) to a 0-d tensor, written for one setting; `config` maps a name to a 0-d tensor.
        train_loader: A DataLoader, or any collection of batches that can be read once an epoch.
        metric: (model, batch) to 0-d means over the batch, by name; needed to evaluate anything.
        val_loader: Validation data for `metric`.
        epochs: Passes over `train_loader`; as many as one plain training takes is a good start.
        settings_per_step: Settings K that share a step; "auto" takes about the square root of the batch size, up to 16.
        batching: "split" gives each setting its own part of the batch, for the cost of a step or two; "full" gives each
            setting the whole batch, which is better and up to K times as dear; "auto" splits, unless network and batch
            are so small that three whole batches cost little more, and `settings_per_step` is "auto" as well.
        endpoints: Share of settings moved to the ends of each range; see `SearchSpace.sample`.
        normalize: Whether settings are weighted and heads hold back at first, so that strong penalties neither dominate
            nor crush the network; see `training.weighting` and `training.pace`.
        optimizer: From parameters to any torch optimiser; the default is Adam at 6e-3.
        schedule: From (optimiser, steps) to a torch schedule that is advanced every step; None keeps the rate.
        gradient_clip: Largest norm of the whole gradient.
        accumulate: Batches whose gradients are added up before each optimiser step.
        precision: "bfloat16" or "float16" for mixed precision.
        device: "auto" takes CUDA where there is one.
        seed: Of settings, batches and noise.
        progress: Whether to show a bar with loss and time left.
        callbacks: Each gets every epoch's record, a dict; see `hypertune_mip.callbacks`.
        validate_every: Epochs between validations; None validates four times. The last epoch always is.
        validation_settings: How many settings a validation looks at, the same each time.
        checkpoint: Folder for checkpoints.
        checkpoint_every: Epochs between them.
        resume: Whether to go on from the one in `checkpoint`; on a CPU the result is the same bit for bit.

    Raises:
        OptionError: If an option is invalid.
        DataError: If a loader is empty or a batch cannot be split.
        LossError: If the loss or metric returns something else than agreed.
        TrainingError: If a loss is not finite; it names the setting, and `hypernet` keeps the last good state.
        StorageError: If a checkpoint cannot be written, read, or belongs to another run.

    Warns:
        HypertuneWarning: If no metric responds to a hyperparameter, or to any.
    """
    options = Options(
        epochs=epochs,
        settings_per_step=settings_per_step,
        batching=batching,
        endpoints=endpoints,
        normalize=normalize,
        optimizer=optimizer,
        schedule=schedule,
        gradient_clip=gradient_clip,
        accumulate=accumulate,
        precision=precision,
        device=device,
        seed=seed,
        progress=progress,
        callbacks=callbacks,
        validate_every=validate_every,
        validation_settings=validation_settings,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
    )
    hypernet.to(options.resolved_device())
    surrogate = Surrogate(
        hypernet,
        loss=loss,
        metric=metric,
        val_loader=val_loader,
        train_loader=train_loader,
        budget=Budget(epochs=epochs, optimizer=optimizer, schedule=schedule),
    )
    evaluator = surrogate._evaluator
    surrogate.history, unread = train(hypernet, loss, train_loader, options, evaluator=evaluator)
    if evaluator is not None:
        warn_of_no_response(surrogate.responses(bases=2), unread)
    return surrogate
