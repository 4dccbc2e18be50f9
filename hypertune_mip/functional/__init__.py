"""Weights and configs of one setting, as the primary network meets them."""

from hypertune_mip.functional.context import (
    ActiveConfig,
    ConfigModule,
    Hyperparameter,
    active,
    as_number,
    hyperparameters_in,
)
from hypertune_mip.functional.structured import (
    StructuredWeight,
    absolute_sum,
    as_type,
    exact,
    formed,
    lowered,
    plain,
    scaled,
    square_sum,
)

__all__ = [
    "ActiveConfig",
    "ConfigModule",
    "Hyperparameter",
    "StructuredWeight",
    "absolute_sum",
    "active",
    "as_number",
    "as_type",
    "exact",
    "formed",
    "hyperparameters_in",
    "lowered",
    "plain",
    "scaled",
    "square_sum",
]
