import copy
import math
from dataclasses import replace

import pytest
import torch
from batches import random_batch, seeded
from language_models import exact, fresh, tiny
from torch import nn
from transformers import LlamaForSequenceClassification

from rl_notes.language.generation import generate
from rl_notes.language.reward_model import (
    answer_scores,
    fit_reward_model,
    new_reward_model,
    reliability,
)
from rl_notes.policies import TransformerPolicy
from rl_notes.trajectories import Trajectories

PROMPTS = [[1, 0, 3], [1, 3], [1, 3, 3, 0]]


@pytest.fixture
def policy():
    return TransformerPolicy(tiny(scale=20))


def classifier(seed=0):
    """A reward model in exact float64 with a head that is not zero."""
    model = exact(new_reward_model(tiny(scale=20, seed=seed).float()))
    with torch.no_grad():
        model.score.weight.copy_(
            torch.randn(model.score.weight.shape, generator=seeded(seed))
        )
    return model


def answers(policy, *, pairs=6, seed=0):
    """Two answers to each prompt: some end, some are cut; token 0 may be sampled."""
    prompts = [PROMPTS[m % 3] for m in range(pairs)]
    return generate(
        policy, prompts, group_size=2, max_new_tokens=4, generator=seeded(seed)
    )


# A new reward model


def test_a_new_reward_model_begins_with_the_weights_of_the_policy():
    model = fresh()
    found = new_reward_model(model)
    assert isinstance(found, LlamaForSequenceClassification)
    assert found.config.num_labels == 1
    assert not found.training
    for name, weight in model.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], weight), name
    assert tuple(found.score.weight.shape) == (1, 64)
    assert found.score.weight.count_nonzero() == 0
    assert found.config._attn_implementation == "eager"


def test_its_weights_are_its_own():
    model = fresh()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for weight in new_reward_model(model).parameters():
            weight.add_(1)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_a_reward_model_has_the_dtype_of_the_policy():
    assert new_reward_model(fresh().double()).score.weight.dtype == torch.float64


def test_at_first_all_answers_are_equal(policy):
    model = exact(new_reward_model(tiny(scale=20).float()))
    scores = answer_scores(model, answers(policy))
    assert scores.tolist() == [0.0] * 12


# Scores


def by_itself(model, batch, row):
    """The score of one answer, from a forward pass without any padding."""
    tokens = batch.observations[row : row + 1, : int(batch.lengths[row]) + 1]
    hidden = model.model(input_ids=tokens).last_hidden_state
    return float((hidden[0, -1] @ model.score.weight[0]).detach())


def test_a_score_is_that_of_the_answer_by_itself(policy):
    model, batch = classifier(), answers(policy)
    assert len(set(batch.lengths.tolist())) > 2
    found = answer_scores(model, batch)
    expected = [by_itself(model, batch, row) for row in range(12)]
    assert found.tolist() == pytest.approx(expected, abs=1e-10)
    assert float(found.detach().std()) > 0.1


def test_what_stands_after_an_answer_changes_nothing(policy):
    model, batch = classifier(), answers(policy)
    beyond = torch.arange(batch.observations.shape[1]) > batch.lengths[:, None]
    other = replace(batch, observations=torch.where(beyond, 10**6, batch.observations))
    wide = replace(
        batch,
        **{
            name: nn.functional.pad(getattr(batch, name), (0, 3))
            for name in ("actions", "logprobs", "rewards", "discounts", "mask")
        },
        observations=nn.functional.pad(batch.observations, (0, 3), value=10**6),
    )
    expected = answer_scores(model, batch)
    for changed in (other, wide):
        torch.testing.assert_close(
            answer_scores(model, changed), expected, rtol=0, atol=1e-12
        )


def test_transformers_reads_the_same_score_where_no_padding_was_sampled(policy):
    model, batch = classifier(), answers(policy, pairs=30)
    rows = (batch.actions != 0).logical_or(~batch.mask).all(dim=1)
    rows = rows.nonzero()[:, 0]
    assert len(rows) > 10
    chosen = batch.select(rows)
    places = torch.arange(chosen.observations.shape[1])
    with torch.no_grad():
        theirs = model(
            input_ids=chosen.observations,
            attention_mask=(places <= chosen.lengths[:, None]).long(),
        ).logits[:, 0]
        ours = answer_scores(model, chosen)
    # It looks for the last token that is not 0: the same, as no 0 was sampled.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_padding_that_was_sampled_is_part_of_the_answer(policy):
    model, batch = classifier(), answers(policy, pairs=30)
    last = batch.observations.gather(1, batch.lengths[:, None])[:, 0]
    row = int((last == 0).nonzero()[0, 0])
    found = answer_scores(model, batch.select(torch.tensor([row])))
    assert float(found.detach()[0]) == pytest.approx(
        by_itself(model, batch, row), abs=1e-10
    )


def test_an_answer_without_a_token_is_refused():
    with pytest.raises(ValueError, match="no answer to judge"):
        answer_scores(classifier(), random_batch([2, 0], states=4))


# Learning from choices


def preferred(batch):
    """Whoever ends on a smaller token is preferred."""
    last = batch.observations.gather(1, batch.lengths[:, None])[:, 0]
    return last[0::2] < last[1::2]


def fit(model, batch, chosen, *, lr=0.01, epochs=1, minibatches=1, seed=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return fit_reward_model(
        model,
        optimizer,
        batch,
        chosen,
        epochs=epochs,
        minibatches=minibatches,
        generator=seeded(seed),
    )


def test_the_first_loss_is_log_two_and_the_gradient_is_that_of_logistic_regression(
    policy,
):
    """At the start the loss is a logistic regression on differences of features."""
    batch = answers(policy)
    chosen = preferred(batch)
    model = exact(new_reward_model(tiny(scale=20).float()))
    losses = fit(model, batch, chosen, lr=1.0)
    assert losses == pytest.approx([math.log(2)], abs=1e-12)
    start = exact(new_reward_model(tiny(scale=20).float()))
    rows = torch.arange(12)
    with torch.no_grad():
        hidden = start.model(input_ids=batch.observations).last_hidden_state
    features = hidden[rows, batch.lengths]
    difference = features[0::2] - features[1::2]
    sign = 2 * chosen.double() - 1
    # The derivative of log sigmoid at 0 is 1/2.
    expected = (sign[:, None] * difference).mean(0) / 2
    torch.testing.assert_close(model.score.weight[0], expected, rtol=0, atol=1e-10)


def test_the_loss_of_each_step_by_hand(policy):
    model, batch = classifier(), answers(policy)
    chosen = preferred(batch)
    with torch.no_grad():
        scores = answer_scores(model, batch)
    chance = torch.sigmoid(scores[0::2] - scores[1::2])
    expected = -torch.where(chosen, chance, 1 - chance).log().mean()
    assert fit(model, batch, chosen)[0] == pytest.approx(float(expected), abs=1e-10)


def test_choices_are_learnt(policy):
    model, batch = classifier(), answers(policy, pairs=60)
    last = batch.observations.gather(1, batch.lengths[:, None])[:, 0]
    tied = last[0::2] == last[1::2]
    keep = (~tied).nonzero()[:, 0]
    rows = torch.stack([2 * keep, 2 * keep + 1], 1).view(-1)
    batch = batch.select(rows)
    chosen = preferred(batch)
    losses = fit(model, batch, chosen, lr=0.1, epochs=40, minibatches=2)
    assert len(losses) == 80
    scores = answer_scores(model, batch)
    agree = (scores[0::2] > scores[1::2]) == chosen
    assert float(agree.float().mean()) > 0.9
    assert sum(losses[-2:]) < 0.5 * sum(losses[:2])


def test_head_alone_or_all_is_the_choice_of_the_optimizer(policy):
    model, batch = classifier(), answers(policy)
    before = copy.deepcopy(model.model.state_dict())
    head = model.score.weight.detach().clone()
    optimizer = torch.optim.SGD(model.score.parameters(), lr=0.1)
    fit_reward_model(
        model,
        optimizer,
        batch,
        preferred(batch),
        epochs=1,
        minibatches=2,
        generator=seeded(0),
    )
    assert all(torch.equal(model.model.state_dict()[k], v) for k, v in before.items())
    assert not torch.equal(model.score.weight, head)


def test_exchanging_the_answers_and_the_choices_changes_nothing(policy):
    batch = answers(policy)
    swapped = batch.select(torch.arange(12).view(6, 2).flip(1).reshape(-1))
    one, other = classifier(), classifier()
    chosen = preferred(batch)
    first = fit(one, batch, chosen, epochs=2, minibatches=3)
    second = fit(other, swapped, ~chosen, epochs=2, minibatches=3)
    assert first == pytest.approx(second, abs=1e-10)
    torch.testing.assert_close(one.score.weight, other.score.weight)


def test_a_pair_stays_together_in_every_minibatch(policy, monkeypatch):
    batch, seen = answers(policy), []

    def looked_at(model, both):
        seen.append(both.groups.view(-1, 2))
        return answer_scores(model, both)

    monkeypatch.setattr("rl_notes.language.reward_model.answer_scores", looked_at)
    fit(classifier(), batch, preferred(batch), epochs=2, minibatches=4)
    assert [len(pairs) for pairs in seen] == [2, 2, 1, 1] * 2
    assert all(torch.equal(pairs[:, 0], pairs[:, 1]) for pairs in seen)
    for epoch in (seen[:4], seen[4:]):
        assert sorted(torch.cat(epoch)[:, 0].tolist()) == list(range(6))
    assert not torch.equal(torch.cat(seen[:4]), torch.cat(seen[4:]))


def test_pairs_that_are_none_are_refused(policy):
    model, batch = classifier(), answers(policy)
    chosen = preferred(batch)
    with pytest.raises(ValueError, match="12 answers and 5 choices"):
        fit(model, batch, chosen[:5])
    moved = batch.select(torch.arange(12).roll(1))
    with pytest.raises(ValueError, match="must answer the same question"):
        fit(model, moved, chosen)
    for wrong in ({"epochs": 0}, {"minibatches": 7}, {"minibatches": 0}):
        with pytest.raises(ValueError, match=r"epochs=\d must be at least 1, and"):
            fit(model, batch, chosen, **wrong)


def test_a_loss_that_is_not_finite_is_refused(policy):
    model, batch = classifier(), answers(policy)
    with torch.no_grad():
        model.score.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="preference loss is not finite"):
        fit(model, batch, preferred(batch))


# Calibration


def test_reliability_by_hand():
    predicted = torch.tensor([0.1, 0.3, 0.45, 0.8, 1.0, 0.9], dtype=torch.float64)
    happened = torch.tensor([False, True, False, True, True, False])
    mean, share, count = reliability(predicted, happened, bins=2)
    assert mean.tolist() == pytest.approx([0.85 / 3, 0.9])
    assert share.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert count.tolist() == [3, 3]


def test_an_empty_bin_has_no_share():
    predicted, happened = torch.tensor([0.9]), torch.tensor([True])
    mean, share, count = reliability(predicted, happened, bins=4)
    assert count.tolist() == [0, 0, 0, 1]
    assert torch.isnan(mean[:3]).all()
    assert torch.isnan(share[:3]).all()
    assert float(share[3]) == 1


def test_predictions_that_are_no_probabilities_are_refused():
    for predicted, bins in (
        (torch.tensor([1.1]), 2),
        (torch.tensor([float("nan")]), 2),
    ):
        with pytest.raises(ValueError, match="probabilities, from 0 to 1"):
            reliability(predicted, torch.tensor([True]), bins=bins)
    with pytest.raises(ValueError, match="There must be a bin"):
        reliability(torch.tensor([0.5]), torch.tensor([True]), bins=0)


def test_the_scores_of_a_batch_have_its_type(policy):
    batch = answers(policy)
    assert isinstance(batch, Trajectories)
    assert answer_scores(classifier(), batch).dtype == torch.float64
