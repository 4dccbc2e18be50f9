"""Networks as users bring them: frozen parts, parts in evaluation mode, several number types, weights of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_problem import CONFIG, SPACE, plain_network
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.hypernetwork.primary import always_evaluating
from hypertune_mip.trainings.initialization import reinitialized, strangers_to_reset

MAPPINGS = ("vmap", "loop")
STIRRED = ht.RankOne(initialization="fan_out")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = 2 * draw(0, 48, 3) + 1, draw(1, 48, 1)


def error(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]).float(), batch[1])


def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
    return error(model, batch) + (config["decay"] + config["dropout"]) * ht.losses.l2(model)


def metric(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"error": error(model, batch)}


def fit(network: nn.Module, **options: Any) -> ht.Surrogate:
    hypernet = ht.HyperNetwork(network, SPACE, head=STIRRED, mapping=options.pop("mapping", "auto"))
    chosen = {"epochs": 1, "device": "cpu", "progress": False, "metric": metric, "val_loader": [(X, Y)]} | options
    return ht.fit(hypernet, chosen.pop("loss", loss), [(X, Y)], **chosen)


# Frozen parts


def frozen_below() -> nn.Module:
    network = plain_network()
    network[0].requires_grad_(False)
    return network


def test_what_was_frozen_is_frozen_in_a_materialised_network() -> None:
    given = frozen_below()
    made = fit(given).materialize(CONFIG)
    assert [p.requires_grad for p in made.parameters()] == [False, False, True, True]
    assert torch.equal(made[0].weight, given[0].weight)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("head", [ht.RankOne, ht.LowRank, ht.Dense])
def test_penalties_leave_frozen_parameters_out_however_they_are_written(head: Any, mapping: Any) -> None:
    penalties: dict[str, Callable[[nn.Module], Any]] = {
        "ours": ht.losses.l2,
        "trained": lambda m: sum(p.square().sum() for p in m.parameters() if p.requires_grad),
        "not by name": lambda m: sum(p.square().sum() for n, p in m.named_parameters() if not n.startswith("0.")),
        "parameters": lambda m: sum(
            p.square().sum() for p in m.parameters() if isinstance(p, nn.Parameter) and p.requires_grad
        ),
        "vector": lambda m: nn.utils.parameters_to_vector(p for p in m.parameters() if p.requires_grad).square().sum(),
    }
    hypernet = ht.HyperNetwork(frozen_below(), SPACE, head=head(initialization="fan_out"), mapping=mapping)
    units = SPACE.sample(3)
    formed = hypernet.effective(units)
    expected = sum(formed[name].square().flatten(1).sum(1) for name in ("2.weight", "2.bias"))
    for name, penalty in penalties.items():
        found = hypernet(lambda m, b, c: penalty(m) * torch.ones(()), units, (), split=False)  # noqa: B023
        torch.testing.assert_close(found, expected, msg=lambda text: f"{name}: {text}")  # noqa: B023
        found.sum().backward()
        assert hypernet.network[2].weight.grad is not None
        assert hypernet.network[0].weight.grad is None
        hypernet.zero_grad()


def test_penalties_can_count_frozen_parameters() -> None:
    network = frozen_below()
    everything = sum(float(p.detach().square().sum()) for p in network.parameters())
    assert float(ht.losses.l2(network, frozen=True).detach()) == pytest.approx(everything, rel=1e-6)
    network.requires_grad_(False)
    frozen, trained = (float(ht.losses.l1(network[i], frozen=True)) for i in (0, 2))
    network[2].requires_grad_(True)
    assert float(ht.losses.l1(network).detach()) == pytest.approx(trained, rel=1e-6)
    mixed = 0.5 * (frozen + trained) + 0.25 * everything
    assert float(ht.losses.elastic(network, l1_ratio=0.5, frozen=True).detach()) == pytest.approx(mixed, rel=1e-6)
    with pytest.raises(ht.LossError, match=r"'0\.weight', '0\.bias'\] are all frozen.*frozen=True"):
        ht.losses.l2(network, where="0.*")


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_activations_say_whether_they_require_gradients(mapping: Any) -> None:
    seen = []

    def function(model: nn.Module, batch: Any, config: Any) -> Tensor:
        output = model(batch)
        seen.append((output.requires_grad, batch.requires_grad, output.detach().requires_grad))
        return output.sum()

    hypernet = ht.HyperNetwork(plain_network(), SPACE, mapping=mapping)
    hypernet(function, SPACE.sample(1), X, split=False)
    assert seen == [(True, False, False)]


# Parts in evaluation mode


class FrozenBody(nn.Module):
    """A pretrained body that stays in evaluation mode, below a new head."""

    def __init__(self, *, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5))
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 1)
        for seed in range(20):
            self.body(2 * draw(seed, 48, 3) + 1)
        self.body.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenBody:
        super().train(mode)
        if not self.by_hand:
            self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)))


def test_a_trainable_part_in_evaluation_mode_is_trained_and_named() -> None:
    """Pretrained networks come in evaluation mode, and stand in new ones that are in training mode."""
    network = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).eval(), nn.Linear(4, 1))
    with pytest.warns(ht.HypertuneWarning, match=r"modules \['0'\] are in evaluation mode.*network\.train\(\)"):
        hypernet = ht.HyperNetwork(network, SPACE).train()
    assert hypernet.network[0][1].training
    ht.HyperNetwork(network.train(), SPACE)


def body_by_hand() -> nn.Module:
    network = FrozenBody(by_hand=True)
    assert network.training and not network.body.training
    return network


BODIES: dict[str, Callable[[], nn.Module]] = {
    "its own train": lambda: FrozenBody(by_hand=False),
    "by hand": body_by_hand,
}


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("body", BODIES)
def test_a_body_in_evaluation_mode_keeps_its_running_statistics(body: str, mapping: Any) -> None:
    given = BODIES[body]()
    surrogate = fit(given, mapping=mapping)
    hypernet = surrogate.hypernet
    assert hypernet.batch_norms == ("norm",)
    hypernet.train()
    assert not hypernet.network.body.training and hypernet.network.norm.training
    made = surrogate.materialize(CONFIG, recalibrate=[(X, Y)])
    for name, buffer in given.body.named_buffers():
        assert torch.equal(made.body.get_buffer(name), buffer)
    hypernet.eval()
    first, second = (hypernet.train()(lambda m, b, c: m(b), SPACE.sample(1), X, split=False) for _ in range(2))
    torch.testing.assert_close(first, second)  # its dropout is off as well


@pytest.mark.parametrize("body", BODIES)
def test_real_training_leaves_such_a_body_alone(body: str) -> None:
    given = BODIES[body]()
    network = fit(given).trainer(ht.Recipe(epochs=2)).network(CONFIG)
    for name, value in given.body.state_dict().items():
        assert torch.equal(network.body.state_dict()[name], value)
    assert not torch.equal(network.norm.running_mean, torch.zeros(4))


def test_frozen_normalisation_that_loses_its_statistics_is_named() -> None:
    """A network that is in evaluation mode as a whole, as pretrained ones come, says nothing of its parts."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    network[1].requires_grad_(False)
    with pytest.warns(ht.HypertuneWarning, match=r"\['1'\] are frozen, but in training mode"):
        ht.HyperNetwork(network.eval(), SPACE)
    network.train()[1].eval()
    assert ht.HyperNetwork(network, SPACE).batch_norms == ()


def test_which_modules_stay_in_evaluation_mode() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    assert always_evaluating(network) == frozenset()
    assert always_evaluating(network.eval()) == frozenset()  # pretrained networks come so, to be trained as a whole
    network.train()[1].eval()
    assert always_evaluating(network) == {"1"}
    assert network.training


# Recalibration


class TwoInputs(nn.Module):
    """Normalises the first of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(3, momentum=0.3), nn.Linear(6, 1)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        return self.out(torch.cat([self.norm(x), extra], 1))


@pytest.mark.parametrize("known", ["loss", "metric"])
def test_running_statistics_come_from_batches_as_training_takes_them(known: str) -> None:
    def own_metric(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"error": F.mse_loss(model(batch["x"], batch["extra"]), batch["y"])}

    def own_loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return own_metric(model, batch)["error"] + (config["decay"] + config["dropout"]) * ht.losses.l2(model)

    hypernet = ht.HyperNetwork(TwoInputs(), SPACE)
    batches = [{"y": Y[rows], "extra": draw(3, 24, 3), "x": X[rows]} for rows in (slice(0, 24), slice(24, 48))]
    functions = {"loss": own_loss} if known == "loss" else {"metric": own_metric, "val_loader": batches}
    network = ht.Surrogate(hypernet, **functions).materialize(CONFIG, recalibrate=batches)
    torch.testing.assert_close(network.norm.running_mean, X.mean(0))
    assert all(p.grad is None for p in network.parameters())
    assert network.norm.momentum == 0.3 and not network.training
    with pytest.raises(ht.DataError, match="no batch"):
        ht.Surrogate(hypernet, **functions).materialize(CONFIG, recalibrate=[])


def test_running_statistics_have_the_networks_own_type() -> None:
    normed = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    surrogate = ht.Surrogate(ht.HyperNetwork(normed, SPACE), loss=loss)
    network = surrogate.materialize(CONFIG, recalibrate=[(X.double(), Y)])
    assert network[0].running_mean.dtype == torch.float64
    network(X[:1].double())


# Several number types


class Mixed(nn.Module):
    """A body in one type below a head in float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(3, 6).to(dtype), nn.Linear(6, 1)
        self.drop = ht.nn.Dropout("dropout")

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.body(x.to(self.body.weight.dtype))).float())


class Quantised(nn.Module):
    """A frozen int8 weight, the first parameter, beside a trainable map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Parameter(torch.arange(-3, 6, dtype=torch.int8).reshape(3, 3), requires_grad=False)
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(x, self.body.float() / 7))


MIXED: dict[str, Callable[[], nn.Module]] = {
    "bfloat16": lambda: Mixed(torch.bfloat16),
    "float64": lambda: Mixed(torch.float64),
    "quantised": Quantised,
}


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("name", MIXED)
def test_networks_of_several_number_types(name: str, mapping: Any, tmp_path: Any) -> None:
    given = MIXED[name]()
    surrogate = fit(given, mapping=mapping)
    made = surrogate.materialize(CONFIG)
    assert [p.dtype for p in made.parameters()] == [p.dtype for p in given.parameters()]
    value = surrogate.evaluate(CONFIG)["error"]
    assert value == pytest.approx(error(made, (X, Y)).item(), rel=2e-2 if name == "bfloat16" else 1e-5)
    assert surrogate.hypernet.dtype == (torch.float64 if name == "float64" else torch.float32)
    surrogate.save(tmp_path)
    again = ht.Surrogate.load(tmp_path, MIXED[name](), metric=metric, val_loader=[(X, Y)])
    assert again.evaluate(CONFIG)["error"] == value
    real = surrogate.trainer(ht.Recipe(epochs=1)).train([CONFIG], progress=False)
    assert np.isfinite(real["error"]).all()


# First weights of real trainings


class OwnInitialisation(nn.Module):
    """Small weights, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(3, 32), nn.Linear(32, 1)
        for layer in (self.inner, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x).relu())


def trained(network: nn.Module, steps: int) -> nn.Module:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        error(network, (X, Y)).backward()
        optimizer.step()
    return network


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 64), nn.LayerNorm(64), nn.Tanh(), nn.Linear(64, 1))


FRESH: dict[str, Callable[[], nn.Module]] = {
    "mlp": plain_network,
    "wide": wide,
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 1)),
    "embedding": lambda: nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50)),
    "transformer": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "recurrent": lambda: nn.GRU(4, 8),
}


def with_weights(network: nn.Module, change: Callable[[Tensor], Any]) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            change(parameter)
    return network


OWN: dict[str, Callable[[], nn.Module]] = {
    "few numbers": lambda: with_weights(nn.Linear(3, 1), lambda p: p.copy_(torch.tensor([5.0, -3, 2])[: p.numel()])),
    "one number": lambda: with_weights(nn.Conv2d(1, 1, 1), lambda p: p.fill_(100.0)),
    "few numbers, scaled": lambda: with_weights(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), lambda p: p.mul_(4.0).add_(p.sign())
    ),
    "normal numbers alone": lambda: nn.Sequential(nn.Embedding(50, 8), nn.Embedding(50, 8)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "of its own": OwnInitialisation,
    "trained a little": lambda: trained(wide(), 3),
    "trained": lambda: trained(wide(), 100),
    "orthogonal": lambda: orthogonal(),
    "by hand": lambda: nn.ParameterList([nn.Parameter(torch.randn(4, 4))]),
}


def orthogonal() -> nn.Module:
    network = nn.Linear(32, 32)
    nn.init.orthogonal_(network.weight)
    return network


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", FRESH)
def test_a_fresh_network_is_known_as_such(name: str, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        assert strangers_to_reset(FRESH[name]()) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OWN)
def test_weights_that_reset_would_not_draw_are_known_as_such(name: str, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        assert strangers_to_reset(OWN[name]()) != []


def untrained(network: nn.Module, *, rate: float = 0.0, epochs: int = 1, **options: Any) -> ht.Trainer:
    """Whose trainings leave the weights as they were at first, unless a rate is given."""
    recipe = ht.Recipe(epochs=epochs, optimizer=lambda p, config: torch.optim.SGD(p, lr=rate), schedule=None)
    return ht.Trainer(network, SPACE, loss, [(X, Y)], metric=metric, val_loader=[(X, Y)], recipe=recipe, **options)


def test_real_training_starts_from_weights_of_ones_own() -> None:
    network = OwnInitialisation()
    trainer = untrained(network)
    assert trainer.train([CONFIG], progress=False)["error"].item() == pytest.approx(
        error(network, (X, Y)).item(), rel=1e-5
    )
    with pytest.warns(ht.HypertuneWarning, match=r"All seeds start from the same weights.*inner\.weight.*`initialize`"):
        several = trainer.train([CONFIG], seeds=3, progress=False)["error"]
    assert several.std() == 0
    untrained(network, initialize="given").train([CONFIG], seeds=2, progress=False)  # which was asked for
    assert untrained(wide()).train([CONFIG], seeds=3, progress=False)["error"].std() > 0
    made = untrained(network, initialize=OwnInitialisation).train([CONFIG], seeds=3, progress=False)["error"]
    assert made.std() > 0


def test_stored_trainings_are_those_of_the_same_frozen_part(tmp_path: Any) -> None:
    networks = [nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(2)]
    for network in networks:
        network[0].requires_grad_(False)
    for network, finished in ((networks[0], 1), (networks[0], 1), (networks[1], 2)):
        trainer = untrained(network, folder=tmp_path)
        value = trainer.train([CONFIG], progress=False)["error"].item()
        assert f"finished={finished}," in repr(trainer)
        assert value == untrained(network).train([CONFIG], progress=False)["error"].item()


def test_networks_with_frozen_parts_of_their_own_are_trained_apart() -> None:
    def make() -> nn.Module:
        network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        network[0].requires_grad_(False)
        return network

    configs = [CONFIG | {"decay": decay} for decay in (1e-3, 1e-2, 1e-1)]
    options: dict[str, Any] = {"initialize": make, "epochs": 3, "rate": 0.1}
    stacked, alone = (
        untrained(make(), parallel=parallel, **options).train(configs, common=False, progress=False)["error"]
        for parallel in (16, 1)
    )
    np.testing.assert_allclose(stacked, alone, rtol=1e-5)


def test_fresh_weights_leave_what_is_frozen() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    network[0].requires_grad_(False)
    network(X)
    fresh = reinitialized(network, 7)
    assert torch.equal(fresh[0].weight, network[0].weight)
    assert torch.equal(fresh[1].running_mean, network[1].running_mean)
    assert not torch.equal(fresh[2].weight, network[2].weight)


@pytest.mark.parametrize("mapping", ["auto", "loop"])
def test_real_trainings_are_run_as_the_hypernetwork_is(mapping: Any) -> None:
    trainer = fit(plain_network(), mapping=mapping).trainer()
    assert ("one after another" in repr(trainer)) == (mapping == "loop")
    with pytest.raises(ht.OptionError, match="`mapping`"):
        untrained(plain_network(), mapping="both")


# Losses that go backward themselves


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")  # after three steps
@pytest.mark.parametrize("mapping", ["auto", "loop"])
def test_a_loss_that_uses_gradients_is_trained_and_verified(mapping: Any) -> None:
    def slope(model: nn.Module, batch: Any, config: Any) -> Tensor:
        x = batch[0].clone().requires_grad_()
        output = model(x)
        (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return F.mse_loss(output, batch[1]) + (config["decay"] + config["dropout"]) * gradient.square().mean()

    surrogate = fit(plain_network(), mapping=mapping, loss=slope, epochs=3)
    report = surrogate.verify("error", settings=2, best=1, progress=False)
    assert np.isfinite(report.true["error"]).all()


# State that cannot follow the setting


class Running(nn.Module):
    """Subtracts a running mean of activations, which it keeps in a buffer."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.inner, self.out, self.in_place = nn.Linear(3, 4), nn.Linear(4, 1), in_place
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("positions", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x).relu()
        self.positions = torch.zeros(4)  # made anew each time, but always the same
        if self.training and self.in_place:
            self.mean.mul_(0.9).add_(0.1 * hidden.detach().mean(0))
        elif self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        return self.out(hidden - self.mean)


@pytest.mark.parametrize(("in_place", "fate"), [(True, "are one for all"), (False, "undone after each")])
def test_buffers_that_do_not_follow_the_setting_are_named(in_place: bool, fate: str) -> None:
    with pytest.warns(ht.HypertuneWarning, match=rf"The buffers \['mean'\] change .*{fate}"):
        fit(Running(in_place=in_place), mapping="loop")
    if not in_place:
        with pytest.warns(ht.HypertuneWarning, match=r"\['mean'\]"):
            fit(Running(in_place=False), mapping="vmap")
