"""GRPO, and the loop up an objective that REINFORCE, PPO and GRPO share: `ascend`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rl_notes.divergences import entropy, k3, kl_exact
from rl_notes.objectives import importance_ratio, mean_over_sequences, step_weights
from rl_notes.parallel import (
    add_gradients,
    agreed,
    joined,
    require_same,
    share,
    together,
)
from rl_notes.policies import forward_distinct, taken_logprobs
from rl_notes.trajectories import Trajectories
from rl_notes.updates._shared import (
    UpdateStats,
    all_or_nothing,
    clip_gradient,
    require_its_own,
    require_update,
    shuffled,
)

# Of (new_logprobs, old_logprobs, advantages, mask), all [M, T]: one number per step.
Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# Of one number per step and the mask: a scalar, linear in the first.
Aggregation = Callable[[Tensor, Tensor], Tensor]
# What the old policy says is kept from the first pass until it is so many numbers, 16
# MB in float32, or as many as the policy has weights: more would cost more than to
# compute it again when it is needed.
KEPT = 2**22
# So many log-probabilities are compared at a time: on the CPU they stay in its cache,
# and a card, which waits between two lots, has room for 1 GB.
COMPARED, COMPARED_ON_A_CARD = 2**18, 2**28


@dataclass(frozen=True)
class ClipStats(UpdateStats):
    """What one update by PPO did, measured after its last step, on all steps.

    The gradient alone is that of the minibatches: its norm is the mean over them.

    Attributes:
        clip_fraction: Share of the steps at which the clip holds: the advantage is not
            zero, and the objective has no gradient all the same.
        ratio_min: Smallest (ratio) of the new policy to the one that sampled.
        ratio_max: Largest. Neither is bounded by the clip.
        epochs: How many were done.
    """

    clip_fraction: float
    ratio_min: float
    ratio_max: float
    epochs: int


@dataclass(frozen=True)
class GroupStats(ClipStats):
    """What one update by GRPO did, measured on the rows that the policy was run on.

    If no row had a gradient, it is measured on all that have a step.

    Attributes:
        rows: How many rows had a gradient: an advantage that is not 0, or a beta.
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
    max_norm: float | int = math.inf,
) -> GroupStats:
    """GRPO, group relative policy optimization: one update (grpo).

    Shao et al. (2024, https://arxiv.org/abs/2402.03300).

    maximise (1/N) sum_n (1/L_n) sum_t [ clip of rho_t A_t - beta k3_t ]

    It is `ppo_update` with four differences, all at the call. The advantages come from
    groups of answers, `per_step(group_relative(scores, groups), mask)`, and no value
    function is fitted. The aggregation is the mean over rows of the mean over their
    steps. The (k3) of the policy to a reference is part of the objective. And what is
    maximised at each step is an argument, so that the family is at hand: `token_clip`
    here, `sequence_clip` in GSPO, `cispo`, or three lines of your own.

    In every epoch all rows are shuffled by `generator` and dealt out to the
    minibatches. A row without a gradient, where every advantage is 0 and beta is
    too, or without a step, is never run through the policy. It costs nothing and
    changes nothing but the aggregate: there it stays as zeros, so that `aggregate`
    divides by the same as ever. And of rows that are alike, as the answers of a group
    often are, one is run for all of them.

    Whatever is raised, by an objective or a gradient that is not finite or by the stop
    button, policy, optimizer and generator are put back to what they were before the
    call, and the same call can be made again.

    Args:
        policy: The very policy that sampled the trajectories, or `rescored` what
            another one sampled, checked as by `trpo_update`. Dropout or batch
            normalisation must be in eval mode.
        optimizer: Of the policy's parameters.
        trajectories: What the policy did.
        advantages: One finite number per step. They are constants: no gradient flows
            into them.
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
        beta: KL coefficient: what one nat of (k3) costs.
        micro_batch: How many rows to run the policy on at a time, those of like length
            together. It bounds the memory, and where lengths differ saves the time that
            padding takes. It changes nothing but rounding: the parts of a minibatch add
            up to its aggregate. None runs a minibatch at once.
        max_norm: The gradient of a minibatch is scaled to this norm at most (gradient
            clipping).
    """
    every = torch.ones_like(trajectories.mask[:, 0])
    found = ascend(
        policy,
        optimizer,
        trajectories,
        advantages,
        objective=objective,
        aggregate=aggregate,
        in_batch=every,
        epochs=epochs,
        minibatches=minibatches,
        generator=generator,
        reference_logprobs=reference_logprobs,
        beta=beta,
        micro_batch=micro_batch,
        max_norm=max_norm,
    )
    return GroupStats(**found)


def ascend(  # noqa: PLR0913 (most are numbers, named at the call)
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    trajectories: Trajectories,
    advantages: Float[Tensor, "N T"],
    *,
    objective: Objective,
    aggregate: Aggregation,
    in_batch: Bool[Tensor, " N"],
    with_gradient: Bool[Tensor, " N"] | None = None,
    epochs: int,
    minibatches: int,
    generator: torch.Generator,
    reference_logprobs: Float[Tensor, "N T"] | None = None,
    beta: float | int = 0.0,
    micro_batch: int | None = None,
    max_norm: float | int = math.inf,
    max_kl: float | int = math.inf,
) -> dict[str, Any]:
    """Minibatch gradient ascent on an aggregated objective: all of it, or nothing.

    For each minibatch of each epoch one step is taken up the gradient of

    sum_n sum_t w[n, t] (objective[n, t] - beta k3[n, t])

    where w are the `step_weights` of the aggregation over the whole minibatch. As this
    is a sum over rows, they are run in parts (gradient accumulation), and those that
    are not `with_gradient` not at all: if it is not given, those without a step, or
    without an advantage where beta is 0 too. The rows `in_batch` are shuffled and dealt
    out to the minibatches.

    Returns:
        What `GroupStats` holds, measured on the rows with a gradient, or if there is
        none on all that have a step.
    """
    _require_reference(reference_logprobs, beta)
    per_step = {"advantages": advantages, "reference_logprobs": reference_logprobs}
    require_update(
        policy,
        optimizer,
        trajectories,
        per_step,
        epochs=epochs,
        minibatches=minibatches,
        rows=int(in_batch.sum()),
        micro_batch=micro_batch,
        max_norm=max_norm,
        max_kl=max_kl,
    )
    require_same(
        settings=[epochs, minibatches, beta, max_norm, max_kl],
        batch=vars(trajectories),
        weights=policy,
    )
    old, mask = trajectories.logprobs, trajectories.mask
    advantages, reference_logprobs, size = (
        agreed(advantages.detach(), mask, "advantages"),
        agreed(reference_logprobs, mask, "reference_logprobs"),
        micro_batch or len(mask),
    )
    if_unsaid = (mask & ((advantages != 0) | (beta > 0))).any(dim=1)
    with_gradient = if_unsaid if with_gradient is None else with_gradient
    enough = max(KEPT, sum(w.numel() for w in policy.parameters()))
    norms: list[float] = []
    kept: list[Tensor] = []  # what the old policy says, of the first parts

    def step_up(rows: Int[Tensor, " M"]) -> None:
        """One step of the optimizer up the aggregate of a minibatch."""
        with together():
            weights = torch.zeros_like(old)
            optimizer.zero_grad()
            policy.zero_grad()
            if bool(with_gradient[rows].any()):
                weights[rows] = step_weights(aggregate, mask[rows], dtype=old.dtype)
            else:  # a gradient of zero is a step too: momentum goes on
                _zero_gradient(policy)
            accumulate(rows[with_gradient[rows]], weights)
        add_gradients(policy)
        with together():
            norms.append(clip_gradient(policy, max_norm))
            optimizer.step()

    def accumulate(rows: Int[Tensor, " M"], weights: Float[Tensor, "N T"]) -> None:
        """The gradient of this process's share of the rows, part by part."""
        for part in _parts(rows, trajectories, size):
            logprobs = _all_logprobs(policy, trajectories.select(part))
            new = taken_logprobs(logprobs, trajectories.select(part))
            if not norms:  # no step was taken yet: this is the policy that sampled
                require_its_own(policy, new, trajectories, part)
            if not norms and minibatches == 1 and sum(map(torch.numel, kept)) < enough:
                kept.append(logprobs.detach())
            x = objective(new, old[part], advantages[part], mask[part])
            x = x - _price(new, reference_logprobs, part, beta)
            total = (weights[part] * torch.where(mask[part], x, 0)).sum()
            (-total).backward()  # type: ignore[no-untyped-call]

    scored = with_gradient if bool(with_gradient.any()) else mask.any(dim=1)
    measured = _parts(scored.nonzero()[:, 0], trajectories, size)
    clipped = partial(_clipped, objective, trajectories, advantages)
    done, found = 0, {"kl_mean": 0.0}
    with all_or_nothing(policy, optimizer, generator) as before:
        while done < epochs and found["kl_mean"] <= max_kl:
            for rows in shuffled(in_batch, generator).tensor_split(minibatches):
                step_up(rows.sort().values)  # in order again: a group's rows together
            done += 1
            if done == epochs or max_kl < math.inf:
                found = _measured(policy, before, trajectories, measured, kept, clipped)
    found |= {"gradient_norm": sum(norms) / len(norms), "epochs": done}
    return {**found, "rows": int(with_gradient.sum())}


def _parts(
    rows: Int[Tensor, " M"], trajectories: Trajectories, size: int
) -> Sequence[Tensor]:
    """This process's share of the rows, in order of length, `size` of them at a time.

    If they are more than `size`, rows of one group stay together, as they begin alike.
    """
    lengths, groups = trajectories.lengths[rows], trajectories.groups[rows]
    order = lengths.argsort(stable=True)
    if len(rows) > size:
        group = torch.unique(groups, return_inverse=True)[1]
        longest = torch.zeros_like(lengths).scatter_reduce(0, group, lengths, "amax")
        order = order[group[order].argsort(stable=True)]
        order = order[longest[group][order].argsort(stable=True)]
    mine = share(rows[order], lengths[order])
    return torch.split(mine, size) if len(mine) else []


def _all_logprobs(
    policy: nn.Module,
    part: Trajectories,
    weights: dict[str, Tensor] | None = None,
) -> Float[Tensor, "S A"]:
    """The log-probability of every action, step after step."""
    return forward_distinct(policy, part, weights=weights).log_softmax(-1)


def _price(
    new_logprobs: Float[Tensor, "K T"],
    reference_logprobs: Float[Tensor, "N T"] | None,
    part: Int[Tensor, " K"],
    beta: float | int,
) -> Tensor | float:
    """What it costs these rows to be away from the reference: beta (k3), per step."""
    if reference_logprobs is None or beta == 0:
        return 0.0
    return beta * k3(new_logprobs, reference_logprobs[part].detach())


def _zero_gradient(policy: nn.Module) -> None:
    """A gradient of zero for every weight that is trained."""
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)


@torch.no_grad()
def _measured(
    policy: nn.Module,
    before: dict[str, Tensor],
    trajectories: Trajectories,
    parts: Sequence[Tensor],
    kept: Sequence[Tensor],
    clipped: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, float]:
    """How far the policy has moved from the one it was, added up part by part.

    What that one said of the first parts is `kept`. For the others its weights,
    `before`, are put into the policy for one more look.
    """
    none = trajectories.logprobs.new_zeros(0)
    # Of each part: four numbers per step. A process may have no part at all.
    found: list[tuple[Tensor, ...]] = [(none, none, none, none.bool())]
    with together():
        for part, known in zip_longest(parts, kept):
            some, mask = trajectories.select(part), trajectories.mask[part]
            now, then = _all_logprobs(policy, some), known
            if then is None:
                then = _all_logprobs(policy, some, before)
            new, old = (taken_logprobs(x, some) for x in (now, then))
            require_its_own(policy, old, trajectories, part)
            ratio = importance_ratio(new, trajectories.logprobs[part])
            both = _compared(then, now)
            found.append((*both, ratio[mask], clipped(part, new)[mask]))
    kl, bits, ratio, flat = (joined(torch.cat(x)) for x in zip(*found, strict=True))
    if not bool(torch.isfinite(kl).all()):
        raise ValueError(
            f"After the epoch KL(old || new) is {float(kl.mean())}, so the policy was "
            "left as it was. Try a smaller learning rate."
        )
    return {
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        "entropy": float(bits.mean()),
        "clip_fraction": float(flat.double().mean()),
        "ratio_min": float(ratio.min()),
        "ratio_max": float(ratio.max()),
    }


def _compared(
    old: Float[Tensor, "S A"], new: Float[Tensor, "S A"]
) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """`kl_exact` of the old policy from the new one, and `entropy` of the new one.

    Both are given by the log-probabilities of all their actions. In a large vocabulary
    the two functions would cost more than to run the policy. So they share what they
    need here, for so few steps at a time.
    """
    at_a_time = COMPARED if new.device.type == "cpu" else COMPARED_ON_A_CARD
    found, few = [], max(1, at_a_time // new.shape[-1])
    for p, q in zip(*(torch.split(x, few) for x in (old, new)), strict=True):
        kl = torch.linalg.vecdot(p.softmax(-1), p - q)
        bits = -torch.linalg.vecdot(q.softmax(-1), q)
        if not bool(torch.isfinite(kl + bits).all()):  # where an action is impossible
            kl, bits = kl_exact(p, q), entropy(q)
        found.append((kl, bits))
    kl, bits = (torch.cat(x) for x in zip(*found, strict=True))
    return kl, bits


def _clipped(
    objective: Objective,
    trajectories: Trajectories,
    advantages: Float[Tensor, "N T"],
    part: Int[Tensor, " K"],
    new_logprobs: Float[Tensor, "K T"],
) -> Bool[Tensor, "K T"]:
    """Where the objective of these rows is flat in spite of an advantage."""
    old, mask = trajectories.logprobs[part], trajectories.mask[part]
    new = new_logprobs.detach().requires_grad_()
    with torch.enable_grad():
        x = objective(new, old, advantages[part], mask)
        (slope,) = torch.autograd.grad(x.sum(), new)
    return (slope == 0) & (advantages[part] != 0)


@together()
def _require_reference(logprobs: Tensor | None, beta: float | int) -> None:
    """Refuse a price that is none, and one without a reference."""
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be a number from 0 up, but it is {beta}.")
    if logprobs is None and beta > 0:
        raise ValueError(
            f"beta is {beta}, but there are no reference_logprobs. Pass "
            "`action_logprobs(reference, trajectories)`, without a gradient."
        )
