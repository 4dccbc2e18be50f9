"""Which settings a step trains: slices of one scrambled Sobol sequence."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from hypertune_mip.space import SearchSpace, SobolStream, oversample_endpoints


class SettingsStream:
    """An endless stream of settings that several workers share without overlap.

    Args:
        space: What is sampled.
        seed: Of the sequence.
        endpoints: Share of each column that is moved to an end of its range; see `SearchSpace.sample`.
        rank: This worker, from 0.
        world_size: Number of workers.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int, endpoints: float = 0.0, rank: int = 0, world_size: int = 1
    ) -> None:
        """See the class."""
        self._space = space
        self._seed = seed
        self._endpoints = endpoints
        self._rank = rank
        self._world_size = world_size
        self._stream = SobolStream(len(space), seed=seed)

    def draw(self, count: int) -> Float[Tensor, "S d"]:
        """This worker's part of the next `count` x `world_size` settings."""
        points = self._stream.draw(count * self._world_size)
        own = points[self._rank * count : (self._rank + 1) * count]
        return self._space.snap(oversample_endpoints(own, self._endpoints))

    def state_dict(self) -> dict[str, int]:
        """Points of the sequence that are used up, over all workers."""
        return {"position": self._stream.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from where an earlier run stopped."""
        self._stream = SobolStream(len(self._space), seed=self._seed, position=state["position"])
