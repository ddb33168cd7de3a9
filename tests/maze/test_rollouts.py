import math
from dataclasses import fields
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from batches import seeded
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import rl_notes.dynamic_programming as dp
from rl_notes.advantages import returns_to_go
from rl_notes.maze import MazeEnv, MazeVectorEnv
from rl_notes.policies import MLPPolicy, TabularPolicy, action_logprobs
from rl_notes.rollouts import rollout
from rl_notes.trajectories import Trajectories

NEXT_STEP, SAME_STEP, DISABLED = (
    AutoresetMode.NEXT_STEP,
    AutoresetMode.SAME_STEP,
    AutoresetMode.DISABLED,
)
MODES = pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
GAMMA = 0.9


def table_policy(states, actions=3, *, seed=0):
    policy = TabularPolicy(states, actions)
    torch.nn.init.normal_(policy.logits, std=0.5, generator=seeded(seed))
    return policy


def mazes(count, *, mode=NEXT_STEP, size=2, limit=30, **options):
    return MazeVectorEnv(
        count, size=size, max_episode_steps=limit, autoreset_mode=mode, **options
    )


def play(env, policy, *, seed=0, episodes=None, **options):
    return rollout(
        env,
        policy,
        episodes=episodes or env.num_envs,
        discount=options.pop("discount", GAMMA),
        generator=seeded(seed),
        **options,
    )


def same(one, other):
    return all(
        torch.equal(getattr(one, field.name), getattr(other, field.name))
        for field in fields(Trajectories)
    )


def last_observations(batch):
    rows = torch.arange(len(batch.mask))
    return batch.observations[rows, batch.lengths]


# An environment that is easy to follow


class Stairs(gymnasium.Env):
    """Action 1 climbs a step and earns its number; the top ends, the clock cuts.

    Each reset begins at another place, so that a reset leaves traces. It notes the
    seeds that it was given.
    """

    observation_space = Box(-10, 1000, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, top=4, limit=6, seeds=None):
        self.top, self.limit, self.resets = top, limit, 0
        self.seeds = [] if seeds is None else seeds

    def _seen(self):
        return np.array([self.place, self.resets], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seeds.append(seed)
        self.resets += 1
        self.place = int(self.np_random.integers(2))
        self.clock = 0
        return self._seen(), {}

    def step(self, action):
        self.place += int(action)
        self.clock += 1
        reward = float(self.place * action)
        ended, cut = self.place >= self.top, self.clock >= self.limit
        return self._seen(), reward, ended, cut, {}


class Upwards(torch.nn.Module):
    """Always climbs, whatever it sees."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([-math.inf, 0.0]))

    def forward(self, observations):
        return self.logits.expand(*observations.shape[:2], 2)


class Undecided(Upwards):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(2))


def stairs(count, mode, **options):
    return SyncVectorEnv([lambda: Stairs(**options)] * count, autoreset_mode=mode)


@MODES
def test_an_ended_episode_has_discount_zero_and_its_own_last_state(mode):
    batch = play(stairs(3, mode, limit=9), Upwards())
    for n, length in enumerate(batch.lengths.tolist()):
        start = int(batch.observations[n, 0, 0])
        assert length == 4 - start
        climbed = range(start + 1, 5)
        assert batch.rewards[n, :length].tolist() == list(climbed)
        assert batch.observations[n, : length + 1, 0].tolist() == [start, *climbed]
        assert (batch.observations[n, : length + 1, 1] == 1).all()  # the first reset
        expected = [GAMMA] * (length - 1) + [0.0]
        assert batch.discounts[n, :length].tolist() == pytest.approx(expected)


@MODES
def test_a_cut_episode_keeps_its_discount_and_its_own_last_state(mode):
    batch = play(stairs(2, mode, limit=2), Upwards())
    starts = batch.observations[:, 0, 0]
    assert batch.lengths.tolist() == [2, 2]
    torch.testing.assert_close(batch.discounts, torch.full((2, 2), GAMMA))
    last = torch.stack([starts + 2, torch.ones(2)], dim=1)
    assert torch.equal(last_observations(batch), last)


@MODES
def test_ended_and_cut_at_once_counts_as_ended(mode):
    # Whoever starts at 0 climbs the top at step 4, when the clock runs out too.
    batch = play(stairs(8, mode, limit=4), Upwards())
    late = batch.lengths == 4
    assert 0 < late.sum() < 8
    assert (batch.discounts[late, 3] == 0).all()
    assert (batch.discounts[~late, 2] == 0).all()


@MODES
def test_no_step_of_an_automatic_reset_is_stored(mode):
    # The row that ends first is stepped on, through several resets, by the others.
    batch = play(stairs(16, mode, limit=40), Undecided())
    assert batch.lengths.min() * 3 < batch.lengths.max()
    for n, length in enumerate(batch.lengths.tolist()):
        assert (batch.observations[n, : length + 1, 1] == 1).all()
        assert batch.observations[n, length, 0] == 4
        assert (batch.observations[n, length + 1 :] == 0).all()
        assert batch.mask[n].tolist() == [t < length for t in range(len(batch.mask[n]))]
        for name in ("actions", "logprobs", "rewards", "discounts"):
            assert (getattr(batch, name)[n, length:] == 0).all()


@MODES
def test_an_environment_may_write_each_observation_over_the_last(mode):
    firsts = [lambda: Stairs(limit=40)] * 8
    batches = [
        play(SyncVectorEnv(firsts, autoreset_mode=mode, copy=copy), Undecided())
        for copy in (True, False)
    ]
    assert same(*batches)


def test_every_reset_gets_seeds_of_its_own_from_the_generator():
    seeds: list[int] = []
    env = SyncVectorEnv([lambda: Stairs(seeds=seeds)] * 2)
    play(env, Undecided(), episodes=6)
    assert len(seeds) == len(set(seeds)) == 6
    first = seeds[:]
    play(env, Undecided(), episodes=6)
    assert seeds[6:] == first
    play(env, Undecided(), episodes=6, seed=1)
    assert not set(seeds[12:]) & set(first)


# Replays in single environments


@MODES
@pytest.mark.parametrize("limit", [7, 500])
def test_maze_rows_are_what_a_single_robot_meets(mode, limit):
    batch = play(mazes(12, mode=mode, limit=limit), table_policy(16), episodes=24)
    single = gymnasium.make("rl_notes/Maze-v0", size=2, max_episode_steps=limit)
    ended_rows = 0
    for n, length in enumerate(batch.lengths.tolist()):
        state, _ = single.reset()
        assert state == batch.observations[n, 0]
        for t in range(length):
            state, reward, ended, cut, _ = single.step(int(batch.actions[n, t]))
            assert state == batch.observations[n, t + 1]
            assert reward == pytest.approx(float(batch.rewards[n, t]), abs=1e-6)
            assert (ended or cut) == (t == length - 1)
            assert float(batch.discounts[n, t]) == pytest.approx(GAMMA * (not ended))
        ended_rows += ended
    assert ended_rows < 6 if limit == 7 else ended_rows > 18


@MODES
def test_cartpole_rows_are_what_a_single_cart_meets(mode):
    seeds: list[int] = []

    class Noted(gymnasium.Wrapper):
        def reset(self, *, seed=None, options=None):
            seeds.extend([] if seed is None else [seed])
            return super().reset(seed=seed, options=options)

    env = SyncVectorEnv(
        [lambda: Noted(gymnasium.make("CartPole-v1"))] * 4, autoreset_mode=mode
    )
    policy = MLPPolicy(4, 2, generator=seeded(0))
    batch = play(env, policy, episodes=8)
    single = gymnasium.make("CartPole-v1")
    for n, length in enumerate(batch.lengths.tolist()):
        observation, _ = single.reset(seed=seeds[n])
        np.testing.assert_array_equal(batch.observations[n, 0], observation)
        for t in range(length):
            observation, reward, ended, cut, _ = single.step(int(batch.actions[n, t]))
            np.testing.assert_array_equal(batch.observations[n, t + 1], observation)
            assert reward == batch.rewards[n, t] == 1
            assert (ended or cut) == (t == length - 1)


def test_gymnasiums_own_vector_cartpole_works():
    env = gymnasium.make_vec("CartPole-v1", num_envs=5)
    assert not isinstance(env.unwrapped, SyncVectorEnv)
    batch = play(env, MLPPolicy(4, 2, generator=seeded(0)), episodes=10)
    assert batch.observations.dtype == torch.float32
    single: Any = gymnasium.make("CartPole-v1").unwrapped
    for n, length in enumerate(batch.lengths.tolist()):
        single.reset(seed=0)
        for t in range(length):
            # Each step begins where the stored one did: float32 rounds a little.
            single.state = batch.observations[n, t].double().numpy()
            single.steps_beyond_terminated = None
            observation, *_ = single.step(int(batch.actions[n, t]))
            after = batch.observations[n, t + 1]
            np.testing.assert_allclose(after, observation, rtol=1e-4, atol=1e-6)
        assert abs(observation[2]) > 12 * 2 * math.pi / 360  # the pole fell
        assert batch.discounts[n, length - 1] == 0
    # Two rounds begin differently, and so do two carts.
    assert len(batch.observations[:, 0].unique(dim=0)) == 10


# What is stored about the policy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logprobs_are_those_of_the_policy_that_sampled(dtype):
    policy = table_policy(16).to(dtype)
    batch = play(mazes(6, slip=0.2), policy, episodes=18)
    for name in ("logprobs", "rewards", "discounts"):
        assert getattr(batch, name).dtype == dtype
    expected = action_logprobs(policy, batch).detach()
    torch.testing.assert_close(batch.logprobs, expected, rtol=1e-6, atol=1e-7)
    assert not batch.logprobs.requires_grad
    assert len(batch.logprobs[batch.mask].unique()) > 10


def test_observations_keep_the_dtype_of_their_space():
    policy = MLPPolicy(4, 2, generator=seeded(0)).double()
    env = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    batch = play(env, policy)
    assert batch.observations.dtype == torch.float32
    assert batch.logprobs.dtype == torch.float64
    assert play(mazes(2), table_policy(16)).observations.dtype == torch.int64


def test_actions_have_the_frequencies_of_the_policy():
    # N = 40,000 first actions, seed 0: 4 standard errors (by chance below 2e-4).
    policy = table_policy(16, seed=3)
    batch = play(mazes(40_000, limit=1), policy)
    chances = policy.logits[1].softmax(-1).detach()
    found = batch.actions[:, 0].bincount(minlength=3) / 40_000
    errors = (chances * (1 - chances) / 40_000).sqrt()
    assert ((found - chances).abs() < 4 * errors).all()


# Episodes, starts and groups


def test_without_starts_every_row_is_a_group_of_its_own():
    batch = play(mazes(3), table_policy(16), episodes=6)
    assert batch.groups.tolist() == [0, 1, 2, 3, 4, 5]
    assert (batch.observations[:, 0] == 1).all()


def test_starts_are_shared_by_a_group_across_rounds():
    batch = play(mazes(3), table_policy(16), episodes=6, starts=[0, 7, 9], group_size=2)
    assert batch.observations[:, 0].tolist() == [0, 0, 7, 7, 9, 9]
    assert batch.groups.tolist() == [0, 0, 1, 1, 2, 2]


def test_rounds_of_different_length_are_padded_to_one_table():
    # Starts one action before the exit, and far away from it.
    near = int(np.flatnonzero(MazeEnv(size=2).distance.numpy() == 1)[0])
    policy = table_policy(16)
    with torch.no_grad():
        policy.logits[near] = torch.tensor([40.0, 0.0, 0.0])
    batch = play(mazes(2), policy, episodes=4, starts=[near, near, 1, 1])
    assert batch.lengths[:2].tolist() == [1, 1]
    assert batch.lengths[2:].min() > 1
    assert batch.observations.shape == (4, batch.mask.shape[1] + 1)


# Random numbers


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_the_generator_alone_decides(slip):
    policy = table_policy(16)
    torch.manual_seed(5)
    first = play(mazes(4, slip=slip), policy, episodes=8)
    torch.manual_seed(6)
    assert same(first, play(mazes(4, slip=slip), policy, episodes=8))
    assert not same(first, play(mazes(4, slip=slip), policy, episodes=8, seed=1))
    # Rounds, and calls with one generator, differ from each other.
    assert not same(first.select(torch.arange(4)), first.select(torch.arange(4, 8)))
    generator = seeded(0)
    one, two = (
        rollout(mazes(4), policy, episodes=4, discount=0.9, generator=generator)
        for _ in range(2)
    )
    assert not torch.equal(one.actions[:, :3], two.actions[:, :3])


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_a_row_does_not_depend_on_the_others_or_on_the_round_before(slip):
    policy, env = table_policy(16), mazes(3, limit=200, slip=slip)
    near = int(np.flatnonzero(MazeEnv(size=2).distance.numpy() == 1)[0])
    with torch.no_grad():
        policy.logits[near] = torch.tensor([9.0, 0.0, 0.0])
    # Row 4 keeps its start, in the second round; all others move.
    one = play(env, policy, episodes=6, starts=[near, near, near, near, 1, near])
    other = play(env, policy, episodes=6, starts=[2, 1, 0, 10, 1, 11])
    length = int(one.lengths[4])
    assert length == other.lengths[4] > 1
    for name in ("actions", "rewards", "logprobs"):
        mine, theirs = getattr(one, name)[4, :length], getattr(other, name)[4, :length]
        torch.testing.assert_close(mine, theirs)
    # The round before took another time, and so did the neighbours.
    assert one.lengths[:3].max() != other.lengths[:3].max()
    assert one.lengths[3] != other.lengths[3]


# The exact answer


def exact_value(world, policy, gamma=GAMMA):
    chances = policy.logits.detach().softmax(-1)
    return dp.policy_evaluation(world, chances, discount=gamma)


def test_the_mean_return_is_the_exact_value():
    # N = 10,000 episodes, seed 0: within 4 standard errors (by chance below 1e-4).
    # After the limit of 150 steps nothing counts for more than 0.9^150 = 1e-7.
    policy, n = table_policy(16).double(), 10_000
    env = mazes(n, limit=150, slip=0.1)
    returns = returns_to_go(play(env, policy))[:, 0]
    exact = float(exact_value(MazeEnv(size=2, slip=0.1), policy)[1])
    error = float(returns.std()) / math.sqrt(n)
    assert error < 0.005
    assert abs(float(returns.mean()) - exact) < 4 * error


@MODES
def test_a_cut_row_needs_the_value_of_its_last_state(mode):
    # N = 20,000 episodes cut after 4 steps, seed 0. With the exact V(s_L) the mean is
    # exact up to 4 standard errors; without it, it is off by more than 20.
    policy, n = table_policy(16).double(), 20_000
    values = exact_value(MazeEnv(size=2), policy)
    batch = play(mazes(n, mode=mode, limit=4), policy)
    reached = batch.discounts[torch.arange(n), batch.lengths - 1] == 0
    assert 0 < reached.double().mean() < 0.5
    final = values[last_observations(batch)]
    returns = returns_to_go(batch, final)[:, 0]
    error = float(returns.std()) / math.sqrt(n)
    assert abs(float(returns.mean() - values[1])) < 4 * error
    without = returns_to_go(batch)[:, 0]
    error = float(without.std()) / math.sqrt(n)
    assert abs(float(without.mean() - values[1])) > 20 * error
    # A made-up value at ended rows changes nothing.
    made_up = torch.where(reached, 1e3, final)
    torch.testing.assert_close(returns_to_go(batch, made_up)[:, 0], returns)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 5}, "episodes=5 is not a positive multiple of num_envs=4"),
        ({"episodes": -4}, "episodes=-4 is not a positive multiple"),
        ({"discount": 1.5}, "discount must lie between 0 and 1, but it is 1.5"),
        ({"discount": -0.5}, "discount must lie between 0 and 1"),
        ({"group_size": 2}, "give starts with group_size"),
        ({"starts": [1, 2]}, "2 starts x group_size 1 make 2 episodes, but episodes=4"),
        ({"starts": [1, 2, 3], "group_size": 2}, "make 6 episodes, but episodes=4"),
        ({"starts": [], "group_size": 0}, "make 0 episodes"),
    ],
)
def test_numbers_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        play(mazes(4), table_policy(16), **options)


def test_no_episode_at_all_is_refused():
    with pytest.raises(ValueError, match="episodes=0 is not a positive multiple"):
        rollout(
            mazes(2), table_policy(16), episodes=0, discount=0.9, generator=seeded(0)
        )


def test_actions_must_be_discrete():
    env = gymnasium.make_vec("Pendulum-v1", num_envs=2, vectorization_mode="sync")
    with pytest.raises(ValueError, match="rollout needs discrete actions, but env has"):
        play(env, MLPPolicy(3, 2, generator=seeded(0)))


def test_an_environment_without_automatic_reset_is_refused():
    with pytest.raises(ValueError, match="needs an environment with automatic reset"):
        play(mazes(2, mode=DISABLED), table_policy(16))


@pytest.mark.parametrize("actions", [2, 4])
def test_a_policy_of_another_width_is_refused(actions):
    with pytest.raises(ValueError, match=f"among {actions} actions, but .* has 3"):
        play(mazes(2), table_policy(16, actions))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_policy_of_nan_is_refused(value):
    policy = table_policy(16)
    with torch.no_grad():
        policy.logits.fill_(value)
    with pytest.raises(ValueError, match="logits that are not numbers"):
        play(mazes(2), policy)


def test_a_start_that_does_not_exist_is_refused_by_the_environment():
    with pytest.raises(ValueError, match="start must be a state"):
        play(mazes(2), table_policy(16), starts=[1, 99])
