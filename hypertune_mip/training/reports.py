"""What a run tells of itself: losses that are not finite, hyperparameters that nothing reads, validation figures."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hypertune_mip.directions import sign
from hypertune_mip.errors import HypertuneWarning, TrainingError
from hypertune_mip.evaluation import Evaluator
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.space import SearchSpace
from hypertune_mip.training.options import Options
from hypertune_mip.training.run_state import Record

_CHECK_EVERY_ON_CUDA = 20  # steps; to look at a loss is to wait for the device
_VALIDATIONS = 4  # over a run, unless `validate_every` says otherwise


class FiniteLosses:
    """Looks at the losses of one epoch, not at once where that would wait for a device.

    Args:
        hypernet: Gets the weights that it has now back, if a loss is not finite.
        epoch: Counted from 1.
    """

    def __init__(self, hypernet: HyperNetwork, epoch: int) -> None:
        """See the class."""
        self._hypernet = hypernet
        self._epoch = epoch
        self._every = _CHECK_EVERY_ON_CUDA if hypernet.device.type == "cuda" else 1
        self._good = {name: tensor.clone() for name, tensor in hypernet.state_dict().items()}
        self._unchecked: list[tuple[Tensor, Tensor]] = []

    def add(self, units: Float[Tensor, "S d"], losses: Float[Tensor, "S"]) -> bool:
        """Note the losses at some settings; returns whether all so far have been looked at, as `check` does."""
        self._unchecked.append((units, losses))
        if len(self._unchecked) < self._every:
            return False
        self.check()
        return True

    def check(self) -> None:
        """Look at all losses since the last time.

        Raises:
            TrainingError: If one is not finite; it names the setting.
        """
        for units, losses in self._unchecked:
            bad = ~torch.isfinite(losses)
            if bool(bad.any()):
                index = int(bad.nonzero()[0])
                self._hypernet.load_state_dict(self._good)
                config = self._hypernet.space.from_unit(units[index : index + 1].cpu())[0]
                raise TrainingError(
                    f"The loss is {float(losses[index])} in epoch {self._epoch} at the setting {config}. The"
                    f" hypernetwork has the weights from before epoch {self._epoch} again. Look for a logarithm or"
                    " division in the loss at that setting, lower the learning rate, or set `gradient_clip`."
                )
        self._unchecked.clear()


def warn_of_shared_buffers(hypernet: HyperNetwork, before: Mapping[str, Tensor], *, stacklevel: int) -> None:
    """Warn of buffers that training changes: a running mean of activations would mix those of all settings.

    Args:
        hypernet: After some steps.
        before: The primary network's buffers, by name, as they were.
        stacklevel: Whose line the warning names.
    """
    reassigned = sorted(hypernet.kernel.reassigned)
    changed = [
        name
        for name, buffer in hypernet.network.named_buffers()
        if buffer.is_floating_point() and name not in reassigned and not torch.equal(buffer, before[name])
    ]
    for names, fate in ((changed, "and are one for all settings"), (reassigned, "which is undone after each setting")):
        if names:
            warnings.warn(
                f"The buffers {names} change while the network is trained, {fate}. What they hold does not follow the"
                " setting, so an answer that depends on it is not that of real training. Leave such a layer out, or"
                " take one that normalises by the batch or the example at hand.",
                HypertuneWarning,
                stacklevel=stacklevel,
            )


def warn_of_unread(space: SearchSpace, reads: Collection[str], *, stacklevel: int) -> None:
    """Warn of each hyperparameter that neither the loss nor a layer has read.

    Args:
        space: Of the hyperparameters.
        reads: Those that were read.
        stacklevel: Whose line the warning names: 2 for the one that calls this.
    """
    for name in space:
        if name not in reads:
            warnings.warn(
                f"no metric responds to '{name}': neither the loss nor a layer reads it. Use"
                f" config['{name}'] in the loss, or bind a layer to it.",
                HypertuneWarning,
                stacklevel=stacklevel,
            )


def is_due(epoch: int, epochs: int, every: int | None) -> bool:
    """Whether something that comes every so many epochs comes after this one; after the last it does."""
    every = -(-epochs // _VALIDATIONS) if every is None else every
    return epoch % every == 0 or epoch == epochs


def validation(evaluator: Evaluator, options: Options) -> Record:
    """Best, in its direction, and mean of each metric over a fixed set of settings."""
    values = evaluator(evaluator.hypernet.space.sample(options.validation_settings, seed=options.seed))
    record: Record = {}
    for name, value in values.items():
        turned = sign(evaluator.directions[name])
        record[f"validation/{name}/best"] = turned * float((turned * value).min())
        record[f"validation/{name}/mean"] = float(value.mean())
    return record
