"""Exercises of the values chapter."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge


def check_action_values(
    answer: Callable[[Tensor, Tensor, Tensor, float], Tensor | EllipsisType | None],
) -> None:
    """Exercise of the values chapter: Q(s, a) = r(s, a) + gamma sum P V.

    Called as answer(transitions [S, A, S], rewards [S, A], values [S], discount).
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    inputs = []
    for states, actions in ((3, 2), (4, 3)):
        chances = torch.rand(
            states, actions, states, generator=generator, device="cpu"
        ).double()
        rewards = torch.randn(
            states, actions, generator=generator, device="cpu"
        ).double()
        values = torch.randn(states, generator=generator, device="cpu").double()
        inputs.append((chances / chances.sum(-1, keepdim=True), rewards, values, 0.9))
    judge(
        answer,
        right=lambda p, r, v, gamma: r + gamma * p @ v,
        mistakes={
            "The discount is missing: what comes later is worth gamma times as much.": (
                lambda p, r, v, gamma: r + p @ v
            ),
            "The reward of this step is not discounted, only what follows it.": (
                lambda p, r, v, gamma: gamma * (r + p @ v)
            ),
            "The reward of the step itself is missing.": (
                lambda p, r, v, gamma: gamma * p @ v
            ),
            "Average over where the action may lead; the robot cannot choose the best "
            "next state.": lambda p, r, v, gamma: r + gamma * (p * v).amax(-1),
            "Weigh the values by the probabilities instead of adding them all up.": (
                lambda p, r, v, gamma: r + gamma * v.sum()
            ),
        },
        inputs=inputs,
    )


def check_value_iteration(
    answer: Callable[[Tensor, Tensor, float], Tensor | EllipsisType | None],
) -> None:
    """Exercise of the values chapter: repair a solver with its max in the wrong place.

    Called as answer(transitions [S, A, S], rewards [S, A], discount); returns V* [S].
    """
    generator = torch.Generator(device="cpu").manual_seed(1)
    inputs = []
    for states, actions in ((3, 2), (5, 3)):
        chances = torch.rand(
            states, actions, states, generator=generator, device="cpu"
        ).double()
        rewards = torch.randn(
            states, actions, generator=generator, device="cpu"
        ).double()
        inputs.append((chances / chances.sum(-1, keepdim=True), rewards, 0.8))
    judge(
        answer,
        right=lambda p, r, gamma: _sweeps(
            len(r), lambda v: (r + gamma * p @ v).amax(dim=1)
        ),
        mistakes={
            "The max is taken over next states as well: of all the places where it may "
            "land only one is counted. First average, then take the best action.": (
                lambda p, r, gamma: _sweeps(
                    len(r), lambda v: (r + gamma * (p * v).amax(-1)).amax(dim=1)
                )
            ),
            "This averages over the actions: the value of the random policy, not of "
            "the best.": lambda p, r, gamma: _sweeps(
                len(r), lambda v: (r + gamma * p @ v).mean(dim=1)
            ),
            "This is one sweep from zero. Repeat until the values stop moving.": (
                lambda p, r, gamma: r.amax(dim=1)
            ),
        },
        inputs=inputs,
        tolerance=1e-4,
    )


def _sweeps(states: int, sweep: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a sweep to V = 0 until it no longer moves."""
    values = torch.zeros(states, dtype=torch.float64, device="cpu")
    for _ in range(400):
        values = sweep(values)
    return values
