"""Bad input: each kind meets an error, or a warning, that shows the value received and says what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from small_problem import CONFIG, SPACE, data, fit, hypernet, loader, loss, metric, network, plain_network, validation
from torch import Tensor, nn

import hypertune_mip as ht

RATE = FloatDistribution(0.0, 0.5)
MIXED = ht.SearchSpace(
    {
        "decay": FloatDistribution(1e-4, 1.0, log=True),
        "step": FloatDistribution(0.0, 1.0, step=0.25),
        "count": IntDistribution(1, 9, step=4),
        "log": IntDistribution(1, 64, log=True),
        "kind": CategoricalDistribution(["a", "b"]),
    }
)
GOOD = {"decay": 0.1, "step": 0.5, "count": 5, "log": 8, "kind": "a"}


@pytest.fixture(scope="module")
def surrogate() -> ht.Surrogate:
    return fit(epochs=1, **validation())


# Configs and units


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decya": 0.1}, r"exactly \['decay', .*unknown \['decya'\], missing \[\]"),
        ({"decay": math.nan}, r"'decay' must be finite, but got nan.*failed trial"),
        ({"decay": math.inf}, r"'decay' must be finite, but got inf"),
        ({"count": -math.inf}, r"'count' must be finite, but got -inf"),
        ({"decay": 2.0}, r"'decay' must lie in \[0\.0001, 1\], but got 2\.0.*wider one"),
        ({"decay": 0.0}, r"'decay' must lie in \[0\.0001, 1\], but got 0\.0"),
        ({"count": 13}, r"'count' must lie in \[1, 9\], but got 13"),
        ({"log": 65}, r"'log' must lie in \[1, 64\], but got 65"),
        ({"decay": "0.1"}, r"'decay' takes a number, but got '0\.1' of type str"),
        ({"decay": None}, r"'decay' takes a number, but got None of type NoneType"),
        ({"decay": True}, r"'decay' takes a number, but got True of type bool"),
        ({"decay": torch.ones(2)}, r"'decay' takes a number, but got tensor"),
        ({"step": 0.3}, r"'step' must be 0 plus a multiple of 0\.25, but got 0\.3\. The nearest value is 0\.25"),
        ({"count": 4}, r"'count' must be 1 plus a multiple of 4, but got 4\.0\. The nearest value is 5"),
        ({"log": 2.5}, r"'log' must be a whole number, but got 2\.5"),
        ({"kind": "c"}, r"'kind' must be one of \['a', 'b'\], but got 'c'"),
        ({"kind": 0}, r"'kind' must be one of \['a', 'b'\], but got 0"),
    ],
)
def test_a_config_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    MIXED.to_unit(GOOD)
    with pytest.raises(ht.SpaceError, match=f"(?s){message}"):
        MIXED.to_unit({**GOOD, **changes})


def test_a_config_without_a_name() -> None:
    with pytest.raises(ht.SpaceError, match=r"unknown \[\], missing \['kind'\]"):
        MIXED.to_unit({name: value for name, value in GOOD.items() if name != "kind"})


@pytest.mark.parametrize("config", [[0.1, 0.5], "decay", None, 3])
def test_a_config_that_is_no_dict(config: Any) -> None:
    with pytest.raises(ht.SpaceError, match=r"must be a dict.* but got"):
        MIXED.to_unit([config])


@pytest.mark.parametrize("method", ["evaluate", "materialize"])
def test_a_surrogate_refuses_what_it_was_not_trained_for(surrogate: ht.Surrogate, method: str) -> None:
    ask = getattr(surrogate, method)
    with pytest.raises(ht.SpaceError, match=r"'dropout' must lie in \[0, 0\.5\], but got 0\.6.*learned\s+nothing"):
        ask({**CONFIG, "dropout": 0.6})
    with pytest.raises(ht.SpaceError, match=r"missing \['dropout'\]"):
        ask({"decay": 0.1})


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (torch.zeros(2), r"shape \(S, 2\).*but got \(2,\)"),
        (torch.zeros(4, 3), r"shape \(S, 2\).*but got \(4, 3\)"),
        (torch.tensor([[0.5, 0.5], [0.5, 1.25]]), r"in \[0, 1\], but row 1 has 1\.25 for 'dropout'"),
        (torch.tensor([[-0.25, 0.5]]), r"row 0 has -0\.25 for 'decay'"),
        (torch.tensor([[math.nan, 0.5]]), r"row 0 has nan for 'decay'"),
    ],
)
def test_units_that_do_not_fit(surrogate: ht.Surrogate, units: Tensor, message: str) -> None:
    for ask in (SPACE.from_unit, surrogate.evaluate_units):
        with pytest.raises(ht.SpaceError, match=message):
            ask(units)


# Spaces


def test_an_empty_space() -> None:
    with pytest.raises(ht.SpaceError, match=r"at least one hyperparameter, but got none.*FloatDistribution"):
        ht.SearchSpace({})


@pytest.mark.parametrize("distribution", [(0.0, 1.0), None, torch.distributions.Uniform(0.0, 1.0), "float"])
def test_what_is_no_distribution_of_optuna(distribution: Any) -> None:
    with pytest.raises(ht.SpaceError, match=r"'a' must be one of Optuna's distributions, but got .*Write for example"):
        ht.SearchSpace({"a": distribution})


@pytest.mark.parametrize("name", ["", 3, None])
def test_a_name_that_is_no_str(name: Any) -> None:
    with pytest.raises(ht.SpaceError, match=f"non-empty str, but got {name!r}"):
        ht.SearchSpace({name: RATE})


STEERS = ["lr", "learning_rate", "batchSize", "batch-size", "optimizer", "epochs", "max_steps", "encoder_lr", "LR"]


@pytest.mark.parametrize("name", STEERS)
def test_what_steers_training_is_refused_by_name(name: str) -> None:
    with pytest.raises(ht.SpaceError, match=rf"'{name}' cannot be amortised.*steers.*outer Optuna study"):
        ht.SearchSpace({"decay": RATE, name: RATE})


@pytest.mark.parametrize("name", ["hidden_size", "num_layers", "hiddenSize", "depth", "activation"])
def test_what_changes_the_network_is_refused_by_name(name: str) -> None:
    with pytest.raises(ht.SpaceError, match=rf"'{name}' cannot be amortised.*changes the primary network.*outer"):
        ht.SearchSpace({name: RATE})


def test_i_know_better() -> None:
    assert ht.SearchSpace({"lr": RATE, "depth": RATE}, amortizable=("lr", "depth")).names == ("lr", "depth")
    with pytest.raises(ht.SpaceError, match=r'amortizable=\("depth",\)'):
        ht.SearchSpace({"lr": RATE, "depth": RATE}, amortizable=("lr",))
    with pytest.raises(ht.SpaceError, match=r"`amortizable` names \['rate'\], which the space does not hold"):
        ht.SearchSpace({"lr": RATE}, amortizable=("lr", "rate"))


@pytest.mark.parametrize("name", ["dropout", "lr_penalty", "smoothness", "stepwise", "width_penalty", "encoder_decay"])
def test_a_name_that_only_resembles_a_refused_one_is_taken(name: str) -> None:
    assert ht.SearchSpace({name: RATE}).names == (name,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": -1}, r"`n` must be a whole number of at least 0, but got -1"),
        ({"n": 2.0}, r"`n` must be a whole number of at least 0, but got 2\.0"),
        ({"n": True}, r"`n` must be a whole number of at least 0, but got True"),
        ({"n": 2, "seed": None}, r"`seed` must be a whole number between .* but got None"),
        ({"n": 2, "seed": 2**70}, r"`seed` must be a whole number between .* but got 1180591620717411303424"),
        ({"n": 2, "endpoints": False}, r"`endpoints` must be a number, but got False"),
        ({"n": 2, "method": "grid"}, r"\"sobol\" or \"random\", but got 'grid'"),
        ({"n": 2, "endpoints": 1.0}, r"`endpoints` must lie in \[0, 1\), but got 1\.0"),
    ],
)
def test_a_sample_that_cannot_be_drawn(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ht.SpaceError, match=message):
        SPACE.sample(**options)


# Losses


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights(bad: float) -> None:
    good: dict[str, Tensor] = {}
    net = hypernet()
    calls = 0

    def keep(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            good.update({name: value.clone() for name, value in net.state_dict().items()})

    def breaks(model: nn.Module, batch: Any, config: Any) -> Tensor:
        nonlocal calls
        calls += 1
        value = loss(model, batch, config)
        return torch.where(config["dropout"] > 0.25, bad, 1.0) * value if calls == 8 else value

    with pytest.raises(ht.TrainingError, match=rf"(?s)loss is {bad} in epoch 3 at the setting .*gradient_clip") as info:
        fit(net, loss=breaks, epochs=4, callbacks=[keep])
    text = str(info.value)
    assert 0.25 < float(text.split("'dropout': ")[1].split("}")[0]) <= 0.5  # the setting that broke
    assert good and all(torch.equal(good[name], value) for name, value in net.state_dict().items())
    assert not net.training


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda value: value.expand(3), r"0-d floating-point tensor.*got shape \(3,\).*Take the mean"),
        (lambda value: value[None], r"got shape \(1,\)"),
        (lambda value: (value > 0).long(), r"got shape \(\), torch\.int64"),
        (lambda value: 1.0, r"but got 1\.0"),
        (lambda value: None, r"but got None"),
        (lambda value: {"loss": value}, r"but got \{'loss'"),
    ],
)
def test_a_loss_that_is_no_scalar_tensor(result: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ht.LossError, match=f"(?s){message}"):
        fit(loss=lambda model, batch, config: result(loss(model, batch, config)))


def test_a_loss_that_ignores_a_hyperparameter_is_warned_of() -> None:
    def deaf(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return ht.losses.mean_squared_error(model(batch[0]), batch[1])

    with pytest.warns(ht.HypertuneWarning, match=r"no metric responds to 'decay': neither the loss.*config\['decay'\]"):
        fit(loss=deaf)


def test_a_loss_that_only_asks_whether_a_name_is_there_ignores_it() -> None:
    def deaf(model: nn.Module, batch: Any, config: Any) -> Tensor:
        assert "decay" in config
        return ht.losses.mean_squared_error(model(batch[0]), batch[1])

    with pytest.warns(ht.HypertuneWarning, match="no metric responds to 'decay'"):
        fit(loss=deaf)


def test_a_loss_that_reads_a_name_which_the_space_lacks() -> None:
    def typo(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return loss(model, batch, config) * config["decya"]

    with pytest.raises(ht.SpaceError, match=r"no hyperparameter 'decya'; the space holds \['decay', 'dropout'\]"):
        fit(loss=typo)


def test_targets_that_would_broadcast() -> None:
    x, y = data().tensors
    with pytest.raises(ht.LossError, match=r"same shape, but got .*Reshape"):
        fit(train_loader=[(x, y.squeeze(1))])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ht.losses.l2(nn.Linear(2, 2), where="head.*"),
            r"where='head\.\*'` matches none of .*\['weight', 'bias'\]",
        ),
        (lambda: ht.losses.l1(torch.ones(2)), r"needs the model.*but got Tensor"),
        (lambda: ht.losses.weighted_sum({"a": torch.ones(())}, {"b": 1.0}), r"without weight \['a'\]"),
        (lambda: ht.losses.weighted_sum({}, {"b": 1.0}), r"losses \[\]"),
        (lambda: ht.losses.mixup(torch.ones(2, 1), torch.ones(2).long(), strength=1.0), r"mixup needs `classes`"),
    ],
)
def test_a_library_loss_that_is_misused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ht.LossError, match=message):
        call()


# Metrics


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda value: value, r"0-d tensors by name.*but got Tensor"),
        (lambda value: {}, r"but got \{\}"),
        (lambda value: {"error": value.expand(2)}, r"\{'error': \(2,\)\}"),
        (lambda value: {"error": 1.0}, r"\{'error': 1\.0\}"),
    ],
)
def test_a_metric_that_is_no_dict_of_scalars(result: Callable[[Tensor], Any], message: str) -> None:
    bad = {"metric": lambda model, batch: result(model(batch[0]).mean()), "val_loader": loader()}
    with pytest.raises(ht.LossError, match=f"(?s){message}"):
        fit(**bad)


@pytest.mark.parametrize("given", ["metric", "val_loader"])
def test_metric_and_validation_data_belong_together(given: str) -> None:
    with pytest.raises(ht.DataError, match=r"`metric` and `val_loader` belong together"):
        fit(**{given: validation()[given]})


def test_a_surrogate_without_validation_data_evaluates_nothing() -> None:
    with pytest.raises(ht.DataError, match=r"no validation data\. Pass `metric` and `val_loader`"):
        fit(epochs=1).evaluate(CONFIG)


def test_an_unknown_metric(surrogate: ht.Surrogate) -> None:
    message = r"metric 'eror' is unknown; `metric` returns \['error', 'size'\]"
    with pytest.raises(ht.SpaceError, match=message):
        surrogate.gradient(CONFIG, "eror")
    with pytest.raises(ht.SpaceError, match=message):
        surrogate.optimize("eror", candidates=2, starts=1)
    with pytest.raises(ht.SpaceError, match=message):
        surrogate.pareto_front(["error", "eror"], candidates=2)


@pytest.mark.parametrize("metrics", [[], "error"])
def test_a_front_of_no_list_of_metrics(surrogate: ht.Surrogate, metrics: Any) -> None:
    with pytest.raises(ht.SpaceError, match=f"list of metric names, but got {metrics!r}".replace("[", r"\[")):
        surrogate.pareto_front(metrics)


def test_a_search_without_candidates(surrogate: ht.Surrogate) -> None:
    with pytest.raises(ht.SpaceError, match=r"`candidates` must be a whole number of at least 1, but got 0"):
        surrogate.optimize("error", candidates=0)


# Loaders


@pytest.mark.parametrize("where", ["train_loader", "val_loader"])
def test_an_empty_loader(where: str) -> None:
    with pytest.raises(ht.DataError, match=r"loader holds no (batch|example)"):
        fit(**{"metric": metric, "val_loader": loader(), "train_loader": loader()} | {where: []})


def test_a_loader_that_drops_its_only_batch() -> None:
    with pytest.raises(ht.DataError, match=r"smaller than one batch with drop_last"):
        fit(train_loader=loader(batch_size=64, drop_last=True))


def test_a_generator_is_used_up_after_one_epoch() -> None:
    with pytest.raises(ht.DataError, match=r"no batch in epoch 2.*generator is used up"):
        fit(train_loader=(batch for batch in loader(shuffle=False)), schedule=None)


def test_a_batch_below_the_settings_a_step() -> None:
    with pytest.raises(ht.DataError, match=r'8 examples cannot be split over 9 settings.*larger batches.*"full"'):
        fit(settings_per_step=9)
    fit(settings_per_step=9, batching="full", epochs=1)


@pytest.mark.parametrize("batch", [(), ["a", None], {"x": torch.tensor(1.0)}])
@pytest.mark.parametrize("where", ["train_loader", "val_loader"])
def test_a_batch_that_holds_nothing_to_count_examples_by(where: str, batch: Any) -> None:
    with pytest.raises(ht.DataError, match=r"must hold tensors whose first dimension is the examples"):
        fit(**{**validation(), where: [batch]})


@dataclass
class Beside:
    """A part of a batch that keeps a tensor beside its fields."""

    x: Tensor

    def __post_init__(self) -> None:
        self.weights = torch.ones(8)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"names": ["a"] * 8}, r"other objects \['str'\].*batching=\"full\""),
        ({"more": Beside(torch.zeros(8))}, r"other objects \['Beside.weights'\]"),
        ({"edges": torch.zeros(2, 30), "batch_size": 8}, r"first dimensions \[2, 8\].*batching=\"full\""),
    ],
)
def test_a_batch_that_cannot_be_divided(more: dict[str, Any], message: str) -> None:
    batch = {"x": torch.ones(8, 3), "y": torch.ones(8, 1), **more}

    def of_dict(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return loss(model, (batch["x"], batch["y"]), config)

    fit(train_loader=[batch], loss=of_dict, epochs=1)
    with pytest.raises(ht.DataError, match=message):
        fit(train_loader=[batch], loss=of_dict, batching="split")


# The first arguments


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ht.fit(plain_network(), loss, loader()),
            ht.NetworkError,
            r"plain network: pass `space`.*HyperNetwork",
        ),
        (lambda: ht.fit(SPACE, loss, loader()), ht.NetworkError, r"takes a HyperNetwork.*got a SearchSpace"),
        (lambda: ht.fit(hypernet(), loader(), loss), ht.LossError, r"`loss` must be a function.*got a DataLoader"),
        (lambda: ht.fit(hypernet(), nn.MSELoss(), loader()), ht.LossError, r"MSELoss compares outputs with targets"),
        (lambda: ht.fit(hypernet(), nn.MSELoss, loader()), ht.LossError, r"got the class MSELoss"),
        (lambda: ht.fit(hypernet(), loss, loss), ht.DataError, r"`train_loader`.*got the function loss"),
        (
            lambda: ht.fit(hypernet(), loss, loader(), metric={"error": loss}, val_loader=loader()),
            ht.LossError,
            r"`metric` must be a function.*got a dict",
        ),
        (
            lambda: ht.fit(hypernet(), loss, loader(), metric=metric, val_loader=metric),
            ht.DataError,
            r"`val_loader`.*got the function metric",
        ),
        (
            lambda: ht.fit(hypernet(), loss, loader(), space=ht.SearchSpace({"a": FloatDistribution(0, 1)})),
            ht.OptionError,
            "space of its own",
        ),
        (lambda: ht.HyperNetwork(SPACE, plain_network()), ht.NetworkError, r"primary network.*got a SearchSpace"),
        (lambda: ht.HyperNetwork(plain_network(), dict(SPACE)), ht.SpaceError, r"must be a SearchSpace.*got a dict"),
        (lambda: ht.HyperNetwork(hypernet(), SPACE), ht.NetworkError, "HyperNetwork already"),
    ],
)
def test_arguments_that_are_mixed_up(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_plain_network_with_a_space_is_fitted() -> None:
    given = network()
    surrogate = ht.fit(given, loss, loader(), space=SPACE, epochs=1, device="cpu", progress=False)
    assert surrogate.space == SPACE
    assert all(torch.equal(p, q) for p, q in zip(given.parameters(), network().parameters(), strict=True))


# Options of fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"`epochs` must be a whole number of at least 1, but got 0"),
        ({"epochs": 2.5}, r"`epochs` must be a whole number of at least 1, but got 2\.5"),
        ({"epochs": True}, r"`epochs`.* but got True"),
        ({"settings_per_step": 0}, r"`settings_per_step`.* but got 0"),
        ({"settings_per_step": "many"}, r"`settings_per_step`.* but got 'many'"),
        ({"batching": "whole"}, r"`batching` must be one of \('auto', 'split', 'full'\), but got 'whole'"),
        ({"precision": "int8"}, r"`precision` must be one of .* but got 'int8'"),
        ({"execution": "fast"}, r"`execution` must be one of .* but got 'fast'"),
        ({"endpoints": 1.0}, r"`endpoints` must lie in \[0, 1\), but got 1\.0"),
        ({"endpoints": -0.1}, r"`endpoints` must lie in \[0, 1\), but got -0\.1"),
        ({"gradient_clip": 0.0}, r"`gradient_clip` must be positive or None, but got 0\.0"),
        ({"validate_every": 0}, r"`validate_every`.* but got 0"),
        ({"validation_settings": 0}, r"`validation_settings`.* but got 0"),
        ({"checkpoint_every": 0}, r"`checkpoint_every`.* but got 0"),
        ({"resume": True}, r"`resume=True` needs `checkpoint`"),
    ],
)
def test_an_option_of_fit_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ht.OptionError, match=message):
        fit(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ht.OptionError, match="`device='cuda'` was asked for, but PyTorch sees no CUDA device"):
        fit(device="cuda")


def test_resuming_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(ht.StorageError, match=r"There is no .*checkpoint\.json"):
        fit(checkpoint=tmp_path / "none", resume=True)


def test_every_error_is_one_that_the_ecosystem_expects() -> None:
    expected = {
        ht.SpaceError: ValueError,
        ht.NetworkError: ValueError,
        ht.DataError: ValueError,
        ht.LossError: ValueError,
        ht.OptionError: ValueError,
        ht.TrainingError: RuntimeError,
        ht.StorageError: OSError,
        ht.MissingExtraError: ImportError,
        ht.HypertuneWarning: UserWarning,
    }
    for ours, builtin in expected.items():
        assert issubclass(ours, builtin)
        assert ours is ht.HypertuneWarning or issubclass(ours, ht.HypertuneError)
