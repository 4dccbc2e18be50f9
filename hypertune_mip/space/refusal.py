"""Hyperparameters that no loss-conditional hypernetwork can amortise, refused by name.

Learning rate, batch size, optimiser, schedule and epochs choose a path to the minimiser, not the minimiser; widths and
depths change the network that is minimised over. Neither is a function of the loss that a hypernetwork could learn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypertune_mip.errors import SpaceError

_OPTIMISATION = {
    "lr", "learning_rate", "learningrate", "batch_size", "batchsize", "optimizer", "optimiser", "epochs", "n_epochs",
    "num_epochs", "max_epochs", "steps", "n_steps", "num_steps", "max_steps", "iterations", "n_iterations", "momentum",
    "scheduler", "lr_scheduler", "warmup", "warmup_steps", "warmup_epochs", "gradient_clip", "grad_clip",
    "accumulation_steps",
}  # fmt: skip
_ARCHITECTURE = {
    "hidden_size", "hidden_dim", "hidden_units", "hidden_layers", "hidden_layer_sizes", "n_layers", "num_layers",
    "n_hidden", "num_hidden", "width", "depth", "n_heads", "num_heads", "embedding_dim", "kernel_size", "activation",
    "architecture", "n_units", "num_units", "channels", "n_channels", "num_channels",
}  # fmt: skip
_SUFFIXES = ("_lr", "_learning_rate", "_batch_size", "_optimizer", "_epochs")


def check_amortizable(names: Sequence[str]) -> None:
    """Raise SpaceError, with advice, for the first name that stands for something that cannot be amortised."""
    for name in names:
        word = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-\s.]+", "_", name).lower()
        if word in _OPTIMISATION or word.endswith(_SUFFIXES):
            reason = "it steers how training reaches the minimum of the loss, not where the minimum is"
        elif word in _ARCHITECTURE:
            reason = "it changes the primary network itself"
        else:
            continue
        raise SpaceError(
            f"'{name}' cannot be amortised by one training: {reason}. Search it in an outer Optuna study that trains"
            f" one hypernetwork a trial. If '{name}' here is a weight in the loss that only bears this name,"
            f' say so: SearchSpace(..., amortizable=("{name}",)).'
        )
