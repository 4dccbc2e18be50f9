"""The kernel: the one place that runs functions of a network at many settings."""

from hypertune_mip.execution.kernel import Execution, Function, Kernel, Mode
from hypertune_mip.execution.sequential import Setting

__all__ = ["Execution", "Function", "Kernel", "Mode", "Setting"]
