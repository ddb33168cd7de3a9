"""Distributions over actions: KL divergence and its estimators, entropy, sampling.

The Kullback-Leibler divergence KL(p || q) is exact, or estimated from samples of p.

k1, k2 and k3 each estimate KL(p || q) from an action that p sampled, one number per
action (Schulman 2020, "Approximating KL divergence",
http://joschu.net/blog/kl-approx.html). p is the policy, q the reference, and
r = log p(a) - log q(a). They differ in noise and bias, and much more in what their
gradient does in a loss, where the action is a number and only log p(a) moves.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def kl_exact(
    logits: Float[Tensor, "*batch A"], reference_logits: Float[Tensor, "*batch A"]
) -> Float[Tensor, "*batch"]:
    """Kullback-Leibler divergence of the first policy from the second, per state (KL).

    KL(pi || pi_ref) = sum_a pi(a | s) (log pi(a | s) - log pi_ref(a | s)), in nats.

    The expectation is under the first argument. It is a divergence, not a distance:
    exchanging the two gives another number. It is 0 only if the two are equal, and
    infinite if the reference excludes an action that the first allows.
    """
    logprobs = logits.log_softmax(-1)
    log_ratio = logprobs - reference_logits.log_softmax(-1)
    probabilities = logprobs.exp()
    # An action that the first excludes adds nothing, whatever the reference says. The
    # ratio is replaced before the product: 0 * inf would turn the gradient to NaN.
    return (probabilities * torch.where(probabilities > 0, log_ratio, 0)).sum(-1)


def entropy(logits: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
    """Entropy of the policy: H(pi(. | s)) = - sum_a pi(a | s) log pi(a | s), in nats.

    Between 0 (one action is certain) and log A (all are equally likely).
    """
    logprobs = logits.log_softmax(-1)
    probabilities = logprobs.exp()
    # An impossible action has log-probability -inf, and 0 * -inf is NaN: use where,
    # and before the product, or the gradient is NaN all the same.
    return -(probabilities * torch.where(probabilities > 0, logprobs, 0)).sum(-1)


def k1(
    logprobs: Float[Tensor, "*batch"], reference_logprobs: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Schulman's k1 estimator of KL(p || q): unbiased, noisy, of either sign (k1).

    The log-ratio.

    k1 = log p(a) - log q(a), where a was sampled from p.

    Negative wherever p finds a less likely than q does, and so a noisy estimate. In a
    loss it does nothing: its gradient is that of log p(a), with mean 0, and the
    reference is not in it. Its place is in the reward: there -k1, summed over what
    followed by `returns_to_go`, leads straight down the KL of whole sequences.
    """
    return _log_ratio(logprobs, reference_logprobs)


def k2(
    logprobs: Float[Tensor, "*batch"], reference_logprobs: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Schulman's k2 estimator of KL(p || q): biased, never negative (k2).

    Half the squared log-ratio.

    k2 = 1/2 (log p(a) - log q(a))^2, where a was sampled from p.

    Never negative. Its bias E[r^2]/2 - E[r] is of third order where p is close to q,
    and it has either sign. Its gradient, in a loss, has no bias: in the mean it is that
    of KL(p || q).
    """
    return 0.5 * _log_ratio(logprobs, reference_logprobs) ** 2


def k3(
    logprobs: Float[Tensor, "*batch"], reference_logprobs: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Schulman's k3 estimator of KL(p || q): unbiased, never negative (k3).

    The log-ratio, less noise.

    k3 = q(a)/p(a) - 1 - log(q(a)/p(a)), where a was sampled from p.

    Never negative. q/p - 1 has mean 0 and is large where the log-ratio is small. Its
    gradient, in a loss, is in the mean that of the other direction, KL(q || p). Both
    hold if p allows every action that q allows, as a softmax does.
    """
    log_ratio = _log_ratio(logprobs, reference_logprobs)
    # expm1 is exact where p is close to q and exp(-r) - 1 would be rounding alone.
    return torch.expm1(-log_ratio) + log_ratio


def sample(
    logits: Float[Tensor, "N A"], uniforms: Float[Tensor, " N"]
) -> Int[Tensor, " N"]:
    """Inverse transform sampling of one action per row, from its softmax.

    a = min {a : pi(1 | s) + ... + pi(a | s) > u}, with u uniform in [0, 1).

    One number in, one action out: the draw of a row depends on no other row.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # Rounding may leave the last sum below 1: a u above it would pick nothing.
    cumulative = cumulative / cumulative[:, -1:]
    return (cumulative <= uniforms.double()[:, None]).sum(-1)


def _log_ratio(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """The logarithm of p/q; refuse shapes that would broadcast."""
    if logprobs.shape != reference_logprobs.shape:
        raise ValueError(
            f"reference_logprobs has shape {tuple(reference_logprobs.shape)}, but one "
            f"number for each of logprobs is needed: {list(logprobs.shape)}."
        )
    return logprobs - reference_logprobs
