"""Sample answers from a language model, many at a time."""

from collections.abc import Sequence
from itertools import chain
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from rl_notes.policies import TransformerPolicy, sample
from rl_notes.trajectories import Trajectories


@torch.no_grad()
def generate(
    policy: TransformerPolicy,
    prompts: Sequence[Sequence[int]],
    *,
    group_size: int = 1,
    max_new_tokens: int,
    generator: torch.Generator,
) -> Trajectories:
    """Answer every prompt `group_size` times; the answers of a prompt are adjacent.

    The state is the prefix, the action is the next token. A row is a prompt, the tokens
    sampled after it, and padding. `mask` is True on the sampled tokens, the end token
    among them. The discount is 1, and 0 where the answer ended: at the end token, or
    at the length limit, which is part of the task. Rewards are 0: see `with_scores`.

    Tokens come from the policy's own distribution, its temperature included, and
    `logprobs` are under that same distribution. There is no top-k and no top-p here:
    they sample from another distribution than the one that training would then score.

    One uniform number is drawn per row and step, whether the row has ended or not, so
    that a row's answer does not depend on the other rows.

    Args:
        policy: The language model.
        prompts: Token ids, the begin token included. Their lengths may differ.
        group_size: Answers per prompt.
        max_new_tokens: The length limit of an answer, the end token included.
        generator: Source of every draw.
    """
    model = cast(PreTrainedModel, policy.model)
    end = _check(model, prompts, group_size, max_new_tokens)
    rows = len(prompts) * group_size
    tokens, logprobs = _sample_all(
        policy, prompts, group_size, end, max_new_tokens, generator
    )
    sampled = _up_to_the_first(end, tokens)
    return _as_trajectories(
        [prompt for prompt in prompts for _ in range(group_size)],
        tokens,
        logprobs,
        sampled,
        groups=torch.arange(rows, device=model.device) // group_size,
    )


@torch.inference_mode()  # less to do per operation than under no_grad
def _sample_all(
    policy: TransformerPolicy,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    end: list[int],
    max_new_tokens: int,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Sample until every row has ended; what stands after a row's end means nothing.

    Rows with the same prefix see the same next, so that the model is run on each prefix
    once: on a prompt for its whole group, and on as many rows as have gone apart since.
    """
    model = cast(PreTrainedModel, policy.model)
    device = model.device
    rows = len(prompts) * group_size
    cache, hidden, logits = _read(model, prompts)
    positions = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
    active = torch.arange(rows, device=device)  # rows that have not ended
    prefix = active // group_size  # of each of them: its row in the cache
    ends, size = torch.tensor(end, device=device), logits.shape[1]
    all_tokens, all_logprobs = [], []
    for step in range(max_new_tokens):
        logits = logits / policy.temperature
        uniforms = torch.rand(
            rows, generator=generator, dtype=torch.float64, device=generator.device
        )
        chosen = sample(logits[prefix], uniforms.to(device)[active])
        scored = logits.log_softmax(-1)[prefix, chosen]
        all_tokens.append(chosen.new_zeros(rows).index_copy(0, active, chosen))
        all_logprobs.append(scored.new_zeros(rows).index_copy(0, active, scored))
        going = ~torch.isin(chosen, ends)
        if step == max_new_tokens - 1 or not bool(going.any()):
            break
        active, longer = active[going], prefix[going] * size + chosen[going]
        longer, prefix = torch.unique(longer, return_inverse=True)
        before, token = longer // size, longer % size
        if not torch.equal(before, torch.arange(len(logits), device=device)):
            cache.batch_select_indices(before)
            hidden, positions = hidden[before], positions[before]
        hidden = nn.functional.pad(hidden, (0, 1))  # the new token is seen
        logits = model(
            input_ids=token[:, None],
            attention_mask=hidden,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        positions = positions + 1
    return torch.stack(all_tokens, dim=1), torch.stack(all_logprobs, dim=1)


def _read(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]]
) -> tuple[DynamicCache, Float[Tensor, "N 1 1 P"], Float[Tensor, "N A"]]:
    """Run every prompt once.

    Prompts are padded on the right: causal attention keeps padding out, and no padding
    is left with nothing to attend to, which is NaN in some models. What the cache holds
    of it is hidden from the tokens that follow.

    Returns the cache, what to add to the attention scores of the tokens that follow
    (0, and -inf on padding), and the next token's logits.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    shortest, width = min(map(len, prompts)), max(map(len, prompts))
    ids = torch.tensor(
        [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts],
        device=model.device,
    )
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=ids,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=width - shortest + 1,
    )
    rows = torch.arange(len(prompts), device=model.device)
    logits = output.logits[rows, lengths - shortest]
    padding = torch.arange(width, device=model.device) >= lengths[:, None]
    hidden = torch.where(padding, -torch.inf, 0.0).to(logits.dtype)[:, None, None]
    return cache, hidden, logits


def _up_to_the_first(end: list[int], tokens: Int[Tensor, "N K"]) -> Bool[Tensor, "N K"]:
    """True up to and with the first end token of each row."""
    ended = torch.isin(tokens, torch.tensor(end, device=tokens.device)).int()
    return ended.cumsum(dim=1) - ended == 0


def _as_trajectories(
    prompts: Sequence[Sequence[int]],
    tokens: Int[Tensor, "N K"],
    logprobs: Float[Tensor, "N K"],
    sampled: Bool[Tensor, "N K"],
    *,
    groups: Int[Tensor, " N"],
) -> Trajectories:
    """Lay prompts and answers out in rows, padded on the right."""
    device = tokens.device
    starts = torch.tensor([len(prompt) for prompt in prompts], device=device)
    answers = sampled.sum(dim=1)
    width = int((starts + answers).max())
    ids = torch.zeros(len(starts), width, dtype=torch.long, device=device)
    for index, prompt in enumerate(prompts):
        ids[index, : len(prompt)] = torch.tensor(prompt, device=device)
    scores = logprobs.new_zeros(len(starts), width)
    row, column = sampled.nonzero(as_tuple=True)
    place = starts[row] + column
    ids[row, place] = tokens[row, column]
    scores[row, place] = logprobs[row, column]
    position = torch.arange(width, device=device)
    mask = (position >= starts[:, None]) & (position < (starts + answers)[:, None])
    discounts = (position < (starts + answers)[:, None] - 1).to(logprobs.dtype)
    # Position p holds the token of step p - 1: the first token is nobody's action.
    return Trajectories(
        actions=ids[:, 1:],
        logprobs=scores[:, 1:],
        rewards=torch.zeros_like(scores[:, 1:]),
        discounts=discounts[:, 1:],
        mask=mask[:, 1:],
        groups=groups,
        observations=ids,
    )


def _check(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    max_new_tokens: int,
) -> list[int]:
    """Refuse what cannot be answered; return the ids of the end tokens."""
    if len(prompts) == 0 or min(map(len, prompts)) == 0:
        raise ValueError(
            "Give at least one prompt, and in each at least one token: the begin token."
        )
    if group_size < 1 or max_new_tokens < 1:
        raise ValueError(
            f"group_size={group_size} and max_new_tokens={max_new_tokens} must be at "
            "least 1."
        )
    size = model.config.vocab_size
    wrong = [token for token in chain(*prompts) if not 0 <= token < size]
    if wrong:
        raise ValueError(f"Token {wrong[0]} is not among the model's {size}.")
    longest = max(map(len, prompts)) + max_new_tokens
    limit = model.config.max_position_embeddings
    if longest - 1 > limit:
        raise ValueError(
            f"The longest prompt and max_new_tokens={max_new_tokens} make {longest} "
            f"tokens, but the model sees at most {limit}."
        )
    end = model.generation_config.eos_token_id
    if end is None:
        raise ValueError("The model names no end token: set generation_config.")
    return [end] if isinstance(end, int) else list(end)
