"""Trials a second of Ray Tune on a surrogate, and settings a second of `evaluate_batch` on a pool of actors.

What bounds the trials shows beside trials that return a constant, with and without the files that Tune writes of each.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import hypertune_mip as ht
from benchmarks import results
from benchmarks.optuna_rate import make_surrogate, surrogate_rates


def run(smoke: bool = False) -> dict[str, Any]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        return results.write("ray_tune", _measured(smoke), smoke=smoke)
    finally:
        ray.shutdown()


def _measured(smoke: bool) -> dict[str, Any]:
    from hypertune_mip_ray import evaluate_batch, trainable

    trials, settings, repeats = (4, 100, 1) if smoke else (1000, 100_000, 3)
    surrogate = make_surrogate()
    units = surrogate.space.sample(settings)
    load = [os.getloadavg()[0]]
    alone = surrogate_rates(surrogate, single=trials, batch=16)["single"]
    seconds: dict[str, list[float]] = {"in_this_process": [], "two_actors": []}
    for _ in range(repeats):
        seconds["in_this_process"].append(_seconds(lambda: surrogate.evaluate_units(units)))
        seconds["two_actors"].append(_seconds(lambda: evaluate_batch(surrogate, units, actors=2, progress=False)))
    few = max(4, trials // 50)
    asking = trainable(surrogate, "loss")
    reusing = _seconds(lambda: _trials(asking, surrogate, trials, reuse=True))
    fresh = _seconds(lambda: _trials(asking, surrogate, few, reuse=False))
    constant = _seconds(lambda: _trials(_constant, surrogate, trials, reuse=True))
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    try:
        bare = _seconds(lambda: _trials(_constant, surrogate, trials, reuse=True))
    finally:
        del os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"]
    load.append(os.getloadavg()[0])
    return {
        "load_average": load,
        "trials": trials,
        "trials_per_second": trials / reusing,
        "trials_per_second_without_reuse": few / fresh,
        "constant_trials_per_second": trials / constant,
        "constant_trials_per_second_without_files": trials / bare,
        "surrogate_settings_per_second": alone,  # one by one, as trials ask
        "settings": settings,
        "settings_per_second": {name: settings / statistics.median(values) for name, values in seconds.items()},
    }


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _constant(config: dict[str, Any]) -> dict[str, float]:
    """A trial that costs nothing."""
    return {"loss": 1.0}


def _trials(function: Any, surrogate: ht.Surrogate, count: int, *, reuse: bool) -> None:
    from ray import tune

    from hypertune_mip_ray import param_space

    with tempfile.TemporaryDirectory() as folder:
        found = tune.Tuner(
            function,
            param_space=param_space(surrogate.space),
            tune_config=tune.TuneConfig(num_samples=count, metric="loss", mode="min", reuse_actors=reuse),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
    if found.errors or len(found) != count:
        raise RuntimeError(f"{len(found.errors)} of {len(found)} trials failed: {found.errors[:1]}")
