"""Runs of GRPO that are broken on purpose, one thing at a time, beside a healthy one.

    pip install -r requirements.txt
    python -m experiments.diagnosis

Five seeds. Every run starts from "sft" and makes 15 updates from 16 questions with 8
answers each. An arm is the healthy run with one field of `Run` changed, as the lines of
`ARMS` say, so that mending it gives the healthy run. What a trainer would log is kept
of every update, and at the end the model answers held-out questions, always in the same
way.

What is there already is kept and not run again: delete the results to begin anew.
"""

import copy
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from experiments.answers import (
    GREEDY,
    LIMIT,
    TOKENS,
    fresh_sft,
    measure,
    seeded,
    store,
    stored_before,
)
from rl_notes.advantages import group_relative, has_spread, per_step
from rl_notes.divergences import kl_exact
from rl_notes.language import arithmetic
from rl_notes.language.answers import answer
from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.policies import TransformerPolicy, action_logprobs, states
from rl_notes.trajectories import Trajectories
from rl_notes.updates import grpo_update

NAME = "diagnosis"
SEEDS = range(5)
QUESTIONS, SIZE = 16, 8  # in an update
UPDATES = 15
EXAM = 300  # held-out questions
SFT = fresh_sft()
CLIP = partial(token_clip, clip_low=0.2, clip_high=0.2)


@dataclass(frozen=True)
class Run:
    """What an arm may change.

    Attributes:
        rate: The learning rate of Adam.
        temperature: At which answers are sampled, and scored.
        limit: Tokens that an answer may have.
        delay: By how many updates the copy that answers is late, unbeknown to the
            update: it takes the log-probabilities of the policy for those of the copy.
        mask: Which tokens are trained: those of the "answer", the "prompt" too, or
            all of the answer but the end token ("no end").
        mixed: Row n is compared with the rows n + 16, n + 32, ..., which answer
            other questions.
        price: Of a nat of KL to the reference.
        k1_in_loss: The price is put on k1 and differentiated, in place of k3.
    """

    rate: float = 1e-4
    temperature: float = 1.0
    limit: int = LIMIT
    delay: int = 0
    mask: str = "answer"
    mixed: bool = False
    price: float = 0.0
    k1_in_loss: bool = False


HEALTHY = Run()
PRICED = replace(HEALTHY, price=0.05)
ARMS = {
    "healthy": HEALTHY,
    "temperature": replace(HEALTHY, temperature=GREEDY),
    "truncated": replace(HEALTHY, limit=20),
    "late": replace(HEALTHY, delay=8),
    "prompt": replace(HEALTHY, mask="prompt"),
    "no_end": replace(HEALTHY, mask="no end"),
    "mixed": replace(HEALTHY, mixed=True),
    "priced": PRICED,  # healthy as well, and beside the next one
    "k1_in_loss": replace(PRICED, k1_in_loss=True),
    "rate": replace(HEALTHY, rate=3e-3),
}


def masked(batch: Trajectories, which: str) -> Tensor:
    """The tokens that are trained, [N, T]."""
    trained: Tensor = batch.mask
    if which == "prompt":
        trained = batch.mask.flip(1).cumsum(1).flip(1) > 0
    if which == "no end":
        trained = batch.mask & (batch.actions != TOKENS.eos_token_id)
    return trained


@torch.no_grad()
def kl_of_answers(model: PreTrainedModel, batch: Trajectories) -> float:
    """KL(policy || sft) at a temperature of 1, summed over each answer, their mean."""
    seen = states(batch)
    found = kl_exact(TransformerPolicy(model)(seen), TransformerPolicy(SFT)(seen))
    return float(torch.where(batch.mask, found, 0).sum(1).mean())


def priced(
    new: Tensor, old: Tensor, A: Tensor, mask: Tensor, *, price: float
) -> Tensor:
    """The clip less the price of k1 in the loss, whose slope knows no reference."""
    return CLIP(new, old, A, mask) - price * (new - old)


def train(seed: int, arm: Run) -> dict[str, Any]:
    """Train one model; what it can do, and what each update would have logged."""
    model, generator = fresh_sft(), seeded(seed)
    policy = TransformerPolicy(model, arm.temperature)
    optimizer = torch.optim.Adam(model.parameters(), lr=arm.rate)
    begin, updates = time.process_time(), []
    earlier = deque([copy.deepcopy(model)], maxlen=arm.delay + 1)
    for _ in tqdm(range(UPDATES)):
        asked = arithmetic.questions(QUESTIONS, held_out=False, generator=generator)
        batch, prompts, texts = answer(
            TransformerPolicy(earlier[0], arm.temperature),
            asked,
            group_size=SIZE,
            max_new_tokens=arm.limit,
            generator=generator,
        )
        scores = torch.tensor(arithmetic.accuracy_reward(prompts, texts))
        groups = batch.groups
        if arm.mixed:
            groups = torch.arange(QUESTIONS).repeat(SIZE)
        mask = masked(batch, arm.mask)
        trained = batch
        if arm.delay or arm.mask != "answer":  # else the update would refuse the batch
            logprobs = torch.where(mask, batch.logprobs, 0)
            trained = replace(batch, mask=mask, logprobs=logprobs)
            with torch.no_grad():
                own = action_logprobs(policy, trained)
            trained = replace(trained, logprobs=own)
        away = kl_of_answers(model, batch)
        A = per_step(group_relative(scores, groups), mask)
        options: dict[str, Any] = {"objective": CLIP}
        if arm.k1_in_loss:  # every row has a gradient, those of silent groups too
            options["objective"] = partial(priced, price=arm.price)
            A = torch.where(mask, A + 1e-12, 0)
        elif arm.price:
            with torch.no_grad():
                logprobs = action_logprobs(TransformerPolicy(SFT), trained)
            options |= {"reference_logprobs": logprobs, "beta": arm.price}
        stats = grpo_update(
            policy,
            optimizer,
            trained,
            A,
            aggregate=mean_over_tokens,
            epochs=2,
            minibatches=2,
            max_norm=1.0,
            generator=generator,
            **options,
        )
        ended = (batch.actions == TOKENS.eos_token_id) & batch.mask
        found = {
            "score": scores.mean(),
            "work": sum(map(arithmetic.shows_work, texts)) / len(texts),
            "length": batch.mask.sum(1).float().mean(),
            "ended": ended.any(dim=1).float().mean(),
            "silent": 1 - has_spread(scores, groups).float().mean(),
            "kl": away,
            "entropy": stats.entropy,
            "gradient_norm": stats.gradient_norm,
            "clip_fraction": stats.clip_fraction,
            "step": stats.kl_mean,
        }
        updates.append({name: float(f"{float(x):.4g}") for name, x in found.items()})
        earlier.append(copy.deepcopy(model))
    return {
        "seed": seed,
        "end": measure(model, questions=EXAM),
        "updates": updates,
        "cpu_seconds": round(time.process_time() - begin),
    }


def kept() -> dict[str, Any]:
    """What an earlier call has stored, to be gone on with."""
    if stored := stored_before(NAME):
        return stored
    settings = {
        "questions": QUESTIONS,
        "size": SIZE,
        "updates": UPDATES,
        "exam": EXAM,
    }
    before = measure(fresh_sft(), questions=EXAM)
    runs: dict[str, list[Any]] = {name: [] for name in ARMS}
    return {"settings": settings, "before": before, **runs}


def main() -> None:
    torch.set_num_threads(1)
    results = kept()
    earlier = results.pop("about", {}).get("cpu_seconds", 0)
    for seed in SEEDS:
        for name, arm in ARMS.items():
            if seed in [run["seed"] for run in results[name]]:
                continue
            results[name].append(train(seed, arm))
            store(NAME, results, earlier=earlier)  # an interruption loses one run


if __name__ == "__main__":
    main()
