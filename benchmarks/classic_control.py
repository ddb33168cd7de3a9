"""CartPole-v1: our `trpo_update` beside TRPO of sb3-contrib, five seeds, in one run.

    pip install -r requirements.txt -r requirements-peers.txt
    PYTHONPATH=. python benchmarks/classic_control.py

The settings are those that RL Baselines3 Zoo has tuned for sb3-contrib. What differs:
ours updates on whole episodes, sb3-contrib on a fixed number of steps: the tuned one,
and again as many as our batches have once every episode lasts. One thread. The
algorithms take turns, so that a busy moment of the machine does not hit one of them
alone. What is measured for this table alone is not in the CPU time of sb3-contrib.

An algorithm is a function of a seed that returns a `Run`; `ALGORITHMS` lists them.
"""

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import gymnasium
import numpy as np
import torch
from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor, nn

from rl_notes.advantages import gae, normalise
from rl_notes.divergences import kl_exact
from rl_notes.policies import MLPPolicy, MLPValue, state_values
from rl_notes.rollouts import rollout
from rl_notes.trajectories import Trajectories
from rl_notes.updates import fit_value, trpo_update

SEEDS = range(5)
BUDGET = 200_000  # steps; the update in which it is used up is still made
WINDOW, SOLVED = 100, 475
ENVIRONMENT, NUM_ENVS = "CartPole-v1", 2
DISCOUNT, LAMBDA = 0.99, 0.98
HIDDEN = (64, 64)  # with tanh, for the policy and again for the value function
MAX_KL, DAMPING, ITERATIONS, TRIES = 0.01, 1e-3, 15, 10
LEARNING_RATE, EPSILON = 1e-3, 1e-5  # of Adam, which fits the value function
EPOCHS, MINIBATCH = 20, 512  # steps in a minibatch
EPISODES = 8  # in a batch of ours
STEPS, MORE_STEPS = 1024, 4096  # in a batch of sb3-contrib: as tuned; as ours ends up


@dataclass(frozen=True)
class Run:
    """One training. An episode is (environment steps until it ended, its return)."""

    episodes: list[tuple[int, float]]
    batches: list[int]  # steps in the batch of each update
    played: int  # steps of the environment, those that were thrown away among them
    kl_means: list[float]
    kl_maxima: list[float]
    cpu_seconds: float

    @property
    def steps(self) -> int:
        return sum(self.batches)

    @property
    def training_returns(self) -> list[tuple[int, float]]:
        """Mean of the last 100 episodes, at the end of each from the 100th on."""
        returns = [score for _, score in self.episodes]
        return [
            (steps, statistics.fmean(returns[end - WINDOW : end]))
            for end, (steps, _) in enumerate(self.episodes, start=1)
            if end >= WINDOW
        ]

    @property
    def solved_from(self) -> float:
        """Steps from which on the training return stays above 475; inf if never."""
        solved = float("inf")
        for steps, mean in reversed(self.training_returns):
            if mean <= SOLVED:
                break
            solved = steps
        return solved


def our_trpo(seed: int) -> Run:
    begin = time.process_time()
    g = torch.Generator().manual_seed(seed)
    env = gymnasium.make_vec(ENVIRONMENT, num_envs=NUM_ENVS, vectorization_mode="sync")
    inputs, actions = env.single_observation_space.shape[0], 2
    policy = MLPPolicy(inputs, actions, hidden=HIDDEN, generator=g)
    value = MLPValue(inputs, hidden=HIDDEN, generator=g)
    nn.init.orthogonal_(value.layers[-1].weight, generator=g)  # as sb3-contrib begins
    optimizer = torch.optim.Adam(value.parameters(), lr=LEARNING_RATE, eps=EPSILON)
    episodes, batches, played, kl_means, kl_maxima = [], [], 0, [], []
    while sum(batches) < BUDGET:
        trajectories = rollout(
            env, policy, episodes=EPISODES, discount=DISCOUNT, generator=g
        )
        with torch.no_grad():
            values = state_values(value, trajectories)
        advantages = gae(trajectories, values, lambda_=LAMBDA)
        stats = trpo_update(
            policy,
            trajectories,
            normalise(advantages, trajectories.mask),
            max_kl=MAX_KL,
            damping=DAMPING,
            iterations=ITERATIONS,
            backtracks=TRIES - 1,
        )
        steps = int(trajectories.mask.sum())
        fit_value(
            value,
            optimizer,
            trajectories,
            advantages + values[:, :-1],
            epochs=EPOCHS,
            minibatches=min(EPISODES, max(1, round(steps / MINIBATCH))),
            generator=g,
        )
        episodes += ended(trajectories, sum(batches))
        batches.append(steps)
        played += NUM_ENVS * int(longest(trajectories).sum())
        kl_means.append(stats.kl_mean)
        kl_maxima.append(stats.kl_max)
    seconds = time.process_time() - begin
    return Run(episodes, batches, played, kl_means, kl_maxima, seconds)


def longest(trajectories: Trajectories) -> Tensor:
    """Length of the longest episode of each round: the others waited for it."""
    return trajectories.lengths.view(-1, NUM_ENVS).amax(dim=1)


def ended(trajectories: Trajectories, before: int) -> list[tuple[int, float]]:
    """The episodes in the order in which they ended. Those of a round are played side
    by side: until one ends, each of the others has made as many steps, or has ended."""
    episodes = []
    returns = trajectories.rewards.sum(dim=1).view(-1, NUM_ENVS)
    for lengths, scores in zip(
        trajectories.lengths.view(-1, NUM_ENVS), returns, strict=True
    ):
        clock = before + torch.minimum(lengths[:, None], lengths).sum(dim=1)
        episodes += sorted(zip(clock.tolist(), scores.tolist(), strict=True))
        before += int(lengths.sum())
    return episodes


class MeasuredTRPO(TRPO):
    """TRPO of sb3-contrib, which also measures KL(old || new) on each whole batch."""

    def train(self) -> None:
        begin = time.process_time()
        # Copied, because training reorders the buffer.
        seen = torch.as_tensor(self.rollout_buffer.observations.copy()).flatten(0, 1)
        old = self.logits(seen)
        self.measuring += time.process_time() - begin
        super().train()
        begin = time.process_time()
        kl = kl_exact(old, self.logits(seen))
        self.kl_means.append(float(kl.mean()))
        self.kl_maxima.append(float(kl.max()))
        self.measuring += time.process_time() - begin

    @torch.no_grad()
    def logits(self, seen: Tensor) -> Tensor:
        return self.policy.get_distribution(seen).distribution.logits


def their_trpo(seed: int, *, batch: int) -> Run:
    begin = time.process_time()
    env = make_vec_env(ENVIRONMENT, n_envs=NUM_ENVS, seed=seed)
    network = {"pi": list(HIDDEN), "vf": list(HIDDEN)}
    model = MeasuredTRPO(
        "MlpPolicy",
        env,
        learning_rate=LEARNING_RATE,
        n_steps=batch // NUM_ENVS,
        batch_size=MINIBATCH,
        gamma=DISCOUNT,
        cg_max_steps=ITERATIONS,
        cg_damping=DAMPING,
        line_search_max_iter=TRIES,
        n_critic_updates=EPOCHS,
        gae_lambda=LAMBDA,
        target_kl=MAX_KL,
        policy_kwargs={
            "net_arch": network,
            "activation_fn": nn.Tanh,
            "optimizer_kwargs": {"eps": EPSILON},
        },
        seed=seed,
        device="cpu",
    )
    model.measuring, model.kl_means, model.kl_maxima = 0.0, [], []
    model.learn(BUDGET)
    seconds = time.process_time() - begin - model.measuring
    steps = model.num_timesteps
    batches = [batch] * (steps // batch)
    return Run(
        episodes_of(env), batches, steps, model.kl_means, model.kl_maxima, seconds
    )


def episodes_of(env) -> list[tuple[int, float]]:
    """The episodes that sb3's monitors saw, in the order in which they ended. An
    environment makes every NUM_ENVS-th step."""
    episodes = []
    lengths = env.env_method("get_episode_lengths")
    returns = env.env_method("get_episode_rewards")
    for row_lengths, row_returns in zip(lengths, returns, strict=True):
        clock = NUM_ENVS * np.cumsum(row_lengths)
        episodes += zip(clock.tolist(), row_returns, strict=True)
    return sorted(episodes)


ALGORITHMS = {
    "rl_notes trpo": our_trpo,
    f"sb3-contrib TRPO, {STEPS:,}": partial(their_trpo, batch=STEPS),
    f"sb3-contrib TRPO, {MORE_STEPS:,}": partial(their_trpo, batch=MORE_STEPS),
}


def warm_up() -> None:
    """The first optimizer of a process imports seconds' worth of PyTorch, which must
    not be put down to whoever comes first."""
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])


def middle(figures: Sequence[float], form: str) -> str:
    """Median, lowest and highest."""
    shown = (statistics.median(figures), min(figures), max(figures))
    return "{} ({} to {})".format(*(format(figure, form) for figure in shown))


def print_row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_seed(name: str, seed: int, run: Run) -> None:
    print_row(
        name,
        seed,
        f"{run.solved_from:,.0f}",
        f"{run.training_returns[-1][1]:.1f}",
        f"{run.steps / run.cpu_seconds:,.0f}",
        len(run.batches),
        middle(run.batches, ",.0f"),
        f"{100 * (1 - run.steps / run.played):.1f} %",
        middle(run.kl_means, ".4f"),
        sum(kl > MAX_KL for kl in run.kl_means),
        middle(run.kl_maxima, ".3f"),
    )


def print_summary(found: dict[str, list[Run]]) -> None:
    print("\n| algorithm | steps to 475 | final return | steps per CPU-second |")
    print("| --- | ---: | ---: | ---: |")
    for name, runs in found.items():
        print_row(
            name,
            middle([run.solved_from for run in runs], ",.0f"),
            middle([run.training_returns[-1][1] for run in runs], ".1f"),
            middle([run.steps / run.cpu_seconds for run in runs], ",.0f"),
        )
    print("\n| algorithm | updates | mean KL | above the radius | maximal KL |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, runs in found.items():
        means = [kl for run in runs for kl in run.kl_means]
        maxima = [kl for run in runs for kl in run.kl_maxima]
        above = sum(kl > MAX_KL for kl in means)
        print_row(name, len(means), middle(means, ".4f"), above, middle(maxima, ".3f"))


def main() -> None:
    torch.set_num_threads(1)
    packages = ("torch", "gymnasium", "stable-baselines3", "sb3-contrib")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores\n")
    columns = ("algorithm", "seed", "steps to 475", "final return")
    columns += ("steps per CPU-second", "updates", "steps in a batch", "thrown away")
    columns += ("mean KL", "above the radius", "maximal KL")
    print_row(*columns)
    print_row("---", *(["---:"] * (len(columns) - 1)))
    warm_up()
    found: dict[str, list[Run]] = {name: [] for name in ALGORITHMS}
    for seed in SEEDS:
        for name, train in ALGORITHMS.items():
            found[name].append(train(seed))
            print_seed(name, seed, found[name][-1])
    print_summary(found)


if __name__ == "__main__":
    main()
