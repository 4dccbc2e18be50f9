"""A step captured in a CUDA graph: what a step launches is recorded once and replayed, without Python in between.

A recording repeats what the step did then. A number that the step takes from Python anew each time (a schedule inside
the loss, Python's own random numbers, a branch on a value) would stay what it was, so a recording is compared with the
step itself, on the same inputs and random numbers, before it is first used and once an epoch; where they differ it is
dropped. Inputs of other shapes (an epoch's last batch) run outside of the recording.

Reference: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hypertune_mip.execution.swap import random_state, set_random_state
from hypertune_mip.trees import leaves, mapped, structure, tensors_of

_WARM_UP = 3  # calls before a recording, on a stream of their own
_ROUNDING = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}  # relative difference of two runs of the same step

Step = Callable[..., Tensor]
"""Of tensors and trees of tensors: adds to the gradients of parameters and returns numbers without history."""


class Recording(Protocol):
    """What a step did, to be done again."""

    def __call__(self, *inputs: Any) -> Tensor:
        """As the step, on inputs of the same shapes."""


class CudaGraph:
    """A step as a CUDA graph.

    Args:
        step: What is recorded; it must not wait for the device.
        inputs: For which it is recorded; the shapes count, not the values.
        device: Where.

    Raises:
        RuntimeError: If the step does what cannot be recorded.
    """

    def __init__(self, step: Step, inputs: Sequence[Any], device: torch.device) -> None:
        """See the class."""
        self._inputs = mapped(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tuple(inputs))
        # the stream of before is set anew at the end, since a recording that fails may leave its own behind
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            aside = torch.cuda.Stream(device)
            aside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP):
                    step(*self._inputs)
            torch.cuda.current_stream(device).wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            # a loader's thread may ask for pinned memory meanwhile
            with torch.cuda.graph(self._graph, stream=aside, capture_error_mode="thread_local"):
                self._result = step(*self._inputs)

    def __call__(self, *inputs: Any) -> Tensor:
        """See `Recording`."""
        for own, given in zip(tensors_of(self._inputs), tensors_of(inputs), strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._result.clone()


class Captured:
    """A step that is recorded as soon as it can be, and replayed wherever that is the same.

    Args:
        step: See `Step`.
        parameters: Whose gradients it adds to.
        device: Where it runs.
        buffers: That it may change in place.
        precision: In which it runs.
        record: Makes a recording.
    """

    def __init__(
        self,
        step: Step,
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        *,
        buffers: Sequence[Tensor] = (),
        precision: str = "float32",
        record: Callable[[Step, Sequence[Any], torch.device], Recording] = CudaGraph,
    ) -> None:
        """See the class."""
        self._step, self._parameters, self._device, self._record = step, list(parameters), device, record
        self._tolerance = _ROUNDING[precision]
        self._buffers = list(buffers)
        self._recording: Recording | None = None
        self._shapes: Any = None
        self._gradients: list[Tensor] = []
        self._used: list[bool] | None = None  # which parameters get a gradient, known when a recording is checked
        self._to_check = True
        self.refused: str | None = None
        """Why nothing is recorded, once that is known."""

    def start_epoch(self) -> None:
        """The recording is compared with the step once more."""
        self._to_check = True

    def __call__(self, *inputs: Any) -> Tensor:
        """The step, replayed where that is the same."""
        if self.refused is None and self._recording is None:
            self._make(inputs)
        if self.refused is not None or _shapes(inputs) != self._shapes:
            return self._step(*inputs)
        if self._to_check and all(parameter.grad is None for parameter in self._parameters):
            agrees = self._agrees(inputs)
            self._to_check = agrees is None
            if agrees is False:
                self._recording, self._gradients = None, []
                self.refused = "a replayed step differs from the step itself: the loss or network changes between steps"
        return self._step(*inputs) if self._recording is None or self._used is None else self._replayed(inputs)

    def _make(self, inputs: Sequence[Any]) -> None:
        state, buffers = random_state(self._device), [buffer.clone() for buffer in self._buffers]
        before = [parameter.grad for parameter in self._parameters]
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        try:
            self._hold(self._gradients)
            self._recording = self._record(self._step, inputs, self._device)
            self._shapes, self._to_check = _shapes(inputs), True
        except Exception as error:  # whatever a user's code may do during a recording, the step itself is served
            self.refused = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            self._gradients = []
        self._hold(before)
        self._put_back(state, buffers)

    def _replayed(self, inputs: Sequence[Any]) -> Tensor:
        """Replay, adding to gradients as a backward pass does."""
        assert self._recording is not None and self._used is not None
        used = [
            pair
            for pair, yes in zip(zip(self._parameters, self._gradients, strict=True), self._used, strict=True)
            if yes
        ]
        if all(parameter.grad is gradient for parameter, gradient in used):
            return self._recording(*inputs)  # it adds in place
        torch._foreach_zero_(self._gradients)
        result = self._recording(*inputs)
        for parameter, gradient in used:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return result

    def _agrees(self, inputs: Sequence[Any]) -> bool | None:
        """Whether a replay gives what the step gives, from the same random numbers; gradients are left behind.

        None where numbers are not finite, as when float16 overflows: then the next step tells.
        """
        state, buffers = random_state(self._device), [buffer.clone() for buffer in self._buffers]
        expected = [self._step(*inputs), *(parameter.grad for parameter in self._parameters)]
        used = [gradient is not None for gradient in expected[1:]]
        self._hold([None] * len(self._parameters))
        self._put_back(state, buffers)
        if not all(bool(torch.isfinite(one).all()) for one in expected if one is not None):
            return None
        self._used = used
        found = [self._replayed(inputs), *(parameter.grad for parameter in self._parameters)]
        self._hold([None] * len(self._parameters))
        self._put_back(state, buffers)
        pairs = [(one, other) for one, other in zip(expected, found, strict=True) if one is not None]
        return all(_distance(part) <= self._tolerance for part in (pairs[:1], pairs[1:]))

    def _put_back(self, state: Any, buffers: Sequence[Tensor]) -> None:
        """In place: a recording knows where buffers are."""
        set_random_state(state, self._device)
        with torch.no_grad():
            for buffer, before in zip(self._buffers, buffers, strict=True):
                buffer.copy_(before)

    def _hold(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient


def _distance(pairs: Sequence[tuple[Tensor, Tensor | None]]) -> float:
    """How far all second tensors together are from the first ones, relative to these."""
    difference = sum(float((one - other).double().square().sum()) for one, other in pairs if other is not None)
    size = sum(float(one.double().square().sum()) for one, _ in pairs)
    return float((difference / max(size, 1e-300)) ** 0.5)


def _shapes(inputs: Sequence[Any]) -> Any:
    """What must be the same for a recording to serve: shapes, types, and plain values; no other object ever is."""

    def shown(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.shape, leaf.dtype
        return leaf if leaf is None or isinstance(leaf, (str, bool, int, float)) else object()

    inputs = tuple(inputs)
    return structure(inputs), [shown(leaf) for leaf in leaves(inputs)]
