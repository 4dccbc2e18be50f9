"""The kernel: the one place that runs functions of a network at many settings."""

from hypertune_mip.execution.capture import Captured
from hypertune_mip.execution.choice import FACTORED, FORMED, Execution, candidates, measured
from hypertune_mip.execution.kernel import Function, Kernel, Mode
from hypertune_mip.execution.sequential import Setting, Weigh

__all__ = [
    "FACTORED",
    "FORMED",
    "Captured",
    "Execution",
    "Function",
    "Kernel",
    "Mode",
    "Setting",
    "Weigh",
    "candidates",
    "measured",
]
