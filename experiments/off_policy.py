"""GRPO on answers that a copy of the policy sampled: a late one, or a rounded one.

    pip install -r requirements.txt
    python -m experiments.off_policy

Five seeds. Every run starts from "sft" and makes 40 updates, one step each, from 32
questions and 8 answers to each. The copy that answers is `delay` updates late, or
rounded. Its answers are trained on as if they were the policy's own
("ignored"), or with weights. The arms differ in what the lines of `ARMS` say.

What is there already is kept and not run again: delete the results to begin anew.
"""

import copy
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from experiments.answers import (
    fresh_sft,
    measure,
    sample_scored,
    seeded,
    store,
    stored_before,
)
from rl_notes.advantages import group_relative, per_step
from rl_notes.objectives import (
    dppo_mask,
    importance_ratio,
    masked_weights,
    mean_over_tokens,
    sequence_ratio,
    token_clip,
    truncated_weights,
)
from rl_notes.policies import TransformerPolicy, action_logprobs, rescored
from rl_notes.trajectories import Trajectories
from rl_notes.updates import grpo_update

NAME = "off_policy"
SEEDS = range(5)
QUESTIONS, SIZE = 32, 8  # in an update
UPDATES = 40
EXAM = 300  # held-out questions
DISSECTED = 400  # stale questions whose gradient is looked at, and twice as many fresh
LEARNING_RATE = 1e-4
CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}

# Of the log-probabilities of the policy and of the sampler, of advantages and mask.
Weights = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Copy = Callable[[PreTrainedModel], PreTrainedModel]


def ignored(own: Tensor, sampler: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    return torch.ones_like(own)


def truncated(own: Tensor, sampler: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    return truncated_weights(importance_ratio(own, sampler), cap=2)


def only_less(own: Tensor, sampler: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """What has become rarer counts less; what has become likelier, as ever."""
    return truncated_weights(importance_ratio(own, sampler), cap=1)


def only_more(own: Tensor, sampler: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """What has become likelier counts more; what has become rarer, as ever."""
    return importance_ratio(own, sampler).clamp(1, 5)


def without_gone(own: Tensor, sampler: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """As if one's own, but for what has been pushed below half, and is pushed on."""
    return (~gone(own, sampler, A)).float()


def gone(own: Tensor, sampler: Tensor, A: Tensor) -> Tensor:
    return (importance_ratio(own, sampler) < 0.5) & (A < 0)


def without_others(own: Tensor, sampler: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """The control of `without_gone`: leaves out as many, as rare, and as bad.

    But none that has been pushed away: all have become likelier since they were
    sampled. Of these the rarest, since it is the rare ones whose push is large.
    """
    number = int(gone(own, sampler, A).sum())
    others = mask & (A < 0) & (own >= sampler)
    rarest = torch.where(others, own, torch.inf).flatten().argsort()[:number]
    kept = torch.ones(own.numel())
    kept[rarest] = 0
    return torch.where(others, kept.view_as(own), 1)


def clip(own: Tensor, sampler: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """The slope of PPO's clip around the sampler."""
    ratio = importance_ratio(own, sampler)
    held = ((A > 0) & (ratio > 1.2)) | ((A < 0) & (ratio < 0.8))
    return torch.where(held, 0, ratio)


def dppo(own: Tensor, sampler: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    near = dppo_mask(own, sampler, A, delta_low=0.2, delta_high=0.2)
    return torch.where(near, importance_ratio(own, sampler), 0)


def answer_mask(own: Tensor, sampler: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    whole = sequence_ratio(own, sampler, mask, length_normalised=False)
    return masked_weights(whole, high=3)


def the_same(model: PreTrainedModel) -> PreTrainedModel:
    return model


def rounded(model: PreTrainedModel, *, bits: int) -> PreTrainedModel:
    """A copy whose matrices hold 2^bits - 1 different numbers in each row."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                weight.copy_((weight / step.clamp(min=1e-12)).round() * step)
    return model


def in_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).bfloat16()


@dataclass(frozen=True)
class Arm:
    """Who samples, and what is done about it."""

    weights: Weights = ignored
    delay: int = 0
    copied: Copy = the_same


DELAYS = (1, 2, 4, 8)
LATE = 8
ARMS = {
    "delay_0": Arm(),
    **{f"delay_{k}_ignored": Arm(delay=k) for k in DELAYS},
    **{f"delay_{k}_truncated": Arm(truncated, delay=k) for k in DELAYS},
    "without_gone": Arm(without_gone, delay=LATE),
    "without_others": Arm(without_others, delay=LATE),
    "only_less": Arm(only_less, delay=LATE),
    "only_more": Arm(only_more, delay=LATE),
    "clip": Arm(clip, delay=LATE),
    "dppo": Arm(dppo, delay=LATE),
    "answer_mask": Arm(answer_mask, delay=LATE),
    "int4_ignored": Arm(copied=partial(rounded, bits=4)),
    "int4_truncated": Arm(truncated, copied=partial(rounded, bits=4)),
    "bfloat16_ignored": Arm(copied=in_bfloat16),
}


def train(seed: int, arm: Arm, before: dict[str, float]) -> dict[str, Any]:
    """Train one model; what it can do, and what each update did."""
    model, generator = fresh_sft(), seeded(seed)
    policy = TransformerPolicy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    begin, updates = time.process_time(), []
    earlier = deque([copy.deepcopy(model)], maxlen=arm.delay + 1)  # the oldest answers
    for _ in tqdm(range(UPDATES)):
        sampler = TransformerPolicy(arm.copied(earlier[0]))
        batch, scores = sample_scored(sampler, QUESTIONS, SIZE, generator)
        advantages = per_step(group_relative(scores, batch.groups), batch.mask)
        own = rescored(policy, batch)
        weights = arm.weights(own.logprobs, batch.logprobs, advantages, batch.mask)
        stats = grpo_update(
            policy,
            optimizer,
            own,
            weights * advantages,
            objective=partial(token_clip, **CLIP),
            aggregate=mean_over_tokens,
            epochs=1,
            minibatches=1,
            generator=generator,
        )
        steps = batch.mask
        away = (batch.logprobs - own.logprobs)[steps]
        pushed_on = gone(own.logprobs, batch.logprobs, advantages)[steps]
        found = {
            "score": scores.mean().item(),
            "away": away.mean().item(),  # KL(sampler || policy) of a token
            "gone": pushed_on.float().mean().item(),
            "entropy": stats.entropy,
            "gradient_norm": stats.gradient_norm,
        }
        updates.append({name: float(f"{x:.4g}") for name, x in found.items()})
        earlier.append(copy.deepcopy(model))
    return {
        "seed": seed,
        "curve": [
            {"updates": 0, **before},
            {"updates": UPDATES, **measure(model, questions=EXAM)},
        ],
        "updates": updates,
        "cpu_seconds": round(time.process_time() - begin),
    }


def gradient(policy: TransformerPolicy, batch: Trajectories, weights: Tensor) -> Tensor:
    """The mean over tokens of weight times the gradient of the log-probability."""
    total = torch.zeros(sum(w.numel() for w in policy.parameters()))
    for rows in torch.arange(len(batch.mask)).split(256):
        each = weights[rows] * action_logprobs(policy, batch.select(rows))
        parts = torch.autograd.grad(each.sum(), list(policy.parameters()))
        total += torch.cat([part.flatten() for part in parts])
    return total / batch.mask.sum()


def dissect(seed: int) -> dict[str, Any]:
    """A stale gradient and what is in it, beside the one of fresh answers."""
    model, generator = fresh_sft(), seeded(seed)
    policy, late = TransformerPolicy(model), TransformerPolicy(fresh_sft())
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(LATE):
        batch, scores = sample_scored(policy, QUESTIONS, SIZE, generator)
        grpo_update(
            policy,
            optimizer,
            batch,
            per_step(group_relative(scores, batch.groups), batch.mask),
            objective=partial(token_clip, **CLIP),
            aggregate=mean_over_tokens,
            epochs=1,
            minibatches=1,
            generator=generator,
        )
    fresh, scores = sample_scored(policy, 2 * DISSECTED, SIZE, generator)
    A = per_step(group_relative(scores, fresh.groups), fresh.mask)
    truth = gradient(policy, fresh, A)
    stale, scores = sample_scored(late, DISSECTED, SIZE, generator)
    A = per_step(group_relative(scores, stale.groups), stale.mask)
    own = rescored(policy, stale).logprobs
    pushed_on = gone(own, stale.logprobs, A)
    arms = {"ignored": ignored, "truncated": truncated, "clip": clip, "dppo": dppo}
    arms |= {"only_less": only_less, "only_more": only_more}
    weights = {name: f(own, stale.logprobs, A, stale.mask) for name, f in arms.items()}
    weights["without_gone"], weights["only_gone"] = ~pushed_on, pushed_on
    weights["without_others"] = without_others(own, stale.logprobs, A, stale.mask)
    found = {name: gradient(policy, stale, w * A) for name, w in weights.items()}
    again, scores = sample_scored(policy, DISSECTED, SIZE, generator)
    A = per_step(group_relative(scores, again.groups), again.mask)
    found["fresh"] = gradient(policy, again, A)  # what so many answers can show
    return {
        "seed": seed,
        "gone": float(f"{pushed_on[stale.mask].float().mean():.4g}"),
        "norm": {name: float(f"{g.norm():.4g}") for name, g in found.items()},
        "cosine": {
            name: round(float(torch.cosine_similarity(g, truth, dim=0)), 4)
            for name, g in found.items()
        },
    }


def kept() -> dict[str, Any]:
    """What an earlier call has stored, to be gone on with."""
    nothing: dict[str, list[Any]] = {name: [] for name in ARMS}
    if stored := stored_before(NAME):
        return {**nothing, **stored}
    before = measure(fresh_sft(), questions=EXAM)
    settings = {
        "questions": QUESTIONS,
        "size": SIZE,
        "updates": UPDATES,
        "learning_rate": LEARNING_RATE,
        "exam": EXAM,
        "delays": [0, *DELAYS],
        "late": LATE,
    }
    return {"settings": settings, "before": before, "dissected": [], **nothing}


def main() -> None:
    torch.set_num_threads(1)
    results = kept()
    earlier = results.pop("about", {}).get("cpu_seconds", 0)
    jobs: list[tuple[str, Callable[[int], dict[str, Any]]]] = [("dissected", dissect)]
    jobs += [
        (name, partial(train, arm=arm, before=results["before"]))
        for name, arm in ARMS.items()
    ]
    first = [job for job in jobs if job[0].startswith("delay")]  # the dial
    for block in (first, [job for job in jobs if job not in first]):
        for seed in SEEDS:
            for name, job in block:
                if seed in [run["seed"] for run in results[name]]:
                    continue
                results[name].append(job(seed))
                store(NAME, results, earlier=earlier)  # an interruption loses one run


if __name__ == "__main__":
    main()
