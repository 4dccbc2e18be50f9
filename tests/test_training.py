"""Training: shapes of a step, randomness, records, precision and a collapse that is reported."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import FloatDistribution
from small_problem import (
    EXAMPLES,
    SPACE,
    InterruptedByTest,
    assert_same_state,
    data,
    fit,
    hypernet,
    interrupt_at,
    loader,
    loss,
    own_generator,
    plain_network,
    sampler_with_generator,
    validation,
)
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.training import Options, train
from hypertune_mip.training.settings import SettingsStream
from hypertune_mip.training.step import TrainingStep, automatic_settings, is_small, settings_of_a_step, split_batch
from hypertune_mip.training.strategy import SingleProcess

EPOCHS = 4


def same_state(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


# What one step sees


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batching": "split", "settings_per_step": 4}, [(2, 3), (2, 3), (1, 3)]),
        ({"batching": "full", "settings_per_step": 4}, [(8, 3), (8, 3), (4, 3)]),
        ({"settings_per_step": 4}, [(2, 3), (2, 3), (1, 3)]),
        ({}, [(8, 3), (8, 3), (8, 3), (4, 3)]),  # the first batch is looked at: the network is small
    ],
)
def test_split_gives_each_setting_a_part_and_full_the_whole_batch(
    options: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    seen = []

    def spy(model: nn.Module, batch: Any, config: Any) -> Tensor:
        seen.append(tuple(batch[0].shape))
        return loss(model, batch, config)

    fit(loss=spy, epochs=1, **options)
    assert seen == expected


def test_split_cuts_in_order_and_leaves_the_rest_out() -> None:
    x = torch.arange(14).reshape(7, 2)
    got = split_batch({"x": x, "y": torch.arange(7)}, 3)
    assert got["y"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(got["x"], x[:6].reshape(3, 2, 2))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1, False)),
        ({"small": True}, (3, False)),
        ({"settings_per_step": 5}, (5, True)),
        ({"batching": "full"}, (1, False)),
        ({"batching": "split"}, (10, True)),
        ({"settings_per_step": 1, "batching": "full"}, (1, False)),
    ],
)
def test_settings_of_a_step(options: dict[str, Any], expected: tuple[int, bool]) -> None:
    small = options.pop("small", False)
    assert settings_of_a_step(100, 100, Options(**options), small=small) == expected


@pytest.mark.parametrize(
    ("network", "shape", "small"),
    [
        (lambda: nn.Linear(3, 10), (50, 3), True),
        (lambda: nn.Linear(196, 256), (100, 196), True),
        (lambda: nn.Linear(196, 256), (1000, 196), False),
        (lambda: nn.Conv2d(3, 16, 3), (32, 3, 32, 32), False),  # few weights, much work
    ],
)
def test_a_network_is_small_by_the_work_it_does(network: Any, shape: tuple[int, ...], small: bool) -> None:
    def loss(model: nn.Module, batch: Any, config: Any) -> Any:
        return model(batch).square().mean()

    step = TrainingStep(hypernet(network=network()), loss)
    state = torch.get_rng_state()
    assert is_small(step, torch.zeros(shape)) is small
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("size", "settings"), [(1, 1), (3, 1), (7, 2), (16, 4), (100, 10), (128, 8), (1000, 10)])
def test_automatic_settings_are_near_the_root_and_divide_the_batch_where_they_can(size: int, settings: int) -> None:
    assert automatic_settings(size) == settings


@pytest.mark.parametrize("batch_size", [1, 3, 7, EXAMPLES])
@pytest.mark.parametrize("batching", ["split", "full"])
def test_odd_batch_sizes_train(batch_size: int, batching: str) -> None:
    surrogate = fit(train_loader=loader(batch_size=batch_size), batching=batching)
    assert surrogate.history[-1]["step"] == 3 * -(-EXAMPLES // batch_size)


def test_a_last_batch_below_the_settings_a_step_uses_as_many_settings_as_it_has_examples() -> None:
    x, y = data().tensors
    seen = []

    def spy(model: nn.Module, batch: Any, config: Any) -> Tensor:
        seen.append(len(batch[0]))
        return loss(model, batch, config)

    fit(loss=spy, train_loader=[(x[:8], y[:8]), (x[8:11], y[8:11])], settings_per_step=8, epochs=2)
    assert seen == [1, 1, 1, 1]


def test_batches_may_be_trees_or_single_tensors() -> None:
    x, y = data().tensors

    def on_tree(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return loss(model, (batch["x"], batch["more"][0]), config)

    def on_tensor(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return loss(model, (batch[:, :3], batch[:, 3:]), config)

    tree = fit(loss=on_tree, train_loader=[{"x": x, "more": [y]}])
    tensor = fit(loss=on_tensor, train_loader=[torch.cat([x, y], 1)])
    assert_same_state(tree.hypernet, tensor.hypernet)


# Randomness


def test_fit_leaves_the_global_generator_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        before = torch.get_rng_state()
        fit(**validation())
        assert torch.equal(torch.get_rng_state(), before)


def test_a_stopped_fit_leaves_the_global_generator_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        before = torch.get_rng_state()
        with pytest.raises(InterruptedByTest):
            fit(callbacks=[interrupt_at(2)])
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make_loader", [loader, own_generator, sampler_with_generator])
def test_the_seed_alone_decides(make_loader: Callable[[], Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = fit(train_loader=make_loader())
        torch.manual_seed(2)
        used = make_loader()
        list(used)
        second = fit(train_loader=used)
    assert_same_state(first.hypernet, second.hypernet)
    other = fit(train_loader=make_loader(), seed=1)
    assert not same_state(first.hypernet, other.hypernet)


def test_settings_draw_their_noise_apart() -> None:
    """With the same batch and a rate that does not differ, only dropout can tell settings apart."""
    space = ht.SearchSpace({"decay": FloatDistribution(0.1, 0.1), "dropout": FloatDistribution(0.5, 0.5)})
    net = ht.HyperNetwork(nn.Sequential(nn.Linear(3, 5), ht.nn.Dropout("dropout")), space, trunk=(4,)).train()
    x = torch.ones(6, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = net(lambda model, batch, config: model(batch), space.sample(2), x, split=False)
    assert not torch.equal(first, second)


# Records and callbacks

KEYS = {"epoch", "step", "loss", "learning_rate", "seconds"}


def test_callbacks_get_every_epochs_record() -> None:
    records: list[dict[str, Any]] = []
    surrogate = fit(callbacks=[records.append], epochs=EPOCHS)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["step"] for record in records] == [3, 6, 9, 12]
    assert all(set(record) == KEYS for record in records)
    assert all(isinstance(value, (int, float)) for record in records for value in record.values())
    assert records == surrogate.history


def test_the_default_schedule_ends_at_a_rate_of_zero_and_none_keeps_it() -> None:
    assert fit().history[-1]["learning_rate"] == pytest.approx(0.0, abs=1e-12)
    rates = [record["learning_rate"] for record in fit(schedule=None).history]
    assert rates == [6e-3] * 3


@pytest.mark.parametrize(("every", "epochs"), [(None, [2, 4, 6, 7]), (3, [3, 6, 7]), (1, [1, 2, 3, 4, 5, 6, 7])])
def test_validation_figures_are_there_when_due(every: int | None, epochs: list[int]) -> None:
    surrogate = fit(**validation(), epochs=7, validate_every=every)
    names = {f"validation/{name}/{what}" for name in ("error", "size") for what in ("best", "mean")}
    assert [record["epoch"] for record in surrogate.history if names <= set(record)] == epochs
    assert [record["epoch"] for record in surrogate.history if "validation/error/mean" in record] == epochs


def test_validation_figures_are_those_of_the_fixed_settings() -> None:
    surrogate = fit(**validation(), validation_settings=5, seed=4)
    values = surrogate.evaluate_units(SPACE.sample(5, seed=4))["error"]
    assert surrogate.history[-1]["validation/error/mean"] == pytest.approx(values.mean())
    assert surrogate.history[-1]["validation/error/best"] == pytest.approx(values.min())


def test_validating_does_not_change_training() -> None:
    assert_same_state(fit().hypernet, fit(**validation(), validate_every=1).hypernet)


def test_tensorboard_writes_an_event_file(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own imports
        pytest.importorskip("tensorboard")
        callback = ht.callbacks.TensorBoard(tmp_path)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    surrogate = fit(callbacks=[callback])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == KEYS - {"epoch"}
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 2, 3]
    assert [event.value for event in losses] == pytest.approx([record["loss"] for record in surrogate.history])


def test_the_progress_bar_shows_loss_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    fit(progress=True)
    shown = capsys.readouterr().err
    assert "9/9" in shown and "loss=" in shown


# Options that change a step


def test_clipping_bounds_the_whole_gradient() -> None:
    norms: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            squares = [p.grad.square().sum() for g in self.param_groups for p in g["params"] if p.grad is not None]
            norms.append(float(torch.stack(squares).sum().sqrt()))
            return super().step(closure)

    fit(optimizer=partial(Watched, lr=0.01), gradient_clip=0.05)
    assert norms and max(norms) == pytest.approx(0.05, rel=1e-3)
    norms.clear()
    fit(optimizer=partial(Watched, lr=0.01))
    assert max(norms) > 0.1


def test_accumulated_batches_are_one_large_batch() -> None:
    """Twice two settings on eight examples are four on sixteen."""
    x, y = data(32).tensors
    options: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=0.05), "normalize": False}
    nets = [hypernet(network=plain_network(), space=ht.SearchSpace({"decay": SPACE["decay"]})) for _ in range(3)]
    large, small = (list(zip(x.split(size), y.split(size), strict=True)) for size in (16, 8))
    whole = fit(nets[0], train_loader=large, settings_per_step=4, **options)
    summed = fit(nets[1], train_loader=small, settings_per_step=2, accumulate=2, **options)
    assert [r["step"] for r in summed.history] == [r["step"] for r in whole.history] == [2, 4, 6]
    assert not same_state(nets[0], nets[2])
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict(), rtol=1e-4, atol=1e-6)


def test_the_last_step_of_an_epoch_takes_the_batches_that_are_left() -> None:
    assert fit(train_loader=loader(batch_size=2), accumulate=4).history[-1]["step"] == 3 * 3  # 10 batches: 4, 4 and 2


@pytest.mark.parametrize("factory", [torch.optim.AdamW, torch.optim.RMSprop, partial(torch.optim.SGD, nesterov=False)])
def test_an_optimiser_comes_from_a_factory(factory: Callable[..., torch.optim.Optimizer]) -> None:
    used = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        used.append(factory(parameters, lr=0.01))
        return used[-1]

    net = hypernet()
    before = hypernet()
    fit(net, optimizer=optimizer)
    assert len(used) == 1
    assert not same_state(net, before)


def test_frozen_weights_do_not_move() -> None:
    net = hypernet(freeze_theta_0=True)
    before = {name: value.clone() for name, value in net.network.state_dict().items()}
    fit(net, optimizer=partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5))
    assert all(torch.equal(before[name], value) for name, value in net.network.state_dict().items())


class WithoutLength:
    """Batches that can be read once an epoch, of unknown number."""

    def __iter__(self) -> Iterator[Any]:
        return iter(loader(shuffle=False))


def test_a_loader_without_length_needs_to_go_without_schedule() -> None:
    with pytest.raises(ht.OptionError, match=r"WithoutLength has no length.*schedule=None"):
        fit(train_loader=WithoutLength())
    assert fit(train_loader=WithoutLength(), schedule=None).history[-1]["step"] == 9


def test_bfloat16_runs_on_the_cpu_and_stays_near_float32() -> None:
    products = set()

    def spy(model: nn.Module, batch: Any, config: Any) -> Tensor:
        products.add((batch[0] @ batch[0].mT).dtype)
        return loss(model, batch, config)

    half = fit(loss=spy, precision="bfloat16", epochs=5)
    full = fit(epochs=5)
    assert products == {torch.bfloat16}
    assert not same_state(half.hypernet, full.hypernet)
    assert all(parameter.dtype == torch.float32 for parameter in half.hypernet.parameters())
    assert half.history[-1]["loss"] == pytest.approx(full.history[-1]["loss"], rel=0.05)


def test_losses_below_zero_train() -> None:
    def log_likelihood(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return loss(model, batch, config).clamp_min(1e-6).log() - 3

    surrogate = fit(loss=log_likelihood, epochs=20)
    losses = [record["loss"] for record in surrogate.history]
    assert losses[0] < 0
    assert losses[-1] < losses[0] - 0.1


def test_a_double_network_trains_in_double() -> None:
    x, y = (tensor.double() for tensor in data().tensors)
    surrogate = fit(hypernet(network=plain_network().double(), space=ONLY_DECAY), train_loader=[(x, y)])
    assert surrogate.hypernet.dtype == torch.float64
    assert surrogate.history[-1]["loss"] < surrogate.history[0]["loss"]


# What is reported afterwards

ONLY_DECAY = ht.SearchSpace({"decay": FloatDistribution(1e-4, 1.0, log=True)})


def test_a_collapse_is_reported() -> None:
    def crushing(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return loss(model, batch, config) + 100 * ht.losses.l2(model)

    def error(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"error": validation()["metric"](model, batch)["error"]}

    with pytest.warns(ht.HypertuneWarning) as caught:
        fit(
            hypernet(network=plain_network(), space=ONLY_DECAY),
            loss=crushing,
            epochs=60,
            optimizer=partial(torch.optim.SGD, lr=0.01, weight_decay=1.0),
            schedule=None,
            metric=error,
            val_loader=loader(shuffle=False),
        )
    texts = [str(warning.message) for warning in caught]
    assert any("collapsed" in text and "largest penalties" in text for text in texts)
    assert any("no metric responds to 'decay'" in text for text in texts)


def test_a_response_is_not_warned_of() -> None:
    surrogate = fit(hypernet(network=plain_network(), space=ONLY_DECAY), epochs=40, **validation())
    assert surrogate.responses()["decay"]["error"] > 0.05


def test_training_lowers_the_loss_and_ends_in_evaluation_mode() -> None:
    surrogate = fit(epochs=30)
    assert surrogate.history[-1]["loss"] < 0.9 * surrogate.history[0]["loss"]
    assert not any(module.training for module in surrogate.hypernet.modules())


# The stream of settings


@pytest.mark.parametrize("endpoints", [0.0, 0.4])
def test_ranks_draw_disjoint_slices_of_one_sequence(endpoints: float) -> None:
    one = SettingsStream(SPACE, seed=3, endpoints=endpoints)
    ranks = [SettingsStream(SPACE, seed=3, endpoints=endpoints, rank=rank, world_size=2) for rank in range(2)]
    for count in (4, 3, 5):
        parts = [stream.draw(count) for stream in ranks]
        assert torch.equal(torch.cat(parts), one.draw(2 * count))
        assert endpoints or len({tuple(row) for row in torch.cat(parts).tolist()}) == 2 * count
    assert [stream.state_dict() for stream in (*ranks, one)] == [{"position": 24}] * 3


def test_a_moved_stream_goes_on_where_the_other_one_stopped() -> None:
    first, second = SettingsStream(SPACE, seed=3), SettingsStream(SPACE, seed=3)
    first.draw(5)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.draw(6), second.draw(6))
    assert not torch.equal(SettingsStream(SPACE, seed=4).draw(6), SettingsStream(SPACE, seed=3).draw(6))


# Ways and places to train


@pytest.mark.parametrize(("epochs", "expected"), [(3, 0), (140, 1)])  # of 3 steps each; 400 are worth a measurement
def test_ways_to_run_a_step_are_measured_once_and_in_long_runs_only(
    epochs: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(step: Callable[[Any], None], ways: Any, device: torch.device) -> dict[Any, float]:
        calls.append(ways)
        return {way: float(i == 0) for i, way in enumerate(ways)}

    monkeypatch.setattr("hypertune_mip.training.gradients.measured", counted)
    surrogate = fit(epochs=epochs)
    assert len(calls) == expected
    if expected:
        assert surrogate.execution is not None
        assert surrogate.execution["execution"] == calls[0][1].to_json()  # the fastest, as it was told


def test_a_strategy_sees_every_epoch() -> None:
    class Counted(SingleProcess):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def start_epoch(self, epoch: int) -> None:
            self.seen.append(epoch)

        def end_epoch(self, record: dict[str, Any], save: Any, *, last: bool) -> None:
            self.seen.append((record["epoch"], last))

    strategy = Counted()
    train(hypernet(), loss, loader(), Options(epochs=2, progress=False), strategy=strategy)
    assert strategy.seen == [1, (1, False), 2, (2, True)]
