"""GRPO with nothing but the rule: a model that turns to showing its work.

    pip install -r requirements.txt
    python -m experiments.thinking

Five seeds of everything, all from "sft", with 64 questions x 8 answers an update.
Beside GRPO: the same with a coin instead of the rule, the same with steps that are too
large, and two ways of sampling as many answers and fine-tuning on the right ones: anew
in every round, or on answers that "sft" gave once. More supervised fine-tuning is in
the experiment "reinforce".

Measured on held-out questions: what `measure` says, and how far the model has gone from
"sft", its entropy, and how often it is right where it must show its work and where it
must not.

Besides, the three lessons of the "grpo" checkpoint: the share of right answers in each
update. They alone take about forty minutes. And what the first of them left to learn,
on held-out questions that were drawn when every model was there already.

What is there already is kept and not run again: delete the results to begin anew.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from experiments.answers import (
    TOKENS,
    fresh_sft,
    measure,
    sample_scored,
    seeded,
    store,
    stored_before,
)
from rl_notes.advantages import group_relative, has_spread, per_step
from rl_notes.divergences import entropy, kl_exact
from rl_notes.language import arithmetic, curriculum, tokenizer
from rl_notes.language.answers import answer
from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.policies import (
    TransformerPolicy,
    action_logprobs,
    states,
)
from rl_notes.trajectories import Trajectories
from rl_notes.updates import grpo_update

SEEDS = range(5)
QUESTIONS, SIZE = 64, 8  # in an update
RATE = 1e-4
CLIP = partial(token_clip, clip_low=0.2, clip_high=0.2)
EPOCHS, MINIBATCHES = 2, 4
MEASURED_AT = (0, 10, 20, 40, 80)
ROUNDS = 10  # updates by whatever is put beside GRPO
LESSONS = curriculum.UPDATES
TOO_LARGE, TOO_LARGE_UPDATES = ("3e-4", "1e-3"), 5
EXAM = 500  # questions for what `measure` does not say
FRESH, FRESH_SEED = 4000, 20261127  # held-out questions that no decision has seen
SHOWN = ("What is 40+92?", "What is 362+98?", "What is 2468+1384?")  # held out
TRIES = 4  # answers to each of these that are kept

Update = Callable[
    [TransformerPolicy, torch.optim.Optimizer, torch.Generator], dict[str, float]
]


def of_batch(batch: Trajectories, scores: Tensor) -> dict[str, float]:
    """What the answers of an update are like, before it."""
    texts = tokenizer.answer_texts(TOKENS, batch)
    worked = torch.tensor([arithmetic.shows_work(text) for text in texts])
    return {
        "right": scores.mean().item(),
        "work": worked.float().mean().item(),
        "length": batch.mask.sum(1).float().mean().item(),
    }


def grpo(
    policy: TransformerPolicy,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    *,
    rule: bool = True,
) -> dict[str, float]:
    """One update by GRPO; without the rule a coin gives the scores."""
    batch, truth = sample_scored(policy, QUESTIONS, SIZE, generator)
    coin = torch.rand(truth.shape, generator=generator).round()
    scores = truth if rule else coin
    stats = grpo_update(
        policy,
        optimizer,
        batch,
        per_step(group_relative(scores, batch.groups), batch.mask),
        objective=CLIP,
        epochs=EPOCHS,
        minibatches=MINIBATCHES,
        generator=generator,
        aggregate=mean_over_tokens,
    )
    alike = (~has_spread(scores, batch.groups)).float().mean().item()
    moved = ("kl_mean", "kl_max", "entropy", "clip_fraction")
    return {
        **of_batch(batch, truth),
        "alike": alike,
        **{name: getattr(stats, name) for name in moved},
    }


def imitate(
    policy: TransformerPolicy,
    optimizer: torch.optim.Optimizer,
    examples: Trajectories,
    generator: torch.Generator,
) -> None:
    """One epoch of supervised fine-tuning on answers that were sampled."""
    order = torch.randperm(len(examples.mask), generator=generator)
    for rows in order.chunk(MINIBATCHES):
        part = examples.select(rows).trimmed()
        loss = -mean_over_tokens(action_logprobs(policy, part), part.mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def keep_right(
    policy: TransformerPolicy,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> dict[str, float]:
    """Sample as for an update, and fine-tune on the right answers."""
    batch, scores = sample_scored(policy, QUESTIONS, SIZE, generator)
    for _ in range(EPOCHS):
        imitate(
            policy, optimizer, batch.select((scores == 1).nonzero()[:, 0]), generator
        )
    return of_batch(batch, scores)


@torch.no_grad()
def course(model: PreTrainedModel) -> dict[str, float]:
    """KL(policy || sft) of whole answers, exact at each state, and the entropy."""
    asked = arithmetic.questions(EXAM, held_out=True, generator=seeded(20))
    policy, reference = TransformerPolicy(model), TransformerPolicy(fresh_sft())
    batch, _, _ = answer(policy, asked, generator=seeded(21))
    logits = policy(states(batch))
    kl = torch.where(batch.mask, kl_exact(logits, reference(states(batch))), 0)
    return {
        "kl": kl.sum(1).mean().item(),
        "entropy": entropy(logits)[batch.mask].mean().item(),
    }


def by_digits(model: PreTrainedModel, *, work: bool) -> dict[str, float]:
    """Share right where the first token is given: that of work, or of an answer.

    By the digits of the longer number; no held-out question has one digit alone.
    """
    asked = arithmetic.questions(EXAM, held_out=True, generator=seeded(22))
    firsts = [
        arithmetic.THINK if work else q.removeprefix("What is ")[0] for q in asked
    ]
    begun = [q + first for q, first in zip(asked, firsts, strict=True)]
    policy = TransformerPolicy(model)
    _, _, ends = answer(policy, begun, max_new_tokens=63, generator=seeded(23))
    answers = [first + end for first, end in zip(firsts, ends, strict=True)]
    right = torch.tensor(arithmetic.accuracy_reward(asked, answers))
    digits = torch.tensor([len(str(max(arithmetic.numbers(q)))) for q in asked])
    return {str(d): right[digits == d].mean().item() for d in (2, 3, 4)}


def said(model: PreTrainedModel) -> dict[str, list[str]]:
    """What the model answers to three questions."""
    policy = TransformerPolicy(model)
    _, _, answers = answer(policy, list(SHOWN), group_size=TRIES, generator=seeded(24))
    return {q: answers[k * TRIES :][:TRIES] for k, q in enumerate(SHOWN)}


def examine(model: PreTrainedModel) -> dict[str, Any]:
    """All that is measured on held-out questions."""
    return {
        **measure(model),
        **rounded(course(model)),
        "right_with_work": rounded(by_digits(model, work=True)),
        "right_at_once": rounded(by_digits(model, work=False)),
        "said": said(model),
    }


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{x:.4g}") for name, x in figures.items()}


class Learner:
    """A model in training: where it is, and what was seen of it on the way."""

    def __init__(self, seed: int, *, rate: float, before: dict[str, Any]) -> None:
        self.seed = seed
        self.policy = TransformerPolicy(fresh_sft())
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=rate)
        self.generator = seeded(seed)
        self.curve: list[dict[str, Any]] = [{"updates": 0, **before}]
        self.updates: list[dict[str, float]] = []
        self.seconds = 0.0

    def learn(self, updates: int, update: Update) -> None:
        """Go on to so many updates in all."""
        for _ in tqdm(range(len(self.updates), updates)):
            begin = time.process_time()
            seen = update(self.policy, self.optimizer, self.generator)
            self.seconds += time.process_time() - begin
            self.updates.append(rounded(seen))

    def sit(self, updates: int) -> None:
        """Ask the held-out questions, after so many updates."""
        self.curve.append(
            {"updates": updates, **examine(cast(PreTrainedModel, self.policy.model))}
        )

    def report(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "curve": self.curve,
            "updates": self.updates,
            "cpu_seconds": round(self.seconds),
        }


def long_run(seed: int, before: dict[str, Any]) -> dict[str, Any]:
    """GRPO with the rule, examined on the way."""
    learner = Learner(seed, rate=RATE, before=before)
    for updates in MEASURED_AT[1:]:
        learner.learn(updates, grpo)
        learner.sit(updates)
    return learner.report()


def short_run(seed: int, before: dict[str, Any], update: Update) -> dict[str, Any]:
    """Another update in the place of GRPO, examined at the end."""
    learner = Learner(seed, rate=RATE, before=before)
    learner.learn(ROUNDS, update)
    learner.sit(ROUNDS)
    return learner.report()


def too_large(seed: int, before: dict[str, Any], rate: float) -> dict[str, Any]:
    """GRPO with another learning rate; what is seen in its batches is enough."""
    learner = Learner(seed, rate=rate, before=before)
    learner.learn(TOO_LARGE_UPDATES, grpo)
    return learner.report()


def right_once(seed: int, before: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune on right answers that "sft" gave, as many of them and as long."""
    learner = Learner(seed, rate=RATE, before=before)
    policy, generator = learner.policy, learner.generator
    begin = time.process_time()
    kept = []
    for _ in range(ROUNDS):
        batch, scores = sample_scored(policy, QUESTIONS, SIZE, generator)
        kept.append(batch.select((scores == 1).nonzero()[:, 0]))
    for _ in range(EPOCHS):
        for index in torch.randperm(ROUNDS, generator=generator).tolist():
            imitate(policy, learner.optimizer, kept[index], generator)
    learner.seconds = time.process_time() - begin
    learner.sit(ROUNDS)
    return learner.report()


def beside(seed: int, before: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All that is put beside GRPO, of one seed."""
    return {
        "random": short_run(seed, before, partial(grpo, rule=False)),
        "right_each_round": short_run(seed, before, keep_right),
        "right_once": right_once(seed, before),
        **{f"rate_{rate}": too_large(seed, before, float(rate)) for rate in TOO_LARGE},
    }


def along_the_lessons() -> list[list[float]]:
    """The share of right answers in each update on the way to the "grpo" checkpoint."""
    found = curriculum.three_lessons(fresh_sft(), updates=LESSONS)
    return [[round(share, 4) for share in lesson] for lesson in found]


def after_the_first_lesson() -> dict[str, Any]:
    """What the model still got wrong then: shares of the likeliest answers."""
    model = fresh_sft()
    right = curriculum.learn_from_the_rule(
        model,
        curriculum.any_kind,
        updates=LESSONS[0],
        generator=seeded(curriculum.SEEDS[0]),
    )
    asked = arithmetic.questions(FRESH, held_out=True, generator=seeded(FRESH_SEED))
    alike = torch.tensor([curriculum.is_long_with_a_carry(text) for text in asked])
    found = {}
    for name, temperature in (("greedy", curriculum.GREEDY), ("sampled", 1.0)):
        policy = TransformerPolicy(model, temperature)
        texts = answer(policy, asked, generator=seeded(FRESH_SEED)).texts
        wrong = 1 - torch.tensor(arithmetic.accuracy_reward(asked, texts))
        found[f"{name}_wrong"] = round(wrong.mean().item(), 4)
        mistakes = alike[wrong == 1].float()
        found[f"{name}_wrong_alike"] = round(mistakes.mean().item(), 4)
    return {
        "questions": FRESH,
        "alike": round(alike.float().mean().item(), 4),
        **found,
        "right_in_the_last_ten_updates": [round(share, 4) for share in right[-10:]],
    }


def kept() -> dict[str, Any]:
    """What an earlier call has stored, to be gone on with."""
    settings = {"questions": QUESTIONS, "size": SIZE, "learning_rate": RATE}
    return stored_before("thinking") | settings


def main() -> None:
    torch.set_num_threads(1)
    results = kept()
    earlier = results.pop("about", {}).get("cpu_seconds", 0)
    if "grpo" not in results:
        before = examine(fresh_sft())
        others = [beside(seed, before) for seed in SEEDS]
        results["grpo"] = [long_run(seed, before) for seed in SEEDS]
        results |= {name: [runs[name] for runs in others] for name in others[0]}
        store("thinking", results, earlier=earlier)
    if "lessons" not in results:
        results["lessons"] = along_the_lessons()
        store("thinking", results, earlier=earlier)
    if "first_lesson" not in results:
        results["first_lesson"] = after_the_first_lesson()
        store("thinking", results, earlier=earlier)


if __name__ == "__main__":
    main()
