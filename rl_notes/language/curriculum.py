"""RL with verifiable rewards, and the curriculum of the checkpoint "grpo".

GRPO with nothing but a rule.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import PreTrainedModel

from rl_notes.advantages import group_relative, per_step
from rl_notes.language import arithmetic
from rl_notes.language.answers import answer
from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.policies import TransformerPolicy
from rl_notes.trajectories import Trajectories
from rl_notes.updates import grpo_update

UPDATES = (900, 220, 160)  # in each of the three lessons
SEEDS = (2, 0, 1)
OF_A_KIND, OF_ANY_KIND = 36, 12  # questions in an update of the last two lessons
TRIED = 512  # questions among which those are looked for that the model gets wrong
GREEDY = 1e-3  # a temperature so low that the likeliest token is as good as certain
MICRO_BATCH = 256  # answers that the policy is run on at a time

Ask = Callable[[torch.Generator], list[str]]


def learn_from_the_rule(
    model: PreTrainedModel,
    ask: Ask,
    *,
    updates: int,
    group_size: int = 8,
    minibatches: int = 2,
    rates: tuple[float, float] = (2e-4, 0.0),
    generator: torch.Generator,
) -> list[float]:
    """RL with verifiable rewards: GRPO on nothing but `arithmetic.accuracy_reward`.

    In each update it answers new questions, each `group_size` times. The (grpo)
    objective, without a reference and as a mean over tokens, is climbed for two epochs
    with a clip of 0.2.

    Args:
        model: The policy, as fine-tuning left it. It is changed in place.
        ask: Draws the questions of an update from a generator.
        updates: How many.
        group_size: Answers to each question.
        minibatches: How many each epoch is dealt out to.
        rates: The learning rate of Adam: what it is at the first update, and what it
            would be after the last one. Between them lies a straight line. Where it
            falls to zero, the last updates average out what the others left as noise.
        generator: Source of every draw.

    Returns:
        The share of right answers in the batch of each update.
    """
    first, last = rates
    if updates < 1 or not 0 <= last < math.inf or not 0 < first < math.inf:
        raise ValueError(
            f"updates={updates} must be at least 1, and rates={rates} a positive "
            "number and one that is not negative."
        )
    policy = TransformerPolicy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=first)
    scheduler = LambdaLR(
        optimizer, lambda done: 1 - (1 - last / first) * done / updates
    )
    objective = partial(token_clip, clip_low=0.2, clip_high=0.2)
    right = []
    for _ in tqdm(range(updates), unit="update"):
        batch, scores = _answered(policy, ask(generator), group_size, generator)
        advantages = group_relative(scores, batch.groups)
        grpo_update(
            policy,
            optimizer,
            batch,
            per_step(advantages, batch.mask),
            objective=objective,
            epochs=2,
            minibatches=minibatches,
            generator=generator,
            aggregate=mean_over_tokens,
            micro_batch=MICRO_BATCH,
        )
        scheduler.step()
        right.append(scores.mean().item())
    return right


def three_lessons(
    model: PreTrainedModel, *, updates: Sequence[int] = UPDATES
) -> list[list[float]]:
    """The curriculum that trains the fine-tuned model into the checkpoint "grpo".

    The model is changed in place.
    The first lesson is of questions of every kind. What is left of mistakes after it
    is mostly of one kind, and so is the second lesson. The model gets 7 in 100 of
    these right, so each question is answered 32 times, as it is in the third lesson.
    That one is mostly of what the model has just got wrong, as far as there is enough.

    Returns:
        For each lesson the share of right answers in the batch of each update.
    """
    often = {"group_size": 32, "minibatches": 1}
    first, second, third = (torch.Generator().manual_seed(seed) for seed in SEEDS)
    return [
        learn_from_the_rule(model, any_kind, updates=updates[0], generator=first),
        learn_from_the_rule(
            model,
            mostly_long_with_a_carry,
            updates=updates[1],
            rates=(3e-4, 3e-4),
            generator=second,
            **often,
        ),
        learn_from_the_rule(
            model,
            partial(mostly_got_wrong, model),
            updates=updates[2],
            rates=(3e-4, 0.0),
            generator=third,
            **often,
        ),
    ]


def any_kind(generator: torch.Generator, *, n: int = 64) -> list[str]:
    """Draw questions of the training side."""
    return arithmetic.questions(n, held_out=False, generator=generator)


def mostly_long_with_a_carry(generator: torch.Generator) -> list[str]:
    """Draw 36 questions for which `is_long_with_a_carry`, and 12 of any kind."""
    asked: list[str] = []
    while len(asked) < OF_A_KIND:
        drawn = any_kind(generator)
        asked += [question for question in drawn if is_long_with_a_carry(question)]
    return [*asked[:OF_A_KIND], *any_kind(generator, n=OF_ANY_KIND)]


def is_long_with_a_carry(question: str) -> bool:
    """Say whether both numbers are long and the last column carries.

    Long is three digits or more for the first number and four for the second. One
    question in 18 is of this kind. With the carry, work is three tokens longer before
    the hundreds of the second number, and the fine-tuned model seldom finds them.
    """
    left, right = arithmetic.numbers(question)
    return left >= 100 and right >= 1000 and left % 10 + right % 10 >= 10


def mostly_got_wrong(model: PreTrainedModel, generator: torch.Generator) -> list[str]:
    """Draw up to 36 questions whose likeliest answer is wrong, and others up to 48."""
    tried = any_kind(generator, n=TRIED)
    _, scores = _answered(TransformerPolicy(model, GREEDY), tried, 1, generator)
    wrong = [text for text, score in zip(tried, scores, strict=True) if score == 0]
    n = OF_A_KIND + OF_ANY_KIND
    return [*wrong[:OF_A_KIND], *any_kind(generator, n=n)][:n]


def _answered(
    policy: TransformerPolicy,
    asked: Sequence[str],
    group_size: int,
    generator: torch.Generator,
) -> tuple[Trajectories, Float[Tensor, " N"]]:
    """Answers to each question, and for each of them 1 if it is right."""
    batch, prompts, texts = answer(
        policy, asked, group_size=group_size, generator=generator
    )
    scores = arithmetic.accuracy_reward(prompts, texts)
    return batch, torch.tensor(scores, device=batch.mask.device)
