"""A robot in a maze: `rl_notes/Maze-v0`, one at a time or many at once.

The robot stands in a cell and looks in one of four directions. It can go forward or
turn in place. A state is one whole number, `((row * size) + column) * 4 + heading`, and
the rules are small tables over states and moves, so the exact model is at hand:
`env.unwrapped.transitions`, `.rewards`, `.terminal`, `.P` and `.distance`.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rl_notes.maze.rules import START, Maze, check_whole_number, performed

ACTIONS = 3
RESET = 3  # the vector environment's own fourth move: back to the start, reward 0
BLOCK = 256  # uniform numbers drawn ahead for each sub-environment
FOREVER = 2**62  # the step at which an episode without a time limit is cut
RENDER_MODES = ["ansi", "rgb_array"]


class _Tables:
    """What an environment shows of its `rules.Maze`, under the same names."""

    maze: Maze
    walls, transitions, rewards, terminal, distance, P = (
        property(operator.attrgetter(f"maze.{name}"))
        for name in ("walls", "transitions", "rewards", "terminal", "distance", "P")
    )


class MazeEnv(_Tables, gymnasium.Env[Any, Any]):
    """A robot that looks for the exit of a maze.

    The observation is the number of the (state). Actions: 0 forward, 1 turn left, 2
    turn right. With probability `slip` the robot performs one of the other two. The
    reward of a step is `step_reward`, plus `bump_reward` if it ran into a wall, plus
    `exit_reward` if it entered the exit, which ends the episode. It starts top left,
    facing east, or where `reset(options={"start": state})` says; the exit is bottom
    right.

    Attributes:
        transitions: [S, A, S], the probability of each next state.
        rewards: [S, A], the expected reward of each action.
        terminal: [S], True in the four states of the exit.
        distance: [S], the fewest actions to the exit when the robot does not slip.
        walls: [size, size, 4], True where a cell has a wall to the north, east, ...
        P: `P[state][action]` lists (probability, next state, reward, terminated), as in
            FrozenLake.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 8}  # noqa: RUF012

    def __init__(
        self,
        *,
        size: int = 5,
        maze_seed: int = 0,
        slip: float | int = 0.0,
        step_reward: float | int = -0.01,
        bump_reward: float | int = -0.05,
        exit_reward: float | int = 1.0,
        render_mode: str | None = None,
    ) -> None:
        self.maze = Maze(size, maze_seed, slip, step_reward, bump_reward, exit_reward)
        self.render_mode = _checked_render_mode(render_mode)
        self.observation_space = gymnasium.spaces.Discrete(self.maze.states)
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)
        self._state: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Put the robot at the start."""
        start = _start_option(options or {})
        if start.shape != ():
            raise ValueError(f"start must be one state, not {start}.")
        _check_starts(start, self.maze.states)
        super().reset(seed=seed)
        state = self._state = int(start)
        distance = int(self.maze.fewest_moves[state])
        return state, {"bumped": False, "distance": distance, "is_success": False}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Perform an action. Past the exit, nothing changes until the next reset."""
        if self._state is None:
            raise ResetNeeded("Call reset() before step().")
        move = _action(action)
        if self.maze.slip:
            move = performed(move, self.np_random.random(), self.maze.slip)
        state, reward, terminated, bumped, distance, success = self.maze.outcomes[
            self._state
        ][move]
        self._state = state
        info = {"bumped": bumped, "distance": distance, "is_success": success}
        return state, reward, terminated, False, info

    def render(self) -> Any:
        """Return a text (`ansi`) or a picture [H, W, 3] (`rgb_array`)."""
        return _frame(self.render_mode, self.maze, self._state)


class MazeVectorEnv(_Tables, VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many robots in copies of one maze, stepped together with a few table lookups.

    Equal, step by step, to `num_envs` environments of `gymnasium.make` in a
    `SyncVectorEnv` with the same autoreset mode. `options={"start": ...}` takes one
    state for all or one for each; an automatic reset always returns to the usual start.
    """

    def __init__(  # noqa: PLR0913 (the arguments of gymnasium.make_vec)
        self,
        num_envs: int,
        *,
        size: int = 5,
        maze_seed: int = 0,
        slip: float | int = 0.0,
        step_reward: float | int = -0.01,
        bump_reward: float | int = -0.05,
        exit_reward: float | int = 1.0,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        check_whole_number("num_envs", num_envs, least=1)
        if max_episode_steps is not None:
            check_whole_number("max_episode_steps", max_episode_steps, least=1)
        self.maze = Maze(size, maze_seed, slip, step_reward, bump_reward, exit_reward)
        self.num_envs = num_envs
        self.render_mode = _checked_render_mode(render_mode)
        self._mode = _checked_autoreset_mode(autoreset_mode)
        self.metadata = {**MazeEnv.metadata, "autoreset_mode": self._mode}
        self.single_observation_space = gymnasium.spaces.Discrete(self.maze.states)
        self.single_action_space = gymnasium.spaces.Discrete(ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._limit = max_episode_steps or FOREVER

        # One row per state and move, and a fourth move that resets.
        self._next_state = _with_reset(self.maze.next_state, START)
        self._rewards = _with_reset(self.maze.performed_rewards, 0.0)
        self._bumped = _with_reset(self.maze.bumped, False)

        self._clock = 0
        self._waiting = np.ones(num_envs, dtype=np.bool_)
        self._playable = False
        self._states = np.full(num_envs, START)
        self._deadlines = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._streams = _Streams(num_envs)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset all sub-environments, or those that `options["reset_mask"]` names.

        Sub-environment i gets `seed + i`, or entry i of a list of seeds.
        """
        seeds = _seeds(seed, self.num_envs)
        options = dict(options or {})
        mask = _reset_mask(options.pop("reset_mask", None), self.num_envs)
        starts = _start_option(options)
        if starts.shape not in {(), (self.num_envs,)}:
            raise ValueError(
                f"start must be one state or {self.num_envs} of them, one for each "
                f"sub-environment, but has shape {starts.shape}."
            )
        starts = np.broadcast_to(starts, self.num_envs)[mask]
        _check_starts(starts, self.maze.states)
        self._states[mask] = starts
        self._waiting &= ~mask
        self._playable = not self._waiting.any()
        self._ended[mask] = False
        self._deadlines[mask] = self._clock + self._limit
        if self.maze.slip:
            self._streams.seed(seeds, mask)
        bumped, success = np.zeros((2, self.num_envs), dtype=np.bool_)
        distance = np.where(mask, self.maze.fewest_moves[self._states], 0)
        return self._states.copy(), _infos(bumped, distance, success, mask)

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Perform one action in every sub-environment."""
        self._check_playable()
        moves = _actions(actions, self.num_envs)
        if self.maze.slip:
            resets = self._mode is AutoresetMode.NEXT_STEP
            awake = ~self._ended if resets else np.True_
            moves = performed(moves, self._streams.draw(awake), self.maze.slip)
        self._clock += 1
        if self._mode is AutoresetMode.NEXT_STEP:
            moves = np.where(self._ended, RESET, moves)
            self._deadlines[self._ended] = self._clock + self._limit
        rows = self._states * (ACTIONS + 1) + moves
        states = self._next_state.take(rows)
        rewards = self._rewards.take(rows)
        terminated = self.maze.is_exit.take(states)
        truncated = self._deadlines == self._clock
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        distance = self.maze.fewest_moves.take(states)
        infos = _infos(self._bumped.take(rows), distance, terminated.copy(), everyone)
        self._states, self._ended = states, terminated | truncated
        if self._mode is AutoresetMode.SAME_STEP and self._ended.any():
            infos = self._restart(infos)
        return self._states.copy(), rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...]:
        """Return one frame for each sub-environment."""
        states = self._states.tolist()
        return tuple(_frame(self.render_mode, self.maze, state) for state in states)

    def _check_playable(self) -> None:
        if not self._playable:
            raise ResetNeeded("Call reset() before step().")
        if self._mode is AutoresetMode.DISABLED and self._ended.any():
            raise ResetNeeded(
                f"The episodes of {np.flatnonzero(self._ended).tolist()} have ended. "
                'Reset them with options={"reset_mask": mask} before the next step.'
            )

    def _restart(self, infos: dict[str, Any]) -> dict[str, Any]:
        """Reset the ended robots in the step that ended them; return the new infos."""
        ended = self._ended
        final_obs = np.full(self.num_envs, None, dtype=object)
        final_obs[ended] = self._states[ended].tolist()
        bumped, distance, success = (
            infos[key] * ended for key in ("bumped", "distance", "is_success")
        )
        self._states[ended] = START
        self._deadlines[ended] = self._clock + self._limit
        infos["bumped"][ended] = infos["is_success"][ended] = False
        infos["distance"][ended] = self.maze.fewest_moves[START]
        return infos | {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": _infos(bumped, distance, success, ended),
            "_final_info": ended.copy(),
        }


class _Streams:
    """The uniform numbers that the single environments would draw, drawn in blocks."""

    def __init__(self, count: int) -> None:
        self._generators: list[np.random.Generator | None] = [None] * count
        self._blocks = np.empty((count, BLOCK))
        self._used = np.full(count, BLOCK)
        self._firsts = BLOCK * np.arange(count)

    def seed(self, seeds: Sequence[int | None], mask: np.ndarray) -> None:
        """Seed the streams that the mask names; None lets a stream go on."""
        for index in np.flatnonzero(mask).tolist():
            if seeds[index] is not None:
                self._generators[index] = seeding.np_random(seeds[index])[0]
                self._used[index] = BLOCK

    def draw(self, awake: np.ndarray | np.bool_) -> np.ndarray:
        """Return one number for each stream; only those awake move on."""
        for index in np.flatnonzero(self._used == BLOCK).tolist():
            generator = self._generators[index] or seeding.np_random()[0]
            self._generators[index] = generator
            generator.random(out=self._blocks[index])
            self._used[index] = 0
        numbers: np.ndarray = self._blocks.take(self._firsts + self._used)
        self._used += awake
        return numbers


def _with_reset(table: np.ndarray, value: Any) -> np.ndarray:
    """Append the column of the reset move, and flatten: index [4 * state + move]."""
    column = np.full((len(table), 1), value, dtype=table.dtype)
    return np.hstack([table, column]).ravel()


def _infos(
    bumped: np.ndarray, distance: np.ndarray, success: np.ndarray, mask: np.ndarray
) -> dict[str, Any]:
    """Give the infos gymnasium's form: every key with a mask of who reports it."""
    return {
        "bumped": bumped,
        "_bumped": mask.copy(),
        "distance": distance,
        "_distance": mask.copy(),
        "is_success": success,
        "_is_success": mask.copy(),
    }


def _action(action: Any) -> int:
    try:
        move = operator.index(action)
    except TypeError:
        move = -1
    if not 0 <= move < ACTIONS:
        raise ValueError(
            f"An action is 0 (forward), 1 (left) or 2 (right), not {action!r}."
        )
    return move


def _actions(actions: Any, count: int) -> np.ndarray:
    moves = np.asarray(actions)
    if moves.shape != (count,) or moves.dtype.kind not in "iu":
        raise ValueError(
            f"step needs {count} whole numbers, one action for each sub-environment, "
            f"not {moves.dtype} of shape {moves.shape}."
        )
    moves = moves.astype(np.int64, copy=False)
    # Seen as unsigned, negative numbers are huge: one comparison finds all bad ones.
    if moves.view(np.uint64).max() >= ACTIONS:
        raise ValueError(
            "An action is 0 (forward), 1 (left) or 2 (right), but the actions hold "
            f"{np.unique(moves).tolist()}."
        )
    return moves


def _start_option(options: Mapping[str, Any]) -> np.ndarray:
    unknown = sorted(set(options) - {"start"})
    if unknown:
        raise ValueError(f'reset knows the option "start", but got {unknown}.')
    start = np.asarray(options.get("start", START))
    if start.dtype.kind not in "iu":
        raise ValueError(f"start is a state, a whole number, not {start}.")
    return start


def _check_starts(starts: np.ndarray, states: int) -> None:
    if np.any((starts < 0) | (starts >= states - 4)):
        raise ValueError(
            f"start must be a state from 0 to {states - 5}; {states - 4} to "
            f"{states - 1} are the exit. Got {starts}."
        )


def _reset_mask(mask: Any, count: int) -> np.ndarray:
    if mask is None:
        return np.ones(count, dtype=np.bool_)
    flags = np.asarray(mask)
    if flags.dtype != np.bool_ or flags.shape != (count,) or not flags.any():
        raise ValueError(
            f"reset_mask must hold {count} booleans, at least one of them True, not "
            f"{mask}."
        )
    return flags


def _seeds(seed: Any, count: int) -> list[int | None]:
    if seed is None:
        return [None] * count
    if isinstance(seed, int | np.integer):
        seed = [int(seed) + index for index in range(count)]
    if len(seed) != count:
        raise ValueError(f"{count} seeds are needed, one each, not {len(seed)}.")
    for one in seed:
        if one is not None:
            check_whole_number("seed", one, least=0)
    return [None if one is None else int(one) for one in seed]


def _checked_render_mode(render_mode: str | None) -> str | None:
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode must be one of {RENDER_MODES}: {render_mode!r}.")
    return render_mode


def _checked_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        names = [member.value for member in AutoresetMode]
        raise ValueError(f"autoreset_mode must be one of {names}: {mode!r}.") from None


def _frame(render_mode: str | None, maze: Maze, state: int | None) -> Any:
    # Drawing is imported by those who draw.
    from rl_notes.maze.drawing import draw_maze, maze_text

    if render_mode is None:
        gymnasium.logger.warn(
            'render() draws nothing without a render mode: pass render_mode="rgb_array"'
            ' or "ansi" when you make the environment.'
        )
        return None
    draw = maze_text if render_mode == "ansi" else draw_maze
    return draw(maze.walls, state)
