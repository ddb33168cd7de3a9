"""Exercises of the appendix on TRPO."""

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge
from rl_notes.natural_gradient import Product, conjugate_gradient


def check_line_search(
    answer: Callable[
        [Sequence[float], Sequence[float], float], float | EllipsisType | None
    ],
) -> None:
    """Exercise: which of the steps 1, 0.8, 0.8^2, ... is taken.

    Called as answer(kls, gains, radius), with the mean KL and the gain of the surrogate
    at scale 0.8^j; returns the scale, or 0 if nothing may change.
    """

    def passes(
        kls: Sequence[float], gains: Sequence[float], radius: float
    ) -> list[bool]:
        both = zip(kls, gains, strict=True)
        return [kl <= radius and gain > 0 for kl, gain in both]

    judge(
        answer,
        right=lambda kls, gains, radius: _first(passes(kls, gains, radius)),
        mistakes={
            "The KL is never checked: a step may end far outside the region.": (
                lambda kls, gains, radius: _first([gain > 0 for gain in gains])
            ),
            "The gain is never checked: a step inside the region may be a step down.": (
                lambda kls, gains, radius: _first([kl <= radius for kl in kls])
            ),
            "A gain of zero is no gain: ask for more.": (
                lambda kls, gains, radius: _first(
                    passes(kls, [gain if gain else 1.0 for gain in gains], radius)
                )
            ),
            "If no step passes, nothing may change: return 0, not the last one.": (
                lambda kls, gains, radius: (
                    _first(passes(kls, gains, radius)) or 0.8 ** (len(kls) - 1)
                )
            ),
            "This lets 1.5 times the radius pass.": (
                lambda kls, gains, radius: _first(passes(kls, gains, 1.5 * radius))
            ),
            "This is the shortest step that passes. Take the longest.": (
                lambda kls, gains, radius: _last(passes(kls, gains, radius))
            ),
            "This is j. Return the scale, 0.8^j.": lambda kls, gains, radius: [
                *passes(kls, gains, radius),
                True,
            ].index(True),
        },
        inputs=[
            ([0.021, 0.014, 0.009, 0.006], [0.3, 0.25, 0.2, 0.1], 0.01),
            ([0.008, 0.005, 0.003, 0.002], [-0.1, 0.0, 0.02, 0.01], 0.01),
            ([0.05, 0.03, 0.02, 0.018], [0.4, 0.3, 0.2, 0.1], 0.01),
            ([0.004, 0.003, 0.002, 0.001], [-0.4, -0.3, -0.2, -0.1], 0.005),
        ],
    )


def _first(passing: Sequence[bool]) -> float:
    """The longest scale that passes, or 0."""
    scales = (0.8**j for j, passed in enumerate(passing) if passed)
    return next(scales, 0.0)


def _last(passing: Sequence[bool]) -> float:
    """The shortest scale that passes, or 0."""
    scales = [0.8**j for j, passed in enumerate(passing) if passed]
    return scales[-1] if scales else 0.0


def check_conjugate_gradient(
    answer: Callable[[Product, Tensor, int], Tensor | EllipsisType | None],
) -> None:
    """Exercise: repair a solver whose vectors share their memory.

    Called as answer(product, b, iterations) with product(v) = A v; returns x [P], and
    must leave b as it was.
    """
    generator = torch.Generator(device="cpu").manual_seed(8)
    inputs = []
    for size, iterations in ((4, 2), (6, 3)):
        root = torch.randn(size, size, generator=generator, device="cpu").double()
        matrix = root @ root.T + torch.eye(size, device="cpu").double()
        b = torch.randn(size, generator=generator, device="cpu").double()
        inputs.append((matrix, b, iterations))

    def on_a_copy(matrix: Tensor, b: Tensor, iterations: int) -> Any:
        """Whatever the reader's answer is, and b as well where that was changed."""
        asked = b.clone()
        x = answer(lambda v: matrix @ v, asked, iterations)
        if torch.equal(asked, b) or not isinstance(x, Tensor) or x.shape != b.shape:
            return x
        return torch.stack([x, asked])

    def solve(matrix: Tensor, b: Tensor, iterations: int) -> Tensor:
        return conjugate_gradient(lambda v: matrix @ v, b, iterations=iterations)[0]

    judge(
        on_a_copy,
        right=solve,
        mistakes={
            "r, p and b are still one vector under three names: what is taken from r "
            "in place is taken from all of them.": _all_shared,
            "x is right, but the gradient b was changed on the way, and the step's "
            "length is computed from it.": lambda matrix, b, n: torch.stack(
                [solve(matrix, b, n), b - matrix @ solve(matrix, b, n)]
            ),
            "b is safe, but r and p still share their memory.": (
                lambda matrix, b, n: _all_shared(matrix, b, n)[0]
            ),
            "Each direction is the residual alone. It must keep a part of the one "
            "before, or it undoes what that has achieved.": _steepest_descent,
        },
        inputs=inputs,
    )


def _all_shared(matrix: Tensor, b: Tensor, iterations: int) -> Tensor:
    """What x and b become when p and r begin as b itself, [2, P]."""
    x, b = torch.zeros_like(b), b.clone()
    p = r = b
    for _ in range(iterations):
        image, before = matrix @ p, r @ r
        along = before / (p @ image)
        x = x + along * p
        r -= along * image
        p = r + (r @ r) / before * p
    return torch.stack([x, b])


def _steepest_descent(matrix: Tensor, b: Tensor, iterations: int) -> Tensor:
    """Every step goes straight down."""
    x = torch.zeros_like(b)
    for _ in range(iterations):
        r = b - matrix @ x
        x = x + (r @ r) / (r @ matrix @ r) * r
    return x
