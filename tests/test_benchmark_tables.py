"""What the benchmarks' pages say follows from what was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import figures, results
from benchmarks.memory import Live, Saved
from benchmarks.regret import regrets
from benchmarks.tables import kernel, plans, trust
from benchmarks.tables.__main__ import DOCUMENTS, filled


def row(method: str, *runs: tuple[float, float, float], case: str = "task", seed: int = 0) -> dict[str, Any]:
    """Runs as (spent trainings, validation loss, test loss)."""
    return {"case": case, "seed": seed, "method": method, "seconds": 2.0, "runs": [list(run) for run in runs]}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_are_those_of_the_measurements(path: Path) -> None:
    assert filled(path.read_text()) == path.read_text()


def test_regret_is_that_of_the_best_validation_loss_on_test_data() -> None:
    """Test losses span 1 to 5 over random settings, and the best that anyone has seen is 1."""
    random = row("random", (1, 0.9, 5.0), (2, 0.5, 2.0), (3, 0.7, 1.0), (4, 0.1, 3.0))
    found = regrets([random, row("other", (1, 0.3, 4.0), (2, 0.4, 1.5))])
    assert found == {"random": [1.0, 0.25, 0.25, 0.5], "other": [0.75, 0.75]}


def test_regret_before_a_run_has_finished_and_of_runs_that_failed() -> None:
    """Successive halving spends shares of a training; a NaN is never the best."""
    random = row("random", (1, math.nan, math.nan), (2, 0.5, 2.0), (3, 0.6, 1.0))
    found = regrets([random, row("asha", (1.4, 0.3, 1.0), (2.1, 0.2, 2.0), (3.0, 0.9, 1.5))])
    assert found == {"random": [math.inf, 1.0, 1.0], "asha": [math.inf, 0.0, 1.0]}


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Search on one task and with one broken surrogate, three seeds; a training takes as long as a proposal.

    TPE goes down to 0 at its third training, the surrogate with its first trial.
    """
    rows = []
    for case in ("task", "broken"):
        for seed in range(3):
            best = (0.1, 0.1)
            rows += [
                row("random", (1, 1.0, 1.0), (2, 0.9, 0.9), (3, 0.8, 0.8), (4, 0.7, 0.7), case=case, seed=seed),
                row("tpe", (1, 0.9, 0.9), (2, 0.8, 0.8), (3, *best), (4, *best), case=case, seed=seed),
                row("gp", (1, 0.9, 0.9), (2, 0.8, 0.8), (3, 0.5, 0.5), (4, 0.5, 0.5), case=case, seed=seed),
                row("surrogate", (1, *best), (2, *best), case=case, seed=seed)
                | {"seconds_of_fit": 4.0, "seconds_of_training": 1.0},
                row("asha", (1, 0.9, 0.9), (3, 0.19, 0.19), case=case, seed=seed),
            ]
    content = {
        "environment": results.environment(), "cost_of_fit": 2, "trials": 4, "own_trials": 2, "broken": ["broken"],
        "rows": rows,
    }  # fmt: skip
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    (tmp_path / "search.json").write_text(json.dumps(content))
    early = [
        row(method, (1, 1.0, 1.0), (2, own, own), seed=seed)
        for method, own in (("tpe4", 0.9), ("gp4", 0.05))
        for seed in range(3)
    ]
    (tmp_path / "rivals.json").write_text(json.dumps({"rows": early}))
    return content


def cells(table: str) -> list[list[str]]:
    """The rows below the header."""
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_curve_of_the_surrogate_starts_after_fit(document: dict[str, Any]) -> None:
    curves = trust.middles(document)["task"]
    assert curves["surrogate"] == [math.inf, math.inf, 0.0, 0.0]
    assert curves["tpe"] == pytest.approx([8 / 9, 7 / 9, 0.0, 0.0])
    assert trust._reached(curves["surrogate"], 0.0) == 3
    assert trust._reached(curves["random"], 0.0) is None
    assert trust._after(8, curves["gp"]) == pytest.approx(4 / 9)


@pytest.mark.usefixtures("document")
def test_search_summary() -> None:
    measured = {line[0]: line[1] for line in cells(trust.search_summary())}
    assert measured["tasks on which TPE's regret at 64 is reached within 8 trainings"] == "1 of 1"
    assert measured["tasks with less regret than ASHA, as many trainings"] == "1 of 1"
    assert measured["than TPE, as many trainings"] == "0 of 1"
    early = "tasks with no more regret than TPE and GP (4 random starts) at every count up to 2"
    assert measured[early] == "0 of 1"  # the GP is ahead after its second
    assert measured["counts of all tasks where that is so"] == "1 of 2"
    assert measured[f"{early}, `fit` counted as trainings"] == "1 of 1"  # there is no count beyond `fit`
    assert measured["regret (%) / TPE's after 8, 16, 32 trials, surrogate: broken"] == "0.0 / 0.0, 0.0 / 0.0, 0.0 / 0.0"


@pytest.mark.usefixtures("document")
def test_search_by_the_clock() -> None:
    """`fit`, two trainings and two proposals of a second each take 8 s; others propose in half a second."""
    (line,) = cells(trust.search_clock())
    assert line == ["task", "1.0", "4.0", "1.00", "0.50", "0.50", "0.0", "66.7 (4)", "0.0 (4)", "44.4 (4)"]


def test_figure_of_search(document: dict[str, Any]) -> None:
    data = figures.search_data(document)
    assert list(data) == ["task"]
    assert data["task"]["gp"] == pytest.approx([800 / 9, 700 / 9, 400 / 9, 400 / 9])
    assert np.isnan(data["task"]["surrogate"]).tolist() == [True, True, False, False]


def test_figure_of_trust() -> None:
    row = {"task": "one", "metric": "loss", "ceiling": 0.8, "way": "surrogate"}
    taus = [{**row, "tau": t} for t in (0.1, 0.2, 0.3)] + [{**row, "way": "16 branches", "tau": 0.4}]
    others = [{**row, "metric": "error"}, {**row, "task": "noise", "ceiling": 0.1}]
    found = figures.trust_data({"rows": taus + others})
    assert found == {"one": {"surrogate": pytest.approx(0.25), "16 branches": pytest.approx(0.5)}}


def plan(variant: str, task: str, seed: int, tau: float, cost: float, group: str = "trust") -> dict[str, Any]:
    """A run of a plan; the ceiling is 0.8."""
    metrics = {"loss": {"tau": tau, "ceiling": 0.8, "spearman": tau, "regret": 0.0}}
    row = {"variant": variant, "task": task, "seed": seed, "group": group, "cost": cost, "outcome": "trained"}
    return row | {"metrics": metrics}


def test_plans_are_compared_on_the_same_tasks_and_seeds() -> None:
    """The second plan is half as dear; it misses a seed of one task, and diverges on a small problem."""
    rows = [plan("first", task, seed, 0.4, 4.0) for task in ("b1", "b2") for seed in range(2)]
    rows += [plan("second", "b1", 0, 0.48, 2.0), plan("second", "b1", 1, 0.48, 2.0), plan("second", "b2", 0, 0.4, 2.0)]
    diverged = {"cost": math.nan, "outcome": "diverged", "metrics": {}}
    rows += [plan("first", "small", 0, 0.9, 4.0, "defaults"), plan("second", "small", 0, 0, 0, "defaults") | diverged]
    first, second = cells(plans.overall(rows))
    assert first[:3] == ["first", "0.50", "0.50"]
    assert second[:3] == ["second", "0.55", "0.55"]
    assert (first[5], second[5]) == ("-", "+0.067 ± 0.033")
    assert (first[7:9], second[7:9]) == (["4.00", "0.90"], ["2.00", "0.00"])
    assert second[-1] == "0 / 1 of 4"
    assert cells(plans.summary(rows).split("\n\n")[1])[0] == ["b1", "2", "0.50 at 4.00", "0.60 at 2.00"]


def test_a_step_is_compared_with_its_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = {"whole": 1.2, "default": 1.9}
    row = {"case": "MLP", "plain_milliseconds": 2.0, "ratios": ratios, "target": 1.15, "memory_target": 1.3}
    row |= {"memory_ratios": {"saved": ratios, "live": ratios}, "start_in_plain_steps": {"whole": 3.0, "default": 4.0}}
    write(tmp_path, monkeypatch, "steps", {"rows": [row, {**row, "target": 1.2, "memory_target": None}], "rounds": 5})
    missed, met = cells(kernel.steps())
    assert missed == ["MLP", "2.0 ms", "1.20", "1.15 (**missed**)", "1.90", "1.20", "1.20", "1.3", "4"]
    assert (met[3], met[7]) == ("1.2", "-")


def test_what_fails_on_a_gpu_stands_in_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = {"network": "mlp", "head": "dense", "mapping": "vmap", "gradient": 1e-6, "output": 2e-6, "right": True}
    wrong = {**right, "network": "attention"}
    del wrong["right"]
    step = {"milliseconds": 1.0, "memory_ratio": 1.25}
    row = {
        "case": "MLP", "plain": {"eager": 2.0, "captured": None}, "targets": {"eager": 0.5},
        "variants": {"one": step, "default": {"error": "RuntimeError: no\nmore"}},
    }  # fmt: skip
    costs = [row, {"case": "GPT", "error": "out of memory"}]
    correct = [right, wrong | {"error": "RuntimeError"}, {**right, "mapping": "loop"}]
    write(tmp_path, monkeypatch, "gpu", {"correct": correct, "costs": costs})
    one, default, gpt = cells(kernel.gpu())
    assert one == ["MLP", "one", "2.00 ms", "-", "1.00 ms", "0.50", "-", "1.25", "eager 0.5"]
    assert default == ["", "default", "", "", "-", "-", "-", "-", "RuntimeError: no"]
    assert gpt == ["GPT", *["-"] * 7, "out of memory"]
    vmap, loop = cells(kernel.gpu_right())
    assert vmap == ["vmap", "1 of 2", "1.0e-06", "2.0e-06", "attention (dense)"]
    assert loop == ["loop", "1 of 1", "1.0e-06", "2.0e-06", "-"]


def write(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: dict[str, Any]) -> None:
    """A benchmark's document, from where tables read it."""
    monkeypatch.setattr(results, "FOLDER", folder)
    (folder / f"{name}.json").write_text(json.dumps({"environment": results.environment(), **content}))


def test_memory_is_that_of_tensors_that_live() -> None:
    outside = torch.ones(1000)
    with Live() as live:
        inner = outside[:10] * 2.0  # a view of what comes from outside costs nothing
        for _ in range(3):
            inner = inner + torch.ones(50, 1).expand(50, 10)
        assert live.peak.now == 4 * 500
    assert live.peak.most >= 4 * 2 * 500
    weight = torch.ones(100, requires_grad=True)
    with Saved() as saved:
        value = (weight.exp() * 2.0).sum()  # keeps its output
        assert saved.now == 400
        value.backward()
        del value
        assert (saved.now, saved.most) == (0, 400)
