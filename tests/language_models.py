"""Language models for the tests: fresh ones, far from uniform, and exact ones."""

import torch
from batches import seeded
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rl_notes.language.models import new_model


def fresh(*, scale=10.0, seed=0):
    """The little model, never trained, with weights so large that logits differ."""
    return scaled(new_model(generator=seeded(seed)), scale)


def tiny(*, vocabulary=4, end=2, scale=30.0, seed=0):
    """A Llama with a vocabulary of a few tokens, in exact float64; token 0 is pad."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=end,
    )
    model = LlamaForCausalLM(config).eval()
    generator = seeded(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    return exact(scaled(model, scale))


def scaled(model, scale):
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(scale)
    return model


def exact(model):
    """The same Llama in float64 throughout.

    After `.double()` the Llama of `transformers` still rounds to float32 in its norms
    and in the softmax of eager attention, so that nothing can agree beyond 1e-6.
    """
    model = model.double()
    model.set_attn_implementation("sdpa")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LlamaRMSNorm):
                norm = nn.RMSNorm(
                    child.weight.shape[0],
                    eps=child.variance_epsilon,
                    dtype=torch.float64,
                )
                norm.weight = child.weight
                setattr(parent, name, norm)
    return model
