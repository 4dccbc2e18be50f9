"""Instant: settings a second of `evaluate_batch`, against retraining at each."""

from __future__ import annotations

import time
from typing import Any

from benchmarks import results, tasks


def run(smoke: bool = False) -> dict[str, Any]:
    task = tasks.shortened(tasks.fashion3()) if smoke else tasks.fashion3()
    surrogate = tasks.fitted(task, 0, epochs=2)  # how well it is trained does not change the time
    count = 20 if smoke else 1000
    configs = task.space.from_unit(task.space.sample(count))
    surrogate.evaluate_batch(configs[:8])
    start = time.perf_counter()
    surrogate.evaluate_batch(configs)
    evaluation = time.perf_counter() - start
    start = time.perf_counter()
    tasks.real_training(task, configs[0], 0)
    training = time.perf_counter() - start
    content = {
        "settings": count,
        "validation_examples": len(task.validation[0]),
        "seconds": evaluation,
        "settings_per_second": count / evaluation,
        "seconds_of_one_training": training,
        "times_faster_than_training": training * count / evaluation,
    }
    return results.write("instant", content, smoke=smoke)
