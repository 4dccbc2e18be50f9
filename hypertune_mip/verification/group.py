"""Several plain primary networks of one architecture, each at a setting of its own, trained together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _NormBase

from hypertune_mip.functional import ActiveConfig, active
from hypertune_mip.functional.placement import attention_for_many_settings, find_slots, in_place, loop
from hypertune_mip.training import Loss
from hypertune_mip.training.options import OptimizerFactory
from hypertune_mip.training.randomness import forked_random_state, set_seed

_ELEMENTWISE = {
    getattr(torch.optim, name)
    for name in ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD")
}
"""Optimisers that treat every number on its own, so that stacked networks are trained as single ones are."""


class Group:
    """S primary networks, their trainable tensors stacked along S.

    Args:
        network: The architecture, with what is not trained, on its device; its trainable parameters are not used.
        starts: A network to start from for each setting.
        configs: Native values as tensors (S,), by name.
        mapping: "vmap" runs all at once, "loop" one after another.
    """

    def __init__(
        self,
        network: nn.Module,
        starts: Sequence[nn.Module],
        configs: Mapping[str, Tensor],
        mapping: Literal["vmap", "loop"],
    ) -> None:
        """See the class."""
        self.network = network
        self.configs = dict(configs)
        self.mapping = mapping
        self.size = len(starts)
        device = next(network.parameters()).device
        names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        self.weights = {
            name: torch.stack([start.get_parameter(name).detach() for start in starts]).to(device).requires_grad_()
            for name in names
        }
        self._slots = find_slots(network, names)
        self.device = device

    def losses(self, loss: Loss, batch: Any) -> Float[Tensor, "S"]:
        """The loss of each network on one batch, in training mode."""
        self.network.train()
        result: Tensor = self._run(loss, batch)
        return result

    @torch.no_grad()
    def metrics(
        self, metric: Callable[[nn.Module, Any], Mapping[str, Tensor]], batch: Any
    ) -> dict[str, Float[Tensor, "S"]]:
        """The metrics of each network on one batch, in evaluation mode, by name."""
        self.network.eval()
        values: dict[str, Tensor] = self._run(lambda model, batch, _: metric(model, batch), batch)
        return values

    def _run(self, function: Callable[..., Any], batch: Any) -> Any:
        def one(weights: dict[str, Tensor], configs: dict[str, Tensor], data: Any) -> Any:
            config = ActiveConfig(configs)
            with active(config), in_place(self._slots, weights):
                return function(self.network, data, config)

        with attention_for_many_settings(self.device):
            if self.mapping == "loop":
                return loop(one, self.size, self.weights, self.configs, batch, split=False)
            return vmap(one, in_dims=(0, 0, None), randomness="different")(self.weights, self.configs, batch)


def can_be_stacked(network: nn.Module, optimizer: OptimizerFactory) -> bool:
    """Whether several networks can be trained as one stack and end as each would alone.

    Layers with running statistics would mix them, and an optimiser might look at more than one number at a time.
    """
    running = any(isinstance(m, _NormBase) and m.track_running_stats for m in network.modules())
    probe: Iterable[Any] = [nn.Parameter(torch.zeros(1))]
    return not running and type(optimizer(probe)) in _ELEMENTWISE


def unused(group: Group, loss: Loss, batch: Any, *, others: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Hyperparameters that may take other values while the loss stays the same, in all of the group's networks.

    At a minimum of the loss, its derivative along a hyperparameter is the one at fixed weights (envelope theorem);
    where the loss does not depend on it there, the minimum does not either. Values are compared, not derivatives: what
    steers a random choice or a threshold has none.

    Args:
        group: Networks at their configs.
        loss: Of one setting.
        batch: To look at.
        others: Values to try instead of the group's, (S,), by name.
    """
    own = group.configs

    def losses(configs: dict[str, Tensor]) -> Tensor:
        group.configs = configs
        with torch.no_grad(), forked_random_state(group.device):
            set_seed(0, (), group.device)
            return group.losses(loss, batch)

    try:
        expected = losses(own)
        return tuple(name for name in own if torch.equal(losses({**own, name: others[name]}), expected))
    finally:
        group.configs = own
