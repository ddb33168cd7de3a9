"""Draw the picture of the first page: a policy finds its way out of the maze.

    python book/figures.py

It trains a table of logits as the chapter on the policy gradient does, and draws what
it would do after a few numbers of updates.
"""

from pathlib import Path

import gymnasium
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rl_notes import plotting
from rl_notes.advantages import returns_to_go
from rl_notes.policies import TabularPolicy
from rl_notes.rollouts import rollout
from rl_notes.updates import reinforce_update

PICTURE = Path(__file__).parent / "_static" / "learning.png"
SNAPSHOTS = (0, 10, 200)


def snapshots(size: int = 5) -> list[Tensor]:
    """Train from every state at once; the probabilities [S, A] after SNAPSHOTS."""
    starts = list(range(4 * size * size - 4))
    robots = gymnasium.make_vec(
        "rl_notes/Maze-v0", num_envs=len(starts), size=size, max_episode_steps=100
    )
    policy = TabularPolicy(4 * size * size, 3)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    baseline = torch.zeros(4 * size * size)
    taken = []
    for update in range(SNAPSHOTS[-1] + 1):
        if update in SNAPSHOTS:
            taken.append(policy.logits.detach().softmax(-1))
        trajectories = rollout(
            robots,
            policy,
            episodes=len(starts),
            discount=0.95,
            generator=generator,
            starts=starts,
        )
        states = trajectories.observations[:, :-1]
        last = trajectories.observations.gather(1, trajectories.lengths[:, None])[:, 0]
        returns = returns_to_go(trajectories, final_values=baseline[last])
        advantages = returns - baseline[states]
        reinforce_update(policy, optimizer, trajectories, advantages)
        seen, error = states[trajectories.mask], advantages[trajectories.mask]
        total = torch.zeros_like(baseline).index_add(0, seen, error)
        baseline = baseline + 0.5 * total / seen.bincount(minlength=len(total)).clamp(1)
    return taken


def main() -> None:
    """Draw and save."""
    plt.style.use(plotting.STYLE)
    walls = gymnasium.make("rl_notes/Maze-v0").unwrapped.walls
    figure, axes = plt.subplots(1, len(SNAPSHOTS), figsize=(11, 4.1))
    for ax, update, probabilities in zip(axes, SNAPSHOTS, snapshots(), strict=True):
        plotting.plot_policy(probabilities.numpy(), walls, ax)
        ax.set_title("before" if update == 0 else f"after {update} updates")
    plotting.save(figure, PICTURE)


if __name__ == "__main__":
    main()
