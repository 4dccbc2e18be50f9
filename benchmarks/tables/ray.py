"""What Ray gives: runs that survive, time a step, trials a second."""

from __future__ import annotations

from statistics import median

from benchmarks import results
from benchmarks.tables.markdown import environment, group, spread, table

_KILLED = {"worker": "a worker", "node": "one of two nodes", "cluster": "the cluster and the driver"}


def ray_kills() -> str:
    """What runs lose that are killed at a random moment."""
    document = results.read("ray_kills")
    lines = []
    for (kind,), rows in group(document["rows"], "kind").items():
        again = [r["seconds_until_training_again"] for r in rows if r["seconds_until_training_again"] is not None]
        same = [r["same"] for r in rows if r["same"] is not None]
        lines.append(
            [
                _KILLED[kind],
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


def ray_delivery_kills() -> str:
    """What deliveries lose that are killed at a random moment."""
    document = results.read("ray_delivery_kills")
    lines = [
        [
            _KILLED[kind],
            f"{sum(row['same'] for row in rows)} of {len(rows)}",
            spread([row["kept"] for row in rows], 0),
            max(row["repeated"] for row in rows),
        ]
        for (kind,), rows in group(document["rows"], "kind").items()
    ]
    header = [
        "killed", "delivered the same network", "branches finished by then", "branches begun again, at most",
    ]  # fmt: skip
    note = (
        f"\n\n{document['branches']} branches a delivery, {document['tasks']} tasks at a time. The same network: equal"
        " config, branches, values and sums of weights."
    )
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
        f" {rounds} interleaved rounds on two cores, {d['parameters']:,} parameters; the load at the end, the"
        f" benchmark's own processes included, was {d['load_average']:.1f}.\n\nThe model, with c(2) ="
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
        ["Tune, the same with trials that return a constant", f"{d['constant_trials_per_second']:.1f}"],
        ["and without the files that Tune writes of each trial",
         f"{d['constant_trials_per_second_without_files']:.1f}"],
        ["the surrogate, one setting a call", f"{d['surrogate_settings_per_second']:.0f}"],
        ["`Surrogate.evaluate_units` in one process", f"{rates['in_this_process']:,.0f}"],
        ["`ht_ray.evaluate_batch` on two actors, their start included", f"{rates['two_actors']:,.0f}"],
    ]  # fmt: skip
    load = max(d["load_average"])
    note = f"\n\nThe load, the benchmark's own processes included, was up to {load:.1f} on two cores."
    return table(["", "settings a second"], lines) + note + environment(d)
