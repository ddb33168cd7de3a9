"""CartPole-v1: our `trpo_update` and `ppo_update` beside sb3's, five seeds, in one run.

    pip install -r requirements.txt -r requirements-peers.txt
    python -m benchmarks.classic_control

TRPO is that of sb3-contrib, PPO that of stable-baselines3, and the settings are those
that RL Baselines3 Zoo has tuned for them. What differs: ours update on whole episodes,
theirs on a fixed number of steps. sb3-contrib runs with the tuned one, and again with
as many as our batches have once every episode lasts. One thread. The algorithms take
turns, so that a busy moment of the machine does not hit one of them alone. What is
measured for these tables alone is not in the CPU time of sb3.

An algorithm is a function of a seed that returns a `Run`; `ALGORITHMS` lists them.
`--only ppo --seeds 10 11` runs those whose name holds "ppo", in capitals or not.
"""

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

import gymnasium
import numpy as np
import torch
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from rl_notes.advantages import gae, normalise
from rl_notes.divergences import kl_exact
from rl_notes.policies import MLPPolicy, MLPValue, state_values
from rl_notes.rollouts import rollout
from rl_notes.trajectories import Trajectories
from rl_notes.updates import UpdateStats, fit_value, ppo_update, trpo_update

SEEDS = range(5)
WINDOW, SOLVED = 100, 475
ENVIRONMENT = "CartPole-v1"
HIDDEN = (64, 64)  # with tanh, for the policy and again for the value function
LEARNING_RATE, EPSILON = 1e-3, 1e-5  # of Adam
EPOCHS = 20  # of the value function, and of the policy in PPO


@dataclass(frozen=True)
class Setting:
    """What an algorithm of ours and its counterpart have in common."""

    budget: int  # steps; the update in which it is used up is still made
    num_envs: int
    discount: float
    lambda_: float
    minibatch: int  # steps, in ours about as many


IN_TRPO = Setting(200_000, num_envs=2, discount=0.99, lambda_=0.98, minibatch=512)
MAX_KL, DAMPING, ITERATIONS, TRIES = 0.01, 1e-3, 15, 10
TRPO_EPISODES = 8  # in a batch of ours
STEPS, MORE_STEPS = 1024, 4096  # in a batch of sb3-contrib: as tuned; as ours ends up

IN_PPO = Setting(100_000, num_envs=8, discount=0.98, lambda_=0.8, minibatch=256)
CLIP, MAX_NORM = 0.2, 0.5
PPO_EPISODES = 2  # in a batch of ours, all played side by side
PPO_STEPS = 256  # in a batch of sb3, which is one minibatch


@dataclass(frozen=True)
class Run:
    """One training. An episode is (environment steps until it ended, its return)."""

    episodes: list[tuple[int, float]]
    batches: list[int]  # steps in the batch of each update
    played: int  # steps of the environment, those that were thrown away among them
    kl_means: list[float]  # true KL(old || new) after an update, mean over its states
    kl_maxima: list[float]  # and at the state that moved most
    kl_logged: list[float]  # what the library itself reports of the update
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


Update = Callable[[Trajectories, Tensor, float], UpdateStats]


def train_ours(
    policy: MLPPolicy,
    update: Update,
    setting: Setting,
    *,
    episodes: int,
    decay: bool,
    max_norm: float = math.inf,
    generator: torch.Generator,
) -> Run:
    """Play, `update` the policy, fit the value function, until the budget is used up.

    `update` is given the batch, its normalised advantages, and the share of the budget
    that is left, by which the learning rate of the value function decays, if it does.
    `max_norm` clips the gradient of the value function.
    """
    begin = time.process_time()
    env = gymnasium.make_vec(
        ENVIRONMENT, num_envs=setting.num_envs, vectorization_mode="sync"
    )
    value = MLPValue(policy.inputs, hidden=HIDDEN, generator=generator)
    nn.init.orthogonal_(value.layers[-1].weight, generator=generator)  # as sb3 begins
    optimizer = adam(value)
    ended, batches, played, stats = [], [], 0, []
    while sum(batches) < setting.budget:
        left = 1 - sum(batches) / setting.budget
        batch = rollout(
            env,
            policy,
            episodes=episodes,
            discount=setting.discount,
            generator=generator,
        )
        with torch.no_grad():
            values = state_values(value, batch)
        advantages = gae(batch, values, lambda_=setting.lambda_)
        stats.append(update(batch, normalise(advantages, batch.mask), left))
        steps = int(batch.mask.sum())
        set_learning_rate(optimizer, LEARNING_RATE * (left if decay else 1))
        fit_value(
            value,
            optimizer,
            batch,
            advantages + values[:, :-1],
            epochs=EPOCHS,
            minibatches=minibatches_of(batch, setting.minibatch),
            generator=generator,
            max_norm=max_norm,
        )
        ended += ended_in(batch, setting.num_envs, before=sum(batches))
        batches.append(steps)
        played += setting.num_envs * int(longest(batch, setting.num_envs).sum())
    seconds = time.process_time() - begin
    kl_means = [one.kl_mean for one in stats]
    kl_maxima = [one.kl_max for one in stats]
    return Run(ended, batches, played, kl_means, kl_maxima, kl_means, seconds)


def our_trpo(seed: int) -> Run:
    g = torch.Generator().manual_seed(seed)
    policy = our_policy(g)

    def update(batch: Trajectories, advantages: Tensor, left: float) -> UpdateStats:
        return trpo_update(
            policy,
            batch,
            advantages,
            max_kl=MAX_KL,
            damping=DAMPING,
            iterations=ITERATIONS,
            backtracks=TRIES - 1,
        )

    return train_ours(
        policy, update, IN_TRPO, episodes=TRPO_EPISODES, decay=False, generator=g
    )


def our_ppo(seed: int, *, value_norm: float = MAX_NORM) -> Run:
    g = torch.Generator().manual_seed(seed)
    policy = our_policy(g)
    optimizer = adam(policy)

    def update(batch: Trajectories, advantages: Tensor, left: float) -> UpdateStats:
        set_learning_rate(optimizer, LEARNING_RATE * left)
        return ppo_update(
            policy,
            optimizer,
            batch,
            advantages,
            clip_low=CLIP * left,
            clip_high=CLIP * left,
            epochs=EPOCHS,
            minibatches=minibatches_of(batch, IN_PPO.minibatch),
            generator=g,
            max_norm=MAX_NORM,
        )

    setting = replace(IN_PPO, num_envs=PPO_EPISODES)
    return train_ours(
        policy,
        update,
        setting,
        episodes=PPO_EPISODES,
        decay=True,
        max_norm=value_norm,
        generator=g,
    )


def our_policy(generator: torch.Generator) -> MLPPolicy:
    return MLPPolicy(4, 2, hidden=HIDDEN, generator=generator)


def adam(module: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, eps=EPSILON)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def minibatches_of(batch: Trajectories, size: int) -> int:
    """How many minibatches of about `size` steps. An episode is not divided."""
    return min(len(batch.mask), max(1, round(int(batch.mask.sum()) / size)))


def longest(batch: Trajectories, num_envs: int) -> Tensor:
    """Length of the longest episode of each round: the others waited for it."""
    return batch.lengths.view(-1, num_envs).amax(dim=1)


def ended_in(
    batch: Trajectories, num_envs: int, *, before: int
) -> list[tuple[int, float]]:
    """The episodes in the order in which they ended. Those of a round are played side
    by side: until one ends, each of the others has made as many steps, or has ended."""
    episodes = []
    returns = batch.rewards.sum(dim=1).view(-1, num_envs)
    for lengths, scores in zip(batch.lengths.view(-1, num_envs), returns, strict=True):
        clock = before + torch.minimum(lengths[:, None], lengths).sum(dim=1)
        episodes += sorted(zip(clock.tolist(), scores.tolist(), strict=True))
        before += int(lengths.sum())
    return episodes


class Measured:
    """An algorithm of sb3, which also measures KL(old || new) on each whole batch."""

    LOGGED: str  # under which name sb3 logs the KL

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.measuring = 0.0
        self.kl_means, self.kl_maxima, self.kl_logged = [], [], []

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
        self.kl_logged.append(float(self.logger.name_to_value[self.LOGGED]))
        self.measuring += time.process_time() - begin

    @torch.no_grad()
    def logits(self, seen: Tensor) -> Tensor:
        return self.policy.get_distribution(seen).distribution.logits


class MeasuredTRPO(Measured, TRPO):
    LOGGED = "train/kl_divergence_loss"


class MeasuredPPO(Measured, PPO):
    LOGGED = "train/approx_kl"


def train_theirs(
    algorithm: type[Measured], seed: int, setting: Setting, *, batch: int, **options
) -> Run:
    begin = time.process_time()
    env = make_vec_env(ENVIRONMENT, n_envs=setting.num_envs, seed=seed)
    model = algorithm(
        "MlpPolicy",
        env,
        n_steps=batch // setting.num_envs,
        batch_size=setting.minibatch,
        gamma=setting.discount,
        gae_lambda=setting.lambda_,
        policy_kwargs={
            "net_arch": {"pi": list(HIDDEN), "vf": list(HIDDEN)},
            "activation_fn": nn.Tanh,
            "optimizer_kwargs": {"eps": EPSILON},
        },
        seed=seed,
        device="cpu",
        **options,
    )
    model.learn(setting.budget)
    seconds = time.process_time() - begin - model.measuring
    steps = model.num_timesteps
    batches = [batch] * (steps // batch)
    kls = (model.kl_means, model.kl_maxima, model.kl_logged)
    return Run(episodes_of(env), batches, steps, *kls, seconds)


def their_trpo(seed: int, *, batch: int) -> Run:
    return train_theirs(
        MeasuredTRPO,
        seed,
        IN_TRPO,
        batch=batch,
        learning_rate=LEARNING_RATE,
        cg_max_steps=ITERATIONS,
        cg_damping=DAMPING,
        line_search_max_iter=TRIES,
        n_critic_updates=EPOCHS,
        target_kl=MAX_KL,
    )


def their_ppo(seed: int) -> Run:
    return train_theirs(
        MeasuredPPO,
        seed,
        IN_PPO,
        batch=PPO_STEPS,
        learning_rate=lambda left: LEARNING_RATE * left,
        clip_range=lambda left: CLIP * left,
        n_epochs=EPOCHS,
        ent_coef=0.0,
        vf_coef=0.5,
        max_grad_norm=MAX_NORM,
    )


def episodes_of(env: VecEnv) -> list[tuple[int, float]]:
    """The episodes that sb3's monitors saw, in the order in which they ended. Of all
    steps, an environment makes one in as many as there are environments."""
    episodes = []
    lengths = env.env_method("get_episode_lengths")
    returns = env.env_method("get_episode_rewards")
    for row_lengths, row_returns in zip(lengths, returns, strict=True):
        clock = env.num_envs * np.cumsum(row_lengths)
        episodes += zip(clock.tolist(), row_returns, strict=True)
    return sorted(episodes)


ALGORITHMS = {
    "rl_notes trpo": our_trpo,
    f"sb3-contrib TRPO, {STEPS:,}": partial(their_trpo, batch=STEPS),
    f"sb3-contrib TRPO, {MORE_STEPS:,}": partial(their_trpo, batch=MORE_STEPS),
    "rl_notes ppo": our_ppo,
    "rl_notes ppo, value not clipped": partial(our_ppo, value_norm=math.inf),
    "stable-baselines3 PPO": their_ppo,
}


KL_COLUMNS = ("mean KL", f"above {MAX_KL}", "logged KL", "logged less", "maximal KL")


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
        *kl_cells([run]),
    )


def kl_cells(runs: Sequence[Run]) -> tuple[object, ...]:
    """The cells below `KL_COLUMNS`, of all updates of these runs together."""
    means = [kl for run in runs for kl in run.kl_means]
    logged = [kl for run in runs for kl in run.kl_logged]
    maxima = [kl for run in runs for kl in run.kl_maxima]
    return (
        middle(means, ".4f"),
        sum(kl > MAX_KL for kl in means),
        middle(logged, ".4f"),
        sum(log < kl for log, kl in zip(logged, means, strict=True)),
        middle(maxima, ".3f"),
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
    print()
    print_row("algorithm", "updates", *KL_COLUMNS)
    print_row("---", "---:", *(["---:"] * len(KL_COLUMNS)))
    for name, runs in found.items():
        print_row(name, sum(len(run.batches) for run in runs), *kl_cells(runs))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    given = parser.parse_args()
    chosen = {k: v for k, v in ALGORITHMS.items() if given.only.lower() in k.lower()}
    torch.set_num_threads(1)
    packages = ("torch", "gymnasium", "stable-baselines3", "sb3-contrib")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores\n")
    columns = ("algorithm", "seed", "steps to 475", "final return")
    columns += ("steps per CPU-second", "updates", "steps in a batch", "thrown away")
    columns += KL_COLUMNS
    print_row(*columns)
    print_row("---", *(["---:"] * (len(columns) - 1)))
    warm_up()
    found: dict[str, list[Run]] = {name: [] for name in chosen}
    for seed in given.seeds:
        for name, train in chosen.items():
            found[name].append(train(seed))
            print_seed(name, seed, found[name][-1])
    print_summary(found)


if __name__ == "__main__":
    main()
