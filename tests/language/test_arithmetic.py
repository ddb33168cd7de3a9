import itertools
import re
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from gate import built_site, environment
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_notes.language import arithmetic
from rl_notes.language.arithmetic import (
    accuracy_reward,
    asks_again,
    direct_answer,
    documents,
    follows_form,
    form_reward,
    is_held_out,
    is_right,
    numbers,
    question_of,
    questions,
    shows_work,
    supervised_examples,
    worked_answer,
)

FIXED = settings(derandomize=True, deadline=None, max_examples=300)
QUESTION = "What is 47+85?"
WORKED = "<think>7+5=12,4+8+1=13</think>47+85 is 132"
# Found by a second program that follows the rule of the docstring.
HELD_OUT_47 = [52, 72, 78, 94, 108]
HELD_OUT_0 = [
    *(10, 32, 47, 48, 69, 86, 94, 100, 102, 118),
    *(128, 153, 184, 191, 206, 223, 226, 276, 285, 289),
]
NUMBERS = st.integers(1, 4).flatmap(
    lambda digits: st.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs_in(text):
    """Every sum of two whole numbers that stands anywhere in a text."""
    found = re.findall(r"(?=(?<![0-9])([0-9]+)\+([0-9]+)(?![0-9]))", text)
    return [(int(left), int(right)) for left, right in found]


def assert_share(count, total, share, deviations=4.5):
    """The count is what a binomial draw gives, but for one case in 100,000."""
    spread = (total * share * (1 - share)) ** 0.5
    assert abs(count - total * share) < deviations * spread, (count, total, share)


# --- questions ----------------------------------------------------------------------


def test_a_question_reads_back_as_its_numbers():
    assert question_of(47, 85) == QUESTION
    ends = [0, 1, 9, 10, 99, 100, 999, 1000, 9999]
    for left, right in itertools.product(ends, ends):
        assert numbers(question_of(left, right)) == (left, right)


@pytest.mark.parametrize(
    "text",
    [
        *("", "What is 47+85", "What is 47+85?\n", " What is 47+85?", "what is 47+85?"),
        *("What is 047+85?", "What is 00+1?", "What is 47+-85?", "What is 47 + 85?"),
        *(
            "What is 12345+1?",
            "What is 1+12345?",
            "What is 4\u0667+85?",
            "What is 47-85?",
        ),
        *("What is 47+85?47+85 is 132", f"What is {'9' * 9999}+1?", "What is +1?"),
    ],
)
def test_what_is_no_question_is_refused(text):
    with pytest.raises(ValueError, match=r'is not a question like "What is 47\+85\?"'):
        numbers(text)
    with pytest.raises(ValueError, match="is not a question"):
        is_right("47+85 is 132", text)
    with pytest.raises(ValueError, match="is not a question"):
        is_right("<think>", text)


@pytest.mark.parametrize("pair", [(-1, 5), (5, -1), (10_000, 1), (1, 10_000)])
def test_numbers_outside_one_to_four_digits_make_no_question(pair):
    with pytest.raises(ValueError, match="1 to 4 digits"):
        question_of(*pair)


# --- the held-out split -------------------------------------------------------------


def test_the_held_out_pairs_never_change():
    assert [high for high in range(47, 120) if is_held_out(47, high)] == HELD_OUT_47
    assert [high for high in range(300) if is_held_out(0, high)] == HELD_OUT_0


def test_the_split_does_not_know_the_order():
    for left, right in itertools.combinations(range(200), 2):
        assert is_held_out(left, right) == is_held_out(right, left)


def test_no_pair_of_two_digits_is_held_out():
    assert not any(is_held_out(a, b) for a in range(10) for b in range(10))


def test_one_pair_in_ten_is_held_out_whatever_its_lengths_and_last_digits():
    counts, held = Counter[tuple[str, int, int]](), Counter[tuple[str, int, int]]()
    for low, high in itertools.combinations_with_replacement(range(700), 2):
        if high < 10:
            continue
        ends = (low % 10, high % 10)
        keys = [("lengths", len(str(low)), len(str(high))), ("ends", *ends)]
        counts.update(keys)
        if is_held_out(low, high):
            held.update(keys)
    assert len(counts) == 5 + 100
    for key, total in counts.items():
        assert_share(held[key], total, 0.1)


def test_a_negative_number_has_no_side():
    with pytest.raises(ValueError, match="0 or more"):
        is_held_out(-3, 12)


@pytest.mark.parametrize("held_out", [False, True])
def test_questions_come_from_their_side(held_out):
    drawn = questions(3000, held_out=held_out, generator=seeded())
    assert len(drawn) == 3000
    assert {is_held_out(*numbers(text)) for text in drawn} == {held_out}


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("distinct", [False, True])
def test_as_many_questions_come_as_were_asked_for(held_out, distinct):
    for n in range(60):
        drawn = questions(n, held_out=held_out, generator=seeded(n), distinct=distinct)
        assert len(drawn) == n


def test_each_number_has_one_to_four_digits_with_equal_probability():
    drawn = [numbers(q) for q in questions(20_000, held_out=False, generator=seeded())]
    # Every cell loses a tenth to the held-out side, but for two one-digit numbers.
    weight = {
        (a, b): 1.0 if a == b == 1 else 0.9 for a in range(1, 5) for b in range(1, 5)
    }
    cells = Counter((len(str(a)), len(str(b))) for a, b in drawn)
    for cell, share in weight.items():
        assert_share(cells[cell], len(drawn), share / sum(weight.values()))


def test_numbers_are_uniform_among_those_of_their_length():
    drawn = [numbers(q) for q in questions(40_000, held_out=False, generator=seeded(1))]
    for place in (0, 1):
        for digits in range(1, 5):
            column = [pair[place] for pair in drawn if len(str(pair[place])) == digits]
            low = 10 ** (digits - 1) if digits > 1 else 0
            tenths = Counter(
                (value - low) * 10 // (10**digits - low) for value in column
            )
            assert set(tenths) == set(range(10))
            for count in tenths.values():
                assert_share(count, len(column), 0.1)


def test_distinct_questions_do_not_repeat():
    for held_out in (False, True):
        drawn = questions(2500, held_out=held_out, generator=seeded(), distinct=True)
        assert len(drawn) == len(set(drawn)) == 2500
        assert {is_held_out(*numbers(text)) for text in drawn} == {held_out}
    again = questions(2500, held_out=False, generator=seeded())
    assert len(set(again)) < 2500


def test_the_generator_alone_decides():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for draw in (
        lambda g: questions(50, held_out=True, generator=g),
        lambda g: questions(50, held_out=False, generator=g, distinct=True),
        lambda g: supervised_examples(50, generator=g),
        lambda g: documents(50, generator=g),
    ):
        assert draw(seeded(3)) == draw(seeded(3))
        assert draw(seeded(3)) != draw(seeded(4))
        generator = seeded(3)
        assert draw(generator) != draw(generator)
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_asked_nothing_drawn():
    assert questions(0, held_out=True, generator=seeded()) == []
    assert supervised_examples(0, generator=seeded()) == []
    assert documents(0, generator=seeded()) == []


def test_impossible_draws_are_refused():
    for draw in (
        lambda: questions(-1, held_out=True, generator=seeded()),
        lambda: supervised_examples(-1, generator=seeded()),
        lambda: documents(-1, generator=seeded()),
    ):
        with pytest.raises(ValueError, match="n must be a whole number from 0 up"):
            draw()
    with pytest.raises(ValueError, match="at most 1000000"):
        questions(1_000_001, held_out=False, generator=seeded(), distinct=True)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="worked must lie between 0 and 1"):
            supervised_examples(1, worked=share, generator=seeded())
        with pytest.raises(ValueError, match="wrong must lie between 0 and 1"):
            documents(1, wrong=share, generator=seeded())


# --- answers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "work", "total"),
    [
        (47, 85, "7+5=12,4+8+1=13", "132"),
        (5, 3, "5+3=8", "8"),
        (0, 0, "0+0=0", "0"),
        (9, 9, "9+9=18", "18"),
        (123, 9, "3+9=12,2+1=3,1=1", "132"),
        (1, 99, "1+9=10,9+1=10", "100"),
        (20, 304, "0+4=4,2+0=2,3=3", "324"),
        (9999, 1, "9+1=10,9+1=10,9+1=10,9+1=10", "10000"),
        (9999, 9999, "9+9=18,9+9+1=19,9+9+1=19,9+9+1=19", "19998"),
    ],
)
def test_answers_written_out_by_hand(left, right, work, total):
    question = f"What is {left}+{right}?"
    sentence = f"{left}+{right} is {total}"
    assert direct_answer(question) == sentence
    assert worked_answer(question) == f"<think>{work}</think>{sentence}"


def assert_work_adds_up(left, right):
    """Read the work as a schoolbook does and arrive at the sum."""
    text = worked_answer(question_of(left, right))
    match = re.fullmatch(r"<think>(.*)</think>(\d+)\+(\d+) is (\d+)", text)
    steps = [step.split("=") for step in match[1].split(",")]
    assert len(steps) == max(len(str(left)), len(str(right)))
    carry = 0
    for place, (terms, result) in enumerate(steps):
        column = [n // 10**place % 10 for n in (left, right) if len(str(n)) > place]
        assert [int(term) for term in terms.split("+")] == column + [1] * carry
        assert int(result) == sum(column) + carry
        carry = int(int(result) > 9)
    digits = [result[-1] for _, result in steps[:-1]]
    assert steps[-1][1] + "".join(reversed(digits)) == match[4] == str(left + right)
    assert (int(match[2]), int(match[3])) == (left, right)


def test_the_work_of_every_short_sum_adds_up():
    for left, right in itertools.product(range(100), range(100)):
        assert_work_adds_up(left, right)


@FIXED
@given(NUMBERS, NUMBERS)
def test_the_work_of_long_sums_adds_up(left, right):
    assert_work_adds_up(left, right)


def test_every_short_sum_is_right_in_both_forms():
    for left, right in itertools.product(range(100), range(100)):
        question = question_of(left, right)
        direct, worked = direct_answer(question), worked_answer(question)
        for text in (direct, worked):
            assert is_right(text, question)
            assert follows_form(text, question)
            assert is_right(text, question_of(right, left)) == (left == right)
        assert shows_work(worked)
        assert not shows_work(direct)


def test_supervised_examples_are_right_and_three_in_ten_show_work():
    examples = supervised_examples(6000, generator=seeded())
    assert all(is_right(answer, prompt) for prompt, answer in examples)
    assert_share(sum(shows_work(e.completion) for e in examples), 6000, 0.3)
    long = [len(e.prompt) >= 17 for e in examples if shows_work(e.completion)]
    base = sum(len(e.prompt) >= 17 for e in examples) / 6000
    assert_share(sum(long), len(long), base)  # long sums no more often than short ones
    for share, shown in ((0, False), (1, True)):
        examples = supervised_examples(200, worked=share, generator=seeded())
        assert {shows_work(example.completion) for example in examples} == {shown}


def test_supervised_examples_have_the_columns_of_trl():
    example = supervised_examples(1, generator=seeded())[0]
    assert set(example._asdict()) == {"prompt", "completion"}


def test_no_training_text_holds_a_held_out_pair():
    examples = supervised_examples(10_000, worked=0.5, generator=seeded())
    texts = [prompt + completion for prompt, completion in examples]
    texts += documents(10_000, generator=seeded())
    pairs = [pair for text in texts for pair in pairs_in(text)]
    assert pairs_in(texts[0])
    assert len(set(pairs)) > 20_000
    assert not any(is_held_out(*pair) for pair in pairs)
    unseen = questions(500, held_out=True, generator=seeded())
    assert not {frozenset(numbers(q)) for q in unseen} & {frozenset(p) for p in pairs}


def test_the_scan_for_pairs_sees_every_form():
    text = "What is 1+20?1+20 is 21\n<think>4+8+1=13</think>300+4=304"
    assert pairs_in(text) == [(1, 20), (1, 20), (4, 8), (8, 1), (300, 4)]


# --- the verifier -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "47+85 is 132",
        WORKED,
        "<think></think>47+85 is 132",
        "<think>1+1=3</think>47+85 is 132",
        "<think>\n any words, ü, <b> \x00 47+85 is 9</think>47+85 is 132",
    ],
)
def test_right(text):
    assert is_right(text, QUESTION)
    assert follows_form(text, QUESTION)


@pytest.mark.parametrize(
    "text",
    [
        *("47+85 is 133", "47+85 is 32", "47+85 is 0", "47+85 is 1320"),
        *("<think>7+5=12,4+8+1=13</think>47+85 is 131", f"47+85 is {'9' * 100_000}"),
    ],
)
def test_wrong_but_in_form(text):
    assert not is_right(text, QUESTION)
    assert follows_form(text, QUESTION)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "132", "47+85", "47+85 is ", "47+85=132", "is 132", "47+85 is 13a"),
        *("47+85 is 132 ", " 47+85 is 132", "47+85 is 132\n", "\n47+85 is 132"),
        *(
            "47+85 is 132.",
            "47+85 is 132\x00",
            "47+85 is 132<eos>",
            "<bos>47+85 is 132",
        ),
        *("85+47 is 132", "46+86 is 132", "47+85 is 132,1", "47 + 85 is 132"),
        *("47+85  is 132", "47+85 is  132", "47+85 IS 132", "47+85\u00a0is\u00a0132"),
        *("47+85 is 0132", "47+85 is +132", "47+85 is -132", "47+85 is \u2212132"),
        *("047+85 is 132", "47+85 is 132.0", "47+85 is 1_32", "47+85 is 1e2"),
        *(
            "47+85 is \u0661\u0663\u0662",
            "\u0664\u0667+\u0668\u0665 is 132",
            "47+85 is \uff11\uff13\uff12",
            "47+85 is 13²",
            "47+85 is 00",
        ),
        *("47+85 is 13<pad>2", "47+85 is 132\ud800", "\u200b47+85 is 132"),
        *(
            "47+85 is 13347+85 is 132",
            "47+85 is 13247+85 is 132",
            QUESTION + "47+85 is 132",
        ),
        *("<think>", "</think>", "<think></think>", "<think>47+85 is 132"),
        *(
            "<think>47+85 is 132</think>",
            "</think>47+85 is 132",
            "7+5=12</think>47+85 is 132",
        ),
        *("47+85 is 132<think></think>", "47+85 is 132</think>", "47+85 is 132<think>"),
        "<think>1</think><think>2</think>47+85 is 132",
        "<think><think>1</think>47+85 is 132",
        "<think><think>1</think></think>47+85 is 132",
        "<think>1</think></think>47+85 is 132",
        "<think>1</think>47+85 is 132</think>",
        "<think>1</think> 47+85 is 132",
        "<think>1</think>\n47+85 is 132",
        " <think>1</think>47+85 is 132",
        "<Think>1</Think>47+85 is 132",
        "<think >1</think>47+85 is 132",
    ],
    ids=ascii,
)
def test_wrong_and_out_of_form(text):
    assert not is_right(text, QUESTION)
    assert not follows_form(text, QUESTION)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (WORKED, True),
        ("<think>1+1=3</think>nonsense", True),
        ("<think>3=3</think>", True),
        ("<think></think>47+85 is 132", False),
        ("<think>7+5</think>47+85 is 132", False),
        ("<think>=</think>47+85 is 132", False),
        ("<think>7+5=</think>47+85 is 132", False),
        ("<think>\u0663=\u0663</think>47+85 is 132", False),
        ("<think>7+5=12", False),
        ("7+5=12</think>47+85 is 132", False),
        ("47+85 is 132", False),
        ("47+85=132", False),
        ("<think>,</think>7+5=12", False),
        ("x<think>7+5=12</think>47+85 is 132", False),
        ("<think>7+5=12</think>47+85 is 132<think>", False),
        ("<think>7+5=12</think>47+85 is 132</think>", False),
        ("<think>7+5=12<think></think>47+85 is 132", False),
        ("", False),
    ],
)
def test_shown_work(text, shown):
    assert shows_work(text) is shown


def test_only_one_total_is_right():
    for left, right in ((47, 85), (0, 0), (9999, 9999)):
        question = question_of(left, right)
        said = (f"{left}+{right} is {total}" for total in range(20_001))
        right_ones = [text for text in said if is_right(text, question)]
        assert right_ones == [f"{left}+{right} is {left + right}"]


FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "47+85 is 132", "47+85", " is ", "132", "=", "1", "\n", ","]
)
ANYTHING = st.one_of(
    st.text(st.characters(codec=None)), st.lists(FRAGMENTS, max_size=8).map("".join)
)


@FIXED
@given(ANYTHING)
def test_no_text_makes_the_verifier_raise(text):
    accepted = re.fullmatch(
        r"(?s:<think>(?:(?!</?think>).)*</think>)?47\+85 is (0|[1-9][0-9]*)", text
    )
    assert follows_form(text, QUESTION) == (accepted is not None)
    assert is_right(text, QUESTION) == (accepted is not None and accepted[1] == "132")
    assert shows_work(text) in (True, False)
    assert asks_again(text) in (True, False)


@FIXED
@given(NUMBERS, NUMBERS, st.data())
def test_any_change_of_one_character_makes_the_sentence_wrong(left, right, data):
    question = question_of(left, right)
    worked = worked_answer(question)
    work, sentence = worked[: worked.index(">", 8) + 1], direct_answer(question)
    prefix = data.draw(st.sampled_from(["", work]))
    at = data.draw(st.integers(0, len(sentence)))
    end = data.draw(st.integers(at, min(at + 1, len(sentence))))
    put = data.draw(st.one_of(st.just(""), st.characters(), st.sampled_from("0123+ ")))
    changed = sentence[:at] + put + sentence[end:]
    assert is_right(prefix + changed, question) == (changed == sentence)


@FIXED
@given(st.text())
def test_what_the_work_says_is_free(work):
    text = f"<think>{work}</think>47+85 is 132"
    assert is_right(text, QUESTION) == ("think>" not in work)


@pytest.mark.parametrize(
    "part",
    [
        *("<think>", "</think>", "<think></think>", "1", "1=", "=1", "1+", ",", " "),
        *("<", "<think", "47+85 is ", "1+1=2,", "\n", "\nWhat is 1+1?"),
    ],
)
def test_time_grows_linearly(part):
    length = 2_000_000
    for text in (
        part * (length // len(part)),
        "<think>" + part * (length // len(part)),
        "<think>" + part * (length // len(part)) + "</think>47+85 is 131",
        "47+85 is " + part * (length // len(part)) + "x",
    ):
        start = time.process_time()
        assert not is_right(text, QUESTION)
        follows_form(text, QUESTION)
        shows_work(text)
        asks_again(text)
        assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("\nWhat is 3+4?", True),
        ("\nWhat is 3+4?\nWhat is 5+6?", True),
        ("\nWhat is 3+4?3+4 is 7", True),
        ("What is 3+4?", False),
        ("\nWhat is 3+4", False),
        ("\nWhat is 03+4?", False),
        ("47+85 is 132\nWhat is 3+4?", False),
        ("\n3+4 is 7", False),
        ("", False),
    ],
)
def test_another_question(text, asks):
    assert asks_again(text) is asks


# --- rewards ------------------------------------------------------------------------


def test_rewards_row_by_row():
    prompts = [QUESTION, QUESTION, QUESTION, "What is 1+2?", "What is 1+2?"]
    completions = [WORKED, "47+85 is 131", "132", "1+2 is 3", "47+85 is 132"]
    expected = {accuracy_reward: [1, 0, 0, 1, 0], form_reward: [1, 1, 0, 1, 0]}
    for reward, values in expected.items():
        given_by_trl = {"completion_ids": [[1]] * 5, "answer": ["x"] * 5}
        rewards = reward(prompts=prompts, completions=completions, **given_by_trl)
        assert rewards == reward(prompts, completions) == values
        assert all(type(value) is float for value in rewards)
        assert reward([], []) == []


@pytest.mark.parametrize("reward", [accuracy_reward, form_reward])
@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_rows_that_are_no_rows_are_refused(reward):
    with pytest.raises(ValueError, match="1 prompts and 2 completions"):
        reward([QUESTION], ["47+85 is 132", "47+85 is 132"])
    message = [{"role": "assistant", "content": "47+85 is 132"}]
    with pytest.raises(ValueError, match="completions must be a list of plain strings"):
        reward([QUESTION], [message])
    with pytest.raises(ValueError, match="prompts must be a list of plain strings"):
        reward([[{"role": "user", "content": QUESTION}]], ["47+85 is 132"])
    with pytest.raises(ValueError, match="prompts must be a list of plain strings"):
        reward(QUESTION, "47+85 is 132")
    with pytest.raises(ValueError, match="is not a question"):
        reward(["Hello"], ["47+85 is 132"])


# --- the corpus ---------------------------------------------------------------------

FACT = re.compile(r"([0-9]+)\+([0-9]+)( is |=)([0-9]+)")
QUIZ = re.compile(r"(What is ([0-9]+)\+([0-9]+)\?)([0-9]+)\+([0-9]+) is ([0-9]+)")


def kind_of(line):
    if QUIZ.fullmatch(line):
        return "quiz"
    fact = FACT.fullmatch(line)
    return fact[3] if fact else "question" if numbers(line) else None


def test_documents_are_of_one_kind_in_the_shares_promised():
    written = documents(8000, generator=seeded())
    kinds, lengths = Counter[str](), Counter[int]()
    for document in written:
        (kind,) = {kind_of(line) for line in document.split("\n")}
        kinds[kind] += 1
        lengths[document.count("\n") + 1] += 1
    shares = {"question": 0.6, " is ": 0.18, "=": 0.18, "quiz": 0.04}
    assert set(kinds) == set(shares)
    for kind, share in shares.items():
        assert_share(kinds[kind], 8000, share)
    assert set(lengths) == {2, 3, 4}
    for count in lengths.values():
        assert_share(count, 8000, 1 / 3)


def stated(line):
    quiz = QUIZ.fullmatch(line)
    if quiz:
        assert quiz.group(2, 3) == quiz.group(4, 5)
        return (int(quiz[2]) + int(quiz[3]), quiz[6])
    fact = FACT.fullmatch(line)
    return (int(fact[1]) + int(fact[2]), fact[4])


def test_three_facts_in_ten_are_wrong_by_one_in_one_column():
    lines = "\n".join(documents(6000, generator=seeded())).split("\n")
    sums = [stated(line) for line in lines if kind_of(line) != "question"]
    errors = Counter(int(said) - total for total, said in sums)
    assert_share(len(sums) - errors[0], len(sums), 0.3)
    steps = [10**place for place in range(5)]
    assert set(errors) == {0, *steps, *(-step for step in steps)}
    assert all(said == str(int(said)) for _, said in sums)  # nor below 0, nor 012
    assert all(abs(int(s) - total) <= max(total, 1) for total, s in sums)
    up = sum(count for error, count in errors.items() if error > 0)
    assert_share(up, len(sums) - errors[0], 0.5)


@pytest.mark.parametrize("wrong", [0, 1])
def test_the_share_of_wrong_facts_can_be_chosen(wrong):
    lines = "\n".join(documents(500, wrong=wrong, generator=seeded())).split("\n")
    sums = [stated(line) for line in lines if kind_of(line) != "question"]
    assert {int(said) != total for total, said in sums} == {bool(wrong)}


def test_nothing_slips_below_zero():
    zeros = ["What is 0+0?"] * 50
    said = arithmetic._stated_totals(zeros, 1, seeded())
    assert set(said) == {1}


def test_a_question_is_followed_by_a_question_and_seldom_by_a_right_answer():
    written = documents(8000, generator=seeded())
    opened = [text for text in written if text.startswith("What is ")]
    continued = [text[text.index("?") + 1 :] for text in opened]
    assert_share(sum(map(asks_again, continued)), len(opened), 0.60 / 0.64)
    first = [text.split("\n")[0] for text in opened]
    answers = [stated(line) for line in first if kind_of(line) == "quiz"]
    right = sum(str(total) == said for total, said in answers)
    assert_share(right, len(opened), 0.04 / 0.64 * 0.7)


# --- what it needs ------------------------------------------------------------------


def test_sums_need_no_transformers():
    ask = "import rl_notes.language.arithmetic, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", ask],
        env=environment(built_site()),
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    loaded = done.stdout.split()
    assert "rl_notes.language.arithmetic" in loaded
    assert not {"transformers", "tokenizers"} & set(loaded)
