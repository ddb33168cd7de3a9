"""The same advantages, losses and gradients as TRL's own trainers, on their batches.

A trainer of TRL asks, samples, masks and scores; then the policy is moved, so that
ratios differ from 1 and clips hold, and TRL's loss is compared with ours.
"""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from batches import seeded
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl_batches import as_ours

from rl_notes.advantages import group_relative, has_spread, leave_one_out, per_step
from rl_notes.divergences import k3
from rl_notes.language.arithmetic import questions
from rl_notes.language.models import load
from rl_notes.objectives import (
    cispo,
    mean_over_sequences,
    mean_over_tokens,
    sequence_clip,
    sum_over_constant,
    token_clip,
)
from rl_notes.policies import TransformerPolicy, action_logprobs

pytestmark = pytest.mark.filterwarnings("ignore")
GROUPS, SIZE, LIMIT = 6, 4, 20
# Groups without spread, all right and all wrong, and groups with one.
SCORES = [*[1.0] * 4, *[0.0] * 4, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1]
CLIP = {"epsilon": 0.1, "epsilon_high": 0.15}
OURS: dict[str, Any] = {"clip_low": 0.1, "clip_high": 0.15}


def over_the_limit(x, mask):
    return sum_over_constant(x, mask, constant=len(mask) * LIMIT)


# The settings of TRL; our advantages, objective and aggregation.
FAMILY: dict[str, Any] = {
    "grpo": (
        {"loss_type": "grpo", **CLIP},
        *(group_relative, partial(token_clip, **OURS), mean_over_sequences),
    ),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "scale_rewards": "none", **CLIP},
        *(partial(group_relative, scale=False), partial(token_clip, **OURS)),
        over_the_limit,
    ),
    "dapo": (
        {"loss_type": "dapo", **CLIP},
        *(group_relative, partial(token_clip, **OURS), mean_over_tokens),
    ),
    "gspo": (
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 0.003,
            "epsilon_high": 0.004,
        },
        group_relative,
        partial(sequence_clip, clip_low=0.003, clip_high=0.004),
        mean_over_sequences,
    ),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.05},
        *(group_relative, partial(cispo, cap=1.05), mean_over_tokens),
    ),
    "cispo, as TRL sets it": (
        {"loss_type": "cispo"},
        *(group_relative, partial(cispo, cap=0.2), mean_over_tokens),
    ),
}
RLOO = (
    CLIP,
    leave_one_out,
    partial(sequence_clip, **OURS, length_normalised=False),
    mean_over_sequences,
)


def trainer_of(kind, config, folder, **options):
    """A real trainer, with the little model as it was fine-tuned."""
    model, tokenizer = load("sft")
    scores = itertools.cycle(SCORES)

    def reward(prompts, completions, **columns):
        return [next(scores) for _ in prompts]

    asked = questions(GROUPS, held_out=False, generator=seeded(0))
    arguments = config(
        output_dir=str(folder),
        per_device_train_batch_size=GROUPS * SIZE,
        num_generations=SIZE,
        max_completion_length=LIMIT,
        num_iterations=2,
        beta=0.0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        seed=0,
        **options,
    )
    made = kind(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": question} for question in asked]),
        processing_class=tokenizer,
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    rows = [{"prompt": question} for question in asked for _ in range(SIZE)]
    return made, made._generate_and_score_completions(rows)


def moved(model):
    """A step away, not along any gradient: ratios differ from 1."""
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            noise = torch.randn(weight.shape, generator=seeded(index))
            weight.add_(0.1 * weight.std() * noise)


def gradient_of(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def constant_of_rloo(batch, advantages):
    """What TRL's RLOO adds for answers that are masked out: ratios of 1, no gradient.

    With us a row without a step counts as 0.
    """
    return -advantages[~batch.mask.any(dim=1)].sum() / len(advantages)


def no_constant(batch, advantages):
    return 0.0


def plain(new, old, reference):
    """What it costs a step to be away from the reference, in our objective."""
    return k3(new, reference)


def compare(
    made, inputs, ours, *, beta=0.0, price=plain, temperature=1.0, constant=no_constant
):
    """Advantages, old log-probabilities, loss and gradient; then that it was a test."""
    advantages_of, objective, aggregate = ours
    batch, policy = as_ours(inputs), TransformerPolicy(made.model, temperature)
    advantages = advantages_of(torch.tensor(SCORES), batch.groups)
    assert_same(advantages, inputs["advantages"])
    per_row = per_step(advantages, batch.mask)
    with torch.no_grad():
        old = action_logprobs(policy, batch)
    reference = 0.9 * old - 0.05
    answer = inputs["completion_mask"].bool()
    if beta:
        made.beta = beta
        theirs = torch.zeros(answer.shape)
        theirs[answer] = reference[batch.mask]
        inputs["ref_per_token_logps"] = theirs
    moved(made.model)
    expected = made.compute_loss(made.model, inputs)
    slope = gradient_of(made.model, expected)
    new = action_logprobs(policy, batch)
    x = objective(new, old, per_row, batch.mask) - beta * price(new, old, reference)
    found = -aggregate(x, batch.mask)
    assert_same(found + constant(batch, advantages), expected)
    assert_same(gradient_of(made.model, found), slope)
    assert float(slope.norm()) > 0.01
    # Something was clipped, something was cut off, something has no spread.
    ratio = (new - old).exp()[batch.mask]
    assert float(ratio.max()) > 1.15
    assert float(ratio.min()) < 0.9
    assert int((~has_spread(torch.tensor(SCORES), batch.groups)).sum()) == 2 * SIZE
    return batch


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("name", FAMILY)
def test_the_loss_is_that_of_the_grpo_trainer(name, beta, masked, tmp_path):
    options, *ours = FAMILY[name]
    options = {**options, "mask_truncated_completions": masked}
    options |= {"use_bias_correction_kl": False}
    made, inputs = trainer_of(GRPOTrainer, GRPOConfig, tmp_path, **options)
    batch = compare(made, inputs, ours, beta=beta)
    cut = ~batch.mask.any(dim=1) if masked else batch.mask.sum(dim=1) == LIMIT
    assert 1 < int(cut.sum()) < GROUPS * SIZE
    assert len(set(batch.lengths.tolist())) > 4


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_that_of_the_rloo_trainer(masked, tmp_path):
    options, *ours = RLOO
    options = {**options, "mask_truncated_completions": masked}
    made, inputs = trainer_of(RLOOTrainer, RLOOConfig, tmp_path, **options)
    compare(made, inputs, ours, constant=constant_of_rloo)
