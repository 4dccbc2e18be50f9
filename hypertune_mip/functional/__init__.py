"""Weights and configs of one setting, as the primary network meets them."""

from hypertune_mip.functional.context import ActiveConfig, ConfigModule, active
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
    "StructuredWeight",
    "absolute_sum",
    "active",
    "as_type",
    "exact",
    "formed",
    "lowered",
    "plain",
    "scaled",
    "square_sum",
]
