"""The tasks: data, primary network, loss, metric and search space, with a stated budget for real training."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from optuna.distributions import BaseDistribution, FloatDistribution
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hypertune_mip as ht

FASHION = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))  # Debian: dataset-fashion-mnist


@dataclass(frozen=True)
class Task:
    """One problem; truth trains with Adam and a cosine schedule for as many epochs as `fit` does."""

    name: str
    space: ht.SearchSpace
    network: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Any, Any], Tensor]
    metric: Callable[[nn.Module, Any], dict[str, Tensor]]
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    batch_size: int
    epochs: int
    learning_rate: float = 1e-3
    test: tuple[Tensor, Tensor] | None = None  # where a search is judged
    front: tuple[str, ...] = ()  # metrics that pull in opposite directions

    def loader(self) -> DataLoader:
        return DataLoader(TensorDataset(*self.train), batch_size=self.batch_size, shuffle=True)


def real_training(task: Task, config: dict[str, Any], seed: int) -> dict[str, float]:
    """Metrics of the primary network trained from scratch at one setting."""
    *_, network = epochs_of_real_training(task, config, seed)
    with torch.no_grad():
        return {name: float(value) for name, value in task.metric(network.eval(), task.validation).items()}


def epochs_of_real_training(task: Task, config: dict[str, Any], seed: int) -> Iterator[nn.Module]:
    """The primary network after each epoch of training from scratch at one setting."""
    torch.manual_seed(seed)
    network = ht.nn.resolve(task.network(), config)
    loader = task.loader()
    optimizer = torch.optim.Adam(network.parameters(), lr=task.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.epochs * len(loader))
    for _ in range(task.epochs):
        network.train()
        for batch in loader:
            optimizer.zero_grad()
            task.loss(network, batch, config).backward()
            optimizer.step()
            schedule.step()
        yield network


def trainer(task: Task, **options: Any) -> ht.Trainer:
    """Real training of the task, many settings at once."""
    return ht.Trainer(
        task.network(),
        task.space,
        task.loss,
        task.loader(),
        metric=task.metric,
        val_loader=[task.validation],
        recipe=recipe(task),
        **options,
    )


def recipe(task: Task) -> ht.Recipe:
    """Of real training."""
    return ht.Recipe(
        epochs=task.epochs,
        optimizer=lambda parameters, config: torch.optim.Adam(parameters, lr=task.learning_rate, fused=True),
    )


def fitted(task: Task, seed: int, *, hypernet: dict[str, Any] | None = None, **options: Any) -> ht.Surrogate:
    """The surrogate of a task, with the defaults of the library but for what is passed."""
    torch.manual_seed(seed)
    return ht.fit(
        ht.HyperNetwork(task.network(), task.space, seed=seed, **(hypernet or {})),
        task.loss,
        task.loader(),
        metric=task.metric,
        val_loader=[task.validation],
        **{"epochs": task.epochs, "seed": seed, "progress": False, "device": "cpu", **options},
    )


def shortened(task: Task) -> Task:
    """The task at a fraction of its size, to see that a benchmark runs."""
    cut = lambda pair: (pair[0][:200], pair[1][:200])  # noqa: E731
    test = None if task.test is None else cut(task.test)
    return replace(task, epochs=2, train=cut(task.train), validation=cut(task.validation), test=test)


# Losses and metrics


def classification(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    x, y = batch
    logits = model(x)
    return {"loss": F.cross_entropy(logits, y), "error": (logits.argmax(-1) != y).double().mean()}


def regression(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    x, y = batch
    return {"loss": F.mse_loss(model(x).squeeze(-1), y)}


def smoothed(model: nn.Module, batch: Any, config: Any) -> Tensor:
    """Cross-entropy with label smoothing and weight decay on all parameters."""
    x, y = batch
    fit = ht.losses.cross_entropy(model(x), y, label_smoothing=config["label_smoothing"])
    return fit + 0.5 * config["weight_decay"] * ht.losses.l2(model)


def smoothed_by_layer(model: nn.Module, batch: Any, config: Any) -> Tensor:
    """Cross-entropy with label smoothing and a weight decay for each linear layer."""
    x, y = batch
    total = ht.losses.cross_entropy(model(x), y, label_smoothing=config["label_smoothing"])
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for index, layer in enumerate(layers):
        total = total + 0.5 * config[f"weight_decay_{index}"] * ht.losses.l2(layer)
    return total


def squared_elastic(model: nn.Module, batch: Any, config: Any) -> Tensor:
    """Squared error with an L2 and, if the space has one, an L1 penalty."""
    x, y = batch
    total = F.mse_loss(model(x).squeeze(-1), y) + config["l2"] * ht.losses.l2(model)
    return total + config["l1"] * ht.losses.l1(model) if "l1" in config else total


# Networks


def mlp(inputs: int, outputs: int, *, width: int, depth: int, dropout: Callable[[int], str] | None = None) -> nn.Module:
    """Linear, ReLU and, where named, dropout, `depth` times; then a linear layer."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        if dropout is not None:
            layers.append(ht.nn.Dropout(dropout(index)))
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU(),
        nn.Flatten(), ht.nn.Dropout("dropout"), nn.Linear(512, 10),
    )  # fmt: skip


class Transformer(nn.Module):
    """An 8 x 8 image as eight rows, one encoder layer, mean over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.position = nn.Parameter(0.1 * torch.randn(1, 8, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.embed(x.reshape(-1, 8, 8)) + self.position).mean(1))


# Data


def _float(low: float, high: float, *, log: bool = False) -> BaseDistribution:
    return FloatDistribution(low, high, log=log)


def _split(x: np.ndarray, y: np.ndarray, count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`count` shuffled examples for training, the rest for validation; x standardised by those for training."""
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    x = (x - x[:count].mean(0)) / (x[:count].std(0) + 1e-6)
    if y.dtype.kind == "f":
        y = (y - y[:count].mean()) / y[:count].std()
    inputs = torch.tensor(x, dtype=torch.float32)
    targets = torch.tensor(y, dtype=torch.float32 if y.dtype.kind == "f" else torch.long)
    return (inputs[:count], targets[:count]), (inputs[count:], targets[count:])


def _fashion_arrays(count: int) -> tuple[Tensor, Tensor]:
    """Shuffled Fashion-MNIST training images (N, 28, 28) in [0, 1], and their labels."""
    if not FASHION.is_dir():
        raise FileNotFoundError(
            f"There is no '{FASHION}'. Install Debian's package dataset-fashion-mnist, or set FASHION_MNIST to a folder"
            " with train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz."
        )
    images = np.frombuffer(gzip.open(FASHION / "train-images-idx3-ubyte.gz").read(), np.uint8, offset=16)
    labels = np.frombuffer(gzip.open(FASHION / "train-labels-idx1-ubyte.gz").read(), np.uint8, offset=8)
    chosen = np.random.default_rng(0).permutation(len(labels))[:count]
    return torch.tensor(images.reshape(-1, 28, 28)[chosen]) / 255, torch.tensor(labels[chosen].astype(np.int64))


@cache
def fashion_images(count: int = 4000) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST images pooled to 14 x 14 and standardised as a whole (N, 196), and their labels."""
    images, labels = _fashion_arrays(count)
    pooled = F.avg_pool2d(images, 2).flatten(1)
    return (pooled - pooled[:2000].mean()) / pooled[:2000].std(), labels


@cache
def standardized_fashion(count: int) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST images standardised as a whole (N, 1, 28, 28), and their labels."""
    images, labels = _fashion_arrays(count)
    return ((images - images[:6000].mean()) / images[:6000].std()).unsqueeze(1), labels


def _fashion(name: str, space: ht.SearchSpace, network: Callable[[], nn.Module], loss: Any) -> Task:
    x, y = fashion_images()
    train, validation = (x[:2000], y[:2000]), (x[2000:], y[2000:])
    return Task(name, space, network, loss, classification, train, validation, batch_size=100, epochs=40)


def fashion3() -> Task:
    space = ht.SearchSpace(
        {
            "weight_decay": _float(1e-5, 1e-1, log=True),
            "dropout": _float(0.0, 0.8),
            "label_smoothing": _float(0.0, 0.5),
        }
    )
    network = lambda: mlp(196, 10, width=256, depth=2, dropout=lambda _: "dropout")  # noqa: E731
    return _fashion("fashion3", space, network, smoothed)


def fashion8() -> Task:
    """Weight decay by layer, dropout on the input and both hidden layers, label smoothing, input noise."""
    space = ht.SearchSpace(
        {f"weight_decay_{i}": _float(1e-5, 1e-1, log=True) for i in range(3)}
        | {"dropout_input": _float(0.0, 0.5), "dropout_0": _float(0.0, 0.8)}
        | {"dropout_1": _float(0.0, 0.8), "label_smoothing": _float(0.0, 0.5)}
        | {"noise": _float(0.0, 0.5)}
    )

    def network() -> nn.Module:
        body = mlp(196, 10, width=256, depth=2, dropout=lambda index: f"dropout_{index}")
        return nn.Sequential(ht.nn.GaussianNoise("noise"), ht.nn.Dropout("dropout_input"), body)

    return _fashion("fashion8", space, network, smoothed_by_layer)


def diabetes() -> Task:
    """220 rows; penalties from none to crushing."""
    data = datasets.load_diabetes()
    space = ht.SearchSpace(
        {
            "l2": _float(1e-4, 1.0, log=True),
            "l1": _float(1e-5, 1e-1, log=True),
            "dropout": _float(0.0, 0.7),
            "noise": _float(0.0, 1.0),
        }
    )

    def network() -> nn.Module:
        body = mlp(10, 1, width=64, depth=2, dropout=lambda _: "dropout")
        return nn.Sequential(ht.nn.GaussianNoise("noise"), body)

    parts = _split(data.data, data.target, 220)
    return Task("diabetes", space, network, squared_elastic, regression, *parts, batch_size=20, epochs=100)


def friedman() -> Task:
    """One hyperparameter, from weak to strong."""
    x, y = datasets.make_friedman1(5000, noise=3.0, random_state=0)
    space = ht.SearchSpace({"l2": _float(1e-5, 1e-1, log=True)})
    network = lambda: mlp(10, 1, width=64, depth=2)  # noqa: E731
    return Task("friedman", space, network, squared_elastic, regression, *_split(x, y, 2500), batch_size=50, epochs=30)


def cancer() -> Task:
    """Two classes; weight decay up to where nothing is learned."""
    data = datasets.load_breast_cancer()
    space = ht.SearchSpace({"weight_decay": _float(1e-4, 10.0, log=True), "label_smoothing": _float(0.0, 0.5)})
    network = lambda: mlp(30, 2, width=32, depth=2)  # noqa: E731
    parts = _split(data.data, data.target, 300)
    return Task("cancer", space, network, smoothed, classification, *parts, batch_size=32, epochs=40)


def _digits(count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    data = datasets.load_digits()
    return _split(data.data, data.target, count)


def digits_cnn() -> Task:
    space = ht.SearchSpace(
        {
            "weight_decay": _float(1e-5, 1e-1, log=True),
            "label_smoothing": _float(0.0, 0.4),
            "dropout": _float(0.0, 0.8),
        }
    )
    return Task("digits_cnn", space, convolutional, smoothed, classification, *_digits(700), batch_size=50, epochs=30)


def digits_transformer() -> Task:
    space = ht.SearchSpace(
        {
            "weight_decay": _float(1e-5, 1e-2, log=True),
            "label_smoothing": _float(0.0, 0.4),
            "dropout": _float(0.0, 0.5),
        }
    )
    network = lambda: ht.nn.bind(Transformer(), {"layer.dropout*": "dropout"})  # noqa: E731
    return Task(
        "digits_transformer", space, network, smoothed, classification, *_digits(1000), batch_size=50, epochs=30
    )


def digits8() -> Task:
    """Eight hyperparameters on an MLP of three hidden layers."""
    space = ht.SearchSpace(
        {f"weight_decay_{i}": _float(1e-5, 1e-1, log=True) for i in range(4)}
        | {f"dropout_{i}": _float(0.0, 0.6) for i in range(3)}
        | {"label_smoothing": _float(0.0, 0.4)}
    )
    network = lambda: mlp(64, 10, width=64, depth=3, dropout=lambda index: f"dropout_{index}")  # noqa: E731
    return Task("digits8", space, network, smoothed_by_layer, classification, *_digits(1000), batch_size=50, epochs=40)


SMALL = (diabetes, friedman, cancer, digits_cnn, digits_transformer, digits8)
FASHION_TASKS = (fashion3, fashion8)
