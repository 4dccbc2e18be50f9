"""Time a step: one process, two processes of plain DistributedDataParallel, two workers of Ray Train.

All run the same training loop on the same data and are interleaved, round after round; a round's ratios are taken
within it. The time is that from the end of one epoch to the end of the next, over its steps, so that all that Ray adds
to an epoch counts (checkpoints are half a minute apart, and none falls into it). Ray's workers run at the priority of
the others (Ray lowers it otherwise), and each process has one thread.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from optuna.distributions import FloatDistribution
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import hypertune_mip as ht
from benchmarks import results
from hypertune_mip.training import Options, SingleProcess, train

INPUTS, HIDDEN, CLASSES = 784, 256, 10
BATCH, SETTINGS = 128, 8  # of the whole step


def run(smoke: bool = False) -> dict[str, Any]:
    import ray

    os.environ["RAY_worker_niceness"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps, epochs, rounds = (4, 2, 1) if smoke else (40, 6, 5)
    try:
        rows = [_round(steps, epochs) for _ in range(rounds)]
    finally:
        torch.set_num_threads(threads)
        ray.shutdown()
    middle = lambda over, under: statistics.median(r[over] / r[under] for r in rows)  # noqa: E731
    content = {
        "parameters": sum(p.numel() for p in _hypernet().parameters()),
        "batch": BATCH,
        "settings": SETTINGS,
        "load_average": os.getloadavg()[0],  # above two, the cores were shared with others
        "milliseconds": rows,
        "efficiency_of_ddp": 0.5 * middle("one", "ddp"),  # two processes share the batch of one
        "efficiency_of_ray": 0.5 * middle("one", "ray"),
        "efficiency_of_ray_with_twice_the_batch": middle("one", "ray, twice the batch"),
        "overhead_of_ray": middle("ray", "ddp") - 1,
    }
    return results.write("ray_steps", content, smoke=smoke)


def _round(steps: int, epochs: int) -> dict[str, float]:
    """Milliseconds a step of each kind."""
    half, whole = (BATCH // 2, SETTINGS // 2), (BATCH, SETTINGS)
    return {
        "one": _alone(whole, steps, epochs),
        "half": _alone(half, steps, epochs),
        "ddp": _plain(half, steps, epochs),
        "ray": _ray(half, steps, epochs),
        "ray, twice the batch": _ray(whole, steps, epochs),
    }


def _hypernet() -> ht.HyperNetwork:
    space = ht.SearchSpace({"decay": FloatDistribution(1e-5, 1e-1, log=True), "dropout": FloatDistribution(0.0, 0.8)})
    network = nn.Sequential(
        nn.Linear(INPUTS, HIDDEN), nn.ReLU(), ht.nn.Dropout("dropout"), nn.Linear(HIDDEN, CLASSES)
    )  # fmt: skip
    return ht.HyperNetwork(network, space, seed=0)


def _loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
    return ht.losses.cross_entropy(model(batch[0]), batch[1]) + 0.5 * config["decay"] * ht.losses.l2(model)


def _batches(size: int, steps: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps * size, INPUTS, generator=generator)
    return list(zip(x.split(size), torch.randint(CLASSES, (len(x),), generator=generator).split(size), strict=True))


class _Clock:
    """A callback that notes when each epoch ends."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "ends"

    def __call__(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(f"{time.time()}\n")

    def milliseconds(self, steps: int) -> float:
        """A step's, in the median epoch after the first."""
        ends = [float(line) for line in self.path.read_text().split()]
        return statistics.median(1e3 * (end - start) / steps for start, end in pairwise(ends))


def _options(shape: tuple[int, int], epochs: int, clock: _Clock) -> dict[str, Any]:
    return {"epochs": epochs, "settings_per_step": shape[1], "progress": False, "callbacks": [clock]}


def _alone(shape: tuple[int, int], steps: int, epochs: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        clock = _Clock(folder)
        train(_hypernet(), _loss, _batches(shape[0], steps), Options(**_options(shape, epochs, clock)))
        return clock.milliseconds(steps)


class _Plain(SingleProcess):
    """DistributedDataParallel and nothing else."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size

    def prepare(self, step: nn.Module) -> nn.Module:
        return DistributedDataParallel(step)

    def gather(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)


def _plain(shape: tuple[int, int], steps: int, epochs: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_plain_worker, (folder, shape, steps, epochs), nprocs=2)
        return _Clock(folder).milliseconds(steps)


def _plain_worker(rank: int, folder: str, shape: tuple[int, int], steps: int, epochs: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    options = Options(**_options(shape, epochs, _Clock(folder)))
    train(_hypernet(), _loss, _batches(shape[0], steps), options, strategy=_Plain(rank, 2))
    dist.destroy_process_group()


def _ray(shape: tuple[int, int], steps: int, epochs: int) -> float:
    from ray.train import RunConfig, ScalingConfig

    import hypertune_mip_ray as ht_ray

    with tempfile.TemporaryDirectory() as folder:
        clock = _Clock(folder)
        ht_ray.fit(
            _hypernet(),
            _loss,
            lambda: _batches(shape[0], steps),
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(name="steps", storage_path=folder),
            **_options(shape, epochs, clock),
        )
        return clock.milliseconds(steps)
