"""How far a surrogate is to be trusted: the trust report against real training, and calibration."""

from hypertune_mip.verification.report import Effect, TrustReport
from hypertune_mip.verification.statistics import Estimate

__all__ = ["Effect", "Estimate", "TrustReport"]
