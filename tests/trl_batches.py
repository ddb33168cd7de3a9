"""A batch that a trainer of TRL has sampled, as our trajectories."""

import torch

from rl_notes.trajectories import Trajectories


def as_ours(inputs):
    """TRL's batch, padded on both sides, as rows that are padded on the right.

    Log-probabilities and rewards are left at 0. TRL shuffles the rows of a batch before
    it takes a step, so that a row's group is told by its prompt.
    """
    tokens = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    prompt, answer = inputs["prompt_mask"], inputs["completion_mask"]
    chosen = torch.cat([torch.zeros_like(prompt), answer], dim=1).bool()
    empty = (prompt == 0).sum(dim=1)
    columns = torch.arange(tokens.shape[1]) + empty[:, None]
    inside = columns < tokens.shape[1]
    columns = columns.clamp(max=tokens.shape[1] - 1)
    text = tokens.gather(1, columns)
    mask = (chosen.gather(1, columns) & inside)[:, 1:]
    zeros = torch.zeros(mask.shape)
    return Trajectories(
        actions=text[:, 1:],
        logprobs=zeros,
        rewards=zeros,
        discounts=zeros,
        mask=mask,
        groups=inputs["prompt_ids"].unique(dim=0, return_inverse=True)[1],
        observations=text,
    )
