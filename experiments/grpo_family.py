"""GRPO and six of its variants at equal cost: the same number of sampled answers.

    pip install -r requirements.txt
    python -m experiments.grpo_family

Five seeds. Every run starts from "sft" and samples 10,240 answers: 40 updates of 32
questions and 8 answers to each. Those that sample dynamically throw answers away, pay
for them too, and so have fewer updates. The variants differ in what the lines of
`VARIANTS` say, and each keeps the clip range that its paper or the common libraries
give, with one exception. The ranges of GSPO, 3e-4 and 4e-4, are too narrow here: one
update of ours takes the ratios of 95 answers in 100 beyond them. So they are a hundred
times wider.

What is there already is kept and not run again: delete the results to begin anew.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from experiments.answers import (
    LIMIT,
    fresh_sft,
    measure,
    sample_scored,
    seeded,
    store,
    stored_before,
)
from rl_notes.advantages import group_relative, has_spread, leave_one_out, per_step
from rl_notes.objectives import (
    cispo,
    mean_over_sequences,
    mean_over_tokens,
    overlong_penalty,
    sequence_clip,
    sum_over_constant,
    token_clip,
)
from rl_notes.policies import TransformerPolicy
from rl_notes.trajectories import Trajectories
from rl_notes.updates import grpo_update

NAME = "grpo_family"
SEEDS = range(5)
QUESTIONS, SIZE = 32, 8  # in an update
ASKED_AT_A_TIME = 8  # questions, where an update asks until it has enough
MEASURED_AT = (5120, 10240)  # answers sampled; the last is the end
EXAM = 500  # held-out questions
OPTIONS: dict[str, Any] = {"epochs": 2, "minibatches": 2}
LEARNING_RATE = 1e-4
CLIP = partial(token_clip, clip_low=0.2, clip_high=0.2)
BUFFER = 16  # tokens before the limit, from which an answer is called too long


def over_the_limit(x: Tensor, mask: Tensor) -> Tensor:
    return sum_over_constant(x, mask, constant=len(mask) * LIMIT)


@dataclass(frozen=True)
class Variant:
    """The lines in which the variants differ, as GRPO has them."""

    advantages: Callable[[Tensor, Tensor], Tensor] = group_relative
    objective: Callable[..., Tensor] = CLIP
    aggregate: Callable[[Tensor, Tensor], Tensor] = mean_over_sequences
    dynamic: bool = False
    overlong: bool = False


GRPO = Variant()
VARIANTS = {
    "grpo": GRPO,
    "token_mean": replace(GRPO, aggregate=mean_over_tokens),
    "rloo": replace(
        GRPO,
        advantages=leave_one_out,
        objective=partial(
            sequence_clip, clip_low=0.2, clip_high=0.2, length_normalised=False
        ),
    ),
    "dr_grpo": replace(
        GRPO,
        advantages=partial(group_relative, scale=False),
        aggregate=over_the_limit,
    ),
    "dapo": replace(
        GRPO,
        objective=partial(token_clip, clip_low=0.2, clip_high=0.28),
        aggregate=mean_over_tokens,
        dynamic=True,
        overlong=True,
    ),
    "gspo": replace(
        GRPO, objective=partial(sequence_clip, clip_low=0.03, clip_high=0.04)
    ),
    "cispo": replace(
        GRPO, objective=partial(cispo, cap=5.0), aggregate=mean_over_tokens
    ),
}


def joined(batches: list[Trajectories]) -> Trajectories:
    """Batches as one, padded to the longest, with groups of their own."""
    steps = max(batch.mask.shape[1] for batch in batches)
    names = [field.name for field in fields(Trajectories) if field.name != "groups"]
    columns: dict[str, list[Tensor]] = {name: [] for name in names}
    groups: list[Tensor] = []
    for batch in batches:
        missing = steps - batch.mask.shape[1]
        for name in names:
            columns[name].append(pad(getattr(batch, name), (0, missing)))
        groups.append(batch.groups + ASKED_AT_A_TIME * len(groups))
    whole = {name: torch.cat(parts) for name, parts in columns.items()}
    return Trajectories(**whole, groups=torch.cat(groups))


def sample_with_spread(
    policy: TransformerPolicy, most: int, generator: torch.Generator
) -> tuple[Trajectories, Tensor, Tensor]:
    """Ask until enough groups have spread, or `most` answers are sampled.

    Returns the rows to be trained on, their scores, and the scores of all.
    """
    batches: list[Trajectories] = []
    scores: list[Tensor] = []
    spread: list[Tensor] = []
    enough = QUESTIONS * SIZE
    while sum(map(sum, spread)) < enough and sum(map(len, scores)) < most:
        batch, found = sample_scored(policy, ASKED_AT_A_TIME, SIZE, generator)
        batches.append(batch)
        scores.append(found)
        spread.append(has_spread(found, batch.groups))
    useful, every = torch.cat(spread), torch.cat(scores)
    if not useful.any():
        useful = ~useful  # nothing to learn, and nothing to leave out
    rows = useful.nonzero()[:enough, 0]
    return joined(batches).select(rows), every[rows], every


def train(seed: int, variant: Variant, before: dict[str, float]) -> dict[str, Any]:
    """Train one model; what it can do, and what each update did."""
    model, generator = fresh_sft(), seeded(seed)
    policy = TransformerPolicy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    curve, updates = [{"answers": 0, **before}], []
    answers, seconds, budget = 0, 0.0, MEASURED_AT[-1]
    progress = tqdm(total=budget)
    while answers < budget:
        begin = time.process_time()
        if variant.dynamic:
            batch, scores, every = sample_with_spread(
                policy, budget - answers, generator
            )
        else:
            batch, scores = sample_scored(policy, QUESTIONS, SIZE, generator)
            every = scores
        if variant.overlong:
            lengths = batch.mask.sum(1)
            scores = scores + overlong_penalty(lengths, limit=LIMIT, buffer=BUFFER)
        advantages = variant.advantages(scores, batch.groups)
        stats = grpo_update(
            policy,
            optimizer,
            batch,
            per_step(advantages, batch.mask),
            objective=variant.objective,
            aggregate=variant.aggregate,
            generator=generator,
            **OPTIONS,
        )
        seconds += time.process_time() - begin
        due = [at for at in MEASURED_AT if answers < at <= answers + len(every)]
        answers += len(every)
        progress.update(len(every))
        updates.append(
            {
                "answers": answers,
                "score": round(every.mean().item(), 4),
                "rows": stats.rows,
                "kl_mean": float(f"{stats.kl_mean:.4g}"),
                "clip_fraction": float(f"{stats.clip_fraction:.4g}"),
            }
        )
        if due:
            curve.append({"answers": answers, **measure(model, questions=EXAM)})
    return {
        "seed": seed,
        "curve": curve,
        "updates": updates,
        "cpu_seconds": round(seconds),
    }


def kept() -> dict[str, Any]:
    """What an earlier call has stored, to be gone on with."""
    if stored := stored_before(NAME):
        return stored
    before = measure(fresh_sft(), questions=EXAM)
    settings = {
        "questions": QUESTIONS,
        "size": SIZE,
        "learning_rate": LEARNING_RATE,
        **OPTIONS,
    }
    return {"settings": settings, "before": before, **{name: [] for name in VARIANTS}}


def main() -> None:
    torch.set_num_threads(1)
    results = kept()
    earlier = results.pop("about", {}).get("cpu_seconds", 0)
    for seed in SEEDS:
        for name, variant in VARIANTS.items():
            if seed in [run["seed"] for run in results[name]]:
                continue
            results[name].append(train(seed, variant, results["before"]))
            store(NAME, results, earlier=earlier)  # an interruption loses one run


if __name__ == "__main__":
    main()
