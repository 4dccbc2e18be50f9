"""How fast the heads learn beside theta_0.

Heads that scale whole rows and columns can empty the network within a few dozen steps, long before theta_0 has learned
anything that is worth keeping. So for the first part of training, while settings with a small loss lead (see
`weighting`), the learning rate of trunk and heads is a small share of that of theta_0; the share grows to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

START = 0.03  # of theta_0's learning rate
LEAD = 0.15  # share of training in which settings with a small loss lead and the heads hold back


def lead(progress: float) -> float:
    """1 at the start of training, falling to 0 when the lead is over; `progress` is the share that is over."""
    return max(0.0, 1.0 - progress / LEAD)


class Pace:
    """Slows those parameters of an optimiser that are not theta_0.

    Args:
        optimizer: Its groups are split in place, so schedules must be made afterwards. Groups without an `lr` are left
            as they are.
        theta_0: The parameters that keep their rate.
        active: False leaves everything as it is.
    """

    def __init__(self, optimizer: Optimizer, theta_0: nn.Module, *, active: bool = True) -> None:
        """See the class."""
        kept = {id(parameter) for parameter in theta_0.parameters() if parameter.requires_grad}
        self._slowed: list[dict[str, Any]] = []
        if not active or not kept:  # with theta_0 frozen there is nothing to wait for
            return
        groups = []
        for group in optimizer.param_groups:
            parts = [[p for p in group["params"] if (id(p) in kept) is keep] for keep in (True, False)]
            groups += [{**group, "params": part} for part in parts if part]
        optimizer.param_groups[:] = groups
        self._slowed = [group for group in groups if id(group["params"][0]) not in kept and "lr" in group]

    @contextmanager
    def at(self, progress: float) -> Iterator[None]:
        """The optimiser's rates inside the block are those for this share of training."""
        factor = START ** lead(progress)
        rates = [group["lr"] for group in self._slowed]
        for group in self._slowed:
            group["lr"] = group["lr"] * factor
        try:
            yield
        finally:
            for group, rate in zip(self._slowed, rates, strict=True):
                group["lr"] = rate
