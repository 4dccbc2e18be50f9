"""Plans: ways to spend a training of the hypernetwork, beside each other, to choose the defaults of `fit` by.

`python -m benchmarks.plans --variants default,whole1 --tasks b2_wine,fashion3 --seeds 3` selects. A variant that is not
in the list is given as `--add 'NAME={"settings_per_step": 2, "batching": "full", "times": 0.5}'`.

Nothing but hypernetworks is trained: truths are those of `trust_runs.json` and of `truth_*.json`. Every run is kept as
soon as it is there, so that an interrupted benchmark goes on; `--output` keeps the runs of another version of the code
apart. Cost is processor time of `fit` over that of a plain training of as many epochs as the task has, one thread, both
in one process and in turn: unlike time on the clock it is the same beside other work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import hypertune_mip as ht
from benchmarks import results, tasks, trust_tasks
from benchmarks.tables.plans import summary
from benchmarks.truth import truth
from hypertune_mip.verification import statistics

WHOLE = {"settings_per_step": 1, "batching": "full"}
VARIANTS: dict[
    str, dict[str, Any]
] = {  # options of `fit`; and `times` the epochs, `rate` of Adam, `hypernet`'s options
    "default": {},
    "whole1": WHOLE,
    "whole1x1.5": WHOLE | {"times": 1.5},
    "whole1x2": WHOLE | {"times": 2.0},
    "whole1x3": WHOLE | {"times": 3.0},
    "whole2": WHOLE | {"settings_per_step": 2},
    "whole3": WHOLE | {"settings_per_step": 3},
    "split": {"batching": "split"},
    "split4": {"batching": "split", "settings_per_step": 4},
    "dense1": WHOLE | {"hypernet": {"head": ht.Dense()}},
}
GROUPS = {
    "trust": tuple(make.__name__ for make in trust_tasks.TASKS),
    "defaults": tuple(make.__name__ for make in tasks.SMALL),
    "fashion": tuple(make.__name__ for make in tasks.FASHION_TASKS),
}
TASKS = {name: kind for kind, names in GROUPS.items() for name in names}
SEEDS = 5
_SETTINGS = {"fashion3": 48, "fashion8": 64}  # of the truths of `truth_*.json`; 16 otherwise


def run(smoke: bool = False) -> dict[str, Any]:
    names = ("b2_wine", "cancer") if smoke else tuple(TASKS)
    variants = {name: VARIANTS[name] for name in (("default", "whole1") if smoke else VARIANTS)}
    rows = measured(variants, names, 1 if smoke else SEEDS, results.path("plans", smoke=smoke), smoke=smoke)
    print(summary(rows))
    return results.read("plans", smoke=smoke)


def measured(
    variants: dict[str, dict[str, Any]],
    names: Sequence[str],
    seeds: int,
    path: Path,
    *,
    smoke: bool = False,
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """A row by task, seed and variant; those that `path` holds already, of the same options, are not run again."""
    rows = json.loads(path.read_text())["rows"] if path.exists() and not smoke else []
    stated = {name: shown(options) for name, options in variants.items()}
    known = {(row["task"], row["seed"], row["variant"]) for row in rows if row["options"] == stated.get(row["variant"])}
    jobs = []
    for seed in range(seeds):  # the outer loop: a run that is interrupted has seen all tasks
        for name in names:
            missing = {variant: o for variant, o in variants.items() if (name, seed, variant) not in known}
            if missing:
                jobs.append((name, seed, missing, smoke))
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(_job, *job) for job in jobs]
        for part in tqdm(as_completed(parts), total=len(parts), desc="plans", mininterval=10.0):
            new = part.result()
            replaced = {(row["task"], row["seed"], row["variant"]) for row in new}
            rows = [row for row in rows if (row["task"], row["seed"], row["variant"]) not in replaced] + new
            rows.sort(key=lambda row: (list(TASKS).index(row["task"]), row["seed"]))
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".tmp")
            document = {"benchmark": "plans", "environment": results.environment(), "rows": rows}
            unfinished.write_text(json.dumps(document, indent=1) + "\n")
            unfinished.replace(path)
    return [row for row in rows if row["variant"] in variants and row["task"] in names and row["seed"] < seeds]


def shown(options: dict[str, Any]) -> str:
    """Options as text, to tell whether they are the same."""
    return ", ".join(f"{name}={value!r}" for name, value in sorted(options.items()))


def true(name: str, smoke: bool) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Units (S, d) and metrics (S, seeds) of the truth that judges, from what other benchmarks have kept."""
    if TASKS[name] == "trust":
        one = next(one for one in results.read("trust_runs")["tasks"] if one["task"] == name)
        return torch.tensor(one["units"], dtype=torch.float64), {k: np.array(v) for k, v in one["true"].items()}
    return truth(name, settings=4 if smoke else _SETTINGS.get(name, 16), smoke=smoke)


def _job(name: str, seed: int, variants: dict[str, dict[str, Any]], smoke: bool) -> list[dict[str, Any]]:
    """The rows of one task and seed: a plain training before each variant, whose median time is the unit of cost."""
    torch.set_num_threads(1)
    task: tasks.Task = getattr(trust_tasks if TASKS[name] == "trust" else tasks, name)()
    task = tasks.shortened(task) if smoke else task
    units, real = true(name, smoke)
    config = task.space.from_unit(task.space.sample(1, seed=seed))[0]
    tasks.real_training(replace(task, epochs=1), config, seed)  # warm up
    plain, rows = [], []
    for variant, options in variants.items():
        plain.append(_processor_seconds(lambda: tasks.real_training(task, config, seed)))
        row = {"task": name, "group": TASKS[name], "seed": seed, "variant": variant, "options": shown(options)}
        rows.append(row | _outcome(task, seed, options, units, real))
    return [row | {"plain_seconds": median(plain), "cost": row["seconds"] / median(plain)} for row in rows]


def _outcome(
    task: tasks.Task, seed: int, options: dict[str, Any], units: Tensor, real: dict[str, np.ndarray]
) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def fit() -> None:
        found["surrogate"] = tasks.fitted(task, seed, **arguments(task, options))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ht.HypertuneWarning)
        try:
            seconds = _processor_seconds(fit)
        except ht.TrainingError as error:
            return {"outcome": "diverged", "message": str(error), "seconds": math.nan, "metrics": {}}
    messages = [str(w.message) for w in caught if issubclass(w.category, ht.HypertuneWarning)]
    collapsed = any("collapsed" in message for message in messages)
    surrogate = found["surrogate"]
    predicted = surrogate.evaluate_units(units)
    return {
        "outcome": "collapsed" if collapsed else "trained",
        "warnings": messages,
        "seconds": seconds,
        "steps": surrogate.history[-1]["step"],
        "metrics": {metric: agreement(predicted[metric], runs) for metric, runs in real.items()},
    }


def arguments(task: tasks.Task, options: dict[str, Any]) -> dict[str, Any]:
    """A variant's options as those of `tasks.fitted`."""
    given = {name: value for name, value in options.items() if name not in ("times", "rate")}
    if "times" in options:
        given["epochs"] = max(1, round(options["times"] * task.epochs))
    if "rate" in options:
        given["optimizer"] = partial(torch.optim.Adam, lr=options["rate"], fused=True)
    return given


def agreement(predicted: np.ndarray, runs: np.ndarray) -> dict[str, float]:
    """Of predictions (S,) with truth (S, seeds)."""
    average = runs.mean(1)
    return {
        "tau": statistics.kendall(predicted, average),
        "ceiling": statistics.ceiling(statistics.kendall, runs),
        "spearman": statistics.spearman(predicted, average),
        "regret": statistics.regret(predicted, average),
    }


def _processor_seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names, with commas between them")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"names, or {', '.join(GROUPS)}")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--add", action="append", default=[], metavar="NAME=JSON", help="a variant; may be repeated")
    parser.add_argument("--workers", type=int, help="processes, each with one thread; as many as cores if not given")
    parser.add_argument("--output", type=Path, default=results.path("plans", smoke=False), help="where runs are kept")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    added = {name: json.loads(text) for name, _, text in (part.partition("=") for part in given.add)}
    chosen = [name for name in given.variants.split(",") if name] + list(added)
    names = [name for part in given.tasks.split(",") for name in GROUPS.get(part, (part,))]
    unknown = [name for name in names if name not in TASKS]
    unknown += [name for name in chosen if name not in VARIANTS | added]
    if unknown:
        parser.error(f"unknown {unknown}; variants are {', '.join(VARIANTS)}; tasks are {', '.join(TASKS)}")
    variants = {name: (VARIANTS | added)[name] for name in chosen}
    output = results.path("plans", smoke=True) if given.smoke else given.output
    print(summary(measured(variants, names, given.seeds, output, smoke=given.smoke, workers=given.workers)))


if __name__ == "__main__":
    main()
