"""Metrics of the whole validation set beside means over it, and means that are none."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import HEADS, hypernet, space
from optuna.distributions import FloatDistribution
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.batches import pair_of, targets_of
from hypertune_mip.evaluation import Evaluator, measured
from hypertune_mip.evaluation.data import joined

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(48, 3, generator=GENERATOR, dtype=torch.float64)
Y = (X.sum(1) + torch.randn(48, generator=GENERATOR) > 0).long()
BATCHES = [(X[:20], Y[:20]), (X[20:36], Y[20:36]), (X[36:], Y[36:])]


def margin(model: nn.Module, batch: Any) -> Tensor:
    outputs: Tensor = model(batch[0])
    return outputs[:, 1] - outputs[:, 0]


def auc(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    return {"auc": roc_auc_score(targets, outputs), "f1": f1_score(targets, outputs > 0)}


def loss(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"loss": F.cross_entropy(model(batch[0]), batch[1])}


WHOLE = ht.metrics.whole_set(margin, auc)


def surrogate(metric: Any = (loss, WHOLE), head: str = "rank one", **options: Any) -> ht.Surrogate:
    options = {"val_loader": BATCHES} | options
    return ht.Surrogate(hypernet("float64", head), metric=metric, **options)


@pytest.mark.parametrize("head", HEADS)
def test_a_metric_of_the_whole_set_is_that_of_each_materialised_network(head: str) -> None:
    asked = surrogate(head=head)
    units = space().sample(5)
    assert asked.metrics == ("loss", "auc", "f1")
    values = asked.evaluate_units(units)
    for row, config in enumerate(space().from_unit(units)):
        network = asked.materialize(config)
        with torch.no_grad():
            outputs = network(X)
        assert values["auc"][row] == pytest.approx(roc_auc_score(Y, outputs[:, 1] - outputs[:, 0]))
        assert values["f1"][row] == pytest.approx(f1_score(Y, outputs.argmax(1)))
        assert values["loss"][row] == pytest.approx(float(F.cross_entropy(outputs, Y)))


@pytest.mark.parametrize("budget", [0, 2**14])
def test_neither_chunks_nor_batches_change_it(budget: int) -> None:
    units = space().sample(9)
    expected = surrogate().evaluate_units(units)
    small = surrogate(memory_budget=budget)
    one_batch = surrogate(val_loader=[(X, Y)])
    for name, value in expected.items():
        np.testing.assert_allclose(small.evaluate_units(units)[name], value, rtol=1e-12)
        np.testing.assert_allclose(one_batch.evaluate_units(units)[name], value, rtol=1e-12)


def test_the_outputs_that_are_gathered_count_in_a_chunk_s_memory() -> None:
    wide = ht.metrics.whole_set(lambda model, batch: model(batch[0]).repeat(1, 200), lambda o, t: {"first": o[0, 0]})
    few, many = (surrogate(wide, val_loader=[(X, Y)] * n, memory_budget=2**24) for n in (1, 40))
    assert many._evaluate.chunk_size() < few._evaluate.chunk_size() / 10


def test_it_has_the_gradient_0_and_its_value() -> None:
    asked = surrogate()
    units = space().sample(3)
    values, slopes = asked._evaluate.value_and_gradient(units, "auc")
    np.testing.assert_array_equal(values, asked.evaluate_units(units)["auc"])
    assert slopes.shape == units.shape and not slopes.any()
    assert asked._evaluate.value_and_gradient(units, "loss")[1].any()


def test_where_an_output_is_nan_so_is_the_score() -> None:
    units, one_batch = space().sample(9), [(X, Y)]
    means = surrogate(lambda model, batch: {"mean": margin(model, batch).mean()}, val_loader=one_batch)
    mean = means.evaluate_units(units)["mean"]
    middle = float(np.median(mean))

    def diverged(model: nn.Module, batch: Any) -> Tensor:
        outputs = margin(model, batch)
        return outputs.where(outputs.mean() < middle - 1e-9, math.nan)

    values = surrogate(ht.metrics.whole_set(diverged, auc), val_loader=one_batch).evaluate_units(units)
    np.testing.assert_array_equal(np.isnan(values["auc"]), mean > middle - 1e-9)
    np.testing.assert_array_equal(np.isnan(values["f1"]), mean > middle - 1e-9)


def test_measured_is_one_function_for_all_that_measures() -> None:
    networks = [nn.Linear(3, 2).double() for _ in range(3)]

    def run(function: Any, batch: Any) -> Any:
        rows = [function(network, batch) for network in networks]
        return torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), rows[0], *rows[1:])

    with torch.no_grad():
        values = measured([loss, WHOLE], run, iter(BATCHES))
    assert {name: (value.shape, value.dtype) for name, value in values.items()} == dict.fromkeys(
        ("loss", "auc", "f1"), ((3,), torch.float64)
    )
    outputs = networks[1](X).detach()
    assert float(values["loss"][1]) == pytest.approx(float(F.cross_entropy(outputs, Y)))
    assert float(values["auc"][1]) == pytest.approx(roc_auc_score(Y, outputs[:, 1] - outputs[:, 0]))


def test_outputs_and_targets_may_be_trees_of_half_numbers() -> None:
    def predict(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"margin": margin(model, batch).bfloat16(), "first": batch["x"][:, 0]}

    def score(outputs: Mapping[str, Tensor], targets: tuple[Tensor, Tensor]) -> dict[str, Any]:
        assert outputs["margin"].dtype == torch.float32
        torch.testing.assert_close(outputs["first"], targets[1])
        return {"auc": torch.tensor(roc_auc_score(targets[0], outputs["margin"])), "count": np.int64(len(targets[0]))}

    class Pair(dict[Any, Any]):
        """A batch by name whose inputs `margin` finds by number."""

    metric = ht.metrics.whole_set(predict, score, targets=lambda batch: (batch["y"], batch["x"][:, 0]))
    batches = [Pair({0: x, "x": x, "y": y}) for x, y in BATCHES]
    assert surrogate(metric, val_loader=batches).evaluate(space().from_unit(space().sample(1))[0])["count"] == len(X)


def test_calibration_emulation_copies_and_processes_take_it() -> None:
    asked = surrogate()
    config = space().from_unit(space().sample(1))[0]
    assert asked.to("cpu").evaluate(config) == asked.evaluate(config)
    assert pickle.loads(pickle.dumps(asked)).evaluate(config) == asked.evaluate(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ht.HypertuneWarning)  # an AUC of 48 examples moves in steps
        assert asked.emulator(points=32, progress=False).metrics == asked.metrics


def test_a_fit_validates_by_it() -> None:
    x, y = X.float(), Y
    trained = ht.fit(
        nn.Linear(3, 2),
        lambda model, batch, config: F.cross_entropy(model(batch[0]), batch[1]) + config["a"] * ht.losses.l2(model),
        [(x, y)],
        space=ht.SearchSpace({"a": FloatDistribution(0.0, 0.1)}),
        metric=[loss, WHOLE],
        val_loader=[(x, y)],
        directions={"auc": "maximize"},
        epochs=30,
        validate_every=30,
        device="cpu",
        progress=False,
    )
    seen = trained.evaluate_units(trained.space.sample(4, seed=0))
    assert trained.history[-1]["validation/auc/mean"] == pytest.approx(seen["auc"].mean())
    best = trained.optimize("auc", candidates=32)
    assert best.value == trained.evaluate_units(trained.space.sample(32))["auc"].max()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ([], "at least one metric"),
        ([loss, loss], r"Names of metrics must differ, but \['loss'\]"),
        ([WHOLE, lambda model, batch: {"f1": model(batch[0]).mean()}], r"must differ, but \['f1'\]"),
        (ht.metrics.whole_set(lambda model, batch: model(batch[0]).mean(), auc), "one row an example, but got"),
        (ht.metrics.whole_set(lambda model, batch: {"a": 1.0}, auc), "one row an example, but got"),
        (ht.metrics.whole_set(margin, lambda outputs, targets: 0.5), "numbers by name.*but got 0.5"),
        (ht.metrics.whole_set(margin, lambda outputs, targets: {"auc": "high"}), "`auc` must be a number.*'high'"),
        (ht.metrics.whole_set(margin, auc, targets=lambda batch: ["a"] * len(batch[0])), "Targets of all batches"),
        (ht.metrics.whole_set(lambda model, batch: margin(model, batch)[None], auc), "Outputs of all batches"),
    ],
)
def test_what_is_no_metric_is_refused(metric: Any, message: str) -> None:
    with pytest.raises(ht.LossError, match=message):
        surrogate(metric).evaluate_units(space().sample(2))


@pytest.mark.parametrize("metric", ["auc", [loss, "auc"], nn.Linear])
def test_parts_are_functions_or_of_the_whole_set(metric: Any) -> None:
    with pytest.raises(ht.LossError, match="a list of these, but got"):
        ht.metrics.parts_of(metric)


def test_scores_have_the_same_names_each_time() -> None:
    names = iter("abcdefghij")
    with pytest.raises(ht.LossError, match="same names each time"):
        surrogate(ht.metrics.whole_set(margin, lambda outputs, targets: {next(names): 0.0})).evaluate_units(
            space().sample(2)
        )


@pytest.mark.parametrize("argument", ["predict", "score", "targets"])
def test_its_parts_are_functions(argument: str) -> None:
    arguments: dict[str, Any] = {"predict": margin, "score": auc, argument: 3}
    with pytest.raises(ht.LossError, match=f"`{argument}` of a metric must be a function, but got 3"):
        ht.metrics.whole_set(arguments.pop("predict"), arguments.pop("score"), **arguments)


def test_targets_are_found_or_refused_by_name() -> None:
    assert targets_of([1, 2]) == 2
    assert targets_of({"ids": 1, "labels": 2}) == 2
    assert pair_of({"x": 1, "label": 2}) == (1, 2)
    for batch, shown in [
        (X, "a Tensor"),
        ((1, 2, 3), "a tuple of 3"),
        ({"x": 1}, r"a dict with \['x'\]"),
        ({"y": 1, "label": 2}, r"a dict with \['y', 'label'\]"),
    ]:
        with pytest.raises(ht.DataError, match=f"but got {shown}"):
            targets_of(batch)
    with pytest.raises(ht.DataError, match=r"nothing else, but got a dict with \['x', 'y', 'weight'\]"):
        pair_of({"x": 1, "y": 2, "weight": 3})


def root(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"root": margin(model, batch).square().mean().sqrt(), **loss(model, batch)}


def looked_at(metric: Any, **options: Any) -> list[str]:
    """What is warned of at the first evaluation; nothing must be at the second."""
    asked = surrogate(metric, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asked.evaluate_units(space().sample(2))
    asked.evaluate_units(space().sample(3))
    asked.to("cpu").evaluate_units(space().sample(3))
    return [str(warning.message) for warning in caught]


def test_a_metric_that_is_no_mean_is_warned_of_once_and_by_name() -> None:
    state = torch.get_rng_state()
    (message,) = looked_at(root)
    assert torch.equal(torch.get_rng_state(), state)
    assert "'root' is no mean over examples" in message and "whole_set" in message
    both = joined(*BATCHES[:2])
    assert len(both[0]) == 36


def unequal(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"loss": F.cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([1.0, 5.0], dtype=torch.float64))}


def noisy(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"noise": torch.rand(()), "bias": margin(model, batch).mean()}


class Fixed:
    """Insists on the size of its batches, of which two have it."""

    def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        if len(batch[0]) not in (20, 16, 12):
            raise RuntimeError("another size")
        return root(model, batch)


@pytest.mark.parametrize(
    ("metric", "options", "names"),
    [
        (loss, {}, []),
        (noisy, {}, []),
        (unequal, {}, ["loss"]),
        ([loss, WHOLE], {}, []),
        (root, {"val_loader": [(X, Y)]}, []),
        (Fixed(), {}, []),
    ],
    ids=["mean", "random", "mean over classes", "whole set", "one batch", "cannot be joined"],
)
def test_means_are_told_from_others(metric: Any, options: dict[str, Any], names: list[str]) -> None:
    found = looked_at(metric, **options)
    assert len(found) == len(names) and all(f"'{name}'" in text for name, text in zip(names, found, strict=True))


def test_a_metric_under_batch_statistics_is_let_be() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    asked = ht.Surrogate(ht.HyperNetwork(network, space()), metric=loss, val_loader=BATCHES)
    asked.evaluate_units(space().sample(2))


def test_reading_stops_after_a_few_batches() -> None:
    read = 0

    class Endless:
        def __iter__(self) -> Iterator[Any]:
            nonlocal read
            for batch in BATCHES * 5:
                read += 1
                yield batch

    evaluator = Evaluator(hypernet("float64", "rank one"), loss, BATCHES)
    evaluator.data.loader, evaluator.data._cache = Endless(), None
    evaluator.names()
    evaluator._look_at_means(space().sample(1))
    assert 0 < read <= 8
