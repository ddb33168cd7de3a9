"""What every update promises, whichever it is, to whoever calls it."""

import copy
import math
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial
from typing import Any

import pytest
import small_policies
import torch
from batches import random_batch, seeded
from small_policies import (
    bits,
    every_policy,
    flat_weights,
    its_own,
    random_like,
    regrouped,
    same_bits,
    shuffled,
    small,
    spoilt,
    wider,
)
from torch import nn

from rl_notes.divergences import entropy
from rl_notes.objectives import token_clip
from rl_notes.policies import MLPPolicy, TabularPolicy, states
from rl_notes.trajectories import Trajectories
from rl_notes.updates import (
    UpdateStats,
    grpo_update,
    ppo_update,
    reinforce_update,
    trpo_update,
)

Update = Callable[..., UpdateStats]


def by_trpo(policy, optimizer, batch, advantages, **options):
    # Few products: conjugate gradient blows rounding up once it has converged.
    numbers: dict[str, Any] = {"max_kl": 0.02, "damping": 0.1, "iterations": 4}
    return trpo_update(policy, batch, advantages, **numbers, **options)


def by_ppo(policy, optimizer, batch, advantages, **options):
    numbers = {"clip_low": 0.2, "clip_high": 0.3, "epochs": 2, "minibatches": 2}
    options = {**numbers, "generator": seeded(0), **options}
    return ppo_update(policy, optimizer, batch, advantages, **options)


def by_grpo(policy, optimizer, batch, advantages, **options):
    clip = partial(token_clip, clip_low=0.2, clip_high=0.3)
    numbers = {"objective": clip, "epochs": 2, "minibatches": 2}
    options = {**numbers, "generator": seeded(0), **options}
    return grpo_update(policy, optimizer, batch, advantages, **options)


WITH_AN_OPTIMIZER = {
    "reinforce": reinforce_update,
    "ppo": by_ppo,
    "grpo": by_grpo,
}
UPDATES = {**WITH_AN_OPTIMIZER, "trpo": by_trpo}
every_update = pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
every_ascent = pytest.mark.parametrize(
    "update", WITH_AN_OPTIMIZER.values(), ids=WITH_AN_OPTIMIZER
)


def momentum(policy, lr=0.1):
    return torch.optim.SGD(policy.parameters(), lr=lr, momentum=0.9)


def weights_of(policy):
    return flat_weights(policy)


def assert_refused(message, update, policy, batch, advantages, **options):
    optimizer = momentum(policy)
    small_policies.assert_refused(
        message, update, policy, optimizer, batch, advantages, **options
    )
    assert optimizer.state_dict() == momentum(policy).state_dict()


# What comes in is looked at


@every_update
@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4), (3, 4), (4, 5), ()])
@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_one_advantage_per_step_is_needed(update, shape):
    # N = T: one number per row would broadcast along the wrong axis.
    policy = TabularPolicy(5, 3).double()
    batch = its_own(policy, random_batch([4, 4, 2, 1]))
    message = r"^advantages has shape .*needed: \[4, 4\]"
    assert_refused(message, update, policy, batch, torch.ones(shape))


@every_update
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_advantages_must_be_finite(update, value):
    policy, batch = small("table")
    advantages = random_like(batch)
    advantages[0, 0] = value
    message = "^advantages holds a value that is not finite"
    assert_refused(message, update, policy, batch, advantages)


@every_update
def test_a_batch_without_a_step_is_refused(update):
    policy = TabularPolicy(5, 3).double()
    batch = random_batch([0, 0], steps=3)
    advantages = torch.zeros(2, 3).double()
    assert_refused("no step at all", update, policy, batch, advantages)


@every_update
@every_policy
def test_a_batch_of_another_policy_is_refused(update, kind):
    policy, batch = small(kind)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=seeded(5)).double()
    message = r"differ by 0\.\d+ in the mean.* most in row \d.*updated since it sampled"
    assert_refused(message, update, policy, batch, random_like(batch))


@every_update
def test_the_row_that_differs_most_is_named(update):
    policy, batch = small("table")
    logprobs = batch.logprobs.clone()
    logprobs[3, 0] -= 2.5  # of 13 steps in all
    batch = replace(batch, logprobs=logprobs)
    message = r"most in row 3, by 2\.5\b"
    assert_refused(message, update, policy, batch, random_like(batch))


@every_update
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_policy_that_is_not_finite_is_refused(update, value):
    policy, batch = small("table")
    with torch.no_grad():
        policy.logits[:, 1] = value
    message = r"log-probabilities that are not finite, first in row \d"
    assert_refused(message, update, policy, batch, random_like(batch))


@every_update
def test_a_policy_with_nothing_to_train_is_refused(update):
    policy, batch = small("network")
    optimizer = momentum(policy)
    policy.requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient, so"):
        update(policy, optimizer, batch, random_like(batch))


@every_ascent
@every_policy
def test_an_optimizer_of_other_weights_is_refused(update, kind):
    policy, batch = small(kind)
    before, other = bits(policy), momentum(copy.deepcopy(policy))
    with pytest.raises(ValueError, match="The optimizer holds none of the policy's"):
        update(policy, other, batch, random_like(batch))
    assert same_bits(policy, before)


@every_ascent
@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("micro_batch must be at least 1, but it is 0", {"micro_batch": 0}),
        ("micro_batch must be at least 1, but it is -3", {"micro_batch": -3}),
        ("max_norm must be positive, .* but it is 0", {"max_norm": 0.0}),
        ("max_norm must be positive, .* but it is nan", {"max_norm": math.nan}),
    ],
)
def test_numbers_that_mean_nothing_are_refused(update, message, wrong):
    policy, batch = small("table")
    assert_refused(message, update, policy, batch, random_like(batch), **wrong)


@pytest.mark.parametrize(
    ("update", "message", "wrong"),
    [
        (by_ppo, "epochs must be at least 1, but it is 0", {"epochs": 0}),
        (by_grpo, "epochs must be at least 1, but it is 0", {"epochs": 0}),
        (by_ppo, "minibatches=5, .*number of rows .*: 4", {"minibatches": 5}),
        (by_grpo, "minibatches=5, .*number of rows .*: 4", {"minibatches": 5}),
        (by_ppo, "minibatches=0", {"minibatches": 0}),
        (by_ppo, "max_kl must be positive, .* but it is 0", {"max_kl": 0.0}),
        (by_ppo, "max_kl must be positive, .* but it is nan", {"max_kl": math.nan}),
        (by_ppo, "positive, but they are -0.1 and 0.3", {"clip_low": -0.1}),
        (by_ppo, "positive, but they are 0.2 and 0", {"clip_high": 0.0}),
        (by_grpo, "beta is 0.1, but there are no reference_log", {"beta": 0.1}),
        (by_grpo, "beta must be a number from 0 up, .* -1", {"beta": -1.0}),
        (by_grpo, "beta must be a number from 0 up, .* nan", {"beta": math.nan}),
        (by_grpo, "beta must be a number from 0 up, .* inf", {"beta": math.inf}),
    ],
)
def test_numbers_of_one_update_that_mean_nothing_are_refused(update, message, wrong):
    policy, batch = small("table")
    assert_refused(message, update, policy, batch, random_like(batch), **wrong)


class SquareRoot(TabularPolicy):
    """Logits are square roots: at 0 they are finite and their gradient is not."""

    def forward(self, observations):
        return super().forward(observations).sqrt()


@every_ascent
def test_no_step_is_taken_along_what_is_not_finite(update):
    policy = SquareRoot(5, 3).double()
    batch = its_own(policy, random_batch([4, 2]))
    message = "gradient is not finite"
    assert_refused(message, update, policy, batch, random_like(batch))


# What must not matter


def updated(update, kind, change=lambda batch, advantages: (batch, advantages)):
    policy, batch = small(kind)
    start = weights_of(policy)
    batch, advantages = change(batch, random_like(batch))
    # One minibatch where there are any: an order of the rows is then no other deal.
    one = {} if update in (reinforce_update, by_trpo) else {"minibatches": 1}
    stats = update(policy, momentum(policy), batch, advantages, **one)
    assert float((weights_of(policy) - start).norm()) > 0.01
    return weights_of(policy), stats


@every_update
@every_policy
@pytest.mark.parametrize("change", [shuffled, wider, regrouped, spoilt])
def test_what_must_not_matter(update, kind, change):
    """The order of rows, padding, groups, and what is stored beyond the mask."""
    weights, stats = updated(update, kind)
    found, others = updated(update, kind, change)
    close = 1e-9
    torch.testing.assert_close(found, weights, rtol=0, atol=close)
    assert astuple(others) == pytest.approx(astuple(stats), abs=close)


@every_update
def test_advantages_are_constants(update):
    """Made from the policy itself, they pass no gradient on to it."""
    policy, batch = small("table")
    twin = copy.deepcopy(policy)
    advantages = policy(states(batch))[..., 0] * batch.mask
    assert advantages.requires_grad
    update(policy, momentum(policy), batch, advantages)
    update(twin, momentum(twin), batch, advantages.detach().clone())
    assert same_bits(policy, bits(twin))


@every_ascent
def test_the_gradient_is_not_added_to_the_one_before(update):
    policy, batch = small("table")
    twin = copy.deepcopy(policy)
    policy.logits.grad = torch.full_like(policy.logits, 100.0)
    for one in (policy, twin):
        update(one, momentum(one), batch, random_like(batch))
    assert same_bits(policy, bits(twin))


@every_update
def test_advantages_of_zero_change_nothing(update):
    policy, batch = small("table")
    before = bits(policy)
    stats = update(policy, momentum(policy), batch, 0 * random_like(batch))
    assert same_bits(policy, before)
    assert stats.kl_mean == stats.kl_max == stats.gradient_norm == 0
    expected = entropy(policy(states(batch)).detach())[batch.mask].mean()
    assert stats.entropy == pytest.approx(float(expected), rel=1e-9)


@every_update
def test_trajectories_are_not_touched(update):
    policy, batch = small("table")
    before, advantages = copy.deepcopy(batch), random_like(batch)
    kept = advantages.clone()
    update(policy, momentum(policy), batch, advantages)
    assert torch.equal(advantages, kept)
    for name in Trajectories.__dataclass_fields__:
        assert torch.equal(getattr(batch, name), getattr(before, name))


@every_update
def test_frozen_weights_stay_as_they_are(update):
    policy = MLPPolicy(5, 3, hidden=(4,), generator=seeded(0)).double()
    batch = its_own(policy, random_batch([3, 2, 4]))
    policy.layers[0].requires_grad_(False)
    frozen, moved = bits(policy.layers[0]), bits(policy.layers[2])
    update(policy, momentum(policy), batch, random_like(batch))
    assert same_bits(policy.layers[0], frozen)
    assert not same_bits(policy.layers[2], moved)


@every_ascent
@every_policy
@pytest.mark.parametrize("micro_batch", [1, 2, 99])
def test_how_a_minibatch_is_cut_changes_nothing(update, kind, micro_batch):
    """Rows of different lengths, with the gradient clipped as a whole."""
    ends = []
    for size in (None, micro_batch):
        policy, batch = small(kind)
        options = {"micro_batch": size, "max_norm": 0.2}
        stats = update(policy, momentum(policy), batch, random_like(batch), **options)
        ends.append((weights_of(policy), stats))
    (whole, one), (cut, other) = ends
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-10)
    assert astuple(other) == pytest.approx(astuple(one), abs=1e-10)


@every_ascent
@every_policy
def test_the_norm_of_the_gradient_is_clipped(update, kind):
    """One step of SGD of length 1 is as long as the norm allows, in its direction."""
    policy, batch = small(kind)
    twin, one = copy.deepcopy(policy), {}
    if update is not reinforce_update:
        one = {"epochs": 1, "minibatches": 1}
    start, moved = weights_of(policy), []
    for trained, limit in ((policy, {}), (twin, {"max_norm": 0.01})):
        plain = torch.optim.SGD(trained.parameters(), lr=1.0)
        stats = update(trained, plain, batch, random_like(batch), **one, **limit)
        moved.append(weights_of(trained) - start)
        norm = float(moved[0].norm())
        assert stats.gradient_norm == pytest.approx(norm, rel=1e-6)  # before it is cut
    assert norm > 0.02
    torch.testing.assert_close(moved[1], moved[0] * 0.01 / norm, rtol=1e-3, atol=1e-9)


# All or nothing


class Stops(nn.Module):
    """A policy that is interrupted in its n-th look at the states."""

    def __init__(self, policy, look, kind):
        super().__init__()
        self.policy, self.left, self.kind = policy, look, kind

    def forward(self, observations):
        self.left -= 1
        if self.left == 0:
            raise self.kind
        return self.policy(observations)


@every_ascent
@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, RuntimeError])
@pytest.mark.parametrize("look", [1, 2])
def test_an_update_that_is_stopped_has_changed_nothing(update, kind, look):
    """Policy, momentum and generator: afterwards the same call can be made again."""
    policy, batch = small("network")
    twin, advantages = copy.deepcopy(policy), random_like(batch)
    stopped = Stops(policy, 10**9, kind)
    mine, theirs = momentum(stopped), momentum(twin)
    options: list[dict[str, Any]] = [{}, {}]
    if update is not reinforce_update:
        options = [{"generator": seeded(3)}, {"generator": seeded(3)}]
    update(stopped, mine, batch, advantages, **options[0])  # so that there is momentum
    update(twin, theirs, batch, advantages, **options[1])
    batch = its_own(twin, batch)
    stopped.left = look
    with pytest.raises(kind):
        update(stopped, mine, batch, advantages, **options[0])
    assert same_bits(policy, bits(twin))
    stopped.left = 10**9
    update(stopped, mine, batch, advantages, **options[0])
    update(twin, theirs, batch, advantages, **options[1])
    assert same_bits(policy, bits(twin))


@every_ascent
def test_an_update_that_diverges_has_changed_nothing(update):
    (policy, batch), (twin, _) = small("table"), small("table")
    mine, theirs = momentum(policy), momentum(twin)
    advantages = random_like(batch)
    mine.param_groups[0]["lr"] = 1e308
    with pytest.raises(ValueError, match=r"not finite|KL.* is nan"):
        update(policy, mine, batch, 1e3 * advantages)
    mine.param_groups[0]["lr"] = 0.1
    update(policy, mine, batch, advantages)
    update(twin, theirs, batch, advantages)
    assert same_bits(policy, bits(twin))
