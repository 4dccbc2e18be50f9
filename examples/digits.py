"""Tune weight decay, dropout and label smoothing on scikit-learn's digits by training one hypernetwork.

    python examples/digits.py

The task is small but needs regularisation: 300 training images, about a fifth of them with a wrong label. The script
trains the hypernetwork once, searches 1,000 settings on it with Optuna, and ends in a network that short trainings from
the hypernetwork's weights deliver. It compares that network, on test data that took no part before, with networks
trained from scratch in the ordinary way at the surrogate's best setting and without any regularisation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _common import arguments, deliver, report, search, train_from_scratch
from optuna.distributions import FloatDistribution
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hypertune_mip as ht

BATCH_SIZE = 50
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
        nn.Linear(64, 128), nn.ReLU(), ht.nn.Dropout("dropout"),
        nn.Linear(128, 128), nn.ReLU(), ht.nn.Dropout("dropout"),
        nn.Linear(128, 10),
    )  # fmt: skip


def loss(model, batch, config):
    images, labels = batch
    fit = ht.losses.cross_entropy(model(images), labels, label_smoothing=config["label_smoothing"])
    return fit + 0.5 * config["weight_decay"] * ht.losses.l2(model)


def metric(model, batch):
    images, labels = batch
    logits = model(images)
    return {"loss": F.cross_entropy(logits, labels), "error": (logits.argmax(-1) != labels).float().mean()}


def load_data() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """300 training images, a fifth of them mislabelled; 500 validation and 997 test images with their true labels."""
    pixels, digits = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits), generator=generator)
    images = torch.tensor(pixels / 16, dtype=torch.float32)[order]
    labels = torch.tensor(digits)[order]
    wrong = (torch.rand(len(labels), generator=generator) < 0.2) & (torch.arange(len(labels)) < 300)
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, labels.shape, generator=generator)[wrong]) % 10
    train, validation, test = slice(300), slice(300, 800), slice(800, None)
    return tuple(TensorDataset(images[part], labels[part]) for part in (train, validation, test))


def train_hypernetwork(train: TensorDataset, validation: TensorDataset, *, epochs: int, seed: int) -> ht.Surrogate:
    torch.manual_seed(seed)
    return ht.fit(
        ht.HyperNetwork(make_network(), space),
        loss,
        DataLoader(train, batch_size=BATCH_SIZE, shuffle=True),
        metric=metric,
        val_loader=DataLoader(validation, batch_size=500),
        epochs=epochs,
        batching="full",  # with few images and wrong labels, a part of a batch would say too little
        seed=seed,
        device="cpu",  # a network this small gains nothing from a GPU
    )


def main() -> None:
    options = arguments(__doc__, epochs=200, output="runs/digits").parse_args()
    train, validation, test = load_data()

    torch.set_num_threads(1)  # with networks this small more threads mostly wait for each other
    surrogate = train_hypernetwork(train, validation, epochs=options.epochs, seed=options.seed)
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
