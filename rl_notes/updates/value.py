"""The critic: a value function is fitted to its targets."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from rl_notes.advantages import explained_variance
from rl_notes.objectives import mean_over_tokens, value_loss
from rl_notes.policies import states
from rl_notes.trajectories import Trajectories
from rl_notes.updates._shared import (
    all_or_nothing,
    clip_gradient,
    require_update,
    shuffled,
)


@dataclass(frozen=True)
class ValueStats:
    """How well a value function was fitted, over the steps that it was fitted on.

    Attributes:
        losses: The (value loss) of each epoch, mean over the steps, each measured just
            before the optimizer's step that it led to.
        explained_variance_before: How much of the targets' variance the values
            explained before, see `advantages.explained_variance`.
        explained_variance_after: And after.
    """

    losses: tuple[float, ...]
    explained_variance_before: float
    explained_variance_after: float


def fit_value(
    value: nn.Module,
    optimizer: torch.optim.Optimizer,
    trajectories: Trajectories,
    targets: Float[Tensor, "N T"],
    *,
    epochs: int,
    minibatches: int,
    generator: torch.Generator,
    max_norm: float | int = math.inf,
) -> ValueStats:
    """Value regression: fit V(s_t) to targets[:, t] by the (value loss).

    In minibatches, by the mean over their steps.
    In every epoch the rows that have a step are shuffled by `generator` and dealt out
    to the minibatches, whose numbers of rows differ by at most one. Each minibatch is
    one step of the optimizer along the mean over its own steps, so that a step counts
    for a little more where the rows that came together are short.

    Targets are, for example, `returns_to_go`, or the advantages of `gae` plus the
    values that they were made with. No gradient flows into them.

    The gradient of each minibatch is scaled to the norm `max_norm` at most (gradient
    clipping).

    Whatever is raised, by a loss or a gradient that is not finite or by the stop
    button, value, optimizer and generator are put back to what they were before the
    call.
    """
    mask = trajectories.mask
    in_batch = mask.any(dim=1)
    require_update(
        value,
        optimizer,
        trajectories,
        {"targets": targets},
        name="value function",
        epochs=epochs,
        minibatches=minibatches,
        rows=int(in_batch.sum()),
        max_norm=max_norm,
    )
    seen = states(trajectories)
    # What is stored beyond the mask may be NaN, and 0 * NaN would be its gradient.
    targets = torch.where(mask, targets.detach(), 0)
    explained_before = _explained(value, seen, targets, mask)
    losses = []
    with all_or_nothing(value, optimizer, generator):
        for _ in range(epochs):
            total = 0.0
            for rows in shuffled(in_batch, generator).tensor_split(minibatches):
                loss = _mean_loss(value, seen[rows], targets[rows], mask[rows])
                optimizer.zero_grad()
                value.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                clip_gradient(value, max_norm)
                optimizer.step()
                total += float(loss.detach()) * int(mask[rows].sum())
            losses.append(total / int(mask.sum()))
        explained_after = _explained(value, seen, targets, mask)
    return ValueStats(tuple(losses), explained_before, explained_after)


def _mean_loss(
    value: nn.Module,
    seen: Shaped[Tensor, "M T ..."],
    targets: Float[Tensor, "M T"],
    mask: Bool[Tensor, "M T"],
) -> Float[Tensor, ""]:
    """The (value loss), mean over the steps; refuse one that is not finite."""
    loss = mean_over_tokens(value_loss(value(seen), targets), mask)
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            "The value loss is not finite, so the value function was left as it was. "
            "Try a smaller learning rate, or smaller targets."
        )
    return loss


@torch.no_grad()
def _explained(
    value: nn.Module,
    seen: Shaped[Tensor, "N T ..."],
    targets: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
) -> float:
    """How much of the targets' variance the values explain as they are now."""
    return explained_variance(value(seen), targets, mask)
