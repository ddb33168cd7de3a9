"""The little language model: its shape, and how to load it or any other."""

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rl_notes.language import tokenizer as little
from rl_notes.language.reward_model import new_reward_model

SHIPPED = ("base", "sft", "reward", "grpo")
# What the names of causal language models end in, those that see among them.
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# What says where a model's files are, and is needed for its tokenizer too.
WHERE = ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only")


def new_model(*, generator: torch.Generator) -> LlamaForCausalLM:
    """A little Llama with fresh weights, about 134 thousand of them.

    Two layers of width 64 with four heads; a context of 128 tokens. Attention is
    computed step by step ("eager"): PyTorch's fused kernel for the CPU cannot be
    differentiated twice, which TRPO needs. The weights are normal with standard
    deviation 0.02 and depend on the generator alone.
    """
    tokens = little.build()
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=little.CONTEXT,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        attn_implementation="eager",  # type: ignore[call-arg]
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:  # the norms stay at one
                noise = torch.randn(
                    weight.shape, generator=generator, device=generator.device
                )
                weight.copy_(0.02 * noise)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def load(
    name: str, *, dtype: torch.dtype = torch.float32, **from_pretrained: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, on the CPU and in eval mode.

    The weights are in `dtype` whatever the files hold: most of the Hub's are in
    bfloat16, where a step of a usual learning rate rounds to no step at all.

    Args:
        name: "base", "sft" or "grpo", language models that ship with this package, each
            trained on from the one before; "reward", the reward model that ships with
            it, a sequence classifier with one label; or the name of a causal language
            model of the Hugging Face Hub, "owner/name"; or a folder that
            `save_pretrained` wrote, of a language model or of a reward model.
        dtype: What the weights are made.
        from_pretrained: Anything else that `from_pretrained` of transformers takes,
            such as `revision` or `attn_implementation`, which is "eager" otherwise.
    """
    if name in SHIPPED:
        if from_pretrained:
            raise ValueError(
                f"{name!r} ships with this package and takes no "
                f"{', '.join(from_pretrained)}."
            )
        shipped: PreTrainedModel = new_model(
            generator=torch.Generator(device="cpu").manual_seed(0)
        )
        if name == "reward":
            shipped = new_reward_model(shipped)
        shipped.load_state_dict(load_file(checkpoint_path(name)))
        nn.Module.to(shipped, dtype)
        return shipped, little.build()
    where = {key: from_pretrained[key] for key in WHERE if key in from_pretrained}
    options = {"attn_implementation": "eager", "dtype": dtype, **from_pretrained}
    try:
        config = AutoConfig.from_pretrained(name, **where)
        kind = _class_for(name, config)
        tokens = AutoTokenizer.from_pretrained(name, **where)
        model = kind.from_pretrained(name, **options)
    except NoCausalModel:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Cannot load {name!r}. The models {', '.join(map(repr, SHIPPED))} ship "
            "with this package. Any other name is looked up on the Hugging Face Hub, "
            "unless it is a folder: check its spelling and that you are online, and "
            "for a gated model accept its terms there and run `hf auth login`. The "
            "library said: "
            f"{error}"
        ) from error
    model.eval()
    return model, tokens


class NoCausalModel(ValueError):
    """The name is right, but what it names cannot be a policy."""


def _class_for(name: str, config: PretrainedConfig) -> Any:
    """The class to load it with, by what its files say it is."""
    saved = config.architectures or []
    if any(kind.endswith("ForSequenceClassification") for kind in saved):
        if config.num_labels != 1:
            raise NoCausalModel(
                f"{name!r} is a classifier with {config.num_labels} labels. A reward "
                "model has one."
            )
        return AutoModelForSequenceClassification
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "auto_map" in vars(config)
    says_so = not saved or any(kind.endswith(CAUSAL) for kind in saved)
    if config.is_encoder_decoder or not causal or not says_so:
        raise NoCausalModel(
            f"{name!r} is no causal language model, but {' or '.join(saved)} "
            f"({config.model_type}). Only a model that reads from left to right and "
            "predicts the next token can be a policy here."
        )
    return AutoModelForCausalLM


def checkpoint_path(name: str) -> Path:
    """Where the weights of a shipped model lie."""
    return Path(
        str(resources.files(__package__) / "checkpoints" / f"{name}.safetensors")
    )
