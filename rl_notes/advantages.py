"""How much better than expected: the weights of the policy gradient, [N, T]."""

import torch
from jaxtyping import Float
from torch import Tensor

from rl_notes.trajectories import Trajectories


def returns_to_go(
    trajectories: Trajectories, final_values: Float[Tensor, " N"] | None = None
) -> Float[Tensor, "N T"]:
    """What followed each action, from the end backwards (return to go).

    G_t = r_t + gamma_t G_{t+1}

    rewards[:, t] is the reward after a_t, and gamma_t is discounts[:, t]: 0 where the
    episode ended. In a row of L steps the recursion starts from G_L = final_values, the
    value of s_L. It counts only where the row was cut by a time limit, since an ended
    row has gamma_{L-1} = 0. Without `final_values` a cut row is treated as if nothing
    came after. 0 where mask is False.
    """
    rows, steps = trajectories.mask.shape
    if final_values is None:
        final_values = trajectories.rewards.new_zeros(rows)
    if final_values.shape != (rows,):
        raise ValueError(
            f"final_values has shape {tuple(final_values.shape)}, but one value "
            f"per row is needed: [{rows}]."
        )
    # Where there is no step nothing decays: the final value reaches the row's end.
    discounts = torch.where(trajectories.mask, trajectories.discounts, 1)
    following = final_values.to(trajectories.rewards.dtype)  # G_{t+1}
    returns = []
    for t in reversed(range(steps)):
        following = trajectories.rewards[:, t] + discounts[:, t] * following
        returns.append(following)
    stacked = torch.stack(returns[::-1], dim=1)
    return torch.where(trajectories.mask, stacked, 0)


def discount_weights(trajectories: Trajectories) -> Float[Tensor, "N T"]:
    """How much step t weighs in the discounted return: w_t = gamma_0 ... gamma_{t-1}.

    w_0 = 1. The gradient of the expected discounted return needs this weight on every
    step. Almost all implementations leave it out. 0 where mask is False.
    """
    discounts = torch.where(trajectories.mask, trajectories.discounts, 1)
    before = torch.cat([torch.ones_like(discounts[:, :1]), discounts[:, :-1]], dim=1)
    return torch.where(trajectories.mask, before.cumprod(dim=1), 0)
