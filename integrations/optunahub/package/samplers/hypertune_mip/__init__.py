"""The OptunaHub entry of `SurrogateSampler`: everything is in the package `hypertune-mip`."""

from hypertune_mip_optuna import SurrogateSampler

__all__ = ["SurrogateSampler"]
