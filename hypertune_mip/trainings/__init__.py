"""Plain networks: the recipe by which one is trained, the trainer, finished trainings, and who carries them out."""

from hypertune_mip.trainings.average import Average, greedy_average, with_another
from hypertune_mip.trainings.branches import Branches, BranchPoint
from hypertune_mip.trainings.executor import Executor, InThisProcess
from hypertune_mip.trainings.recipe import AnyConfig, Recipe
from hypertune_mip.trainings.starts import FromHypernetwork
from hypertune_mip.trainings.store import Finished, Run, Together
from hypertune_mip.trainings.trainer import Trainer
from hypertune_mip.trainings.workshop import Workshop

__all__ = [
    "AnyConfig",
    "Average",
    "BranchPoint",
    "Branches",
    "Executor",
    "Finished",
    "FromHypernetwork",
    "InThisProcess",
    "Recipe",
    "Run",
    "Together",
    "Trainer",
    "Workshop",
    "greedy_average",
    "with_another",
]
