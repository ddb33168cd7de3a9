"""Epochs of minibatches up an objective: what PPO and GRPO share."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rl_notes.divergences import kl_exact
from rl_notes.objectives import importance_ratio, mean_over_tokens
from rl_notes.policies import chosen_logprobs, states
from rl_notes.trajectories import Trajectories
from rl_notes.trust_region import trainable
from rl_notes.updates._shared import (
    UpdateStats,
    all_or_nothing,
    gradient_norm_of,
    movement,
    require_its_own,
    run_once,
    shuffled,
)

# From the log-probabilities of some rows, [M, T], and their indices, [M], one number
# per step, [M, T].
OfRows = Callable[[Tensor, Tensor], Tensor]
# From one number per step and the mask a scalar, linear in the first.
Aggregation = Callable[[Tensor, Tensor], Tensor]


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
class Schedule:
    """How often, and in how many parts, the rows are used."""

    epochs: int
    minibatches: int
    generator: torch.Generator
    micro_batch: int | None = None
    max_kl: float | int = math.inf

    def __post_init__(self) -> None:
        """Refuse a brake that is always on and parts without a row."""
        if not self.max_kl > 0:
            raise ValueError(
                "max_kl must be positive, or inf for no brake, but it is "
                f"{self.max_kl}."
            )
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(
                f"micro_batch must be at least 1, but it is {self.micro_batch}."
            )


@dataclass(frozen=True)
class Climbed:
    """The rows that an update was measured on, and the policy there, [R, T, A]."""

    rows: Int[Tensor, " R"]
    batch: Trajectories
    old_logits: Tensor
    new_logits: Tensor
    gradient_norm: float
    epochs: int


def climb(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    trajectories: Trajectories,
    objective: OfRows,
    *,
    aggregate: Aggregation,
    dealt: Bool[Tensor, " N"],
    live: Bool[Tensor, " N"],
    schedule: Schedule,
) -> Climbed:
    """Epochs of minibatches up the aggregated objective, all of them or nothing.

    Args:
        policy: The very policy that sampled the trajectories.
        optimizer: Of its parameters.
        trajectories: What it did.
        objective: One number per step, from the new log-probabilities of some rows.
        aggregate: Makes one number of a minibatch.
        dealt: The rows that are dealt out to the minibatches.
        live: Those whose objective is not zero whatever the policy does. The others
            are never run through the policy; in the aggregate they are zeros. Where
            none is live, the update is measured on all that have a step.
        schedule: How often, and in how many parts.
    """
    measured = live if bool(live.any()) else trajectories.mask.any(dim=1)
    rows = measured.nonzero()[:, 0]
    batch = trajectories.select(rows).trimmed()
    size = schedule.micro_batch or len(trajectories.mask)
    old_logits = _logits(policy, batch, size)
    require_its_own(old_logits, batch)

    def ascent(minibatch: Tensor) -> Iterator[Tensor]:
        """The aggregate of a minibatch in parts that add up to it."""
        mask = trajectories.mask[minibatch]
        places = live[minibatch].nonzero()[:, 0]
        for part in _parts(trajectories.lengths[minibatch[places]], size):
            place = places[part]
            there = minibatch[place]
            new = _logprobs(policy, trajectories.select(there))
            yield _share(aggregate, objective(new, there), place, mask)

    norms: list[float] = []
    done, kl = 0, 0.0
    with all_or_nothing(policy, optimizer):
        while done < schedule.epochs and kl <= schedule.max_kl:
            order = shuffled(dealt.nonzero()[:, 0], schedule.generator)
            for minibatch in order.tensor_split(schedule.minibatches):
                # In order again, so that rows of a group are run together.
                norms.append(_step(policy, optimizer, ascent(minibatch.sort().values)))
            done += 1
            if done == schedule.epochs or schedule.max_kl < math.inf:
                new_logits = _logits(policy, batch, size)
                kl = _finite_kl(old_logits, new_logits, batch.mask)
    norm = sum(norms) / len(norms)
    return Climbed(rows, batch, old_logits, new_logits, norm, done)


def _share(
    aggregate: Aggregation,
    x: Float[Tensor, "M T"],
    place: Int[Tensor, " M"],
    mask: Bool[Tensor, "B T"],
) -> Tensor:
    """What some rows add to the aggregate of their minibatch.

    The aggregate of the whole minibatch with zeros in the other rows: as it is linear,
    the shares add up, and each is divided by what the whole is divided by.
    """
    whole = x.new_zeros(mask.shape).index_copy(0, place, x)
    return aggregate(whole, mask)


def _step(
    policy: nn.Module, optimizer: torch.optim.Optimizer, shares: Iterator[Tensor]
) -> float:
    """One step up the sum of the shares; return the norm of its gradient."""
    optimizer.zero_grad()
    nothing = True
    for share in shares:
        nothing = False
        if not bool(torch.isfinite(share)):
            raise ValueError(
                "The objective is not finite, so the policy was left as it was. Try a "
                "smaller learning rate, or fewer epochs."
            )
        (-share).backward()  # type: ignore[no-untyped-call]
    if nothing:  # a gradient of zero is a step too: momentum goes on
        for weight in trainable(policy).values():
            weight.grad = torch.zeros_like(weight)
    norm = gradient_norm_of(policy)
    optimizer.step()
    return norm


def _parts(lengths: Int[Tensor, " M"], size: int) -> Sequence[Int[Tensor, " K"]]:
    """Deal rows out to parts of `size`, those of like length together."""
    if len(lengths) == 0:
        return []
    return torch.split(lengths.argsort(stable=True), size)


def _logprobs(policy: nn.Module, batch: Trajectories) -> Float[Tensor, "M T"]:
    """Log-probabilities of the actions; the policy is run up to the longest row."""
    short = batch.trimmed()
    past = batch.mask.shape[1] - short.mask.shape[1]
    logprobs = chosen_logprobs(run_once(policy, states(short)), short)
    return nn.functional.pad(logprobs, (0, past))


@torch.no_grad()
def _logits(
    policy: nn.Module, batch: Trajectories, size: int
) -> Float[Tensor, "N T A"]:
    """The policy's logits, run on `size` rows at a time; 0 past the longest of them."""
    parts = _parts(batch.lengths, size)
    found = []
    for part in parts:
        logits = run_once(policy, states(batch.select(part).trimmed()))
        past = batch.mask.shape[1] - logits.shape[1]
        found.append(nn.functional.pad(logits, (0, 0, 0, past)))
    return torch.cat(found)[torch.cat([*parts]).argsort()]


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


def report(
    climbed: Climbed, surrogate: OfRows, advantages: Float[Tensor, "N T"]
) -> dict[str, Any]:
    """What is known of the update, for `ClipStats`.

    `surrogate` is the part of the objective that may hold a step.
    """
    batch, mask = climbed.batch, climbed.batch.mask
    new = chosen_logprobs(climbed.new_logits, batch)
    ratio = importance_ratio(new, batch.logprobs)
    held = _held(surrogate, new, climbed.rows, advantages)[:, : mask.shape[1]]
    return {
        **movement(climbed.old_logits, climbed.new_logits, mask),
        "gradient_norm": climbed.gradient_norm,
        "clip_fraction": float(mean_over_tokens(held.to(ratio.dtype), mask)),
        "ratio_min": float(ratio[mask].min()),
        "ratio_max": float(ratio[mask].max()),
        "epochs": climbed.epochs,
    }


def _held(
    surrogate: OfRows,
    new_logprobs: Float[Tensor, "R T_short"],
    rows: Int[Tensor, " R"],
    advantages: Float[Tensor, "N T"],
) -> Bool[Tensor, "R T"]:
    """Where the surrogate is flat in spite of an advantage."""
    past = advantages.shape[1] - new_logprobs.shape[1]
    new = nn.functional.pad(new_logprobs, (0, past)).requires_grad_()
    (slope,) = torch.autograd.grad(surrogate(new, rows).sum(), new)
    return (slope == 0) & (advantages[rows] != 0)
