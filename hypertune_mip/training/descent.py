"""How gradients become a step: scaling, clipping, the heads' pace, the optimiser and its schedule."""

from __future__ import annotations

import torch

from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.training.fingerprint import description_of
from hypertune_mip.training.optimizers import checked
from hypertune_mip.training.options import EXAMPLE, Options
from hypertune_mip.training.pace import Pace
from hypertune_mip.training.schedule import Schedule


class Descent:
    """What moves a hypernetwork's weights.

    Args:
        hypernet: On its device.
        options: See `fit`.
        total: Steps of the run, if that is known.
    """

    def __init__(self, hypernet: HyperNetwork, options: Options, *, total: int | None) -> None:
        """See the class."""
        self._parameters = [p for p in hypernet.parameters() if p.requires_grad]
        self._clip = options.gradient_clip
        made = options.optimizer(self._parameters)
        self.optimizer = checked(made, self._parameters, whose="The `optimizer` of `fit`", example=EXAMPLE)
        self.description = description_of(self.optimizer)  # as it was made, before anything below changes its groups
        balanced = options.normalize and hypernet.residual
        self._pace = Pace(self.optimizer, hypernet.network, active=balanced)
        self.schedule = Schedule(options.schedule, self.optimizer, total)
        self.scaler = torch.amp.GradScaler(hypernet.device.type, enabled=options.precision == "float16")

    def step(self, progress: float) -> None:
        """One step, from the (scaled) gradients that are there; they are gone afterwards.

        Where float16 overflowed, the scaler leaves the weights as they are, and the schedule does not go on either.

        Args:
            progress: Share of training that is over, in [0, 1].
        """
        if self._clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        with self._pace.at(progress):
            self.scaler.step(self.optimizer)
        scale = self.scaler.get_scale()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        skipped = self.scaler.get_scale() < scale
        if not skipped:
            self.schedule.step()
