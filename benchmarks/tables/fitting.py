"""What one `fit` gives: ranking, cost, steadiness, speed."""

from __future__ import annotations

from statistics import mean, median

from benchmarks import results
from benchmarks.tables.markdown import environment, group, spread, table

NO_CEILING = 0.8  # below this, the seeds of the truth do not agree on an order themselves
TASKS = {"fashion3": "3 hyperparameters", "fashion8": "8 hyperparameters"}


def summary() -> str:
    """The targets, and whether they are met; medians."""
    by_task = group(results.read("right")["rows"], "task", "metric")
    figure = lambda task, key: median([r[key] for r in by_task[task, "loss"]])  # noqa: E731
    error = lambda count: median([r["spearman"] for r in by_task[f"fashion{count}", "error"]])  # noqa: E731
    outcomes = [r["outcome"] for r in results.read("defaults")["rows"] if r["normalize"]]
    bad = sum(outcome != "trained" for outcome in outcomes)
    costs = {row["task"]: row["auto"] for row in results.read("cost")["rows"]}
    ratio = costs.pop("fashion3", results.read("cheap")["ratios"]["RankOne"])
    small = mean(costs.values())
    speed = results.read("instant")
    three, eight = figure("fashion3", "spearman"), figure("fashion8", "spearman")
    regret, rank = figure("fashion3", "regret"), figure("fashion8", "rank_of_best")
    rows = [
        ["Spearman of the validation loss, 3 hyperparameters", f"{three:.3f}", "0.98", three >= 0.98],
        ["regret, 3 hyperparameters", f"{100 * regret:.1f} %", "1 %", regret <= 0.01],
        ["Spearman of the validation loss, 8 hyperparameters", f"{eight:.3f}", "0.95", eight >= 0.95],
        ["truth's best among the surrogate's first, 8 hyperparameters", f"{rank:.0f}", "3", rank <= 3],
        ["cost of `fit` in plain trainings, 3 hyperparameters, 40 epochs", f"{ratio:.2f}", "2.0", ratio <= 2.0],
        ["the same, mean of the ten tasks of trust", f"{small:.2f}", "3.0", small <= 3.0],
        ["runs with defaults that collapsed or diverged", f"{bad} of {len(outcomes)}", "0", bad == 0],
        ["Spearman of the error rate, 3 hyperparameters", f"{error(3):.3f}", "-", None],
        ["Spearman of the error rate, 8 hyperparameters", f"{error(8):.3f}", "-", None],
        ["settings a second", f"{speed['settings_per_second']:.0f}", "-", None],
    ]
    verdict = {True: "met", False: "**missed**", None: ""}
    return table(["", "measured", "target", ""], [[*row[:3], verdict[row[3]]] for row in rows])


def right() -> str:
    document = results.read("right")
    lines = []
    for (task, metric), rows in group(document["rows"], "task", "metric").items():
        lines.append(
            [
                TASKS[task],
                metric,
                spread([r["spearman"] for r in rows]),
                f"{rows[0]['ceiling']:.3f}",
                spread([100 * r["regret"] for r in rows], 1) + " %",
                spread([r["rank_of_best"] for r in rows], 0),
            ]
        )
    header = ["task", "metric", "Spearman", "truth, seed to seed", "regret", "truth's best is the surrogate's number"]
    return table(header, lines) + "\n\nMedian of five seeds (smallest to largest)." + environment(document)


def cheap() -> str:
    document = results.read("cheap")
    plain = median([r["plain"] for r in document["seconds"]])
    lines = [["one plain training", f"{plain:.2f} s", "1"]]
    for head, ratio in document["ratios"].items():
        seconds = median([r[head] for r in document["seconds"] if head in r])
        lines.append([f"`fit`, `{head}`", f"{seconds:.2f} s", f"{ratio:.2f}"])
    parts = [[name, f"{value:.2f}"] for name, value in document["step_milliseconds"].items()]
    return (
        table(["", "median time", "times one training"], lines)
        + "\n\n"
        + table(["part of a step (`RankOne`, one thread)", "milliseconds"], parts)
        + environment(document)
    )


def steady() -> str:
    document = results.read("steady")
    lines = []
    for (optimizer, variant), rows in group(document["rows"], "optimizer", "variant").items():
        trained = [r["spearman"] for r in rows if r["outcome"] == "trained"]
        lines.append([optimizer, variant, spread(trained, 2) if trained else "-", len(rows) - len(trained)])
    header = ["optimiser", "encodings", "Spearman on validation loss", "diverged"]
    seeds = len({row["seed"] for row in document["rows"]})
    return table(header, lines) + f"\n\nMedian of {seeds} seeds (smallest to largest)." + environment(document)


def defaults() -> str:
    document = results.read("defaults")
    sizes = {size["task"]: size for size in document["tasks"]}
    lines = []
    for (task, normalize), rows in group(document["rows"], "task", "normalize").items():
        trained = [r for r in rows if r["outcome"] == "trained"]
        ceiling = rows[0].get("ceiling", float("nan"))
        count = {name: sum(r["outcome"] == name for r in rows) for name in ("collapsed", "diverged")}
        lines.append(
            [
                task if normalize else "- `normalize=False`",
                sizes[task]["rows"],
                sizes[task]["hyperparameters"],
                f"{count['collapsed']} / {count['diverged']}",
                spread([r["spearman"] for r in trained], 2) if trained else "-",
                f"{ceiling:.2f}" + (" (noise)" if ceiling < NO_CEILING else ""),
                spread([100 * r["regret"] for r in trained], 0) + " %" if trained else "-",
            ]
        )
    header = ["task", "rows", "hyperparameters", "collapsed / diverged", "Spearman", "truth, seed to seed", "regret"]
    return table(header, lines) + "\n\nFive seeds each, sixteen true settings." + environment(document)


def instant() -> str:
    d = results.read("instant")
    row = [
        d["settings"],
        d["validation_examples"],
        f"{d['seconds']:.1f} s",
        f"{d['settings_per_second']:.0f}",
        f"{d['times_faster_than_training']:.0f}",
    ]
    header = ["settings", "validation images", "time", "settings a second", "times faster than training each"]
    return table(header, [row]) + environment(d)


def optuna_rate() -> str:
    """Trials a second, by storage and way."""
    document = results.read("optuna_rate")
    rates = {(r["storage"], r["method"]): f"{r['trials_per_second']:.0f}" for r in document["rates"]}
    storages = list(dict.fromkeys(storage for storage, _ in rates))
    methods = {"random": "objective, random", "tpe": "objective, TPE", "prefill": "`prefill`"}
    lines = [[storage, *(rates[storage, method] for method in methods)] for storage in storages]
    alone = document["surrogate_settings_per_second"]
    return (
        table(["trials a second", *methods.values()], lines)
        + f"\n\nThe surrogate alone: {alone['single']:.0f} settings a second one by one,"
        + f" {alone['batch']:.0f} in a batch."
        + environment(document)
    )
