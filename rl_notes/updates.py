"""One update of a policy. Nothing here knows a maze from a language model."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rl_notes.divergences import kl_exact
from rl_notes.objectives import mean_over_tokens, sum_over_constant
from rl_notes.policies import action_logprobs, entropy, states
from rl_notes.trajectories import Trajectories


@dataclass(frozen=True)
class UpdateStats:
    """What one update did to the policy, measured on the states it was made from.

    Attributes:
        kl_mean: KL(old || new), mean over the steps, in nats.
        kl_max: KL(old || new) at the state that moved most, in nats.
        entropy: Entropy of the new policy, mean over the steps, in nats.
        gradient_norm: Euclidean norm of the gradient.
    """

    kl_mean: float
    kl_max: float
    entropy: float
    gradient_norm: float


def reinforce_update(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    trajectories: Trajectories,
    advantages: Float[Tensor, "N T"],
) -> UpdateStats:
    """One step along the (policy gradient) of Williams (1992), REINFORCE.

    grad J = E[ sum_t grad log pi(a_t | s_t) A_t ], estimated by the mean over rows:
    (1/N) sum_n sum_t log pi(a_t | s_t) A_t is maximised.

    `advantages` may be any weight: the return to go, the return to go less a baseline
    that does not depend on a_t, either of them times `discount_weights`. The
    trajectories must come from the policy as it is now.
    """
    require_per_step(advantages, trajectories)
    seen = states(trajectories)
    with torch.no_grad():
        old_logits = policy(seen)
    logprobs = action_logprobs(policy, trajectories)
    objective = sum_over_constant(
        logprobs * advantages, trajectories.mask, constant=len(advantages)
    )
    optimizer.zero_grad()
    (-objective).backward()  # type: ignore[no-untyped-call]
    gradient_norm = _gradient_norm(policy)
    optimizer.step()
    with torch.no_grad():
        new_logits = policy(seen)
    kl = kl_exact(old_logits, new_logits)
    mask = trajectories.mask
    return UpdateStats(
        kl_mean=float(mean_over_tokens(kl, mask)),
        kl_max=float(kl[mask].max()),
        entropy=float(mean_over_tokens(entropy(new_logits), mask)),
        gradient_norm=gradient_norm,
    )


def require_per_step(advantages: Tensor, trajectories: Trajectories) -> None:
    """Raise unless there is one finite advantage per step, [N, T], and no more."""
    expected = tuple(trajectories.mask.shape)
    if tuple(advantages.shape) != expected:
        raise ValueError(
            f"advantages has shape {tuple(advantages.shape)}, but one number "
            f"per step is needed: {list(expected)}. One number per row would "
            "silently broadcast along the wrong axis when N = T."
        )
    if not bool(torch.isfinite(advantages[trajectories.mask]).all()):
        raise ValueError("advantages holds a value that is not finite.")


def _gradient_norm(policy: nn.Module) -> float:
    """Euclidean norm of all gradients together; refuse to step along NaN."""
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    norm = float(torch.stack([g.norm() for g in gradients]).norm())
    if not torch.isfinite(torch.tensor(norm, device="cpu")):
        raise ValueError(
            "The gradient is not finite, so no step was taken. Look for infinite "
            "logits or advantages."
        )
    return norm
