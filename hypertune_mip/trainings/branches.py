"""Short trainings that started from weights that were there, and what came out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from operator import getitem
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import nn

from hypertune_mip.space import Value

BranchPoint = Literal["early", "end"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Branches:
    """Short trainings that started from a hypernetwork's weights.

    Args:
        configs: Native values, S of them.
        metrics: By name, on the validation data, (S,); NaN where a training diverged.
        cost: Of all, in trainings with the whole recipe.
        share: Of the recipe that each took, in whole steps.
        start: The branch point, or "network" where a network was given.
        make: Makes the plain network of one of them, by its index.
    """

    configs: tuple[dict[str, Value], ...]
    metrics: Mapping[str, Float[np.ndarray, "S"]]
    cost: float
    share: float
    start: BranchPoint | Literal["network"]
    make: Callable[[int], nn.Module]

    @cached_property
    def networks(self) -> tuple[nn.Module, ...]:
        """Plain, in evaluation mode, S of them; they are made on first use."""
        return tuple(self.make(index) for index in range(len(self.configs)))

    def __getstate__(self) -> dict[str, Any]:
        """With the networks themselves, in place of the trainer that makes them."""
        return {**self.__dict__, "make": partial(getitem, self.networks)}

    def __repr__(self) -> str:
        """How many, from where, and what they cost."""
        return (
            f"Branches({len(self.configs)} configs, metrics={list(self.metrics)}, share={self.share:g},"
            f" start={self.start!r}, cost={self.cost:.3g})"
        )
