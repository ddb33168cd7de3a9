"""The picture of the first page shows what its words say."""

import importlib.util

import pytest
import torch
from gate import ROOT

from rl_notes.dynamic_programming import greedy, policy_evaluation, value_iteration
from rl_notes.maze import MazeEnv

SPEC = importlib.util.spec_from_file_location("figures", ROOT / "book" / "figures.py")
assert SPEC is not None
assert SPEC.loader is not None
figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(figures)


def test_the_robot_knows_nothing_at_first_and_every_way_at_last():
    before, after = figures.robot()
    assert torch.equal(before, torch.full_like(before, 1 / 3))

    maze = MazeEnv()
    best = value_iteration(maze, discount=0.95)
    reached = policy_evaluation(maze, greedy(after.double()), discount=0.95)
    torch.testing.assert_close(reached, best)


def test_the_language_model_shows_its_work_and_is_right_at_last():
    before, after = (figures.evaluate(name) for name in ("sft", "grpo"))
    assert len(before.answers) == len(after.answers) == len(figures.QUESTIONS)
    assert before.right == pytest.approx(0.62, abs=0.05)
    assert before.shows_work == pytest.approx(0.30, abs=0.05)
    assert after.right > 0.95
    assert after.shows_work > 0.88


def test_the_picture_is_there():
    assert figures.PICTURE.read_bytes().startswith(b"\x89PNG")
