"""Sums in words: questions, answers, the exact verifier, rewards and a little corpus.

A question is a plain string, "What is 47+85?". An answer follows it with nothing in
between: at once, "47+85 is 132", or after work,
"<think>7+5=12,4+8+1=13</think>47+85 is 132".

One pair of numbers in ten is held out (see `is_held_out`). Held-out questions are for
measuring: no text that this module makes for training holds such a pair.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from typing import NamedTuple

import torch

THINK, END_THINK = "<think>", "</think>"
MOST_DIGITS = 4
HELD_OUT_ONE_IN = 10
MOST_DISTINCT = 1_000_000
QUESTION_LISTS, FACT_LISTS = 0.60, 0.36  # of the corpus; the rest are quizzes
# [0-9] and not \d, which also matches the digits of other scripts.
_NUMBER = "(?:0|[1-9][0-9]*)"
_OPERAND = f"(0|[1-9][0-9]{{0,{MOST_DIGITS - 1}}})"
_QUESTION = re.compile(rf"What is {_OPERAND}\+{_OPERAND}\?")


class Example(NamedTuple):
    """A text for supervised fine-tuning; the fields are named as TRL's columns."""

    prompt: str
    completion: str


# Questions


def question_of(left: int, right: int) -> str:
    """Ask for a sum: "What is 47+85?"."""
    text = f"What is {left}+{right}?"
    numbers(text)  # refuses numbers that are negative or too long
    return text


def numbers(question: str) -> tuple[int, int]:
    """Read the two numbers of a question, (47, 85) for "What is 47+85?"."""
    match = _QUESTION.fullmatch(question)
    if match is None:
        raise ValueError(
            f'{_shown(question)} is not a question like "What is 47+85?". Its numbers '
            f"have 1 to {MOST_DIGITS} digits and no leading zero, and nothing stands "
            "before or after it."
        )
    return int(match[1]), int(match[2])


def is_held_out(left: int, right: int) -> bool:
    """Say whether a pair of numbers is kept away from all training.

    The rule is fixed: the first 8 bytes of the SHA-256 of "47+85" (the smaller number
    first, in ASCII), read as a big-endian integer, are a multiple of 10. So a+b and b+a
    are on the same side, one pair in ten is held out, and every machine agrees.

    Pairs of two one-digit numbers are never held out: they are the steps of worked
    answers, and a model that has not seen 7+5 cannot be asked to add 47+85.
    """
    low, high = sorted((int(left), int(right)))
    if low < 0:
        raise ValueError(f"Numbers of a question are 0 or more, not {low}.")
    if high < 10:
        return False
    digest = hashlib.sha256(f"{low}+{high}".encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def questions(
    n: int, *, held_out: bool, generator: torch.Generator, distinct: bool = False
) -> list[str]:
    """Draw questions from one side of the split.

    Each number has 1, 2, 3 or 4 digits with equal probability and is uniform among the
    numbers of that length (0 has one digit). A draw from the other side of the split is
    drawn again, so no held-out question adds two one-digit numbers.

    Args:
        n: How many.
        held_out: True for the questions to measure with, False for those to train on.
        generator: Source of every draw.
        distinct: Draw without replacement. "What is 1+20?" and "What is 20+1?" are two
            questions. Short ones run out first: many distinct questions are longer on
            average.
    """
    _check_count("n", n)
    if distinct and n > MOST_DISTINCT:
        raise ValueError(
            f"n={n} distinct questions are too many. Ask for at most {MOST_DISTINCT}, "
            "or leave distinct=False."
        )
    drawn: list[str] = []
    while len(drawn) < n:
        wanted = n - len(drawn)
        pairs = _pairs(wanted * (HELD_OUT_ONE_IN if held_out else 1), generator)
        fitting = (pair for pair in pairs if is_held_out(*pair) == held_out)
        drawn += [f"What is {left}+{right}?" for left, right in fitting][:wanted]
        if distinct:
            drawn = list(dict.fromkeys(drawn))
    return drawn


def _pairs(n: int, generator: torch.Generator) -> Iterator[tuple[int, int]]:
    """Draw n pairs of numbers without looking at the split."""
    device = generator.device
    digits = torch.randint(
        1, MOST_DIGITS + 1, (n, 2), generator=generator, device=device
    )
    uniforms = torch.rand(
        n, 2, generator=generator, dtype=torch.float64, device=device
    ).tolist()
    for lengths, (u, v) in zip(digits.tolist(), uniforms, strict=True):
        yield _number(lengths[0], u), _number(lengths[1], v)


def _number(digits: int, uniform: float) -> int:
    """The number of so many digits that a uniform draw from [0, 1) picks."""
    low = 10 ** (digits - 1) if digits > 1 else 0
    return low + int(uniform * (10**digits - low))


# Answers


def direct_answer(question: str) -> str:
    """Answer at once: "47+85 is 132"."""
    left, right = numbers(question)
    return f"{left}+{right} is {left + right}"


def worked_answer(question: str) -> str:
    """Show the work, then answer: "<think>7+5=12,4+8+1=13</think>47+85 is 132".

    One step for each column, from the right, separated by commas. A step adds what
    stands in its column: the left number's digit, the right number's digit, then 1 if
    the step before carried. Where the shorter number has no digit left, none is
    written. There are as many steps as the longer number has digits: a carry out of
    the last column is not a step of its own, it is the first digit of the last sum.

        5+3     5+3=8
        47+85   7+5=12,4+8+1=13
        123+9   3+9=12,2+1=3,1=1
        1+99    1+9=10,9+1=10
        20+304  0+4=4,2+0=2,3=3
    """
    left, right = numbers(question)
    work = ",".join(_steps(str(left), str(right)))
    return f"{THINK}{work}{END_THINK}{direct_answer(question)}"


def _steps(left: str, right: str) -> Iterator[str]:
    carry = 0
    for column in zip_longest(reversed(left), reversed(right), fillvalue=""):
        terms = [digit for digit in column if digit] + ["1"] * carry
        total = sum(map(int, terms))
        yield f"{'+'.join(terms)}={total}"
        carry = total // 10


def supervised_examples(
    n: int, *, worked: float | int = 0.3, generator: torch.Generator
) -> list[Example]:
    """Draw questions with right answers, for supervised fine-tuning. None is held out.

    Args:
        n: How many.
        worked: Probability that an answer shows its work.
        generator: Source of every draw.
    """
    _check_share("worked", worked)
    asked = questions(n, held_out=False, generator=generator)
    shown = _coins(n, worked, generator)
    return [
        Example(text, worked_answer(text) if work else direct_answer(text))
        for text, work in zip(asked, shown, strict=True)
    ]


# The verifier


def is_right(text: str, question: str) -> bool:
    """Exact verifier: whether a text is a right answer.

    The one judge of truth in this world.
    Two texts are right, to the letter: "47+85 is 132", and the same after one block
    "<think>...</think>". The sentence has the question's own numbers in their order and
    nothing after it. What the block holds is not judged, but it holds no second
    "<think>". Spaces, leading zeros or other digits than 0 to 9 are wrong.

    Any text may come in; none makes it raise. Time grows linearly with its length.
    Raises ValueError if `question` is not a question.
    """
    right_sentence = direct_answer(question)
    parts = _work_and_sentence(text)
    return parts is not None and parts[1] == right_sentence


def follows_form(text: str, question: str) -> bool:
    """Say whether a text is an answer to the question, right or wrong.

    As `is_right`, but the sum may be any number without leading zeros.
    """
    left, right = numbers(question)
    parts = _work_and_sentence(text)
    start = f"{left}+{right} is "
    if parts is None or not parts[1].startswith(start):
        return False
    return re.fullmatch(_NUMBER, parts[1].removeprefix(start)) is not None


def shows_work(text: str) -> bool:
    """Say whether a text begins with one block of work that holds a step, such as 2=2.

    Neither the work nor what follows need be right, but "<think>" and "</think>" stand
    there once each.
    """
    parts = _work_and_sentence(text)
    return parts is not None and re.search("[0-9]=[0-9]", parts[0]) is not None


def asks_again(text: str) -> bool:
    """Say whether a continuation begins as base models do: with another question."""
    return re.match(rf"\n{_QUESTION.pattern}", text) is not None


def _work_and_sentence(text: str) -> tuple[str, str] | None:
    """Split an answer; the work is "" if absent. None where the marks are malformed."""
    work, sentence = "", text
    if text.startswith(THINK):
        work, end, sentence = text.removeprefix(THINK).partition(END_THINK)
        if not end:
            return None
    # The work cannot hold END_THINK: it was cut at the first.
    stray = THINK in work or THINK in sentence or END_THINK in sentence
    return None if stray else (work, sentence)


# Rewards, in TRL's convention


def accuracy_reward(
    prompts: Sequence[str], completions: Sequence[str], **columns: object
) -> list[float]:
    """Verifiable reward: 1 for each completion that is right, else 0 (see `is_right`).

    In TRL's convention: prompts and completions are plain strings, row by row; other
    columns of the data set are ignored.
    """
    rows = _rows(prompts, completions)
    return [float(is_right(text, prompt)) for prompt, text in rows]


def form_reward(
    prompts: Sequence[str], completions: Sequence[str], **columns: object
) -> list[float]:
    """Format reward: 1 for each completion that follows the form, right or wrong.

    In TRL's convention, as `accuracy_reward`.
    """
    rows = _rows(prompts, completions)
    return [float(follows_form(text, prompt)) for prompt, text in rows]


def _rows(
    prompts: Sequence[str], completions: Sequence[str]
) -> Iterator[tuple[str, str]]:
    for name, texts in (("prompts", prompts), ("completions", completions)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{name} must be a list of plain strings. Of conversations, pass each "
                "last message's content."
            )
    if len(prompts) != len(completions):
        raise ValueError(
            f"There are {len(prompts)} prompts and {len(completions)} completions. "
            "Repeat each prompt for every one of its completions."
        )
    return zip(prompts, completions, strict=True)


# The corpus of the base model


def documents(
    n: int, *, wrong: float | int = 0.3, generator: torch.Generator
) -> list[str]:
    r"""Write a little corpus for pre-training. No pair in it is held out.

    A document has two to four lines, joined by "\n", of one kind:

        60 %  questions         What is 47+85?
        36 %  facts             47+85 is 132   or, in half of these documents, 47+85=132
         4 %  quizzes           What is 47+85?47+85 is 132

    After a question that opens a document there is another question, in 94 cases of
    100. Facts and quizzes are wrong with probability `wrong`, in one digit's column:
    too much or too little by 1, 10, 100, ... as when a carry slips. So a model that
    knew the corpus perfectly would follow a question with its right answer in
    0.04 / 0.64 * 0.7 = 4.4 % of samples. It would then go on to the next line, which
    `is_right` does not forgive.

    Args:
        n: How many documents.
        wrong: Probability that a stated sum is wrong.
        generator: Source of every draw.
    """
    _check_count("n", n)
    _check_share("wrong", wrong)
    device = generator.device
    kinds = torch.rand(n, generator=generator, device=device).tolist()
    lengths = torch.randint(2, 5, (n,), generator=generator, device=device).tolist()
    joints = ["=" if equals else " is " for equals in _coins(n, 0.5, generator)]
    asked = questions(sum(lengths), held_out=False, generator=generator)
    rows = zip(asked, _stated_totals(asked, wrong, generator), strict=True)
    return [
        "\n".join(_line(kind, joint, *row) for row in islice(rows, length))
        for kind, length, joint in zip(kinds, lengths, joints, strict=True)
    ]


def _stated_totals(
    asked: Sequence[str], wrong: float | int, generator: torch.Generator
) -> list[int]:
    """The sum that the corpus states for each question: right, or off in one column."""
    slips = _coins(len(asked), wrong, generator)
    lowers = _coins(len(asked), 0.5, generator)
    columns = torch.rand(len(asked), generator=generator, device=generator.device)
    stated = []
    for row in zip(asked, slips, lowers, columns.tolist(), strict=True):
        question, slip, lower, column = row
        total = sum(numbers(question))
        step = slip * 10 ** int(column * len(str(total)))
        stated.append(total - step if lower and total >= step else total + step)
    return stated


def _line(kind: float, joint: str, question: str, total: int) -> str:
    """One line of a document; `kind`, uniform in [0, 1), says of which kind."""
    left, right = numbers(question)
    if kind < QUESTION_LISTS:
        return question
    if kind < QUESTION_LISTS + FACT_LISTS:
        return f"{left}+{right}{joint}{total}"
    return f"{question}{left}+{right} is {total}"


def _coins(n: int, share: float | int, generator: torch.Generator) -> list[bool]:
    draws = torch.rand(
        n, generator=generator, dtype=torch.float64, device=generator.device
    )
    heads: list[bool] = (draws < share).tolist()
    return heads


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number from 0 up, not {value!r}.")


def _check_share(name: str, value: float | int) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {value}.")


def _shown(text: str) -> str:
    """A text for a message: ASCII, quoted, and not a whole page of it."""
    return ascii(text) if len(text) <= 80 else f"{text[:80]!a}..."
