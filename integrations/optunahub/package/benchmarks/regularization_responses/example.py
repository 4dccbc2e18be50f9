"""TPE and random search on the regularisation of a network for digits, without training anything."""

from __future__ import annotations

import optuna


def main(problem: object, trials: int = 50) -> dict[str, float]:
    found = {}
    for sampler in (optuna.samplers.RandomSampler(seed=0), optuna.samplers.TPESampler(seed=0)):
        study = optuna.create_study(sampler=sampler, directions=problem.directions)
        study.optimize(problem, n_trials=trials)
        found[type(sampler).__name__] = study.best_value
    print(found)
    return found


if __name__ == "__main__":
    import optunahub

    main(optunahub.load_module("benchmarks/regularization_responses").Problem("digits"))
