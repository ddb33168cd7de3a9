"""What `grpo_update` costs beside a plain loop that reports nothing: time and memory.

    pip install -r requirements.txt
    python -m benchmarks.update_cost

A Llama of two layers of width 64 with a vocabulary of 300, and one with 50,000; 16 rows
of 127 tokens, all but 10 of them an answer; Adam; one thread. The plain loop is what a
reader would write: for each epoch and each part a forward pass, the clip, the mean over
sequences, a backward pass. It checks nothing, restores nothing and measures nothing.
Both take the same steps: the largest difference of a weight is printed. Each ratio is
that of two runs that follow each other, of CPU time; median, lowest and highest.

Memory is the most that tensors hold at one time during an update with `micro_batch=1`,
weights and gradients among them, in units of the logits of 16 rows in float32. Rows are
16 and then 32. `trpo_update` has no micro-batches and runs with a vocabulary of 3,000.
"""

import copy
import dataclasses
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peak_memory import Peak
from rl_notes.objectives import token_clip
from rl_notes.policies import TransformerPolicy, action_logprobs
from rl_notes.trajectories import Trajectories
from rl_notes.updates import grpo_update, ppo_update, reinforce_update, trpo_update

ROWS, STEPS, PROMPT, REPEATS = 16, 127, 10, 7
CLIP = {"clip_low": 0.2, "clip_high": 0.2}


def task(words: int, rows: int) -> tuple[TransformerPolicy, Trajectories, torch.Tensor]:
    """A random model, random texts as if it had written them, and their advantages."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    policy = TransformerPolicy(LlamaForCausalLM(config).eval())
    text = torch.randint(3, words, (rows, STEPS + 1))
    mask = torch.ones(rows, STEPS, dtype=torch.bool)
    mask[:, :PROMPT] = False
    nothing = torch.zeros(rows, STEPS)
    batch = Trajectories(
        actions=text[:, 1:],
        logprobs=nothing,
        rewards=nothing,
        discounts=nothing + 1,
        mask=mask,
        groups=torch.arange(rows),
        observations=text,
    )
    with torch.no_grad():
        parts = [batch.select(torch.tensor([row])) for row in range(rows)]
        logprobs = torch.cat([action_logprobs(policy, part) for part in parts])
    batch = dataclasses.replace(batch, logprobs=logprobs)
    return policy, batch, torch.where(mask, torch.randn(rows, 1), 0.0)


def plain(policy, optimizer, batch, advantages, *, epochs: int, size: int) -> None:
    """The loop of a reader."""
    rows = len(batch.mask)
    for _ in range(epochs):
        optimizer.zero_grad()
        for start in range(0, rows, size):
            at = slice(start, start + size)
            mask = batch.mask[at]
            logits = policy(batch.observations[at, :-1])
            chosen = logits.log_softmax(-1).gather(-1, batch.actions[at, :, None])
            new = chosen[..., 0]
            x = token_clip(new, batch.logprobs[at], advantages[at], mask, **CLIP)
            per_row = torch.where(mask, x, 0).sum(1) / mask.sum(1)
            (-per_row.sum() / rows).backward()
        optimizer.step()


def ours(policy, optimizer, batch, advantages, *, epochs: int, size: int) -> None:
    grpo_update(
        policy,
        optimizer,
        batch,
        advantages,
        objective=partial(token_clip, **CLIP),
        epochs=epochs,
        minibatches=1,
        generator=torch.Generator(),
        micro_batch=size,
    )


def seconds(update: Callable[..., None], given, **options) -> tuple[float, list]:
    policy, batch, advantages = given
    policy = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-4)
    begin = time.process_time()
    update(policy, optimizer, batch, advantages, **options)
    return time.process_time() - begin, list(policy.parameters())


def memory(update: Callable[..., object], words: int, rows: int) -> float:
    policy, batch, advantages = task(words, rows)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-4)
    gc.collect()
    with Peak() as counted:
        update(policy, optimizer, batch, advantages)
    return counted.peak / (ROWS * STEPS * words * 4)


def main() -> None:
    torch.set_num_threads(1)
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers")
    )
    print(f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores\n")
    print(
        "| vocabulary | micro_batch | epochs | times a plain loop | seconds | weights |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for words, size in ((300, 1), (300, 8), (50_000, 1)):
        given = task(words, ROWS)
        for epochs in (1, 2, 4):
            options = {"epochs": epochs, "size": size}
            seconds(ours, given, **options)
            ratios, base = [], []
            for _ in range(REPEATS):
                theirs, expected = seconds(plain, given, **options)
                mine, found = seconds(ours, given, **options)
                ratios.append(mine / theirs)
                base.append(theirs)
            off = max(
                float((a - b).detach().abs().max())
                for a, b in zip(expected, found, strict=True)
            )
            middle = statistics.median(ratios)
            print(
                f"| {words:,} | {size} | {epochs} | {middle:.2f} ({min(ratios):.2f} to "
                f"{max(ratios):.2f}) | {statistics.median(base):.2f} | {off:.0e} |",
                flush=True,
            )
    once = {"epochs": 1, "minibatches": 1, "generator": torch.Generator()}
    by_parts = {
        "reinforce_update": partial(reinforce_update, micro_batch=1),
        "ppo_update": partial(ppo_update, micro_batch=1, **CLIP, **once),
        "grpo_update": partial(
            grpo_update, micro_batch=1, objective=partial(token_clip, **CLIP), **once
        ),
        "the plain loop": partial(plain, epochs=1, size=1),
    }
    print("\n| update | 16 rows | 32 rows |\n| --- | ---: | ---: |")
    for name, update in by_parts.items():
        found = [memory(update, 50_000, rows) for rows in (16, 32)]
        print(f"| {name} | {found[0]:.2f} | {found[1]:.2f} |", flush=True)

    def trpo(policy, optimizer, batch, advantages) -> object:
        return trpo_update(policy, batch, advantages, max_kl=0.01, damping=0.1)

    found = [memory(trpo, 3_000, rows) for rows in (16, 32)]
    print(f"| trpo_update | {found[0]:.2f} | {found[1]:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
