"""The kernel: the one place that runs functions of a network at many settings."""

from hypertune_mip.execution.choice import FACTORED, FORMED, Execution
from hypertune_mip.execution.kernel import Function, Kernel, Mode
from hypertune_mip.execution.sequential import Setting, Weigh

__all__ = ["FACTORED", "FORMED", "Execution", "Function", "Kernel", "Mode", "Setting", "Weigh"]
