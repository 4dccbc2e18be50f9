"""Search spaces over Optuna's own distributions, and their maps to and from the unit cube."""

from hypertune_mip.space.dimension import Choice, Dimension, Value
from hypertune_mip.space.search_space import Config, SearchSpace, oversample_endpoints
from hypertune_mip.space.sobol import SobolStream

__all__ = [
    "Choice",
    "Config",
    "Dimension",
    "SearchSpace",
    "SobolStream",
    "Value",
    "oversample_endpoints",
]
