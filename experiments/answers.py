"""What the experiments on the language model share: asking, scoring, storing."""

import copy
import json
import platform
import statistics
import time
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl_notes.language import arithmetic, tokenizer
from rl_notes.language.answers import answer
from rl_notes.language.models import load
from rl_notes.policies import TransformerPolicy
from rl_notes.results import FOLDER
from rl_notes.trajectories import Trajectories, with_scores

TOKENS = tokenizer.build()
LIMIT = 64  # tokens in an answer
GREEDY = 1e-3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh_sft() -> PreTrainedModel:
    return copy.deepcopy(load("sft")[0])


def sample_scored(
    policy: TransformerPolicy, groups: int, size: int, generator: torch.Generator
) -> tuple[Trajectories, Tensor]:
    """Answers to new training questions, scored by the rule: 1 if right, 0 if not."""
    asked = arithmetic.questions(groups, held_out=False, generator=generator)
    sampled, prompts, answers = answer(
        policy, asked, group_size=size, generator=generator
    )
    scores = torch.tensor(arithmetic.accuracy_reward(prompts, answers))
    return with_scores(sampled, scores), scores


def better_than_others(scores: Tensor, size: int) -> Tensor:
    """Each score less the mean score of the other answers to its question, [N]."""
    total = scores.view(-1, size).sum(1).repeat_interleave(size)
    return scores - (total - scores) / (size - 1)


def measure(
    model: PreTrainedModel, *, questions: int = 1000, size: int = 8
) -> dict[str, float]:
    """Held-out questions, always the same: greedy, sampled, pass@size, work, length."""
    asked = arithmetic.questions(questions, held_out=True, generator=seeded(9))
    policy = TransformerPolicy(model)
    sampled, prompts, answers = answer(
        policy, asked, group_size=size, generator=seeded(10)
    )
    right = torch.tensor(arithmetic.accuracy_reward(prompts, answers)).view(-1, size)
    likeliest = TransformerPolicy(model, GREEDY)
    _, _, greedy = answer(likeliest, asked, generator=seeded(11))
    worked = torch.tensor([arithmetic.shows_work(text) for text in answers])
    shares = {
        "greedy": statistics.mean(arithmetic.accuracy_reward(asked, greedy)),
        "sampled": right.mean().item(),
        f"pass@{size}": right.amax(dim=1).mean().item(),
        "work": worked.float().mean().item(),
        "length": sampled.mask.sum(1).float().mean().item(),
    }
    return {name: round(share, 4) for name, share in shares.items()}


def stored_before(name: str) -> dict[str, Any]:
    """What an earlier call has stored, to be gone on with; nothing at first."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def store(name: str, results: dict[str, Any], *, earlier: float = 0) -> None:
    """Write NAME.json into the package, with how it was made.

    `earlier` are the CPU-seconds of the calls that this one goes on from.
    """
    about = {
        "command": f"python -m experiments.{name}",
        "torch": version("torch").split("+")[0],
        "transformers": version("transformers"),
        "machine": f"{platform.machine()}, one thread",
        "cpu_seconds": round(earlier + time.process_time()),
    }
    text = json.dumps({"about": about, **results}, indent=1)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
