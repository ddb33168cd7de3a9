"""Any causal language model can be the policy: a dozen that differ most, and its state.

`make sweep` runs all that transformers has.
"""

import copy
import math
from typing import Any

import pytest
import torch
import transformers
from batches import seeded
from language_models import fresh
from packaging.version import Version
from sweep_models import PROMPTS, largest_difference, small_model
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    BatchEncoding,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from rl_notes.divergences import entropy, kl_exact
from rl_notes.language.generation import generate
from rl_notes.objectives import token_clip
from rl_notes.policies import (
    TransformerPolicy,
    action_logprobs,
    forward_distinct,
    states,
)
from rl_notes.updates import grpo_update, trpo_update

KINDS = [
    "llama",
    "gpt2",  # learned positions
    "opt",  # positions from the mask alone
    "bloom",  # ALiBi, no positions and no limit
    "mpt",
    "gpt_neox",
    "falcon",
    "gemma2",  # every other layer sees a window
    "mistral",  # a window in all layers
    "mixtral",  # experts
    "deepseek_v3",  # latent attention
    "mamba",  # no attention at all
    "lfm2",  # convolutions beside attention
    "qwen3_5_text",  # linear attention beside attention
]


@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sampled_is_what_is_scored(kind, group_size):
    """Prompts of 1 to 9 tokens; the longest text is past a window of 6 tokens."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {kind}")
    if kind == "mamba" and Version(transformers.__version__) < Version("5"):
        with pytest.raises(ValueError, match="MambaForCausalLM gives no cache"):
            largest_difference(small_model(kind), group_size)
        return
    assert largest_difference(small_model(kind), group_size) < 1e-4


def test_a_text_model_inside_a_model_that_sees():
    text = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = 2
    assert largest_difference(model, 2) < 1e-4
    with pytest.raises(ValueError, match="Token 40 is not among the model's 40"):
        answer(model, prompts=[[1, 40]])


def answer(model, *, prompts=PROMPTS, temperature=1.0, tokens=8, seed=0):
    policy = TransformerPolicy(model, temperature)
    options = {"group_size": 2, "max_new_tokens": tokens, "generator": seeded(seed)}
    return generate(policy, prompts, **options)


# What is no causal language model


def test_an_encoder_is_refused():
    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = BertLMHeadModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5)
    model.generation_config.eos_token_id = 2
    with pytest.raises(ValueError, match="BertLMHeadModel"):
        answer(model)


def test_an_encoder_and_decoder_is_refused():
    config = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=1)
    model = T5ForConditionalGeneration(config)
    with pytest.raises(ValueError, match=r"T5ForCond.* is no causal language model"):
        answer(model)


class Fragile(GPT2LMHeadModel):
    """A model that does not find its way around in its own cache."""

    def forward(self, input_ids, **options):
        raise IndexError("list index out of range")


def test_a_model_that_breaks_as_it_is_run_is_named():
    config = GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, eos_token_id=2)
    with pytest.raises(ValueError, match=r"Fragile raised IndexError.* out of range"):
        answer(Fragile(config).eval())


class Forgetful(GPT2LMHeadModel):
    """A model whose mask for prompts of different lengths does nothing."""

    def forward(self, input_ids, attention_mask=None, **options):
        return super().forward(input_ids, **options)


def test_a_model_whose_mask_does_nothing_is_refused_by_name():
    model = Forgetful(small_model("gpt2").config).eval()
    model.load_state_dict(small_model("gpt2").state_dict())
    model.generation_config.eos_token_id = 2
    answer(model, prompts=[[1, 5, 6], [1, 7, 8]])  # nothing to hide
    message = r"^Forgetful gives its own tokens other.* differ by 0\.\d+ in the mean"
    with pytest.raises(ValueError, match=message):
        answer(model)


class Forgotten(GPT2LMHeadModel):
    """A model that gives no cache."""

    def forward(self, input_ids, attention_mask=None, **options):
        return super().forward(
            input_ids, attention_mask=attention_mask, use_cache=False
        )


def test_a_model_without_a_cache_is_refused_by_name():
    model = Forgotten(small_model("gpt2").config).eval()
    model.generation_config.eos_token_id = 2
    with pytest.raises(ValueError, match=r"^Forgotten gives no cache"):
        answer(model)


# What a prompt is


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (torch.tensor([[1, 5], [1, 0]]), r"a tensor of shape \(2, 2\)\. Its padding"),
        (BatchEncoding({"input_ids": [[1, 5]]}), "are a BatchEncoding"),
        ({"input_ids": [[1, 5]]}, "are a dict"),
        (["What is 1+2?"], "are texts"),
        ("What is 1+2?", "are texts"),
        ([1, 5, 6], "one flat list of numbers"),
        ([[1, 5.0]], "A prompt holds a float"),
        ([torch.tensor([1, 5])], "A prompt holds a Tensor"),
    ],
)
@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_what_is_no_list_of_lists_of_ids_is_refused(prompts, message):
    with pytest.raises(ValueError, match=message) as refused:
        answer(fresh(), prompts=prompts)
    assert 'tokenizer(texts)["input_ids"]' in str(refused.value)


@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_a_model_that_is_no_policy_is_refused():
    options: dict[str, Any] = {"max_new_tokens": 2, "generator": seeded(0)}
    with pytest.raises(ValueError, match=r"LlamaForCausalLM\. .*TransformerPolicy\(mo"):
        generate(fresh(), [[1, 5]], **options)


# The model's own state


def with_dropout():
    config = GPT2Config(
        vocab_size=22, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=2
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)


def test_dropout_is_off_while_sampling_and_the_mode_comes_back():
    model = with_dropout().train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    batch = answer(model)
    assert [module.training for module in model.modules()] == modes
    expected = action_logprobs(TransformerPolicy(model.eval()), batch)
    torch.testing.assert_close(batch.logprobs, expected.detach(), rtol=0, atol=1e-5)


def test_the_mode_comes_back_after_an_error():
    model = Forgotten(small_model("gpt2").config).train()
    model.generation_config.eos_token_id = 2
    with pytest.raises(ValueError, match="gives no cache"):
        answer(model)
    assert all(module.training for module in model.modules())


def test_gradient_checkpointing_changes_nothing_but_time():
    model = small_model("llama")
    expected = answer(model)
    before = "gradient_checkpointing_enable"  # what older versions call it
    begin = getattr(model, "activation_checkpointing_enable", getattr(model, before))
    begin({"use_reentrant": False})
    found = answer(model.train())
    assert torch.equal(found.actions, expected.actions)
    advantages = torch.where(expected.mask, 1.0, 0.0)
    ends = []
    for trained in (small_model("llama"), model.train()):
        policy = TransformerPolicy(trained)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        climb(policy, optimizer, expected, advantages)
        ends.append([weight.detach() for weight in policy.parameters()])
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)


def climb(policy, optimizer, batch, advantages):
    return grpo_update(
        policy,
        optimizer,
        batch,
        advantages,
        objective=lambda *rows: token_clip(*rows, clip_low=0.2, clip_high=0.2),
        epochs=2,
        minibatches=1,
        generator=seeded(0),
        micro_batch=2,
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention_samples_the_same(attention):
    model = small_model("llama")
    expected = answer(model)
    model.set_attn_implementation(attention)
    found = answer(model)
    assert torch.equal(found.actions, expected.actions)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=1e-5)


def test_the_last_tokens_of_the_context_are_used_and_no_more():
    model = small_model("gpt2")
    model.config.n_positions = 64
    assert answer(model, tokens=56).mask.any()
    with pytest.raises(ValueError, match="the model sees at most 64"):
        answer(model, tokens=57)
    assert answer(small_model("bloom"), tokens=80).mask.any()  # has no limit


# Half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_single(dtype):
    """KL and entropy of a policy in half precision are those of its very logits."""
    model = fresh(scale=4.0).to(dtype)
    policy = TransformerPolicy(model, 0.7)
    batch = answer(model, temperature=0.7)
    assert batch.logprobs.dtype == batch.rewards.dtype == torch.float32
    assert batch.discounts.dtype == torch.float32
    old = copy.deepcopy(policy)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.05)
    advantages = torch.where(batch.mask, 1.0, 0.0)
    advantages[::2] *= -1
    stats = climb(policy, optimizer, batch, advantages)
    with torch.no_grad():
        assert forward_distinct(policy, batch).dtype == torch.float32
        copies = [
            p.model(input_ids=states(batch), use_cache=False).logits.float() / 0.7
            for p in (old, policy)
        ]
    kl = kl_exact(*copies)[batch.mask]
    assert stats.kl_mean == pytest.approx(float(kl.mean()), rel=0.01)
    assert stats.kl_max == pytest.approx(float(kl.max()), rel=0.01)
    spread = entropy(copies[1])[batch.mask].mean()
    assert stats.entropy == pytest.approx(float(spread), rel=0.01)
    logprobs = copies[1].log_softmax(-1).gather(-1, batch.actions[..., None])[..., 0]
    ratio = (logprobs - batch.logprobs)[batch.mask].exp()
    assert stats.ratio_max == pytest.approx(float(ratio.max()), rel=0.01)
    assert 1e-4 < stats.kl_mean < 1
    assert math.isfinite(stats.gradient_norm)


def test_trpo_steps_in_a_region_that_is_measured_in_single():
    model = fresh(scale=4.0).bfloat16()
    policy, batch = TransformerPolicy(model), answer(model)
    advantages = torch.where(batch.mask, 1.0, 0.0)
    advantages[::2] *= -1
    stats = trpo_update(policy, batch, advantages, max_kl=0.01, damping=0.1)
    assert stats.kl_mean <= 0.01
