"""REINFORCE on the language model: five seeds, and what could explain it away.

    pip install -r requirements.txt
    python -m experiments.reinforce

From "sft", 64 questions x 8 answers an update, the baseline being the mean score of
the other answers to the same question. Controls: a random score instead of the rule,
and more supervised fine-tuning for the same CPU time.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from experiments.answers import (
    better_than_others,
    fresh_sft,
    measure,
    sample_scored,
    seeded,
    store,
)
from rl_notes.language.training import fine_tune
from rl_notes.policies import TransformerPolicy
from rl_notes.trajectories import with_scores
from rl_notes.updates import reinforce_update

SEEDS = range(5)
GROUPS, SIZE = 64, 8
LEARNING_RATE = 1e-4
MEASURED_AT = (0, 5, 10, 20, 30)
SFT_LEARNING_RATES = (1e-4, 1e-3)


def reinforce(seed: int, *, measured_at: Sequence[int], rule: bool) -> dict[str, Any]:
    """Train one model; what it can do after each number of updates."""
    model, generator = fresh_sft(), seeded(seed)
    policy = TransformerPolicy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    curve, seconds, moved = [], 0.0, []
    for update in tqdm(range(1 + measured_at[-1])):
        if update in measured_at:
            curve.append({"updates": update, **measure(model)})
        if update == measured_at[-1]:
            break
        begin = time.process_time()
        trajectories, scores = sample_scored(policy, GROUPS, SIZE, generator)
        if not rule:
            scores = torch.rand(scores.shape, generator=generator).round()
            trajectories = with_scores(trajectories, scores)
        better = better_than_others(scores, SIZE)
        advantages = better[:, None].expand_as(trajectories.mask)
        stats = reinforce_update(policy, optimizer, trajectories, advantages)
        seconds += time.process_time() - begin
        moved.append(round(stats.kl_mean, 6))
    return {
        "seed": seed,
        "curve": curve,
        "kl": moved,
        "cpu_seconds": math.ceil(seconds),
    }


def more_sft(seed: int, *, learning_rate: float, seconds: float) -> dict[str, Any]:
    """Fine-tune "sft" further for about as many CPU-seconds."""
    begin = time.process_time()
    fine_tune(fresh_sft(), steps=20, generator=seeded(100))
    steps = math.ceil(20 * seconds / (time.process_time() - begin))
    model: PreTrainedModel = fresh_sft()
    generator = seeded(seed)
    fine_tune(model, steps=steps, learning_rate=learning_rate, generator=generator)
    return {"seed": seed, "steps": steps, **measure(model)}


def main() -> None:
    torch.set_num_threads(1)
    rule = [reinforce(seed, measured_at=MEASURED_AT, rule=True) for seed in SEEDS]
    last = MEASURED_AT[-1:]
    chance = [reinforce(seed, measured_at=last, rule=False) for seed in SEEDS]
    budget = sum(run["cpu_seconds"] for run in rule) / len(rule)
    taught = {
        f"{rate:g}": [
            more_sft(seed, learning_rate=rate, seconds=budget) for seed in SEEDS
        ]
        for rate in SFT_LEARNING_RATES
    }
    store(
        "reinforce",
        {
            "groups": GROUPS,
            "size": SIZE,
            "learning_rate": LEARNING_RATE,
            "rule": rule,
            "random": chance,
            "more_sft": taught,
        },
    )


if __name__ == "__main__":
    main()
