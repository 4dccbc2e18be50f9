"""Losses and penalties that take hyperparameters as tensors.

Each is written for ONE setting and is safe under `torch.func.vmap`. They take plain numbers too, so that the same loss
trains a plain network from scratch.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypertune_mip.errors import LossError
from hypertune_mip.functional import absolute_sum, square_sum

Number = Tensor | float
_FOCAL_FLOOR = 1e-6  # (1 - p)^gamma has an infinite slope in gamma at 1 - p = 0


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Number = 0.0,
) -> Tensor:
    """Mean cross-entropy against smoothed labels, 0-d: `torch.nn.functional.cross_entropy`, smoothed by a tensor.

    Args:
        logits: (N, classes), (N, classes, ...) with further dimensions, or (classes,) for one example.
        target: Class indices (N, ...), or class probabilities of the shape of `logits`.
        weight: Of each class, (classes,).
        ignore_index: Class index of examples that do not count.
        label_smoothing: In [0, 1]; the share of probability that is spread evenly over all classes.

    Raises:
        LossError: If `label_smoothing` is a number outside of [0, 1].

    Example:
        >>> logits, target = torch.randn(8, 3), torch.randint(3, (8,))
        >>> ours = cross_entropy(logits, target, label_smoothing=torch.tensor(0.1))
        >>> bool(ours.isclose(F.cross_entropy(logits, target, label_smoothing=0.1)))
        True
    """
    axis = min(1, logits.ndim - 1)
    log_p = logits.log_softmax(axis)
    weighted = log_p if weight is None else log_p * weight.reshape(-1, *(1,) * (logits.ndim - axis - 1))
    if target.is_floating_point():
        examples = logits.numel() // logits.shape[axis]
        exact, smooth = -(target * weighted).sum() / examples, -weighted.mean(axis).sum() / examples
    else:
        exact, smooth = _mean_of_classes(-weighted, target.long(), weight, ignore_index, axis)
    return _smoothed(exact, smooth, label_smoothing)


def focal(
    logits: Tensor, target: Tensor, *, gamma: Number, ignore_index: int = -100, label_smoothing: Number = 0.0
) -> Tensor:
    """Mean focal loss (Lin et al., 2017, arXiv 1708.02002), -(1 - p)^gamma log p, 0-d; gamma = 0 is cross-entropy.

    Args:
        logits: (N, classes, ...).
        target: Class indices (N, ...).
        gamma: At least 0.
        ignore_index: Class index of examples that do not count.
        label_smoothing: In [0, 1].
    """
    log_p = logits.log_softmax(1)
    losses = -((1 - log_p.exp()).clamp_min(_FOCAL_FLOOR) ** gamma) * log_p
    exact, smooth = _mean_of_classes(losses, target.long(), None, ignore_index, 1)
    return _smoothed(exact, smooth, label_smoothing)


def _smoothed(exact: Tensor, smooth: Tensor, share: Number) -> Tensor:
    """Without smoothing a class that cannot be, of logit -inf, does not matter."""
    if not isinstance(share, Tensor):
        if not 0 <= share <= 1:
            raise LossError(f"`label_smoothing` must lie in [0, 1], but got {share}.")
        if share == 0:
            return exact
    return exact + share * (smooth - exact)


def _mean_of_classes(
    losses: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, axis: int
) -> tuple[Tensor, Tensor]:
    """Means over examples that count of the loss of the true class, and of the mean over classes.

    Args:
        losses: Of each class along `axis`.
        target: Class indices.
        weight: Of each class; examples count as much as their classes weigh.
        ignore_index: Class index of examples that do not count.
        axis: Of the classes.
    """
    counts = target != ignore_index
    known = target.where(counts, 0)
    share = counts.to(losses.dtype) if weight is None else weight.to(losses.dtype)[known] * counts
    total = share.sum()
    exact = losses.gather(axis, known.unsqueeze(axis)).squeeze(axis).where(counts, 0.0).sum() / total
    return exact, losses.mean(axis).where(counts, 0.0).sum() / total


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of (prediction - target)^2, 0-d.

    Raises:
        LossError: If the shapes differ: broadcasting (N, 1) against (N,) is a common and silent mistake.
    """
    if prediction.shape != target.shape:
        raise LossError(
            f"`prediction` and `target` must have the same shape, but got {tuple(prediction.shape)} and"
            f" {tuple(target.shape)}. Reshape one of them, for example with .squeeze(-1)."
        )
    return (prediction - target).square().mean()


def l2(model: nn.Module, *, where: str = "*", frozen: bool = False) -> Tensor:
    """Sum of squares of the effective weights and biases, 0-d; times half a weight decay it is SGD's decay.

    Args:
        model: What the loss was given, or one of its submodules: the penalty is on theta(u), not on theta_0.
        where: Pattern (as in `fnmatch`) that parameter names must match: "*.weight" leaves biases out.
        frozen: Whether parameters count that are not trained (`requires_grad` is False).

    Raises:
        LossError: If no parameter matches.
    """
    return _total([square_sum(parameter) for parameter in _parameters(model, where, frozen)])


def l1(model: nn.Module, *, where: str = "*", frozen: bool = False) -> Tensor:
    """Sum of absolute values of the effective weights and biases, 0-d; arguments as in `l2`."""
    return _total([absolute_sum(parameter) for parameter in _parameters(model, where, frozen)])


def elastic(model: nn.Module, *, l1_ratio: Number, where: str = "*", frozen: bool = False) -> Tensor:
    """Elastic-net penalty, l1_ratio |theta|_1 + (1 - l1_ratio) / 2 |theta|_2^2, 0-d (Zou and Hastie, 2005)."""
    options: dict[str, Any] = {"where": where, "frozen": frozen}
    return l1_ratio * l1(model, **options) + (1 - l1_ratio) * 0.5 * l2(model, **options)


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, Number]) -> Tensor:
    """Sum of named losses, each times the weight of its name, 0-d.

    Args:
        losses: 0-d tensors by name.
        weights: By the same names; may hold more, so a config can be passed as it is.

    Raises:
        LossError: If there is no loss, or one without a weight.
    """
    missing = [name for name in losses if name not in weights]
    if missing or not losses:
        raise LossError(f"Every loss needs a weight of its name; losses {list(losses)}, without weight {missing}.")
    return _total([weights[name] * value for name, value in losses.items()])


def mixup(x: Tensor, target: Tensor, *, strength: Number, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """The batch and its targets, each example mixed with another one (after Zhang et al., 2018, arXiv 1710.09412).

    Deviation: the share of the partner is uniform in [0, strength / 2] instead of Beta distributed, which has no useful
    gradient in its parameter and no vmap rule; 0 leaves the batch as it is, 1 mixes up to half and half.

    Args:
        x: (N, ...), floating point.
        target: (N,) class indices, with `classes` given, or (N, ...) floating point.
        strength: In [0, 1].
        classes: Number of classes; the returned target is then (N, classes) probabilities, as `cross_entropy` takes.

    Raises:
        LossError: If `target` holds class indices and `classes` is missing, or `x` is not of floating point.
    """
    if not target.is_floating_point():
        if classes is None:
            raise LossError("`target` holds class indices, so mixup needs `classes`, the number of classes.")
        target = F.one_hot(target, classes).to(x.dtype)
    shares = mixing_shares(x, strength)
    return mixed(x, shares), mixed(target, shares)


def mixing_shares(x: Tensor, strength: Number) -> Tensor:
    """The share of its partner that `mixup` gives each example, at random in [0, strength / 2], (N,).

    Args:
        x: (N, ...), floating point.
        strength: In [0, 1].

    Raises:
        LossError: If `x` is of whole numbers, such as indices of words, of which there are no mixtures.
    """
    if not x.is_floating_point():
        raise LossError(f"mixup needs floating-point inputs, but got {x.dtype}. Mix embeddings in a loss of your own.")
    return torch.rand_like(x.reshape(len(x), -1)[:, 0]) * (0.5 * strength)


def mixed(values: Tensor, shares: Tensor) -> Tensor:
    """Each example's values (N, ...) mixed with those of the one before, its partner, by shares (N,)."""
    shares = shares.reshape(-1, *(1,) * (values.ndim - 1))
    return values + shares * (values.roll(1, 0) - values)  # batches are shuffled: the neighbour is a random partner


def _parameters(model: nn.Module, where: str, frozen: bool) -> Iterator[Tensor]:
    if not isinstance(model, nn.Module):
        raise LossError(f"A penalty needs the model that the loss was given, but got {type(model).__name__}.")
    matching = {name: p for name, p in model.named_parameters() if fnmatch.fnmatchcase(name, where)}
    if not matching:
        names = [name for name, _ in model.named_parameters()]
        raise LossError(f"`where={where!r}` matches none of the model's parameters {names}.")
    counting = [parameter for parameter in matching.values() if frozen or parameter.requires_grad]
    if not counting:
        raise LossError(
            f"The parameters {list(matching)} are all frozen, so a penalty on what is trained is empty. Pass"
            " frozen=True to count them."
        )
    yield from counting


def _total(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
