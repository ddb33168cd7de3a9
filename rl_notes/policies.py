"""Policies: modules that turn observations [N, T, ...] into logits [N, T, A].

A state is what the policy has seen and an action is a choice of one of A. Nothing else
is asked of a policy, so that the same update trains a table, an MLP or a transformer.
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor, nn

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
        return self.logits[observations]


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
        layers: list[nn.Module] = []
        for index, (width_in, width_out) in enumerate(pairwise(widths)):
            last = index == len(hidden)
            layer = nn.Linear(width_in, width_out, device="cpu")
            gain = 0.01 if last else math.sqrt(2)
            nn.init.orthogonal_(layer.weight, gain=gain, generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer] if last else [layer, nn.Tanh()]
        self.layers = nn.Sequential(*layers).to(device)

    def forward(self, observations: Num[Tensor, "N T ..."]) -> Float[Tensor, "N T A"]:
        """Apply the network to every observation by itself."""
        if not observations.is_floating_point():
            observations = nn.functional.one_hot(observations.long(), self.inputs)
        dtype = next(self.parameters()).dtype
        logits: Tensor = self.layers(observations.to(dtype))
        return logits


class TransformerPolicy(nn.Module):
    """A causal language model: the state is the prefix, the action is the next token.

    `model` is any causal language model of `transformers`. Its logits are divided by
    `temperature`, which is part of the policy: whoever samples from this policy and
    whoever scores with it see the same distribution.

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

    def forward(self, observations: Int[Tensor, "N T"]) -> Float[Tensor, "N T A"]:
        """Logits of the next token after each prefix `observations[:, : t + 1]`."""
        logits: Tensor = self.model(input_ids=observations, use_cache=False).logits
        return logits / self.temperature


def action_logprobs(
    policy: nn.Module, trajectories: Trajectories
) -> Float[Tensor, "N T"]:
    """Log-probability of every stored action: log pi(a_t | s_t), 0 where mask is False.

    Its gradient is what the policy gradient weighs (log-derivative). The last
    observation s_T is left out: no action was taken there.
    """
    logits = policy(states(trajectories))  # [N, T, A]
    # What is stored beyond the mask need not be a valid action: gather must not see it.
    actions = torch.where(trajectories.mask, trajectories.actions, 0)
    logprobs = logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
    return torch.where(trajectories.mask, logprobs, 0)


def states(trajectories: Trajectories) -> Shaped[Tensor, "N T ..."]:
    """What the policy saw at each step: s_0 ... s_{T-1}, and 0 after a row's end.

    A prompt before the first step is seen; what is stored after the last need not be
    an observation at all.
    """
    observations = trajectories.observations[:, :-1]
    steps = torch.arange(observations.shape[1], device=observations.device)
    inside = steps < trajectories.lengths[:, None]
    shape = inside.shape + (1,) * (observations.dim() - 2)
    return torch.where(inside.view(shape), observations, 0)


def entropy(logits: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
    """Entropy of the policy: H(pi(. | s)) = - sum_a pi(a | s) log pi(a | s), in nats.

    Between 0 (one action is certain) and log A (all are equally likely).
    """
    logprobs = logits.log_softmax(-1)
    probabilities = logprobs.exp()
    # An impossible action has log-probability -inf, and 0 * -inf is NaN: use where,
    # and before the product, or the gradient is NaN all the same.
    return -(probabilities * torch.where(probabilities > 0, logprobs, 0)).sum(-1)


def sample(
    logits: Float[Tensor, "N A"], uniforms: Float[Tensor, " N"]
) -> Int[Tensor, " N"]:
    """Draw one action per row by inverting the cumulative distribution.

    a = min {a : pi(1 | s) + ... + pi(a | s) > u}, with u uniform in [0, 1).

    One number in, one action out: the draw of a row depends on no other row.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # Rounding may leave the last sum below 1: a u above it would pick nothing.
    cumulative = cumulative / cumulative[:, -1:]
    return (cumulative <= uniforms.double()[:, None]).sum(-1)
