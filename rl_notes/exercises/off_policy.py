"""Exercises of the chapter on answers that another policy sampled."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge

Answer = Tensor | EllipsisType | None


def check_dppo_mask(answer: Callable[[Tensor, Tensor, Tensor, float], Answer]) -> None:
    """Exercise: the mask of DPPO, True where a step keeps its gradient.

    Called as answer(own [N, T], sampler [N, T], advantages [N, T], delta), where own
    and sampler are log-probabilities; returns a mask [N, T].
    """
    generator = torch.Generator(device="cpu").manual_seed(14)
    inputs = []
    for delta in (0.2, 0.3):
        own, sampler = torch.rand(2, 4, 6, generator=generator, device="cpu").double()
        advantages = torch.randn(4, 6, generator=generator, device="cpu").double()
        # Where a factor and its logarithm are on different sides of 0.2.
        own[0, :2] = sampler[0, :2] * torch.tensor([1.21, 0.81], device="cpu").double()
        advantages[0, :2] = torch.tensor([1.0, -1.0], device="cpu").double()
        inputs.append((own.log(), sampler.log(), advantages, delta))

    judge(
        answer,
        right=lambda own, sampler, A, delta: (
            ~_held(own.exp() - sampler.exp(), A, delta)
        ),
        mistakes={
            "This is True where a step is held, and it should be where it is kept.": (
                lambda own, sampler, A, delta: _held(
                    own.exp() - sampler.exp(), A, delta
                )
            ),
            "This counts factors: it is the clip. DPPO subtracts probabilities.": (
                lambda own, sampler, A, delta: (
                    ~_held((own - sampler).exp() - 1, A, delta)
                )
            ),
            "This subtracts log-probabilities. DPPO subtracts probabilities.": (
                lambda own, sampler, A, delta: ~_held(own - sampler, A, delta)
            ),
            "A step that has gone too far is held, whatever its advantage says. One "
            "that would bring it back must keep its gradient.": (
                lambda own, sampler, A, delta: (
                    (own.exp() - sampler.exp()).abs() <= delta
                )
            ),
            "The sides are exchanged: this holds the steps that come back, and drives "
            "on those that have gone too far.": (
                lambda own, sampler, A, delta: (
                    ~_held(sampler.exp() - own.exp(), A, delta)
                )
            ),
            "Good actions are held where they should be, and bad ones never.": (
                lambda own, sampler, A, delta: (
                    ~((A > 0) & (own.exp() - sampler.exp() > delta))
                )
            ),
        },
        inputs=inputs,
    )


def check_answer_weights(
    answer: Callable[[Tensor, Tensor, Tensor, float], Answer],
) -> None:
    """Exercise: the weight of each whole answer, capped.

    Called as answer(own [N, T], sampler [N, T], mask [N, T], cap), where own and
    sampler are log-probabilities; returns [N]. Where the mask is False both are 0.
    """
    generator = torch.Generator(device="cpu").manual_seed(15)
    inputs = []
    for cap in (1.5, 2.0):
        lengths = torch.tensor([2, 6, 4, 5, 3, 1], device="cpu")
        mask = torch.arange(6, device="cpu") < lengths[:, None]
        own, change = torch.randn(2, 6, 6, generator=generator, device="cpu").double()
        own = torch.where(mask, -own.abs(), 0)
        inputs.append((own, torch.where(mask, own - 0.6 * change, 0), mask, cap))

    judge(
        answer,
        right=lambda own, sampler, mask, cap: _product(own - sampler).clamp(max=cap),
        mistakes={
            "Nothing is repaired yet: the ratio is upside down, and each token's is "
            "capped before the product is taken.": (
                lambda own, sampler, mask, cap: _capped_first(sampler - own, cap)
            ),
            "The ratio is upside down: an answer that has become likelier must count "
            "more.": (
                lambda own, sampler, mask, cap: _product(sampler - own).clamp(max=cap)
            ),
            "Each token's ratio is capped, and then the product is taken. It may "
            "still be as large as it likes.": (
                lambda own, sampler, mask, cap: _capped_first(own - sampler, cap)
            ),
            "The cap is missing.": (
                lambda own, sampler, mask, cap: _product(own - sampler)
            ),
            "The cap is taken for a distance from 1.": (
                lambda own, sampler, mask, cap: _product(own - sampler).clamp(
                    max=1 + cap
                )
            ),
            "This is the geometric mean of the tokens' ratios, as in GSPO. The weight "
            "is their product.": (
                lambda own, sampler, mask, cap: (
                    ((own - sampler).sum(1) / mask.sum(1)).exp().clamp(max=cap)
                )
            ),
        },
        inputs=inputs,
    )


def _held(change: Tensor, advantages: Tensor, delta: float) -> Tensor:
    """Where a change has gone too far in the direction in which it is driven."""
    too_high, too_low = change > delta, change < -delta
    return ((advantages > 0) & too_high) | ((advantages < 0) & too_low)


def _product(log_ratio: Tensor) -> Tensor:
    return log_ratio.sum(1).exp()


def _capped_first(log_ratio: Tensor, cap: float) -> Tensor:
    return log_ratio.exp().clamp(max=cap).prod(1)
