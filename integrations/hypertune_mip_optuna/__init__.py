"""Optuna studies on a surrogate: trial by trial with any sampler, or thousands of settings at once.

    study = optuna.create_study()
    prefill(study, surrogate, "loss", n=10_000)
    study.optimize(SurrogateObjective(surrogate, "loss"), n_trials=100)

Both take several metrics and constraints, and both refuse a study that was built on another space.
"""

from hypertune_mip_optuna.branches import BranchObjective
from hypertune_mip_optuna.objective import SurrogateObjective
from hypertune_mip_optuna.prefill import prefill
from hypertune_mip_optuna.sampler import SurrogateSampler

__all__ = ["BranchObjective", "SurrogateObjective", "SurrogateSampler", "prefill"]
