"""Kills at random moments: does every run of Ray's workers finish, what is lost and what is done twice?

A run is a process of its own that starts a Ray cluster and trains with two workers; an uninterrupted one says how it
ends. Others lose a worker, which Ray replaces; or one of two nodes, after which one worker goes on; or the whole
cluster and the driver with it, after which a new driver resumes the run. The first worker's epochs are written to a
journal as they end. Runs of an earlier call are kept: delete the JSON file where the code has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from optuna.distributions import FloatDistribution
from torch import nn

import hypertune_mip as ht
from benchmarks import kills, results
from benchmarks.kills import KINDS, RUNS, Kind
from hypertune_mip.storage import load_tree

EPOCHS, EVERY = 24, 4
EXAMPLES, BATCH = 800, 32
_MODULE = "benchmarks.ray_kills"


def run(smoke: bool = False) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        expected = uninterrupted(Path(folder) / "whole")
        content = {"epochs": EPOCHS, "checkpoint_every": EVERY}
        rows = list(results.kept("ray_kills", content, smoke=smoke).get("rows", []))
        document = results.write("ray_kills", {**content, "rows": rows}, smoke=smoke)
        done = {(row["kind"], row["seed"]) for row in rows}
        for seed in range(1 if smoke else max(RUNS.values())):
            for kind in KINDS:
                if seed < RUNS[kind] and (kind, seed) not in done:
                    rows.append(killed(kind, seed, Path(folder) / f"{kind}{seed}", expected))
                    document = results.write("ray_kills", {**content, "rows": rows}, smoke=smoke)
    return document


def uninterrupted(folder: Path) -> list[float]:
    """The losses of the epochs of a run that nothing disturbs."""
    folder.mkdir()
    kills.wait(kills.start(_MODULE, folder))
    losses: list[float] = json.loads((folder / "losses.json").read_text())
    return losses


def killed(kind: Kind, seed: int, folder: Path, expected: list[float]) -> dict[str, Any]:
    """What became of one run that is killed in a random epoch, at a random moment of it.

    The row has: `finished`; `same`, whether its losses are those expected; `lost`, epochs of the newest checkpoint at
    the time of the kill that training did not go on from; `repeated`, finished epochs that were trained again.
    """
    chance = random.Random(f"{kind}{seed}")
    folder.mkdir()
    process = kills.start(_MODULE, folder, *(["--elastic"] if kind == "node" else []))
    epoch, victim = chance.randrange(1, EPOCHS - 1), seed % 2  # the first worker writes checkpoints
    before = kills.until_noted(epoch, folder, process)
    time.sleep(chance.random() * (before[-1]["time"] - before[0]["time"]) / max(1, len(before) - 1))
    checkpoint = _newest_checkpoint(folder)
    if kind == "worker":
        os.kill(int((folder / f"worker{victim}").read_text()), signal.SIGKILL)
    else:
        kills.order(folder)
    if kind == "cluster":
        kills.wait(process, expect=9)
        process = kills.start(_MODULE, folder, "--resume")
    kills.wait(process)
    journal = kills.journal(folder)
    first = [i for i, row in enumerate(journal) if row["pid"] != journal[0]["pid"]]
    started = journal[first[0]]["epoch"] if first else EPOCHS + 1  # the kill came after the last checkpoint
    last = journal[first[0] - 1]["epoch"] if first else EPOCHS
    losses = json.loads((folder / "losses.json").read_text())
    return {
        "kind": kind,
        "seed": seed,
        "epoch": epoch,
        "victim": victim if kind == "worker" else None,
        "finished": len(losses) == EPOCHS,
        "same": losses == expected if kind != "node" else None,  # one worker goes on, with other batches
        "lost": max(0, checkpoint + 1 - started),
        "repeated": last + 1 - started,
        "seconds_until_training_again": journal[first[0]]["time"] - journal[first[0] - 1]["time"] if first else None,
    }


def _newest_checkpoint(folder: Path) -> int:
    """The epoch of the newest whole checkpoint; 0 if there is none."""
    epochs = [0]
    for path in (folder / "run").glob("checkpoint_*"):
        try:
            tree = load_tree(path, "checkpoint", kind="training checkpoint")
        except ht.StorageError:  # being written, or being deleted
            continue
        epochs.append(tree["progress"]["history"][-1]["epoch"])
    return max(epochs)


def _problem() -> tuple[ht.HyperNetwork, Callable[..., torch.Tensor]]:
    """A classifier of a few thousand weights on noise."""
    space = ht.SearchSpace({"decay": FloatDistribution(1e-5, 1e-1, log=True)})
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))

    def loss(model: nn.Module, batch: Any, config: Any) -> torch.Tensor:
        return ht.losses.cross_entropy(model(batch[0]), batch[1]) + config["decay"] * ht.losses.l2(model)

    return ht.HyperNetwork(network, space, seed=0), loss


def _train(folder: Path, *, elastic: bool, resume: bool) -> None:
    """One run's driver; once there is a file named `kill`, it kills one of its two nodes, or its cluster and itself."""
    import ray
    from ray.cluster_utils import Cluster
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    import hypertune_mip_ray as ht_ray

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"  # as long as Ray waits for a node to come back
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1 if elastic else 2})
    ray.init(address=cluster.address, log_to_driver=False)  # before there is a second node: the driver's is the first
    node = cluster.add_node(num_cpus=1) if elastic else cluster.head_node

    if not resume:
        kills.obey(folder, node, driver=not elastic)

    def part() -> list[Any]:
        """This worker's share of the half batches; it leaves its process id, for the one who kills."""
        context = ray.train.get_context()
        rank = context.get_world_rank()
        (folder / f"worker{rank}").write_text(str(os.getpid()))
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(EXAMPLES, 20, generator=generator), torch.randint(10, (EXAMPLES,), generator=generator)
        halves = zip(x.split(BATCH // 2), y.split(BATCH // 2), strict=True)
        return list(halves)[rank :: context.get_world_size()]

    def journal(record: dict[str, Any]) -> None:
        kills.note(folder, epoch=record["epoch"])

    hypernet, loss = _problem()
    surrogate = ht_ray.fit(
        hypernet,
        loss,
        part,
        scaling_config=ScalingConfig(num_workers=(1, 2) if elastic else 2),
        run_config=RunConfig(
            name="run",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=CheckpointConfig(num_to_keep=3),
        ),
        resume=resume,
        epochs=EPOCHS,
        settings_per_step=4,
        checkpoint_every=EVERY,
        callbacks=[journal],
        progress=False,
    )
    (folder / "losses.json").write_text(json.dumps([record["loss"] for record in surrogate.history]))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--elastic", action="store_true")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    _train(arguments.folder, elastic=arguments.elastic, resume=arguments.resume)
