"""The statistics of the trust report, on tables small enough to count by hand, and the report as text and file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hypertune_mip as ht
from hypertune_mip.verification import statistics
from tests import small_problem as problem

TRUE = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 10.0])
PREDICTED = np.array([0.5, 0.2, 2.0, 3.0, 5.0, 4.0])  # two neighbours swapped, twice
CONFIGS = [{"decay": 10.0 ** (-4 + 0.8 * i), "dropout": 0.1 * (i % 2)} for i in range(6)]


def report(**options: Any) -> ht.TrustReport:
    chosen: dict[str, Any] = {
        "metric": "error",
        "space": problem.SPACE,
        "configs": tuple(CONFIGS),
        "chosen": ("spread",) * 3 + ("best",) * 3,
        "predicted": {"error": PREDICTED},
        "true": {"error": TRUE[:, None]},
        "responses": {"decay": 0.5, "dropout": 1e-5},
        "trainings": 6.0,
        "seconds": 1.5,
        "low": {},
        "high": {},
    }
    return ht.TrustReport(**(chosen | options))


def test_two_settings_say_nothing_about_an_order() -> None:
    few: dict[str, Any] = {
        "configs": tuple(CONFIGS[:2]),
        "chosen": ("spread", "best"),
        "true": {"error": TRUE[:2, None]},
    }
    wrong = report(**few, predicted={"error": -TRUE[:2]})
    assert wrong.doubts() == ()
    assert not wrong.trusted()
    assert str(wrong).endswith("Verdict: none; an order takes 3 settings.")
    far = report(**few, predicted={"error": TRUE[:2] + 100.0})
    assert "The values are off by" in " ".join(far.doubts())
    idle = report(**few, predicted={"error": TRUE[:2]}, responses={"decay": 0.0, "dropout": 0.0})
    assert "collapsed" in " ".join(idle.doubts())


def test_figures_counted_by_hand() -> None:
    figures = report()
    assert figures.tau.value == pytest.approx((15 - 2 * 2) / 15)  # 2 of 15 pairs in the wrong order
    assert figures.spearman.value == pytest.approx(1 - 6 * 4 / (6 * 35))
    assert figures.tau_better_half.value == pytest.approx(1 / 3)  # of the three best: one of three pairs
    assert figures.regret == pytest.approx(0.1)  # predicted best is the second, 1.0 of 10.0 worse
    assert (figures.k, figures.recall) == (1, 0.0)
    assert figures.bias == pytest.approx(float(np.mean(PREDICTED - TRUE)))
    assert figures.error == pytest.approx(float(np.median(np.abs(PREDICTED - TRUE))) / 10.0)
    assert math.isnan(figures.coverage)
    assert math.isnan(figures.tau_ceiling)
    assert figures.ignored == ("dropout",)
    assert figures.effects["decay"].truth == pytest.approx(1.0)
    assert figures.effects["decay"].surrogate == pytest.approx(figures.spearman.value)


def test_pairs_that_hardly_differ_do_not_count_in_sparse_tau() -> None:
    """Of the 15 pairs one is wrong by 0.01 of a range of 10, and one by 6."""
    true = np.array([0.0, 0.1, 2.0, 3.0, 4.0, 10.0])
    assert statistics.sparse_kendall(PREDICTED, true) == pytest.approx((14 - 2) / 14)
    assert statistics.sparse_kendall(PREDICTED, np.ones(6)) == 0.0
    assert report(true={"error": true[:, None]}).sparse_tau.value == pytest.approx(12 / 14)


def test_intervals_hold_the_value_and_shrink_with_settings() -> None:
    def width(settings: int) -> float:
        generator = np.random.default_rng(0)
        true = generator.normal(size=settings)
        estimate = statistics.with_interval(statistics.kendall, true + 0.5 * generator.normal(size=settings), true)
        assert estimate.low <= estimate.value <= estimate.high
        return estimate.high - estimate.low

    assert width(100) < 0.5 * width(10)


def test_the_interval_covers_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 samples of 40 pairs with correlation 0.6, whose Kendall's tau is 2/pi asin(0.6)."""
    monkeypatch.setattr(statistics, "_RESAMPLES", 199)
    generator = np.random.default_rng(1)
    exact = 2 / math.pi * math.asin(0.6)
    inside = 0
    for seed in range(100):
        true = generator.normal(size=40)
        predicted = 0.6 * true + 0.8 * generator.normal(size=40)
        estimate = statistics.with_interval(statistics.kendall, predicted, true, seed=seed)
        inside += estimate.low <= exact <= estimate.high
    assert 0.82 <= inside / 100 <= 0.97


def test_the_ceiling_is_what_seeds_say_about_each_other() -> None:
    runs = np.stack([TRUE, PREDICTED], axis=1)
    assert statistics.ceiling(statistics.kendall, runs) == pytest.approx((15 - 2 * 2) / 15)
    assert report(true={"error": runs}).tau_ceiling == pytest.approx((15 - 2 * 2) / 15)


def test_coverage_counts_real_trainings_inside() -> None:
    runs = np.stack([TRUE, TRUE + 2.0], axis=1)
    figures = report(true={"error": runs}, low={"error": TRUE - 1.0}, high={"error": TRUE + 1.0})
    assert figures.coverage == 0.5


def test_a_diverged_training_counts_as_the_worst() -> None:
    diverged = TRUE.copy()
    diverged[5] = math.nan
    figures = report(predicted={"error": TRUE}, true={"error": diverged[:, None]})
    assert figures.tau.value > 0.9
    assert figures.regret == 0.0
    assert math.isfinite(figures.bias)


@pytest.mark.parametrize("predicted", [np.zeros(6), np.full(6, math.nan)])
def test_a_constant_surrogate_has_no_correlation(predicted: np.ndarray) -> None:
    figures = report(predicted={"error": predicted})
    assert figures.tau.value == 0.0
    assert not figures.trusted()


def test_doubts_and_thresholds() -> None:
    assert report().trusted()
    assert "Kendall's tau over clearly different settings is 0.73, below 0.8." in report().doubts(min_tau=0.8)
    assert "The regret is 10.0% of the truth's range, above 5%." in report().doubts(max_regret=0.05)
    assert report(predicted={"error": TRUE + 9.9}).trusted()
    far = report(predicted={"error": TRUE + 15.0}).doubts()  # in the right order, which may be luck
    assert far == ("The values are off by 150% of the truth's range or size, above 100%.",)
    assert "it has collapsed" in report(responses={"decay": 0.0, "dropout": 0.0}).doubts()[0]


def test_the_table_says_what_matters() -> None:
    text = str(report())
    assert "6 settings x 1 seed (3 spread over the space, 3 at the surrogate's best), 6 trainings" in text
    for line in ("Kendall's tau             0.73", "regret                   10.0%"):
        assert line in text
    assert next(line for line in text.splitlines() if line.startswith("dropout")).endswith("ignored")
    assert text.endswith("Verdict: trusted.")
    assert "Verdict: not to be trusted. Kendall's tau over clearly different settings is 0.00" in str(
        report(predicted={"error": np.zeros(6)})
    )
    assert repr(report()) == "TrustReport(metric='error', settings=6, seeds=1, tau=0.73, regret=0.100, trusted=True)"


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    written = report(
        true={"error": np.where(TRUE > 3, np.nan, TRUE)[:, None]}, low={"error": TRUE}, high={"error": TRUE}
    )
    written.save(tmp_path / "deep" / "trust.json")
    read = ht.TrustReport.load(tmp_path / "deep" / "trust.json")
    assert str(read) == str(written)
    assert read.space == written.space
    assert list(read.configs) == list(written.configs)
    np.testing.assert_array_equal(read.true["error"], written.true["error"])


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    with pytest.raises(ht.StorageError, match="There is no"):
        ht.TrustReport.load(path)
    report().save(path)
    document = json.loads(path.read_text())
    document["content"]["trainings"] = 1.0
    path.write_text(json.dumps(document))
    with pytest.raises(ht.StorageError, match="was altered"):
        ht.TrustReport.load(path)
    path.write_text("{}")
    with pytest.raises(ht.StorageError, match="not one of ours"):
        ht.TrustReport.load(path)
    content = report().to_dict()
    del content["chosen"]
    with pytest.raises(ht.StorageError, match="chosen"):
        ht.TrustReport.from_dict(content)


def test_a_report_that_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ht.SpaceError, match="'loss' is unknown"):
        report(metric="loss")
    with pytest.raises(ht.SpaceError, match="as many values each"):
        report(predicted={"error": TRUE[:5]})
