"""Train one hypernetwork once, then evaluate any setting of regularisation and loss weights at once.

    space     = SearchSpace({...})                    Optuna's distributions
    hypernet  = HyperNetwork(network, space)          the user's network, conditioned on them
    surrogate = fit(hypernet, loss, train_loader, metric=metric, val_loader=val_loader)
    surrogate.evaluate(config)                        no training

The names here are the public interface; `losses`, `metrics`, `nn` and `callbacks` are public modules.
"""

from hypertune_mip import losses, metrics, nn
from hypertune_mip.errors import (
    DataError,
    HypertuneError,
    HypertuneWarning,
    LossError,
    MissingExtraError,
    NetworkError,
    OptionError,
    SpaceError,
    StorageError,
    TrainingError,
)
from hypertune_mip.evaluation import Emulator, EmulatorAccuracy
from hypertune_mip.execution import Execution
from hypertune_mip.heads import Dense, Head, LowRank, RankOne
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.space import SearchSpace
from hypertune_mip.surrogate import Candidate, Delivered, Optimum, ParetoPoint, Surrogate, fit
from hypertune_mip.tasks import Classification, Regression, Task
from hypertune_mip.training import callbacks
from hypertune_mip.trainings import Branches, Recipe, Trainer
from hypertune_mip.verification import Estimate, TrustReport

__version__ = "0.1.0"

__all__ = [
    "Branches",
    "Candidate",
    "Classification",
    "DataError",
    "Delivered",
    "Dense",
    "Emulator",
    "EmulatorAccuracy",
    "Estimate",
    "Execution",
    "Head",
    "HyperNetwork",
    "HypertuneError",
    "HypertuneWarning",
    "LossError",
    "LowRank",
    "MissingExtraError",
    "NetworkError",
    "Optimum",
    "OptionError",
    "ParetoPoint",
    "RankOne",
    "Recipe",
    "Regression",
    "SearchSpace",
    "SpaceError",
    "StorageError",
    "Surrogate",
    "Task",
    "Trainer",
    "TrainingError",
    "TrustReport",
    "callbacks",
    "fit",
    "losses",
    "metrics",
    "nn",
]
