from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from tiny_surrogate import make_surrogate

import hypertune_mip as ht

STORAGES = ["memory", "journal", "sqlite"]


@pytest.fixture(scope="session")
def surrogate() -> ht.Surrogate:
    return make_surrogate()


@pytest.fixture(autouse=True)
def quiet():
    """No line of log a trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage | str | None:
    """What `create_study` takes, of each kind."""
    if request.param == "journal":
        return JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    return f"sqlite:///{tmp_path / 'study.db'}" if request.param == "sqlite" else None


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
