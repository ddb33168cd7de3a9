"""What worlds a policy can act in: spaces, wrappers, and what is refused."""

import inspect
from typing import Any, ClassVar, cast

import gymnasium
import numpy as np
import pytest
import torch
from batches import seeded
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    MultiBinary,
    MultiDiscrete,
    Text,
    Tuple,
)
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import DtypeObservation, FlattenObservation
from torch import nn

from rl_notes.policies import (
    MLPPolicy,
    MLPValue,
    TabularPolicy,
    TabularValue,
    action_logprobs,
)
from rl_notes.rollouts import rollout


def play(env, policy, *, episodes=None, **options):
    options = {"discount": 0.9, "generator": seeded(0), **options}
    return rollout(env, policy, episodes=episodes or env.num_envs, **options)


def network(inputs, actions):
    return MLPPolicy(inputs, actions, generator=seeded(0))


class World(gymnasium.Env):
    """Four steps of a space's samples; it records which actions it was given."""

    taken: ClassVar[list[int]] = []

    def __init__(self, space, actions=None):
        self.observation_space = space
        self.action_space = actions or Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        World.taken.append(int(action))
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t > 3, False, {}


def several(space, actions=None, wrap=lambda env: env, count=2):
    return SyncVectorEnv([lambda: wrap(World(space, actions))] * count)


def as_vector(env):
    """The wrappers that the refusals name."""
    return DtypeObservation(FlattenObservation(env), np.float32)


# The worlds of gymnasium


@pytest.mark.parametrize(
    ("name", "states", "actions"),
    [("Taxi", 500, 6), ("CliffWalking", 48, 4), ("FrozenLake", 16, 4)],
)
@pytest.mark.parametrize("make", [TabularPolicy, network])
def test_worlds_with_numbered_states(name, states, actions, make):
    limit = [lambda env: gymnasium.wrappers.TimeLimit(env, 40)]
    newest = max(one for one in gymnasium.registry if one.startswith(f"{name}-v"))
    env = gymnasium.make_vec(newest, num_envs=4, wrappers=limit)
    policy = make(states, actions)
    batch = play(env, policy)
    assert batch.observations.dtype == torch.int64
    expected = action_logprobs(policy, batch).detach()
    torch.testing.assert_close(batch.logprobs, expected, rtol=0, atol=1e-6)


def test_acrobot():
    limit = [lambda env: gymnasium.wrappers.TimeLimit(env, 30)]
    batch = play(
        gymnasium.make_vec("Acrobot-v1", num_envs=3, wrappers=limit), network(6, 3)
    )
    assert batch.observations.shape == (3, 31, 6)


def test_blackjack_as_the_docstring_wraps_it():
    wrappers = [
        FlattenObservation,
        lambda env: DtypeObservation(env, np.float32),
    ]
    env = gymnasium.make_vec("Blackjack-v1", num_envs=8, wrappers=wrappers)
    batch = play(env, network(45, 2), episodes=64)
    inside = batch.observations[:, :-1][batch.mask]
    assert inside.shape[1] == 45
    assert bool((inside.sum(dim=1) == 3).all())  # one-hot: sum, dealer's card, ace
    assert set(batch.rewards.sum(dim=1).tolist()) <= {-1.0, 0.0, 1.0}


# Spaces


@pytest.mark.parametrize(
    "space",
    [
        Tuple([Discrete(4), Discrete(3)]),
        Dict({"a": Discrete(4), "b": Box(0, 1, (2,))}),
        MultiBinary(4),
        MultiDiscrete([3, 4]),
        Box(0, 255, (4, 4, 3), np.uint8),
        Box(0, 9, (5,), np.int64),
        Text(5),
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [2, 4])
def test_what_the_policy_cannot_read_is_refused_with_what_helps(space, count):
    with pytest.raises(ValueError, match=r"To make vectors of floats") as refused:
        play(several(space, count=count), network(4, 3))
    for word in (str(space), "FlattenObservation", "DtypeObservation"):
        assert word in str(refused.value)


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
@pytest.mark.parametrize(
    ("space", "inputs"),
    [
        (Tuple([Discrete(4), Discrete(3)]), 7),
        (Dict({"a": Discrete(4), "b": Box(0, 1, (2,))}), 6),
        (MultiBinary(4), 4),
        (MultiDiscrete([3, 4]), 7),
        (Box(0, 255, (4, 4, 3), np.uint8), 48),
        (Box(0, 9, (5,), np.int64), 5),
    ],
    ids=str,
)
def test_what_the_refusals_name_helps(space, inputs):
    policy = network(inputs, 3)
    batch = play(several(space, wrap=as_vector), policy)
    assert batch.observations.shape == (2, 5, inputs)
    expected = action_logprobs(policy, batch).detach()
    torch.testing.assert_close(batch.logprobs, expected, rtol=0, atol=1e-6)
    assert float(batch.observations.abs().max()) > 0


def test_spaces_that_do_not_begin_at_0():
    """State and action number 0 are the first of their spaces."""
    World.taken = []
    env = several(Discrete(5, start=-2), Discrete(3, start=7))
    policy = TabularPolicy(5, 3)
    batch = play(env, policy, episodes=40)
    assert set(batch.observations.flatten().tolist()) == {0, 1, 2, 3, 4}
    assert set(batch.actions.flatten().tolist()) == {0, 1, 2}
    assert set(World.taken) == {7, 8, 9}
    counts = torch.bincount(batch.actions[batch.mask], minlength=3)
    assert sorted(World.taken).count(7) == int(counts[0])


@pytest.mark.parametrize("actions", [Box(-1, 1, (1,)), MultiDiscrete([2, 2])], ids=str)
def test_actions_must_be_discrete(actions):
    with pytest.raises(ValueError, match="needs discrete actions, but env has"):
        play(several(Discrete(5), actions), TabularPolicy(5, 3))


# Policies


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("table", [TabularPolicy(4, 2), TabularValue(4)])
def test_a_table_has_no_row_for_a_vector(table):
    with pytest.raises(ValueError, match=r"float32 of shape \(2, 1, 4\).*MLPPolicy"):
        table(torch.zeros(2, 1, 4))


@pytest.mark.parametrize("one", [network(4, 2), MLPValue(4, generator=seeded(0))])
def test_a_network_takes_vectors_of_its_width_or_numbers(one):
    with pytest.raises(ValueError, match=r"vectors of 4 numbers.* shape \[2, 1, 5\]"):
        one(torch.zeros(2, 1, 5))
    with pytest.raises(ValueError, match="FlattenObservation"):
        one(torch.zeros(2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"uint8 of shape \[2, 1, 4\].*DtypeObs"):
        one(torch.zeros(2, 1, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"State 4 was seen, .* states 0 to 3 only"):
        one(torch.tensor([[4]]))
    assert torch.equal(one(torch.tensor([[3]])), one(torch.eye(4)[3][None, None]))


class Coin(nn.Module):
    """A policy without a weight: all actions are equally likely."""

    def forward(self, observations):
        return torch.zeros(*observations.shape[:2], 4)


class Forgetful(Coin):
    """It answers all but the last row."""

    def forward(self, observations):
        return super().forward(observations)[:-1]


def test_a_policy_without_parameters_acts():
    env = gymnasium.make_vec("FrozenLake-v1", num_envs=4)
    batch = play(env, Coin())
    expected = torch.full_like(batch.logprobs[batch.mask], -np.log(4))
    torch.testing.assert_close(batch.logprobs[batch.mask], expected)


def test_what_a_policy_gives_must_be_logits():
    env = gymnasium.make_vec("FrozenLake-v1", num_envs=4)
    with pytest.raises(ValueError, match=r"shape \(4, 1\) .* needed: \[4, 1, 4\]"):
        play(env, nn.Identity())
    with pytest.raises(ValueError, match=r"shape \(3, 1, 4\) .* needed: \[4, 1, 4\]"):
        play(env, Forgetful())


# Environments


@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_one_environment_is_refused():
    with pytest.raises(ValueError, match=r"one environment.*gymnasium\.make_vec"):
        rollout(
            cast(Any, gymnasium.make("rl_notes/Maze-v0")),
            TabularPolicy(100, 3),
            episodes=4,
            discount=0.9,
            generator=seeded(0),
        )


def test_infos_as_a_list_are_refused():
    env = gymnasium.make_vec("FrozenLake-v1", num_envs=4)
    with pytest.raises(ValueError, match=r"infos as a list.*Leave DictInfoToList out"):
        play(gymnasium.wrappers.vector.DictInfoToList(env), TabularPolicy(16, 4))


class Endless(World):
    """Never ends, or only after a number of steps."""

    def __init__(self, ends=None):
        super().__init__(Discrete(2))
        self.ends = ends

    def step(self, action):
        self.t += 1
        return 0, 1.0, self.t == self.ends, False, {}


def test_an_environment_that_never_ends_is_refused():
    env = SyncVectorEnv([Endless, lambda: Endless(5)])
    message = r"max_steps=50 steps 1 of 2 environments have not ended.*TimeLimit"
    with pytest.raises(ValueError, match=message):
        play(env, TabularPolicy(2, 3), max_steps=50)


def test_the_limit_may_be_reached_and_not_passed():
    env = SyncVectorEnv([lambda: Endless(5)] * 2)
    assert play(env, TabularPolicy(2, 3), max_steps=5).mask.shape == (2, 5)
    with pytest.raises(ValueError, match="max_steps=4"):
        play(env, TabularPolicy(2, 3), max_steps=4)


def test_the_limit_that_is_there_unless_told_otherwise():
    """Far above any world of gymnasium, and reached in seconds."""
    limit = inspect.signature(rollout).parameters["max_steps"].default
    limits = [spec.max_episode_steps or 0 for spec in gymnasium.registry.values()]
    assert max(limits) < limit < 100_000


def test_a_start_that_is_not_heeded_is_refused():
    """Blackjack deals at random whatever it is told; the maze heeds its start."""
    env = several(Discrete(50), count=4)
    options = {"starts": [3, 4], "group_size": 4, "episodes": 8}
    with pytest.raises(ValueError, match="first observations differ: env does not hee"):
        play(env, TabularPolicy(50, 3), **options)
    maze = gymnasium.make_vec("rl_notes/Maze-v0", num_envs=4, size=3)
    batch = play(maze, TabularPolicy(36, 3), **options)
    assert batch.observations[:, 0].tolist() == [3] * 4 + [4] * 4
