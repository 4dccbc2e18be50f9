"""Several plain primary networks of one architecture, each at a setting of its own, trained together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypertune_mip.execution import Kernel, Mode, Setting
from hypertune_mip.hypernetwork.primary import always_evaluating, keeps_statistics, set_training
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
        mapping: As in `Kernel`.
    """

    def __init__(
        self,
        network: nn.Module,
        starts: Sequence[nn.Module],
        configs: Mapping[str, Tensor],
        mapping: Mode,
    ) -> None:
        """See the class."""
        self.network = network
        self.configs = dict(configs)
        self.size = len(starts)
        self.device = next(network.parameters()).device
        names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        self.weights = {
            name: torch.stack([start.get_parameter(name).detach() for start in starts]).to(self.device).requires_grad_()
            for name in names
        }
        self._kernel = Kernel(network, names, _given, mapping=mapping)
        self._staying = always_evaluating(network)

    def backward(self, loss: Loss, batch: Any) -> Float[Tensor, "S"]:
        """Add the gradients of each network's loss on one batch, in training mode; the losses."""
        set_training(self.network, True, self._staying)
        own = Setting(self.weights, self.configs)
        total, losses = self._kernel.weighted(loss, own, batch, split=False, weigh=_one_for_each)
        total.backward()
        return losses

    def losses(self, loss: Loss, batch: Any) -> Float[Tensor, "S"]:
        """The loss of each network on one batch, in training mode; a loss may go backward itself."""
        set_training(self.network, True, self._staying)
        weights = {name: tensor.detach() for name, tensor in self.weights.items()}
        with torch.enable_grad():
            result: Tensor = self._kernel.run(loss, Setting(weights, self.configs), batch, split=False)
        return result.detach()

    @torch.no_grad()
    def metrics(
        self, metric: Callable[[nn.Module, Any], Mapping[str, Tensor]], batch: Any
    ) -> dict[str, Float[Tensor, "S"]]:
        """The metrics of each network on one batch, in evaluation mode, by name."""
        self.network.eval()

        def function(model: nn.Module, batch: Any, config: Any) -> Any:
            return metric(model, batch)

        values: dict[str, Tensor] = self._kernel.run(function, Setting(self.weights, self.configs), batch, split=False)
        return values


def _given(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor], form: Set[str]) -> Mapping[str, Tensor]:
    """A network's own tensors are its setting's values."""
    return values


def _one_for_each(losses: Tensor, rows: slice) -> Tensor:
    return torch.ones_like(losses)


def can_be_stacked(network: nn.Module, optimizer: OptimizerFactory) -> bool:
    """Whether several networks can be trained as one stack and end as each would alone.

    Layers with running statistics would mix them, and an optimiser might look at more than one number at a time.
    """
    running = keeps_statistics(network, always_evaluating(network))
    probe: Iterable[Any] = [nn.Parameter(torch.zeros(1))]
    return not running and type(optimizer(probe)) in _ELEMENTWISE


def differ_in_weights_alone(networks: Sequence[nn.Module]) -> bool:
    """Whether all that is not trained, frozen parameters and buffers, is the same in all networks."""
    first, *others = ({n: t for n, t in _state(network) if not t.requires_grad} for network in networks)
    return all(
        other.keys() == first.keys() and all(torch.equal(tensor, first[name]) for name, tensor in other.items())
        for other in others
        if other is not first
    )


def _state(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


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
        with forked_random_state(group.device):
            set_seed(0, (), group.device)
            return group.losses(loss, batch)

    try:
        expected = losses(own)
        return tuple(name for name in own if torch.equal(losses({**own, name: others[name]}), expected))
    finally:
        group.configs = own
