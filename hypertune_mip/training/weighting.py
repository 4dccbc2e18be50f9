"""How much each setting of a step counts.

Any positive weight that depends on the setting alone leaves each setting's minimiser where it is, so weights are free
to serve training. Two things are asked of them.

Every setting counts the same: its weight is 1 / its loss, or strong penalties would dominate the shared weights. The
loss of one small part of a batch is too noisy for that (examples would count less where the loss happens to be high),
so the weight uses what a running regression of the log loss on the encoded setting predicts.

Settings with a strong penalty must not crush the shared weights before the hypernetwork can tell settings apart: once
all weights are near zero, no setting's fit gives a gradient any more. So in the first part of training (see `pace`)
the weight is 1 / loss * (scale / loss)^p with p falling to 0, which lets the settings that can be fitted lead. The
scale makes the mean of the second factor 1: over the settings of the step, or, where a setting has a step to itself,
over the last steps.

Why not the loss as it is, or 1 / its own value: on small problems with penalties up to crushing ones, both end in a
network that ignores its input and every hyperparameter (see the decision record on weights).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from hypertune_mip.training.pace import lead

_FORGET = 0.98  # of the regression, a step: it sees the last fifty steps or so
_RIDGE = 1e-2
_OBSERVE = 20  # steps before the regression is used
_REFIT = 5  # steps between solutions of the regression
_LEAD_POWER = 4.0  # p at the start
_LEAD_MEMORY = 0.9  # of the usual lead, a step
_LEAD_LIMIT = 10.0  # times the usual: a sudden fall of the loss must not outweigh all that came before
_LARGEST_POWER = 60.0  # of e, so that leads stay numbers in float32
_FLOOR = 1e-6  # of the average loss: a setting that fits perfectly must not have an infinite weight
_SMALLEST = 1e-30
_DECAY = 0.99  # of the one scale that serves losses which can be negative

Array = np.ndarray


class SettingWeights:
    """Weights of the settings of a step, from the losses of the steps before.

    Where a loss can be negative a ratio means nothing; from the first negative loss on, one running scale (an average
    of absolute losses) serves all settings.

    A few dozen numbers are no work for a device: all of it is NumPy on the host, a tenth of the time that as many small
    tensor operations take.

    Args:
        columns: Number of columns E of an encoded setting.
        normalize: Whether to weigh at all; False gives every setting weight 1 / S.
    """

    def __init__(self, columns: int, *, normalize: bool = True) -> None:
        """See the class."""
        self.normalize = normalize
        self.steps = 0
        self._signed = False
        self._running = 0.0
        self._center = 0.0  # a usual log loss, from which leads are counted so that they are no extreme numbers
        self._usual = math.nan  # log of the running mean of leads
        self._low, self._high = math.inf, -math.inf
        self._gram: Array = _RIDGE * np.eye(columns + 1)
        self._moment: Array = np.zeros(columns + 1)
        self._coefficients: Array = np.zeros(columns + 1)

    @property
    def settled(self) -> bool:
        """Whether weights follow from the steps before alone."""
        return self.steps >= _OBSERVE or not self.normalize

    def __call__(
        self, losses: Float[Array, "S"] | None, encoded: Float[Array, "S E"], *, progress: float, settings: int
    ) -> tuple[Float[Array, "S"], Float[Array, "S"]]:
        """Weights, and by how much each setting leads: a step minimises the sum of weights x losses over mean(leads).

        So each setting can be trained before the losses of the others are known; the mean is divided out at the end. A
        setting that has a step to itself leads by what is usual, and its lead is returned as 1.

        Args:
            losses: Of some or all settings of the step; not looked at once `settled`.
            encoded: The settings as the trunk sees them; columns of about unit size serve best.
            progress: Share of training that is over, in [0, 1].
            settings: How many the step has in all.
        """
        if not self.normalize:
            return np.full(len(encoded), 1 / settings), np.ones(len(encoded))
        with np.errstate(all="ignore"):  # a loss that is not finite ends training, but not here
            weights, leads = self._weights(losses, encoded, progress, alone=settings == 1)
            return weights / settings, leads

    def _weights(self, losses: Array | None, encoded: Array, progress: float, *, alone: bool) -> tuple[Array, Array]:
        if self.settled:
            expected = np.clip(_inputs(encoded) @ self._coefficients, self._low, self._high)
            signed = np.full(len(encoded), self._signed)
        else:
            assert losses is not None
            running = np.abs(losses) if self.steps == 0 else self._running
            expected, signed = _logs(losses, running), (losses < 0) | self._signed
        constant = 1 / np.maximum(self._running if self.steps else np.abs(losses), _SMALLEST)  # type: ignore[arg-type]
        power = _LEAD_POWER * lead(progress)
        leads = np.exp(np.clip(power * (self._center - expected), -_LARGEST_POWER, _LARGEST_POWER))
        if alone:
            if math.isnan(self._usual):  # nothing has been seen yet
                leads = np.ones_like(leads)
            else:
                leads = np.minimum(leads / math.exp(self._usual), _LEAD_LIMIT)
        leads = np.where(signed, 1.0, leads)
        weights: Array = np.where(signed, constant, leads * np.exp(-expected))
        return weights, np.ones_like(leads) if alone else leads

    def observe(self, losses: Float[Array, "S"], encoded: Float[Array, "S E"], *, progress: float) -> None:
        """Learn from a whole step.

        Args:
            losses: Of all settings of the step, on all workers.
            encoded: The settings.
            progress: As in a call.
        """
        if not self.normalize:
            return
        with np.errstate(all="ignore"):
            self._learn(losses, encoded, progress)

    def _learn(self, losses: Array, encoded: Array, progress: float) -> None:
        size = float(np.abs(losses).mean())
        running = size if self.steps == 0 else _DECAY * self._running + (1 - _DECAY) * size
        self._running = max(running, _SMALLEST)
        self._signed = self._signed or bool((losses < 0).any())
        logs, inputs = _logs(losses, self._running), _inputs(encoded)
        if self.steps == 0:
            self._center = float(logs.mean())
        exponents = np.clip(_LEAD_POWER * lead(progress) * (self._center - logs), -_LARGEST_POWER, _LARGEST_POWER)
        usual = float(np.logaddexp.reduce(exponents)) - math.log(len(logs))
        before = usual if math.isnan(self._usual) else self._usual
        self._usual = float(np.logaddexp(before + math.log(_LEAD_MEMORY), usual + math.log(1 - _LEAD_MEMORY)))
        self._gram = _FORGET * self._gram + inputs.T @ inputs
        self._gram.flat[:: len(self._gram) + 1] += _RIDGE * (1 - _FORGET)
        self._moment = _FORGET * self._moment + inputs.T @ logs
        self._low, self._high = min(self._low, float(logs.min())), max(self._high, float(logs.max()))
        self.steps += 1
        if self.steps >= _OBSERVE and self.steps % _REFIT == 0:
            self._coefficients = np.linalg.solve(self._gram, self._moment)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on."""
        numbers = [self._running, self._center, self._usual, self._low, self._high]
        return {
            "steps": self.steps,
            "signed": self._signed,
            "numbers": torch.tensor(numbers, dtype=torch.float64),
            "gram": torch.from_numpy(self._gram.copy()),
            "moment": torch.from_numpy(self._moment.copy()),
            "coefficients": torch.from_numpy(self._coefficients.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state of an earlier run."""
        self.steps, self._signed = state["steps"], state["signed"]
        self._running, self._center, self._usual, self._low, self._high = state["numbers"].tolist()
        self._gram, self._moment, self._coefficients = (
            state[name].cpu().numpy().copy() for name in ("gram", "moment", "coefficients")
        )


def _inputs(encoded: Array) -> Array:
    return np.concatenate([np.ones((len(encoded), 1)), encoded], axis=1)


def _logs(losses: Array, scale: Any) -> Array:
    """Logarithms of losses, of which none counts as smaller than a share of the usual size."""
    logs: Array = np.log(np.maximum(losses, _FLOOR * np.maximum(scale, _SMALLEST)))
    return logs
