"""What `SurrogateSampler` proposes, in which order, and how much the surrogate counts in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import hypertune_mip as ht
from hypertune_mip.directions import Direction
from hypertune_mip.surrogate.proposal import Proposer
from hypertune_mip.surrogate.search import diverse_best
from hypertune_mip_optuna import SurrogateSampler
from hypertune_mip_optuna.agreement import suggest_config
from tests.optuna.tiny_surrogate import SPACE as EVERY_TYPE
from tests.optuna.tiny_surrogate import make_surrogate

SPACE = ht.SearchSpace({name: FloatDistribution(0.0, 1.0) for name in ("a", "b")})
CANDIDATES = 64

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(scope="module")
def surrogate() -> ht.Surrogate:
    return make_surrogate(SPACE)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def sampler(surrogate: ht.Surrogate, **options: Any) -> SurrogateSampler:
    return SurrogateSampler(surrogate, "loss", **({"candidates": CANDIDATES, "seed": 0} | options))


def study_of(surrogate: ht.Surrogate, trials: int, objective: Any, **options: Any) -> optuna.Study:
    study = optuna.create_study(sampler=sampler(surrogate, **options))
    study.optimize(objective, n_trials=trials)
    return study


def right(surrogate: ht.Surrogate) -> Any:
    """An objective that the surrogate foresees exactly."""
    return lambda trial: surrogate.evaluate(suggest_config(trial, surrogate.space))["loss"]


def test_the_surrogates_best_come_first_and_lie_apart(surrogate: ht.Surrogate) -> None:
    study = study_of(surrogate, 4, right(surrogate), startup=4)
    best = diverse_best(surrogate._measure, "loss", 4, candidates=CANDIDATES, seed=0)
    proposed = SPACE.to_unit([trial.params for trial in study.trials])
    torch.testing.assert_close(proposed, best, rtol=0, atol=1e-12)
    assert study.trials[0].value == pytest.approx(surrogate.optimize("loss", candidates=CANDIDATES).value, rel=1e-3)


def test_settings_are_spread_until_results_suffice(surrogate: ht.Surrogate) -> None:
    study = study_of(surrogate, 3, right(surrogate))
    third = SPACE.to_unit([study.trials[2].params])
    torch.testing.assert_close(third, SPACE.sample(3, seed=1)[-1:], rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Kendall.s tau of the surrogate")
def test_results_move_the_search_to_where_the_surrogate_is_wrong(surrogate: ht.Surrogate) -> None:
    """Real values are the surrogate's plus a bowl, whose sum has its minimum elsewhere."""
    scale = float(np.ptp(surrogate.evaluate_units(SPACE.sample(64))["loss"]))
    low = surrogate.optimize("loss").config
    center = {name: 0.2 if low[name] > 0.5 else 0.8 for name in low}

    def real(config: dict[str, float]) -> float:
        bowl = sum((config[name] - center[name]) ** 2 for name in config)
        return surrogate.evaluate(config)["loss"] + 4 * scale * bowl

    study = study_of(surrogate, 16, lambda trial: real(suggest_config(trial, SPACE)))
    grid = [real(config) for config in SPACE.from_unit(SPACE.sample(256))]
    assert study.best_value < np.quantile(grid, 0.02)
    assert study.trials[0].value > np.quantile(grid, 0.3)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_both_directions(surrogate: ht.Surrogate, direction: str) -> None:
    study = optuna.create_study(sampler=sampler(surrogate), direction=direction)
    study.optimize(right(surrogate), n_trials=8)
    values = surrogate.evaluate_units(SPACE.sample(CANDIDATES))["loss"]
    assert study.best_value <= values.min() if direction == "minimize" else study.best_value >= values.max()


def weights(study: optuna.Study) -> list[float]:
    """How much the surrogate counted, trial by trial."""
    return [trial.system_attrs["hypertune_mip:weight"] for trial in study.trials]


def test_a_surrogate_that_is_right_counts_for_most(surrogate: ht.Surrogate) -> None:
    study = study_of(surrogate, 10, right(surrogate))
    assert weights(study)[:3] == [1.0, 1.0, 0.0]  # its best two, and a setting that it was not asked about
    assert min(weights(study)[3:]) > 0.9  # three results suffice


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_surrogate_that_is_wrong_fades(surrogate: ht.Surrogate, direction: Direction) -> None:
    """Values are the opposite of what it says: it counts for little, is told of once, and the search goes on."""
    study = optuna.create_study(sampler=sampler(surrogate), direction=direction)
    wrong = lambda trial: -right(surrogate)(trial)  # noqa: E731
    with pytest.warns(ht.HypertuneWarning, match=r"Kendall's tau .* with 8 results is -\d") as told:
        study.optimize(wrong, n_trials=16)
    assert len([one for one in told if "Kendall" in str(one.message)]) == 1
    assert max(weights(study)[5:]) < 0.1
    values = -surrogate.evaluate_units(SPACE.sample(256))["loss"]
    better = values < study.best_value if direction == "minimize" else values > study.best_value
    assert float(np.mean(better)) < 0.02


def test_a_report_with_doubts_counts_from_the_start() -> None:
    known = make_surrogate(SPACE)
    units = SPACE.sample(8)
    predicted = known.evaluate_units(units)["loss"]
    report = ht.TrustReport(
        metric="loss",
        space=SPACE,
        configs=tuple(SPACE.from_unit(units)),
        chosen=("spread",) * 8,
        predicted={"loss": predicted},
        true={"loss": -predicted[:, None]},
        responses={"a": 1.0, "b": 1.0},
        trainings=8.0,
        seconds=1.0,
        low={},
        high={},
    )
    chosen = ht.Surrogate(known.hypernet, evaluator=known._evaluate, reports=[report])
    spread = SPACE.sample(1, seed=1)
    study = study_of(chosen, 3, right(chosen))
    torch.testing.assert_close(SPACE.to_unit([study.trials[0].params]), spread, rtol=0, atol=1e-12)
    assert weights(study) == [0.0, 0.0, 0.0]
    opposite = optuna.create_study(direction="maximize", sampler=sampler(chosen))  # of which the report says nothing
    opposite.optimize(right(chosen), n_trials=1)
    assert weights(opposite) == [1.0]


def test_failed_and_pruned_trials(surrogate: ht.Surrogate) -> None:
    def objective(trial: optuna.Trial) -> float:
        value = right(surrogate)(trial)
        if trial.number % 3 == 0:
            raise optuna.TrialPruned
        if trial.number % 3 == 1:
            raise ArithmeticError
        return value

    study = optuna.create_study(sampler=sampler(surrogate))
    study.optimize(objective, n_trials=18, catch=(ArithmeticError,))
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 6
    proposed = SPACE.to_unit([trial.params for trial in study.trials])
    apart = (proposed.unsqueeze(1) - proposed).abs().amax(-1) + torch.eye(18)
    assert float(apart.min()) > 1e-6  # none is proposed again because it failed


def test_pruned_trials_are_not_believed_to_be_good(surrogate: ht.Surrogate) -> None:
    """Only trials that are running are; what a pruned one reached is no result either."""
    study = optuna.create_study(sampler=sampler(surrogate))
    for state in (TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE, TrialState.RUNNING):
        trial = study.ask()
        suggest_config(trial, SPACE)
        trial.report(0.5, 1)
        if state != TrialState.RUNNING:
            study.tell(trial, 1.0 if state == TrialState.COMPLETE else None, state=state)
    tried, values, pending, _ = sampler(surrogate)._results(study, study.trials[-1])
    assert values.isnan().tolist() == [True, True, False]
    assert len(tried) == 3
    assert len(pending) == 0  # the one that asks
    latest = study.ask()
    _, _, pending, _ = sampler(surrogate)._results(study, study.trials[latest.number])
    assert len(pending) == 1


@pytest.mark.filterwarnings("ignore:Kendall.s tau of the surrogate", "ignore:A Gaussian process of the calibration")
@pytest.mark.parametrize("seed", range(2))
def test_a_small_space_is_not_exhausted(seed: int) -> None:
    """On one continuous column refinement goes on; of few values the good ones are tried again."""
    one = ht.SearchSpace({"a": FloatDistribution(0.0, 1.0)})
    study = optuna.create_study(sampler=sampler(make_surrogate(one), seed=seed))
    noise = np.random.default_rng(seed)
    bowl = lambda a: (a - 0.4321) ** 2 - 1.0 + 0.01 * noise.standard_normal()  # noqa: E731
    study.optimize(lambda trial: bowl(trial.suggest_float("a", 0.0, 1.0)), n_trials=30)
    late = [abs(trial.params["a"] - 0.4321) for trial in study.trials[20:]]
    assert np.median(late) < 0.15  # had all to lie 0.02 apart, the search would have left by then
    few = ht.SearchSpace({"a": CategoricalDistribution(["x", "y", "z"])})
    study = optuna.create_study(sampler=sampler(make_surrogate(few), seed=seed))
    values = {"x": 2.0, "y": 0.0, "z": 1.0}
    study.optimize(lambda trial: values[trial.suggest_categorical("a", ["x", "y", "z"])], n_trials=8)
    assert {trial.params["a"] for trial in study.trials} == {"x", "y", "z"}


def test_a_restart_goes_on_where_the_storage_stands(surrogate: ht.Surrogate, tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    for _ in range(4):
        again = optuna.create_study(study_name="s", storage=storage, sampler=sampler(surrogate), load_if_exists=True)
        again.optimize(right(surrogate), n_trials=3)
    whole = study_of(surrogate, 12, right(surrogate))
    assert [trial.params for trial in again.trials] == [trial.params for trial in whole.trials]


def test_workers_do_not_propose_the_same(surrogate: ht.Surrogate, tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    studies = [
        optuna.create_study(study_name="s", storage=storage, sampler=sampler(surrogate), load_if_exists=True)
        for _ in range(4)
    ]
    asked = [study.ask() for study in studies]
    first = [trial.suggest_float("a", 0.0, 1.0) for trial in asked]  # all of them before any suggests "b"
    second = [trial.suggest_float("b", 0.0, 1.0) for trial in asked]
    assert len(set(zip(first, second, strict=True))) == 4


def test_workers_that_wait_for_results_are_not_sent_to_one_corner(surrogate: ht.Surrogate) -> None:
    """What is foreseen of pending trials is believed: there is little to be learned next to them."""
    study = optuna.create_study(sampler=sampler(surrogate))
    noise = np.random.default_rng(1)
    study.optimize(lambda trial: right(surrogate)(trial) + 0.1 * noise.standard_normal(), n_trials=6)
    asked = [suggest_config(study.ask(), SPACE) for _ in range(5)]
    units = SPACE.to_unit(asked)
    apart = (units.unsqueeze(1) - units).abs().amax(-1)
    assert float(apart.sum()) / 20 > 0.2  # 0.04 if they are only kept from being the same


def test_threads(surrogate: ht.Surrogate) -> None:
    study = optuna.create_study(sampler=sampler(surrogate))
    study.optimize(right(surrogate), n_trials=12, n_jobs=3)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 12
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 12


@pytest.mark.parametrize("stored", [False, True])
def test_workers_that_ask_at_the_same_moment_are_proposed_different_settings(
    surrogate: ht.Surrogate, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All trials have started before any is proposed anything, and none, or all before, sees what another was."""
    study = optuna.create_study(sampler=TPESampler())
    numbers = [study.ask().number for _ in range(4)]
    if not stored:
        monkeypatch.setattr(study._storage, "set_trial_system_attr", lambda *_: None)
    trials = study.get_trials(deepcopy=False)
    proposed = [tuple(sampler(surrogate)._proposal(study, trials[n]).values()) for n in reversed(numbers)]
    assert len(set(proposed)) == 4


def test_a_surrogate_that_is_nan_somewhere(surrogate: ht.Surrogate) -> None:
    def metric(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        loss = surrogate._evaluate.metric(model, batch)["loss"]
        return {"loss": torch.where(loss > typical, torch.nan, loss)}

    typical = float(np.median(surrogate.evaluate_units(SPACE.sample(64))["loss"]))
    holes = ht.Surrogate(surrogate.hypernet, metric=metric, val_loader=surrogate._evaluate.data.loader)
    study = study_of(holes, 12, right(surrogate))
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 12


def test_other_parameters_come_from_the_inner_sampler(surrogate: ht.Surrogate) -> None:
    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        return right(surrogate)(trial) + abs(np.log10(rate) + 2.0)

    inner = TPESampler(seed=1, n_startup_trials=3)
    study = study_of(surrogate, 20, objective, inner=inner)
    rates = [trial.params["learning_rate"] for trial in study.trials]
    assert len(set(rates)) == 20
    early, late = (np.abs(np.log10(part) + 2.0).mean() for part in (rates[:8], rates[-8:]))
    assert late < early  # the inner sampler learns
    assert all("hypertune_mip:proposal" in trial.system_attrs for trial in study.trials)


def test_a_parameter_with_another_range_is_left_to_the_inner_sampler(surrogate: ht.Surrogate) -> None:
    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_float("a", 0.0, 2.0) + trial.suggest_float("b", 0.0, 1.0)

    study = optuna.create_study(sampler=sampler(surrogate, inner=RandomSampler(seed=0)))
    study.optimize(objective, n_trials=8)
    assert max(trial.params["a"] for trial in study.trials) > 1.0
    with pytest.warns(ht.HypertuneWarning, match=r"none of 8 finished trials suggested all of \['a', 'b'\]"):
        study.optimize(objective, n_trials=1)


def test_every_type_of_distribution() -> None:
    chosen = make_surrogate(EVERY_TYPE)
    study = study_of(chosen, 12, right(chosen))
    at_random = chosen.evaluate_units(chosen.space.sample(12))[chosen.metrics[0]]
    assert study.best_value < np.quantile(at_random, 0.1)
    assert all(type(trial.params["order"]) is int for trial in study.trials)


def test_bad_options(surrogate: ht.Surrogate, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ht.SpaceError, match="'accuracy' is unknown"):
        SurrogateSampler(surrogate, "accuracy")
    with pytest.raises(ht.OptionError, match="`startup`"):
        sampler(surrogate, startup=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ht.MissingExtraError, match=r"hypertune-mip\[calibration\]"):
        Proposer(surrogate, "loss")


def test_repr(surrogate: ht.Surrogate) -> None:
    assert repr(sampler(surrogate)) == "SurrogateSampler(metric='loss', inner=TPESampler)"
