"""Advantage estimators: rewards-to-go, GAE, group-relative, leave-one-out, [N, T].

The weights of the policy gradient: how much better than expected.

What compares whole answers is one number per row, [N]: `per_step` gives it to each of
the row's steps.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rl_notes.trajectories import Trajectories


def returns_to_go(
    trajectories: Trajectories, final_values: Float[Tensor, " N"] | None = None
) -> Float[Tensor, "N T"]:
    """Rewards-to-go: the discounted sum of what followed each action (return to go).

    G_t = r_t + gamma_t G_{t+1}; at the first step it is that of the episode (return).

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
    """Discount factors of the policy gradient: w_t = gamma_0 ... gamma_{t-1}.

    How much step t weighs in the discounted return.

    w_0 = 1. The gradient of the expected discounted return needs this weight on every
    step. Almost all implementations leave it out. 0 where mask is False.
    """
    discounts = torch.where(trajectories.mask, trajectories.discounts, 1)
    before = torch.cat([torch.ones_like(discounts[:, :1]), discounts[:, :-1]], dim=1)
    return torch.where(trajectories.mask, before.cumprod(dim=1), 0)


def td_errors(
    trajectories: Trajectories, values: Float[Tensor, "N T_plus_1"]
) -> Float[Tensor, "N T"]:
    """Temporal-difference (TD) errors, or residuals, of a value function (td).

    How much better one step went than the value function expected.

    delta_t = r_t + gamma_t V(s_{t+1}) - V(s_t)

    values[:, t] is V(s_t), from `state_values`. In a row of L steps V(s_L) counts only
    where the row was cut by a time limit: an ended row has gamma_{L-1} = 0. What
    stands beyond s_L never counts. 0 where mask is False.
    """
    mask, discounts = trajectories.mask, trajectories.discounts
    rows, steps = mask.shape
    if values.shape != (rows, steps + 1):
        raise ValueError(
            f"values has shape {tuple(values.shape)}, but [{rows}, {steps + 1}] is "
            "needed: the value of s_0 ... s_T, one more than there are steps."
        )
    values = values.to(trajectories.rewards.dtype)
    # Where the episode ended nothing follows, whatever V says: 0 * inf would be NaN.
    following = torch.where(discounts > 0, _next_values(values, trajectories), 0)
    errors = trajectories.rewards + discounts * following - values[:, :-1]
    return torch.where(mask, errors, 0)


def gae(
    trajectories: Trajectories,
    values: Float[Tensor, "N T_plus_1"],
    *,
    lambda_: float | int,
) -> Float[Tensor, "N T"]:
    """Generalised advantage estimation of Schulman et al. (2016) (gae).

    A_t = delta_t + gamma_t lambda A_{t+1}

    delta_t is the TD error, see `td_errors`, and A_L = 0. With lambda = 0 the advantage
    is the TD error: little noise, and the full error of V(s_{t+1}). With lambda = 1 it
    is the return to go, bootstrapped by V(s_L) where the row was cut, less V(s_t): all
    the noise of what followed, and no value in between. A_t + V(s_t) is the usual
    target for V(s_t). 0 where mask is False.
    """
    if not 0 <= lambda_ <= 1:
        raise ValueError(f"lambda_ must lie between 0 and 1, but it is {lambda_}.")
    errors = td_errors(trajectories, values)
    # Where there is no step nothing is added and nothing decays.
    decay = torch.where(trajectories.mask, trajectories.discounts * lambda_, 1)
    following = torch.zeros_like(errors[:, 0])  # A_{t+1}
    advantages = []
    for t in reversed(range(errors.shape[1])):
        following = errors[:, t] + decay[:, t] * following
        advantages.append(following)
    stacked = torch.stack(advantages[::-1], dim=1)
    return torch.where(trajectories.mask, stacked, 0)


def normalise(
    advantages: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, "N T"]:
    """Advantage normalisation (whitening): mean 0, standard deviation 1 on the mask.

    (A_t - mean) / std, with Bessel's correction in the standard deviation (the sum of
    squares is divided by the number of steps less one). 0 where mask is False.

    Advantages that are all the same carry no signal and become exactly 0: dividing by
    their standard deviation would blow rounding up into a signal. All the same means
    that the largest exceeds the smallest by at most 1e-6 max(1, max |A|). More than
    that is scaled up, even if it is only the error of a value function in a batch
    without any reward.
    """
    chosen = _on_the_mask("advantages", advantages, mask)
    if _all_the_same(chosen):
        return torch.zeros_like(advantages)
    scaled = (advantages - chosen.mean()) / chosen.std(correction=1)
    return torch.where(mask, scaled, 0)


def group_relative(
    scores: Float[Tensor, " N"],
    groups: Int[Tensor, " N"],
    *,
    scale: bool = True,
    epsilon: float | int = 1e-4,
) -> Float[Tensor, " N"]:
    """GRPO's group-relative advantages: z-scores within a group (group advantage).

    How much better an answer is than the others to its prompt.

    A_i = (r_i - mean(r)) / (std(r) + epsilon)

    Mean and standard deviation are those of the row's group, with Bessel's correction:
    G answers have G - 1 degrees of freedom. The mean is an estimate of V(prompt), made
    from the group itself, and so no value function is needed (Shao et al. 2024,
    https://arxiv.org/abs/2402.03300).

    With scale=False it is r_i - mean(r). As r_i is part of the mean, the gradient is
    then (G - 1)/G of the right one in the mean, see `leave_one_out`. With scale=True
    the direction is another one too: a group counts by its ranking more than by its
    scores.

    A group without spread, see `has_spread`, has exactly no advantage. Scores that
    differ by rounding alone must not be divided by their standard deviation: with an
    epsilon of 1e-8, 0.7 and 0.1 + 0.6 in single precision would become advantages of
    -0.86 and 0.

    Args:
        scores: r_i, one per row.
        groups: Which prompt a row came from, such as `trajectories.groups`. Rows may
            come in any order, and groups may differ in size.
        scale: Whether to divide by the standard deviation.
        epsilon: Added to the standard deviation.
    """
    if not 0 <= epsilon < torch.inf:
        raise ValueError(f"epsilon must be a number from 0 up, but it is {epsilon}.")
    group, sizes = _groups(scores, groups)
    centred = _centred(scores, group, sizes)
    if not scale:
        return centred
    squares = scores.new_zeros(len(sizes)).index_add(0, group, centred**2)
    deviation = (squares / (sizes - 1)).sqrt()[group]
    # Where nothing is to be divided, an epsilon of 0 must not divide it by 0.
    return centred / torch.where(centred != 0, deviation + epsilon, 1)


def leave_one_out(
    scores: Float[Tensor, " N"], groups: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """RLOO's leave-one-out advantages (leave-one-out).

    How much better an answer is than the mean of the others to its prompt.

    A_i = r_i - (1/(G-1)) sum_{j != i} r_j

    The baseline does not know r_i, and so the policy gradient has no bias (Ahmadian et
    al. 2024, https://arxiv.org/abs/2402.14740, RLOO). It is G/(G-1) times the centred
    advantage of `group_relative`. Rows and groups are as there; a group without spread
    has exactly no advantage.
    """
    group, sizes = _groups(scores, groups)
    return _centred(scores, group, sizes) * (sizes / (sizes - 1))[group]


def has_spread(
    scores: Float[Tensor, " N"], groups: Int[Tensor, " N"]
) -> Bool[Tensor, " N"]:
    """Dynamic sampling: which rows are of a group whose scores differ (spread).

    That is, by more than rounding.

    max(r) - min(r) > 1e-6 max(1, max |r|), within the group.

    A group without spread teaches nothing: every answer is as good as the others. The
    dynamic sampling of DAPO (https://arxiv.org/abs/2503.14476) drops such groups and
    asks other questions until the batch is full.
    """
    return _spread(scores, *_groups(scores, groups))


def per_step(
    advantages: Float[Tensor, " N"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, "N T"]:
    """Broadcast one advantage per row to its steps: A[n, t] = A[n], 0 off the mask."""
    if advantages.shape != mask.shape[:1]:
        raise ValueError(
            f"advantages has shape {tuple(advantages.shape)}, but one number per row "
            f"is needed: [{mask.shape[0]}]."
        )
    return torch.where(mask, advantages[:, None], 0)


def explained_variance(
    values: Float[Tensor, "N T"],
    targets: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
) -> float:
    """Explained variance of a value function's targets (explained variance).

    How much of the variance of the targets the values explain.

    1 - Var[target - value] / Var[target], over the steps of the mask: 1 for values that
    differ from the targets by one constant, 0 for values that say nothing, negative
    for values that are worse than a constant. Where all targets are the same (see
    `normalise`) there is nothing to explain, and it is 0.
    """
    wanted = _on_the_mask("targets", targets, mask)
    errors = wanted - _on_the_mask("values", values, mask)
    if _all_the_same(wanted):
        return 0.0
    return 1 - float(errors.var(correction=0) / wanted.var(correction=0))


def _groups(scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each row's group, [N], and how many rows each has, [K]."""
    if scores.dim() != 1 or scores.shape != groups.shape:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)} and groups {tuple(groups.shape)}, "
            "but one number per row is needed in both: [N]."
        )
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores holds a value that is not finite.")
    names, group, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    if bool((sizes < 2).any()):
        raise ValueError(
            f"Group {names[sizes < 2][0].item()} has a single row, which can be "
            "compared with nothing: sample at least two answers to each prompt."
        )
    return group, sizes.to(scores.dtype)


def _centred(scores: Tensor, group: Tensor, sizes: Tensor) -> Tensor:
    """Each score less the mean of its group; exactly 0 in a group without spread."""
    means = scores.new_zeros(len(sizes)).index_add(0, group, scores) / sizes
    return torch.where(_spread(scores, group, sizes), scores - means[group], 0)


def _spread(scores: Tensor, group: Tensor, sizes: Tensor) -> Tensor:
    """Whether the scores of the row's group differ by more than rounding does."""
    start = scores.new_zeros(len(sizes))
    highest, lowest = (
        start.scatter_reduce(0, group, scores, reduce=extreme, include_self=False)
        for extreme in ("amax", "amin")
    )
    size = torch.maximum(highest, -lowest).clamp(min=1)  # of the largest score
    return (highest - lowest > 1e-6 * size)[group]


def _next_values(values: Tensor, trajectories: Trajectories) -> Tensor:
    """V(s_{t+1}), [N, T].

    If mask is False between two runs of steps, what stands there belongs to the
    transition: the state that follows is the next one in which something was chosen.
    """
    steps = values.shape[1]
    t = torch.arange(steps, device=values.device).expand(len(values), -1)
    chosen = torch.nn.functional.pad(trajectories.mask, (0, 1))
    inside = t < trajectories.lengths[:, None]
    stops = torch.where(chosen | ~inside, t, steps)
    following = stops.flip(1).cummin(dim=1).values.flip(1)[:, 1:]
    return values.gather(1, following)


def _on_the_mask(name: str, x: Tensor, mask: Tensor) -> Tensor:
    """Pick the numbers of the steps, of which there must be one; all finite."""
    if x.shape != mask.shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, but one number per step is needed: "
            f"{list(mask.shape)}."
        )
    chosen = x[mask]
    if len(chosen) == 0:
        raise ValueError("The mask selects no step at all.")
    if not bool(torch.isfinite(chosen).all()):
        raise ValueError(f"{name} holds a value that is not finite.")
    return chosen


def _all_the_same(x: Tensor) -> bool:
    """Whether the numbers differ by no more than rounding does."""
    return bool(x.max() - x.min() <= 1e-6 * x.abs().max().clamp(min=1))
