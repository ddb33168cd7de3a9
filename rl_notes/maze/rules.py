"""The rules of a maze as tables: the exact model behind `rl_notes.maze`."""

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

NORTH, EAST, SOUTH, WEST = range(4)
OFFSETS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # (row, column) of one step that way
FORWARD, LEFT, RIGHT = range(3)
START = EAST  # the top left cell, facing east


def perfect_maze(size: int, seed: int) -> Bool[np.ndarray, "size size 4"]:
    """Carve a maze with exactly one path between any two cells.

    A depth-first search walks to a random unvisited neighbour and takes the wall down,
    and goes back when there is none. The exit is never walked through, so it is a dead
    end and no cell hides behind it.

    Returns:
        True where a cell has a wall to the north, east, south, west.
    """
    # The raw bits of PCG64 are the same in every version of numpy; the methods of a
    # Generator may change.
    bits = np.random.PCG64(seed)
    walls = np.ones((size, size, 4), dtype=np.bool_)
    unvisited = {(row, column) for row in range(size) for column in range(size)}
    unvisited.remove((0, 0))
    path = [(0, 0)]
    while path:
        row, column = path[-1]
        neighbours = [(row + down, column + right) for down, right in OFFSETS]
        choices = [way for way in range(4) if neighbours[way] in unvisited]
        if not choices:
            path.pop()
            continue
        way = choices[bits.random_raw() % len(choices)]
        walls[row, column, way] = False
        walls[*neighbours[way], (way + 2) % 4] = False
        unvisited.remove(neighbours[way])
        if neighbours[way] != (size - 1, size - 1):
            path.append(neighbours[way])
    walls.setflags(write=False)
    return walls


def performed(move: Any, uniform: Any, slip: float | int) -> Any:
    """Return the move that the robot makes: when it slips, one of the other two.

    Works alike on numbers and on arrays; `uniform` lies in [0, 1).
    """
    return (move + (uniform < slip) + (uniform < slip / 2)) % 3


@dataclass(frozen=True)
class Maze:
    """The rules of one maze as tables; S states, A = 3 moves.

    `next_state`, `bumped` and `performed_rewards` say what a move does once it is
    performed; `transitions` and `rewards` say what choosing it does, slips included.
    """

    size: int = 5
    maze_seed: int = 0
    slip: float | int = 0.0
    step_reward: float | int = -0.01
    bump_reward: float | int = -0.05
    exit_reward: float | int = 1.0

    def __post_init__(self) -> None:
        check_whole_number("size", self.size, least=2)
        check_whole_number("maze_seed", self.maze_seed, least=0)
        for name in ("slip", "step_reward", "bump_reward", "exit_reward"):
            _check_finite(name, getattr(self, name))
        if not 0 <= self.slip <= 1:
            raise ValueError(
                f"slip is a probability: give a number from 0 to 1, not {self.slip}."
            )

    @property
    def states(self) -> int:
        """The number of states: four headings in every cell."""
        return 4 * self.size**2

    @cached_property
    def walls(self) -> Bool[np.ndarray, "size size 4"]:
        """True where a cell has a wall to the north, east, south, west."""
        return perfect_maze(self.size, self.maze_seed)

    @cached_property
    def is_exit(self) -> Bool[np.ndarray, " S"]:
        """True in the four states of the exit, the bottom right cell."""
        return np.arange(self.states) >= self.states - 4

    @cached_property
    def next_state(self) -> Int64[np.ndarray, "S A"]:
        """Where each move leads. The exit is never left."""
        state = np.arange(self.states)
        heading = state % 4
        ahead = np.array([4 * (self.size * down + right) for down, right in OFFSETS])
        forward = np.where(self.walls.reshape(-1), state, state + ahead[heading])
        left = state - heading + (heading - 1) % 4
        right = state - heading + (heading + 1) % 4
        moves = np.stack([forward, left, right], axis=1)
        return np.where(self.is_exit[:, None], state[:, None], moves)

    @cached_property
    def bumped(self) -> Bool[np.ndarray, "S A"]:
        """True where a move runs into a wall."""
        bumped = np.zeros(self.next_state.shape, dtype=np.bool_)
        bumped[:, FORWARD] = self.walls.reshape(-1) & ~self.is_exit
        return bumped

    @cached_property
    def entered(self) -> Bool[np.ndarray, "S A"]:
        """True where a move enters the exit."""
        entered: np.ndarray = self.is_exit[self.next_state]
        entered[self.is_exit] = False
        return entered

    @cached_property
    def performed_rewards(self) -> Float64[np.ndarray, "S A"]:
        """The reward of each move: 0 once the robot has reached the exit."""
        rewards = (
            self.step_reward
            + self.bump_reward * self.bumped
            + self.exit_reward * self.entered
        )
        return np.where(self.is_exit[:, None], 0.0, rewards)

    @cached_property
    def fewest_moves(self) -> Int64[np.ndarray, " S"]:
        """The fewest moves to the exit, by a breadth-first search from it."""
        sources: list[list[int]] = [[] for _ in self.is_exit]
        for state, targets in enumerate(self.next_state.tolist()):
            for target in targets:
                sources[target].append(state)
        distances = np.where(self.is_exit, 0, -1)
        queue = deque(np.flatnonzero(self.is_exit).tolist())
        while queue:
            target = queue.popleft()
            for state in sources[target]:
                if distances[state] < 0:
                    distances[state] = distances[target] + 1
                    queue.append(state)
        return distances

    @cached_property
    def outcomes(self) -> list[list[tuple[int, float, bool, bool, int, bool]]]:
        """The tables as Python objects, which one robot alone steps through faster.

        `outcomes[state][move]` is (next state, reward, terminated, and the three
        values of `info`: bumped, distance, is_success).
        """
        columns = (
            self.next_state,
            self.performed_rewards,
            self.is_exit[self.next_state],
            self.bumped,
            self.fewest_moves[self.next_state],
            self.entered,
        )
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [list(zip(*row, strict=True)) for row in rows]

    @cached_property
    def slip_matrix(self) -> Float64[np.ndarray, "A A"]:
        """The probability that choosing the row's move performs the column's."""
        return np.where(np.eye(3, dtype=np.bool_), 1 - self.slip, self.slip / 2)

    @cached_property
    def transitions(self) -> Float64[Tensor, "S A S"]:
        """The probability of each next state. The exit is never left."""
        states, moves = self.next_state.shape
        table = np.zeros((states, moves, states))
        for move in range(moves):
            rows, targets = np.arange(states), self.next_state[:, move]
            table[rows, :, targets] += self.slip_matrix[:, move]
        return torch.tensor(table, device="cpu")

    @cached_property
    def rewards(self) -> Float64[Tensor, "S A"]:
        """The expected reward: 0 once the robot has reached the exit."""
        return torch.tensor(self.performed_rewards @ self.slip_matrix.T, device="cpu")

    @cached_property
    def terminal(self) -> Bool[Tensor, " S"]:
        """True in the four states of the exit."""
        return torch.tensor(self.is_exit, device="cpu")

    @cached_property
    def distance(self) -> Int64[Tensor, " S"]:
        """The fewest actions to the exit when the robot does not slip."""
        return torch.tensor(self.fewest_moves, device="cpu")

    @cached_property
    def P(self) -> dict[int, dict[int, list[tuple[float, int, float, bool]]]]:
        """The same model in FrozenLake's form.

        `P[state][action]` lists (probability, next state, reward, terminated).
        """
        return {
            state: {
                action: [
                    (chance, *outcome[:3])
                    for chance, outcome in zip(chances, outcomes, strict=True)
                    if chance > 0
                ]
                for action, chances in enumerate(self.slip_matrix.tolist())
            }
            for state, outcomes in enumerate(self.outcomes)
        }


def check_whole_number(name: str, value: object, *, least: int) -> None:
    """Raise ValueError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, not {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}.")


def _check_finite(name: str, value: Any) -> None:
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or not np.isfinite(float(value)):
        raise ValueError(f"{name} must be a finite number, not {value!r}.")
