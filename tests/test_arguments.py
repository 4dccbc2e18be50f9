"""Arguments of every kind: numbers of NumPy and PyTorch are understood, what is meant otherwise is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from small_problem import CONFIG, SPACE, assert_same_state, fit, hypernet, loader, loss, network, validation
from torch import Tensor

import hypertune_mip as ht
from hypertune_mip import plots
from hypertune_mip.arguments import plain, precision, real_number, seed_number, whole_number
from hypertune_mip.training import Options
from hypertune_mip.training.fingerprint import described
from hypertune_mip.training.randomness import set_seed

WHOLE = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor([3], dtype=torch.int8)]
NO_NUMBER = [True, np.True_, torch.tensor(True), 3.0, np.float64(3.0), torch.tensor(3.0), "3", None, [3, 4], 2.5]
ids = repr


@pytest.fixture(scope="module")
def surrogate() -> ht.Surrogate:
    return fit(epochs=1, **validation())


@pytest.fixture(scope="module")
def trainer() -> ht.Trainer:
    recipe = ht.Recipe(epochs=np.int64(1))  # type: ignore[arg-type]
    return ht.Trainer(network(), SPACE, loss, loader(), recipe=recipe, parallel=np.int64(2), **validation())


# Single numbers


@pytest.mark.parametrize("value", WHOLE, ids=ids)
def test_a_whole_number_of_any_type_becomes_an_int(value: Any) -> None:
    number = whole_number("n", value, low=3, high=3, error=ht.SpaceError)
    assert type(number) is int and number == 3
    assert type(seed_number(value, error=ht.SpaceError)) is int


@pytest.mark.parametrize("value", NO_NUMBER, ids=ids)
def test_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(ht.OptionError, match=r"^`n` must be a whole number of at least 1, but got "):
        whole_number("n", value, low=1, error=ht.OptionError)


def test_the_ends_of_a_range_of_whole_numbers() -> None:
    with pytest.raises(ht.SpaceError, match="`n` must be a whole number between 1 and 2, but got 3"):
        whole_number("n", 3, low=1, high=2, error=ht.SpaceError)
    with pytest.raises(ht.SpaceError, match="`n` must be a whole number of at least 1, but got 0"):
        whole_number("n", 0, low=1, error=ht.SpaceError)


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)]
)
def test_a_number_of_any_type_becomes_a_float(value: Any) -> None:
    assert type(real_number("n", value, error=ht.SpaceError)) is float
    assert real_number("n", value, error=ht.SpaceError) == 0.5


@pytest.mark.parametrize("value", [True, np.True_, "0.5", None, 1j, np.array([0.5, 0.5])], ids=ids)
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(ht.SpaceError, match="`n` must be a number, but got"):
        real_number("n", value, error=ht.SpaceError)


def test_plain_leaves_alone_what_is_no_single_number() -> None:
    for value in ("text", None, [1], (np.int64(1),)):
        assert plain(value) is value
    assert plain(np.ones(2)).shape == (2,) and plain(torch.ones(0)).shape == (0,)
    assert type(plain(np.longdouble(0.5))) is float
    assert precision(0.1) == precision(np.float64(0.1)) == precision(torch.tensor(1)) == 0.0


# Configs


MIXED = ht.SearchSpace(
    {
        "rate": FloatDistribution(0.1, 0.7),
        "log": FloatDistribution(1e-5, 1e-1, log=True),
        "step": FloatDistribution(0.1, 0.7, step=0.1),
        "count": IntDistribution(1, 9, step=4),
        "wide": IntDistribution(1, 1000, log=True),
        "number": CategoricalDistribution([0.1, 0.7]),
        "switch": CategoricalDistribution([True, False]),
        "kind": CategoricalDistribution(["a", "b"]),
    }
)
LOW = {"rate": 0.1, "log": 1e-5, "step": 0.1, "count": 1, "wide": 1, "number": 0.1, "switch": True, "kind": "a"}
HIGH = {"rate": 0.7, "log": 1e-1, "step": 0.7, "count": 9, "wide": 1000, "number": 0.7, "switch": False, "kind": "b"}
KINDS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "float64": (np.float64, np.int64),
    "float32": (np.float32, np.int32),
    "float16": (np.float16, np.int16),
    "arrays": (lambda v: np.array(v, dtype=np.float32), np.array),
    "tensors": (lambda v: torch.tensor(v, dtype=torch.float32), torch.tensor),
    "short tensors": (lambda v: torch.tensor([v], dtype=torch.bfloat16), torch.tensor),
}


def test_a_value_that_a_logarithm_has_put_outside_is_the_end_of_the_range() -> None:
    """Who draws from a logarithmic range by exp(log(low)) may get less than low."""
    for name, end, way in (("log", 1e-5, -1), ("log", 1e-1, 1), ("wide", 1000.0, 1), ("rate", 0.7, 1)):
        config = {**LOW, name: end * (1 + way * 1e-15)}
        assert MIXED.from_unit(MIXED.to_unit(config))[0][name] == MIXED.plain(config)[0][name] == end
        with pytest.raises(ht.SpaceError, match=f"'{name}' must"):
            MIXED.to_unit({**LOW, name: end * (1 + way * 1e-9)})


@pytest.mark.parametrize("config", [LOW, HIGH], ids=["low", "high"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_config_of_numbers_of_any_kind(kind: str, config: dict[str, Any]) -> None:
    """At the ends, where a short float may lie outside by its own rounding."""
    real, whole = KINDS[kind]
    convert = {float: real, int: whole, str: np.str_, bool: np.bool_}
    given = {name: convert[type(value)](value) for name, value in config.items()}
    found = MIXED.from_unit(MIXED.to_unit(given))[0]
    rounding = 2 * precision(given["rate"]) + 1e-9
    for name in ("rate", "log"):
        assert type(found[name]) is float and found[name] == pytest.approx(config[name], rel=rounding)
        del found[name]
    assert repr(found) == repr({name: config[name] for name in found})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", np.True_),
        ("rate", np.float32(0.7001)),
        ("rate", np.array([0.2, 0.3])),
        ("step", np.float32(0.15)),
        ("wide", np.float32(2.5)),
        ("number", np.float32(0.3)),
        ("number", np.array([0.1, 0.7])),
        ("switch", np.int64(1)),
        ("kind", torch.ones(2)),
    ],
)
def test_a_number_that_does_not_fit_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ht.SpaceError, match=f"'{name}' "):
        MIXED.to_unit({**LOW, name: value})


@pytest.mark.parametrize("configs", [[CONFIG, CONFIG], [CONFIG], (CONFIG,), torch.zeros(1, 2), None, 3])
def test_one_config_is_asked_for(surrogate: ht.Surrogate, trainer: ht.Trainer, configs: Any) -> None:
    asked: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: surrogate.evaluate(configs),
        "interval": lambda: surrogate.evaluate(configs, interval=True),
        "gradient": lambda: surrogate.gradient(configs, "error"),
        "materialize": lambda: surrogate.materialize(configs),
        "network": lambda: trainer.network(configs),
        "resolve": lambda: ht.nn.resolve(network(), configs),
        "curve": lambda: plots.response_curve_data(surrogate, "error", "decay", config=configs),
    }
    for name, ask in asked.items():
        with pytest.raises(ht.SpaceError, match=r"One config is asked for here.* but got") as caught:
            ask()
        assert name == "resolve" or "evaluate_batch" in str(caught.value)


@pytest.mark.parametrize("configs", [None, 3, torch.tensor(1.0)])
def test_configs_that_are_none(surrogate: ht.Surrogate, configs: Any) -> None:
    with pytest.raises(ht.SpaceError, match="Configs must be a list of dicts"):
        surrogate.evaluate_batch(configs)


def test_a_plain_network_has_plain_numbers(surrogate: ht.Surrogate) -> None:
    made = surrogate.materialize({"decay": np.float32(0.01), "dropout": torch.tensor(0.25)})
    assert type(made[2].p) is float and made[2].p == 0.25


# Units


@pytest.mark.parametrize(
    "convert",
    [
        lambda u: u.long(),
        lambda u: u.to(torch.int8),
        lambda u: u.half(),
        lambda u: u.numpy(),
        lambda u: u.int().numpy(),
        lambda u: u.numpy().astype(np.float32)[::1],
        lambda u: np.flip(np.flip(u.numpy(), 0).copy(), 0),
        lambda u: u.tolist(),
    ],
)
def test_units_of_any_kind(surrogate: ht.Surrogate, convert: Callable[[Tensor], Any]) -> None:
    units = torch.tensor([[0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    expected = surrogate.evaluate_units(units)
    found = surrogate.evaluate_units(convert(units))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert SPACE.from_unit(convert(units)) == SPACE.from_unit(units)


def test_whole_units_are_snapped_and_decoded_as_floats() -> None:
    ends = torch.tensor([[0] * len(MIXED), [1] * len(MIXED)])
    assert MIXED.check_units(ends).dtype == torch.float64
    assert torch.equal(MIXED.snap(ends), MIXED.snap(ends.double()))
    for name, column in MIXED.decode(ends).items():
        assert torch.equal(column, MIXED.decode(ends.double())[name])


@pytest.mark.parametrize(
    "units",
    [torch.ones(1, 2, dtype=torch.bool), np.ones((1, 2), dtype=bool), torch.ones(1, 2) * 1j, "u", [["a", "b"]], None],
)
def test_units_that_are_no_numbers(surrogate: ht.Surrogate, units: Any) -> None:
    for ask in (SPACE.from_unit, surrogate.evaluate_units):
        with pytest.raises(ht.SpaceError, match="Units must be"):
            ask(units)


# Seeds and counts


def counts(surrogate: ht.Surrogate) -> dict[str, Callable[[Any], Any]]:
    """What takes a whole number that may be 16, by the name of the argument and where it is taken."""
    quick: dict[str, Any] = {"candidates": 16, "starts": 1, "steps": 0}
    return {
        "n: sample": lambda n: SPACE.sample(n).tolist(),
        "seed: sample": lambda n: [SPACE.sample(2, seed=n, method=m).tolist() for m in ("sobol", "random")],
        "seed: hypernetwork": lambda n: hypernet(seed=n).state_dict()["heads.weight"].tolist(),
        "trunk: hypernetwork": lambda n: ht.HyperNetwork(network(), SPACE, trunk=(n,)).widths,
        "rank: head": lambda n: ht.LowRank(rank=n),
        "epochs: options": lambda n: Options(epochs=n),
        "seed: options": lambda n: Options(seed=n),
        "settings_per_step: options": lambda n: Options(settings_per_step=n),
        "accumulate: options": lambda n: Options(accumulate=n),
        "validate_every: options": lambda n: Options(validate_every=n),
        "epochs: recipe": lambda n: ht.Recipe(epochs=n),
        "candidates: optimize": lambda n: surrogate.optimize("error", **{**quick, "candidates": n}),
        "starts: optimize": lambda n: surrogate.optimize("error", **{**quick, "starts": n}),
        "steps: optimize": lambda n: surrogate.optimize("error", **{**quick, "steps": n}),
        "seed: optimize": lambda n: surrogate.optimize("error", **quick, seed=n),
        "candidates: front": lambda n: surrogate.pareto_front(["error"], candidates=n),
        "seed: front": lambda n: surrogate.pareto_front(["error"], candidates=4, seed=n),
        "bases: responses": lambda n: surrogate.responses(bases=n),
        "points: emulator": lambda n: quietly(lambda: surrogate.emulator(points=n, progress=False).errors),
        "seed: emulator": lambda n: quietly(lambda: surrogate.emulator(points=16, seed=n, progress=False).errors),
        "resolution: curve": lambda n: plots.response_curve_data(
            surrogate, "error", "decay", config=CONFIG, resolution=n
        ).values.tolist(),
        "memory_budget: evaluator": lambda n: (
            ht.Surrogate(hypernet(), memory_budget=n, **validation())._evaluate.memory_budget
        ),
    }


def quietly(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ht.HypertuneWarning)
        return call()


NAMES = list(counts(None))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_number_of_numpy_or_pytorch_counts_as_pythons(surrogate: ht.Surrogate, name: str) -> None:
    call = counts(surrogate)[name]
    expected = call(16)
    for given in (np.int64(16), torch.tensor(16)):
        assert repr(call(given)) == repr(expected)  # not one of NumPy's is kept


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", [True, 16.0, "16"], ids=ids)
def test_what_is_no_whole_number_is_refused_by_name(surrogate: ht.Surrogate, name: str, given: Any) -> None:
    argument = name.split(":")[0]
    with pytest.raises(ht.HypertuneError, match=f"`{argument}` must be a (whole number|non-empty sequence)"):
        counts(surrogate)[name](given)


def test_numbers_of_numpy_in_training(tmp_path: Path) -> None:
    """What is kept of them is Python's, so that a run is resumed as what it was."""
    options = {"seed": 3, "epochs": 2, "settings_per_step": 2, "gradient_clip": 0.5, "endpoints": 0.25}
    of_numpy = {
        "seed": np.int64(3),
        "epochs": np.int32(2),
        "settings_per_step": np.uint8(2),
        "gradient_clip": np.float32(0.5),
        "endpoints": np.float32(0.25),
    }
    whole = fit(**options)
    assert_same_state(whole.hypernet, fit(checkpoint=tmp_path, **of_numpy).hypernet)
    assert_same_state(whole.hypernet, fit(checkpoint=tmp_path, resume=True, **options).hypernet)


@pytest.mark.parametrize("name", ["gradient_clip", "endpoints"])
@pytest.mark.parametrize("given", [True, "0.5"], ids=ids)
def test_an_option_that_is_no_number(name: str, given: Any) -> None:
    with pytest.raises(ht.OptionError, match=f"`{name}` must be a number, but got"):
        Options(**{name: given})


def test_learning_rates_of_numpy_are_kept_and_told_apart(tmp_path: Path) -> None:
    """A run, and a real training, are not the same with another one."""

    def at(rate: float) -> Any:
        return lambda parameters: torch.optim.SGD(parameters, lr=np.float32(rate))

    fit(checkpoint=tmp_path, optimizer=at(0.05))
    fit(checkpoint=tmp_path, optimizer=at(0.05), resume=True)
    with pytest.raises(ht.StorageError, match=r"optimizer\.groups\.0\.lr was 0\.05.*, is 0\.0199"):
        fit(checkpoint=tmp_path, optimizer=at(0.02), resume=True)
    assert described({"a": np.float32(0.5), "b": np.array([1, 2]), "c": np.True_}) == {"a": 0.5, "b": [1, 2], "c": True}

    def trained(rate: float) -> str:
        recipe = ht.Recipe(epochs=1, optimizer=lambda parameters, config: at(rate)(parameters), schedule=None)
        trainer = ht.Trainer(network(), SPACE, loss, loader(), recipe=recipe, folder=tmp_path, **validation())
        trainer.train([CONFIG], progress=False)
        return repr(trainer)

    assert ["finished=1" in trained(rate) for rate in (0.05, 0.05, 0.02)] == [True, True, False]


def test_numbers_of_numpy_in_real_training(trainer: ht.Trainer, surrogate: ht.Surrogate) -> None:
    two = trainer.train([CONFIG], seeds=2, progress=False)["error"]
    done = repr(trainer)
    for seeds in (np.int64(2), torch.tensor(2), np.arange(2), [np.int64(0), np.uint8(1)], torch.arange(2), range(2)):
        assert np.array_equal(trainer.train([CONFIG], seeds=seeds, progress=False)["error"], two)
    assert repr(trainer) == done  # nothing was trained again
    left, right = trainer.network(CONFIG, seed=1), trainer.network(CONFIG, seed=np.int64(1))
    assert_same_state(left, right)
    for seeds in (True, [True], 0, [], [0.5], None):
        with pytest.raises(ht.OptionError, match="`seeds` must be a whole number"):
            trainer.train([CONFIG], seeds=seeds, progress=False)
    with pytest.raises(ht.OptionError, match="`seed` must be a whole number"):
        trainer.network(CONFIG, seed=None)  # type: ignore[arg-type]


def test_numbers_of_numpy_in_a_verification(surrogate: ht.Surrogate) -> None:
    own = fit(epochs=1, **validation())
    call = {"settings": np.int64(2), "best": np.int64(1), "seeds": np.int64(1), "seed": np.int64(3)}
    report = quietly(lambda: own.verify("error", progress=False, **call))
    plainly = quietly(lambda: own.verify("error", progress=False, settings=2, best=1, seeds=1, seed=3))
    assert report.configs == plainly.configs
    for bad, message in (
        ({"settings": True}, "`settings` must be a whole number of at least 1, but got True"),
        ({"settings": 4, "best": 5}, "`best` must be a whole number between 0 and 4, but got 5"),
        ({"seed": 0.5}, "`seed` must be a whole number between"),
    ):
        with pytest.raises(ht.SpaceError, match=message):
            own.verify("error", **bad)  # type: ignore[arg-type]


def test_a_large_seed_has_generators_of_its_own() -> None:
    """Seeds of epochs are multiples, which no generator takes as they are."""
    drawn = []
    for seed in (2**62 + 1, 2**62 + 2, -(2**62) + 3):
        with torch.random.fork_rng():
            set_seed(seed * 1_000_003, (), torch.device("cpu"))
            drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == 3
    fit(epochs=1, seed=2**62)
