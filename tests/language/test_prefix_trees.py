"""Rows that begin alike are run as a tree, which changes time and rounding alone."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from batches import seeded, with_garbage
from language_models import tiny
from torch.nn.utils import parameters_to_vector
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MistralConfig,
    MistralForCausalLM,
)

from rl_notes import policies, prefix_trees
from rl_notes.language.generation import generate
from rl_notes.objectives import token_clip
from rl_notes.policies import (
    TransformerPolicy,
    action_logprobs,
    forward_distinct,
    states,
)
from rl_notes.prefix_trees import takes_trees
from rl_notes.trajectories import Trajectories
from rl_notes.updates import grpo_update


def trees_of(rows, lengths=None, groups=None):
    rows = torch.tensor(rows)
    lengths = torch.tensor(lengths or [rows.shape[1]] * len(rows))
    groups = torch.tensor(groups or [0] * len(rows))
    return prefix_trees.prefix_trees(rows, lengths, groups)


def prefixes(trees, row, length):
    """What each prefix of a row is, read off the tree alone."""
    count = trees.tokens.shape[1]
    found = []
    for node in trees.node[row, :length].tolist():
        tree, place = divmod(node, count)
        line = trees.ancestors[tree, place].nonzero()[:, 0]
        order = trees.positions[tree, line].argsort()
        assert trees.positions[tree, line][order].tolist() == [*range(len(line))]
        found.append(trees.tokens[tree, line][order].tolist())
    return found


def test_a_tree_by_hand():
    """7 5 and 7 6 share the 7; 7 5 and 7 5 9 share both. Group 3 stands alone."""
    rows = [[7, 5, 0], [7, 6, 0], [7, 5, 9], [7, 5, 9]]
    trees = trees_of(rows, [2, 2, 3, 3], groups=[0, 0, 0, 3])
    assert trees.tokens.shape == (2, 4)
    assert sorted(trees.tokens[0].tolist()) == [5, 6, 7, 9]
    assert trees.tokens[1].tolist() == [7, 5, 9, 0]
    for number, (row, length) in enumerate(zip(rows, [2, 2, 3, 3], strict=True)):
        said = prefixes(trees, number, length)
        assert said == [row[: t + 1] for t in range(length)]
    assert trees.ancestors.diagonal(dim1=1, dim2=2).all()
    assert trees.ancestors[1].sum() == 1 + 2 + 3 + 1  # the last pads


def test_every_prefix_of_random_rows_is_found_once():
    generator = seeded(3)
    rows = torch.randint(2, (40, 7), generator=generator)
    lengths = torch.randint(1, 8, (40,), generator=generator)
    groups = torch.randint(5, (40,), generator=generator) * 10
    trees = prefix_trees.prefix_trees(rows, lengths, groups)
    seen = set()
    for number in range(40):
        length, group = int(lengths[number]), int(groups[number])
        line = rows[number].tolist()
        assert prefixes(trees, number, length) == [line[: t + 1] for t in range(length)]
        seen |= {(group, *line[: t + 1]) for t in range(length)}
    used = trees.node[torch.arange(7) < lengths[:, None]].unique()
    assert len(used) == len(seen)


def llama():
    return tiny(vocabulary=8, scale=10.0)


def gpt2():
    config = GPT2Config(
        vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1
    )
    return GPT2LMHeadModel(config)


def windowed(window):
    config = MistralConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=window,
    )
    return MistralForCausalLM(config)


MODELS = {"llama": llama, "gpt2": gpt2, "a wide window": partial(windowed, 64)}


def prepared(make, attention="eager"):
    """A policy with large weights and answers to three prompts."""
    torch.manual_seed(0)
    # In float64 some models hide what pads a row so well that they see nothing at all.
    model = make().to(torch.float64 if make is llama else torch.float32).eval()
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = model.config.eos_token_id = 2
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.5, generator=seeded(1))
    policy = TransformerPolicy(model, temperature=1.2)
    prompts = [[1, 3, 4, 5, 3], [1, 0, 3, 4, 3, 4, 4], [1, 4, 3]]
    options: dict[str, Any] = {"group_size": 6, "max_new_tokens": 5}
    batch = generate(policy, prompts, generator=seeded(0), **options)
    with torch.no_grad():
        return policy, replace(batch, logprobs=action_logprobs(policy, batch))


def with_trees(monkeypatch, worth):
    """Trees always, or never; and how often they were run."""
    monkeypatch.setattr(prefix_trees, "WORTH", worth)
    ran: list[int] = []

    def counted(*arguments):
        trees = prefix_trees.trees_worth_it(*arguments)
        ran.extend([] if trees is None else [1])
        return trees

    monkeypatch.setattr(policies, "trees_worth_it", counted)
    return ran


def logits_and_gradient(policy, batch):
    policy.zero_grad()
    logits = forward_distinct(policy, batch)
    weights = torch.randn(logits.shape, generator=seeded(1), dtype=logits.dtype)
    (logits.log_softmax(-1) * weights).sum().backward()
    return logits.detach(), [w.grad for w in policy.parameters() if w.grad is not None]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_trees_give_the_logits_and_gradients_of_rows_run_one_by_one(
    monkeypatch, make, attention
):
    policy, batch = prepared(make, attention)
    rows = [policy(row[None])[0] for row in states(batch)]  # one by one, no tree
    alone = torch.stack(rows)[batch.mask].detach()
    ran = with_trees(monkeypatch, worth=0.0)
    apart, slopes_apart = logits_and_gradient(policy, batch)
    assert not ran
    ran = with_trees(monkeypatch, worth=100.0)
    here, slopes = logits_and_gradient(policy, batch)
    assert ran
    torch.testing.assert_close(here, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(here, apart, rtol=1e-5, atol=1e-5)
    # Inside, models of the Hub round norms and attention to float32.
    whole, whole_apart = (
        parameters_to_vector(slopes),
        parameters_to_vector(slopes_apart),
    )
    assert (whole - whole_apart).norm() <= 1e-5 * whole.norm()


def test_nonsense_behind_a_rows_end_is_in_no_tree(monkeypatch):
    policy, batch = prepared(llama)
    with_trees(monkeypatch, worth=100.0)
    clean = forward_distinct(policy, batch)
    assert torch.equal(forward_distinct(policy, with_garbage(batch)), clean)


def test_an_update_takes_the_same_step_with_trees_and_without(monkeypatch):
    policy, batch = prepared(llama)
    found = []
    for worth, micro_batch in [(0.0, None), (100.0, None), (100.0, 6), (100.0, 4)]:
        ran = with_trees(monkeypatch, worth)
        there = copy.deepcopy(policy)
        stats = grpo_update(
            there,
            torch.optim.SGD(there.parameters(), lr=0.01),
            batch,
            torch.where(batch.mask, torch.arange(18.0)[:, None] - 8.5, 0).double(),
            objective=partial(token_clip, clip_low=0.2, clip_high=0.2),
            epochs=2,
            minibatches=2,
            generator=seeded(0),
            micro_batch=micro_batch,
        )
        assert bool(ran) == (worth > 0)
        found.append((dict(there.state_dict()), stats.kl_mean, stats.entropy))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_without_enough_to_save_rows_are_run_as_rows(monkeypatch):
    policy, batch = prepared(llama)
    alone = replace(batch, groups=torch.arange(len(batch.groups)))
    ran = with_trees(monkeypatch, worth=prefix_trees.WORTH)
    forward_distinct(policy, alone)
    assert not ran
    longer = torch.cat([torch.full((18, 40), 4), batch.observations], dim=1)
    pad = partial(torch.nn.functional.pad, pad=(40, 0))
    names = ("actions", "logprobs", "rewards", "mask")
    wide = {name: pad(getattr(batch, name)) for name in names}
    discounts = pad(batch.discounts, value=1.0)
    forward_distinct(
        policy, replace(batch, observations=longer, discounts=discounts, **wide)
    )
    assert ran


def test_a_window_that_rows_do_not_fit_into_is_left_to_the_rows():
    model = windowed(8).eval()
    assert takes_trees(model, 7)
    assert not takes_trees(model, 8)


def test_llama_4_scales_by_its_place_among_the_nodes_and_is_left_to_the_rows():
    """Its attention temperature counts nodes, so that it is far along in a tree."""
    torch.manual_seed(0)
    for tuned in (True, False):
        config = Llama4TextConfig(
            vocab_size=20,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            num_local_experts=2,
            no_rope_layers=[1, 0],
            attn_temperature_tuning=tuned,
            hidden_size=16,
            intermediate_size=16,
            intermediate_size_mlp=16,
        )
        assert takes_trees(Llama4ForCausalLM(config).eval(), 10) == (not tuned)


def test_other_attentions_than_eager_and_sdpa_are_not_asked():
    model = llama().eval()
    model.config._attn_implementation = "flash_attention_2"
    assert not takes_trees(model, 10)
    assert not any("trees" in name for name in vars(model))


def test_trees_that_save_nothing_are_not_made(monkeypatch):
    """A tree of 60 rows that share one token would hold 60 x 60 times a row's pairs."""
    model = llama().eval()
    rows = torch.randint(8, (60, 31), generator=seeded(0))
    rows[:, 0] = 1
    zeros = torch.zeros(60, 30)
    batch = Trajectories(
        actions=rows[:, 1:],
        logprobs=zeros,
        rewards=zeros,
        discounts=zeros,
        mask=torch.ones(60, 30, dtype=torch.bool),
        groups=torch.zeros(60, dtype=torch.long),
        observations=rows,
    )

    def never(*rows):
        raise AssertionError("made for nothing")

    monkeypatch.setattr(prefix_trees, "prefix_trees", never)
    monkeypatch.setattr(prefix_trees, "takes_trees", lambda *_: True)
    assert prefix_trees.trees_worth_it(model, batch, 60) is None


def test_a_model_that_cannot_take_the_mask_is_found_out():
    class OnlyRows(torch.nn.Module):
        """As some models do, it makes positions and mask itself, whatever is said."""

        def __init__(self):
            super().__init__()
            self.inside = llama()
            self.config = self.inside.config

        def forward(self, input_ids: Any, use_cache: bool, **tree: Any) -> Any:
            return self.inside(input_ids=input_ids, use_cache=use_cache)

    class Raises(OnlyRows):
        def forward(self, input_ids: Any, use_cache: bool, **tree: Any) -> Any:
            if tree:
                raise TypeError("no such argument")
            return self.inside(input_ids=input_ids, use_cache=use_cache)

    class Hidden(OnlyRows):
        """What it makes of the wrong tokens is little beside what all logits share."""

        def forward(self, input_ids: Any, use_cache: bool, **tree: Any) -> Any:
            output = self.inside(input_ids=input_ids, use_cache=use_cache)
            output.logits = output.logits + 1e6
            return output

    assert takes_trees(llama(), 10)
    assert not takes_trees(OnlyRows(), 10)
    assert not takes_trees(Hidden(), 10)
    assert not takes_trees(Raises(), 10)
