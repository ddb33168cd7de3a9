"""How fast answers are sampled, in tokens per CPU-second: ours and model.generate.

    pip install -r requirements.txt
    python -m benchmarks.generation

One thread. The "sft" model answers 256 distinct questions, and 16 questions 16 times
each, up to 64 tokens. Only sampled tokens count, the end token among them. Each figure
is the median of 5 repeats; the samplers take turns, so that a busy moment of the
machine does not hit one of them alone.

The floor by arithmetic: every token multiplies each weight once, 2 operations, at the
rate that this machine reaches on matrices of the model's own shapes.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import Tensor

from rl_notes.language.arithmetic import questions
from rl_notes.language.generation import generate
from rl_notes.language.models import load
from rl_notes.language.tokenizer import encode
from rl_notes.policies import TransformerPolicy

REPEATS, LIMIT = 5, 64
WORKLOADS = {"256 questions": (256, 1), "16 questions x 16 answers": (16, 16)}
MODEL, TOKENIZER = load("sft")


def timed(answer: Callable[[], int]) -> float:
    """Tokens per CPU-second."""
    begin = time.process_time()
    tokens = answer()
    return tokens / (time.process_time() - begin)


def ours(prompts: list[list[int]], group_size: int) -> Callable[[], int]:
    policy, generator = TransformerPolicy(MODEL), torch.Generator().manual_seed(0)

    def answer() -> int:
        batch = generate(
            policy,
            prompts,
            group_size=group_size,
            max_new_tokens=LIMIT,
            generator=generator,
        )
        return int(batch.mask.sum())

    return answer


def theirs(prompts: list[list[int]], group_size: int) -> Callable[[], int]:
    """`model.generate`, from the same distribution, with the log-probabilities left
    out: it does not compute them."""
    batch = TOKENIZER.pad({"input_ids": prompts}, padding_side="left")
    batch = {name: torch.tensor(rows) for name, rows in batch.items()}
    width = batch["input_ids"].shape[1]
    torch.manual_seed(0)

    def answer() -> int:
        text = MODEL.generate(
            **batch,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            num_return_sequences=group_size,
            max_new_tokens=LIMIT,
        )
        return sampled(text[:, width:])

    return answer


def sampled(tokens: Tensor) -> int:
    """How many there are up to the first end token of each row."""
    ended = (tokens == TOKENIZER.eos_token_id).int()
    return int((ended.cumsum(dim=1) - ended == 0).sum())


def matrix_rate(rows: int) -> float:
    """Operations per CPU-second of one token's matrix products for so many rows."""
    weights = [weight for weight in MODEL.parameters() if weight.dim() == 2]
    inputs = [torch.randn(rows, weight.shape[1]) for weight in weights]
    operations = 2 * rows * sum(weight.numel() for weight in weights)
    times = 200
    begin = time.process_time()
    with torch.no_grad():
        for _ in range(times):
            for weight, given in zip(weights, inputs, strict=True):
                torch.nn.functional.linear(given, weight)
    return times * operations / (time.process_time() - begin)


def main() -> None:
    torch.set_num_threads(1)
    runs = {}
    for name, (count, group_size) in WORKLOADS.items():
        generator = torch.Generator().manual_seed(1)
        asked = questions(count, held_out=True, generator=generator, distinct=True)
        prompts = encode(TOKENIZER, asked)
        runs[name, "rl_notes"] = ours(prompts, group_size)
        runs[name, "model.generate"] = theirs(prompts, group_size)
    for run in runs.values():
        run()
    results = {name: [] for name in runs}
    rates = []
    for _ in range(REPEATS):
        for name, run in runs.items():
            results[name].append(timed(run))
        rates.append(matrix_rate(256))
    parameters = sum(weight.numel() for weight in MODEL.parameters())
    floor = statistics.median(rates) / (2 * parameters)
    packages = ("torch", "transformers")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores")
    print(f"{parameters:,} parameters, {statistics.median(rates) / 1e9:.1f} Gflop/s")
    print(f"by arithmetic at most {floor:,.0f} tokens per CPU-second")
    print("\n| workload | sampler | tokens per CPU-second | lowest | highest | share |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, found in results.items():
        middle = statistics.median(found)
        figures = (f"{rate:,.0f}" for rate in (middle, min(found), max(found)))
        share = f"{100 * middle / floor:.1f} %"
        print(f"| {' | '.join((*name, *figures, share))} |")
    for name in WORKLOADS:
        ratio = statistics.median(results[name, "rl_notes"]) / statistics.median(
            results[name, "model.generate"]
        )
        print(f"{name}: {ratio:.2f} times model.generate")


if __name__ == "__main__":
    main()
