"""REINFORCE: one step up the policy gradient."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rl_notes.objectives import sum_over_constant
from rl_notes.policies import chosen_logprobs, states
from rl_notes.trajectories import Trajectories
from rl_notes.updates._shared import (
    UpdateStats,
    gradient_norm_of,
    movement,
    require_per_step,
    run_once,
)


def reinforce_update(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    trajectories: Trajectories,
    advantages: Float[Tensor, "N T"],
) -> UpdateStats:
    """One step along the (policy gradient) of Williams (1992), REINFORCE.

    grad J = E[ sum_t grad log pi(a_t | s_t) A_t ], estimated by the mean over rows:
    (1/N) sum_n sum_t log pi(a_t | s_t) A_t is maximised.

    `advantages` may be any weight: the return to go, the return to go less a baseline
    that does not depend on a_t, either of them times `discount_weights`. The
    trajectories must come from the policy as it is now.
    """
    require_per_step(advantages, trajectories)
    seen = states(trajectories)
    with torch.no_grad():
        old_logits = run_once(policy, seen)
    logprobs = chosen_logprobs(run_once(policy, seen), trajectories)
    objective = sum_over_constant(
        logprobs * advantages, trajectories.mask, constant=len(advantages)
    )
    optimizer.zero_grad()
    (-objective).backward()  # type: ignore[no-untyped-call]
    gradient_norm = gradient_norm_of(policy)
    optimizer.step()
    with torch.no_grad():
        new_logits = run_once(policy, seen)
    return UpdateStats(
        **movement(old_logits, new_logits, trajectories.mask),
        gradient_norm=gradient_norm,
    )
