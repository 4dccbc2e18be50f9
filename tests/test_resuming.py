"""A run that was stopped: it goes on bit for bit after any epoch, as no other run, from a state that is whole."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import FloatDistribution
from small_problem import (
    SPACE,
    InterruptedByTest,
    assert_same_state,
    data,
    fit,
    hypernet,
    interrupt_at,
    loader,
    own_generator,
    plain_network,
    sampler_with_generator,
    validation,
)
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedules

import hypertune_mip as ht
from hypertune_mip.storage import load_tree, save_tree
from hypertune_mip.training import Options, cosine
from hypertune_mip.training.descent import Descent
from hypertune_mip.training.run_state import RunState

LONG, SHORT = 14, 8  # epochs; the lead of settings with a small loss ends in the third, and in the second
EARLY, LATE = 1, 5


# The law


def warm_up_then_cosine(optimizer: Optimizer, steps: int) -> schedules.LRScheduler:
    parts = [schedules.LinearLR(optimizer, 0.1, total_iters=2), schedules.CosineAnnealingLR(optimizer, steps - 2)]
    return schedules.SequentialLR(optimizer, parts, milestones=[2])


class Fading:
    """A rate that falls with each call, whatever step is asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step: int) -> float:
        self.calls += 1
        return 1 / self.calls


def small_then_large() -> list[Any]:
    x, y = data().tensors
    return [(x[:4], y[:4]), (x[4:], y[4:])]


SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
HARD = {"accumulate": 2, "gradient_clip": 0.05}
RUNS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "hard": (partial(own_generator, batch_size=4), HARD),
    "hard, bfloat16": (partial(own_generator, batch_size=4), {**HARD, "precision": "bfloat16"}),
    "adam": (loader, {}),
    "float16": (loader, {"precision": "float16"}),
    "sgd with momentum": (loader, {"optimizer": SGD}),
    "groups of one's own": (loader, {"optimizer": lambda p: torch.optim.Adam([{"params": [q]} for q in p], lr=0.01)}),
    "no schedule": (loader, {"schedule": None}),
    "chained schedules": (loader, {"schedule": warm_up_then_cosine}),
    "one cycle": (loader, {"schedule": lambda o, n: schedules.OneCycleLR(o, 0.02, n)}),
    "cycles": (loader, {"schedule": lambda o, n: schedules.CyclicLR(o, 0.001, 0.02, 5), "optimizer": SGD}),
    "steps": (loader, {"schedule": lambda o, n: schedules.MultiStepLR(o, [2, 2, 30])}),
    "a function": (loader, {"schedule": lambda o, n: schedules.LambdaLR(o, lambda step: 1 / (1 + step))}),
    "a function with a state": (loader, {"schedule": lambda o, n: schedules.LambdaLR(o, Fading())}),
    "small batches": (partial(loader, batch_size=2), {}),  # enough steps for the weights of settings to be fitted
    "large batches last": (small_then_large, {"batching": "split"}),
    "sampler's generator": (sampler_with_generator, {}),
    "full batches": (loader, {"batching": "full", "settings_per_step": 3}),
    "oversampled ends": (loader, {"endpoints": 0.3}),
    "validation": (loader, {**validation(), "validate_every": 1}),
    "seeded": (loader, {"seed": 3}),
}
HARDEST = ("hard", "hard, bfloat16")
STOPS = [(name, epoch) for name in RUNS for epoch in (range(1, LONG) if name in HARDEST else (EARLY, LATE))]
Whole = Callable[[str], Path]


def epochs_of(name: str) -> int:
    return LONG if name in HARDEST else SHORT


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A folder with what an undisturbed run has kept: its checkpoint after epoch e in `e`."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            make_loader, options = RUNS[name]
            folder, epochs = tmp_path_factory.mktemp("whole"), epochs_of(name)
            running = folder / str(epochs)

            def keep(record: dict[str, Any]) -> None:
                if record["epoch"] > 1:  # callbacks come before the checkpoint of their epoch
                    shutil.copytree(running, folder / str(record["epoch"] - 1))

            options = {**options, "epochs": epochs}
            kept = fit(train_loader=make_loader(), **options, checkpoint=running, callbacks=[keep])
            assert_same_state(fit(train_loader=make_loader(), **options).hypernet, kept.hypernet)
            made[name] = folder
        return made[name]

    return run


def state(folder: Path) -> dict[str, Any]:
    return load_tree(folder, "checkpoint", kind="training checkpoint")


def different(left: Any, right: Any, path: str = "") -> Iterator[str]:
    """Where two states differ; time is none of their business."""
    if isinstance(left, dict) and isinstance(right, dict) and list(left) == list(right):
        for name in left:
            if name != "seconds":
                yield from different(left[name], right[name], f"{path}/{name}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from different(a, b, f"{path}/{index}")
    elif not (
        torch.equal(left, right) and left.dtype == right.dtype
        if isinstance(left, Tensor) and isinstance(right, Tensor)
        else left == right
    ):
        yield path


@pytest.mark.parametrize(("name", "epoch"), STOPS)
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(whole: Whole, tmp_path: Path, name: str, epoch: int) -> None:
    """`stop after epoch e; resume == never stopped`: weights, history, the optimiser's and every other state."""
    make_loader, options = RUNS[name]
    shutil.copytree(whole(name) / str(epoch), tmp_path / "run")
    fit(train_loader=make_loader(), epochs=epochs_of(name), **options, checkpoint=tmp_path / "run", resume=True)
    assert not list(different(state(whole(name) / str(epochs_of(name))), state(tmp_path / "run")))


def test_what_the_law_compares_differs_between_epochs(whole: Whole) -> None:
    before, after = state(whole("hard") / "1"), state(whole("hard") / "2")
    changed = {path.split("/")[1] for path in different(before, after)}
    assert changed == {"hypernet", "optimizer", "schedule", "settings", "weights", "progress"}
    assert set(before) == {"fingerprint", *(field.name for field in dataclasses.fields(RunState))}


def test_resuming_ignores_what_happened_to_the_fresh_weights_and_the_global_generator(tmp_path: Path) -> None:
    undisturbed = fit(epochs=4)
    with pytest.raises(InterruptedByTest):
        fit(epochs=4, checkpoint=tmp_path, checkpoint_every=2, callbacks=[interrupt_at(4)])
    net = hypernet()
    with torch.random.fork_rng():
        for parameter in net.parameters():
            parameter.data.add_(1.0)
        torch.manual_seed(99)
        resumed = fit(net, epochs=4, checkpoint=tmp_path, resume=True)
    assert_same_state(undisturbed.hypernet, resumed.hypernet)


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    done = fit(checkpoint=tmp_path)
    again = fit(checkpoint=tmp_path, resume=True)
    assert_same_state(done.hypernet, again.hypernet)
    assert again.history == done.history


# What may differ, and what may not


@pytest.mark.parametrize("schedule", [cosine, warm_up_then_cosine])
def test_a_run_resumed_with_another_number_of_batches_keeps_the_schedule(tmp_path: Path, schedule: Any) -> None:
    """As after a change in the number of workers."""
    with pytest.raises(InterruptedByTest):
        fit(epochs=4, checkpoint=tmp_path, callbacks=[interrupt_at(3)], schedule=schedule)
    options = {"epochs": 4, "train_loader": loader(batch_size=4), "schedule": schedule}
    resumed = fit(checkpoint=tmp_path, resume=True, **options)
    rates = [record["learning_rate"] for record in resumed.history]
    assert rates[2:] == pytest.approx([r["learning_rate"] for r in fit(**options).history[2:]], rel=1e-6, abs=1e-12)
    assert [record["step"] for record in resumed.history] == [3, 6, 11, 16]


HARMLESS = {
    "device": torch.device("cpu"),
    "capture": False,
    "progress": True,
    "callbacks": [lambda record: None],
    "validate_every": 2,
    "validation_settings": 3,
    "checkpoint": None,
    "checkpoint_every": 2,
    "resume": True,
}
DECISIVE: dict[str, tuple[Any, str]] = {
    "epochs": (5, r"epochs was 3, is 5"),
    "settings_per_step": (4, r"settings_per_step was 'auto', is 4"),
    "batching": ("full", r"batching was 'auto', is 'full'"),
    "endpoints": (0.1, r"endpoints was 0\.0, is 0\.1"),
    "normalize": (False, r"normalize was True, is False"),
    "optimizer": (torch.optim.AdamW, r"optimizer\.class was 'torch\.optim\.adam\.Adam', is '.*AdamW'"),
    "schedule": (None, r"schedule was torch\..*\.CosineAnnealingLR, is None"),
    "gradient_clip": (1.0, r"gradient_clip was None, is 1\.0"),
    "accumulate": (2, r"accumulate was 1, is 2"),
    "precision": ("bfloat16", r"precision was 'float32', is 'bfloat16'"),
    "execution": ("usual", r"execution was 'measured', is 'usual'"),
    "seed": (1, r"seed was 0, is 1"),
}


def test_every_option_is_known_to_be_harmless_or_decisive() -> None:
    declared = {field.name: field.metadata["may_differ"] for field in dataclasses.fields(Options)}
    assert declared == {name: True for name in HARMLESS} | {name: False for name in DECISIVE}


def test_what_is_harmless_may_differ(whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole("adam") / str(EARLY), tmp_path / "moved")
    fit(epochs=SHORT, **validation(), **{**HARMLESS, "checkpoint": tmp_path / "moved"})
    kept, got = state(whole("adam") / str(SHORT)), state(tmp_path / "moved")
    assert not list(different(kept["hypernet"], got["hypernet"]))


@pytest.mark.parametrize("name", DECISIVE)
def test_what_is_decisive_may_not(tmp_path: Path, name: str) -> None:
    value, message = DECISIVE[name]
    fit(checkpoint=tmp_path)
    with pytest.raises(ht.StorageError, match=f"belongs to another run: {message}"):
        fit(checkpoint=tmp_path, resume=True, **{name: value})


def test_all_that_differs_is_named(tmp_path: Path) -> None:
    fit(checkpoint=tmp_path)
    with pytest.raises(
        ht.StorageError, match=r"another run: trunk was \[6\], is \[5\], normalize was .*, seed was 0, is 1\."
    ):
        fit(
            ht.HyperNetwork(hypernet().given, SPACE, trunk=(5,)),
            checkpoint=tmp_path, resume=True, seed=1, normalize=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"space": ht.SearchSpace({**SPACE, "dropout": FloatDistribution(0.0, 0.4)})},
            r"space\.dropout\.attributes\.high was 0\.5, is 0\.4",
        ),
        (
            {"space": ht.SearchSpace({name: SPACE[name] for name in reversed(SPACE.names)})},
            r"order was \['decay', 'dropout'\], is \['dropout', 'decay'\]",
        ),
        ({"head": ht.Dense()}, r"head\.class was 'RankOne', is 'Dense'"),
        ({"head": ht.LowRank(rank=2)}, r"head\.class was 'RankOne', is 'LowRank'"),
        ({"encoding": "none"}, r"encoding was 'mip', is 'none'"),
        ({"generate": ["0.weight"]}, r"generate was \[.*\], is \['0\.weight'\]"),
        ({"freeze_theta_0": True}, r"freeze_theta_0 was False, is True"),
        ({"mapping": "loop"}, r"mapping was 'auto', is 'loop'"),
        ({"network": plain_network()}, r"generate was .*, bindings\.2 was 'dropout', is nothing"),
    ],
)
def test_a_checkpoint_of_another_hypernetwork(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    fit(checkpoint=tmp_path)
    with pytest.raises(ht.StorageError, match=f"belongs to another run: {message}"):
        fit(hypernet(**options), checkpoint=tmp_path, resume=True)


def fading(factor: float, *, after: int = 0) -> Any:
    return lambda optimizer, steps: schedules.LambdaLR(optimizer, lambda n: 1.0 if n < after else 1 / (1 + factor * n))


def in_two_groups(parameters: Any) -> Optimizer:
    first, *rest = parameters
    return torch.optim.SGD([{"params": [first], "lr": 0.01}, {"params": rest}], lr=0.05, momentum=0.9)


@pytest.mark.parametrize(
    ("name", "was", "now", "message"),
    [
        ("optimizer", SGD, partial(SGD, lr=0.1), r"optimizer\.groups\.0\.lr was 0\.05, is 0\.1\."),
        ("optimizer", SGD, partial(SGD, nesterov=True), r"optimizer\.groups\.0\.nesterov was False, is True\."),
        ("optimizer", SGD, in_two_groups, r"optimizer\.groups was a list of 1, is a list of 2\."),
        ("optimizer", SGD, lambda p: torch.optim.SGD(p, momentum=0.9, lr=0.05), None),
        ("schedule", cosine, lambda o, n: cosine(o, 2 * n), r"schedule\.numbers\.T_max was 9, is 18, schedule\.rates"),
        ("schedule", cosine, lambda o, n: schedules.ConstantLR(o), r"schedule\.class was .*Cosine.*, is .*Constant"),
        ("schedule", cosine, lambda o, n: schedules.CosineAnnealingLR(o, n), None),
        ("schedule", fading(1), fading(2), r"schedule\.rates\.1 was \[0\.003, 0\.003\], is \[0\.002, 0\.002\]"),
        ("schedule", fading(1, after=6), fading(2, after=6), r"schedule\.rates\.8 was "),
        ("schedule", fading(1), fading(1), None),
    ],
)  # fmt: skip
def test_a_factory_is_what_it_makes(tmp_path: Path, name: str, was: Any, now: Any, message: str | None) -> None:
    fit(checkpoint=tmp_path, **{name: was})
    if message is None:
        fit(checkpoint=tmp_path, resume=True, **{name: now})
        return
    with pytest.raises(ht.StorageError, match=f"belongs to another run: {message}"):
        fit(checkpoint=tmp_path, resume=True, **{name: now})


# A state that is whole


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("finished")
    fit(checkpoint=folder, precision="float16")
    return state(folder)


PARTS = [field.name for field in dataclasses.fields(RunState)]
DAMAGES: dict[str, Callable[[Any], Any]] = {
    "another thing": lambda part: 3,
    "more": lambda part: {**part, "more": 1},
    "less": lambda part: dict(list(part.items())[1:]),
    "strange": lambda part: {name: "strange" for name in part},
}


@pytest.mark.parametrize("part", ["fingerprint", *PARTS])
def test_a_state_without_a_part(finished: dict[str, Any], tmp_path: Path, part: str) -> None:
    left = {name: value for name, value in finished.items() if name != part}
    save_tree(tmp_path, "checkpoint", left, kind="training checkpoint")
    with pytest.raises(ht.StorageError, match=f"(does not fit this run: the state lacks|does not hold).*'{part}'"):
        fit(checkpoint=tmp_path, precision="float16", resume=True)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", PARTS)
def test_a_state_with_a_strange_part(finished: dict[str, Any], tmp_path: Path, part: str, damage: str) -> None:
    changed = {**finished, part: DAMAGES[damage](finished[part])}
    save_tree(tmp_path, "checkpoint", changed, kind="training checkpoint")
    with pytest.raises(ht.StorageError, match=f"does not (fit this run: '{part}' does not fit|hold what a run needs)"):
        fit(checkpoint=tmp_path, precision="float16", resume=True)


class ByRule(schedules.LRScheduler):
    """Keeps a function, which no checkpoint can hold."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.rule = lambda step: 1 / (1 + step)
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [rate * self.rule(self.last_epoch) for rate in self.base_lrs]


def nested(optimizer: Optimizer, steps: int) -> schedules.LRScheduler:
    return schedules.SequentialLR(optimizer, [ByRule(optimizer), ByRule(optimizer)], [2])


@pytest.mark.parametrize(
    ("schedule", "path"),
    [(lambda o, n: ByRule(o), "schedule/rule"), (nested, "schedule/_schedulers/0/rule")],
    ids=["plain", "nested"],
)
def test_a_schedule_that_cannot_be_kept_is_refused_before_training(tmp_path: Path, schedule: Any, path: str) -> None:
    def never(model: nn.Module, batch: Any, config: Any) -> Tensor:
        raise AssertionError

    with pytest.raises(ht.StorageError, match=f"Cannot save 'checkpoint/schedule/{path}': function is neither"):
        fit(loss=never, schedule=schedule, checkpoint=tmp_path)
    assert fit(schedule=schedule).history[-1]["learning_rate"] < 6e-3


def test_an_optimiser_that_cannot_be_kept_is_refused_by_the_name_of_what_is_in_the_way(tmp_path: Path) -> None:
    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            self.state[self.param_groups[0]["params"][0]]["watch"] = object()
            return super().step(closure)

    with pytest.raises(ht.StorageError, match="Cannot save 'checkpoint/optimizer/state/0/watch': object is neither"):
        fit(optimizer=partial(Watching, lr=0.01), checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_schedule_that_waits_for_a_metric_is_refused() -> None:
    with pytest.raises(ht.OptionError, match="a ReduceLROnPlateau waits for a metric"):
        fit(schedule=lambda optimizer, steps: schedules.ReduceLROnPlateau(optimizer))


# A step that float16 skips


def test_a_step_that_overflows_moves_neither_weights_nor_schedule() -> None:
    net = hypernet()
    descent = Descent(net, Options(precision="float16", optimizer=SGD, gradient_clip=1.0), total=10)

    def step(gradient: float) -> None:
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        descent.scaler.scale(torch.ones(()))  # as before each backward pass
        descent.step(0.5)

    def rate() -> float:
        return float(descent.optimizer.param_groups[0]["lr"])

    before = {name: value.clone() for name, value in net.state_dict().items()}
    step(float("inf"))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert rate() == 0.05
    assert all(parameter.grad is None for parameter in net.parameters())
    step(1.0)
    assert not any(torch.equal(value, before[name]) for name, value in net.named_parameters())
    assert rate() < 0.05
