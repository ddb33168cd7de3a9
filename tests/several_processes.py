"""What each of several processes does in test_parallel.py: `torchrun` runs this file.

Every case is run by all processes at once, one after the other in one group, so that a
case which leaves a process behind spoils all that follow.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from batches import seeded
from small_policies import KINDS, bits, flat_weights, its_own, random_like, small

from rl_notes.objectives import (
    mean_over_sequences,
    mean_over_tokens,
    sum_over_constant,
    token_clip,
)
from rl_notes.parallel import gather, gather_steps, share
from rl_notes.policies import MLPValue, action_logprobs
from rl_notes.updates import (
    fit_value,
    grpo_update,
    ppo_update,
    reinforce_update,
    trpo_update,
)

clip = partial(token_clip, clip_low=0.2, clip_high=0.3)
twice: dict[str, Any] = {"epochs": 2, "minibatches": 2}


def adam(policy):
    return torch.optim.Adam([w for w in policy.parameters() if w.requires_grad], 0.01)


def reinforce(policy, batch, advantages, **options):
    return reinforce_update(policy, adam(policy), batch, advantages, **options)


def ppo(policy, batch, advantages, **options):
    options = {"generator": seeded(3), **twice, **options}
    numbers = {"clip_low": 0.2, "clip_high": 0.3, **options}
    return ppo_update(policy, adam(policy), batch, advantages, **numbers)


def grpo(policy, batch, advantages, **options):
    options = {"generator": seeded(3), **twice, **options}
    optimizer = options.pop("optimizer", None) or adam(policy)
    options = {"objective": clip, **options}
    return grpo_update(policy, optimizer, batch, advantages, **options)


def grpo_with_reference(policy, batch, advantages, **options):
    logprobs = action_logprobs(small_reference(policy), batch).detach()
    price = {"reference_logprobs": logprobs, "beta": 0.3}
    return grpo(policy, batch, advantages, **price, **options)


def small_reference(policy):
    """A policy of the same kind that is not the same."""
    kind = {"TabularPolicy": "table", "MLPPolicy": "network"}
    return small(kind.get(type(policy).__name__, "transformer"), seed=5)[0]


def trpo(policy, batch, advantages, **options):
    numbers = {"max_kl": 0.02, "damping": 0.1, "iterations": 4, **options}
    return trpo_update(policy, batch, advantages, **numbers)


def constant(x, mask):
    return sum_over_constant(x, mask, constant=7)


# Name: (the update, its options, which rows have an advantage)
every_row = slice(None)
SAME: dict[str, tuple[Callable[..., Any], dict[str, Any], Any]] = {
    "reinforce": (reinforce, {}, every_row),
    "reinforce, clipped, row by row": (
        reinforce,
        {"max_norm": 0.1, "micro_batch": 1},
        every_row,
    ),
    "ppo": (ppo, {}, every_row),
    "ppo, in parts": (ppo, {"micro_batch": 2, "minibatches": 3}, every_row),
    "ppo, stopped by its KL": (ppo, {"max_kl": 1e-9, "epochs": 5}, every_row),
    "grpo, mean over rows": (grpo, {"aggregate": mean_over_sequences}, every_row),
    "grpo, mean over tokens": (
        grpo,
        {"aggregate": mean_over_tokens, "micro_batch": 1},
        every_row,
    ),
    "grpo, sum over a constant": (grpo, {"aggregate": constant}, every_row),
    "grpo, price of KL": (grpo_with_reference, {}, every_row),
    "grpo, all of it": (
        grpo_with_reference,
        {"micro_batch": 1, "max_norm": 0.5, "aggregate": mean_over_tokens},
        every_row,
    ),
    "grpo, one step": (grpo, {"epochs": 1, "minibatches": 1}, every_row),
    "grpo, nothing to climb in the first rows": (grpo, {}, slice(2, None)),
    "grpo, one row for all processes": (grpo, {"micro_batch": 1}, slice(1, 2)),
    "grpo, nothing to climb anywhere": (grpo, {}, slice(0, 0)),
    "trpo": (trpo, {}, every_row),
}


def prepared(kind, rows=every_row, dtype=torch.float64):
    """A policy, its batch and advantages that are 0 except in these rows."""
    policy, batch = small(kind, dtype=dtype)
    advantages = torch.zeros_like(batch.logprobs)
    advantages[rows] = random_like(batch, 2)[rows].to(dtype)
    return policy, batch, advantages


def in_common(batch):
    """The batch, of which each process has sampled some rows by itself."""
    if not dist.is_initialized():
        return batch
    rows = torch.arange(len(batch.mask)).tensor_split(dist.get_world_size())
    return gather(batch.select(rows[dist.get_rank()]).trimmed())


def updated(kind, name, dtype=torch.float64):
    """The weights after an update, how far they moved, and what it said of itself."""
    update, options, rows = SAME[name]
    policy, batch, advantages = prepared(kind, rows, dtype)
    before = flat_weights(policy)
    stats = update(policy, in_common(batch), advantages, **options)
    after = flat_weights(policy)
    return {"weights": after, "moved": after - before, "stats": asdict(stats)}


def some_weights_are_frozen():
    policy, batch, advantages = prepared("transformer")
    for weight in list(policy.parameters())[::2]:
        weight.requires_grad_(False)
    before = flat_weights(policy)
    stats = grpo(policy, in_common(batch), advantages)
    after = flat_weights(policy)
    return {"weights": after, "moved": after - before, "stats": asdict(stats)}


def value_is_fitted():
    value = MLPValue(5, hidden=(4,), generator=seeded(0)).double()
    _, batch, targets = prepared("table")
    numbers: dict[str, Any] = {
        "epochs": 3,
        "minibatches": 3,
        "generator": seeded(3),
        "max_norm": 0.4,
    }
    before = flat_weights(value)
    stats = fit_value(value, adam(value), in_common(batch), targets, **numbers)
    after = flat_weights(value)
    return {"weights": after, "moved": after - before, "stats": asdict(stats)}


def gathered():
    """Rows of different lengths, groups and prompts; what was theirs beside it."""
    _, batch = small("transformer")
    own = in_common(batch)
    numbers = random_like(batch) * batch.mask
    rows = torch.arange(len(batch.mask)).tensor_split(dist.get_world_size())
    here = rows[dist.get_rank()]
    width = int(batch.lengths[here].max())
    return {"batch": vars(own), "steps": gather_steps(numbers[here][:, :width])}


def shared():
    lengths = torch.tensor([1, 1, 3, 4, 4, 4, 9, 30])
    everything = share(torch.arange(10, 18), lengths).tolist()
    return {"all": everything, "one": share(torch.tensor([4]), lengths[:1]).tolist()}


def all_sampled_alike():
    _, batch = small("table")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gather(batch)
    return [str(each.message) for each in said]


def refused(change):
    """What an update raises on this process, and whether a weight has changed."""
    policy, batch, advantages = prepared("table")
    options: dict[str, Any] = {"generator": seeded(3)}
    if dist.get_rank() == 1:
        policy, batch, advantages, more = change(policy, batch, advantages)
        options |= more
    before = bits(policy)
    state = options["generator"].get_state()
    try:
        grpo(policy, batch, advantages, **options)
    except BaseException as error:  # the stop button too
        said = f"{type(error).__name__}: {error}"
    else:
        said = "nothing"
    kept = all(map(torch.equal, before, bits(policy)))
    return said, kept and bool((options["generator"].get_state() == state).all())


class Drawless:
    """A generator that has nothing to give."""

    @property
    def device(self):
        raise OSError("nowhere to draw from")

    def get_state(self):
        return torch.zeros(1)

    def set_state(self, state):
        assert state.tolist() == [0]


class Stumbles(torch.optim.SGD):
    """An optimizer that runs out of memory after it has moved some weights."""

    def step(self, closure=None):
        super().step(closure)
        raise MemoryError("no memory left for the step")


def half_of_nothing(x, mask):
    raise ZeroDivisionError("one half of nothing")


def raising(error, at_call=1):
    calls = []

    def objective(new, old, advantages, mask):
        calls.append(1)
        if len(calls) >= at_call:
            raise error
        return clip(new, old, advantages, mask)

    return {"objective": objective}


REFUSED: dict[str, Callable[..., Any]] = {
    "an error in the objective": lambda p, b, a: (
        *(p, b, a),
        raising(ZeroDivisionError("one half of nothing")),
    ),
    "an error in the second epoch": lambda p, b, a: (
        *(p, b, a),
        raising(ZeroDivisionError("one half of nothing"), at_call=3),
    ),
    "the stop button": lambda p, b, a: (p, b, a, raising(KeyboardInterrupt())),
    "the optimizer": lambda p, b, a: (
        *(p, b, a),
        {"optimizer": Stumbles(p.parameters(), 0.1)},
    ),
    "an error in the aggregation": lambda p, b, a: (
        *(p, b, a),
        {"aggregate": half_of_nothing},
    ),
    "no generator": lambda p, b, a: (p, b, a, {"generator": Drawless()}),
    "another learning rate": lambda p, b, a: (
        *(p, b, a),
        {"optimizer": torch.optim.Adam(p.parameters(), 0.02)},
    ),
    "other weights": lambda p, b, a: (small("table", seed=1)[0], b, a, {}),
    "another batch": lambda p, b, a: (p, its_own(p, small("table", seed=1)[1]), a, {}),
    "rows in another order": lambda p, b, a: (
        p,
        b.select(torch.arange(3, -1, -1)),
        a,
        {},
    ),
    "other advantages": lambda p, b, a: (p, b, a * 2, {}),
    "more epochs": lambda p, b, a: (p, b, a, {"epochs": 3}),
    "advantages of another shape": lambda p, b, a: (p, b, a[:, 0], {}),
    "a beta without a reference": lambda p, b, a: (p, b, a, {"beta": 1.0}),
}


def one_dies():
    """Process 1 ends in the middle of an update, without a word.

    The seconds that the update of the other lasts, if it leaves the policy as it was.
    """
    policy, batch, advantages = prepared("table")

    def objective(new, old, advantages, mask):
        if dist.get_rank() == 1:
            os._exit(0)
        return clip(new, old, advantages, mask)

    before, began = bits(policy), time.monotonic()
    try:
        grpo(policy, batch, advantages, objective=objective)
    except RuntimeError:
        kept = all(map(torch.equal, before, bits(policy)))
        return time.monotonic() - began if kept else None
    return None


def rounded_otherwise():
    """Weights after two updates on processes that do not round alike, as on cards."""
    policy, batch, advantages = prepared("network")
    share = 1e-9 * (dist.get_rank() if dist.is_initialized() else 0)
    hook = policy.register_forward_hook(lambda _, __, logits: logits * (1 + share))
    before, stats = flat_weights(policy), asdict(trpo(policy, batch, advantages))
    hook.remove()
    numbers = {"reference_logprobs": batch.logprobs * (1 + share), "beta": 0.1}
    batch = its_own(policy, batch)
    grpo(policy, batch, advantages * (1 + share), **numbers)
    after = flat_weights(policy)
    return {"weights": after, "moved": after - before, "stats": stats}


def wrapped():
    policy, batch, advantages = prepared("table")
    try:
        grpo(torch.nn.parallel.DistributedDataParallel(policy), batch, advantages)
    except ValueError as error:
        return str(error)
    return None


def cases() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {
        f"{kind}: {name}": partial(updated, kind, name)
        for kind in KINDS
        for name in SAME
    }
    for name in ("reinforce", "grpo, all of it", "ppo"):
        found[f"float32: {name}"] = partial(
            updated, "transformer", name, dtype=torch.float32
        )
    found |= {name: partial(refused, change) for name, change in REFUSED.items()}
    others = (some_weights_are_frozen, value_is_fitted, rounded_otherwise, gathered)
    others_too = (shared, all_sampled_alike, wrapped)
    found |= {each.__name__: each for each in (*others, *others_too)}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, only = Path(sys.argv[1]), sys.argv[2:]
    dist.init_process_group("gloo")
    run = {"one_dies": one_dies} if only else cases()
    answers = {name: case() for name, case in run.items()}
    torch.save(answers, folder / f"{dist.get_rank()}.pt")
    if not only:
        dist.destroy_process_group()
