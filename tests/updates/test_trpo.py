"""The trust region: the matrix, the solver, the step, and the update made of them."""

import math
from dataclasses import astuple, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from batches import random_batch, seeded
from small_policies import (
    KINDS,
    bits,
    every_policy,
    flat_weights,
    its_own,
    random_like,
    same_bits,
    small,
)
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import rl_notes.dynamic_programming as dp
from rl_notes import natural_gradient, updates
from rl_notes.divergences import entropy, kl_exact
from rl_notes.language import tokenizer as little
from rl_notes.language.arithmetic import questions
from rl_notes.language.generation import generate
from rl_notes.language.models import load
from rl_notes.maze import MazeEnv, MazeVectorEnv
from rl_notes.natural_gradient import (
    conjugate_gradient,
    fisher_vector_product,
    flat_gradient,
    line_search,
    natural_step,
    split,
    trainable,
)
from rl_notes.objectives import importance_ratio, mean_over_tokens, surrogate
from rl_notes.policies import (
    MLPPolicy,
    TabularPolicy,
    TransformerPolicy,
    action_logprobs,
    states,
)
from rl_notes.rollouts import rollout
from rl_notes.updates import TrustRegionStats, reinforce_update, trpo_update


def random_vector(policy, seed=0):
    start = flat_weights(policy)
    return torch.randn(len(start), generator=seeded(seed), dtype=torch.float64).to(
        start.dtype
    )


# The matrix


def explicit_fisher(policy, batch):
    """Mean over steps of sum_a pi grad log pi grad log pi', one gradient at a time."""
    weights = [w for w in policy.parameters() if w.requires_grad]
    rows = policy(states(batch))[batch.mask].log_softmax(-1)
    total = 0.0
    for logprob in rows.flatten():
        parts = torch.autograd.grad(
            logprob, weights, retain_graph=True, materialize_grads=True
        )
        score = torch.cat([part.flatten() for part in parts])
        total = total + logprob.detach().exp() * torch.outer(score, score)
    return total / len(rows)


def matrix_of(product, size, dtype=torch.float64):
    return torch.stack([product(unit) for unit in torch.eye(size, dtype=dtype)], dim=1)


@cache
def explicit(kind, dtype=torch.float64):
    """In float64, of the policy that `dtype` rounds to."""
    policy, batch = small(kind, dtype)
    return explicit_fisher(policy.double(), batch)


def check_product(make, kind, dtype, tolerance):
    policy, batch = small(kind, dtype)
    product = make(policy, batch)
    found = matrix_of(product, len(flat_weights(policy)), dtype)
    expected = explicit(kind, dtype)
    size = float(expected.abs().max())
    assert size > 0.01
    error = (found - expected).abs().max() / max(1.0, size)
    assert float(error) < tolerance


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)]
)
@every_policy
def test_the_product_is_that_with_the_explicit_matrix(kind, dtype, tolerance):
    check_product(fisher_vector_product, kind, dtype, tolerance)


@every_policy
def test_the_matrix_is_symmetric_and_not_negative(kind):
    policy, batch = small(kind)
    size = len(flat_weights(policy))
    found = matrix_of(fisher_vector_product(policy, batch), size)
    largest = float(found.abs().max())
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-13 * largest)
    lowest, *_, highest = torch.linalg.eigvalsh(found).tolist()
    assert abs(lowest) < 1e-12 * highest  # a shift of all logits moves nothing


@every_policy
@pytest.mark.parametrize("reverse", [False, True])
def test_it_is_the_hessian_of_the_kl_in_either_direction(kind, reverse):
    policy, batch = small(kind)
    weights = trainable(policy)
    seen = states(batch)
    old = policy(seen).detach()

    def kl(vector):
        new = functional_call(policy, split(vector, weights), (seen,))
        both = (new, old) if reverse else (old, new)
        return mean_over_tokens(kl_exact(*both), batch.mask)

    product = fisher_vector_product(policy, batch)
    for seed in range(5):
        v = random_vector(policy, seed)
        with sdpa_kernel(SDPBackend.MATH):
            _, expected = torch.autograd.functional.vhp(kl, flat_weights(policy), v)
        size = float(expected.norm())
        assert size > 0.01
        torch.testing.assert_close(product(v), expected, rtol=0, atol=1e-12 * size)


@every_policy
def test_damping_adds_to_the_diagonal(kind):
    policy, batch = small(kind)
    v = random_vector(policy)
    plain = fisher_vector_product(policy, batch)(v)
    damped = fisher_vector_product(policy, batch, damping=0.3)(v)
    torch.testing.assert_close(damped - plain, 0.3 * v, rtol=0, atol=1e-12)


@every_policy
def test_only_the_rows_asked_for(kind):
    policy, batch = small(kind)
    v, rows = random_vector(policy), torch.tensor([2, 0])
    whole = fisher_vector_product(policy, batch)(v)
    found = fisher_vector_product(policy, batch, rows=rows)(v)
    alone = fisher_vector_product(policy, batch.select(rows))(v)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-13)
    assert float((found - whole).norm()) > 0.01 * float(whole.norm())


def test_every_step_weighs_the_same_however_the_rows_are_dealt_out(monkeypatch):
    policy, _ = small("network")
    lengths = torch.randint(1, 9, (70,), generator=seeded(3)).tolist()
    batch = random_batch([0, *lengths, 0])
    widths = []
    policy.register_forward_pre_hook(lambda _, seen: widths.append(seen[0].shape[1]))
    v = random_vector(policy)
    found = fisher_vector_product(policy, batch)(v)
    single = [torch.tensor([row]) for row in range(1, 71)]
    expected = sum(
        length / sum(lengths) * fisher_vector_product(policy, batch, rows=row)(v)
        for length, row in zip(lengths, single, strict=True)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for at_a_time in (1, 7, 100):
        monkeypatch.setattr(natural_gradient, "ROWS_AT_A_TIME", at_a_time)
        other = fisher_vector_product(policy, batch)(v)
        torch.testing.assert_close(found, other, rtol=0, atol=1e-12)
    assert min(widths) == 1  # no policy needs to know what to say of no state at all


def test_what_was_chosen_and_earned_plays_no_part():
    policy, batch = small("table")
    v = random_vector(policy)
    other = replace(
        batch,
        actions=(batch.actions + 1) % 3 * batch.mask,
        logprobs=-1.0 * batch.mask,
        rewards=7.0 * batch.mask,
        groups=torch.zeros_like(batch.groups),
    )
    product, same = (fisher_vector_product(policy, b)(v) for b in (batch, other))
    assert torch.equal(product, same)


class Tied(torch.nn.Module):
    """One matrix, used on the way in and on the way out."""

    def __init__(self):
        super().__init__()
        self.inward = torch.nn.Embedding(5, 5, dtype=torch.float64)
        self.outward = torch.nn.Linear(5, 5, bias=False, dtype=torch.float64)
        torch.nn.init.normal_(self.inward.weight, generator=seeded(0))
        self.outward.weight = self.inward.weight

    def forward(self, observations):
        return self.outward(self.inward(observations).tanh())


def test_shared_weights_count_once():
    policy = Tied()
    batch = its_own(policy, random_batch([4, 2], actions=5))
    assert len(flat_weights(policy)) == 25
    found = matrix_of(fisher_vector_product(policy, batch), 25)
    torch.testing.assert_close(
        found, explicit_fisher(policy, batch), rtol=0, atol=1e-12
    )
    stats = trpo_update(policy, batch, random_like(batch), max_kl=0.01, damping=0.01)
    assert stats.accepted
    assert policy.outward.weight is policy.inward.weight
    with torch.no_grad():
        new = policy(states(batch))
    assert stats.entropy == pytest.approx(
        float(mean_over_tokens(entropy(new), batch.mask)), rel=1e-12
    )


class ActorCritic(torch.nn.Module):
    """A policy that carries a value head, and one layer that is not to be trained."""

    def __init__(self):
        super().__init__()
        self.frozen = MLPPolicy(5, 4, hidden=(), generator=seeded(1)).double()
        self.value = torch.nn.Linear(4, 1, dtype=torch.float64)
        self.actor = MLPPolicy(4, 3, hidden=(), generator=seeded(2)).double()
        self.frozen.requires_grad_(False)
        for weight in self.parameters():
            torch.nn.init.normal_(weight, generator=seeded(3))

    def forward(self, observations):
        return self.actor(self.frozen(observations))


def test_frozen_weights_and_a_value_head_stay_as_they_are():
    policy = ActorCritic()
    batch = its_own(policy, random_batch([4, 2]))
    size = 4 + 1 + 12 + 3
    assert len(flat_weights(policy)) == size
    found = matrix_of(fisher_vector_product(policy, batch), size)
    assert (found[:5] == 0).all()
    assert (found[:, :5] == 0).all()
    assert float(found.norm()) > 0.1
    policy.value.weight.grad = torch.full((1, 4), 3.0).double()
    frozen, value, actor = map(bits, (policy.frozen, policy.value, policy.actor))
    stats = trpo_update(policy, batch, random_like(batch), max_kl=0.01, damping=0.01)
    assert stats.accepted
    assert same_bits(policy.frozen, frozen)
    assert same_bits(policy.value, value)
    assert not same_bits(policy.actor, actor)
    # No gradient is left behind, and none that was there is touched.
    assert (policy.value.weight.grad == 3.0).all()
    assert all(weight.grad is None for weight in policy.actor.parameters())


@pytest.mark.parametrize("damping", [-1e-6, math.nan, math.inf])
def test_damping_must_not_be_negative(damping):
    policy, batch = small("table")
    with pytest.raises(ValueError, match="damping must not be negative, but it is"):
        fisher_vector_product(policy, batch, damping=damping)


def test_a_matrix_needs_a_step_and_a_weight():
    policy, _ = small("table")
    batch = random_batch([2, 0])
    with pytest.raises(ValueError, match="selects no step"):
        fisher_vector_product(policy, batch, rows=torch.tensor([1]))
    policy.requires_grad_(False)
    with pytest.raises(ValueError, match="No parameter of the policy requires"):
        fisher_vector_product(policy, batch)


# The solver


def symmetric(eigenvalues, seed=0):
    size = len(eigenvalues)
    noise = torch.randn(size, size, generator=seeded(seed), dtype=torch.float64)
    axes, _ = torch.linalg.qr(noise)
    return axes @ torch.diag(torch.as_tensor(eigenvalues).double()) @ axes.T


def system(size=20, seed=0):
    matrix = symmetric(torch.linspace(0.5, 30.0, size), seed)
    b = torch.randn(size, generator=seeded(seed + 1), dtype=torch.float64)
    return matrix, b


def check_solver(solve):
    for seed in range(3):
        matrix, b = system(seed=seed)
        asked = b.clone()
        x, residual = solve(lambda v, a=matrix: a @ v, b, iterations=30)
        assert torch.equal(b, asked), "the right-hand side was changed"
        expected = torch.linalg.solve(matrix, asked)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)
        assert residual < 1e-9
        values = [float(0 * asked[0])]
        for iterations in range(1, 21):
            x, residual = solve(lambda v, a=matrix: a @ v, b, iterations=iterations)
            values.append(float(0.5 * x @ matrix @ x - asked @ x))
            true = float((asked - matrix @ x).norm() / asked.norm())
            assert residual == pytest.approx(true, rel=1e-3, abs=1e-9)
        drops = [one - other for one, other in pairwise(values)]
        assert min(drops) > -1e-12
        assert min(drops[:10]) > 1e-6, "an iteration gained nothing"
        assert torch.equal(b, asked)


def test_conjugate_gradient_is_exact_and_never_rises():
    check_solver(conjugate_gradient)


def test_as_many_products_as_different_eigenvalues():
    matrix, calls = symmetric([1.0, 1, 1, 4, 4, 9, 9, 9]), []

    def product(v):
        calls.append(v)
        return matrix @ v

    b = system(8)[1]
    x, residual = conjugate_gradient(product, b, iterations=50)
    assert len(calls) == 3
    assert residual < 1e-10
    torch.testing.assert_close(matrix @ x, b, rtol=0, atol=1e-10)


def test_too_few_iterations_are_reported():
    matrix, b = system()
    _, residual = conjugate_gradient(lambda v: matrix @ v, b, iterations=3)
    assert 0.05 < residual < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_stops_at_a_solution(dtype):
    # Without the stop, rounding would decide the sign of the next curvature.
    b = torch.tensor([3.0, -4.0], dtype=dtype)
    flat = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=dtype)
    x, residual = conjugate_gradient(lambda v: 2 * v, b, iterations=1000)
    assert x.tolist() == [1.5, -2.0]
    assert residual == 0
    x, residual = conjugate_gradient(lambda v: flat @ v, flat[0], iterations=1000)
    assert x.tolist() == [1.0, 0.0]
    assert residual == 0


def test_a_right_hand_side_of_zero_asks_for_nothing():
    def never(v):
        raise AssertionError("no product is needed")

    x, residual = conjugate_gradient(never, torch.zeros(3))
    assert x.tolist() == [0, 0, 0]
    assert residual == 0


@pytest.mark.parametrize(
    ("eigenvalues", "shown"),
    [([-1.0, -1.0], "-"), ([0.0, 0.0], "0"), ([math.nan] * 2, "nan")],
)
def test_a_product_that_is_not_positive_is_refused(eigenvalues, shown):
    scale = torch.tensor(eigenvalues)
    with pytest.raises(ValueError, match=f"x'A x = {shown}.*raise the damping"):
        conjugate_gradient(lambda v: scale * v, torch.ones(2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_right_hand_side_must_be_finite(value):
    with pytest.raises(ValueError, match="b holds a value that is not finite"):
        conjugate_gradient(lambda v: v, torch.tensor([1.0, value]))


# The step


def policy_gradient(policy, batch, advantages):
    ratio = importance_ratio(action_logprobs(policy, batch), batch.logprobs)
    mean = mean_over_tokens(surrogate(ratio, advantages), batch.mask)
    return flat_gradient(mean, trainable(policy))


def check_step(step_along):
    """The length is the radius, damping included, however far the solver came."""
    for kind in KINDS:
        policy, batch = small(kind)
        g = policy_gradient(policy, batch, random_like(batch))
        for iterations in (1, 3, 50):
            damped = fisher_vector_product(policy, batch, damping=0.02)
            step, residual = step_along(damped, g, max_kl=0.01, iterations=iterations)
            length = 0.5 * step @ damped(step)
            assert float(length) == pytest.approx(0.01, rel=1e-10)
            assert float(g @ step) > 0
        assert residual < 1e-3
        identity = torch.eye(len(g), dtype=torch.float64)
        exact = torch.linalg.solve(explicit(kind) + 0.02 * identity, g)
        cosine = torch.nn.functional.cosine_similarity(exact, step, dim=0)
        assert float(cosine) > 1 - 1e-5
        zero, residual = step_along(damped, 0 * g, max_kl=0.01)
        assert (zero == 0).all()
        assert residual == 0


def test_the_step_is_as_long_as_the_region_allows():
    check_step(natural_step)


@every_policy
def test_how_the_objective_is_scaled_does_not_matter(kind):
    policy, batch = small(kind)
    g = policy_gradient(policy, batch, random_like(batch))
    product = fisher_vector_product(policy, batch, damping=0.02)
    # A power of two, which rounds nothing.
    one, other = (natural_step(product, c * g, max_kl=0.01)[0] for c in (1, 1024))
    assert float(one.norm()) > 0.01
    assert torch.equal(one, other)


@every_policy
def test_half_of_sFs_is_the_kl_of_a_small_step(kind):
    policy, batch = small(kind)
    g = policy_gradient(policy, batch, random_like(batch))
    plain = fisher_vector_product(policy, batch)
    step, _ = natural_step(
        fisher_vector_product(policy, batch, damping=0.1), g, max_kl=1e-8, iterations=50
    )
    weights, seen = trainable(policy), states(batch)
    with torch.no_grad():
        there = split(flat_weights(policy) + step, weights)
        new = functional_call(policy, there, (seen,))
        kl = mean_over_tokens(kl_exact(policy(seen), new), batch.mask)
    assert float(kl) == pytest.approx(float(0.5 * step @ plain(step)), rel=1e-2)
    assert 0 < float(kl) < 1e-8  # the damping has used up the rest


class Reparameterised(torch.nn.Module):
    """The same table through other parameters: logits = sinh(phi B)."""

    def __init__(self, logits):
        super().__init__()
        noise = torch.randn(15, 15, generator=seeded(9), dtype=torch.float64)
        self.mix = noise * torch.logspace(-0.5, 0.5, 15, dtype=torch.float64)
        inverse = torch.linalg.solve(self.mix.T, logits.flatten().asinh())
        self.phi = torch.nn.Parameter(inverse)

    def forward(self, observations):
        return (self.phi @ self.mix).sinh().view(5, 3)[observations]


def change_of_logprobs(policy, batch, step):
    """To first order, in every state that was seen."""
    weights, seen = trainable(policy), states(batch)

    def logprobs(vector):
        logits = functional_call(policy, split(vector, weights), (seen,))
        return logits.log_softmax(-1)[batch.mask]

    return torch.autograd.functional.jvp(logprobs, flat_weights(policy), step)[1]


def test_the_natural_direction_does_not_depend_on_the_parameters():
    table, batch = small("table")
    other = Reparameterised(table.logits.detach())
    found, plain = [], []
    for policy in (table, other):
        g = policy_gradient(policy, batch, random_like(batch))
        product = fisher_vector_product(policy, batch, damping=1e-11)
        step, _ = natural_step(product, g, max_kl=0.01, iterations=60)
        found.append(change_of_logprobs(policy, batch, step))
        plain.append(change_of_logprobs(policy, batch, g))
    cosine = partial(torch.nn.functional.cosine_similarity, dim=0)
    torch.testing.assert_close(*found, rtol=0, atol=1e-6 * float(found[0].norm()))
    assert cosine(*(change.flatten() for change in plain)) < 0.9


# The search


def test_the_first_acceptable_length_is_taken():
    asked = []

    def below(limit, scale):
        asked.append(scale)
        return scale < limit

    assert line_search(partial(below, 2.0)) == (1.0, 0)
    assert asked == [1.0]
    asked.clear()
    scale, backtracks = line_search(partial(below, 0.6))
    assert scale == pytest.approx(0.512)
    assert backtracks == 3
    assert asked == pytest.approx([1, 0.8, 0.64, 0.512])
    assert line_search(partial(below, 0.3), shrink=0.5) == (0.25, 2)


@pytest.mark.parametrize("backtracks", [0, 4])
def test_a_search_that_finds_nothing_says_so(backtracks):
    asked = []

    def never(scale):
        asked.append(scale)
        return False

    found = line_search(never, backtracks=backtracks)
    assert found == (0.0, backtracks)
    assert len(asked) == backtracks + 1


# The update


def mean_kl(first, second, mask):
    """Written out, as a judge that shares no code with the update."""
    p, q = first.softmax(-1), second.softmax(-1)
    return float((p * (p / q).log()).sum(-1)[mask].mean())


def mean_gain(old, new, batch, advantages):
    chosen = torch.where(batch.mask, batch.actions, 0)[..., None]
    one, other = (
        logits.softmax(-1).gather(-1, chosen)[..., 0] for logits in (old, new)
    )
    return float(((other / one - 1) * advantages)[batch.mask].mean())


def updated(policy, batch, advantages, **options):
    """Logits before and after an update, and what it reports."""
    seen = states(batch)
    old = policy(seen).detach()
    stats = updates.trpo_update(policy, batch, advantages, **options)
    return old, policy(seen).detach(), stats


def for_a_change(batch, seed):
    """The less likely an action was, the better: far more than a parabola's KL."""
    surprise = 1 - 2 * batch.logprobs.exp()
    return torch.where(batch.mask, surprise + 0.5 * random_like(batch, seed + 100), 0)


def check_region():
    """Wide regions, where the quadratic approximation is wrong, and narrow ones."""
    backtracks = []
    for seed in range(10):
        policy, batch = small("table", seed=seed)
        for max_kl in (1e-4, 0.05, 0.5, 2.0):
            advantages = for_a_change(batch, seed)
            old, new, stats = updated(
                policy, batch, advantages, max_kl=max_kl, damping=1e-3
            )
            assert stats.accepted
            kl = mean_kl(old, new, batch.mask)
            assert 0.2 * max_kl < kl <= max_kl
            assert mean_gain(old, new, batch, advantages) > 0
            backtracks.append(stats.backtracks)
            batch = its_own(policy, batch)
    assert backtracks.count(0) > 5
    assert max(backtracks) > 1


def check_rejection():
    """No length is inside the region: nothing may change."""
    policy, batch = small("table", seed=4)
    with torch.no_grad():
        policy.logits[0] = -0.0  # adding a step of length 0 would change its sign bit
    batch = its_own(policy, batch)
    before = bits(policy)
    options = {"max_kl": 0.5, "damping": 1e-3, "backtracks": 0}
    old, _, stats = updated(policy, batch, for_a_change(batch, 4), **options)
    assert same_bits(policy, before)
    spread = float(mean_over_tokens(entropy(old), batch.mask))
    assert not stats.accepted
    assert stats.kl_mean == stats.kl_max == stats.improvement == 0
    assert stats.entropy == pytest.approx(spread, rel=1e-12)
    assert stats.improvement_predicted > 0
    assert stats.gradient_norm > 0


def check_zero():
    """Advantages of zero, and a step that is lost in rounding, change nothing."""
    for kind in KINDS:
        policy, batch = small(kind)
        before = bits(policy)
        _, _, stats = updated(
            policy, batch, 0 * random_like(batch), max_kl=0.01, damping=0.1
        )
        assert same_bits(policy, before)
        assert not stats.accepted
        assert all(math.isfinite(number) for number in astuple(stats))
        moved = replace(stats, entropy=0.0)
        assert astuple(moved) == (0, 0, 0, 0, 0, 0, 0, 0, False)
        _, _, stats = updated(
            policy, batch, random_like(batch), max_kl=1e-40, damping=0.1
        )
        assert same_bits(policy, before)
        assert not stats.accepted


CHECKS = {
    "region": check_region,
    "rejection": check_rejection,
    "zero": check_zero,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_the_update_stays_in_its_region_or_where_it_was(check):
    check()


# Published bugs, and a few more: each is refused by one of the checks above


def aliased(product, b, *, iterations=10):
    """Search direction and residual share their memory with the right-hand side."""
    x, p, r = torch.zeros_like(b), b.detach(), b.detach()
    squared = r @ r
    for _ in range(iterations):
        image = product(p)
        step = squared / (p @ image)
        x += step * p
        r -= step * image
        before, squared = squared, r @ r
        p = r + (squared / before) * p
    return x, float(r.norm() / b.norm())


def steepest_descent(product, b, *, iterations=10):
    """Each direction is the residual, conjugate to nothing."""
    x = torch.zeros_like(b)
    for _ in range(iterations):
        r = b - product(x)
        x = x + (r @ r) / (r @ product(r)) * r
    return x, float((b - product(x)).norm() / b.norm())


def wishful(product, b, *, iterations=10):
    """The residual is assumed, not measured."""
    return conjugate_gradient(product, b, iterations=iterations)[0], 0.0


@pytest.mark.parametrize("broken", [aliased, steepest_descent, wishful])
def test_a_broken_solver_is_refused(broken):
    with pytest.raises(AssertionError):
        check_solver(broken)


def empirical_fisher(policy, batch, damping=0.0):
    """From the actions that were sampled, instead of all of them."""
    logprobs = action_logprobs(policy, batch)[batch.mask]
    weights = trainable(policy)
    scores = torch.stack([flat_gradient(x, weights, keep=True) for x in logprobs])
    return lambda v: scores.T @ (scores @ v) / len(scores) + damping * v


def summed_over_steps(policy, batch):
    product = fisher_vector_product(policy, batch)
    return lambda v: int(batch.mask.sum()) * product(v)


def with_padding(policy, batch):
    """The mask is forgotten: padding counts as steps."""
    everything = torch.ones_like(batch.mask)
    return fisher_vector_product(policy, replace(batch, mask=everything))


def without_the_mean(policy, batch):
    """J' diag(p) J: the term p p' is left out."""
    logits = policy(states(batch))[batch.mask]
    weights = trainable(policy)
    chances = logits.detach().softmax(-1).flatten()
    rows = [flat_gradient(x, weights, keep=True) for x in logits.flatten()]
    return lambda v: (
        torch.stack(rows).T @ (chances * (torch.stack(rows) @ v)) / len(logits)
    )


@pytest.mark.parametrize(
    "broken", [empirical_fisher, summed_over_steps, with_padding, without_the_mean]
)
def test_a_broken_product_is_refused(broken):
    with pytest.raises(AssertionError):
        check_product(broken, "table", torch.float64, 1e-12)


def uphill(scale, guard=True, extra=0.0):
    """A natural step whose length is wrong, or that divides zero by zero."""

    def step_along(product, ascent, *, max_kl, iterations=10):
        x, residual = conjugate_gradient(product, ascent, iterations=iterations)
        length = x @ (product(x) + extra * x)
        if guard and length == 0:
            return x, residual
        return scale * (2 * max_kl / length).sqrt() * x, residual

    return step_along


BROKEN_STEPS = {
    "as it should be": (uphill(1.0), None),
    "downhill": (uphill(-1.0), AssertionError),
    "the factor of two forgotten": (uphill(0.5**0.5), AssertionError),
    "no guard on zero": (uphill(1.0, guard=False), AssertionError),
    "damping left out of the length": (uphill(1.0, extra=-0.02), AssertionError),
}


@pytest.mark.parametrize(("broken", "refused"), BROKEN_STEPS.values(), ids=BROKEN_STEPS)
def test_a_broken_step_is_refused(broken, refused):
    if refused is None:
        check_step(broken)
    else:
        with pytest.raises(refused):
            check_step(broken)


def leaves_the_last_try(acceptable, *, backtracks=10, shrink=0.8):
    scale, tried = line_search(acceptable, backtracks=backtracks, shrink=shrink)
    return scale or shrink**tried, tried


BROKEN_UPDATES = {
    "the KL is never checked": (
        *("region", "_inside_and_better"),
        lambda kl, gain, max_kl: gain > 0,
    ),
    "one and a half times the radius": (
        *("region", "_inside_and_better"),
        lambda kl, gain, max_kl: kl <= 1.5 * max_kl and gain > 0,
    ),
    "the other direction of the KL": (
        *("region", "kl_exact"),
        lambda old, new: kl_exact(new, old),
    ),
    "the surrogate is never checked": (
        *("zero", "_inside_and_better"),
        lambda kl, gain, max_kl: kl <= max_kl,
    ),
    "no gain is good enough": (
        *("zero", "_inside_and_better"),
        lambda kl, gain, max_kl: kl <= max_kl and gain >= 0,
    ),
    "parameters are not restored": ("rejection", "line_search", leaves_the_last_try),
    "no guard on zero": ("zero", "natural_step", uphill(1.0, guard=False)),
    "downhill": ("region", "natural_step", uphill(-1.0)),
    "the policy never moves": ("region", "move", lambda weights, there: None),
}


@pytest.mark.parametrize(
    ("check", "name", "replacement"), BROKEN_UPDATES.values(), ids=BROKEN_UPDATES
)
def test_a_broken_update_is_refused(check, name, replacement, monkeypatch):
    monkeypatch.setattr(updates.trpo, name, replacement)
    with pytest.raises(AssertionError):
        CHECKS[check]()


# What an update reports, and what must not matter


@every_policy
def test_at_the_old_policy_it_is_the_policy_gradient(kind):
    policy, batch = small(kind)
    advantages = random_like(batch)
    ratio = importance_ratio(action_logprobs(policy, batch), batch.logprobs)
    assert torch.equal(ratio, torch.ones_like(ratio))
    g = policy_gradient(policy, batch, advantages)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    reinforce_update(policy, optimizer, batch, advantages)
    # One is summed over a row and averaged over rows, the other averaged over steps.
    climbed = -torch.cat([weight.grad.flatten() for weight in policy.parameters()])
    expected = climbed * len(batch.mask) / int(batch.mask.sum())
    torch.testing.assert_close(g, expected, rtol=0, atol=1e-12)
    assert float(g.norm()) > 0.05


@every_policy
def test_what_an_update_reports(kind):
    policy, batch = small(kind)
    advantages = random_like(batch)
    g = policy_gradient(policy, batch, advantages)
    product = fisher_vector_product(policy, batch, damping=0.02)
    step, residual = natural_step(product, g, max_kl=0.01, iterations=4)
    start = flat_weights(policy)
    old, new, stats = updated(
        policy, batch, advantages, max_kl=0.01, damping=0.02, iterations=4
    )
    assert isinstance(stats, TrustRegionStats)
    mask = batch.mask
    each = kl_exact(old, new)[mask]
    taken = 0.8**stats.backtracks * step
    moved = flat_weights(policy) - start
    torch.testing.assert_close(moved, taken, rtol=0, atol=1e-12)
    spread = float(mean_over_tokens(entropy(new), mask))
    approximately = partial(pytest.approx, rel=1e-8)
    assert stats.kl_mean == approximately(mean_kl(old, new, mask))
    assert stats.kl_max == approximately(float(each.max()))
    assert stats.kl_max > 1.5 * stats.kl_mean
    assert stats.entropy == approximately(spread)
    assert stats.gradient_norm == approximately(float(g.norm()))
    assert stats.improvement == approximately(mean_gain(old, new, batch, advantages))
    assert stats.improvement_predicted == approximately(float(g @ step))
    assert stats.residual == approximately(residual)
    assert stats.residual > 1e-6
    assert stats.accepted


@every_policy
def test_one_update_for_every_policy(kind):
    """The same call, for a table, a network and a transformer, several times."""
    policy, batch = small(kind)
    for seed in range(3):
        advantages = random_like(batch, seed)
        old, new, stats = updated(
            policy, batch, advantages, max_kl=0.02, damping=1e-3, iterations=20
        )
        assert stats.accepted
        assert 0.1 * 0.02 < mean_kl(old, new, batch.mask) <= 0.02
        assert mean_gain(old, new, batch, advantages) > 0
        batch = its_own(policy, batch)


def test_the_model_that_ships():
    model, tokenizer = load("sft")
    policy = TransformerPolicy(model)
    asked = questions(4, held_out=False, generator=seeded(0))
    batch = generate(
        policy,
        little.encode(tokenizer, asked),
        group_size=8,
        max_new_tokens=24,
        generator=seeded(0),
    )
    advantages = torch.randn(32, generator=seeded(0))[:, None] * batch.mask
    old, new, stats = updated(policy, batch, advantages, max_kl=0.001, damping=0.1)
    assert stats.accepted
    assert 0.0003 < mean_kl(old, new, batch.mask) < 0.00101
    assert mean_gain(old, new, batch, advantages) > 0
    v = random_vector(policy)
    product = fisher_vector_product(policy, batch)
    assert float(v @ product(v)) > 0
    w = random_vector(policy, 1)
    assert float(w @ product(v)) == pytest.approx(float(v @ product(w)), rel=1e-3)


def update_of_small(kind, change=lambda batch, advantages: (batch, advantages)):
    policy, batch = small(kind)
    batch, advantages = change(batch, random_like(batch))
    # Few products: conjugate gradient blows rounding up once it has converged.
    stats = trpo_update(
        policy, batch, advantages, max_kl=0.02, damping=0.1, iterations=4
    )
    assert stats.accepted
    return flat_weights(policy), stats


def assert_the_same_update(kind, change):
    """The numbers are summed in another order, so that not every bit is the same."""
    weights, stats = update_of_small(kind)
    found, others = update_of_small(kind, change)
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-9)
    assert astuple(others) == pytest.approx(astuple(stats), abs=1e-9)


@pytest.mark.parametrize("kind", ["table", "network"])
def test_single_precision_agrees_with_double(kind):
    single, batch = small(kind, torch.float32)
    double, _ = small(kind, torch.float32)
    double = double.double()
    advantages = random_like(batch)
    options: dict[str, Any] = {"max_kl": 0.02, "damping": 0.05, "iterations": 5}
    one = trpo_update(single, batch, advantages.float(), **options)
    other = trpo_update(double, its_own(double, batch), advantages, **options)
    assert flat_weights(single).dtype == torch.float32
    torch.testing.assert_close(
        flat_weights(single).double(),
        flat_weights(double),
        rtol=0,
        atol=1e-4,
    )
    assert one.backtracks == other.backtracks
    assert one.kl_mean == pytest.approx(other.kl_mean, rel=1e-3)


def test_the_rows_asked_for_shape_the_step_and_all_rows_judge_it():
    policy, batch = small("network")
    start, rows = flat_weights(policy), torch.tensor([1])
    g = policy_gradient(policy, batch, random_like(batch))
    product = fisher_vector_product(policy, batch, damping=1e-4, rows=rows)
    step, _ = natural_step(product, g, max_kl=0.02)
    old, new, stats = updated(
        policy,
        batch,
        random_like(batch),
        max_kl=0.02,
        damping=1e-4,
        fisher_rows=rows,
        backtracks=30,
    )
    assert stats.accepted
    assert stats.backtracks > 2  # one step knows little of the other states
    assert mean_kl(old, new, batch.mask) <= 0.02
    moved = flat_weights(policy) - start
    torch.testing.assert_close(moved, 0.8**stats.backtracks * step, rtol=0, atol=1e-12)


# What is refused


def assert_refused(policy, batch, advantages, match, **options):
    before = bits(policy)
    options = {"max_kl": 0.01, "damping": 0.1, **options}
    with pytest.raises(ValueError, match=match):
        trpo_update(policy, batch, advantages, **options)
    assert same_bits(policy, before)


@pytest.mark.parametrize("max_kl", [0.0, -0.1, math.nan, math.inf])
def test_a_region_needs_a_size(max_kl):
    policy, batch = small("table")
    message = f"max_kl must be positive and finite, but it is {max_kl}"
    assert_refused(policy, batch, random_like(batch), message, max_kl=max_kl)


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"backtracks": -1}])
def test_at_least_one_try_is_needed(wrong):
    policy, batch = small("table")
    message = "iterations must be at least 1 and backtracks at least 0"
    assert_refused(policy, batch, random_like(batch), message, **wrong)


def test_a_batch_of_another_policy_is_refused():
    policy, batch = small("table")
    advantages = random_like(batch)
    stats = trpo_update(policy, batch, advantages, max_kl=0.01, damping=0.1)
    assert stats.accepted
    message = "other log-probabilities than those stored.*sample anew after each update"
    assert_refused(policy, batch, advantages, message)  # a second update of one batch

    policy, batch = small("transformer")
    policy.temperature = 1.0
    assert_refused(policy, batch, random_like(batch), message)

    policy, batch = small("network")
    noisy = torch.nn.Sequential(policy, torch.nn.Dropout(0.1))
    assert_refused(noisy, batch, random_like(batch), message)
    stats = trpo_update(
        noisy.eval(), batch, random_like(batch), max_kl=0.01, damping=0.1
    )
    assert stats.accepted


def test_rounding_is_forgiven():
    policy, batch = small("table")
    noise = torch.where(batch.mask, 5e-4 * random_like(batch).sign(), 0)
    logprobs = (batch.logprobs + noise).clamp(max=0)
    off = replace(batch, logprobs=logprobs)
    stats = trpo_update(policy, off, random_like(batch), max_kl=0.01, damping=0.1)
    assert stats.accepted


# Does it learn?


def test_a_robot_finds_the_shortest_way_in_a_few_steps():
    """With the exact advantages; 99 % of what there is to gain, in 15 updates."""
    maze, gamma = MazeEnv(size=3), 0.95
    env = MazeVectorEnv(64, size=3, max_episode_steps=100)
    policy, generator = TabularPolicy(36, 3).double(), seeded(0)
    best = dp.value_iteration(maze, discount=gamma)[1]
    gains, found = [], []
    for _ in range(15):
        chances = policy.logits.detach().softmax(-1)
        exact = dp.advantages(maze, chances, discount=gamma)
        batch = rollout(env, policy, episodes=64, discount=gamma, generator=generator)
        advantages = exact[states(batch), batch.actions]
        stats = trpo_update(policy, batch, advantages, max_kl=0.05, damping=1e-4)
        assert stats.accepted
        assert stats.kl_mean <= 0.05
        found.append(
            float(dp.policy_evaluation(maze, chances, discount=gamma)[1].detach())
        )
        gains.append(stats.improvement)
    assert (found[-1] - found[0]) > 0.99 * (float(best) - found[0])
