"""Let a policy act in a gymnasium vector environment and keep what happened."""

from collections.abc import Sequence
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from rl_notes.policies import sample
from rl_notes.trajectories import Trajectories

Environment = gymnasium.vector.VectorEnv[Any, Any, Any]


def rollout(
    env: Environment,
    policy: nn.Module,
    *,
    episodes: int,
    discount: float | int,
    generator: torch.Generator,
    starts: Sequence[int] | None = None,
    group_size: int = 1,
) -> Trajectories:
    """Play whole episodes, one per row of the result.

    Every sub-environment plays episodes / num_envs of them, so that short episodes are
    not over-represented. An episode that ends early waits for the others: what
    gymnasium's automatic reset does meanwhile is never stored.

    Args:
        env: A vector environment with discrete actions, for example from
            `gymnasium.make_vec`. Its time limit, if any, truncates.
        policy: Maps observations [N, T, ...] to logits [N, T, A].
        episodes: How many episodes, a multiple of `env.num_envs`.
        discount: gamma, stored at every step except where the episode ended.
        generator: Source of every draw: the environments' seeds and the actions. One
            uniform number is drawn per row and step, so that a row's episode does not
            depend on the others.
        starts: Start states, given to `env.reset(options={"start": ...})`, each for
            `group_size` consecutive rows. Without them the environment chooses.
        group_size: Number of rows that share one start.
    """
    _check(env, episodes, discount, starts, group_size)
    device = next(policy.parameters()).device
    rounds = episodes // env.num_envs
    seeds = torch.randint(
        2**31 - 1, (rounds, 2), generator=generator, device=generator.device
    )
    row_starts = None
    groups = torch.arange(episodes, device=device)
    if starts is not None:
        groups = groups // group_size
        row_starts = np.repeat(np.asarray(starts), group_size)
    played = []
    for index, (draw_seed, env_seed) in enumerate(seeds.tolist()):
        options = None
        if row_starts is not None:
            here = slice(index * env.num_envs, (index + 1) * env.num_envs)
            options = {"start": row_starts[here]}
        # A generator of its own: how long this round takes must not move the next.
        draws = torch.Generator(device="cpu").manual_seed(draw_seed)
        observations, _ = env.reset(seed=env_seed, options=options)
        played.append(_rows(_play(env, policy, observations, draws), discount))
    steps = max(part["mask"].shape[1] for part in played)
    joined = {
        name: torch.cat(
            [_pad(part[name], part["mask"].shape[1], steps) for part in played]
        )
        for name in played[0]
    }
    return Trajectories(
        groups=groups, **{name: part.to(device) for name, part in joined.items()}
    )


def _play(
    env: Environment, policy: nn.Module, observations: Any, draws: torch.Generator
) -> dict[str, Tensor]:
    """Step until every sub-environment has ended once; everything as [T, n, ...]."""
    device = next(policy.parameters()).device
    record: dict[str, list[Tensor]] = {
        name: []
        for name in ("observations", "actions", "logprobs", "rewards", "ended", "cut")
    }
    width = int(cast(Discrete, env.single_action_space).n)
    alive = torch.ones(env.num_envs, dtype=torch.bool, device="cpu")
    record["observations"].append(torch.as_tensor(np.array(observations), device="cpu"))
    while bool(alive.any()):
        states = record["observations"][-1].to(device)
        with torch.no_grad():
            logits = policy(states[:, None])[:, 0]  # [n, A]
        uniforms = torch.rand(
            env.num_envs, generator=draws, dtype=torch.float64, device="cpu"
        )
        actions = sample(logits, uniforms.to(device))
        logprobs = logits.log_softmax(-1).gather(-1, actions[:, None])[:, 0]
        _check_choice(logits, logprobs, width)
        following, rewards, ended, cut, infos = env.step(actions.cpu().numpy())
        record["observations"].append(_final_or_next(following, infos))
        record["actions"].append(actions.cpu())
        record["logprobs"].append(logprobs.cpu())
        record["rewards"].append(torch.as_tensor(rewards, device="cpu"))
        record["ended"].append(torch.as_tensor(ended, device="cpu"))
        record["cut"].append(torch.as_tensor(cut, device="cpu"))
        alive = alive & ~record["ended"][-1] & ~record["cut"][-1]
    return {name: torch.stack(steps) for name, steps in record.items()}


def _rows(steps: dict[str, Tensor], discount: float | int) -> dict[str, Tensor]:
    """Turn [T, n] into rows [n, T] and blank what came after each row's first end."""
    over = (steps["ended"] | steps["cut"]).int()
    mask = over.cumsum(dim=0) - over == 0  # up to and with the first end
    seen = torch.cat([torch.ones_like(mask[:1]), mask])
    shape = seen.shape + (1,) * (steps["observations"].dim() - 2)
    dtype = steps["logprobs"].dtype
    # Ended and cut at once counts as ended: nothing comes after.
    discounts = torch.where(steps["ended"], 0.0, discount).to(dtype)
    rows = {
        "actions": torch.where(mask, steps["actions"], 0),
        "logprobs": torch.where(mask, steps["logprobs"], 0),
        "rewards": torch.where(mask, steps["rewards"].to(dtype), 0),
        "discounts": torch.where(mask, discounts, 0),
        "mask": mask,
        "observations": torch.where(seen.view(shape), steps["observations"], 0),
    }
    return {name: row.transpose(0, 1) for name, row in rows.items()}


def _pad(rows: Tensor, steps: int, wanted: int) -> Tensor:
    """Fill up on the right with zeros, from `steps` steps to the `wanted` number."""
    padding = rows.new_zeros(rows.shape[0], wanted - steps, *rows.shape[2:])
    return torch.cat([rows, padding], dim=1)


def _final_or_next(following: Any, infos: dict[str, Any]) -> Tensor:
    """The observation that followed the action, even where a reset replaced it."""
    observations = np.array(following)
    final = infos.get("final_obs")  # there in SAME_STEP mode, where an episode ended
    if final is not None:
        for row in np.flatnonzero(infos["_final_obs"]):
            observations[row] = final[row]
    return torch.as_tensor(observations, device="cpu")


def _check(
    env: Environment,
    episodes: int,
    discount: float | int,
    starts: Sequence[int] | None,
    group_size: int,
) -> None:
    """Refuse what could only give a silently wrong batch."""
    if not isinstance(env.single_action_space, Discrete):
        raise ValueError(
            f"rollout needs discrete actions, but env has {env.single_action_space}."
        )
    if env.metadata.get("autoreset_mode") == AutoresetMode.DISABLED:
        raise ValueError(
            "rollout steps all sub-environments until the last has ended, so it needs "
            "an environment with automatic reset: NEXT_STEP or SAME_STEP."
        )
    if episodes < 1 or episodes % env.num_envs:
        raise ValueError(
            f"episodes={episodes} is not a positive multiple of num_envs="
            f"{env.num_envs}: each sub-environment plays the same number of episodes."
        )
    if not 0 <= discount <= 1:
        raise ValueError(f"discount must lie between 0 and 1, but it is {discount}.")
    if starts is None and group_size != 1:
        raise ValueError("Rows of a group share a start: give starts with group_size.")
    if starts is not None and len(starts) * group_size != episodes:
        raise ValueError(
            f"{len(starts)} starts x group_size {group_size} make "
            f"{len(starts) * group_size} episodes, but episodes={episodes}."
        )


def _check_choice(logits: Tensor, logprobs: Tensor, width: int) -> None:
    """Refuse a policy of the wrong width, and one that has turned to NaN."""
    if logits.shape[-1] != width:
        raise ValueError(
            f"The policy chooses among {logits.shape[-1]} actions, but the environment "
            f"has {width}."
        )
    if not bool(torch.isfinite(logprobs).all()):
        raise ValueError("The policy gave logits that are not numbers (NaN or inf).")
