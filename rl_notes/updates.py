"""One update of a policy, or of a value function.

Nothing here knows a maze from a language model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from rl_notes.advantages import explained_variance
from rl_notes.divergences import kl_exact
from rl_notes.objectives import (
    clipped_surrogate,
    importance_ratio,
    mean_over_tokens,
    sum_over_constant,
    surrogate,
    value_loss,
)
from rl_notes.policies import action_logprobs, chosen_logprobs, entropy, states
from rl_notes.trajectories import Trajectories
from rl_notes.trust_region import (
    fisher_vector_product,
    flat_gradient,
    flatten,
    line_search,
    move,
    natural_step,
    split,
    trainable,
)


@dataclass(frozen=True)
class UpdateStats:
    """What one update did to the policy, measured on the states it was made from.

    Attributes:
        kl_mean: KL(old || new), mean over the steps, in nats.
        kl_max: KL(old || new) at the state that moved most, in nats.
        entropy: Entropy of the new policy, mean over the steps, in nats.
        gradient_norm: Euclidean norm of the gradient.
    """

    kl_mean: float
    kl_max: float
    entropy: float
    gradient_norm: float


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
        old_logits = policy(seen)
    logprobs = action_logprobs(policy, trajectories)
    objective = sum_over_constant(
        logprobs * advantages, trajectories.mask, constant=len(advantages)
    )
    optimizer.zero_grad()
    (-objective).backward()  # type: ignore[no-untyped-call]
    gradient_norm = _gradient_norm(policy)
    optimizer.step()
    with torch.no_grad():
        new_logits = policy(seen)
    return UpdateStats(
        **_movement(old_logits, new_logits, trajectories.mask),
        gradient_norm=gradient_norm,
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
    """One update of TRPO, Schulman et al. (2015): the best in a (trust region).

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
    require_per_step(advantages, trajectories)
    _require_region(max_kl, iterations, backtracks)
    seen, mask, weights = states(trajectories), trajectories.mask, trainable(policy)
    logits = policy(seen)
    objective = _mean_surrogate(logits, trajectories, advantages)
    gradient = flat_gradient(objective, weights)
    gradient_norm = _finite(float(gradient.norm()))
    old_logits, old_objective = logits.detach(), float(objective.detach())
    _require_its_own(old_logits, trajectories)
    product = fisher_vector_product(
        policy, trajectories, damping=damping, rows=fisher_rows
    )
    step, residual = natural_step(
        product, gradient, max_kl=max_kl, iterations=iterations
    )
    old_weights = flatten(weights)

    @torch.no_grad()
    def after(scale: float) -> Tensor:
        """Logits of the policy as it would be. Its own parameters stay as they are."""
        there = split(old_weights + scale * step, weights)
        return cast(Tensor, functional_call(policy, there, (seen,)))

    def improvement(logits: Tensor) -> float:
        return float(_mean_surrogate(logits, trajectories, advantages)) - old_objective

    def acceptable(scale: float) -> bool:
        logits = after(scale)
        kl = float(mean_over_tokens(kl_exact(old_logits, logits), mask))
        return _inside_and_better(kl, improvement(logits), max_kl)

    scale, backtracked, new_logits = 0.0, 0, old_logits
    if gradient_norm > 0:
        scale, backtracked = line_search(acceptable, backtracks=backtracks)
    if scale > 0:
        new_logits = after(scale)
        move(weights, split(old_weights + scale * step, weights))
    return TrustRegionStats(
        **_movement(old_logits, new_logits, mask),
        gradient_norm=gradient_norm,
        improvement_predicted=float(gradient @ step),
        improvement=improvement(new_logits),
        residual=residual,
        backtracks=backtracked,
        accepted=scale > 0,
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
    _require_epochs(epochs, minibatches, len(rows))
    _require_brake(max_kl, micro_batch)
    size, seen = micro_batch or len(mask), states(trajectories)
    advantages = advantages.detach()
    old_logits = _logits(policy, seen, size)
    _require_its_own(old_logits, trajectories)
    clipped = partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high)

    def objective(part: Tensor) -> Tensor:
        """The (clip) of these rows."""
        batch = trajectories.select(part)
        ratio = importance_ratio(action_logprobs(policy, batch), batch.logprobs)
        return clipped(ratio, advantages[part])

    norms: list[float] = []
    done, kl = 0, 0.0
    with _all_or_nothing(policy, optimizer):
        while done < epochs and kl <= max_kl:
            for part in _shuffled(rows, generator).tensor_split(minibatches):
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
        **_movement(old_logits, new_logits, mask),
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
    norm = _gradient_norm(policy)
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


@contextmanager
def _all_or_nothing(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Put both back to what they were if ValueError is raised inside."""
    before = deepcopy((module.state_dict(), optimizer.state_dict()))
    try:
        yield
    except ValueError:
        module.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        raise


def _mean_surrogate(
    logits: Float[Tensor, "N T A"],
    trajectories: Trajectories,
    advantages: Float[Tensor, "N T"],
) -> Float[Tensor, ""]:
    """L: the (surrogate) of a policy with these logits, mean over the steps."""
    logprobs = chosen_logprobs(logits, trajectories)
    ratio = importance_ratio(logprobs, trajectories.logprobs)
    return mean_over_tokens(surrogate(ratio, advantages.detach()), trajectories.mask)


def _inside_and_better(kl: float, gain: float, max_kl: float | int) -> bool:
    """Whether a step may be taken. One that gives NaN may not."""
    return kl <= max_kl and gain > 0


def _movement(
    old_logits: Float[Tensor, "N T A"],
    new_logits: Float[Tensor, "N T A"],
    mask: Bool[Tensor, "N T"],
) -> dict[str, float]:
    """How far the policy moved, and its entropy now, for `UpdateStats`."""
    kl = kl_exact(old_logits, new_logits)
    return {
        "kl_mean": float(mean_over_tokens(kl, mask)),
        "kl_max": float(kl[mask].max()),
        "entropy": float(mean_over_tokens(entropy(new_logits), mask)),
    }


def _require_region(max_kl: float | int, iterations: int, backtracks: int) -> None:
    """Refuse a region without a size and a search without a try."""
    if not 0 < max_kl < math.inf:
        raise ValueError(f"max_kl must be positive and finite, but it is {max_kl}.")
    if iterations < 1 or backtracks < 0:
        raise ValueError(
            f"iterations must be at least 1 and backtracks at least 0, but they are "
            f"{iterations} and {backtracks}."
        )


def _require_its_own(
    logits: Float[Tensor, "N T A"], trajectories: Trajectories
) -> None:
    """Raise unless a policy with these logits sampled the trajectories."""
    difference = chosen_logprobs(logits, trajectories) - trajectories.logprobs
    found = float(mean_over_tokens(difference.abs(), trajectories.mask))
    # Sampled with a cache and scored without, half precision differs by its epsilon
    # times the size of the logits.
    epsilon = torch.finfo(logits.dtype).eps
    allowed = max(1e-3, math.sqrt(epsilon) if epsilon > 1e-4 else 0.0)
    if not found <= allowed:
        raise ValueError(
            "The policy gives the stored actions other log-probabilities than those "
            f"stored with them: they differ by {found:.3g} in the mean, and "
            f"{allowed:.3g} is allowed for rounding. Sample with this very policy and "
            "update it once: same weights, same temperature, no top-k or top-p, "
            "dropout off (`policy.eval()`)."
        )


@dataclass(frozen=True)
class ValueStats:
    """How well a value function was fitted, over the steps that it was fitted on.

    Attributes:
        losses: The (value loss) of each epoch, mean over the steps, each measured just
            before the optimizer's step that it led to.
        explained_variance_before: How much of the targets' variance the values
            explained before, see `advantages.explained_variance`.
        explained_variance_after: And after.
    """

    losses: tuple[float, ...]
    explained_variance_before: float
    explained_variance_after: float


def fit_value(
    value: nn.Module,
    optimizer: torch.optim.Optimizer,
    trajectories: Trajectories,
    targets: Float[Tensor, "N T"],
    *,
    epochs: int,
    minibatches: int,
    generator: torch.Generator,
) -> ValueStats:
    """Move V(s_t) towards targets[:, t], by the mean (value loss) of each minibatch.

    In every epoch the rows that have a step are shuffled by `generator` and dealt out
    to the minibatches, whose numbers of rows differ by at most one. Each minibatch is
    one step of the optimizer along the mean over its own steps, so that a step counts
    for a little more where the rows that came together are short.

    Targets are, for example, `returns_to_go`, or the advantages of `gae` plus the
    values that they were made with. No gradient flows into them.

    If a loss or a gradient is not finite, value and optimizer are put back to what they
    were before the call, and ValueError is raised.
    """
    mask = trajectories.mask
    require_per_step(targets, trajectories, name="targets")
    rows = mask.any(dim=1).nonzero()[:, 0]
    _require_epochs(epochs, minibatches, len(rows))
    seen = states(trajectories)
    # What is stored beyond the mask may be NaN, and 0 * NaN would be its gradient.
    targets = torch.where(mask, targets.detach(), 0)
    explained_before = _explained(value, seen, targets, mask)
    losses = []
    with _all_or_nothing(value, optimizer):
        for _ in range(epochs):
            parts = _shuffled(rows, generator).tensor_split(minibatches)
            steps = [
                _value_step(value, optimizer, seen[part], targets[part], mask[part])
                for part in parts
            ]
            losses.append(sum(steps) / int(mask.sum()))
        explained_after = _explained(value, seen, targets, mask)
    return ValueStats(tuple(losses), explained_before, explained_after)


def _require_epochs(epochs: int, minibatches: int, rows: int) -> None:
    """Raise unless there is an epoch, and a row with a step for each minibatch."""
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, but it is {epochs}.")
    if not 1 <= minibatches <= rows:
        raise ValueError(
            f"minibatches={minibatches}, but it must lie between 1 and the number of "
            f"rows that have a step: {rows}."
        )


def _shuffled(rows: Int[Tensor, " N"], generator: torch.Generator) -> Int[Tensor, " N"]:
    """The same rows in random order."""
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    return rows[order.to(rows.device)]


def _value_step(
    value: nn.Module,
    optimizer: torch.optim.Optimizer,
    seen: Shaped[Tensor, "M T ..."],
    targets: Float[Tensor, "M T"],
    mask: Bool[Tensor, "M T"],
) -> float:
    """One step down the mean value loss; return the sum that it was before."""
    loss = mean_over_tokens(value_loss(value(seen), targets), mask)
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            "The value loss is not finite, so the value function was left as it was. "
            "Try a smaller learning rate, or smaller targets."
        )
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    _gradient_norm(value)
    optimizer.step()
    return float(loss.detach()) * int(mask.sum())


@torch.no_grad()
def _explained(
    value: nn.Module,
    seen: Shaped[Tensor, "N T ..."],
    targets: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
) -> float:
    """How much of the targets' variance the values explain as they are now."""
    return explained_variance(value(seen), targets, mask)


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


def _gradient_norm(policy: nn.Module) -> float:
    """Euclidean norm of all gradients together; refuse to step along NaN."""
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    return _finite(float(torch.stack([g.norm() for g in gradients]).norm()))


def _finite(norm: float) -> float:
    """The norm of a gradient; refuse one to step along NaN."""
    if not math.isfinite(norm):
        raise ValueError(
            "The gradient is not finite, so no step was taken. Look for infinite "
            "logits, values or advantages."
        )
    return norm
