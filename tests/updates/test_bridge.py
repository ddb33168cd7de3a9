"""State = prefix, action = token: the language model as any other environment."""

from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from all_answers import (
    ANSWERS,
    END,
    PROMPT_IDS,
    SCORES,
    STEPS,
    exact_gradient,
    expected_reward,
    flat,
    gradient,
    probability,
    three_tokens,
)
from batches import seeded
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import SyncVectorEnv
from language_models import exact
from small_policies import its_own
from torch import nn

from rl_notes.advantages import returns_to_go
from rl_notes.divergences import k1, k2, k3, kl_exact
from rl_notes.language import tokenizer as little
from rl_notes.language.arithmetic import accuracy_reward, is_right, questions
from rl_notes.language.generation import generate
from rl_notes.language.models import load
from rl_notes.policies import TransformerPolicy, action_logprobs, states
from rl_notes.rollouts import rollout
from rl_notes.trajectories import Trajectories, with_kl_penalty, with_scores
from rl_notes.updates import reinforce_update


class Writing(gymnasium.Env):
    """One question. A step appends a token, the verifier judges the finished text.

    The observation is the prefix, filled up with -1, which is no token.
    """

    def __init__(self, question, tokenizer, *, limit, width):
        self.question, self.tokenizer, self.limit = question, tokenizer, limit
        self.prompt = little.encode(tokenizer, [question])[0]
        self.action_space = Discrete(len(tokenizer))
        self.observation_space = Box(-1, len(tokenizer) - 1, (width,), np.int64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.written = []
        return self.prefix(), {}

    def step(self, action):
        self.written.append(int(action))
        ended = action == self.tokenizer.eos_token_id
        over = bool(ended or len(self.written) == self.limit)
        text = little.answer_text(self.tokenizer, self.written)
        reward = float(over and is_right(text, self.question))
        return self.prefix(), reward, over, False, {}

    def prefix(self):
        text = self.prompt + self.written
        padding = self.observation_space.shape[0] - len(text)
        return np.array(text + [-1] * padding)


class LastLogits(nn.Module):
    """What the policy says after each padded prefix [N, 1, W], without a cache."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, observations):
        prefixes = observations[:, 0]
        last = (prefixes >= 0).sum(dim=1) - 1
        logits = self.policy(prefixes.clamp(min=0))
        return logits[torch.arange(len(prefixes)), last][:, None]


def test_generic_loop_and_generate_agree():
    model, tokenizer = load("sft")
    policy = TransformerPolicy(exact(model), temperature=0.8)
    limit, group_size, seed = 18, 2, 7
    asked = questions(20, held_out=False, generator=seeded(0))
    rows = [question for question in asked for _ in range(group_size)]
    prompts = little.encode(tokenizer, asked)
    width = max(map(len, prompts)) + limit
    env = SyncVectorEnv(
        [
            partial(Writing, question, tokenizer, limit=limit, width=width)
            for question in rows
        ]
    )
    slow = rollout(
        env,
        LastLogits(policy),
        episodes=len(rows),
        discount=1.0,
        generator=seeded(seed),
    )
    # `rollout` seeds the draws of its one round with the first of these two numbers.
    draws = torch.randint(2**31 - 1, (1, 2), generator=seeded(seed))[0, 0]
    fast = generate(
        policy,
        prompts,
        group_size=group_size,
        max_new_tokens=limit,
        generator=seeded(int(draws)),
    )
    texts = [
        little.answer_text(tokenizer, row[mask].tolist())
        for row, mask in zip(fast.actions, fast.mask, strict=True)
    ]
    scores = torch.tensor(accuracy_reward(rows, texts), dtype=torch.float64)
    fast = with_scores(fast, scores)

    assert 0.1 < float(scores.mean()) < 0.9
    ended = torch.tensor([END in row.tolist() for row in fast.actions])
    assert 0.1 < float(ended.double().mean()) < 0.95  # the others met the limit
    assert slow.mask.sum(dim=1).tolist() == fast.mask.sum(dim=1).tolist()
    for name in ("actions", "rewards", "discounts"):
        one, other = getattr(slow, name), getattr(fast, name)
        assert torch.equal(one[slow.mask], other[fast.mask]), name
    torch.testing.assert_close(
        slow.logprobs[slow.mask], fast.logprobs[fast.mask], rtol=0, atol=1e-10
    )
    # Each state of the one is the prefix of the other.
    for row in range(len(rows)):
        states = slow.observations[row][: int(slow.mask[row].sum()) + 1]
        start = len(prompts[row // group_size])
        for step, prefix in enumerate(states):
            expected = fast.observations[row, : start + step]
            assert torch.equal(prefix[prefix >= 0], expected)


# A vocabulary of three tokens and three steps: every answer can be listed.


@pytest.fixture
def policy():
    return three_tokens()


def one_row(answer):
    """A batch that holds this one answer."""
    text = torch.tensor([[*PROMPT_IDS, *answer]])
    t = torch.arange(text.shape[1] - 1)
    zeros = torch.zeros(1, len(t), dtype=torch.float64)
    return Trajectories(
        actions=text[:, 1:],
        logprobs=zeros,
        rewards=zeros,
        discounts=(t < len(t) - 1).double()[None],
        mask=(t >= len(PROMPT_IDS) - 1)[None],
        groups=torch.zeros(1, dtype=torch.long),
        observations=text,
    )


def estimate(policy, batch, advantages):
    """The gradient that `reinforce_update` climbs; the weights stay as they are."""
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    batch = its_own(policy, batch)
    advantages = torch.as_tensor(advantages, dtype=torch.float64)
    reinforce_update(policy, optimizer, batch, advantages[:, None] * batch.mask)
    return -flat([weight.grad for weight in policy.parameters()])


def estimates(policy, baseline):
    """Probability and one-row estimate of every answer: [M] and [M, weights]."""
    with torch.no_grad():
        chances = [probability(policy, answer) for answer in ANSWERS]
    rows = [
        estimate(policy, one_row(answer), [SCORES[answer] - baseline])
        for answer in ANSWERS
    ]
    return torch.stack(chances), torch.stack(rows)


def test_all_answers_are_listed(policy):
    assert len(ANSWERS) == len(set(ANSWERS)) == 1 + 2 * 1 + 4 * 3
    chances, _ = estimates(policy, 0.0)
    assert float(chances.sum()) == pytest.approx(1, abs=1e-12)
    assert float(chances.min()) > 0.005
    assert float(chances.max()) < 0.5


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_expectation_of_the_estimator_is_the_exact_gradient(policy, baseline):
    exactly = exact_gradient(policy)
    chances, rows = estimates(policy, baseline)
    assert float(exactly.norm()) > 0.1
    torch.testing.assert_close(chances @ rows, exactly, rtol=0, atol=1e-10)


def test_sampled_estimate_approaches_the_exact_gradient(policy):
    """N = 20,000 answers. The estimate's exact standard deviation (all coordinates
    together) is known from the enumeration; three of them are allowed, and they are
    less than a tenth of the gradient."""
    n = 20_000
    batch = generate(
        policy, [PROMPT_IDS], group_size=n, max_new_tokens=STEPS, generator=seeded(1)
    )
    written = [
        tuple(row[mask].tolist())
        for row, mask in zip(batch.actions, batch.mask, strict=True)
    ]
    scores = torch.tensor([SCORES[answer] for answer in written], dtype=torch.float64)
    exactly = exact_gradient(policy)
    chances, rows = estimates(policy, 0.0)
    variance = chances @ (rows - exactly).square().sum(dim=1)
    allowed = 3 * float(variance / n) ** 0.5
    assert allowed < 0.1 * float(exactly.norm())
    error = estimate(policy, batch, scores) - exactly
    assert 0 < float(error.norm()) < allowed
    value = float(expected_reward(policy).detach())
    spread = float(chances @ torch.tensor(list(SCORES.values())).double().square())
    assert abs(float(scores.mean()) - value) < 5 * (spread / n) ** 0.5


# A reference to stay close to: what the estimates of the KL do to whole answers


@pytest.fixture
def reference():
    return three_tokens(seed=1, temperature=1.0)


def mean_over_answers(policy, one_answer):
    """The exact mean over all answers of what `one_answer(row)` gives for each."""
    with torch.no_grad():
        chances = [probability(policy, answer) for answer in ANSWERS]
    return sum(
        chance * one_answer(one_row(answer))
        for chance, answer in zip(chances, ANSWERS, strict=True)
    )


def sequence_kl(policy, reference):
    """KL(policy || reference) of whole answers, as a function of the policy."""
    return sum(
        chance * (chance / probability(reference, answer).detach()).log()
        for answer in ANSWERS
        for chance in [probability(policy, answer)]
    )


def in_the_reward(policy, reference, weigh):
    """Where a reward of k1 per token leads, weighed by `weigh(row with rewards)`."""

    def one_answer(row):
        logprobs = action_logprobs(policy, row)
        rewards = k1(logprobs, action_logprobs(reference, row)).detach()
        weights = weigh(replace(row, rewards=rewards))
        return gradient(policy, (logprobs * weights).sum())

    return mean_over_answers(policy, one_answer)


def in_the_loss(policy, reference, estimate):
    def one_answer(row):
        theirs = action_logprobs(reference, row).detach()
        return gradient(policy, estimate(action_logprobs(policy, row), theirs).sum())

    return mean_over_answers(policy, one_answer)


def state_by_state(policy, reference, divergence):
    """The gradient of a divergence at each state met, the way there held fixed."""

    def one_answer(row):
        seen = states(row)
        per_state = divergence(policy(seen), reference(seen).detach())
        return gradient(policy, per_state[row.mask].sum())

    return mean_over_answers(policy, one_answer)


def test_k1_in_the_reward_has_the_gradient_of_the_kl_of_answers(policy, reference):
    kl = sequence_kl(policy, reference)
    exactly = gradient(policy, kl)
    assert float(kl.detach()) > 0.1
    found = in_the_reward(policy, reference, returns_to_go)
    torch.testing.assert_close(found, exactly, rtol=0, atol=1e-10)
    # What follows an action is part of it: less than that is another gradient.
    alone = in_the_reward(policy, reference, lambda row: row.rewards)
    assert float((alone - exactly).norm()) > 0.1 * float(exactly.norm())


def penalised(policy, reference, row, *, beta):
    """The row as it is rewarded in RLHF: its score, less what the reference costs."""
    written = tuple(row.actions[0][row.mask[0]].tolist())
    score = torch.tensor([SCORES[written]], dtype=torch.float64)
    logprobs = action_logprobs(policy, row).detach()
    scored = with_scores(replace(row, logprobs=logprobs), score)
    return with_kl_penalty(scored, action_logprobs(reference, row), beta=beta)


def test_the_penalised_reward_leads_up_the_score_less_the_kl(policy, reference):
    """The objective of RLHF, exactly: E[score] - beta KL(policy || reference)."""
    beta = 0.7
    objective = expected_reward(policy) - beta * sequence_kl(policy, reference)

    def one_answer(row):
        weights = returns_to_go(penalised(policy, reference, row, beta=beta))
        return gradient(policy, (action_logprobs(policy, row) * weights).sum())

    found = mean_over_answers(policy, one_answer)
    torch.testing.assert_close(found, gradient(policy, objective), rtol=0, atol=1e-10)
    mean = mean_over_answers(
        policy, lambda row: penalised(policy, reference, row, beta=beta).rewards.sum()
    )
    assert float(mean) == pytest.approx(float(objective.detach()), abs=1e-12)


def test_in_the_loss_the_estimates_see_each_state_by_itself(policy, reference):
    nothing = in_the_loss(policy, reference, k1)
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), rtol=0, atol=1e-10)
    reverse = state_by_state(policy, reference, kl_exact)
    forward = state_by_state(policy, reference, lambda p, q: kl_exact(q, p))
    for estimate, expected in ((k2, reverse), (k3, forward)):
        found = in_the_loss(policy, reference, estimate)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    # k1 in the reward, of its own step alone, is k2 in the loss.
    alone = in_the_reward(policy, reference, lambda row: row.rewards)
    torch.testing.assert_close(alone, reverse, rtol=0, atol=1e-10)
    exactly = gradient(policy, sequence_kl(policy, reference))
    for wrong in (reverse, forward):
        assert float((wrong - exactly).norm()) > 0.1 * float(exactly.norm())
