"""What verification, calibration and search give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from benchmarks import results
from benchmarks.regret import regrets
from benchmarks.tables.markdown import environment, group, spread, table

NARROW = 0.25  # of the range of the truth: intervals
NO_TAU = 0.3  # below this, the seeds of the truth do not agree on an order themselves


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


def rates() -> str:
    """Validation loss of real training by learning rate."""
    document = results.read("rates")
    lines = [
        [row["task"], *(f"{loss:.4g}" for loss in row["losses"].values()), row["best"], row["stated"]]
        for row in document["rows"]
    ]
    columns = [float(rate) for rate in document["rows"][0]["losses"]]
    return table(["task", *(f"at {rate:g}" for rate in columns), "best", "taken"], lines) + environment(document)


def responses() -> str:
    """How far off the surfaces are of which problems for samplers are made."""
    document = results.read("responses")
    lines = [
        [
            r["task"],
            r["metric"],
            r["settings"],
            f"{100 * r['error']:.0f} %",
            f"{r['tau']:.2f}",
            "yes" if r["kept"] else "no",
        ]
        for r in document["rows"]
    ]
    header = ["task", "metric", "settings", "error, in standard deviations", "tau with what was left out", "a problem"]
    return table(header, lines) + environment(document)


def cost() -> str:
    """What `fit` costs on each task of `trust`, in plain trainings."""
    document = results.read("cost")
    lines = [
        [
            row["task"],
            f"{row['parameters']:,}",
            f"{row['auto']:.2f}",
            f"{median(row['spearman']):.3f}" if "spearman" in row else "",
        ]
        for row in document["rows"]
    ]
    header = ["task", "parameters", "`fit` in plain trainings", "Spearman of the loss"]
    epochs = f"Trainings of {document['epochs']} epochs" if "epochs" in document else "Whole trainings"
    note = f"\n\n{epochs}, one thread, medians of {document['rounds']} interleaved rounds."
    return table(header, lines) + note + environment(document)


def trust() -> str:
    """Rank correlation as a share of its noise ceiling, by task, metric and what the surrogate has learned from."""
    document = results.read("trust")
    lines = []
    for (task, metric), rows in group(document["rows"], "task", "metric").items():
        ceiling = rows[0]["ceiling"]
        ways = {way: own for (way,), own in group(rows, "way").items()}
        taus = [spread([r["tau"] / ceiling for r in own], 2) if ceiling > NO_TAU else "-" for own in ways.values()]
        lines.append([task, metric, f"{ceiling:.2f}", *taus])
    header = ["task", "metric", "tau, seed to seed", *dict.fromkeys(row["way"] for row in document["rows"])]
    return table(header, lines) + environment(document)


def trust_summary() -> str:
    """Rank correlation, regret and intervals over tasks, by metric and what the surrogate has learned from."""
    document = results.read("trust")
    lines = []
    for metric in ("loss", "error"):
        kept = [row for row in document["rows"] if row["metric"] == metric and row["ceiling"] > NO_TAU]
        for (way,), rows in group(kept, "way").items():
            tasks = [own for _, own in group(rows, "task").items()]
            shares = [median([r["tau"] for r in own]) / own[0]["ceiling"] for own in tasks]
            regrets = [100 * median([r["regret"] for r in own]) for own in tasks]
            covered, narrow = "-", "-"
            if "coverage" in rows[0]:
                covered = f"{100 * mean(r['coverage'] for r in rows):.0f} %"
                count = sum(median([r["width"] for r in own]) < NARROW for own in tasks)
                narrow = f"{count} of {len(tasks)}"
            lines.append(
                [metric, way, f"{rows[0]['cost']:g}", f"{median(shares):.2f}",
                 f"{min(shares):.2f}", f"{median(regrets):.1f} %", covered, narrow]
            )  # fmt: skip
    header = [
        "metric", "", "cost", "tau / ceiling, median task", "least", "regret, median task", "90 % intervals cover",
        "narrower than a quarter of the range",
    ]  # fmt: skip
    return table(header, lines)


def fronts() -> str:
    """Hypervolume of what the hypernetwork makes against networks that were trained for real."""
    document = results.read("trust")
    lines = [
        [task, *(spread([r[key] for r in rows], 3) for key in ("made", "trained", "trained_at_equal_cost"))]
        for (task,), rows in group(document["fronts"], "task").items()
    ]
    settings, cost = document["settings"], document["cost_of_fit"]
    header = ["task", f"{settings} made by one hypernetwork", f"{settings} trained for real"]
    header.append(f"{cost} trained for real (cost of `fit`)")
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
        for (case,), rows in group(results.read("trust")["controls"], "task").items()
    ]
    return table(["surrogate", "flagged", "tau", "regret"], lines)


def search() -> str:
    """Regret on test data after as many trainings, that of the hypernetwork included, and how many reach TPE's."""
    document = results.read("search")
    counts = (8, 16, 32)
    lines = []
    for case, curves in middles(document).items():
        for method, curve in curves.items():
            reached = _reached(curve, curves["tpe"][-1])
            at = [f"{100 * value:.1f}" if value < math.inf else "-" for value in (_after(n, curve) for n in counts)]
            lines.append(
                [case if method == "random" else "", method, *at, f"{100 * curve[-1]:.1f} ({len(curve)})",
                 "-" if reached is None else reached]
            )  # fmt: skip
    trials, cost = document["trials"], document["cost_of_fit"]
    header = ["task", "method", *(f"after {n}" for n in counts), "at the end (trainings)", f"reaches TPE's at {trials}"]
    note = f"\n\nRegret in percent, median of five seeds. Training the hypernetwork counts as {cost} trainings."
    return table(header, lines) + note + environment(document)


def search_summary() -> str:
    """The targets of search: TPE's regret with few trainings, less than ASHA's, and little harm by a bad surrogate."""
    document = results.read("search")
    found = middles(document)
    curves = {case: middle for case, middle in found.items() if case not in document["broken"]}
    reached = [_reached(curve["surrogate"], curve["tpe"][-1]) for curve in curves.values()]
    early = sum(n is not None and n <= 8 for n in reached)
    ends = {
        case: [_after(len(curve["surrogate"]), curve[method]) for method in ("surrogate", "asha", "tpe")]
        for case, curve in curves.items()
    }
    better = {rival: sum(row[0] < row[rival] for row in ends.values()) for rival in (1, 2)}
    end = median([row[0] for row in ends.values()])
    lines = [
        ["tasks on which TPE's regret at 64 is reached within 8 trainings", f"{early} of {len(curves)}", "all"],
        ["within 36", f"{sum(n is not None for n in reached)} of {len(curves)}", ""],
        ["tasks with less regret than ASHA, as many trainings", f"{better[1]} of {len(curves)}", "5"],
        ["than TPE, as many trainings", f"{better[2]} of {len(curves)}", ""],
        ["test regret at the end, median task", f"{100 * end:.1f} %", "1 %"],
    ]
    ahead = _ahead(document, results.read("rivals"), list(curves))
    (_, counts), tasks = ahead[0][0], len(curves)
    for free, of in (("", 0), (", `fit` counted as trainings", 1)):
        everywhere = sum(wins == possible for wins, possible in ahead[of])
        name = f"tasks with no more regret than TPE and GP (4 random starts) at every count up to {counts}{free}"
        lines.append([name, f"{everywhere} of {tasks}", "6"])
        wins, possible = (sum(column) for column in zip(*ahead[of], strict=True))
        lines.append([f"counts of all tasks where that is so{free}", f"{wins} of {possible}", ""])
    for case in document["broken"]:
        own, tpe = found[case]["surrogate"][document["cost_of_fit"] :], found[case]["tpe"]
        pairs = ", ".join(f"{100 * _after(n, own):.1f} / {100 * _after(n, tpe):.1f}" for n in (8, 16, 32))
        lines.append([f"regret (%) / TPE's after 8, 16, 32 trials, surrogate: {case}", pairs, "1.1 times TPE's"])
    return table(["", "measured", "target"], lines)


def _ahead(
    document: dict[str, Any], rivals: dict[str, Any], cases: Sequence[str]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """At how many counts of trainings, of how many, the surrogate has no more regret than either rival, by case.

    First with as many trials as the rivals, then with as many trainings, `fit` included.
    """
    by_trials, by_cost = [], []
    for case in cases:
        rows = [row for row in (*document["rows"], *rivals["rows"]) if row["case"] == case]
        curves = [regrets(part) for part in group(rows, "seed").values()]
        counts = min(len(curve[rival]) for curve in curves for rival in ("tpe4", "gp4"))
        own, *others = ([median(c[m][n] for c in curves) for n in range(counts)] for m in ("surrogate", "tpe4", "gp4"))
        best = [min(pair) for pair in zip(*others, strict=True)]
        late = best[document["cost_of_fit"] :]
        by_trials.append((sum(a <= b for a, b in zip(own, best, strict=True)), counts))
        by_cost.append((sum(a <= b for a, b in zip(own, late, strict=False)), len(late)))
    return by_trials, by_cost


def search_clock() -> str:
    """Regret when `SurrogateSampler` ends, and that of others after the same time on the clock."""
    document = results.read("search")
    lines = []
    for case, curves in middles(document).items():
        if case in document["broken"]:
            continue
        rows = {method: part for (_, method), part in group(document["rows"], "case", "method").items() if _ == case}
        seconds = lambda method, key: median([row[key] for row in rows[method]])  # noqa: B023, E731
        training, fit = (seconds("surrogate", key) for key in ("seconds_of_training", "seconds_of_fit"))
        proposal = {m: seconds(m, "seconds") / len(rows[m][0]["runs"]) for m in ("surrogate", "random", "tpe", "gp")}
        end = fit + document["own_trials"] * (training + proposal["surrogate"])
        counts = {m: math.floor(end / (training + proposal[m])) for m in ("random", "tpe", "gp")}
        lines.append(
            [
                case,
                f"{training:.1f}",
                f"{fit / training:.1f}",
                *(f"{proposal[m] / training:.2f}" for m in ("surrogate", "gp", "tpe")),
                f"{100 * curves['surrogate'][-1]:.1f}",
                *(f"{100 * _after(n, curves[m]):.1f} ({min(n, len(curves[m]))})" for m, n in counts.items()),
            ]
        )
    header = ["task", "one training, s", "`fit`, in trainings", "a proposal, in trainings", "GP's", "TPE's"]
    header += [f"regret after `fit` and {document['own_trials']} trials, %", "random, same time (trials)"]
    return table([*header, "TPE", "GP"], lines)


def middles(document: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Median regret over seeds after each training, by case and method; infinite before any setting was tried."""
    found = {}
    for (case,), rows in group(document["rows"], "case").items():
        curves = [regrets(parts) for parts in group(rows, "seed").values()]
        found[case] = {
            method: [math.inf] * (document["cost_of_fit"] if method == "surrogate" else 0)
            + [median(values) for values in zip(*(curve[method] for curve in curves), strict=False)]
            for method in curves[0]
        }
    return found


def _after(trainings: int, curve: Sequence[float]) -> float:
    """The regret then, or at the end: ASHA may end earlier."""
    return curve[min(trainings, len(curve)) - 1]


def _reached(curve: Sequence[float], target: float) -> int | None:
    """After how many trainings a regret is down to the target; None if never."""
    return next((n for n, value in enumerate(curve, 1) if value <= target), None)
