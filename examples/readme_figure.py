"""Draw the figure of the README: the validation loss on digits by one hypernetwork, and by many real trainings.

    python examples/readme_figure.py                     # some minutes, nearly all of them for the real trainings

The right half is the truth that the left half predicts: each cell is a network trained from scratch.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from _common import train_from_scratch
from digits import BATCH_SIZE, load_data, loss, make_network, metric, space, train_hypernetwork
from matplotlib.axes import Axes

FIGURE = Path(__file__).parent.parent / "docs" / "images" / "digits.png"
EPOCHS = 200


def grid(size: int) -> list[dict[str, float]]:
    """`size` x `size` configs: weight decay along rows, dropout along columns, no label smoothing."""
    ends = torch.linspace(0, 1, size, dtype=torch.float64)
    decay, dropout = torch.meshgrid(ends, ends, indexing="ij")
    units = torch.stack([decay.flatten(), dropout.flatten(), torch.zeros(size**2, dtype=torch.float64)], dim=-1)
    return space.from_unit(units)


def draw(axes: Axes, configs: list[dict[str, float]], losses: np.ndarray, *, levels: np.ndarray, title: str) -> None:
    """Filled contours of the losses over the grid, with a star at the smallest."""
    size = round(len(configs) ** 0.5)
    decay, dropout = (np.array([c[name] for c in configs]).reshape(size, size) for name in ("weight_decay", "dropout"))
    axes.contourf(decay, dropout, losses.reshape(size, size), levels=levels, cmap="viridis_r", extend="both")
    best = configs[int(losses.argmin())]
    axes.plot(best["weight_decay"], best["dropout"], "*", color="white", markeredgecolor="black", markersize=14)
    axes.set(xscale="log", xlabel="weight decay", title=title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--trainings", type=int, default=9, help="along each side of the grid (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=FIGURE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, validation, _ = load_data()

    start = time.process_time()  # one thread: the time of a core that does nothing else
    surrogate = train_hypernetwork(train, validation, epochs=options.epochs, seed=0)
    predicted = surrogate.evaluate_batch(grid(50))["loss"]
    seconds = time.process_time() - start

    start = time.process_time()
    cells = grid(options.trainings)
    trained = [
        train_from_scratch(c, make_network, loss, train, batch_size=BATCH_SIZE, epochs=options.epochs, seeds=[0])
        for c in cells
    ]
    real = np.array([one.measure(metric, validation)["loss"][0] for one in trained])
    seconds_real = time.process_time() - start

    levels = np.linspace(min(predicted.min(), real.min()), min(0.8, real.max()), 21)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    draw(left, grid(50), predicted, levels=levels, title=f"one hypernetwork, 2,500 settings: {seconds:.0f} s")
    draw(right, cells, real, levels=levels, title=f"{len(cells)} settings trained one by one: {seconds_real:.0f} s")
    left.set_ylabel("dropout")
    figure.colorbar(right.collections[0], ax=[left, right], label="validation loss", format="%.2f")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=120)


if __name__ == "__main__":
    main()
