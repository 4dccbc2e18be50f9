"""Heads of one's own in saved surrogates: kept under their class's name, or refused when they are saved."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_problem import CONFIG, fit, hypernet, network, validation
from torch import nn

import hypertune_mip as ht


def load(folder: Path) -> ht.Surrogate:
    return ht.Surrogate.load(folder, network(), **validation())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Louder(ht.RankOne):
    """A user's head: scales that move `gain` times as far, in networks with widths of its own."""

    gain: float = 2.0
    widths: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(self.widths))

    def matrix_rule(self, parameter: torch.Tensor, module: nn.Module) -> ht.heads.Rule:
        rule = super().matrix_rule(parameter, module)
        rule.gain = self.gain
        return rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holding(ht.RankOne):
    """A head with an option of any type."""

    option: Any = None


class NoDataclass(ht.RankOne):
    """A head whose options only its own `__init__` knows."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        object.__setattr__(self, "gain", gain)


def saved_with(head: ht.Head, folder: Path) -> Path:
    fit(hypernet(head=head), epochs=1, **validation()).save(folder)
    return folder


def test_a_head_of_ones_own_comes_back_with_its_options(tmp_path: Path) -> None:
    head = Louder(gain=3.0, widths=(4, 5))
    before = fit(hypernet(head=head), epochs=1, **validation())
    before.save(tmp_path)
    after = load(tmp_path)
    assert after.hypernet.head == head and type(after.hypernet.head) is Louder
    assert after.evaluate(CONFIG) == before.evaluate(CONFIG)


def test_a_head_that_the_process_does_not_know(tmp_path: Path) -> None:
    """What was saved in a process that defines it; nothing is imported because a file names it."""
    folder = saved_with(Louder(), tmp_path)
    program = """
import sys
sys.path.append(sys.argv[2])
import hypertune_mip as ht
from small_problem import network, validation
try:
    ht.Surrogate.load(sys.argv[1], network(), **validation())
except ht.StorageError as error:
    print(error)
assert "test_storage" not in sys.modules
"""
    command = [sys.executable, "-c", program, str(folder), str(Path(__file__).parent)]
    message = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"a head Louder of '{__name__}', which this process does not know. Define or import that class" in message


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Holding(option=object()), r"The head Holding\(.*cannot be saved: its options do not come back from JSON"),
        (Holding(option=(1, 2)), r"The head Holding\(.*cannot be saved: from JSON it comes back as .*\[1, 2\]"),
        (NoDataclass(2.0), r"The head NoDataclass has an `__init__` of its own.*Make it a dataclass"),
    ],
    ids=["object", "tuple", "no dataclass"],
)
def test_a_head_that_could_not_be_loaded_is_refused_by_name(head: ht.Head, message: str, tmp_path: Path) -> None:
    with pytest.raises(ht.StorageError, match=message):
        saved_with(head, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_two_heads_of_one_name_are_refused(tmp_path: Path) -> None:
    """Also when it is loaded: the second may be defined later. The same one defined anew is no second one."""

    def define(module: str) -> type[ht.Head]:
        own = {"__module__": module, "__qualname__": "Twice"}
        return dataclasses.dataclass(frozen=True, kw_only=True)(type("Twice", (ht.RankOne,), own))

    define("one")
    head = define("one")()
    folder = saved_with(head, tmp_path / "saved")
    assert type(load(folder).hypernet.head) is type(head)
    define("other")
    message = r"2 heads of that name, \['one.Twice', 'other.Twice'\]"
    with pytest.raises(ht.StorageError, match=f"'{folder}' was trained with a head Twice of 'one'.*{message}"):
        load(folder)
    with pytest.raises(ht.StorageError, match=f"The head Twice cannot be saved.*{message}"):
        saved_with(head, tmp_path / "again")
