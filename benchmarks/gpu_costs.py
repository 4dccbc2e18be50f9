"""What steps of training and evaluation cost on a device, beside plain ones, eager and captured in a CUDA graph."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

import torch

import hypertune_mip as ht
from benchmarks import networks
from benchmarks.networks import CONFIG, SPACE, Case, Marked

VARIANTS: dict[str, dict[str, Any]] = {
    "one, whole batch": {"settings_per_step": 1, "batching": "full"},
    "default": {},
}
ASIDE: dict[str, dict[str, Any]] = {  # to see what each mapping gives; one round
    "one, vmap": VARIANTS["one, whole batch"] | {"mapping": "vmap"},
    "one, loop": VARIANTS["one, whole batch"] | {"mapping": "loop"},
}
ROUNDS = 3
_BATCHES = 4


@dataclass(frozen=True)
class Measured:
    """A case: steps that warm up and that are timed, evaluations, and targets as multiples of plain figures."""

    case: Case
    warm: int
    steps: int
    settings: int
    rows: int  # of validation data
    targets: dict[str, float]
    precision: str = "float32"
    tiny: Case | None = None
    window: int = 10  # steps between two looks at the clock, for which the device is waited for


CASES = {
    "MLP, batch 100": Measured(Case(networks.mlp, 100, (196,), 10), 60, 200, 2000, 2000, {"eager": 0.5}),
    "MLP, batch 1,000": Measured(Case(networks.mlp, 1000, (196,), 10), 60, 200, 2000, 2000, {"eager": 0.5}),
    "ResNet-18, batch 512, bfloat16": Measured(
        Case(networks.resnet18, 512, (3, 32, 32), 10), 30, 40, 16, 1024, {"captured": 1.3, "memory": 1.3}, "bfloat16",
        Case(lambda: networks.resnet18(8), 8, (3, 8, 8), 10),
    ),
    "GPT, 8 layers of width 512, batch 32, bfloat16": Measured(
        Case(lambda: networks.GPT(8192, 512, 8, 256, 8), 32, (256,), 8192, tokens=True), 30, 40, 16, 32,
        {"captured": 1.4, "memory": 1.3}, "bfloat16",
        Case(lambda: networks.GPT(32, 16, 2, 8, 2), 4, (8,), 32, tokens=True),
    ),
}  # fmt: skip


def measured(name: str, device: str, smoke: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """The figures of one case; no round is begun after so many seconds."""
    warnings.simplefilter("ignore")
    if device == "cpu":
        torch.set_num_threads(1)
    one = CASES[name]
    if smoke:
        case = one.tiny or replace(one.case, batch=8)
        one = replace(one, case=case, warm=2, steps=4, settings=4, rows=2 * case.batch, window=2)
    end = time.perf_counter() + seconds
    trainings = _trainings(one, device)
    batches = one.case.batches(_BATCHES, device)
    runs: dict[str, list[dict[str, Any]]] = {key: [] for key in trainings}
    for index in range(1 if smoke else ROUNDS):
        for key, training in trainings.items():
            failed = any("error" in run for run in runs[key])
            if index and (key in ASIDE or failed or time.perf_counter() > end):
                continue
            runs[key].append(_guarded(lambda t=training: _run(t, batches, one, device)))
    yield {
        "case": name,
        "parameters": sum(p.numel() for p in one.case.plain().parameters()),
        "precision": one.precision,
        "targets": one.targets,
        "plain": {key: _middle(runs[key], "milliseconds") for key in ("eager", "captured")},
        "plain_memory": {key: _middle(runs[key], "memory") for key in ("eager", "captured")},
        "errors": {key: run["error"] for key in ("eager", "captured") for run in runs[key] if "error" in run},
        "variants": {key: _variant(runs[key], runs["eager"]) for key in (*VARIANTS, *ASIDE)},
        "runs": runs,
        "evaluate": _guarded(lambda: _evaluate(one, device)),
    }


def _trainings(one: Measured, device: str) -> dict[str, Callable[[Marked], Any]]:
    autocast = None if one.precision == "float32" else getattr(torch, one.precision)

    def fit(loader: Marked, options: dict[str, Any]) -> ht.Surrogate:
        own = {key: value for key, value in options.items() if key == "mapping"}
        rest = {key: value for key, value in options.items() if key != "mapping"}
        return ht.fit(
            one.case.hypernet(**own), networks.loss, loader, epochs=1, precision=one.precision, device=device,
            progress=False, **rest,
        )  # fmt: skip

    return {
        "eager": lambda loader: networks.plain_training(one.case.plain().to(device), loader, autocast=autocast),
        "captured": lambda loader: captured_training(one.case.plain().to(device), loader, autocast=autocast),
        **{key: lambda loader, o=options: fit(loader, o) for key, options in (VARIANTS | ASIDE).items()},
    }


def captured_training(network: torch.nn.Module, loader: Marked, *, autocast: torch.dtype | None) -> None:
    """An epoch of plain training with a constant rate, whose step is one CUDA graph; on a CPU, the step as it is."""
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True, capturable=device.type == "cuda")
    held = [tensor.clone() for tensor in loader.batches[0]]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None, cache_enabled=False):
            value = networks.loss(network, held, CONFIG)
        value.backward()
        optimizer.step()

    replay = step
    if device.type == "cuda":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replay = graph.replay
    for batch in loader:
        for own, new in zip(held, batch, strict=True):
            own.copy_(new)
        replay()


def _run(training: Callable[[Marked], Any], batches: list[Any], one: Measured, device: str) -> dict[str, float]:
    """Milliseconds a step: the median over windows. Bytes: the most that was allocated beyond the batches."""
    gc.collect()
    times: list[float] = []
    cuda = device == "cuda"
    before = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()

    def mark(step: int) -> None:
        if step >= one.warm and (step - one.warm) % one.window == 0:
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    begin = time.perf_counter()
    training(Marked(batches, one.warm + one.steps, mark))
    if cuda:
        torch.cuda.synchronize()
    milliseconds = median([1e3 * (b - a) / one.window for a, b in pairwise(times)])
    return {
        "milliseconds": milliseconds,
        "start_seconds": time.perf_counter() - begin - (one.warm + one.steps) * milliseconds / 1e3,
        "memory": torch.cuda.max_memory_allocated() - before if cuda else 0,
        "reserved": torch.cuda.max_memory_reserved() if cuda else 0,
    }


def _variant(runs: list[dict[str, Any]], eager: list[dict[str, Any]]) -> dict[str, Any]:
    for run in runs:
        if "error" in run:
            return {"error": run["error"]}
    memory, plain = _middle(runs, "memory"), _middle(eager, "memory")
    return {
        "milliseconds": _middle(runs, "milliseconds"),
        "start_seconds": _middle(runs, "start_seconds"),
        "memory": memory,
        "memory_ratio": memory / plain if memory and plain else None,
    }


def _middle(runs: list[dict[str, Any]], key: str) -> float | None:
    known = [run[key] for run in runs if key in run]
    return median(known) if known else None


def _evaluate(one: Measured, device: str) -> dict[str, float]:
    """Settings a second, and their time in that of as many plain passes over the validation data."""
    case = replace(one.case, batch=min(one.rows, one.case.batch))
    data = case.batches(-(-one.rows // case.batch), device)
    hypernet = case.hypernet().to(device)
    surrogate = ht.Surrogate(hypernet, metric=networks.metric, val_loader=data)
    space = ht.SearchSpace(SPACE)
    configs = space.from_unit(space.sample(one.settings, seed=0))
    network = case.plain().eval().to(device)

    def plain() -> None:
        with torch.no_grad():
            for _ in range(one.settings):
                values = [networks.metric(network, batch)["loss"] for batch in data]
                float(torch.stack(values).mean())

    times: dict[str, list[float]] = {"surrogate": [], "plain": []}
    functions = {"surrogate": lambda: surrogate.evaluate_batch(configs), "plain": plain}
    for _ in range(3):
        for key, function in functions.items():
            begin = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            times[key].append(time.perf_counter() - begin)
    best = {key: min(values) for key, values in times.items()}  # the first warms up
    return {
        "settings": one.settings,
        "settings_per_second": one.settings / best["surrogate"],
        "in_plain_passes": best["surrogate"] / best["plain"],
    }


def _guarded(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it returns, or its error as text."""
    try:
        return function()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
