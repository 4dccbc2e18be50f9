"""Real training: against closed forms and hand-written loops, stacked against single, and what is remembered."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.trainings import AnyConfig, Finished, Run, Together, Workshop
from hypertune_mip.trainings.initialization import reinitialized
from tests import small_problem as problem

TOLERANCE = 1e-5
CONFIGS = [{"decay": d, "dropout": 0.0} for d in (1e-4, 1e-2, 1.0)]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def recipe(**options: Any) -> ht.Recipe:
    chosen = {"epochs": 3, "optimizer": sgd} | options
    return ht.Recipe(**chosen | {"optimizer": AnyConfig(chosen["optimizer"])})


def trainer(network: nn.Module | None = None, **options: Any) -> ht.Trainer:
    chosen = problem.validation() | options
    made = {name: chosen.pop(name) for name in ("epochs", "optimizer", "schedule") if name in chosen}
    chosen.setdefault("recipe", recipe(**made))
    loader = chosen.pop("train_loader", problem.loader())
    space, loss = chosen.pop("space", problem.SPACE), chosen.pop("loss", problem.loss)
    return ht.Trainer(problem.network() if network is None else network, space, loss, loader, **chosen)


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

    measured = ht.Trainer(
        network,
        ht.SearchSpace({"decay": FloatDistribution(0.01, 3.0)}),
        loss,
        [(x, y)],
        metric=metric,
        val_loader=[(x, y)],
        recipe=recipe(epochs=400, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), schedule=None),
    ).train([{"decay": d} for d in decays], progress=False)

    for row, decay in enumerate(decays):
        exact = torch.linalg.solve(x.T @ x / 40 + decay * torch.eye(3, dtype=torch.float64), x.T @ y / 40)
        np.testing.assert_allclose([measured[f"w{i}"][row, 0] for i in range(3)], exact.numpy(), rtol=1e-6)


def test_equals_a_training_loop_written_by_hand() -> None:
    network = problem.network()
    loader = problem.loader(shuffle=False)
    measured = trainer(network, train_loader=loader, initialize="given", schedule=None).train(CONFIGS, progress=False)
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
    stacked = trainer(optimizer=optimizer).train(CONFIGS, seeds=2, progress=False)
    single = trainer(optimizer=optimizer, parallel=1).train(CONFIGS, seeds=2, progress=False)
    for name in ("error", "size"):
        np.testing.assert_allclose(stacked[name], single[name], rtol=1e-4)


def test_a_network_is_the_one_that_was_measured() -> None:
    real = trainer(parallel=1)
    measured = real.train([problem.CONFIG], seeds=[4], progress=False)
    network = real.network(problem.CONFIG, seed=4)
    values = problem.metric(network, problem.data().tensors)
    assert float(values["error"].detach()) == pytest.approx(measured["error"][0, 0], rel=TOLERANCE)
    assert not any(isinstance(module, ht.nn.Dropout) for module in network.modules())


def test_batch_norm_keeps_its_running_statistics() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    real = trainer(network)
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

    real = trainer(loss=loss)
    assert "stacked" in repr(real)
    measured = real.train(CONFIGS, progress=False)
    assert "one after another" in repr(real)
    np.testing.assert_allclose(measured["error"], trainer(parallel=1).train(CONFIGS, progress=False)["error"])


class Normalized(torch.optim.SGD):
    """Divides each gradient by its norm: it looks at whole tensors, whose shapes must be those of one network."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad /= parameter.grad.norm() + 1e-3
        super().step()


RECIPES: dict[str, Any] = {
    "whole tensors": lambda p, config: Normalized(p, lr=0.01),
    "decay of the config": lambda p, config: torch.optim.AdamW(p, lr=0.01, weight_decay=config["decay"]),
    "rate of the config": lambda p, config: torch.optim.SGD(p, lr=0.01 * (1 + config["decay"])),
    "groups by shape": lambda p, config: torch.optim.SGD(
        [{"params": [q for q in p if (q.ndim > 1) == flag], "lr": rate} for flag, rate in ((True, 0.1), (False, 0.01))]
    ),
    "state made at once": lambda p, config: torch.optim.Adagrad(p, lr=0.01),
}


@pytest.mark.parametrize("optimizer", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("schedule", [None, lambda o, steps: torch.optim.lr_scheduler.LinearLR(o, total_iters=steps)])
def test_every_recipe_is_followed_in_a_stack_as_alone(optimizer: Any, schedule: Any) -> None:
    configs = [{"decay": d, "dropout": 0.0} for d in (1e-4, 0.3, 1.0)]
    chosen = ht.Recipe(epochs=3, optimizer=optimizer, schedule=schedule)
    stacked, alone = (trainer(recipe=chosen, parallel=parallel) for parallel in (16, 1))
    found, expected = (each.train(configs, progress=False) for each in (stacked, alone))
    assert "stacked" in repr(stacked)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4)


def test_the_recipe_of_a_config_is_the_one_that_a_user_would_write() -> None:
    network, config = problem.plain_network(), dict(problem.CONFIG, decay=0.5, dropout=0.0)
    loader = problem.loader(shuffle=False)
    chosen = ht.Recipe(
        epochs=2,
        optimizer=lambda p, config: torch.optim.AdamW(p, lr=0.1 * config["decay"], weight_decay=config["decay"]),
        schedule=lambda optimizer, steps: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps),
    )
    found = trainer(network, recipe=chosen, train_loader=loader, initialize="given").train([config], progress=False)
    model = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5)
    steps = 2 * len(loader)
    for step, batch in enumerate(batch for _ in range(2) for batch in loader):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimizer.zero_grad()
        problem.loss(model, batch, config).backward()
        optimizer.step()
    expected = problem.metric(model.eval(), problem.data().tensors)["error"]
    assert found["error"].item() == pytest.approx(float(expected.detach()), rel=TOLERANCE)


ODD_STEPS: dict[str, dict[str, Any]] = {
    "clipped": {"gradient_clip": 0.05},
    "hardly clipped": {"gradient_clip": 1e3},
    "accumulated": {"accumulate": 2},
    "bfloat16": {"precision": "bfloat16"},
    "all of it": {"gradient_clip": 0.05, "accumulate": 2, "precision": "bfloat16"},
}


@pytest.mark.parametrize("options", ODD_STEPS.values(), ids=ODD_STEPS)
@pytest.mark.parametrize("parallel", [16, 1], ids=["stacked", "alone"])
def test_clipped_accumulated_and_mixed_steps_are_those_of_a_loop_by_hand(options: Any, parallel: int) -> None:
    network, loader = problem.plain_network(), problem.loader(shuffle=False)  # three batches, so that one is left over
    chosen = ht.Recipe(epochs=3, optimizer=AnyConfig(sgd), schedule=None, **options)
    made = trainer(network, recipe=chosen, train_loader=loader, initialize="given", parallel=parallel)
    found = made.train(CONFIGS, progress=False)
    assert ("stacked" in repr(made)) == (parallel > 1)
    for row, config in enumerate(CONFIGS):
        model = copy.deepcopy(network)
        optimizer = sgd(model.parameters())
        for _ in range(3):
            batches = list(loader)
            while batches:
                group = [batches.pop(0) for _ in range(min(options.get("accumulate", 1), len(batches)))]
                optimizer.zero_grad()
                for batch in group:
                    with torch.autocast("cpu", torch.bfloat16, enabled="precision" in options):
                        value = problem.loss(model, batch, config)
                    (value.float() / len(group)).backward()
                if "gradient_clip" in options:
                    norm = nn.utils.clip_grad_norm_(model.parameters(), options["gradient_clip"])
                    assert (norm > options["gradient_clip"]) == (options["gradient_clip"] < 1.0)
                optimizer.step()
        expected = problem.metric(model.eval(), problem.data().tensors)["error"]
        tolerance = 0.02 if "precision" in options else TOLERANCE
        assert found["error"][row, 0] == pytest.approx(float(expected.detach()), rel=tolerance)


def test_in_float16_the_gradient_is_scaled_and_an_overflow_leaves_the_network_as_it_is() -> None:
    chosen = ht.Recipe(epochs=1, optimizer=AnyConfig(sgd), schedule=None, precision="float16")
    start = problem.plain_network()

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return 1e36 * problem.loss(model, batch, config)  # times 2**16 infinite

    trained = trainer(start, recipe=chosen, loss=loss, initialize="given", parallel=16)
    assert "one after another" in repr(trained)
    network = trained.network(CONFIGS[0])
    for own, given in zip(network.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(own, given)

    small = trainer(start, recipe=chosen, loss=lambda m, b, c: 1e-7 * problem.loss(m, b, c), initialize="given")
    moved = small.network(CONFIGS[0])
    assert any((own != given).any() for own, given in zip(moved.parameters(), start.parameters(), strict=True))


def test_trainings_by_other_clipping_accumulation_or_precision_are_others(tmp_path: Path) -> None:
    for options in ({}, *ODD_STEPS.values()):
        chosen = ht.Recipe(epochs=1, optimizer=AnyConfig(sgd), **options)
        trainer(recipe=chosen, folder=tmp_path).train(CONFIGS[:1], progress=False)
    assert len(list(tmp_path.glob("training-*.json"))) == 1 + len(ODD_STEPS)


@pytest.mark.parametrize("options", [{"gradient_clip": 0.0}, {"accumulate": 0}, {"precision": "float8"}], ids=str)
def test_steps_that_could_not_be_taken_are_refused(options: Any) -> None:
    with pytest.raises(ht.OptionError, match=f"`{next(iter(options))}` must be"):
        ht.Recipe(epochs=1, **options)


def test_the_recipe_of_a_surrogate_is_what_fit_was_told() -> None:
    told = {"epochs": 20, "optimizer": sgd, "gradient_clip": 0.5, "accumulate": 2, "precision": "bfloat16"}
    surrogate = problem.fit(**told, **problem.validation())
    recipe = surrogate.trainer().recipe
    assert {name: getattr(recipe, name) for name in told if name != "optimizer"} == {
        name: value for name, value in told.items() if name != "optimizer"
    }
    assert recipe.optimizer(problem.network().parameters(), {}).param_groups[0]["momentum"] == 0.9


CLASSES = [(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2)]


@pytest.mark.parametrize(
    ("decay", "space", "twice"), [(0.02, "weight_decay", True), (0.0, "weight_decay", False), (0.02, "l1", False)]
)
def test_weights_that_would_decay_twice_are_warned_of_once(decay: float, space: str, twice: bool) -> None:
    task, configs = ht.Classification(), [{space: value} for value in (0.01, 0.1)]
    chosen = ht.Recipe(epochs=1, optimizer=lambda p, c: torch.optim.AdamW(p, lr=0.01, weight_decay=decay))
    made = ht.Trainer(
        nn.Linear(3, 2),
        ht.SearchSpace({space: FloatDistribution(0.01, 0.1)}),
        task.loss,
        CLASSES,
        metric=task.metric,  # type: ignore[arg-type]
        val_loader=CLASSES,
        recipe=chosen,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.train(configs, progress=False)
        made.train(configs, seeds=[1], progress=False)
    told = [str(each.message) for each in caught]
    assert len(told) == twice
    assert not twice or (told[0].startswith("Weights decay twice") and "by 0.02 at the first config" in told[0])
    assert not twice or caught[0].filename == __file__


BAD: dict[str, tuple[Any, str]] = {
    "other parameters": (lambda p, c: torch.optim.SGD(nn.Linear(1, 1).parameters()), "holds 0 of them and 2 others"),
    "some parameters": (lambda p, c: torch.optim.SGD(list(p)[:1]), "holds 1 of them and 0 others"),
    "no optimiser": (lambda p, c: None, "must return a torch optimiser, but gave None"),
    "a closure": (lambda p, c: torch.optim.LBFGS(p), "is LBFGS, which evaluates the loss several times a step"),
}


def test_what_a_recipes_optimizer_takes_second_is_the_config_and_nothing_else() -> None:
    with pytest.raises(ht.OptionError, match=r"must be a function of \(parameters, config\)"):
        ht.Recipe(epochs=1, optimizer=lambda p, lr=0.1: torch.optim.SGD(p, lr=lr))
    ht.Recipe(epochs=1, optimizer=lambda p, config=None: torch.optim.SGD(p, lr=0.1))


@pytest.mark.parametrize("name", BAD)
def test_an_optimiser_that_could_not_train_is_refused(name: str) -> None:
    optimizer, message = BAD[name]
    with pytest.raises(ht.OptionError, match=message):
        trainer(recipe=ht.Recipe(epochs=1, optimizer=optimizer)).train(CONFIGS, progress=False)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda parameters: None, "adam", None])
def test_an_optimiser_of_a_recipe_takes_parameters_and_config(optimizer: Any) -> None:
    with pytest.raises(ht.OptionError, match=r"must be a function of \(parameters, config\)"):
        ht.Recipe(epochs=1, optimizer=optimizer)


def test_seeds_change_the_order_of_data_and_noise_where_starts_are_one() -> None:
    def errors(**config: float) -> list[float]:
        real = trainer(initialize="given", train_loader=problem.loader(shuffle=not config["dropout"]))
        return real.train([{"decay": 0.01, **config}], seeds=[3, 4, 3], progress=False)["error"][0].tolist()

    for config in ({"dropout": 0.0}, {"dropout": 0.3}):  # the order alone, then noise alone
        first, other, again = errors(**config)
        assert first == again != other


def test_seeds_and_common_random_numbers() -> None:
    twice = [problem.CONFIG, dict(problem.CONFIG, dropout=0.0)]
    real = trainer(epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=1e-12), schedule=None)
    common = real.train(twice, seeds=2, progress=False)["size"]
    own = real.train(twice, seeds=2, common=False, progress=False)["size"]
    assert common[0] == pytest.approx(common[1])  # the same start
    assert abs(common[0, 0] - common[0, 1]) > 1e-3
    assert abs(own[0, 0] - own[1, 0]) > 1e-3


def test_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    real = trainer()
    real.train(CONFIGS[:2], progress=False)
    real.network(CONFIGS[0])
    assert torch.equal(torch.rand(2), expected)


def test_a_factory_makes_the_networks() -> None:
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), ht.nn.Dropout("dropout"), nn.Linear(5, 1)))
        return made[-1]

    real = trainer(initialize=make, epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=1e-12), schedule=None)
    size = real.train(CONFIGS[:1], seeds=[7], progress=False)["size"]
    assert size[0, 0] == pytest.approx(sum(float(p.detach().square().sum()) for p in made[-1].parameters()), rel=1e-5)


def test_a_training_that_diverges_is_nan_and_named() -> None:
    real = trainer(optimizer=lambda p: torch.optim.SGD(p, lr=1e4), schedule=None, epochs=20)
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
        trainer(loss=loss, parallel=1, folder=tmp_path).train(CONFIGS, progress=False)
    resumed = trainer(loss=loss, parallel=1, folder=tmp_path)
    assert "finished=2" in repr(resumed)
    measured = resumed.train(CONFIGS, progress=False)
    assert calls == 3 * 3 * 2 + 1 + 3 * 3  # the third alone
    assert measured["error"].tolist() == trainer(parallel=1).train(CONFIGS, progress=False)["error"].tolist()
    resumed.train([*CONFIGS, CONFIGS[0]], progress=False)
    assert calls == 3 * 3 * 2 + 1 + 3 * 3


class Assigns(nn.Module):
    """Keeps a running mean in a buffer that it assigns anew."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 1)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x).relu()
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        return self.out(hidden - self.mean)


def test_a_buffer_that_is_assigned_anew_follows_each_training(tmp_path: Path) -> None:
    real = trainer(Assigns(), folder=tmp_path)
    measured = real.train(CONFIGS, progress=False)["error"][:, 0]
    assert "one after another" in repr(real)
    networks = [real.network(config) for config in CONFIGS]
    assert all(float(network.mean.norm()) > 0.1 for network in networks)
    values = [float(problem.metric(network, problem.data().tensors)["error"].detach()) for network in networks]
    np.testing.assert_allclose(measured, values, rtol=TOLERANCE)


def test_several_processes_may_share_a_folder(tmp_path: Path) -> None:
    first, second = trainer(folder=tmp_path), trainer(folder=tmp_path)
    first.train(CONFIGS[:1], progress=False)
    second.train(CONFIGS[1:], progress=False)
    assert f"finished={len(CONFIGS)}" in repr(trainer(folder=tmp_path))


def other_weights() -> nn.Module:
    network = problem.network()
    with torch.no_grad():
        next(network.parameters()).add_(1.0)
    return network


def constant(factor: float) -> Any:
    return lambda optimizer, steps: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor)


OTHERS: dict[str, Any] = {
    "epochs": {"epochs": 4},
    "optimiser": {"optimizer": lambda p: torch.optim.Adam(p)},
    "rate of a group": {"optimizer": lambda p: torch.optim.SGD([{"params": list(p), "lr": 0.2}], momentum=0.9)},
    "factor in a schedule": {"schedule": constant(0.5)},
    "start": {"initialize": "reset"},
    "weights": {"network": other_weights()},
    "function that makes the start": {"initialize": other_weights},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_finished_training_counts_for_its_own_recipe_and_start_alone(name: str, tmp_path: Path) -> None:
    usual = {"schedule": constant(1.0), "initialize": "given"}
    first = trainer(folder=tmp_path, **usual).train(CONFIGS[:1], progress=False)
    other = trainer(folder=tmp_path, **usual | OTHERS[name])
    values = other.train(CONFIGS[:1], progress=False)
    assert "finished=2" in repr(other)
    assert values["error"] != first["error"]
    assert values["error"] == trainer(**usual | OTHERS[name]).train(CONFIGS[:1], progress=False)["error"]
    again = trainer(folder=tmp_path, loss=never, **usual)
    assert again.train(CONFIGS[:1], progress=False)["error"] == first["error"]


def never(model: nn.Module, batch: Any, config: Any) -> Tensor:
    raise AssertionError("trained again")


def test_finished_networks_are_measured_anew_on_other_data_and_by_other_metrics(tmp_path: Path) -> None:
    first = trainer(folder=tmp_path, parallel=1).train(CONFIGS, progress=False)
    x, y = problem.data().tensors
    later: dict[str, Any] = {"folder": tmp_path, "loss": never}
    halves = [trainer(val_loader=[(x[rows], y[rows])], **later) for rows in (slice(0, None, 2), slice(1, None, 2))]
    even, odd = (half.train(CONFIGS, progress=False)["error"] for half in halves)
    np.testing.assert_allclose((even + odd) / 2, first["error"], rtol=TOLERANCE)
    assert not np.allclose(even, odd)
    named = trainer(metric=lambda model, batch: {"other": problem.metric(model, batch)["error"]}, **later)
    found = named.train(CONFIGS, progress=False)
    assert list(found) == ["other"]
    np.testing.assert_allclose(found["other"], first["error"], rtol=TOLERANCE)


def test_the_folder_keeps_networks(tmp_path: Path) -> None:
    measured = trainer(folder=tmp_path).train(CONFIGS, seeds=[2], progress=False)
    network = trainer(folder=tmp_path, loss=never).network(CONFIGS[1], seed=2)
    values = problem.metric(network, problem.data().tensors)
    assert float(values["error"].detach()) == pytest.approx(measured["error"][1, 0], rel=TOLERANCE)


def test_a_damaged_training_is_refused_by_its_file(tmp_path: Path) -> None:
    trainer(folder=tmp_path).train(CONFIGS[:1], progress=False)
    (path,) = tmp_path.glob("training-*.json")
    path.write_text(path.read_text().replace("metrics", "matrics"))
    with pytest.raises(ht.StorageError, match=path.name):
        trainer(folder=tmp_path).train(CONFIGS[:1], progress=False)


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
        trainer(**options)


def test_bad_configs_and_seeds() -> None:
    with pytest.raises(ht.SpaceError, match="decay"):
        trainer().train([{"decay": 2.0, "dropout": 0.1}], progress=False)
    with pytest.raises(ht.OptionError, match="`seeds`"):
        trainer().train(CONFIGS, seeds=0, progress=False)


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

    def __call__(self, workshop: Workshop, work: Iterable[Together]) -> Iterator[tuple[Run, Finished]]:
        for together in reversed(list(work)):
            self.sizes.append(len(together))
            yield from reversed(list(workshop.on("cpu").carry_out(together)))


@pytest.mark.parametrize("parallel", [1, 16])
def test_an_executor_may_divide_the_work_and_answer_in_any_order(parallel: int) -> None:
    executor = Backwards()
    spread = trainer(parallel=parallel, executor=executor)
    measured, alone = (each.train(CONFIGS, seeds=2, progress=False) for each in (spread, trainer(parallel=parallel)))
    assert executor.sizes == ([1] * 6 if parallel == 1 else [1, 2, 1, 2])
    for name, values in measured.items():
        np.testing.assert_allclose(values, alone[name], rtol=TOLERANCE)
    spread.train(CONFIGS, seeds=2, progress=False)
    assert sum(executor.sizes) == 6  # none is repeated
