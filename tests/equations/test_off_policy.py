"""Another policy sampled: what each weight does to the mean gradient, exactly.

Thirty answers of a language of two letters and an end, a policy that is a table, and
every pair of answers that could be sampled. The score, "exactly two a's", is decided by
later letters: with one that the first letter decides, the weights of single tokens are
exact, and what they leave out would not show.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from math import inf, log, nan
from typing import Any

import pytest
import torch
from batches import random_batch, seeded

from rl_notes.advantages import leave_one_out, per_step
from rl_notes.objectives import (
    dppo,
    dppo_mask,
    importance_ratio,
    masked_weights,
    mean_over_tokens,
    sequence_ratio,
    surrogate,
    token_clip,
    truncated_weights,
)
from rl_notes.policies import TabularPolicy, action_logprobs, rescored
from rl_notes.trajectories import Trajectories
from rl_notes.updates import (
    grpo_update,
    ppo_update,
    reinforce_update,
    trpo_update,
)


def all_answers(begun=""):
    if len(begun) == 4 or begun.endswith("."):
        return [begun]
    following = "ab." if begun else "ab"
    return [one for letter in following for one in all_answers(begun + letter)]


ANSWERS = all_answers()
BEGUN = sorted({answer[:t] for answer in ANSWERS for t in range(len(answer))})
PAIRS = torch.tensor([*product(range(len(ANSWERS)), repeat=2)])  # [900, 2]
LATER = torch.tensor([answer.count("a") == 2 for answer in ANSWERS]).double()
FIRST = torch.tensor([answer[0] == "a" for answer in ANSWERS]).double()
both_scores = pytest.mark.parametrize("score", [LATER, FIRST], ids=["later", "first"])


def a_table(seed):
    """A random policy. It never ends before the first letter."""
    policy = TabularPolicy(len(BEGUN), 3).double()
    with torch.no_grad():
        policy.logits.copy_(torch.randn(len(BEGUN), 3, generator=seeded(seed)))
        policy.logits[0, 2] = -inf
    return policy


def written_by(policy):
    """All answers, one a row, with this policy's log-probabilities."""
    mask = torch.tensor([[t < len(answer) for t in range(4)] for answer in ANSWERS])
    padded = [answer.ljust(4, ".") for answer in ANSWERS]
    actions = torch.tensor([["ab.".index(letter) for letter in row] for row in padded])
    seen = [
        [BEGUN.index(a[:t]) if a[:t] in BEGUN else 0 for t in range(5)] for a in ANSWERS
    ]
    last = torch.arange(4) == mask.sum(1, keepdim=True) - 1
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    batch = Trajectories(
        actions=torch.where(mask, actions, 0),
        logprobs=zeros,
        rewards=zeros,
        discounts=(mask & ~last).double(),
        mask=mask,
        groups=torch.zeros(len(ANSWERS), dtype=torch.long),
        observations=torch.tensor(seen),
    )
    return rescored(policy, batch)


@pytest.fixture(scope="module")
def learner():
    return a_table(1)


@pytest.fixture(scope="module")
def batch():
    """What another policy has written."""
    return written_by(a_table(2))


def exact_gradient(policy, score):
    chances = action_logprobs(policy, written_by(policy)).sum(1).exp()
    torch.testing.assert_close(chances.sum(), torch.ones(()).double())
    return torch.autograd.grad(chances @ score, policy.logits)[0]


def mean_gradient(policy, batch, weights, score):
    """The mean over all pairs that the sampler could write, each weighed by chance."""
    new = action_logprobs(policy, batch)
    pair = torch.arange(len(PAIRS)).repeat_interleave(2)
    advantages = leave_one_out(score[PAIRS.flatten()], pair).view(-1, 2)
    chances = batch.logprobs.sum(1).exp()[PAIRS].prod(1)
    of_answers = (weights * new).sum(1)[PAIRS]  # a padded step has log-probability 0
    total = chances @ (advantages * of_answers).mean(1)
    return torch.autograd.grad(total, policy.logits)[0]


def ratios(policy, batch):
    """Of the tokens, and of whole answers."""
    own = rescored(policy, batch).logprobs
    whole = sequence_ratio(own, batch.logprobs, batch.mask, length_normalised=False)
    return importance_ratio(own, batch.logprobs), whole


def error(found, exact):
    return float((found - exact).norm() / exact.norm())


# Which weights have which bias


def check_no_bias(policy, batch, weights, score):
    found = mean_gradient(policy, batch, weights, score)
    torch.testing.assert_close(found, exact_gradient(policy, score), rtol=0, atol=1e-12)


@both_scores
def test_the_weight_of_the_whole_answer_has_no_bias(learner, batch, score):
    _, whole = ratios(learner, batch)
    assert float(whole.max()) > 3
    check_no_bias(learner, batch, whole, score)
    check_no_bias(learner, batch, truncated_weights(whole, cap=inf), score)
    check_no_bias(learner, batch, masked_weights(whole, high=inf), score)


def test_the_weights_of_tokens_are_exact_where_the_first_letter_decides(learner, batch):
    tokens, _ = ratios(learner, batch)
    check_no_bias(learner, batch, tokens, FIRST)
    with pytest.raises(AssertionError):
        check_no_bias(learner, batch, tokens, LATER)


@both_scores
def test_without_weights_there_is_a_bias_unless_the_policy_sampled(
    learner, batch, score
):
    none = torch.ones_like(batch.logprobs)
    check_no_bias(learner, written_by(learner), none, score)
    with pytest.raises(AssertionError):
        check_no_bias(learner, batch, none, score)


def test_broken_weights_are_refused(learner, batch):
    own = rescored(learner, batch).logprobs
    upside_down = sequence_ratio(
        batch.logprobs, own, batch.mask, length_normalised=False
    )
    with_the_root = sequence_ratio(own, batch.logprobs, batch.mask)
    for broken in (upside_down, with_the_root):
        with pytest.raises(AssertionError):
            check_no_bias(learner, batch, broken, LATER)


@pytest.mark.parametrize("cap", [0.5, 1, 2])
def test_what_a_cap_cuts_off_is_the_bias(learner, batch, cap):
    """E_mu[(w - cap)+ A grad log pi], summed over the answers that are above it."""
    _, whole = ratios(learner, batch)
    found = mean_gradient(learner, batch, truncated_weights(whole, cap=cap), LATER)
    chances = batch.logprobs.sum(1).exp()
    above = (whole[:, 0] - cap).clamp(min=0)
    advantages = LATER - chances @ LATER
    logprobs = action_logprobs(learner, batch).sum(1)
    missing = torch.autograd.grad(
        (chances * above * advantages) @ logprobs, learner.logits
    )[0]
    assert float(missing.norm()) > 0.01
    torch.testing.assert_close(
        found + missing, exact_gradient(learner, LATER), rtol=0, atol=1e-12
    )


def test_what_a_mask_drops_is_the_bias(learner, batch):
    _, whole = ratios(learner, batch)
    kept, dropped = (
        masked_weights(whole, high=2),
        masked_weights(whole, low=2, high=inf),
    )
    assert not ((kept > 0) & (dropped > 0)).any()
    parts = [mean_gradient(learner, batch, part, LATER) for part in (kept, dropped)]
    assert float(parts[1].norm()) > 0.01
    torch.testing.assert_close(
        sum(parts), exact_gradient(learner, LATER), rtol=0, atol=1e-12
    )


def test_what_is_never_sampled_never_comes_back(learner):
    """Half of the answers are cut: no weight has a gradient that knows of them."""
    allowed = torch.tensor([answer[0] == "b" for answer in ANSWERS])
    sampler = a_table(2)
    with torch.no_grad():
        sampler.logits[0, 0] = -inf
    rows = allowed.nonzero()[:, 0]
    batch = written_by(learner).select(rows)
    batch = rescored(sampler, batch)
    own = rescored(learner, batch)
    chances = batch.logprobs.sum(1).exp()
    torch.testing.assert_close(chances.sum(), torch.ones(()).double())
    assert (per_step(leave_one_out(FIRST[rows], batch.groups), batch.mask) == 0).all()
    # With every weight of the whole answer, the sum knows the answers with a b alone.
    whole = sequence_ratio(
        own.logprobs, batch.logprobs, batch.mask, length_normalised=False
    )
    new = action_logprobs(learner, batch).sum(1)
    found = torch.autograd.grad(
        (chances * whole[:, 0] * LATER[rows]) @ new, learner.logits
    )[0]
    with_an_a = torch.tensor([begun[:1] == "a" for begun in BEGUN])
    assert (found[with_an_a] == 0).all()
    assert (exact_gradient(learner, LATER)[with_an_a] != 0).any()


# The two weights by hand


RATIO = torch.tensor([[0.25, 1.0, 1.75, 4.0]]).double()


def test_truncated_and_masked_weights_by_hand():
    assert truncated_weights(RATIO, cap=1.5).tolist() == [[0.25, 1.0, 1.5, 1.5]]
    assert masked_weights(RATIO, low=0.5, high=2).tolist() == [[0, 1.0, 1.75, 0]]
    assert masked_weights(RATIO, low=0.25, high=4).tolist() == RATIO.tolist()
    assert masked_weights(RATIO, high=3).tolist() == [[0.25, 1.0, 1.75, 0]]


def test_no_gradient_flows_through_a_weight():
    ratio = RATIO.clone().requires_grad_()
    for weights in (truncated_weights(ratio, cap=2), masked_weights(ratio, high=2)):
        assert not weights.requires_grad


@pytest.mark.parametrize("cap", [0.0, -1, nan])
def test_a_cap_is_a_weight(cap):
    with pytest.raises(ValueError, match=f"cap must be positive, but it is {cap}"):
        truncated_weights(RATIO, cap=cap)


@pytest.mark.parametrize(
    ("low", "high"), [(2, 0.5), (1, 1), (-0.5, 2), (nan, 2), (0.5, nan)]
)
def test_a_range_has_two_ends(low, high):
    with pytest.raises(ValueError, match=f"they are {low} and {high}"):
        masked_weights(RATIO, low=low, high=high)


# To say that another policy sampled


def test_rescored_is_the_batch_with_the_log_probabilities_of_another(learner, batch):
    found = rescored(learner, batch)
    torch.testing.assert_close(found.logprobs, action_logprobs(learner, batch))
    assert not found.logprobs.requires_grad
    assert (found.logprobs[~batch.mask] == 0).all()
    assert all(
        getattr(found, name) is x
        for name, x in vars(batch).items()
        if name != "logprobs"
    )
    again = rescored(learner, found)
    assert torch.equal(again.logprobs, found.logprobs)


def test_rescored_refuses_what_the_policy_excludes(batch):
    policy = a_table(1)
    with torch.no_grad():
        policy.logits[0, 0] = -inf
    with pytest.raises(ValueError, match="logprobs holds a value that is not finite"):
        rescored(policy, batch)


UPDATES: dict[str, Callable] = {
    "reinforce": reinforce_update,
    "ppo": partial(ppo_update, clip_low=0.2, clip_high=0.2, epochs=1, minibatches=1),
    "grpo": partial(
        grpo_update,
        objective=partial(token_clip, clip_low=0.2, clip_high=0.2),
        epochs=1,
        minibatches=1,
    ),
}


@pytest.mark.parametrize("name", UPDATES)
def test_a_sampler_that_is_left_unsaid_is_refused(name, batch):
    policy = a_table(1)
    before = policy.logits.detach().clone()
    sgd = torch.optim.SGD(policy.parameters(), lr=0.1)
    update = UPDATES[name]
    if name != "reinforce":
        update = partial(update, generator=seeded(0))
    A = per_step(leave_one_out(LATER, batch.groups), batch.mask)
    with pytest.raises(
        ValueError, match=r"train on `rescored\(policy, trajectories\)`"
    ):
        update(policy, sgd, batch, A)
    assert torch.equal(policy.logits, before)
    update(policy, sgd, rescored(policy, batch), A)
    assert not torch.equal(policy.logits, before)


def test_trpo_refuses_it_too(learner, batch):
    A = per_step(leave_one_out(LATER, batch.groups), batch.mask)
    with pytest.raises(ValueError, match="rescored"):
        trpo_update(a_table(1), batch, A, max_kl=0.01, damping=0.1)


def test_a_weighed_update_takes_the_step_of_the_surrogate_around_the_sampler(batch):
    """A weight times an advantage has the slope of the ratio to the sampler."""
    policy = a_table(1)
    A = per_step(leave_one_out(LATER, batch.groups), batch.mask)
    new = action_logprobs(policy, batch)
    gain = surrogate(importance_ratio(new, batch.logprobs), A)
    (slope,) = torch.autograd.grad(mean_over_tokens(gain, batch.mask), policy.logits)
    expected = policy.logits.detach() + 0.1 * slope
    own = rescored(policy, batch)
    weights = truncated_weights(importance_ratio(own.logprobs, batch.logprobs), cap=inf)
    grpo_update(
        policy,
        torch.optim.SGD(policy.parameters(), lr=0.1),
        own,
        weights * A,
        objective=partial(token_clip, clip_low=0.2, clip_high=0.2),
        aggregate=mean_over_tokens,
        epochs=1,
        minibatches=1,
        generator=seeded(0),
    )
    torch.testing.assert_close(policy.logits.detach(), expected, rtol=0, atol=1e-12)
    assert float(slope.nan_to_num().norm()) > 0.01


def widened(batch, by):
    """The same rows with empty columns on the right."""
    rows = len(batch.mask)
    empty = {
        "mask": torch.zeros(rows, by, dtype=torch.bool),
        "actions": torch.zeros(rows, by, dtype=torch.long),
        "observations": torch.zeros(rows, by, dtype=torch.long),
    }
    zeros = torch.zeros(rows, by, dtype=torch.float64)
    wide = {
        name: torch.cat([x, empty.get(name, zeros)], dim=1)
        for name, x in vars(batch).items()
        if name != "groups"
    }
    return Trajectories(**wide, groups=batch.groups)


def test_padding_changes_no_weight(learner, batch):
    wide = widened(batch, 3)
    for narrow, found in zip(
        ratios(learner, batch), ratios(learner, wide), strict=True
    ):
        assert torch.equal(found[:, :4], narrow)
        assert (found[~wide.mask] == 1).all()


# DPPO

DELTAS: dict[str, Any] = {"delta_low": 0.1, "delta_high": 0.2}
# Probability under the policy and under the sampler, advantage; objective, slope.
CORNERS = {
    "good, far up: held": (0.75, 0.5, 2.0, 0.0, 0.0),
    "good, a little up": (0.65, 0.5, 2.0, 2.6, 2.6),
    "good, far down: driven up": (0.25, 0.5, 2.0, 1.0, 1.0),
    "bad, far down: held": (0.25, 0.5, -2.0, 0.0, 0.0),
    "bad, down by more than its own bound: held": (0.35, 0.5, -2.0, 0.0, 0.0),
    "bad, a little down": (0.45, 0.5, -2.0, -1.8, -1.8),
    "bad, far up: driven down": (0.75, 0.5, -2.0, -3.0, -3.0),
    "good and rare: a hundred times likelier": (0.1, 0.001, 2.0, 200.0, 200.0),
    "neither good nor bad": (0.9, 0.5, 0.0, 0.0, 0.0),
}


def check_dppo(function):
    everywhere = torch.ones(1, 1, dtype=torch.bool)
    for name, (pi, mu, advantage, value, slope) in CORNERS.items():
        new = torch.tensor([[log(pi)]], dtype=torch.float64, requires_grad=True)
        old = torch.tensor([[log(mu)]], dtype=torch.float64)
        A = torch.tensor([[advantage]], dtype=torch.float64)
        found = function(new, old, A, everywhere, **DELTAS)
        (grad,) = torch.autograd.grad(found.sum(), new)
        assert found.item() == pytest.approx(value, abs=1e-12), name
        assert grad.item() == pytest.approx(slope, abs=1e-12), name


def test_dppo_at_every_corner_by_hand():
    check_dppo(dppo)


def test_a_step_without_advantage_is_never_held():
    """It has no gradient either way, but whoever counts the held would count it."""
    new, old = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.1, 0.9]]).log()
    assert dppo_mask(new, old, torch.zeros(1, 2), **DELTAS).all()


def by_factors(new, old, advantages, mask, *, delta_low, delta_high):
    return token_clip(
        new, old, advantages, mask, clip_low=delta_low, clip_high=delta_high
    )


def on_both_sides(new, old, advantages, mask, *, delta_low, delta_high):
    """Held however the advantage points: what went too far never comes back."""
    change = new.detach().exp() - old.exp()
    near = (change <= delta_high) & (change >= -delta_low)
    return torch.where(near, importance_ratio(new, old) * advantages, 0)


def sides_exchanged(new, old, advantages, mask, *, delta_low, delta_high):
    return dppo(new, old, advantages, mask, delta_low=delta_high, delta_high=delta_low)


@pytest.mark.parametrize("broken", [by_factors, on_both_sides, sides_exchanged])
def test_a_broken_dppo_is_refused(broken):
    with pytest.raises(AssertionError):
        check_dppo(broken)


def test_dppo_is_the_surrogate_where_nothing_is_too_far(learner, batch):
    A = per_step(leave_one_out(LATER, batch.groups), batch.mask)
    own = rescored(learner, batch)
    ratio = importance_ratio(own.logprobs, batch.logprobs)
    wide = dppo(own.logprobs, batch.logprobs, A, batch.mask, delta_low=1, delta_high=1)
    assert torch.equal(wide, surrogate(ratio, A))
    # And at the policy that sampled, with any delta.
    at_home = dppo(own.logprobs, own.logprobs, A, batch.mask, **DELTAS)
    assert torch.equal(at_home, A)


def total_variation(policy, sampler):
    """Of every state: half the sum of the differences of all probabilities."""
    p, q = (x.logits.detach().softmax(-1) for x in (policy, sampler))
    return (p - q).abs().sum(-1) / 2


def test_dppo_holds_no_step_in_a_state_that_has_not_moved_so_far():
    """The clip does: a factor says little of a rare action."""
    false_alarms = {"dppo": 0, "clip": 0}
    held_at_all = 0
    for seed in range(20):
        learner, sampler = a_table(seed), a_table(100 + seed)
        batch = written_by(sampler)
        own = rescored(learner, batch).logprobs
        moved = total_variation(learner, sampler)[batch.observations[:, :4]]
        ratio = importance_ratio(own, batch.logprobs)
        for sign in (1.0, -1.0):
            A = torch.where(batch.mask, sign, 0.0).double()
            near = dppo_mask(own, batch.logprobs, A, delta_low=0.2, delta_high=0.2)
            clipped = (sign * (ratio - 1) > 0.2) & batch.mask
            held = ~near & batch.mask
            held_at_all += int(held.sum())
            assert not (held & ~clipped).any()  # |pi - mu| = mu |rho - 1|
            false_alarms["dppo"] += int((held & (moved <= 0.2)).sum())
            false_alarms["clip"] += int((clipped & (moved <= 0.2)).sum())
    assert held_at_all > 100
    assert false_alarms["dppo"] == 0
    assert false_alarms["clip"] > 100


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.2), (0.2, -0.1), (nan, 0.2)])
def test_a_delta_is_a_difference_of_probabilities(low, high):
    x = -torch.ones(1, 2).double()
    with pytest.raises(ValueError, match=f"but they are {low} and {high}"):
        dppo_mask(x, x, x, delta_low=low, delta_high=high)


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3), ()])
def test_dppo_does_not_pair_numbers_of_different_steps(shape):
    square, other = torch.zeros(3, 3), torch.zeros(shape)
    for numbers in ((square, other, square), (square, square, other)):
        with pytest.raises(ValueError, match="one number per step is needed"):
            dppo_mask(*numbers, **DELTAS)


def test_the_prompt_of_a_row_has_no_weight_to_give():
    """Beyond the mask both log-probabilities are 0, and the ratio is 1."""
    batch = random_batch([3, 1, 2], prompts=[0, 2, 1])
    policy = TabularPolicy(5, 3).double()
    own = rescored(policy, batch)
    ratio = importance_ratio(own.logprobs, batch.logprobs)
    assert (ratio[~batch.mask] == 1).all()
    assert (ratio[batch.mask] != 1).all()
