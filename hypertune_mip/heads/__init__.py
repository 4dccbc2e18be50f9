"""Heads: how the trunk's features become the weights of the primary network. One file a head."""

from hypertune_mip.heads.base import Head, heads_named
from hypertune_mip.heads.dense import Dense
from hypertune_mip.heads.low_rank import LowRank, LowRankWeight
from hypertune_mip.heads.rank_one import RankOne, RankOneWeight
from hypertune_mip.heads.rule import Rule

__all__ = ["Dense", "Head", "LowRank", "LowRankWeight", "RankOne", "RankOneWeight", "Rule", "heads_named"]
