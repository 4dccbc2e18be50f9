"""Train one hypernetwork on two Ray workers, kill one of them halfway, and see that nothing is lost.

    python examples/ray_train.py

The task is that of digits.py. One process trains a hypernetwork, and so do two Ray workers, each on its half of the
data; halfway one of them is killed, and Ray starts the workers again from the last checkpoint. Both surrogates are then
compared with the same real trainings, which run as Ray tasks. On one machine Ray is started; on the head node of a
cluster the same script uses the cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from digits import BATCH_SIZE, load_data, loss, make_network, metric, space, train_hypernetwork
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from torch.utils.data import DataLoader, TensorDataset

import hypertune_mip as ht
import hypertune_mip_ray as ht_ray

WORKERS = 2


def killed_at(epoch: int, flag: Path) -> Callable[[dict[str, Any]], None]:
    """A callback that kills the worker in which it runs, once."""

    def callback(record: dict[str, Any]) -> None:
        if record["epoch"] == epoch and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return callback


def train_on_workers(
    train: TensorDataset, validation: TensorDataset, *, epochs: int, seed: int, folder: Path, flag: Path
) -> ht.Surrogate:
    torch.manual_seed(seed)
    return ht_ray.fit(
        ht.HyperNetwork(make_network(), space),
        loss,
        DataLoader(train, batch_size=BATCH_SIZE // WORKERS, shuffle=True),  # of each worker
        scaling_config=ScalingConfig(num_workers=WORKERS),
        run_config=RunConfig(
            name=f"digits-{uuid.uuid4().hex[:8]}",
            storage_path=str(folder.absolute()),
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
        checkpoint_every=max(1, epochs // 8),
        callbacks=[killed_at(epochs // 2, flag)],
        metric=metric,
        val_loader=DataLoader(validation, batch_size=500),
        epochs=epochs,
        batching="full",
        seed=seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200, help="of each training (default: %(default)s)")
    parser.add_argument("--settings", type=int, default=32, help="trained for real (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the hypernetworks (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/ray"), help="folder of results (default: %(default)s)"
    )
    options = parser.parse_args()
    train, validation, _ = load_data()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    flag = options.output.absolute() / "killed"
    flag.unlink(missing_ok=True)

    common = {"epochs": options.epochs, "seed": options.seed}
    alone = train_hypernetwork(train, validation, **common)
    many = train_on_workers(train, validation, folder=options.output, flag=flag, **common)
    if not flag.exists():
        raise SystemExit("No worker was killed.")

    recipe = ht.Recipe(
        epochs=options.epochs, optimizer=lambda parameters, config: torch.optim.Adam(parameters, lr=3e-3)
    )
    trainer = alone.trainer(recipe, executor=ht_ray.executor(tasks=WORKERS))
    trust = {}
    for name, surrogate in {"one process": alone, "two workers, one killed": many}.items():
        # The second trains nothing.
        report = surrogate.verify("loss", settings=options.settings, best=0, trainer=trainer)
        trust[name] = report.spearman.value
        print(f"{name}: Spearman with {options.settings} real trainings {trust[name]:.4f}")
    surrogates = (alone, many)
    content = {"spearman": trust, "epochs": [len(surrogate.history) for surrogate in surrogates]}
    (options.output / "comparison.json").write_text(json.dumps(content, indent=1) + "\n")
    many.save(options.output / "surrogate")
    print(f"Everything is in {options.output}.")


if __name__ == "__main__":
    main()
