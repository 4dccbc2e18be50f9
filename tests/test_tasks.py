"""Tasks against PyTorch's own losses, by hand, and through fit."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.tasks import penalties

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(30, 4, generator=GENERATOR)
Y = torch.randint(3, (30,), generator=GENERATOR)
TARGETS = torch.randn(30, 2, generator=GENERATOR)
MASKED = torch.where(torch.arange(30) % 3 == 0, -1, Y)


def network(outputs: int = 3) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(4, outputs)


BATCHES: dict[str, Any] = {
    "pair": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "dict": lambda x, y: {"x": x, "y": y},
    "labels": lambda x, y: {"x": x, "labels": y},
}


@pytest.mark.parametrize("batch", BATCHES)
def test_classification_is_pytorch_s_cross_entropy(batch: str) -> None:
    model, task, data = network(), ht.Classification(), BATCHES[batch](X, Y)
    logits = model(X)
    torch.testing.assert_close(task.loss(model, data, {"dropout": 0.5}), F.cross_entropy(logits, Y))
    values = task.metric(model, data)
    torch.testing.assert_close(values["loss"], F.cross_entropy(logits, Y))
    assert float(values["error"]) == pytest.approx(float((logits.argmax(1) != Y).float().mean()))
    assert task.directions == {"loss": "minimize", "error": "minimize"}


@pytest.mark.parametrize("batch", BATCHES)
def test_regression_is_the_mean_squared_error(batch: str) -> None:
    model, task, data = network(2), ht.Regression(), BATCHES[batch](X, TARGETS)
    torch.testing.assert_close(task.loss(model, data, {}), F.mse_loss(model(X), TARGETS))
    torch.testing.assert_close(task.metric(model, data), {"loss": F.mse_loss(model(X), TARGETS)})
    assert task.directions == {"loss": "minimize"}


def test_what_the_config_holds_is_in_the_loss() -> None:
    model, weight = network(), [1.0, 2.0, 0.5]
    task = ht.Classification(weight=weight, ignore_index=-1, penalized="weight")
    config = {"label_smoothing": 0.2, "weight_decay": 0.3, "l1": 0.1}
    expected = (
        F.cross_entropy(model(X), MASKED, weight=torch.tensor(weight), ignore_index=-1, label_smoothing=0.2)
        + 0.5 * 0.3 * model.weight.square().sum()
        + 0.1 * model.weight.abs().sum()
    )
    torch.testing.assert_close(task.loss(model, (X, MASKED), config), expected)
    assert penalties(model, {}) == 0.0
    torch.testing.assert_close(
        ht.Regression().loss(network(2), (X, TARGETS), {"weight_decay": 1.0}),
        F.mse_loss(network(2)(X), TARGETS) + 0.5 * sum(p.square().sum() for p in network(2).parameters()),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_mixup_mixes_inputs_and_classes(smoothing: float) -> None:
    model, task = network(), ht.Classification()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x, y = ht.losses.mixup(X, Y, strength=0.8, classes=3)
        torch.manual_seed(1)
        got = task.loss(model, (X, Y), {"mixup": 0.8, "label_smoothing": smoothing})
    torch.testing.assert_close(got, F.cross_entropy(model(x), y, label_smoothing=smoothing))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x, targets = ht.losses.mixup(X, TARGETS, strength=0.8)
        torch.manual_seed(1)
        got = ht.Regression().loss(network(2), (X, TARGETS), {"mixup": 0.8})
    torch.testing.assert_close(got, F.mse_loss(network(2)(x), targets))


class Map(nn.Module):
    """A class at each place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(1, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.unsqueeze(1))
        return logits


@pytest.mark.parametrize("config", [{}, {"mixup": 0.5}], ids=["plain", "mixup"])
def test_classes_at_places(config: dict[str, float]) -> None:
    labels = torch.randint(3, (30, 4), generator=torch.Generator().manual_seed(1))
    model, task = Map(), ht.Classification()
    assert task.loss(model, (X, labels), config).ndim == 0
    logits = model(X)
    torch.testing.assert_close(task.metric(model, (X, labels))["loss"], F.cross_entropy(logits, labels))


def test_probabilities_are_targets_as_well() -> None:
    model, soft = network(), F.one_hot(Y, 3).float()
    for mine, theirs in zip(
        ht.Classification().metric(model, (X, soft)).values(),
        ht.Classification().metric(model, (X, Y)).values(),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def options(**more: Any) -> dict[str, Any]:
    space = ht.SearchSpace({"weight_decay": FloatDistribution(1e-4, 1.0, log=True)})
    return {"space": space, "epochs": 20, "device": "cpu", "progress": False} | more


def test_fit_takes_a_task() -> None:
    batches = [(X[:16], Y[:16]), (X[16:], Y[16:])]
    task = ht.Classification()
    ours = ht.fit(network(), task, batches, val_loader=batches, **options())
    theirs = ht.fit(network(), task.loss, batches, metric=task.metric, val_loader=batches, **options())
    assert ours.directions == task.directions and ours.stated_directions == task.directions
    units = ours.space.sample(3)
    for name, value in theirs.evaluate_units(units).items():
        assert value.tolist() == ours.evaluate_units(units)[name].tolist()
    assert ours.loss == task.loss


def test_metrics_of_targets_that_do_not_count_do_not_depend_on_batches() -> None:
    task = ht.Classification(ignore_index=-1)
    parts = [(X[:7], MASKED[:7]), (X[7:11], MASKED[7:11]), (X[11:], MASKED[11:])]
    fitted = ht.fit(network(), task, parts, val_loader=parts, **options())
    config = {"weight_decay": 0.01}
    model = fitted.materialize(config)
    with torch.no_grad():
        logits = model(X)
    counts = MASKED >= 0
    expected = {
        "loss": float(F.cross_entropy(logits, MASKED, ignore_index=-1)),
        "error": float((logits.argmax(1) != MASKED)[counts].float().mean()),
    }
    assert fitted.evaluate(config) == pytest.approx(expected, rel=1e-5)


def test_a_metric_beside_a_task_takes_its_place() -> None:
    def accuracy(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"accuracy": (model(batch[0]).argmax(1) == batch[1]).float().mean()}

    directions: Any = {"accuracy": "maximize"}
    fitted = ht.fit(
        network(),
        ht.Classification(),
        [(X, Y)],
        metric=accuracy,
        val_loader=[(X, Y)],
        directions=directions,
        **options(),
    )
    assert fitted.directions == directions


def test_directions_beside_a_task_add_to_its_own() -> None:
    task = ht.Task(ht.Classification().loss, ht.Classification().metric, {"loss": "minimize"})
    fitted = ht.Surrogate(
        ht.HyperNetwork(network(), options()["space"]),
        loss=task,
        val_loader=[(X, Y)],
        directions={"error": "maximize"},
    )
    assert fitted.stated_directions == {"loss": "minimize", "error": "maximize"}


def test_without_validation_data_a_task_measures_nothing() -> None:
    fitted = ht.fit(network(), ht.Classification(), [(X, Y)], **options())
    with pytest.raises(ht.DataError, match="no validation data"):
        fitted.evaluate({"weight_decay": 0.01})


def test_load_takes_a_task(tmp_path: Any) -> None:
    fitted = ht.fit(network(), ht.Classification(), [(X, Y)], val_loader=[(X, Y)], **options())
    fitted.save(tmp_path)
    loaded = ht.Surrogate.load(tmp_path, network(), loss=ht.Classification(), val_loader=[(X, Y)])
    assert loaded.evaluate({"weight_decay": 0.01}) == fitted.evaluate({"weight_decay": 0.01})
    assert loaded.loss == ht.Classification().loss and loaded.directions == fitted.directions


@pytest.mark.parametrize(
    "task", [ht.Classification(weight=(1.0, 2.0, 3.0)), ht.Classification(ignore_index=-1), ht.Regression()]
)
def test_tasks_reach_other_processes(task: ht.Task) -> None:
    copy = pickle.loads(pickle.dumps(task))
    assert copy == task and type(copy) is type(task)


def test_what_a_task_cannot_serve_is_refused_by_name() -> None:
    loss = ht.Classification().loss
    for model, y in [(network(1), Y), (network(), Y.unsqueeze(1)), (network(), Y.float())]:
        with pytest.raises(ht.LossError, match=r"must give logits \(N, classes, ...\).* but got"):
            loss(model, (X, y), {})
    with pytest.raises(ht.LossError, match="same shape"):
        ht.Regression().loss(network(1), (X, TARGETS), {})
    with pytest.raises(ht.DataError, match="a tuple of 3"):
        loss(network(), (X, Y, Y), {})
    with pytest.raises(ht.DataError, match=r"dict with \['x', 'y', 'weight'\]"):
        loss(network(), {"x": X, "y": Y, "weight": Y}, {})
    with pytest.raises(ht.LossError, match="cannot be in the space of a task with `ignore_index`"):
        ht.Classification(ignore_index=-1).loss(network(), (X, MASKED), {"mixup": 0.5})
    with pytest.raises(ht.LossError, match=r"floating-point inputs, but got torch.int64"):
        loss(nn.Embedding(5, 3), (Y, Y), {"mixup": 0.5})
    with pytest.raises(ht.LossError, match="`weight` must be a number, but got 'a'"):
        ht.Classification(weight=["a"])  # type: ignore[list-item]
    with pytest.raises(ht.SpaceError, match="direction of 'loss'"):
        ht.Task(loss, directions={"loss": "small"})  # type: ignore[dict-item]
    with pytest.raises(ht.LossError, match=r"got the class Classification\. Add parentheses"):
        ht.fit(network(), ht.Classification, [(X, Y)], **options())  # type: ignore[arg-type]
