"""A scrambled Sobol sequence that can be read in pieces and continued from any position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine


class SobolStream:
    """An endless scrambled Sobol sequence in [0, 1]^d, float64.

    Args:
        dimension: d.
        seed: Of the scrambling; equal seeds give equal sequences.
        position: Number of points to skip, so that a resumed run goes on where it stopped.
    """

    def __init__(self, dimension: int, *, seed: int, position: int = 0) -> None:
        """See the class."""
        self.position = position
        self._engine = SobolEngine(dimension, scramble=True, seed=seed)
        if position:
            self._engine.fast_forward(position)

    def draw(self, n: int) -> Tensor:
        """The next `n` points, shape (n, d)."""
        self.position += n
        if n == 0:
            return torch.empty(0, self._engine.dimension, dtype=torch.float64)
        return self._engine.draw(n, dtype=torch.float64)
