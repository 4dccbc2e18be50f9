from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OF_RAY = (
    "ignore::DeprecationWarning:ray",  # about itself
    "ignore::FutureWarning:ray",
    "ignore::ResourceWarning",  # sockets and logs that it leaves open
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for each in OF_RAY:
                item.add_marker(pytest.mark.filterwarnings(each))


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray of this machine with four CPUs to give away, whatever it has, whose workers find this tree's modules."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one process less to start
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (HERE, HERE.parent, ROOT, ROOT / "integrations"))))
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()
