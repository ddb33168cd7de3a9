"""Objectives and losses, one number per step, and how steps become one scalar.

An objective is one number per step, [N, T]; what compares answers is one per pair, [N].
What is called a loss is minimised. An aggregation is linear in its first argument.
What stands where the mask is False never enters, not even as NaN.

`token_clip`, `sequence_clip`, `cispo` and `dppo` are functions of the same four
arguments, the log-probabilities of the policy as it is and as it sampled, the
advantages and the mask: any such function can be the objective of `grpo_update`.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def importance_ratio(
    new_logprobs: Float[Tensor, "N T"], old_logprobs: Float[Tensor, "N T"]
) -> Float[Tensor, "N T"]:
    """Importance ratio, or probability ratio, of the new policy to the old (ratio).

    How much likelier the policy has made each action.

    rho_t = pi_new(a_t | s_t) / pi_old(a_t | s_t), where the old policy is the one that
    sampled a_t: `trajectories.logprobs`. It is 1 while the policy has not moved, and
    its gradient there is that of log pi_new(a_t | s_t).
    """
    _require_same_shape("old_logprobs", old_logprobs, new_logprobs)
    return (new_logprobs - old_logprobs).exp()


def sequence_ratio(
    new_logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    length_normalised: bool = True,
) -> Float[Tensor, "N T"]:
    """Sequence-level importance ratio of GSPO (sequence ratio).

    How much likelier the policy has made the whole answer.

    s_n = (pi_new(o_n) / pi_old(o_n))^(1 / L_n) = exp((1/L_n) sum_t log rho_t)

    The same number at each step of the row; 1 where the mask is False. It is the
    geometric mean of the row's (ratio)s, and its gradient with respect to each
    log pi_new(a_t | s_t) is s_n / L_n (GSPO, Zheng et al. 2025,
    https://arxiv.org/abs/2507.18071). Being a mean it lies between the smallest and the
    largest ratio of the row's steps, and is clipped at distances such as 3e-4.

    Without `length_normalised` it is the ratio of the answers' probabilities, the
    product of the (ratio)s, with gradient s_n at each step. As a number it is the
    weight by which another policy's answers speak for this one without bias
    (importance sampling): E_pi[f(o)] = E_mu[pi(o) / mu(o) f(o)].
    """
    _require_same_shape("old_logprobs", old_logprobs, new_logprobs)
    _require_same_shape("mask", mask, new_logprobs)
    log_ratio = torch.where(mask, new_logprobs - old_logprobs, 0).sum(dim=1)
    if length_normalised:
        log_ratio = log_ratio / mask.sum(dim=1).clamp(min=1)
    return torch.where(mask, log_ratio.exp()[:, None], 1)


def truncated_weights(
    ratio: Float[Tensor, "N T"], *, cap: float | int
) -> Float[Tensor, "N T"]:
    """Truncated importance sampling, TIS, as weights (truncated weight).

    What an answer counts that another policy sampled, and no more than the cap.

    min(rho_t, cap) for every step t of every row, or min(s_n, cap) for a whole answer,
    whichever ratio is given:

        importance_ratio(own, sampler)  # of each token
        sequence_ratio(own, sampler, mask, length_normalised=False)  # of the answer

    own is log pi(a_t | s_t) under the policy that learns, sampler the same under the
    one that sampled. No gradient flows through a weight. It multiplies the advantages,
    in trajectories that are `rescored`. The cap bounds the variance, and what it cuts
    off is a bias: each answer that has become more than `cap` times likelier counts too
    little (Ionides 2008; Yao et al. 2025, https://fengyao.notion.site/off-policy-rl).
    `cap` = inf is importance sampling, untruncated.
    """
    if not cap > 0:
        raise ValueError(
            f"cap must be positive, but it is {cap}. It is the largest weight, such as "
            "2, and not a distance from 1."
        )
    return ratio.detach().clamp(max=cap)


def masked_weights(
    ratio: Float[Tensor, "N T"], *, low: float | int = 0.0, high: float | int
) -> Float[Tensor, "N T"]:
    """Masked importance sampling, MIS, as weights (masked weight). IcePop for tokens.

    What an answer counts that another policy sampled, and nothing outside a range.

    rho_t if low <= rho_t <= high, else 0, for every step t of every row, or the same of
    the whole answer's ratio, whichever is given: see `truncated_weights`. No gradient
    flows through a weight. Where a truncated weight still counts, a masked one is
    silent: beyond `high` it drops just what has become much likelier (Ling team 2025,
    https://arxiv.org/abs/2510.18855, tokens; Liu et al. 2025,
    https://yingru.notion.site, whole answers).
    """
    if not 0 <= low < high:
        raise ValueError(
            "low and high must be ratios with 0 <= low < high, such as 0.5 and 2, but "
            f"they are {low} and {high}."
        )
    ratio = ratio.detach()
    return torch.where((ratio >= low) & (ratio <= high), ratio, 0)


def surrogate(
    ratio: Float[Tensor, "N T"], advantages: Float[Tensor, "N T"]
) -> Float[Tensor, "N T"]:
    """Surrogate objective, per step: rho_t A_t (surrogate).

    What the old policy's steps promise of the new one.
    To be maximised. It judges the new choices, but in the states that the old policy
    visited: true to first order in the change, and of no use far away (Schulman et al.
    2015, https://arxiv.org/abs/1502.05477, equation 14).
    """
    _require_same_shape("advantages", advantages, ratio)
    return ratio * advantages


def clipped_surrogate(
    ratio: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N T"],
    *,
    clip_low: float | int,
    clip_high: float | int,
) -> Float[Tensor, "N T"]:
    """PPO's clipped surrogate objective, per step (clip). To be maximised.

    The surrogate, without reward for going too far.

    min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t)

    The smaller of the two is chosen after the multiplication: with A_t > 0 it is flat
    above 1 + clip_high, with A_t < 0 below 1 - clip_low, and nowhere else. Where it is
    flat the step has no gradient: it is not driven further, and not driven back either.
    A ratio on the wrong side, of a good action that has become rare or of a bad one
    that has become frequent, is never clipped. At rho_t = 1 the gradient is that of the
    (surrogate) (Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7).

    clip_low = 1 clips nothing from below, and clip_high = inf nothing from above.
    """
    _require_same_shape("advantages", advantages, ratio)
    if not (0 < clip_low <= 1 and clip_high > 0):
        raise ValueError(
            "clip_low must lie above 0 and be at most 1, and clip_high must be "
            f"positive, but they are {clip_low} and {clip_high}. Both are distances "
            "from a ratio of 1, such as 0.2."
        )
    near = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio * advantages, near * advantages)


def token_clip(
    new_logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    clip_low: float | int,
    clip_high: float | int,
) -> Float[Tensor, "N T"]:
    """Clipped objective of PPO, GRPO, DAPO: the (clip) of each step's own (ratio)."""
    ratio = importance_ratio(new_logprobs, old_logprobs)
    return clipped_surrogate(ratio, advantages, clip_low=clip_low, clip_high=clip_high)


def sequence_clip(
    new_logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    clip_low: float | int,
    clip_high: float | int,
    length_normalised: bool = True,
) -> Float[Tensor, "N T"]:
    """Clipped objective of GSPO: the (clip) of the whole row's (sequence ratio).

    With `mean_over_sequences` it is the mean over rows of min(s_n A_n, clip(s_n) A_n),
    each row clipped or driven as a whole. Without `length_normalised` it is the
    objective of RLOO in its off-policy form.
    """
    ratio = sequence_ratio(
        new_logprobs, old_logprobs, mask, length_normalised=length_normalised
    )
    return clipped_surrogate(ratio, advantages, clip_low=clip_low, clip_high=clip_high)


def cispo(
    new_logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    cap: float | int,
) -> Float[Tensor, "N T"]:
    """CISPO's objective, per step (CISPO). To be maximised.

    The policy gradient, weighed by a capped (ratio).

    [min(rho_t, cap)] A_t log pi_new(a_t | s_t), where the bracket is a number

    No step is ever held: where the (clip) has no gradient, this one has a bounded
    weight (MiniMax 2025, https://arxiv.org/abs/2506.13585). Its value means nothing,
    only its gradient does.

    The trap: `cap` is the largest weight itself, and not a distance from 1. In the
    paper it is 1 + epsilon_high. TRL calls the cap epsilon_high, and that is 0.2 where
    nothing is set: each step then weighs at most 0.2, which is a learning rate five
    times smaller and no importance weight at all.
    """
    if not cap > 0:
        raise ValueError(
            f"cap must be positive, but it is {cap}. It is the largest weight, such as "
            "5, and not a distance from 1."
        )
    _require_same_shape("advantages", advantages, new_logprobs)
    weight = importance_ratio(new_logprobs, old_logprobs).detach().clamp(max=cap)
    return weight * advantages * new_logprobs


def dppo_mask(
    new_logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N T"],
    *,
    delta_low: float | int,
    delta_high: float | int,
) -> Bool[Tensor, "N T"]:
    """Trust region mask of DPPO: where a step keeps its gradient (dppo).

    False where A_t > 0 and pi(a_t | s_t) - mu(a_t | s_t) > delta_high, or A_t < 0 and
    pi(a_t | s_t) - mu(a_t | s_t) < -delta_low: the action has been driven far enough,
    counted in probability and not in factors. pi is the policy as it is and mu the one
    that sampled, by their log-probabilities.

    A single action's change never exceeds the total variation of its state,
    1/2 sum_a |pi(a | s_t) - mu(a | s_t)|, so a step is held only where that is above
    delta too: no false alarm. It may be above and no single action tell (Qi et al.
    2026, https://arxiv.org/abs/2602.04879, the binary total variation).
    """
    _require_same_shape("old_logprobs", old_logprobs, new_logprobs)
    _require_same_shape("advantages", advantages, new_logprobs)
    if not (delta_low > 0 and delta_high > 0):
        raise ValueError(
            "delta_low and delta_high must be positive, but they are "
            f"{delta_low} and {delta_high}. Both are differences of probabilities, "
            "such as 0.2."
        )
    change = new_logprobs.detach().exp() - old_logprobs.exp()
    too_high = (advantages > 0) & (change > delta_high)
    too_low = (advantages < 0) & (change < -delta_low)
    return ~(too_high | too_low)


def dppo(
    new_logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    delta_low: float | int,
    delta_high: float | int,
) -> Float[Tensor, "N T"]:
    """DPPO, divergence proximal policy optimization, per step (dppo). To be maximised.

    The surrogate, without gradient where the policy has moved too much probability.

    M_t rho_t A_t, where M_t is 1 where `dppo_mask` is True, and 0 elsewhere

    It has the form of the (clip), and asks another question: not by which factor the
    action has become likelier, but how much of the distribution has moved. As
    |pi - mu| = mu |rho - 1|, a rare action may multiply, and with delta equal to the
    clip range whatever is held here is held by the clip too (Qi et al. 2026,
    https://arxiv.org/abs/2602.04879). No gradient flows through M_t. As delta goes to
    0 only steps remain that bring the policy back, and from delta = 1 on it is the
    (surrogate).

    mu is whatever `old_logprobs` come from, and `grpo_update` passes those stored in
    the batch. In a batch that was `rescored` they are the learner's own: the region
    then lies around the policy at the start of the update, not around the sampler.
    """
    near = dppo_mask(
        new_logprobs,
        old_logprobs,
        advantages,
        delta_low=delta_low,
        delta_high=delta_high,
    )
    rise = surrogate(importance_ratio(new_logprobs, old_logprobs), advantages)
    return torch.where(near, rise, 0)


def overlong_penalty(
    lengths: Int[Tensor, " N"], *, limit: int, buffer: int
) -> Float[Tensor, " N"]:
    """Soft overlong punishment of DAPO (overlong). Added to the score.

    What an answer loses by nearing the length limit.

    0 up to limit - buffer steps, then (limit - buffer - L_n) / buffer, -1 from `limit`
    on. A slope instead of a cliff: an answer that is almost too long is warned before
    it is cut off (DAPO, https://arxiv.org/abs/2503.14476, equation 13).
    """
    if not 0 < buffer <= limit:
        raise ValueError(
            f"buffer must be positive and at most limit={limit}, but it is {buffer}."
        )
    return ((limit - buffer - lengths) / buffer).clamp(-1, 0)


def mean_over_tokens(
    x: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """Token-mean aggregation: sum_n sum_t x[n, t] / (number of steps).

    Every step weighs the same.
    A long row weighs more than a short one.
    """
    return _masked(x, mask).sum() / mask.sum()


def mean_over_sequences(
    x: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """Sequence-mean aggregation: (1/N) sum_n (1/L_n) sum_t x[n, t].

    Every row weighs the same.
    L_n is the number of steps of row n. A row without a step counts as 0 and stays in
    N. A step of a long row weighs less than a step of a short one.
    """
    per_row = _masked(x, mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return per_row.mean()


def sum_over_constant(
    x: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], *, constant: float | int
) -> Float[Tensor, ""]:
    """Constant-divisor aggregation: sum_n sum_t x[n, t] / constant.

    The sum over all steps, divided by a number that the data do not change.

    sum_n sum_t x[n, t] / constant. With constant = N it is the aggregation of the
    policy gradient: summed within a row, averaged over rows.
    """
    if constant <= 0:
        raise ValueError(f"constant must be positive, but it is {constant}.")
    return _masked(x, mask).sum() / constant


def step_weights(
    aggregate: Callable[[Tensor, Tensor], Tensor],
    mask: Bool[Tensor, "N T"],
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "N T"]:
    """Loss aggregation as one weight per step (loss aggregation).

    aggregate(x, mask) = sum_n sum_t weights[n, t] x[n, t]

    1 / (number of steps) for `mean_over_tokens`, 1 / (N L_n) for `mean_over_sequences`,
    1 / constant for `sum_over_constant`, and 0 where the mask is False. So the gradient
    of a minibatch is a sum over its rows, whose parts may be run one after the other.

    The weights are the slope of the aggregation. One that is not linear, such as a
    maximum or a product, has no such weights, and ValueError is raised.
    """
    ramp = torch.linspace(-1, 2, mask.numel(), dtype=dtype, device=mask.device)
    x = ramp.view(mask.shape).requires_grad_()
    with torch.enable_grad():
        (weights,) = torch.autograd.grad(aggregate(x, mask), x)
    # Slopes at one place say what comes out at any other if the aggregation is linear.
    terms = weights * (1 - x.detach())
    difference = aggregate(1 - x.detach(), mask) - terms.sum()
    if not bool(difference.abs() <= 1e-4 * terms.abs().sum()):
        raise ValueError(
            "aggregate must be linear in its first argument, a weighted sum over the "
            "steps, such as `mean_over_tokens`. What this one gives a step depends on "
            "the numbers in the steps."
        )
    return weights


def value_loss(
    values: Float[Tensor, "N T"], targets: Float[Tensor, "N T"]
) -> Float[Tensor, "N T"]:
    """Value loss: half the squared error, per step (value loss). Minimised.

    1/2 (V(s_t) - target_t)^2

    Its gradient at V(s_t) is V(s_t) - target_t: the smallest mean loss is at the mean
    of the targets seen in a state, and for targets that are returns that mean
    estimates the value. Targets are numbers, not functions of the parameters: detach
    them if they were computed from the values.
    """
    _require_same_shape("targets", targets, values)
    return 0.5 * (values - targets) ** 2


def preference_loss(
    chosen_scores: Float[Tensor, " N"], rejected_scores: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Bradley-Terry loss of a reward model, per pair (preference). Minimised.

    How badly the scores explain a choice.

    -log sigmoid(chosen - rejected)

    The model of Bradley and Terry (1952): the answer of score x is preferred to that of
    score y with probability sigmoid(x - y). The loss is minus the log-probability of
    the choice that was made, log 2 where the scores are equal. It is logistic
    regression on a difference: a number added to both scores changes nothing, and so
    scores mean nothing but differences.
    """
    _require_same_shape(
        "rejected_scores", rejected_scores, chosen_scores, each="score per pair"
    )
    return -torch.nn.functional.logsigmoid(chosen_scores - rejected_scores)


def dpo_loss(
    logprobs_chosen: Float[Tensor, " N"],
    logprobs_rejected: Float[Tensor, " N"],
    reference_logprobs_chosen: Float[Tensor, " N"],
    reference_logprobs_rejected: Float[Tensor, " N"],
    *,
    beta: float | int,
) -> Float[Tensor, " N"]:
    """Direct preference optimization, loss per pair (dpo). Minimised.

    How badly the policy's own log-ratio to the reference explains a choice.

    -log sigmoid(beta log(pi(chosen) / pi_ref(chosen))
                 - beta log(pi(rejected) / pi_ref(rejected)))

    The (preference) loss with beta times the log-ratio in the place of the score. The
    policy with the highest score less beta KL(pi || pi_ref) has score = beta log-ratio
    + beta log Z, and log Z, the same for both answers to a question, cancels (Rafailov
    et al. 2023, https://arxiv.org/abs/2305.18290, equation 7).

    All log-probabilities are those of whole answers, sums over their tokens. At the
    reference the loss is log 2, and its gradient is -beta / 2 at the chosen answer and
    beta / 2 at the rejected one. The reference's are numbers, not functions of the
    parameters: detach them if they were computed with gradients.
    """
    for name, x in [
        ("logprobs_rejected", logprobs_rejected),
        ("reference_logprobs_chosen", reference_logprobs_chosen),
        ("reference_logprobs_rejected", reference_logprobs_rejected),
    ]:
        _require_same_shape(name, x, logprobs_chosen, each="log-probability per pair")
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(
            f"beta must be a positive number, such as 0.1, but it is {beta}. It is the "
            "price of a nat of divergence from the reference."
        )
    return preference_loss(
        beta * (logprobs_chosen - reference_logprobs_chosen),
        beta * (logprobs_rejected - reference_logprobs_rejected),
    )


def _require_same_shape(
    name: str, x: Tensor, other: Tensor, *, each: str = "number per step"
) -> None:
    """Raise where broadcasting would pair numbers that do not belong together."""
    if x.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, but one {each} is needed: "
            f"{list(other.shape)}."
        )


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    """Set x to 0 where the mask is False; refuse shapes that would broadcast."""
    if x.shape != mask.shape:
        raise ValueError(
            f"One number per step is needed: x has shape {tuple(x.shape)}, the mask "
            f"{tuple(mask.shape)}."
        )
    if not bool(mask.any()):
        raise ValueError("The mask selects no step at all, so there is nothing to sum.")
    return torch.where(mask, x, 0)
