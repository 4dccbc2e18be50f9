"""Time and memory of the estimator's `fit` beside that of `MLPClassifier` with the same epochs, widths and batches."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from benchmarks import results
from hypertune_mip_sklearn import HyperTuneClassifier

ROWS, COLUMNS, CLASSES = 10_000, 50, 4
WIDTHS, BATCH, EPOCHS = (128, 128), 200, 40
NOTHING = "nothing"  # but the imports and the data


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
    "deliver": _ours,
    "materialize": lambda epochs: _ours(epochs, refit="materialize"),
    "retrain": lambda epochs: _ours(epochs, refit="retrain"),
    "one config": lambda epochs: _ours(epochs, config=_CONFIG, refit="retrain"),
}


def run(smoke: bool) -> dict[str, Any]:
    """Interleaved rounds of all kinds, in this process; then each kind's memory, in a process of its own."""
    epochs, rounds = (2, 1) if smoke else (EPOCHS, 5)
    x, y = data()
    _ours(1).fit(x[:500], y[:500])  # imports, once a process
    seconds, steps = [], {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(rounds):
            line = {}
            for kind, make in KINDS.items():
                start = time.perf_counter()
                model = make(epochs).fit(x, y)
                line[kind] = time.perf_counter() - start
                history = getattr(model, "history_", None)
                steps[kind] = history[-1]["step"] if history else None
            seconds.append(line)
    content = {
        "rows": ROWS,
        "columns": COLUMNS,
        "widths": list(WIDTHS),
        "batch_size": BATCH,
        "epochs": epochs,
        "seconds": seconds,
        "hypernetwork_steps": steps,
        "peak_mib": {kind: _peak(kind, min(epochs, 3)) for kind in (NOTHING, *KINDS)},
        "load_average": os.getloadavg()[0],
    }
    return results.write("sklearn_cost", content, smoke=smoke)


def data() -> tuple[Any, Any]:
    return make_classification(ROWS, COLUMNS, n_informative=15, n_classes=CLASSES, random_state=0)


def _peak(kind: str, epochs: int) -> float:
    """MiB that a process holds at most that fits once; it does not grow with epochs."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.sklearn_cost", kind, str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    kind, epochs = sys.argv[1], int(sys.argv[2])
    x, y = data()
    if kind != NOTHING:
        KINDS[kind](epochs).fit(x, y)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)  # ru_maxrss would begin with that of the process that started this one


if __name__ == "__main__":
    main()
