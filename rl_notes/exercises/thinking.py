"""Exercises of the chapter on a model that learns to show its work."""

import math
import re
from collections.abc import Callable, Sequence
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge
from rl_notes.language.arithmetic import accuracy_reward, direct_answer

Rule = Callable[[Sequence[str], Sequence[str]], Sequence[float] | EllipsisType | None]


def check_pass_at_k(
    answer: Callable[[Tensor, int], Tensor | float | EllipsisType | None],
) -> None:
    """Exercise: the share of questions solved by at least one of k answers.

    Called as answer(right [Q, n], k) with n >= k answers to each question, 1 where one
    is right and 0 where not; returns one number: the mean over the questions, and over
    all choices of k of the n answers.
    """
    generator = torch.Generator(device="cpu").manual_seed(12)
    chances = torch.tensor([[0.02], [0.15], [0.3], [0.6], [0.98]], device="cpu")
    inputs = []
    for n, k in ((10, 3), (6, 5)):
        draws = torch.rand(5, n, generator=generator, device="cpu")
        inputs.append(((draws < chances).double(), k))

    judge(
        answer,
        right=lambda right, k: _of_rows(right, lambda n, c: _one_of(n, c, k)),
        mistakes={
            "This is one choice, the first k answers. It is right on average, and all "
            "the others are wasted: take the mean over every choice of k.": (
                lambda right, k: right[:, :k].amax(1).mean()
            ),
            "This draws with replacement, as if one answer could be taken twice, and "
            "so it is too small: C(n - c, k) / C(n, k) is the chance that all k are "
            "wrong.": (lambda right, k: (1 - (1 - right.mean(1)) ** k).mean()),
            "This asks for one right answer among all n. Of how many choices of k is "
            "that true?": lambda right, k: right.amax(1).mean(),
            "This is the share of right answers, for every k that of k = 1.": (
                lambda right, k: right.mean()
            ),
            "The questions are thrown together. Count each by itself and take the mean "
            "at the end.": (
                lambda right, k: _one_of(right.numel(), int(right.sum()), k)
            ),
            "This is the chance that all k are wrong. It is 1 less that.": (
                lambda right, k: _of_rows(right, lambda n, c: 1 - _one_of(n, c, k))
            ),
            "This is the chance that all k are right.": (
                lambda right, k: _of_rows(right, lambda n, c: 1 - _one_of(n, n - c, k))
            ),
        },
        inputs=inputs,
    )


def _of_rows(right: Tensor, share: Callable[[int, int], float]) -> float:
    """The mean over questions of a share, from n and the number c of right answers."""
    n = right.shape[1]
    found = [share(n, int(count)) for count in right.sum(dim=1)]
    return sum(found) / len(found)


def _one_of(n: int, c: int, k: int) -> float:
    """The chance that k of n answers, c of them right, hold a right one."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def check_rule(answer: Rule) -> None:
    """Exercise: a rule for sums that cannot be had by tricks.

    Called as answer(prompts, completions), two lists of strings; returns a list: 1 for
    a completion that is "47+85 is 132" to the letter, at once or after one block of
    work, else 0.
    """
    texts = [
        "47+85 is 132",
        "47+85 is 131",
        "<think>7+5=12,4+8+1=13</think>47+85 is 132",
        "<think>7+5=12,4+8+1=12</think>47+85 is 122",
        "<think>1=1</think>47+85 is 132",
        "<think>7+5=12,4+8+1=13</think>",
        "<think>132</think>47+85 is 99",
        "47+85 is 1320",
        "47+85 is 1132",
        "132",
        "130,131,132",
        "47+85 is 132,133",
        "4+8 is 12,1 is 132",
    ]
    others = [text.replace("47+85", "85+47") for text in texts]
    inputs = [
        (["What is 47+85?"] * len(texts), texts),
        (["What is 85+47?"] * len(texts), others[::-1]),
    ]

    judge(
        answer,
        right=accuracy_reward,
        mistakes={
            "Nothing is repaired yet: a text that holds the sum anywhere is paid, in "
            "its work, among others, or as a part of a longer number.": (
                _each(lambda text, sentence: _sum_of(sentence) in text)
            ),
            "The end of a longer number can look like the sum: 1132 ends in 132.": (
                _each(lambda text, sentence: text.endswith(_sum_of(sentence)))
            ),
            "Only the last number is read. A list of guesses that ends in the right "
            "one is paid, and so is a number without a sentence.": (
                _each(
                    lambda text, sentence: (
                        [_sum_of(sentence)] == re.findall("[0-9]+", text)[-1:]
                    )
                )
            ),
            "The end of the sentence is right, and what stands before is not read.": (
                _each(lambda text, sentence: text.endswith(" is " + _sum_of(sentence)))
            ),
            "The sentence may go on: 47+85 is 1320 is paid.": (
                _each(lambda text, sentence: sentence in text)
            ),
            "No holes are left, but answers that show their work are never paid. What "
            "stands after the work must be the sentence.": (
                _each(lambda text, sentence: text == sentence)
            ),
        },
        inputs=inputs,
    )


def _each(
    paid: Callable[[str, str], bool],
) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    """A rule from what it asks of a text, given the sentence that is right."""

    def rule(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        rows = zip(prompts, completions, strict=True)
        return [float(paid(text, direct_answer(prompt))) for prompt, text in rows]

    return rule


def _sum_of(sentence: str) -> str:
    return sentence.rpartition(" ")[2]
