"""The little language model: its shape, and how to load it or any other."""

from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rl_notes.language import tokenizer as little
from rl_notes.language.reward_model import new_reward_model

SHIPPED = ("base", "sft", "reward", "grpo")


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


def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, on the CPU and in eval mode.

    Args:
        name: "base", "sft" or "grpo", language models that ship with this package, each
            trained on from the one before; "reward", the reward model that ships with
            it, a sequence classifier with one label; or the name of a causal language
            model of the Hugging Face Hub, "owner/name"; or a folder that
            `save_pretrained` wrote.
    """
    if name in SHIPPED:
        shipped: PreTrainedModel = new_model(
            generator=torch.Generator(device="cpu").manual_seed(0)
        )
        if name == "reward":
            shipped = new_reward_model(shipped)
        shipped.load_state_dict(load_file(checkpoint_path(name)))
        return shipped, little.build()
    try:
        tokens = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="eager")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Cannot load {name!r}. The models {', '.join(map(repr, SHIPPED))} ship "
            "with this package. Any other name is looked up on the Hugging Face Hub, "
            "unless it is a folder: check its spelling and that you are online, and "
            "for a gated model accept its terms there and run `hf auth login`. The "
            "library said: "
            f"{error}"
        ) from error
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokens


def checkpoint_path(name: str) -> Path:
    """Where the weights of a shipped model lie."""
    return Path(
        str(resources.files(__package__) / "checkpoints" / f"{name}.safetensors")
    )
