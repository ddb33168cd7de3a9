"""Three small policies, each with a batch of its own, and what must not matter."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from batches import random_batch, seeded, with_garbage
from language_models import tiny
from torch.nn.utils import parameters_to_vector

from rl_notes.language.generation import generate
from rl_notes.natural_gradient import trainable
from rl_notes.policies import (
    MLPPolicy,
    TabularPolicy,
    TransformerPolicy,
    action_logprobs,
)

KINDS = ("table", "network", "transformer")
every_policy = pytest.mark.parametrize("kind", KINDS)


def its_own(policy, batch):
    """The batch as if this policy had sampled it."""
    with torch.no_grad():
        return replace(batch, logprobs=action_logprobs(policy, batch))


def small(kind, dtype=torch.float64, seed=0):
    """A policy with at most a few hundred parameters, and a batch of its own."""
    if kind == "transformer":
        writer = TransformerPolicy(tiny(scale=10.0, seed=seed).to(dtype), 1.3)
        prompts = [[1, 3], [1, 0, 3], [1]]
        batch = generate(
            writer, prompts, group_size=2, max_new_tokens=4, generator=seeded(seed)
        )
        return writer, its_own(writer, batch)
    batch = random_batch([4, 1, 6, 2], prompts=[0, 3, 1, 0], cut=[1], seed=seed)
    if kind == "table":
        policy: torch.nn.Module = TabularPolicy(5, 3).to(dtype)
    else:
        policy = MLPPolicy(5, 3, hidden=(4,), generator=seeded(seed)).to(dtype)
    for weight in policy.parameters():
        torch.nn.init.normal_(weight, generator=seeded(seed))
    return policy, its_own(policy, batch)


def random_like(batch, seed=0):
    shape = batch.mask.shape
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def bits(policy):
    return [weight.detach().clone() for weight in policy.parameters()]


def same_bits(policy, before):
    return all(
        torch.equal(weight.view(torch.uint8), old.view(torch.uint8))
        for weight, old in zip(bits(policy), before, strict=True)
    )


# Changes of a batch and its advantages that must not change an update


def shuffled(batch, advantages):
    order = torch.randperm(len(batch.mask), generator=seeded(1))
    return batch.select(order), advantages[order]


def wider(batch, advantages):
    pad = partial(torch.nn.functional.pad, pad=(0, 5))
    names = ("actions", "logprobs", "rewards", "discounts", "mask", "observations")
    wide = {name: pad(getattr(batch, name)) for name in names}
    return replace(batch, **wide), pad(advantages)


def spoilt(batch, advantages):
    return with_garbage(batch), torch.where(batch.mask, advantages, math.nan)


def regrouped(batch, advantages):
    rewards = random_like(batch, 5) * batch.mask
    return replace(batch, groups=0 * batch.groups, rewards=rewards), advantages


def flat_weights(policy):
    """The weights that are trained, as one vector."""
    return parameters_to_vector(trainable(policy).values()).detach()


def assert_refused(message, update, policy, *arguments, **options):
    """An update refuses what it is given, and leaves the policy as it was."""
    before = bits(policy)
    with pytest.raises(ValueError, match=message):
        update(policy, *arguments, **options)
    assert same_bits(policy, before)
