"""Which estimates of a group climb the expected score: against the exact gradient.

Every answer of a tiny language model is listed, and with it every group of answers
that could be sampled. So the mean of an estimate is exact, and a bias is no noise.
"""

from collections import Counter
from functools import partial
from itertools import combinations_with_replacement
from math import factorial, prod
from typing import Any

import pytest
import torch
from all_answers import (
    ANSWERS,
    SCORES,
    STEPS,
    exact_gradient,
    gradient,
    probability,
    rows_of,
    three_tokens,
)
from batches import seeded

from rl_notes.advantages import group_relative, leave_one_out, per_step
from rl_notes.language.generation import generate
from rl_notes.objectives import (
    cispo,
    importance_ratio,
    mean_over_sequences,
    mean_over_tokens,
    sequence_clip,
    sum_over_constant,
    surrogate,
    token_clip,
)
from rl_notes.policies import action_logprobs

ALL_SCORES = torch.tensor(list(SCORES.values()), dtype=torch.float64)
CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}
centred = partial(group_relative, scale=False)
tokens = partial(token_clip, **CLIP)


@pytest.fixture(scope="module")
def policy():
    return three_tokens()


def over_rows(x, mask):
    """Summed within a row, and averaged over rows."""
    return sum_over_constant(x, mask, constant=len(mask))


def orders(rows):
    """In how many orders these rows can be sampled."""
    counts = Counter(rows).values()
    return factorial(len(rows)) // prod(map(factorial, counts))


def unclipped(new, old, advantages, mask):
    return surrogate(importance_ratio(new, old), advantages)


def mean_gradient(
    policy, advantages_of, aggregate, *, objective=tokens, size=2, old=None
):
    """The exact mean, over all groups, of the gradient that a group would give."""
    batch = rows_of(policy, ANSWERS)
    new = action_logprobs(policy, batch)
    old = batch.logprobs if old is None else old
    chances = batch.logprobs.sum(dim=1).exp()
    one_prompt, total = torch.zeros(size, dtype=torch.long), 0
    for group in combinations_with_replacement(range(len(ANSWERS)), size):
        rows = torch.tensor(group)
        mask = batch.mask[rows]
        advantages = per_step(advantages_of(ALL_SCORES[rows], one_prompt), mask)
        x = objective(new[rows], old[rows], advantages, mask)
        total = total + orders(group) * chances[rows].prod() * aggregate(x, mask)
    return gradient(policy, total)


def off_the_ray(found, exact):
    """How much of the gradient no step length mends, as a share of it."""
    along = (found @ exact) / (exact @ exact)
    assert float(along) > 0
    return float((found - along * exact).norm() / found.norm())


def check_unbiased(found, exact):
    assert float(exact.norm()) > 0.1
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_has_no_bias(policy, size):
    found = mean_gradient(policy, leave_one_out, over_rows, size=size)
    check_unbiased(found, exact_gradient(policy))


@pytest.mark.parametrize("size", [2, 3])
def test_the_mean_of_the_group_shrinks_the_gradient(policy, size):
    """By (G - 1)/G: r_i is part of the mean that it is compared with."""
    found = mean_gradient(policy, centred, over_rows, size=size)
    check_unbiased(found * size / (size - 1), exact_gradient(policy))


def test_a_group_of_two_that_is_scaled_climbs_the_chance_to_win(policy):
    """Two scores become -1/sqrt(2) and 1/sqrt(2), whatever they are.

    What is climbed is not the expected score, but the chance to beat another answer
    less the chance to lose, over sqrt(2): a direction of its own.
    """
    chances = torch.stack([probability(policy, answer) for answer in ANSWERS])
    wins = (ALL_SCORES[:, None] - ALL_SCORES[None, :]).sign()
    expected = gradient(policy, chances @ wins @ chances.detach()) / 2**0.5
    scaled = partial(group_relative, epsilon=0.0)
    found = mean_gradient(policy, scaled, over_rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert off_the_ray(found, exact_gradient(policy)) > 0.1
    ours = mean_gradient(policy, group_relative, over_rows)
    assert off_the_ray(ours, exact_gradient(policy)) > 0.1


def test_the_mean_over_sequences_climbs_the_score_per_token(policy):
    """1/|o| is part of what is climbed: E[(r - mean) / L], and so short answers win."""
    chances = torch.stack([probability(policy, answer) for answer in ANSWERS])
    lengths = torch.tensor([len(answer) for answer in ANSWERS])
    mean = chances.detach() @ ALL_SCORES
    expected = gradient(policy, chances @ ((ALL_SCORES - mean) / lengths))
    found = mean_gradient(policy, leave_one_out, mean_over_sequences)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert off_the_ray(found, exact_gradient(policy)) > 0.1


def test_the_mean_over_the_steps_of_a_group_has_a_bias_too(policy):
    """The number of steps in a group depends on the answers in it."""
    found = mean_gradient(policy, leave_one_out, mean_over_tokens)
    assert off_the_ray(found, exact_gradient(policy)) > 0.01


# The family, where the policy has not moved yet

SAME_AT_THE_START = {
    "the clip of the steps": (tokens, over_rows),
    "CISPO, with a cap of at least 1": (partial(cispo, cap=1.0), over_rows),
    "the clip of whole answers, RLOO": (
        partial(sequence_clip, **CLIP, length_normalised=False),
        mean_over_sequences,
    ),
}


@pytest.mark.parametrize(
    ("objective", "aggregate"), SAME_AT_THE_START.values(), ids=SAME_AT_THE_START
)
def test_the_family_begins_with_the_same_step(policy, objective, aggregate):
    found = mean_gradient(policy, leave_one_out, aggregate, objective=objective)
    check_unbiased(found, exact_gradient(policy))


def test_the_sequence_ratio_begins_as_the_mean_over_sequences(policy):
    """GSPO has the 1/|o| of GRPO in its ratio."""
    gspo = partial(sequence_clip, **CLIP)
    found = mean_gradient(policy, centred, mean_over_sequences, objective=gspo)
    expected = mean_gradient(policy, centred, mean_over_sequences)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_the_default_cap_of_a_well_known_library_is_a_fifth_of_the_step(policy):
    """epsilon_high = 0.2 is the cap itself there, not 1.2."""
    capped = partial(cispo, cap=0.2)
    found = mean_gradient(policy, leave_one_out, over_rows, objective=capped)
    check_unbiased(5 * found, exact_gradient(policy))


# Published bugs: each is refused


def test_the_ratio_to_the_reference_is_refused(policy):
    """In place of the policy that sampled: every step is weighed wrongly."""
    reference = rows_of(three_tokens(seed=1, temperature=1.0), ANSWERS).logprobs
    ours = rows_of(policy, ANSWERS).logprobs
    options = {"objective": unclipped}
    for old in (None, ours):
        found = mean_gradient(policy, leave_one_out, over_rows, **options, old=old)
        check_unbiased(found, exact_gradient(policy))
    found = mean_gradient(policy, leave_one_out, over_rows, **options, old=reference)
    with pytest.raises(AssertionError):
        check_unbiased(found, exact_gradient(policy))
    assert off_the_ray(found, exact_gradient(policy)) > 0.1


def interleaved_wrongly(batch, prompts, size):
    """The prompts one after the other, `size` times: repeat for repeat_interleave."""
    return torch.arange(prompts).repeat(size)


def check_groups(groups_of):
    """The score is that of the question: no answer is better than another."""
    prompts, size = [[1, 0], [1, 1, 0], [1, 1, 1, 0]], 4
    batch = generate(
        three_tokens(),
        prompts,
        group_size=size,
        max_new_tokens=STEPS,
        generator=seeded(0),
    )
    scores = batch.mask.long().argmax(dim=1).double()  # the length of the prompt
    assert len(scores.unique()) == 3
    groups = groups_of(batch, len(prompts), size)
    for advantages_of in (group_relative, centred, leave_one_out):
        assert (advantages_of(scores, groups) == 0).all()


def test_the_rows_of_a_batch_know_their_group():
    check_groups(lambda batch, prompts, size: batch.groups)


def test_prompts_and_groups_interleaved_wrongly_are_refused():
    with pytest.raises(AssertionError):
        check_groups(interleaved_wrongly)
