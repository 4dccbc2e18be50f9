"""From what a hypernetwork makes to the network that predicts: rounds of short trainings, and the mean of all.

Each round starts from the mean of those before, so the networks stay in one valley of the loss, where their mean is
often better than each of them (Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI
2018, where a single training is averaged along its way).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

import hypertune_mip as ht
from hypertune_mip.trainings import BranchPoint, with_another

_LEAST = 0.01  # of the score, that a round must lessen it by


class Rounds(NamedTuple):
    """What rounds of trainings end in.

    Args:
        network: Plain, in evaluation mode; the mean of the networks of all rounds.
        rounds: How many.
    """

    network: nn.Module
    rounds: int


def trained_in_rounds(
    trainer: ht.Trainer,
    start: BranchPoint | nn.Module,
    config: dict[str, Any],
    rounds: int,
    *,
    seed: int,
    score: Callable[[nn.Module], float] | None = None,
) -> Rounds:
    """The mean of the networks of at least one round and at most so many.

    Args:
        trainer: By whose whole recipe each round trains.
        start: Of the first round, as `Trainer.branch` takes it.
        config: At which to train, native values.
        rounds: How many, at most.
        seed: Of the first round's order of data and noise; the others take those that follow.
        score: Of the mean, to be small: the first round that does not lessen it by a hundredth ends the rounds, and is
            left out. None takes all rounds.
    """
    (mean,) = trainer.branch([config], share=1.0, start=start, seed=seed, progress=False).networks
    trainer.collect_statistics(mean, config)
    best, count = math.inf if score is None else score(mean), 1
    while count < rounds:
        (network,) = trainer.branch([config], share=1.0, start=mean, seed=seed + count, progress=False).networks
        tried = with_another(mean, network, count)
        assert tried is not None  # of one architecture
        trainer.collect_statistics(tried, config)
        if score is not None:
            found = score(tried)
            if not found < best - _LEAST * abs(best):
                break
            best = found
        mean, count = tried, count + 1
    return Rounds(mean.eval(), count)
