"""Sample answers from a language model, many at a time."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from numbers import Integral
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl_notes.divergences import sample
from rl_notes.policies import (
    TransformerPolicy,
    action_logprobs,
    bare,
    in_float32,
    rounding_of_logprobs,
)
from rl_notes.trajectories import Trajectories

CACHES = ("past_key_values", "cache_params")  # what models call it


def generate(
    policy: TransformerPolicy,
    prompts: Sequence[Sequence[int]],
    *,
    group_size: int = 1,
    max_new_tokens: int,
    generator: torch.Generator,
) -> Trajectories:
    """Sample `group_size` completions of every prompt; those of a prompt are adjacent.

    The state is the prefix, the action is the next token. A row is a prompt, the tokens
    sampled after it, and padding. `mask` is True on the sampled tokens, the end token
    among them. The discount is 1, and 0 where the answer ended: at the end token, or
    at the length limit, which is part of the task. Rewards are 0: see `with_scores`.

    Tokens come from the policy's own distribution, its temperature included, and
    `logprobs` are under that same distribution. There is no top-k and no top-p here:
    they sample from another distribution than the one that training would then score.

    One uniform number is drawn per row and step, whether the row has ended or not, so
    that a row's answer does not depend on the other rows.

    The model samples in eval mode, with its own cache, and is put back into the mode it
    was in. The shortest and the longest prompt's first answers are then scored once
    more without a cache. A model that gives them other log-probabilities, because its
    cache or its mask does not do what they should, is refused by name.

    Args:
        policy: A causal language model of transformers.
        prompts: Token ids, the begin token included, one list per prompt, without
            padding: `tokenizer(texts)["input_ids"]`. Their lengths may differ.
        group_size: Answers per prompt.
        max_new_tokens: The length limit of an answer, the end token included.
        generator: Source of every draw.
    """
    end = _check(policy, prompts, group_size, max_new_tokens)
    rows = len(prompts) * group_size
    with _eval_mode(policy):
        tokens, logprobs = _sample_all(
            policy, prompts, group_size, end, max_new_tokens, generator
        )
        sampled = _up_to_the_first(end, tokens)
        answers = _as_trajectories(
            [prompt for prompt in prompts for _ in range(group_size)],
            tokens,
            logprobs,
            sampled,
            groups=torch.arange(rows, device=tokens.device) // group_size,
        )
        _require_the_same_without_cache(policy, prompts, answers)
    return answers


@contextmanager
def _eval_mode(policy: nn.Module) -> Iterator[None]:
    """No dropout, and afterwards every module in the mode that it was in."""
    modes = [(module, module.training) for module in policy.modules()]
    policy.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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
    Which rows these are is kept on the CPU, as a card would wait at every question.
    """
    model = cast(PreTrainedModel, policy.model)
    device = model.device
    rows = len(prompts) * group_size
    ids, attention_mask = _padded_on_the_left(prompts, device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device="cpu")
    gaps = lengths.max() - lengths  # of each row of the cache: its padding
    active = torch.arange(rows, device="cpu")  # rows that have not ended
    prefix = active // group_size  # of each of them: its row in the cache
    ends = torch.tensor(end, device="cpu")
    takes = frozenset(inspect.signature(bare(model).forward).parameters)
    cache: dict[str, Any] = {}
    all_tokens, all_logprobs = [], []
    for step in range(max_new_tokens):
        padded = bool(gaps.any())
        logits, cache = _next_logits(model, ids, attention_mask, padded, cache, takes)
        logits = logits / policy.temperature
        uniforms = torch.rand(
            rows, generator=generator, dtype=torch.float64, device=generator.device
        )
        here, at = _sent(active, device), _sent(prefix, device)
        chosen = sample(logits[at], _sent(uniforms, device)[here])
        scored = logits.log_softmax(-1)[at, chosen]
        all_tokens.append(chosen.new_zeros(rows).index_copy(0, here, chosen))
        all_logprobs.append(scored.new_zeros(rows).index_copy(0, here, scored))
        drawn = chosen.cpu()
        going = ~torch.isin(drawn, ends)
        if step == max_new_tokens - 1 or not bool(going.any()):
            break
        size = logits.shape[1]
        active, longer = active[going], prefix[going] * size + drawn[going]
        longer, prefix = torch.unique(longer, return_inverse=True)
        before, token = longer // size, longer % size
        if not torch.equal(before, torch.arange(len(logits), device="cpu")):
            gaps, before = gaps[before], _sent(before, device)
            for kept in cache.values():
                kept.reorder_cache(before)
            attention_mask = attention_mask[before]
        ids = _sent(token, device)[:, None]
        attention_mask = nn.functional.pad(attention_mask, (0, 1), value=1)
    return torch.stack(all_tokens, dim=1), torch.stack(all_logprobs, dim=1)


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on this device, without waiting for what the device has yet to do."""
    return x.to(device, non_blocking=x.device.type == "cpu")


def _padded_on_the_left(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "N P"], Int[Tensor, "N P"]]:
    """Token ids and attention mask: 1 on every token, 0 on padding.

    On the left, so that the next token follows the last in every row and models that
    know no other padding, such as those without position ids, know this one.
    """
    width = max(map(len, prompts))
    gaps = [width - len(prompt) for prompt in prompts]
    ids = [[0] * gap + [*prompt] for gap, prompt in zip(gaps, prompts, strict=True)]
    seen = [[0] * gap + [1] * (width - gap) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(seen, device=device)


def _next_logits(
    model: nn.Module,
    ids: Int[Tensor, "N P"],
    attention_mask: Int[Tensor, "N K"],
    padded: bool,
    cache: dict[str, Any],
    takes: frozenset[str],
) -> tuple[Float[Tensor, "N A"], dict[str, Any]]:
    """The next token's logits, and the model's cache with these tokens in it.

    `padded` says whether the mask hides anything. `takes` are the arguments that the
    model's forward knows. Each model makes its own kind of cache, under the name that
    it gives it.
    """
    options: dict[str, Any] = {"use_cache": True, **cache}
    # A state space model has read the padding once and for all with the prompt: what it
    # carries on has no places to hide.
    if padded and "cache_params" not in cache:
        options["attention_mask"] = attention_mask
    if "position_ids" in takes:
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        options["position_ids"] = positions[:, -ids.shape[1] :]
    if "logits_to_keep" in takes:
        options["logits_to_keep"] = 1
    try:
        output = model(input_ids=ids, **options)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(
            f"{_name(model)} raised {type(error).__name__} as it was run with its own "
            f"cache, so that it cannot be sampled from here: {error}"
        ) from error
    cache = {name: output[name] for name in CACHES if name in output}
    if not all(hasattr(kept, "reorder_cache") for kept in cache.values()) or not cache:
        raise ValueError(
            f"{_name(model)} gives no cache from which rows can be taken, so that it "
            "cannot be sampled from here."
        )
    return in_float32(output.logits[:, -1]), cache


@torch.no_grad()
def _require_the_same_without_cache(
    policy: TransformerPolicy, prompts: Sequence[Sequence[int]], answers: Trajectories
) -> None:
    """Refuse a model whose answers, scored as they will be, were not sampled so."""
    lengths = [len(prompt) for prompt in prompts]
    ends = {lengths.index(min(lengths)), lengths.index(max(lengths))}
    each = len(answers.groups) // len(prompts)
    rows = [each * prompt for prompt in sorted(ends)]
    few = answers.select(torch.tensor(rows, device=answers.groups.device))
    difference = (action_logprobs(policy, few) - few.logprobs).abs()
    found = float(difference.sum() / few.mask.sum())
    allowed = rounding_of_logprobs(policy, few.logprobs.dtype)
    if not found <= allowed:
        raise ValueError(
            f"{_name(policy.model)} gives its own tokens other log-probabilities with "
            f"its cache than without: they differ by {found:.3g} in the mean, where "
            f"{allowed:.3g} is allowed for rounding. Its cache, or its mask for "
            "prompts of different lengths, does not do what it should, or it is not "
            "causal. Try prompts of one length, or another version of transformers."
        )


def _name(model: nn.Module) -> str:
    """What the model is called."""
    return type(bare(model)).__name__


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
    policy: nn.Module,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    max_new_tokens: int,
) -> list[int]:
    """Refuse what cannot be answered; return the ids of the end tokens."""
    if not isinstance(policy, TransformerPolicy):
        raise ValueError(
            f"The policy is a {type(policy).__name__}. Wrap a causal language model: "
            "TransformerPolicy(model)."
        )
    _require_prompts(prompts)
    if group_size < 1 or max_new_tokens < 1:
        raise ValueError(
            f"group_size={group_size} and max_new_tokens={max_new_tokens} must be at "
            "least 1."
        )
    model = cast(PreTrainedModel, policy.model)
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{_name(model)} is no causal language model: it has an encoder. Only a "
            "model that reads from left to right can be a policy here."
        )
    config = model.config.get_text_config()
    size = config.vocab_size
    wrong = [token for token in chain(*prompts) if not 0 <= token < size]
    if wrong:
        raise ValueError(f"Token {wrong[0]} is not among the model's {size}.")
    longest = max(map(len, prompts)) + max_new_tokens
    limit = getattr(config, "max_position_embeddings", None)  # some have none
    if limit is not None and longest - 1 > limit:
        raise ValueError(
            f"The longest prompt and max_new_tokens={max_new_tokens} make {longest} "
            f"tokens, but the model sees at most {limit}."
        )
    end = model.generation_config.eos_token_id
    if end is None:
        raise ValueError("The model names no end token: set generation_config.")
    return [end] if isinstance(end, int) else list(end)


def _require_prompts(prompts: Any) -> None:
    """Refuse what is not a list of prompts, each a list of token ids."""
    wanted = (
        "Give one list of token ids per prompt, without padding: "
        'tokenizer(texts)["input_ids"].'
    )
    if isinstance(prompts, Tensor):
        raise ValueError(
            f"The prompts are a tensor of shape {tuple(prompts.shape)}. Its padding "
            f"would be read as text. {wanted}"
        )
    if isinstance(prompts, Mapping):
        raise ValueError(f"The prompts are a {type(prompts).__name__}. {wanted}")
    if isinstance(prompts, str) or any(isinstance(one, str) for one in prompts):
        raise ValueError(f"The prompts are texts. {wanted}")
    if any(isinstance(one, Integral) for one in prompts):
        raise ValueError(
            f"The prompts are one flat list of numbers. {wanted} A single prompt is a "
            "list of one list."
        )
    if len(prompts) == 0 or min(map(len, prompts)) == 0:
        raise ValueError(
            "Give at least one prompt, and in each at least one token: the begin token."
        )
    for token in chain(*prompts):
        if not isinstance(token, Integral):
            raise ValueError(f"A prompt holds a {type(token).__name__}. {wanted}")
