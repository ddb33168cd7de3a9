"""GRPO on a language model: our loop beside TRL's `GRPOTrainer`, in one run.

    pip install -r requirements.txt -r requirements-peers.txt
    python -m benchmarks.grpo
    python tools/fetch_real_model.py
    python -m benchmarks.grpo --task real --seeds 0 --updates 6

Both train the same model on the same questions: the "sft" model, 16 x 16 answers an
update, in two epochs of one step each; or SmolLM2-135M-Instruct, 16 x 8 answers, one
epoch, as in the chapter on it. The settings below hold for both. Each trainer has a
process of its own, whose memory is then its own, and one thread. The two take turns of
some updates, so that a busy moment of the machine does not hit one of them alone. Only
training is timed. The accuracy is measured on held-out questions by a third process,
and TRL's true KL, which it does not compute itself, while its clock stands still.

In both the model's attention is PyTorch's fused kernel ("sdpa"), which is faster. Of
TRL all is off that can be: evaluation, logging, saving, the progress bar, gradient
checkpointing and clipping. Data come without workers. Ours runs some rows of like
length at a time; TRL runs as many, or the whole batch where that is as fast and fits.
Runs on Linux.

`--seeds 5 --updates 20` trains once, for 20 updates.
"""

import argparse
import copy
import os
import platform
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments import real_model
from experiments.answers import LIMIT, fresh_sft, measure, seeded
from rl_notes.advantages import group_relative, per_step
from rl_notes.divergences import kl_exact
from rl_notes.language import arithmetic, tokenizer
from rl_notes.language.generation import generate
from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.policies import TransformerPolicy
from rl_notes.updates import grpo_update

CLIP = 0.2


@dataclass(frozen=True)
class Task:
    """What both trainers train, and on what.

    Attributes:
        model: The model as it is before, a new one at each call.
        tokens: Its tokenizer.
        questions: So many prompts for training, as texts.
        reward: The score of each answer, in TRL's convention.
        accuracy: What a model can do, on held-out questions.
        shares: The names of what `accuracy` finds.
        groups, size, limit: Questions an update, answers to each, tokens of each.
        epochs, rate: Steps an update, and the learning rate of Adam.
        micro_batch: How many rows ours runs at a time.
        of_trl: How many rows TRL runs at a time.
        seeds, updates, turn: How long both train, and for how many updates in turn.
    """

    model: Callable[[], PreTrainedModel]
    tokens: Callable[[], PreTrainedTokenizerBase]
    questions: Callable[[int, torch.Generator], list[str]]
    reward: Callable[..., list[float]]
    accuracy: Callable[[PreTrainedModel], dict[str, float]]
    shares: Sequence[str]
    groups: int
    size: int
    limit: int
    epochs: int
    rate: float
    micro_batch: int
    of_trl: int
    seeds: Sequence[int]
    updates: int
    turn: int


def little_questions(count: int, generator: torch.Generator) -> list[str]:
    return arithmetic.questions(count, held_out=False, generator=generator)


def little_accuracy(model: PreTrainedModel) -> dict[str, float]:
    return measure(model, questions=1000, size=1)


def real_questions(count: int, generator: torch.Generator) -> list[str]:
    """Sums as the chat template has them."""
    _, tokens = real_model.load()
    pairs = real_model.sums_to_train_on(count, generator)
    return [
        tokens.decode(real_model.prompt(tokens, real_model.sum_asked(pair)))
        for pair in pairs
    ]


def real_reward(
    prompts: Sequence[str], completions: Sequence[str], **_: object
) -> list[float]:
    """1 if the last number of the answer is the sum that the prompt asks for."""
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        a, b = re.findall(r"What is (\d+)\+(\d+)\?", prompt)[-1]
        found.append(float(real_model.is_right((int(a), int(b)), completion)))
    return found


def real_accuracy(model: PreTrainedModel) -> dict[str, float]:
    _, tokens = real_model.load()
    asked = real_model.pairs((10, 49), 80, held_out=True, generator=seeded(9))
    prompts = [real_model.prompt(tokens, real_model.sum_asked(pair)) for pair in asked]
    found = {}
    for name, temperature in {"greedy": real_model.GREEDY, "sampled": 1.0}.items():
        said, _ = real_model.answered(model, tokens, prompts, temperature)
        found[name] = real_model.shares(asked, said)["right"]
    return found


TASKS = {
    "little": Task(
        model=fresh_sft,
        tokens=tokenizer.build,
        questions=little_questions,
        reward=arithmetic.accuracy_reward,
        accuracy=little_accuracy,
        shares=("greedy", "sampled", "work", "length"),
        groups=16,
        size=16,
        limit=LIMIT,
        epochs=2,
        rate=1e-4,
        micro_batch=64,
        of_trl=256,
        seeds=range(5),
        updates=30,
        turn=10,
    ),
    "real": Task(
        model=lambda: real_model.load()[0],
        tokens=lambda: real_model.load()[1],
        questions=real_questions,
        reward=real_reward,
        accuracy=real_accuracy,
        shares=("greedy", "sampled"),
        groups=real_model.QUESTIONS,
        size=real_model.SIZE,
        limit=real_model.LIMIT,
        epochs=1,
        rate=real_model.LEARNING_RATE,
        micro_batch=16,
        of_trl=16,
        seeds=range(3),
        updates=12,
        turn=6,
    ),
}


class Turn:
    """One trainer's side: it trains while it is its turn, and hands in what came of it.

    The clock stands still while the other trainer's turn lasts.
    """

    def __init__(self, parent: Connection, length: int) -> None:
        self.parent = parent
        self.length = length
        self.kls: list[float] = []
        self.seconds = 0.0
        self.begin = 0.0

    def resume(self) -> None:
        self.begin = time.process_time()

    def pause(self) -> None:
        self.seconds += time.process_time() - self.begin

    def end_update(self, model: nn.Module, kl: float) -> None:
        """To be called while the clock stands still."""
        self.kls.append(kl)
        if len(self.kls) % self.length == 0:
            weights = {name: x.numpy() for name, x in model.state_dict().items()}
            self.parent.send((weights, self.kls, self.seconds))
            self.parent.recv()


def memory() -> tuple[float, float]:
    """What the process holds now and the most that it has held, in MiB.

    Not `ru_maxrss`, in which a new process inherits the peak of the one it is from.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    lines = dict(line.split(":", 1) for line in status.splitlines())
    now, most = (int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM"))
    return now / 1024, most / 1024


def ours(task: Task, asked: Sequence[str], seed: int, turn: Turn | None) -> int:
    """Train; return how many steps the optimizer took."""
    model, tokens = task.model(), task.tokens()
    model.set_attn_implementation("sdpa")
    policy = TransformerPolicy(model)
    optimizer = torch.optim.Adam(policy.parameters(), lr=task.rate)
    generator = seeded(seed)
    if turn:
        turn.resume()
    for first in range(0, len(asked), task.groups):
        questions = asked[first : first + task.groups]
        batch = generate(
            policy,
            [tokens.encode(question) for question in questions],
            group_size=task.size,
            max_new_tokens=task.limit,
            generator=generator,
        )
        prompts = [question for question in questions for _ in range(task.size)]
        answers = real_model.texts(tokens, batch)
        scores = torch.tensor(task.reward(prompts, answers))
        stats = grpo_update(
            policy,
            optimizer,
            batch,
            per_step(group_relative(scores, batch.groups), batch.mask),
            objective=partial(token_clip, clip_low=CLIP, clip_high=CLIP),
            epochs=task.epochs,
            minibatches=1,
            generator=generator,
            aggregate=mean_over_tokens,
            micro_batch=task.micro_batch,
        )
        if turn:
            turn.pause()
            turn.end_update(model, stats.kl_mean)
            turn.resume()
    return steps_of(optimizer)


def theirs(task: Task, asked: Sequence[str], seed: int, turn: Turn | None) -> int:
    """Train; return how many steps the optimizer took."""
    from datasets import Dataset  # not in the other trainer's memory
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model = task.model()
    model.set_attn_implementation("sdpa")
    old = copy.deepcopy(model)

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            turn.resume()

        def on_step_end(self, args, state, *_: object, **__: object) -> None:
            if state.global_step % task.epochs == 0:
                turn.pause()
                kl = movement(old, model, trainer._buffered_inputs)
                old.load_state_dict(model.state_dict())
                turn.end_update(model, kl)
                turn.resume()

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            seed=seed,
            max_steps=task.epochs * len(asked) // task.groups,
            # One update: all answers are sampled, and each epoch is one step.
            per_device_train_batch_size=task.of_trl,
            gradient_accumulation_steps=task.groups * task.size // task.of_trl,
            num_generations=task.size,
            num_iterations=task.epochs,
            max_completion_length=task.limit,
            temperature=1.0,
            # The objective: that of DAPO is the mean over tokens.
            loss_type="dapo",
            scale_rewards="group",
            epsilon=CLIP,
            epsilon_high=CLIP,
            beta=0.0,
            # The optimizer.
            learning_rate=task.rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=0.0,
            # What costs time or changes the numbers.
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            eval_strategy="no",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=task.reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in asked]),
            processing_class=task.tokens(),
            callbacks=[Watch()] if turn else [],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return steps_of(trainer.optimizer)


def steps_of(optimizer: torch.optim.Optimizer) -> int:
    (steps,) = {
        int(state["step"]) for state in optimizer.state_dict()["state"].values()
    }
    return steps


@torch.no_grad()
def movement(
    old: nn.Module, new: nn.Module, parts: Sequence[dict[str, Tensor]]
) -> float:
    """KL(old || new) of TRL's batch, as ours: mean over the steps of rows in use."""
    in_use = any(bool((part["advantages"] != 0).any()) for part in parts)
    total, steps = 0.0, 0
    for part in parts:
        used = (part["advantages"] != 0) | (not in_use)
        if not bool(used.any()):
            continue
        pairs = (("prompt_ids", "completion_ids"), ("prompt_mask", "completion_mask"))
        ids, seen = (torch.cat([part[k][used] for k in pair], dim=1) for pair in pairs)
        answers = part["completion_mask"][used].bool()
        here = slice(-answers.shape[1] - 1, -1)  # what their tokens were drawn from
        before, after = (
            model(input_ids=ids, attention_mask=seen).logits[:, here]
            for model in (old, new)
        )
        total += float(kl_exact(before, after)[answers].sum())
        steps += int(answers.sum())
    return total / steps


TRAINERS: dict[str, Callable[[Task, Sequence[str], int, Turn | None], int]] = {
    "rl_notes": ours,
    "TRL": theirs,
}


def work(name: str, what: str, parent: Connection) -> None:
    """The process of one trainer: a training for every job that it is given."""
    task = TASKS[what]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The first update of a process is slow.
    TRAINERS[name](task, drawn(task, 1, seed=0), 0, None)
    parent.send(memory())
    while (job := parent.recv()) is not None:
        steps = TRAINERS[name](task, *job, Turn(parent, task.turn))
        parent.send((steps, memory()))


def started(name: str, what: str) -> Connection:
    """A new process of this trainer."""
    context = get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=work, args=(name, what, there)).start()
    there.close()  # so that the end of the process ends the wait for it
    return here


@dataclass(frozen=True)
class Point:
    """A trainer after some updates."""

    updates: int
    seconds: float
    measured: dict[str, float]


@dataclass(frozen=True)
class Run:
    """One training."""

    points: list[Point]
    kls: list[float]
    steps: int
    memory: float  # the most that its process has held so far

    @property
    def seconds_per_update(self) -> float:
        return self.points[-1].seconds / len(self.kls)


def drawn(task: Task, updates: int, *, seed: int) -> list[str]:
    """The training questions of so many updates."""
    return task.questions(task.groups * updates, seeded(1000 + seed))


def race(
    task: Task, workers: dict[str, Connection], seed: int, updates: int
) -> dict[str, Run]:
    """Every trainer with this seed; they take turns."""
    going = {
        name: in_turns(task, worker, seed, updates) for name, worker in workers.items()
    }
    runs: dict[str, Run] = {}
    while len(runs) < len(going):
        for name, training in going.items():
            try:
                next(training)
            except StopIteration as end:
                runs[name] = end.value
    return runs


def in_turns(
    task: Task, worker: Connection, seed: int, updates: int
) -> Generator[None, None, Run]:
    """One training, which goes on for a turn when this generator does."""
    worker.send((drawn(task, updates, seed=seed), seed))
    points = []
    for _ in range(updates // task.turn):
        weights, kls, seconds = worker.recv()
        model = task.model()
        model.load_state_dict({name: torch.tensor(x) for name, x in weights.items()})
        points.append(Point(len(kls), seconds, task.accuracy(model)))
        yield
        worker.send("go on")
    steps, (_, most) = worker.recv()
    return Run(points, kls, steps, most)


def middle(figures: Sequence[float], form: str) -> str:
    """Median, lowest and highest."""
    shown = (statistics.median(figures), min(figures), max(figures))
    return "{} ({} to {})".format(*(format(figure, form) for figure in shown))


def print_row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_seed(task: Task, name: str, seed: int, run: Run) -> None:
    for point in run.points:
        shares = (point.measured[key] for key in task.shares)
        print_row(name, seed, point.updates, f"{point.seconds:.1f}", *shares)


def print_speed(found: dict[str, list[Run]], before: dict[str, float]) -> None:
    columns = ("trainer", "updates per CPU-second", "CPU-seconds an update")
    columns += ("steps", "KL of an update", "MiB at most", "MiB before")
    print()
    print_row(*columns)
    print_row("---", *(["---:"] * (len(columns) - 1)))
    for name, runs in found.items():
        print_row(
            name,
            middle([1 / run.seconds_per_update for run in runs], ".2f"),
            middle([run.seconds_per_update for run in runs], ".2f"),
            ", ".join({str(run.steps) for run in runs}),
            middle([kl for run in runs for kl in run.kls], ".4f"),
            f"{runs[-1].memory:.0f}",
            f"{before[name]:.0f}",
        )
    fast, slow = ([run.seconds_per_update for run in runs] for runs in found.values())
    ratios = [theirs / ours for ours, theirs in zip(fast, slow, strict=True)]
    print(f"\nSeed by seed ours makes {middle(ratios, '.2f')} times as many.\n")


def print_curves(task: Task, found: dict[str, list[Run]]) -> None:
    print_row("updates", "trainer", "CPU-seconds", *task.shares)
    print_row("---:", "---", *(["---:"] * (1 + len(task.shares))))
    for index in range(len(found["TRL"][0].points)):
        for name, runs in found.items():
            points = [run.points[index] for run in runs]
            print_row(
                points[0].updates,
                name,
                middle([point.seconds for point in points], ".1f"),
                *(middle([p.measured[k] for p in points], ".2f") for k in task.shares),
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=TASKS, default="little")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--updates", type=int)
    given = parser.parse_args()
    task = TASKS[given.task]
    updates = given.updates or task.updates
    if updates % task.turn:
        parser.error(f"--updates must be a multiple of {task.turn}")
    torch.set_num_threads(1)
    packages = ("torch", "transformers", "trl", "accelerate")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores")
    start = task.accuracy(task.model())
    print("before:", ", ".join(f"{key} {start[key]}" for key in task.shares), "\n")
    workers = {name: started(name, given.task) for name in TRAINERS}
    before = {name: worker.recv()[0] for name, worker in workers.items()}
    print_row("trainer", "seed", "updates", "CPU-seconds", *task.shares)
    print_row("---", *(["---:"] * (3 + len(task.shares))))
    found: dict[str, list[Run]] = {name: [] for name in TRAINERS}
    for seed in given.seeds or task.seeds:
        for name, run in race(task, workers, seed, updates).items():
            found[name].append(run)
            print_seed(task, name, seed, run)
    for worker in workers.values():
        worker.send(None)
    print_speed(found, before)
    print_curves(task, found)


if __name__ == "__main__":
    main()
