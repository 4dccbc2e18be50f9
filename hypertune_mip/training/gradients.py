"""From a batch to gradients: which settings share it, in which way they run, and how much each of them counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypertune_mip.encoding import encode
from hypertune_mip.evaluation import batch_size, to_device
from hypertune_mip.execution import FACTORED, FORMED, Captured, Execution, Function, candidates, measured
from hypertune_mip.execution.choice import small_parameters, without_trace
from hypertune_mip.training.options import Options
from hypertune_mip.training.run_state import RunState
from hypertune_mip.training.step import (
    TrainingStep,
    is_small,
    leaves_number_open,
    settings_of_a_step,
    split_batch,
    splits,
)
from hypertune_mip.training.strategy import Strategy
from hypertune_mip.trees import tensors_of

_WORTH_MEASURING = 400  # steps of a run: to measure takes up to sixteen


class Gradients:
    """Adds a batch's share to the gradients.

    Args:
        step: The training step, of this process.
        prepared: The same as the strategy prepared it.
        options: See `fit`.
        strategy: Where training runs.
        state: Of the run; its settings, weights and plan are changed.
        total: Steps of the run, if that is known.
    """

    def __init__(
        self,
        step: TrainingStep,
        prepared: nn.Module,
        options: Options,
        strategy: Strategy,
        state: RunState,
        *,
        total: int | None,
    ) -> None:
        """See the class."""
        self._step, self._prepared = step, prepared
        self._options, self._strategy, self._state, self._total = options, strategy, state, total
        self._hypernet = state.hypernet
        self._waiting: list[tuple[np.ndarray | None, Tensor, Tensor, float]] = []  # steps not learned from yet
        self._captured: dict[bool, Captured] = {}

    def __call__(self, batch: Any, *, progress: float, share: float) -> tuple[Float[Tensor, "S d"], Float[Tensor, "S"]]:
        """Settings and losses of all workers at this batch, whose gradients are added to those that are there.

        Args:
            batch: As the loader gives it.
            progress: Share of training that is over, in [0, 1].
            share: Of the batch in its optimiser step.
        """
        state, device, world = self._state, self._hypernet.device, self._strategy.world_size
        size = largest = batch_size(batch)
        if world > 1 and splits(self._options):  # settings that split a batch are as many on each worker
            sizes = self._strategy.gather(torch.tensor([size], device=device))
            size, largest = int(sizes.min()), int(sizes.max())
        state.plan.largest_batch = max(state.plan.largest_batch, largest)
        batch = to_device(batch, device)
        if state.plan.small is None:
            state.plan.small = leaves_number_open(self._options) and is_small(self._step, batch)
            state.plan.small = self._of_the_first([state.plan.small])[0]
        count, split = settings_of_a_step(
            size,
            state.plan.largest_batch,
            self._options,
            small=state.plan.small,
            least=2 if self._hypernet.batch_norms else 1,  # a single example has no variance
        )
        units = state.settings.draw(count)
        if state.plan.execution is None:
            state.plan.execution = self._execution(count, split, batch)
        encoded = self._encoded(units)
        options: dict[str, Any] = {"progress": progress, "settings": count * world, "share": share * world}
        weigh = _Weigh(state, encoded, **options, device=device, alone=world == 1)
        if weigh.known is not None and self._captures:
            losses = self._replayed(units.to(device), batch, split, weigh.known)
        else:
            total, losses = self._prepared(units, batch, split, weigh, state.plan.execution)
            if weigh.leads:
                leads = torch.from_numpy(np.concatenate(weigh.leads)).to(device)
                total = total / self._strategy.gather(leads).mean().to(total.dtype)
            total.backward()
        if world > 1:
            everywhere = torch.cat([units.to(device), losses.to(units.dtype).unsqueeze(1)], 1)
            everywhere = self._strategy.gather(everywhere)
            units, losses = everywhere[:, :-1], everywhere[:, -1]
        self._waiting.append((encoded if world == 1 else None, units, losses, progress))
        if not state.weights.settled:  # the weights of the next step need it, and have waited for the device anyhow
            self.learn()
        return units, losses

    def learn(self) -> None:
        """Let the weights learn from the steps since the last call, whose losses are finite; waits for the device."""
        for encoded, units, losses, progress in self._waiting:
            if encoded is None:
                encoded = self._encoded(units.cpu())
            self._state.weights.observe(losses.double().cpu().numpy(), encoded, progress=progress)
        self._waiting.clear()

    def _encoded(self, units: Tensor) -> np.ndarray:
        encoded: np.ndarray = encode(units, self._hypernet.space.dimensions, self._hypernet.encoding).numpy()
        return encoded

    def start_epoch(self) -> None:
        """Steps that are captured are compared with what they stand for once more."""
        for captured in self._captured.values():
            captured.start_epoch()

    @property
    def _captures(self) -> bool:
        """Whether steps are captured.

        With several workers they are not: hooks of the backward pass start the exchange of gradients.
        """
        return self._options.capture and self._hypernet.device.type == "cuda" and self._strategy.world_size == 1

    def _replayed(self, units: Tensor, batch: Any, split: bool, weights: Tensor) -> Tensor:
        if split not in self._captured:
            execution = self._state.plan.execution

            def step(units: Tensor, batch: Any, weights: Tensor) -> Tensor:
                total, losses = self._step(units, batch, split, lambda losses, rows: weights[rows], execution)
                total.backward()
                numbers: Tensor = losses
                return numbers

            parameters = [p for p in self._hypernet.parameters() if p.requires_grad]
            device, precision = self._hypernet.device, self._options.precision
            buffers = list(self._hypernet.buffers())
            self._captured[split] = Captured(step, parameters, device, buffers=buffers, precision=precision)
        losses = self._captured[split](units, batch, weights)
        plan, refused = self._state.plan, [each.refused for each in self._captured.values() if each.refused]
        plan.captured, plan.not_captured = not refused, next(iter(refused), None)
        return losses

    def _execution(self, count: int, split: bool, batch: Any) -> Execution:
        """How settings run: as was asked for, the way that was fastest here, or what usually is where time is short."""
        mapping = self._hypernet.kernel.mapping
        if isinstance(self._options.execution, Execution):
            return self._options.execution
        if self._options.execution == "usual" or (self._total is not None and self._total < _WORTH_MEASURING):
            usual = FORMED if count == 1 else FACTORED
            return usual if mapping in ("auto", usual.mapping) else (FORMED if mapping == "loop" else FACTORED)
        ways = self._ways(count, split, batch)
        seconds = self._measured(ways, count, split, batch) if self._strategy.rank == 0 else {}
        fastest = ways.index(min(seconds, key=seconds.__getitem__)) if seconds else 0
        chosen = self._strategy.gather(torch.tensor([fastest], device=self._hypernet.device))[0]
        self._state.plan.seconds = [[way.to_json(), taken] for way, taken in seconds.items()]
        return ways[int(chosen)]

    def _ways(self, count: int, split: bool, batch: Any) -> list[Execution]:
        hypernet, kernel = self._hypernet, self._hypernet.kernel
        units = hypernet.space.sample(count)
        structured = kernel.structured(hypernet.settings(units[:1]))
        loss: Function = self._step.scalar
        data = batch
        if split:
            parts = split_batch(batch, count)
            loss, data = self._step.of_part(parts), [tensor[:1] for tensor in tensors_of(parts)]

        def call() -> None:
            hypernet(loss, units[:1], data, split=split, execution=FORMED)

        names = sorted(structured)
        with without_trace(hypernet, hypernet.device):
            small = small_parameters(hypernet.network, names, call)
        flags = self._of_the_first([name in small for name in names])
        small = [name for name, flag in zip(names, flags, strict=True) if flag]
        return candidates(kernel.mapping, small, len(structured))

    def _of_the_first(self, flags: list[bool]) -> list[bool]:
        """What the first worker has found, on all of them: theirs may differ, with other batches."""
        if self._strategy.world_size == 1 or not flags:
            return flags
        gathered = self._strategy.gather(torch.tensor(flags, dtype=torch.int64, device=self._hypernet.device))
        return [bool(flag) for flag in gathered[: len(flags)].tolist()]

    def _measured(self, ways: Sequence[Execution], count: int, split: bool, batch: Any) -> dict[Execution, float]:
        units = self._hypernet.space.sample(count)

        def step(way: Execution) -> None:
            total, _ = self._step(units, batch, split, lambda losses, rows: torch.ones_like(losses), way)
            total.backward()
            self._hypernet.zero_grad(set_to_none=True)

        with without_trace(self._hypernet, self._hypernet.device):
            return measured(step, ways, self._hypernet.device)


class _Weigh:
    """From losses of some settings of a step to their weights; see `Weigh`.

    Args:
        state: Of the run.
        encoded: The step's settings.
        progress: Share of training that is over.
        settings: How many the step has, on all workers.
        share: What weights are multiplied with.
        device: Of the losses.
        alone: Whether there is one worker only.
    """

    def __init__(
        self,
        state: RunState,
        encoded: np.ndarray,
        *,
        progress: float,
        settings: int,
        share: float,
        device: torch.device,
        alone: bool,
    ) -> None:
        """See the class."""
        self._weights, self._encoded = state.weights, encoded
        self._options: dict[str, Any] = {"progress": progress, "settings": settings}
        self._share, self._dtype = share, state.hypernet.dtype
        # in float16, gradients are scaled from the loss on
        self._scale = state.scaler.scale(torch.ones((), device=device)) if state.scaler.is_enabled() else None
        self.leads: list[np.ndarray] = []  # by whose mean, over all workers, the sum is still to be divided
        self.known: Tensor | None = None
        if self._weights.settled and alone:
            weights, leads = self._weights(None, encoded, **self._options)
            self.known = self._tensor(weights / leads.mean(), device)

    def __call__(self, losses: Tensor, rows: slice) -> Tensor:
        """See `Weigh`."""
        if self.known is not None:
            return self.known[rows]
        numbers = None if self._weights.settled else losses.double().cpu().numpy()
        weights, leads = self._weights(numbers, self._encoded[rows], **self._options)
        self.leads.append(leads)
        return self._tensor(weights, losses.device)

    def _tensor(self, weights: np.ndarray, device: torch.device) -> Tensor:
        made = torch.from_numpy(weights * self._share).to(device, self._dtype, non_blocking=True)
        return made if self._scale is None else made * self._scale
