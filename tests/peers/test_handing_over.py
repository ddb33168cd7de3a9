"""The same model, questions and reward function, handed to TRL's trainer and to us.

What a reader may count on who begins with one and goes on with the other: a step is the
same step, a few updates learn as much, and a checkpoint goes there and back.

TRL's own settings hold but for those in `AS_OURS`. Three of its defaults change a step
without a word: it computes in bfloat16, on a CPU too; its learning rate falls to zero
in a straight line; and it clips gradients at a norm of 1.
"""

import statistics
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from batches import seeded
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl_batches import as_ours

from rl_notes.advantages import group_relative, per_step
from rl_notes.language.answers import answer
from rl_notes.language.arithmetic import (
    accuracy_reward,
    questions,
    shows_work,
    worked_answer,
)
from rl_notes.language.models import load
from rl_notes.language.tokenizer import answer_texts
from rl_notes.objectives import (
    mean_over_sequences,
    mean_over_tokens,
    sum_over_constant,
    token_clip,
)
from rl_notes.policies import TransformerPolicy, action_logprobs
from rl_notes.updates import grpo_update

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = 8  # answers to a question, as is TRL's default
AS_OURS: dict[str, Any] = {
    "bf16": False,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,  # do not clip
    "num_generations": SIZE,
    "shuffle_dataset": False,
    # These change no number, or none but by rounding.
    "use_cpu": True,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
CLIP = partial(token_clip, clip_low=0.2, clip_high=0.2)


class Watch(TrainerCallback):
    """Keeps the gradient of every step, as the optimizer gets it."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, **given):
        self.gradients.append(gradient_of(given["model"]))


def gradient_of(model):
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def weights_of(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def trainer_of(model, asked, reward, folder, watch=None, **options):
    """TRL's trainer. Of a folder it loads the model and the tokenizer by itself."""
    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(folder), **AS_OURS | options),
        train_dataset=Dataset.from_list([{"prompt": question} for question in asked]),
        callbacks=[watch] if watch else [],
    )


def saved(model, tokens, folder):
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return str(folder)


def logged(trainer, key):
    return [line[key] for line in trainer.state.log_history if key in line]


# A step

ROWS, LIMIT = 48, 24  # so short that some answers are cut off
RATE = 0.03  # with it the second step meets ratios that are clipped
STEPS: dict[str, Any] = {
    # What differs from the settings of TRL; then from ours.
    "TRL's loss, clipped at its norm": (
        {"max_grad_norm": 1.0},
        {"max_norm": 1.0},
    ),
    "two epochs by micro-batches, with a reference": (
        {
            "loss_type": "grpo",
            "num_iterations": 2,
            "epsilon": 0.1,
            "epsilon_high": 0.15,
            "beta": 0.3,
            "use_bias_correction_kl": False,
            "max_grad_norm": 0.5,
            "per_device_train_batch_size": ROWS // 2,
            "gradient_accumulation_steps": 2,
        },
        {
            "aggregate": mean_over_sequences,
            "epochs": 2,
            "objective": partial(token_clip, clip_low=0.1, clip_high=0.15),
            "beta": 0.3,
            "max_norm": 0.5,
            "micro_batch": 10,
        },
    ),
    "Dr. GRPO, three epochs": (
        {"loss_type": "dr_grpo", "scale_rewards": "none", "num_iterations": 3},
        {
            "aggregate": partial(sum_over_constant, constant=ROWS * LIMIT),
            "epochs": 3,
        },
    ),
}


def sampled_by(trainer):
    """The batch of the trainer's last step, its micro-batches put together again."""
    parts = trainer._buffered_inputs
    per_row = [name for name, x in parts[0].items() if torch.is_tensor(x) and x.dim()]
    return {name: torch.cat([part[name] for part in parts]) for name in per_row}


def texts_of(tokens, batch):
    """The question and the answer of each row, from its tokens alone."""
    starts = batch.mask.int().argmax(dim=1) + 1
    asked = [row[:start] for row, start in zip(batch.observations, starts, strict=True)]
    prompts = [tokens.decode(ids, skip_special_tokens=True) for ids in asked]
    return prompts, answer_texts(tokens, batch)


def distance(found, expected, start: torch.Tensor | float = 0.0):
    """How far apart the two are, as a share of how far the second one is."""
    return float((found - expected).norm() / (expected - start).norm())


def plain_descent(policy):
    return torch.optim.SGD(policy.parameters(), lr=RATE)


def same_step(theirs, ours, folder, optimizer_of=plain_descent):
    """A step of TRL's trainer and `grpo_update` on its batch come to the same weights.

    Measured: gradients differ by 4e-6 of their norm, weights by 2e-5 of the step. The
    latter is half a unit in the last place of the largest weights, as the step is
    small. The gradient is that of the last step of the optimizer.
    """
    settings = {
        "aggregate": mean_over_tokens,
        "objective": CLIP,
        "epochs": 1,
        "minibatches": 1,
    } | ours
    steps = settings["epochs"] * settings["minibatches"]
    asked = questions(ROWS // SIZE, held_out=False, generator=seeded(0))
    model, tokens = load("sft")
    options = {
        "optim": "sgd",
        "learning_rate": RATE,
        "max_steps": steps,
        "max_completion_length": LIMIT,
        "per_device_train_batch_size": ROWS,
    } | theirs
    watch, path = Watch(), saved(model, tokens, folder / "sft")
    made = trainer_of(path, asked, accuracy_reward, folder, watch, **options)
    made.train()

    # In the order in which our shuffle deals out what TRL has dealt out, in one epoch.
    order = torch.randperm(ROWS, generator=seeded(0)).argsort()
    inputs = {name: x[order] for name, x in sampled_by(made).items()}
    batch, policy = as_ours(inputs), TransformerPolicy(model)
    with torch.no_grad():
        old = action_logprobs(policy, batch)
    batch = replace(batch, logprobs=old)
    scores = torch.tensor(accuracy_reward(*texts_of(tokens, batch)))
    scale = theirs.get("scale_rewards") != "none"
    advantages = group_relative(scores, batch.groups, scale=scale)
    torch.testing.assert_close(advantages, inputs["advantages"], rtol=0, atol=1e-6)
    before = weights_of(model)
    stats = grpo_update(
        policy,
        optimizer_of(policy),
        batch,
        per_step(advantages, batch.mask),
        reference_logprobs=old,
        generator=seeded(0),
        **settings,
    )
    assert distance(gradient_of(model), watch.gradients[-1]) < 1e-4
    assert distance(weights_of(model), weights_of(made.model), before) < 1e-3
    # What both report is the same.
    norms = logged(made, "grad_norm")
    assert len(norms) == steps
    assert stats.gradient_norm == pytest.approx(statistics.mean(norms), rel=1e-4)
    if settings["minibatches"] == 1:
        assert logged(made, "reward") == [pytest.approx(float(scores.mean()))]
    # And it was a test: answers were cut off, some groups have a spread, ratios moved.
    assert int((batch.mask.sum(dim=1) == LIMIT).sum()) > 4
    assert 0 < int((advantages != 0).sum()) < ROWS
    assert len(batch.groups.unique()) == ROWS // SIZE
    assert settings["epochs"] == 1 or max(logged(made, "clip_ratio/region_mean")) > 0


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_the_same_step(name, tmp_path):
    theirs, ours = STEPS[name]
    same_step(theirs, ours, tmp_path)


# A few updates

SEEDS, UPDATES, GROUPS = range(4), 8, 16
LEARNING_RATE = 2e-4


def right_with_work(prompts, completions, **columns):
    """A reader's own reward: right, and with the work shown. One in five at first."""
    right = accuracy_reward(prompts, completions)
    pairs = zip(right, completions, strict=True)
    return [float(score and shows_work(text)) for score, text in pairs]


def asked_in(seed):
    generator = seeded(1000 + seed)
    return questions(GROUPS * UPDATES, held_out=False, generator=generator)


def our_curve(seed):
    """The mean reward of the answers that each update learns from."""
    policy, generator = TransformerPolicy(load("sft")[0]), seeded(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    asked, curve = asked_in(seed), []
    for first in range(0, len(asked), GROUPS):
        batch, prompts, texts = answer(
            policy,
            asked[first : first + GROUPS],
            group_size=SIZE,
            generator=generator,
        )
        scores = torch.tensor(right_with_work(prompts, texts))
        curve.append(float(scores.mean()))
        grpo_update(
            policy,
            optimizer,
            batch,
            per_step(group_relative(scores, batch.groups), batch.mask),
            objective=CLIP,
            aggregate=mean_over_tokens,
            epochs=1,
            minibatches=1,
            generator=generator,
            micro_batch=64,
        )
    return curve


def their_curve(seed, folder):
    made = trainer_of(
        *(saved(*load("sft"), folder / "sft"), asked_in(seed), right_with_work),
        folder,
        seed=seed,
        max_steps=UPDATES,
        learning_rate=LEARNING_RATE,
        max_completion_length=64,
        per_device_train_batch_size=GROUPS * SIZE,
    )
    made.train()
    return logged(made, "reward")


def test_a_few_updates_learn_as_much(tmp_path):
    """Mean reward of the last four updates. At first it is 0.22.

    Measured on twelve seeds, theirs spread from 0.46 to 0.56 with a mean of 0.52, ours
    from 0.44 to 0.57 with one of 0.51. Ours less theirs is -0.01, and its standard
    deviation 0.026: 0.013 for four seeds, so that the bound is four of them away.

    With half our learning rate ours is 0.11 lower, with ten times the rate 0.5, with
    the advantages' sign turned 0.49, with each answer's reward given to the next answer
    0.40, and with each group's given to the next group 0.33.
    """
    ours = torch.tensor([our_curve(seed) for seed in SEEDS])
    theirs = torch.tensor([their_curve(seed, tmp_path) for seed in SEEDS])
    assert ours.shape == theirs.shape == (len(SEEDS), UPDATES)
    late = [curves[:, UPDATES // 2 :].mean() for curves in (ours, theirs)]
    first = [curves[:, 0].mean() for curves in (ours, theirs)]
    assert float(abs(late[0] - late[1])) < 0.06
    for before, after in zip(first, late, strict=True):
        assert float(after - before) > 0.2


# A checkpoint


def updated(model, seed):
    """One update of ours, with its batch and what the policy then says of it."""
    policy, generator = TransformerPolicy(model), seeded(seed)
    asked = questions(6, held_out=False, generator=generator)
    batch, prompts, texts = answer(policy, asked, group_size=4, generator=generator)
    scores = torch.tensor(accuracy_reward(prompts, texts))
    grpo_update(
        policy,
        torch.optim.Adam(policy.parameters(), lr=1e-4),
        batch,
        per_step(group_relative(scores, batch.groups), batch.mask),
        objective=CLIP,
        epochs=1,
        minibatches=1,
        generator=generator,
    )
    return batch, texts


def logprobs_of(model, batch):
    with torch.no_grad():
        return action_logprobs(TransformerPolicy(model), batch)


def assert_same_tokens(found, expected):
    asked = questions(50, held_out=True, generator=seeded(1))
    for text in [*asked, *map(worked_answer, asked), "What is 0+9?\nWhat is 1+2?"]:
        ids = expected(text)["input_ids"]
        assert found(text)["input_ids"] == ids
        assert found.decode(ids) == expected.decode(ids) == f"<bos>{text}"


# Both of ours, and the default of both: attention step by step, and a fused kernel.
@pytest.mark.parametrize(("attention", "within"), [("eager", 0.0), (None, 3e-5)])
def test_a_checkpoint_goes_to_the_trainer_and_back(attention, within, tmp_path):
    """To the digit where both compute attention alike; by default they do not.

    Measured by default: log-probabilities differ by 7e-6 at most, as TRL takes "sdpa".
    """
    model, tokens = load("sft")
    start = weights_of(model)
    batch, _ = updated(model, 1)
    there = saved(model, tokens, tmp_path / "ours")
    asked = questions(4, held_out=False, generator=seeded(2))
    made = trainer_of(
        *(there, asked, accuracy_reward, tmp_path),
        max_steps=1,
        learning_rate=1e-4,
        max_completion_length=32,
        per_device_train_batch_size=32,
        model_init_kwargs={"attn_implementation": attention} if attention else None,
    )
    ours = weights_of(model)
    assert torch.equal(weights_of(made.model), ours)
    found, expected = logprobs_of(made.model, batch), logprobs_of(model, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=within)
    assert_same_tokens(made.processing_class, tokens)

    made.train()
    made.save_model(str(tmp_path / "theirs"))
    theirs = weights_of(made.model)
    back, tokens_back = load(str(tmp_path / "theirs"))
    assert torch.equal(weights_of(back), theirs)
    found, expected = logprobs_of(back, batch), logprobs_of(made.model, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=within)
    assert_same_tokens(tokens_back, tokens)

    # Our loop goes on with what came back as with weights that never left.
    stayed = load("sft")[0]
    stayed.load_state_dict(made.model.state_dict())
    (_, texts), (_, same) = updated(back, 3), updated(stayed, 3)
    assert texts == same
    assert torch.equal(weights_of(back), weights_of(stayed))
    # Each of the three updates was one.
    for after, before in ((ours, start), (theirs, ours), (weights_of(back), theirs)):
        assert float((after - before).norm()) > 1e-3
