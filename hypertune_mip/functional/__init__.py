"""Weights and configs of one setting, as the primary network meets them."""

from hypertune_mip.functional.context import ActiveConfig, ConfigModule, active
from hypertune_mip.functional.weights import LowRankWeight, RankOneWeight, StructuredWeight, plain

__all__ = [
    "ActiveConfig",
    "ConfigModule",
    "LowRankWeight",
    "RankOneWeight",
    "StructuredWeight",
    "active",
    "plain",
]
