"""What the updates share: their records, their checks, and how steps are taken."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from rl_notes.divergences import kl_exact
from rl_notes.objectives import mean_over_tokens
from rl_notes.policies import chosen_logprobs, entropy
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


def movement(
    old_logits: Float[Tensor, "N T A"],
    new_logits: Float[Tensor, "N T A"],
    mask: Bool[Tensor, "N T"],
) -> dict[str, float]:
    """How far the policy moved, and its entropy now, for `UpdateStats`."""
    kl = kl_exact(old_logits, new_logits)
    return {
        "kl_mean": float(mean_over_tokens(kl, mask)),
        "kl_max": float(kl[mask].max()),
        "entropy": float(mean_over_tokens(entropy(new_logits), mask)),
    }


def require_per_step(
    advantages: Tensor, trajectories: Trajectories, *, name: str = "advantages"
) -> None:
    """Raise unless there is one finite number per step, [N, T], and no more."""
    expected = tuple(trajectories.mask.shape)
    if tuple(advantages.shape) != expected:
        raise ValueError(
            f"{name} has shape {tuple(advantages.shape)}, but one number "
            f"per step is needed: {list(expected)}. One number per row would "
            "silently broadcast along the wrong axis when N = T."
        )
    if not bool(torch.isfinite(advantages[trajectories.mask]).all()):
        raise ValueError(f"{name} holds a value that is not finite.")


def require_epochs(
    epochs: int,
    minibatches: int,
    rows: int,
    *,
    rows_are: str = "rows that have a step",
) -> None:
    """Raise unless there is an epoch, and a row for each minibatch."""
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, but it is {epochs}.")
    if not 1 <= minibatches <= rows:
        raise ValueError(
            f"minibatches={minibatches}, but it must lie between 1 and the number of "
            f"{rows_are}: {rows}."
        )


def require_its_own(logits: Float[Tensor, "N T A"], trajectories: Trajectories) -> None:
    """Raise unless a policy with these logits sampled the trajectories."""
    difference = chosen_logprobs(logits, trajectories) - trajectories.logprobs
    found = float(mean_over_tokens(difference.abs(), trajectories.mask))
    # Sampled with a cache and scored without, half precision differs by its epsilon
    # times the size of the logits.
    epsilon = torch.finfo(logits.dtype).eps
    allowed = max(1e-3, math.sqrt(epsilon) if epsilon > 1e-4 else 0.0)
    if not found <= allowed:
        raise ValueError(
            "The policy gives the stored actions other log-probabilities than those "
            f"stored with them: they differ by {found:.3g} in the mean, and "
            f"{allowed:.3g} is allowed for rounding. Sample with this very policy and "
            "update it once: same weights, same temperature, no top-k or top-p, "
            "dropout off (`policy.eval()`)."
        )


def run_once(
    policy: nn.Module, observations: Shaped[Tensor, "N T ..."]
) -> Float[Tensor, "N T A"]:
    """The policy's logits; of rows that are alike one is run, and the others share it.

    It changes nothing but time and rounding. The answers of a group are often the same,
    word for word, the more so the surer the policy is.
    """
    kinds, kind = torch.unique(observations, dim=0, return_inverse=True)
    logits: Tensor = policy(kinds)
    return logits.index_select(0, kind)


def shuffled(rows: Int[Tensor, " N"], generator: torch.Generator) -> Int[Tensor, " N"]:
    """The same rows in random order."""
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    return rows[order.to(rows.device)]


@contextmanager
def all_or_nothing(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Put both back to what they were if ValueError is raised inside."""
    before = deepcopy((module.state_dict(), optimizer.state_dict()))
    try:
        yield
    except ValueError:
        module.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        raise


def gradient_norm_of(policy: nn.Module) -> float:
    """Euclidean norm of all gradients together; refuse to step along NaN."""
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    return finite(float(torch.stack([g.norm() for g in gradients]).norm()))


def finite(norm: float) -> float:
    """The norm of a gradient; refuse one to step along NaN."""
    if not math.isfinite(norm):
        raise ValueError(
            "The gradient is not finite, so no step was taken. Look for infinite "
            "logits, values or advantages."
        )
    return norm
