"""GRPO: the clip without a value function, and the family that came from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rl_notes.divergences import k3
from rl_notes.objectives import mean_over_sequences
from rl_notes.trajectories import Trajectories
from rl_notes.updates._climb import Aggregation, ClipStats, Schedule, climb, report
from rl_notes.updates._shared import require_epochs, require_per_step

# Of (new_logprobs, old_logprobs, advantages, mask), all [M, T]: one number per step.
Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GroupStats(ClipStats):
    """What one update by GRPO did, measured on the rows that the policy was run on.

    If no row had anything to climb, it is measured on all that have a step.

    Attributes:
        rows: How many rows had anything to climb.
    """

    rows: int


def grpo_update(  # noqa: PLR0913 (most are numbers, named at the call)
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    trajectories: Trajectories,
    advantages: Float[Tensor, "N T"],
    *,
    objective: Objective,
    epochs: int,
    minibatches: int,
    generator: torch.Generator,
    aggregate: Aggregation = mean_over_sequences,
    reference_logprobs: Float[Tensor, "N T"] | None = None,
    beta: float | int = 0.0,
    micro_batch: int | None = None,
) -> GroupStats:
    """One update of GRPO, Shao et al. (2024, https://arxiv.org/abs/2402.03300) (grpo).

    maximise (1/N) sum_n (1/L_n) sum_t [ clip of rho_t A_t - beta k3_t ]

    It is `ppo_update` with four differences, all at the call. The advantages come from
    groups of answers, `per_step(group_relative(scores, groups), mask)`, and no value
    function is fitted. The aggregation is the mean over rows of the mean over their
    steps. The (k3) of the policy to a reference is part of the objective. And what is
    climbed at each step is an argument, so that the family is at hand: `token_clip`
    here, `sequence_clip` in GSPO, `cispo`, or three lines of your own.

    In every epoch all rows are shuffled by `generator` and dealt out to the
    minibatches. A row with nothing to climb, where every advantage is 0 and beta is
    too, or without a step, is never run through the policy. It costs nothing and
    changes nothing but the aggregate: there it stays as zeros, so that `aggregate`
    divides by the same as ever. And of rows that are alike, as the answers of a group
    often are, one is run for all of them.

    If an objective, a gradient or the policy that results is not finite, policy and
    optimizer are put back to what they were before the call, and ValueError is raised.

    Args:
        policy: The very policy that sampled the trajectories, checked as by
            `trpo_update`. Dropout or batch normalisation must be in eval mode.
        optimizer: Of the policy's parameters.
        trajectories: What the policy did.
        advantages: One finite number per step.
        objective: One number per step, from the log-probabilities of the policy as it
            is, those stored by the policy that sampled, the advantages and the mask,
            such as `partial(token_clip, clip_low=0.2, clip_high=0.2)`.
        epochs: How often each row is used.
        minibatches: Into how many parts an epoch deals the rows out.
        generator: Shuffles the rows.
        aggregate: Makes one number of the objective and the mask of a minibatch. It
            must be linear in the first.
        reference_logprobs: Log-probabilities of the same actions under the reference,
            such as `action_logprobs(reference, trajectories)`. Needed if beta is not 0.
        beta: What one nat of (k3) costs.
        micro_batch: How many rows to run the policy on at a time, those of like length
            together. It saves memory, and where lengths differ the time that padding
            takes. It changes nothing but rounding: the parts of a minibatch add up to
            its aggregate. None runs a minibatch at once.
    """
    require_per_step(advantages, trajectories)
    reference = _reference(trajectories, reference_logprobs, beta)
    old, mask, advantages = (
        trajectories.logprobs,
        trajectories.mask,
        advantages.detach(),
    )

    def surrogate(new: Tensor, rows: Tensor) -> Tensor:
        """The objective of these rows, without the reference."""
        return objective(new, old[rows], advantages[rows], mask[rows])

    def penalised(new: Tensor, rows: Tensor) -> Tensor:
        return surrogate(new, rows) - beta * k3(new, reference[rows])

    live = _live(advantages, mask, beta)
    require_epochs(epochs, minibatches, len(mask), rows_are="rows")
    climbed = climb(
        policy,
        optimizer,
        trajectories,
        penalised if beta else surrogate,
        aggregate=aggregate,
        dealt=torch.ones_like(live),
        live=live,
        schedule=Schedule(epochs, minibatches, generator, micro_batch),
    )
    return GroupStats(**report(climbed, surrogate, advantages), rows=int(live.sum()))


def _live(
    advantages: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], beta: float | int
) -> Bool[Tensor, " N"]:
    """The rows with something to climb; refuse a batch without a single step."""
    if not bool(mask.any()):
        raise ValueError("The mask selects no step at all, so there is no update.")
    return (mask & ((advantages != 0) | (beta > 0))).any(dim=1)


def _reference(
    trajectories: Trajectories, logprobs: Tensor | None, beta: float | int
) -> Tensor:
    """The reference's log-probabilities; refuse a price without a reference."""
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be a number from 0 up, but it is {beta}.")
    if logprobs is None and beta > 0:
        raise ValueError(
            f"beta is {beta}, but there are no reference_logprobs. Pass "
            "`action_logprobs(reference, trajectories)`, without a gradient."
        )
    if logprobs is None:
        return trajectories.logprobs
    require_per_step(logprobs, trajectories, name="reference_logprobs")
    return logprobs.detach()
