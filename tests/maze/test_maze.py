import math
import warnings
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from jaxtyping import TypeCheckError
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, shortest_path

import rl_notes  # noqa: F401 (registers the maze)
from rl_notes.maze import MazeEnv, MazeVectorEnv
from rl_notes.maze.drawing import FLAG, NOSE, draw_maze, maze_text
from rl_notes.maze.rules import perfect_maze

ID = "rl_notes/Maze-v0"
FORWARD, LEFT, RIGHT = range(3)
NORTH, EAST, SOUTH, WEST = range(4)
OFFSETS = {NORTH: (-1, 0), EAST: (0, 1), SOUTH: (1, 0), WEST: (0, -1)}
# With jaxtyping's import hook a wrong type is stopped before our own check sees it.
WRONG_TYPE = (ValueError, TypeCheckError)
NEXT_STEP, SAME_STEP, DISABLED = (
    AutoresetMode.NEXT_STEP,
    AutoresetMode.SAME_STEP,
    AutoresetMode.DISABLED,
)

GOLDEN = """\
+---+---+---+---+
|   |   |       |
+   +   +   +   +
|   |       |   |
+   +---+---+   +
|     < |       |
+---+   +   +---+
|             E |
+---+---+---+---+"""


def state_of(size, row, column, heading):
    return (row * size + column) * 4 + heading


def passages(walls):
    """Edges between neighbouring cells without a wall, each seen from both sides."""
    size = len(walls)
    edges = set()
    for row, column, way in np.argwhere(~walls).tolist():
        down, right = OFFSETS[way]
        other = (row + down) * size + column + right
        assert 0 <= row + down < size and 0 <= column + right < size
        edges.add((row * size + column, other))
    return edges


# --- the maze -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 5, 8, 13])
@pytest.mark.parametrize("seed", [0, 1, 2, 12345])
def test_maze_is_a_spanning_tree_with_the_exit_at_a_dead_end(size, seed):
    edges = passages(perfect_maze(size, seed))
    assert all((b, a) in edges for a, b in edges)
    assert len(edges) == 2 * (size**2 - 1)
    rows, columns = np.array(sorted(edges)).T
    graph = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(size**2,) * 2)
    assert connected_components(graph)[0] == 1
    assert sum(a == size**2 - 1 for a, _ in edges) == 1


def test_the_seed_fixes_the_maze():
    assert np.array_equal(perfect_maze(6, 3), perfect_maze(6, 3))
    mazes = {perfect_maze(6, seed).tobytes() for seed in range(50)}
    assert len(mazes) == 50
    first = gymnasium.make(ID, size=6, maze_seed=3)
    first.reset(seed=1)
    second = gymnasium.make(ID, size=6, maze_seed=3)
    second.reset(seed=2)
    assert np.array_equal(*(cast(MazeEnv, e.unwrapped).walls for e in (first, second)))


def test_both_mazes_of_size_two_occur():
    exits = {tuple(perfect_maze(2, seed)[1, 1]) for seed in range(20)}
    assert exits == {(False, True, True, True), (True, True, True, False)}


# --- one robot ----------------------------------------------------------------------


@pytest.mark.parametrize("slip", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("size", "seed"), [(2, 0), (2, 1), (5, 0), (8, 7)])
@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
def test_gymnasium_finds_nothing_to_warn_about(size, seed, slip, render_mode):
    arguments = {"size": size, "maze_seed": seed, "slip": slip}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = gymnasium.make(ID, **arguments, render_mode=render_mode).unwrapped
        check_env(env)
        bare = MazeEnv(**arguments, render_mode=render_mode)
        check_env(bare, skip_render_check=True)
    assert [str(warning.message) for warning in caught] == []


def solvable_by_hand():
    """Return the size-2 maze whose exit opens to the west, and how to walk it."""
    seed = next(s for s in range(20) if not perfect_maze(2, s)[1, 1, WEST])
    env = MazeEnv(size=2, maze_seed=seed)
    # One way: (0, 1) - (0, 0) - (1, 0) - (1, 1).
    return env, seed


def test_moves_and_rewards_by_hand():
    env, _ = solvable_by_hand()
    state, info = env.reset(seed=0)
    assert state == state_of(2, 0, 0, EAST)
    # Turn right to the south, go, turn left to the east, go: four actions.
    assert info == {"bumped": False, "distance": 4, "is_success": False}
    script = [
        (LEFT, (0, 0, NORTH), -0.01, False, 5),
        (FORWARD, (0, 0, NORTH), -0.06, True, 5),
        (LEFT, (0, 0, WEST), -0.01, False, 4),
        (FORWARD, (0, 0, WEST), -0.06, True, 4),
        (RIGHT, (0, 0, NORTH), -0.01, False, 5),
        (RIGHT, (0, 0, EAST), -0.01, False, 4),
        (FORWARD, (0, 1, EAST), -0.01, False, 7),
        (FORWARD, (0, 1, EAST), -0.06, True, 7),
        (RIGHT, (0, 1, SOUTH), -0.01, False, 6),
        (FORWARD, (0, 1, SOUTH), -0.06, True, 6),
        (RIGHT, (0, 1, WEST), -0.01, False, 5),
        (FORWARD, (0, 0, WEST), -0.01, False, 4),
        (LEFT, (0, 0, SOUTH), -0.01, False, 3),
        (FORWARD, (1, 0, SOUTH), -0.01, False, 2),
        (LEFT, (1, 0, EAST), -0.01, False, 1),
    ]
    for action, place, reward, bumped, distance in script:
        step = env.step(action)
        expected = {"bumped": bumped, "distance": distance, "is_success": False}
        assert step[0] == state_of(2, *place)
        assert step[1] == pytest.approx(reward, abs=1e-15)
        assert step[2:] == (False, False, expected)
    state, reward, terminated, truncated, info = env.step(FORWARD)
    assert state == state_of(2, 1, 1, EAST)
    assert reward == pytest.approx(0.99, abs=1e-15)
    assert (terminated, truncated) == (True, False)
    assert info == {"bumped": False, "distance": 0, "is_success": True}


def test_reward_arguments_add_up():
    _, seed = solvable_by_hand()
    env = MazeEnv(
        size=2, maze_seed=seed, step_reward=0.5, bump_reward=-3, exit_reward=7
    )
    env.reset()
    actions = [LEFT, FORWARD, LEFT, LEFT, FORWARD, LEFT, FORWARD]
    rewards = [env.step(action)[1] for action in actions]
    assert rewards == [0.5, -2.5, 0.5, 0.5, 0.5, 0.5, 7.5]


def test_nothing_happens_past_the_exit():
    env = MazeEnv(size=3)
    exits = np.flatnonzero(env.terminal.numpy())
    before = int(np.flatnonzero(env.distance.numpy() == 1)[0])
    env.reset(options={"start": before})
    state = env.step(FORWARD)[0]
    assert state in exits
    info = {"bumped": False, "distance": 0, "is_success": False}
    for action in (FORWARD, LEFT, RIGHT):
        assert env.step(action) == (state, 0.0, True, False, info)


def test_reset_starts_where_it_is_told_once():
    env = gymnasium.make(ID)
    assert env.reset(options={"start": 42})[0] == 42
    assert env.reset(options={"start": np.int64(7)})[0] == 7
    state, info = env.reset()
    assert state == EAST
    assert info["distance"] == cast(MazeEnv, env.unwrapped).distance[EAST]


def test_the_time_limit_truncates():
    env = gymnasium.make(ID)
    env.reset()
    ends = [env.step(LEFT)[2:4] for _ in range(500)]
    assert ends == [(False, False)] * 499 + [(False, True)]


def test_random_numbers_are_drawn_only_to_slip():
    firm, slippery = MazeEnv(), MazeEnv(slip=0.5)
    for env in (firm, slippery):
        env.reset(seed=5)
    untouched = np.random.Generator(np.random.PCG64(5))
    for _ in range(10):
        firm.step(LEFT)
        slippery.step(LEFT)
    assert firm.np_random.random() == untouched.random()
    for _ in range(9):
        untouched.random()
    assert slippery.np_random.random() == untouched.random()


def test_slip_one_never_obeys_and_picks_both_others():
    env = MazeEnv(slip=1.0)
    env.reset(seed=0)
    headings = set()
    for _ in range(50):
        env.reset(options={"start": 4 * 12 + NORTH})
        headings.add(env.step(FORWARD)[0] - 4 * 12)
    assert headings == {EAST, WEST}


# --- the tables ---------------------------------------------------------------------


@pytest.mark.parametrize("slip", [0.0, 0.25, 1.0])
def test_tables_agree_with_each_other(slip):
    env = MazeEnv(size=4, maze_seed=2, slip=slip)
    states = 64
    assert env.transitions.shape == (states, 3, states)
    assert env.transitions.dtype == env.rewards.dtype == torch.float64
    assert env.rewards.shape == (states, 3)
    assert env.terminal.dtype == torch.bool
    assert env.distance.dtype == torch.int64
    assert env.terminal.nonzero().ravel().tolist() == [60, 61, 62, 63]
    total = env.transitions.sum(2)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)
    transitions = torch.zeros_like(env.transitions)
    rewards = torch.zeros_like(env.rewards)
    for state, actions in env.P.items():
        for action, outcomes in actions.items():
            assert len(outcomes) == {0.0: 1, 0.25: 3, 1.0: 2}[slip]
            for chance, after, reward, terminated in outcomes:
                transitions[state, action, after] += chance
                rewards[state, action] += chance * reward
                assert terminated == env.terminal[after]
    torch.testing.assert_close(env.transitions, transitions, rtol=0, atol=1e-15)
    torch.testing.assert_close(env.rewards, rewards, rtol=0, atol=1e-15)


def test_terminal_states_absorb():
    env = MazeEnv(slip=0.2)
    stay = env.transitions[env.terminal][:, :, env.terminal]
    expected = torch.eye(4, dtype=torch.float64)[:, None].expand(4, 3, 4)
    torch.testing.assert_close(stay, expected, rtol=0, atol=1e-15)
    assert (env.rewards[env.terminal] == 0).all()
    assert (env.distance[env.terminal] == 0).all()


def test_tables_say_what_a_firm_robot_does():
    env = MazeEnv(size=4, maze_seed=1)
    for state in range(60):
        for action in range(3):
            env.reset(options={"start": state})
            after, reward, terminated, _, info = env.step(action)
            assert env.transitions[state, action, after] == 1
            assert env.rewards[state, action] == reward
            assert env.terminal[after] == terminated == info["is_success"]
            assert env.distance[after] == info["distance"]


def test_slip_frequencies_agree_with_the_tables():
    # 100 thousand tries of each action from 32 states: none of the at most 288
    # frequencies may lie 5 standard errors off (by chance below 2e-4; seeds are fixed).
    robots, rounds, slip = 2_000, 50, 0.3
    env = MazeVectorEnv(robots, size=3, maze_seed=4, slip=slip)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    counts, rewards = np.zeros((32, 3, 36)), np.zeros((32, 3))
    for _ in range(rounds):
        for action in range(3):
            starts = rng.integers(0, 32, robots)
            env.reset(options={"start": starts})
            states, reward, *_ = env.step(np.full(robots, action))
            one = np.full(robots, action)
            np.add.at(counts, (starts, one, states), 1)
            np.add.at(rewards, (starts, one), reward)
    n = counts.sum(axis=2)
    assert n.min() > 2_900
    p, expected = env.transitions[:32].numpy(), env.rewards[:32].numpy()
    errors = 5 * np.sqrt(p * (1 - p) / n[:, :, None])
    assert (np.abs(counts / n[:, :, None] - p) <= errors + 1e-12).all()
    # The rewards of one step span at most 1.05, so their deviation is below 0.53.
    assert (np.abs(rewards / n - expected) <= 5 * 0.53 / np.sqrt(n)).all()


@pytest.mark.parametrize(("size", "seed"), [(2, 0), (3, 1), (5, 0), (9, 3)])
def test_distance_agrees_with_scipy(size, seed):
    env = MazeEnv(size=size, maze_seed=seed)
    graph = csr_matrix(env.transitions.sum(1).numpy() > 0)
    paths = shortest_path(graph, unweighted=True)
    expected = paths[:, env.terminal.numpy()].min(axis=1)
    np.testing.assert_array_equal(env.distance.numpy(), expected)


# --- many robots --------------------------------------------------------------------


def pair(count, mode, *, limit, slip):
    arguments = {"size": 3, "maze_seed": 1, "slip": slip}
    ours = MazeVectorEnv(
        count, **arguments, max_episode_steps=limit, autoreset_mode=mode
    )

    def single():
        return gymnasium.make(ID, **arguments, max_episode_steps=limit)

    return ours, SyncVectorEnv([single] * count, autoreset_mode=mode)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)
    assert data_equivalence(ours[-1], theirs[-1], exact=True), (ours[-1], theirs[-1])


@pytest.mark.parametrize("slip", [0.0, 0.4])
@pytest.mark.parametrize("limit", [14, 60])
@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP, DISABLED])
def test_vector_equals_single_environments(mode, limit, slip):
    count, steps = 6, 600  # more steps than one block of random numbers
    ours, theirs = pair(count, mode, limit=limit, slip=slip)
    rng = np.random.default_rng(0)
    seen = np.zeros(2, dtype=int)
    assert_same(ours.reset(seed=3), theirs.reset(seed=3))
    for _ in range(steps):
        actions = rng.integers(0, 3, count)
        mine, other = ours.step(actions), theirs.step(actions)
        assert_same(mine, other)
        seen += [mine[2].sum(), mine[3].sum()]
        ended = mine[2] | mine[3]
        if mode is DISABLED and ended.any():
            options = {"reset_mask": ended, "start": int(rng.integers(0, 32))}
            assert_same(ours.reset(options=options), theirs.reset(options=options))
    assert (seen > 0).all()  # the exit was reached and the limit too


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
def test_who_edits_what_a_step_told_changes_nothing(mode):
    """Neither the robots nor the rest of what was told."""
    mine, theirs = (
        MazeVectorEnv(9, size=2, max_episode_steps=6, autoreset_mode=mode)
        for _ in range(2)
    )
    rng = np.random.default_rng(0)
    mine.reset(seed=0)[0][:] = 7
    theirs.reset(seed=0)
    ends = np.zeros(2, dtype=int)
    for _ in range(60):
        actions = rng.integers(0, 3, 9)
        (states, *found, infos), expected = mine.step(actions), theirs.step(actions)
        assert np.array_equal(states, expected[0])
        states[:] = 7
        for value in infos.values():
            if isinstance(value, np.ndarray) and value.dtype == bool:
                value[:] = ~value
        assert all(map(np.array_equal, found, expected[1:4]))
        ends += [found[1].sum(), found[2].sum()]
    assert (ends > 0).all()  # by the exit and by the clock


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
def test_vector_seeds_as_gymnasium_does(mode):
    ours, theirs = pair(4, mode, limit=20, slip=0.5)
    rng = np.random.default_rng(1)
    for seed in ([5, 0, 9, 9], 17, None, [None, 3, None, 4]):
        options = None if seed == 17 else {"start": 10}
        mine = ours.reset(seed=seed, options=options)
        assert_same(mine, theirs.reset(seed=seed, options=options))
        for _ in range(35):
            actions = rng.integers(0, 3, 4)
            assert_same(ours.step(actions), theirs.step(actions))


def test_vector_reseeds_only_the_masked():
    ours, theirs = pair(3, DISABLED, limit=1000, slip=0.5)
    rng = np.random.default_rng(1)
    ours.reset(seed=0), theirs.reset(seed=0)
    for k in range(20):
        for _ in range(3):
            actions = rng.integers(1, 3, 3)  # only turns: a slip forward may end it
            mine = ours.step(actions)
            assert_same(mine, theirs.step(actions))
            if (mine[2] | mine[3]).any():
                break
        mask = (mine[2] | mine[3]) | (np.arange(3) == k % 3)
        assert_same(
            ours.reset(seed=k, options={"reset_mask": mask.copy()}),
            theirs.reset(seed=k, options={"reset_mask": mask.copy()}),
        )


def test_vector_without_a_seed_still_slips_differently():
    env = MazeVectorEnv(64, slip=0.5)
    env.reset()
    states = env.step(np.full(64, LEFT))[0]
    assert len(set(states.tolist())) > 1


def test_vector_takes_one_start_each_and_resets_to_the_usual():
    env = MazeVectorEnv(3, size=4, max_episode_steps=1)
    starts = np.array([5, 17, 40])
    states, info = env.reset(options={"start": starts})
    assert states.tolist() == [5, 17, 40]
    assert info["distance"].tolist() == env.distance[starts].tolist()
    env.step(np.array([1, 1, 1]))
    assert env.step(np.array([1, 1, 1]))[0].tolist() == [EAST] * 3


def test_vector_returns_are_the_readers_own():
    env = MazeVectorEnv(4, slip=0.5, autoreset_mode=DISABLED)
    twin = MazeVectorEnv(4, slip=0.5, autoreset_mode=DISABLED)
    spoiled, info = env.reset(seed=0)
    twin.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        spoiled[:] = 3
        for array in info.values():
            array[:] = True
        actions = rng.integers(0, 3, 4)
        result, expected = env.step(actions), twin.step(actions)
        assert_same(result, expected)
        spoiled, rewards, terminated, truncated, info = result
        rewards[:], terminated[:], truncated[:] = 9, True, True


def test_make_vec_uses_the_tables():
    env = gymnasium.make_vec(ID, num_envs=8, size=4)
    assert isinstance(env.unwrapped, MazeVectorEnv)
    assert env.metadata["autoreset_mode"] is NEXT_STEP
    assert env.unwrapped.transitions.shape == (64, 3, 64)
    env.reset(seed=0)
    truncated = [env.step(np.full(8, LEFT))[3] for _ in range(500)]
    assert [t.all() for t in truncated] == [False] * 499 + [True]
    other = gymnasium.make_vec(ID, num_envs=2, autoreset_mode="SameStep")
    assert other.metadata["autoreset_mode"] is SAME_STEP
    single = MazeEnv(size=4)
    for name in ("walls", "transitions", "rewards", "terminal", "distance", "P"):
        mine, theirs = getattr(env.unwrapped, name), getattr(single, name)
        assert np.array_equal(mine, theirs) if name != "P" else mine == theirs


# --- bad input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 1}, "size must be 2 or more"),
        ({"maze_seed": -1}, "maze_seed must be 0 or more"),
        ({"slip": -0.1}, "slip is a probability"),
        ({"slip": 1.1}, "slip is a probability"),
        ({"slip": math.nan}, "slip must be a finite number"),
        ({"step_reward": math.inf}, "step_reward must be a finite number"),
        ({"bump_reward": math.nan}, "bump_reward must be a finite number"),
        ({"exit_reward": -math.inf}, "exit_reward must be a finite number"),
        ({"render_mode": "human"}, "render_mode must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MazeEnv(**arguments)
    with pytest.raises(ValueError, match=message):
        MazeVectorEnv(2, **arguments)


@pytest.mark.parametrize(
    "arguments", [{"size": 2.5}, {"size": "5"}, {"slip": "0"}, {"step_reward": None}]
)
def test_bad_types(arguments):
    with pytest.raises(WRONG_TYPE):
        MazeEnv(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be 1 or more"),
        ({"num_envs": 2, "max_episode_steps": 0}, "max_episode_steps must be 1"),
        ({"num_envs": 2, "autoreset_mode": "Never"}, "autoreset_mode must be one of"),
    ],
)
def test_bad_vector_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MazeVectorEnv(**arguments)


@pytest.mark.parametrize("action", [-1, 3, 1.0, "left", None, np.array([1, 2])])
def test_bad_action(action):
    env = MazeEnv()
    env.reset()
    with pytest.raises(ValueError, match=r"An action is 0 \(forward\)"):
        env.step(action)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 3]), "An action is 0"),
        (np.array([-1, 0]), "An action is 0"),
        (np.array([0.0, 1.0]), "step needs 2 whole numbers"),
        (np.array([0, 1, 2]), "step needs 2 whole numbers"),
        (np.array([True, False]), "step needs 2 whole numbers"),
        (1, "step needs 2 whole numbers"),
    ],
)
def test_bad_actions(actions, message):
    env = MazeVectorEnv(2)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "start must be a state from 0 to 95"),
        ({"start": 96}, "96 to 99 are the exit"),
        ({"start": 1.5}, "start is a state, a whole number"),
        ({"start": "here"}, "start is a state, a whole number"),
        ({"strat": 3}, "reset knows the option"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MazeEnv().reset(options=options)
    with pytest.raises(ValueError, match=message):
        MazeVectorEnv(2).reset(options=options)


def test_bad_vector_options():
    env = MazeVectorEnv(3)
    with pytest.raises(ValueError, match="one state or 3 of them"):
        env.reset(options={"start": [1, 2]})
    with pytest.raises(ValueError, match="start must be one state"):
        MazeEnv().reset(options={"start": [1]})
    for mask in ([True, False], [False] * 3, [1, 0, 1]):
        with pytest.raises(ValueError, match="reset_mask must hold 3 booleans"):
            env.reset(options={"reset_mask": np.array(mask)})
    with pytest.raises(ValueError, match="3 seeds are needed"):
        env.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        env.reset(seed=-1)


def test_order_of_calls():
    with pytest.raises(ResetNeeded):
        MazeEnv().step(0)
    env = MazeVectorEnv(2, max_episode_steps=1, autoreset_mode=DISABLED)
    with pytest.raises(ResetNeeded):
        env.step(np.array([0, 0]))
    env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded):
        env.step(np.array([0, 0]))
    env.reset(options={"reset_mask": np.array([False, True])})
    env.step(np.array([0, 0]))
    with pytest.raises(ResetNeeded, match=r"episodes of \[0, 1\] have ended"):
        env.step(np.array([0, 0]))
    env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded, match=r"episodes of \[1\] have ended"):
        env.step(np.array([0, 0]))


# --- pictures -----------------------------------------------------------------------


def test_text_of_one_maze():
    env = gymnasium.make(ID, size=4, maze_seed=0, render_mode="ansi")
    env.reset(options={"start": state_of(4, 2, 1, WEST)})
    assert env.render() == GOLDEN
    for heading, arrow in enumerate("^>v<"):
        text = maze_text(cast(MazeEnv, env.unwrapped).walls, state_of(4, 2, 1, heading))
        assert text == GOLDEN.replace("<", arrow)
    assert maze_text(cast(MazeEnv, env.unwrapped).walls) == GOLDEN.replace("<", " ")


def test_beside_a_robot_the_flag_at_the_exit_is_half_as_large():
    walls = perfect_maze(3, 0)
    heights = []
    for state in (None, 4 * 8 + EAST):
        rows, _ = np.nonzero((draw_maze(walls, state) == FLAG).all(axis=2))
        heights.append(np.ptp(rows) + 1)
    assert heights[1] == pytest.approx(heights[0] / 2, abs=2)


def test_pictures_show_robot_heading_and_exit():
    env = gymnasium.make(ID, size=3, render_mode="rgb_array")
    env.reset()
    picture: Any = env.render()
    assert picture.shape == (3 * 48 + 24, 3 * 48 + 24, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, cast(Any, env.render()))
    walls = cast(MazeEnv, env.unwrapped).walls
    pictures = [draw_maze(walls, state) for state in (0, 1, 2, 3, 4, 35, None)]
    assert len({p.tobytes() for p in pictures}) == len(pictures)
    # Turning changes the robot's own cell and nothing else.
    changed = (pictures[0] != pictures[1]).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert rows.max() < 60 and columns.max() < 60 and rows.min() > 12
    assert draw_maze(walls, 0, cell=20).shape == (70, 70, 3)


@pytest.mark.parametrize("heading", [NORTH, EAST, SOUTH, WEST])
def test_the_nose_points_ahead(heading):
    picture = draw_maze(perfect_maze(3, 0), state_of(3, 1, 1, heading), cell=40)
    nose = np.argwhere((picture == NOSE).all(axis=2)).mean(axis=0)
    ahead = (nose - (10 + 60)) / 40  # from the centre of the middle cell, in cells
    np.testing.assert_allclose(ahead, 0.33 * np.array(OFFSETS[heading]), atol=0.05)


def test_a_wall_is_drawn_where_it_stands():
    walls = perfect_maze(5, 0)
    picture = draw_maze(walls, cell=40).astype(int)
    for row, column in np.ndindex(5, 5):
        y, x = 10 + 40 * row + 20, 10 + 40 * column + 20
        for way, (down, right) in OFFSETS.items():
            dark = picture[y + 20 * down, x + 20 * right].sum() < 300
            assert dark == walls[row, column, way]


def test_vector_renders_every_robot():
    env = MazeVectorEnv(2, size=3, render_mode="ansi")
    env.reset(options={"start": np.array([0, 2])})
    assert env.render() == (maze_text(env.walls, 0), maze_text(env.walls, 2))


def test_bad_pictures():
    walls = perfect_maze(3, 0)
    for draw in (draw_maze, maze_text):
        with pytest.raises(ValueError, match="states 0 to 35"):
            draw(walls, 36)
    with pytest.raises(ValueError, match="cell must be 8 or more"):
        draw_maze(walls, cell=7)


def test_render_without_a_mode_says_what_to_do():
    env = MazeEnv()
    env.reset()
    with pytest.warns(UserWarning, match="pass render_mode"):
        assert env.render() is None
