from dataclasses import replace

import pytest
import torch
from batches import random_batch, seeded, with_garbage

from rl_notes.advantages import discount_weights, returns_to_go
from rl_notes.trajectories import Trajectories


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
