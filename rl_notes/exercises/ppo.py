"""Exercises of the PPO chapter."""

from collections.abc import Callable, Sequence
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge
from rl_notes.objectives import clipped_surrogate

EPSILON = 0.2


def check_clipped_surrogate(
    answer: Callable[[Tensor, Tensor, Tensor, float], Tensor | EllipsisType | None],
) -> None:
    """Exercise: the objective of PPO at each step, min(rho A, clip(rho) A).

    Called as answer(new_logprobs [N, T], old_logprobs [N, T], advantages [N, T],
    epsilon); returns one number per step, [N, T].
    """
    generator = torch.Generator(device="cpu").manual_seed(8)
    inputs = []
    for shape, epsilon in (((3, 4), EPSILON), ((2, 6), 0.1)):
        old, change, advantages = torch.randn(
            3, *shape, generator=generator, device="cpu"
        ).double()
        inputs.append((old - 2, old - 2 + change, advantages, epsilon))

    def parts(ratio: Tensor, advantages: Tensor, epsilon: float) -> tuple[Tensor, ...]:
        near = ratio.clamp(1 - epsilon, 1 + epsilon)
        return ratio * advantages, near * advantages

    def clipped(ratio: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
        return torch.minimum(*parts(ratio, advantages, epsilon))

    def largest(ratio: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
        return torch.maximum(*parts(ratio, advantages, epsilon))

    judge(
        answer,
        right=lambda new, old, A, e: clipped((new - old).exp(), A, e),
        mistakes={
            "The ratio is clipped, and nothing else: there is no minimum. A step on "
            "the wrong side has no gradient then, and never comes back.": (
                lambda new, old, A, e: parts((new - old).exp(), A, e)[1]
            ),
            "Right for good actions, but bad ones are clipped on the wrong side. Take "
            "the minimum for both signs, and after the multiplication.": (
                lambda new, old, A, e: (new - old).exp().clamp(max=1 + e) * A
            ),
            "This is the larger of the two. The objective is the smaller one.": (
                lambda new, old, A, e: largest((new - old).exp(), A, e)
            ),
            "The exponential is missing: the ratio is exp(new - old).": (
                lambda new, old, A, e: clipped(new - old, A, e)
            ),
            "The ratio is upside down: new over old.": (
                lambda new, old, A, e: clipped((old - new).exp(), A, e)
            ),
            "Nothing is clipped yet: this is the plain surrogate.": (
                lambda new, old, A, e: (new - old).exp() * A
            ),
            "The sign is that of a loss. Here the objective is maximised.": (
                lambda new, old, A, e: -clipped((new - old).exp(), A, e)
            ),
            "This is the mean. Return one number per step.": (
                lambda new, old, A, e: clipped((new - old).exp(), A, e).mean()
            ),
        },
        inputs=inputs,
    )


def check_epoch_objectives(
    answer: Callable[
        [Sequence[Tensor], Tensor, Tensor, Tensor],
        Sequence[float] | Tensor | EllipsisType | None,
    ],
) -> None:
    """Exercise: what PPO maximises in each epoch, mean over the steps that were taken.

    Called as answer(logprobs, stored [N, T], advantages [N, T], mask [N, T]), where
    logprobs[k] [N, T] are those of the policy in epoch k and stored those of the policy
    that sampled; returns one number per epoch. The clip is at 1 - 0.2 and 1 + 0.2.
    """
    generator = torch.Generator(device="cpu").manual_seed(9)
    inputs = []
    for lengths in ((2, 5), (4, 1, 3)):
        shape = (len(lengths), 6)
        stored, advantages = torch.randn(
            2, *shape, generator=generator, device="cpu"
        ).double()
        changes = (
            0.3 * torch.randn(3, *shape, generator=generator, device="cpu").double()
        )
        changes[0] = 0.0  # in the first epoch the policy has not moved
        logprobs = list(stored - 2 + changes.cumsum(0))
        steps = torch.arange(6, device="cpu")
        mask = steps < torch.tensor(lengths, device="cpu")[:, None]
        inputs.append((logprobs, stored - 2, advantages, mask))

    def per_step(new: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
        return clipped_surrogate(
            (new - old).exp(), advantages, clip_low=EPSILON, clip_high=EPSILON
        )

    def to_itself(new: Sequence[Tensor], A: Tensor) -> list[Tensor]:
        return [per_step(x, x, A) for x in new]

    def to_stored(new: Sequence[Tensor], old: Tensor, A: Tensor) -> list[Tensor]:
        return [per_step(x, old, A) for x in new]

    def to_previous(new: Sequence[Tensor], old: Tensor, A: Tensor) -> list[Tensor]:
        before = [old, *new[:-1]]
        return [per_step(x, y, A) for x, y in zip(new, before, strict=True)]

    def means(objectives: list[Tensor], mask: Tensor) -> Tensor:
        return torch.stack([x[mask].mean() for x in objectives])

    judge(
        answer,
        right=lambda new, old, A, mask: means(to_stored(new, old, A), mask),
        mistakes={
            "The ratio is still to the policy of the same epoch, so it is always 1 "
            "and the clip is never active. Use the stored log-probabilities.": (
                lambda new, old, A, mask: means(to_itself(new, A), mask)
            ),
            "The ratio is to the policy of the epoch before. Each epoch may then go "
            "as far again: use the policy that sampled, in all epochs.": (
                lambda new, old, A, mask: means(to_previous(new, old, A), mask)
            ),
            "The padding is still in the mean.": (
                lambda new, old, A, mask: torch.stack(
                    [x.mean() for x in to_stored(new, old, A)]
                )
            ),
            "Both mistakes are still there.": (
                lambda new, old, A, mask: torch.stack(
                    [x.mean() for x in to_itself(new, A)]
                )
            ),
            "The padding counts as 0 in your mean. Divide by the number of steps "
            "taken.": lambda new, old, A, mask: torch.stack(
                [(x * mask).mean() for x in to_stored(new, old, A)]
            ),
            "These are sums. Divide by the number of steps taken.": (
                lambda new, old, A, mask: torch.stack(
                    [x[mask].sum() for x in to_stored(new, old, A)]
                )
            ),
        },
        inputs=inputs,
    )
