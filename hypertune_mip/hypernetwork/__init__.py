"""The hypernetwork: trunk, head and theta_0 around a primary network."""

from hypertune_mip.hypernetwork.network import HyperNetwork
from hypertune_mip.hypernetwork.primary import bindings

__all__ = ["HyperNetwork", "bindings"]
