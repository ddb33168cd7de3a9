"""PPO in the maze and on the language model: what epochs, clip and critic are worth.

    pip install -r requirements.txt
    python -m experiments.ppo

Five seeds. On the language model every arm starts from "sft" and gets 256 answers an
update: to 256 questions, judged by a critic, or to 32 questions of 8 answers each,
judged by the mean of the others. The critics of a seed start alike, from 1280 answers.
The arms differ in how often they use an answer, whether the objective is clipped, and
the learning rate. In the maze every start is played once an update.
"""

import copy
import math
import time
from typing import Any

import gymnasium
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.answers import (
    better_than_others,
    fresh_sft,
    measure,
    sample_scored,
    seeded,
    store,
)
from rl_notes import dynamic_programming as dp
from rl_notes.advantages import gae, returns_to_go
from rl_notes.maze import MazeEnv
from rl_notes.policies import (
    MLPPolicy,
    TabularValue,
    TransformerPolicy,
    TransformerValue,
    state_values,
)
from rl_notes.rollouts import rollout
from rl_notes.trajectories import Trajectories
from rl_notes.updates import ClipStats, fit_value, ppo_update

SEEDS = range(5)
ANSWERS, SIZE = 256, 8  # an update's answers, and of each question with no critic
WARM_UP = 5  # batches that a critic is fitted on before the first update
MEASURED_AT = (0, 5, 10)
LAMBDA = 0.95
VALUE_FIT = {"epochs": 1, "minibatches": 8}
EVERYTHING = {"clip_low": 1.0, "clip_high": math.inf}
NEAR = {"clip_low": 0.2, "clip_high": 0.2}
ONE_STEP = {"epochs": 1, "minibatches": 1, **NEAR}
EPOCHS = {"epochs": 4, "minibatches": 2}
ARMS: dict[str, dict[str, Any]] = {
    "clipped": {"learning_rate": 1e-4, **EPOCHS, **NEAR},
    "unclipped": {"learning_rate": 1e-4, **EPOCHS, **EVERYTHING},
    "one_step": {"learning_rate": 1e-4, **ONE_STEP},
    "one_large_step": {"learning_rate": 3e-4, **ONE_STEP},
    "no_critic": {"learning_rate": 1e-4, **EPOCHS, **NEAR},
}
MAZE_ARMS: dict[str, dict[str, Any]] = {
    "clipped": {"epochs": 10, "minibatches": 4, **NEAR},
    "unclipped": {"epochs": 10, "minibatches": 4, **EVERYTHING},
    "one_epoch": {"epochs": 1, "minibatches": 4, **NEAR},
}
MAZE_UPDATES = 25
DISCOUNT = 0.95


def moved(stats: ClipStats) -> dict[str, float]:
    """What an update did, as it is stored."""
    names = ("kl_mean", "kl_max", "clip_fraction", "ratio_min", "ratio_max", "entropy")
    return {name: float(f"{getattr(stats, name):.4g}") for name in names}


class Critic:
    """A value function, what fits it, and how it judges a batch."""

    def __init__(self, value: torch.nn.Module, learning_rate: float) -> None:
        self.value = value
        self.optimizer = torch.optim.Adam(value.parameters(), lr=learning_rate)

    def estimate(self, batch: Trajectories) -> tuple[Tensor, Tensor]:
        """The advantages, and what the values are to be fitted to, both [N, T]."""
        with torch.no_grad():
            values = state_values(self.value, batch)
        advantages = gae(batch, values, lambda_=LAMBDA)
        return advantages, advantages + values[:, :-1]

    def fit(
        self,
        batch: Trajectories,
        targets: Tensor,
        generator: torch.Generator,
        **options: int,
    ) -> None:
        fit_value(
            self.value, self.optimizer, batch, targets, generator=generator, **options
        )


def first_critic(seed: int) -> TransformerValue:
    """A value of "sft", fitted to the returns of its answers."""
    policy, generator = TransformerPolicy(fresh_sft()), seeded(100 + seed)
    value = TransformerValue(fresh_sft())
    critic = Critic(value, learning_rate=1e-3)
    for _ in range(WARM_UP):
        batch, _ = sample_scored(policy, ANSWERS, 1, generator)
        critic.fit(batch, returns_to_go(batch), generator, **VALUE_FIT)
    return value


def train(
    seed: int,
    arm: dict[str, Any],
    value: TransformerValue | None,
    before: dict[str, float],
) -> dict[str, Any]:
    """Train one model; what it can do, and what each update did."""
    model, generator, size = fresh_sft(), seeded(seed), 1 if value else SIZE
    policy, critic = TransformerPolicy(model), None
    if value is not None:
        critic = Critic(copy.deepcopy(value), learning_rate=1e-3)
    options = dict(arm)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.pop("learning_rate"))
    curve, updates, seconds = [{"updates": 0, **before}], [], 0.0
    for update in tqdm(range(1, 1 + MEASURED_AT[-1])):
        begin = time.process_time()
        batch, scores = sample_scored(policy, ANSWERS // size, size, generator)
        if critic is None:
            better = better_than_others(scores, size)
            advantages = better[:, None].expand_as(batch.mask)
        else:
            advantages, targets = critic.estimate(batch)
        stats = ppo_update(
            policy, optimizer, batch, advantages, generator=generator, **options
        )
        if critic is not None:
            critic.fit(batch, targets, generator, **VALUE_FIT)
        seconds += time.process_time() - begin
        score = round(scores.mean().item(), 4)
        updates.append({"score": score, **moved(stats)})
        if update in MEASURED_AT:
            curve.append({"updates": update, **measure(model)})
    return {
        "seed": seed,
        "curve": curve,
        "updates": updates,
        "cpu_seconds": round(seconds),
    }


def train_robot(seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train one robot; what it earns from a start by chance, exactly."""
    maze = MazeEnv(size=5)
    states = len(maze.terminal)
    inside = ~torch.as_tensor(maze.terminal)
    starts = torch.arange(states)[inside].tolist()
    robots = gymnasium.make_vec(
        "rl_notes/Maze-v0", num_envs=len(starts), size=5, max_episode_steps=100
    )
    generator = seeded(seed)
    policy = MLPPolicy(states, 3, generator=seeded(seed))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    critic = Critic(TabularValue(states), learning_rate=0.05)

    def earns() -> float:
        values = dp.values_of(policy, maze, discount=DISCOUNT)
        return round(float(values[inside].mean()), 4)

    curve, kl = [earns()], []
    for _ in range(MAZE_UPDATES):
        batch = rollout(
            robots,
            policy,
            episodes=len(starts),
            discount=DISCOUNT,
            generator=generator,
            starts=starts,
        )
        advantages, targets = critic.estimate(batch)
        stats = ppo_update(
            policy, optimizer, batch, advantages, generator=generator, **options
        )
        critic.fit(batch, targets, generator, epochs=10, minibatches=4)
        curve.append(earns())
        kl.append(moved(stats)["kl_mean"])
    return {"seed": seed, "curve": curve, "kl": kl}


def written(arm: dict[str, Any]) -> dict[str, Any]:
    """An arm as JSON can hold it, which knows no infinity."""
    return {k: None if v == math.inf else v for k, v in arm.items()}


def main() -> None:
    torch.set_num_threads(1)
    maze = {
        name: [train_robot(seed, arm) for seed in SEEDS]
        for name, arm in MAZE_ARMS.items()
    }
    before = measure(fresh_sft())
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in SEEDS:
        value = first_critic(seed)
        for name, arm in ARMS.items():
            estimate = None if name == "no_critic" else value
            runs[name].append(train(seed, arm, estimate, before))
    store(
        "ppo",
        {
            "answers": ANSWERS,
            "warm_up": WARM_UP,
            "settings": {name: written(arm) for name, arm in ARMS.items()},
            "maze_settings": {name: written(arm) for name, arm in MAZE_ARMS.items()},
            "maze": maze,
            **runs,
        },
    )


if __name__ == "__main__":
    main()
