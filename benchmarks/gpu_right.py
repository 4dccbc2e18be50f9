"""Whether a device computes what a CPU does in float64: outputs, gradients, mixed precision, and whole trainings.

Everything goes through `ht.fit` and `ht.Surrogate`. A gradient is read off one step of gradient descent.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import hypertune_mip as ht
from benchmarks.networks import GPT
from tests import cases

SETTINGS = 3
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}  # of the norm of all gradients, of the size of outputs
_RATE = 1024.0  # of the one step: weights move by much more than they are rounded to, and by a power of two
_DRIFT = 0.02  # of the first loss, after a training: rounding is the only difference

NETWORKS = {name: row for name, row in cases.NETWORKS.items() if not row.noisy} | {  # noise depends on the device
    "gpt": cases.Network(lambda: GPT(7, 16, 2, 5, 2), (4, 5), index=True),
    "gpt, long": cases.Network(lambda: GPT(7, 128, 1, 128, 2), (2, 128), index=True),  # heads that fused kernels take
}
MIXED = ("mlp", "group norm", "layer norm", "transformer", "gpt", "gpt, long")
TRAINED = ("mlp", "group norm", "batch norm", "transformer", "gpt")


@dataclass(frozen=True)
class Part:
    """Cases, and what is measured of each; picklable, and resumed at any case."""

    measure: Callable[[dict[str, Any], str], dict[str, Any]]
    listed: Callable[[bool], list[dict[str, Any]]]

    def cases(self, smoke: bool) -> list[dict[str, Any]]:
        return self.listed(smoke)

    def __call__(self, device: str, smoke: bool, first: int, seconds: float) -> Iterator[dict[str, Any]]:
        """Rows from the first case on; fewer than all if the device has failed for good."""
        _prepare(device)
        end = time.perf_counter() + seconds
        for case in self.cases(smoke)[first:]:
            if time.perf_counter() > end:
                yield {**case, "error": "not run: out of time"}
                continue
            try:
                yield {**case, **self.measure(case, device)}
            except Exception as error:
                yield {**case, "error": f"{type(error).__name__}: {error}"}
                if not _alive(device):
                    return


def mappings() -> tuple[str, ...]:
    """Those that this version knows."""
    known = []
    for mapping in ("vmap", "loop", "auto"):
        try:
            ht.HyperNetwork(nn.Linear(2, 2), cases.space("float"), mapping=mapping)
        except ht.HypertuneError:
            continue
        known.append(mapping)
    return tuple(known)


def _listed_correct(smoke: bool) -> list[dict[str, Any]]:
    rows = [
        {"network": name, "head": head, "mapping": mapping, "precision": "float32"}
        for name, network in NETWORKS.items()
        for head in cases.HEADS
        for mapping in mappings()
        if network.vmap or mapping != "vmap"
    ]
    rows += [
        {"network": network, "head": "rank one", "mapping": mapping, "precision": "bfloat16"}
        for network in MIXED
        for mapping in mappings()
    ]
    return rows[::7] if smoke else rows


def _listed_trained(smoke: bool) -> list[dict[str, Any]]:
    rows = [{"network": network, "mapping": mapping} for network in TRAINED for mapping in mappings()]
    return rows[:2] if smoke else rows


def _correct(case: dict[str, Any], device: str) -> dict[str, Any]:
    """Relative errors of all gradients together, and of metrics and materialised outputs."""
    network, head, precision = case["network"], case["head"], case["precision"]
    table = NETWORKS[network]
    batch = (table.input(),)
    hypernet = _hypernet(network, head, mapping=case["mapping"])
    tensors = _outputs(copy.deepcopy(hypernet).to(device), batch, device) if precision == "float32" else []
    gradient = _gradient(hypernet, batch, device, precision=precision)
    expected_gradient, expected = _reference(network, head)
    found = {
        "gradient": _error(gradient, expected_gradient),
        "output": max((_error(a, b) for a, b in zip(tensors, expected, strict=False)), default=0.0),
    }
    return {**found, "right": all(value <= TOLERANCE[precision] for value in found.values())}


@cache
def _reference(network: str, head: str) -> tuple[Tensor, list[Tensor]]:
    """Of a CPU in float64, one setting after another in the plain sense: the table's laws hold there."""
    hypernet = _hypernet(network, head)
    double = ht.HyperNetwork(NETWORKS[network].network().double(), cases.space(), head=cases.HEADS[head], seed=3)
    double.load_state_dict(hypernet.state_dict())
    batch = tree_map(lambda t: t.double() if t.is_floating_point() else t, (NETWORKS[network].input(),))
    outputs = _outputs(copy.deepcopy(double), batch, "cpu")
    return _gradient(double, batch, "cpu"), outputs


def _hypernet(network: str, head: str, **options: Any) -> ht.HyperNetwork:
    """In float32 on the CPU, with heads that make settings differ."""
    return ht.HyperNetwork(NETWORKS[network].network(), cases.space(), head=cases.HEADS[head], seed=3, **options)


def _loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
    output = model(batch[0])
    return (1 + config["rate"]) * output.square().mean() + config["decay"] * ht.losses.l2(model)


def _gradient(hypernet: ht.HyperNetwork, batch: Any, device: str, *, precision: str = "float32") -> Tensor:
    """All gradients of one step at settings with the whole batch, in one vector (float64)."""
    names = [name for name, _ in hypernet.named_parameters()]
    before = {name: tensor.detach().double().cpu().clone() for name, tensor in hypernet.named_parameters()}
    ht.fit(
        hypernet, _loss, [batch], epochs=1, settings_per_step=SETTINGS, batching="full", normalize=False,
        optimizer=partial(torch.optim.SGD, lr=_RATE), schedule=None, precision=precision, device=device, progress=False,
    )  # fmt: skip
    after = dict(hypernet.named_parameters())
    return torch.cat([(before[name] - after[name].detach().double().cpu()).flatten() / _RATE for name in names])


def _outputs(hypernet: ht.HyperNetwork, batch: Any, device: str) -> list[Tensor]:
    """Metrics at settings, and the output of a materialised network."""
    on_device = tree_map(lambda t: t.to(device), batch)
    surrogate = ht.Surrogate(hypernet, metric=_projections, val_loader=[on_device])
    configs = hypernet.space.from_unit(hypernet.space.sample(SETTINGS, seed=1))
    values = surrogate.evaluate_batch(configs)
    with torch.no_grad():
        output = surrogate.materialize(configs[1]).eval().to(device)(on_device[0])
    return [torch.tensor(values["mean"]).double(), torch.tensor(values["square"]).double(), output.double().cpu()]


def _projections(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    output = model(batch[0])
    weights = torch.linspace(-1, 1, output.numel(), device=output.device, dtype=output.dtype).reshape(output.shape)
    return {"mean": (weights * output).mean(), "square": (output * output).mean()}


def _trained(case: dict[str, Any], device: str) -> dict[str, Any]:
    """The loss after a training with the defaults, whose last batches are smaller, there and on the CPU."""
    (first, last), (_, expected) = (_losses(case, where) for where in (device, "cpu"))
    difference = abs(last - expected) / abs(first)
    return {"first": first, "last": last, "difference": difference, "right": last < first and difference <= _DRIFT}


def _losses(case: dict[str, Any], device: str) -> tuple[float, float]:
    """Of the first and the last epoch; a NaN stops a training."""
    table = NETWORKS[case["network"]]
    parts = [(table.input(), index) for index in range(8)]
    examples = torch.cat([x + index / 8 if x.is_floating_point() else (x + index) % 7 for x, index in parts])
    batches = [(part,) for part in examples.split(2 * len(examples) // 5)]
    hypernet = ht.HyperNetwork(table.network(), cases.space(), seed=3, mapping=case["mapping"])
    surrogate = ht.fit(hypernet, _loss, batches, epochs=20, device=device, progress=False)
    return float(surrogate.history[0]["loss"]), float(surrogate.history[-1]["loss"])


correct = Part(_correct, _listed_correct)
trained = Part(_trained, _listed_trained)


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def _prepare(device: str) -> None:
    """float32 means float32 here: convolutions would round to ten bits."""
    if device == "cpu":
        torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    warnings.simplefilter("ignore")


def _alive(device: str) -> bool:
    """Whether the device still computes: some errors of CUDA are there to stay."""
    try:
        return float(torch.ones(2, device=device).sum()) == 2.0
    except Exception:
        return False
