"""What docs/compatibility.md says is what the tables of networks say, which the laws hold against the kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cases import NETWORKS

from benchmarks import compatibility, results
from tests.zoo import ZOO

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
ROWS: dict[str, dict[str, Any]] = {row["name"]: row for row in results.read("compatibility")["rows"]}


def test_every_architecture_is_measured_and_listed() -> None:
    assert list(ROWS) == [*compatibility.OWN, *ZOO]
    listed = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert set(ROWS) <= set(listed)


@pytest.mark.parametrize("name", [*compatibility.OWN, *ZOO])
def test_the_mapping_is_the_one_that_the_kernel_finds(name: str) -> None:
    """As the laws of networks and the tests of the zoo check it, which run what the tables say."""
    vmap = NETWORKS[name].vmap if name in compatibility.OWN else ZOO[name].vmap
    assert ROWS[name]["mapping"] == ("vmap" if vmap else "loop")


@pytest.mark.parametrize("name", compatibility.OWN)
def test_the_share_that_is_generated(name: str) -> None:
    network = NETWORKS[name].network()
    assert ROWS[name]["parameters"] == sum(p.numel() for p in network.parameters())
    assert ROWS[name]["generated"] == sum(p.numel() for p in network.parameters() if p.requires_grad)
