"""Exercises of the chapter on a real model."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge

Answer = Tensor | EllipsisType | None
BITS = 16  # of a float32 that bfloat16 leaves out


def check_rounding_by_chance(answer: Callable[[Tensor, Tensor], Answer]) -> None:
    """Exercise: stochastic rounding to bfloat16, so that the mean is kept.

    Called as answer(x [N], u [N]) with numbers x in float32 and uniform draws u from 0
    to 1; returns float32 numbers [N] that bfloat16 can hold: the neighbour of x that is
    further from zero where u is less than the share of the way to it that x has gone.
    """
    generator = torch.Generator(device="cpu").manual_seed(21)
    inputs = []
    for scale in (1.0, 0.01):
        x = scale * torch.randn(64, generator=generator, device="cpu")
        u = torch.rand(64, generator=generator, device="cpu")
        inputs.append((x, u))

    judge(
        answer,
        right=_rounded,
        mistakes={
            "This is the nearest neighbour, and the draw has no say: a step of less "
            "than half the way is lost each time.": (
                lambda x, u: x.to(torch.bfloat16).float()
            ),
            "This is always the neighbour towards zero.": (
                lambda x, u: _neighbours(x)[0]
            ),
            "The chance is the other way round: what has nearly arrived at a neighbour "
            "must nearly always go there.": _turned,
            "Each neighbour is taken half of the time, however near it is. The mean is "
            "then the middle, not x.": _half,
        },
        inputs=inputs,
        tolerance=0.0,
    )


def _rounded(x: Tensor, u: Tensor) -> Tensor:
    near, far = _neighbours(x)
    return torch.where(u < (x - near) / (far - near), far, near)


def _turned(x: Tensor, u: Tensor) -> Tensor:
    near, far = _neighbours(x)
    return torch.where(u < (x - near) / (far - near), near, far)


def _half(x: Tensor, u: Tensor) -> Tensor:
    near, far = _neighbours(x)
    return torch.where(u < 0.5, far, near)


def _neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of bfloat16 on both sides of x: towards zero, and away from it."""
    near = (x.view(torch.int32) >> BITS) << BITS
    return near.view(torch.float32), (near + (1 << BITS)).view(torch.float32)
