"""Every causal language model of transformers, small and random, sampled and scored.

    make sweep

One line for each: right, refused (with the reason), or why it could not be built small.
Right means that the log-probabilities that `generate` stores are those of each row by
itself, unpadded and without a cache, and those that `action_logprobs` gives the batch:
for prompts of 1 to 9 tokens, in groups of 1 and of 3, and for texts past the window of
models that have one. The batch is run as trees of prefixes wherever the model takes
them. Wrong is the only line that must not be there.
"""

import sys
import traceback
import warnings
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from rl_notes import prefix_trees
from rl_notes.language.generation import generate
from rl_notes.policies import TransformerPolicy, action_logprobs
from rl_notes.prefix_trees import takes_trees

PROMPTS = [[1, 5, 6, 7, 3, 8, 9, 4, 11], [1], [1, 7], [1, 5, 6, 12]]
LONGEST = 14  # tokens sampled: with the longest prompt, past a window of 6
SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "dim": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "n_inner": 64,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_seq_len": 64,
    "sliding_window": 6,
    "attention_window_size": 6,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "rotary_dim": 4,
    "state_size": 4,
    "mamba_d_state": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "lru_width": 32,
    "attention_hidden_size": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "is_decoder": True,
    "dropout": 0.0,
}


def has(config: Any, name: str) -> bool:
    """Whether this kind of model has a value of this name."""
    try:
        return getattr(config, name, None) is not None
    except AttributeError:  # it has one for each layer
        return False


MLA = {"head_dim": None, "num_key_value_heads": 4}  # latent attention has its own
HYBRID = {"num_hidden_layers": 4}  # so that there is a layer of each sort
EIGHT = {"head_dim": 8}
OTHERWISE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32"), MLA),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "youtu"), MLA),
    "minicpm3": MLA,
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_next", "qwen4_exp"), HYBRID),
    **dict.fromkeys(("qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp_text"), HYBRID),
    "jamba": {"num_hidden_layers": 8},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "falcon": {"head_dim": None},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "mamba2": {"head_dim": 8, "num_heads": 8, "n_groups": 1},
    "nemotron": {"num_key_value_heads": 2},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), EIGHT),
    "dots1": {"n_routed_experts": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "bailing_hybrid": {**MLA, "num_hidden_layers": 8},
    "deepseek_v2": {**MLA, "num_experts_per_tok": 2},
    "longcat_flash": {**MLA, "num_layers": 2},
    "kimi_linear": {**MLA, "num_hidden_layers": 4},
}
TEXT: dict[str, str] = {}


def small_model(kind: str) -> Any:
    """A random model of this kind, so small that it takes milliseconds."""
    whole = AutoConfig.for_model(kind)
    text = whole.get_text_config(decoder=True)
    # Only what the kind knows, so that what follows from the sizes can follow.
    known = {name: value for name, value in SMALL.items() if has(text, name)}
    known |= OTHERWISE.get(kind, {})
    config = type(text)(**{n: v for n, v in known.items() if v is not None})
    if text is not whole:
        setattr(whole, TEXT.get(kind, "text_config"), config)
        config = whole
    with torch.device("meta"):
        size = sum(
            w.numel() for w in AutoModelForCausalLM.from_config(config).parameters()
        )
    if size > 100_000_000:
        raise NotImplementedError(f"{size / 1e6:.0f} million weights")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # far from uniform, so that a mistake shows
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(3.0)
    model.generation_config.eos_token_id = 2
    return model


def largest_difference(model: Any, group_size: int) -> float:
    """Between stored log-probabilities and two ways to compute them again."""
    policy = TransformerPolicy(model, 0.9)
    batch = generate(
        policy,
        PROMPTS,
        group_size=group_size,
        max_new_tokens=LONGEST,
        generator=torch.Generator().manual_seed(0),
    )
    found = 0.0
    with torch.no_grad():
        again = [action_logprobs(policy, batch)]
        rows = [batch.select(torch.tensor([row])) for row in range(len(batch.mask))]
        alone = [action_logprobs(policy, row.trimmed()) for row in rows]
    for stored, other in [(batch.logprobs, again[0])] + [
        (row.trimmed().logprobs, one) for row, one in zip(rows, alone, strict=True)
    ]:
        found = max(found, float((stored - other).abs().max()))
    return found


def verdict(kind: str) -> tuple[str, str]:
    """Right, refused, wrong or not built; and the figure or the reason."""
    try:
        model = small_model(kind)
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 5, 6]]), use_cache=False)
    except Exception as error:
        return "not built", f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    try:
        found = max(largest_difference(model, size) for size in (1, 3))
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = last.endswith("generation.py") and "rl_notes" in last
        return ("refused" if ours else "error"), str(error)
    except Exception as error:
        return "error", f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    how = "as trees" if takes_trees(model, LONGEST) else "as rows"
    return ("right" if found < 1e-3 else "wrong"), f"{found:.1e}, {how}"


def main() -> None:
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    prefix_trees.WORTH = 1e9  # wherever a model takes them
    kinds = sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    count: dict[str, int] = {}
    for kind in kinds:
        found, reason = verdict(kind)
        count[found] = count.get(found, 0) + 1
        print(f"{kind:28} {found:10} {reason[:150]}", flush=True)
    print(count)
    sys.exit(1 if {"wrong", "error"} & set(count) else 0)


if __name__ == "__main__":
    main()
