"""The examples run to the end, as a user would start them, only shorter."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parent.parent / "examples"
TRIALS = 25


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def check_results(folder: Path, output: str) -> None:
    """What an example promises to leave behind is there and can be read back."""
    study = optuna.load_study(
        study_name="study", storage=JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    )
    assert len(study.trials) == TRIALS
    config = json.loads((folder / "config.json").read_text())
    assert list(config) == ["weight_decay", "dropout", "label_smoothing"]
    weights = torch.load(folder / "network.pt", weights_only=True)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert (folder / "surrogate" / "surrogate.json").is_file()
    assert (folder / "response_surface.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "comparison.md").read_text()
    assert table.strip() in output
    assert len(table.splitlines()) == 5  # header, rule, two networks from scratch, the delivered one
    delivered = (folder / "delivered.txt").read_text()
    assert delivered.strip() in output
    assert delivered.count("<- this network") == 1


def test_digits(tmp_path: Path) -> None:
    """Twice into one folder: the second run replaces the first one's study instead of adding to it or failing."""
    for epochs in ("1", "4"):
        done = run("digits.py", "--epochs", epochs, "--trials", str(TRIALS), "--output", str(tmp_path))
        assert done.returncode == 0, done.stderr
    check_results(tmp_path, done.stdout)


def test_sklearn_pipeline(tmp_path: Path) -> None:
    short = ["--epochs", "3", "--candidates", "20", "--folds", "2", "--output", str(tmp_path)]
    done = run("sklearn_pipeline.py", *short)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "comparison.md").read_text()
    assert table in done.stdout
    assert len(table.splitlines()) == 6  # header, rule, the search, three peers
    assert (tmp_path / "response_curves.png").read_bytes().startswith(b"\x89PNG")


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture
def fashion_folder(tmp_path: Path) -> Path:
    """A data set in Fashion-MNIST's format, whose classes differ in brightness."""
    folder = tmp_path / "data"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, count in (("train", 100), ("t10k", 30)):
        labels = generator.integers(0, 10, count)
        images = generator.integers(0, 25, (count, 28, 28)) + 25 * labels[:, None, None]
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
    return folder


def test_fashion_mnist(tmp_path: Path, fashion_folder: Path) -> None:
    options = ["--data", str(fashion_folder), "--images", "50", "--epochs", "4", "--trials", str(TRIALS)]
    done = run("fashion_mnist.py", *options, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    check_results(tmp_path, done.stdout)


def test_fashion_mnist_says_what_to_install(tmp_path: Path) -> None:
    done = run("fashion_mnist.py", "--data", str(tmp_path))
    assert done.returncode == 1
    assert "apt-get install dataset-fashion-mnist" in done.stderr
    assert "Traceback" not in done.stderr


def test_idx_files_are_read_as_they_were_written(fashion_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from fashion_mnist import read_idx, read_images

    values = np.arange(24).reshape(2, 3, 4)
    write_idx(fashion_folder / "values.gz", values)
    np.testing.assert_array_equal(read_idx(fashion_folder / "values.gz"), values)
    images, labels = read_images(fashion_folder, "train")
    assert images.shape == (100, 1, 14, 14)
    assert labels.dtype == torch.int64
    assert 0.0 <= float(images.min()) <= float(images.max()) <= 1.0
