"""A study of real trainings on scikit-learn's digits, started by a hypernetwork that was trained once."""

from __future__ import annotations

import optuna
import torch
from optuna.distributions import FloatDistribution
from sklearn.datasets import load_digits

import hypertune_mip as ht
from hypertune_mip_optuna import SurrogateSampler

SPACE = ht.SearchSpace({"decay": FloatDistribution(1e-5, 1e-1, log=True), "dropout": FloatDistribution(0.0, 0.8)})


def loss(model, batch, config):
    return ht.losses.cross_entropy(model(batch[0]), batch[1]) + 0.5 * config["decay"] * ht.losses.l2(model)


def metric(model, batch):
    return {"loss": ht.losses.cross_entropy(model(batch[0]), batch[1])}


def main(epochs: int = 20, trials: int = 8) -> optuna.Study:
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    batches = list(zip((images / 16).float().split(100), labels.split(100), strict=True))
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), ht.nn.Dropout("dropout"), torch.nn.Linear(128, 10)
    )
    data = {"metric": metric, "val_loader": batches[9:]}
    surrogate = ht.fit(ht.HyperNetwork(network, SPACE), loss, batches[:9], epochs=epochs, **data)
    trainer = surrogate.trainer(
        ht.Recipe(epochs=epochs, optimizer=lambda parameters, config: torch.optim.Adam(parameters, lr=3e-3))
    )

    def objective(trial: optuna.Trial) -> float:
        config = {
            "decay": trial.suggest_float("decay", 1e-5, 1e-1, log=True),
            "dropout": trial.suggest_float("dropout", 0.0, 0.8),
        }
        return trainer.train([config], progress=False)["loss"].item()

    # From the hub: sampler = optunahub.load_module("samplers/hypertune_mip").SurrogateSampler(surrogate, "loss")
    study = optuna.create_study(sampler=SurrogateSampler(surrogate, "loss", seed=0))
    study.optimize(objective, n_trials=trials)
    print(study.best_trial)
    return study


if __name__ == "__main__":
    main()
