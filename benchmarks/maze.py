"""How fast environments step, in steps per CPU-second: ours, two peers, a bare table.

    pip install -r requirements.txt -r requirements-peers.txt
    python -m benchmarks.maze

Random actions, drawn before the clock starts; resets are included; each figure is the
median of 5 repeats. The environments take turns, so that a busy moment of the machine
does not hit one of them alone.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import gymnasium
import minigrid  # noqa: F401 (registers MiniGrid)
import numpy as np

import rl_notes  # noqa: F401 (registers the maze)

REPEATS = 5
OURS = "rl_notes/Maze-v0"


def single(name: str, steps: int, **arguments: object) -> Callable[[], float]:
    """Time one environment as `gymnasium.make` gives it, with its default wrappers."""
    env = gymnasium.make(name, **arguments)
    rng = np.random.default_rng(0)
    actions = rng.integers(0, env.action_space.n, steps).tolist()
    env.reset(seed=0)

    def run() -> float:
        begin = time.process_time()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return steps / (time.process_time() - begin)

    return run


def many(num_envs: int, steps: int, **arguments: object) -> Callable[[], float]:
    """Time the vector environment: automatic resets, infos and all."""
    env = gymnasium.make_vec(OURS, num_envs=num_envs, **arguments)
    actions = np.random.default_rng(0).integers(0, 3, (steps, num_envs))
    env.reset(seed=0)

    def run() -> float:
        begin = time.process_time()
        for row in actions:
            env.step(row)
        return steps * num_envs / (time.process_time() - begin)

    return run


def bare_table(num_envs: int, steps: int) -> Callable[[], float]:
    """Time only the lookups: next state, reward, end, time limit, reset. No checks,
    no infos, no copies: the most that numpy can give."""
    maze = gymnasium.make_vec(OURS, num_envs=1).unwrapped.maze
    next_state, rewards = maze.next_state.ravel(), maze.performed_rewards.ravel()
    actions = np.random.default_rng(0).integers(0, 3, (steps, num_envs))

    def run() -> float:
        states, clock = np.ones(num_envs, dtype=np.int64), np.zeros(num_envs, int)
        begin = time.process_time()
        for row in actions:
            rows = states * 3 + row
            states = next_state.take(rows)
            rewards.take(rows)
            clock += 1
            ended = maze.is_exit.take(states) | (clock >= 500)
            states[ended], clock[ended] = 1, 0
        return steps * num_envs / (time.process_time() - begin)

    return run


def main() -> None:
    runs = {
        "MiniGrid-Empty-8x8-v0": single("MiniGrid-Empty-8x8-v0", 5_000),
        "FrozenLake-v1": single("FrozenLake-v1", 50_000),
        "Maze, single": single(OURS, 200_000),
        "Maze, single, slip 0.1": single(OURS, 100_000, slip=0.1),
        "Maze, 8": many(8, 20_000),
        "Maze, 1,024": many(1024, 5_000),
        "Maze, 1,024, slip 0.1": many(1024, 5_000, slip=0.1),
        "bare numpy table, 1,024": bare_table(1024, 5_000),
    }
    results = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            results[name].append(run())
    packages = ("numpy", "gymnasium", "minigrid")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores")
    print("\n| environment | steps per CPU-second | lowest | highest |")
    print("| --- | ---: | ---: | ---: |")
    for name, rates in results.items():
        figures = statistics.median(rates), min(rates), max(rates)
        print(f"| {name} | " + " | ".join(f"{rate:,.0f}" for rate in figures) + " |")


if __name__ == "__main__":
    main()
