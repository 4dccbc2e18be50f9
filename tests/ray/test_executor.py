"""Real trainings as Ray tasks: the same results, repeated where a task is lost, kept where they are to be kept."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_problem as problem
import torch
from torch import nn

import hypertune_mip as ht

pytest.importorskip("ray")

import hypertune_mip_ray as ht_ray

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

CONFIGS = [{"decay": d, "dropout": 0.1} for d in (1e-4, 1e-2, 1.0)]


def trainer(*, loss: Any = problem.loss, loader: Any = None, rate: float = 6e-3, **options: Any) -> ht.Trainer:
    recipe = ht.Recipe(epochs=3, optimizer=lambda parameters, config: torch.optim.SGD(parameters, lr=rate))
    options = {"parallel": 1, "metric": problem.metric, "recipe": recipe} | options
    validation = problem.loader(shuffle=False)
    data = problem.loader() if loader is None else loader
    return ht.Trainer(problem.network(), problem.SPACE, loss, data, val_loader=validation, **options)


def dies_once(flag: Path) -> Callable[..., torch.Tensor]:
    """A loss that takes its process with it, the first time."""

    def loss(model: nn.Module, batch: Any, config: Any) -> torch.Tensor:
        if not flag.exists():
            flag.touch()
            os._exit(1)
        return problem.loss(model, batch, config)

    return loss


def test_tasks_give_what_this_process_gives_though_one_is_lost(tmp_path: Path) -> None:
    flag, folder = tmp_path / "lost", tmp_path / "trainings"
    spread = trainer(loss=dies_once(flag), folder=folder, executor=ht_ray.executor(tasks=2))
    measured = spread.train(CONFIGS, seeds=2, progress=False)
    alone = trainer().train(CONFIGS, seeds=2, progress=False)
    assert flag.exists()
    assert spread.seconds > 0.0
    assert measured.keys() == alone.keys()
    for name, values in measured.items():
        np.testing.assert_allclose(values, alone[name], rtol=1e-5)
    assert "finished=6" in repr(trainer(folder=folder))  # a later trainer knows them


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted:hypertune_mip.HypertuneWarning")
def test_a_fraction_of_a_resource_is_enough_for_a_report() -> None:
    surrogate = problem.fit(**problem.validation())
    surrogate.train_loader = problem.loader()
    spread = trainer(parallel=8, executor=ht_ray.executor(resources_per_task={"CPU": 0.5}))
    assert spread.executor.parts == 8  # of the four CPUs
    report = surrogate.verify("error", settings=3, best=0, trainer=spread, progress=False)
    np.testing.assert_allclose(
        report.true["error"], trainer().train(report.configs, progress=False)["error"], rtol=1e-4
    )


def test_warnings_of_tasks_arrive_here() -> None:
    spread = trainer(rate=1e9, executor=ht_ray.executor(tasks=1))
    with pytest.warns(ht.HypertuneWarning, match="Real training diverged at"):
        assert np.isnan(spread.train(CONFIGS[:1], progress=False)["error"]).all()


def no_metric(model: nn.Module, batch: Any) -> Any:
    return {"error": torch.zeros(3)}


def test_bad_input() -> None:
    with pytest.raises(ht.LossError, match="error"):  # as in this process, not wrapped in an error of Ray's
        trainer(metric=no_metric, executor=ht_ray.executor()).train(CONFIGS[:1], progress=False)
    loader = problem.loader()
    loader.dataset.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(ht.DataError, match=r"`trainer`\.train_loader\.dataset\.lock cannot be sent"):
        trainer(loader=loader, executor=ht_ray.executor()).train(CONFIGS, progress=False)
    for options in ({"tasks": 0}, {"max_retries": -1}):
        with pytest.raises(ht.OptionError, match="must be a whole number"):
            ht_ray.executor(**options)
