"""Exercises of the chapter on the language model as a policy."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge


def check_sequence_logprob(
    answer: Callable[[Tensor, Tensor, Tensor], Tensor | EllipsisType | None],
) -> None:
    """Exercise: log-probability of each answer of a batch, the sum over its tokens.

    Called as answer(logits [N, T, A], actions [N, T], mask [N, T]); returns [N].
    """
    generator = torch.Generator(device="cpu").manual_seed(5)
    inputs = []
    for lengths in ((2, 4), (1, 3, 2)):
        rows = len(lengths)
        logits = torch.randn(rows, 6, 4, generator=generator, device="cpu").double()
        actions = torch.randint(4, (rows, 6), generator=generator, device="cpu")
        steps = torch.arange(6, device="cpu")
        ends = torch.tensor(lengths, device="cpu")[:, None] + 1
        inputs.append((logits, actions, (steps >= 1) & (steps < ends)))

    def chosen(logits: Tensor, actions: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]

    judge(
        answer,
        right=lambda z, a, mask: (chosen(z, a) * mask).sum(1),
        mistakes={
            "The prompt and the padding are in your sum. The model did not choose "
            "them: use the mask.": lambda z, a, mask: chosen(z, a).sum(1),
            "This is the mean over the tokens. The logarithm of a product is a sum.": (
                lambda z, a, mask: (chosen(z, a) * mask).sum(1) / mask.sum(1)
            ),
            "This is the sum of the probabilities. Take logarithms before adding.": (
                lambda z, a, mask: (chosen(z, a).exp() * mask).sum(1)
            ),
            "This is the probability. Its logarithm was asked for, since the product "
            "of many small numbers becomes 0 in a computer.": (
                lambda z, a, mask: (chosen(z, a) * mask).sum(1).exp()
            ),
            "Logits are not log-probabilities: take log_softmax first.": (
                lambda z, a, mask: (z.gather(-1, a[..., None])[..., 0] * mask).sum(1)
            ),
            "logits[:, t] already belong to actions[:, t]: yours are shifted again.": (
                lambda z, a, mask: (chosen(z[:, :-1], a[:, 1:]) * mask[:, 1:]).sum(1)
            ),
            "This is one number for the batch. Each row is an answer of its own.": (
                lambda z, a, mask: (chosen(z, a) * mask).sum()
            ),
        },
        inputs=inputs,
    )


def check_sampled_mask(
    answer: Callable[[Tensor, int, int], Tensor | EllipsisType | None],
) -> None:
    """Exercise: which actions of a row the model chose.

    Called as answer(actions [T], prompt_length, end), where actions[0] is the token
    after the begin token; returns the mask [T]. Token 0 pads the row, and may have
    been sampled as well.
    """
    end = 2
    rows = [
        ([5, 6, 7, 4, 0, 8, 2, 0, 0], 4),
        ([5, 2, 7, 4, 6, 2, 0, 0], 4),
        ([9, 3, 2, 0], 3),
    ]
    inputs = [(torch.tensor(row, device="cpu"), n, end) for row, n in rows]

    def sampled(actions: Tensor, prompt_length: int) -> Tensor:
        return torch.arange(len(actions), device="cpu") >= prompt_length - 1

    def ended_before(actions: Tensor, prompt_length: int) -> Tensor:
        ends = (actions == end) & sampled(actions, prompt_length)
        return ends.cumsum(0) - ends.long() > 0

    def right(actions: Tensor, prompt_length: int, _: int) -> Tensor:
        inside = sampled(actions, prompt_length)
        return inside & ~ended_before(actions, prompt_length)

    judge(
        answer,
        right=right,
        mistakes={
            "The end token is left out. To stop was a choice as well, and without it "
            "the model never learns when to stop.": (
                lambda a, n, e: right(a, n, e) & (a != end)
            ),
            "The prompt is in it. The model did not choose the question.": (
                lambda a, n, e: right(a, n, e) | ~sampled(a, n)
            ),
            "actions[t] is the token after position t: the first sampled token stands "
            "at prompt_length - 1.": (
                lambda a, n, e: right(a, n, e) & sampled(a, n + 1)
            ),
            "What stands after the first end token was not sampled.": (
                lambda a, n, e: sampled(a, n)
            ),
            "Padding cannot be told by its token: the model may have sampled that very "
            "token. Count from the end token.": (
                lambda a, n, e: right(a, n, e) & (a != 0)
            ),
        },
        inputs=inputs,
    )
