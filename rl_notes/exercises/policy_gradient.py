"""Exercises of the policy gradient chapter."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge


def check_log_gradient(
    answer: Callable[[Tensor, int], Tensor | EllipsisType | None],
) -> None:
    """Exercise of the policy gradient chapter: d log pi(a) / d logits.

    Called as answer(logits [A], action).
    """
    generator = torch.Generator(device="cpu").manual_seed(2)
    inputs = [
        (torch.randn(size, generator=generator, device="cpu").double(), action)
        for size, action in ((3, 0), (4, 2), (2, 1))
    ]
    judge(
        answer,
        right=lambda z, a: torch.eye(len(z), device="cpu").double()[a] - z.softmax(0),
        mistakes={
            "The sign is turned: going along this makes the action less likely.": (
                lambda z, a: z.softmax(0) - torch.eye(len(z), device="cpu").double()[a]
            ),
            "All logits move, not only that of the action: the probabilities must "
            "still sum to 1.": (
                lambda z, a: (
                    torch.eye(len(z), device="cpu").double()[a] * (1 - z.softmax(0))
                )
            ),
            "This is the gradient of pi(a), not of log pi(a): divide by pi(a).": (
                lambda z, a: (
                    z.softmax(0)[a]
                    * (torch.eye(len(z), device="cpu").double()[a] - z.softmax(0))
                )
            ),
            "Subtract the probabilities, not the logits.": (
                lambda z, a: torch.eye(len(z), device="cpu").double()[a] - z
            ),
        },
        inputs=inputs,
    )


def check_baseline(
    answer: Callable[[Tensor, Tensor], Tensor | EllipsisType | None],
) -> None:
    """Exercise of the policy gradient chapter: a baseline that keeps the mean right.

    Called as answer(rewards [N], actions [N]) for N plays of a game of one step, and
    returns the advantages [N].
    """
    generator = torch.Generator(device="cpu").manual_seed(3)
    inputs = [
        (
            torch.randn(n, generator=generator, device="cpu").double(),
            torch.randint(3, (n,), generator=generator, device="cpu"),
        )
        for n in (6, 9)
    ]

    def of_the_others(rewards: Tensor, actions: Tensor) -> Tensor:
        return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)

    def of_the_same_action(rewards: Tensor, actions: Tensor) -> Tensor:
        same = (actions[:, None] == actions[None, :]).double()
        return rewards - same @ rewards / same.sum(dim=1)

    judge(
        answer,
        right=of_the_others,
        mistakes={
            "Your baseline differs from action to action, so it takes away the very "
            "difference that is to be learnt.": of_the_same_action,
            "The play itself is part of its own mean: that shrinks the gradient to "
            "(N-1)/N of its length. Use the mean of the others.": (
                lambda r, a: r - r.mean()
            ),
            "The sign is turned: a better play than the others must be positive.": (
                lambda r, a: -of_the_others(r, a)
            ),
        },
        inputs=inputs,
    )
