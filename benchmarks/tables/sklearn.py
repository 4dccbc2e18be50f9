"""The scikit-learn estimators beside their peers: scores at equal time, and what a fit costs."""

from __future__ import annotations

from statistics import mean, median

import numpy as np
from scipy.stats import bootstrap, rankdata

from benchmarks import results
from benchmarks.tables.markdown import environment, group, spread, table


def sklearn_targets() -> str:
    """The targets, and whether they are met."""
    document, cost = results.read("peers"), results.read("sklearn_cost")
    errors, losses = _cells("error"), _cells("loss")
    sets, methods = len(document["sets"]), document["methods"]
    ranks = [rankdata(each, axis=2).mean((0, 1)) for each in (errors, losses)]
    boosting = [min(r for r, m in zip(each, methods, strict=True) if "boosting" in m) for each in ranks]
    ratio = median(line["deliver"] / line["MLPClassifier"] for line in cost["seconds"])
    first = [_first(each, methods) for each in (errors, losses)]
    rows = [
        [f"mean rank among {len(methods)} methods by error", f"{ranks[0][0]:.2f}", f"tuned boosting: {boosting[0]:.2f}",
         ranks[0][0] <= boosting[0]],
        [f"mean rank among {len(methods)} methods by loss", f"{ranks[1][0]:.2f}", f"tuned boosting: {boosting[1]:.2f}",
         ranks[1][0] <= boosting[1]],
        ["sets on which it is the best network by error", first[0], sets, first[0] == sets],
        ["sets on which it is the best network by loss", first[1], sets, first[1] == sets],
        ["`fit` relative to `MLPClassifier.fit`, 40 epochs each, 10,000 rows", f"{ratio:.2f}", 3, ratio <= 3],
    ]  # fmt: skip
    verdict = {True: "met", False: "**missed**"}
    return table(["", "measured", "target", ""], [[*row[:3], verdict[bool(row[3])]] for row in rows])


def peers_by_set() -> str:
    """Errors on the test folds, by set."""
    return _by_set("error")


def peers_loss_by_set() -> str:
    """Losses on the test folds, by set."""
    return _by_set("loss")


def peers_summary() -> str:
    """Mean ranks, and how often ours is ahead of each."""
    document = results.read("peers")
    methods, rows = document["methods"], document["rows"]
    cells = [_cells(key) for key in ("error", "loss")]
    times = {(r["set"], r["seed"], r["fold"]): r["seconds"] for r in rows if r["method"] == methods[0]}
    lines = []
    for index, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        tried = [row["settings"] for row in own if row["settings"] is not None]
        ratio = median(row["seconds"] / times[row["set"], row["seed"], row["fold"]] for row in own)
        lines.append(
            [
                method,
                *(_mean_rank(each, index) for each in cells),
                *(_wins(each, index) if index else "-" for each in cells),
                f"{median(tried):.0f} ({min(tried)} to {max(tried)})" if tried else "-",
                f"{ratio:.2f}",
            ]
        )
    header = [
        "", "mean rank by error", "by loss", "ours is ahead by error", "by loss", "settings tried", "time / ours"
    ]  # fmt: skip
    first = " and ".join(str(_first(each, methods)) for each in cells)
    sets, count = len(document["sets"]), cells[0].shape[0] * cells[0].shape[1]
    note = (
        f"\n\nRanks among the {len(methods)} methods, 1 is best. Ranks and wins are of {count} pairs of set and seed,"
        f" whose {document['folds']} folds are averaged; in brackets 95 % intervals, by a bootstrap over the {sets}"
        " sets, since seeds of one set are not independent. Best of the networks, by mean error and loss, on"
        f" {first} of {sets} sets."
    )
    return table(header, lines) + note + environment(document)


def refit() -> str:
    """Losses of the three ways to a network."""
    document = results.read("refit")
    groups = group([row for row in document["rows"] if row["steps"] is None], "set", "refit")
    lines = []
    for name in document["sets"]:
        values = [[row["loss"] for row in groups[name, refit]] for refit in document["refits"]]
        rounds = sorted(row["rounds"] for row in groups[name, "deliver"])
        lines.append([name, *(f"{mean(each):.4f}" for each in values), ", ".join(map(str, rounds))])
    note = f"\n\nMeans over {document['folds']} folds."
    header = ["", *(f"`{name}`" for name in document["refits"]), "rounds of `deliver`"]
    return table(header, lines) + note + environment(document)


def refit_steps() -> str:
    """Losses by the number of the hypernetwork's steps, beside those of the default."""
    document = results.read("refit")
    rows = [row for row in document["rows"] if row["refit"] == "deliver"]
    lengths = [None, *document["steps"]]
    means = {key: mean(row["loss"] for row in each) for key, each in group(rows, "set", "steps").items()}
    judged = {key: mean(row["validation_loss"] for row in each) for key, each in group(rows, "set", "steps").items()}
    lines = [
        [
            name,
            f"{means[name, None]:.4f}",
            *(
                f"{means[name, steps] / means[name, None]:.2f} ({judged[name, steps] / judged[name, None]:.2f})"
                for steps in lengths[1:]
            ),
        ]
        for name in document["sets"]
    ]
    header = ["", '`epochs="auto"`', *(f"{steps} steps" for steps in document["steps"])]
    note = (
        '\n\nLosses of the network on test rows with `epochs="auto"`, and ratios to them; in brackets those of the'
        " losses at the best setting on the rows that were held back, as the surrogate sees them. Means over"
        f" {document['folds']} folds."
    )
    return table(header, lines) + note + environment(document)


def sklearn_cost() -> str:
    """Time and memory of `fit` beside `MLPClassifier`."""
    d = results.read("sklearn_cost")
    names = {
        "MLPClassifier": "`MLPClassifier`",
        "deliver": "`HyperTuneClassifier`",
        "materialize": '`HyperTuneClassifier(refit="materialize")`',
        "retrain": '`HyperTuneClassifier(refit="retrain")`',
        "one config": '`HyperTuneClassifier(config=..., refit="retrain")`, which does not tune',
    }
    lines = [
        [
            name,
            spread([line[kind] for line in d["seconds"]], 1) + " s",
            spread([line[kind] / line["MLPClassifier"] for line in d["seconds"]], 2),
            d["hypernetwork_steps"][kind] or "-",
            f"{d['peak_mib'][kind] - d['peak_mib']['nothing']:.0f} MiB",
        ]
        for kind, name in names.items()
    ]
    note = (
        f"\n\n{d['rows']:,} rows of {d['columns']} columns, widths {d['widths']}, batches of {d['batch_size']},"
        f" {d['epochs']} epochs each; medians (smallest to largest) of {len(d['seconds'])} interleaved rounds. The"
        " target is a ratio of 3. Memory is the peak of a process of its own beyond one that only imports and loads"
        f" the data ({d['peak_mib']['nothing']:.0f} MiB)."
    )
    return table(["", "seconds", "ratio", "steps of the hypernetwork", "memory"], lines) + note + environment(d)


def _by_set(key: str) -> str:
    document = results.read("peers")
    groups = group(document["rows"], "set", "method")
    lines = []
    for name in document["sets"]:
        values = [mean(row[key] for row in groups[name, method]) for method in document["methods"]]
        lines.append([name, *(f"**{v:.4f}**" if v == min(values) else f"{v:.4f}" for v in values)])
    return table(["", *document["methods"]], lines)


def _cells(key: str) -> np.ndarray:
    """Means over folds, (sets, seeds, methods)."""
    document = results.read("peers")
    groups = group(document["rows"], "set", "seed", "method")
    return np.array(
        [
            [
                [mean(row[key] for row in groups[name, seed, method]) for method in document["methods"]]
                for seed in range(document["seeds"])
            ]
            for name in document["sets"]
        ]
    )


def _interval(by_set: np.ndarray) -> tuple[float, float]:
    found = bootstrap((by_set,), np.mean, rng=np.random.default_rng(0), method="percentile").confidence_interval
    return float(found.low), float(found.high)


def _mean_rank(cells: np.ndarray, index: int) -> str:
    by_set = rankdata(cells, axis=2)[:, :, index].mean(1)
    low, high = _interval(by_set)
    return f"{by_set.mean():.2f} ({low:.2f} to {high:.2f})"


def _wins(cells: np.ndarray, index: int) -> str:
    """A tie is half a win."""
    ahead = (cells[:, :, 0] < cells[:, :, index]) + 0.5 * (cells[:, :, 0] == cells[:, :, index])
    if np.ptp(ahead.mean(1)) == 0:
        low = high = ahead.mean()
    else:
        low, high = _interval(ahead.mean(1))
    return f"{ahead.sum():g} of {ahead.size} ({100 * low:.0f} to {100 * high:.0f} %)"


def _first(cells: np.ndarray, methods: list[str]) -> int:
    """On how many sets ours is the first of the networks, by the mean over seeds."""
    networks = [index for index, method in enumerate(methods) if not method.startswith("gradient boosting")]
    return int((cells.mean(1)[:, networks].argmin(1) == 0).sum())
