import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from batches import seeded

from rl_notes.objectives import (
    cispo,
    clipped_surrogate,
    dpo_loss,
    importance_ratio,
    mean_over_sequences,
    mean_over_tokens,
    overlong_penalty,
    preference_loss,
    sequence_clip,
    sequence_ratio,
    sum_over_constant,
    surrogate,
    token_clip,
    value_loss,
)

NAN, INF = float("nan"), float("inf")
AGGREGATIONS: dict[str, Callable] = {
    "tokens": mean_over_tokens,
    "sequences": mean_over_sequences,
    "constant": partial(sum_over_constant, constant=8.0),
}
every_aggregation = pytest.mark.parametrize(
    "aggregate", AGGREGATIONS.values(), ids=AGGREGATIONS
)
# Three rows: of 3 steps, of 1 step, and of 2 steps after a prompt.
MASK = torch.tensor(
    [[True, True, True, False], [True, False, False, False], [False, True, True, False]]
)
X = torch.tensor([[1.0, 2.0, 6.0, 0.0], [4.0, 0.0, 0.0, 0.0], [0.0, 3.0, -1.0, 0.0]])


def random_x(seed):
    return torch.randn(3, 4, generator=seeded(seed), dtype=torch.float64)


def test_values_by_hand():
    # Sums 9, 4, 2 over 3, 1, 2 steps.
    assert float(mean_over_tokens(X, MASK)) == 15 / 6
    assert float(mean_over_sequences(X, MASK)) == pytest.approx((3 + 4 + 1) / 3)
    assert float(sum_over_constant(X, MASK, constant=8.0)) == 15 / 8


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("tokens", [[1 / 6] * 3, [1 / 6], [1 / 6] * 2]),
        ("sequences", [[1 / 9] * 3, [1 / 3], [1 / 6] * 2]),
        ("constant", [[1 / 8] * 3, [1 / 8], [1 / 8] * 2]),
    ],
)
def test_what_each_step_weighs(name, weights):
    x = random_x(0).requires_grad_()
    AGGREGATIONS[name](x, MASK).backward()
    expected = [*weights[0], 0, weights[1][0], 0, 0, 0, 0, *weights[2], 0]
    assert x.grad.flatten().tolist() == pytest.approx(expected, abs=1e-12)


@every_aggregation
def test_aggregations_are_linear(aggregate):
    x, y = random_x(0), random_x(1)
    together = aggregate(2.5 * x - 4 * y, MASK)
    apart = 2.5 * aggregate(x, MASK) - 4 * aggregate(y, MASK)
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


@every_aggregation
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
def test_what_stands_beyond_the_mask_never_enters(aggregate, garbage):
    x = torch.where(MASK, X, garbage).requires_grad_()
    clean = X.clone().requires_grad_()
    value, expected = aggregate(x, MASK), aggregate(clean, MASK)
    assert value.item() == expected.item()
    value.backward()
    expected.backward()
    torch.testing.assert_close(x.grad, clean.grad, rtol=0, atol=0)


@every_aggregation
def test_padding_and_the_order_of_rows_change_nothing(aggregate):
    wide, wide_mask = torch.zeros(3, 9), torch.zeros(3, 9, dtype=torch.bool)
    wide[:, :4], wide_mask[:, :4] = X, MASK
    order = torch.tensor([2, 0, 1])
    expected = float(aggregate(X, MASK))
    assert float(aggregate(wide, wide_mask)) == pytest.approx(expected)
    assert float(aggregate(X[order], MASK[order])) == pytest.approx(expected)


def test_parts_of_a_batch_add_up():
    x = random_x(2)
    parts = [slice(0, 1), slice(1, 3)]
    whole = sum_over_constant(x, MASK, constant=3.0)
    summed = sum(sum_over_constant(x[p], MASK[p], constant=3.0) for p in parts)
    torch.testing.assert_close(whole, summed, rtol=1e-12, atol=1e-12)
    per_row = mean_over_sequences(x[:1], MASK[:1]) / 3
    per_row = per_row + mean_over_sequences(x[1:], MASK[1:]) * 2 / 3
    torch.testing.assert_close(
        mean_over_sequences(x, MASK), per_row, rtol=1e-12, atol=1e-12
    )


def test_an_empty_row_counts_as_zero():
    x = torch.tensor([[2.0, 4.0], [5.0, 7.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [False, False]])
    value = mean_over_sequences(x, mask)
    assert value.item() == 1.5  # (3 + 0) / 2
    value.backward()
    assert x.grad.tolist() == [[0.25, 0.25], [0.0, 0.0]]
    assert mean_over_tokens(x, mask).item() == 3


@every_aggregation
def test_a_mask_without_a_step_is_refused(aggregate):
    with pytest.raises(ValueError, match="selects no step at all"):
        aggregate(X, torch.zeros_like(MASK))


@pytest.mark.usefixtures("as_a_reader_runs_it")
@every_aggregation
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3), (3, 2), ()])
def test_shapes_that_would_broadcast_are_refused(aggregate, shape):
    # The mask is square: one number per row would broadcast along the wrong axis.
    square = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="One number per step is needed"):
        aggregate(torch.ones(shape), square)


@pytest.mark.parametrize("constant", [0.0, -2.0])
def test_the_constant_must_be_positive(constant):
    with pytest.raises(ValueError, match=f"must be positive, but it is {constant}"):
        sum_over_constant(X, MASK, constant=constant)


# The loss of a value function


def test_the_value_loss_by_hand():
    values = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], requires_grad=True)
    targets = torch.tensor([[4.0, 2.0], [-1.0, 0.0]])
    loss = value_loss(values, targets)
    assert loss.tolist() == [[4.5, 0.0], [2.0, 0.125]]
    loss.sum().backward()
    assert values.grad.tolist() == [[-3.0, 0.0], [-2.0, 0.5]]  # V - target


def test_the_least_value_loss_is_at_the_mean_of_the_targets():
    targets, mask = torch.tensor([[1.0, 2.0, 9.0]]), torch.ones(1, 3).bool()
    less, mean, more = (
        float(mean_over_tokens(value_loss(torch.full((1, 3), v), targets), mask))
        for v in (3.9, 4.0, 4.1)
    )
    assert mean < min(less, more)


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3), (3, 3, 1), ()])
def test_a_value_loss_that_would_broadcast_is_refused(shape):
    square, other = torch.ones(3, 3), torch.ones(shape)
    for values, targets in ((square, other), (other, square)):
        with pytest.raises(ValueError, match=r"^targets has shape"):
            value_loss(values, targets)


# The surrogate


def test_the_ratio_and_the_surrogate_by_hand():
    new = torch.tensor([[0.5, 0.2, 0.1]]).double().log()
    old = torch.tensor([[0.25, 0.4, 0.1]]).double().log()
    advantages = torch.tensor([[3.0, -1.0, 7.0]]).double()
    ratio = importance_ratio(new, old)
    assert ratio.tolist()[0] == pytest.approx([2, 0.5, 1], rel=1e-14)
    found = surrogate(ratio, advantages)
    assert found.tolist()[0] == pytest.approx([6, -0.5, 7], rel=1e-14)


def test_the_gradient_of_the_surrogate_by_hand():
    """d (rho A) / d log pi_new = rho A: at the old policy, where rho = 1, it is A."""
    old = torch.tensor([[0.25, 0.4, 0.1]]).double().log()
    advantages = torch.tensor([[3.0, -1.0, 7.0]]).double()
    for chances, expected in (
        ([0.25, 0.4, 0.1], [3, -1, 7]),
        ([0.5, 0.2, 0.1], [6, -0.5, 7]),
    ):
        new = torch.tensor([chances]).double().log().requires_grad_()
        surrogate(importance_ratio(new, old), advantages).sum().backward()
        assert new.grad.tolist()[0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize(
    "function",
    [
        importance_ratio,
        surrogate,
        partial(clipped_surrogate, clip_low=0.2, clip_high=0.2),
    ],
)
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3), (3, 2), ()])
def test_numbers_of_different_steps_are_not_paired(function, shape):
    with pytest.raises(ValueError, match=r"one number per step is needed: \[3, 3\]"):
        function(torch.zeros(3, 3), torch.zeros(shape))


# The clipped surrogate

LOW, HIGH = 0.2, 0.3
# Ratio, advantage; the objective, and its gradient with respect to log pi_new.
CORNERS = {
    "good, far above: flat": (1.5, 2.0, 2.6, 0.0),
    "good, far below: driven up": (0.5, 2.0, 1.0, 1.0),
    "bad, far above: driven down": (1.5, -2.0, -3.0, -3.0),
    "bad, far below: flat": (0.5, -2.0, -1.6, 0.0),
    "good, a little above": (1.25, 2.0, 2.5, 2.5),
    "good, a little below": (0.85, 2.0, 1.7, 1.7),
    "bad, a little above": (1.25, -2.0, -2.5, -2.5),
    "bad, a little below": (0.85, -2.0, -1.7, -1.7),
    "neither good nor bad": (1.5, 0.0, 0.0, 0.0),
}


def check_corners(function):
    old = torch.tensor([[0.4]]).double().log()
    for name, (ratio, advantage, value, slope) in CORNERS.items():
        new = (old + math.log(ratio)).requires_grad_()
        advantages = torch.tensor([[advantage]]).double()
        found = function(
            importance_ratio(new, old), advantages, clip_low=LOW, clip_high=HIGH
        )
        found.sum().backward()
        assert found.item() == pytest.approx(value, abs=1e-12), name
        assert new.grad.item() == pytest.approx(slope, abs=1e-12), name


def test_the_clip_at_every_corner_of_sign_and_side():
    check_corners(clipped_surrogate)


def test_at_the_old_policy_the_clip_has_the_gradient_of_reinforce():
    advantages = random_x(1)
    logprobs = (-random_x(0).abs()).requires_grad_()
    ratio = importance_ratio(logprobs, logprobs.detach())
    assert torch.equal(ratio, torch.ones_like(ratio))
    clipped = clipped_surrogate(ratio, advantages, clip_low=LOW, clip_high=HIGH)
    (found,) = torch.autograd.grad(mean_over_tokens(clipped, MASK), logprobs)
    reinforce = mean_over_tokens(logprobs * advantages, MASK)
    (expected,) = torch.autograd.grad(reinforce, logprobs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert float(expected.norm()) > 0.1


def by_sign(ratio, advantages, *, clip_low, clip_high):
    """The larger one for a negative advantage, as it is sometimes printed."""
    near = ratio.clamp(1 - clip_low, 1 + clip_high)
    one, other = ratio * advantages, near * advantages
    return torch.where(advantages >= 0, torch.minimum(one, other), one.maximum(other))


def clip_alone(ratio, advantages, *, clip_low, clip_high):
    return ratio.clamp(1 - clip_low, 1 + clip_high) * advantages


def smaller_ratio_first(ratio, advantages, *, clip_low, clip_high):
    near = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio, near) * advantages


def sides_exchanged(ratio, advantages, *, clip_low, clip_high):
    return clipped_surrogate(ratio, advantages, clip_low=clip_high, clip_high=clip_low)


def never_clipped(ratio, advantages, *, clip_low, clip_high):
    return surrogate(ratio, advantages)


def as_a_loss(ratio, advantages, *, clip_low, clip_high):
    return -clipped_surrogate(ratio, advantages, clip_low=clip_low, clip_high=clip_high)


@pytest.mark.parametrize(
    "broken",
    [
        *(by_sign, clip_alone, smaller_ratio_first),
        *(sides_exchanged, never_clipped, as_a_loss),
    ],
)
def test_a_broken_clip_is_refused(broken):
    with pytest.raises(AssertionError):
        check_corners(broken)


def test_a_wide_enough_clip_is_the_surrogate():
    ratio, advantages = random_x(0).exp() ** 3, random_x(1)
    assert float(ratio.max()) > 20
    assert float(ratio.min()) < 0.05
    found = clipped_surrogate(ratio, advantages, clip_low=1, clip_high=INF)
    assert torch.equal(found, surrogate(ratio, advantages))


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.0, 0.2),
        (-0.2, 0.2),
        (1.2, 0.2),
        (NAN, 0.2),
        (0.2, 0.0),
        (0.2, -1),
        (0.2, NAN),
    ],
)
def test_a_clip_is_a_distance_from_one(low, high):
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=f"positive, but they are {low} and {high}"):
        clipped_surrogate(x, x, clip_low=low, clip_high=high)


# The ratio of a whole answer


def answers():
    """Log-probabilities, old and new, and nonsense beyond the mask."""
    old = torch.where(MASK, -random_x(0).abs(), -1e3)
    new = torch.where(MASK, -random_x(1).abs(), -7.0)
    return new.requires_grad_(), old


def check_sequence_ratio(function, *, length_normalised=True):
    """Against a loop over the rows, and its gradient: s_n / L_n, or s_n."""
    new, old = answers()
    found = function(new, old, MASK, length_normalised=length_normalised)
    weights = random_x(2)
    (slope,) = torch.autograd.grad((weights * found).sum(), new)
    for row, mask in enumerate(MASK):
        steps = mask.nonzero()[:, 0]
        share = 1 / len(steps) if length_normalised else 1.0
        chances = (new[row, steps].exp() / old[row, steps].exp()).prod().item()
        ratio = chances**share
        assert found[row, steps].tolist() == pytest.approx([ratio] * len(steps))
        expected = ratio * share * float(weights[row, steps].sum())
        assert slope[row, steps].tolist() == pytest.approx([expected] * len(steps))
    assert (found[~MASK] == 1).all()
    assert (slope[~MASK] == 0).all()


@pytest.mark.parametrize("length_normalised", [True, False])
def test_the_ratio_of_an_answer_and_its_gradient(length_normalised):
    check_sequence_ratio(sequence_ratio, length_normalised=length_normalised)


def mean_of_the_ratios(new, old, mask, *, length_normalised):
    ratio = importance_ratio(new, old)
    mean = torch.where(mask, ratio, 0).sum(1) / mask.sum(1)
    return torch.where(mask, mean[:, None], 1)


def never_normalised(new, old, mask, *, length_normalised):
    return sequence_ratio(new, old, mask, length_normalised=False)


def over_all_columns(new, old, mask, *, length_normalised):
    return sequence_ratio(new, old, torch.ones_like(mask))


@pytest.mark.parametrize(
    "broken", [mean_of_the_ratios, never_normalised, over_all_columns]
)
def test_a_broken_ratio_of_answers_is_refused(broken):
    with pytest.raises(AssertionError):
        check_sequence_ratio(broken)


def test_the_ratio_of_a_row_without_a_step_is_one():
    new, old = answers()
    mask = MASK.clone()
    mask[1] = False
    found = sequence_ratio(new, old, mask)
    assert found[1].tolist() == [1, 1, 1, 1]
    assert found[0, 0].item() != 1


# What is climbed at each step


def test_the_objectives_are_their_equations():
    new, old = answers()
    advantages = random_x(2)
    clip: dict[str, Any] = {"clip_low": LOW, "clip_high": HIGH}
    found = token_clip(new, old, advantages, MASK, **clip)
    ratio = importance_ratio(new, old)
    expected = clipped_surrogate(ratio, advantages, **clip)
    assert torch.equal(found[MASK], expected[MASK])
    for length_normalised in (True, False):
        option = {"length_normalised": length_normalised}
        found = sequence_clip(new, old, advantages, MASK, **clip, **option)
        ratio = sequence_ratio(new, old, MASK, **option)
        expected = clipped_surrogate(ratio, advantages, **clip)
        assert torch.equal(found[MASK], expected[MASK])


def test_the_objective_of_gspo_is_a_mean_over_rows_each_clipped_as_a_whole():
    """With one advantage per row: the equation of the paper, in a loop."""
    new, old = answers()
    scores = torch.tensor([1.0, -2.0, 0.5]).double()
    clip: dict[str, Any] = {"clip_low": 0.05, "clip_high": 0.05}
    x = sequence_clip(new, old, scores[:, None].expand(3, 4), MASK, **clip)
    ratios = sequence_ratio(new, old, MASK).detach().where(MASK, 0).amax(dim=1)
    expected = sum(
        min(s * a, min(max(s, 0.95), 1.05) * a)
        for s, a in zip(ratios.tolist(), scores.tolist(), strict=True)
    )
    assert float(mean_over_sequences(x, MASK).detach()) == pytest.approx(expected / 3)


def test_the_weight_of_cispo_is_capped_and_has_no_gradient():
    """Ratios 0.5, 1.25 and 4, capped at 2: the weights are 0.5, 1.25 and 2."""
    old = torch.tensor([[0.4, 0.4, 0.2]]).double().log()
    new = (old + torch.tensor([[0.5, 1.25, 4.0]]).double().log()).requires_grad_()
    advantages = torch.tensor([[3.0, -1.0, -2.0]]).double()
    mask = torch.ones(1, 3, dtype=torch.bool)
    found = cispo(new, old, advantages, mask, cap=2.0)
    found.sum().backward()
    assert new.grad.tolist()[0] == pytest.approx([1.5, -1.25, -4], abs=1e-12)
    values = [w * x for w, x in zip([1.5, -1.25, -4], new.tolist()[0], strict=True)]
    assert found.tolist()[0] == pytest.approx(values, abs=1e-12)
    # The trap: taken as a distance from 1, the cap of 0.2 would be 1.2.
    found = cispo(new, old, advantages, mask, cap=0.2)
    (slope,) = torch.autograd.grad(found.sum(), new)
    assert slope.tolist()[0] == pytest.approx([0.6, -0.2, -0.4], abs=1e-12)


@pytest.mark.parametrize("cap", [0.0, -1.0, NAN])
def test_a_cap_is_a_weight(cap):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=f"cap must be positive, but it is {cap}"):
        cispo(x, x, x, x == 0, cap=cap)


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize(
    "function",
    [
        partial(token_clip, clip_low=0.2, clip_high=0.2),
        partial(sequence_clip, clip_low=0.2, clip_high=0.2),
        partial(cispo, cap=2.0),
    ],
)
@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3), ()])
def test_an_objective_pairs_no_numbers_of_different_steps(function, place, shape):
    square = torch.zeros(3, 3)
    given = [square, square, square, square == 0]
    given[place] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"one number per step is needed: \[3, 3\]"):
        function(*given)


@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_a_ratio_of_answers_needs_a_mask_of_the_same_shape():
    x = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"^mask has shape \(3,\)"):
        sequence_ratio(x, x, torch.ones(3, dtype=torch.bool))


def test_the_penalty_of_a_long_answer_by_hand():
    """Nothing up to 16 of 20, then a quarter for each step, and 1 from there on."""
    lengths = torch.tensor([0, 16, 17, 18, 20, 25])
    found = overlong_penalty(lengths, limit=20, buffer=4)
    assert found.tolist() == [0, 0, -0.25, -0.5, -1, -1]
    whole = overlong_penalty(lengths, limit=20, buffer=20)
    assert whole[1].item() == pytest.approx(-0.8)


@pytest.mark.parametrize("buffer", [0, -1, 21])
def test_a_buffer_lies_within_the_limit(buffer):
    message = f"at most limit=20, but it is {buffer}"
    with pytest.raises(ValueError, match=message):
        overlong_penalty(torch.tensor([3]), limit=20, buffer=buffer)


# Preferences


def test_the_preference_loss_by_hand():
    """Odds of 3 to 1 are a difference of log 3: preferred with probability 3/4."""
    three = math.log(3)
    scores = torch.tensor([[three, 0, 5], [0, three, 5]], dtype=torch.float64)
    chosen, rejected = (part.requires_grad_() for part in scores)
    loss = preference_loss(chosen, rejected)
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(4), math.log(2)])
    loss.sum().backward()
    # Minus the probability of the choice that was not made.
    expected = [-1 / 4, -3 / 4, -1 / 2]
    assert chosen.grad.tolist() == pytest.approx(expected, abs=1e-12)
    assert rejected.grad.tolist() == pytest.approx([1 / 4, 3 / 4, 1 / 2], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_preference_loss_of_scores_far_apart(dtype):
    """Straight on the wrong side, and never 0 on the right one: no log of 0."""
    chosen = torch.tensor([0.0, 1000.0, 40.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([1000.0, 0.0, 0.0], dtype=dtype)
    loss = preference_loss(chosen, rejected)
    expected = [1000.0, 0.0, math.exp(-40)]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5, abs=0)
    loss.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-1, 0, -math.exp(-40)], rel=1e-5)


def test_only_the_difference_of_scores_counts():
    chosen, rejected = random_x(0)[0], random_x(1)[0]
    loss = preference_loss(chosen, rejected)
    shifted = preference_loss(chosen + 7, rejected + 7)
    torch.testing.assert_close(shifted, loss, rtol=1e-12, atol=1e-12)
    # The two possible choices have probabilities that add up to 1.
    other = preference_loss(rejected, chosen)
    both = (-loss).exp() + (-other).exp()
    torch.testing.assert_close(both, torch.ones_like(both), rtol=0, atol=1e-12)


def test_the_best_scores_are_the_odds_of_the_choices():
    """Chosen 9 times of 12: the mean loss is least at a difference of log 3."""
    wins = torch.tensor([True] * 9 + [False] * 3)

    def mean_loss(difference):
        one, other = torch.full((12,), difference), torch.zeros(12)
        chosen, rejected = torch.where(wins, one, other), torch.where(wins, other, one)
        return float(preference_loss(chosen, rejected).mean())

    best = math.log(3)
    assert mean_loss(best) < min(mean_loss(best - 0.1), mean_loss(best + 0.1))


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(1,), (3, 1), (1, 3), (4,), ()])
def test_scores_of_different_pairs_are_not_compared(shape):
    message = r"^rejected_scores has shape .*one score per pair is needed: \[3\]"
    with pytest.raises(ValueError, match=message):
        preference_loss(torch.zeros(3), torch.zeros(shape))


def test_the_dpo_loss_and_its_gradient_by_hand():
    """With beta 1/2, log-ratios that differ by 2 log 3 are odds of 3 to 1."""
    nine = math.log(9)
    logprobs = torch.tensor([[-1, -5, -3], [-2, -4, -3]], dtype=torch.float64)
    reference = torch.tensor(
        [[-1 - nine, -5, -7], [-2, -4 - nine, -7]], dtype=torch.float64
    )
    chosen, rejected = (part.requires_grad_() for part in logprobs)
    loss = dpo_loss(chosen, rejected, reference[0], reference[1], beta=0.5)
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(4), math.log(2)])
    loss.sum().backward()
    # beta times the probability of the choice that was not made.
    expected = [-1 / 8, -3 / 8, -1 / 4]
    assert chosen.grad.tolist() == pytest.approx(expected, abs=1e-12)
    assert rejected.grad.tolist() == pytest.approx([1 / 8, 3 / 8, 1 / 4], abs=1e-12)


@pytest.mark.parametrize("beta", [0.05, 1, 3.0])
def test_dpo_is_the_preference_loss_of_the_log_ratios(beta):
    chosen, rejected, ref_chosen, ref_rejected = torch.randn(
        4, 7, generator=seeded(0), dtype=torch.float64
    )
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    scores = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    torch.testing.assert_close(loss, preference_loss(*scores), rtol=1e-12, atol=0)
    # A pair that the reference finds harder, both answers alike, is the same pair.
    harder = dpo_loss(chosen, rejected, ref_chosen - 4, ref_rejected - 4, beta=beta)
    torch.testing.assert_close(harder, loss, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.3, 1.0, 10.0])
def test_the_optimum_of_dpo_is_the_tilted_reference(beta):
    """Exact Bradley-Terry choices of every pair, and the policy a table."""
    scores = torch.tensor([1.0, 0.4, -0.5, 2.0, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.5, 0.25, 0.148, 0.002, 0.1], dtype=torch.float64).log()
    preferred = (scores[:, None] - scores).sigmoid()  # the row to the column
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")

    def policy(free):  # the logit of the last answer stays 0
        return torch.cat([free, torch.zeros(1).double()]).log_softmax(0)

    def expected_loss(free):
        pairs = [
            x[at.flatten()] for x in (policy(free), reference) for at in (rows, columns)
        ]
        return (preferred.flatten() * dpo_loss(*pairs, beta=beta)).mean()

    tilted = (reference + scores / beta).log_softmax(0)
    free = reference[:-1] - reference[-1]
    for _ in range(60):  # Newton's method, damped until the step makes it smaller
        slope = torch.autograd.functional.jacobian(expected_loss, free)
        curvature = torch.autograd.functional.hessian(expected_loss, free)
        step = torch.linalg.solve(curvature, slope)
        while expected_loss(free - step) > expected_loss(free) + 1e-15:
            step = step / 2
        free = free - step
    torch.testing.assert_close(policy(free), tilted, rtol=0, atol=1e-9)
    # And the implicit scores differ as the scores do.
    implicit = beta * (policy(free) - reference)
    found, expected = implicit - implicit[0], scores - scores[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_pair_of_dpo_says_nothing_of_other_answers():
    """Not even through the softmax: the normaliser cancels in the pair."""
    z = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    logprobs, reference = z.log_softmax(0), torch.zeros(3, dtype=torch.float64)
    dpo_loss(
        logprobs[:1], logprobs[1:2], reference[:1], reference[1:2], beta=0.3
    ).sum().backward()
    slope = 0.3 / (1 + math.exp(0.3 * 1.5))
    assert z.grad.tolist() == pytest.approx([-slope, slope, 0], abs=1e-15)


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(1,), (3, 1), (1, 3), (4,), ()])
@pytest.mark.parametrize(
    ("place", "name"),
    [
        (1, "logprobs_rejected"),
        (2, "reference_logprobs_chosen"),
        (3, "reference_logprobs_rejected"),
    ],
)
def test_log_probabilities_of_different_pairs_are_not_compared(place, name, shape):
    given = [torch.zeros(3)] * 4
    given[place] = torch.zeros(shape)
    message = rf"^{name} has shape .*one log-probability per pair is needed: \[3\]"
    with pytest.raises(ValueError, match=message):
        dpo_loss(*given, beta=0.1)


@pytest.mark.parametrize("beta", [0, -0.1, NAN, INF])
def test_dpo_needs_a_price(beta):
    with pytest.raises(ValueError, match="beta must be a positive number"):
        dpo_loss(*[torch.zeros(2)] * 4, beta=beta)
