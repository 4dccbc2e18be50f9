"""Fill the tables of the documents from the benchmarks' JSON: `python -m benchmarks.tables`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import results
from benchmarks.regret import regrets

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "cluster.md")
NO_CEILING = 0.8  # below this, the seeds of the truth do not agree on an order themselves
NO_TAU = 0.3  # the same for Kendall's tau
TASKS = {"fashion3": "3 hyperparameters", "fashion8": "8 hyperparameters"}


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def environment(document: dict[str, Any]) -> str:
    e = document["environment"]
    return f"\n\nMeasured on {e['device']} ({e['cores']} cores), torch {e['packages']['torch']}, Python {e['python']}."


def spread(values: list[float], digits: int = 3) -> str:
    """Median, and in brackets the smallest and largest."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def group(rows: list[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


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


def summary() -> str:
    """The targets, and whether they are met; medians."""
    by_task = group(results.read("right")["rows"], "task", "metric")
    figure = lambda task, key: median([r[key] for r in by_task[task, "loss"]])  # noqa: E731
    error = lambda count: median([r["spearman"] for r in by_task[f"fashion{count}", "error"]])  # noqa: E731
    outcomes = [r["outcome"] for r in results.read("defaults")["rows"] if r["normalize"]]
    bad = sum(outcome != "trained" for outcome in outcomes)
    ratio = results.read("cheap")["ratios"]["RankOne"]
    small = median([row["auto"] for row in results.read("cost")["rows"]])
    speed = results.read("instant")
    three, eight = figure("fashion3", "spearman"), figure("fashion8", "spearman")
    regret, rank = figure("fashion3", "regret"), figure("fashion8", "rank_of_best")
    rows = [
        ["Spearman of the validation loss, 3 hyperparameters", f"{three:.3f}", "0.98", three >= 0.98],
        ["regret, 3 hyperparameters", f"{100 * regret:.1f} %", "1 %", regret <= 0.01],
        ["Spearman of the validation loss, 8 hyperparameters", f"{eight:.3f}", "0.95", eight >= 0.95],
        ["truth's best among the surrogate's first, 8 hyperparameters", f"{rank:.0f}", "3", rank <= 3],
        ["cost of `fit` in plain trainings, 3 hyperparameters, 40 epochs", f"{ratio:.2f}", "2.5", ratio <= 2.5],
        ["runs with defaults that collapsed or diverged", f"{bad} of {len(outcomes)}", "0", bad == 0],
        ["Spearman of the error rate, 3 hyperparameters", f"{error(3):.3f}", "-", None],
        ["Spearman of the error rate, 8 hyperparameters", f"{error(8):.3f}", "-", None],
        ["cost of `fit` in plain trainings, ten tasks of trust, 5 epochs", f"{small:.2f}", "-", None],
        ["settings a second", f"{speed['settings_per_second']:.0f}", "-", None],
    ]
    verdict = {True: "met", False: "**missed**", None: ""}
    return table(["", "measured", "target", ""], [[*row[:3], verdict[row[3]]] for row in rows])


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


def exact() -> str:
    """Weights of the hypernetwork against those that solve the problem."""
    document = results.read("exact")
    lines = [
        [
            case,
            fit,
            head,
            spread([100 * r["weight_error"] for r in rows], 2) + " %",
            spread([r["spearman"] for r in rows], 4),
        ]
        for (case, fit, head), rows in group(document["rows"], "case", "fit", "head").items()
    ]
    return table(["problem", "fit", "head", "relative error of the weights", "Spearman"], lines) + environment(document)


def cost() -> str:
    """What `fit` costs on each task of `trust`, in plain trainings."""
    document = results.read("cost")
    lines = [
        [row["task"], f"{row['parameters']:,}", f"{row['auto']:.2f}", f"{row['split']:.2f}"] for row in document["rows"]
    ]
    header = ["task", "parameters", "`fit` in plain trainings", '`batching="split"`']
    return table(header, lines) + environment(document)


def trust() -> str:
    """Rank correlation as a share of its noise ceiling, before and after calibration by six trainings."""
    document = results.read("trust")
    lines = []
    for (task, metric), rows in group(document["rows"], "task", "metric").items():
        ceiling = rows[0]["ceiling"]
        share = lambda key: spread([r[key] / ceiling for r in rows], 2)  # noqa: B023, E731
        lines.append(
            [
                task,
                metric,
                f"{ceiling:.2f}",
                *(share(key) if ceiling > NO_TAU else "-" for key in ("tau", "calibrated", "process")),
                *(
                    f"{100 * median([r[key] for r in rows]):.1f} %"
                    for key in ("regret", "calibrated_regret", "process_regret")
                ),
                f"{100 * median([r['coverage'] for r in rows]):.0f} %",
                f"{median([r['width'] for r in rows]):.2f}",
                sum(r["trusted"] for r in rows),
            ]
        )
    header = [
        "task", "metric", "tau, seed to seed", "surrogate", "calibrated", "GP alone",
        "regret", "calibrated", "GP alone", "coverage", "width", "trusted, of 5",
    ]  # fmt: skip
    return table(header, lines) + environment(document)


def trust_summary() -> str:
    """How many tasks meet the targets for rank correlation and regret, by metric."""
    document = results.read("trust")
    lines = []
    for metric, target in (("loss", 0.88), ("error", 0.82)):
        kept = [
            rows
            for (_, name), rows in group(document["rows"], "task", "metric").items()
            if name == metric and rows[0]["ceiling"] > NO_TAU
        ]
        for name, tau, regret in (
            ("surrogate", "tau", "regret"),
            ("calibrated", "calibrated", "calibrated_regret"),
            ("GP alone", "process", "process_regret"),
        ):
            shares = [median([r[tau] for r in rows]) / rows[0]["ceiling"] for rows in kept]
            regrets = [100 * median([r[regret] for r in rows]) for rows in kept]
            lines.append(
                [
                    metric if name == "surrogate" else "",
                    name,
                    f"{median(shares):.2f}",
                    f"{sum(share >= target for share in shares)} of {len(kept)} (target {target})",
                    f"{median(regrets):.1f} %",
                    f"{sum(regret <= 1 for regret in regrets)} of {len(kept)}",
                ]
            )
    header = ["metric", "", "tau / ceiling, median task", "tasks that reach the target", "regret, median task", "1 %"]
    return table(header, lines)


def fronts() -> str:
    """Hypervolume of what the hypernetwork makes against networks that were trained for real."""
    lines = [
        [task, *(spread([r[key] for r in rows], 3) for key in ("made", "trained", "trained_at_equal_cost"))]
        for (task,), rows in group(results.read("trust")["fronts"], "task").items()
    ]
    header = ["task", "32 made by one hypernetwork", "32 trained for real", "3 trained for real (cost of `fit`)"]
    return table(header, lines)


def controls() -> str:
    """Broken surrogates, and whether their reports say so."""
    lines = [
        [
            case,
            f"{sum(r['flagged'] for r in rows)} of {len(rows)}",
            spread([r["tau"] for r in rows], 2),
            spread([100 * r["regret"] for r in rows], 0) + " %",
        ]
        for (case,), rows in group(results.read("trust")["controls"], "case").items()
    ]
    return table(["surrogate", "flagged", "tau", "regret"], lines)


def rates() -> str:
    """Validation loss of real training by learning rate."""
    document = results.read("rates")
    lines = [
        [row["task"], *(f"{loss:.4g}" for loss in row["losses"].values()), row["best"], row["stated"]]
        for row in document["rows"]
    ]
    columns = [float(rate) for rate in document["rows"][0]["losses"]]
    return table(["task", *(f"at {rate:g}" for rate in columns), "best", "taken"], lines) + environment(document)


def search() -> str:
    """Regret on test data after as many trainings, that of the hypernetwork included, and how many reach TPE's."""
    document = results.read("search")
    cost, trials = document["cost_of_fit"], document["trials"]
    counts = (8, 16, 32)
    lines = []
    for (case,), rows in group(document["rows"], "case").items():
        curves = [_curves(parts) for parts in group(rows, "seed").values()]
        target = median([curve["tpe"][-1] for curve in curves])
        for method in curves[0]:
            middle = _middle([curve[method] for curve in curves], before=cost if method == "surrogate" else 0)
            reached = next((n for n, value in enumerate(middle, 1) if value <= target), None)
            reached_by = [middle[min(n, len(middle)) - 1] for n in counts]  # ASHA may end earlier
            at = [f"{100 * value:.1f}" if value < math.inf else "-" for value in reached_by]
            lines.append(
                [case if method == "random" else "", method, *at, f"{100 * middle[-1]:.1f} ({len(middle)})",
                 "-" if reached is None else reached]
            )  # fmt: skip
    header = ["task", "method", *(f"after {n}" for n in counts), "at the end (trainings)", f"reaches TPE's at {trials}"]
    note = f"\n\nRegret in percent, median of five seeds. Training the hypernetwork counts as {cost} trainings."
    return table(header, lines) + note + environment(document)


def ray_kills() -> str:
    """What runs lose that are killed at a random moment."""
    document = results.read("ray_kills")
    names = {"worker": "a worker", "node": "one of two nodes", "cluster": "the cluster and the driver"}
    lines = []
    for (kind,), rows in group(document["rows"], "kind").items():
        again = [r["seconds_until_training_again"] for r in rows if r["seconds_until_training_again"] is not None]
        same = [r["same"] for r in rows if r["same"] is not None]
        lines.append(
            [
                names[kind],
                f"{sum(r['finished'] for r in rows)} of {len(rows)}",
                f"{sum(same)} of {len(same)}" if same else "-",
                sum(r["lost"] > 0 for r in rows),
                max(r["repeated"] for r in rows),
                spread(again, 0) + " s" if again else "-",
            ]
        )
    header = [
        "killed", "runs that finished", "with the losses of an undisturbed run", "finished checkpoints lost",
        "epochs repeated, at most", "until training goes on",
    ]  # fmt: skip
    note = f"\n\nTwo workers, {document['epochs']} epochs, a checkpoint every {document['checkpoint_every']}."
    note += " Ray waited 10 s for a lost node to come back (its default is 60 s)."
    return table(header, lines) + note + environment(document)


def ray_steps() -> str:
    """Time a step by number of processes, and what follows for more of them."""
    d = results.read("ray_steps")
    time = {name: median([r[name] for r in d["milliseconds"]]) for name in d["milliseconds"][0]}
    batch = d["batch"]
    lines = [
        ["one process", batch, f"{time['one']:.1f} ms", ""],
        ["one process", batch // 2, f"{time['half']:.1f} ms", ""],
        ["two processes, DistributedDataParallel alone", f"2 x {batch // 2}", f"{time['ddp']:.1f} ms",
         f"{100 * d['efficiency_of_ddp']:.0f} %"],
        ["two workers of Ray Train", f"2 x {batch // 2}", f"{time['ray']:.1f} ms",
         f"{100 * d['efficiency_of_ray']:.0f} %"],
        ["two workers of Ray Train", f"2 x {batch}", f"{time['ray, twice the batch']:.1f} ms",
         f"{100 * d['efficiency_of_ray_with_twice_the_batch']:.0f} %"],
    ]  # fmt: skip
    exchange = max(0.0, time["ray"] - time["half"])
    model = [
        [workers, f"{batch // 2}", f"{time['half'] + exchange * 2 * (workers - 1) / workers:.1f} ms",
         f"{100 * time['half'] / (time['half'] + exchange * 2 * (workers - 1) / workers):.0f} %"]
        for workers in (2, 4, 8, 16, 64)
    ]  # fmt: skip
    overhead, rounds = f"{100 * d['overhead_of_ray']:+.1f} %", len(d["milliseconds"])
    note = (
        f"\n\nRay Train's time a step against DistributedDataParallel alone: {overhead} (target: 5 %). Medians of"
        f" {rounds} interleaved rounds, {d['parameters']:,} parameters. The load of the machine was"
        f" {d['load_average']:.1f}; above 2, the cores were shared with other work.\n\nThe model, with c(2) ="
        f" {exchange:.1f} ms from this table; on paper beyond two workers:\n\n"
    )
    return (
        table(["", "examples a step", "time", "efficiency"], lines)
        + note
        + table(["workers", "examples of each", "time a step", "efficiency"], model)
        + environment(d)
    )


def ray_tune() -> str:
    """Trials and settings a second on a surrogate."""
    d = results.read("ray_tune")
    rates = d["settings_per_second"]
    lines = [
        ["Tune, an actor a trial", f"{d['trials_per_second_without_reuse']:.1f}"],
        [f"Tune, `reuse_actors=True` ({d['trials']} trials)", f"{d['trials_per_second']:.1f}"],
        ["the surrogate, one setting a call", f"{d['surrogate_settings_per_second']:.0f}"],
        ["`Surrogate.evaluate_units` in one process", f"{rates['in_this_process']:,.0f}"],
        ["`ht_ray.evaluate_batch` on two actors, their start included", f"{rates['two_actors']:,.0f}"],
    ]
    load = max(d["load_average"])
    note = f"\n\nThe load of the machine was up to {load:.1f}; above 2, the cores were shared with other work."
    return table(["", "settings a second"], lines) + note + environment(d)


def _curves(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Regret after each training, by method; the last full measurement kept regrets instead of runs."""
    if "runs" in rows[0]:
        return regrets(rows)
    return {row["method"]: [math.inf if value is None else value for value in row["regret"]] for row in rows}


def _middle(curves: list[list[float]], *, before: int) -> list[float]:
    """Median over seeds after each training; infinite before any setting was tried."""
    return [math.inf] * before + [median(values) for values in zip(*curves, strict=False)]


_ALL = (summary, right, cheap, steady, defaults, instant, optuna_rate)
_ALL += (exact, rates, cost, trust, trust_summary, fronts, controls, search)
_ALL += (ray_kills, ray_steps, ray_tune)
TABLES: dict[str, Callable[[], str]] = {function.__name__: function for function in _ALL}


def filled(text: str) -> str:
    """The document with every table made anew."""

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- table: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", replacement, text, flags=re.DOTALL)


def main() -> None:
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text()))
        print(f"filled {document.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
