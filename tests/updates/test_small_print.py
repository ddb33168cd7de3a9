"""Promises in the small print, each of which a small change of the code would break."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from batches import random_batch, seeded
from gymnasium.vector import AutoresetMode
from language_models import fresh
from small_policies import its_own, random_like, small
from torch import nn

import rl_notes.dynamic_programming as dp
from rl_notes.advantages import gae, returns_to_go
from rl_notes.divergences import sample
from rl_notes.language.arithmetic import _stated_totals
from rl_notes.language.generation import generate
from rl_notes.maze import MazeEnv, MazeVectorEnv
from rl_notes.natural_gradient import split
from rl_notes.objectives import (
    mean_over_sequences,
    mean_over_tokens,
    step_weights,
    sum_over_constant,
    token_clip,
)
from rl_notes.policies import (
    MLPPolicy,
    TabularPolicy,
    TransformerPolicy,
    rounding_of_logprobs,
)
from rl_notes.updates import grpo_update, ppo_update, reinforce_update

CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}


def ppo(policy, batch, advantages, lr=0.1, **options):
    optimizer = torch.optim.SGD(policy.parameters(), lr=lr)
    options = {"epochs": 1, "minibatches": 1, "generator": seeded(0), **options}
    return ppo_update(policy, optimizer, batch, advantages, **CLIP, **options)


# Weights per step

MASK = torch.tensor([[True, True, False], [False, True, False], [False] * 3])


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        (mean_over_tokens, [[1 / 3, 1 / 3, 0], [0, 1 / 3, 0], [0, 0, 0]]),
        (mean_over_sequences, [[1 / 6, 1 / 6, 0], [0, 1 / 3, 0], [0, 0, 0]]),
        (
            partial(sum_over_constant, constant=5),
            [[1 / 5, 1 / 5, 0], [0, 1 / 5, 0], [0, 0, 0]],
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_aggregation_is_a_weight_per_step(aggregate, expected, dtype):
    weights = step_weights(aggregate, MASK, dtype=dtype)
    assert weights.dtype == dtype
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=dtype))
    x = torch.randn(3, 3, generator=seeded(0)).to(dtype)
    torch.testing.assert_close((weights * x).sum(), aggregate(x, MASK))


# What an update reports


def test_the_price_of_the_reference_frees_no_step_that_the_clip_holds():
    """Every ratio ends above 1.2 with a positive advantage: the clip holds them all."""
    policy = TabularPolicy(5, 3).double()
    batch = its_own(policy, random_batch([3, 2]))
    batch = replace(batch, actions=torch.zeros_like(batch.actions))
    stats = grpo_update(
        policy,
        torch.optim.SGD(policy.parameters(), lr=20.0),
        batch,
        torch.where(batch.mask, 1.0, 0.0).double(),
        objective=partial(token_clip, **CLIP),
        epochs=1,
        minibatches=1,
        generator=seeded(0),
        reference_logprobs=torch.where(batch.mask, batch.logprobs - 0.3, 0),
        beta=0.1,
    )
    assert stats.ratio_min > 1.2
    assert stats.clip_fraction == 1


def test_the_smallest_ratio_is_that_of_a_step():
    """Beyond the steps the log-probabilities are 0 and 0, whose ratio is 1."""
    policy = TabularPolicy(5, 3).double()
    batch = its_own(policy, random_batch([1, 1], prompts=[2, 1]))
    batch = replace(batch, actions=torch.zeros_like(batch.actions))
    stats = ppo(policy, batch, torch.where(batch.mask, 1.0, 0.0).double(), lr=1.0)
    assert stats.ratio_min > 1.01
    stats = ppo(policy, its_own(policy, batch), -batch.mask.double(), lr=1.0)
    assert stats.ratio_max < 0.99


def test_a_kl_that_is_just_the_limit_is_no_brake():
    policy, batch = small("table")
    first = ppo(policy, batch, random_like(batch)).kl_mean
    for limit, epochs in ((first, 2), (math.nextafter(first, 0), 1)):
        policy, batch = small("table")
        options = {"epochs": 2, "max_kl": limit}
        assert ppo(policy, batch, random_like(batch), **options).epochs == epochs


def test_how_far_the_sampler_may_be_off():
    for off, fits in ((0.0005, True), (0.002, False)):
        policy, batch = small("table")
        logprobs = torch.where(batch.mask, batch.logprobs - off, 0)
        batch = replace(batch, logprobs=logprobs)
        if fits:
            ppo(policy, batch, random_like(batch))
        else:
            with pytest.raises(ValueError, match=r"differ by 0\.002 in the mean"):
                ppo(policy, batch, random_like(batch))


def test_half_precision_may_be_off_by_more():
    for off, fits in ((0.05, True), (0.2, False)):
        policy = MLPPolicy(5, 3, hidden=(4,), generator=seeded(0)).bfloat16()
        batch = its_own(policy, random_batch([3, 2], seed=1))
        batch = replace(batch, rewards=batch.rewards.float())
        logprobs = torch.where(batch.mask, batch.logprobs - off, 0)
        batch = replace(batch, logprobs=logprobs)
        advantages = torch.where(batch.mask, 1.0, 0.0)
        if fits:
            ppo(policy, batch, advantages)
        else:
            with pytest.raises(ValueError, match="other log-probabilities"):
                ppo(policy, batch, advantages)


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_a_low_temperature_divides_what_half_precision_rounds_off(temperature):
    """What is rounded otherwise by so little is further apart by as much."""
    model = fresh(scale=1.0).bfloat16()
    policy = TransformerPolicy(model, temperature)
    prompts = [[2, 5, 7]]
    options: dict[str, Any] = {"max_new_tokens": 4, "generator": seeded(0)}
    batch = generate(policy, prompts, group_size=2, **options)

    def otherwise(module, given, logits):
        return logits.float() + 0.03 * torch.randn(logits.shape, generator=seeded(1))

    model.lm_head.register_forward_hook(otherwise)
    advantages = torch.where(batch.mask, 1.0, 0.0)
    ppo(policy, batch, advantages)
    assert rounding_of_logprobs(policy, torch.float64) < 0.1 / min(1, temperature)


def test_an_empty_row_counts_in_the_mean_of_reinforce():
    """Two rows, one without a step: half the step of the other one alone."""
    moves = []
    for lengths in ([3], [3, 0]):
        policy = TabularPolicy(5, 3).double()
        batch = its_own(policy, random_batch(lengths, steps=3))
        batch = replace(batch, actions=torch.zeros_like(batch.actions))
        batch = replace(batch, observations=torch.zeros_like(batch.observations))
        optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
        reinforce_update(policy, optimizer, batch, batch.mask.double())
        moves.append(policy.logits.detach().clone())
    torch.testing.assert_close(moves[1], moves[0] / 2)
    assert float(moves[0].abs().max()) > 0.5


# One policy for all who look at it


class Watched(nn.Module):
    """Counts what it is asked for; from one module on, all is one update's."""

    def __init__(self, policy):
        super().__init__()
        self.policy, self.rows = policy, 0

    def forward(self, observations):
        self.rows += len(observations)
        return self.policy(observations)


def test_what_one_update_in_one_part_costs():
    """A look with a gradient and one without: the old policy's logits are kept."""
    policy, batch = small("network")
    watched = Watched(policy)
    ppo(watched, batch, random_like(batch))
    assert watched.rows == 2 * 4
    watched.rows = 0
    ppo(watched, its_own(policy, batch), random_like(batch), epochs=3)
    assert watched.rows == 4 * 4
    watched.rows = 0
    options = {"epochs": 3, "minibatches": 2}
    ppo(watched, its_own(policy, batch), random_like(batch), **options)
    assert watched.rows == 5 * 4  # now the old one is looked at again, at the end


# Elsewhere


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_draw_is_that_from_the_same_logits_in_double(dtype):
    logits = torch.randn(400, 7, generator=seeded(0)).to(dtype)
    uniforms = torch.rand(400, generator=seeded(1), dtype=torch.float64)
    assert torch.equal(sample(logits, uniforms), sample(logits.double(), uniforms))
    edges = logits.double().softmax(-1).cumsum(-1)[:, 2]
    for near in (edges * (1 + 1e-6), edges * (1 - 1e-6)):
        assert torch.equal(sample(logits, near), sample(logits.double(), near))


def test_whoever_writes_into_the_infos_changes_no_episode():
    draws = seeded(3)
    taken = [torch.randint(3, (4,), generator=draws).numpy() for _ in range(60)]
    seen = []
    for spoil in (False, True):
        mode = AutoresetMode.SAME_STEP
        env = MazeVectorEnv(4, size=2, max_episode_steps=7, autoreset_mode=mode)
        found = [env.reset(seed=0)[0].tolist()]
        for actions in taken:
            observations, rewards, ended, cut, infos = env.step(actions)
            found.append([x.tolist() for x in (observations, rewards, ended, cut)])
            found.append(sorted(infos))
            if spoil:
                inner = infos.pop("final_info", {})
                for value in [*infos.values(), *inner.values()]:
                    value[...] = 0
        seen.append(found)
    assert seen[0] == seen[1]


def test_infos_do_not_share_their_masks():
    mode = AutoresetMode.SAME_STEP
    env = MazeVectorEnv(4, size=2, max_episode_steps=2, autoreset_mode=mode)
    env.reset(seed=0)
    for _ in range(2):
        *_, infos = env.step(torch.zeros(4, dtype=torch.long).numpy())
    masks = [infos["_final_obs"], infos["_final_info"]]
    masks += [infos["final_info"][name] for name in ("_bumped", "_distance")]
    for mask in masks:
        assert mask.all()  # still, though the one before was emptied
        mask[:] = False


def test_probabilities_that_do_not_sum_to_one_are_refused():
    maze = MazeEnv(size=2)
    chances = torch.full((16, 3), 1 / 3).double()
    dp.policy_evaluation(maze, chances, discount=0.9)
    with pytest.raises(ValueError, match="must sum to 1"):
        dp.policy_evaluation(maze, chances * 1.0005, discount=0.9)


def test_an_action_that_is_ahead_by_little_is_alone_the_best():
    values = torch.tensor([[0.5, 0.5 + 1e-7, 0.5], [0.5, 0.5 + 1e-11, 0.0]]).double()
    expected = torch.tensor([[0.0, 1, 0], [0.5, 0.5, 0]]).double()
    assert torch.equal(dp.greedy(values), expected)


def test_a_total_may_lose_all_it_has():
    """A slip down in the tens of 10 states 0; of 9 in the tens there is none."""
    stated = {
        total
        for seed in range(40)
        for total in _stated_totals(["What is 4+6?"] * 20, 1.0, seeded(seed))
    }
    assert stated == {0, 9, 11, 20}


def test_dtypes_of_results():
    batch = random_batch([3, 2])  # in double
    assert returns_to_go(batch, torch.ones(2)).dtype == torch.float64
    values = torch.ones(2, 4)
    assert gae(batch, values, lambda_=0.9).dtype == torch.float64
    weights = {"a": torch.zeros(2, 2), "b": torch.zeros(3, dtype=torch.bfloat16)}
    parts = split(torch.arange(7.0), weights)
    assert parts["a"].dtype == torch.float32
    assert parts["b"].dtype == torch.bfloat16
