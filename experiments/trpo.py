"""TRPO on the language model: a careful and an eager setting, and what a step promises.

    pip install -r requirements.txt
    python -m experiments.trpo

From "sft", five seeds. Both settings keep the mean KL on their batch within the radius.
They differ in four things at once: the radius, the rows of the Fisher matrix, the
damping, and how a batch is made of questions and answers. So the eager setting is also
run with one of the four at a time as the careful one has it.

The promise of a step is the gain of the surrogate on the answers that it was computed
from. It is kept if other answers of the old policy, to other questions, agree.
"""

import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.answers import (
    better_than_others,
    fresh_sft,
    measure,
    sample_scored,
    seeded,
    store,
    stored_before,
)
from rl_notes.divergences import kl_exact
from rl_notes.language import arithmetic
from rl_notes.language.answers import answer
from rl_notes.objectives import importance_ratio, mean_over_tokens, surrogate
from rl_notes.policies import TransformerPolicy, action_logprobs, states
from rl_notes.trajectories import Trajectories
from rl_notes.updates import trpo_update

SEEDS = range(5)
MEASURED_AT = (0, 5, 10, 15)
CAREFUL: dict[str, Any] = {
    "groups": 64,
    "size": 8,
    "max_kl": 0.003,
    "damping": 1.0,
    "rows": None,
}
EAGER: dict[str, Any] = {
    "groups": 16,
    "size": 16,
    "max_kl": 0.005,
    "damping": 0.1,
    "rows": 32,
}
# The eager setting, with one dial as in the careful one.
DIALS: dict[str, dict[str, Any]] = {
    "radius": {**EAGER, "max_kl": 0.003},
    "rows": {**EAGER, "rows": None},
    "damping": {**EAGER, "damping": 1.0},
    "batch": {**EAGER, "groups": 64, "size": 8},
}
DAMPINGS = (0.01, 0.1, 1.0, 10.0)
BATCHES = (16, 64)  # questions of 8 answers each
FRESH = 256
EXAM = 1000  # questions for the share that is right with its work shown


def advantages_of(trajectories: Trajectories, scores: Tensor, size: int) -> Tensor:
    """How much better than the other answers, at every step of a row, [N, T]."""
    better = better_than_others(scores, size)
    return better[:, None].expand_as(trajectories.mask)


def right_with_work(model: Any) -> float:
    """Of the answers that show their work, the share that is right. Held-out."""
    asked = arithmetic.questions(EXAM, held_out=True, generator=seeded(9))
    policy = TransformerPolicy(model)
    _, prompts, answers = answer(policy, asked, group_size=4, generator=seeded(12))
    right = torch.tensor(arithmetic.accuracy_reward(prompts, answers))
    worked = torch.tensor([arithmetic.shows_work(answer) for answer in answers])
    return round(right[worked].mean().item(), 4)


def train(seed: int, setting: dict[str, Any]) -> dict[str, Any]:
    """Train one model; what it can do, and what each update did."""
    model, generator = fresh_sft(), seeded(seed)
    policy, size = TransformerPolicy(model), setting["size"]
    curve, updates, seconds = [], [], 0.0
    for update in tqdm(range(1 + MEASURED_AT[-1])):
        if update in MEASURED_AT:
            worked = {"right_with_work": right_with_work(model)}
            curve.append({"updates": update, **measure(model), **worked})
        if update == MEASURED_AT[-1]:
            break
        begin = time.process_time()
        batch, scores = sample_scored(policy, setting["groups"], size, generator)
        rows = None
        if setting["rows"] is not None:
            rows = torch.randperm(len(scores), generator=generator)[: setting["rows"]]
        stats = trpo_update(
            policy,
            batch,
            advantages_of(batch, scores, size),
            max_kl=setting["max_kl"],
            damping=setting["damping"],
            fisher_rows=rows,
        )
        seconds += time.process_time() - begin
        updates.append(
            {
                "kl_mean": round(stats.kl_mean, 6),
                "kl_max": round(stats.kl_max, 4),
                "backtracks": stats.backtracks,
                "accepted": stats.accepted,
            }
        )
    return {
        "seed": seed,
        "curve": curve,
        "updates": updates,
        "cpu_seconds": round(seconds),
    }


def of_the_largest_ratio(
    ratio: Tensor, batch: Trajectories, advantages: Tensor
) -> dict[str, float]:
    """The token that grew most: its ratio, old probability, and share of the gain."""
    gains = torch.where(batch.mask, surrogate(ratio - 1, advantages), 0)
    place = int(torch.where(batch.mask, ratio, 0).argmax())
    return {
        "ratio_max": ratio.flatten()[place].item(),
        "probability_before": batch.logprobs.flatten()[place].exp().item(),
        "share_of_gain": (gains.flatten()[place] / gains.sum()).item(),
    }


def promises(seed: int) -> list[dict[str, float]]:
    """First steps from "sft": gain and KL on their own answers, and on others."""
    found = []
    for groups in BATCHES:
        policy, generator = TransformerPolicy(fresh_sft()), seeded(100 + seed)
        batch, scores = sample_scored(policy, groups, 8, generator)
        fresh, fresh_scores = sample_scored(policy, FRESH, 8, generator)
        weights = {k: v.clone() for k, v in policy.state_dict().items()}
        with torch.no_grad():
            old_logits = policy(states(fresh))
        for damping in DAMPINGS:
            policy.load_state_dict(weights)
            stats = trpo_update(
                policy,
                batch,
                advantages_of(batch, scores, 8),
                max_kl=0.001,
                damping=damping,
            )
            with torch.no_grad():
                kl = kl_exact(old_logits, policy(states(fresh)))
                moved = importance_ratio(action_logprobs(policy, fresh), fresh.logprobs)
                here = importance_ratio(action_logprobs(policy, batch), batch.logprobs)
            gain = surrogate(moved - 1, advantages_of(fresh, fresh_scores, 8))
            found.append(
                {
                    "answers": 8 * groups,
                    "damping": damping,
                    "gain": stats.improvement,
                    **of_the_largest_ratio(
                        here, batch, advantages_of(batch, scores, 8)
                    ),
                    "fresh_gain": mean_over_tokens(gain, fresh.mask).item(),
                    "kl": stats.kl_mean,
                    "fresh_kl": mean_over_tokens(kl, fresh.mask).item(),
                    "fresh_kl_max": kl[fresh.mask].max().item(),
                }
            )
    return [{name: round(x, 7) for name, x in step.items()} for step in found]


def kept() -> dict[str, Any]:
    """What an earlier call has stored, to be gone on with."""
    stored: dict[str, Any] = {"promises": [], "careful": [], "eager": [], "dials": {}}
    stored |= stored_before("trpo")
    for name in DIALS:
        stored["dials"].setdefault(name, [])
    settings = {"careful": CAREFUL, "eager": EAGER}
    return stored | {"settings": settings, "dial_settings": DIALS}


def main() -> None:
    torch.set_num_threads(1)
    results = kept()
    earlier = results.pop("about", {}).get("cpu_seconds", 0)

    arms = {"careful": CAREFUL, "eager": EAGER, **DIALS}
    places = {"careful": results["careful"], "eager": results["eager"]}
    places |= results["dials"]
    for seed in SEEDS:
        if seed not in [run["seed"] for run in results["promises"]]:
            results["promises"].append({"seed": seed, "steps": promises(seed)})
            store("trpo", results, earlier=earlier)
        for name, setting in arms.items():
            if seed not in [run["seed"] for run in places[name]]:
                places[name].append(train(seed, setting))
                store("trpo", results, earlier=earlier)  # a stop loses one run


if __name__ == "__main__":
    main()
