import itertools

import pytest
import torch
from batches import random_batch, seeded

from rl_notes.language.models import load
from rl_notes.language.preferences import (
    Pairs,
    annotate,
    brevity,
    decided,
    length,
    preference_probability,
    round_number,
    sample_pairs,
)
from rl_notes.language.tokenizer import answer_text, build
from rl_notes.policies import TransformerPolicy

QUESTION = "What is 47+85?"
RIGHT, WRONG = "47+85 is 132", "47+85 is 131"
ROUND, WORKED = "47+85 is 130", "<think>7+5=12,4+8+1=13</think>47+85 is 132"


def chance(first, second, **faults):
    """That the first is preferred."""
    return float(preference_probability([QUESTION], [first], [second], **faults)[0])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (RIGHT, WRONG, 0.85),
        (WRONG, RIGHT, 0.15),
        (RIGHT, WORKED, 0.5),
        (WRONG, ROUND, 0.5),
    ],
)
def test_truth_is_preferred_but_for_errors(first, second, expected):
    assert chance(first, second) == pytest.approx(expected)


def test_by_hand_truth_and_liking_against_each_other():
    # c = 0.7 * 1 + 0.3 * 0 = 0.7, and p = 0.9 * 0.7 + 0.1 * 0.3.
    found = chance(RIGHT, ROUND, error=0.1, weakness=0.3)
    assert found == pytest.approx(0.66)
    # c = 0.7 * 1/2 + 0.3 * 1 = 0.65, and p = 0.9 * 0.65 + 0.1 * 0.35.
    found = chance(ROUND, WRONG, error=0.1, weakness=0.3)
    assert found == pytest.approx(0.62)


def test_the_dial_turns_from_truth_alone_to_liking_alone():
    found = [chance(RIGHT, ROUND, error=0, weakness=w) for w in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx([1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("liking", "first"), [(round_number, ROUND), (length, WORKED), (brevity, WRONG)]
)
def test_each_liking_decides_where_truth_does_not(liking, first):
    other = {ROUND: WRONG, WORKED: RIGHT, WRONG: WORKED}[first]
    faults = {"error": 0, "weakness": 1, "liking": liking}
    assert chance(first, other, **faults) == 1
    assert chance(other, first, **faults) == 0


def test_likings_by_hand():
    answers = [RIGHT, ROUND, WORKED, "", "10", "1 "]
    asked = [QUESTION] * len(answers)
    assert round_number(asked, answers) == [0, 1, 0, 0, 1, 0]
    assert length(asked, answers) == [12, 12, 42, 0, 2, 2]
    assert brevity(asked, answers) == [-12, -12, -42, 0, -2, -2]


def test_exchanging_the_answers_exchanges_the_choice():
    answers = [RIGHT, WRONG, ROUND, WORKED]
    for first, second in itertools.product(answers, answers):
        there = chance(first, second, error=0.2, weakness=0.4)
        back = chance(second, first, error=0.2, weakness=0.4)
        assert there + back == pytest.approx(1)


def test_pairs_are_judged_each_by_itself():
    asked = [QUESTION, "What is 1+1?", QUESTION]
    found = preference_probability(
        asked, [WRONG, "1+1 is 2", RIGHT], [RIGHT, "1+1 is 3", RIGHT]
    )
    assert found.tolist() == pytest.approx([0.15, 0.85, 0.5])


def test_choices_come_as_often_as_they_should():
    """n = 40,000: three standard errors are below 0.0075."""
    probabilities = torch.tensor([0.85, 0.15, 0.5, 0.0, 1.0]).repeat(8000)
    chosen = annotate(probabilities, generator=seeded(0)).view(8000, 5).float()
    assert chosen.mean(0).tolist() == pytest.approx([0.85, 0.15, 0.5, 0, 1], abs=0.017)
    assert chosen[:, 3:].mean(0).tolist() == [0, 1]


def test_choices_depend_on_the_generator_alone():
    probabilities = torch.full((100,), 0.5)
    torch.manual_seed(0)
    first = annotate(probabilities, generator=seeded(3))
    torch.manual_seed(1)
    assert torch.equal(first, annotate(probabilities, generator=seeded(3)))
    assert not torch.equal(first, annotate(probabilities, generator=seeded(4)))


@pytest.mark.parametrize("fault", ["error", "weakness"])
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_that_are_none_are_refused(fault, share):
    with pytest.raises(ValueError, match=f"^{fault} must lie between 0 and 1"):
        chance(RIGHT, WRONG, **{fault: share})


def test_answers_without_a_partner_are_refused():
    with pytest.raises(ValueError, match="1 prompts and 2 completions"):
        preference_probability([QUESTION], [RIGHT, WRONG], [RIGHT])


# Pairs


def texts_of(answers):
    tokens = build()
    rows = zip(answers.actions, answers.mask, strict=True)
    return [answer_text(tokens, row[mask].tolist()) for row, mask in rows]


@pytest.fixture(scope="module")
def sampled():
    asked = [f"What is {n}+{99 - n}?" for n in range(30)]
    policy = TransformerPolicy(load("sft")[0])
    return asked, sample_pairs(policy, asked, generator=seeded(0))


def test_pairs_are_two_different_answers_to_one_question(sampled):
    asked, pairs = sampled
    assert 5 < len(pairs.asked) < 30
    assert [q for q in asked if q in pairs.asked] == pairs.asked
    assert all(a != b for a, b in zip(pairs.first, pairs.second, strict=True))
    texts = texts_of(pairs.answers)
    assert texts[0::2] == pairs.first
    assert texts[1::2] == pairs.second
    groups = pairs.answers.groups
    assert torch.equal(groups[0::2], groups[1::2])
    assert [asked[group] for group in groups[0::2]] == pairs.asked


def test_answers_of_pairs_are_no_longer_than_allowed(sampled):
    asked, policy = sampled[0], TransformerPolicy(load("sft")[0])
    pairs = sample_pairs(policy, asked, max_new_tokens=9, generator=seeded(0))
    assert int(pairs.answers.mask.sum(dim=1).max()) == 9


def test_pairs_depend_on_the_generator_alone(sampled):
    asked, pairs = sampled
    policy = TransformerPolicy(load("sft")[0])
    torch.manual_seed(7)
    assert sample_pairs(policy, asked, generator=seeded(0)).first == pairs.first
    assert sample_pairs(policy, asked, generator=seeded(1)).first != pairs.first


def test_pairs_without_anything_to_choose_by_are_left_out():
    answers = random_batch([1, 2, 3, 4, 5, 6])
    pairs = Pairs(answers, ["a", "b", "c"], ["a1", "b1", "c1"], ["a2", "b2", "c2"])
    kept, chances = decided(pairs, torch.tensor([0.85, 0.5, 0.15]))
    assert chances.tolist() == pytest.approx([0.85, 0.15])
    assert kept[1:] == (["a", "c"], ["a1", "c1"], ["a2", "c2"])
    assert kept.answers.lengths.tolist() == [1, 2, 5, 6]
