"""Kills at random moments of a delivery whose branches run on Ray: is the same network delivered, and what is repeated?

A delivery is a process of its own that starts a Ray cluster and trains its branches as two tasks at a time; an
uninterrupted one says which network it ends in. Others lose a worker in the middle of a branch; or one of two nodes; or
the whole cluster and the driver with it, after which a new driver makes the same call with the same folder. Tasks write
to a journal as they begin a branch. Runs of an earlier call are kept: delete the JSON file where the code has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from optuna.distributions import FloatDistribution
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hypertune_mip as ht
from benchmarks import kills, results
from benchmarks.kills import KINDS, RUNS, Kind

EPOCHS, TRAININGS, TASKS = 100, 3.0, 2
EXAMPLES, BATCH = 800, 32
_MODULE = "benchmarks.ray_delivery_kills"


def run(smoke: bool = False) -> dict[str, Any]:
    content = {"epochs": EPOCHS, "trainings": TRAININGS, "tasks": TASKS}
    with tempfile.TemporaryDirectory() as folder:
        expected = uninterrupted(Path(folder) / "whole")
        rows = list(results.kept("ray_delivery_kills", content, smoke=smoke).get("rows", []))
        document = results.write("ray_delivery_kills", {**content, **expected, "rows": rows}, smoke=smoke)
        done = {(row["kind"], row["seed"]) for row in rows}
        for seed in range(1 if smoke else max(RUNS.values())):
            for kind in KINDS:
                if seed < RUNS[kind] and (kind, seed) not in done:
                    rows.append(killed(kind, seed, Path(folder) / f"{kind}{seed}", expected))
                    document = results.write("ray_delivery_kills", {**content, **expected, "rows": rows}, smoke=smoke)
    return document


def uninterrupted(folder: Path) -> dict[str, Any]:
    """What a delivery that nothing disturbs ends in, and how many branches it takes."""
    folder.mkdir()
    kills.wait(kills.start(_MODULE, folder))
    return {"delivered": _delivered(folder), "branches": len(kills.journal(folder))}


def killed(kind: Kind, seed: int, folder: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """What became of one delivery that is killed at a random moment of a random branch.

    The row has: `kept`, branches that were finished by then; `same`, whether the network (by sums of its tensors), its
    config and all values are those expected; `lost`, finished branches that were gone afterwards; `repeated`, how often
    a branch was begun again.
    """
    chance = random.Random(f"{kind}{seed}")
    folder.mkdir()
    process = kills.start(_MODULE, folder, *(["--nodes"] if kind == "node" else []))
    before = kills.until_noted(chance.randrange(1, expected["branches"]), folder, process)
    time.sleep(chance.random() * (before[-1]["time"] - before[0]["time"]) / max(1, len(before) - 1))
    finished = _finished(folder)
    if kind == "worker":
        with suppress(ProcessLookupError):  # of a task that Ray has ended meanwhile
            os.kill(before[-1]["pid"], signal.SIGKILL)
    else:
        kills.order(folder)
    if kind == "cluster":
        kills.wait(process, expect=9)
        process = kills.start(_MODULE, folder, "--again")
    kills.wait(process)
    return {
        "kind": kind,
        "seed": seed,
        "kept": len(finished),
        "same": _delivered(folder) == expected["delivered"],
        "lost": len(finished - _finished(folder)),
        "repeated": len(kills.journal(folder)) - expected["branches"],
    }


def _finished(folder: Path) -> set[str]:
    return {path.name for path in (folder / "trainings").glob("training-*.json")}


def _delivered(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "delivered.json").read_text())
    return content


def _surrogate(folder: Path) -> ht.Surrogate:
    """Of a classifier of a few thousand weights on noisy labels; fitted once, then loaded."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * EXAMPLES, 20, generator=generator)
    y = (x[:, :4].sum(1) + torch.randn(len(x), generator=generator) > 0).long()
    train, validation = (TensorDataset(x[part], y[part]) for part in (slice(EXAMPLES), slice(EXAMPLES, None)))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), ht.nn.Dropout("dropout"), nn.Linear(64, 2))
    data = {
        "train_loader": DataLoader(train, batch_size=BATCH, shuffle=True),
        "val_loader": DataLoader(validation, batch_size=400),
    }
    if (folder / "surrogate").exists():
        return ht.Surrogate.load(folder / "surrogate", network, loss=ht.Classification(), **data)
    surrogate = ht.fit(
        network,
        ht.Classification(),
        data["train_loader"],
        val_loader=data["val_loader"],
        space=ht.SearchSpace(
            {"weight_decay": FloatDistribution(1e-5, 1e-1, log=True), "dropout": FloatDistribution(0.0, 0.7)}
        ),
        epochs=10,
        progress=False,
    )
    surrogate.save(folder / "surrogate")
    return surrogate


def _deliver(folder: Path, *, nodes: bool, again: bool) -> None:
    """One delivery's driver; once it is ordered, it kills one of its two nodes, or its cluster and itself."""
    import ray
    from ray.cluster_utils import Cluster

    import hypertune_mip_ray as ht_ray

    surrogate = _surrogate(folder)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1 if nodes else TASKS})
    ray.init(address=cluster.address, log_to_driver=False)  # before there is a second node: the driver's is the first
    node = cluster.add_node(num_cpus=1) if nodes else cluster.head_node
    if not again:
        kills.obey(folder, node, driver=not nodes)
    driver = os.getpid()

    def optimizer(parameters: Any, config: Any) -> torch.optim.Optimizer:
        """That notes when a task begins a branch."""
        if os.getpid() != driver:
            kills.note(folder, config={name: float(value) for name, value in config.items()})
        return torch.optim.Adam(parameters, lr=3e-3)

    trainer = surrogate.trainer(
        ht.Recipe(epochs=EPOCHS, optimizer=optimizer),
        folder=folder / "trainings",
        executor=ht_ray.executor(tasks=TASKS),
        parallel=1,
    )
    delivered = surrogate.deliver("loss", TRAININGS, trainer=trainer, progress=False)
    content = {
        "config": delivered.config,
        "averaged": delivered.averaged,
        "values": {name: estimate.value for name, estimate in delivered.values.items()},
        "candidates": [dict(candidate.values) for candidate in delivered.candidates],
        "weights": {name: tensor.double().sum().item() for name, tensor in delivered.network.state_dict().items()},
    }
    (folder / "delivered.json").write_text(json.dumps(content, indent=1) + "\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", action="store_true")
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    _deliver(arguments.folder, nodes=arguments.nodes, again=arguments.again)
