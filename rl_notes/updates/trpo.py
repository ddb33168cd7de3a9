"""TRPO: the best step inside a region where the promise holds."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from rl_notes.divergences import entropy, kl_exact
from rl_notes.natural_gradient import (
    fisher_vector_product,
    flat_gradient,
    line_search,
    move,
    natural_step,
    split,
    trainable,
)
from rl_notes.objectives import importance_ratio, mean_over_tokens, surrogate
from rl_notes.parallel import (
    agreed,
    from_first,
    require_bare,
    require_same,
    together,
)
from rl_notes.policies import chosen_logprobs, states
from rl_notes.trajectories import Trajectories
from rl_notes.updates._shared import (
    UpdateStats,
    finite,
    require_its_own,
    require_per_step,
)


@dataclass(frozen=True)
class TrustRegionStats(UpdateStats):
    """What one update inside a trust region did. A rejected step has moved nothing.

    Attributes:
        improvement_predicted: g's, the gain in L that the gradient promised of the
            whole step, before the line search.
        improvement: L(new) - L(old), the gain in the (surrogate) that was obtained.
        residual: Relative residual that `conjugate_gradient` left.
        backtracks: How many times the step was shortened.
        accepted: Whether the policy has changed.
    """

    improvement_predicted: float
    improvement: float
    residual: float
    backtracks: int
    accepted: bool


def trpo_update(
    policy: nn.Module,
    trajectories: Trajectories,
    advantages: Float[Tensor, "N T"],
    *,
    max_kl: float | int,
    damping: float | int,
    iterations: int = 10,
    backtracks: int = 10,
    fisher_rows: Int[Tensor, " M"] | None = None,
) -> TrustRegionStats:
    """TRPO, trust region policy optimization: one update in a (trust region).

    Schulman et al. (2015, https://arxiv.org/abs/1502.05477).

    maximise L(new) = mean of rho_t A_t subject to mean of KL(old || new) <= max_kl

    Both means are over all steps of the batch, `mean_over_tokens`. How L is scaled does
    not matter, as the step is as long as the region allows: the sum over a row and the
    mean over rows, as in the (policy gradient), give the same step.

    The step is `natural_step`, the best for straight L and parabolic KL. `line_search`
    shortens it until the KL itself is at most `max_kl`, in the direction
    KL(old || new) and over all steps, and L is strictly larger than before. If that
    never happens, or if the gradient is zero, no parameter changes by a single bit.

    Moved are the parameters of the policy that require a gradient; their `.grad` is
    left alone, and so is any value function. A policy with dropout or batch
    normalisation must be in eval mode: two looks at it would differ.

    On several processes each computes the whole step from the whole batch: the sampling
    is shared, see `rl_notes.parallel.gather`, and the update is not.

    All rows are run at once, several times over: at its peak the update holds about 14
    arrays of the size of the logits, [N, T, A]. There is no `micro_batch` here, so in a
    large vocabulary the batch must be small.

    Args:
        policy: The very policy that sampled the trajectories. Scored again, the actions
            must have the stored log-probabilities, up to 0.001 in the mean over steps
            (in half precision up to the square root of its epsilon). Otherwise the
            ratio does not begin at 1, and the region has another centre than the data.
        trajectories: What it did.
        advantages: One finite number per step.
        max_kl: The radius of the region, in nats.
        damping: Added to the diagonal of the Fisher matrix, see `natural_step`.
        iterations: Products that `conjugate_gradient` may use.
        backtracks: How often the step may be shortened, each time to 0.8 of it.
        fisher_rows: Rows to estimate the Fisher matrix from, all of them if None. The
            KL is tested on all rows in any case.
    """
    require_same(
        settings=[max_kl, damping, iterations, backtracks],
        batch=[vars(trajectories), fisher_rows],
        weights=policy,
    )
    with together():
        require_per_step(advantages, trajectories)
        _require_region(max_kl, iterations, backtracks)
        require_bare(policy)
    advantages = agreed(advantages, trajectories.mask, "advantages")
    with together():
        seen, mask, weights = states(trajectories), trajectories.mask, trainable(policy)
        logits = policy(seen)
        objective = _mean_surrogate(logits, trajectories, advantages)
        old_logits, old_objective = logits.detach(), float(objective.detach())
        old_logprobs = chosen_logprobs(
            old_logits.log_softmax(-1), trajectories.actions, mask
        )
        require_its_own(policy, old_logprobs, trajectories)
        gradient = flat_gradient(objective, weights)
        gradient_norm = finite(float(gradient.norm()))
        product = fisher_vector_product(
            policy, trajectories, damping=damping, rows=fisher_rows
        )
        step, residual = natural_step(
            product, gradient, max_kl=max_kl, iterations=iterations
        )
        old_weights = parameters_to_vector(weights.values()).detach()

        @torch.no_grad()
        def after(scale: float) -> Tensor:
            """Logits of the policy as it would be. It stays as it is."""
            there = split(old_weights + scale * step, weights)
            return cast(Tensor, functional_call(policy, there, (seen,)))

        def improvement(logits: Tensor) -> float:
            return (
                float(_mean_surrogate(logits, trajectories, advantages)) - old_objective
            )

        def acceptable(scale: float) -> bool:
            logits = after(scale)
            kl = float(mean_over_tokens(kl_exact(old_logits, logits), mask))
            return _inside_and_better(kl, improvement(logits), max_kl)

        scale, backtracked, new_logits = 0.0, 0, old_logits
        if gradient_norm > 0:
            scale, backtracked = line_search(acceptable, backtracks=backtracks)
        if scale > 0:
            new_logits = after(scale)
        kl = kl_exact(old_logits, new_logits)
        found = TrustRegionStats(
            kl_mean=float(mean_over_tokens(kl, mask)),
            kl_max=float(kl[mask].max()),
            entropy=float(mean_over_tokens(entropy(new_logits), mask)),
            gradient_norm=gradient_norm,
            improvement_predicted=float(gradient @ step),
            improvement=improvement(new_logits),
            residual=residual,
            backtracks=backtracked,
            accepted=scale > 0,
        )
        there = old_weights + scale * step
    # Each has computed the same, but on a card not always to the bit.
    found = from_first(found)
    if found.accepted:
        move(weights, split(from_first(there), weights))
    return found


def _mean_surrogate(
    logits: Float[Tensor, "N T A"],
    trajectories: Trajectories,
    advantages: Float[Tensor, "N T"],
) -> Float[Tensor, ""]:
    """L: the (surrogate) of a policy with these logits, mean over the steps."""
    actions, mask = trajectories.actions, trajectories.mask
    logprobs = chosen_logprobs(logits.log_softmax(-1), actions, mask)
    ratio = importance_ratio(logprobs, trajectories.logprobs)
    return mean_over_tokens(surrogate(ratio, advantages.detach()), mask)


def _inside_and_better(kl: float, gain: float, max_kl: float | int) -> bool:
    """Whether a step may be taken. One that gives NaN may not."""
    return kl <= max_kl and gain > 0


def _require_region(max_kl: float | int, iterations: int, backtracks: int) -> None:
    """Refuse a region without a size and a search without a try."""
    if not 0 < max_kl < math.inf:
        raise ValueError(f"max_kl must be positive and finite, but it is {max_kl}.")
    if iterations < 1 or backtracks < 0:
        raise ValueError(
            f"iterations must be at least 1 and backtracks at least 0, but they are "
            f"{iterations} and {backtracks}."
        )
