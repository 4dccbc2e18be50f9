"""Training of a hypernetwork over many settings."""

from hypertune_mip.training import callbacks
from hypertune_mip.training.optimizers import adam, cosine
from hypertune_mip.training.options import Loss, Options
from hypertune_mip.training.run import train
from hypertune_mip.training.run_state import Record
from hypertune_mip.training.strategy import SingleProcess, Strategy

__all__ = [
    "Loss",
    "Options",
    "Record",
    "SingleProcess",
    "Strategy",
    "adam",
    "callbacks",
    "cosine",
    "train",
]
