"""REINFORCE: one step up the policy gradient."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rl_notes.objectives import sum_over_constant
from rl_notes.trajectories import Trajectories
from rl_notes.updates._shared import UpdateStats
from rl_notes.updates.grpo import ascend


def reinforce_update(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    trajectories: Trajectories,
    advantages: Float[Tensor, "N T"],
    *,
    micro_batch: int | None = None,
    max_norm: float | int = math.inf,
) -> UpdateStats:
    """REINFORCE: one step along the (policy gradient), Williams (1992).

    grad J = E[ sum_t grad log pi(a_t | s_t) A_t ], estimated by the mean over rows:
    (1/N) sum_n sum_t log pi(a_t | s_t) A_t is maximised.

    `advantages` may be any weight: the return to go, the return to go less a number
    that does not depend on a_t (baseline), either of them times `discount_weights`.
    They are constants: no gradient flows into them. The trajectories must come from the
    policy as it is now, checked as by `trpo_update`.

    Whatever is raised, policy and optimizer are put back to what they were.

    Args:
        policy: The very policy that sampled the trajectories.
        optimizer: Of the policy's parameters.
        trajectories: What the policy did.
        advantages: One finite number per step.
        micro_batch: How many rows to run the policy on at a time, those of like length
            together. It bounds the memory and changes nothing but rounding.
        max_norm: The gradient is scaled to this norm at most (gradient clipping).
    """

    def objective(new: Tensor, old: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
        """The log-probability times its weight. The old policy plays no part."""
        return new * weights

    def mean_over_rows(x: Tensor, mask: Tensor) -> Tensor:
        """(1/N) sum_n sum_t x[n, t]."""
        return sum_over_constant(x, mask, constant=len(mask))

    every = torch.ones_like(trajectories.mask[:, 0])
    found = ascend(
        policy,
        optimizer,
        trajectories,
        advantages,
        objective=objective,
        aggregate=mean_over_rows,
        in_batch=every,
        with_gradient=trajectories.mask.any(dim=1),
        epochs=1,
        minibatches=1,
        generator=torch.Generator(),
        micro_batch=micro_batch,
        max_norm=max_norm,
    )
    names = ("kl_mean", "kl_max", "entropy", "gradient_norm")
    return UpdateStats(**{name: found[name] for name in names})
