"""From what a hypernetwork makes to the network that predicts: rounds of short trainings, and the mean of all.

Each round starts from the mean of those before, so the networks stay in one valley of the loss, where their mean is
often better than each of them (Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI
2018, where a single training is averaged along its way).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

import hypertune_mip as ht
from hypertune_mip.trainings import BranchPoint, with_another

_LEAST = 0.01  # of a positive score, that a round must lessen it by


def trained_in_rounds(
    trainer: ht.Trainer,
    start: BranchPoint | nn.Module,
    config: dict[str, Any],
    most: int,
    *,
    seed: int,
    score: Callable[[nn.Module], float] | None = None,
) -> tuple[nn.Module, int]:
    """The mean of the networks of all rounds, plain and in evaluation mode; and how many rounds there were, at least 1.

    Args:
        trainer: By whose whole recipe each round trains.
        start: Of the first round, as `Trainer.branch` takes it.
        config: At which to train, native values.
        most: How many rounds, at most. A round that cannot join the mean ends them: one that diverges, or whose
            network has tensors of other shapes, such as a buffer that grows.
        seed: Of the first round's order of data and noise; the others take those that follow.
        score: Of the mean, to be small: the first round that does not lessen it, by a hundredth where it is positive as
            losses and error rates are, ends the rounds, and is left out. None takes all rounds.

    Raises:
        TrainingError: If the first round diverges.
    """
    (mean,) = trainer.branch([config], share=1.0, start=start, seed=seed, progress=False).networks
    if not _is_finite(mean):
        raise ht.TrainingError(f"The training at {config} diverged. Try a smaller learning rate.")
    trainer.collect_statistics(mean, config)
    count, best = 1, math.nan
    if score is not None:
        best = score(mean)
    while count < most:
        (network,) = trainer.branch([config], share=1.0, start=mean, seed=seed + count, progress=False).networks
        tried = with_another(mean, network, count) if _is_finite(network) else None
        if tried is None:
            break
        trainer.collect_statistics(tried, config)
        if score is not None:
            found = score(tried)
            if not found < best - _LEAST * max(0.0, best):
                break
            best = found
        mean, count = tried, count + 1
    return mean.eval(), count


def _is_finite(network: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in network.parameters())
