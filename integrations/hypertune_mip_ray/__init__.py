"""Ray: one hypernetwork trained by many workers, and surrogates in Ray Tune.

surrogate = fit(hypernet, loss, train_loader, ..., scaling_config=ScalingConfig(num_workers=4))
tune.Tuner(trainable(surrogate, "loss"), param_space=param_space(space), ...)
tune.Tuner(branch_trainable(surrogate, "loss"), param_space=param_space(space), ...)
"""

from hypertune_mip import MissingExtraError

try:
    import ray  # noqa: F401
except ImportError as error:
    raise MissingExtraError("`hypertune_mip_ray`", "ray") from error

from hypertune_mip_ray.domains import param_space, search_space
from hypertune_mip_ray.evaluate import evaluate_batch
from hypertune_mip_ray.executor import executor
from hypertune_mip_ray.fit import fit
from hypertune_mip_ray.search import SurrogateSearch
from hypertune_mip_ray.trainable import branch_trainable, trainable

__all__ = [
    "SurrogateSearch",
    "branch_trainable",
    "evaluate_batch",
    "executor",
    "fit",
    "param_space",
    "search_space",
    "trainable",
]
