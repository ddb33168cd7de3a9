"""The same advantages as stable-baselines3, which keeps episodes end to end in a table.

pip install -r requirements.txt -r requirements-peers.txt
pytest tests/peers
"""

import gymnasium
import numpy as np
import pytest
import torch
from batches import random_batch, seeded
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import explained_variance as explained_by_sb3
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from rl_notes.advantages import explained_variance, gae
from rl_notes.policies import state_values
from rl_notes.trajectories import Trajectories

GAMMA = 0.9
LAMBDAS = pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 1.0])
SEEDS = pytest.mark.parametrize("seed", range(3))


def random_episodes(seed):
    """Thirty episodes of 1 to 12 steps; each third one was cut."""
    g = seeded(seed)
    lengths = torch.randint(1, 13, (30,), generator=g).tolist()
    cut = range(0, 30, 3)
    batch = random_batch(lengths, cut=cut, gamma=GAMMA, seed=seed)
    values = 3 * torch.randn(30, batch.mask.shape[1] + 1, generator=g)
    return batch, values


def filled_buffer(batch, values, lambda_):
    """All rows one after the other; SB3 adds gamma V(s_L) to a cut row's last reward.

    The last row reaches the end of the buffer while its episode goes on or ends, which
    the buffer is told in another way: by `last_values` and `dones`.
    """
    mask, lengths = batch.mask, batch.lengths
    rows, last = torch.arange(len(mask)), lengths - 1
    discounts = batch.discounts[rows, last]
    rewards = batch.rewards.float().clone()
    bootstrap = (discounts * values[rows, lengths]).float()
    rewards[rows[:-1], last[:-1]] += bootstrap[:-1]
    starts = torch.zeros_like(rewards)
    starts[:, 0] = 1
    buffer = RolloutBuffer(
        int(mask.sum()),
        Discrete(5),
        Discrete(3),
        device="cpu",
        gae_lambda=lambda_,
        gamma=GAMMA,
    )
    zero = np.zeros(1)
    for n, t in mask.nonzero().tolist():
        reward, start = rewards[n, t].numpy(), starts[n, t].numpy()
        buffer.add(zero, zero, reward, start, values[n, t], torch.zeros(1))
    buffer.compute_returns_and_advantage(
        last_values=values[-1, lengths[-1]], dones=(discounts[-1:] == 0).numpy()
    )
    return buffer


@LAMBDAS
@SEEDS
@pytest.mark.parametrize("last_is_cut", [True, False])
def test_advantages_are_those_of_the_rollout_buffer(lambda_, seed, last_is_cut):
    batch, values = random_episodes(seed)
    order = [*range(1, 30), 0] if last_is_cut else [*range(30)]
    batch, values = batch.select(torch.tensor(order)), values[order]
    buffer = filled_buffer(batch, values, lambda_)
    found = gae(batch, values, lambda_=lambda_)[batch.mask]
    expected = torch.from_numpy(buffer.advantages[:, 0])
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-5)
    assert float(expected.std()) > 1


class Drift(gymnasium.Env):
    """Numbers drift at random; one above 2 ends the episode, whatever the action."""

    observation_space, action_space = Box(-50, 50, (2,), np.float32), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.normal(size=2).astype(np.float32)
        return self.at.copy(), {}

    def step(self, action):
        self.at += self.np_random.normal(size=2, scale=0.5).astype(np.float32)
        reward = float(self.at[1])
        return self.at.copy(), reward, bool(self.at[0] > 2), False, {}


class Noted(BaseCallback):  # type: ignore[misc]
    """Keeps each episode that SB3 plays: s_0 ... s_L, rewards, whether it ended."""

    def _on_training_start(self):
        self.episodes: list[tuple] = [([self.model._last_obs[0].copy()], [], False)]

    def _on_step(self):
        observations, rewards, _ = self.episodes[-1]
        info, over = self.locals["infos"][0], self.locals["dones"][0]
        following = self.locals["new_obs"][0].copy()
        observations.append(info["terminal_observation"] if over else following)
        rewards.append(float(self.locals["rewards"][0]))
        if over:
            ended = not info["TimeLimit.truncated"]
            self.episodes[-1] = (observations, rewards, ended)
            self.episodes.append(([following], [], False))
        return True


def played(episodes):
    """Our trajectories of these (observations, rewards, ended), one per row."""
    lengths = torch.tensor([len(rewards) for _, rewards, _ in episodes])
    ended = torch.tensor([ended for *_, ended in episodes])
    steps = int(lengths.max())
    t = torch.arange(steps)
    mask = t < lengths[:, None]
    last = t == lengths[:, None] - 1
    rewards = torch.zeros(mask.shape)
    observations = torch.full((len(episodes), steps + 1, 2), 1e9)
    for n, (seen, earned, _) in enumerate(episodes):
        rewards[n, : len(earned)] = torch.tensor(earned)
        observations[n, : len(seen)] = torch.from_numpy(np.stack(seen))
    return Trajectories(
        actions=torch.zeros(mask.shape, dtype=torch.long),
        logprobs=torch.zeros(mask.shape),
        rewards=rewards,
        discounts=GAMMA * (mask & ~(last & ended[:, None])).float(),
        mask=mask,
        groups=torch.arange(len(episodes)),
        observations=observations,
    )


class Critic(nn.Module):
    """The value function of an SB3 model as one of ours."""

    def __init__(self, model):
        super().__init__()
        self.policy = model.policy

    def forward(self, observations):
        values = self.policy.predict_values(observations.flatten(0, 1))
        return values.view(observations.shape[:2])


@LAMBDAS
def test_advantages_are_those_that_sb3_computes_while_it_plays(lambda_):
    """Ended, cut, both at once, and the episode that the end of the buffer cuts."""
    env = DummyVecEnv([lambda: TimeLimit(Drift(), max_episode_steps=8)])
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=600,
        gamma=GAMMA,
        gae_lambda=lambda_,
        learning_rate=0.0,  # the values at the end are those it computed with
        n_epochs=1,
        batch_size=600,
        seed=0,
        device="cpu",
    )
    noted = Noted()
    model.learn(600, callback=noted)
    episodes = [episode for episode in noted.episodes if episode[1]]
    batch = played(episodes)
    ended = torch.tensor([ended for *_, ended in episodes])
    at_the_limit = batch.lengths == 8
    for kind in (ended & at_the_limit, ended & ~at_the_limit, ~ended & at_the_limit):
        assert int(kind.sum()) > 1
    with torch.no_grad():
        values = state_values(Critic(model), batch)
    found = gae(batch, values, lambda_=lambda_)[batch.mask]
    expected = torch.from_numpy(model.rollout_buffer.advantages[:, 0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float(values.abs().max()) > 0.1


@SEEDS
def test_the_explained_variance_is_that_of_sb3(seed):
    batch, values = random_episodes(seed)
    targets = batch.rewards.float()
    found = explained_variance(values[:, :-1], targets, batch.mask)
    chosen = (values[:, :-1][batch.mask].numpy(), targets[batch.mask].numpy())
    assert found == pytest.approx(explained_by_sb3(*chosen), abs=1e-5)
