import math

import pytest
import torch
from batches import seeded
from torch.distributions import Categorical, kl_divergence

from rl_notes.divergences import k1, k2, k3, kl_exact

INF = math.inf


def logits_of(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_kl_by_hand_in_both_directions():
    first, second = logits_of(0.5, 0.25, 0.25), logits_of(0.25, 0.25, 0.5)
    # 0.5 ln 2 + 0 + 0.25 ln 0.5 = 0.25 ln 2
    assert float(kl_exact(first, second)) == pytest.approx(0.25 * math.log(2), rel=1e-9)
    first, second = logits_of(0.9, 0.1), logits_of(0.5, 0.5)
    assert float(kl_exact(first, second)) == pytest.approx(0.368064, abs=5e-7)
    assert float(kl_exact(second, first)) == pytest.approx(0.510826, abs=5e-7)


def test_equal_policies_are_at_zero_whatever_is_added_to_the_logits():
    logits = torch.randn(4, 5, dtype=torch.float64, generator=seeded(0))
    kl = kl_exact(logits, logits + 7.0)
    assert kl.shape == (4,)
    torch.testing.assert_close(kl, torch.zeros_like(kl), rtol=0, atol=1e-14)


def test_kl_agrees_with_torch_distributions():
    first = 3 * torch.randn(2, 3, 6, dtype=torch.float64, generator=seeded(0))
    second = 3 * torch.randn(2, 3, 6, dtype=torch.float64, generator=seeded(1))
    kl = kl_exact(first, second)
    expected = kl_divergence(Categorical(logits=first), Categorical(logits=second))
    assert kl.shape == (2, 3)
    torch.testing.assert_close(kl, expected, rtol=1e-12, atol=1e-12)


def test_an_action_that_the_first_excludes_adds_nothing():
    first = logits_of(0.5, 0.5, 0.0)
    assert float(kl_exact(first, logits_of(0.25, 0.25, 0.5))) == pytest.approx(
        math.log(2), rel=1e-12
    )
    assert float(kl_exact(first, logits_of(0.5, 0.5, 0.0))) == 0


def test_an_action_that_only_the_reference_excludes_is_infinitely_far():
    assert float(kl_exact(logits_of(0.5, 0.5), logits_of(1.0, 0.0))) == INF


def gradients(first, second):
    first, second = first.requires_grad_(), second.requires_grad_()
    return torch.autograd.grad(kl_exact(first, second), [first, second])


def test_gradient_by_hand():
    # d KL / d z_ref = pi_ref - pi, and d KL / d z = pi (log ratio - KL).
    first, second = logits_of(0.9, 0.1), logits_of(0.5, 0.5)
    by_first, by_second = gradients(first, second)
    assert by_second.tolist() == pytest.approx([-0.4, 0.4], abs=1e-12)
    assert by_first.tolist() == pytest.approx([0.197750, -0.197750], abs=5e-7)


@pytest.mark.parametrize("reference", [(0.2, 0.3, 0.5), (0.4, 0.6, 0.0)])
def test_the_gradient_survives_an_action_that_the_first_excludes(reference):
    found = gradients(logits_of(0.5, 0.5, 0.0), logits_of(*reference))
    by_first, by_second = found
    expected = torch.tensor(reference) - torch.tensor([0.5, 0.5, 0.0])
    torch.testing.assert_close(by_second, expected.double(), rtol=0, atol=1e-7)
    # Without the excluded action, this is the same problem with two actions.
    total = reference[0] + reference[1]
    two = logits_of(reference[0] / total, reference[1] / total)
    small, _ = gradients(logits_of(0.5, 0.5), two)
    torch.testing.assert_close(by_first[:2], small, rtol=0, atol=1e-12)
    assert by_first[2] == 0


def test_where_the_divergence_is_infinite_its_gradient_means_nothing():
    by_first, _ = gradients(logits_of(0.2, 0.3, 0.5), logits_of(0.4, 0.6, 0.0))
    assert not torch.isfinite(by_first).all()


# Estimates from samples of the first. At a state, every action can be listed.


def policy_and_reference(spread=1.0):
    """log p and log q of 6 actions; the smaller the spread, the closer."""
    policy = torch.randn(6, dtype=torch.float64, generator=seeded(0))
    apart = torch.randn(6, dtype=torch.float64, generator=seeded(1))
    return policy.log_softmax(-1), (policy + 2 * spread * apart).log_softmax(-1)


def expectation(estimate, first, second):
    """The exact mean of the estimate over actions that the first policy samples."""
    return float((first.exp() * estimate(first, second)).sum())


def check_mean(k1, k3):
    for seed in range(4):
        g = seeded(seed)
        logits = 2 * torch.randn(2, 6, dtype=torch.float64, generator=g)
        pair = logits.log_softmax(-1)
        exactly = float(kl_exact(pair[0], pair[1]))
        assert exactly > 0.05
        assert abs(exactly - float(kl_exact(pair[1], pair[0]))) > 0.01
        for estimate in (k1, k3):
            assert expectation(estimate, *pair) == pytest.approx(exactly, abs=1e-12)


def test_k1_and_k3_have_no_bias():
    check_mean(k1, k3)


def test_each_estimate_by_hand():
    first, second = logits_of(0.5, 0.25, 0.25), logits_of(0.25, 0.25, 0.5)
    two = math.log(2)  # the log-ratios are ln 2, 0 and -ln 2
    assert k1(first, second).tolist() == pytest.approx([two, 0, -two], abs=1e-12)
    squares = [two**2 / 2, 0, two**2 / 2]
    assert k2(first, second).tolist() == pytest.approx(squares, abs=1e-12)
    expected = [two - 1 / 2, 0, 1 - two]
    assert k3(first, second).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_bias_of_k2_by_hand_has_either_sign():
    # 3/8 (ln 2)^2 - 1/4 ln 2; and (0.9 (ln 1.8)^2 + 0.1 (ln 5)^2) / 2 - 0.368064.
    for first, second, bias in (
        (logits_of(0.5, 0.25, 0.25), logits_of(0.25, 0.25, 0.5), 0.006883),
        (logits_of(0.9, 0.1), logits_of(0.5, 0.5), -0.083078),
    ):
        found = expectation(k2, first, second) - float(kl_exact(first, second))
        assert found == pytest.approx(bias, abs=5e-7)


def test_close_to_the_reference_the_bias_of_k2_is_of_third_order():
    biases = []
    for spread in (1e-2, 1e-3):
        first, second = policy_and_reference(spread)
        exactly = float(kl_exact(first, second))
        biases.append(expectation(k2, first, second) - exactly)
    assert biases[0] / biases[1] == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k2_and_k3_are_never_negative(dtype):
    sizes = torch.logspace(-12, 1, 400, dtype=dtype)
    second = torch.cat([sizes, -sizes])
    first = torch.zeros_like(second)
    for estimate in (k2, k3):
        assert float(estimate(first, second).min()) >= 0
    # Both are r^2 / 2 where r is small, not rounding.
    small = torch.tensor([1e-3], dtype=dtype)
    found = k3(torch.zeros_like(small), small).item()
    assert found == pytest.approx(0.5e-6, rel=1e-3)


# What the estimates do in a loss: the sampled actions are numbers, log p(a) moves


def in_a_loss(estimate, logits, reference):
    """The exact mean of the estimate's gradient, over samples of the policy."""
    logprobs = logits.log_softmax(-1)
    chances = logprobs.detach().exp()  # how often each action is sampled
    loss = (chances * estimate(logprobs, reference)).sum()
    return torch.autograd.grad(loss, logits)[0]


def gradients_of_kl(logits, reference):
    """Of KL(policy || reference) and of KL(reference || policy)."""
    return [
        torch.autograd.grad(kl, logits)[0]
        for kl in (kl_exact(logits, reference), kl_exact(reference, logits))
    ]


def check_gradients(k1, k2, k3):
    logits, reference = policy_and_reference()
    logits.requires_grad_()
    reverse, forward = gradients_of_kl(logits, reference)
    assert float(reverse.norm()) > 0.1
    assert float(forward.norm()) > 0.1
    assert float((reverse - forward).norm()) > 0.05
    expected = ((k1, torch.zeros(6).double()), (k2, reverse), (k3, forward))
    for estimate, gradient in expected:
        found = in_a_loss(estimate, logits, reference)
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-12)


def test_the_gradients_of_k1_k2_and_k3_in_a_loss():
    """None; that of KL(policy || reference); that of KL(reference || policy)."""
    check_gradients(k1, k2, k3)


def test_at_the_reference_itself_no_estimate_pulls():
    logits, _ = policy_and_reference()
    logits.requires_grad_()
    reference = logits.detach().log_softmax(-1)
    for estimate in (k1, k2, k3):
        found = in_a_loss(estimate, logits, reference)
        torch.testing.assert_close(found, torch.zeros(6).double(), rtol=0, atol=1e-12)


def exchanged(estimate):
    """The log-ratio the wrong way round, as it is sometimes printed."""
    return lambda first, second: estimate(second, first)


def detached(estimate):
    return lambda first, second: estimate(first.detach(), second) + 0 * first


def test_broken_estimates_are_refused():
    for broken in ((exchanged(k1), k3), (k1, exchanged(k3)), (k2, k3), (k1, k2)):
        with pytest.raises(AssertionError):
            check_mean(*broken)
    for wrong in (
        *((k2, k2, k3), (k3, k2, k3)),
        *((k1, k1, k3), (k1, k3, k3), (k1, detached(k2), k3)),
        *((k1, k2, k2), (k1, k2, exchanged(k3)), (k1, k2, detached(k3))),
    ):
        with pytest.raises(AssertionError):
            check_gradients(*wrong)


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize("estimate", [k1, k2, k3])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3), (3, 2), ()])
def test_log_probabilities_of_different_actions_are_not_paired(estimate, shape):
    with pytest.raises(ValueError, match=r"^reference_logprobs has shape .*\[3, 3\]"):
        estimate(torch.zeros(3, 3), torch.zeros(shape))
