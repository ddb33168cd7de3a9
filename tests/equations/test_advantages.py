import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import gymnasium
import pytest
import torch
from batches import random_batch, seeded, with_garbage
from gymnasium.spaces import Discrete
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeLimit

import rl_notes.dynamic_programming as dp
from rl_notes.advantages import (
    discount_weights,
    explained_variance,
    gae,
    group_relative,
    has_spread,
    leave_one_out,
    normalise,
    per_step,
    returns_to_go,
    td_errors,
)
from rl_notes.language import tokenizer as little
from rl_notes.maze import MazeEnv, MazeVectorEnv
from rl_notes.policies import TabularPolicy
from rl_notes.rollouts import rollout
from rl_notes.trajectories import Trajectories, with_scores


def by_hand():
    """Three rows: one ended, one cut after two steps, one ended after a prompt."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1]]).bool()
    rewards = [[1.0, 2.0, 4.0], [3.0, 5.0, 0.0], [0.0, 1.0, 10.0]]
    discounts = [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.5, 0.0]]
    return Trajectories(
        actions=torch.zeros(3, 3, dtype=torch.int64),
        logprobs=torch.zeros(3, 3, dtype=torch.float64),
        rewards=torch.tensor(rewards, dtype=torch.float64),
        discounts=torch.tensor(discounts, dtype=torch.float64),
        mask=mask,
        groups=torch.arange(3),
        observations=torch.zeros(3, 4),
    )


# Returns to go


def test_returns_by_hand():
    returns = returns_to_go(by_hand())
    assert returns.dtype == torch.float64
    assert returns.tolist() == [[3.0, 4.0, 4.0], [5.5, 5.0, 0.0], [0.0, 6.0, 10.0]]


def test_a_final_value_counts_exactly_where_the_row_was_cut():
    final = torch.tensor([100.0, 8.0, 100.0], dtype=torch.float64)
    returns = returns_to_go(by_hand(), final)
    # Row 1: 5 + 0.5 * 8 = 9, and 3 + 0.5 * 9 = 7.5.
    assert returns.tolist() == [[3.0, 4.0, 4.0], [7.5, 9.0, 0.0], [0.0, 6.0, 10.0]]


def test_a_prompt_does_not_take_part_in_the_return():
    """Between two runs of steps, too, nothing is earned and nothing decays."""
    trajectories = by_hand()
    gap = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]]).bool()
    talked = replace(trajectories, mask=gap, rewards=trajectories.rewards * gap)
    assert returns_to_go(talked)[0].tolist() == [3.0, 0.0, 4.0]  # 1 + 0.5 * 4


def naive_returns(trajectories, final_values):
    """G_t = sum_k (prod_{t <= j < k} gamma_j) r_k, and the product times V(s_L)."""
    returns = torch.zeros_like(trajectories.rewards)
    for n, length in enumerate(trajectories.lengths.tolist()):
        for t in trajectories.mask[n].nonzero().ravel().tolist():
            weight = 1.0
            for k in range(t, length):
                returns[n, t] += weight * float(trajectories.rewards[n, k])
                weight *= float(trajectories.discounts[n, k])
            returns[n, t] += weight * float(final_values[n])
    return returns


LENGTHS, PROMPTS, CUT = [6, 1, 9, 3, 0, 7], [0, 2, 0, 4, 1, 1], [1, 2, 5]


@pytest.mark.parametrize("seed", range(5))
def test_returns_agree_with_a_double_loop(seed):
    batch = random_batch(LENGTHS, prompts=PROMPTS, cut=CUT, seed=seed, steps=11)
    final = torch.randn(6, generator=seeded(seed + 100)).double()
    found = returns_to_go(batch, final)
    torch.testing.assert_close(found, naive_returns(batch, final), rtol=0, atol=1e-10)
    found = returns_to_go(batch)
    expected = naive_returns(batch, torch.zeros(6))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_ended_rows_ignore_their_final_value():
    batch = random_batch(LENGTHS, prompts=PROMPTS, cut=CUT)
    one, other = torch.zeros(6).double(), torch.full((6,), 1e6).double()
    differs = (returns_to_go(batch, one) != returns_to_go(batch, other)).any(dim=1)
    assert differs.nonzero().ravel().tolist() == CUT


def test_discount_zero_leaves_the_rewards():
    batch = random_batch([3, 2], gamma=0.0)
    assert torch.equal(returns_to_go(batch, torch.ones(2)), batch.rewards)


@pytest.mark.parametrize("function", [returns_to_go, discount_weights])
def test_nothing_beyond_the_mask_is_read(function):
    batch = random_batch(LENGTHS, prompts=PROMPTS, cut=CUT)
    found = function(with_garbage(batch))
    torch.testing.assert_close(found, function(batch), rtol=0, atol=0)
    assert (found[~batch.mask] == 0).all()


def test_garbage_does_not_reach_a_final_value():
    batch = random_batch(LENGTHS, prompts=PROMPTS, cut=CUT)
    final = torch.arange(6).double()
    found = returns_to_go(with_garbage(batch), final)
    torch.testing.assert_close(found, returns_to_go(batch, final), rtol=0, atol=0)


def test_gradients_reach_the_final_values():
    batch = random_batch([2, 3], cut=[0], gamma=0.5)
    final = torch.ones(2, dtype=torch.float64, requires_grad=True)
    returns_to_go(batch, final)[:, 0].sum().backward()
    assert final.grad.tolist() == [0.25, 0.0]


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(2,), (3, 1), (3, 3), (1,)])
def test_one_final_value_per_row_is_needed(shape):
    with pytest.raises(ValueError, match=r"^final_values has shape"):
        returns_to_go(by_hand(), torch.zeros(shape))


# Discount weights


def test_weights_by_hand():
    expected = [[1.0, 0.5, 0.25], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]
    assert discount_weights(by_hand()).tolist() == expected


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_weights_are_powers_of_gamma_from_the_first_step(gamma):
    batch = random_batch(LENGTHS, prompts=PROMPTS, cut=CUT, gamma=gamma)
    since = batch.mask.cumsum(dim=1) - 1
    expected = torch.where(batch.mask, gamma ** since.clamp(min=0).double(), 0)
    torch.testing.assert_close(discount_weights(batch), expected, rtol=0, atol=1e-12)


def test_weighted_rewards_add_up_to_the_first_return():
    batch = random_batch([6, 2, 9], cut=[2])
    total = (discount_weights(batch) * batch.rewards).sum(dim=1)
    torch.testing.assert_close(total, returns_to_go(batch)[:, 0], rtol=0, atol=1e-12)


# TD errors and generalised advantages

HALF = {"lambda_": 0.5}


def values_by_hand():
    """For `by_hand`: V(s_0) ... V(s_L), and 100 wherever nothing may be read."""
    values = [[1.0, 2, 3, 100], [1, 2, 4, 100], [100, 5, 7, 100]]
    return torch.tensor(values, dtype=torch.float64)


def test_td_errors_by_hand():
    # Row 0 ends:         1 + 2/2 - 1, 2 + 3/2 - 2, 4 + 0 - 3.
    # Row 1 is cut:       3 + 2/2 - 1, 5 + 4/2 - 2.
    # Row 2, a prompt:    0, 1 + 7/2 - 5, 10 + 0 - 7.
    errors = td_errors(by_hand(), values_by_hand())
    assert errors.dtype == torch.float64
    assert errors.tolist() == [[1.0, 1.5, 1.0], [3.0, 5.0, 0.0], [0.0, -0.5, 3.0]]


def test_generalised_advantages_by_hand():
    # A_t = delta_t + 1/2 * 1/2 * A_{t+1}.
    found = gae(by_hand(), values_by_hand(), **HALF)
    expected = [[1.4375, 1.75, 1.0], [4.25, 5.0, 0.0], [0.0, 0.25, 3.0]]
    assert found.dtype == torch.float64
    assert found.tolist() == expected


def random_values(batch, seed=0):
    rows, steps = batch.mask.shape
    return 3 * torch.randn(rows, steps + 1, generator=seeded(seed + 50)).double()


def batch_and_values(seed=0, *, steps=12):
    batch = random_batch(LENGTHS, prompts=PROMPTS, cut=CUT, seed=seed, steps=steps)
    return batch, random_values(batch, seed)


def last_values(batch, values):
    return values.gather(1, batch.lengths[:, None])[:, 0]


@pytest.mark.parametrize("seed", range(5))
def test_lambda_zero_is_the_td_error(seed):
    batch, values = batch_and_values(seed)
    found = gae(batch, values, lambda_=0)
    expected = batch.rewards + batch.discounts * values[:, 1:] - values[:, :-1]
    expected = torch.where(batch.mask, expected, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(found, td_errors(batch, values), rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_lambda_one_is_the_bootstrapped_return_less_the_value(seed):
    batch, values = batch_and_values(seed)
    returns = returns_to_go(batch, last_values(batch, values))
    expected = torch.where(batch.mask, returns - values[:, :-1], 0)
    found = gae(batch, values, lambda_=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def n_step(batch, values, n, t, count):
    """r_t + ... + gamma^{count-1} r_{t+count-1} + gamma^count V(s_{t+count}) - V(s_t).

    The powers of gamma are products of the discounts.
    """
    total, weight = -float(values[n, t]), 1.0
    for k in range(t, t + count):
        total += weight * float(batch.rewards[n, k])
        weight *= float(batch.discounts[n, k])
    return total + weight * float(values[n, t + count])


def mixed_by_definition(batch, values, lambda_):
    """(1 - lambda) sum_k lambda^{k-1} A^(k), the rest of the weight on the last."""
    mixed = torch.zeros_like(batch.rewards)
    for n, length in enumerate(batch.lengths.tolist()):
        for t in batch.mask[n].nonzero().ravel().tolist():
            for count in range(1, length - t + 1):
                weight = lambda_ ** (count - 1)
                if count < length - t:
                    weight *= 1 - lambda_
                mixed[n, t] += weight * n_step(batch, values, n, t, count)
    return mixed


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
def test_the_advantage_is_a_mean_of_advantages_over_n_steps(lambda_):
    batch, values = batch_and_values(seed=1)
    expected = mixed_by_definition(batch, values, lambda_)
    found = gae(batch, values, lambda_=lambda_)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_the_sum_of_the_paper_is_what_the_recursion_gives():
    # The closed form: A_t = sum_l (gamma lambda)^l delta_{t+l}.
    batch = random_batch([7], cut=[0], gamma=0.8)
    values = random_values(batch)
    errors = td_errors(batch, values)[0]
    powers = (0.8 * 0.6) ** torch.arange(7).double()
    expected = [float((powers[: 7 - t] * errors[t:]).sum()) for t in range(7)]
    found = gae(batch, values, lambda_=0.6)[0]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


class Corridor(gymnasium.Env):
    """Every step goes one place on and earns 1; the place `goal` ends the episode."""

    observation_space, action_space = Discrete(9), Discrete(1)

    def __init__(self, goal):
        self.goal = goal

    def reset(self, *, seed=None, options=None):
        self.place = 0
        return 0, {}

    def step(self, action):
        self.place += 1
        return self.place, 1.0, self.place == self.goal, False, {}


def ending(goal, limit):
    return TimeLimit(Corridor(goal), limit)


def test_ended_cut_and_both_at_once():
    # Rows of 2 steps: ended at the goal; cut by the clock; both, which counts as ended.
    ends = [(2, 5), (9, 2), (2, 2)]
    env = SyncVectorEnv([partial(ending, goal, limit) for goal, limit in ends])
    policy = TabularPolicy(9, 1).double()
    batch = rollout(env, policy, episodes=3, discount=0.5, generator=seeded(0))
    assert batch.lengths.tolist() == [2, 2, 2]
    values = torch.tensor([[2.0, 4, 8]] * 3, dtype=torch.float64)
    # delta_0 = 1 + 4/2 - 2 = 1; delta_1 = 1 - 4 = -3, and 8/2 more if it was cut.
    ended, cut = [1.0, -3.0], [1.0, 1.0]
    assert td_errors(batch, values).tolist() == [ended, cut, ended]
    ended, cut = [0.25, -3.0], [1.25, 1.0]
    assert gae(batch, values, **HALF).tolist() == [ended, cut, ended]


ESTIMATES = pytest.mark.parametrize(
    "estimate",
    [td_errors, lambda batch, values: gae(batch, values, lambda_=0.7)],
    ids=["td_errors", "gae"],
)


@ESTIMATES
@pytest.mark.parametrize("garbage", [100.0, math.nan, math.inf])
def test_no_value_beyond_the_row_is_read(estimate, garbage):
    """Nor one before its first step, nor the value of s_L if the row ended."""
    batch, values = batch_and_values()
    expected = estimate(batch, values)
    read = torch.zeros_like(values, dtype=torch.bool)
    read[:, :-1] = batch.mask
    for row in CUT:
        read[row, batch.lengths[row]] = True
    assert int((~read).sum()) > 40
    spoilt = torch.where(read, values, garbage)
    found = estimate(with_garbage(batch), spoilt)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (found[~batch.mask] == 0).all()


@ESTIMATES
def test_the_value_at_the_end_counts_exactly_where_the_row_was_cut(estimate):
    batch, values = batch_and_values()
    expected = estimate(batch, values)
    last = batch.lengths[:, None]
    other = values.scatter(1, last, values.gather(1, last) + 100)
    differs = (estimate(batch, other) != expected).any(dim=1)
    assert differs.nonzero().ravel().tolist() == CUT


@ESTIMATES
def test_rows_do_not_depend_on_each_other(estimate):
    batch, values = batch_and_values()
    together = estimate(batch, values)
    order = torch.tensor([3, 5, 0, 1])
    found = estimate(batch.select(order), values[order])
    torch.testing.assert_close(found, together[order], rtol=0, atol=0)
    rewards = batch.rewards.clone()
    rewards[2] += batch.mask[2]
    other = estimate(replace(batch, rewards=rewards), values + 7 * one_row(2, values))
    differs = (other != together).any(dim=1)
    assert differs.nonzero().ravel().tolist() == [2]


def one_row(row, values):
    chosen = torch.zeros_like(values)
    chosen[row] = 1
    return chosen


@pytest.mark.parametrize("lambda_", [0, 0.5, 1])
def test_a_turn_of_somebody_else_belongs_to_the_transition(lambda_):
    """Between two runs of steps the value is that of the next state with a choice."""
    gap = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]]).bool()
    talked = replace(by_hand(), mask=gap, rewards=by_hand().rewards * gap)
    values = values_by_hand()
    values[0, 1] = 1000  # of a state in which nothing was chosen
    found = gae(talked, values, lambda_=lambda_)[0].tolist()
    # delta_0 = 1 + 3/2 - 1, delta_2 = 4 - 3.
    assert found == [1.5 + 0.5 * lambda_ * 1.0, 0.0, 1.0]


def test_the_exact_value_leaves_no_advantage_on_average():
    """In a maze, with the exact values, the mean TD error of a move is its advantage.

    20,000 steps of 2,000 cut episodes. Each of at most 48 means within 5 standard
    errors; a move seen fewer than 30 times is left out.
    """
    maze, gamma = MazeEnv(size=2, slip=0.3), 0.9
    policy = TabularPolicy(16, 3).double()
    torch.nn.init.normal_(policy.logits, generator=seeded(1))
    chances = policy.logits.detach().softmax(-1)
    values = dp.policy_evaluation(maze, chances, discount=gamma)
    exact = dp.advantages(maze, chances, discount=gamma)
    env = MazeVectorEnv(2_000, size=2, slip=0.3, max_episode_steps=10)
    batch = rollout(env, policy, episodes=2_000, discount=gamma, generator=seeded(0))
    errors = td_errors(batch, values[batch.observations])[batch.mask]
    moves = (3 * batch.observations[:, :-1] + batch.actions)[batch.mask]
    checked = 0
    for move in moves.unique().tolist():
        seen = errors[moves == move]
        if len(seen) < 30:
            continue
        error = float(seen.std() / math.sqrt(len(seen)))
        assert abs(float(seen.mean() - exact.flatten()[move])) <= 5 * error + 1e-12
        checked += 1
    assert checked > 20


def test_gradients_reach_the_values_that_count():
    batch = random_batch([2, 1], cut=[0], gamma=0.5)
    values = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    td_errors(batch, values).sum().backward()
    # Row 0: 0.5 V_1 - V_0 + 0.5 V_2 - V_1. Row 1 has one step: -V_0.
    assert values.grad.tolist() == [[-1.0, -0.5, 0.5], [-1.0, 0.0, 0.0]]


def test_values_take_the_dtype_of_the_rewards():
    assert gae(by_hand(), values_by_hand().float(), **HALF).dtype == torch.float64


@ESTIMATES
@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(3,), (3, 3), (4, 3), (3, 1), (3, 4, 1), (1, 4)])
def test_one_value_per_state_is_needed(estimate, shape):
    with pytest.raises(ValueError, match=r"^values has shape .*\[3, 4\] is needed"):
        estimate(by_hand(), torch.zeros(shape))


@pytest.mark.parametrize("lambda_", [-0.1, 1.1, math.nan])
def test_lambda_lies_between_zero_and_one(lambda_):
    with pytest.raises(ValueError, match="lambda_ must lie between 0 and 1"):
        gae(by_hand(), values_by_hand(), lambda_=lambda_)


# The example of the article: values belong to states


def sum_with_score():
    """ "What is 2+2?" answered by "2+2 is 4", which earns 0.8 at its end token."""
    tokenizer = little.build()
    prompt, answer = (
        little.encode(tokenizer, [text], begin=begin)[0]
        for text, begin in (("What is 2+2?", True), ("2+2 is 4", False))
    )
    assert tokenizer.convert_ids_to_tokens(answer) == ["2", "+", "2", " is ", "4"]
    ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
    steps = torch.arange(ids.shape[1] - 1)[None]
    mask, last = steps >= len(prompt) - 1, steps == ids.shape[1] - 2
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    batch = Trajectories(
        actions=ids[:, 1:],
        logprobs=zeros,
        rewards=zeros,
        discounts=torch.where(mask, 0.9 + zeros, 1).masked_fill(last, 0),
        mask=mask,
        groups=torch.zeros(1, dtype=torch.long),
        observations=ids,
    )
    scored = with_scores(batch, torch.tensor([0.8], dtype=torch.float64))
    prefixes = [
        tokenizer.decode(ids[0, len(prompt) : t + 1])
        for t in mask[0].nonzero().ravel().tolist()
    ]
    return scored, prefixes


# The end token is the sixth and last action, so that the finished text is a state with
# one action to go; and " is " is one token, so that "2+2 is 4" has five.
WORTH = {
    "2+2 is 4": 0.8,
    "2+2 is ": 0.72,
    "2+2": 0.648,
    "2+": 0.5832,
    "2": 0.52488,
    "": 0.472392,
}


def test_what_the_prefixes_of_a_sum_are_worth():
    batch, prefixes = sum_with_score()
    returns = returns_to_go(batch)[batch.mask].tolist()
    found = dict(zip(prefixes, returns, strict=True))
    assert found == pytest.approx(WORTH, abs=1e-12)
    without_critic = torch.zeros(1, batch.mask.shape[1] + 1).double()
    advantages = gae(batch, without_critic, lambda_=1)[batch.mask]
    assert advantages.tolist() == pytest.approx(returns, abs=1e-12)


@pytest.mark.parametrize("lambda_", [0, 0.5, 1])
def test_where_the_values_are_right_no_token_is_a_surprise(lambda_):
    batch, prefixes = sum_with_score()
    worth = torch.tensor([WORTH[prefix] for prefix in prefixes], dtype=torch.float64)
    values = torch.full((1, batch.mask.shape[1] + 1), 100.0, dtype=torch.float64)
    values[0, -1 - len(prefixes) : -1] = worth
    found = gae(batch, values, lambda_=lambda_)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


# Normalised advantages


def test_normalised_by_hand():
    # 1, 3, 5 and 7 have mean 4 and variance (9 + 1 + 1 + 9) / 3.
    advantages = torch.tensor([[1.0, 3, 100], [100, 5, 7]]).double()
    mask = torch.tensor([[True, True, False], [False, True, True]])
    found = normalise(advantages, mask)
    unit = 1 / math.sqrt(20 / 3)
    rows = [[-3 * unit, -unit, 0], [0, unit, 3 * unit]]
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (50.0, 1e-4), (-3.0, 1e6)])
def test_normalised_advantages_have_mean_0_and_deviation_1(shift, scale):
    batch, values = batch_and_values()
    plain = gae(batch, values, lambda_=0.9)
    found = normalise(shift + scale * plain, batch.mask)
    assert float(found[batch.mask].mean()) == pytest.approx(0, abs=1e-9)
    assert float(found[batch.mask].std()) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(found, normalise(plain, batch.mask), rtol=0, atol=1e-6)


@pytest.mark.parametrize("garbage", [1e9, math.nan, math.inf])
def test_normalising_reads_nothing_beyond_the_mask(garbage):
    batch, values = batch_and_values()
    plain = gae(batch, values, lambda_=0.9)
    spoilt = torch.where(batch.mask, plain, garbage)
    found = normalise(spoilt, batch.mask)
    expected = normalise(plain, batch.mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (found[~batch.mask] == 0).all()


@pytest.mark.parametrize(
    "advantages",
    [
        torch.full((2, 4), 0.1),
        torch.zeros(2, 4),
        torch.tensor([[0.1, 0.1 + 2**-27, 0.1, 0.1]]),  # rounding
        torch.tensor([[1e8, 1e8 + 8, 1e8, 1e8]]),
        torch.tensor([[0.0, 1e-8, 0.0, -1e-8]]),  # of a value that was almost right
        torch.tensor([[3.0]]),
    ],
    ids=["equal", "zero", "rounding", "large", "small", "alone"],
)
def test_without_a_signal_normalised_advantages_are_exactly_zero(advantages):
    found = normalise(advantages, torch.ones_like(advantages, dtype=torch.bool))
    assert (found == 0).all()


def test_a_signal_above_rounding_is_scaled_up():
    advantages = torch.tensor([[0.1, 0.1 + 2e-6]], dtype=torch.float64)
    found = normalise(advantages, torch.ones(1, 2, dtype=torch.bool))[0].tolist()
    assert found == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])


def test_only_what_differs_within_the_mask_is_a_signal():
    mask = torch.tensor([[True, True, False]])
    assert (normalise(torch.tensor([[2.0, 2.0, 5.0]]), mask) == 0).all()


NEEDS_ONE_PER_STEP = pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3), (3, 4)])


@pytest.mark.usefixtures("as_a_reader_runs_it")
@NEEDS_ONE_PER_STEP
def test_one_advantage_per_step_is_normalised(shape):
    mask = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^advantages has shape .*needed: \[3, 3\]"):
        normalise(torch.ones(shape), mask)


def test_nothing_can_be_normalised_without_a_step_or_with_infinity():
    mask = torch.tensor([[True, True]])
    with pytest.raises(ValueError, match="selects no step at all"):
        normalise(torch.ones(1, 2), ~mask)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="advantages holds a value that is not"):
            normalise(torch.tensor([[1.0, value]]), mask)


# Explained variance


def test_explained_variance_by_hand():
    # The targets 1, 3, 5 have variance 8/3, the errors 0, 1, 2 variance 2/3.
    targets = torch.tensor([[1.0, 3, 5, 77]])
    values = torch.tensor([[1.0, 2, 3, -9]])
    mask = torch.tensor([[True, True, True, False]])
    assert explained_variance(values, targets, mask) == pytest.approx(0.75, abs=1e-7)


def test_what_values_explain():
    batch, _ = batch_and_values()
    targets, mask = returns_to_go(batch), batch.mask
    assert explained_variance(targets, targets, mask) == 1
    assert explained_variance(targets + 4, targets, mask) == pytest.approx(1)
    assert explained_variance(0 * targets, targets, mask) == pytest.approx(0)
    assert explained_variance(-targets, targets, mask) == pytest.approx(-3)
    half = explained_variance(0.5 * targets, targets, mask)
    assert half == pytest.approx(0.75)
    spoilt = torch.where(mask, targets, math.nan)
    assert explained_variance(0.5 * targets, spoilt, mask) == half
    assert explained_variance(spoilt, spoilt, mask) == 1


def test_where_all_targets_are_the_same_nothing_is_explained():
    mask = torch.ones(2, 3, dtype=torch.bool)
    targets = torch.full((2, 3), 0.1)
    for values in (targets, torch.arange(6.0).view(2, 3)):
        assert explained_variance(values, targets, mask) == 0


@pytest.mark.usefixtures("as_a_reader_runs_it")
@NEEDS_ONE_PER_STEP
def test_one_value_and_one_target_per_step_are_compared(shape):
    mask, right = torch.ones(3, 3, dtype=torch.bool), torch.rand(3, 3)
    with pytest.raises(ValueError, match=r"^targets has shape .*needed: \[3, 3\]"):
        explained_variance(right, torch.ones(shape), mask)
    with pytest.raises(ValueError, match=r"^values has shape .*needed: \[3, 3\]"):
        explained_variance(torch.ones(shape), right, mask)


# Advantages within a group

# Two groups, of 4 rows and of 2, interleaved.
GROUPS = torch.tensor([7, 3, 7, 7, 3, 7])
GRADES = torch.tensor([1.0, 10, 0, 0, 20, 0], dtype=torch.float64)
centred = partial(group_relative, scale=False)
EACH: dict[str, Callable] = {
    "scaled": group_relative,
    "centred": centred,
    "others": leave_one_out,
}
each_estimate = pytest.mark.parametrize("estimate", EACH.values(), ids=EACH)


def test_advantages_within_a_group_by_hand():
    """Group 7: mean 1/4, and (9 + 1 + 1 + 1)/16/3 = 1/4 is the variance. Group 3: mean
    15, and (25 + 25)/1 = 50."""
    low, high = -5 / (math.sqrt(50) + 1e-4), 5 / (math.sqrt(50) + 1e-4)
    good, bad = 0.75 / (0.5 + 1e-4), -0.25 / (0.5 + 1e-4)
    found = group_relative(GRADES, GROUPS).tolist()
    expected = [good, low, bad, bad, high, bad]
    assert found == pytest.approx(expected, abs=1e-12)
    found = centred(GRADES, GROUPS).tolist()
    assert found == pytest.approx([0.75, -5, -0.25, -0.25, 5, -0.25], abs=1e-12)
    # Less the mean of the others: 0 for the good one, 1/3 for each of the bad ones.
    found = leave_one_out(GRADES, GROUPS).tolist()
    assert found == pytest.approx([1, -10, -1 / 3, -1 / 3, 10, -1 / 3], abs=1e-12)
    plain = group_relative(GRADES, GROUPS, epsilon=0.5)[1]
    assert float(plain) == pytest.approx(-5 / (math.sqrt(50) + 0.5), abs=1e-12)


def random_groups(seed=0):
    """Forty rows in eight groups of different sizes, in no order."""
    groups = torch.randint(6, (40,), generator=seeded(seed)) * 10 - 20
    scores = 3 * torch.randn(40, generator=seeded(seed + 100), dtype=torch.float64)
    sizes = {int((groups == name).sum()) for name in groups.unique()}
    assert min(sizes) > 1
    assert len(sizes) > 1
    return scores, groups


@pytest.mark.parametrize("seed", range(3))
def test_each_group_is_as_if_it_were_alone(seed):
    scores, groups = random_groups(seed)
    by_itself = {name: torch.empty_like(scores) for name in EACH}
    for name in groups.unique():
        rows = groups == name
        alone = scores[rows]
        others = (alone.sum() - alone) / (len(alone) - 1)
        by_itself["others"][rows] = alone - others
        by_itself["centred"][rows] = alone - alone.mean()
        scaled = (alone - alone.mean()) / (alone.std(correction=1) + 1e-4)
        by_itself["scaled"][rows] = scaled
    for name, estimate in EACH.items():
        found = estimate(scores, groups)
        torch.testing.assert_close(found, by_itself[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_leave_one_out_is_a_multiple_of_the_centred_advantage(seed):
    scores, groups = random_groups(seed)
    sizes = torch.tensor([int((groups == group).sum()) for group in groups])
    expected = (sizes.double() / (sizes - 1)) * centred(scores, groups)
    found = leave_one_out(scores, groups)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@each_estimate
def test_rows_of_a_group_may_come_in_any_order(estimate):
    scores, groups = random_groups()
    order = torch.randperm(40, generator=seeded(1))
    found = estimate(scores[order], groups[order])
    torch.testing.assert_close(found, estimate(scores, groups)[order])


def without_a_guard(scores, groups, *, epsilon=1e-8):
    """As in a well-known small repository, epsilon included."""
    centred = scores - scores.mean()
    return centred / (scores.std(correction=1) + epsilon)


NOISE = {
    "0.7 and 0.1 + 0.6": torch.tensor([0.7, 0.1]) + torch.tensor([0.0, 0.6]),
    "equal, but not their mean": torch.tensor([0.1, 0.1, 0.1]),
    "large": torch.tensor([1e8, 1e8 + 8]),
    "negative": torch.tensor([-1e8, -1e8 - 8]),
    "zeros": torch.zeros(5),
    "almost zero": torch.tensor([0.0, 1e-7]),
}


def check_noise(estimate):
    for scores in NOISE.values():
        groups = torch.zeros(len(scores), dtype=torch.long)
        assert (estimate(scores, groups) == 0).all()


@each_estimate
def test_a_group_without_spread_has_exactly_no_advantage(estimate):
    first, second = NOISE["0.7 and 0.1 + 0.6"]
    assert first != second
    check_noise(estimate)
    check_noise(partial(group_relative, epsilon=0.0))


def test_rounding_that_becomes_a_signal_is_refused():
    noise = NOISE["0.7 and 0.1 + 0.6"]
    assert without_a_guard(noise, None).tolist() == pytest.approx([-0.856, 0], abs=0.01)
    small = without_a_guard(noise, None, epsilon=1e-4)
    assert float(small.abs().max()) < 1e-3
    with pytest.raises(AssertionError):
        check_noise(without_a_guard)


@each_estimate
def test_a_spread_above_rounding_is_a_signal(estimate):
    scores = torch.tensor([0.5, 0.5 + 3e-6], dtype=torch.float64)
    found = estimate(scores, torch.tensor([0, 0]))
    assert (found != 0).all()
    assert float(found.sum()) == pytest.approx(0, abs=1e-12)


def test_which_groups_have_a_spread():
    scores = torch.tensor([1.0, 0, 1, 1, 0, 0, 0.3, 0.3 + 2**-26])
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    order = torch.randperm(8, generator=seeded(0))
    expected = torch.tensor([True] * 2 + [False] * 6)
    assert torch.equal(has_spread(scores[order], groups[order]), expected[order])
    assert torch.equal(group_relative(scores, groups) != 0, expected)


@pytest.mark.parametrize("estimate", [*EACH.values(), has_spread])
def test_a_group_of_one_is_refused(estimate):
    with pytest.raises(ValueError, match="Group 3 has a single row"):
        estimate(torch.tensor([1.0, 0, 1]), torch.tensor([7, 3, 7]))


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("estimate", [*EACH.values(), has_spread])
def test_one_finite_score_per_row_is_needed(estimate):
    groups = torch.tensor([0, 0, 1, 1])
    for shape in [(2,), (4, 1), (1, 4), (4, 4), ()]:
        with pytest.raises(ValueError, match=r"^scores has shape .* and groups \(4,\)"):
            estimate(torch.ones(shape), groups)
    with pytest.raises(ValueError, match=r"scores has shape \(4, 1\) and groups"):
        estimate(torch.ones(4, 1), groups[:, None])
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="scores holds a value that is not finite"):
            estimate(torch.tensor([1.0, value, 0, 0]), groups)


@pytest.mark.parametrize("epsilon", [-1e-4, math.nan, math.inf])
def test_an_epsilon_that_makes_no_sense_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon must be a number from 0 up"):
        group_relative(GRADES, GROUPS, epsilon=epsilon)


def test_the_advantage_of_a_row_is_that_of_its_steps():
    mask = torch.tensor([[False, True, True], [True, False, False]])
    found = per_step(torch.tensor([2.0, -3.0]), mask)
    assert found.tolist() == [[0, 2, 2], [-3, 0, 0]]


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (3, 3), (2,), (1,), ()])
def test_one_advantage_per_row_becomes_one_per_step(shape):
    mask = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^advantages has shape .* needed: \[3\]"):
        per_step(torch.ones(shape), mask)
