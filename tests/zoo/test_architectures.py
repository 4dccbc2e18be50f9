"""Networks of other packages, made and called as their users do: served, bound, fitted and trained for real.

Needs `pip install "hypertune-mip[zoo]"`; nothing is downloaded, all weights are random.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht
from tests.zoo import ZOO
from tests.zoo.architecture import Architecture

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]  # of other packages, about themselves
every_architecture = pytest.mark.parametrize("name", ZOO)

DECAY = {"decay": FloatDistribution(1e-5, 1e-1, log=True)}
SPACE = ht.SearchSpace(DECAY)
DROPOUT = ht.SearchSpace({**DECAY, "dropout": FloatDistribution(0.0, 0.5)})
FAN_OUT = ht.RankOne(initialization="fan_out")
CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # in float32, through batch norms of a few values


@pytest.fixture
def row(name: str) -> Iterator[Architecture]:
    architecture = ZOO[name]
    if find_spec(architecture.package.partition(".")[0]) is None:
        pytest.skip(f'needs {architecture.package}: pip install "hypertune-mip[zoo]"')
    yield architecture


def loss(row: Architecture, model: nn.Module, batch: Any, config: Any) -> Tensor:
    return row.loss(model, batch) + 0.5 * config["decay"] * ht.losses.l2(model)


def metric(row: Architecture, model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"loss": row.loss(model, batch)}


def output(row: Architecture, model: nn.Module, batch: Any, config: Any) -> Tensor:
    return row.output(model, batch)


def hypernet(row: Architecture, **options: Any) -> ht.HyperNetwork:
    """In evaluation mode, with heads that make settings differ."""
    return ht.HyperNetwork(row.network(), SPACE, head=FAN_OUT, seed=1, **options).eval()


@every_architecture
def test_both_mappings_give_the_materialized_networks(row: Architecture) -> None:
    units, (batch,) = SPACE.sample(3), row.batches(1)
    this = hypernet(row, mapping="loop")
    found = this(partial(output, row), units, batch, split=False)
    with torch.no_grad():
        for config, result in zip(SPACE.from_unit(units), found, strict=True):
            plain = ht.Surrogate(this).materialize(config).eval()
            torch.testing.assert_close(row.output(plain, batch), result, **CLOSE)
    assert not torch.equal(found[0], found[1])
    mapped = hypernet(row, mapping="vmap")
    if row.vmap:
        torch.testing.assert_close(mapped(partial(output, row), units, batch, split=False), found, **CLOSE)
    else:
        with pytest.raises(ht.NetworkError, match="loop"):
            mapped.train()(partial(loss, row), units, batch, split=False).sum().backward()


@every_architecture
def test_gradients_are_the_same_in_every_way(row: Architecture) -> None:
    """Of differentiable losses by both mappings, and of a step, which goes back at each setting."""
    units, (batch,) = SPACE.sample(3), row.batches(1)
    found = []
    for mapping in ("vmap", "loop") if row.vmap else ("loop",):
        this = hypernet(row, mapping=mapping)
        this(partial(loss, row), units, batch, split=False).sum().backward()
        found.append(gradient(this))
    this = hypernet(row, mapping="loop")
    weigh = lambda losses, rows: torch.ones_like(losses)  # noqa: E731
    this.weighted(partial(loss, row), units, batch, split=False, weigh=weigh)[0].backward()
    expected = gradient(this)
    assert expected.norm() > 0
    for other in found:
        assert (other - expected).norm() < 1e-3 * expected.norm()


def gradient(this: ht.HyperNetwork) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in this.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", [name for name, row in ZOO.items() if row.rates])
@pytest.mark.parametrize("mapping", ["auto", "loop"])
def test_bound_dropout_follows_the_config(row: Architecture, mapping: Any) -> None:
    """At rate 0 training is deterministic and gives what evaluation gives; at rate 0.5 it is neither."""
    bound = ht.nn.bind(row.network(), dict.fromkeys(row.rates, "dropout"))
    head = ht.Dense(initialization="fan_out")  # adds to weights that start at zero, which scales cannot change
    this = ht.HyperNetwork(bound, DROPOUT, head=head, mapping=mapping, seed=1)
    (batch,) = row.batches(1)
    units = DROPOUT.to_unit([{"decay": 1e-3, "dropout": rate} for rate in (0.0, 0.5)])
    expected = this.eval()(partial(output, row), units, batch, split=False)
    first, second = (this.train()(partial(output, row), units, batch, split=False) for _ in range(2))
    torch.testing.assert_close(first[0], expected[0], **CLOSE)
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1], second[1])


@pytest.mark.parametrize("name", [name for name, row in ZOO.items() if not row.rates])
def test_networks_without_dropout_say_so(row: Architecture) -> None:
    with pytest.raises(ht.NetworkError, match="matches no dropout"):
        ht.nn.bind(row.network(), {"*": "dropout"})


@every_architecture
def test_two_steps_of_fit_and_what_the_surrogate_says(row: Architecture) -> None:
    surrogate = fitted(row)
    config = {"decay": 1e-3}
    value = surrogate.evaluate(config)["loss"]
    plain = surrogate.materialize(config).eval()
    with torch.no_grad():
        losses = [row.loss(plain, batch) for batch in row.batches(2)]
    assert value == pytest.approx(float(torch.stack(losses).mean()), rel=1e-3)


@every_architecture
def test_real_training_starts_at_the_networks_own_initialization(row: Architecture) -> None:
    """It runs, and where no step moves the weights they are as the package itself draws them."""
    surrogate = fitted(row)
    report = surrogate.verify(
        "loss", settings=2, best=0, trainer=surrogate.trainer(ht.Recipe(epochs=1)), progress=False
    )
    assert len(report.configs) == 2
    still = surrogate.trainer(ht.Recipe(epochs=1, optimizer=lambda p, config: torch.optim.SGD(p, lr=0.0)))
    plain, own = still.network({"decay": 1e-3}), row.network()
    for name, parameter in own.named_parameters():
        drawn = plain.get_parameter(name)
        if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
            assert torch.equal(drawn, parameter), name
        elif parameter.numel() >= 32:
            assert 0.5 < drawn.std() / parameter.std() < 2.0, name


def fitted(row: Architecture) -> ht.Surrogate:
    batches = row.batches(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        this = ht.HyperNetwork(row.network(), SPACE)
        return ht.fit(
            this,
            partial(loss, row),
            batches,
            metric=partial(metric, row),
            val_loader=batches,
            epochs=1,
            device="cpu",
            progress=False,
        )
