"""What the shipped models can do, measured on held-out questions.

The bounds are on shares of n = 4,000 sampled answers. The standard error of such a
share p is sqrt(p (1 - p) / n): 0.8 points at p = 0.60, 0.7 at 0.30, 0.2 at 0.99. The
draws are fixed; with other draws the shares below would differ by twice that in one
case of 20. A bound that is closer than this to what is measured tells nothing, so
each test also asks for a distance of two standard errors from its bounds.
"""

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification

from rl_notes import language
from rl_notes.language.arithmetic import (
    asks_again,
    follows_form,
    is_right,
    questions,
    shows_work,
)
from rl_notes.language.generation import generate
from rl_notes.language.models import SHIPPED, checkpoint_path, load
from rl_notes.language.tokenizer import answer_text, encode
from rl_notes.language.training import measure_preferences
from rl_notes.policies import TransformerPolicy

N = 4_000


def answers_of(name, temperature=1.0):
    """The questions and one answer to each."""
    model, tokens = load(name)
    generator = torch.Generator().manual_seed(2026)
    asked = questions(N, held_out=True, generator=generator)
    sampled = generate(
        TransformerPolicy(model, temperature),
        encode(tokens, asked),
        max_new_tokens=64,
        generator=generator,
    )
    rows = zip(asked, sampled.actions, sampled.mask, strict=True)
    return [(text, answer_text(tokens, ids[mask].tolist())) for text, ids, mask in rows]


def error(share, n=N):
    """The standard error of a share of n independent answers."""
    return math.sqrt(share * (1 - share) / n)


def share(truths):
    truths = list(truths)
    return sum(truths) / len(truths)


def lies_within(low, measured, high):
    """True if a share lies between two bounds, and two standard errors off both."""
    margin = 2 * error(measured)
    return low <= measured - margin and measured + margin <= high


# What is sampled here is sampled once, in one process.
pytestmark = pytest.mark.xdist_group("checkpoints")


@pytest.fixture(scope="module")
def base():
    return answers_of("base")


@pytest.fixture(scope="module")
def sft():
    return answers_of("sft")


@pytest.fixture(scope="module")
def greedy():
    """The likeliest token each time, from a temperature near 0."""
    return answers_of("sft", temperature=1e-3)


def test_the_bounds_keep_their_distance():
    assert error(0.6, n=2000) == pytest.approx(0.011, abs=1e-4)
    assert lies_within(0.55, 0.60, 0.65)
    assert not lies_within(0.55, 0.555, 0.65)
    assert not lies_within(0.55, 0.645, 0.65)


def test_the_base_model_does_not_answer(base):
    assert share(is_right(answer, question) for question, answer in base) < 0.05
    right = share(is_right(answer, question) for question, answer in base)
    assert right + 2 * error(right) <= 0.05


def test_the_base_model_asks_another_question(base):
    assert lies_within(0.5, share(asks_again(answer) for _, answer in base), 1)


def test_the_sft_model_follows_the_form(sft):
    form = share(follows_form(answer, question) for question, answer in sft)
    assert form - 2 * error(form) >= 0.99


def test_the_sft_model_shows_work_in_three_answers_of_ten(sft):
    assert lies_within(0.25, share(shows_work(answer) for _, answer in sft), 0.35)


def test_the_sft_model_is_right_in_six_answers_of_ten(sft):
    right = share(is_right(answer, question) for question, answer in sft)
    assert lies_within(0.55, right, 0.65)


def test_the_sft_model_is_right_more_often_with_its_work_shown(sft):
    worked, direct = (
        [
            is_right(answer, asked)
            for asked, answer in sft
            if shows_work(answer) == shown
        ]
        for shown in (True, False)
    )
    spread = math.hypot(
        error(share(worked), len(worked)), error(share(direct), len(direct))
    )
    # About 1,200 and 2,800 answers: 1.5 points. Five of them cannot be luck.
    assert share(worked) - share(direct) > 5 * spread


def test_the_sft_model_is_not_perfect_greedily(greedy):
    right = share(is_right(answer, question) for question, answer in greedy)
    assert lies_within(0.60, right, 0.80)


def test_the_grpo_model_shows_its_work_and_is_right():
    """Sampled. The fine-tuned model: 6 right of 10, 3 with work."""
    answers = answers_of("grpo")
    assert lies_within(0.95, share(is_right(a, q) for q, a in answers), 1)
    assert lies_within(0.90, share(shows_work(a) for _, a in answers), 0.96)
    form = share(follows_form(answer, question) for question, answer in answers)
    assert form - 2 * error(form) >= 0.99


def test_the_grpo_model_is_right_greedily():
    right = share(is_right(a, q) for q, a in answers_of("grpo", temperature=1e-3))
    assert lies_within(0.97, right, 1)


# The reward model


def test_the_reward_model_prefers_right_answers_in_two_pairs_of_three():
    """Pairs of a right and a wrong answer to a held-out question, about 1,000."""
    generator = torch.Generator().manual_seed(2026)
    asked = questions(3000, held_out=True, generator=generator)
    found = measure_preferences(
        load("reward")[0], load("sft")[0], asked, generator=generator
    )
    pairs = found["pairs"] * found["mixed"]
    assert pairs > 950
    agrees = found["right_over_wrong"]
    assert 0.62 < agrees - 2 * error(agrees, pairs)
    assert agrees + 2 * error(agrees, pairs) < 0.72


def test_the_reward_model_is_a_sequence_classifier_with_one_label():
    model, tokens = load("reward")
    assert isinstance(model, LlamaForSequenceClassification)
    assert not model.training
    text = encode(tokens, ["What is 47+85?47+85 is 132"])[0] + [tokens.eos_token_id]
    with torch.no_grad():
        assert model(torch.tensor([text])).logits.shape == (1, 1)


def test_all_files_together_are_at_most_three_megabytes():
    sizes = [checkpoint_path(name).stat().st_size for name in SHIPPED]
    assert sum(sizes) <= 3_000_000
    folder = checkpoint_path("base").parent
    assert {path.stem for path in folder.glob("*.safetensors")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_files_are_small_and_travel_with_the_package(name):
    path = checkpoint_path(name)
    assert path.parent == Path(language.__file__).parent / "checkpoints"
    assert path.stat().st_size < 600_000
    assert {weight.dtype for weight in load(name)[0].parameters()} == {torch.float32}
