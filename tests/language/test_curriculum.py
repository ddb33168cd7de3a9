"""GRPO with nothing but the rule, and the lessons of the "grpo" checkpoint."""

import math
from typing import Any

import pytest
import torch
from batches import seeded

from rl_notes.language import curriculum
from rl_notes.language.arithmetic import (
    accuracy_reward,
    is_held_out,
    numbers,
    questions,
    worked_answer,
)
from rl_notes.language.curriculum import (
    any_kind,
    is_long_with_a_carry,
    learn_from_the_rule,
    mostly_got_wrong,
    mostly_long_with_a_carry,
    three_lessons,
)
from rl_notes.language.generation import generate
from rl_notes.language.models import load, new_model
from rl_notes.language.tokenizer import answer_text, answer_texts, build, encode
from rl_notes.objectives import mean_over_tokens
from rl_notes.policies import TransformerPolicy
from rl_notes.updates import grpo_update


def little():
    return new_model(generator=seeded(0))


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def question_in(row):
    return build().decode(row).removeprefix("<bos>").split("?")[0] + "?"


def six(generator):
    return any_kind(generator, n=6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"updates": 0},
        *({"rates": rates} for rates in [(0.0, 0.0), (math.nan, 0.0), (1e-4, -1e-4)]),
    ],
)
def test_a_run_without_updates_or_steps_is_refused(wrong):
    options = {"updates": 1, "generator": seeded(0), **wrong}
    with pytest.raises(ValueError, match="must be at least 1, and rates="):
        learn_from_the_rule(little(), six, **options)


def test_the_rule_is_learnt_from_groups_of_answers(monkeypatch):
    """Each update: the scores of the truth within its group, at a rate that falls."""
    model = load("sft")[0]
    before, updates, rates = weights(model), [], []

    def spy(policy, optimizer, batch, advantages, **settings):
        updates.append((batch, advantages, settings))
        rates.append(optimizer.param_groups[0]["lr"])
        return grpo_update(policy, optimizer, batch, advantages, **settings)

    monkeypatch.setattr(curriculum, "grpo_update", spy)
    options: dict[str, Any] = {
        "group_size": 4,
        "minibatches": 3,
        "rates": (1e-5, 0.2e-5),
    }
    found = learn_from_the_rule(model, six, updates=4, generator=seeded(0), **options)
    assert not torch.equal(weights(model), before)
    assert rates == pytest.approx([1e-5, 0.8e-5, 0.6e-5, 0.4e-5])
    for share, (batch, advantages, settings) in zip(found, updates, strict=True):
        asked = [question_in(row) for row in batch.observations]
        assert not any(is_held_out(*numbers(question)) for question in asked)
        assert [asked[4 * group] for group in range(6) for _ in range(4)] == asked
        rows = zip(batch.actions, batch.mask, strict=True)
        texts = [answer_text(build(), row[mask].tolist()) for row, mask in rows]
        right = torch.tensor(accuracy_reward(asked, texts)).view(6, 4)
        assert share == pytest.approx(right.mean().item())
        better = right - right.mean(1, keepdim=True)
        expected = (better / (right.std(1, keepdim=True) + 1e-4)).flatten()
        assert torch.allclose(advantages, expected[:, None] * batch.mask, atol=1e-6)
        assert settings["aggregate"] is mean_over_tokens
        assert (settings["epochs"], settings["minibatches"]) == (2, 3)
        assert settings["objective"].keywords == {"clip_low": 0.2, "clip_high": 0.2}
    assert any(bool(advantages.any()) for _, advantages, _ in updates)


def test_the_kind_of_the_second_lesson():
    """A carry in the last column puts three tokens before the hundreds."""
    for question, kind in {
        "What is 5597+3424?": True,
        "What is 823+4027?": True,
        "What is 5593+3424?": False,  # no carry in the last column
        "What is 3424+559?": False,  # the second number is not long enough
        "What is 97+3424?": False,  # nor is the first
    }.items():
        assert is_long_with_a_carry(question) == kind
    steps = [worked_answer(f"What is {n}+3424?").split(",") for n in (5527, 5523)]
    longer, shorter = (len(",".join(before[:2])) for before in steps)
    assert longer == shorter + 3
    shares = [is_long_with_a_carry(q) for q in any_kind(seeded(0), n=8000)]
    assert sum(shares) / len(shares) == pytest.approx(1 / 16, abs=0.01)


def test_three_of_four_questions_are_of_the_kind():
    asked = mostly_long_with_a_carry(seeded(0))
    assert len(set(asked)) == 48
    assert all(is_long_with_a_carry(question) for question in asked[:36])
    assert sum(is_long_with_a_carry(question) for question in asked[36:]) < 6
    assert not any(is_held_out(*numbers(question)) for question in asked)
    assert mostly_long_with_a_carry(seeded(1))[:36] != asked[:36]


@pytest.mark.parametrize(("tried", "fewest", "most"), [(300, 37, 300), (20, 1, 20)])
def test_what_the_model_gets_wrong_is_asked_again(monkeypatch, tried, fewest, most):
    """First come up to 36 of those, and then questions as usual."""
    model, generator = load("sft")[0], seeded(0)
    others = questions(tried, held_out=False, generator=generator)
    likeliest = generate(
        TransformerPolicy(model, 1e-3),
        encode(build(), others),
        max_new_tokens=64,
        generator=generator,
    )
    right = accuracy_reward(others, answer_texts(build(), likeliest))
    wrong = [text for text, share in zip(others, right, strict=True) if not share]
    assert fewest <= len(wrong) <= most
    usual = questions(48, held_out=False, generator=generator)

    monkeypatch.setattr(curriculum, "TRIED", tried)
    asked = mostly_got_wrong(model, seeded(0))
    assert asked == [*wrong[:36], *usual][:48]


def test_each_lesson_goes_on_with_the_model_of_the_one_before(monkeypatch):
    """What is asked, how often, at which rates, and from which seed."""
    held, asked = [], []

    def lesson(model, ask, *, updates, generator, **settings):
        held.append((model, updates, generator.initial_seed(), settings))
        asked.append(ask(generator))
        return [0.5] * updates

    monkeypatch.setattr(curriculum, "learn_from_the_rule", lesson)
    monkeypatch.setattr(curriculum, "TRIED", 40)
    model = little()
    found = three_lessons(model, updates=(3, 2, 1))
    assert found == [[0.5, 0.5, 0.5], [0.5, 0.5], [0.5]]
    often = {"group_size": 32, "minibatches": 1}
    assert held == [
        (model, 3, 2, {}),
        (model, 2, 0, {"rates": (3e-4, 3e-4), **often}),
        (model, 1, 1, {"rates": (3e-4, 0.0), **often}),
    ]
    of_the_kind = [sum(map(is_long_with_a_carry, lesson)) for lesson in asked]
    assert [len(lesson) for lesson in asked] == [64, 48, 48]
    assert of_the_kind[1] >= 36
    assert max(of_the_kind[0], of_the_kind[2]) < 10
    # A model that knows nothing gets all wrong: the first 36 are those it was tried on.
    assert asked[2][:36] == any_kind(seeded(1), n=40)[:36]
