"""Checkers of the book's exercises.

A checker says nothing while the exercise is unanswered (the stub returns `...` or
None), says so when the answer is right, and names the mistake when it is a likely one:
it compares the answer with wrong solutions that people write.
"""

from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
Inputs = Sequence[tuple[Any, ...]]


def check_discounted_return(
    answer: Callable[[list[float], float], float | EllipsisType | None],
) -> None:
    """Exercise of the maze chapter: G = r_0 + gamma r_1 + gamma^2 r_2 + ..."""
    _judge(
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
    _judge(
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


def check_action_values(
    answer: Callable[[Tensor, Tensor, Tensor, float], Tensor | EllipsisType | None],
) -> None:
    """Exercise of the values chapter: Q(s, a) = r(s, a) + gamma sum P V.

    Called as answer(transitions [S, A, S], rewards [S, A], values [S], discount).
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    inputs = []
    for states, actions in ((3, 2), (4, 3)):
        chances = torch.rand(states, actions, states, generator=generator).double()
        rewards = torch.randn(states, actions, generator=generator).double()
        values = torch.randn(states, generator=generator).double()
        inputs.append((chances / chances.sum(-1, keepdim=True), rewards, values, 0.9))
    _judge(
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
        chances = torch.rand(states, actions, states, generator=generator).double()
        rewards = torch.randn(states, actions, generator=generator).double()
        inputs.append((chances / chances.sum(-1, keepdim=True), rewards, 0.8))
    _judge(
        answer,
        right=lambda p, r, gamma: _sweeps(
            len(r), lambda v: (r + gamma * p @ v).amax(dim=1)
        ),
        mistakes={
            "The max is taken over next states as well: that robot can choose where "
            "chance takes it. First average, then take the best action.": (
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


def check_log_gradient(
    answer: Callable[[Tensor, int], Tensor | EllipsisType | None],
) -> None:
    """Exercise of the policy gradient chapter: d log pi(a) / d logits.

    Called as answer(logits [A], action).
    """
    generator = torch.Generator(device="cpu").manual_seed(2)
    inputs = [
        (torch.randn(size, generator=generator).double(), action)
        for size, action in ((3, 0), (4, 2), (2, 1))
    ]
    _judge(
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


def check_next_token_loss(
    answer: Callable[[Tensor, Tensor], Tensor | float | EllipsisType | None],
) -> None:
    """Exercise of the three steps: the cross-entropy of a text.

    Called as answer(logits [T, A], ids [T]): logits[t] were computed from ids[: t + 1].
    """
    generator = torch.Generator(device="cpu").manual_seed(4)
    inputs = [
        (
            torch.randn(steps, size, generator=generator).double(),
            torch.randint(size, (steps,), generator=generator),
        )
        for steps, size in ((4, 3), (6, 5))
    ]

    def chosen(logits: Tensor, ids: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    _judge(
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
    _judge(
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
            torch.randn(n, generator=generator).double(),
            torch.randint(3, (n,), generator=generator),
        )
        for n in (6, 9)
    ]

    def of_the_others(rewards: Tensor, actions: Tensor) -> Tensor:
        return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)

    def of_the_same_action(rewards: Tensor, actions: Tensor) -> Tensor:
        same = (actions[:, None] == actions[None, :]).double()
        return rewards - same @ rewards / same.sum(dim=1)

    _judge(
        answer,
        right=of_the_others,
        mistakes={
            "Your baseline differs from action to action, so it takes away the very "
            "difference that is to be learnt.": of_the_same_action,
            "The play itself is part of its own mean: that shrinks the gradient by "
            "(N-1)/N. Use the mean of the others.": lambda r, a: r - r.mean(),
            "The sign is turned: a better play than the others must be positive.": (
                lambda r, a: -of_the_others(r, a)
            ),
        },
        inputs=inputs,
    )


def _sweeps(states: int, sweep: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a sweep to V = 0 until it no longer moves."""
    values = torch.zeros(states, dtype=torch.float64, device="cpu")
    for _ in range(400):
        values = sweep(values)
    return values


def _judge(
    answer: Function,
    *,
    right: Function,
    mistakes: Mapping[str, Function],
    inputs: Inputs,
    tolerance: float = 1e-6,
) -> None:
    """Print nothing (unanswered), that it is right, or what is wrong with it."""
    given = [answer(*arguments) for arguments in inputs]
    if all(value is None or value is ... for value in given):
        return
    if _agree(given, right, inputs, tolerance):
        print("Right.")
        return
    for mistake, wrong in mistakes.items():
        if _agree(given, wrong, inputs, tolerance):
            print(f"Not yet. {mistake}")
            return
    for value, arguments in zip(given, inputs, strict=True):
        wanted = right(*arguments)
        if not _close(value, wanted, tolerance):
            print(f"Not yet. For {arguments} you gave {value}, right is {wanted}.")
            return


def _agree(
    given: Sequence[Any], function: Function, inputs: Inputs, tolerance: float
) -> bool:
    return all(
        _close(value, function(*arguments), tolerance)
        for value, arguments in zip(given, inputs, strict=True)
    )


def _close(value: Any, wanted: Any, tolerance: float) -> bool:
    """Are two numbers, lists or tensors equal, shapes included?"""
    try:
        value = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return False
    wanted = torch.as_tensor(wanted, dtype=torch.float64, device="cpu")
    if value.shape != wanted.shape:
        return False
    return bool(torch.allclose(value, wanted, rtol=0, atol=tolerance))
