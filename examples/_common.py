"""What the examples share: the study on a surrogate, the delivery, ordinary training from scratch, and the report."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hypertune_mip as ht
from hypertune_mip.plots import response_surface
from hypertune_mip_optuna import SurrogateObjective, prefill

Config = dict[str, float]
Loss = Callable[..., torch.Tensor]
Metric = Callable[..., dict[str, torch.Tensor]]

SEEDS = (0, 1, 2)  # of the trainings from scratch
LEARNING_RATE = 3e-3  # of a single network


def arguments(description: str, *, epochs: int, output: str) -> argparse.ArgumentParser:
    """A parser with the options that all examples have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=epochs, help="of each training (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=1000, help="of the study (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of hypernetwork and study (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder of results (default: %(default)s)")
    return parser


def search(surrogate: ht.Surrogate, metric: str, journal: Path, *, trials: int, seed: int) -> optuna.Study:
    """A study of the surrogate's metric: most settings at once, spread over the space, the last fifth by TPE.

    An older journal at that place is replaced: its trials belong to another surrogate.
    """
    start = time.perf_counter()
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.unlink(missing_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line a trial is much for a thousand instant trials
    study = optuna.create_study(
        study_name=journal.stem,
        storage=JournalStorage(JournalFileBackend(str(journal))),
        sampler=optuna.samplers.TPESampler(seed=seed),
        direction="minimize",
    )
    prefill(study, surrogate, metric, n=trials - trials // 5)
    study.optimize(SurrogateObjective(surrogate, metric), n_trials=trials // 5)
    print(f"Searched {len(study.trials):,} settings in {time.perf_counter() - start:.1f} s.")
    return study


def deliver(surrogate: ht.Surrogate, metric: str, *, epochs: int) -> ht.Delivered:
    """A finished network, by branches that are trained as `train_from_scratch` trains."""
    recipe = ht.Recipe(
        epochs=epochs, optimizer=lambda parameters, config: torch.optim.Adam(parameters, lr=LEARNING_RATE)
    )
    start = time.perf_counter()
    delivered = surrogate.deliver(metric, recipe=recipe)
    print(f"Delivered a network in {time.perf_counter() - start:.1f} s.")
    return delivered


@dataclass(frozen=True)
class Trained:
    """Plain networks trained at one config, from scratch one for each seed, in evaluation mode."""

    config: Config
    models: list[nn.Module]
    seconds: float = math.nan  # that one training took, if it was timed

    def measure(self, metric: Metric, data: TensorDataset) -> dict[str, list[float]]:
        """The values of each metric, in the order of the models."""
        with torch.no_grad():
            values = [metric(model, data.tensors) for model in self.models]
        return {name: [float(value[name]) for value in values] for name in values[0]}


def train_from_scratch(
    config: Config,
    make_network: Callable[[], nn.Module],
    loss: Loss,
    data: TensorDataset,
    *,
    batch_size: int,
    epochs: int,
    seeds: Sequence[int] = SEEDS,
) -> Trained:
    """Ordinary training, without a hypernetwork, on the very loss that the hypernetwork was trained on."""
    models = []
    start = time.perf_counter()
    for seed in seeds:
        torch.manual_seed(seed)
        model = ht.nn.resolve(make_network(), config).train()
        loader = DataLoader(data, batch_size=batch_size, shuffle=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
        for _ in range(epochs):
            for batch in loader:
                optimizer.zero_grad()
                loss(model, batch, config).backward()
                optimizer.step()
                schedule.step()
        models.append(model.eval())
    return Trained(config, models, (time.perf_counter() - start) / len(seeds))


def report(
    surrogate: ht.Surrogate,
    delivered: ht.Delivered,
    trained: dict[str, Trained],
    metric: Metric,
    *,
    validation: TensorDataset,
    test: TensorDataset,
    folder: Path,
) -> None:
    """Print how the delivered network was found, compare it on test data, and write everything to a folder."""
    rows = {**trained, "delivered": Trained(delivered.config, [delivered.network])}
    table = _table(surrogate, rows, metric, validation, test)

    surrogate.save(folder / "surrogate")
    torch.save(delivered.network.state_dict(), folder / "network.pt")
    (folder / "config.json").write_text(json.dumps(delivered.config, indent=1) + "\n")
    (folder / "delivered.txt").write_text(f"{delivered}\n")
    (folder / "comparison.md").write_text(table + "\n")
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    response_surface(surrogate, "loss", "weight_decay", "dropout", config=delivered.config, ax=axes)
    figure.savefig(folder / "response_surface.png", dpi=150)
    plt.close(figure)

    hypernetwork = sum(record["seconds"] for record in surrogate.history)
    plain = statistics.mean(one.seconds for one in trained.values())
    print(f"\n{delivered}\n\n{table}\n")
    print("Validation data chose the settings and the delivered network. The test data took no part in any choice.")
    print(f"Training the hypernetwork took {hypernetwork:.1f} s, {hypernetwork / plain:.1f} times one plain training.")
    print(f"Everything is in {folder}. To browse the study: optuna-dashboard {folder / 'study.journal'}")


def _table(
    surrogate: ht.Surrogate, trained: dict[str, Trained], metric: Metric, validation: TensorDataset, test: TensorDataset
) -> str:
    """Markdown: what the surrogate said, and what training gave, mean ± standard deviation over networks."""
    names = list(surrogate.space)
    header = ["", *names, "surrogate's loss", "validation loss", "validation error", "test loss", "test error"]
    rows = [header, ["---"] * len(header)]
    for name, one in trained.items():
        row = [name, *(f"{one.config[name]:.2g}" for name in names), _surrogate_loss(surrogate, one.config)]
        for data in (validation, test):
            real = one.measure(metric, data)
            row += [_spread(real["loss"], ".3f"), _spread(real["error"], ".1%")]
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _surrogate_loss(surrogate: ht.Surrogate, config: Config) -> str:
    try:
        return f"{surrogate.evaluate(config)['loss']:.3f}"
    except ht.SpaceError:  # no weight decay at all has no place on a logarithmic scale
        return "-"


def _spread(values: Sequence[float], form: str) -> str:
    mean = f"{statistics.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):{form}}"
