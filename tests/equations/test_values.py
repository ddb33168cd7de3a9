"""Value functions: what they read, the values of a batch, and fitting them."""

import copy
import math
from dataclasses import replace
from itertools import chain

import pytest
import torch
from batches import random_batch, seeded, with_garbage
from language_models import fresh, tiny
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import rl_notes.dynamic_programming as dp
from rl_notes.advantages import explained_variance, gae, returns_to_go
from rl_notes.language.generation import generate
from rl_notes.maze import MazeEnv, MazeVectorEnv
from rl_notes.objectives import mean_over_tokens, value_loss
from rl_notes.policies import (
    MLPPolicy,
    MLPValue,
    TabularPolicy,
    TabularValue,
    TransformerPolicy,
    TransformerValue,
    state_values,
    states,
)
from rl_notes.rollouts import rollout
from rl_notes.trajectories import Trajectories
from rl_notes.updates import fit_value

# A table and a network


def test_a_table_of_values_looks_states_up():
    value = TabularValue(5)
    assert value.values.dtype == torch.float32
    assert (value.values == 0).all()
    with torch.no_grad():
        value.values.copy_(torch.arange(5.0))
    found = value(torch.tensor([[4, 0], [1, 1]]))
    assert found.tolist() == [[4, 0], [1, 1]]
    assert found.requires_grad


def network(inputs=6, *, seed=0, **options):
    return MLPValue(inputs, generator=seeded(seed), **options)


def learnt(value, seed=0):
    """The same value function with an output layer that is not zero."""
    last = value.head if isinstance(value, TransformerValue) else value.layers[-1]
    nn.init.normal_(last.weight, generator=seeded(seed))
    nn.init.constant_(last.bias, 0.3)
    return value


@pytest.mark.parametrize("hidden", [(), (8,), (16, 8)])
def test_a_network_gives_one_number_per_observation(hidden):
    observations = torch.randn(2, 4, 6, generator=seeded(1))
    value = network(hidden=hidden)
    assert value(observations).shape == (2, 4)
    assert (value(observations) == 0).all()
    found = learnt(value)(observations)
    assert len(found.unique()) == 8
    torch.testing.assert_close(value(observations[1:, 2:3]), found[1:, 2:3])


def test_a_network_takes_whole_numbers_and_its_own_dtype():
    value = learnt(network().double())
    numbers = torch.tensor([[0, 5, 3]])
    vectors = torch.eye(6)[numbers]
    assert value(vectors).dtype == torch.float64
    torch.testing.assert_close(value(numbers), value(vectors), rtol=0, atol=0)
    assert len(value(numbers).unique()) == 3


def test_inside_a_network_of_values_is_like_one_of_logits():
    value, policy = (
        network(hidden=(7, 5)),
        MLPPolicy(6, 3, hidden=(7, 5), generator=seeded(0)),
    )
    pairs = zip(list(value.layers)[:-1], list(policy.layers)[:-1], strict=True)
    for mine, theirs in pairs:
        assert type(mine) is type(theirs)
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one, other)
    singular = torch.linalg.svdvals(value.layers[0].weight)
    torch.testing.assert_close(singular, torch.full_like(singular, math.sqrt(2)))


# A language model: V(s_t) is read at the last token of the prefix


def gpt2(seed=0):
    """Another architecture: learned positions, another name for everything inside."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=6, n_positions=16, n_embd=8, n_layer=1, n_head=2, eos_token_id=2
    )
    return GPT2LMHeadModel(config).eval().double()


EVERY_MODEL = pytest.mark.parametrize("make", [lambda: tiny(vocabulary=6), gpt2])


def assert_value_reads_its_prefix(value):
    """Three tokens, so three states; change each token in turn and see which V move.

    V(s_t) knows the tokens 0 ... t. Token t + 1 is the action a_t: V(s_t) is asked
    before it is taken.
    """
    plain = value(torch.tensor([[1, 3, 4]]))[0]
    for changed, tokens in enumerate([[5, 3, 4], [1, 5, 4], [1, 3, 5]]):
        other = value(torch.tensor([tokens]))[0]
        moved = (other - plain).abs() > 1e-6
        assert moved.tolist() == [t >= changed for t in range(3)]


@EVERY_MODEL
def test_the_value_of_a_state_is_read_before_its_action(make):
    assert_value_reads_its_prefix(learnt(TransformerValue(make())))


class Late(TransformerValue):
    """Reads V(s_t) where token t + 1, the action, has been seen."""

    def forward(self, observations):
        return super().forward(observations).roll(-1, dims=1)


class Early(TransformerValue):
    """Reads V(s_t) one token before the end of the prefix."""

    def forward(self, observations):
        return super().forward(observations).roll(1, dims=1)


@pytest.mark.parametrize("wrong", [Late, Early])
def test_a_value_read_one_position_off_is_refused_by_the_test_above(wrong):
    with pytest.raises(AssertionError):
        assert_value_reads_its_prefix(learnt(wrong(tiny(vocabulary=6))))


@EVERY_MODEL
def test_the_value_is_that_of_the_prefix_alone(make):
    value = learnt(TransformerValue(make()))
    ids = torch.randint(6, (4, 9), generator=seeded(0))
    together = value(ids)
    for t in range(9):
        alone = value(ids[:, : t + 1])[:, -1]
        torch.testing.assert_close(together[:, t], alone, rtol=0, atol=1e-12)


@EVERY_MODEL
def test_the_head_reads_what_the_output_layer_reads(make):
    """With the output layer's row of token k as its head, V is the logit of k."""
    model = make()
    value = TransformerValue(model)
    ids = torch.randint(6, (3, 7), generator=seeded(1))
    with torch.no_grad():
        value.head.weight.copy_(model.get_output_embeddings().weight[4:5])
        value.head.bias.fill_(2.0)
    logits = TransformerPolicy(model)(ids)
    torch.testing.assert_close(value(ids), logits[..., 4] + 2, rtol=0, atol=1e-12)
    assert float(logits[..., 4].detach().std()) > 1e-3


def test_the_first_values_are_zero_and_the_first_step_leaves_the_model_alone():
    value = TransformerValue(fresh())
    before = copy.deepcopy(value.state_dict())
    ids = torch.randint(22, (3, 8), generator=seeded(0))
    assert torch.equal(value(ids), torch.zeros(3, 8))
    optimizer = torch.optim.SGD(value.parameters(), lr=0.1)
    (value(ids) - 1).square().mean().backward()
    optimizer.step()
    after = value.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_head_has_the_dtype_and_device_of_the_model(dtype):
    value = TransformerValue(tiny().to(dtype))
    assert {p.dtype for p in value.parameters()} == {dtype}
    on_meta = TransformerValue(tiny().to("meta"))
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}


def text_batch(model):
    """Answers of a policy, of different lengths, after prompts of different lengths."""
    prompts = [[1, 3], [1, 4, 5], [1]]
    return generate(
        TransformerPolicy(model),
        prompts,
        group_size=4,
        max_new_tokens=6,
        generator=seeded(1),
    )


def test_a_value_of_its_own_leaves_the_policy_alone_and_a_shared_one_does_not():
    model = tiny(vocabulary=6)
    batch = text_batch(model)
    ids = batch.observations
    before = TransformerPolicy(model)(ids)
    for shared in (False, True):
        value = TransformerValue(model if shared else copy.deepcopy(model))
        optimizer = torch.optim.SGD(value.parameters(), lr=0.01)
        targets = torch.randn(batch.mask.shape, generator=seeded(0)).double()
        fit(value, batch, targets, optimizer=optimizer, epochs=3)
        assert float(state_values(value, batch).detach().abs().max()) > 1e-3
        same = torch.equal(TransformerPolicy(model)(ids), before)
        assert same is not shared


def test_the_output_layer_is_no_part_of_the_value():
    model = tiny()
    held = {id(p) for p in TransformerValue(model).parameters()}
    assert id(model.get_output_embeddings().weight) not in held


# The values of a batch


class Noted(nn.Module):
    """V(s) = 10 s, and a note of what was asked."""

    def forward(self, observations):
        self.seen = observations
        return 10.0 * observations


def test_the_values_of_a_batch_by_hand():
    """Row 0 has 2 steps, row 1 one step after a prompt of one: s_2 is their last."""
    batch = random_batch([2, 1], prompts=[0, 1], steps=3)
    batch = replace(batch, observations=torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]))
    value = Noted()
    assert state_values(value, batch).tolist() == [[10, 20, 30, 0], [40, 30, 20, 0]]
    assert value.seen.tolist() == [[1, 2, 3, 0], [4, 3, 2, 0]]


def test_a_row_as_long_as_the_table_has_its_last_state_too():
    batch = random_batch([3, 0], steps=3)
    batch = replace(batch, observations=torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]))
    assert state_values(Noted(), batch).tolist() == [[10, 20, 30, 40], [40, 0, 0, 0]]


def random_table(states=5):
    value = TabularValue(states).double()
    nn.init.normal_(value.values, generator=seeded(1))
    return value


@pytest.mark.parametrize("kind", ["table", "network", "language model"])
def test_nothing_beyond_the_last_state_is_read(kind):
    """The garbage is an index that does not exist: reading it would be an error."""
    value = {
        "table": random_table,
        "network": lambda: learnt(network(5).double()),
        "language model": lambda: learnt(TransformerValue(tiny(vocabulary=5))),
    }[kind]()
    batch = random_batch([3, 6, 0, 2], prompts=[1, 0, 2, 4], cut=[0, 3], steps=8)
    clean, found = (state_values(value, b) for b in (batch, with_garbage(batch)))
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-12)
    inside = torch.arange(9) <= batch.lengths[:, None]
    assert (found[~inside] == 0).all()
    assert (found[inside] != 0).all()
    parameters = list(value.parameters())
    gradients, expected = (
        torch.autograd.grad(v.sum(), parameters, allow_unused=True)
        for v in (found, clean)
    )
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_an_observation_beyond_the_row_that_is_not_a_number_does_no_harm():
    batch = random_batch([2, 4])
    observations = torch.randn(2, 5, 6, generator=seeded(0))
    observations[0, 3:] = math.nan
    value = learnt(network())
    found = state_values(value, replace(batch, observations=observations))
    found.sum().backward()
    assert (found[0, 3:] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in value.parameters())


def test_values_and_the_states_of_the_policy_line_up():
    batch = random_batch([3, 5], prompts=[1, 0], cut=[0], steps=6)
    value = random_table()
    seen = value(states(batch))
    found = state_values(value, batch)[:, :-1]
    assert torch.equal(found[batch.mask], seen[batch.mask])


def test_the_value_of_the_last_state_bootstraps_a_row_that_was_cut():
    maze, gamma = MazeEnv(size=2), 0.9
    policy = TabularPolicy(16, 3).double()
    chances = policy.logits.detach().softmax(-1)
    value = TabularValue(16).double()
    with torch.no_grad():
        value.values.copy_(dp.policy_evaluation(maze, chances, discount=gamma))
    # N = 4,000 episodes from one start, seed 0, cut after 3 steps. Without V(s_L)
    # the mean is off by far more than 5 standard errors.
    env = MazeVectorEnv(4_000, size=2, max_episode_steps=3)
    batch = rollout(env, policy, episodes=4_000, discount=gamma, generator=seeded(0))
    with torch.no_grad():
        values = state_values(value, batch)
    first = gae(batch, values, lambda_=1)[:, 0]
    error = float(first.std() / math.sqrt(4_000))
    assert abs(float(first.mean())) < 5 * error
    assert abs(float((returns_to_go(batch) - values[:, :-1])[:, 0].mean())) > 20 * error


def test_a_value_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"gave shape \(2, 4, 1\), .* \[2, 4\]"):
        state_values(Wide(5), random_batch([3, 1]))


# Fitting


def fit(value, batch, targets, *, optimizer=None, epochs=1, minibatches=1, seed=0):
    optimizer = optimizer or torch.optim.SGD(value.parameters(), lr=1.0)
    return fit_value(
        value,
        optimizer,
        batch,
        targets,
        epochs=epochs,
        minibatches=minibatches,
        generator=seeded(seed),
    )


def two_rows():
    """Rows of 2 steps and of 1: states 0 and 1, and state 0 again."""
    batch = random_batch([2, 1], steps=2)
    batch = replace(batch, observations=torch.tensor([[0, 1, 2], [0, 1, 2]]))
    return batch, torch.tensor([[3.0, 5], [9, 77]], dtype=torch.float64)


def test_one_step_by_hand():
    # The mean over 3 steps of (V - target)^2 / 2: its gradient is -(3 + 9) / 3 at
    # state 0 and -5 / 3 at state 1.
    batch, targets = two_rows()
    value = TabularValue(3).double()
    stats = fit(value, batch, targets)
    assert value.values.tolist() == pytest.approx([4, 5 / 3, 0])
    assert stats.losses == pytest.approx([(9 + 25 + 81) / 6])
    assert stats.explained_variance_before == 0
    mask = batch.mask
    explained = explained_variance(value(states(batch)).detach(), targets, mask)
    assert stats.explained_variance_after == explained != 0


def test_each_minibatch_is_a_step_along_its_own_mean():
    batch, targets = two_rows()
    found = set()
    for seed in range(6):
        value = TabularValue(3).double()
        stats = fit(value, batch, targets, minibatches=2, seed=seed)
        found.add(tuple(round(v, 9) for v in [*value.values.tolist(), *stats.losses]))
    # Row 0 first: state 0 moves to 3/2, state 1 to 5/2; then row 1 moves state 0 to
    # 9. Row 1 first: to 9; then row 0 moves it half of the way from 9 to 3. The loss
    # is the sum over the steps, each before its move, over all 3 steps.
    first = (9.0, 2.5, 0.0, round((9 / 2 + 25 / 2 + 7.5**2 / 2) / 3, 9))
    second = (6.0, 2.5, 0.0, round((81 / 2 + 36 / 2 + 25 / 2) / 3, 9))
    assert found == {first, second}


class Counting(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        self.steps += 1
        return super().step(closure)


class Recording(TabularValue):
    """Notes the first state of each row that it is asked about."""

    def forward(self, observations):
        self.asked = [*getattr(self, "asked", []), observations[:, 0].tolist()]
        return super().forward(observations)


def test_every_row_is_used_once_per_epoch_in_an_order_of_its_own():
    """7 rows in 3 parts of 3, 2 and 2; the eighth row, without a step, in none."""
    batch = random_batch([2, 1, 3, 1, 2, 4, 1, 0])
    observations = torch.arange(8)[:, None].expand(8, 5)
    batch = replace(batch, observations=observations)
    value = Recording(8).double()
    optimizer = Counting(value.parameters(), lr=0.1)
    targets = torch.ones_like(batch.rewards)
    stats = fit(value, batch, targets, optimizer=optimizer, epochs=4, minibatches=3)
    assert optimizer.steps == 12
    assert len(stats.losses) == 4
    asked = value.asked[1:-1]  # between the two looks at the whole
    assert [len(rows) for rows in asked] == [3, 2, 2] * 4
    epochs = [[*chain(*asked[k : k + 3])] for k in range(0, 12, 3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_the_generator_alone_fixes_the_fit():
    batch, targets = batch_and_targets()
    ends = []
    for seed, unseen in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(unseen)
        value = TabularValue(5).double()
        fit(value, batch, targets, epochs=2, minibatches=3, seed=seed)
        ends.append(value.values.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.allclose(ends[0], ends[2])


def batch_and_targets():
    batch = random_batch([4, 1, 6, 2], prompts=[0, 3, 1, 0], cut=[1])
    return batch, returns_to_go(batch) + 2


@pytest.mark.parametrize("garbage", [1e9, math.nan, math.inf])
def test_nothing_beyond_the_mask_is_fitted(garbage):
    batch, targets = batch_and_targets()
    clean, found = random_table(), random_table()
    expected = fit(clean, batch, targets, epochs=2)
    spoilt = torch.where(batch.mask, targets, garbage)
    stats = fit(found, with_garbage(batch), spoilt, epochs=2)
    assert torch.equal(found.values, clean.values)
    assert stats == expected


def test_a_table_learns_the_mean_of_what_followed_each_state():
    batch, targets = batch_and_targets()
    value = TabularValue(5).double()
    stats = fit(value, batch, targets, epochs=400)
    seen = batch.observations[:, :-1][batch.mask]
    for state in range(5):
        expected = float(targets[batch.mask][seen == state].mean())
        found = float(value.values[state].detach())
        assert found == pytest.approx(expected, abs=1e-6)
    assert stats.losses[-1] < stats.losses[5] < stats.losses[0]
    loss = mean_over_tokens(value_loss(value(states(batch)), targets), batch.mask)
    assert stats.losses[-1] == pytest.approx(float(loss.detach()), abs=1e-9)
    assert 0 < stats.explained_variance_after <= 1


def test_targets_are_constants():
    """Targets made from the values themselves: no gradient flows through them."""
    batch, _ = batch_and_targets()
    value, other = random_table(), random_table()
    values = state_values(value, batch)
    targets = gae(batch, values, lambda_=0.5) + values[:, :-1]
    assert targets.requires_grad
    fit(value, batch, targets, epochs=3)
    fit(other, batch, targets.detach(), epochs=3)
    assert torch.equal(value.values, other.values)


def test_the_gradient_is_not_added_to_the_one_before():
    batch, targets = batch_and_targets()
    value, other = random_table(), random_table()
    value.values.grad = torch.full_like(value.values, 100.0)
    fit(value, batch, targets)
    fit(other, batch, targets)
    assert torch.equal(value.values, other.values)


def test_a_language_model_learns_the_value_of_its_answers():
    model = tiny(vocabulary=6)
    batch = text_batch(model)
    # Worth 1 for every token 3 among the two last that were written: not linear.
    threes = (batch.observations == 3).double()
    targets = (threes[:, :-1] + threes.roll(1, dims=1)[:, :-1]) * batch.mask
    value = TransformerValue(copy.deepcopy(model))
    optimizer = torch.optim.Adam(value.parameters(), lr=0.01)
    stats = fit(value, batch, targets, optimizer=optimizer, epochs=150, minibatches=2)
    assert stats.explained_variance_before == 0
    assert stats.explained_variance_after > 0.9
    assert stats.losses[-1] < 0.1 * stats.losses[0]


# What is refused


def assert_unchanged_after(message, value, targets, batch=None, **options):
    batch = batch or batch_and_targets()[0]
    before = copy.deepcopy(value.state_dict())
    with pytest.raises(ValueError, match=message):
        fit(value, batch, targets, **options)
    after = value.state_dict()
    assert all(
        torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before
    )


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4), (3, 4), (4, 5), ()])
def test_one_target_per_step_is_needed(shape):
    batch = random_batch([4, 4, 2, 1])  # N = T
    message = r"^targets has shape .*needed: \[4, 4\]"
    assert_unchanged_after(message, random_table(), torch.ones(shape), batch)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_targets_must_be_finite(garbage):
    _, targets = batch_and_targets()
    targets[2, 3] = garbage
    message = "targets holds a value that is not finite"
    assert_unchanged_after(message, random_table(), targets)


@pytest.mark.parametrize("minibatches", [0, -1, 4])
def test_a_minibatch_has_at_least_one_row_with_a_step(minibatches):
    batch = random_batch([4, 0, 2, 1])
    message = rf"minibatches={minibatches}, .*number of rows .*: 3"
    targets = torch.ones_like(batch.rewards)
    assert_unchanged_after(
        message, random_table(), targets, batch, minibatches=minibatches
    )


@pytest.mark.parametrize("epochs", [0, -2])
def test_there_is_at_least_one_epoch(epochs):
    _, targets = batch_and_targets()
    message = f"epochs must be at least 1, but it is {epochs}"
    assert_unchanged_after(message, random_table(), targets, epochs=epochs)


class SquareRoot(TabularValue):
    """V = sqrt(values): at 0 the loss is finite and its gradient is not."""

    def forward(self, observations):
        return super().forward(observations).sqrt()


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_no_step_is_taken_along_what_is_not_finite(make):
    _, targets = batch_and_targets()
    start = random_table()
    with torch.no_grad():
        start.values[0] = math.nan
    for value, message in (
        (start, "values holds a value that is not finite"),
        (SquareRoot(5).double(), "gradient is not finite"),
    ):
        optimizer = make(value.parameters(), lr=0.1)
        assert_unchanged_after(message, value, targets, optimizer=optimizer)


def test_a_fit_that_diverges_leaves_value_and_optimizer_as_they_were():
    batch, targets = batch_and_targets()
    value = random_table()
    optimizer = torch.optim.SGD(value.parameters(), lr=0.1, momentum=0.9)
    fit(value, batch, targets, optimizer=optimizer)
    twin, rival = random_table(), None
    rival = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    fit(twin, batch, targets, optimizer=rival)

    for group in optimizer.param_groups:
        group["lr"] = 1e3
    message = "loss is not finite, so the value function was left as it was"
    assert_unchanged_after(
        message, value, targets, optimizer=optimizer, epochs=500, minibatches=2
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    # From here on it goes on as if nothing had happened.
    fit(value, batch, targets, optimizer=optimizer)
    fit(twin, batch, targets, optimizer=rival)
    assert torch.equal(value.values, twin.values)


def test_a_last_step_into_infinity_is_undone_too():
    _, targets = batch_and_targets()
    value = random_table()
    optimizer = torch.optim.SGD(value.parameters(), lr=1e308)
    assert_unchanged_after(
        "values holds .* not", value, 1e3 * targets, optimizer=optimizer
    )


class Wide(TabularValue):
    """Forgets to drop the last axis."""

    def forward(self, observations):
        return super().forward(observations)[..., None]


@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_a_value_of_another_shape_cannot_be_fitted():
    batch, targets = batch_and_targets()
    with pytest.raises(ValueError, match=r"^values has shape \(4, 7, 1\)"):
        fit(Wide(5), batch, targets)


def test_trajectories_are_not_touched():
    batch, targets = batch_and_targets()
    before = copy.deepcopy(batch)
    kept = targets.clone()
    fit(random_table(), batch, targets, epochs=2, minibatches=2)
    assert torch.equal(targets, kept)
    for name in Trajectories.__dataclass_fields__:
        assert torch.equal(getattr(batch, name), getattr(before, name))
