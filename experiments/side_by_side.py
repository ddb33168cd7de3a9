"""REINFORCE, TRPO, PPO and GRPO: one maze, one language model, the same sampled steps.

    pip install -r requirements.txt
    python -m experiments.side_by_side

Five seeds of everything. REINFORCE and GRPO compare whole episodes or answers of one
start or question, 8 of each; TRPO and PPO have a critic and try each start or question
that is drawn once. The answers that a critic reads before the first update count as
sampled. One more arm of GRPO uses an answer as often as PPO does.

The horizon is that of mazes of several sizes, with the same number of steps for PPO and
GRPO in each.

What is there already is kept and not run again: delete the results to begin anew.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn
from tqdm import tqdm

from experiments.answers import (
    fresh_sft,
    measure,
    sample_scored,
    seeded,
    store,
    stored_before,
)
from experiments.ppo import VALUE_FIT, WARM_UP, Critic, first_critic
from rl_notes import dynamic_programming as dp
from rl_notes.advantages import (
    discount_weights,
    group_relative,
    leave_one_out,
    per_step,
)
from rl_notes.divergences import kl_exact
from rl_notes.maze import MazeEnv
from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.policies import MLPPolicy, TabularValue, TransformerPolicy, states
from rl_notes.rollouts import rollout
from rl_notes.trajectories import Trajectories
from rl_notes.updates import grpo_update, ppo_update, reinforce_update, trpo_update

NAME = "side_by_side"
SEEDS = range(5)
ROWS, SIZE = 96, 8  # episodes of an update in the maze, and of one start in a group
ANSWERS = 256  # of an update on the language model
UPDATES = 16
EXAM = 500  # held-out questions
MEASURED_AT = (8, 16)  # updates' worth of answers
CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}
EPOCHS = {"epochs": 4, "minibatches": 2}
LANGUAGE: dict[str, dict[str, Any]] = {
    "reinforce": {"learning_rate": 1e-4},
    "trpo": {"max_kl": 0.003, "damping": 1.0},
    "ppo": {"learning_rate": 1e-4, **EPOCHS},
    "grpo": {"learning_rate": 1e-4, "epochs": 2, "minibatches": 2},
    "grpo_4_epochs": {"learning_rate": 1e-4, **EPOCHS},
}
MAZE: dict[str, dict[str, Any]] = {
    "reinforce": {"learning_rate": 1e-2},
    "trpo": {"max_kl": 0.03, "damping": 0.1},
    "ppo": {"learning_rate": 3e-3, **EPOCHS},
    "grpo": {"learning_rate": 3e-3, **EPOCHS},
}
CRITIC_FIT = {"epochs": 10, "minibatches": 4}
STEPS = 150_000  # of a robot
MARKS = 30  # points of a robot's curve
HORIZONS = {3: 15_000, 4: 40_000, 5: 80_000, 6: 150_000, 7: 300_000}  # steps by size
DISCOUNT = 0.95
FAR = 0.99  # the discount where the horizon is asked about


@dataclass
class Learner:
    """What an algorithm keeps between two updates."""

    policy: Any
    optimizer: Any  # of PyTorch; None where TRPO moves the policy by itself
    critic: Critic | None
    options: dict[str, Any]
    critic_fit: dict[str, int]


def learner(
    policy: nn.Module, critic: Critic | None, settings: dict[str, Any], fit: Any
) -> Learner:
    """With an optimizer, if there is a learning rate."""
    options = dict(settings)
    rate = options.pop("learning_rate", None)
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate) if rate else None
    return Learner(policy, optimizer, critic, options, fit)


def has_critic(name: str) -> bool:
    return name in ("trpo", "ppo")


def compared(batch: Trajectories, compare: Callable[..., Tensor]) -> Tensor:
    """One number for a whole row, at each of its steps, [N, T]."""
    scores = (discount_weights(batch) * batch.rewards).sum(1)
    return per_step(compare(scores, batch.groups), batch.mask)


def update(
    name: str, it: Learner, batch: Trajectories, generator: torch.Generator
) -> None:
    """One update: the same lines in the maze and on the language model."""
    if it.critic is not None:
        advantages, targets = it.critic.estimate(batch)
    else:
        compare = leave_one_out if name == "reinforce" else group_relative
        advantages = compared(batch, compare)
    if name == "reinforce":
        reinforce_update(it.policy, it.optimizer, batch, advantages)
    elif name == "trpo":
        trpo_update(it.policy, batch, advantages, **it.options)
    elif name == "ppo":
        ppo_update(
            it.policy,
            it.optimizer,
            batch,
            advantages,
            generator=generator,
            **CLIP,
            **it.options,
        )
    else:
        grpo_update(
            it.policy,
            it.optimizer,
            batch,
            advantages,
            objective=partial(token_clip, **CLIP),
            aggregate=mean_over_tokens,
            generator=generator,
            **it.options,
        )
    if it.critic is not None:
        it.critic.fit(batch, targets, generator, **it.critic_fit)


def measured_update(
    name: str, it: Learner, batch: Trajectories, generator: torch.Generator
) -> dict[str, float]:
    """Update; the CPU-seconds it took, and the KL on all steps of the batch."""
    with torch.no_grad():
        before = it.policy(states(batch))
    begin = time.process_time()
    update(name, it, batch, generator)
    seconds = time.process_time() - begin
    with torch.no_grad():
        kl = kl_exact(before, it.policy(states(batch)))
    return {
        "seconds": seconds,
        "kl_mean": float(f"{mean_over_tokens(kl, batch.mask).item():.4g}"),
        "kl_max": float(f"{kl[batch.mask].max().item():.4g}"),
    }


class Maze:
    """A maze, episodes in it from starts by chance, and the exact return."""

    def __init__(self, size: int, discount: float) -> None:
        self.tables = MazeEnv(size=size)
        self.robots = gymnasium.make_vec(
            "rl_notes/Maze-v0",
            num_envs=ROWS,
            size=size,
            max_episode_steps=4 * size**2,
        )
        self.discount = discount
        self.inside = ~torch.as_tensor(self.tables.terminal)
        self.states = len(self.inside)

    def play(
        self, policy: nn.Module, size: int, generator: torch.Generator
    ) -> Trajectories:
        """Draw starts by chance, and play from each `size` times."""
        all_starts = self.inside.nonzero()[:, 0]
        chosen = torch.randint(len(all_starts), (ROWS // size,), generator=generator)
        return rollout(
            self.robots,
            policy,
            episodes=ROWS,
            discount=self.discount,
            generator=generator,
            starts=all_starts[chosen].tolist(),
            group_size=size,
        )

    def earns(self, policy: nn.Module) -> float:
        """From a start by chance, exactly."""
        values = dp.values_of(policy, self.tables, discount=self.discount)
        return round(float(values[self.inside].mean()), 4)

    def best(self) -> float:
        values = dp.value_iteration(self.tables, discount=self.discount)
        return round(float(values[self.inside].mean()), 4)


def train_robot(seed: int, name: str, maze: Maze, budget: int) -> dict[str, Any]:
    """Train one robot until it has made so many steps."""
    generator = seeded(seed)
    policy = MLPPolicy(maze.states, 3, generator=seeded(seed))
    critic, size = None, SIZE
    if has_critic(name):
        critic, size = Critic(TabularValue(maze.states), learning_rate=0.05), 1
    it = learner(policy, critic, MAZE[name], CRITIC_FIT)
    curve, kl_mean, kl_max = [{"steps": 0, "seconds": 0.0}], [], []
    curve[0]["earns"] = maze.earns(policy)
    steps, seconds = 0, 0.0
    while steps < budget:
        begin = time.process_time()
        batch = maze.play(policy, size, generator)
        seconds += time.process_time() - begin
        moved = measured_update(name, it, batch, generator)
        seconds += moved["seconds"]
        kl_mean.append(moved["kl_mean"])
        kl_max.append(moved["kl_max"])
        mark = steps * MARKS // budget
        steps += int(batch.mask.sum())
        if steps * MARKS // budget > mark:
            point = {"steps": steps, "seconds": round(seconds, 2)}
            curve.append({**point, "earns": maze.earns(policy)})
    return {"seed": seed, "curve": curve, "kl_mean": kl_mean, "kl_max": kl_max}


def train_model(
    seed: int, name: str, value: nn.Module | None, before: dict[str, float]
) -> dict[str, Any]:
    """Train one model; what it can do, and what each update did."""
    model, generator = fresh_sft(), seeded(seed)
    critic, size, answers = None, SIZE, 0
    if value is not None and has_critic(name):
        critic, size = Critic(copy.deepcopy(value), learning_rate=1e-3), 1
        answers = WARM_UP * ANSWERS  # the critic has read them
    it = learner(TransformerPolicy(model), critic, LANGUAGE[name], VALUE_FIT)
    curve, updates, seconds = [{"answers": 0, "seconds": 0.0, **before}], [], 0.0
    while answers < UPDATES * ANSWERS:
        begin = time.process_time()
        batch, scores = sample_scored(it.policy, ANSWERS // size, size, generator)
        seconds += time.process_time() - begin
        moved = measured_update(name.split("_")[0], it, batch, generator)
        seconds += moved.pop("seconds")
        answers += ANSWERS
        score, tokens = round(scores.mean().item(), 4), int(batch.mask.sum())
        updates.append({"answers": answers, "tokens": tokens, "score": score, **moved})
        if answers // ANSWERS in MEASURED_AT:
            point = {"answers": answers, "seconds": round(seconds, 1)}
            curve.append({**point, **measure(model, questions=EXAM)})
    return {"seed": seed, "curve": curve, "updates": updates}


def kept() -> dict[str, Any]:
    """What an earlier call has stored, to be gone on with."""
    if stored := stored_before(NAME):
        return stored
    return {
        "settings": {
            "rows": ROWS,
            "size": SIZE,
            "answers": ANSWERS,
            "warm_up": WARM_UP * ANSWERS,
            "steps": STEPS,
            "clip": CLIP,
            "maze": MAZE,
            "language": LANGUAGE,
        },
        "maze": {name: [] for name in MAZE},
        "language": {name: [] for name in LANGUAGE},
        "horizon": [],
    }


def robots_everywhere(results: dict[str, Any], keep: Callable[[], None]) -> None:
    """Five robots of each algorithm in one maze."""
    maze = Maze(5, DISCOUNT)
    results["best"] = maze.best()
    for name, runs in results["maze"].items():
        for seed in tqdm(SEEDS[len(runs) :], desc=name):
            runs.append(train_robot(seed, name, maze, STEPS))
            keep()


def models_everywhere(results: dict[str, Any], keep: Callable[[], None]) -> None:
    """Five language models of each algorithm. The critics of a seed start alike."""
    if "before" not in results:
        results["before"] = measure(fresh_sft(), questions=EXAM)
    read = results.setdefault("warm_up_seconds", [])
    for seed in SEEDS:
        missing = [n for n, runs in results["language"].items() if len(runs) <= seed]
        value = None
        if any(map(has_critic, missing)) or len(read) <= seed:
            begin = time.process_time()
            value = first_critic(seed)
            read[seed:] = [round(time.process_time() - begin, 1)]
        for name in tqdm(missing, desc=f"models, seed {seed}"):
            run = train_model(seed, name, value, results["before"])
            results["language"][name].append(run)
            keep()
    keep()


def horizons(results: dict[str, Any], keep: Callable[[], None]) -> None:
    """With a critic and without, in mazes of several sizes."""
    for size, budget in [*HORIZONS.items()][len(results["horizon"]) :]:
        maze = Maze(size, FAR)
        distance = torch.as_tensor(maze.tables.distance)[maze.inside]
        far: dict[str, Any] = {"size": size, "best": maze.best(), "steps": budget}
        far["distance"] = round(distance.double().mean().item(), 2)
        for name in ("ppo", "grpo"):
            far[name] = [
                train_robot(seed, name, maze, budget)
                for seed in tqdm(SEEDS, desc=f"{name}, size {size}")
            ]
        results["horizon"].append(far)
        keep()


def main() -> None:
    torch.set_num_threads(1)
    results = kept()
    earlier = results.pop("about", {}).get("cpu_seconds", 0)
    keep = partial(store, NAME, results, earlier=earlier)  # after each run
    robots_everywhere(results, keep)
    horizons(results, keep)
    models_everywhere(results, keep)


if __name__ == "__main__":
    main()
