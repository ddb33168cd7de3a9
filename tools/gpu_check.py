"""What nobody sees without a graphics card, in one command: `make gpu-check`.

    python tools/gpu_check.py [step ...]

Without a card it is a rehearsal: the same steps run on the CPU, on smaller sizes, and
say so. Each step is a process of its own with a time limit, and when one fails the
others go on. What was found is printed, and goes into benchmarks/RESULTS.md by hand,
with the card's name.
"""

import copy
import importlib.util
import math
import os
import statistics
import subprocess
import sys
import tempfile
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
    """Sampling beside `model.generate`, an update beside TRL's, in two formats."""
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
        policy = TransformerPolicy(made.to(WHERE, dtype).eval())
        limits: dict[str, Any] = {"group_size": 8, "max_new_tokens": limit}
        rows = torch.tensor(prompts, device=WHERE).repeat_interleave(8, dim=0)
        draw = partial(generate, policy, prompts, generator=seeded(1), **limits)
        batch = draw()
        drawn = torch.no_grad()(
            partial(
                made.generate,
                rows,
                attention_mask=torch.ones_like(rows),
                do_sample=True,
                top_k=0,
                max_new_tokens=limit,
                pad_token_id=0,
            )
        )
        each = torch.where(torch.arange(len(rows), device=WHERE) % 2 == 0, 1.0, -1.0)
        calls: dict[str, Callable[[], Any]] = {
            "generate": draw,
            "model.generate": drawn,
            "grpo_update": partial(one_step, policy, batch, each),
        }
        if importlib.util.find_spec("trl"):
            calls["the step of TRL's trainer"] = step_of_trl(policy, batch, each)
        tokens, slopes = int(batch.mask.sum()), []
        for name, call in calls.items():
            found = [timed(call) for _ in range(3)][1:]  # the first warms up
            rates = [{"tokens a second": tokens / each["seconds"]} for each in found]
            print(f"{dtype}, {name}: {summary(rates)}, {summary(found)}", flush=True)
            if name not in ("generate", "model.generate"):
                slopes.append([w.grad.clone() for w in made.parameters()])
        if len(slopes) == 2:
            print(f"{dtype}, gradients apart, of their norm: {apart(*slopes):.1e}")
        made.zero_grad()
        del made, policy, drawn, draw, calls, slopes


def timed(call: Callable[[], Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    with watched(found):
        call()
    return found


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The distance of two gradients, as a share of the second one's norm."""
    both = list(zip(ours, theirs, strict=True))
    distance = sum(float((a.double() - b.double()).square().sum()) for a, b in both)
    norm = sum(float(b.double().square().sum()) for _, b in both)
    return math.sqrt(distance / norm)


def one_step(policy: TransformerPolicy, batch: Trajectories, each: Tensor) -> None:
    """An epoch of one step with Adam, taken back."""
    before = [w.detach().clone() for w in policy.parameters()]
    grpo_update(
        policy,
        torch.optim.Adam(policy.parameters(), lr=1e-6),
        batch,
        per_step(each, batch.mask),
        objective=CLIP,
        epochs=1,
        minibatches=1,
        generator=seeded(0),
        aggregate=mean_over_tokens,
        micro_batch=16,
    )
    back_to(policy, before)


@torch.no_grad()
def back_to(module: nn.Module, before: list[Tensor]) -> None:
    for weight, old in zip(module.parameters(), before, strict=True):
        weight.copy_(old)


def step_of_trl(
    policy: TransformerPolicy, batch: Trajectories, each: Tensor
) -> Callable[[], None]:
    """The same step by the loss of TRL's trainer, 16 rows at a time.

    All prompts are of one length, and no answer ends early.
    """
    import datasets
    import trl

    from rl_notes.language import tokenizer

    count = int(batch.mask[0].sum())
    options: dict[str, Any] = {
        "num_generations": 8,
        "max_completion_length": count,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": not ON_A_CARD,
        "report_to": "none",
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "loss_type": "dapo",
        "beta": 0.0,
    }
    trainer = trl.GRPOTrainer(
        model=policy.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(output_dir=tempfile.mkdtemp(), **options),
        train_dataset=datasets.Dataset.from_list([{"prompt": "1"}] * 8),
        processing_class=tokenizer.build(),
    )
    trainer.current_gradient_accumulation_steps = 1
    ids, old = batch.observations, batch.logprobs[:, -count:]

    def step() -> None:
        before = [w.detach().clone() for w in policy.parameters()]
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-6)
        optimizer.zero_grad()
        for part in torch.split(torch.arange(len(ids), device=WHERE), 16):
            loss = trainer.compute_loss(
                policy.model,
                {
                    "prompt_ids": ids[part, :-count],
                    "prompt_mask": torch.ones_like(ids[part, :-count]),
                    "completion_ids": ids[part, -count:],
                    "completion_mask": torch.ones_like(ids[part, -count:]),
                    "advantages": each[part],
                    "old_per_token_logps": old[part],
                    "num_items_in_batch": batch.mask.sum(),
                },
            )
            loss.backward()
        optimizer.step()
        back_to(policy, before)

    return step


# 5. Several processes


def several_processes() -> None:
    """Two processes on one card, by gloo: what share of an update is talking."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    subprocess.run(
        [sys.executable, *launch, "2", "-m", "benchmarks.processes"], check=True
    )


# 6. The tests on the card

TESTED = ["tests/equations", "tests/updates", "tests/maze/test_rollouts.py"]
TESTED += [f"tests/language/test_{x}.py" for x in ("generation", "answers", "models")]
TESTED += [f"tests/language/test_{x}.py" for x in ("prefix_trees", "reward_model")]
APART = ["parallel", "update_memory"]  # processes of their own, memory of the CPU


def tests() -> None:
    """The tests of equations, updates, rollouts and models with tensors on the card."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:warnings", "-p"]
    command += ["on_card", "--tb=line", *TESTED]
    command += [f"--ignore=tests/updates/test_{name}.py" for name in APART]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    paths += os.pathsep + os.environ.get("PYTHONPATH", "")
    subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, check=True)


# 7. The book


def notebooks() -> None:
    """Every notebook on CUDA: the asserts hold, the outputs may differ."""
    if ON_A_CARD:
        subprocess.run([sys.executable, "tools/gate.py", "notebooks_gpu"], check=True)
    else:
        print("on a card the notebooks run here, by `make notebooks-gpu`")


# 8. The real model


def real_model() -> None:
    """GRPO on SmolLM2 where it is at hand, as in its chapter: what it does then."""
    from experiments import real_model as experiment

    if experiment.where() == experiment.HUB:
        print("no model here: tools/fetch_real_model.py makes it")
        return
    names = ["card-0"] if ON_A_CARD else []
    began = time.monotonic()
    for name in ["before", *names]:
        command = [sys.executable, "-m", "experiments.real_model", name]
        subprocess.run(command, check=True)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


STEPS: dict[str, tuple[Callable[[], None], int]] = {
    "sampling": (sampling, 60),
    "same_steps": (same_steps, 120),
    "little_model": (little_model, 90),
    "large_model": (large_model, 200),
    "several_processes": (several_processes, 90),
    "notebooks": (notebooks, 240),
    "tests": (tests, 240),
    "real_model": (real_model, 240),
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
