"""Ways to spend a training of the hypernetwork, beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, median, stdev
from typing import Any

from benchmarks import results
from benchmarks.tables.markdown import environment, group, table

NO_CEILING = 0.3  # tau of two seeds of the truth; below it there is no order to find


def plans() -> str:
    """Over tasks, by variant."""
    document = results.read("plans")
    return overall(document["rows"]) + environment(document)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Two tables: by task, and over tasks."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    lines = []
    for (name,), part in group(list(rows), "task").items():
        cells = {variant: _cell([row for row in part if row["variant"] == variant]) for variant in variants}
        lines.append([name, len({row["seed"] for row in part}), *cells.values()])
    legend = (
        "Median over seeds: tau / ceiling of the loss (of the error); for tasks of `defaults` and fashion Spearman of"
        " the loss; then the cost in plain trainings.\n\n"
    )
    by_task = table(["task", "seeds", *variants], lines)
    return f"{legend}{by_task}\n\n{overall(rows)}"


def overall(rows: Sequence[dict[str, Any]]) -> str:
    """Over the tasks of `trust` and of `defaults`: ranks, cost and outcomes by variant.

    The difference is that of tau / ceiling from the first variant on the same task and seed, with its standard error.
    """
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    lines = []
    for variant in variants:
        own = [row for row in rows if row["variant"] == variant]
        trust = [row for row in own if row["group"] == "trust"]
        small = [row for row in own if row["group"] == "defaults"]
        outcomes = [row["outcome"] for row in own]
        lines.append(
            [
                variant,
                *(_over_tasks(shares(trust, metric), f) for metric in ("loss", "error") for f in (median, mean)),
                *(_difference(rows, variants[0], variant, metric) for metric in ("loss", "error")),
                _over_tasks({t: [r["cost"] for r in part] for (t,), part in group(trust, "task").items()}, mean),
                _over_tasks(_spearmans(small), mean),
                _over_tasks(_spearmans([row for row in own if row["task"] == "fashion3"]), median, 3),
                _over_tasks({0: [row["cost"] for row in own if row["task"] == "fashion3"]}, median),
                f"{outcomes.count('collapsed')} / {outcomes.count('diverged')} of {len(outcomes)}",
            ]
        )
    header = ["variant", "tau / ceiling, loss: median", "mean", "error: median", "mean"]
    header += [f"loss less {variants[0]}'s", "error", "cost, mean", "defaults: Spearman, mean"]
    return table([*header, "fashion3: Spearman", "cost", "collapsed / diverged"], lines)


def shares(rows: Iterable[dict[str, Any]], metric: str) -> dict[str, list[float]]:
    """tau / ceiling by task, a number a seed; a run that diverged has 0."""
    found: dict[str, list[float]] = {}
    ceilings = {
        row["task"]: row["metrics"][metric]["ceiling"] for row in rows if metric in row["metrics"]
    }  # a run that diverged has no metrics
    for row in rows:
        if ceilings.get(row["task"], 0.0) > NO_CEILING:
            tau = row["metrics"][metric]["tau"] if metric in row["metrics"] else 0.0
            found.setdefault(row["task"], []).append(tau / ceilings[row["task"]])
    return found


def _spearmans(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {
        task: [row["metrics"]["loss"]["spearman"] if row["metrics"] else 0.0 for row in part]
        for (task,), part in group(rows, "task").items()
    }


def _over_tasks(values: dict[Any, list[float]], function: Callable[[list[float]], float], digits: int = 2) -> str:
    """Of the medians over seeds; a NaN, the time of a run that diverged, is left out."""
    medians = [median(known) for part in values.values() if (known := [v for v in part if math.isfinite(v)])]
    return f"{function(medians):.{digits}f}" if medians else "-"


def _difference(rows: Sequence[dict[str, Any]], first: str, variant: str, metric: str) -> str:
    """Mean over tasks and seeds that both variants have."""
    by_run: dict[tuple[str, int], dict[str, float]] = {}
    for name in {first, variant}:
        for row in rows:
            if row["variant"] == name and row["group"] == "trust":
                (share,) = shares([row], metric).get(row["task"], [math.nan])
                by_run.setdefault((row["task"], row["seed"]), {})[name] = share
    both = [pair[variant] - pair[first] for pair in by_run.values() if len(pair) == 2]
    both = [value for value in both if math.isfinite(value)]
    if variant == first or len(both) < 2:
        return "-"
    return f"{mean(both):+.3f} ± {stdev(both) / math.sqrt(len(both)):.3f}"


def _cell(rows: list[dict[str, Any]]) -> str:
    """What one variant gives on one task."""
    if not rows:
        return "-"
    if rows[0]["group"] == "trust":
        figures = [
            median(part) for metric in ("loss", "error") for part in shares(rows, metric).values()
        ]  # one task: at most one value a metric
        text = f"{figures[0]:.2f}" + "".join(f" ({value:.2f})" for value in figures[1:]) if figures else "-"
    else:
        text = _over_tasks(_spearmans(rows), median, 3)
    return f"{text} at {_over_tasks({0: [row['cost'] for row in rows]}, median)}"
