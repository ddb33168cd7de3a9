"""Policies: modules that turn observations [N, T, ...] into logits [N, T, A].

A state is what the policy has seen and an action is a choice of one of A. Nothing else
is asked of a policy, so that the same update trains a table, an MLP or a transformer.

A value function turns the same observations into one number per state, [N, T]. All
three kinds begin at 0 everywhere: a value that has learnt nothing is then no baseline,
rather than a random one, and the first errors that it learns from are the returns.
"""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int, Num, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from rl_notes.prefix_trees import trees_worth_it
from rl_notes.trajectories import Trajectories


class TabularPolicy(nn.Module):
    """One row of logits for every state (policy): pi(a | s) = softmax(logits[s])[a].

    It starts uniform. The only policy that can hold any behaviour whatever, and only
    for worlds whose states can be listed.
    """

    def __init__(
        self, states: int, actions: int, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(states, actions, device=device))

    def forward(self, observations: Int[Tensor, "N T"]) -> Float[Tensor, "N T A"]:
        """Look the states up."""
        return self.logits[_state_numbers(observations)]


class MLPPolicy(nn.Module):
    """A multilayer perceptron on one observation at a time.

    Observations are vectors of `inputs` numbers, or integers below `inputs`, which
    are one-hot encoded. The last layer starts small: the first policy is almost
    uniform.
    """

    def __init__(
        self,
        inputs: int,
        actions: int,
        *,
        hidden: tuple[int, ...] = (64, 64),
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.inputs = inputs
        widths = [inputs, *hidden, actions]
        self.layers = _layers(widths, last_gain=0.01, generator=generator).to(device)

    def forward(self, observations: Num[Tensor, "N T ..."]) -> Float[Tensor, "N T A"]:
        """Apply the network to every observation by itself."""
        dtype = next(self.parameters()).dtype
        logits: Tensor = self.layers(_vectors(observations, self.inputs).to(dtype))
        return logits


class TransformerPolicy(nn.Module):
    """A causal language model: the state is the prefix, the action is the next token.

    `model` is any causal language model of `transformers`. Its logits are divided by
    `temperature` (temperature), which is part of the policy: whoever samples from this
    policy and whoever scores with it see the same distribution.

    Rows are padded on the right, so that no position sees padding before its row ends.
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(
                f"temperature must be positive, but it is {temperature}. For the most "
                "likely token use a small one, such as 1e-3."
            )
        self.model = model
        self.temperature = temperature

    def forward(
        self, observations: Int[Tensor, "N T"], **tree: Tensor
    ) -> Float[Tensor, "N T A"]:
        """Logits of the next token after each prefix `observations[:, : t + 1]`.

        Unless positions and a mask say that they are nodes of a tree: `prefix_trees`.
        """
        output = self.model(input_ids=observations, use_cache=False, **tree)
        logits = in_float32(output.logits)
        # By 1 nothing changes, and in a large vocabulary to divide is dear.
        return logits if self.temperature == 1 else logits / self.temperature


class TabularValue(nn.Module):
    """One number for every state: V(s) = values[s]. It starts at 0."""

    def __init__(self, states: int, *, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(states, device=device))

    def forward(self, observations: Int[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """Look the states up."""
        return self.values[_state_numbers(observations)]


class MLPValue(nn.Module):
    """A multilayer perceptron on one observation at a time, to one number.

    Observations are those of `MLPPolicy`. The last layer starts at zero.
    """

    def __init__(
        self,
        inputs: int,
        *,
        hidden: tuple[int, ...] = (64, 64),
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.inputs = inputs
        widths = [inputs, *hidden, 1]
        self.layers = _layers(widths, last_gain=0.0, generator=generator).to(device)

    def forward(self, observations: Num[Tensor, "N T ..."]) -> Float[Tensor, "N T"]:
        """Apply the network to every observation by itself."""
        dtype = next(self.parameters()).dtype
        values: Tensor = self.layers(_vectors(observations, self.inputs).to(dtype))
        return values[..., 0]


class TransformerValue(nn.Module):
    """A causal language model that says one number after each prefix.

    V(s_t) is read where the policy's logits for a_t are: at the last token of the
    prefix `observations[:, : t + 1]`, before a_t is seen. There a linear head reads
    what the model's own output layer would read: the last hidden states, after the
    final norm.

    `model` is any causal language model of `transformers`. All of it but its output
    layer becomes part of the value, and it is not copied: fitting the value of a
    policy's own model changes that policy. For a value by itself give it another
    model, such as `copy.deepcopy(model)`.

    The head starts at zero, on the model's device and in its dtype. The first values
    are then 0, and the first step changes the head alone: errors reach the model
    through the head's weights, so that a random head would first spoil what the model
    knows.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        language_model = cast(Any, bare(model))  # the layers of an adapter are in it
        output = language_model.get_output_embeddings().weight  # [A, width]
        self.model: nn.Module = language_model.base_model
        if self.model is language_model:
            raise ValueError(
                f"{type(language_model).__name__} does not tell its body from its "
                "output layer, so that no head can be put in the output layer's place."
            )
        self.head = nn.Linear(
            output.shape[1], 1, device=output.device, dtype=output.dtype
        )
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, observations: Int[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """The value of each prefix `observations[:, : t + 1]`."""
        output = self.model(input_ids=observations, use_cache=False)
        values: Tensor = self.head(output.last_hidden_state)
        return in_float32(values[..., 0])


def _layers(
    widths: list[int], *, last_gain: float, generator: torch.Generator
) -> nn.Sequential:
    """Linear layers of these widths with tanh between them, on the CPU."""
    layers: list[nn.Module] = []
    for index, (width_in, width_out) in enumerate(pairwise(widths)):
        last = index == len(widths) - 2
        layer = nn.Linear(width_in, width_out, device="cpu")
        gain = last_gain if last else math.sqrt(2)
        nn.init.orthogonal_(layer.weight, gain=gain, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


def _state_numbers(observations: Tensor) -> Tensor:
    """Integers, one per state; refuse anything else."""
    if observations.is_floating_point() or observations.dim() != 2:
        raise ValueError(
            "A table looks states up by their number, an integer in each cell [N, T], "
            f"but the observations are {observations.dtype} of shape "
            f"{tuple(observations.shape)}. For vectors use MLPPolicy or MLPValue."
        )
    return observations


def _vectors(observations: Tensor, inputs: int) -> Tensor:
    """Vectors of floats as they are; numbers of states one-hot."""
    shape = tuple(observations.shape)
    if observations.is_floating_point():
        if observations.dim() != 3 or shape[-1] != inputs:
            raise ValueError(
                f"The network takes vectors of {inputs} numbers, [N, T, {inputs}], but "
                f"the observations have shape {list(shape)}. For images, flatten them: "
                "gymnasium.wrappers.FlattenObservation."
            )
        return observations
    if observations.dim() != 2:
        raise ValueError(
            "Integers are taken for the numbers of states, one in each cell [N, T], "
            f"but the observations are {observations.dtype} of shape {list(shape)}. If "
            "they are vectors or images, make floats of them: "
            "gymnasium.wrappers.FlattenObservation and DtypeObservation."
        )
    if observations.numel() > 0 and int(observations.max()) >= inputs:
        raise ValueError(
            f"State {int(observations.max())} was seen, but the network knows the "
            f"states 0 to {inputs - 1} only."
        )
    return nn.functional.one_hot(observations.long(), inputs)


def action_logprobs(
    policy: nn.Module, trajectories: Trajectories
) -> Float[Tensor, "N T"]:
    """Log-probability of every stored action: log pi(a_t | s_t), 0 where mask is False.

    Its gradient is what the policy gradient weighs (log-derivative). The sum over a row
    is the log-probability of the whole answer or episode, given its start (sequence).
    The last observation s_T is left out: no action was taken there.
    """
    logprobs = forward_distinct(policy, trajectories).log_softmax(-1)
    return taken_logprobs(logprobs, trajectories)


@torch.no_grad()
def rescored(policy: nn.Module, trajectories: Trajectories) -> Trajectories:
    """Recomputed old log-probabilities: what another policy sampled, as ours.

    The same trajectories with log pi(a_t | s_t) of this policy in `logprobs`.

    An update refuses trajectories that its policy has not sampled. To rescore them is
    to say that this is meant: a late, a rounded or a restricted copy has sampled
    (off-policy). The copy's own log-probabilities stay in the trajectories that were
    given, and a weight between the two is what makes up for it:

        own = rescored(policy, batch)
        ratio = importance_ratio(own.logprobs, batch.logprobs)  # [N, T]
        weights = truncated_weights(ratio, cap=2)
        grpo_update(policy, optimizer, own, weights * advantages, ...)

    Without weights it is training on somebody else's answers as if they were one's own.
    An action that this policy excludes is refused.
    """
    return replace(trajectories, logprobs=action_logprobs(policy, trajectories))


def forward_distinct(
    policy: nn.Module,
    trajectories: Trajectories,
    *,
    weights: dict[str, Tensor] | None = None,
) -> Float[Tensor, "S A"]:
    """Forward pass without duplicates: the logits at every step, row after row.

    What several rows begin with is run once, which changes nothing but time and
    rounding. The answers of a group share their prompt and often more. Where it saves
    enough, and the policy is a language model that can take it, they are run as
    `prefix_trees`. Elsewhere rows that are alike, word for word, are run once for all.
    Logits in half precision are made float32.

    Args:
        policy: Any policy.
        trajectories: Whose steps are meant. S is how many the mask holds.
        weights: Put in the place of the policy's own for this once.
    """

    def run(seen: Tensor, **tree: Tensor) -> Tensor:
        if weights is None:
            return in_float32(policy(seen, **tree))
        return in_float32(functional_call(policy, weights, (seen,), tree))

    rows = trajectories.trimmed()
    seen, trees = states(rows), None
    # On the CPU: a card would sort the rows column by column, and wait after each.
    kinds, kind = torch.unique(seen.cpu(), dim=0, return_inverse=True)
    if isinstance(policy, TransformerPolicy):
        trees = trees_worth_it(policy.model, rows, len(kinds))
    if trees is not None:
        logits = run(trees.tokens, **trees.arguments(_dtype(policy)))
        where = trees.node
    else:
        alike = len(kinds) < len(seen)
        logits = run(kinds.to(seen.device) if alike else seen)
        row = kind if alike else torch.arange(len(seen), device="cpu")
        row = row.to(seen.device)
        step = torch.arange(seen.shape[1], device=seen.device)
        where = row[:, None] * seen.shape[1] + step
    return logits.flatten(0, 1).index_select(0, where[rows.mask])


def _dtype(policy: nn.Module) -> torch.dtype:
    """The number format of the weights."""
    return next(w.dtype for w in policy.parameters() if w.is_floating_point())


def in_float32(logits: Tensor) -> Tensor:
    """Logits in half precision as float32, others as they are.

    What is computed from them does not round twice then.
    """
    return logits.float() if torch.finfo(logits.dtype).bits < 32 else logits


def rounding_of_logprobs(policy: nn.Module, dtype: torch.dtype) -> float:
    """How far log-probabilities of one policy may differ in the mean by rounding.

    0.001; for a policy in half precision the square root of its epsilon, as it is
    sampled with a cache and scored without, and differs by its epsilon times the size
    of the logits. A temperature below 1 divides these, and so what they differ by.
    `dtype` is that of the log-probabilities.
    """
    formats = [w.dtype for w in policy.parameters() if w.is_floating_point()]
    epsilon = max(torch.finfo(each).eps for each in [dtype, *formats])
    temperature = min(1.0, float(getattr(policy, "temperature", 1.0)))
    return max(1e-3, math.sqrt(epsilon) / temperature if epsilon > 1e-4 else 0.0)


def bare(model: nn.Module) -> nn.Module:
    """The language model inside what `torch.compile` or an adapter has wrapped."""
    inside = getattr(model, "_orig_mod", model)
    unwrap = getattr(inside, "get_base_model", None)
    return cast(nn.Module, unwrap()) if unwrap else cast(nn.Module, inside)


def taken_logprobs(
    logprobs: Float[Tensor, "S A"], trajectories: Trajectories
) -> Float[Tensor, "N T"]:
    """Gather the log-probability of the action at each step from those of all actions.

    0 where the mask is False. They are given step after step, see `forward_distinct`.
    """
    mask = trajectories.mask
    taken = logprobs.gather(-1, trajectories.actions[mask][:, None])[:, 0]
    return taken.new_zeros(mask.shape).masked_scatter(mask, taken)


def chosen_logprobs(
    logprobs: Float[Tensor, "N T A"],
    actions: Int[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
) -> Float[Tensor, "N T"]:
    """Gather the log-probability of the action at each step from those of all actions.

    0 where the mask is False. They are given for every column, step or not, as a policy
    gives them; `taken_logprobs` takes those of the steps alone.
    """
    # What is stored beyond the mask need not be a valid action: gather must not see it.
    actions = torch.where(mask, actions, 0)[..., None]
    chosen = logprobs.gather(-1, actions)[..., 0]
    return torch.where(mask, chosen, 0)


def states(trajectories: Trajectories) -> Shaped[Tensor, "N T ..."]:
    """What the policy saw at each step: s_0 ... s_{T-1}, and 0 after a row's end.

    A prompt before the first step is seen; what is stored after the last need not be
    an observation at all.
    """
    return _before(trajectories.lengths, trajectories.observations[:, :-1])


def state_values(
    value: nn.Module, trajectories: Trajectories
) -> Float[Tensor, "N T_plus_1"]:
    """Value predictions V(s_0) ... V(s_L) of every row, and 0 beyond.

    In a row of L steps s_L is the state after the last action, from which a row that
    was cut is bootstrapped: see `gae`. It is one state more than the policy saw; to a
    language model, one token more. What is stored beyond it is never read.
    """
    observations, ends = trajectories.observations, trajectories.lengths + 1
    values = value(_before(ends, observations))
    if values.shape != observations.shape[:2]:
        raise ValueError(
            f"The value function gave shape {tuple(values.shape)}, but one number per "
            f"state is needed: {list(observations.shape[:2])}."
        )
    return _before(ends, values)


def _before(ends: Int[Tensor, " N"], x: Shaped[Tensor, "N K ..."]) -> Tensor:
    """Keep x before column ends[n] of each row n; 0 from there on."""
    inside = torch.arange(x.shape[1], device=x.device) < ends[:, None]
    shape = inside.shape + (1,) * (x.dim() - 2)
    return torch.where(inside.view(shape), x, 0)
