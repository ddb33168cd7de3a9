"""Small batches of trajectories for the tests."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from rl_notes.trajectories import Trajectories


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_batch(
    lengths: Sequence[int],
    *,
    prompts: Sequence[int] | None = None,
    cut: Sequence[int] = (),
    steps: int | None = None,
    states: int = 5,
    actions: int = 3,
    gamma: float = 0.9,
    seed: int = 0,
) -> Trajectories:
    """One row of each length, after a masked prompt. Rows in `cut` were truncated."""
    g = seeded(seed)
    rows = len(lengths)
    first = torch.tensor(prompts or [0] * rows)[:, None]
    end = first + torch.tensor(lengths)[:, None]
    width = steps or int(end.max())
    t = torch.arange(width)
    mask = (first <= t) & (t < end)
    ended = torch.ones(rows, 1, dtype=torch.bool)
    ended[list(cut)] = False
    inside = mask & ~((t == end - 1) & ended)
    discounts = torch.where(t < first, 1.0, gamma * inside.double())
    return Trajectories(
        actions=torch.randint(actions, (rows, width), generator=g) * mask,
        logprobs=-torch.rand(rows, width, generator=g).double() * mask,
        rewards=torch.randn(rows, width, generator=g).double() * mask,
        discounts=discounts,
        mask=mask,
        groups=torch.arange(rows),
        observations=torch.randint(states, (rows, width + 1), generator=g),
    )


def with_garbage(trajectories: Trajectories) -> Trajectories:
    """The same batch with nonsense wherever nothing may be read.

    Where the mask is False the logprobs and rewards must be 0, so nonsense is only
    possible in the actions and discounts; and in the observations after s_L.
    """
    mask = trajectories.mask
    t = torch.arange(mask.shape[1] + 1)
    observations = trajectories.observations.clone()
    observations[t > trajectories.lengths[:, None]] = 10**9
    return replace(
        trajectories,
        actions=torch.where(mask, trajectories.actions, -(10**9)),
        discounts=torch.where(mask, trajectories.discounts, 0.37),
        observations=observations,
    )
