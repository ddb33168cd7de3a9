"""How much memory an update takes: it follows `micro_batch`, not the batch."""

from functools import partial
from typing import Any

import pytest
import torch
from batches import random_batch, seeded
from torch import nn

from benchmarks.peak_memory import Peak
from rl_notes.objectives import token_clip
from rl_notes.policies import action_logprobs
from rl_notes.updates import grpo_update, ppo_update, reinforce_update

WORDS, STEPS = 50_000, 16
CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}
ONCE: dict[str, Any] = {"epochs": 1, "minibatches": 1, "generator": seeded(0)}
UPDATES = {
    "reinforce": reinforce_update,
    "ppo": partial(ppo_update, **CLIP, **ONCE),
    "grpo": partial(grpo_update, objective=partial(token_clip, **CLIP), **ONCE),
}


def peak_of(update, rows):
    """In units of the logits of 16 rows in float32, [16, T, V]."""
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Embedding(WORDS, 4), nn.Linear(4, WORDS))
    batch = random_batch([STEPS] * rows, states=WORDS, actions=WORDS)
    parts = [batch.select(torch.tensor([row])) for row in range(rows)]
    with torch.no_grad():
        logprobs = torch.cat([action_logprobs(policy, part) for part in parts])
    vars(batch)["logprobs"] = logprobs
    advantages = torch.ones_like(logprobs)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    with Peak() as counted:
        update(policy, optimizer, batch, advantages, micro_batch=1)
    return counted.peak / (16 * STEPS * WORDS * 4)


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_memory_follows_the_micro_batch(update):
    small, large = peak_of(update, 16), peak_of(update, 32)
    assert 0.1 < small < 1.0
    assert large < 1.1 * small
