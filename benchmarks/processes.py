"""An update on several processes: what share of its time goes into talking.

    pip install -r requirements.txt
    torchrun --nproc-per-node 2 -m benchmarks.processes
    torchrun --nproc-per-node 2 -m benchmarks.processes FOLDER_OF_A_MODEL

GRPO, 16 questions x 8 answers shared out, one epoch of one step, one thread for each
process; where there is a card, all share it. First on one process, while the others
wait, then on all. Printed are the seconds of an update, and of these what the first
process spends in torch.distributed: it waits there for the slowest too. Median, lowest
and highest of five updates, from the same weights.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from experiments.answers import seeded
from rl_notes.advantages import per_step
from rl_notes.device import pick_device
from rl_notes.language import arithmetic, models
from rl_notes.language.generation import generate
from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.parallel import gather
from rl_notes.policies import TransformerPolicy
from rl_notes.trajectories import Trajectories
from rl_notes.updates import grpo_update

GROUPS, SIZE, LIMIT, TIMES = 16, 8, 32, 5
CLIP = partial(token_clip, clip_low=0.2, clip_high=0.2)
talked = [0.0]


def timed(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call, whose seconds are added to what was talked."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        found = call(*arguments, **options)
        talked[0] += time.perf_counter() - began
        return found

    return wrapped


def update(
    policy: TransformerPolicy, batch: Trajectories, parts: int
) -> tuple[float, float]:
    """Seconds of one update, and of these in torch.distributed."""
    there = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(there.parameters(), lr=1e-5)
    noise = torch.randn(len(batch.mask), generator=seeded(2))
    talked[0], began = 0.0, time.perf_counter()
    grpo_update(
        there,
        optimizer,
        batch,
        per_step(noise.to(batch.mask.device), batch.mask),
        objective=CLIP,
        aggregate=mean_over_tokens,
        epochs=1,
        minibatches=1,
        generator=seeded(0),
        micro_batch=parts,
    )
    return time.perf_counter() - began, talked[0]


def said(name: str, found: list[tuple[float, float]]) -> None:
    seconds = [each for each, _ in found]
    share = [talk / each for each, talk in found]
    for what, numbers in (("seconds", seconds), ("share of talking", share)):
        middle = statistics.median(numbers)
        print(
            f"{name}, {what}: {middle:.3f} ({min(numbers):.3f} to {max(numbers):.3f})"
        )


def main(name: str = "sft", limit: int = LIMIT) -> None:
    torch.set_num_threads(1)
    model, tokens = models.load(name)
    policy = TransformerPolicy(torch.nn.Module.to(model, pick_device()))
    questions = arithmetic.questions(GROUPS, held_out=False, generator=seeded(0))
    prompts = tokens(questions)["input_ids"]
    options = {"group_size": SIZE, "max_new_tokens": limit}
    whole = generate(policy, prompts, generator=seeded(1), **options)
    alone = [update(policy, whole, 2 * SIZE) for _ in range(TIMES)]
    dist.init_process_group("gloo")
    for call in ("all_reduce", "all_gather_object"):
        setattr(dist, call, timed(getattr(dist, call)))
    rank, count = dist.get_rank(), dist.get_world_size()
    rows = torch.arange(len(whole.mask), device=whole.mask.device)
    rows = rows.tensor_split(count)[rank]
    batch = gather(whole.select(rows))
    update(policy, batch, 2 * SIZE)  # the first is slow
    together = [update(policy, batch, 2 * SIZE) for _ in range(TIMES)]
    if rank == 0:
        said("each by itself", alone)
        said(f"{count} processes", together)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:2])
