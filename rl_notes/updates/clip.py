"""PPO: epochs of minibatches up to the clip."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from rl_notes.divergences import kl_exact
from rl_notes.objectives import (
    clipped_surrogate,
    importance_ratio,
    mean_over_tokens,
    sum_over_constant,
    surrogate,
)
from rl_notes.policies import action_logprobs, chosen_logprobs, states
from rl_notes.trajectories import Trajectories
from rl_notes.updates._shared import (
    UpdateStats,
    all_or_nothing,
    gradient_norm_of,
    movement,
    require_epochs,
    require_its_own,
    require_per_step,
    shuffled,
)


@dataclass(frozen=True)
class ClipStats(UpdateStats):
    """What one update by PPO did, measured after its last step, on all steps.

    The gradient alone is that of the minibatches: its norm is the mean over them.

    Attributes:
        clip_fraction: Share of the steps at which the clip holds: the (clip) is less
            than the (surrogate), and has no gradient.
        ratio_min: Smallest (ratio) of the new policy to the one that sampled.
        ratio_max: Largest. Neither is bounded by the clip.
        epochs: How many were done.
    """

    clip_fraction: float
    ratio_min: float
    ratio_max: float
    epochs: int


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
) -> ClipStats:
    """One update of PPO, Schulman et al. (2017): several epochs up the (clip).

    maximise the mean over steps of min(rho_t A_t, clip(rho_t, ...) A_t)

    In every epoch the rows that have a step are shuffled by `generator` and dealt out
    to the minibatches, whose numbers of rows differ by at most one. Each minibatch is
    one step of the optimizer along the mean over its own steps. The first is a step of
    REINFORCE, up to the scale: mean over steps, where `reinforce_update` sums over a
    row.

    The ratio is to the policy that sampled, by the log-probabilities stored with the
    trajectories: in all epochs the same. The advantages are taken as they are, and
    nothing is normalised. There is no value function here: `fit_value` fits it.

    If an objective, a gradient or the policy that results is not finite, policy and
    optimizer are put back to what they were before the call, and ValueError is raised.

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
        micro_batch: How many rows to run the policy on at a time, to save memory. It
            changes nothing but rounding: the parts of a minibatch add up. None runs a
            minibatch at once.
    """
    require_per_step(advantages, trajectories)
    mask = trajectories.mask
    rows = mask.any(dim=1).nonzero()[:, 0]
    require_epochs(epochs, minibatches, len(rows))
    _require_brake(max_kl, micro_batch)
    size, seen = micro_batch or len(mask), states(trajectories)
    advantages = advantages.detach()
    old_logits = _logits(policy, seen, size)
    require_its_own(old_logits, trajectories)
    clipped = partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high)

    def objective(part: Tensor) -> Tensor:
        """The (clip) of these rows."""
        batch = trajectories.select(part)
        ratio = importance_ratio(action_logprobs(policy, batch), batch.logprobs)
        return clipped(ratio, advantages[part])

    norms: list[float] = []
    done, kl = 0, 0.0
    with all_or_nothing(policy, optimizer):
        while done < epochs and kl <= max_kl:
            for part in shuffled(rows, generator).tensor_split(minibatches):
                parts = torch.split(part, size)
                norms.append(_policy_step(policy, optimizer, objective, parts, mask))
            done += 1
            if done == epochs or max_kl < math.inf:
                new_logits = _logits(policy, seen, size)
                kl = _finite_kl(old_logits, new_logits, mask)
    new_ratio = importance_ratio(
        chosen_logprobs(new_logits, trajectories), trajectories.logprobs
    )
    held = clipped(new_ratio, advantages) < surrogate(new_ratio, advantages)
    return ClipStats(
        **movement(old_logits, new_logits, mask),
        gradient_norm=sum(norms) / len(norms),
        clip_fraction=float(mean_over_tokens(held.to(new_ratio.dtype), mask)),
        ratio_min=float(new_ratio[mask].min()),
        ratio_max=float(new_ratio[mask].max()),
        epochs=done,
    )


def _policy_step(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Callable[[Tensor], Tensor],
    parts: Sequence[Tensor],
    mask: Bool[Tensor, "N T"],
) -> float:
    """One step up the mean of the objective over the steps of all parts together.

    Returns:
        The norm of the gradient.
    """
    steps = sum(int(mask[part].sum()) for part in parts)
    optimizer.zero_grad()
    for part in parts:
        mean = sum_over_constant(objective(part), mask[part], constant=steps)
        if not bool(torch.isfinite(mean)):
            raise ValueError(
                "The objective is not finite, so the policy was left as it was. Try a "
                "smaller learning rate, or fewer epochs."
            )
        (-mean).backward()  # type: ignore[no-untyped-call]
    norm = gradient_norm_of(policy)
    optimizer.step()
    return norm


@torch.no_grad()
def _logits(
    policy: nn.Module, seen: Shaped[Tensor, "N T ..."], size: int
) -> Float[Tensor, "N T A"]:
    """The policy's logits, run on `size` rows at a time."""
    return torch.cat([policy(part) for part in torch.split(seen, size)])


def _finite_kl(
    old_logits: Float[Tensor, "N T A"],
    new_logits: Float[Tensor, "N T A"],
    mask: Bool[Tensor, "N T"],
) -> float:
    """KL(old || new), mean over the steps; refuse a policy that has fallen apart."""
    kl = float(mean_over_tokens(kl_exact(old_logits, new_logits), mask))
    if not math.isfinite(kl):
        raise ValueError(
            f"After the epoch KL(old || new) is {kl}, so the policy was left as it "
            "was. Try a smaller learning rate."
        )
    return kl


def _require_brake(max_kl: float | int, micro_batch: int | None) -> None:
    """Refuse a brake that is always on and parts without a row."""
    if not max_kl > 0:
        raise ValueError(
            f"max_kl must be positive, or inf for no brake, but it is {max_kl}."
        )
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"micro_batch must be at least 1, but it is {micro_batch}.")
