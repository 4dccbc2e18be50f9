"""How far a surrogate is to be trusted: truth from real training, the trust report, calibration."""

from hypertune_mip.verification.report import Effect, TrustReport
from hypertune_mip.verification.statistics import Estimate
from hypertune_mip.verification.truth import Budget, Truth

__all__ = ["Budget", "Effect", "Estimate", "TrustReport", "Truth"]
