"""From questions to trajectories and texts: how the little model is asked."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from rl_notes.language import tokenizer
from rl_notes.language.generation import generate
from rl_notes.policies import TransformerPolicy
from rl_notes.trajectories import Trajectories

LONGEST = 64  # tokens that an answer may have, the end token included


class Answers(NamedTuple):
    """What a policy answered, in rows: the answers to a question are adjacent.

    Attributes:
        trajectories: The tokens, as `generate` gives them; rewards are 0.
        prompts: The question of each row.
        texts: The answer of each row, as the verifier sees it.
    """

    trajectories: Trajectories
    prompts: list[str]
    texts: list[str]


def answer(
    policy: TransformerPolicy,
    questions: Sequence[str],
    *,
    group_size: int = 1,
    max_new_tokens: int = LONGEST,
    generator: torch.Generator,
) -> Answers:
    """Sample `group_size` completions of each question, as trajectories and texts.

    Any text of the little world may be continued, a question with the beginning of its
    answer for example. What was sampled is the text, and no part of the prompt.

    Args:
        policy: A model with the tokens of `tokenizer.build`.
        questions: What is asked, each once.
        group_size: Answers to each.
        max_new_tokens: The length limit of an answer, the end token included.
        generator: Source of every draw, see `generate`.
    """
    trajectories = generate(
        policy,
        tokenizer.encode(_tokens(), questions),
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        generator=generator,
    )
    prompts = [question for question in questions for _ in range(group_size)]
    texts = tokenizer.answer_texts(_tokens(), trajectories)
    return Answers(trajectories, prompts, texts)


@cache
def _tokens() -> PreTrainedTokenizerFast:
    """The tokenizer of the little world, made once."""
    return tokenizer.build()
