"""The errors and warnings that users of the library see.

Each library error also is the built-in error that a caller would expect at that place, so that code which
catches `ValueError` keeps working.
"""

from __future__ import annotations


class HypertuneError(Exception):
    """Base of every error that the library raises on purpose."""


class SpaceError(HypertuneError, ValueError):
    """A search space, or a config that does not fit it, is invalid."""


class NetworkError(HypertuneError, ValueError):
    """The primary network cannot be served, by name of the module that is in the way."""


class DataError(HypertuneError, ValueError):
    """A loader or a batch is empty, too small, or not made of tensors."""


class LossError(HypertuneError, ValueError):
    """A loss or metric returned something that training or evaluation cannot use."""


class OptionError(HypertuneError, ValueError):
    """An option, such as those of `fit`, is invalid."""


class TrainingError(HypertuneError, RuntimeError):
    """Training had to stop; the last good state has been kept."""


class StorageError(HypertuneError, OSError):
    """A saved folder is missing, truncated, altered, of another schema, or could not be written."""


class MissingExtraError(HypertuneError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        """Name what was asked for and the extra that brings it."""
        super().__init__(f'{purpose} needs an optional dependency: pip install "hypertune-mip[{extra}]"')


class HypertuneWarning(UserWarning):
    """Something is legal but probably not what was meant."""
