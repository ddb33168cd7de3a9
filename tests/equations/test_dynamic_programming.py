from typing import Any, cast

import gymnasium
import pytest
import torch
from batches import seeded

import rl_notes.dynamic_programming as dp
from rl_notes.maze import MazeEnv
from rl_notes.policies import MLPPolicy, TabularPolicy


def random_policy(tables, seed):
    logits = 2 * torch.randn(tables.rewards.shape, generator=seeded(seed)).double()
    return logits.softmax(-1)


def random_start(tables, seed):
    return torch.rand(len(tables.rewards), generator=seeded(seed)).double().softmax(0)


class Chain:
    """States 0, 1 and the end, 2. Action 0 stays, action 1 goes on."""

    # What the tables say about the end itself must not count.
    transitions = torch.tensor(
        [[[1, 0, 0], [0, 1, 0]], [[0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0]]]
    ).double()
    rewards = torch.tensor([[0.0, -1.0], [2.0, 10.0], [50.0, 60.0]]).double()
    terminal = torch.tensor([False, False, True])


class FrozenLake:
    """Gymnasium's table of outcomes as three tensors."""

    def __init__(self, **options):
        table = cast(Any, gymnasium.make("FrozenLake-v1", **options).unwrapped).P
        self.transitions = torch.zeros(len(table), 4, len(table)).double()
        self.rewards = torch.zeros(len(table), 4).double()
        self.terminal = torch.zeros(len(table), dtype=torch.bool)
        for state, actions in table.items():
            for action, outcomes in actions.items():
                for chance, after, reward, terminated in outcomes:
                    self.transitions[state, action, after] += chance
                    self.rewards[state, action] += chance * reward
                    self.terminal[after] |= terminated


# By hand


def test_action_values_by_hand():
    values = torch.tensor([1.0, 3.0, 99.0]).double()  # nothing is earned at the end
    found = dp.action_values(Chain(), values, discount=0.5)
    assert found.tolist() == [[0.5, 0.5], [3.5, 10.0], [0.0, 0.0]]


def test_values_by_hand():
    # In state 1 it is best to go: 10 > 2 + 0.5 * 10; and then V(0) = -1 + 0.5 * 10.
    best = dp.value_iteration(Chain(), discount=0.5)
    assert best.tolist() == pytest.approx([4.0, 10.0, 0.0], abs=1e-10)
    # Patient enough, it is better to stay: V(1) = 2 / (1 - 0.9) and V(0) = -1 + 18.
    best = dp.value_iteration(Chain(), discount=0.9)
    assert best.tolist() == pytest.approx([17.0, 20.0, 0.0], abs=1e-10)


def test_policy_evaluation_by_hand():
    even = torch.full((3, 2), 0.5)
    # V(1) = 6 + 0.25 V(1) = 8, and V(0) = -0.5 + 0.25 V(0) + 0.25 * 8 = 2.
    found = dp.policy_evaluation(Chain(), even, discount=0.5)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([2.0, 8.0, 0.0], abs=1e-12)
    found = dp.advantages(Chain(), even, discount=0.5)
    expected = [[-1.0, 1.0], [-2.0, 2.0], [0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_occupancy_by_hand():
    even = torch.full((3, 2), 0.5)
    start = torch.tensor([0.5, 0.0, 0.5])  # half of the episodes are over at once
    # d(0) = 0.5 + 0.25 d(0) = 2/3, and d(1) = 0.25 d(0) + 0.25 d(1) = 2/9.
    visits = dp.occupancy(Chain(), even, discount=0.5, start=start)
    assert visits.tolist() == pytest.approx([2 / 3, 2 / 9, 0.0], abs=1e-12)
    earned = dp.expected_return(Chain(), even, discount=0.5, start=start)
    assert float(earned) == pytest.approx(1.0, abs=1e-12)


def test_one_start():
    start = dp.one_start(Chain(), 1)
    assert start.tolist() == [0.0, 1.0, 0.0]
    assert start.dtype == torch.float64


def test_greedy_shares_between_the_best():
    values = torch.tensor([[1.0, 3.0, 3.0 - 1e-12], [5.0, 4.0, 4.9], [2.0, 2.0, 2.0]])
    found = dp.greedy(values.double())
    third = 1 / 3
    expected = [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [third, third, third]]
    torch.testing.assert_close(found, torch.tensor(expected).double())
    loose = dp.greedy(values.double(), tolerance=0.2)
    assert loose[1].tolist() == [0.5, 0.0, 0.5]


# Against other solutions


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("size", [2, 4, 6])
def test_when_every_step_costs_one_the_best_value_is_the_distance(size, seed):
    maze = MazeEnv(
        size=size, maze_seed=seed, step_reward=-1, bump_reward=0, exit_reward=0
    )
    values = dp.value_iteration(maze, discount=1.0)
    distance = maze.distance.double()  # by breadth-first search
    torch.testing.assert_close(values, -distance, rtol=0, atol=1e-10)
    best = dp.greedy(dp.action_values(maze, values, discount=1.0))
    found = dp.policy_evaluation(maze, best, discount=1.0)
    torch.testing.assert_close(found, -distance, rtol=0, atol=1e-10)


@pytest.mark.parametrize("world", [MazeEnv(size=4, slip=0.2), FrozenLake()])
def test_the_linear_solution_agrees_with_many_sweeps(world):
    policy = random_policy(world, 0)
    values = torch.zeros(len(world.terminal)).double()
    for _ in range(700):  # 0.95^700 < 1e-15
        q = world.rewards + 0.95 * world.transitions @ values
        values = torch.where(world.terminal, 0, (policy * q).sum(dim=1))
    found = dp.policy_evaluation(world, policy, discount=0.95)
    torch.testing.assert_close(found, values, rtol=0, atol=1e-10)


WORLDS = {"maze": MazeEnv(size=3, slip=0.15), "lake": FrozenLake()}
every_world = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


@every_world
@pytest.mark.parametrize("discount", [0.8, 0.99, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_performance_difference(world, discount, seed):
    """J(pi') - J(pi) = sum_s d'(s) sum_a pi'(a | s) A(s, a)."""
    old, new = random_policy(world, seed), random_policy(world, seed + 50)
    start = random_start(world, seed)
    gained = dp.expected_return(world, new, discount=discount, start=start)
    gained -= dp.expected_return(world, old, discount=discount, start=start)
    visits = dp.occupancy(world, new, discount=discount, start=start)
    better = (new * dp.advantages(world, old, discount=discount)).sum(dim=1)
    assert abs(float(gained)) > 1e-3
    torch.testing.assert_close(visits @ better, gained, rtol=0, atol=1e-10)


# What the old policy's visits promise, and what is guaranteed


def test_the_surrogate_and_the_bound_by_hand():
    """pi = (1/2, 1/2) and (1/4, 3/4), pi' = (0.2, 0.8) in both states, gamma = 0.5.

    V = (50/21, 64/7), A = (-25/21, 25/21) and (-18/7, 6/7), d = (4/3, 8/21), so that
    L = 4/3 * 5/7 + 8/21 * 1.2/7. C = 4 * 18/7 * 0.5 / 0.25, and the policy moves most
    in state 0: KL = 0.5 ln(0.5 / 0.2) + 0.5 ln(0.5 / 0.8).
    """
    old = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
    chances = [[0.2, 0.8], [0.2, 0.8], [1e-9, 1 - 1e-9]]  # the end does not count
    new = torch.tensor(chances, dtype=torch.float64)
    options: dict[str, Any] = {"discount": 0.5, "start": dp.one_start(Chain(), 0)}
    promised = dp.expected_surrogate(Chain(), old, new, **options)
    expected = 4 / 3 * 5 / 7 + 8 / 21 * 1.2 / 7
    assert float(promised) == pytest.approx(expected, rel=1e-12)
    bound = dp.improvement_bound(Chain(), old, new, **options)
    expected -= 144 / 7 * 0.2231435513
    assert float(bound) == pytest.approx(expected, rel=1e-9)


@every_world
def test_the_surrogate_is_the_return_to_first_order(world):
    old, start = random_policy(world, 3), random_start(world, 3)
    new = old.clone().requires_grad_()
    promised = dp.expected_surrogate(world, old, new, discount=0.9, start=start)
    assert abs(float(promised.detach())) < 1e-12
    (found,) = torch.autograd.grad(promised, new)
    earned = dp.expected_return(world, new, discount=0.9, start=start)
    (expected,) = torch.autograd.grad(earned, new)
    # The rows of both sum to one: what moves all actions of a state alike is no change.
    found, expected = (x - (old * x).sum(1, keepdim=True) for x in (found, expected))
    assert float(expected.norm()) > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@every_world
@pytest.mark.parametrize("discount", [0.5, 0.9, 0.99])
def test_the_improvement_bound_is_never_violated(world, discount):
    """Between policies near and far. Nothing promises as much without the penalty."""
    broken = 0
    for seed in range(40):
        old, other = random_policy(world, seed), random_policy(world, seed + 100)
        start = random_start(world, seed)
        options = {"discount": discount, "start": start}
        for share in (1e-4, 1e-2, 0.1, 0.5, 1.0):
            new = (1 - share) * old + share * other
            gained = dp.expected_return(world, new, **options)
            gained -= dp.expected_return(world, old, **options)
            bound = dp.improvement_bound(world, old, new, **options)
            assert float(bound) <= float(gained) + 1e-12
            promised = dp.expected_surrogate(world, old, new, **options)
            broken += int(float(promised) > float(gained) + 1e-12)
    assert broken > 20


def test_the_bound_is_worth_something_close_by():
    """Near enough, the guarantee is positive wherever the surrogate is."""
    world, start = MazeEnv(size=2), random_start(MazeEnv(size=2), 0)
    options = {"discount": 0.5, "start": start}
    old = random_policy(world, 0)
    better = dp.greedy(dp.advantages(world, old, discount=0.5))
    new = 0.999999 * old + 0.000001 * better
    bound = float(dp.improvement_bound(world, old, new, **options))
    promised = float(dp.expected_surrogate(world, old, new, **options))
    assert 0.9 * promised < bound < promised


@pytest.mark.parametrize("discount", [1.0, 1.5, -0.1])
def test_the_bound_needs_a_discount_below_one(discount):
    policy, start = random_policy(Chain(), 0), random_start(Chain(), 0)
    with pytest.raises(ValueError, match="discount must be at least 0 and below 1"):
        dp.improvement_bound(Chain(), policy, policy, discount=discount, start=start)


@every_world
def test_advantages_average_to_zero(world):
    policy = random_policy(world, 3)
    found = dp.advantages(world, policy, discount=0.9)
    mean = (policy * found).sum(dim=1)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)
    assert float(found.abs().max()) > 0.01


@every_world
@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_occupancy_counts_the_steps_and_what_they_earn(world, discount):
    policy, start = random_policy(world, 4), random_start(world, 4)
    visits = dp.occupancy(world, policy, discount=discount, start=start)
    # Independently: push the distribution forward until next to nothing is left.
    moves = torch.einsum("sa,sat->st", policy, world.transitions)
    here = torch.where(world.terminal, 0, start)
    length, weight = 0.0, 1.0
    while float(weight * here.sum()) > 1e-14:
        length += weight * float(here.sum())
        here = torch.where(world.terminal, 0, here @ moves)
        weight *= discount
    assert float(visits.sum()) == pytest.approx(length, abs=1e-9)
    assert (visits[world.terminal] == 0).all()
    earned = visits @ (policy * world.rewards).sum(dim=1)
    expected = dp.expected_return(world, policy, discount=discount, start=start)
    torch.testing.assert_close(earned, expected, rtol=0, atol=1e-10)


@every_world
def test_the_gradient_is_the_policy_gradient(world):
    """Autograd agrees with sum_s d(s) pi(a|s) A(s, a) and with finite differences."""
    start, discount = random_start(world, 5), 0.93
    logits = torch.randn(world.rewards.shape, generator=seeded(5)).double()

    def earned(logits):
        policy = logits.softmax(-1)
        return dp.expected_return(world, policy, discount=discount, start=start)

    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(earned(logits), logits)
    logits = logits.detach()
    policy = logits.softmax(-1)
    visits = dp.occupancy(world, policy, discount=discount, start=start)
    better = dp.advantages(world, policy, discount=discount)
    closed = visits[:, None] * policy * better
    torch.testing.assert_close(gradient, closed, rtol=0, atol=1e-10)
    way = torch.randn(logits.shape, generator=seeded(6)).double()
    slope = (earned(logits + 1e-5 * way) - earned(logits - 1e-5 * way)) / 2e-5
    assert abs(float(slope)) > 1e-3
    torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-6, atol=1e-9)


def test_the_known_value_of_frozen_lake():
    # 4x4, not slippery: six steps to the goal, the reward comes with the last.
    values = dp.value_iteration(FrozenLake(is_slippery=False), discount=0.9)
    assert float(values[0]) == pytest.approx(0.9**5, abs=1e-12)
    # Slippery, without discount: 14/17 of the episodes can be won.
    values = dp.value_iteration(FrozenLake(), discount=1.0)
    assert float(values[0]) == pytest.approx(14 / 17, abs=1e-8)


def test_no_policy_beats_value_iteration():
    maze = MazeEnv(size=3, slip=0.1)
    best = dp.value_iteration(maze, discount=0.9)
    for seed in range(20):
        found = dp.policy_evaluation(maze, random_policy(maze, seed), discount=0.9)
        assert (found <= best + 1e-10).all()
    chosen = dp.greedy(dp.action_values(maze, best, discount=0.9))
    found = dp.policy_evaluation(maze, chosen, discount=0.9)
    torch.testing.assert_close(found, best, rtol=0, atol=1e-9)


# What is refused


START = dp.one_start(Chain(), 0)
SOLVERS = {
    "policy_evaluation": dp.policy_evaluation,
    "advantages": dp.advantages,
    "occupancy": lambda *args, **kw: dp.occupancy(*args, **kw, start=START),
    "expected_return": lambda *args, **kw: dp.expected_return(*args, **kw, start=START),
}
every_solver = pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)


@every_solver
def test_logits_are_refused(solve):
    negative = torch.tensor([[2.0, -1.0], [0.5, 0.5], [0.5, 0.5]])
    too_much = torch.tensor([[0.5, 0.6], [0.5, 0.5], [0.5, 0.5]])
    for logits in (
        torch.zeros(3, 2),
        negative,
        too_much,
        torch.full((3, 2), torch.nan),
    ):
        with pytest.raises(ValueError, match=r"Did you pass logits\?"):
            solve(Chain(), logits, discount=0.9)


@every_solver
@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (4, 2), (3,)])
@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_wrong_shapes_are_refused(solve, shape):
    with pytest.raises(ValueError, match="the world has 3 states and 2 actions"):
        solve(Chain(), torch.full(shape, 0.5), discount=0.9)


@pytest.mark.parametrize("discount", [-0.1, 1.01, float("nan")])
def test_a_discount_beyond_one_is_refused(discount):
    with pytest.raises(ValueError, match="discount must lie between 0 and 1"):
        dp.value_iteration(Chain(), discount=discount)
    with pytest.raises(ValueError, match="discount must lie between 0 and 1"):
        dp.policy_evaluation(Chain(), torch.full((3, 2), 0.5), discount=discount)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_without_discount_every_state_must_reach_the_end(seed, dtype):
    # A robot that only turns; in float32 its probabilities do not sum to 1 exactly.
    maze = MazeEnv(size=2)
    logits = torch.randn(16, 3, generator=seeded(seed), dtype=dtype)
    logits[:, 0] = -torch.inf
    with pytest.raises(ValueError, match="never reaches the end under this policy"):
        dp.policy_evaluation(maze, logits.softmax(-1), discount=1.0)
    assert torch.isfinite(
        dp.policy_evaluation(maze, logits.softmax(-1), discount=0.99)
    ).all()


def test_without_discount_a_trap_is_found_behind_other_states():
    # From state 0 the policy goes on to state 1, and stays there.
    policy = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]])
    with pytest.raises(ValueError, match="never reaches the end"):
        dp.policy_evaluation(Chain(), policy, discount=1.0)
    almost = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.5, 0.5]])
    found = dp.policy_evaluation(Chain(), almost, discount=1.0)
    # V(1) = 0.75 (2 + V(1)) + 0.25 * 10 = 16, and V(0) = 0.5 V(0) + 0.5 (-1 + 16).
    assert found.tolist() == pytest.approx([15.0, 16.0, 0.0], abs=1e-10)


def test_a_bonus_for_every_step_has_no_best_value_without_discount():
    maze = MazeEnv(size=2, step_reward=0.1, bump_reward=0)
    with pytest.raises(ValueError, match=r"still moved by 0\.1 after 300 sweeps"):
        dp.value_iteration(maze, discount=1.0, iterations=300)
    # With a discount the robot stays for ever and earns 0.1 / (1 - 0.9).
    values = dp.value_iteration(
        MazeEnv(size=2, step_reward=0.5, exit_reward=0), discount=0.9
    )
    assert float(values[1]) == pytest.approx(5.0, abs=1e-9)


def test_on_a_wet_floor_it_is_better_to_turn_towards_the_wall():
    """An exercise says so: of two equal turns, that after which a slip goes nowhere."""
    dry, wet = MazeEnv(), MazeEnv(slip=0.2)
    before, after = (
        dp.greedy(
            dp.action_values(
                maze, dp.value_iteration(maze, discount=0.95), discount=0.95
            )
        )
        for maze in (dry, wet)
    )
    assert not bool(((after > 0) & (before == 0)).any())
    changed = (before != after).any(dim=1).nonzero()[:, 0].tolist()
    assert len(changed) == 12
    follows = dry.transitions.argmax(dim=2)
    for state in changed:
        assert before[state].tolist() == [0, 0.5, 0.5]
        better = int(after[state].argmax())
        towards, away = (int(follows[state, turn]) for turn in (better, 3 - better))
        assert follows[towards, 0] == towards
        assert follows[away, 0] != away


def test_a_policy_of_any_kind_is_asked_in_every_state():
    maze = MazeEnv(size=3, slip=0.1)
    states = len(maze.terminal)
    network = MLPPolicy(states, 3, hidden=(8,), generator=seeded(0))
    table = TabularPolicy(states, 3)
    with torch.no_grad():
        rows = [network(torch.tensor([[s]]))[0, 0] for s in range(states)]
        table.logits.add_(torch.randn(states, 3, generator=seeded(1)))
    expected = torch.stack(rows).softmax(-1).double()
    found = dp.probabilities_of(network, maze)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    by_hand = table.logits.detach().softmax(-1).double()
    torch.testing.assert_close(dp.probabilities_of(table, maze), by_hand)
    torch.testing.assert_close(
        dp.values_of(table, maze, discount=0.9),
        dp.policy_evaluation(maze, by_hand, discount=0.9),
    )
