"""The critic: a value function is fitted to its targets."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from rl_notes.advantages import explained_variance
from rl_notes.objectives import mean_over_tokens, value_loss
from rl_notes.parallel import (
    add_gradients,
    added,
    agreed,
    joined,
    require_same,
    share,
    together,
)
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
    require_same(
        settings=[epochs, minibatches, max_norm],
        batch=vars(trajectories),
        weights=value,
    )
    seen, lengths = states(trajectories), trajectories.lengths
    # What is stored beyond the mask may be NaN, and 0 * NaN would be its gradient.
    targets = torch.where(mask, agreed(targets.detach(), mask, "targets"), 0)
    every = in_batch.nonzero()[:, 0]
    mine = share(every, lengths[every])
    explained_before = _explained(value, seen, targets, mask, mine)
    losses = []
    with all_or_nothing(value, optimizer, generator):
        for _ in range(epochs):
            total = torch.zeros((), dtype=torch.double, device=mask.device)
            for rows in shuffled(in_batch, generator).tensor_split(minibatches):
                optimizer.zero_grad()
                value.zero_grad()
                with together():
                    part, steps = share(rows, lengths[rows]), int(mask[rows].sum())
                    if len(part):  # else all rows of this minibatch are elsewhere
                        loss = _mean_loss(value, seen[part], targets[part], mask[part])
                        loss = loss * (int(mask[part].sum()) / steps)
                        loss.backward()  # type: ignore[no-untyped-call]
                        total += loss.detach() * steps
                add_gradients(value)
                with together():
                    clip_gradient(value, max_norm)
                    optimizer.step()
            losses.append(float(added(total)) / int(mask.sum()))
        explained_after = _explained(value, seen, targets, mask, mine)
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
    mine: Int[Tensor, " M"],
) -> float:
    """How much of the targets' variance the values explain as they are now.

    Each process looks at rows of its own, and there may be none of them.
    """
    with together():
        values = value(seen[mine]) if len(mine) else targets[mine]
    rows = (joined(x) for x in (values, targets[mine], mask[mine]))
    return explained_variance(*rows)
