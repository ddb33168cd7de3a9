from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from batches import random_batch

from rl_notes.trajectories import Trajectories, with_kl_penalty, with_scores

NAN, INF = float("nan"), float("inf")


def batch(**changes):
    """Two rows of 3 and 1 steps; the changes replace whole fields."""
    given = {
        "actions": torch.tensor([[1, 0, 2], [1, 0, 0]]),
        "logprobs": torch.tensor([[-0.5, -1.0, -0.1], [-2.0, 0.0, 0.0]]),
        "rewards": torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]),
        "discounts": torch.tensor([[0.9, 0.9, 0.0], [0.9, 0.0, 0.0]]),
        "mask": torch.tensor([[True, True, True], [True, False, False]]),
        "groups": torch.tensor([4, 7]),
        "observations": torch.tensor([[0, 1, 2, 3], [8, 9, 0, 0]]),
    }
    return Trajectories(**(given | changes))


def table(*rows):
    return torch.tensor(rows)


# What is accepted and what is not


def test_what_is_given_is_kept_and_cannot_be_replaced():
    trajectories = batch()
    assert trajectories.rewards.tolist() == [[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]
    with pytest.raises(FrozenInstanceError):
        trajectories.rewards = torch.zeros(2, 3)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3), (2, 4, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_observations_may_be_numbers_vectors_or_pictures(shape, dtype):
    observations = torch.ones(shape, dtype=dtype)
    assert batch(observations=observations).observations.dtype == dtype


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("name", ["actions", "logprobs", "rewards", "discounts"])
@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (2,), (2, 3, 1), (1, 3), (2, 1)])
def test_one_number_per_step_is_needed(name, shape):
    dtype = torch.int64 if name == "actions" else torch.float32
    with pytest.raises(ValueError, match=rf"^{name} has shape .* \[2, 3\] is needed"):
        batch(**{name: torch.zeros(shape, dtype=dtype)})


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_one_group_per_row_is_needed(shape):
    with pytest.raises(ValueError, match=r"^groups has shape .* \[2\] is needed"):
        batch(groups=torch.zeros(shape, dtype=torch.int64))


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(2, 3), (3, 4), (2,), (2, 5, 1)])
def test_one_observation_more_than_steps_is_needed(shape):
    with pytest.raises(ValueError, match=r"^observations has .* \[2, 4\] is needed"):
        batch(observations=torch.zeros(shape))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["logprobs", "rewards", "discounts"])
@pytest.mark.parametrize("place", [(0, 1), (1, 2)], ids=["step", "padding"])
def test_numbers_must_be_finite(name, value, place):
    numbers = getattr(batch(), name).clone()
    numbers[place] = value
    with pytest.raises(ValueError, match=f"^{name} holds a value that is not finite"):
        batch(**{name: numbers})


@pytest.mark.parametrize("name", ["logprobs", "rewards"])
def test_nothing_is_earned_where_no_action_was_chosen(name):
    numbers = getattr(batch(), name).clone()
    numbers[1, 1] = -0.25
    with pytest.raises(ValueError, match=f"^{name} must be 0 where mask is False"):
        batch(**{name: numbers})


def test_a_probability_above_one_is_refused():
    with pytest.raises(ValueError, match="logprobs must not be positive"):
        batch(logprobs=table([-0.5, 1e-3, -0.1], [-2.0, 0.0, 0.0]))
    certain = batch(logprobs=torch.zeros(2, 3))
    assert (certain.logprobs == 0).all()


@pytest.mark.parametrize("value", [-1e-3, 1.001])
def test_discounts_lie_between_zero_and_one(value):
    with pytest.raises(ValueError, match="discounts must lie between 0 and 1"):
        batch(discounts=table([0.9, value, 0.0], [0.9, 0.0, 0.0]))
    assert batch(discounts=torch.ones(2, 3)).discounts.min() == 1


# Lengths


def test_lengths_count_up_to_the_last_step():
    mask = table(
        [True, True, True], [True, False, False], [False] * 3, [False, True, True]
    )
    zeros = torch.zeros(4, 3)
    trajectories = Trajectories(
        actions=zeros.long(),
        logprobs=zeros,
        rewards=zeros,
        discounts=zeros,
        mask=mask,
        groups=torch.arange(4),
        observations=torch.zeros(4, 4),
    )
    # A prompt in front is part of the row: s_L comes after the last step.
    assert trajectories.lengths.tolist() == [3, 1, 0, 3]


def test_the_last_state_is_the_one_at_the_length():
    trajectories = batch()
    last = trajectories.observations.gather(1, trajectories.lengths[:, None])
    assert last.tolist() == [[3], [9]]


# Rows


def test_select_takes_rows_in_order_and_repeats_them():
    trajectories = random_batch([3, 1, 4], cut=[1])
    chosen = trajectories.select(torch.tensor([2, 0, 2, 1]))
    for field in fields(Trajectories):
        before = getattr(trajectories, field.name)
        after = getattr(chosen, field.name)
        expected = torch.stack([before[2], before[0], before[2], before[1]])
        torch.testing.assert_close(after, expected, rtol=0, atol=0)


def test_select_refuses_a_row_that_is_not_there():
    with pytest.raises(IndexError):
        batch().select(torch.tensor([2]))


def test_trimmed_leaves_out_the_columns_past_the_longest_row():
    """And nothing else: of a prompt and of s_L nothing is lost."""
    wide = random_batch([2, 3, 0], prompts=[2, 0, 1], steps=9)
    short = wide.trimmed()
    assert short.mask.shape == (3, 4)
    for field in fields(Trajectories):
        kept = getattr(wide, field.name)
        if field.name != "groups":
            kept = kept[:, : 5 if field.name == "observations" else 4]
        assert torch.equal(getattr(short, field.name), kept)
    assert int(wide.mask.sum()) == int(short.mask.sum()) == 5


# Scores


def test_a_score_goes_to_the_last_step():
    trajectories = random_batch([2, 3, 1], prompts=[2, 0, 1], steps=5)
    scored = with_scores(trajectories, torch.tensor([5.0, -1.0, 0.5]))
    assert scored.rewards.dtype == torch.float64
    assert scored.rewards.tolist() == [
        [0.0, 0.0, 0.0, 5.0, 0.0],
        [0.0, 0.0, -1.0, 0.0, 0.0],
        [0.0, 0.5, 0.0, 0.0, 0.0],
    ]
    for field in fields(Trajectories):
        if field.name != "rewards":
            assert getattr(scored, field.name) is getattr(trajectories, field.name)


def test_scores_replace_the_rewards_and_leave_the_old_batch_alone():
    trajectories = batch()
    with_scores(trajectories, torch.tensor([0.0, 0.0]))
    assert trajectories.rewards.sum() == 6
    assert with_scores(trajectories, torch.tensor([0.0, 2.0])).rewards.sum() == 2


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 3)])
def test_one_score_per_row_is_needed(shape):
    with pytest.raises(ValueError, match=r"^scores has shape .* \[2\] is needed"):
        with_scores(batch(), torch.zeros(shape))


def test_a_row_without_a_step_has_no_place_for_a_score():
    empty = replace(
        batch(),
        mask=torch.tensor([[True, True, True], [False] * 3]),
        logprobs=torch.zeros(2, 3),
        rewards=torch.zeros(2, 3),
    )
    with pytest.raises(ValueError, match="without a single step"):
        with_scores(empty, torch.tensor([1.0, 1.0]))


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="rewards holds a value that is not finite"):
        with_scores(batch(), torch.tensor([1.0, NAN]))


# A price on leaving a reference policy


def penalised(beta=0.5):
    """Two rows after prompts; elsewhere the reference holds nonsense."""
    trajectories = random_batch([2, 3], prompts=[1, 0], steps=4)
    reference = torch.tensor([[7.0, -1.0, -2.0, 9.0], [-0.5, -0.25, -3.0, -8.0]])
    reference = reference.double()
    return trajectories, reference, with_kl_penalty(trajectories, reference, beta=beta)


def test_every_step_pays_for_its_log_ratio():
    trajectories, reference, found = penalised()
    for n in range(2):
        for t in range(4):
            expected = float(trajectories.rewards[n, t])
            if trajectories.mask[n, t]:
                ratio = float(trajectories.logprobs[n, t] - reference[n, t])
                expected -= 0.5 * ratio
            assert float(found.rewards[n, t]) == pytest.approx(expected, abs=1e-12)
    assert float((found.rewards - trajectories.rewards).abs().max()) > 0.1
    for field in fields(Trajectories):
        if field.name != "rewards":
            assert getattr(found, field.name) is getattr(trajectories, field.name)


def test_where_the_policy_is_the_reference_nothing_is_paid():
    trajectories = random_batch([2, 3])
    found = with_kl_penalty(trajectories, trajectories.logprobs, beta=10)
    assert torch.equal(found.rewards, trajectories.rewards)
    free = with_kl_penalty(trajectories, 2 * trajectories.logprobs, beta=0)
    assert torch.equal(free.rewards, trajectories.rewards)


def test_the_penalty_is_a_number_and_no_gradient_flows_into_it():
    trajectories, reference, _ = penalised()
    reference.requires_grad_()
    found = with_kl_penalty(trajectories, reference, beta=1.0)
    assert not found.rewards.requires_grad


@pytest.mark.parametrize("beta", [-0.1, float("inf"), NAN])
def test_a_price_that_makes_no_sense_is_refused(beta):
    with pytest.raises(ValueError, match="beta must be a number from 0 up"):
        penalised(beta=beta)


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(2,), (2, 1), (4, 2)])
def test_one_reference_per_step_is_needed(shape):
    trajectories, _, _ = penalised()
    with pytest.raises(ValueError, match=r"^reference_logprobs has shape .* \[2, 4\]"):
        with_kl_penalty(trajectories, torch.zeros(shape), beta=0.1)


def test_a_reference_that_excludes_what_was_done_is_refused():
    trajectories, reference, _ = penalised()
    reference[1, 2] = -torch.inf
    with pytest.raises(ValueError, match="rewards holds a value that is not finite"):
        with_kl_penalty(trajectories, reference, beta=0.1)
