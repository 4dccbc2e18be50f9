"""Cheap: `fit` against one plain training of the same network, batch and epochs, interleaved; where its time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import hypertune_mip as ht
from benchmarks import results, tasks
from hypertune_mip.execution import FORMED
from hypertune_mip.training.step import TrainingStep

CONFIG = {"weight_decay": 1e-3, "dropout": 0.3, "label_smoothing": 0.1}
HEADS = {"RankOne": ht.RankOne(), "LowRank": ht.LowRank(), "Dense": ht.Dense()}


def run(smoke: bool = False) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task = tasks.shortened(tasks.fashion3()) if smoke else tasks.fashion3()
        tasks.real_training(task, CONFIG, 0)  # warm up
        rounds = []
        for seed in range(1 if smoke else 5):
            row = {"plain": seconds_of(lambda s=seed: tasks.real_training(task, CONFIG, s))}
            for name, head in HEADS.items():
                if name != "Dense" or seed == 0:  # one run shows the size of it
                    row[name] = seconds_of(lambda s=seed, h=head: tasks.fitted(task, s, hypernet={"head": h}))
            rounds.append(row)
        ratios = {n: statistics.median([r[n] / r["plain"] for r in rounds if n in r]) for n in HEADS}
        content = {"seconds": rounds, "ratios": ratios, "step_milliseconds": _step(task, 5 if smoke else 200)}
        return results.write("cheap", content, smoke=smoke)
    finally:
        torch.set_num_threads(threads)


def seconds_of(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _step(task: tasks.Task, repeats: int) -> dict[str, float]:
    """Medians over interleaved repeats of the parts of a step, in milliseconds."""
    hypernet = ht.HyperNetwork(task.network(), task.space).train()
    step = TrainingStep(hypernet, task.loss)
    optimizer = torch.optim.Adam(hypernet.parameters(), lr=3e-3, fused=True)
    plain = ht.nn.resolve(task.network(), CONFIG).train()
    plain_optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, fused=True)
    batch = next(iter(task.loader()))
    units = task.space.sample(1)
    totals: list[torch.Tensor] = []

    def one(losses: torch.Tensor, rows: slice) -> torch.Tensor:
        return torch.ones_like(losses)

    def both_passes() -> None:
        totals[:] = [step(units, batch, False, one, FORMED)[0]]

    def hypernetwork() -> None:
        optimizer.zero_grad()
        totals[0].backward()

    def plain_step() -> None:
        plain_optimizer.zero_grad()
        task.loss(plain, batch, CONFIG).backward()
        plain_optimizer.step()

    parts: dict[str, Callable[[], Any]] = {
        "batch from the loader": lambda: next(iter(task.loader())),
        "plain: whole step": plain_step,
        "fit: numbers of all heads": lambda: hypernet.numbers(units),
        "fit: the network at a setting, forward and backward (with these)": both_passes,
        "fit: backward through the hypernetwork": hypernetwork,
        "fit: optimiser": optimizer.step,
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            times[name].append(seconds_of(part) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}
