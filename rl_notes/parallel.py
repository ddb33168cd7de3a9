"""Several processes: one batch, one step, and the same weights on all of them.

torch.distributed does the talking. Start the script with torchrun or with accelerate,
call `torch.distributed.init_process_group()`, give each process its card
(`torch.cuda.set_device`), the same weights and a generator with another seed, and let
each sample rows of its own. `gather` makes one batch of them. The updates then share
its rows out, add the gradients up, and every process takes the same step: the weights
are those that one process would have had from this batch, up to rounding.

So this is the loop for one process and for any number of them::

    answers = generate(policy, prompts, group_size=8, ...)  # of this process
    batch = gather(with_scores(answers, scores))  # of all
    advantages = group_relative(batch.rewards.sum(1), batch.groups)
    grpo_update(policy, optimizer, batch, per_step(advantages, batch.mask), ...)

Nothing is started here, and on one process every function gives back what it got.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from rl_notes.trajectories import Trajectories

Thing = TypeVar("Thing")
# Gradients are sent so many numbers at a time: 64 MB in float32.
SENT = 2**24
# So many numbers are looked at at a time when tensors are compared.
LOOKED_AT = 2**22


def processes() -> int:
    """How many processes train together (world size), 1 if torch.distributed is off."""
    started = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if started else 1


def gather(trajectories: Trajectories) -> Trajectories:
    """All-gather of the rows of all processes, in order of rank: one batch for all.

    Shorter rows are padded, and the groups are numbered on, so that prompts of
    different processes are different groups. Rewards come along: score the answers
    where they were sampled, `gather(with_scores(answers, scores))`, and read the scores
    of the whole batch as `batch.rewards.sum(1)`.
    """
    if processes() == 1:
        return trajectories
    device = trajectories.mask.device
    here = {f.name: getattr(trajectories, f.name).cpu() for f in fields(trajectories)}
    everyone = _everyones(here, "gather")
    if all(torch.equal(each["logprobs"], here["logprobs"]) for each in everyone):
        warnings.warn(
            f"All {len(everyone)} processes have sampled the very same rows. Unless "
            "the policy leaves nothing to chance, give each process's generator a seed "
            "of its own, such as seed + rank.",
            stacklevel=2,
        )
    groups, so_far = [], 0
    for each in everyone:
        groups.append(each["groups"] + so_far)
        so_far = int(groups[-1].max()) + 1
    joined = {
        name: _padded_rows([each[name] for each in everyone]).to(device)
        for name in here
        if name != "groups"
    }
    return replace(trajectories, groups=torch.cat(groups).to(device), **joined)


def gather_steps(x: Float[Tensor, "N T"]) -> Float[Tensor, "M K"]:
    """All-gather of one number per step, padded with 0 as `gather` pads the rows.

    For what each process has computed of its own rows, such as the log-probabilities
    of a reference: `gather_steps(action_logprobs(reference, answers))`.
    """
    if processes() == 1:
        return x
    return _padded_rows(_everyones(x.detach().cpu(), "gather_steps")).to(x.device)


def share(rows: Int[Tensor, " M"], lengths: Int[Tensor, " M"]) -> Int[Tensor, " K"]:
    """Data parallelism: which of these rows, of these lengths, this process runs.

    The rows are cut, in their order, into as many stretches as there are processes,
    with about the same number of tokens in each: nobody waits long. If they are in
    order of length, little is padded, and rows that are alike are still run once. A
    stretch may be empty.
    """
    if processes() == 1:
        return rows
    # A row goes to the process in whose stretch of all the tokens its middle lies.
    twice_the_middle = 2 * lengths.cumsum(0) - lengths
    owner = twice_the_middle * processes() // (2 * lengths.sum().clamp(min=1))
    return rows[owner == dist.get_rank()]


def from_first(numbers: Tensor) -> Tensor:
    """What process 0 has drawn, for all (broadcast)."""
    if processes() == 1:
        return numbers
    return _everyones(numbers.cpu(), "the order of the rows")[0].to(numbers.device)


def joined(numbers: Shaped[Tensor, "N ..."]) -> Shaped[Tensor, "M ..."]:
    """The rows of all processes below one another, in order of rank (all-gather)."""
    if processes() == 1:
        return numbers
    return torch.cat(_everyones(numbers.cpu(), "what is measured")).to(numbers.device)


def added(numbers: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The sum over all processes (all-reduce), in float32 at least."""
    if processes() == 1:
        return numbers
    wide = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
    # NCCL sends from a card and gloo from memory; a backend of both takes either.
    homes = {"nccl": "cuda", "gloo": "cpu"}
    total = wide.to(homes.get(dist.get_backend(), wide.device), copy=True)
    dist.all_reduce(total)
    return total.to(numbers)


def add_gradients(module: nn.Module) -> None:
    """Sum the gradients of all processes, each a part of one sum over rows.

    A weight that has a gradient on some processes only has one on all afterwards, and
    one that has none anywhere has none.
    """
    if processes() == 1:
        return
    trained = [w for w in module.parameters() if w.requires_grad]
    has = _everyones([w.grad is not None for w in trained], "the gradients")
    anywhere = [w for w, *known in zip(trained, *has, strict=True) if any(known)]
    for some in _in_buckets(anywhere):
        gradients = [
            (torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in some
        ]
        total = torch.split(added(torch.cat(gradients)), [w.numel() for w in some])
        for weight, gradient in zip(some, total, strict=True):
            weight.grad = gradient.view_as(weight).to(weight)


@contextmanager
def together() -> Iterator[None]:
    """End on all processes what is raised inside on any of them.

    Nothing inside may wait for another process. Whoever raised raises what it did, and
    the others say who it was, so that none is left waiting for one that has gone.
    """
    try:
        yield
    except BaseException as error:
        if processes() > 1:
            _everyones(f"{type(error).__name__}: {error}", "a part of an update")
        raise
    if processes() == 1:
        return
    for rank, said in enumerate(_everyones("", "a part of an update")):
        if said:
            raise RuntimeError(
                f"Process {rank} stopped, and so this update was ended on all "
                f"processes, with every weight as it was. It said: {said}"
            )


def require_same(**things: Any) -> None:
    """Raise on all processes unless all of them hold the same, to the bit.

    Things are tensors, numbers, and lists and mappings of them. Of a tensor its shape,
    its type and a checksum of its bits are sent.
    """
    if processes() == 1:
        return
    with together():
        mine = {name: _fingerprint(thing) for name, thing in things.items()}
    everyone = _everyones(mine, "the beginning of an update")
    for name, mean in everyone[0].items():
        others = [rank for rank, each in enumerate(everyone) if each[name] != mean]
        if others:
            raise ValueError(
                f"The processes disagree about the {name}: rank {others} from rank 0. "
                "The batch must be the whole one on every process (`gather`, and what "
                "is computed from it); weights and settings must begin alike (load the "
                "same file, or seed alike what draws the weights) and be changed by "
                "these updates only."
            )


def require_bare(module: nn.Module) -> None:
    """Refuse a module whose wrapper would add gradients up, or shard it, by itself."""
    for each in module.modules():
        wrappers = {kind.__name__ for kind in type(each).__mro__}
        if "DistributedDataParallel" in wrappers:
            raise ValueError(
                "The module is wrapped in DistributedDataParallel, which would average "
                "the gradients once more, over processes that divide by different "
                "numbers of steps. Pass what is inside, `wrapped.module` "
                "(`accelerator.unwrap_model(wrapped)`): the update adds the gradients "
                "of all processes up itself."
            )
        if wrappers & {"FullyShardedDataParallel", "FSDPModule"}:
            raise ValueError(
                "The module's weights are sharded (FSDP), and this library does not "
                "train sharded weights. Pass a module that is whole on each process, "
                "or train it with TRL, verl or OpenRLHF."
            )


def _everyones(mine: Thing, place: str) -> list[Thing]:
    """What each process has here, in order of rank, if all are at this place."""
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, (place, mine))
    places = [where for where, _ in found]
    if len(set(places)) > 1:
        raise RuntimeError(
            "The processes are out of step: in order of rank they have come to "
            f"{places}. All must make the same calls in the same order."
        )
    return [theirs for _, theirs in found]


def _padded_rows(parts: list[Tensor]) -> Tensor:
    """Below one another, with columns of zeros up to the longest."""
    columns = max(part.shape[1] for part in parts)
    rows = []
    for part in parts:
        rest = part.new_zeros(len(part), columns - part.shape[1], *part.shape[2:])
        rows.append(torch.cat([part, rest], dim=1))
    return torch.cat(rows)


def _in_buckets(weights: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Weights in their order, so many at a time that they hold about `SENT` numbers."""
    bucket: list[nn.Parameter] = []
    for weight in weights:
        bucket.append(weight)
        if sum(w.numel() for w in bucket) >= SENT:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _fingerprint(thing: Any) -> Any:
    """The same for equal things, and another for others as good as always."""
    if isinstance(thing, Mapping):
        return {name: _fingerprint(each) for name, each in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [_fingerprint(each) for each in thing]
    if not isinstance(thing, Tensor):
        return thing
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = thing.detach().contiguous().flatten().view(whole[thing.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=thing.device)
    for number, part in enumerate(torch.split(bits, LOOKED_AT)):
        # The place counts too: rows in another order are another batch.
        places = torch.arange(len(part), device=part.device) + number * LOOKED_AT
        total += (part * (places + 1)).sum()
    return tuple(thing.shape), str(thing.dtype), int(total)
