"""What the estimators do unless told otherwise: network, search space, losses and metrics for tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from optuna.distributions import BaseDistribution, FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht


def default_space(*, classes: int) -> ht.SearchSpace:
    """A cocktail of regularisers; label smoothing for classes only.

    Args:
        classes: How many; 0 for regression.
    """
    space: dict[str, BaseDistribution] = {
        "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
        "dropout": FloatDistribution(0.0, 0.6),
        "input_noise": FloatDistribution(0.0, 0.5),
        "mixup": FloatDistribution(0.0, 0.5),
    }
    if classes:
        space["label_smoothing"] = FloatDistribution(0.0, 0.3)
    return ht.SearchSpace(space)


def default_network(inputs: int, outputs: int, hidden: Sequence[int], space: ht.SearchSpace) -> nn.Module:
    """A multilayer perceptron, with noise on its inputs and dropout after hidden layers where the space has them."""
    layers: list[nn.Module] = [ht.nn.GaussianNoise("input_noise")] if "input_noise" in space else []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.SiLU()]
        if "dropout" in space:
            layers.append(ht.nn.Dropout("dropout"))
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


@dataclass(frozen=True)
class DefaultLoss:
    """Cross-entropy or squared error, with the penalties and noise of `default_space`, each example with its weight.

    Args:
        classes: How many; 0 for regression.
    """

    classes: int

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], config: Any) -> Tensor:
        """Of one setting, 0-d."""
        x, y = batch["x"], batch["y"]
        if self.classes:
            y = F.one_hot(y, self.classes).to(x.dtype)
        if "mixup" in config:
            x, y = ht.losses.mixup(x, y, strength=config["mixup"])
        outputs = checked(model(x), y)
        if self.classes:
            if "label_smoothing" in config:
                y = y + config["label_smoothing"] * (1.0 / self.classes - y)
            each = -(y * outputs.log_softmax(-1)).sum(-1)
        else:
            each = (outputs - y).square().mean(-1)
        total = weighted_mean(each, batch)
        if "weight_decay" in config:
            total = total + 0.5 * config["weight_decay"] * ht.losses.l2(model, where="*weight")
        return total


@dataclass(frozen=True)
class DefaultMetric:
    """The loss without penalties and noise, and for classes the error rate, each example with its weight.

    Args:
        classes: How many; 0 for regression.
    """

    classes: int

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of one setting, 0-d each."""
        outputs, y = model(batch["x"]), batch["y"]
        if not self.classes:
            return {"loss": weighted_mean((checked(outputs, y) - y).square().mean(-1), batch)}
        checked(outputs, y.unsqueeze(-1).expand(-1, self.classes))
        entropy = F.cross_entropy(outputs, y, reduction="none")
        wrong = (outputs.argmax(-1) != y).to(outputs.dtype)
        return {"loss": weighted_mean(entropy, batch), "error": weighted_mean(wrong, batch)}


@dataclass(frozen=True)
class Adam:
    """Makes the optimiser at a learning rate."""

    learning_rate: float

    def __call__(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """Of these parameters."""
        return torch.optim.Adam(parameters, lr=self.learning_rate, fused=True)


def checked(outputs: Tensor, targets: Tensor) -> Tensor:
    """The outputs, if they have the targets' shape; others would be broadcast in silence."""
    if outputs.shape != targets.shape:
        raise ht.LossError(
            f"The network must give one column a class or target, {tuple(targets.shape)} for this batch, but gave"
            f" {tuple(outputs.shape)}."
        )
    return outputs


def weighted_mean(values: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Mean over examples (N,) with the batch's weights, whose mean over all examples is 1."""
    return (values * batch["weight"]).mean() if "weight" in batch else values.mean()


Module = nn.Module | Callable[[int, int], nn.Module]
"""A network, or a function that makes one for numbers of inputs and outputs."""
