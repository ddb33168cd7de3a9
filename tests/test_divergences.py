import math

import pytest
import torch
from batches import seeded
from torch.distributions import Categorical, kl_divergence

from rl_notes.divergences import kl_exact

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
