"""Exact: ridge and logistic regression, whose best response to every penalty is known."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

import hypertune_mip as ht
from benchmarks import results
from benchmarks.tasks import _float, _split

SETTINGS = 64
SEEDS = 5
FITS: dict[str, dict[str, Any]] = {
    "defaults": {"trunk": (64, 64), "settings_per_step": 16, "epochs": 3000},
    "wide and long": {"trunk": (256, 256), "settings_per_step": 64, "epochs": 10_000},
}
Config = dict[str, float]


def run(smoke: bool = False) -> dict[str, Any]:
    seeds = range(1 if smoke else SEEDS)
    jobs = [(case, fit, head, seed, smoke) for fit in FITS for case in CASES for head in HEADS for seed in seeds]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        rows = list(tqdm(pool.map(_row, jobs), total=len(jobs), desc="exact"))
    return results.write("exact", {"rows": rows, "settings": SETTINGS}, smoke=smoke)


def _row(job: tuple[str, str, str, int, bool]) -> dict[str, Any]:
    case, fit, head, seed, smoke = job
    torch.set_num_threads(1)
    options = FITS[fit] | ({"epochs": 20} if smoke else {})
    compared = _compared(*CASES[case](), head=HEADS[head](), seed=seed, **options)
    return {"case": case, "fit": fit, "head": head, "seed": seed} | compared


def _compared(
    space: ht.SearchSpace,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    loss: Callable[..., Tensor],
    solve: Callable[[Config], Tensor],
    *,
    head: ht.Head,
    seed: int,
    trunk: tuple[int, ...],
    settings_per_step: int,
    epochs: int,
) -> dict[str, float]:
    """Median relative error of the weights over penalties, and rank correlation of the validation loss."""
    torch.manual_seed(seed)
    network = nn.Linear(train[0].shape[1], 1, bias=False)
    metric = lambda model, batch: {"loss": _free(loss, model, batch)}  # noqa: E731
    surrogate = ht.fit(
        ht.HyperNetwork(network, space, head=head, trunk=trunk, seed=seed), loss, [train], metric=metric,
        val_loader=[validation], epochs=epochs, settings_per_step=settings_per_step, batching="full", seed=seed,
        progress=False, validate_every=epochs, device="cpu",
    )  # fmt: skip
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


CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "ridge, 1": partial(_ridge, 1),
    "ridge, 8": partial(_ridge, 8),
    "logistic, 1": _logistic,
}
HEADS: dict[str, Callable[[], ht.Head]] = {"RankOne": ht.RankOne, "Dense": ht.Dense}
