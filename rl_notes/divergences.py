"""How far one policy is from another."""

import torch
from jaxtyping import Float
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
