"""Steps: a hypernetwork's training step in plain training steps on a CPU, one thread, interleaved; and its memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

import hypertune_mip as ht
from benchmarks import networks, results
from benchmarks.memory import Live, Saved
from benchmarks.networks import Case, Marked

VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {"settings_per_step": 1, "batching": "full"},  # one setting a step, which has the whole batch
    "default": {},
}
ROUNDS = 5


@dataclass(frozen=True)
class Measured:
    """A case, the steps that are timed after those that warm up, and what `whole` should cost at most."""

    case: Case
    warm: int
    steps: int
    target: float
    memory_target: float | None = None


CASES = {
    "MLP, batch 100": Measured(Case(networks.mlp, 100, (196,), 10), 30, 200, 1.6),
    "MLP, batch 1,000": Measured(Case(networks.mlp, 1000, (196,), 10), 30, 50, 1.15),
    "ResNet-18, width 32, batch 64": Measured(
        Case(lambda: networks.resnet18(32), 64, (3, 32, 32), 10), 6, 6, 1.15, 1.3
    ),
    "GPT, width 128, batch 16": Measured(
        Case(lambda: networks.GPT(256, 128, 4, 64, 4), 16, (64,), 256, tokens=True), 20, 20, 1.3, 1.3
    ),
}
_BATCHES = 4
_MEMORY = (8, 2)  # steps before and while memory is measured


def run(smoke: bool = False) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        chosen = list(CASES.items())[:1] if smoke else CASES.items()
        rows = [_row(name, measured, smoke) for name, measured in chosen]
        return results.write("steps", {"rows": rows, "rounds": 1 if smoke else ROUNDS}, smoke=smoke)
    finally:
        torch.set_num_threads(threads)


def _row(name: str, measured: Measured, smoke: bool) -> dict[str, Any]:
    case, warm, steps = measured.case, *((2, 3) if smoke else (measured.warm, measured.steps))
    trainings = {"plain": lambda loader: networks.plain_training(case.plain(), loader)} | {
        variant: lambda loader, o=options: _fit(case, loader, o) for variant, options in VARIANTS.items()
    }
    batches = case.batches(_BATCHES)
    rounds = [
        {key: _milliseconds(training, batches, warm, steps) for key, training in trainings.items()}
        for _ in range(1 if smoke else ROUNDS)
    ]
    of = lambda key, part: median([one[key][part] for one in rounds])  # noqa: E731
    ratio = lambda key, part: median([one[key][part] / one["plain"][part] for one in rounds])  # noqa: E731
    memory = {key: _memory(training, batches) for key, training in trainings.items()}
    return {
        "case": name,
        "parameters": sum(p.numel() for p in case.plain().parameters()),
        "plain_milliseconds": of("plain", "step"),
        "ratios": {key: ratio(key, "step") for key in VARIANTS},
        "processor_ratios": {key: ratio(key, "processor") for key in VARIANTS},
        "target": measured.target,
        "start_in_plain_steps": {key: of(key, "start") / of("plain", "processor") for key in VARIANTS},
        "memory": memory,
        "memory_ratios": {
            part: {key: memory[key][part] / memory["plain"][part] for key in VARIANTS} for part in memory["plain"]
        },
        "memory_target": measured.memory_target,
        "rounds": rounds,
    }


def _fit(case: Case, loader: Marked, options: dict[str, Any]) -> ht.Surrogate:
    return ht.fit(case.hypernet(), networks.loss, loader, epochs=1, progress=False, device="cpu", **options)


def _milliseconds(training: Callable[[Marked], Any], batches: list[Any], warm: int, steps: int) -> dict[str, float]:
    """Of a step, medians.

    `step` is by the clock, `processor` the processor's time, which other work on the machine disturbs less; `start` is
    what the whole call takes of it beyond as many steps, to make networks and a plan.
    """
    times: dict[int, tuple[float, float]] = {}

    def mark(step: int) -> None:
        times[step] = 1e3 * time.perf_counter(), 1e3 * time.process_time()

    begin = 1e3 * time.process_time()
    training(Marked(batches, warm + steps, mark))
    whole = 1e3 * time.process_time() - begin
    clock, processor = (
        median([times[i + 1][kind] - times[i][kind] for i in range(warm, warm + steps)]) for kind in range(2)
    )
    return {"step": clock, "processor": processor, "start": whole - (warm + steps) * processor}


def _memory(training: Callable[[Marked], Any], batches: list[Any]) -> dict[str, int]:
    """Bytes: the peak of what is kept for the backward pass, of all tensors, and of these in the whole call."""
    warm, steps = _MEMORY
    kept, found = Saved(), {}
    with kept:
        training(Marked(batches, warm + steps, lambda step: kept.reset() if step == warm else None))
    found["saved"] = kept.most
    live = Live()

    def mark(step: int) -> None:
        if step == warm:
            found["before"] = live.peak.most
            live.peak.reset()

    with live:
        training(Marked(batches, warm + steps, mark))
    return {"saved": found["saved"], "live": live.peak.most, "whole": max(found["before"], live.peak.most)}
