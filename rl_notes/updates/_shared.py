"""What the updates share: the record of what one did, what they refuse, all or nothing.

The loop itself is `ascend`, in `rl_notes.updates.grpo`.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rl_notes.parallel import (
    from_first,
    require_bare,
    require_same,
    together,
)
from rl_notes.policies import rounding_of_logprobs
from rl_notes.trajectories import Trajectories


@dataclass(frozen=True)
class UpdateStats:
    """What one update did to the policy, measured on the states it was made from.

    Attributes:
        kl_mean: KL(old || new), mean over the steps, in nats.
        kl_max: KL(old || new) at the state that moved most, in nats.
        entropy: Entropy of the new policy, mean over the steps, in nats.
        gradient_norm: Euclidean norm of the gradient, before `max_norm` clips it.
    """

    kl_mean: float
    kl_max: float
    entropy: float
    gradient_norm: float


def require_per_step(
    advantages: Tensor, trajectories: Trajectories, *, name: str = "advantages"
) -> None:
    """Raise unless there is one finite number per step, [N, T], and no more."""
    expected = tuple(trajectories.mask.shape)
    if tuple(advantages.shape) != expected:
        raise ValueError(
            f"{name} has shape {tuple(advantages.shape)}, but one number "
            f"per step is needed: {list(expected)}. One number per row would "
            "silently broadcast along the wrong axis when N = T."
        )
    if not bool(torch.isfinite(advantages[trajectories.mask]).all()):
        raise ValueError(f"{name} holds a value that is not finite.")


@together()
def require_update(  # noqa: PLR0913 (most are numbers)
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    trajectories: Trajectories,
    per_step: Mapping[str, Tensor | None],
    *,
    name: str = "policy",
    epochs: int,
    minibatches: int,
    rows: int,
    micro_batch: int | None = None,
    max_norm: float | int = math.inf,
    max_kl: float | int = math.inf,
) -> None:
    """Raise unless steps of the optimizer can change the module, and each has a row."""
    for each, numbers in per_step.items():
        if numbers is not None:
            require_per_step(numbers, trajectories, name=each)
    if not bool(trajectories.mask.any()):
        raise ValueError("The mask selects no step at all, so there is no update.")
    for number, of in ((epochs, "epochs"), (micro_batch, "micro_batch")):
        if number is not None and number < 1:
            raise ValueError(f"{of} must be at least 1, but it is {number}.")
    if not 1 <= minibatches <= rows:
        raise ValueError(
            f"minibatches={minibatches}, but it must lie between 1 and the number of "
            f"rows that are dealt out to them: {rows}."
        )
    for limit, of in ((max_norm, "max_norm"), (max_kl, "max_kl")):
        if not limit > 0:
            raise ValueError(
                f"{of} must be positive, or inf for no limit, but it is {limit}."
            )
    require_optimizer(module, optimizer, name=name)


def require_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, *, name: str = "policy"
) -> None:
    """Raise unless the optimizer moves a weight of this very module."""
    require_bare(module)
    weights = {id(w) for w in module.parameters() if w.requires_grad}
    held = {id(w) for group in optimizer.param_groups for w in group["params"]}
    if not weights:
        raise ValueError(
            f"The {name} has no weight that requires a gradient, so nothing can be "
            "trained. Set `requires_grad_(True)` on what is to learn."
        )
    if not weights & held:
        raise ValueError(
            f"The optimizer holds none of the {name}'s weights, so no step of it would "
            f"change the {name}. Make it anew from this very {name}'s parameters(): a "
            "copy, or one that was loaded again, has weights of its own."
        )


def require_its_own(
    policy: nn.Module,
    logprobs: Float[Tensor, "M T"],
    trajectories: Trajectories,
    rows: Int[Tensor, " M"] | None = None,
) -> None:
    """Raise unless the policy, which gives these log-probabilities, has sampled.

    They are given for all rows, or for those that are named.
    """
    rows = torch.arange(len(logprobs), device=logprobs.device) if rows is None else rows
    mask = trajectories.mask[rows]
    difference = (logprobs.detach() - trajectories.logprobs[rows]).abs()
    difference = torch.where(mask, difference, 0)
    found = float(difference.sum() / mask.sum())
    if not math.isfinite(found):
        broken = int((~torch.isfinite(difference)).any(dim=1).nonzero()[0, 0])
        raise ValueError(
            "The policy gives stored actions log-probabilities that are not finite, "
            f"first in row {int(rows[broken])}: its weights or its logits are not "
            "finite, or it excludes an action that was taken."
        )
    allowed = rounding_of_logprobs(policy, logprobs.dtype)
    if not found <= allowed:
        per_row = difference.amax(dim=1)
        most = int(per_row.argmax())
        raise ValueError(
            "The policy gives the stored actions other log-probabilities than those "
            f"stored with them: they differ by {found:.3g} in the mean, where "
            f"{allowed:.3g} is allowed for rounding, and most in row "
            f"{int(rows[most])}, by {float(per_row[most]):.3g}. In the order of how "
            "often it is the cause: the policy has been updated since it sampled "
            "(sample anew after each update); its temperature is another one; dropout "
            "is on (`policy.eval()`); it is another policy, or other weights; the "
            "sampler cut the distribution (top-k, top-p) or ran in another precision. "
            "If another policy is meant to have sampled, say so: train on "
            "`rescored(policy, trajectories)`, with importance weights."
        )


@contextmanager
def all_or_nothing(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Put all three back if anything is raised inside, the stop button included.

    Or if several processes have come to different weights: their optimizers differed.

    Given are the trained weights as they were. Of the module only these and its
    buffers are copied: nothing else can change.
    """
    with together():
        trained = {n: w for n, w in module.named_parameters() if w.requires_grad}
        weights = {name: weight.detach().clone() for name, weight in trained.items()}
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        state = deepcopy(optimizer.state_dict())
        drawn = None if generator is None else generator.get_state()
    try:
        yield weights
        require_same(**{"weights after the update": module})
    except BaseException:
        with torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(weights[name])
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
        optimizer.load_state_dict(state)
        if generator is not None and drawn is not None:
            generator.set_state(drawn)
        raise


def shuffled(
    in_batch: Bool[Tensor, " N"], generator: torch.Generator
) -> Int[Tensor, " M"]:
    """The indices of these rows in random order, on all processes the same."""
    with together():
        rows = in_batch.nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=generator, device=generator.device)
    return rows[from_first(order).to(rows.device)]


def clip_gradient(module: nn.Module, max_norm: float | int) -> float:
    """Scale all gradients together to this norm at most; return what the norm was."""
    return finite(float(nn.utils.clip_grad_norm_(module.parameters(), max_norm)))


def finite(norm: float) -> float:
    """The norm of a gradient; refuse one to step along NaN."""
    if not math.isfinite(norm):
        raise ValueError(
            "The objective or its gradient is not finite, so nothing was changed. Look "
            "for infinite logits, values or advantages, and try a smaller learning "
            "rate, or fewer epochs."
        )
    return norm
