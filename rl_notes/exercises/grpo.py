"""Exercises of the GRPO chapter."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.advantages import group_relative, leave_one_out
from rl_notes.divergences import k3
from rl_notes.exercises.judging import judge
from rl_notes.objectives import clipped_surrogate, mean_over_sequences

EPSILON = 0.2
SMALL = 1e-4


def check_group_advantages(
    answer: Callable[[Tensor, Tensor], Tensor | EllipsisType | None],
) -> None:
    """Exercise: (r - mean) / (std + 1e-4), with mean and std those of the row's group.

    Called as answer(scores [N], groups [N]), with rows in any order and groups of
    different sizes; returns one number per row, [N].
    """
    inputs = []
    for scores, groups in (
        ([1.0, 0.0, 0.5, 0.2, 0.0, 0.9], [7, 3, 7, 3, 3, 7]),
        ([0.0, 1.0, 2.0, 1.5, 1.0, 4.0, 0.0, 3.0, 2.0], [0, 5, 0, 5, 2, 0, 2, 0, 5]),
    ):
        rows = torch.tensor(scores, dtype=torch.float64, device="cpu")
        inputs.append((rows, torch.tensor(groups, device="cpu")))

    def each_group(
        scores: Tensor, groups: Tensor, of_one: Callable[[Tensor], Tensor]
    ) -> Tensor:
        found = torch.zeros_like(scores)
        for name in set(groups.tolist()):
            found[groups == name] = of_one(scores[groups == name])
        return found

    def centred(r: Tensor) -> Tensor:
        return r - r.mean()

    def adjacent(scores: Tensor, groups: Tensor) -> Tensor:
        """As if the rows of a group stood together, and all groups had one size."""
        rows = scores.view(len(set(groups.tolist())), -1)
        middle, spread = rows.mean(1, keepdim=True), rows.std(1, keepdim=True)
        return ((rows - middle) / (spread + SMALL)).flatten()

    judge(
        answer,
        right=group_relative,
        mistakes={
            "Mean and spread are those of the whole batch. Compare a row with its own "
            "group.": lambda s, g: centred(s) / (s.std() + SMALL),
            "The mean is that of the group, but the spread is that of the batch.": (
                lambda s, g: each_group(s, g, centred) / (s.std() + SMALL)
            ),
            "These rows do not stand together: find those with the same number.": (
                adjacent
            ),
            "The standard deviation is divided by G. With G - 1 it is the usual one.": (
                lambda s, g: each_group(
                    s, g, lambda r: centred(r) / (r.std(correction=0) + SMALL)
                )
            ),
            "This divides by the variance. Take its root.": lambda s, g: each_group(
                s, g, lambda r: centred(r) / (r.var() + SMALL)
            ),
            "The mean is subtracted, and nothing is divided by the spread.": (
                lambda s, g: each_group(s, g, centred)
            ),
            "This is the score less the mean of the others, not divided by the "
            "spread.": leave_one_out,
            "The sign is turned: a score above the mean has a positive advantage.": (
                lambda s, g: -group_relative(s, g)
            ),
            "The small number is missing: a group whose scores are all equal is "
            "divided by zero.": lambda s, g: each_group(
                s, g, lambda r: centred(r) / r.std()
            ),
        },
        inputs=inputs,
    )


def check_grpo_objective(
    answer: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, float],
        Tensor | float | EllipsisType | None,
    ],
) -> None:
    """Exercise: the objective of GRPO, for one batch.

    Called as answer(new, old, usual, advantages, mask, beta), all but the last [N, T]:
    log-probabilities of the policy, of the one that sampled, and of the reference;
    returns a number. The clip is at 1 - 0.2 and 1 + 0.2.
    """
    generator = torch.Generator(device="cpu").manual_seed(12)
    inputs = []
    for lengths, beta in (((2, 5), 0.5), ((4, 1, 3), 0.1)):
        shape = (len(lengths), 6)
        old, change, away, advantages = torch.randn(
            4, *shape, generator=generator, device="cpu"
        ).double()
        steps = torch.arange(6, device="cpu")
        mask = steps < torch.tensor(lengths, device="cpu")[:, None]
        new = old - 3 + 0.3 * change
        inputs.append((new, old - 3, old - 3 + 0.5 * away, advantages, mask, beta))

    def clipped(new: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
        return clipped_surrogate(
            (new - old).exp(), advantages, clip_low=EPSILON, clip_high=EPSILON
        )

    def padded(x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, x, 0).mean()

    judge(
        answer,
        right=lambda new, old, ref, A, mask, beta: mean_over_sequences(
            clipped(new, old, A) - beta * k3(new, ref), mask
        ),
        mistakes={
            "The ratio is still to the reference. It belongs to the policy that "
            "sampled: old.": lambda new, old, ref, A, mask, beta: mean_over_sequences(
                clipped(new, ref, A) - beta * k3(new, ref), mask
            ),
            "An answer is still divided by the width of the batch. Divide by its own "
            "number of tokens.": lambda new, old, ref, A, mask, beta: padded(
                clipped(new, old, A) - beta * k3(new, ref), mask
            ),
            "Both mistakes are still there.": (
                lambda new, old, ref, A, mask, beta: padded(
                    clipped(new, ref, A) - beta * k3(new, ref), mask
                )
            ),
            "This is the mean over all tokens. Here each answer has its own mean, and "
            "then the answers are averaged.": lambda new, old, ref, A, mask, beta: (
                clipped(new, old, A) - beta * k3(new, ref)
            )[mask].mean(),
            "The price of leaving is to the reference, and not to the policy that "
            "sampled.": lambda new, old, ref, A, mask, beta: mean_over_sequences(
                clipped(new, old, A) - beta * k3(new, old), mask
            ),
            "The price of leaving is added. It is to be subtracted.": (
                lambda new, old, ref, A, mask, beta: mean_over_sequences(
                    clipped(new, old, A) + beta * k3(new, ref), mask
                )
            ),
            "The price of leaving is missing.": (
                lambda new, old, ref, A, mask, beta: mean_over_sequences(
                    clipped(new, old, A), mask
                )
            ),
            "The sign is that of a loss. Here the objective is maximised.": (
                lambda new, old, ref, A, mask, beta: (
                    -mean_over_sequences(
                        clipped(new, old, A) - beta * k3(new, ref), mask
                    )
                )
            ),
        },
        inputs=inputs,
    )
