"""The surrogate and how it comes about."""

from hypertune_mip.surrogate.delivery import Candidate, Delivered
from hypertune_mip.surrogate.fit import fit
from hypertune_mip.surrogate.search import Optimum, ParetoPoint
from hypertune_mip.surrogate.surrogate import Surrogate

__all__ = ["Candidate", "Delivered", "Optimum", "ParetoPoint", "Surrogate", "fit"]
