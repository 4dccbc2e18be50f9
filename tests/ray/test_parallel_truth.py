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

from hypertune_mip_ray import in_parallel

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

CONFIGS = [{"decay": d, "dropout": 0.1} for d in (1e-4, 1e-2, 1.0)]


def truth(**options: Any) -> ht.Truth:
    chosen = {"epochs": 3, "parallel": 1, "loss": problem.loss, "metric": problem.metric} | options
    validation = {"metric": chosen.pop("metric"), "val_loader": problem.loader(shuffle=False)}
    return ht.Truth(problem.network(), problem.SPACE, chosen.pop("loss"), problem.loader(), **validation, **chosen)


def dies_once(flag: Path) -> Callable[..., torch.Tensor]:
    """A loss that takes its process with it, the first time."""

    def loss(model: nn.Module, batch: Any, config: Any) -> torch.Tensor:
        if not flag.exists():
            flag.touch()
            os._exit(1)
        return problem.loss(model, batch, config)

    return loss


def test_tasks_give_what_this_process_gives_though_one_is_lost(tmp_path: Path) -> None:
    flag, folder = tmp_path / "lost", tmp_path / "truth"
    spread = in_parallel(truth(loss=dies_once(flag), folder=folder), tasks=2)
    measured = spread.train(CONFIGS, seeds=2, progress=False)
    alone = truth().train(CONFIGS, seeds=2, progress=False)
    assert flag.exists()
    assert spread.seconds > 0.0
    assert measured.keys() == alone.keys()
    for name, values in measured.items():
        np.testing.assert_allclose(values, alone[name], rtol=1e-5)
    assert "runs=6" in repr(truth(folder=folder))  # a later truth knows them


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted:hypertune_mip.HypertuneWarning")
def test_a_fraction_of_a_resource_is_enough_for_a_report() -> None:
    surrogate = problem.fit(**problem.validation())
    surrogate.train_loader = problem.loader()
    spread = in_parallel(truth(parallel=8), resources_per_task={"CPU": 0.5})
    assert spread.executor.parts == 8  # of the four CPUs
    report = surrogate.verify("error", settings=3, best=0, truth=spread, progress=False)
    np.testing.assert_allclose(report.true["error"], truth().train(report.configs, progress=False)["error"], rtol=1e-4)


def test_warnings_of_tasks_arrive_here() -> None:
    spread = in_parallel(truth(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e9)), tasks=1)
    with pytest.warns(ht.HypertuneWarning, match="Real training diverged at"):
        assert np.isnan(spread.train(CONFIGS[:1], progress=False)["error"]).all()


def no_metric(model: nn.Module, batch: Any) -> Any:
    return {"error": torch.zeros(3)}


def test_bad_input() -> None:
    with pytest.raises(ht.LossError, match="error"):  # as in this process, not wrapped in an error of Ray's
        in_parallel(truth(metric=no_metric)).train(CONFIGS[:1], progress=False)
    stuck = truth()
    stuck.train_loader.dataset.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(ht.DataError, match=r"`truth`\.train_loader\.dataset\.lock cannot be sent"):
        in_parallel(stuck).train(CONFIGS, progress=False)
    for options in ({"tasks": 0}, {"max_retries": -1}):
        with pytest.raises(ht.OptionError, match="must be a whole number"):
            in_parallel(truth(), **options)
