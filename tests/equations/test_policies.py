import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from batches import random_batch, seeded, with_garbage

from rl_notes.divergences import entropy, sample
from rl_notes.policies import (
    MLPPolicy,
    TabularPolicy,
    action_logprobs,
    states,
)

NEVER = -math.inf
ALMOST_ONE = 1 - 2**-53  # the largest number that a uniform draw can give


def logits_of(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


# A table


def test_a_table_looks_states_up():
    policy = TabularPolicy(5, 3)
    assert policy.logits.dtype == torch.float32
    with torch.no_grad():
        policy.logits.copy_(torch.arange(15.0).view(5, 3))
    logits = policy(torch.tensor([[4, 0], [1, 1]]))
    assert logits.tolist() == [[[12, 13, 14], [0, 1, 2]], [[3, 4, 5], [3, 4, 5]]]
    assert logits.requires_grad


def test_a_table_starts_uniform():
    logits = TabularPolicy(4, 5)(torch.arange(4)[None])
    torch.testing.assert_close(logits.softmax(-1), torch.full((1, 4, 5), 0.2))


# A network


def network(inputs=6, actions=3, *, seed=0, **options):
    return MLPPolicy(inputs, actions, generator=seeded(seed), **options)


@pytest.mark.parametrize("hidden", [(), (8,), (16, 8)])
def test_a_network_gives_one_row_of_logits_per_observation(hidden):
    policy = network(hidden=hidden)
    logits = policy(torch.randn(2, 4, 6, generator=seeded(1)))
    assert logits.shape == (2, 4, 3)
    assert logits.dtype == torch.float32
    sizes = [6, *hidden, 3]
    parameters = sum(a * b + b for a, b in pairwise(sizes))
    assert sum(p.numel() for p in policy.parameters()) == parameters


def test_each_observation_is_seen_by_itself():
    policy = network()
    observations = torch.randn(2, 4, 6, generator=seeded(1))
    alone = policy(observations[1:, 2:3])
    torch.testing.assert_close(policy(observations)[1:, 2:3], alone)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_whole_number_is_a_one_hot_vector(dtype):
    policy = network().double()
    numbers = torch.tensor([[0, 5, 3]], dtype=dtype)
    vectors = torch.eye(6, dtype=torch.float64)[numbers.long()]
    logits = policy(numbers)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, policy(vectors), rtol=0, atol=0)
    assert not torch.allclose(logits[0, 0], logits[0, 1], rtol=0, atol=1e-6)


def test_observations_take_the_dtype_of_the_network():
    observations = torch.randn(1, 2, 6, dtype=torch.float64, generator=seeded(0))
    assert network()(observations).dtype == torch.float32
    assert network().double()(observations.float()).dtype == torch.float64


def test_the_generator_alone_fixes_the_network():
    torch.manual_seed(1)
    first = torch.nn.utils.parameters_to_vector(network(seed=3).parameters())
    torch.manual_seed(2)
    second = torch.nn.utils.parameters_to_vector(network(seed=3).parameters())
    other = torch.nn.utils.parameters_to_vector(network(seed=4).parameters())
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)


def test_the_first_network_is_almost_uniform_but_not_quite():
    observations = torch.randn(1, 500, 6, generator=seeded(1))
    probabilities = network()(observations).softmax(-1)
    assert 1e-4 < (probabilities - 1 / 3).abs().max() < 0.02


def test_a_network_saturates_inside_and_not_at_its_end():
    observations = torch.randn(1, 50, 6, generator=seeded(1))
    policy = network()
    small, large = policy(observations), policy(10 * observations)
    assert large.abs().mean() < 6 * small.abs().mean()
    with torch.no_grad():
        policy.layers[-1].weight *= 1e4
    assert policy(observations).abs().max() > 10


def test_hidden_layers_keep_the_size_of_what_passes_through():
    layers = [m for m in network(hidden=(4, 4)).layers if hasattr(m, "weight")]
    for layer, gain in zip(layers, (math.sqrt(2), math.sqrt(2), 0.01), strict=True):
        singular = torch.linalg.svdvals(layer.weight)
        torch.testing.assert_close(singular, torch.full_like(singular, gain))
        assert (layer.bias == 0).all()


# Log-probabilities of what was done


def table_of(*rows):
    policy = TabularPolicy(len(rows), len(rows[0])).double()
    with torch.no_grad():
        policy.logits.copy_(logits_of(*rows) + 1.7)  # any constant may be added
    return policy


def test_action_logprobs_by_hand():
    policy = table_of((0.5, 0.3, 0.2), (0.1, 0.1, 0.8))
    batch = random_batch([3, 1], states=2)
    batch = replace(
        batch,
        actions=torch.tensor([[2, 0, 1], [2, 0, 0]]),
        observations=torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0]]),
    )
    found = action_logprobs(policy, batch)
    expected = [[math.log(0.2), math.log(0.1), math.log(0.3)], [math.log(0.8), 0, 0]]
    assert found.dtype == torch.float64
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def tabular():
    policy = TabularPolicy(5, 3).double()
    torch.nn.init.normal_(policy.logits, generator=seeded(1))
    return policy


def test_nothing_beyond_the_mask_is_read_not_even_by_the_gradient():
    policy = tabular()
    batch = random_batch([3, 6, 0, 2], prompts=[1, 0, 2, 4])
    spoilt = with_garbage(batch)
    clean = action_logprobs(policy, batch)
    found = action_logprobs(policy, spoilt)
    torch.testing.assert_close(found, clean, rtol=0, atol=0)
    assert (found[~batch.mask] == 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), policy.logits)
    (expected,) = torch.autograd.grad(clean.sum(), policy.logits)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


def test_a_padded_observation_that_is_not_a_number_does_not_spoil_the_gradient():
    policy = network(4, 3)
    batch = random_batch([2, 4])
    observations = torch.randn(2, 5, 4, generator=seeded(0))
    observations[0, 3:] = math.nan
    batch = replace(batch, observations=observations)
    action_logprobs(policy, batch).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters())


class PrefixPolicy(torch.nn.Module):
    """Like a language model: its logits depend on all that was seen before."""

    def forward(self, observations):
        seen = observations.cumsum(dim=1).double()
        return torch.stack([seen, -seen], dim=-1)


def test_the_prompt_is_seen_and_the_last_observation_is_not():
    batch = random_batch([2, 3], prompts=[2, 0], steps=6, actions=2)
    seen = states(batch)
    assert seen.shape == (2, 6)
    assert seen[0].tolist() == [*batch.observations[0, :4].tolist(), 0, 0]
    assert seen[1].tolist() == [*batch.observations[1, :3].tolist(), 0, 0, 0]
    other = batch.observations.clone()
    other[0, 0] += 1  # the first token of the prompt
    before = action_logprobs(PrefixPolicy(), batch)
    after = action_logprobs(PrefixPolicy(), replace(batch, observations=other))
    assert ((before != after) == batch.mask)[0].all()
    assert torch.equal(before[1], after[1])


# Entropy


def test_entropy_of_uniform_certain_and_in_between():
    logits = torch.stack([torch.zeros(4).double(), logits_of(1, 0, 0, 0)])
    found = entropy(logits)
    assert found.tolist() == pytest.approx([math.log(4), 0.0], abs=1e-12)
    half = float(entropy(logits_of(0.5, 0.25, 0.25)))
    assert half == pytest.approx(1.5 * math.log(2), rel=1e-12)
    assert entropy(torch.zeros(2, 3, 4)).shape == (2, 3)


def test_entropy_agrees_with_torch_distributions():
    logits = 4 * torch.randn(5, 7, dtype=torch.float64, generator=seeded(0))
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), expected, rtol=1e-12, atol=1e-12)


def test_an_impossible_action_has_no_entropy_and_a_finite_gradient():
    logits = logits_of(0.8, 0.2, 0.0).requires_grad_()
    value = entropy(logits)
    assert value.item() == pytest.approx(0.500402, abs=5e-7)
    (gradient,) = torch.autograd.grad(value, logits)
    # d H / d z_a = - pi_a (log pi_a + H)
    assert gradient.tolist() == pytest.approx([-0.221807, 0.221807, 0.0], abs=5e-7)


def test_entropy_survives_large_logits():
    assert float(entropy(torch.tensor([1e4, 0.0, -1e4]))) == 0


# Sampling


@pytest.mark.parametrize(
    ("uniform", "action"),
    [(0.0, 0), (0.1999, 0), (0.2001, 1), (0.4999, 1), (0.5001, 2), (ALMOST_ONE, 2)],
)
def test_the_cumulative_distribution_is_inverted(uniform, action):
    uniforms = torch.tensor([uniform], dtype=torch.float64)
    assert sample(logits_of([0.2, 0.3, 0.5]), uniforms).tolist() == [action]


def test_an_impossible_action_is_never_drawn():
    rows = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    logits = logits_of(*rows)
    for uniform in (0.0, 2**-53, 0.4999, ALMOST_ONE):
        actions = sample(logits, torch.full((4,), uniform, dtype=torch.float64))
        assert (logits.gather(1, actions[:, None]) > NEVER).all()
    assert sample(logits, torch.zeros(4, dtype=torch.float64)).tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_just_below_one_picks_an_action_that_exists(dtype):
    logits = 5 * torch.randn(2_000, 1_000, generator=seeded(0)).to(dtype)
    actions = sample(logits, torch.full((2_000,), ALMOST_ONE, dtype=torch.float64))
    assert int(actions.max()) < 1_000


def test_frequencies_agree_with_the_probabilities():
    # N = 200,000 draws, seed 0: none of 4 frequencies lies 4 standard errors off (by
    # chance below 3e-4).
    chances = torch.tensor([0.05, 0.15, 0.3, 0.5], dtype=torch.float64)
    n = 200_000
    uniforms = torch.rand(n, dtype=torch.float64, generator=seeded(0))
    actions = sample(chances.log().expand(n, 4), uniforms)
    frequencies = actions.bincount(minlength=4) / n
    errors = (chances * (1 - chances) / n).sqrt()
    assert ((frequencies - chances).abs() < 4 * errors).all()


def test_a_row_does_not_depend_on_the_others():
    logits = torch.randn(8, 5, generator=seeded(0))
    uniforms = torch.rand(8, dtype=torch.float64, generator=seeded(1))
    together = sample(logits, uniforms)
    order = torch.randperm(8, generator=seeded(2))
    assert torch.equal(sample(logits[order], uniforms[order]), together[order])
    alone = [int(sample(logits[n : n + 1], uniforms[n : n + 1])) for n in range(8)]
    assert together.tolist() == alone
    assert len(set(alone)) > 1
