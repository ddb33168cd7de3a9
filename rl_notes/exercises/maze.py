"""Exercises of the maze."""

from collections.abc import Callable
from types import EllipsisType

from rl_notes.exercises.judging import judge


def check_discounted_return(
    answer: Callable[[list[float], float], float | EllipsisType | None],
) -> None:
    """Exercise of the maze chapter: G = r_0 + gamma r_1 + gamma^2 r_2 + ..."""
    judge(
        answer,
        right=lambda rewards, gamma: sum(
            gamma**t * reward for t, reward in enumerate(rewards)
        ),
        mistakes={
            "This is the plain sum: the discount is not used.": lambda rewards, gamma: (
                sum(rewards)
            ),
            "The first reward must not be discounted: its weight is gamma**0 = 1.": (
                lambda rewards, gamma: sum(
                    gamma ** (t + 1) * reward for t, reward in enumerate(rewards)
                )
            ),
            "You started at the wrong end: the last reward should weigh least.": (
                lambda rewards, gamma: sum(
                    gamma**t * reward for t, reward in enumerate(reversed(rewards))
                )
            ),
            "Discount each reward by a power of gamma, not by t * gamma.": (
                lambda rewards, gamma: sum(
                    gamma * t * reward for t, reward in enumerate(rewards)
                )
            ),
        },
        inputs=[([1.0, 2.0, 3.0], 0.5), ([0.0, 0.0, 8.0, -1.0], 0.9), ([2.0], 0.3)],
    )


def check_success_rate(
    answer: Callable[[list[tuple[list[float], bool]]], float | EllipsisType | None],
) -> None:
    """Exercise of the maze chapter: the share of episodes that reached the exit.

    An episode is (rewards, terminated).
    """
    slow = ([-0.01] * 150 + [0.99], True)
    fast = ([-0.01] * 5 + [0.99], True)
    cut = ([-0.01] * 500, False)
    lucky = ([0.5, 0.5, 0.5], False)
    judge(
        answer,
        right=lambda episodes: sum(ended for _, ended in episodes) / len(episodes),
        mistakes={
            "A slow robot pays for so many steps that its rewards add up to less than "
            "0, and still it arrived. Look at terminated, not at the sum.": (
                lambda episodes: sum(sum(r) > 0 for r, _ in episodes) / len(episodes)
            ),
            "This is the share of episodes that were cut: the other way round.": (
                lambda episodes: sum(not e for _, e in episodes) / len(episodes)
            ),
            "This is a number of episodes. Divide by how many there were.": (
                lambda episodes: sum(ended for _, ended in episodes)
            ),
        },
        inputs=[([slow, fast, cut, lucky],), ([slow, slow, fast],), ([cut, cut],)],
    )
