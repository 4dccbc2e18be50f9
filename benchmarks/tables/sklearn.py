"""The scikit-learn estimators beside their peers: scores at equal time, and what a fit costs."""

from __future__ import annotations

from statistics import mean, median

import numpy as np
from scipy.stats import binomtest, bootstrap, rankdata

from benchmarks import results
from benchmarks.tables.markdown import environment, group, spread, table


def peers_by_set() -> str:
    """Errors on the test folds, by set."""
    return _by_set("error", "error")


def peers_loss_by_set() -> str:
    """Losses on the test folds, by set."""
    return _by_set("loss", "loss")


def peers_summary() -> str:
    """Mean ranks, and how often ours is ahead of each."""
    document = results.read("peers")
    methods, rows = document["methods"], document["rows"]
    ours = methods[0]
    errors, losses = (_cells(key) for key in ("error", "loss"))
    times = {
        (row["set"], row["seed"], row["fold"]): row["seconds"] for row in rows if row["method"] == ours
    }  # fmt: skip
    lines = []
    for index, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        tried = [row["settings"] for row in own if row["settings"] is not None]
        ratio = median(row["seconds"] / times[row["set"], row["seed"], row["fold"]] for row in own)
        lines.append(
            [
                method,
                *(f"{_mean_rank(cells, index)}" for cells in (errors, losses)),
                *(_wins(cells, index) if index else "-" for cells in (errors, losses)),
                f"{median(tried):.0f}" if tried else "-",
                f"{ratio:.2f}",
            ]
        )
    header = [
        "", "mean rank by error", "by loss", "ours is ahead by error", "by loss", "settings tried", "time / ours"
    ]  # fmt: skip
    count = len(errors)
    note = (
        f"\n\n{len(document['sets'])} sets, {document['seeds']} seeds, {document['folds']} outer folds each: ranks and"
        f" wins are of {count} pairs of set and seed, whose folds are averaged; in brackets 95 % intervals (bootstrap"
        " over the pairs for ranks, Wilson for wins, ties left out). Seeds of one set are not independent, so"
        " intervals are somewhat too narrow."
    )
    return table(header, lines) + note + environment(document)


def refit() -> str:
    """Losses of the three ways to a network."""
    document = results.read("refit")
    groups = group(document["rows"], "set", "refit")
    lines = []
    for name in document["sets"]:
        values = [[row["loss"] for row in groups[name, refit]] for refit in document["refits"]]
        ahead = sum(first < third for first, third in zip(values[0], values[2], strict=True))
        lines.append([name, *(f"{mean(each):.4f}" for each in values), f"{ahead} of {len(values[0])}"])
    note = f"\n\n{document['seeds']} seeds of {document['folds']} folds each."
    header = ["", *(f"`{name}`" for name in document["refits"]), "first ahead of last"]
    return table(header, lines) + note + environment(document)


def sklearn_cost() -> str:
    """Time and memory of `fit` beside `MLPClassifier`."""
    d = results.read("sklearn_cost")
    names = {
        "MLPClassifier": "`MLPClassifier`",
        "retrain": "`HyperTuneClassifier()`",
        "materialize": '`HyperTuneClassifier(refit="materialize")`',
        "one config": "`HyperTuneClassifier(config=...)`, which does not tune",
    }
    lines = [
        [
            name,
            spread([line[kind] for line in d["seconds"]], 1) + " s",
            spread([line[kind] / line["MLPClassifier"] for line in d["seconds"]], 2),
            f"{d['peak_mib'][kind]:.0f} MiB",
        ]
        for kind, name in names.items()
    ]
    note = (
        f"\n\n{d['rows']:,} rows of {d['columns']} columns, widths {d['widths']}, batches of {d['batch_size']},"
        f" {d['epochs']} epochs each; medians (smallest to largest) of {len(d['seconds'])} interleaved rounds. Memory"
        " is the peak of a process of its own beyond what it held before."
    )
    return table(["", "seconds", "ratio", "memory"], lines) + note + environment(d)


def _by_set(key: str, shown: str) -> str:
    document = results.read("peers")
    groups = group(document["rows"], "set", "method")
    lines = []
    for name in document["sets"]:
        values = [mean(row[key] for row in groups[name, method]) for method in document["methods"]]
        best = min(values)
        lines.append([name, *(f"**{v:.4f}**" if v == best else f"{v:.4f}" for v in values)])
    return table(["", *document["methods"]], lines)


def _cells(key: str) -> np.ndarray:
    """Means over folds, (pairs of set and seed, methods)."""
    document = results.read("peers")
    groups = group(document["rows"], "set", "seed", "method")
    return np.array(
        [
            [mean(row[key] for row in groups[name, seed, method]) for method in document["methods"]]
            for name in document["sets"]
            for seed in range(document["seeds"])
        ]
    )


def _mean_rank(cells: np.ndarray, index: int) -> str:
    ranks = rankdata(cells, axis=1)[:, index]
    interval = bootstrap((ranks,), np.mean, rng=np.random.default_rng(0), method="percentile").confidence_interval
    return f"{ranks.mean():.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _wins(cells: np.ndarray, index: int) -> str:
    ahead, behind = int((cells[:, 0] < cells[:, index]).sum()), int((cells[:, 0] > cells[:, index]).sum())
    interval = binomtest(ahead, ahead + behind).proportion_ci(method="wilson")
    return f"{ahead} of {ahead + behind} ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)"
