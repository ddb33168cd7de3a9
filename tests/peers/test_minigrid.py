"""A world of another library in its usual wrapping, as `rollout`'s docstring says."""

import gymnasium
import minigrid  # noqa: F401 (registers its worlds)
import numpy as np
import torch
from gymnasium.wrappers import DtypeObservation, FlattenObservation
from minigrid.wrappers import ImgObsWrapper

from rl_notes.policies import MLPPolicy, action_logprobs
from rl_notes.rollouts import rollout


def test_minigrid_works_in_its_wrappers():
    wrappers = [
        ImgObsWrapper,
        FlattenObservation,
        lambda env: DtypeObservation(env, np.float32),
    ]
    name = "MiniGrid-Empty-5x5-v0"
    env = gymnasium.make_vec(name, num_envs=4, wrappers=wrappers)
    generator = torch.Generator().manual_seed(0)
    policy = MLPPolicy(7 * 7 * 3, 7, generator=generator)
    batch = rollout(env, policy, episodes=8, discount=0.9, generator=generator)
    assert batch.observations.shape[0] == 8
    assert batch.observations.shape[2] == 147
    assert float(batch.rewards.sum()) > 0
    expected = action_logprobs(policy, batch).detach()
    torch.testing.assert_close(batch.logprobs, expected, rtol=0, atol=1e-5)
