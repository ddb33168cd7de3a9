"""GRPO in the maze, with its groups and with groups mixed up; and what a critic knows.

    pip install -r requirements.txt
    python -m experiments.grpo

Five seeds of everything. In the maze 24 starts are played 8 times an update: once with
the groups as they are, once interleaved, where row n belongs to start n // 8 and is
compared with the rows of the same n % 24. What a critic of "sft" makes of a question,
after it was fitted to ever more answers, is measured against the share of right ones
among many.
"""

from functools import partial
from typing import Any

import gymnasium
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.answers import fresh_sft, sample_scored, seeded, store
from rl_notes import dynamic_programming as dp
from rl_notes.advantages import group_relative, per_step, returns_to_go
from rl_notes.language import arithmetic
from rl_notes.language.answers import answer
from rl_notes.maze import MazeEnv
from rl_notes.objectives import token_clip
from rl_notes.policies import (
    MLPPolicy,
    TransformerPolicy,
    TransformerValue,
    state_values,
)
from rl_notes.rollouts import rollout
from rl_notes.trajectories import Trajectories
from rl_notes.updates import fit_value, grpo_update

SEEDS = range(5)
STARTS, SIZE = 24, 8
UPDATES = 25
CLIP = partial(token_clip, clip_low=0.2, clip_high=0.2)
OPTIONS: dict[str, Any] = {"epochs": 2, "minibatches": 4}
DISCOUNT = 0.95
EXAM, TRIES = 48, 256  # questions whose value is known, from so many answers
READ = (1280, 5120, 10240)  # answers that a critic has been fitted to
BATCH = 256


def advantages_of(
    batch: Trajectories, scores: Tensor, size: int, *, interleaved: bool
) -> Tensor:
    """The (group advantage) at each step, from the groups or from those mixed up."""
    groups = batch.groups
    if interleaved:
        groups = torch.arange(len(scores) // size).repeat(size)
    return per_step(group_relative(scores, groups), batch.mask)


def train_robot(seed: int, *, interleaved: bool) -> dict[str, Any]:
    """Train one robot; what it earns from a start by chance, exactly."""
    maze = MazeEnv(size=5)
    states = len(maze.terminal)
    inside = ~torch.as_tensor(maze.terminal)
    starts = torch.arange(states)[inside]
    rows = STARTS * SIZE
    robots = gymnasium.make_vec(
        "rl_notes/Maze-v0", num_envs=rows, size=5, max_episode_steps=100
    )
    generator = seeded(seed)
    policy = MLPPolicy(states, 3, generator=seeded(seed))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)

    def earns() -> float:
        values = dp.values_of(policy, maze, discount=DISCOUNT)
        return round(float(values[inside].mean()), 4)

    curve = [earns()]
    for _ in range(UPDATES):
        here = torch.randperm(len(starts), generator=generator)[:STARTS]
        batch = rollout(
            robots,
            policy,
            episodes=rows,
            discount=DISCOUNT,
            generator=generator,
            starts=starts[here].tolist(),
            group_size=SIZE,
        )
        scores = returns_to_go(batch)[:, 0]
        advantages = advantages_of(batch, scores, SIZE, interleaved=interleaved)
        grpo_update(
            policy,
            optimizer,
            batch,
            advantages,
            objective=CLIP,
            generator=generator,
            **OPTIONS,
        )
        curve.append(earns())
    return {"seed": seed, "curve": curve}


def known_values(questions: int, tries: int) -> tuple[Trajectories, Tensor]:
    """One answer to each held-out question, and the share right among many."""
    asked = arithmetic.questions(questions, held_out=True, generator=seeded(0))
    policy = TransformerPolicy(fresh_sft())
    batch, prompts, answers = answer(
        policy, asked, group_size=tries, generator=seeded(1)
    )
    right = torch.tensor(arithmetic.accuracy_reward(prompts, answers))
    first = torch.arange(questions) * tries
    return batch.select(first), right.view(questions, tries).mean(1)


@torch.no_grad()
def at_the_question(value: TransformerValue, batch: Trajectories) -> Tensor:
    """V of each question, before the first token of its answer, [N]."""
    first = batch.mask.long().argmax(dim=1)
    return state_values(value, batch).gather(1, first[:, None])[:, 0]


def read_answers(seed: int, batch: Trajectories, values: Tensor) -> dict[str, Any]:
    """Fit one critic to ever more answers; its error in the value of a question."""
    policy, generator = TransformerPolicy(fresh_sft()), seeded(100 + seed)
    critic = TransformerValue(fresh_sft())
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    errors = []
    for read in tqdm(range(BATCH, READ[-1] + 1, BATCH)):
        lessons, _ = sample_scored(policy, BATCH, 1, generator)
        fit_value(
            critic,
            optimizer,
            lessons,
            returns_to_go(lessons),
            epochs=2,
            minibatches=8,
            generator=generator,
        )
        if read in READ:
            error = (at_the_question(critic, batch) - values).square().mean().sqrt()
            errors.append({"answers": read, "error": round(float(error), 4)})
    return {"seed": seed, "errors": errors}


def main() -> None:
    torch.set_num_threads(1)
    mixed = {"grouped": False, "interleaved": True}
    maze = {
        name: [train_robot(seed, interleaved=wrong) for seed in SEEDS]
        for name, wrong in mixed.items()
    }
    batch, values = known_values(EXAM, TRIES)
    critics = [read_answers(seed, batch, values) for seed in SEEDS]
    store(
        "grpo",
        {
            "starts": STARTS,
            "size": SIZE,
            "maze": maze,
            "spread_of_values": round(float(values.std(correction=0)), 4),
            "critics": critics,
        },
    )


if __name__ == "__main__":
    main()
