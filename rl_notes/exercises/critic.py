"""Exercises of the chapter on the critic."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge

Answer = Tensor | EllipsisType | None


def check_gae(answer: Callable[[Tensor, Tensor, Tensor, float], Answer]) -> None:
    """Exercise: generalised advantage estimation for rows of the same length.

    Called as answer(rewards [N, T], values [N, T + 1], discounts [N, T], lambda_);
    returns [N, T]. In some rows the last discount is 0, since the episode ended there;
    the others were cut.
    """
    generator = torch.Generator(device="cpu").manual_seed(6)
    inputs = []
    for rows, steps, lambda_ in ((3, 5, 0.8), (2, 4, 0.5)):
        rewards = torch.randn(rows, steps, generator=generator, device="cpu").double()
        values = torch.randn(
            rows, steps + 1, generator=generator, device="cpu"
        ).double()
        discounts = torch.full_like(rewards, 0.9)
        discounts[0, -1] = 0.0
        inputs.append((rewards, values, discounts, lambda_))

    judge(
        answer,
        right=_gae,
        mistakes={
            "The surprises to come decay by lambda alone. The discount belongs there "
            "too: gamma_t * lambda.": (
                lambda r, v, g, lam: _add_up(_errors(r, v, g), torch.full_like(r, lam))
            ),
            "V(s_T) is missing. Cut is not ended: the value of the last state stands "
            "for all that was not seen.": (
                lambda r, v, g, lam: _gae(r, _without_the_last(v), g, lam)
            ),
            "Your sum runs forward: the advantage of a step is made of its own "
            "surprise and of those that follow, not of those before.": (
                lambda r, v, g, lam: _add_up(
                    _errors(r, v, g).flip(1), lam * g.flip(1)
                ).flip(1)
            ),
            "Where an episode ended its discount is 0, and nothing follows. You use "
            "the same discount everywhere.": (
                lambda r, v, g, lam: _gae(r, v, torch.full_like(g, float(g.max())), lam)
            ),
            "This is the TD error alone: add the surprises that follow.": (
                lambda r, v, g, lam: _errors(r, v, g)
            ),
            "This is lambda = 1. Weigh what follows by gamma_t * lambda.": (
                lambda r, v, g, lam: _gae(r, v, g, 1.0)
            ),
            "These are the targets for the critic, A + V. Leave V(s_t) away.": (
                lambda r, v, g, lam: _gae(r, v, g, lam) + v[:, :-1]
            ),
            "The sign is turned: better than expected must be positive.": (
                lambda r, v, g, lam: -_gae(r, v, g, lam)
            ),
        },
        inputs=inputs,
    )


def check_discounts(answer: Callable[[Tensor, Tensor, float], Answer]) -> None:
    """Exercise: the discounts of episodes that ended and of episodes that were cut.

    Called as answer(terminated [N, T], truncated [N, T], gamma); returns [N, T].
    """
    terminated = torch.zeros(4, 3, dtype=torch.bool, device="cpu")
    truncated = torch.zeros_like(terminated)
    terminated[0, 2] = truncated[1, 2] = True
    terminated[2, 2] = truncated[2, 2] = True  # arrived at the very last moment
    terminated[3, 1] = True
    inputs = [(terminated, truncated, 0.9), (terminated.flip(0), truncated, 0.5)]

    judge(
        answer,
        right=lambda ended, cut, gamma: gamma * (~ended).double(),
        mistakes={
            "A time limit is treated as an end: the robot learns that a place is "
            "worthless because the clock ran out there.": (
                lambda ended, cut, gamma: gamma * (~(ended | cut)).double()
            ),
            "The wrong way round: an end has discount 0, a time limit keeps gamma.": (
                lambda ended, cut, gamma: gamma * (~cut).double()
            ),
            "Both at once is an end: the robot has arrived, and nothing follows.": (
                lambda ended, cut, gamma: gamma * (~(ended & ~cut)).double()
            ),
            "Nothing ever ends here. Where the episode ended, nothing follows.": (
                lambda ended, cut, gamma: torch.full(ended.shape, gamma, device="cpu")
            ),
            "A discount is missing where the episode goes on: 1 is not gamma.": (
                lambda ended, cut, gamma: (~ended).double()
            ),
        },
        inputs=inputs,
    )


def _errors(rewards: Tensor, values: Tensor, discounts: Tensor) -> Tensor:
    return rewards + discounts * values[:, 1:] - values[:, :-1]


def _add_up(errors: Tensor, decay: Tensor) -> Tensor:
    """x_t = errors_t + decay_t x_{t+1}."""
    following = torch.zeros_like(errors[:, 0])
    found = []
    for t in reversed(range(errors.shape[1])):
        following = errors[:, t] + decay[:, t] * following
        found.append(following)
    return torch.stack(found[::-1], dim=1)


def _gae(rewards: Tensor, values: Tensor, discounts: Tensor, lambda_: float) -> Tensor:
    return _add_up(_errors(rewards, values, discounts), lambda_ * discounts)


def _without_the_last(values: Tensor) -> Tensor:
    return torch.cat([values[:, :-1], torch.zeros_like(values[:, -1:])], dim=1)
