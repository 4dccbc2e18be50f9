"""Tables of branches and of delivered networks."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from benchmarks import results
from benchmarks.regret import Run
from benchmarks.tables.markdown import environment, group, table

NAMES = {
    "deliver": "`fit` and `deliver`",
    "lean": "the same, one setting a step",
    "fresh": "`deliver`'s rungs from fresh weights",
    "stacked": "whole trainings at random settings, stacked, as long by the clock",
}
RIVALS = {"random": "random search", "tpe": "TPE", "gp": "Gaussian process", "asha": "ASHA"}
_COUNTS = (6, 64)  # trainings after which rivals are looked at


def regrets(document: dict[str, Any], search: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Test regret by case and method, one for each seed: 0 is the best that a method of `search` has found."""
    found: dict[str, dict[str, list[float]]] = {}
    rivals = group(search["rows"], "case", "seed")
    for (case, seed), rows in group(document["rows"], "case", "seed").items():
        runs = {row["method"]: [Run(*run) for run in row["runs"]] for row in rivals[case, seed]}
        best = min(run.test for each in runs.values() for run in each if not math.isnan(run.test))
        spread = max(run.test for run in runs["random"] if not math.isnan(run.test)) - best
        own = {row["method"]: row["test"] for row in rows}
        for method in RIVALS:
            for count in _COUNTS:
                own[f"{method} {count}"] = _after(runs[method], count)
        for method, test in own.items():
            found.setdefault(case, {}).setdefault(method, []).append((test - best) / spread)
    return found


def delivery() -> str:
    """Test regret in percent, median over seeds, of delivered networks and of their rivals."""
    document, search = results.read("delivery"), results.read("search")
    found = regrets(document, search)
    rows = group(document["rows"], "case", "method")
    lines = []
    for case, own in found.items():
        cells = [f"{100 * median(own[method]):.1f} ({_cost(rows[case, method]):.1f})" for method in NAMES]
        lines.append([case, *cells, *(f"{100 * median(own[f'{m} {n}']):.1f}" for m in ("tpe", "gp") for n in _COUNTS)])
    header = ["task", *NAMES.values()]
    header += [f"{RIVALS[method]} after {count}" for method in ("tpe", "gp") for count in _COUNTS]
    note = "\n\nRegret in percent, median of five seeds; in brackets the cost in trainings, that of `fit` by the clock."
    return table(header, lines) + note + environment(document)


def delivery_summary() -> str:
    """The targets of delivered networks, and what was measured."""
    document, search = results.read("delivery"), results.read("search")
    found = regrets(document, search)
    tasks = {case: own for case, own in found.items() if case not in search["broken"]}
    rows = group(document["rows"], "case", "method")
    lines = []
    for method in ("deliver", "lean"):
        costs = [_cost(rows[case, method]) for case in tasks]
        lines.append(
            [
                f"{NAMES[method]}: tasks with less test regret than TPE after 64 trainings",
                f"{_less(tasks, method, 'tpe 64')} of {len(tasks)}, for {median(costs):.1f} trainings"
                f" ({min(costs):.1f} to {max(costs):.1f})",
                "6, for at most 6" if method == "deliver" else "6, for at most 4",
            ]
        )
        mean = 100 * sum(median(own[method]) for own in tasks.values()) / len(tasks)
        lines.append([f"{NAMES[method]}: mean test regret", f"{mean:.1f} %", "0 %"])
    for rival in ("tpe 64", "gp 64", "asha 64", "tpe 6", "gp 6", "random 64", "fresh", "stacked"):
        name, _, count = rival.partition(" ")
        label = f"{RIVALS[name]} after {count} trainings" if name in RIVALS else NAMES[name]
        mean = 100 * sum(median(own[rival]) for own in tasks.values()) / len(tasks)
        beaten = _less(tasks, "deliver", rival)
        lines.append(
            [f"mean test regret: {label}", f"{mean:.1f} % (`deliver` has less on {beaten} of {len(tasks)})", ""]
        )
    for case in search["broken"]:
        if case in found:
            pair = " / ".join(f"{100 * median(found[case][m]):.1f}" for m in ("deliver", "fresh"))
            lines.append([f"regret (%), `deliver` / the same from fresh weights: {case}", pair, "1.1 times the second"])
    return table(["", "measured", "target"], lines)


def branches() -> str:
    """Kendall's tau with truth as a share of the noise ceiling, by start and share: median and least over tasks."""
    document = results.read("branches")
    lines = []
    for (start, share), rows in sorted(group(document["orders"], "start", "share").items(), key=_place):
        name = "surrogate as it is" if start == "surrogate" else f"{start}, {share:g}"
        cells = []
        for metric in ("loss", "error"):
            by_task = [median([r[metric] for r in part]) for part in group(rows, "task").values() if metric in part[0]]
            cells += [f"{median(by_task):.2f}", f"{min(by_task):.2f}"]
        lines.append([name, *cells])
    count = len({row["task"] for row in document["orders"]})
    header = ["start, share", "loss, median task", "least", "error, median task", "least"]
    seeds = [len({row["seed"] for row in part}) for part in group(document["orders"], "task").values()]
    note = f"\n\n{count} tasks, {min(seeds)} to {max(seeds)} seeds each, median over seeds."
    return table(header, lines) + note + environment(document)


def _place(item: tuple[tuple[Any, ...], Any]) -> tuple[int, float]:
    (start, share), _ = item
    return ("surrogate", "early", "end", "shrunk", "fresh").index(start), share


def _after(runs: list[Run], count: int) -> float:
    """Test loss of the run that is best on validation data, among those finished after as many trainings."""
    finished = [run for run in runs if run.spent <= count + 1e-9 and math.isfinite(run.validation)]
    return min(finished, key=lambda run: run.validation).test if finished else math.inf


def _cost(rows: list[dict[str, Any]]) -> float:
    return median([row["cost"] for row in rows])


def _less(tasks: dict[str, dict[str, list[float]]], method: str, rival: str) -> int:
    return sum(median(own[method]) < median(own[rival]) for own in tasks.values())
