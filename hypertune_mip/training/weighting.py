"""How much each setting of a step counts.

Any positive weight that depends on the setting alone leaves each setting's minimiser where it is, so weights are free
to serve training. Two things are asked of them.

Every setting counts the same: its weight is 1 / its loss, or strong penalties would dominate the shared weights. The
loss of one small part of a batch is too noisy for that (examples would count less where the loss happens to be high),
so the weight uses what a running regression of the log loss on the encoded setting predicts.

Settings with a strong penalty must not crush the shared weights before the hypernetwork can tell settings apart: once
all weights are near zero, no setting's fit gives a gradient any more. So in the first part of training (see `pace`)
the weight is 1 / loss * (smallest loss / loss)^p with p falling to 0, which lets the settings that can be fitted lead.

Why not the loss as it is, or 1 / its own value: on small problems with penalties up to crushing ones, both end in a
network that ignores its input and every hyperparameter (see the decision record on weights).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hypertune_mip.training.pace import lead

_FORGET = 0.98  # of the regression, a step: it sees the last fifty steps or so
_RIDGE = 1e-2
_OBSERVE = 20  # steps before the regression is used
_REFIT = 5  # steps between solutions of the regression
_LEAD_POWER = 4.0  # p at the start
_FLOOR = 1e-6  # of the average loss: a setting that fits perfectly must not have an infinite weight
_SMALLEST = 1e-30
_DECAY = 0.99  # of the one scale that serves losses which can be negative


class SettingWeights:
    """Weights of the settings of a step, from the losses of the steps before.

    Where a loss can be negative a ratio means nothing; from the first negative loss on, one running scale (an average
    of absolute losses) serves all settings.

    Args:
        columns: Number of columns E of an encoded setting.
        normalize: Whether to weigh at all; False gives every setting weight 1 / S.
    """

    def __init__(self, columns: int, *, normalize: bool = True) -> None:
        """See the class."""
        self.normalize = normalize
        self.steps = 0
        size = columns + 1
        self._state = {
            "gram": _RIDGE * torch.eye(size, dtype=torch.float64),
            "moment": torch.zeros(size, dtype=torch.float64),
            "coefficients": torch.zeros(size, dtype=torch.float64),
            "low": torch.tensor(math.inf, dtype=torch.float64),
            "high": torch.tensor(-math.inf, dtype=torch.float64),
            "running": torch.tensor(0.0, dtype=torch.float64),
            "signed": torch.tensor(False),
        }

    @torch.no_grad()
    def __call__(
        self, losses: Float[Tensor, "S"], encoded: Float[Tensor, "S E"], *, progress: float
    ) -> Float[Tensor, "S"]:
        """The weights, float64: what to minimise in this step is the sum of weights x losses.

        Args:
            losses: Of all settings of the step.
            encoded: The settings as the trunk sees them; columns of about unit size serve best.
            progress: Share of training that is over, in [0, 1].
        """
        if not self.normalize:
            return torch.full_like(losses, 1 / len(losses), dtype=torch.float64)
        return self._weights(losses.double(), encoded.double(), progress)

    def _weights(self, losses: Tensor, encoded: Tensor, progress: float) -> Tensor:
        """Weights (S,) such that weights x (predicted) losses sum to 1; nothing here waits for the device."""
        state = self._state = {name: value.to(losses.device) for name, value in self._state.items()}
        size = losses.abs().mean()
        running = size if self.steps == 0 else _DECAY * state["running"] + (1 - _DECAY) * size
        state["running"] = running.clamp_min(_SMALLEST)
        state["signed"] = state["signed"] | (losses < 0).any()
        logs = torch.maximum(losses, _FLOOR * state["running"]).log()
        inputs = torch.cat([torch.ones_like(encoded[:, :1]), encoded], dim=1)
        if self.steps < _OBSERVE:
            expected = logs
        else:
            if self.steps % _REFIT == 0:
                state["coefficients"] = torch.linalg.solve_ex(state["gram"], state["moment"])[0]
            expected = torch.clamp(inputs @ state["coefficients"], state["low"], state["high"])
        state["gram"] = _FORGET * state["gram"] + inputs.T @ inputs
        state["moment"] = _FORGET * state["moment"] + inputs.T @ logs
        state["gram"].diagonal().add_(_RIDGE * (1 - _FORGET))
        state["low"], state["high"] = torch.minimum(state["low"], logs.min()), torch.maximum(state["high"], logs.max())
        self.steps += 1
        relative = torch.softmax(-_LEAD_POWER * lead(progress) * expected, dim=0) / expected.exp()
        constant = torch.full_like(relative, 1 / len(losses)) / state["running"]
        return torch.where(state["signed"], constant, relative)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on."""
        return {"steps": self.steps, **self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state of an earlier run."""
        self.steps = state["steps"]
        self._state = {name: state[name] for name in self._state}
