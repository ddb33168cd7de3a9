"""Exercises of the chapter on the family of GRPO."""

from collections.abc import Callable, Sequence
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge
from rl_notes.objectives import mean_over_tokens

Answer = Tensor | EllipsisType | None
Part = tuple[Tensor, Tensor]


def check_answer_ratio(answer: Callable[[Tensor, Tensor, Tensor], Answer]) -> None:
    """Exercise: the ratio of a whole answer, with the root of GSPO.

    Called as answer(new_logprobs [N, T], old_logprobs [N, T], mask [N, T]); returns
    [N]. Where the mask is False the log-probabilities mean nothing.
    """
    generator = torch.Generator(device="cpu").manual_seed(12)
    inputs = []
    for lengths in ((2, 6, 4), (5, 1)):
        new, change = torch.randn(
            2, len(lengths), 6, generator=generator, device="cpu"
        ).double()
        steps = torch.arange(6, device="cpu")
        mask = steps < torch.tensor(lengths, device="cpu")[:, None]
        inputs.append((new - 3, new - 3 - 0.3 * change, mask))

    judge(
        answer,
        right=lambda new, old, mask: (_sum(new - old, mask) / mask.sum(1)).exp(),
        mistakes={
            "The root is missing: this is the ratio of the answers' probabilities, "
            "the ratio of RLOO.": lambda new, old, mask: _sum(new - old, mask).exp(),
            "This is the mean of the tokens' ratios. The root of their product is "
            "the exponential of the mean of their logarithms.": (
                lambda new, old, mask: _sum((new - old).exp(), mask) / mask.sum(1)
            ),
            "The padding counts: sum and number of tokens go to the end of the row. "
            "What stands there means nothing.": (
                lambda new, old, mask: (new - old).mean(1).exp()
            ),
            "The sum is right, but it is divided by the width of the batch, and not "
            "by the number of tokens of the answer.": (
                lambda new, old, mask: (_sum(new - old, mask) / mask.shape[1]).exp()
            ),
            "The padding counts in the sum. What stands there means nothing.": (
                lambda new, old, mask: ((new - old).sum(1) / mask.sum(1)).exp()
            ),
            "This is the old policy over the new one, upside down.": (
                lambda new, old, mask: (_sum(old - new, mask) / mask.sum(1)).exp()
            ),
            "This is its logarithm.": (
                lambda new, old, mask: _sum(new - old, mask) / mask.sum(1)
            ),
        },
        inputs=inputs,
    )


def check_accumulated_mean(answer: Callable[[Sequence[Part]], Answer]) -> None:
    """Exercise: the mean over the tokens of a batch that comes in parts.

    Called as answer(parts), where parts is a list of (x [n, T], mask [n, T]) of
    different sizes; returns a number. Where the mask is False, x means nothing.
    """
    generator = torch.Generator(device="cpu").manual_seed(13)
    inputs = []
    for sizes in (((2, 3, 1), (6,)), ((1, 2), (4, 3), (1,))):
        parts = []
        for lengths in sizes:
            x = torch.randn(
                len(lengths), max(lengths) + 1, generator=generator, device="cpu"
            )
            steps = torch.arange(x.shape[1], device="cpu")
            mask = steps < torch.tensor(lengths, device="cpu")[:, None]
            parts.append((x.double() + 1, mask))
        inputs.append((parts,))

    judge(
        answer,
        right=lambda parts: _total(parts) / _tokens(parts),
        mistakes={
            "Nothing is repaired yet: each part is divided by its own tokens, so a "
            "token counts more in a part of short answers.": (
                lambda parts: _mean([mean_over_tokens(*part) for part in parts])
            ),
            "The means of the parts are added up. Divide the sum over all tokens by "
            "the number of all tokens, once.": (
                lambda parts: _added([mean_over_tokens(*part) for part in parts])
            ),
            "The padding counts: x at a place without a token means nothing.": (
                lambda parts: _added([x.sum() for x, _ in parts]) / _tokens(parts)
            ),
            "The sum is right, but it is divided by all places, the padding among "
            "them.": (
                lambda parts: _total(parts) / sum(mask.numel() for _, mask in parts)
            ),
            "The sum is right, but it is divided by the number of answers. Divide it "
            "by the number of tokens.": (
                lambda parts: _total(parts) / sum(len(mask) for _, mask in parts)
            ),
            "The number of tokens is right, and then the number of parts divides it "
            "once more.": (lambda parts: _total(parts) / _tokens(parts) / len(parts)),
        },
        inputs=inputs,
    )


def _sum(x: Tensor, mask: Tensor) -> Tensor:
    """The sum over the tokens of each row, [N]."""
    return torch.where(mask, x, 0).sum(1)


def _added(numbers: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(numbers)).sum()


def _mean(numbers: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(numbers)).mean()


def _total(parts: Sequence[Part]) -> Tensor:
    """The sum over all tokens of all parts."""
    return _added([_sum(x, mask).sum() for x, mask in parts])


def _tokens(parts: Sequence[Part]) -> int:
    return sum(int(mask.sum()) for _, mask in parts)
