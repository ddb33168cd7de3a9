"""Each checker, with right answers, the mistakes that it names, and nonsense."""

import math
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from rl_notes import exercises

Function = Callable[..., Any]


class Exercise(NamedTuple):
    check: Function
    right: list[Function]
    mistakes: dict[str, Function]
    wrong_shape: Function


# The discounted return


def by_horner(rewards, gamma):
    total = 0.0
    for reward in reversed(rewards):
        total = reward + gamma * total
    return total


def by_numpy(rewards, gamma):
    return np.dot(rewards, gamma ** np.arange(len(rewards)))


def from_one(rewards, gamma):
    return gamma * by_horner(rewards, gamma)


def backwards(rewards, gamma):
    return by_horner(rewards[::-1], gamma)


def linear(rewards, gamma):
    return sum(gamma * t * r for t, r in enumerate(rewards))


# The success rate


def ended_share(episodes):
    return float(np.mean([ended for _, ended in episodes]))


def ended_loop(episodes):
    arrived = 0
    for _, ended in episodes:
        if ended:
            arrived += 1
    return arrived / len(episodes)


def positive_share(episodes):
    return float(np.mean([sum(rewards) > 0 for rewards, _ in episodes]))


def cut_share(episodes):
    return 1 - ended_share(episodes)


def ended_count(episodes):
    return len([1 for _, ended in episodes if ended])


# Action values


def look_ahead(p, r, v, gamma):
    return r + gamma * torch.einsum("sat,t->sa", p, v)


def look_ahead_in_loops(p, r, v, gamma):
    q = r.clone()
    for s, a in np.ndindex(*r.shape):
        q[s, a] += gamma * (p[s, a] * v).sum()
    return q.tolist()


# Value iteration


def solve(p, r, gamma, backup):
    v = torch.zeros(len(r)).double()
    for _ in range(300):
        v = backup(p, r, gamma, v)
    return v


def best_backup(p, r, gamma, v):
    return torch.max(r + gamma * torch.einsum("sat,t->sa", p, v), dim=1).values


def hopeful_backup(p, r, gamma, v):
    return (r + gamma * (p * v).max(dim=2).values).max(dim=1).values


def random_backup(p, r, gamma, v):
    return (r + gamma * p @ v).mean(dim=1)


# The gradient of log pi


def by_autograd(z, a):
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(z.log_softmax(0)[a], z)
    return gradient


def in_closed_form(z, a):
    gradient = -torch.exp(z) / torch.exp(z).sum()
    gradient[a] += 1
    return gradient


def one_logit_only(z, a):
    gradient = torch.zeros_like(z)
    gradient[a] = 1 - z.softmax(0)[a]
    return gradient


def of_the_probability(z, a):
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(z.softmax(0)[a], z)
    return gradient


def logits_for_probabilities(z, a):
    gradient = -z.clone()
    gradient[a] += 1
    return gradient


# Baselines


def leave_one_out(rewards, actions):
    others = [torch.arange(len(rewards)) != n for n in range(len(rewards))]
    return rewards - torch.stack([rewards[other].mean() for other in others])


def per_action(rewards, actions):
    means = {int(a): rewards[actions == a].mean() for a in actions.unique()}
    return rewards - torch.stack([means[int(a)] for a in actions])


# The loss of a text


def by_cross_entropy(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:])


def by_a_loop(logits, ids):
    bets = [logits[t].softmax(0)[ids[t + 1]] for t in range(len(ids) - 1)]
    return -sum(math.log(p) for p in bets) / len(bets)


# The natural step


def by_lagrange(fisher, gradient, radius):
    x = torch.linalg.inv(fisher) @ gradient
    return x / torch.sqrt(x @ fisher @ x) * (2 * radius) ** 0.5


def along_the_gradient(fisher, gradient, radius):
    return gradient * torch.sqrt(2 * radius / (gradient @ fisher @ gradient))


# The mean KL


def by_definition(old, new, mask):
    p = old.softmax(-1)
    kl = (p * (p.log() - new.softmax(-1).log())).sum(-1)
    return kl[mask].sum() / mask.sum()


# The log-probability of an answer


def of(z, a):
    return torch.distributions.Categorical(logits=z).log_prob(a)


def by_categorical(z, a, mask):
    return torch.where(mask, of(z, a), 0).sum(dim=1)


def row_by_row(z, a, mask):
    return torch.stack([of(z[n], a[n])[mask[n]].sum() for n in range(len(a))])


# What the model chose


def by_the_first_end(actions, prompt_length, end):
    mask = torch.zeros(len(actions), dtype=torch.bool)
    for t in range(prompt_length - 1, len(actions)):
        mask[t] = True
        if actions[t] == end:
            break
    return mask


def by_cumulative_sum(actions, prompt_length, end):
    sampled = torch.arange(len(actions)) >= prompt_length - 1
    ends = (actions == end) & sampled
    return sampled & (ends.cumsum(0) - ends.long() == 0)


# Generalised advantage estimation


def by_powers(rewards, values, discounts, lambda_):
    """Straight from the definition: a sum over all pairs of steps."""
    errors = rewards + discounts * values[:, 1:] - values[:, :-1]
    found = torch.zeros_like(rewards)
    for t in range(rewards.shape[1]):
        weight = torch.ones_like(rewards[:, 0])
        for later in range(t, rewards.shape[1]):
            found[:, t] += weight * errors[:, later]
            weight = weight * lambda_ * discounts[:, later]
    return found


def row_after_row(rewards, values, discounts, lambda_):
    rows = []
    for r, v, g in zip(
        rewards.tolist(), values.tolist(), discounts.tolist(), strict=True
    ):
        following, row = 0.0, list[float]()
        for t in reversed(range(len(r))):
            following = r[t] + g[t] * (v[t + 1] + lambda_ * following) - v[t]
            row.insert(0, following)
        rows.append(row)
    return rows


def without_bootstrap(rewards, values, discounts, lambda_):
    values = values.clone()
    values[:, -1] = 0
    return by_powers(rewards, values, discounts, lambda_)


def decaying_by_lambda(rewards, values, discounts, lambda_):
    td_errors = rewards + discounts * values[:, 1:] - values[:, :-1]
    following = [td_errors[:, -1]]
    for t in reversed(range(rewards.shape[1] - 1)):
        following.insert(0, td_errors[:, t] + lambda_ * following[0])
    return torch.stack(following, dim=1)


def running_forward(rewards, values, discounts, lambda_):
    td_errors = rewards + discounts * values[:, 1:] - values[:, :-1]
    before = [td_errors[:, 0]]
    for t in range(1, rewards.shape[1]):
        before.append(td_errors[:, t] + discounts[:, t] * lambda_ * before[-1])
    return torch.stack(before, dim=1)


# Ended and cut


def zero_where_ended(terminated, truncated, gamma):
    return torch.where(terminated, 0.0, gamma)


def zero_in_a_loop(terminated, truncated, gamma):
    return [[0.0 if ended else gamma for ended in row] for row in terminated.tolist()]


# The line search


def by_a_while_loop(kls, gains, radius):
    j = 0
    while j < len(kls):
        if gains[j] > 0 and not kls[j] > radius:
            return 0.8**j
        j += 1
    return 0


def scales_of(kls):
    return [0.8**j for j in range(len(kls))]


# The solver that shared its memory


def by_krylov(product, b, n):
    """The best x in the span of b, A b, A A b, ..."""
    columns = [b / b.norm()]
    for _ in range(n - 1):
        columns.append(product(columns[-1]))
    basis = torch.linalg.qr(torch.stack(columns, dim=1))[0]
    images = torch.stack([product(v) for v in basis.T], dim=1)
    return basis @ torch.linalg.solve(basis.T @ images, basis.T @ b)


def in_place(product, b, n, start):
    """Textbook code with `-=`; p and r begin as `start` makes them."""
    x = torch.zeros_like(b)
    p, r = start(b)
    for _ in range(n):
        image, before = product(p), r @ r
        x += before / (p @ image) * p
        r -= before / (p @ image) * image
        p = r + (r @ r) / before * p
    return x


def both_copied(b):
    return b.clone(), b.clone()


def no_copy(b):
    return b, b


def only_p_copied(b):
    return b.clone(), b


def one_copy_for_both(b):
    copy = b.clone()
    return copy, copy


def always_down(product, b, n):
    x = torch.zeros_like(b)
    for _ in range(n):
        r = b - product(x)
        x += (r @ r) / (r @ product(r)) * r
    return x


# The clip


def by_cases(new, old, advantages, epsilon):
    """A step whose advantage drives it further out counts as at the edge."""
    result = torch.zeros_like(advantages)
    for n, t in np.ndindex(*advantages.shape):
        A, ratio = advantages[n, t], torch.exp(new[n, t]) / torch.exp(old[n, t])
        if A > 0:
            ratio = min(ratio, torch.tensor(1 + epsilon))
        else:
            ratio = max(ratio, torch.tensor(1 - epsilon))
        result[n, t] = ratio * A
    return result


def hinged(ratio, advantages, epsilon):
    """The plain surrogate less what is gained beyond the edge."""
    beyond = torch.relu((ratio - 1) * advantages.sign() - epsilon)
    return ratio * advantages - beyond * advantages.abs()


def by_hinges(new, old, advantages, epsilon):
    return hinged(torch.exp(new - old), advantages, epsilon)


def both_candidates(new, old, advantages, epsilon):
    ratio = torch.exp(new - old)
    near = torch.clip(ratio, 1 - epsilon, 1 + epsilon)
    return torch.stack([ratio * advantages, near * advantages])


def best_of_good_worst_of_bad(new, old, advantages, epsilon):
    low, high = both_candidates(new, old, advantages, epsilon).sort(dim=0).values
    return torch.where(advantages < 0, high, low)


# The epochs


def of_an_epoch(new, old, advantages, mask):
    objective = by_cases(new, old, advantages, 0.2)
    return (objective * mask).sum() / mask.sum()


def epoch_by_epoch(logprobs, stored, advantages, mask):
    return [float(of_an_epoch(new, stored, advantages, mask)) for new in logprobs]


def to_the_epoch_before(logprobs, stored, advantages, mask):
    means, old = [], stored
    for new in logprobs:
        means.append(of_an_epoch(new, old, advantages, mask))
        old = new
    return means


def counting_the_padding(logprobs, stored, advantages, mask):
    return epoch_by_epoch(logprobs, stored, advantages, torch.ones_like(mask))


def always_one(logprobs, stored, advantages, mask):
    return [float(advantages[mask].mean()) for _ in logprobs]


# The third estimate of the KL


def ratio_less_its_logarithm(logprobs, reference):
    ratio = torch.exp(reference) / torch.exp(logprobs)
    return ratio - 1 - torch.log(ratio)


def by_expm1(logprobs, reference):
    return torch.expm1(reference - logprobs) + logprobs - reference


# Advantages beside padding


def answer_by_answer(rewards, values, mask, lambda_):
    """Each answer without its padding, its end worth nothing."""
    result = torch.zeros_like(rewards)
    for n, length in enumerate(mask.sum(1).tolist()):
        V = [*values[n, :length], 0.0]
        following = 0.0
        for t in reversed(range(length)):
            following = rewards[n, t] + V[t + 1] - V[t] + lambda_ * following
            result[n, t] = following
    return result


def with_values_zeroed(rewards, values, mask, lambda_):
    values = torch.where(torch.nn.functional.pad(mask, (0, 1)), values, 0)
    return by_powers(rewards, values, torch.ones_like(rewards), lambda_)


def whole_rows(rewards, values, lambda_):
    return by_powers(rewards, values, torch.ones_like(rewards), lambda_)


def ending_in_the_padding(rewards, values, mask, lambda_):
    """Each answer without its padding, but worth V of the padding at its end."""
    result = torch.zeros_like(rewards)
    for n, length in enumerate(mask.sum(1).tolist()):
        found = whole_rows(
            rewards[n : n + 1, :length], values[n : n + 1, : length + 1], lambda_
        )
        result[n, :length] = found[0]
    return result


def handing_padding_back(rewards, values, mask, lambda_):
    """Nothing follows the last token, but the padding is surprised as well."""
    result = torch.zeros_like(rewards)
    for n, length in enumerate(mask.sum(1).tolist()):
        V = torch.cat([values[n, :length], torch.zeros(1).double()])
        following = 0.0
        for t in reversed(range(rewards.shape[1])):
            ahead = V[min(t + 1, length)]
            following = rewards[n, t] + ahead - values[n, t] + lambda_ * following
            result[n, t] = following
    return result


def losing_the_last(rewards, values, mask, lambda_):
    shorter = mask & mask.roll(-1, dims=1)
    shorter[:, -1] = False
    return ending_in_the_padding(rewards, values, shorter, lambda_)


# Choices explained by scores


def by_softplus(chosen, rejected):
    return torch.nn.functional.softplus(rejected - chosen)


def by_two_classes(chosen, rejected):
    """Softmax over the two scores, and the cross-entropy of the first."""
    return -torch.stack([chosen, rejected]).log_softmax(dim=0)[0]


def by_odds(chosen, rejected):
    return 1 / (1 + torch.exp(rejected - chosen))


# The end of an answer


def cell_by_cell(everywhere, mask):
    ends = [max(t for t in range(len(row)) if row[t]) for row in mask.tolist()]
    return [float(everywhere[n, end + 1]) for n, end in enumerate(ends)]


def moved_end(everywhere, mask, by):
    """Read so many positions to the right of the end."""
    return torch.tensor(cell_by_cell(everywhere.roll(-by, dims=1), mask)).double()


# The advantages of groups


def in_its_group(scores, groups, *, spread=statistics.stdev, small=1e-4):
    """One row after the other, compared with the rows of the same number."""
    rows = list(zip(scores.tolist(), groups.tolist(), strict=True))
    found = []
    for score, group in rows:
        mine = [other for other, name in rows if name == group]
        found.append((score - statistics.mean(mine)) / (spread(mine) + small))
    return torch.tensor(found)


def by_a_table(scores, groups):
    """Which rows belong together, as a matrix of 0 and 1."""
    same = (groups[:, None] == groups).double()
    sizes = same.sum(1)
    centred = scores - same @ scores / sizes
    return centred / ((same @ centred**2 / (sizes - 1)).sqrt() + 1e-4)


def as_if_adjacent(scores, groups):
    size = len(scores) // len(set(groups.tolist()))
    return in_its_group(scores, torch.arange(len(scores)) // size)


def less_the_others(scores, groups):
    same = (groups[:, None] == groups).double() - torch.eye(len(groups))
    return scores - same @ scores / same.sum(1)


# The objective of GRPO


def token_by_token(new, old, reference, A, mask, beta, *, divisor=sum, price=1):
    """Loops over answers and tokens; `divisor` of a row of the mask."""
    total = 0.0
    for n, row in enumerate(mask.tolist()):
        here = 0.0
        for t in [t for t, chosen in enumerate(row) if chosen]:
            ratio = math.exp(new[n, t] - old[n, t])
            near, away = (
                min(max(ratio, 0.8), 1.2),
                float(reference[n, t] - new[n, t]),
            )
            gain = min(ratio * float(A[n, t]), near * float(A[n, t]))
            here += gain - price * beta * (math.exp(away) - 1 - away)
        total += here / divisor(row)
    return total / len(mask)


def grpo_in_tensors(new, old, reference, A, mask, beta):
    ratio = torch.exp(new - old)
    clipped = torch.minimum(ratio * A, torch.clip(ratio, 0.8, 1.2) * A)
    each = (clipped - beta * ratio_less_its_logarithm(new, reference)) * mask
    return torch.mean(each.sum(dim=1) / mask.sum(dim=1))


def over_all_tokens(new, old, reference, A, mask, beta):
    total = token_by_token(new, old, reference, A, mask, beta, divisor=lambda row: 1)
    return total * len(mask) / int(mask.sum())


# The ratio of an answer


def by_the_root(new, old, mask, *, root=True):
    """The product of the tokens' ratios, one after the other, and its root."""
    found = []
    for n, row in enumerate(mask.tolist()):
        ratios = [
            math.exp(new[n, t]) / math.exp(old[n, t])
            for t, chosen in enumerate(row)
            if chosen
        ]
        found.append(math.prod(ratios) ** (1 / len(ratios) if root else 1))
    return torch.tensor(found, dtype=torch.float64)


def by_a_product(new, old, mask):
    """A product over whole rows, in which the padding has a ratio of 1."""
    ratios = torch.where(mask, torch.exp(new - old), 1.0)
    return ratios.prod(1).pow(1 / mask.sum(1))


def padding_and_all(new, old, mask):
    return torch.exp(new - old).prod(1)


# The mean over tokens, in parts


def one_list(parts):
    """Every token of every part."""
    return [float(y) for x, mask in parts for y in x[mask]]


def weighed_parts(parts):
    """The mean of each part, weighed by its share of the tokens."""
    sizes = torch.tensor([float(mask.sum()) for _, mask in parts]).double()
    return torch.stack([x[mask].mean() for x, mask in parts]) @ sizes / sizes.sum()


def in_rows(parts):
    return sum(len(x) for x, _ in parts)


# At least one right answer of k


def over_all_choices(right, k):
    """Every choice of k answers, one after the other."""
    solved = [max(chosen) for row in right.tolist() for chosen in combinations(row, k)]
    return statistics.mean(solved)


def by_a_falling_product(right, k):
    """The chance that one after the other is wrong, without putting any back."""
    wrong = right.shape[1] - right.sum(1, keepdim=True)
    steps = torch.arange(k)
    chances = (wrong - steps).clamp(min=0) / (right.shape[1] - steps)
    return 1 - chances.prod(1).mean()


def with_replacement(right, k):
    return statistics.mean(1 - (1 - sum(row) / len(row)) ** k for row in right.tolist())


# A rule without holes


def word_for_word(prompts, completions):
    """The sentence, after the work if there is any."""
    scores = []
    for prompt, text in zip(prompts, completions, strict=True):
        sum_of = prompt.removeprefix("What is ").removesuffix("?")
        total = sum(map(int, sum_of.split("+")))
        scores.append(float(text.split("</think>")[-1] == f"{sum_of} is {total}"))
    return scores


def by_a_pattern(prompts, completions, pattern=r"(<think>.*</think>)?{0}\+{1} is {2}"):
    scores = []
    for prompt, text in zip(prompts, completions, strict=True):
        left, right = map(int, re.findall("[0-9]+", prompt))
        wanted = pattern.format(left, right, left + right)
        scores.append(int(re.fullmatch(wanted, text) is not None))
    return scores


def pattern(wanted):
    return lambda prompts, texts: by_a_pattern(prompts, texts, wanted)


# Fair comparisons


def within_budget(masks, earned, budget, *, cost=lambda mask: int(mask.sum()), late=0):
    """The policy of the last update that fits, or of one that came later."""
    done = 0
    for mask in masks:
        budget -= cost(mask)
        done += budget >= 0
    return earned[min(max(done + late, 0), len(masks))]


def best_on_the_way(masks, earned, budget, **cost):
    last = within_budget(masks, range(len(earned)), budget, **cost)
    return max(earned[: last + 1])


def two_errors(estimates, exact, weights, *, correction=0, centre=None):
    """By loops over the numbers that are estimated."""
    bias = noise = 0.0
    for tries, truth, weight in zip(estimates, exact, weights, strict=True):
        middle = tries.mean()
        around = middle if centre is None else truth
        squares = (tries - around).square().sum() / (len(tries) - correction)
        bias += float(weight * (middle - truth) ** 2)
        noise += float(weight * squares)
    return [bias**0.5, noise**0.5]


def signed_bias(estimates, exact, weights):
    _, noise = two_errors(estimates, exact, weights)
    return [float(weights @ (estimates.mean(1) - exact)), noise]


# Rounding by chance


def by_gaps(x, u):
    """From the distance between neighbours, a power of two."""
    gap = torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - 8)
    steps = x.abs() / gap
    return x.sign() * gap * (steps.floor() + (u < steps.frac()))


def by_bits(x, u):
    below = 65535 - (u * 65536).int()
    return ((x.view(torch.int32) + below) >> 16 << 16).view(torch.float32)


def towards_zero(x, u):
    return by_bits(x, torch.full_like(u, 0.99999))


def by_threshold(x, chance):
    """Away from zero where the chance, given the share of the way, says so."""
    gap = torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - 8)
    steps = x.abs() / gap
    return x.sign() * gap * (steps.floor() + chance(steps.frac()))


# The mask of DPPO, and the weight of a whole answer


def kept_one_by_one(own, sampler, A, delta):
    kept = torch.ones(own.shape, dtype=torch.bool)
    for n, t in np.ndindex(*own.shape):
        change = math.exp(own[n, t]) - math.exp(sampler[n, t])
        if A[n, t] > 0 and change > delta:
            kept[n, t] = False
        if A[n, t] < 0 and change < -delta:
            kept[n, t] = False
    return kept


def kept_by_signs(own, sampler, A, delta):
    return A.sign() * (own.exp() - sampler.exp()) <= delta


def weight_by_weight(own, sampler, mask, cap):
    rows = zip(own, sampler, mask, strict=True)
    weights = [float(((p - q)[steps]).exp().prod()) for p, q, steps in rows]
    return torch.tensor([min(weight, cap) for weight in weights])


def capped_in_logs(own, sampler, mask, cap):
    return (own.sum(1) - sampler.sum(1)).clamp(max=math.log(cap)).exp()


EXERCISES = {
    "discounted_return": Exercise(
        exercises.check_discounted_return,
        right=[by_horner, by_numpy, lambda r, g: torch.tensor(by_horner(r, g))],
        mistakes={
            "plain sum": lambda rewards, gamma: sum(rewards),
            r"gamma\*\*0 = 1": from_one,
            "wrong end": backwards,
            r"not by t \* gamma": linear,
        },
        wrong_shape=lambda rewards, gamma: [by_horner(rewards, gamma)],
    ),
    "success_rate": Exercise(
        exercises.check_success_rate,
        right=[ended_share, ended_loop],
        mistakes={
            "Look at terminated, not at the sum": positive_share,
            "the other way round": cut_share,
            "Divide by how many": ended_count,
        },
        wrong_shape=lambda episodes: [float(ended) for _, ended in episodes],
    ),
    "action_values": Exercise(
        exercises.check_action_values,
        right=[look_ahead, look_ahead_in_loops],
        mistakes={
            "discount is missing": lambda p, r, v, g: look_ahead(p, r, v, 1.0),
            "reward of this step is not discounted": (
                lambda p, r, v, g: g * look_ahead(p, r, v, 1.0)
            ),
            "reward of the step itself is missing": (
                lambda p, r, v, g: look_ahead(p, 0 * r, v, g)
            ),
            "cannot choose the best next state": (
                lambda p, r, v, g: r + g * (p * v).max(dim=2).values
            ),
            "Weigh the values by the probabilities": (
                lambda p, r, v, g: look_ahead(torch.ones_like(p), r, v, g)
            ),
        },
        wrong_shape=lambda p, r, v, g: look_ahead(p, r, v, g).T,
    ),
    "value_iteration": Exercise(
        exercises.check_value_iteration,
        right=[lambda p, r, g: solve(p, r, g, best_backup)],
        mistakes={
            "max is taken over next states": (
                lambda p, r, g: solve(p, r, g, hopeful_backup)
            ),
            "averages over the actions": lambda p, r, g: solve(p, r, g, random_backup),
            "one sweep from zero": (
                lambda p, r, g: best_backup(p, r, g, torch.zeros(len(r)).double())
            ),
        },
        wrong_shape=lambda p, r, g: solve(p, r, g, best_backup)[:, None],
    ),
    "log_gradient": Exercise(
        exercises.check_log_gradient,
        right=[by_autograd, in_closed_form],
        mistakes={
            "sign is turned": lambda z, a: -by_autograd(z, a),
            "All logits move": one_logit_only,
            r"divide by pi\(a\)": of_the_probability,
            "not the logits": logits_for_probabilities,
        },
        wrong_shape=lambda z, a: by_autograd(z, a)[a],
    ),
    "next_token_loss": Exercise(
        exercises.check_next_token_loss,
        right=[by_cross_entropy, by_a_loop],
        mistakes={
            "Shift by one": lambda z, i: torch.nn.functional.cross_entropy(z, i),
            "the wrong way": lambda z, i: torch.nn.functional.cross_entropy(
                z[1:], i[:-1]
            ),
            "sign is turned": lambda z, i: -by_cross_entropy(z, i),
            "This is the sum": lambda z, i: by_cross_entropy(z, i) * (len(i) - 1),
            "logarithm is missing": lambda z, i: (
                -torch.stack(
                    [z[t].softmax(0)[i[t + 1]] for t in range(len(i) - 1)]
                ).mean()
            ),
        },
        wrong_shape=lambda z, i: by_cross_entropy(z, i)[None],
    ),
    "answer_mask": Exercise(
        exercises.check_answer_mask,
        right=[
            lambda p, a: [t >= p for t in range(p + a + 1)],
            lambda p, a: torch.arange(p + a + 1) >= p,
        ],
        mistakes={
            "never learns to stop": lambda p, a: [
                p <= t < p + a for t in range(p + a + 1)
            ],
            "learns to ask": lambda p, a: [1] * (p + 1 + a),
            "wrong way round": lambda p, a: [t < p for t in range(p + a + 1)],
            "one longer": lambda p, a: [t >= p for t in range(p + a)],
        },
        wrong_shape=lambda p, a: [[t >= p for t in range(p + a + 1)]],
    ),
    "baseline": Exercise(
        exercises.check_baseline,
        right=[leave_one_out],
        mistakes={
            "differs from action to action": per_action,
            "part of its own mean": lambda r, a: r - r.sum() / len(r),
            "sign is turned": lambda r, a: -leave_one_out(r, a),
        },
        wrong_shape=lambda r, a: leave_one_out(r, a)[:, None],
    ),
    "natural_step": Exercise(
        exercises.check_natural_step,
        right=[by_lagrange],
        mistakes={
            "its length is not yet": lambda f, g, d: torch.linalg.inv(f) @ g,
            "The factor 2 is missing": lambda f, g, d: by_lagrange(f, g, d / 2),
            "goes along the gradient": along_the_gradient,
            "square root is missing": lambda f, g, d: (
                2 * d * torch.linalg.inv(f) @ g / (g @ torch.linalg.inv(f) @ g)
            ),
            "You multiplied": lambda f, g, d: f @ g * torch.sqrt(2 * d / (g @ f @ g)),
            "downhill": lambda f, g, d: -by_lagrange(f, g, d),
        },
        wrong_shape=lambda f, g, d: by_lagrange(f, g, d)[None],
    ),
    "mean_kl": Exercise(
        exercises.check_mean_kl,
        right=[by_definition],
        mistakes={
            r"still KL\(new": lambda o, n, m: by_definition(n, o, m),
            "padding is still": lambda o, n, m: by_definition(o, n, m | True),
            "Both mistakes": lambda o, n, m: by_definition(n, o, m | True),
            "This is the sum": lambda o, n, m: by_definition(o, n, m) * m.sum(),
            "counts as 0": lambda o, n, m: by_definition(o, n, m) * m.float().mean(),
            "the largest": lambda o, n, m: max(
                by_definition(o[i, t], n[i, t], torch.tensor(True))
                for i in range(len(m))
                for t in range(m.shape[1])
                if m[i, t]
            ),
        },
        wrong_shape=lambda o, n, m: by_definition(o, n, m)[None],
    ),
    "sequence_logprob": Exercise(
        exercises.check_sequence_logprob,
        right=[by_categorical, row_by_row],
        mistakes={
            "prompt and the padding": lambda z, a, m: by_categorical(z, a, m | True),
            "mean over the tokens": lambda z, a, m: by_categorical(z, a, m) / m.sum(1),
            "sum of the probabilities": lambda z, a, m: torch.stack(
                [(of(z, a)[n].exp())[m[n]].sum() for n in range(len(a))]
            ),
            "This is the probability": lambda z, a, m: torch.stack(
                [(of(z, a)[n].exp())[m[n]].prod() for n in range(len(a))]
            ),
            "take log_softmax": lambda z, a, m: torch.stack(
                [
                    sum(z[n, t, a[n, t]] for t in range(a.shape[1]) if m[n, t])
                    for n in range(len(a))
                ]
            ),
            "shifted again": lambda z, a, m: by_categorical(z.roll(1, dims=1), a, m),
            "one number for the batch": lambda z, a, m: of(z, a)[m].sum(),
        },
        wrong_shape=lambda z, a, m: by_categorical(z, a, m)[:, None],
    ),
    "sampled_mask": Exercise(
        exercises.check_sampled_mask,
        right=[by_the_first_end, by_cumulative_sum],
        mistakes={
            "never learns when to stop": lambda a, n, e: (
                by_the_first_end(a, n, e) & (a != e)
            ),
            "did not choose the question": lambda a, n, e: (
                torch.arange(len(a)) <= torch.where(by_the_first_end(a, n, e))[0].max()
            ),
            "the first sampled token stands": lambda a, n, e: (
                by_the_first_end(a, n, e) & (torch.arange(len(a)) >= n)
            ),
            "after the first end token": lambda a, n, e: torch.arange(len(a)) >= n - 1,
            "Padding cannot be told": lambda a, n, e: (
                (torch.arange(len(a)) >= n - 1) & (a != 0)
            ),
        },
        wrong_shape=lambda a, n, e: by_the_first_end(a, n, e)[None],
    ),
    "gae": Exercise(
        exercises.check_gae,
        right=[by_powers, row_after_row],
        mistakes={
            "discount belongs there": decaying_by_lambda,
            r"V\(s_T\) is missing": without_bootstrap,
            "runs forward": running_forward,
            "same discount everywhere": lambda r, v, g, lam: by_powers(
                r, v, torch.full_like(g, 0.9), lam
            ),
            "TD error alone": lambda r, v, g, lam: by_powers(r, v, g, 0),
            "This is lambda = 1": lambda r, v, g, lam: by_powers(r, v, g, 1),
            "targets for the critic": lambda r, v, g, lam: (
                by_powers(r, v, g, lam) + v[:, :-1]
            ),
            "sign is turned": lambda r, v, g, lam: -by_powers(r, v, g, lam),
        },
        wrong_shape=lambda r, v, g, lam: by_powers(r, v, g, lam).T,
    ),
    "discounts": Exercise(
        exercises.check_discounts,
        right=[zero_where_ended, zero_in_a_loop],
        mistakes={
            "time limit is treated as an end": lambda ended, cut, gamma: (
                zero_where_ended(ended | cut, cut, gamma)
            ),
            "wrong way round": lambda ended, cut, gamma: zero_where_ended(
                cut, ended, gamma
            ),
            "Both at once": lambda ended, cut, gamma: zero_where_ended(
                ended.logical_and(cut.logical_not()), cut, gamma
            ),
            "Nothing ever ends": lambda ended, cut, gamma: gamma * torch.ones(4, 3),
            "1 is not gamma": lambda ended, cut, gamma: 1 - ended.double(),
        },
        wrong_shape=lambda ended, cut, gamma: zero_where_ended(ended, cut, gamma).T,
    ),
    "clipped_surrogate": Exercise(
        exercises.check_clipped_surrogate,
        right=[by_cases, by_hinges],
        mistakes={
            "there is no minimum": lambda *given: both_candidates(*given)[1],
            "on the wrong side": best_of_good_worst_of_bad,
            "larger of the two": lambda *given: both_candidates(*given).amax(dim=0),
            "exponential is missing": lambda new, old, A, e: hinged(new - old, A, e),
            "upside down": lambda new, old, A, e: by_hinges(old, new, A, e),
            "plain surrogate": lambda *given: both_candidates(*given)[0],
            "of a loss": lambda *given: -by_hinges(*given),
            "This is the mean": lambda *given: (
                by_hinges(*given).sum() / given[2].numel()
            ),
        },
        wrong_shape=lambda *given: by_cases(*given).T,
    ),
    "epoch_objectives": Exercise(
        exercises.check_epoch_objectives,
        right=[
            epoch_by_epoch,
            lambda *given: torch.tensor(epoch_by_epoch(*given)).double(),
        ],
        mistakes={
            "of the same epoch": always_one,
            "of the epoch before": to_the_epoch_before,
            "padding is still in": counting_the_padding,
            "Both mistakes": lambda new, old, A, mask: always_one(
                new, old, A, torch.ones_like(mask)
            ),
            "counts as 0": lambda new, old, A, mask: counting_the_padding(
                new, old, torch.where(mask, A, 0), mask
            ),
            "These are sums": lambda new, old, A, mask: [
                mean * int(mask.sum()) for mean in epoch_by_epoch(new, old, A, mask)
            ],
        },
        wrong_shape=lambda *given: [[mean] for mean in epoch_by_epoch(*given)],
    ),
    "k3": Exercise(
        exercises.check_k3,
        right=[ratio_less_its_logarithm, by_expm1],
        mistakes={
            "you add p/q - 1": lambda p, q: by_expm1(q, p),
            "minus the KL": lambda p, q: torch.exp(q - p) - 1 + q - p,
            "-1 is missing": lambda p, q: torch.exp(q) / torch.exp(p) + p - q,
            "This is k1": lambda p, q: p - q,
            "This is k2": lambda p, q: (q - p).square() / 2,
            "its sign turned": lambda p, q: 1 + q - p - torch.exp(q - p),
            "part of mean 0 alone": lambda p, q: torch.exp(q - p) - 1,
            "This is the mean": lambda p, q: by_expm1(p, q).sum() / p.numel(),
        },
        wrong_shape=lambda p, q: by_expm1(p, q).T,
    ),
    "padded_gae": Exercise(
        exercises.check_padded_gae,
        right=[answer_by_answer, with_values_zeroed],
        mistakes={
            "Nothing is repaired": lambda r, v, mask, lam: whole_rows(r, v, lam),
            "still adds the value of the padding": ending_in_the_padding,
            "still handed back to it": handing_padding_back,
            "You mask the result": lambda r, v, mask, lam: torch.where(
                mask, whole_rows(r, v, lam), 0
            ),
            "has lost its TD error": losing_the_last,
        },
        wrong_shape=lambda *given: answer_by_answer(*given)[:, :-1],
    ),
    "preference_loss": Exercise(
        exercises.check_preference_loss,
        right=[by_softplus, by_two_classes],
        mistakes={
            "sign is turned": lambda x, y: -by_softplus(x, y),
            "are exchanged": lambda x, y: by_softplus(y, x),
            "logarithm is missing": by_odds,
            "minus its logarithm": lambda x, y: 1 - by_odds(x, y),
            "This is the mean": lambda x, y: by_softplus(x, y).sum() / len(x),
            "Right but for large": lambda x, y: -torch.log(by_odds(x, y)),
            "by itself says nothing": lambda x, y: by_softplus(x, torch.zeros(len(y))),
        },
        wrong_shape=lambda x, y: by_softplus(x, y)[:, None],
    ),
    "score_at_end": Exercise(
        exercises.check_score_at_end,
        right=[cell_by_cell, lambda x, mask: moved_end(x, mask, by=0)],
        mistakes={
            "still the last column": lambda x, mask: [row[-1] for row in x.tolist()],
            "one early": lambda x, mask: moved_end(x, mask, by=-1),
            "one late": lambda x, mask: moved_end(x, mask, by=1),
            "question stands before": lambda x, mask: [
                row[sum(steps)]
                for row, steps in zip(x.tolist(), mask.tolist(), strict=True)
            ],
            "the mean over": lambda x, mask: torch.stack(
                [row[1:][steps].mean() for row, steps in zip(x, mask, strict=True)]
            ),
            "the largest number": lambda x, mask: torch.stack(
                [row[1:][steps].max() for row, steps in zip(x, mask, strict=True)]
            ),
        },
        wrong_shape=lambda x, mask: moved_end(x, mask, by=0)[:, None],
    ),
    "line_search": Exercise(
        exercises.check_line_search,
        right=[by_a_while_loop],
        mistakes={
            "KL is never checked": lambda k, g, d: by_a_while_loop([0] * len(k), g, d),
            "gain is never checked": lambda k, g, d: by_a_while_loop(
                k, [1] * len(g), d
            ),
            "gain of zero": lambda k, g, d: next(
                (0.8**j for j in range(len(k)) if k[j] <= d and g[j] >= 0), 0.0
            ),
            "not the last one": lambda k, g, d: next(
                (s for s in scales_of(k) if s == by_a_while_loop(k, g, d)),
                scales_of(k)[-1],
            ),
            "1.5 times": lambda k, g, d: by_a_while_loop(k, g, 1.5 * d),
            "the shortest": lambda k, g, d: min(
                (0.8**j for j in range(len(k)) if k[j] <= d and g[j] > 0),
                default=0.0,
            ),
            "This is j": lambda k, g, d: next(
                (j for j in range(len(k)) if k[j] <= d and g[j] > 0), len(k)
            ),
        },
        wrong_shape=lambda k, g, d: [by_a_while_loop(k, g, d)],
    ),
    "conjugate_gradient": Exercise(
        exercises.check_conjugate_gradient,
        right=[by_krylov, lambda f, b, n: in_place(f, b, n, both_copied)],
        mistakes={
            "under three names": lambda f, b, n: in_place(f, b, n, no_copy),
            "x is right, but": lambda f, b, n: in_place(f, b, n, only_p_copied),
            "r and p still share": lambda f, b, n: in_place(f, b, n, one_copy_for_both),
            "residual alone": always_down,
        },
        wrong_shape=lambda f, b, n: by_krylov(f, b, n)[None],
    ),
    "group_advantages": Exercise(
        exercises.check_group_advantages,
        right=[in_its_group, by_a_table],
        mistakes={
            "those of the whole batch": lambda s, g: in_its_group(s, g * 0),
            "but the spread is that": lambda s, g: in_its_group(
                s, g, spread=lambda mine: statistics.stdev(s.tolist())
            ),
            "do not stand together": as_if_adjacent,
            "is divided by G": lambda s, g: in_its_group(
                s, g, spread=statistics.pstdev
            ),
            "by the variance": lambda s, g: in_its_group(
                s, g, spread=statistics.variance
            ),
            "nothing is divided": lambda s, g: in_its_group(
                s, g, spread=lambda mine: 1, small=0
            ),
            "mean of the others": less_the_others,
            "sign is turned": lambda s, g: -by_a_table(s, g),
            "small number is missing": lambda s, g: in_its_group(s, g, small=0),
        },
        wrong_shape=lambda s, g: in_its_group(s, g)[None],
    ),
    "grpo_objective": Exercise(
        exercises.check_grpo_objective,
        right=[token_by_token, grpo_in_tensors],
        mistakes={
            "^Not yet. The ratio is still": lambda new, old, reference, *rest: (
                token_by_token(new, reference, reference, *rest)
            ),
            "width of the batch": lambda *given: token_by_token(*given, divisor=len),
            "Both mistakes": lambda new, old, reference, *rest: token_by_token(
                new, reference, reference, *rest, divisor=len
            ),
            "mean over all tokens": over_all_tokens,
            "is to the reference, and": lambda new, old, reference, *rest: (
                token_by_token(new, old, old, *rest)
            ),
            "leaving is added": lambda *given: token_by_token(*given, price=-1),
            "leaving is missing": lambda *given: token_by_token(*given, price=0),
            "that of a loss": lambda *given: -token_by_token(*given),
        },
        wrong_shape=lambda *given: [token_by_token(*given)],
    ),
    "answer_ratio": Exercise(
        exercises.check_answer_ratio,
        right=[by_the_root, by_a_product],
        mistakes={
            "root is missing": lambda new, old, mask: by_the_root(
                new, old, mask, root=False
            ),
            "mean of the tokens' ratios": lambda new, old, mask: torch.stack(
                [
                    row[steps].exp().mean()
                    for row, steps in zip(new - old, mask, strict=True)
                ]
            ),
            "sum and number of tokens": lambda new, old, mask: (
                padding_and_all(new, old, mask) ** (1 / mask.shape[1])
            ),
            "by the width of the batch": lambda new, old, mask: (
                by_the_root(new, old, mask, root=False) ** (1 / mask.shape[1])
            ),
            "padding counts in the sum": lambda new, old, mask: (
                padding_and_all(new, old, mask) ** (1 / mask.sum(1))
            ),
            "upside down": lambda new, old, mask: 1 / by_the_root(new, old, mask),
            "its logarithm": lambda new, old, mask: by_the_root(new, old, mask).log(),
        },
        wrong_shape=lambda new, old, mask: by_the_root(new, old, mask)[:, None],
    ),
    "accumulated_mean": Exercise(
        exercises.check_accumulated_mean,
        right=[lambda parts: statistics.fmean(one_list(parts)), weighed_parts],
        mistakes={
            "Nothing is repaired": lambda parts: statistics.fmean(
                statistics.fmean(one_list([part])) for part in parts
            ),
            "are added up": lambda parts: sum(
                statistics.fmean(one_list([part])) for part in parts
            ),
            "padding counts": lambda parts: (
                sum(float(x.sum()) for x, _ in parts) / len(one_list(parts))
            ),
            "by all places": lambda parts: (
                sum(one_list(parts)) / sum(x.shape[0] * x.shape[1] for x, _ in parts)
            ),
            "by the number of answers": lambda parts: (
                sum(one_list(parts)) / in_rows(parts)
            ),
            "once more": lambda parts: statistics.fmean(one_list(parts)) / len(parts),
        },
        wrong_shape=lambda parts: [statistics.fmean(one_list(parts))],
    ),
    "dppo_mask": Exercise(
        exercises.check_dppo_mask,
        right=[kept_one_by_one, kept_by_signs],
        mistakes={
            "True where a step is held": lambda own, sampler, A, delta: (
                ~kept_one_by_one(own, sampler, A, delta)
            ),
            "counts factors": lambda own, sampler, A, delta: kept_by_signs(
                (own - sampler).exp().log1p(), torch.log1p(own * 0 + 1), A, delta
            ),
            "subtracts log-prob": lambda own, sampler, A, delta: kept_by_signs(
                (own - sampler + 20).log(), torch.log(own * 0 + 20), A, delta
            ),
            "whatever its advantage says": lambda own, sampler, A, delta: (
                kept_by_signs(own, sampler, A, delta)
                & kept_by_signs(own, sampler, -A, delta)
            ),
            "sides are exchanged": lambda own, sampler, A, delta: kept_by_signs(
                own, sampler, -A, delta
            ),
            "bad ones never": lambda own, sampler, A, delta: kept_by_signs(
                own, sampler, A.clamp(min=0), delta
            ),
        },
        wrong_shape=lambda *given: kept_by_signs(*given)[:, :1],
    ),
    "answer_weights": Exercise(
        exercises.check_answer_weights,
        right=[weight_by_weight, capped_in_logs],
        mistakes={
            "Nothing is repaired": lambda own, sampler, mask, cap: (
                (sampler - own).exp().clamp(max=cap).prod(1)
            ),
            "must count more": lambda own, sampler, mask, cap: weight_by_weight(
                sampler, own, mask, cap
            ),
            "as large as it likes": lambda own, sampler, mask, cap: (
                (own - sampler).exp().clamp(max=cap).prod(1)
            ),
            "cap is missing": lambda own, sampler, mask, cap: weight_by_weight(
                own, sampler, mask, math.inf
            ),
            "distance from 1": lambda own, sampler, mask, cap: weight_by_weight(
                own, sampler, mask, cap + 1
            ),
            "geometric mean": lambda own, sampler, mask, cap: by_the_root(
                own, sampler, mask
            ).clamp(max=cap),
        },
        wrong_shape=lambda *given: weight_by_weight(*given)[:, None],
    ),
    "pass_at_k": Exercise(
        exercises.check_pass_at_k,
        right=[over_all_choices, by_a_falling_product],
        mistakes={
            "the first k answers": lambda right, k: over_all_choices(right[:, :k], k),
            "with replacement": with_replacement,
            "among all n": lambda right, k: over_all_choices(right, right.shape[1]),
            "share of right answers": lambda right, k: right.sum() / right.numel(),
            "thrown together": lambda right, k: by_a_falling_product(
                right.reshape(1, -1), k
            ),
            "1 less that": lambda right, k: 1 - over_all_choices(right, k),
            "all k are right": lambda right, k: 1 - over_all_choices(1 - right, k),
        },
        wrong_shape=lambda right, k: [over_all_choices(right, k)],
    ),
    "rounding_by_chance": Exercise(
        exercises.check_rounding_by_chance,
        right=[by_gaps, by_bits],
        mistakes={
            "nearest neighbour": lambda x, u: x.bfloat16().float(),
            "always the neighbour towards zero": lambda x, u: by_bits(
                x, u * 0 + 0.99999
            ),
            "the other way round": lambda x, u: by_threshold(x, lambda way: u >= way),
            "half of the time": lambda x, u: by_threshold(x, lambda way: u < 0.5),
        },
        wrong_shape=lambda x, u: by_gaps(x, u)[:, None],
    ),
    "rule": Exercise(
        exercises.check_rule,
        right=[word_for_word, by_a_pattern],
        mistakes={
            "Nothing is repaired": pattern(".*{2}.*"),
            "end of a longer number": pattern(".*{2}"),
            "Only the last number": pattern("(.*[^0-9])?{2}[^0-9]*"),
            "what stands before is not read": pattern(".* is {2}"),
            "may go on": pattern(r".*{0}\+{1} is {2}.*"),
            "never paid": pattern(r"{0}\+{1} is {2}"),
        },
        wrong_shape=lambda prompts, texts: [word_for_word(prompts, texts)],
    ),
    "earned_at_budget": Exercise(
        exercises.check_earned_at_budget,
        right=[within_budget],
        mistakes={
            "padding is still counted": partial(
                within_budget, cost=lambda mask: mask.numel()
            ),
            "went over": partial(within_budget, late=1),
            "One update too few": partial(within_budget, late=-1),
            "You count episodes": partial(within_budget, cost=len),
            "is the best policy on the way": best_on_the_way,
            "Both mistakes": partial(best_on_the_way, cost=lambda mask: mask.numel()),
        },
        wrong_shape=lambda masks, earned, budget: [
            within_budget(masks, earned, budget)
        ],
    ),
    "bias_and_noise": Exercise(
        exercises.check_bias_and_noise,
        right=[
            two_errors,
            lambda x, exact, w: torch.tensor(two_errors(x, exact, w)),
        ],
        mistakes={
            "count the same": lambda x, exact, w: two_errors(
                x, exact, torch.ones_like(w) / len(w)
            ),
            "from the exact value": partial(two_errors, centre="exact"),
            "opposite sign cancel": signed_bias,
            "Take their roots": lambda x, exact, w: [
                error**2 for error in two_errors(x, exact, w)
            ],
            "divides by M - 1": partial(two_errors, correction=1),
            "wrong way round": lambda x, exact, w: two_errors(x, exact, w)[::-1],
        },
        wrong_shape=lambda x, exact, w: [two_errors(x, exact, w)],
    ),
}
every_exercise = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)
NONSENSE = {
    "zero": 0.0,
    "text": "forty-two",
    "list": [1.0, "a"],
    "dict": {},
    "nan": math.nan,
    "empty": [],
    "ragged": [[1.0], [1.0, 2.0]],
    "tensor": torch.zeros(2, 2, 2),
    "function": print,
}
RIGHT = [
    pytest.param(exercise, answer, id=f"{name}-{index}")
    for name, exercise in EXERCISES.items()
    for index, answer in enumerate(exercise.right)
]
WRONG = [
    pytest.param(exercise, mistake, answer, id=f"{name}-{index}")
    for name, exercise in EXERCISES.items()
    for index, (mistake, answer) in enumerate(exercise.mistakes.items())
]


def test_no_checker_is_forgotten():
    public = {name for name in vars(exercises) if name.startswith("check_")}
    assert public == {f"check_{name}" for name in EXERCISES}


@pytest.mark.parametrize(("exercise", "answer"), RIGHT)
def test_a_right_answer_is_called_right(exercise, answer, capsys):
    exercise.check(answer)
    assert capsys.readouterr().out == "Right.\n"


@pytest.mark.parametrize(("exercise", "mistake", "answer"), WRONG)
def test_a_likely_mistake_is_named(exercise, mistake, answer, capsys):
    exercise.check(answer)
    out = capsys.readouterr().out
    assert out.startswith("Not yet. ")
    assert len(out.splitlines()) == 1
    assert re.search(mistake, out), out


@every_exercise
def test_no_mistake_is_listed_that_is_not_tried_here(exercise, monkeypatch):
    listed = []

    def spy(*arguments, mistakes, **others):
        listed.extend(mistakes)

    monkeypatch.setattr(sys.modules[exercise.check.__module__], "judge", spy)
    exercise.check(exercise.right[0])
    assert len(listed) == len(exercise.mistakes)


@every_exercise
@pytest.mark.parametrize("stub", [None, ...])
def test_a_stub_gets_no_answer(exercise, stub, capsys):
    exercise.check(lambda *arguments: stub)
    assert capsys.readouterr().out == ""


@every_exercise
@pytest.mark.parametrize("value", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_not_yet_right(exercise, value, capsys):
    exercise.check(lambda *arguments: value)
    out = capsys.readouterr().out
    assert out.startswith("Not yet. For ")
    assert "right is" in out


@every_exercise
def test_the_right_numbers_in_another_shape_are_not_yet_right(exercise, capsys):
    exercise.check(exercise.wrong_shape)
    assert capsys.readouterr().out.startswith("Not yet. ")


@every_exercise
def test_almost_right_is_not_right(exercise, capsys):
    def almost(*arguments):
        return torch.as_tensor(exercise.right[0](*arguments)) + 1e-3

    exercise.check(almost)
    assert capsys.readouterr().out.startswith("Not yet. ")


@every_exercise
def test_half_an_answer_is_not_yet_right(exercise, capsys):
    calls = []

    def first_only(*arguments):
        calls.append(arguments)
        return exercise.right[0](*arguments) if len(calls) == 1 else None

    exercise.check(first_only)
    assert "you gave None, right is" in capsys.readouterr().out


def test_an_error_in_the_answer_is_the_readers_to_see():
    with pytest.raises(ZeroDivisionError):
        exercises.check_discounted_return(lambda rewards, gamma: 1 / 0)
