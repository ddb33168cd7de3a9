"""Exercises of the chapter that compares the algorithms."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge


def check_earned_at_budget(
    answer: Callable[
        [Sequence[Tensor], Sequence[float], int], Tensor | float | EllipsisType | None
    ],
) -> None:
    """Exercise: what a run earned with at most so many sampled steps.

    Called as answer(masks, earned, budget), where masks[k] [N, T] is that of the batch
    of update k, earned[0] what the policy earned before the first update and earned[k]
    after k of them; returns a number.
    """
    inputs = []
    for budget, earned, batches in (
        (27, (0.95, 0.9, 0.7, 0.8, 0.6), ((1, 9), (1, 8), (1, 7), (2, 1))),
        (10, (0.1, 0.4, 0.9, 0.3, 0.7), ((2, 4, 1), (3, 1, 1), (5, 1, 4), (1, 1, 2))),
    ):
        masks = []
        for lengths in batches:
            steps = torch.arange(max(lengths), device="cpu")
            masks.append(steps < torch.tensor(lengths, device="cpu")[:, None])
        inputs.append((masks, earned, budget))

    def updates(costs: Sequence[int], budget: int) -> int:
        """How many updates these batches allow."""
        spent = list(accumulate(costs))
        return sum(steps <= budget for steps in spent)

    def taken(masks: Sequence[Tensor]) -> list[int]:
        return [int(mask.sum()) for mask in masks]

    judge(
        answer,
        right=lambda masks, earned, most: earned[updates(taken(masks), most)],
        mistakes={
            "The padding is still counted as sampled. A step counts where the mask is "
            "True.": lambda masks, earned, most: earned[
                updates([mask.numel() for mask in masks], most)
            ],
            "This policy has used more than the budget: its last update went over "
            "it.": lambda masks, earned, most: earned[
                min(updates(taken(masks), most) + 1, len(masks))
            ],
            "One update too few: earned[k] belongs to the policy after k updates.": (
                lambda masks, earned, most: earned[
                    max(updates(taken(masks), most) - 1, 0)
                ]
            ),
            "You count episodes. The budget is in steps.": (
                lambda masks, earned, most: earned[
                    updates([len(mask) for mask in masks], most)
                ]
            ),
            "This is the best policy on the way. To know which one it is costs "
            "episodes too: take the last one within the budget.": (
                lambda masks, earned, most: max(
                    earned[: updates(taken(masks), most) + 1]
                )
            ),
            "Both mistakes are still there: padding is counted, and the best on the "
            "way is taken.": lambda masks, earned, most: max(
                earned[: updates([mask.numel() for mask in masks], most) + 1]
            ),
        },
        inputs=inputs,
    )


def check_bias_and_noise(
    answer: Callable[
        [Tensor, Tensor, Tensor], Sequence[float] | Tensor | EllipsisType | None
    ],
) -> None:
    """Exercise: what is wrong with an estimate always, and what by chance.

    Called as answer(estimates [K, M], exact [K], weights [K]): M estimates of each of K
    numbers, and how much each of these counts, together 1. Returns two numbers, the
    root of the weighted mean square of the bias and of the noise.
    """
    generator = torch.Generator(device="cpu").manual_seed(13)
    inputs = []
    for count, tries in ((4, 5), (3, 8)):
        estimates = torch.randn(
            count, tries, generator=generator, device="cpu"
        ).double()
        exact = torch.randn(count, generator=generator, device="cpu").double()
        weights = (
            torch.rand(count, generator=generator, device="cpu").double().softmax(0)
        )
        inputs.append((2 * estimates, exact, weights))

    def both(bias: Tensor, variance: Tensor, weights: Tensor) -> Tensor:
        return torch.stack([weights @ bias**2, weights @ variance]).sqrt()

    def bias_of(x: Tensor, exact: Tensor) -> Tensor:
        return x.mean(1) - exact

    judge(
        answer,
        right=lambda x, exact, w: both(bias_of(x, exact), x.var(1, correction=0), w),
        mistakes={
            "All numbers count the same in yours. Weigh them.": (
                lambda x, exact, w: both(
                    bias_of(x, exact),
                    x.var(1, correction=0),
                    torch.full_like(w, 1 / len(w)),
                )
            ),
            "Your noise is measured from the exact value, so that the bias is in it. "
            "Measure it from the mean of the estimates.": (
                lambda x, exact, w: both(
                    bias_of(x, exact), (x - exact[:, None]).square().mean(1), w
                )
            ),
            "Biases of opposite sign cancel in yours. Square them before they are "
            "averaged.": lambda x, exact, w: torch.stack(
                [w @ bias_of(x, exact), (w @ x.var(1, correction=0)).sqrt()]
            ),
            "These are the mean squares. Take their roots.": (
                lambda x, exact, w: both(
                    bias_of(x, exact), x.var(1, correction=0), w
                ).square()
            ),
            "Your variance divides by M - 1. That estimates the one of a larger "
            "population; here divide by M.": (
                lambda x, exact, w: both(bias_of(x, exact), x.var(1), w)
            ),
            "The two are the wrong way round.": (
                lambda x, exact, w: both(
                    bias_of(x, exact), x.var(1, correction=0), w
                ).flip(0)
            ),
        },
        inputs=inputs,
    )
