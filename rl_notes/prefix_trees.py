"""Answers that share their prompt share its computation: rows as trees of prefixes."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from rl_notes.trajectories import Trajectories

# Trees are run where they cost at most this share of what their rows cost: where they
# save less, to make them costs as much.
WORTH = 0.8
# A model is asked by trees of rows up to so long.
ASKED = 12
# How far off logits may be at most, as a share of what they would be if a model did not
# know of trees.
NEAR = 1 / 8


@dataclass(frozen=True)
class PrefixTrees:
    """The rows of each group as a tree, each prefix once (shared-prefix attention).

    A node is a prefix that some row of the group begins with, and holds its last token.
    It stands at that token's place in the row, and attends to itself and its ancestors,
    the shorter prefixes. So a causal language model says at a node what it would say
    after that prefix, and a prompt is read once for all of its answers, forwards and
    backwards. The trees are padded to the same number of nodes; what pads attends to
    itself alone.

    Attributes:
        tokens: The last token of each node.
        positions: Its place in the row.
        ancestors: Whether the second node is the first, or a shorter prefix of it.
        node: Where each row's prefix `[: t + 1]` is found among the nodes of all trees,
            tree after tree. 0 from the row's end on.
    """

    tokens: Int[Tensor, "G S"]
    positions: Int[Tensor, "G S"]
    ancestors: Bool[Tensor, "G S S"]
    node: Int[Tensor, "N T"]

    def arguments(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What a language model of transformers is told, beside the tokens.

        The mask is what it adds to its attention scores, [G, 1, S, S]: 0 for an
        ancestor, and the least number of this type for all others.
        """
        bias = torch.zeros(self.ancestors.shape, dtype=dtype, device=self.node.device)
        bias.masked_fill_(~self.ancestors, torch.finfo(dtype).min)
        return {"position_ids": self.positions, "attention_mask": bias[:, None]}


def prefix_trees(
    observations: Int[Tensor, "N T"],
    lengths: Int[Tensor, " N"],
    groups: Int[Tensor, " N"],
) -> PrefixTrees:
    """The trees of these rows, one for each group, of tokens before the rows' ends.

    They are on the rows' device. What decides their sizes is found on the CPU: on a
    card each such step waits for the one before.
    """
    device = observations.device
    on_cpu = observations.cpu(), lengths.cpu(), groups.cpu()
    kinds, kind, alike, new = _in_order(*on_cpu)
    inside = kinds[:, 1:] >= 0
    steps = torch.arange(observations.shape[1], device="cpu")
    number = new.flatten().cumsum(0).view(new.shape) - 1
    # A prefix that is not new is the last one in its column that was.
    node = torch.where(new, number, -1).cummax(dim=0).values
    tree, sizes = _sizes(alike, new)
    row, step = new.nonzero(as_tuple=True)  # of each node
    first = (sizes.cumsum(0) - sizes)[tree]  # node of each row's tree
    place = torch.where(inside, node - first[:, None], 0)  # in the tree
    g, s = tree[row], place[row, step]
    count, size = len(sizes), int(sizes.max())
    tokens, positions = kinds.new_zeros(2, count, size)
    tokens[g, s] = kinds[:, 1:][row, step]
    positions[g, s] = step
    at = torch.where(inside, tree[:, None] * size + place, 0)[kind]
    # Where each node's ancestors are; one place more for those it has not.
    before = torch.where(steps <= step[:, None], place[row], size)
    found = torch.zeros(len(row), size + 1, dtype=torch.bool, device=device)
    found.scatter_(1, before.to(device), True)
    ancestors = torch.eye(size, dtype=torch.bool, device=device).repeat(count, 1, 1)
    ancestors.flatten(0, 1)[(g * size + s).to(device)] = found[:, :size]
    return PrefixTrees(
        tokens.to(device), positions.to(device), ancestors, at.to(device)
    )


def _in_order(
    observations: Int[Tensor, "N T"],
    lengths: Int[Tensor, " N"],
    groups: Int[Tensor, " N"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows, each once, so that those that begin alike are below one another.

    Returns:
        Group and tokens of each, -1 from its end on; which of them each row is; what is
        the same in the row above; and which steps are nodes: prefixes not seen above.
    """
    steps = torch.arange(observations.shape[1], device=observations.device)
    inside = steps < lengths[:, None]
    rows = torch.cat([groups[:, None], torch.where(inside, observations, -1)], dim=1)
    kinds, kind = torch.unique(rows, dim=0, return_inverse=True)
    alike = torch.zeros_like(kinds, dtype=torch.bool)
    alike[1:] = kinds[1:] == kinds[:-1]
    known = alike.cumprod(dim=1)[:, 1:].bool()  # as in the row above, from its start on
    return kinds, kind, alike, (kinds[:, 1:] >= 0) & ~known


def _sizes(
    alike: Bool[Tensor, "K T_plus_1"], new: Bool[Tensor, "K T"]
) -> tuple[Int[Tensor, " K"], Int[Tensor, " G"]]:
    """The tree of each row, and how many nodes each tree has."""
    tree = (~alike[:, 0]).cumsum(0) - 1
    sizes = new.new_zeros(int(tree[-1]) + 1, dtype=torch.long)
    return tree, sizes.index_add(0, tree, new.sum(dim=1))


def trees_worth_it(
    model: nn.Module,
    trajectories: Trajectories,
    kinds: int,
) -> PrefixTrees | None:
    """The trees of these rows if the model takes them and they cost little enough.

    That is at most `WORTH` of what the rows would cost, if so many are not alike.
    Counted are multiplications: of a token about 12 width^2 in each layer, and of a
    pair of tokens in the attention 4 width.
    """
    groups, longest = trajectories.groups.cpu(), trajectories.mask.shape[1]
    if kinds <= len(set(groups.tolist())) or not takes_trees(model, longest):
        return None
    width = int(text_config(model).hidden_size)

    def cost(batch: int, long: int) -> float:
        return batch * (long + long**2 / (3 * width))

    rows = trajectories.observations[:, :-1], trajectories.lengths
    on_cpu = *(x.cpu() for x in rows), groups
    # To make trees takes memory, nodes times nodes: these may be too large to be made.
    sizes = _sizes(*_in_order(*on_cpu)[2:])[1]
    cheaper = cost(len(sizes), int(sizes.max())) <= WORTH * cost(kinds, longest)
    return prefix_trees(*rows, trajectories.groups) if cheaper else None


def takes_trees(model: nn.Module, longest: int) -> bool:
    """Whether a language model can be run on trees of rows up to this length.

    A window that a row does not fit into would be the row's own, and not the mask's.
    Llama 4 scales what stands far behind by where it stands among the nodes (attention
    temperature), and other attentions than eager and sdpa take no such mask. And
    whatever else a model does with positions and masks, it is asked once whether
    two little trees give what their rows give, and what it answered is kept with it.
    """
    text = text_config(model)
    if text is None:
        return False
    for name in ("sliding_window", "attention_chunk_size", "window_size"):
        window = getattr(text, name, None)
        if window is not None and longest >= int(window):
            return False
    attention = getattr(text, "_attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):
        return False
    if getattr(text, "attn_temperature_tuning", False):
        return False
    asked: dict[str, Any] = vars(model)
    steps = min(longest, ASKED)
    how = f"_takes_trees_{attention}_{model.training}_{steps}"
    if how not in asked:
        asked[how] = _gives_the_same(model, int(text.vocab_size), steps)
    return bool(asked[how])


@torch.no_grad()
def _gives_the_same(model: nn.Module, vocabulary: int, steps: int) -> bool:
    """Whether two little trees give the logits of their rows, up to rounding.

    In half precision rounding may hide what a model makes of the wrong tokens. So the
    logits must also be much nearer to those of the rows than if the nodes were run as
    rows themselves.
    """
    device = next(model.parameters()).device
    dtype = next(w.dtype for w in model.parameters() if w.is_floating_point())
    generator = torch.Generator(device="cpu").manual_seed(0)
    tokens = torch.randint(vocabulary, (6, steps), generator=generator, device="cpu")
    tokens = tokens.to(device)
    groups = torch.tensor([0, 0, 0, 1, 1, 1], device=device)
    tokens[:3, : steps // 2], tokens[3:, :1] = tokens[0, : steps // 2], tokens[3, :1]
    lengths = torch.tensor([steps] * 5 + [max(1, steps - 2)], device=device)
    trees = prefix_trees(tokens, lengths, groups)
    try:
        alone = model(input_ids=tokens, use_cache=False).logits
        at_nodes = model(
            input_ids=trees.tokens, use_cache=False, **trees.arguments(dtype)
        ).logits
        untold = model(input_ids=trees.tokens, use_cache=False).logits
    except Exception:  # whatever a model raises at such a mask: it cannot take it
        return False
    inside = torch.arange(steps, device=device) < lengths[:, None]
    here, wrong = (
        x.flatten(0, 1)[trees.node][inside].float() for x in (at_nodes, untold)
    )
    there = alone[inside].float()
    # Inside, models of the Hub round to float32 at best.
    epsilon = max(torch.finfo(x).eps for x in (alone.dtype, torch.float32))
    allowed = epsilon**0.5 * there.abs().max() / 2
    near = (here - there).norm() <= NEAR * (wrong - there).norm()
    return bool(near & ((here - there).abs() <= allowed).all())


def text_config(model: nn.Module) -> Any:
    """The part of a model's configuration that is about text, or None."""
    config = getattr(model, "config", None)
    ask = getattr(config, "get_text_config", None)
    return ask() if ask else None
