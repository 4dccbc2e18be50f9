"""The hypernetwork: trunk, head and theta_0 around a primary network."""

from hypertune_mip.hypernetwork.network import Function, HyperNetwork

__all__ = ["Function", "HyperNetwork"]
