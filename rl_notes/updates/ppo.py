"""PPO: epochs of minibatches up to the clip."""

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.trajectories import Trajectories
from rl_notes.updates.grpo import ClipStats, ascend


def ppo_update(  # noqa: PLR0913 (most are numbers, named at the call)
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    trajectories: Trajectories,
    advantages: Float[Tensor, "N T"],
    *,
    clip_low: float | int,
    clip_high: float | int,
    epochs: int,
    minibatches: int,
    generator: torch.Generator,
    max_kl: float | int = math.inf,
    micro_batch: int | None = None,
    max_norm: float | int = math.inf,
) -> ClipStats:
    """PPO, proximal policy optimization: one update, several epochs up the (clip).

    Schulman et al. (2017, https://arxiv.org/abs/1707.06347).

    maximise the mean over steps of min(rho_t A_t, clip(rho_t, ...) A_t)

    In every epoch the rows that have a step are shuffled by `generator` and dealt out
    to the minibatches, whose numbers of rows differ by at most one. Each minibatch is
    one step of the optimizer along the mean over its own steps. The first is a step of
    REINFORCE, up to the scale: mean over steps, where `reinforce_update` sums over a
    row.

    The ratio is to the policy that sampled, by the log-probabilities stored with the
    trajectories: in all epochs the same. The advantages are taken as they are, and
    nothing is normalised. There is no value function here: `fit_value` fits it.

    Whatever is raised, by an objective or a gradient that is not finite or by the stop
    button, policy, optimizer and generator are put back to what they were before the
    call, and the same call can be made again.

    Args:
        policy: The very policy that sampled the trajectories, checked as by
            `trpo_update`. Dropout or batch normalisation must be in eval mode.
        optimizer: Of the policy's parameters.
        trajectories: What the policy did.
        advantages: One finite number per step.
        clip_low: How far below 1 the ratio of a bad action is driven.
        clip_high: How far above 1 the ratio of a good action is driven.
        epochs: How often each row is used, at most.
        minibatches: Into how many parts an epoch deals the rows out.
        generator: Shuffles the rows.
        max_kl: No other epoch is begun once KL(old || new), mean over all steps of the
            batch, is above this. A brake and not a bound: the epoch that went too far
            is kept. To look costs one forward pass over the batch after each epoch.
        micro_batch: How many rows to run the policy on at a time, those of like length
            together. It bounds the memory, and where lengths differ saves the time that
            padding takes. It changes nothing but rounding: the parts of a minibatch add
            up. None runs a minibatch at once.
        max_norm: The gradient of a minibatch is scaled to this norm at most (gradient
            clipping).
    """
    with_a_step = trajectories.mask.any(dim=1)
    found = ascend(
        policy,
        optimizer,
        trajectories,
        advantages,
        objective=partial(token_clip, clip_low=clip_low, clip_high=clip_high),
        aggregate=mean_over_tokens,
        in_batch=with_a_step,
        with_gradient=with_a_step,
        epochs=epochs,
        minibatches=minibatches,
        generator=generator,
        micro_batch=micro_batch,
        max_norm=max_norm,
        max_kl=max_kl,
    )
    del found["rows"]
    return ClipStats(**found)
