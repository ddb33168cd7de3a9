"""Exercises of the three steps."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge


def check_next_token_loss(
    answer: Callable[[Tensor, Tensor], Tensor | float | EllipsisType | None],
) -> None:
    """Exercise of the three steps: the cross-entropy of a text.

    Called as answer(logits [T, A], ids [T]): logits[t] were computed from ids[: t + 1].
    """
    generator = torch.Generator(device="cpu").manual_seed(4)
    inputs = [
        (
            torch.randn(steps, size, generator=generator, device="cpu").double(),
            torch.randint(size, (steps,), generator=generator, device="cpu"),
        )
        for steps, size in ((4, 3), (6, 5))
    ]

    def chosen(logits: Tensor, ids: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    judge(
        answer,
        right=lambda logits, ids: -chosen(logits[:-1], ids[1:]).mean(),
        mistakes={
            "logits[t] bet on the token after ids[t], not on ids[t], which the model "
            "has just read. Shift by one.": (
                lambda logits, ids: -chosen(logits, ids).mean()
            ),
            "You shifted the wrong way: logits[t] belong to ids[t + 1].": (
                lambda logits, ids: -chosen(logits[1:], ids[:-1]).mean()
            ),
            "The sign is turned: a loss falls as the probability rises.": (
                lambda logits, ids: chosen(logits[:-1], ids[1:]).mean()
            ),
            "This is the sum. The mean does not grow with the length of the text.": (
                lambda logits, ids: -chosen(logits[:-1], ids[1:]).sum()
            ),
            "The logarithm is missing: average log p, not p.": (
                lambda logits, ids: -chosen(logits[:-1], ids[1:]).exp().mean()
            ),
        },
        inputs=inputs,
    )


def check_answer_mask(
    answer: Callable[[int, int], list[bool] | EllipsisType | None],
) -> None:
    """Exercise of the three steps: which tokens of a row carry loss.

    Called as answer(prompt_length, answer_length); the row is the prompt, the answer
    and one end token.
    """
    judge(
        answer,
        right=lambda prompt, length: [False] * prompt + [True] * (length + 1),
        mistakes={
            "The end token carries no loss, so the model never learns to stop.": (
                lambda prompt, length: [False] * prompt + [True] * length + [False]
            ),
            "The prompt carries loss: the model learns to ask, too.": (
                lambda prompt, length: [True] * (prompt + length + 1)
            ),
            "The wrong way round: True stands for a token that carries loss.": (
                lambda prompt, length: [True] * prompt + [False] * (length + 1)
            ),
            "The row is one longer: after the answer stands the end token.": (
                lambda prompt, length: [False] * prompt + [True] * length
            ),
        },
        inputs=[(3, 2), (5, 4), (1, 1)],
    )
