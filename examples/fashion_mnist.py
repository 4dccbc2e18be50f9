"""Tune weight decay, dropout and label smoothing on Fashion-MNIST by training one hypernetwork.

    apt-get install dataset-fashion-mnist                # or --data FOLDER with the four .gz files of the data set
    python examples/fashion_mnist.py

Images are pooled to 14 x 14; 2,000 are for training and 2,000 for validation. The script trains the hypernetwork once,
searches 1,000 settings on it with Optuna, and ends in a network that short trainings from the hypernetwork's weights
deliver. It compares that network, on the data set's own 10,000 test images, which took no part before, with networks
trained from scratch in the ordinary way at the surrogate's best setting and without any regularisation.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from _common import arguments, deliver, report, search, train_from_scratch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hypertune_mip as ht

BATCH_SIZE = 100
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
UNTUNED = {"weight_decay": 0.0, "dropout": 0.0, "label_smoothing": 0.0}

space = ht.SearchSpace(
    {
        "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
        "dropout": FloatDistribution(0.0, 0.8),
        "label_smoothing": FloatDistribution(0.0, 0.5),
    }
)


def make_network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(196, 256), nn.ReLU(), ht.nn.Dropout("dropout"),
        nn.Linear(256, 256), nn.ReLU(), ht.nn.Dropout("dropout"),
        nn.Linear(256, 10),
    )  # fmt: skip


def loss(model, batch, config):
    images, labels = batch
    fit = ht.losses.cross_entropy(model(images), labels, label_smoothing=config["label_smoothing"])
    return fit + 0.5 * config["weight_decay"] * ht.losses.l2(model)


def metric(model, batch):
    images, labels = batch
    logits = model(images)
    return {"loss": F.cross_entropy(logits, labels), "error": (logits.argmax(-1) != labels).float().mean()}


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzipped IDX file of bytes: two zeros, a type, the number of dimensions, their sizes, the data."""
    with gzip.open(path) as file:
        content = file.read()
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 14, 14) in [0, 1] and labels (N,) of "train" or "t10k"."""
    images = torch.tensor(read_idx(folder / f"{part}-images-idx3-ubyte.gz")).unsqueeze(1)
    labels = torch.tensor(read_idx(folder / f"{part}-labels-idx1-ubyte.gz")).long()
    return F.avg_pool2d(images / 255, 2), labels


def load_data(folder: Path, count: int) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """`count` images for training, other `count` for validation, and the whole test set."""
    images, labels = read_images(folder, "train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, validation = order[:count], order[count : 2 * count]
    return (
        TensorDataset(images[train], labels[train]),
        TensorDataset(images[validation], labels[validation]),
        TensorDataset(*read_images(folder, "t10k")),
    )


def command_line() -> argparse.Namespace:
    parser = arguments(__doc__, epochs=40, output="runs/fashion_mnist")
    parser.add_argument("--data", type=Path, default=DEBIAN_FOLDER, help="folder of the .gz files")
    parser.add_argument("--images", type=int, default=2000, help="for training, as many for validation")
    return parser.parse_args()


def main() -> None:
    options = command_line()
    try:
        train, validation, test = load_data(options.data, options.images)
    except FileNotFoundError as error:
        sys.exit(
            f"Fashion-MNIST is not in '{options.data}': there is no '{Path(error.filename).name}'.\n"
            "On Debian: apt-get install dataset-fashion-mnist. Elsewhere: --data FOLDER, where its four files are:\n"
            "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, and the two whose names start with t10k."
        )

    torch.set_num_threads(1)  # with networks this small more threads mostly wait for each other
    torch.manual_seed(options.seed)
    surrogate = ht.fit(
        ht.HyperNetwork(make_network(), space),
        loss,
        DataLoader(train, batch_size=BATCH_SIZE, shuffle=True),
        metric=metric,
        val_loader=DataLoader(validation, batch_size=1000),
        epochs=options.epochs,
        seed=options.seed,
        device="cpu",  # a network this small gains nothing from a GPU
    )

    study = search(surrogate, "loss", options.output / "study.journal", trials=options.trials, seed=options.seed)
    delivered = deliver(surrogate, "loss", epochs=options.epochs)

    trained = {
        name: train_from_scratch(config, make_network, loss, train, batch_size=BATCH_SIZE, epochs=options.epochs)
        for name, config in {
            "untuned, from scratch": UNTUNED,
            "surrogate's best, from scratch": study.best_params,
        }.items()
    }
    report(surrogate, delivered, trained, metric, validation=validation, test=test, folder=options.output)


if __name__ == "__main__":
    main()
