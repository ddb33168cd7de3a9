"""GRPO: its objective, its rows without advantage, its parts, and its family."""

import copy
import math
from dataclasses import astuple, replace
from functools import partial
from typing import Any

import pytest
import torch
from batches import random_batch, seeded
from small_policies import (
    assert_refused,
    bits,
    every_policy,
    flat_weights,
    its_own,
    random_like,
    regrouped,
    same_bits,
    shuffled,
    small,
    spoilt,
    wider,
)

from rl_notes import updates
from rl_notes.divergences import k1, k3
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
from rl_notes.policies import TabularPolicy, action_logprobs
from rl_notes.updates import GroupStats, grpo_update, ppo_update, reinforce_update

CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3}
FAMILY = {
    "grpo": (partial(token_clip, **CLIP), mean_over_sequences),
    "dapo": (partial(token_clip, **CLIP), mean_over_tokens),
    "dr_grpo": (
        partial(token_clip, **CLIP),
        lambda x, mask: sum_over_constant(x, mask, constant=len(mask) * 8),
    ),
    "gspo": (partial(sequence_clip, clip_low=0.03, clip_high=0.04), None),
    "rloo": (partial(sequence_clip, **CLIP, length_normalised=False), None),
    "cispo": (partial(cispo, cap=1.5), mean_over_tokens),
}
every_objective = pytest.mark.parametrize(
    ("objective", "aggregate"),
    [(one, other or mean_over_sequences) for one, other in FAMILY.values()],
    ids=FAMILY,
)


def one_update(policy, batch, advantages, *, optimizer=None, seed=0, **options):
    """An update; unless told otherwise the paper's, one step of SGD of length 1."""
    optimizer = optimizer or torch.optim.SGD(policy.parameters(), lr=1.0)
    defaults = {"objective": FAMILY["grpo"][0], "epochs": 1, "minibatches": 1}
    options = {**defaults, **options, "generator": seeded(seed)}
    return grpo_update(policy, optimizer, batch, advantages, **options)


def weights_of(policy):
    return flat_weights(policy)


def adam(policy, lr=0.1):
    return torch.optim.Adam(policy.parameters(), lr=lr)


def reference_for(policy, batch):
    """The log-probabilities of another policy of the same kind."""
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for index, weight in enumerate(other.parameters()):
            noise = torch.randn(
                weight.shape, generator=seeded(index), dtype=weight.dtype
            )
            weight.add_(0.3 * noise)
        return action_logprobs(other, batch)


# What it is made of


@every_policy
def test_the_first_step_is_that_of_reinforce(kind):
    """Where the aggregation is that of the policy gradient; otherwise along A / L."""
    policy, batch = small(kind)
    twin, third = copy.deepcopy(policy), copy.deepcopy(policy)
    start, advantages = weights_of(policy), random_like(batch)
    rows = len(batch.mask)
    stats = one_update(
        policy,
        batch,
        advantages,
        aggregate=partial(sum_over_constant, constant=rows),
    )
    sgd = torch.optim.SGD(twin.parameters(), lr=1.0)
    expected = reinforce_update(twin, sgd, batch, advantages)
    torch.testing.assert_close(weights_of(policy), weights_of(twin), rtol=0, atol=1e-12)
    assert float((weights_of(twin) - start).norm()) > 0.05
    assert astuple(stats)[:4] == pytest.approx(astuple(expected), abs=1e-12)

    one_update(third, batch, advantages * batch.mask.sum(dim=1, keepdim=True))
    torch.testing.assert_close(weights_of(third), weights_of(twin), rtol=0, atol=1e-12)


@every_policy
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_with_the_mean_over_tokens_it_is_ppo_to_the_last_bit(kind, micro_batch):
    policy, batch = small(kind)
    twin, advantages = copy.deepcopy(policy), random_like(batch)
    options: dict[str, Any] = {"epochs": 3, "minibatches": 2}
    options["micro_batch"] = micro_batch
    stats = one_update(
        policy,
        batch,
        advantages,
        optimizer=adam(policy),
        aggregate=mean_over_tokens,
        **options,
    )
    expected = ppo_update(
        twin, adam(twin), batch, advantages, **CLIP, **options, generator=seeded(0)
    )
    assert same_bits(policy, bits(twin))
    assert astuple(stats) == (*astuple(expected), len(batch.mask))
    assert isinstance(stats, GroupStats)


@every_policy
@every_objective
def test_two_steps_are_those_of_the_equation(kind, objective, aggregate):
    """Written out as in the book: by autograd, on all rows at once."""
    policy, batch = small(kind)
    twin, advantages = copy.deepcopy(policy), random_like(batch)
    reference, beta = reference_for(policy, batch), 0.4
    for _ in range(2):
        new = action_logprobs(twin, batch)
        per_token = objective(new, batch.logprobs, advantages, batch.mask)
        penalty = beta * k3(new, reference)
        twin.zero_grad()
        (-aggregate(per_token - penalty, batch.mask)).backward()
        with torch.no_grad():
            for weight in twin.parameters():
                weight -= weight.grad
    options = {"objective": objective, "aggregate": aggregate, "epochs": 2}
    start = weights_of(policy)
    one_update(
        policy, batch, advantages, **options, reference_logprobs=reference, beta=beta
    )
    assert float((weights_of(policy) - start).norm()) > 0.05
    torch.testing.assert_close(weights_of(policy), weights_of(twin), rtol=0, atol=1e-12)


def test_the_paper_by_hand():
    """Rows of 2 and 1 steps; pi(. | 0) = (0.2, 0.8) and pi(. | 1) = (0.5, 0.5).

    At the policy that sampled, the gradient of k3 at log pi is 1 - pi_ref / pi.
    """
    policy = TabularPolicy(2, 2).double()
    with torch.no_grad():
        policy.logits[0] = torch.tensor([0.2, 0.8], dtype=torch.float64).log()
    batch = random_batch([2, 1], steps=2, actions=2)
    batch = replace(
        batch,
        actions=torch.tensor([[0, 1], [1, 0]]),
        observations=torch.tensor([[0, 1, 0], [0, 1, 1]]),
    )
    batch = its_own(policy, batch)
    advantages = torch.tensor([[3.0, -1], [0.5, 7]]).double()
    reference = torch.tensor([[0.1, 0.25], [0.4, 1]], dtype=torch.float64).log()
    beta, start = 0.5, policy.logits.detach().clone()
    stats = one_update(
        policy, batch, advantages, reference_logprobs=reference, beta=beta
    )
    # A - beta (1 - pi_ref / pi), over the row's length and the two rows.
    weights = [(3 - beta * 0.5) / 4, (-1 - beta * 0.5) / 4, (0.5 - beta * 0.5) / 2]
    first = weights[0] * 0.8 - weights[2] * 0.2
    second = -weights[1] * 0.5
    expected = [first, -first, second, -second]
    moved = (policy.logits.detach() - start).flatten().tolist()
    assert moved == pytest.approx(expected, abs=1e-12)
    assert stats.gradient_norm == pytest.approx(math.sqrt(2 * (first**2 + second**2)))
    assert stats.rows == 2


def k1_in_the_loss(new, reference):
    return k1(new, reference)


def test_the_penalty_is_k3_of_the_policy_to_the_reference(monkeypatch):
    for broken in (
        None,
        k1_in_the_loss,
        lambda new, reference: k3(reference, new),
        lambda new, reference: -k3(new, reference),
    ):
        with monkeypatch.context() as patch:
            if broken is None:
                test_the_paper_by_hand()
                continue
            patch.setattr(updates.grpo, "k3", broken)
            with pytest.raises(AssertionError):
                test_the_paper_by_hand()


# Rows without an advantage


class Counting(TabularPolicy):
    """Counts the rows and the columns that it is asked about."""

    def __init__(self, states, actions):
        super().__init__(states, actions)
        self.asked: list[tuple[int, ...]] = []

    def forward(self, observations):
        self.asked.append(tuple(observations.shape))
        return super().forward(observations)


def with_silent_rows(kind):
    """A batch with a row without a step in two, and advantages of zero in some."""
    policy, batch = small(kind)
    advantages = random_like(batch)
    advantages[1::2] = 0
    return policy, batch, torch.where(batch.mask, advantages, math.nan)


@every_policy
@every_objective
def test_a_row_without_advantage_counts_in_the_denominator(kind, objective, aggregate):
    """As if it had been run: with an advantage that is all but zero, it is."""
    policy, batch, advantages = with_silent_rows(kind)
    twin = copy.deepcopy(policy)
    options = {"objective": objective, "aggregate": aggregate}
    options |= {"epochs": 3, "minibatches": 2}
    stats = one_update(policy, batch, advantages, optimizer=adam(policy), **options)
    assert stats.rows == len(batch.mask) // 2
    noise = torch.where(advantages == 0, 1e-300, advantages)
    others = one_update(twin, batch, noise, optimizer=adam(twin), **options)
    assert others.rows == len(batch.mask)
    torch.testing.assert_close(weights_of(policy), weights_of(twin), rtol=0, atol=1e-10)
    assert stats.gradient_norm == pytest.approx(others.gradient_norm, abs=1e-10)


def test_a_row_without_advantage_costs_nothing():
    """Two rows of eight have one, of 3 and 5 steps in a batch of 9 columns."""
    batch = random_batch([9, 3, 2, 5, 9, 8, 0, 1])
    policy = Counting(5, 3).double()
    batch = its_own(policy, batch)
    advantages = torch.zeros_like(batch.logprobs)
    advantages[1], advantages[3] = 1, -1
    policy.asked = []
    stats = one_update(policy, batch, advantages, micro_batch=1)
    # In the epoch, and after.
    assert policy.asked == [(1, 3), (1, 5)] * 2
    assert stats.rows == 2
    policy.asked = []
    reference = reference_for(policy, batch)
    batch = its_own(policy, batch)
    policy.asked = []
    paid = {"reference_logprobs": reference, "beta": 0.1}
    stats = one_update(policy, batch, advantages, **paid)
    assert policy.asked == [(7, 9)] * 2  # what leaves the reference costs
    assert stats.rows == 7


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_saw_the_same_are_run_once(seed):
    """Six rows of three kinds, of 3, 4 and 5 steps, and never more than two at once."""
    batch = random_batch([3, 5, 4], prompts=[0, 1, 0])
    batch = batch.select(torch.tensor([0, 1, 0, 2, 1, 0]))
    policy = Counting(5, 3).double()
    batch, advantages = its_own(policy, batch), random_like(batch)
    policy.asked = []
    one_update(policy, batch, advantages, seed=seed)
    assert policy.asked == [(3, 6)] * 2
    policy.asked, batch = [], its_own(policy, batch)
    policy.asked = []
    one_update(policy, batch, advantages, micro_batch=2, seed=seed)
    assert policy.asked == [(1, 3), (2, 4), (1, 6)] * 2


@every_policy
@every_objective
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_rows_that_saw_the_same_count_one_by_one(
    kind, objective, aggregate, micro_batch
):
    """Each row is there twice, its last action another; beside the formula in full."""
    policy, batch = small(kind)
    rows = len(batch.mask)
    batch = batch.select(torch.arange(2 * rows) % rows)
    each, last = torch.arange(rows), batch.lengths[:rows] - 1
    actions = batch.actions.clone()
    actions[each, last] = (actions[each, last] + 1) % 3
    batch = its_own(policy, replace(batch, actions=actions))
    advantages, twin = random_like(batch), copy.deepcopy(policy)
    one_update(
        policy,
        batch,
        advantages,
        objective=objective,
        aggregate=aggregate,
        micro_batch=micro_batch,
    )
    new = action_logprobs(twin, batch)
    total = objective(new, batch.logprobs, advantages, batch.mask)
    aggregate(total, batch.mask).backward()
    gradient = torch.cat([weight.grad.flatten() for weight in twin.parameters()])
    expected = weights_of(twin) + gradient
    torch.testing.assert_close(weights_of(policy), expected, rtol=0, atol=1e-10)
    assert float(gradient.norm()) > 0.02


def test_what_is_reported_is_measured_on_the_rows_that_were_run():
    policy, batch, advantages = with_silent_rows("table")
    twin = copy.deepcopy(policy)
    stats = one_update(policy, batch, advantages)
    live = torch.tensor([0, 2])
    same = partial(sum_over_constant, constant=4)
    rows = batch.select(live)
    per_row = advantages[live] / rows.mask.sum(dim=1, keepdim=True)
    others = one_update(twin, rows, per_row, aggregate=same)
    assert astuple(stats) == pytest.approx(astuple(others), abs=1e-12)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_without_any_advantage_momentum_alone_goes_on(optimizer):
    """As it would if the rows had been run: their gradient is zero."""
    (policy, batch), (twin, _) = small("table"), small("table")
    made = [optimizer(one.parameters(), lr=0.1) for one in (policy, twin)]
    advantages = random_like(batch)
    for one, its_optimizer in zip((policy, twin), made, strict=True):
        one_update(one, batch, advantages, optimizer=its_optimizer)
    batch, before = its_own(policy, batch), bits(policy)
    nothing = torch.zeros_like(advantages)
    stats = one_update(
        policy, batch, nothing, optimizer=made[0], epochs=2, minibatches=3
    )
    one_update(
        twin, batch, nothing + 1e-300, optimizer=made[1], epochs=2, minibatches=3
    )
    torch.testing.assert_close(weights_of(policy), weights_of(twin), rtol=0, atol=1e-12)
    assert same_bits(policy, before) == (optimizer is torch.optim.SGD)
    assert stats.rows == stats.gradient_norm == stats.clip_fraction == 0
    assert stats.entropy > 0.1


def test_a_row_without_a_step_counts_as_a_row():
    """An answer that is masked out, such as one cut off, stays in the mean."""
    policy = TabularPolicy(5, 3).double()
    batch = its_own(policy, random_batch([4, 0, 2, 0]))
    alone = batch.select(torch.tensor([0, 2]))
    advantages, twin = random_like(batch), copy.deepcopy(policy)
    one_update(policy, batch, advantages)
    one_update(twin, alone, advantages[[0, 2]])
    found, expected = weights_of(policy), weights_of(twin)
    torch.testing.assert_close(found, 0.5 * expected, rtol=0, atol=1e-12)
    assert float(found.norm()) > 0.05


# Micro-batches


def check_parts():
    """Rows of very different lengths, two epochs of two minibatches, with Adam."""
    for objective, aggregate in (FAMILY[name] for name in ("grpo", "dapo", "dr_grpo")):
        options: dict[str, Any] = {"objective": objective, "aggregate": aggregate}
        options |= {"epochs": 2, "minibatches": 2}
        ends = []
        for size in (None, 1, 2, 99):
            policy, batch, advantages = with_silent_rows("network")
            advantages[1] = 1.0
            made = adam(policy)
            options |= {"optimizer": made, "micro_batch": size}
            stats = one_update(policy, batch, advantages, **options)
            ends.append((weights_of(policy), stats))
        for weights, stats in ends[1:]:
            torch.testing.assert_close(weights, ends[0][0], rtol=0, atol=1e-10)
            assert astuple(stats) == pytest.approx(astuple(ends[0][1]), abs=1e-10)


def test_how_a_minibatch_is_cut_changes_nothing():
    check_parts()


@every_policy
@every_objective
def test_parts_add_up_for_every_objective_and_policy(kind, objective, aggregate):
    ends = []
    for size in (None, 1, 3):
        policy, batch = small(kind)
        options = {"objective": objective, "aggregate": aggregate, "micro_batch": size}
        reference = reference_for(policy, batch)
        paid = {"reference_logprobs": reference, "beta": 0.2, "epochs": 2}
        start = weights_of(policy)
        stats = one_update(policy, batch, random_like(batch), **options, **paid)
        assert float((weights_of(policy) - start).norm()) > 0.05
        ends.append((weights_of(policy), stats))
    for weights, stats in ends[1:]:
        torch.testing.assert_close(weights, ends[0][0], rtol=0, atol=1e-10)
        assert astuple(stats) == pytest.approx(astuple(ends[0][1]), abs=1e-10)


def largest(x, mask):
    return torch.where(mask, x, -math.inf).max()


def squared(x, mask):
    return mean_over_tokens(x**2, mask)


def standardised(x, mask):
    """The mean over the steps, in units of their spread."""
    return mean_over_tokens(x, mask) / x[mask].std()


@pytest.mark.parametrize("aggregate", [largest, squared, standardised])
def test_an_aggregation_that_is_not_linear_is_refused(aggregate):
    policy, batch = small("table")
    message = "aggregate must be linear"
    assert_refused(
        message, one_update, policy, batch, random_like(batch), aggregate=aggregate
    )


# What must not matter


@every_policy
@every_objective
@pytest.mark.parametrize("change", [shuffled, wider, regrouped, spoilt])
def test_what_must_not_matter(kind, objective, aggregate, change):
    ends = []
    for one in (lambda batch, advantages: (batch, advantages), change):
        policy, batch = small(kind)
        changed, advantages = one(batch, random_like(batch))
        start = weights_of(policy)
        options = {"objective": objective, "aggregate": aggregate, "epochs": 2}
        stats = one_update(policy, changed, advantages, **options)
        assert float((weights_of(policy) - start).norm()) > 0.05
        ends.append((weights_of(policy), stats))
    torch.testing.assert_close(ends[1][0], ends[0][0], rtol=0, atol=1e-10)
    assert astuple(ends[1][1]) == pytest.approx(astuple(ends[0][1]), abs=1e-10)


def test_what_the_reference_says_beyond_the_mask_is_not_read():
    ends = []
    for garbage in (0.0, 1e3, -1e30):
        policy, batch = small("table")
        reference = reference_for(policy, batch)
        reference = torch.where(batch.mask, reference, garbage)
        paid = {"reference_logprobs": reference, "beta": 0.2}
        one_update(policy, batch, random_like(batch), **paid)
        ends.append(bits(policy))
    assert all(torch.equal(*pair) for pair in zip(ends[0], ends[1], strict=True))
    assert all(torch.equal(*pair) for pair in zip(ends[0], ends[2], strict=True))


def test_advantages_and_reference_are_constants():
    policy, batch = small("table")
    twin = copy.deepcopy(policy)
    advantages = policy(batch.observations[:, :-1])[..., 0] * batch.mask
    reference = action_logprobs(policy, batch)
    assert advantages.requires_grad
    assert reference.requires_grad
    one_update(
        policy, batch, advantages, reference_logprobs=reference, beta=0.3, epochs=2
    )
    others = {"reference_logprobs": reference.detach(), "beta": 0.3, "epochs": 2}
    one_update(twin, batch, advantages.detach().clone(), **others)
    assert same_bits(policy, bits(twin))


# The clip


def test_a_step_is_held_where_the_objective_is_flat():
    """A far step first: afterwards some ratios are outside, for all but CISPO."""
    held = {}
    for name, (objective, aggregate) in FAMILY.items():
        policy, batch = small("table")
        options = {
            "objective": objective,
            "aggregate": aggregate or mean_over_sequences,
        }
        sgd = torch.optim.SGD(policy.parameters(), lr=5.0)
        stats = one_update(policy, batch, random_like(batch), optimizer=sgd, **options)
        held[name] = stats.clip_fraction
        if name == "grpo":
            new = action_logprobs(policy, batch).detach()
            ratio = importance_ratio(new, batch.logprobs)
            advantages = random_like(batch)
            less = surrogate(ratio, advantages) > objective(
                new, batch.logprobs, advantages, batch.mask
            )
            expected = float(less[batch.mask].double().mean())
            assert stats.clip_fraction == pytest.approx(expected, abs=1e-12)
    assert held.pop("cispo") == 0
    assert all(0.05 < share < 0.95 for share in held.values()), held


# What is refused


@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_one_finite_number_of_the_reference_per_step_is_needed():
    policy, batch = small("table")
    paid = {"beta": 0.1, "reference_logprobs": batch.logprobs[:, 0]}
    message = "^reference_logprobs has shape"
    assert_refused(message, one_update, policy, batch, random_like(batch), **paid)
    paid["reference_logprobs"] = torch.full_like(batch.logprobs, -math.inf)
    message = "^reference_logprobs holds a value that is not finite"
    assert_refused(message, one_update, policy, batch, random_like(batch), **paid)
