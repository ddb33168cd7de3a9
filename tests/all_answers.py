"""A language model of three tokens and three steps: every answer can be listed."""

from collections.abc import Sequence

import torch
from batches import seeded
from language_models import tiny

from rl_notes.policies import TransformerPolicy, action_logprobs
from rl_notes.trajectories import Trajectories

PROMPT_IDS, END, STEPS = [1, 0], 2, 3


def all_answers(written=()):
    if len(written) == STEPS or written[-1:] == (END,):
        return [written]
    return [answer for token in range(3) for answer in all_answers((*written, token))]


ANSWERS = all_answers()
SCORES = dict(
    zip(ANSWERS, torch.randn(len(ANSWERS), generator=seeded(5)).tolist(), strict=True)
)


def three_tokens(seed=0, temperature=1.5):
    model = tiny(vocabulary=3, end=END, scale=20, seed=seed)
    return TransformerPolicy(model, temperature)


def probability(policy, answer):
    """The product of its tokens' probabilities, from one forward pass for each."""
    product = torch.ones((), dtype=torch.float64)
    for step, token in enumerate(answer):
        prefix = torch.tensor([[*PROMPT_IDS, *answer[:step]]])
        product = product * policy(prefix)[0, -1].softmax(-1)[token]
    return product


def expected_reward(policy):
    return sum(probability(policy, answer) * SCORES[answer] for answer in ANSWERS)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def gradient(policy, scalar):
    return flat(torch.autograd.grad(scalar, policy.parameters()))


def exact_gradient(policy):
    return gradient(policy, expected_reward(policy))


def rows_of(policy, answers: Sequence[tuple[int, ...]]) -> Trajectories:
    """A batch that holds these answers, as if this policy had written them."""
    ends = len(PROMPT_IDS) + torch.tensor([len(answer) for answer in answers])[:, None]
    texts = [[*PROMPT_IDS, *answer, *[0] * STEPS] for answer in answers]
    text = torch.tensor([line[: len(PROMPT_IDS) + STEPS] for line in texts])
    t = torch.arange(1, text.shape[1])
    mask = (len(PROMPT_IDS) <= t) & (t < ends)
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    batch = Trajectories(
        actions=text[:, 1:],
        logprobs=zeros,
        rewards=zeros,
        discounts=(t < ends - 1).double(),
        mask=mask,
        groups=torch.zeros(len(answers), dtype=torch.long),
        observations=text,
    )
    with torch.no_grad():
        logprobs = action_logprobs(policy, batch)
    return Trajectories(**{**vars(batch), "logprobs": logprobs})
