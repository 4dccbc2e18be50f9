"""The surrogate: a trained hypernetwork and validation data, answering for any setting at once."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hypertune_mip.arguments import seed_number, whole_number
from hypertune_mip.directions import Direction, checked_directions
from hypertune_mip.errors import DataError, HypertuneWarning, SpaceError
from hypertune_mip.evaluation import Evaluator, Metric
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.space import Config, SearchSpace
from hypertune_mip.surrogate.arguments import evaluator_of, goal_of
from hypertune_mip.surrogate.calibrated import CalibratedEvaluator, Correction
from hypertune_mip.surrogate.deliveries import Deliveries
from hypertune_mip.surrogate.materialize import materialize
from hypertune_mip.surrogate.persistence import load_surrogate, save_surrogate
from hypertune_mip.surrogate.trust import corrected, make_report, real_values, settings_to_verify
from hypertune_mip.tasks import Task
from hypertune_mip.training import Loss, Record
from hypertune_mip.trainings import Executor, FromHypernetwork, Recipe, Trainer
from hypertune_mip.trainings.starts import Initialize, Starts
from hypertune_mip.verification.report import TrustReport
from hypertune_mip.verification.unused import unused_hyperparameters


class Surrogate(Deliveries):
    """Metrics of the primary network at any setting, without training; what `fit` returns.

    Args:
        hypernet: Trained.
        loss: What it was trained for, or the task; kept for verification against real training.
        metric: Written for one setting: (model, batch) to 0-d means over the batch by name, `metrics.whole_set(...)`,
            or a list of both; None takes the task's.
        val_loader: Validation data; see `Evaluator` for how it is kept.
        history: One record an epoch, from training.
        execution: How the settings of a step ran in training: the way, what others took, whether it was captured.
        early: The hypernetwork's state after a quarter of training, from which a branch may start, as its
            `load_state_dict` takes it; None where there is none.
        train_loader: What it was trained on; kept for verification, as is `loss`.
        recipe: How a single network would be trained; None takes as many epochs as in `history`.
        memory_budget: Bytes that settings evaluated at once may take; None is 32 MiB on a CPU and 1 GiB on CUDA.
        directions: By metric "maximize", where large values are the better ones, or "minimize", as it is where nothing
            is said.
        reports: On real trainings.
        correction: How it is calibrated by the first of its reports; None is not.
        evaluator: Of `hypernet`, in place of metric, validation data, memory budget and directions, where these are
            read already.

    Raises:
        SpaceError: If a direction is none, or of a metric that is unknown.
        DataError: If `metric` or `val_loader` is there without the other, or beside an evaluator; or the memory budget
            is no whole number.
    """

    def __init__(
        self,
        hypernet: HyperNetwork,
        *,
        loss: Loss | Task | None = None,
        metric: Metric | None = None,
        val_loader: Iterable[Any] | None = None,
        history: Sequence[Record] = (),
        execution: dict[str, Any] | None = None,
        early: Mapping[str, Tensor] | None = None,
        train_loader: Iterable[Any] | None = None,
        recipe: Recipe | None = None,
        memory_budget: int | None = None,
        directions: Mapping[str, Direction] | None = None,
        reports: Sequence[TrustReport] = (),
        correction: Correction | None = None,
        evaluator: Evaluator | None = None,
    ) -> None:
        """See the class."""
        if loss is not None:
            loss, metric, directions = goal_of(loss, metric, directions, val_loader)
        if memory_budget is not None:
            memory_budget = whole_number("memory_budget", memory_budget, low=0, error=DataError)
        self.hypernet = hypernet.eval()
        self.loss = loss
        self.history = list(history)
        self.execution = execution
        self.early = early
        self.train_loader = train_loader
        self.recipe = recipe
        self.reports = tuple(reports)
        """Of all verifications so far, in their order: `verify` adds to them."""
        own = evaluator_of(hypernet, metric, val_loader, memory_budget=memory_budget, directions=directions)
        if evaluator is not None and (own is not None or evaluator.hypernet is not hypernet):
            raise DataError("`evaluator` must be one of `hypernet`, and take the place of `metric` and `val_loader`.")
        self._evaluator = own if evaluator is None else evaluator
        self._stated = checked_directions(directions)
        self._correction = correction
        self._calibrated: CalibratedEvaluator | None = None
        if correction is not None and self._evaluator is not None:
            self._calibrated = corrected(self._evaluator, self.reports, correction)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but training data and recipe: another process asks, and a recipe often holds a lambda."""
        return {**self.__dict__, "train_loader": None, "recipe": None}

    def __repr__(self) -> str:
        """Hyperparameters, metrics and epochs."""
        metrics = self.metrics if self._evaluator is not None else None
        return (
            f"Surrogate(hyperparameters={list(self.space.names)}, metrics={metrics and list(metrics)},"
            f" head={self.hypernet.head}, epochs={len(self.history)})"
        )

    def to(self, device: str | torch.device) -> Surrogate:
        """A copy on another device, with the same reports and calibration."""
        hypernet = copy.deepcopy(self.hypernet).to(device)
        evaluator = calibrated = None
        if (own := self._evaluator) is not None:
            evaluator = own.on(hypernet)
            if self._calibrated is not None:
                calibrated = CalibratedEvaluator(evaluator, self._calibrated.calibrations)
        return self._with(hypernet=hypernet, _evaluator=evaluator, _calibrated=calibrated)

    def replace(
        self,
        *,
        loss: Loss | Task | None = None,
        train_loader: Iterable[Any] | None = None,
        recipe: Recipe | None = None,
    ) -> Surrogate:
        """A copy whose real trainings are others; all else is shared.

        Args:
            loss: What they minimise, or a task, of which the loss counts; None is as in this surrogate.
            train_loader: Their data; None is as in this surrogate.
            recipe: How a single network is trained; None is as in this surrogate.
        """
        plain = loss.loss if isinstance(loss, Task) else loss
        changes = {"loss": plain, "train_loader": train_loader, "recipe": recipe}
        return self._with(**{name: value for name, value in changes.items() if value is not None})

    def _with(self, **attributes: Any) -> Surrogate:
        """A copy with some other attributes."""
        made = object.__new__(type(self))  # `copy.copy` leaves out what no other process needs
        made.__dict__.update(self.__dict__, **attributes)
        return made

    @property
    def space(self) -> SearchSpace:
        """The space that it was trained on."""
        return self.hypernet.space

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return self._evaluate.names()

    @property
    def directions(self) -> dict[str, Direction]:
        """Of all metrics, by name: "maximize" where that was stated, otherwise "minimize"."""
        return self._evaluate.directions

    @property
    def stated_directions(self) -> dict[str, Direction]:
        """Those of `directions` that were stated, which whoever searches this surrogate may not contradict."""
        return dict(self._stated if self._evaluator is None else self._evaluator.stated_directions)

    @property
    def _evaluate(self) -> Evaluator:
        if self._evaluator is None:
            raise DataError(
                "This surrogate has no validation data. Pass `metric` and `val_loader` to `fit` or `Surrogate.load`."
            )
        return self._evaluator

    @property
    def _measure(self) -> Evaluator | CalibratedEvaluator:
        return self._evaluate if self._calibrated is None else self._calibrated

    def trainer(
        self,
        recipe: Recipe | None = None,
        folder: str | Path | None = None,
        executor: Executor | None = None,
        *,
        network: nn.Module | None = None,
        train_loader: Iterable[Any] | None = None,
        initialize: Initialize | None = None,
        parallel: int = 16,
    ) -> Trainer:
        """What trains the plain primary network for real, from scratch or from the hypernetwork's weights.

        Loss, metric and data are those of the surrogate.

        Args:
            recipe: How one network is trained; None is as `fit` was told. State it where you would train a single
                network otherwise: its learning rate often differs.
            folder: Where finished trainings are kept, to go on with later; see `Trainer`.
            executor: Who carries trainings out; None is this process.
            network: The primary network; None takes the one that the hypernetwork was made from, as it was then.
            train_loader: Training data; None takes that of `fit`.
            initialize: Where trainings from scratch start, as in `Trainer`; None is "given" where theta_0 is frozen and
                "auto" otherwise.
            parallel: Networks that are trained at once; see `Trainer`.

        Raises:
            DataError: If the surrogate lacks the loss or the training data, as after `load` without them.
        """
        loader = self.train_loader if train_loader is None else train_loader
        if self.loss is None or loader is None:
            raise DataError(
                "Real training needs the loss and the training data. Pass `loss` and `train_loader` to"
                " `Surrogate.load`."
            )
        frozen = self.hypernet.freeze_theta_0
        return Trainer(
            self.hypernet.given if network is None else network,
            self.space,
            self.loss,
            loader,
            metric=self._evaluate.metric,
            val_loader=self._evaluate.data.loader,
            recipe=self._own_recipe if recipe is None else recipe,
            branch_points=self._branch_points(),
            initialize=("given" if frozen else "auto") if initialize is None else initialize,
            mapping=self.hypernet.kernel.mapping,
            parallel=parallel,
            device=self.hypernet.device,
            folder=folder,
            executor=executor,
        )

    def _branch_points(self) -> dict[str, Starts]:
        early = {} if self.early is None else {"early": FromHypernetwork(self.hypernet, self.early)}
        return {**early, "end": FromHypernetwork(self.hypernet)}

    @property
    def _own_recipe(self) -> Recipe:
        return self.recipe or Recipe(epochs=max(1, len(self.history)))

    def verify(
        self,
        metric: str,
        *,
        settings: int = 8,
        best: int | None = None,
        seeds: int = 1,
        share: float | None = None,
        trainer: Trainer | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> TrustReport:
        """Train the plain network for real at a few settings, and report how well the surrogate foresaw the outcome.

        Some of the settings are spread over the space, the others are the surrogate's best ones, its optimum first. The
        report joins `reports`, by which the surrogate knows its `doubts`, and from which `calibrated` learns.

        Args:
            metric: What the report is about, in its direction; other metrics are measured along.
            settings: How many, S.
            best: How many of them are the surrogate's best; None is half. To calibrate, take 1: spread settings teach
                more.
            seeds: Real trainings at each; with two or more the report knows what noise alone would cost.
            share: None trains from scratch with the whole recipe. A number, such as 0.125, trains branches of that
                share of it instead, from the hypernetwork's weights: for a part of the cost they tell nearly the same
                order of settings, but not the values that whole trainings have.
            trainer: Of real trainings; None is `self.trainer()`. Give one with a `folder` to be able to resume.
            seed: Of the spread settings; take another one to verify at fresh settings.
            progress: Whether to show a bar.

        Raises:
            SpaceError: If the metric is unknown, there is not at least one setting, or `best` is more than there are.
            OptionError: If `share` is not in (0, 1], or the trainer knows no hypernetwork to branch from.
            DataError: As in `trainer`.

        Warns:
            HypertuneWarning: If the report has doubts, naming them.
        """
        if metric not in self.metrics:
            raise SpaceError(f"The metric {metric!r} is unknown; `metric` returns {list(self.metrics)}.")
        settings = whole_number("settings", settings, low=1, error=SpaceError)
        if best is not None:
            best = whole_number("best", best, low=0, high=settings, error=SpaceError)
        seed = seed_number(seed, error=SpaceError)
        trainer = self.trainer() if trainer is None else trainer
        known = self.reports[: self._known]
        configs, chosen = settings_to_verify(self._measure, metric, settings, best=best, seed=seed, known=known)
        before = trainer.seconds
        true, cost = real_values(trainer, configs, share, seeds, progress=progress)
        report = make_report(
            self._measure,
            metric,
            configs,
            chosen,
            true,
            direction=self.directions[metric],
            trainings=cost * trainer.recipe.epochs / self._own_recipe.epochs,
            seconds=trainer.seconds - before,
            unused=unused_hyperparameters(self.hypernet, trainer.loss, trainer.train_loader),
            share=None if share is None else float(share),
        )
        self.reports = (*self.reports, report)
        self.warn_of_doubts(metric, stacklevel=3)
        return report

    def doubts(self, metric: str) -> tuple[str, ...]:
        """Why the surrogate as it is now is not to be trusted for a metric: sentences from the last report on it.

        Reports on one or two settings do not replace one on more.

        Reports that the surrogate is calibrated by say nothing about it as it is now; verify it anew.
        """
        about = [report for report in self.reports[self._known :] if report.metric == metric]
        about = [report for report in about if report.judges_order] or about
        return about[-1].doubts() if about else ()

    def warn_of_doubts(self, *metrics: str, stacklevel: int = 2) -> None:
        """Warn of the `doubts` about metrics, as all that searches the surrogate does.

        Args:
            *metrics: By name.
            stacklevel: Whose line the warning names: 2 for the one that calls this.

        Warns:
            HypertuneWarning: If there are doubts.
        """
        for metric in metrics:
            if doubts := self.doubts(metric):
                warnings.warn(
                    f"The surrogate is not to be trusted for {metric!r}: {' '.join(doubts)} Calibrate it, train the"
                    " hypernetwork longer, or rely on real training, as `SurrogateSampler` does.",
                    HypertuneWarning,
                    stacklevel=stacklevel,
                )

    def calibrated(
        self,
        *reports: TrustReport,
        method: Literal["affine", "monotone"] = "affine",
        residual: bool = True,
    ) -> Surrogate:
        """A new surrogate, corrected by real trainings, which knows intervals; this one stays as it is.

        Reports on branches correct first, those on trainings from scratch what is left: one or two of these shift all
        values. Each kind of branches takes three settings. Intervals are those of one whole training.

        `evaluate` and all that builds on it give calibrated metrics there. A calibrated surrogate may be calibrated
        anew, by more reports: it starts from what the hypernetwork says.

        Args:
            *reports: From `verify`, which become the new surrogate's own; none takes all reports so far.
            method: "affine" or "monotone"; see `Calibration`.
            residual: Whether a Gaussian process corrects what depends on the setting.

        Raises:
            DataError: If there are too few real trainings, or no validation data.
            SpaceError: If a report is about another space.
            MissingExtraError: If BoTorch is not installed.
        """
        reports = reports or self.reports
        correction = Correction(method=method, residual=residual, reports=len(reports))
        calibrated = corrected(self._evaluate, reports, correction)
        return self._with(reports=reports, _correction=correction, _calibrated=calibrated)

    @property
    def _known(self) -> int:
        """How many of its reports the surrogate is calibrated by: they come first."""
        return 0 if self._correction is None else self._correction.reports

    def materialize(self, config: Config, *, recalibrate: Iterable[Any] | None = None) -> nn.Module:
        """A plain copy of the primary network with theta(u) folded in, in evaluation mode, on the same device.

        Layers bound to hyperparameters become plain ones at the config's values. The copy answers as the surrogate
        does: `materialize(config)(x)` equals the functional evaluation to float tolerance.

        Args:
            config: Native values.
            recalibrate: Batches such as training takes: layers whose running statistics were dropped (see
                `HyperNetwork`) get them back, averaged over these batches while the loss is computed on them. A
                surrogate without a loss computes its metric, and without a metric calls the network on the batch, or on
                its first element.

        Raises:
            SpaceError: As in `evaluate`.
        """
        metric = None if self._evaluator is None else self._evaluator.metric
        return materialize(self.hypernet, config, recalibrate, loss=self.loss, metric=metric)

    def save(self, folder: str | Path) -> None:
        """Write all that the surrogate is to a folder, as safetensors and JSON, atomically.

        That is the hypernetwork, also as it was early, with its space and history, the reports, and how it is
        calibrated. Functions and data are not saved: `load` takes them again. Other processes may save there or load
        from it at the same time, and files of others may lie there.

        Raises:
            StorageError: If writing fails, or would replace a `surrogate.json` that is none of ours; what the folder
                held before is then as it was.
        """
        parts = {
            "history": self.history,
            "execution": self.execution,
            "early": self.early,
            "directions": self.stated_directions,
            "reports": [report.to_dict() for report in self.reports],
            "correction": None if self._correction is None else dataclasses.asdict(self._correction),
        }
        save_surrogate(folder, self.hypernet, parts)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        network: nn.Module,
        *,
        loss: Loss | Task | None = None,
        metric: Metric | None = None,
        val_loader: Iterable[Any] | None = None,
        train_loader: Iterable[Any] | None = None,
        recipe: Recipe | None = None,
        space: SearchSpace | None = None,
        device: str | torch.device = "cpu",
        directions: Mapping[str, Direction] | None = None,
    ) -> Surrogate:
        """The surrogate that `save` wrote: `load(save(s))` answers as `s` does, with its intervals and reports.

        Without metric and validation data it answers nothing, but keeps its calibration for when it is saved again.

        Args:
            folder: What was saved to.
            network: The primary network's architecture; the weights are replaced by the saved ones in a copy. Real
                training (see `trainer`) starts from this network.
            loss: As in `Surrogate`.
            metric: As in `Surrogate`.
            val_loader: As in `Surrogate`.
            train_loader: As in `Surrogate`.
            recipe: As in `Surrogate`.
            space: If given, it must be the saved one.
            device: Where to.
            directions: As in `Surrogate`.

        Raises:
            StorageError: If the folder is damaged or foreign, or does not fit the network or the space.
        """
        hypernet, parts = load_surrogate(folder, network, space)
        correction, saved = parts["correction"], parts["directions"]
        if loss is not None:
            loss, metric, directions = goal_of(loss, metric, directions, val_loader)
        evaluator = evaluator_of(hypernet.to(device), metric, val_loader, directions=directions)
        if evaluator is not None:  # with a metric that need not have all that were there
            known = {name: saved[name] for name in evaluator.names() if name in saved}
            evaluator.stated_directions = known | evaluator.stated_directions
        return cls(
            hypernet,
            loss=loss,
            train_loader=train_loader,
            recipe=recipe,
            history=parts["history"],
            execution=parts["execution"],
            early=parts["early"],
            directions=saved | dict(directions or {}),
            evaluator=evaluator,
            reports=[TrustReport.from_dict(report) for report in parts["reports"]],
            correction=None if correction is None else Correction(**correction),
        )
