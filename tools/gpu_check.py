"""What nobody sees without a graphics card, in one command: `make gpu-check`.

    python tools/gpu_check.py [step ...]

Without a card it is a rehearsal: the same steps run on the CPU, on smaller sizes, and
say so. Each step is a process of its own with a time limit, and when one fails the
others go on. What was found is printed, and goes into benchmarks/RESULTS.md by hand,
with the card's name.
"""

import copy
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_notes.advantages import group_relative, per_step
from rl_notes.device import pick_device
from rl_notes.language import arithmetic, models
from rl_notes.language.answers import answer
from rl_notes.language.generation import generate
from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.policies import (
    MLPPolicy,
    MLPValue,
    TabularPolicy,
    TransformerPolicy,
    action_logprobs,
)
from rl_notes.rollouts import rollout
from rl_notes.trajectories import Trajectories, with_scores
from rl_notes.updates import (
    fit_value,
    grpo_update,
    ppo_update,
    reinforce_update,
    trpo_update,
)

ROOT = Path(__file__).resolve().parents[1]
WHERE = pick_device()
ON_A_CARD = WHERE.type == "cuda"
CLIP = partial(token_clip, clip_low=0.2, clip_high=0.2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(batch: Trajectories, to: torch.device, dtype: torch.dtype) -> Trajectories:
    """The batch on a device, its numbers in this format."""
    found = {}
    for field in fields(batch):
        x = getattr(batch, field.name)
        found[field.name] = x.to(to, dtype if x.is_floating_point() else x.dtype)
    return replace(batch, **found)


# 1. The step of each update on the card is that of the CPU


def reinforce(policy: nn.Module, batch: Trajectories, advantages: Tensor) -> None:
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    reinforce_update(policy, optimizer, batch, advantages, max_norm=1.0)


def ppo(policy: nn.Module, batch: Trajectories, advantages: Tensor) -> None:
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    ppo_update(
        policy,
        optimizer,
        batch,
        advantages,
        clip_low=0.2,
        clip_high=0.2,
        epochs=2,
        minibatches=2,
        generator=seeded(0),
        max_kl=1.0,
    )


def grpo(
    policy: nn.Module,
    batch: Trajectories,
    advantages: Tensor,
    micro_batch: int | None = 8,
) -> None:
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    reference = batch.logprobs - 0.1 * batch.mask
    grpo_update(
        policy,
        optimizer,
        batch,
        advantages,
        objective=CLIP,
        epochs=2,
        minibatches=1,
        generator=seeded(0),
        aggregate=mean_over_tokens,
        reference_logprobs=reference,
        beta=0.1,
        micro_batch=micro_batch,
    )


def trpo(policy: nn.Module, batch: Trajectories, advantages: Tensor) -> None:
    trpo_update(policy, batch, advantages, max_kl=0.01, damping=0.1, iterations=4)


def critic(policy: nn.Module, batch: Trajectories, advantages: Tensor) -> None:
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    numbers: dict[str, Any] = {"epochs": 2, "minibatches": 2, "generator": seeded(0)}
    fit_value(policy, optimizer, batch, advantages, **numbers)


def worlds() -> Iterator[tuple[str, nn.Module, Trajectories]]:
    """A policy of each kind on the CPU, with a batch of its own."""
    import gymnasium

    maze = gymnasium.make_vec("rl_notes/Maze-v0", num_envs=16, max_episode_steps=40)
    for name, policy in {
        "table": TabularPolicy(100, 3),
        "network": MLPPolicy(100, 3, hidden=(16,), generator=seeded(0)),
    }.items():
        batch = rollout(maze, policy, episodes=16, discount=0.9, generator=seeded(1))
        yield name, policy, batch
    writer = TransformerPolicy(models.load("sft")[0])
    questions = arithmetic.questions(4, held_out=False, generator=seeded(2))
    yield (
        "transformer",
        writer,
        answer(writer, questions, group_size=8, generator=seeded(3)).trajectories,
    )


def weights_of(module: nn.Module) -> Tensor:
    return torch.cat([w.detach().cpu().double().flatten() for w in module.parameters()])


def step_on(
    update: Callable[..., None],
    policy: nn.Module,
    batch: Trajectories,
    to: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """How far an update moves the weights, computed on this device."""
    there = copy.deepcopy(policy).to(to, dtype)
    here = moved(batch, to, dtype)
    advantages = moved(with_noise(batch), to, dtype).rewards
    if update is not critic:
        with torch.no_grad():
            here = replace(here, logprobs=action_logprobs(there, here))
    before = weights_of(there)
    update(there, here, advantages)
    return weights_of(there) - before


def with_noise(batch: Trajectories) -> Trajectories:
    """The batch with advantages in the place of its rewards."""
    noise = torch.randn(batch.mask.shape, generator=seeded(4))
    return replace(batch, rewards=noise * batch.mask)


def same_steps() -> None:
    """Each update on each policy, in float64 and float32, beside the CPU."""
    worst = 0.0
    print(f"{'policy':<12} {'update':<10} {'float64':>9} {'float32':>9}")
    for name, policy, batch in worlds():
        value = MLPValue(100, hidden=(16,), generator=seeded(5))
        for update in (reinforce, ppo, grpo, trpo, critic):
            trained = value if update is critic else policy
            if update is critic and name == "transformer":
                continue
            off = []
            for dtype in (torch.float64, torch.float32):
                there = step_on(update, trained, batch, WHERE, dtype)
                here = step_on(update, trained, batch, torch.device("cpu"), dtype)
                off.append(float((there - here).norm() / here.norm()))
            print(f"{name:<12} {update.__name__:<10} {off[0]:9.1e} {off[1]:9.1e}")
            worst = max(worst, off[0])
    # Models of the Hub round norms to float32 inside, so this is not 1e-15.
    if worst > 1e-4:
        raise SystemExit(f"a step differs from the CPU's by {worst:.1e} of itself")


# 2. What is sampled has the probabilities that it says


def sampling() -> None:
    """How often first tokens are drawn, beside their probabilities."""
    little, tokens = models.load("sft")
    policy = TransformerPolicy(nn.Module.to(little, WHERE))
    prompt = tokens(["What is 2+2?"])["input_ids"][0]
    count = 4096
    answers = generate(
        policy, [prompt], group_size=count, max_new_tokens=1, generator=seeded(0)
    )
    drawn = answers.actions[answers.mask]
    logits = policy(torch.tensor([prompt], device=WHERE))[0, -1]
    chances = logits.detach().softmax(-1)
    shares = torch.bincount(drawn, minlength=len(chances)) / count
    error = (chances * (1 - chances) / count).sqrt().clamp(min=1 / count)
    off = float(((shares - chances).abs() / error).max())
    print(f"largest distance of a share from its probability: {off:.1f} errors")
    if off > 5:
        raise SystemExit("the sampler draws other tokens than it says")


# 3. The little model: time, waits for the card, memory


@contextmanager
def watched(found: dict[str, float]) -> Iterator[None]:
    """Seconds, waits of the CPU for the card, and the peak of the card's memory."""
    if ON_A_CARD:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        began = time.perf_counter()
        yield
        found["waits"] = sum("synchroniz" in str(each.message) for each in said)
    if ON_A_CARD:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        found["GiB"] = torch.cuda.max_memory_allocated() / 2**30
    found["seconds"] = time.perf_counter() - began


def little_model() -> None:
    """GRPO, PPO and TRPO on the little model, 16 questions x 16 answers."""
    policy = TransformerPolicy(nn.Module.to(models.load("sft")[0], WHERE))
    groups = 16 if ON_A_CARD else 4
    questions = arithmetic.questions(groups, held_out=False, generator=seeded(0))
    for update in (grpo, ppo, trpo):
        seen = []
        for seed in range(4):
            there = copy.deepcopy(policy)
            answers, prompts, texts = answer(
                there, questions, group_size=16, generator=seeded(seed)
            )
            scores = torch.tensor(
                arithmetic.accuracy_reward(prompts, texts), device=WHERE
            )
            batch = with_scores(answers, scores)
            advantages = per_step(group_relative(scores, batch.groups), batch.mask)
            found: dict[str, float] = {}
            with watched(found):
                update(there, batch, advantages)
            seen.append(found)
        print(update.__name__, summary(seen[1:]))  # the first warms up


def summary(seen: list[dict[str, float]]) -> str:
    """Median, least and most of each number."""
    said = []
    for name in seen[0]:
        each = [found[name] for found in seen]
        middle = statistics.median(each)
        said.append(f"{name} {middle:.3g} ({min(each):.3g} to {max(each):.3g})")
    return ", ".join(said)


# 4. A model of the shape of Qwen2.5-0.5B, with random weights


def large_model() -> None:
    """Sampling beside `model.generate`, and an update, in float32 and bfloat16."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896 if ON_A_CARD else 112,
        intermediate_size=4864 if ON_A_CARD else 256,
        num_hidden_layers=24 if ON_A_CARD else 2,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    groups, limit = (16, 128) if ON_A_CARD else (2, 8)
    prompts = torch.randint(1, 150_000, (groups, 64), generator=seeded(0)).tolist()
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        made: Any = Qwen2ForCausalLM(config)
        model = made.to(WHERE, dtype).eval()
        policy = TransformerPolicy(model)
        ours: dict[str, float] = {}
        theirs: dict[str, float] = {}
        update: dict[str, float] = {}
        with watched(ours):
            answers = generate(
                policy, prompts, group_size=8, max_new_tokens=limit, generator=seeded(1)
            )
        rows = torch.tensor(prompts, device=WHERE).repeat_interleave(8, dim=0)
        with watched(theirs), torch.no_grad():
            model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                do_sample=True,
                top_k=0,
                max_new_tokens=limit,
                pad_token_id=0,
            )
        advantages = torch.where(answers.mask, 1.0, 0.0)
        advantages[::2] *= -1
        with watched(update):
            grpo(policy, answers, advantages, micro_batch=16)
        sampled = int(answers.mask.sum())
        for name, found in {
            "generate": ours,
            "model.generate": theirs,
            "grpo_update, two epochs": update,
        }.items():
            rate = sampled / found["seconds"]
            print(f"{dtype}, {name}: {rate:.0f} tokens a second, {summary([found])}")
        del model, policy


# 5. The book


def notebooks() -> None:
    """Every notebook on CUDA: the asserts hold, the outputs may differ."""
    if ON_A_CARD:
        subprocess.run([sys.executable, "tools/gate.py", "notebooks_gpu"], check=True)
    else:
        print("on a card the notebooks run here, by `make notebooks-gpu`")


STEPS: dict[str, tuple[Callable[[], None], int]] = {
    "same_steps": (same_steps, 120),
    "sampling": (sampling, 60),
    "little_model": (little_model, 90),
    "large_model": (large_model, 150),
    "notebooks": (notebooks, 240),
}


def main(names: list[str]) -> int:
    """Run the steps, each in a process of its own; return how many failed."""
    if names[:1] == ["--here"]:
        torch.set_num_threads(1)
        STEPS[names[1]][0]()
        return 0
    card = torch.cuda.get_device_name() if ON_A_CARD else ""
    print(card or "REHEARSAL on the CPU: no card is seen here", flush=True)
    failed = []
    for name in names or STEPS:
        print(f"== {name}: {STEPS[name][0].__doc__}", flush=True)
        command = [sys.executable, __file__, "--here", name]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        began = time.monotonic()
        try:
            subprocess.run(
                command, env=environment, cwd=ROOT, timeout=STEPS[name][1], check=True
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            failed.append(name)
            print(f"FAILED: {error}", flush=True)
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
    print(f"{len(failed)} of {len(names or STEPS)} steps failed", *failed, flush=True)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
