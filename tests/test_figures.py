"""The picture of the first page shows what its words say."""

import importlib.util

import gymnasium
import torch
from gate import ROOT

from rl_notes.dynamic_programming import greedy, policy_evaluation, value_iteration

SPEC = importlib.util.spec_from_file_location("figures", ROOT / "book" / "figures.py")
assert SPEC is not None
assert SPEC.loader is not None
figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(figures)


def test_the_robot_knows_nothing_at_first_and_every_way_at_last():
    before, early, late = figures.snapshots()
    assert torch.equal(before, torch.full_like(before, 1 / 3))

    maze = gymnasium.make("rl_notes/Maze-v0").unwrapped
    best = value_iteration(maze, discount=0.95)
    reached = policy_evaluation(maze, greedy(late.double()), discount=0.95)
    torch.testing.assert_close(reached, best)

    # "The stronger the arrow, the surer the robot": it grows surer.
    sure = [p[~maze.terminal].amax(dim=1).mean() for p in (before, early, late)]
    assert sure[0] < sure[1] < sure[2]


def test_the_picture_is_there():
    assert figures.PICTURE.read_bytes().startswith(b"\x89PNG")
