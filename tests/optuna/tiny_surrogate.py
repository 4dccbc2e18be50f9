"""A small surrogate over every type of distribution; all of it pickles, as a process of its own needs."""

from __future__ import annotations

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

import hypertune_mip as ht

SPACE = ht.SearchSpace(
    {
        "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
        "dropout": FloatDistribution(0.0, 0.7),
        "smoothing": FloatDistribution(0.0, 0.3, step=0.1),
        "order": IntDistribution(1, 9),
        "groups": IntDistribution(2, 10, step=4),
        "scale": IntDistribution(1, 64, log=True),
        "penalty": CategoricalDistribution(["l1", "l2", None]),
    }
)
CONFIG = {
    "weight_decay": 1e-3,
    "dropout": 0.25,
    "smoothing": 0.2,
    "order": 7,
    "groups": 6,
    "scale": 8,
    "penalty": "l2",
}
BATCH = torch.linspace(-1, 1, 24).reshape(6, 4)


def metric(model: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs = model(batch)
    return {"loss": outputs.square().mean(), "size": model.weight.abs().mean(), "bias": outputs.mean()}


def undefined_metric(model: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """As `metric`, but one metric is NaN at some settings, as a precision without predictions would be."""
    values = metric(model, batch)
    return {**values, "root": values["bias"].where(values["bias"] >= 0, torch.nan)}


def enough_bias(metrics: dict[str, float]) -> float:
    return 0.1 - metrics["bias"]


def make_surrogate(space: ht.SearchSpace = SPACE, metric=metric) -> ht.Surrogate:
    """Untrained, but its hypernetwork's weights are so large that the metrics differ much between settings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Linear(4, 3)
    hypernet = ht.HyperNetwork(network, space, trunk=(8,))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in hypernet.heads.parameters():
            parameter.normal_(generator=generator)
    return ht.Surrogate(hypernet, metric=metric, val_loader=[BATCH[:4], BATCH[4:]])
