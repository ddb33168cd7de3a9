"""Let a policy act in a gymnasium vector environment and keep what happened."""

from collections.abc import Sequence
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from rl_notes.divergences import sample
from rl_notes.policies import in_float32
from rl_notes.trajectories import Trajectories

ARRAYS = (Discrete, Box, MultiBinary, MultiDiscrete)
MAKE_VECTORS = (
    "To make vectors of floats of them, give make_vec "
    "wrappers=[gymnasium.wrappers.FlattenObservation, lambda env: "
    "gymnasium.wrappers.DtypeObservation(env, numpy.float32)]."
)
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
    max_steps: int = 20_000,
) -> Trajectories:
    """Collect trajectories: play whole episodes, one per row of the result.

    Every sub-environment plays episodes / num_envs of them, so that short episodes are
    not over-represented. An episode that ends early waits for the others: what
    gymnasium's automatic reset does meanwhile is never stored.

    Actions are `Discrete`; observations are state numbers, `Discrete`, or arrays that
    the policy can read, such as vectors of floats. State number 0 is the space's first,
    as is action 0. Anything else is refused, and most of it can be wrapped. Blackjack
    shows a tuple of numbers, which becomes a vector of 45:

        as_vector = [FlattenObservation, lambda env: DtypeObservation(env, np.float32)]
        env = gymnasium.make_vec("Blackjack-v1", num_envs=8, wrappers=as_vector)
        rollout(env, MLPPolicy(45, 2, generator=generator), episodes=64, ...)

    with both wrappers from `gymnasium.wrappers`. MiniGrid needs its own
    `ImgObsWrapper` first.

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
        max_steps: ValueError is raised where an episode has not ended after so many:
            one that is cut off in silence would look like one that was played.
    """
    _check_spaces(env)
    _check(env, episodes, discount, starts, group_size)
    device = _device_of(policy)
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
        observations, infos = env.reset(seed=env_seed, options=options)
        _check_infos(infos)
        steps = _play(env, policy, observations, draws, max_steps)
        played.append(_rows(steps, discount))
    longest = max(part["mask"].shape[1] for part in played)
    joined = {
        name: torch.cat(
            [_pad(part[name], part["mask"].shape[1], longest) for part in played]
        )
        for name in played[0]
    }
    if starts is not None:
        _check_starts(joined["observations"][:, 0], group_size)
    return Trajectories(
        groups=groups, **{name: part.to(device) for name, part in joined.items()}
    )


def _play(
    env: Environment,
    policy: nn.Module,
    observations: Any,
    draws: torch.Generator,
    max_steps: int,
) -> dict[str, Tensor]:
    """Step until every sub-environment has ended once; everything as [T, n, ...]."""
    device = _device_of(policy)
    record: dict[str, list[Tensor]] = {
        name: []
        for name in ("observations", "actions", "logprobs", "rewards", "ended", "cut")
    }
    actions_of = cast(Discrete, env.single_action_space)
    width, first_action = int(actions_of.n), int(actions_of.start)
    space = env.single_observation_space
    first_state = int(space.start) if isinstance(space, Discrete) else 0
    alive = torch.ones(env.num_envs, dtype=torch.bool, device="cpu")
    seen = torch.as_tensor(np.array(observations), device="cpu") - first_state
    record["observations"].append(seen)
    while bool(alive.any()):
        if len(record["actions"]) == max_steps:
            raise ValueError(
                f"After max_steps={max_steps} steps {int(alive.sum())} of "
                f"{env.num_envs} environments have not ended. Give them a time limit, "
                "wrappers=[lambda env: gymnasium.wrappers.TimeLimit(env, 500)], or, if "
                "they do end, a larger max_steps."
            )
        states = record["observations"][-1].to(device)
        with torch.no_grad():
            logits = _choice(_logits(policy, states[:, None], env), env.num_envs, width)
        uniforms = torch.rand(
            env.num_envs, generator=draws, dtype=torch.float64, device="cpu"
        )
        actions = sample(logits, uniforms.to(device))
        logprobs = logits.log_softmax(-1).gather(-1, actions[:, None])[:, 0]
        if not bool(torch.isfinite(logprobs).all()):
            raise ValueError(
                "The policy gave logits that are not numbers (NaN or inf)."
            )
        following, rewards, ended, cut, infos = env.step(
            actions.cpu().numpy() + first_action
        )
        seen = _final_or_next(following, infos) - first_state
        record["observations"].append(seen)
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


def _check_spaces(env: Environment) -> None:
    """Refuse what a policy cannot read or choose, with the wrapper that helps."""
    if not hasattr(env, "single_action_space"):
        raise ValueError(
            f"env is one environment, {env}, and rollout needs several at a time: "
            'gymnasium.make_vec("...", num_envs=8), or '
            "gymnasium.vector.SyncVectorEnv([make_env] * 8)."
        )
    if not isinstance(env.single_action_space, Discrete):
        raise ValueError(
            f"rollout needs discrete actions, but env has {env.single_action_space}."
        )
    space = env.single_observation_space
    if not isinstance(space, ARRAYS):
        raise ValueError(
            "rollout needs observations that are state numbers (Discrete) or arrays, "
            f"but env has {space}. {MAKE_VECTORS}"
        )


def _logits(policy: nn.Module, states: Tensor, env: Environment) -> Tensor:
    """The policy's logits; where it cannot read the states, say what they are."""
    try:
        logits: Tensor = policy(states)
    except ValueError as error:
        raise ValueError(
            f"{error} The environment's observations are "
            f"{env.single_observation_space}. {MAKE_VECTORS}"
        ) from error
    return logits


def _check_infos(infos: Any) -> None:
    """Refuse infos in which the last observation of an episode cannot be found."""
    if not isinstance(infos, dict):
        raise ValueError(
            f"env gives its infos as a {type(infos).__name__}, but the last "
            "observation of an episode is looked for in a dict. Leave DictInfoToList "
            "out, or put it around what you read yourself."
        )


def _check_starts(first: Tensor, group_size: int) -> None:
    """Refuse groups whose rows did not start where they were told to."""
    in_groups = first.view(-1, group_size, *first.shape[1:])
    if not bool((in_groups == in_groups[:, :1]).all()):
        raise ValueError(
            "The rows of a group were to share a start, but their first observations "
            'differ: env does not heed reset(options={"start": ...}). Leave starts '
            "out, or use an environment that does, such as rl_notes/Maze-v0."
        )


def _device_of(policy: nn.Module) -> torch.device:
    """Where the policy computes; on the CPU if it has no parameters."""
    weight = next(policy.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def _choice(logits: Tensor, rows: int, width: int) -> Tensor:
    """The logits of one step, [n, A], from those of a policy, [n, 1, A]."""
    if logits.shape[:2] != (rows, 1) or logits.dim() != 3:
        raise ValueError(
            f"The policy gave shape {tuple(logits.shape)} for {rows} observations of "
            f"one step, but logits [N, T, A] are needed: {[rows, 1, width]}."
        )
    if logits.shape[-1] != width:
        raise ValueError(
            f"The policy chooses among {logits.shape[-1]} actions, but the environment "
            f"has {width}."
        )
    return in_float32(logits[:, 0])
