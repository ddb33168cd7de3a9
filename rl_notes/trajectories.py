"""The one data type that rollouts produce and updates consume."""

import math
from copy import copy
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from rl_notes.divergences import k1


@dataclass(frozen=True)
class Trajectories:
    """A batch of N trajectories of at most T steps, one per row, padded on the right.

    A step t holds what the policy saw (s_t), what it did (a_t), and the reward that
    followed. Where `mask` is False there is no step: the prompt of a language model,
    or padding after the end. Nothing stored there may change a result.

    Attributes:
        actions: a_t.
        logprobs: Log-probability of a_t under the policy that sampled it, or that has
            `rescored` what another one sampled. 0 where `mask` is False.
        rewards: Reward after a_t. 0 where `mask` is False.
        discounts: gamma, and 0 where a_t ended the episode. A time limit keeps
            gamma: the episode was cut, not ended, and the value of s_L counts.
            Where `mask` is False: 1 before the first step, 0 after the last.
        mask: True where the policy chose a_t.
        groups: Which start state or prompt the row came from.
        observations: s_0 ... s_T. In a row of L steps s_L is the last that counts.
    """

    actions: Int[Tensor, "N T"]
    logprobs: Float[Tensor, "N T"]
    rewards: Float[Tensor, "N T"]
    discounts: Float[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    groups: Int[Tensor, " N"]
    observations: Shaped[Tensor, "N T+1 ..."]

    def __post_init__(self) -> None:
        """Refuse shapes that disagree and numbers that mean nothing."""
        rows, steps = self.mask.shape
        for name in ("actions", "logprobs", "rewards", "discounts"):
            _require_shape(name, getattr(self, name), (rows, steps))
        _require_shape("groups", self.groups, (rows,))
        _require_shape(
            "observations", self.observations, (rows, steps + 1), leading=True
        )
        for name in ("logprobs", "rewards", "discounts"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise ValueError(
                    f"{name} holds a value that is not finite. Find where it came from "
                    "before training on it."
                )
        for name in ("logprobs", "rewards"):
            if bool((getattr(self, name)[~self.mask] != 0).any()):
                raise ValueError(
                    f"{name} must be 0 where mask is False: no action was chosen there."
                )
        if bool((self.logprobs > 0).any()):
            raise ValueError(
                "logprobs must not be positive: they are log-probabilities."
            )
        if bool(((self.discounts < 0) | (self.discounts > 1)).any()):
            raise ValueError("discounts must lie between 0 and 1.")

    @property
    def lengths(self) -> Int[Tensor, " N"]:
        """The row's length L, one more than the index of its last step, or 0."""
        steps = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        return (self.mask * steps).amax(dim=1)

    def select(self, rows: Int[Tensor, " M"]) -> "Trajectories":
        """The given rows, in the given order. T stays as it is."""
        return _slices(
            self, {f.name: getattr(self, f.name)[rows] for f in fields(self)}
        )

    def trimmed(self) -> "Trajectories":
        """The same rows without the columns that lie past the longest of them."""
        steps = int(self.lengths.max())
        ends = {"observations": steps + 1}
        columns = {
            f.name: getattr(self, f.name)[:, : ends.get(f.name, steps)]
            for f in fields(self)
            if f.name != "groups"
        }
        return _slices(self, columns)


def _slices(whole: Trajectories, tensors: dict[str, Tensor]) -> Trajectories:
    """Slices of trajectories, which were checked when they were made, and not again."""
    part = copy(whole)
    vars(part).update(tensors)
    return part


def with_scores(
    trajectories: Trajectories, scores: Float[Tensor, " N"]
) -> Trajectories:
    """Outcome rewards: one score per row, at the row's last step, and 0 elsewhere.

    R[n, L_n - 1] = scores[n], and R[n, t] = 0 elsewhere. The rewards that were there
    before are replaced.
    """
    _require_shape("scores", scores, (trajectories.mask.shape[0],))
    if not bool(trajectories.mask.any(dim=1).all()):
        raise ValueError("A row without a single step has no place for its score.")
    last = (trajectories.lengths - 1)[:, None]
    rewards = torch.zeros_like(trajectories.rewards)
    rewards = rewards.scatter(1, last, scores[:, None].to(rewards.dtype))
    return replace(trajectories, rewards=rewards)


def with_kl_penalty(
    trajectories: Trajectories,
    reference_logprobs: Float[Tensor, "N T"],
    *,
    beta: float | int,
) -> Trajectories:
    """Rewards with a KL penalty per step, to a reference policy (KL reward).

    The rewards, less what it costs to leave the reference.

    r_t - beta (log pi(a_t | s_t) - log pi_ref(a_t | s_t))

    pi is the policy that sampled, by the stored log-probabilities, and the bracket is
    `divergences.k1`. Its mean over samples of pi is KL(pi || pi_ref). So the expected
    sum of these rewards is that of the rewards less beta times the divergence of whole
    answers, and the policy gradient of their `returns_to_go` climbs just that, for a
    discount of 1. The bracket is a number here: it is scored like any other reward.

    Args:
        trajectories: With their rewards, see `with_scores`.
        reference_logprobs: Log-probabilities of the same actions under the reference,
            such as `action_logprobs(reference, trajectories)`.
        beta: KL coefficient: what one nat costs.
    """
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be a number from 0 up, but it is {beta}.")
    mask = trajectories.mask
    _require_shape("reference_logprobs", reference_logprobs, tuple(mask.shape))
    log_ratio = k1(trajectories.logprobs, reference_logprobs.detach())
    penalty = torch.where(mask, beta * log_ratio, 0)
    return replace(trajectories, rewards=trajectories.rewards - penalty)


def _require_shape(
    name: str, tensor: Tensor, expected: tuple[int, ...], *, leading: bool = False
) -> None:
    """Raise unless the tensor has this shape, or begins with it if `leading`."""
    shape = tuple(tensor.shape[: len(expected)] if leading else tensor.shape)
    if shape != expected:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, but {list(expected)} is needed: "
            "one row per trajectory, one column per step."
        )
