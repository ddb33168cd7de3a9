"""GRPO on the language model: our loop beside TRL's `GRPOTrainer`, in one run.

    pip install -r requirements.txt -r requirements-peers.txt
    python -m benchmarks.grpo

Both train the "sft" model on the same questions, 16 x 16 answers an update, in two
epochs of one step each. The settings below hold for both. Each trainer has a process of
its own, whose memory is then its own, and one thread. The two take turns, 10 updates at
a time, so that a busy moment of the machine does not hit one of them alone. Only
training is timed. The accuracy is measured on held-out questions by a third process,
and TRL's true KL, which it does not compute itself, while its clock stands still.

In both the model's attention is PyTorch's fused kernel ("sdpa"), which is faster. Of
TRL all is off that can be: evaluation, logging, saving, the progress bar, gradient
checkpointing and clipping. Data come without workers. Ours runs 64 rows of like length
at a time. Runs on Linux.

`--seeds 5 --updates 20` trains once, for 20 updates.
"""

import argparse
import copy
import os
import platform
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
from transformers import PreTrainedModel

from experiments.answers import LIMIT, fresh_sft, measure, seeded
from rl_notes.advantages import group_relative, per_step
from rl_notes.divergences import kl_exact
from rl_notes.language import arithmetic, tokenizer
from rl_notes.language.answers import answer
from rl_notes.objectives import mean_over_tokens, token_clip
from rl_notes.policies import TransformerPolicy
from rl_notes.updates import grpo_update

SEEDS, UPDATES, TURN = range(5), 30, 10
GROUPS, SIZE = 16, 16
LEARNING_RATE, CLIP, EPOCHS = 1e-4, 0.2, 2
MICRO_BATCH = 64
ASKED = 1000  # held-out questions
SHARES = ("greedy", "sampled", "work", "length")


class Turn:
    """One trainer's side: it trains while it is its turn, and hands in what came of it.

    The clock stands still while the other trainer's turn lasts.
    """

    def __init__(self, parent: Connection) -> None:
        self.parent = parent
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
        if len(self.kls) % TURN == 0:
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


def ours(asked: Sequence[str], seed: int, turn: Turn | None) -> int:
    """Train; return how many steps the optimizer took."""
    model = fresh_sft()
    model.set_attn_implementation("sdpa")
    policy = TransformerPolicy(model)
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    generator = seeded(seed)
    if turn:
        turn.resume()
    for first in range(0, len(asked), GROUPS):
        questions = asked[first : first + GROUPS]
        batch, prompts, answers = answer(
            policy, questions, group_size=SIZE, generator=generator
        )
        scores = torch.tensor(arithmetic.accuracy_reward(prompts, answers))
        stats = grpo_update(
            policy,
            optimizer,
            batch,
            per_step(group_relative(scores, batch.groups), batch.mask),
            objective=partial(token_clip, clip_low=CLIP, clip_high=CLIP),
            epochs=EPOCHS,
            minibatches=1,
            generator=generator,
            aggregate=mean_over_tokens,
            micro_batch=MICRO_BATCH,
        )
        if turn:
            turn.pause()
            turn.end_update(model, stats.kl_mean)
            turn.resume()
    return steps_of(optimizer)


def theirs(asked: Sequence[str], seed: int, turn: Turn | None) -> int:
    """Train; return how many steps the optimizer took."""
    from datasets import Dataset  # not in the other trainer's memory
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model = fresh_sft()
    model.set_attn_implementation("sdpa")
    old = copy.deepcopy(model)

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            turn.resume()

        def on_step_end(self, args, state, *_: object, **__: object) -> None:
            if state.global_step % EPOCHS == 0:
                turn.pause()
                kl = movement(old, model, trainer._buffered_inputs[0])
                old.load_state_dict(model.state_dict())
                turn.end_update(model, kl)
                turn.resume()

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            seed=seed,
            max_steps=EPOCHS * len(asked) // GROUPS,
            # One update: 16 x 16 answers, two epochs, one step each.
            per_device_train_batch_size=GROUPS * SIZE,
            gradient_accumulation_steps=1,
            num_generations=SIZE,
            num_iterations=EPOCHS,
            max_completion_length=LIMIT,
            temperature=1.0,
            # The objective: that of DAPO is the mean over tokens.
            loss_type="dapo",
            scale_rewards="group",
            epsilon=CLIP,
            epsilon_high=CLIP,
            beta=0.0,
            # The optimizer.
            learning_rate=LEARNING_RATE,
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
            reward_funcs=arithmetic.accuracy_reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in asked]),
            processing_class=tokenizer.build(),
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
def movement(old: nn.Module, new: nn.Module, batch: dict[str, Tensor]) -> float:
    """KL(old || new) of TRL's batch, as ours: mean over the steps of rows in use."""
    used = batch["advantages"] != 0
    if not bool(used.any()):
        used = ~used
    pairs = (("prompt_ids", "completion_ids"), ("prompt_mask", "completion_mask"))
    ids, seen = (torch.cat([batch[k][used] for k in pair], dim=1) for pair in pairs)
    answers = batch["completion_mask"][used].bool()
    here = slice(-answers.shape[1] - 1, -1)  # what the answers' tokens were drawn from
    before, after = (
        model(input_ids=ids, attention_mask=seen).logits[:, here]
        for model in (old, new)
    )
    return float(mean_over_tokens(kl_exact(before, after), answers))


TRAINERS: dict[str, Callable[[Sequence[str], int, Turn | None], int]] = {
    "rl_notes": ours,
    "TRL": theirs,
}


def work(name: str, parent: Connection) -> None:
    """The process of one trainer: a training for every job that it is given."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The first update of a process is slow.
    TRAINERS[name](drawn(1, seed=0), 0, None)
    parent.send(memory())
    while (job := parent.recv()) is not None:
        steps = TRAINERS[name](*job, Turn(parent))
        parent.send((steps, memory()))


def started(name: str) -> Connection:
    """A new process of this trainer."""
    context = get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=work, args=(name, there)).start()
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


def drawn(updates: int, *, seed: int) -> list[str]:
    """The training questions of so many updates."""
    generator = seeded(1000 + seed)
    return arithmetic.questions(GROUPS * updates, held_out=False, generator=generator)


def race(workers: dict[str, Connection], seed: int, updates: int) -> dict[str, Run]:
    """Every trainer with this seed; they take turns."""
    going = {name: in_turns(worker, seed, updates) for name, worker in workers.items()}
    runs: dict[str, Run] = {}
    while len(runs) < len(going):
        for name, training in going.items():
            try:
                next(training)
            except StopIteration as end:
                runs[name] = end.value
    return runs


def in_turns(worker: Connection, seed: int, updates: int) -> Generator[None, None, Run]:
    """One training, which goes on for a turn when this generator does."""
    worker.send((drawn(updates, seed=seed), seed))
    points = []
    for _ in range(updates // TURN):
        weights, kls, seconds = worker.recv()
        model = fresh_sft()
        model.load_state_dict({name: torch.tensor(x) for name, x in weights.items()})
        points.append(Point(len(kls), seconds, accuracy(model)))
        yield
        worker.send("go on")
    steps, (_, most) = worker.recv()
    return Run(points, kls, steps, most)


def accuracy(model: PreTrainedModel) -> dict[str, float]:
    return measure(model, questions=ASKED, size=1)


def middle(figures: Sequence[float], form: str) -> str:
    """Median, lowest and highest."""
    shown = (statistics.median(figures), min(figures), max(figures))
    return "{} ({} to {})".format(*(format(figure, form) for figure in shown))


def print_row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_seed(name: str, seed: int, run: Run) -> None:
    for point in run.points:
        shares = (point.measured[key] for key in SHARES)
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


def print_curves(found: dict[str, list[Run]]) -> None:
    print_row("updates", "trainer", "CPU-seconds", *SHARES)
    print_row("---:", "---", *(["---:"] * (1 + len(SHARES))))
    for index in range(len(found["TRL"][0].points)):
        for name, runs in found.items():
            points = [run.points[index] for run in runs]
            print_row(
                points[0].updates,
                name,
                middle([point.seconds for point in points], ".1f"),
                *(middle([p.measured[key] for p in points], ".2f") for key in SHARES),
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--updates", type=int, default=UPDATES)
    given = parser.parse_args()
    if given.updates < TURN or given.updates % TURN:
        parser.error(f"--updates must be a multiple of {TURN}")
    torch.set_num_threads(1)
    packages = ("torch", "transformers", "trl", "accelerate")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores")
    start = accuracy(fresh_sft())
    print("before:", ", ".join(f"{key} {start[key]}" for key in SHARES), "\n")
    workers = {name: started(name) for name in TRAINERS}
    before = {name: worker.recv()[0] for name, worker in workers.items()}
    print_row("trainer", "seed", "updates", "CPU-seconds", *SHARES)
    print_row("---", *(["---:"] * (3 + len(SHARES))))
    found: dict[str, list[Run]] = {name: [] for name in TRAINERS}
    for seed in given.seeds:
        for name, run in race(workers, seed, given.updates).items():
            found[name].append(run)
            print_seed(name, seed, run)
    for worker in workers.values():
        worker.send(None)
    print_speed(found, before)
    print_curves(found)


if __name__ == "__main__":
    main()
