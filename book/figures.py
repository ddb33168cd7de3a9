"""Draw the picture of the first page: one update, a robot and a language model.

    python book/figures.py

The robot is trained here, in seconds, with `grpo_update`. The language model is asked
as fine-tuning left it, "sft", and as the same `grpo_update` left it, "grpo".
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import gymnasium
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from rl_notes import plotting
from rl_notes.advantages import group_relative, per_step, returns_to_go
from rl_notes.language import arithmetic, curriculum
from rl_notes.language.answers import answer
from rl_notes.language.models import load
from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.policies import TabularPolicy, TransformerPolicy
from rl_notes.rollouts import rollout
from rl_notes.updates import grpo_update

PICTURE = Path(__file__).parent / "_static" / "one_update.png"
SIZE, GROUP, UPDATES = 5, 8, 20
QUESTIONS = ("What is 47+85?", "What is 968+57?", "What is 604+399?")
ASKED = 1000  # held-out questions behind the shares


class Evaluation(NamedTuple):
    """What a language model answers, and two shares of its answers."""

    answers: list[str]
    right: float
    shows_work: float


def robot() -> tuple[Tensor, Tensor]:
    """Train from every state at once; the probabilities [S, A] before and after."""
    starts = list(range(4 * SIZE * SIZE - 4))
    episodes = len(starts) * GROUP
    robots = gymnasium.make_vec(
        "rl_notes/Maze-v0", num_envs=episodes, size=SIZE, max_episode_steps=100
    )
    policy = TabularPolicy(4 * SIZE * SIZE, 3)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.3)
    generator = torch.Generator().manual_seed(0)
    before = policy.logits.detach().softmax(-1)
    for _ in range(UPDATES):
        batch = rollout(
            robots,
            policy,
            episodes=episodes,
            discount=0.95,
            generator=generator,
            starts=starts,
            group_size=GROUP,
        )
        scores = returns_to_go(batch)[:, 0]
        grpo_update(
            policy,
            optimizer,
            batch,
            per_step(group_relative(scores, batch.groups), batch.mask),
            objective=partial(token_clip, clip_low=0.2, clip_high=0.2),
            epochs=2,
            minibatches=1,
            generator=generator,
            aggregate=mean_over_tokens,
        )
    return before, policy.logits.detach().softmax(-1)


def evaluate(name: str) -> Evaluation:
    """Ask a shipped model the questions of the picture, and many held-out ones."""
    held_out = arithmetic.questions(
        ASKED, held_out=True, generator=torch.Generator().manual_seed(1)
    )
    answers = ask(name, held_out)
    right = arithmetic.accuracy_reward(held_out, answers)
    worked = [arithmetic.shows_work(answer) for answer in answers]
    return Evaluation(ask(name, QUESTIONS), sum(right) / ASKED, sum(worked) / ASKED)


def ask(name: str, questions: tuple[str, ...] | list[str]) -> list[str]:
    """One answer to each question, sampled at a temperature of 1."""
    policy = TransformerPolicy(load(name)[0])
    return answer(policy, questions, generator=torch.Generator().manual_seed(4)).texts


def write_answers(found: Evaluation, ax: Axes) -> Axes:
    """Write questions and answers down, and whether each is right."""
    lines = []
    for question, text in zip(QUESTIONS, found.answers, strict=True):
        right = arithmetic.is_right(text, question)
        work, _, last = text.rpartition(arithmetic.END_THINK)
        lines += [question, *([work + arithmetic.END_THINK] if work else [])]
        lines += [f"{last}  ({'right' if right else 'WRONG'})", ""]
    shares = f"{found.right:.0%} right, {found.shows_work:.0%} with work shown"
    ax.text(0, 0.97, "\n".join(lines), va="top", family="monospace", fontsize=9)
    ax.text(0, 0, f"Of {ASKED:,}: {shares}.", va="bottom", fontsize=10)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    return ax


def main() -> None:
    """Draw and save."""
    plt.style.use(plotting.STYLE)
    walls = gymnasium.make("rl_notes/Maze-v0").unwrapped.walls
    figure, axes = plt.subplots(2, 2, figsize=(7.4, 6.7), height_ratios=(4, 2.1))
    for ax, probabilities in zip(axes[0], robot(), strict=True):
        plotting.plot_policy(probabilities.numpy(), walls, ax)
    for ax, name in zip(axes[1], ("sft", "grpo"), strict=True):
        write_answers(evaluate(name), ax)
    learners = {"A robot": UPDATES, "A language model": sum(curriculum.UPDATES)}
    for row, (who, updates) in zip(axes, learners.items(), strict=True):
        row[0].set_title(f"{who}, before")
        row[1].set_title(f"and after {updates:,} updates")
    plotting.save(figure, PICTURE)


if __name__ == "__main__":
    main()
