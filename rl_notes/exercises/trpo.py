"""Exercises of the TRPO chapter."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.divergences import kl_exact
from rl_notes.exercises.judging import judge


def check_natural_step(
    answer: Callable[[Tensor, Tensor, float], Tensor | EllipsisType | None],
) -> None:
    """Exercise: the best step in an ellipse, s = sqrt(2 delta / g'F^-1 g) F^-1 g.

    Called as answer(fisher [P, P], gradient [P], radius); returns s [P].
    """
    generator = torch.Generator(device="cpu").manual_seed(6)
    inputs = []
    for size, radius in ((2, 0.1), (4, 0.02)):
        root = torch.randn(size, size, generator=generator, device="cpu").double()
        fisher = root @ root.T + torch.eye(size, device="cpu").double()
        gradient = torch.randn(size, generator=generator, device="cpu").double()
        inputs.append((fisher, gradient, radius))

    def natural(fisher: Tensor, gradient: Tensor) -> Tensor:
        x: Tensor = torch.linalg.solve(fisher, gradient)
        return x

    def scaled(x: Tensor, length: Tensor, radius: float) -> Tensor:
        return x * (radius / length).sqrt()

    judge(
        answer,
        right=lambda F, g, d: scaled(natural(F, g), g @ natural(F, g) / 2, d),
        mistakes={
            "The direction is right, its length is not yet: 1/2 s'Fs must be the "
            "radius.": lambda F, g, d: natural(F, g),
            "The factor 2 is missing: 1/2 s'Fs is the radius, not s'Fs.": (
                lambda F, g, d: scaled(natural(F, g), g @ natural(F, g), d)
            ),
            "This goes along the gradient. Divide it by the Fisher matrix first.": (
                lambda F, g, d: scaled(g, g @ F @ g / 2, d)
            ),
            "The square root is missing: the KL grows with the square of the step.": (
                lambda F, g, d: natural(F, g) * 2 * d / (g @ natural(F, g))
            ),
            "You multiplied by the Fisher matrix. Solve F x = g instead.": (
                lambda F, g, d: scaled(F @ g, g @ F @ g / 2, d)
            ),
            "This step goes downhill: turn its sign.": (
                lambda F, g, d: -scaled(natural(F, g), g @ natural(F, g) / 2, d)
            ),
        },
        inputs=inputs,
    )


def check_mean_kl(
    answer: Callable[[Tensor, Tensor, Tensor], Tensor | EllipsisType | None],
) -> None:
    """Exercise: the mean of KL(old || new) over the steps that were taken.

    Called as answer(old_logits [N, T, A], new_logits [N, T, A], mask [N, T]).
    """
    generator = torch.Generator(device="cpu").manual_seed(7)
    inputs = []
    for lengths in ((2, 5), (1, 4, 3)):
        shape = (len(lengths), 6, 3)
        old = torch.randn(*shape, generator=generator, device="cpu").double()
        new = old + torch.randn(*shape, generator=generator, device="cpu").double()
        steps = torch.arange(6, device="cpu")
        inputs.append((old, new, steps < torch.tensor(lengths, device="cpu")[:, None]))
    judge(
        answer,
        right=lambda old, new, mask: kl_exact(old, new)[mask].mean(),
        mistakes={
            "The direction is still KL(new || old). The mean is under the policy that "
            "made the data.": lambda old, new, mask: kl_exact(new, old)[mask].mean(),
            "The padding is still in the mean.": (
                lambda old, new, mask: kl_exact(old, new).mean()
            ),
            "Both mistakes are still there.": (
                lambda old, new, mask: kl_exact(new, old).mean()
            ),
            "This is the sum. The radius is compared with the mean.": (
                lambda old, new, mask: kl_exact(old, new)[mask].sum()
            ),
            "The padding counts as 0 in your mean. Divide by the number of steps "
            "taken.": lambda old, new, mask: (kl_exact(old, new) * mask).mean(),
            "This is the largest KL. The constraint of TRPO is on the mean.": (
                lambda old, new, mask: kl_exact(old, new)[mask].max()
            ),
        },
        inputs=inputs,
    )
