"""Draw the figures of the documents from the benchmarks' JSON: `python -m benchmarks.figures`."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import matplotlib.pyplot as plt

from benchmarks import results
from benchmarks.tables.__main__ import ROOT
from benchmarks.tables.delivery import large, regrets
from benchmarks.tables.markdown import group
from benchmarks.tables.trust import NO_TAU, middles

FOLDER = ROOT / "docs" / "images"
COLORS = {"surrogate": "tab:red", "tpe": "tab:blue", "gp": "tab:green", "random": "tab:gray", "asha": "tab:purple"}
NAMES = {"surrogate": "SurrogateSampler", "tpe": "TPE", "gp": "Optuna's GP", "random": "random", "asha": "ASHA"}
DELIVERED = {  # marker, colour and name
    "deliver": ("*", "tab:red", "deliver"),
    "lean": ("P", "tab:orange", "deliver, one setting a step"),
    "fresh": ("x", "black", "its rungs from fresh weights"),
    "default": ("v", "tab:cyan", "its rungs from a default network"),
    "stacked": ("s", "tab:brown", "stacked trainings, same time"),
}
_FLOOR = 0.1  # percent; the best setting that any method has seen has regret 0


def search_data(document: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Median regret in percent after each training, by task and method; NaN before a method has tried anything."""
    return {
        case: {
            method: [100 * value if math.isfinite(value) else math.nan for value in curve]
            for method, curve in curves.items()
        }
        for case, curves in middles(document).items()
        if case not in document["broken"]
    }


def trust_data(document: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Median tau of the loss over its noise ceiling, by task and by what the surrogate has learned from."""
    found: dict[str, dict[str, float]] = {}
    for (task, metric, way), rows in group(document["rows"], "task", "metric", "way").items():
        if metric == "loss" and rows[0]["ceiling"] > NO_TAU:
            found.setdefault(task, {})[way] = median([row["tau"] for row in rows]) / rows[0]["ceiling"]
    return found


def draw_search() -> None:
    tasks = search_data(results.read("search"))
    figure, grid = plt.subplots(2, 4, figsize=(12, 5), sharex=True, sharey=True, layout="constrained")
    for ax, (task, curves) in zip(grid.flat, tasks.items(), strict=False):
        for method, curve in curves.items():
            shown = [max(value, _FLOOR) for value in curve]
            width = 2.0 if method == "surrogate" else 1.0
            ax.plot(range(1, len(shown) + 1), shown, color=COLORS[method], label=NAMES[method], linewidth=width)
        ax.set(title=task, yscale="log")
    for ax in grid[:, 0]:
        ax.set_ylabel("test regret, %")
    figure.supxlabel("trainings, that of the hypernetwork included", fontsize="medium")
    grid[-1, -1].axis("off")
    grid[-1, -1].legend(*grid[0, 0].get_legend_handles_labels(), loc="center")
    figure.savefig(FOLDER / "search.png", dpi=110)
    plt.close(figure)


def draw_trust() -> None:
    tasks = trust_data(results.read("trust"))
    figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    places = range(len(tasks))
    marks = {
        "surrogate": ("o", "tab:orange"),
        "16 branches": ("D", "tab:red"),
        "GP, 6 trainings": ("x", "tab:green"),
        "GP, 24 short trainings": ("+", "tab:blue"),
    }
    for way, (marker, color) in marks.items():
        ax.plot([taus[way] for taus in tasks.values()], places, marker, color=color, label=way)
    ax.axvline(0.92, color="gray", linewidth=1, linestyle=":")
    ax.set(yticks=list(places), yticklabels=list(tasks), xlabel="Kendall's tau of the loss, as a share of its ceiling")
    ax.invert_yaxis()
    ax.legend()
    figure.savefig(FOLDER / "trust.png", dpi=110)
    plt.close(figure)


def delivery_data(document: dict[str, Any], broken: list[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """Cost in trainings and median test regret in percent, by task and method; rivals after 1, 2, 4, ... trainings."""
    return {
        case: {
            method: (
                median([r["cost"] for r in document["rows"] if (r["case"], r["method"]) == (case, method)]),
                100 * median(values),
            )
            for method, values in own.items()
            if method in DELIVERED
        }
        for case, own in regrets().items()
        if case not in (*broken, *large())
    }


def draw_delivery() -> None:
    """The delivered networks among the curves of searches by real trainings."""
    search = results.read("search")
    tasks, delivered = search_data(search), delivery_data(results.read("delivery"), search["broken"])
    figure, grid = plt.subplots(2, 4, figsize=(12, 5), sharex=True, layout="constrained")
    for ax, (task, points) in zip(grid.flat, delivered.items(), strict=False):
        for method in ("random", "tpe", "gp", "asha"):
            curve = tasks[task][method]
            ax.plot(range(1, len(curve) + 1), curve, color=COLORS[method], label=NAMES[method], linewidth=1.0)
        for method, (cost, regret) in points.items():
            ax.plot(cost, regret, DELIVERED[method][0], color=DELIVERED[method][1], label=DELIVERED[method][2])
        low = min(regret for _, regret in points.values())
        ax.axhline(0.0, color="gray", linewidth=0.5)
        ax.set(title=task, xscale="log", ylim=(min(low, 0.0) - 1.0, 15.0))
    for ax in grid[:, 0]:
        ax.set_ylabel("test regret, %")
    figure.supxlabel("cost in trainings, that of the hypernetwork included", fontsize="medium")
    grid[-1, -1].axis("off")
    grid[-1, -1].legend(*grid[0, 0].get_legend_handles_labels(), loc="center")
    figure.savefig(FOLDER / "delivery.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw_search()
    draw_delivery()
    draw_trust()
