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
from numbers import Number
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from rl_notes.trajectories import Trajectories

Thing = TypeVar("Thing")
Numbers = TypeVar("Numbers", Tensor, Tensor | None)
# Gradients are sent so many numbers at a time: 64 MB in float32.
SENT = 2**24
# So many numbers are looked at at a time when tensors are compared.
LOOKED_AT = 2**22
ODD = 0x1E3779B97F4A7C15  # to mix the bits of a number of 64 bits
# Numbers that each process has computed by itself are alike up to this share.
ALIKE = 1e-4


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
    here = {f.name: _sent(getattr(trajectories, f.name)) for f in fields(trajectories)}
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
    return _padded_rows(_everyones(_sent(x), "gather_steps")).to(x.device)


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


def from_first(thing: Thing) -> Thing:
    """What process 0 has drawn or found, for all (broadcast)."""
    if processes() == 1:
        return thing
    mine = _sent(thing) if isinstance(thing, Tensor) else thing
    first = _everyones(mine, "what process 0 has found")[0]
    return cast(Thing, _beside(first, thing))


def agreed(numbers: Numbers, mask: Bool[Tensor, "N T"], name: str) -> Numbers:
    """What process 0 has computed for each step, if all have the same, [N, T].

    That is up to rounding, `ALIKE`: a card that adds up in another order each time does
    not give two processes the same bits.
    """
    if processes() == 1:
        return numbers
    mine = None if numbers is None else _sent(torch.where(mask, numbers, 0))
    everyone = _everyones(mine, f"the {name}")
    _require_alike(name, [_alike(each, everyone[0]) for each in everyone])
    return cast(Numbers, _beside(everyone[0], numbers))


def joined(numbers: Shaped[Tensor, "N ..."]) -> Shaped[Tensor, "M ..."]:
    """The rows of all processes below one another, in order of rank (all-gather)."""
    if processes() == 1:
        return numbers
    return torch.cat(_everyones(_sent(numbers), "what is measured")).to(numbers.device)


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

    Things are tensors, numbers, modules, and lists and mappings of them. Of a tensor
    its shape, its type and a checksum of its bits are sent, and of a module those of
    what it would be saved with, and which weights are trained.
    """
    if processes() == 1:
        return
    with together():
        mine = {name: _fingerprint(thing) for name, thing in things.items()}
    everyone = _everyones(mine, f"the comparison of {', '.join(things)}")
    for name, mean in everyone[0].items():
        _require_alike(name, [each[name] == mean for each in everyone])


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


def _sent(numbers: Tensor) -> Tensor:
    """Numbers to be sent: what they are a part of would be sent along with them."""
    return numbers.detach().cpu().clone()


def _beside(thing: Any, other: Any) -> Any:
    """What was sent, on the device where this process has its own."""
    return thing.to(other.device) if isinstance(other, Tensor) else thing


def _alike(numbers: Tensor | None, first: Tensor | None) -> bool:
    """Whether these are the numbers of process 0, up to rounding."""
    if numbers is None or first is None:
        return numbers is first
    if numbers.shape != first.shape or numbers.dtype != first.dtype:
        return False
    if torch.equal(numbers, first):
        return True
    difference, size = (numbers - first).abs().max(), first.abs().max()
    return bool(difference <= ALIKE * size)


def _require_alike(name: str, alike: list[bool]) -> None:
    """Raise if there is a process that has another thing than process 0."""
    others = [rank for rank, same in enumerate(alike) if not same]
    if others:
        raise ValueError(
            f"The processes disagree about the {name}: rank {others} from rank 0. "
            "The batch must be the whole one on every process (`gather`, and what is "
            "computed from it); weights, optimizers and settings must begin alike "
            "(load the same file, or seed alike what draws the weights), and weights "
            "be changed by these updates only."
        )


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
    if isinstance(thing, nn.Module):
        trained = [name for name, w in thing.named_parameters() if w.requires_grad]
        return _fingerprint(thing.state_dict()), trained
    if isinstance(thing, Mapping):
        return {name: _fingerprint(each) for name, each in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [_fingerprint(each) for each in thing]
    if not isinstance(thing, Tensor):
        known = thing is None or isinstance(thing, (str, Number))
        return thing if known else type(thing).__name__
    # Of 8 bytes each half by itself: times a number of 64 bits, the highest of 64 bits,
    # which is a sign, would be lost.
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
    bits = thing.detach().contiguous().flatten().view(whole[thing.element_size()])
    # The place counts too: rows in another order are another batch. By numbers that
    # look drawn by chance, or what is moved in a pattern would add up to the same.
    factors = torch.arange(1, min(len(bits), LOOKED_AT) + 1, device=thing.device) * ODD
    factors = (factors ^ (factors >> 31)) * ODD
    total = torch.zeros((), dtype=torch.int64, device=thing.device)
    for part in torch.split(bits, LOOKED_AT):
        total = total * ODD + (part * factors[: len(part)]).sum()
    return tuple(thing.shape), str(thing.dtype), int(total)
