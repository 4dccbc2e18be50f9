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
    "default": "`deliver`'s rungs from a network that was trained in the middle of the space",
    "stacked": "whole trainings at random settings, stacked, as long by the clock",
}
RIVALS = {
    "random": "random search",
    "tpe": "TPE",
    "gp": "Gaussian process",
    "asha": "ASHA",
    "tpe4": "TPE, 4 startup trials",
    "gp4": "Gaussian process, 4 startup trials",
    "smac": "SMAC",
}
_SHOWN = (
    *("tpe 64", "gp 64", "asha 32", "random 64"),
    *("tpe4 16", "gp4 16", "smac 16"),
    *("tpe 6", "gp 6", "tpe4 6", "gp4 6", "smac 6"),
)
_COUNTS = (6, 12, 16, 32, 64)  # trainings after which rivals are looked at


def regrets() -> dict[str, dict[str, list[float]]]:
    """Test regret by case and method, one for each seed; of a rival after n trainings by "rival n".

    0 is the best that a method of `search` has found in the case, or of `rivals` where `search` has not tried it.
    """
    found: dict[str, dict[str, list[float]]] = {}
    searches, early = (_runs(name) for name in ("search", "rivals"))
    for (case, seed), rows in group(results.read("delivery")["rows"], "case", "seed").items():
        runs = searches.get((case, seed)) or early.get((case, seed))
        if runs is None:
            continue
        best = min(run.test for each in runs.values() for run in each if not math.isnan(run.test))
        spread = max(run.test for run in runs["random"] if not math.isnan(run.test)) - best
        own = {row["method"]: row["test"] for row in rows}
        for method, each in (early.get((case, seed), {}) | runs).items():
            own |= {f"{method} {count}": _after(each, count) for count in _COUNTS if count <= each[-1].spent + 1}
        for method, test in own.items():
            found.setdefault(case, {}).setdefault(method, []).append((test - best) / spread)
    return found


def large() -> list[str]:
    """Names of the larger tasks."""
    return list(dict.fromkeys(row["case"] for row in results.read("rivals")["rows"] if row["method"] == "random"))


def _runs(name: str) -> dict[tuple[str, int], dict[str, list[Run]]]:
    return {
        key: {row["method"]: [Run(*run) for run in row["runs"]] for row in rows}
        for key, rows in group(results.read(name)["rows"], "case", "seed").items()
    }


def delivery() -> str:
    """Test regret in percent, median over seeds, of delivered networks and of their rivals."""
    some = [case for case in regrets() if case not in large()]
    return _table(some, ("tpe 6", "tpe 64", "gp 6", "gp 64", "tpe4 16", "gp4 16", "smac 16"))


def delivery_large() -> str:
    """The same on the larger tasks."""
    return _table(large(), ("random 12", "tpe4 6", "tpe4 12", "gp4 6", "gp4 12"))


def _table(cases: list[str], rivals: tuple[str, ...]) -> str:
    document, found = results.read("delivery"), regrets()
    rows = group(document["rows"], "case", "method")
    lines = []
    cases = [case for case in cases if case in found]
    for case in cases:
        own = found[case]
        cells = [f"{100 * median(own[method]):.1f} ({_cost(rows[case, method]):.1f})" for method in NAMES]
        lines.append([case, *cells, *(f"{100 * median(own[r]):.1f}" if r in own else "" for r in rivals)])
    header = ["task", *NAMES.values(), *(f"{RIVALS[r.split()[0]]} after {r.split()[1]}" for r in rivals)]
    seeds = sorted({len(found[case]["deliver"]) for case in cases})
    note = (
        f"\n\nRegret in percent, median of {' or '.join(map(str, seeds))} seed(s); in brackets the cost in trainings,"
        " that of `fit` by the clock."
    )
    return table(header, lines) + note + environment(document)


def delivery_summary() -> str:
    """The targets of delivered networks, and what was measured."""
    found, broken = regrets(), results.read("search")["broken"]
    tasks = {case: own for case, own in found.items() if case not in (*broken, *large())}
    rows = group(results.read("delivery")["rows"], "case", "method")
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
    for rival in (*_SHOWN, "fresh", "default", "stacked"):
        name, _, count = rival.partition(" ")
        label = f"{RIVALS[name]}, after {count} trainings" if name in RIVALS else NAMES[name]
        some = {case: own for case, own in tasks.items() if rival in own}
        if some:
            mean = 100 * sum(median(own[rival]) for own in some.values()) / len(some)
            beaten = _less(some, "deliver", rival)
            shown = f"{mean:.1f} % (`deliver` has less on {beaten} of {len(some)})"
            lines.append([f"mean test regret: {label}", shown, ""])
    for case in broken:
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
