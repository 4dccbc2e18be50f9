"""Real training: against closed forms and hand-written loops, stacked against single, and what is remembered."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.verification.initialization import reinitialized
from hypertune_mip.verification.truth import Runs
from tests import small_problem as problem

TOLERANCE = 1e-5
CONFIGS = [{"decay": d, "dropout": 0.0} for d in (1e-4, 1e-2, 1.0)]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def truth(network: nn.Module | None = None, **options: Any) -> ht.Truth:
    chosen = {"epochs": 3, "optimizer": sgd} | problem.validation() | options
    loader = chosen.pop("train_loader", problem.loader())
    space, loss = chosen.pop("space", problem.SPACE), chosen.pop("loss", problem.loss)
    return ht.Truth(problem.network() if network is None else network, space, loss, loader, **chosen)


def test_finds_the_closed_form_of_ridge_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.1
    decays = [0.01, 0.3, 3.0]
    network = nn.Linear(3, 1, bias=False, dtype=torch.float64)

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return (model(batch[0]).squeeze(-1) - batch[1]).square().mean() + config["decay"] * ht.losses.l2(model)

    def metric(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {f"w{i}": weight for i, weight in enumerate(model.weight[0].unbind())}

    measured = ht.Truth(
        network,
        ht.SearchSpace({"decay": FloatDistribution(0.01, 3.0)}),
        loss,
        [(x, y)],
        metric=metric,
        val_loader=[(x, y)],
        epochs=400,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        schedule=None,
    ).train([{"decay": d} for d in decays], progress=False)

    for row, decay in enumerate(decays):
        exact = torch.linalg.solve(x.T @ x / 40 + decay * torch.eye(3, dtype=torch.float64), x.T @ y / 40)
        np.testing.assert_allclose([measured[f"w{i}"][row, 0] for i in range(3)], exact.numpy(), rtol=1e-6)


def test_equals_a_training_loop_written_by_hand() -> None:
    network = problem.network()
    loader = problem.loader(shuffle=False)
    measured = truth(network, train_loader=loader, initialize="given", schedule=None).train(CONFIGS, progress=False)
    for row, config in enumerate(CONFIGS):
        model = ht.nn.resolve(copy.deepcopy(network), config).train()
        optimizer = sgd(model.parameters())
        for _ in range(3):
            for batch in loader:
                optimizer.zero_grad()
                problem.loss(model, batch, config).backward()
                optimizer.step()
        everything = problem.data().tensors
        assert measured["error"][row, 0] == pytest.approx(
            float(problem.metric(model.eval(), everything)["error"].detach()), rel=TOLERANCE
        )


@pytest.mark.parametrize(
    "optimizer", [sgd, lambda p: torch.optim.AdamW(p, lr=0.01), lambda p: torch.optim.RMSprop(p, lr=0.01)]
)
def test_stacked_equals_one_after_another(optimizer: Any) -> None:
    stacked = truth(optimizer=optimizer).train(CONFIGS, seeds=2, progress=False)
    single = truth(optimizer=optimizer, parallel=1).train(CONFIGS, seeds=2, progress=False)
    for name in ("error", "size"):
        np.testing.assert_allclose(stacked[name], single[name], rtol=1e-4)


def test_a_network_is_the_one_that_was_measured() -> None:
    real = truth(parallel=1)
    measured = real.train([problem.CONFIG], seeds=[4], progress=False)
    network = real.network(problem.CONFIG, seed=4)
    values = problem.metric(network, problem.data().tensors)
    assert float(values["error"].detach()) == pytest.approx(measured["error"][0, 0], rel=TOLERANCE)
    assert not any(isinstance(module, ht.nn.Dropout) for module in network.modules())


def test_batch_norm_keeps_its_running_statistics() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    real = truth(network)
    assert "one after another" in repr(real)
    trained = real.network(problem.CONFIG)
    assert float(trained[1].num_batches_tracked) == 9
    measured = real.train([problem.CONFIG], progress=False)
    expected = problem.metric(trained, problem.data().tensors)["error"]
    assert measured["error"][0, 0] == pytest.approx(float(expected.detach()), rel=TOLERANCE)
    assert float(network[1].num_batches_tracked) == 0


def test_what_vmap_cannot_serve_is_trained_one_after_another() -> None:
    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        assert float(batch[0].sum()) < 1e9
        assert float(config["decay"]) > 0.0  # no number under vmap
        return problem.loss(model, batch, config)

    real = truth(loss=loss)
    assert "stacked" in repr(real)
    measured = real.train(CONFIGS, progress=False)
    assert "one after another" in repr(real)
    np.testing.assert_allclose(measured["error"], truth(parallel=1).train(CONFIGS, progress=False)["error"])


def test_an_optimiser_that_looks_at_whole_tensors_is_not_stacked() -> None:
    assert "one after another" in repr(truth(optimizer=lambda p: torch.optim.LBFGS(p)))


def test_seeds_and_common_random_numbers() -> None:
    twice = [problem.CONFIG, dict(problem.CONFIG, dropout=0.0)]
    real = truth(epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=1e-12), schedule=None)
    common = real.train(twice, seeds=2, progress=False)["size"]
    own = real.train(twice, seeds=2, common=False, progress=False)["size"]
    assert common[0] == pytest.approx(common[1])  # the same start
    assert abs(common[0, 0] - common[0, 1]) > 1e-3
    assert abs(own[0, 0] - own[1, 0]) > 1e-3


def test_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    real = truth()
    real.train(CONFIGS[:2], progress=False)
    real.network(CONFIGS[0])
    assert torch.equal(torch.rand(2), expected)


def test_a_factory_makes_the_networks() -> None:
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), ht.nn.Dropout("dropout"), nn.Linear(5, 1)))
        return made[-1]

    real = truth(initialize=make, epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=1e-12), schedule=None)
    size = real.train(CONFIGS[:1], seeds=[7], progress=False)["size"]
    assert size[0, 0] == pytest.approx(sum(float(p.detach().square().sum()) for p in made[-1].parameters()), rel=1e-5)


def test_a_training_that_diverges_is_nan_and_named() -> None:
    real = truth(optimizer=lambda p: torch.optim.SGD(p, lr=1e4), schedule=None, epochs=20)
    with pytest.warns(ht.HypertuneWarning, match=r"diverged at \{'decay': 1\.0"):
        measured = real.train([CONFIGS[2]], progress=False)
    assert np.isnan(measured["error"]).all()


def test_finished_runs_are_not_repeated(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    calls = 0

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3 * 3 * 2 + 1:
            raise Interrupted
        return problem.loss(model, batch, config)

    with pytest.raises(Interrupted):
        truth(loss=loss, parallel=1, folder=tmp_path).train(CONFIGS, progress=False)
    resumed = truth(loss=loss, parallel=1, folder=tmp_path)
    assert "runs=2" in repr(resumed)
    measured = resumed.train(CONFIGS, progress=False)
    assert calls == 3 * 3 * 2 + 1 + 3 * 3  # the third alone
    assert measured["error"].tolist() == truth(parallel=1).train(CONFIGS, progress=False)["error"].tolist()
    resumed.train([*CONFIGS, CONFIGS[0]], progress=False)
    assert calls == 3 * 3 * 2 + 1 + 3 * 3


def test_several_processes_may_share_a_folder(tmp_path: Path) -> None:
    first, second = truth(folder=tmp_path), truth(folder=tmp_path)
    first.train(CONFIGS[:1], progress=False)
    second.train(CONFIGS[1:], progress=False)
    assert f"runs={len(CONFIGS)}" in repr(truth(folder=tmp_path))


def test_runs_from_other_weights_or_of_other_metrics_are_refused(tmp_path: Path) -> None:
    truth(folder=tmp_path, initialize="given").train(CONFIGS[:1], progress=False)
    other = problem.network()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(ht.StorageError, match="given was"):
        truth(other, folder=tmp_path, initialize="given")
    fewer = truth(folder=tmp_path, initialize="given", metric=lambda m, b: {"error": problem.metric(m, b)["error"]})
    with pytest.raises(ht.StorageError, match="other metrics"):
        fewer.train(CONFIGS[:2], progress=False)


def test_runs_of_another_budget_are_refused(tmp_path: Path) -> None:
    truth(folder=tmp_path).train(CONFIGS[:1], progress=False)
    with pytest.raises(ht.StorageError, match="epochs was 3, is 4"):
        truth(folder=tmp_path, epochs=4)
    with pytest.raises(ht.StorageError, match="optimizer was 'SGD"):
        truth(folder=tmp_path, optimizer=lambda p: torch.optim.Adam(p))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ht.OptionError, "`epochs`"),
        ({"parallel": 0}, ht.OptionError, "`parallel`"),
        ({"initialize": "random"}, ht.OptionError, "`initialize`"),
        ({"train_loader": []}, ht.DataError, "no batch"),
        ({"val_loader": []}, ht.DataError, "validation loader"),
        ({"network": nn.Tanh()}, ht.DataError, "no trainable parameter"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        truth(**options)


def test_bad_configs_and_seeds() -> None:
    with pytest.raises(ht.SpaceError, match="decay"):
        truth().train([{"decay": 2.0, "dropout": 0.1}], progress=False)
    with pytest.raises(ht.OptionError, match="`seeds`"):
        truth().train(CONFIGS, seeds=0, progress=False)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)


def test_fresh_weights() -> None:
    network = Custom()
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        network.norm.weight.fill_(3.0)
    first, again, other = (reinitialized(network, seed) for seed in (0, 0, 1))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert torch.equal(first.position, before["position"])
    assert bool((first.norm.weight == 1).all())
    assert bool((first.attention.out_proj.bias == 0).all())  # as MultiheadAttention starts, not as Linear does
    assert not torch.equal(first.attention.in_proj_weight, other.attention.in_proj_weight)
    assert bool((network.norm.weight == 3).all())


class Backwards:
    """An executor that wants many small parts, and answers in an order of its own."""

    parts = 3

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, truth: ht.Truth, work: Iterable[Runs]) -> Iterator[tuple[Runs, list[dict[str, float]]]]:
        for runs in reversed(list(work)):
            self.sizes.append(len(runs.configs))
            yield runs, truth.on("cpu").carry_out(runs)


@pytest.mark.parametrize("parallel", [1, 16])
def test_an_executor_may_divide_the_work_and_answer_in_any_order(parallel: int) -> None:
    spread = truth(parallel=parallel)
    spread.executor = executor = Backwards()
    measured, alone = (each.train(CONFIGS, seeds=2, progress=False) for each in (spread, truth(parallel=parallel)))
    assert executor.sizes == ([1] * 6 if parallel == 1 else [1, 2, 1, 2])
    for name, values in measured.items():
        np.testing.assert_allclose(values, alone[name], rtol=TOLERANCE)
    spread.train(CONFIGS, seeds=2, progress=False)
    assert sum(executor.sizes) == 6  # none is repeated
