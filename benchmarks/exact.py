"""Exact: ridge and logistic regression, whose best response to every penalty is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import hypertune_mip as ht
from benchmarks import results
from benchmarks.tasks import _float, _split

SETTINGS = 64
Config = dict[str, float]


def run(smoke: bool = False) -> dict[str, Any]:
    cases = {"ridge, 1": _ridge(1), "ridge, 8": _ridge(8), "logistic, 1": _logistic()}
    rows = []
    for name, (space, train, validation, loss, solve) in cases.items():
        for head in (ht.RankOne(), ht.Dense()):
            for seed in range(1 if smoke else 5):
                rows.append({"case": name, "head": repr(head), "seed": seed} | _compared(
                    space, train, validation, loss, solve, head=head, seed=seed, epochs=20 if smoke else 3000
                ))  # fmt: skip
                print(rows[-1])
    return results.write("exact", {"rows": rows, "settings": SETTINGS}, smoke=smoke)


def _compared(
    space: ht.SearchSpace,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    loss: Callable[..., Tensor],
    solve: Callable[[Config], Tensor],
    *,
    head: ht.Head,
    seed: int,
    epochs: int,
) -> dict[str, float]:
    torch.manual_seed(seed)
    network = nn.Linear(train[0].shape[1], 1, bias=False)
    metric = lambda model, batch: {"loss": _free(loss, model, batch)}  # noqa: E731
    start = time.perf_counter()
    surrogate = ht.fit(
        ht.HyperNetwork(network, space, head=head, seed=seed), loss, [train], metric=metric, val_loader=[validation],
        epochs=epochs, settings_per_step=16, batching="full", seed=seed, progress=False, validate_every=epochs,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    units = space.sample(SETTINGS, seed=99)
    weights = surrogate.hypernet.effective(units)["weight"][:, 0].detach().double()
    exact = torch.stack([solve(config) for config in space.from_unit(units)])
    with torch.no_grad():
        real = []
        for weight in exact:
            network.weight.copy_(weight.unsqueeze(0))
            real.append(float(metric(network, validation)["loss"]))
    return {
        "weight_error": float(((weights - exact).norm(dim=1) / exact.norm(dim=1)).median()),
        "spearman": float(spearmanr(surrogate.evaluate_units(units)["loss"], np.array(real)).statistic),
        "seconds": seconds,
    }


def _free(loss: Callable[..., Tensor], model: nn.Module, batch: Any) -> Tensor:
    """The loss without its penalty."""
    return loss(model, batch, None)


def _ridge(groups: int) -> tuple[Any, ...]:
    data = datasets.load_diabetes()
    train, validation = _split(data.data, data.target, 220)
    group = torch.arange(10) % groups
    space = ht.SearchSpace({f"l2_{g}": _float(1e-3, 1.0, log=True) for g in range(groups)})

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        fit = F.mse_loss(model(batch[0]).squeeze(-1), batch[1])
        if config is None:
            return fit
        penalties = torch.stack([config[f"l2_{g}"] for g in range(groups)])
        return fit + (penalties[group] * model.weight[0].square()).sum()

    def solve(config: Config) -> Tensor:
        x, y = (t.double() for t in train)
        penalties = torch.tensor([config[f"l2_{g}"] for g in range(groups)], dtype=torch.float64)[group]
        return torch.linalg.solve(x.T @ x / len(x) + torch.diag(penalties), x.T @ y / len(x))

    return space, train, validation, loss, solve


def _logistic() -> tuple[Any, ...]:
    data = datasets.load_breast_cancer()
    (x, y), (x_val, y_val) = _split(data.data, data.target, 300)
    train, validation = (x, y.float()), (x_val, y_val.float())

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        fit = F.binary_cross_entropy_with_logits(model(batch[0]).squeeze(-1), batch[1])
        return fit if config is None else fit + 0.5 * config["l2"] * ht.losses.l2(model)

    def solve(config: Config) -> Tensor:
        inverse = 1.0 / (config["l2"] * len(x))
        model = LogisticRegression(C=inverse, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(x.double(), y)
        return torch.tensor(model.coef_[0])

    return ht.SearchSpace({"l2": _float(1e-3, 1.0, log=True)}), train, validation, loss, solve
