"""Deliver a network on a cluster: branches run as Ray tasks, one of them is killed on purpose, and nothing is lost.

    python examples/ray_deliver.py

The task is that of digits.py. One hypernetwork is trained in this process; then two rungs of branches run as Ray tasks,
one of which is killed, and Ray runs it again. Finished branches are kept in a folder: start the script again with the
same output, also after the driver was killed, and it goes on from there. On one machine Ray is started; on the head
node of a cluster the same script uses the cluster, and with `--gpus 0.25` four tasks share a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from digits import BATCH_SIZE, load_data, loss, make_network, metric, space, train_hypernetwork
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

import hypertune_mip as ht
import hypertune_mip_ray as ht_ray


def recipe(epochs: int, flag: Path) -> ht.Recipe:
    """How one network is trained; a task that begins one, and is the first to set the flag, is killed."""
    driver = os.getpid()

    def optimizer(parameters: Any, config: Any) -> torch.optim.Optimizer:
        if os.getpid() != driver:
            with contextlib.suppress(OSError):  # it is set already, or this machine does not have the folder
                flag.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return torch.optim.Adam(parameters, lr=3e-3)

    return ht.Recipe(epochs=epochs, optimizer=optimizer)


def trained(train: TensorDataset, validation: TensorDataset, *, epochs: int, seed: int, folder: Path) -> ht.Surrogate:
    """The surrogate, trained once and then kept: who starts the script again gets the same one."""
    if (folder / "surrogate").exists():
        return ht.Surrogate.load(
            folder / "surrogate",
            make_network(),
            space=space,
            loss=loss,
            metric=metric,
            train_loader=DataLoader(train, batch_size=BATCH_SIZE, shuffle=True),
            val_loader=DataLoader(validation, batch_size=500),
        )
    surrogate = train_hypernetwork(train, validation, epochs=epochs, seed=seed)
    surrogate.save(folder / "surrogate")
    return surrogate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200, help="of each training (default: %(default)s)")
    parser.add_argument("--trainings", type=float, default=4.0, help="to spend on branches (default: %(default)s)")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each task; 0 trains on CPUs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the hypernetwork (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/ray-delivery"), help="folder of results (default: %(default)s)"
    )
    options = parser.parse_args()
    train, validation, test = load_data()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)

    surrogate = trained(train, validation, epochs=options.epochs, seed=options.seed, folder=options.output)
    delivered = surrogate.deliver(
        "loss",
        options.trainings,
        recipe=recipe(options.epochs, options.output.absolute() / "killed"),
        folder=options.output / "trainings",
        executor=ht_ray.executor(resources_per_task={"GPU": options.gpus} if options.gpus else None),
    )

    network = delivered.network.cpu()
    with torch.no_grad():
        measured = {name: float(value) for name, value in metric(network, test.tensors).items()}
    save_file(network.state_dict(), options.output / "network.safetensors")
    content = {"config": delivered.config, "test": measured, "cost": delivered.cost}
    (options.output / "delivered.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"\n{delivered}\n\nOn test data, which took no part in any choice: {measured}")
    print(f"Everything is in {options.output}.")


if __name__ == "__main__":
    main()
