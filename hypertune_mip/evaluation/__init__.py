"""Metrics on validation data at many settings."""

from hypertune_mip.evaluation.data import ValidationData, batch_size, to_device
from hypertune_mip.evaluation.emulator import Emulator, EmulatorAccuracy
from hypertune_mip.evaluation.evaluator import Evaluator, Measure, check_metric
from hypertune_mip.evaluation.metrics import mean_over_batches, measured, named_scalars
from hypertune_mip.evaluation.modes import evaluating, gradients
from hypertune_mip.evaluation.sampling import standard_error, without_each_group
from hypertune_mip.metrics import Metric

__all__ = [
    "Emulator",
    "EmulatorAccuracy",
    "Evaluator",
    "Measure",
    "Metric",
    "ValidationData",
    "batch_size",
    "check_metric",
    "evaluating",
    "gradients",
    "mean_over_batches",
    "measured",
    "named_scalars",
    "standard_error",
    "to_device",
    "without_each_group",
]
