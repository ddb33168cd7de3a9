"""Exercises of the chapter on RLHF."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.divergences import k1, k2, k3
from rl_notes.exercises.judging import judge

Answer = Tensor | EllipsisType | None


def check_k3(answer: Callable[[Tensor, Tensor], Answer]) -> None:
    """Exercise: the third estimate of KL(p || q), from actions that p sampled.

    Called as answer(logprobs [N, T], reference_logprobs [N, T]); returns [N, T].
    """
    generator = torch.Generator(device="cpu").manual_seed(10)
    inputs = []
    for shape in ((3, 4), (2, 6)):
        logprobs, change = torch.randn(
            2, *shape, generator=generator, device="cpu"
        ).double()
        inputs.append((logprobs - 4, logprobs - 4 - change))

    judge(
        answer,
        right=k3,
        mistakes={
            "The log-ratio has the wrong sign: you add p/q - 1. The actions were "
            "sampled by p, so it is q/p - 1 that has mean 0.": (lambda p, q: k3(q, p)),
            "The exponential is right, but the log-ratio after it has the wrong sign, "
            "and so the mean is minus the KL.": (
                lambda p, q: (q - p).exp() - 1 - (p - q)
            ),
            "The -1 is missing: for equal policies it must be 0.": (
                lambda p, q: k3(p, q) + 1
            ),
            "This is k1. Add q/p - 1, which has mean 0.": k1,
            "This is k2. k3 is q/p - 1 - log(q/p).": k2,
            "This is k3 with its sign turned. It is never negative.": (
                lambda p, q: -k3(p, q)
            ),
            "This is the part of mean 0 alone, q/p - 1. The log-ratio is missing.": (
                lambda p, q: torch.expm1(q - p)
            ),
            "This is the mean. Return one number per action.": (
                lambda p, q: k3(p, q).mean()
            ),
        },
        inputs=inputs,
    )


def check_padded_gae(
    answer: Callable[[Tensor, Tensor, Tensor, float], Answer],
) -> None:
    """Exercise: generalised advantages of answers of different length.

    Called as answer(rewards [N, T], values [N, T + 1], mask [N, T], lambda_); returns
    [N, T], 0 where the mask is False. The rows begin with the first token and are
    padded at the end. Each answer ended with its last token, and the discount is 1.
    """
    generator = torch.Generator(device="cpu").manual_seed(11)
    inputs = []
    for lengths, lambda_ in (((2, 6, 4), 0.9), ((5, 1), 0.5)):
        rows = len(lengths)
        steps = torch.arange(6, device="cpu")
        mask = steps < torch.tensor(lengths, device="cpu")[:, None]
        rewards = (
            mask * torch.randn(rows, 6, generator=generator, device="cpu").double()
        )
        values = 3 * torch.randn(rows, 7, generator=generator, device="cpu").double()
        inputs.append((rewards, values, mask, lambda_))

    judge(
        answer,
        right=lambda r, v, mask, lam: _handed_back(_errors(r, v, mask), lam),
        mistakes={
            "Nothing is repaired yet: the padding counts as what follows the last "
            "token, and its own surprises are handed back.": (
                lambda r, v, mask, lam: _handed_back(_careless(r, v), lam)
            ),
            "Half of it: the last token's TD error still adds the value of the "
            "padding. The answer has ended, and nothing follows.": (
                lambda r, v, mask, lam: _handed_back(_careless(r, v) * mask, lam)
            ),
            "Half of it: the last token is right by itself, but the TD errors of the "
            "padding are still handed back to it.": (
                lambda r, v, mask, lam: _handed_back(
                    r + v[:, 1:] * _before_another(mask) - v[:, :-1], lam
                )
            ),
            "You mask the result. By then the padding has been handed back to the "
            "tokens before it.": (
                lambda r, v, mask, lam: mask * _handed_back(_careless(r, v), lam)
            ),
            "The padding is gone from the sum, but the last token has lost its TD "
            "error, and with it the score.": (
                lambda r, v, mask, lam: _handed_back(
                    _careless(r, v) * _before_another(mask), lam
                )
            ),
        },
        inputs=inputs,
    )


def _before_another(mask: Tensor) -> Tensor:
    """True on a token that another token follows."""
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)


def _careless(rewards: Tensor, values: Tensor) -> Tensor:
    """TD errors at every place, padding or not."""
    return rewards + values[:, 1:] - values[:, :-1]


def _errors(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    following = torch.where(_before_another(mask), values[:, 1:], 0)
    return torch.where(mask, rewards + following - values[:, :-1], 0)


def _handed_back(errors: Tensor, lambda_: float) -> Tensor:
    """x_t = errors_t + lambda x_{t+1}."""
    following = torch.zeros_like(errors[:, 0])
    found = []
    for t in reversed(range(errors.shape[1])):
        following = errors[:, t] + lambda_ * following
        found.append(following)
    return torch.stack(found[::-1], dim=1)
