"""A run that a callback ends: what the surrogate is then, what is kept, and how such a run is resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_problem import CONFIG, assert_same_state, fit, hypernet, loader, loss, validation

import hypertune_mip as ht
from hypertune_mip.training import Options, SingleProcess, train

EPOCHS, STOP = 5, 2


def stops_at(epoch: int, answer: Any = True) -> Callable[[dict[str, Any]], Any]:
    return lambda record: answer if record["epoch"] == epoch else None


def stopped(**options: Any) -> ht.Surrogate:
    return fit(epochs=EPOCHS, **{"callbacks": [stops_at(STOP)], **options})


def epochs(surrogate: ht.Surrogate) -> list[int]:
    return [record["epoch"] for record in surrogate.history]


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def test_a_stopped_run_is_the_whole_one_as_it_was_then() -> None:
    then: dict[str, torch.Tensor] = {}
    net = hypernet()

    def keep(record: dict[str, Any]) -> None:
        if record["epoch"] == STOP:
            then.update({name: value.clone() for name, value in net.state_dict().items()})

    whole = fit(net, epochs=EPOCHS, callbacks=[keep])
    early = stopped()
    assert epochs(early) == [1, 2]
    assert without_time(early.history) == without_time(whole.history[:STOP])
    assert not early.hypernet.training
    assert all(torch.equal(value, then[name]) for name, value in early.hypernet.state_dict().items())


def test_the_last_epoch_is_validated_whenever_it_comes() -> None:
    seen: list[set[str]] = []
    surrogate = stopped(**validation(), validate_every=4, callbacks=[stops_at(3), lambda r: seen.append(set(r))])
    validated = ["validation/error/best" in record for record in surrogate.history]
    assert validated == [False, False, True]
    assert not any("validation/error/best" in names for names in seen)  # it comes after the callbacks have spoken
    assert surrogate.evaluate(CONFIG)["error"] > 0


@pytest.mark.parametrize("answer", [None, False, 1, 17, "yes", [True], np.bool_(True), torch.tensor(True)])
def test_only_true_stops(answer: Any) -> None:
    assert len(stopped(callbacks=[stops_at(STOP, answer)]).history) == EPOCHS


def test_every_callback_gets_the_last_record_too() -> None:
    before: list[dict[str, Any]] = []
    after: list[dict[str, Any]] = []
    surrogate = stopped(callbacks=[before.append, stops_at(STOP), after.append])
    assert before == after == surrogate.history


def test_stopping_in_the_last_epoch_changes_nothing() -> None:
    assert_same_state(stopped(callbacks=[stops_at(EPOCHS)]).hypernet, stopped(callbacks=[]).hypernet)


def test_the_last_epoch_is_kept_whenever_it_comes(tmp_path: Path) -> None:
    """Resumed with the same callback the run is over, and the surrogate the same."""
    first = stopped(checkpoint=tmp_path, checkpoint_every=4)
    again = stopped(checkpoint=tmp_path, checkpoint_every=4, resume=True)
    assert_same_state(first.hypernet, again.hypernet)
    assert first.history == again.history


def test_a_stopped_run_goes_on_if_no_callback_objects(tmp_path: Path) -> None:
    """Then it is the run that was never stopped."""
    stopped(checkpoint=tmp_path)
    asked: list[int] = []
    resumed = stopped(checkpoint=tmp_path, resume=True, callbacks=[lambda r: asked.append(r["epoch"])])
    assert asked == [2, 3, 4, 5]
    whole = fit(epochs=EPOCHS)
    assert_same_state(resumed.hypernet, whole.hypernet)
    assert without_time(resumed.history) == without_time(whole.history)


def test_a_run_that_was_not_stopped_asks_about_no_epoch_twice(tmp_path: Path) -> None:
    fit(checkpoint=tmp_path)
    asked: list[int] = []
    fit(checkpoint=tmp_path, resume=True, callbacks=[lambda r: asked.append(r["epoch"])])
    assert asked == []


def test_a_strategy_decides_once_an_epoch_whatever_this_workers_callbacks_say() -> None:
    class OneOfMany(SingleProcess):
        """As far as callbacks go; the first worker stops in the second epoch."""

        def __init__(self) -> None:
            super().__init__()
            self.asked: list[bool] = []
            self.last: list[bool] = []

        def agreed(self, own: bool) -> bool:
            self.asked.append(own)
            return len(self.asked) == STOP

        def end_epoch(self, record: dict[str, Any], save: Any, *, last: bool) -> None:
            self.last.append(last)

    strategy = OneOfMany()
    options = Options(epochs=EPOCHS, progress=False, callbacks=[stops_at(1)])
    trained = train(hypernet(), loss, loader(), options, strategy=strategy)
    assert len(trained.history) == STOP
    assert strategy.asked == [True, False]
    assert strategy.last == [False, True]
