"""The page on options says of TRL what is true: names, defaults, losses.

The tables of `book/options.md` are the data. A renamed option, a changed default or a
changed meaning is noticed here, and the page is what has to follow.
"""

import ast
import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
import trl
import trl.rewards
from batches import seeded
from datasets import Dataset
from options_page import NOT_HERE, PAGE, ROWS, of, settings
from peers import test_group_against_trl as group
from peers import test_handing_over as handing
from peers.test_group_against_trl import CLIP, FAMILY, OURS, RLOO
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)
from trl_batches import as_ours

from rl_notes.advantages import group_relative, leave_one_out
from rl_notes.divergences import k3, kl_exact
from rl_notes.language.arithmetic import accuracy_reward, questions
from rl_notes.language.models import load
from rl_notes.language.tokenizer import answer_texts
from rl_notes.objectives import (
    dpo_loss,
    importance_ratio,
    mean_over_sequences,
    mean_over_tokens,
    overlong_penalty,
    preference_loss,
    sum_over_constant,
    token_clip,
)
from rl_notes.policies import TransformerPolicy, action_logprobs
from rl_notes.trajectories import with_kl_penalty, with_scores

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS: dict[str, Any] = {
    "TRL": GRPOConfig,
    "TRL, RLOO": RLOOConfig,
    "TRL, DPO": DPOConfig,
    "TRL, reward": RewardConfig,
}
THEIRS = of("TRL")
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


def key(row):
    return row.where, row.code


def default_of(row):
    for field in dataclasses.fields(CONFIGS[row.where]):
        if field.name == row.name:
            made = field.default_factory
            return field.default if made is dataclasses.MISSING else made()
    raise AssertionError(f"{row.where} has no option {row.name}.")


@pytest.mark.parametrize("row", THEIRS, ids=str)
def test_the_option_exists_and_has_this_default(row):
    if row.name.startswith("rewards."):
        assert hasattr(trl.rewards, row.name.removeprefix("rewards."))
        return
    printed, default = ast.literal_eval(row.default.strip("`")), default_of(row)
    assert printed == default
    assert type(printed) is type(default)


def test_the_version_is_that_of_the_page():
    assert f"| TRL | version {trl.__version__}." in PAGE
    # "TRL has no PPO any more".
    assert not hasattr(trl, "PPOTrainer")


# What is in the tables: with these options of TRL, advantages, loss and gradient are
# ours. Options of TRL; our advantages, objective and aggregation; of what else is told.

PLAIN = FAMILY["grpo"]


def objective_with_delta(new, old, advantages, mask, *, delta):
    """The clip, and a ratio above `delta` counts as `delta`."""
    ratio = importance_ratio(new, old)
    near = ratio.clamp(1 - OURS["clip_low"], 1 + OURS["clip_high"])
    return torch.minimum(ratio.clamp(max=delta) * advantages, near * advantages)


def corrected(new, old, reference):
    """(k3) times the ratio, through which the gradient flows."""
    return importance_ratio(new, old) * k3(new, reference)


def of_the_clip(*ours, **theirs):
    return ({"loss_type": "grpo", **CLIP, **theirs}, *ours)


CENTRED = partial(group_relative, scale=False)
ONE_CLIP = partial(token_clip, **OURS)
IN_THE_LOSS = {"use_bias_correction_kl": False}
# Of each row: the settings, and what `compare` is told beside.
LOSSES: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {
    ("TRL", 'scale_rewards="group"'): (PLAIN, {}),
    ("TRL", 'scale_rewards="none"'): (
        of_the_clip(CENTRED, ONE_CLIP, mean_over_sequences, scale_rewards="none"),
        {},
    ),
    ("TRL", "epsilon"): (PLAIN, {}),
    ("TRL", "epsilon_high"): (PLAIN, {}),
    ("TRL", "delta"): (
        of_the_clip(
            group_relative,
            partial(objective_with_delta, delta=1.2),
            mean_over_sequences,
            delta=1.2,
        ),
        {},
    ),
    ("TRL", 'importance_sampling_level="sequence"'): (FAMILY["gspo"], {}),
    ("TRL", 'loss_type="cispo"'): (FAMILY["cispo"], {}),
    ("TRL", 'loss_type="grpo"'): (PLAIN, {}),
    ("TRL", 'loss_type="dapo"'): (FAMILY["dapo"], {}),
    ("TRL", 'loss_type="dr_grpo"'): (FAMILY["dr_grpo"], {}),
    ("TRL", "beta"): ((PLAIN[0] | IN_THE_LOSS, *PLAIN[1:]), {"beta": 0.3}),
    ("TRL", "use_bias_correction_kl=False"): (
        (PLAIN[0] | IN_THE_LOSS, *PLAIN[1:]),
        {"beta": 0.3},
    ),
    ("TRL", "temperature"): (
        (PLAIN[0] | {"temperature": 0.7}, *PLAIN[1:]),
        {"temperature": 0.7},
    ),
    ("TRL", "mask_truncated_completions"): (
        (PLAIN[0] | {"mask_truncated_completions": True}, *PLAIN[1:]),
        {},
    ),
    ("TRL", "top_p=1.0"): (PLAIN, {}),
    ("TRL", "top_k=0"): (PLAIN, {}),
    ("TRL, RLOO", "normalize_advantages=False"): (RLOO, {}),
    ("TRL, RLOO", "epsilon"): (RLOO, {}),
    ("TRL, RLOO", "epsilon_high"): (RLOO, {}),
}


def trained_by(where):
    return (RLOOTrainer, RLOOConfig) if "RLOO" in where else (GRPOTrainer, GRPOConfig)


@pytest.mark.parametrize("row", [r for r in THEIRS if key(r) in LOSSES], ids=str)
def test_with_this_option_the_loss_is_ours(row, tmp_path):
    (theirs, *ours), given = LOSSES[key(row)]
    if row.value is None:  # the page gives a name alone: here it is not at its default
        assert (theirs | given)[row.name] != default_of(row)
    else:
        assert theirs.get(row.name, default_of(row)) == row.value
    kind, config = trained_by(row.where)
    made, inputs = group.trainer_of(kind, config, tmp_path, **theirs)
    group.compare(made, inputs, ours, **given)


SENTENCES = {
    # "By default TRL multiplies k3 by the ratio, through which the gradient flows too."
    "a KL with its bias corrected": (PLAIN, {"beta": 0.3, "price": corrected}),
    # "The loss would score another distribution than the one that was sampled from."
    "the tail cut off when sampling": (
        of_the_clip(*PLAIN[1:], top_p=0.5),
        {},
    ),
    # "It is this mean only without gradient accumulation, on one process."
    "bnpo": (
        ({"loss_type": "bnpo", **CLIP}, *FAMILY["dapo"][1:]),
        {},
    ),
    # "Otherwise both take the mean over tokens": GSPO without `loss_type="grpo"`.
    "gspo and the mean over tokens": (
        (
            FAMILY["gspo"][0] | {"loss_type": "dapo"},
            *FAMILY["gspo"][1:3],
            mean_over_tokens,
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_what_the_page_says_of_a_loss(name, tmp_path):
    (theirs, *ours), given = SENTENCES[name]
    made, inputs = group.trainer_of(GRPOTrainer, GRPOConfig, tmp_path, **theirs)
    group.compare(made, inputs, ours, **given)


def test_the_constant_is_the_limit_and_not_the_longest_answer(tmp_path):
    options = FAMILY["dr_grpo"][0]
    made, inputs = group.trainer_of(GRPOTrainer, GRPOConfig, tmp_path, **options)
    made.max_completion_length = 77
    constant = 77 * len(group.SCORES)
    aggregate = partial(sum_over_constant, constant=constant)
    group.compare(made, inputs, (CENTRED, ONE_CLIP, aggregate))


def test_the_gradient_of_the_corrected_kl_is_that_of_the_kl_itself():
    """By enumeration: the policy has moved since it sampled."""
    start, logits, reference = torch.randn(3, 6, generator=seeded(0)).double()
    old = start.log_softmax(-1)
    logits.requires_grad_()
    new = logits.log_softmax(-1)
    price = corrected(new[None], old[None], reference.log_softmax(-1)[None])
    (found,) = torch.autograd.grad((old.exp() * price).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(kl_exact(logits, reference), logits)
    torch.testing.assert_close(found, expected)


# Steps


NO_NUMBER = {
    *("num_generations", "use_cpu", "gradient_checkpointing", "dataloader_pin_memory"),
    *("logging_steps", "save_strategy", "report_to", "disable_tqdm"),
}


def test_with_the_settings_of_the_page_a_step_is_ours(tmp_path):
    """The settings of the page are all that the test of the hand-over sets for it."""
    page = settings()
    assert set(handing.AS_OURS) - NO_NUMBER < set(page)
    assert {name: handing.AS_OURS.get(name, page[name]) for name in page} == page
    theirs = page | {"num_iterations": 3, "beta": 0.3}
    ours = {"aggregate": mean_over_sequences, "epochs": 3, "beta": 0.3}
    handing.same_step(theirs, ours, tmp_path)


def test_steps_per_generation_are_minibatches(tmp_path):
    theirs = {
        "loss_type": "grpo",
        "steps_per_generation": 2,
        "per_device_train_batch_size": handing.ROWS // 2,
    }
    ours = {"aggregate": mean_over_sequences, "minibatches": 2}
    handing.same_step(theirs, ours, tmp_path)


class Watched(GRPOTrainer):  # type: ignore[misc]
    """Counts the tokens of each step."""

    def _compute_loss(self, model, inputs):
        self.tokens = [*getattr(self, "tokens", []), inputs["completion_mask"].sum()]
        Watched.last = self
        return super()._compute_loss(model, inputs)


HALVES = {
    "steps_per_generation": 2,
    "per_device_train_batch_size": handing.ROWS // 2,
}


def test_the_steps_of_a_batch_have_one_divisor(tmp_path, monkeypatch):
    """By "dapo": the tokens of the batch, shared out to its steps alike."""
    monkeypatch.setattr(handing, "GRPOTrainer", Watched)

    def divided(x, mask):
        tokens = Watched.last.tokens
        assert len(tokens) == 2
        assert tokens[0] != tokens[1]
        return sum_over_constant(x, mask, constant=float(sum(tokens)) / 2)

    ours = {"aggregate": divided, "minibatches": 2}
    handing.same_step(HALVES, ours, tmp_path)


def test_every_epoch_sees_the_same_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(handing, "GRPOTrainer", Watched)
    asked = questions(6, held_out=False, generator=seeded(0))
    path = handing.saved(*load("sft"), tmp_path / "sft")
    made = handing.trainer_of(
        *(path, asked, accuracy_reward, tmp_path),
        max_steps=6,
        num_iterations=3,
        max_completion_length=handing.LIMIT,
        **HALVES,
    )
    made.train()
    assert made.tokens == made.tokens[:2] * 3
    assert made.tokens[0] != made.tokens[1]


def test_the_optimizer_is_adamw(tmp_path):
    """Without decay of biases and of what normalises, as the trainer has it."""
    rate, decay = 1e-3, 0.5

    def adam_of(policy):
        named = [*policy.named_parameters()]
        kept = [weight for name, weight in named if "norm" in name]
        rest = [weight for name, weight in named if "norm" not in name]
        assert kept
        assert rest
        groups: list[Any] = [{"params": rest, "weight_decay": decay}, {"params": kept}]
        return torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)

    optim = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    assert f'`optim="{optim["optim"]}"`' in PAGE
    theirs = {
        "optim": optim["optim"],
        "learning_rate": rate,
        "weight_decay": decay,
        "loss_type": "grpo",
    }
    ours = {"aggregate": mean_over_sequences}
    handing.same_step(theirs, ours, tmp_path, adam_of)


@pytest.mark.parametrize("disabled", [False, True])
def test_dropout_is_on_if_not_disabled(disabled, tmp_path):
    (row,) = [row for row in THEIRS if row.name == "disable_dropout"]
    asked = questions(20, held_out=False, generator=seeded(0))
    model = load("sft")[0]
    model.dropout = torch.nn.Dropout(0.5)
    options = {row.name: row.value} if disabled else {}
    made = trainer_without_options(tmp_path, asked, model=model, **options)
    assert made.model.dropout.p == (0.0 if disabled else 0.5)
    # "In GRPO and RLOO, and off in the trainers for DPO and reward models."
    by_default = {
        where: default_of(dataclasses.replace(row, where=where)) for where in CONFIGS
    }
    assert by_default == {
        **{"TRL": False, "TRL, RLOO": False},
        **{"TRL, DPO": True, "TRL, reward": True},
    }


def trainer_without_options(folder, asked, *, model=None, **options):
    made = GRPOConfig(output_dir=str(folder), report_to="none", use_cpu=True, **options)
    return GRPOTrainer(
        model=model or load("sft")[0],
        reward_funcs=lambda prompts, **columns: [0.0] * len(prompts),
        args=made,
        train_dataset=Dataset.from_list([{"prompt": text} for text in asked]),
        processing_class=load("sft")[1],
    )


def test_a_batch_counts_answers_and_asks_in_order(tmp_path):
    """By default eight answers, to one question; in the order given if not shuffled."""
    asked = questions(20, held_out=False, generator=seeded(0))
    plain = trainer_without_options(tmp_path, asked)
    assert plain.args.generation_batch_size == 8
    assert plain.num_generations == 8
    assert plain.args.steps_per_generation == plain.args.gradient_accumulation_steps
    assert plain.args.bf16  # `None` becomes `True`
    shuffled = [*plain._get_train_sampler()]
    assert shuffled[:8] == [shuffled[0]] * 8
    made = trainer_without_options(tmp_path, asked, shuffle_dataset=False)
    in_order = [*made._get_train_sampler()]
    assert in_order == [number for number in range(20) for _ in range(8)] != shuffled


def test_the_length_counts_the_end_token(tmp_path):
    made, inputs = group.trainer_of(GRPOTrainer, GRPOConfig, tmp_path)
    lengths = as_ours(inputs).mask.sum(dim=1)
    assert int(lengths.max()) == group.LIMIT == made.max_completion_length
    ends = inputs["completion_ids"] == made.processing_class.eos_token_id
    short = lengths < group.LIMIT
    assert bool(short.any())
    assert bool((ends.sum(dim=1)[short] == 1).all())
    assert bool(inputs["completion_mask"].bool()[ends].all())


# Rewards


def batch_with(folder, rewards, **options):
    """The advantages of a trainer with several rewards, and which group a row is of."""
    model, tokenizer = load("sft")
    asked = questions(group.GROUPS, held_out=False, generator=seeded(0))
    told: list[str] = []

    def function_of(scores):
        def reward(prompts, completions, **columns):
            told[:] = completions
            return scores

        return reward

    made = GRPOTrainer(
        model=model,
        reward_funcs=[function_of(scores) for scores in rewards],
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=group.GROUPS * group.SIZE,
            num_generations=group.SIZE,
            max_completion_length=group.LIMIT,
            report_to="none",
            use_cpu=True,
            bf16=False,
            seed=0,
            **options,
        ),
        train_dataset=Dataset.from_list([{"prompt": text} for text in asked]),
        processing_class=tokenizer,
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    rows = [{"prompt": text} for text in asked for _ in range(group.SIZE)]
    return made._generate_and_score_completions(rows), told


SHORT = [float(i % 3 == 0) for i in range(len(group.SCORES))]
TWO = [[float(score) for score in group.SCORES], SHORT]
WEIGHTS = [1.0, 0.3]


def test_several_rewards_are_added_or_normalised_first(tmp_path):
    added, _ = batch_with(tmp_path, TWO, reward_weights=WEIGHTS)
    groups = as_ours(added).groups
    scores, weights = torch.tensor(TWO), torch.tensor(WEIGHTS)
    group.assert_same(added["advantages"], group_relative(weights @ scores, groups))
    unweighted, _ = batch_with(tmp_path, TWO)
    found = group_relative(scores.sum(dim=0), as_ours(unweighted).groups)
    group.assert_same(unweighted["advantages"], found)

    alone, _ = batch_with(
        tmp_path,
        TWO,
        reward_weights=WEIGHTS,
        multi_objective_aggregation="normalize_then_sum",
    )
    each = torch.stack([group_relative(s, as_ours(alone).groups) for s in scores])
    total = weights @ each
    found = (total - total.mean()) / (total.std() + 1e-4)
    group.assert_same(alone["advantages"], found)


def test_the_spread_of_the_batch(tmp_path):
    inputs, _ = batch_with(tmp_path, TWO[:1], scale_rewards="batch")
    scores = torch.tensor(TWO[0])
    centred = group_relative(scores, as_ours(inputs).groups, scale=False)
    group.assert_same(inputs["advantages"], centred / (scores.std() + 1e-4))


def test_what_a_reward_function_reads(tmp_path):
    """So hot that special tokens are sampled in the midst of answers."""
    tokens = load("sft")[1]
    for temperature, same in ((1.0, True), (4.0, False)):
        inputs, told = batch_with(tmp_path, TWO[:1], temperature=temperature)
        batch = as_ours(inputs)
        rows = zip(batch.actions, batch.mask, strict=True)
        ids = [row[mask].tolist() for row, mask in rows]
        assert told == tokens.batch_decode(ids, skip_special_tokens=True)
        ours = answer_texts(tokens, batch)
        assert (ours == told) is same
        assert not any(tokens.eos_token in text for text in ours)


def test_the_slope_before_the_limit():
    limit, buffer = 30, 8
    theirs = trl.rewards.get_soft_overlong_punishment(limit, buffer)
    lengths = torch.arange(1, limit + 1)
    found = overlong_penalty(lengths, limit=limit, buffer=buffer)
    expected = theirs(completion_ids=[[0] * int(length) for length in lengths])
    torch.testing.assert_close(found, torch.tensor(expected))
    assert -1 == expected[-1] < expected[-2] < 0 == expected[0]


def test_the_price_in_the_reward_of_rloo(tmp_path):
    """The sum of k1 over the answer, off its score, before the others are averaged."""
    (row,) = [row for row in THEIRS if key(row) == ("TRL, RLOO", "beta")]
    scores = iter(group.SCORES)
    asked = questions(group.GROUPS, held_out=False, generator=seeded(0))
    model, tokenizer = load("sft")
    made = RLOOTrainer(
        model=handing.saved(model, tokenizer, tmp_path / "sft"),
        reward_funcs=lambda prompts, **columns: [next(scores) for _ in prompts],
        args=RLOOConfig(
            output_dir=str(tmp_path),
            num_generations=group.SIZE,
            max_completion_length=group.LIMIT,
            seed=0,
            **COMMON | {"per_device_train_batch_size": len(group.SCORES)},
        ),
        train_dataset=Dataset.from_list([{"prompt": text} for text in asked]),
    )
    assert made.beta == default_of(row)
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    group.moved(made.model)  # the reference stays
    rows = [{"prompt": text} for text in asked for _ in range(group.SIZE)]
    inputs = made._generate_and_score_completions(rows)
    batch = as_ours(inputs)
    with torch.no_grad():
        old = action_logprobs(TransformerPolicy(made.model), batch)
        reference = action_logprobs(TransformerPolicy(model), batch)
    batch = dataclasses.replace(batch, logprobs=old)
    given = torch.tensor(group.SCORES)
    priced = with_kl_penalty(with_scores(batch, given), reference, beta=made.beta)
    total = priced.rewards.sum(dim=1)
    group.assert_same(inputs["advantages"], leave_one_out(total, batch.groups))
    assert float((total - given).abs().max()) > 0.01


# Preferences


def pairs(count):
    """Questions with a right answer and a wrong one, of different lengths."""
    asked = questions(count, held_out=False, generator=seeded(3))
    made = []
    for number, text in enumerate(asked):
        a, b = text.removeprefix("What is ").removesuffix("?").split("+")
        wrong = int(a) + int(b) + 10 ** (number % 4)
        answers = (f"{a}+{b} is {int(a) + int(b)}", f"{a}+{b} is {wrong}")
        made.append({"prompt": text, "chosen": answers[0], "rejected": answers[1]})
    return made


def test_the_loss_is_that_of_the_dpo_trainer(tmp_path):
    model, tokenizer = load("sft")
    rows = {key(row): row for row in THEIRS if row.where == "TRL, DPO"}
    beta = rows["TRL, DPO", "beta"]
    made = DPOTrainer(
        model=model,
        ref_model=load("sft")[0],
        args=DPOConfig(
            output_dir=str(tmp_path),
            loss_type=rows["TRL, DPO", 'loss_type=["sigmoid"]'].value,
            **COMMON,
        ),
        train_dataset=Dataset.from_list(pairs(8)),
        processing_class=tokenizer,
    )
    assert not [m for m in made.model.modules() if isinstance(m, torch.nn.Dropout)]
    assert made.args.disable_dropout  # "off in the trainers for DPO and reward models"
    (inputs,) = made.get_train_dataloader()
    tokens, chosen = inputs["input_ids"], inputs["completion_mask"].bool()
    group.moved(made.model)
    expected = made.compute_loss(made.model, inputs)
    slope = group.gradient_of(made.model, expected)

    def answers(of):
        logits = of(tokens, attention_mask=inputs["attention_mask"]).logits[:, :-1]
        each = logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[:, :, 0]
        return torch.where(chosen[:, 1:], each, 0).sum(dim=1)

    with torch.no_grad():
        reference = answers(load("sft")[0])
    new = answers(made.model)
    assert default_of(beta) == made.beta
    found = dpo_loss(*new.chunk(2), *reference.chunk(2), beta=made.beta).mean()
    group.assert_same(found, expected)
    group.assert_same(group.gradient_of(made.model, found), slope)
    assert float(slope.norm()) > 0.01


def test_the_loss_is_that_of_the_reward_trainer(tmp_path):
    model, tokenizer = load("reward")
    whole = [
        {side: f"{pair['prompt']}\n{pair[side]}" for side in ("chosen", "rejected")}
        for pair in pairs(8)
    ]
    made = RewardTrainer(
        model=model,
        args=RewardConfig(output_dir=str(tmp_path), **COMMON),
        train_dataset=Dataset.from_list(whole),
        processing_class=tokenizer,
    )
    assert made.args.center_rewards_coefficient is None
    (inputs,) = made.get_train_dataloader()
    expected = made.compute_loss(made.model, dict(inputs))
    slope = group.gradient_of(made.model, expected)
    scores = made.model(**inputs).logits[:, 0]
    found = preference_loss(*scores.chunk(2)).mean()
    group.assert_same(found, expected)
    group.assert_same(group.gradient_of(made.model, found), slope)
    assert float(slope.norm()) > 0.01


# Weights


@pytest.mark.parametrize("given", [None, {"dtype": "bfloat16"}])
def test_the_weights_are_float32_if_nothing_is_said(given, tmp_path):
    """Whatever the folder holds: `bf16` is about the computation."""
    folder = handing.saved(*load("sft", dtype=torch.bfloat16), tmp_path / "model")
    asked = questions(1, held_out=False, generator=seeded(0))
    made = handing.trainer_of(
        folder, asked, accuracy_reward, tmp_path, model_init_kwargs=given
    )
    wanted = torch.float32 if given is None else torch.bfloat16
    assert {weight.dtype for weight in made.model.parameters()} == {wanted}


# Every row


BY_A_STEP = handing.test_a_step_is_the_same_step
BY_THE_PAGE = test_with_the_settings_of_the_page_a_step_is_ours
ELSEWHERE: dict[tuple[str, str], Any] = {
    ("TRL", "num_generations"): test_a_batch_counts_answers_and_asks_in_order,
    ("TRL", "per_device_train_batch_size"): (
        test_a_batch_counts_answers_and_asks_in_order
    ),
    ("TRL", "shuffle_dataset=False"): test_a_batch_counts_answers_and_asks_in_order,
    ("TRL", "num_iterations"): BY_A_STEP,
    ("TRL", "steps_per_generation"): test_steps_per_generation_are_minibatches,
    ("TRL", "gradient_accumulation_steps"): BY_A_STEP,
    ("TRL", 'multi_objective_aggregation="sum_then_normalize"'): (
        test_several_rewards_are_added_or_normalised_first
    ),
    ("TRL", "reward_weights"): test_several_rewards_are_added_or_normalised_first,
    ("TRL", "max_grad_norm"): BY_A_STEP,
    ("TRL", "learning_rate"): BY_A_STEP,
    ("TRL", 'lr_scheduler_type="constant"'): BY_THE_PAGE,
    ("TRL", "weight_decay"): test_the_optimizer_is_adamw,
    ("TRL", "bf16=False"): BY_THE_PAGE,
    ("TRL", "model_init_kwargs"): test_the_weights_are_float32_if_nothing_is_said,
    ("TRL", "disable_dropout=True"): test_dropout_is_on_if_not_disabled,
    ("TRL", "max_completion_length"): test_the_length_counts_the_end_token,
    ("TRL", "rewards.get_soft_overlong_punishment"): test_the_slope_before_the_limit,
    ("TRL, RLOO", "beta"): test_the_price_in_the_reward_of_rloo,
    ("TRL, DPO", "beta"): test_the_loss_is_that_of_the_dpo_trainer,
    ("TRL, DPO", 'loss_type=["sigmoid"]'): test_the_loss_is_that_of_the_dpo_trainer,
    ("TRL, reward", "center_rewards_coefficient=None"): (
        test_the_loss_is_that_of_the_reward_trainer
    ),
}


def test_every_row_is_compared_or_said_not_to_be():
    claims = {key(row) for row in THEIRS if row.section != NOT_HERE}
    assert claims == LOSSES.keys() | ELSEWHERE.keys()
    assert {row.where for row in ROWS if row.section == NOT_HERE} > {"TRL"}
    set_so = {key(row): row for row in THEIRS}
    page = settings()
    assert page["lr_scheduler_type"] == (
        set_so["TRL", 'lr_scheduler_type="constant"'].value
    )
    assert page["bf16"] is set_so["TRL", "bf16=False"].value
    assert page["disable_dropout"] is set_so["TRL", "disable_dropout=True"].value
