"""RLHF from "sft" with the shipped reward model: what is rewarded, and what is true.

    pip install -r requirements.txt
    python -m experiments.rlhf

Five seeds for each price of a nat. PPO with a value model, one answer to each question.
The reward is the score of the reward model at the end of an answer, less the price of
every nat that leads away from "sft", token by token. Measured on held-out questions:
the score (what is rewarded), the rule (what is true), and KL(policy || sft) of whole
answers, as the mean over sampled answers of the exact divergences at the states on
their way.

And five seeds without a price and without a critic: 16 questions, 8 answers to each,
and each answer's advantage is its score less the mean of the other seven.
"""

import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.answers import (
    better_than_others,
    fresh_sft,
    seeded,
    store,
)
from rl_notes.advantages import gae, returns_to_go
from rl_notes.divergences import kl_exact
from rl_notes.language import arithmetic
from rl_notes.language.answers import answer
from rl_notes.language.models import load
from rl_notes.language.reward_model import answer_scores
from rl_notes.policies import (
    TransformerPolicy,
    TransformerValue,
    action_logprobs,
    state_values,
    states,
)
from rl_notes.trajectories import Trajectories, with_kl_penalty, with_scores
from rl_notes.updates import fit_value, ppo_update

SEEDS = range(5)
BETAS = (0.0, 0.03, 0.1, 0.3)  # the price of a nat
QUESTIONS, MINIBATCHES = 128, 2  # in an update, which uses each answer once
SIZE = 8  # answers to a question, where they are compared with each other
UPDATES, MEASURED_EVERY = 40, 4
RATE, VALUE_RATE, CLIP, LAMBDA = 1e-4, 5e-4, 0.2, 0.95
WARM_UP = 12  # batches on which the value model alone is fitted
SHOWN = ("What is 40+92?", "What is 362+98?", "What is 2468+1384?")  # held out


class Loop:
    """The four models of RLHF, from the shipped weights."""

    def __init__(self) -> None:
        self.reference = TransformerPolicy(fresh_sft())
        self.policy = TransformerPolicy(fresh_sft())
        self.reward_model = load("reward")[0]
        self.value = TransformerValue(fresh_sft())
        self.value.model.load_state_dict(self.reward_model.model.state_dict())

    @torch.no_grad()
    def rewarded(self, answers: Trajectories, beta: float) -> Trajectories:
        """Answers with their score, less the price of leaving the reference."""
        scored = with_scores(answers, answer_scores(self.reward_model, answers))
        reference_logprobs = action_logprobs(self.reference, answers)
        return with_kl_penalty(scored, reference_logprobs, beta=beta)


@torch.no_grad()
def evaluate(loop: Loop, *, questions: int = 500) -> dict[str, float]:
    """Held-out questions, always the same, one sampled answer to each."""
    asked = arithmetic.questions(questions, held_out=True, generator=seeded(9))
    answers, _, texts = answer(loop.policy, asked, generator=seeded(10))
    seen = states(answers)
    kl = kl_exact(loop.policy(seen), loop.reference(seen))  # [N, T]
    found = {
        "proxy": answer_scores(loop.reward_model, answers),
        "true": torch.tensor(arithmetic.accuracy_reward(asked, texts)),
        "kl": torch.where(answers.mask, kl, 0).sum(dim=1),
        "work": torch.tensor([float(arithmetic.shows_work(text)) for text in texts]),
        "form": torch.tensor(arithmetic.form_reward(asked, texts)),
        "length": answers.mask.sum(dim=1).float(),
    }
    return {name: round(x.mean().item(), 4) for name, x in found.items()}


@torch.no_grad()
def samples(loop: Loop) -> list[dict[str, Any]]:
    """What the policy says now to three questions, and what it is given for it."""
    answers, _, texts = answer(loop.policy, list(SHOWN), generator=seeded(12))
    scores = answer_scores(loop.reward_model, answers).tolist()
    return [
        {"question": question, "answer": text, "score": round(score, 3)}
        for question, text, score in zip(SHOWN, texts, scores, strict=True)
    ]


def train(seed: int, beta: float, *, size: int = 1) -> dict[str, Any]:
    """One run; what it earns, what is true of it, and what it says on the way.

    With size=1 there are as many questions as answers, and a critic. With more answers
    to each question these are compared with each other, and leaving is free.
    """
    loop, generator = Loop(), seeded(seed)
    optimizer = torch.optim.Adam(loop.policy.parameters(), lr=RATE)
    value_optimizer = torch.optim.Adam(loop.value.parameters(), lr=VALUE_RATE)

    def batch() -> tuple[Trajectories, Tensor]:
        questions = QUESTIONS // size
        asked = arithmetic.questions(questions, held_out=False, generator=generator)
        answers, _, _ = answer(loop.policy, asked, group_size=size, generator=generator)
        with torch.no_grad():
            return loop.rewarded(answers, beta), state_values(loop.value, answers)

    def fit(trajectories: Trajectories, targets: Tensor) -> None:
        fit_value(
            loop.value,
            value_optimizer,
            trajectories,
            targets,
            epochs=1,
            minibatches=MINIBATCHES,
            generator=generator,
        )

    for _ in range(WARM_UP if size == 1 else 0):
        trajectories, _ = batch()
        fit(trajectories, returns_to_go(trajectories))
    curve, said, begin = [], [], time.process_time()
    for update in tqdm(range(UPDATES + 1)):
        if update % MEASURED_EVERY == 0:
            curve.append({"updates": update, **evaluate(loop)})
            said.append({"updates": update, "answers": samples(loop)})
        if update == UPDATES:
            break
        trajectories, values = batch()
        if size == 1:
            advantages = gae(trajectories, values, lambda_=LAMBDA)
        else:
            better = better_than_others(trajectories.rewards.sum(dim=1), size)
            advantages = better[:, None] * trajectories.mask
        ppo_update(
            loop.policy,
            optimizer,
            trajectories,
            advantages,
            clip_low=CLIP,
            clip_high=CLIP,
            epochs=1,
            minibatches=MINIBATCHES,
            generator=generator,
        )
        if size == 1:
            fit(trajectories, advantages + values[:, :-1])
    seconds = round(time.process_time() - begin)
    return {
        "seed": seed,
        "beta": beta,
        "curve": curve,
        "samples": said,
        "cpu_seconds": seconds,
    }


def main() -> None:
    torch.set_num_threads(1)
    runs = [train(seed, beta) for beta in BETAS for seed in SEEDS]
    compared = [train(seed, 0.0, size=SIZE) for seed in SEEDS]
    settings = {
        "answers": QUESTIONS,
        "answers_compared": SIZE,
        "minibatches": MINIBATCHES,
        "learning_rate": RATE,
        "value_learning_rate": VALUE_RATE,
        "clip": CLIP,
        "lambda": LAMBDA,
        "warm_up": WARM_UP,
    }
    store("rlhf", {"settings": settings, "runs": runs, "compared": compared})


if __name__ == "__main__":
    main()
