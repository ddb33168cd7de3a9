"""Which of two answers is better? A simulated annotator, with faults on a dial.

An annotator sees a question and two answers and names the better one. Truth comes from
the verifier, `arithmetic.is_right`. A fault is either noise or a weakness: for some
share of the pairs the annotator does not look at truth, but at what pleases. What
pleases is a reward function in TRL's convention, such as `round_number` below.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rl_notes.language.answers import LONGEST, answer
from rl_notes.language.arithmetic import accuracy_reward
from rl_notes.policies import TransformerPolicy
from rl_notes.trajectories import Trajectories

Reward = Callable[[Sequence[str], Sequence[str]], list[float]]


class Pairs(NamedTuple):
    """Two answers to each question.

    Attributes:
        answers: 2M rows; rows 2m and 2m + 1 are the answers of pair m.
        asked: The question of each pair.
        first: The text of the first answer.
        second: The text of the second.
    """

    answers: Trajectories
    asked: list[str]
    first: list[str]
    second: list[str]


def sample_pairs(
    policy: TransformerPolicy,
    asked: Sequence[str],
    *,
    max_new_tokens: int = LONGEST,
    generator: torch.Generator,
) -> Pairs:
    """Let the little model answer every question twice.

    Where it says the same thing twice there is nothing to compare: such pairs are left
    out, so that there are fewer pairs than questions.
    """
    answers, _, texts = answer(
        policy,
        asked,
        group_size=2,
        max_new_tokens=max_new_tokens,
        generator=generator,
    )
    first, second = texts[0::2], texts[1::2]
    pairs = Pairs(answers, list(asked), first, second)
    return _these(pairs, [m for m in range(len(asked)) if first[m] != second[m]])


def _these(pairs: Pairs, chosen: Sequence[int]) -> Pairs:
    """Some of the pairs, in the given order."""
    rows = [row for m in chosen for row in (2 * m, 2 * m + 1)]
    device = pairs.answers.groups.device
    return Pairs(
        pairs.answers.select(torch.tensor(rows, device=device).long()),
        *([texts[m] for m in chosen] for texts in pairs[1:]),
    )


def round_number(
    prompts: Sequence[str], completions: Sequence[str], **columns: object
) -> list[float]:
    """Please with a round number: 1 for each answer that ends in 0, else 0."""
    return [float(text.endswith("0")) for text in completions]


def length(
    prompts: Sequence[str], completions: Sequence[str], **columns: object
) -> list[float]:
    """Please with many words: the number of characters of each answer."""
    return [float(len(text)) for text in completions]


def brevity(
    prompts: Sequence[str], completions: Sequence[str], **columns: object
) -> list[float]:
    """Please with few words: minus the number of characters of each answer."""
    return [-float(len(text)) for text in completions]


def preference_probability(
    asked: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    *,
    error: float | int = 0.15,
    liking: Reward = round_number,
    weakness: float | int = 0.0,
) -> Float[Tensor, " N"]:
    """Preference probability: that the annotator prefers the first answer (annotator).

    p = (1 - e) c + e (1 - c), where c = (1 - w) c_truth + w c_liking

    c_truth is 1 if the first answer is right and the second is not, 0 if it is the
    other way round, and 1/2 if both are right or both are wrong. c_liking compares in
    the same way what `liking` gives the two answers.

    Args:
        asked: The questions, one for each pair.
        first: One answer to each.
        second: Another answer to each.
        error: e, how often the annotator names the other one by mistake.
        liking: What pleases the annotator, whether or not it is true.
        weakness: w, in what share of the pairs liking decides in the place of truth.
    """
    for name, share in (("error", error), ("weakness", weakness)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, but it is {share}.")
    by_truth = _comparison(
        accuracy_reward(asked, first), accuracy_reward(asked, second)
    )
    by_liking = _comparison(liking(asked, first), liking(asked, second))
    chosen = (1 - weakness) * by_truth + weakness * by_liking
    return (1 - error) * chosen + error * (1 - chosen)


def decided(
    pairs: Pairs, probabilities: Float[Tensor, " M"]
) -> tuple[Pairs, Float[Tensor, " M2"]]:
    """Leave out the pairs between which the annotator has nothing to choose by.

    Where the probability is 1/2, a choice would be a coin's, and would teach nothing.
    """
    chosen = (probabilities != 0.5).nonzero()[:, 0]
    return _these(pairs, chosen.tolist()), probabilities[chosen]


def annotate(
    probabilities: Float[Tensor, " N"], *, generator: torch.Generator
) -> Bool[Tensor, " N"]:
    """Let the annotator choose: True where the first answer is preferred.

    One uniform number is drawn for each pair.
    """
    uniforms = torch.rand(
        len(probabilities), generator=generator, device=generator.device
    )
    return uniforms.to(probabilities.device) < probabilities


def _comparison(first: Sequence[float], second: Sequence[float]) -> Float[Tensor, " N"]:
    """1 where the first is larger, 0 where the second is, 1/2 where they are equal."""
    difference = torch.tensor(first, device="cpu") - torch.tensor(second, device="cpu")
    return (1 + difference.sign()) / 2
