"""Time and memory of the estimator's `fit` beside that of `MLPClassifier` with the same epochs, widths and batches."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from benchmarks import results
from hypertune_mip_sklearn import HyperTuneClassifier

ROWS, COLUMNS, CLASSES = 10_000, 50, 4
WIDTHS, BATCH, EPOCHS = (128, 128), 200, 40


def _ours(epochs: int, **options: Any) -> Any:
    return HyperTuneClassifier(
        hidden_layer_sizes=WIDTHS, batch_size=BATCH, epochs=epochs, random_state=0, **options
    )  # fmt: skip


def _mlp(epochs: int) -> Any:
    """That never stops early."""
    return MLPClassifier(WIDTHS, batch_size=BATCH, max_iter=epochs, n_iter_no_change=epochs, random_state=0)


_CONFIG = {"weight_decay": 1e-3, "dropout": 0.1, "input_noise": 0.1, "mixup": 0.1, "label_smoothing": 0.1}
KINDS: dict[str, Callable[[int], Any]] = {
    "MLPClassifier": _mlp,
    "retrain": _ours,
    "materialize": lambda epochs: _ours(epochs, refit="materialize"),
    "one config": lambda epochs: _ours(epochs, config=_CONFIG),
}


def run(smoke: bool) -> dict[str, Any]:
    """Interleaved rounds of all kinds, in this process; then each kind's memory, in a process of its own."""
    epochs, rounds = (2, 1) if smoke else (EPOCHS, 5)
    x, y = data()
    seconds = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(rounds):
            line = {}
            for kind, make in KINDS.items():
                start = time.perf_counter()
                make(epochs).fit(x, y)
                line[kind] = time.perf_counter() - start
            seconds.append(line)
    ratios = {
        kind: median(line[kind] / line["MLPClassifier"] for line in seconds) for kind in KINDS if kind in seconds[0]
    }
    content = {
        "rows": ROWS,
        "columns": COLUMNS,
        "widths": list(WIDTHS),
        "batch_size": BATCH,
        "epochs": epochs,
        "seconds": seconds,
        "ratios": ratios,
        "peak_mib": {kind: _memory(kind, min(epochs, 3)) for kind in KINDS},
        "load_average": os.getloadavg()[0],
    }
    return results.write("sklearn_cost", content, smoke=smoke)


def data() -> tuple[Any, Any]:
    return make_classification(ROWS, COLUMNS, n_informative=15, n_classes=CLASSES, random_state=0)


def _memory(kind: str, epochs: int) -> float:
    """MiB that `fit` takes at its peak, beyond what the process held before; it does not grow with epochs."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.sklearn_cost", kind, str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def main() -> None:
    kind, epochs = sys.argv[1], int(sys.argv[2])
    x, y = data()
    torch.zeros(1).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    KINDS[kind](epochs).fit(x, y)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


if __name__ == "__main__":
    main()
