"""What a model's files say is heeded, and training that cannot work does not begin."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import seeded
from language_models import fresh
from sweep_models import small_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from rl_notes.language import arithmetic, training
from rl_notes.language import tokenizer as little
from rl_notes.language.generation import generate
from rl_notes.language.models import load
from rl_notes.language.preferences import preference_probability
from rl_notes.language.reward_model import (
    answer_scores,
    fit_reward_model,
    new_reward_model,
)
from rl_notes.language.training import (
    fine_tune,
    learn_preferences,
    measure,
    measure_preferences,
    next_token_loss,
    pretrain,
)
from rl_notes.policies import (
    TabularValue,
    TransformerPolicy,
    TransformerValue,
    action_logprobs,
    state_values,
)
from rl_notes.updates import fit_value


def answers(model, *, group_size=2, tokens=8):
    options = {"max_new_tokens": tokens, "generator": seeded(0)}
    prompts = [[1, 5, 6], [1, 7]]
    policy = TransformerPolicy(model)
    return generate(policy, prompts, group_size=group_size, **options)


def saved(model, folder):
    model.save_pretrained(folder)
    little.build().save_pretrained(folder)
    return str(folder)


# What the files say


def test_weights_are_float32_unless_asked_for_otherwise(tmp_path):
    folder = saved(load("sft")[0].bfloat16(), tmp_path)
    for wanted, options in (
        (torch.float32, {}),
        (torch.bfloat16, {"dtype": torch.bfloat16}),
    ):
        found = load(folder, **options)[0]
        assert {weight.dtype for weight in found.parameters()} == {wanted}
        assert {w.dtype for w in load("base", **options)[0].parameters()} == {wanted}


def test_what_else_from_pretrained_takes_reaches_it(tmp_path):
    folder = saved(fresh(), tmp_path)
    assert load(folder)[0].config._attn_implementation == "eager"
    other = load(folder, attn_implementation="sdpa")[0]
    assert other.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="'sft' ships with this package and takes no"):
        load("sft", revision="main")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "opt", "bloom", "mixtral"])
def test_a_saved_reward_model_comes_back_with_its_own_scores(kind, tmp_path):
    model = small_model(kind)
    reward_model = new_reward_model(model)
    batch = answers(model)
    assert torch.equal(answer_scores(reward_model, batch), torch.zeros(4))
    with torch.no_grad():
        reward_model.get_parameter("score.weight").normal_(generator=seeded(0))
    expected = answer_scores(reward_model, batch)
    assert float(expected.detach().std()) > 0
    found = answer_scores(load(saved(reward_model, tmp_path))[0], batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_classifier_of_several_labels_is_no_reward_model(tmp_path):
    config = copy.deepcopy(fresh().config)
    config.num_labels = 3
    folder = saved(LlamaForSequenceClassification(config), tmp_path)
    with pytest.raises(ValueError, match="classifier with 3 labels"):
        load(folder)


def test_a_body_without_a_classifier_is_refused():
    with pytest.raises(ValueError, match="no sequence classifier for a Mamba"):
        new_reward_model(small_model("mamba"))


def test_the_policy_of_a_reward_model_is_not_changed():
    model = fresh()
    before = model.config.to_dict()
    new_reward_model(model)
    assert model.config.to_dict() == before


def bert():
    config = BertConfig(
        vocab_size=22,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    return BertForMaskedLM(config)


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=22, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


@pytest.mark.parametrize("make", [bert, t5])
def test_what_is_no_causal_model_is_refused_before_spelling_and_login(make, tmp_path):
    model = make()
    name = type(model).__name__
    with pytest.raises(ValueError, match="is no causal language model") as refused:
        load(saved(model, tmp_path))
    assert name in str(refused.value)
    assert "login" not in str(refused.value)
    assert "spelling" not in str(refused.value)


def test_no_end_token_is_part_of_a_text():
    """A model with two end tokens, of which its tokenizer names the other one."""
    model, tokens = load("sft")
    tokens.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    model.resize_token_embeddings(len(tokens), mean_resizing=False)
    model.generation_config.eos_token_id = [2, 22]
    with torch.no_grad():  # it ends as <eos> did
        model.lm_head.weight[22] = model.lm_head.weight[2] * 1.5
    asked = ["What is 1+2?", "What is 12+34?"]
    batch = generate(
        TransformerPolicy(model, 0.01),
        little.encode(tokens, asked),
        max_new_tokens=60,
        generator=seeded(0),
    )
    assert batch.actions[0][batch.mask[0]][-1] == 22
    texts = little.answer_texts(tokens, batch)
    assert texts == ["1+2 is 3", "12+34 is 46"]
    assert arithmetic.accuracy_reward(asked, texts) == [1.0, 1.0]


def test_an_end_token_that_is_not_special_can_be_named():
    tokens = little.build()
    ids = tokens("3\n4", add_special_tokens=False)["input_ids"]
    assert little.answer_text(tokens, ids) == "3\n4"
    assert little.answer_text(tokens, ids, end_tokens=[ids[1]]) == "3"
    pad = tokens.pad_token_id
    assert little.answer_text(tokens, [ids[0], pad]) == "3<pad>"  # no end of an answer


def test_a_vocabulary_larger_than_the_tokenizer():
    """Rows of the embedding that no token uses: sampled, scored, and read as text."""
    model, tokens = load("sft")
    model.resize_token_embeddings(64, mean_resizing=False)
    batch = answers(model)
    expected = action_logprobs(TransformerPolicy(model), batch).detach()
    torch.testing.assert_close(batch.logprobs, expected, rtol=0, atol=1e-4)
    assert len(little.answer_texts(tokens, batch)) == 4


# A value, and its body


def test_a_value_in_half_precision_is_read_in_single():
    value = TransformerValue(fresh().bfloat16())
    assert state_values(value, answers(fresh())).dtype == torch.float32


def test_dropout_is_part_of_a_value_only_in_train_mode():
    model = small_model("gpt2")
    batch, value = answers(model), TransformerValue(model)
    torch.nn.init.normal_(value.head.weight, generator=seeded(0))
    for module in value.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    still = [state_values(value.eval(), batch) for _ in range(2)]
    noisy = [state_values(value.train(), batch) for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*noisy)


# Training that cannot work


def test_an_optimizer_of_another_value_is_refused():
    model = fresh()
    batch, value = answers(model), TransformerValue(model)
    other = torch.optim.SGD(TabularValue(3).parameters(), lr=0.1)
    options: dict[str, Any] = {"epochs": 1, "minibatches": 1, "generator": seeded(0)}
    with pytest.raises(ValueError, match="none of the value function's weights"):
        fit_value(value, other, batch, batch.rewards, **options)


def test_an_optimizer_of_another_reward_model_is_refused():
    model = fresh()
    batch, one, two = answers(model), new_reward_model(model), new_reward_model(model)
    optimizer = torch.optim.SGD(two.parameters(), lr=0.1)
    chosen = torch.tensor([True, False])
    options: dict[str, Any] = {"epochs": 1, "minibatches": 1, "generator": seeded(0)}
    with pytest.raises(ValueError, match="none of the reward model's weights"):
        fit_reward_model(one, optimizer, batch, chosen, **options)


@pytest.mark.parametrize("train", [pretrain, fine_tune])
def test_a_model_with_nothing_to_train_is_refused(train):
    model = fresh().requires_grad_(False)
    with pytest.raises(ValueError, match="The model has no weight that requires a gr"):
        train(model, steps=1, batch_size=2, generator=seeded(0))


@pytest.mark.parametrize("where", [[], [0], [0, 0]])
def test_a_loss_over_no_label_is_refused(where):
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for row, column in enumerate(where):
        mask[row, column] = True  # of a first token, which nothing comes before
    with pytest.raises(ValueError, match="No token carries loss"):
        next_token_loss(fresh(), torch.tensor([[1, 5, 6], [1, 7, 8]]), mask)


@pytest.mark.parametrize("train", [pretrain, fine_tune])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_checkpoint_that_cannot_be_written_is_found_before_the_first_step(
    train, kind, tmp_path
):
    model = fresh()
    before = copy.deepcopy(model.state_dict())
    drawn = seeded(0)
    for path in (tmp_path / "not" / "there" / "run.pt", tmp_path):
        with pytest.raises(ValueError, match=r"cannot be saved in .*Give a file in a"):
            train(model, steps=1, batch_size=2, generator=drawn, checkpoint=kind(path))
    assert torch.equal(drawn.get_state(), seeded(0).get_state())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
    file = tmp_path / "run.pt"
    train(model, steps=1, batch_size=2, generator=drawn, checkpoint=kind(file))
    assert file.is_file()
    assert os.listdir(tmp_path) == ["run.pt"]


def test_a_save_that_breaks_half_way_leaves_the_file_before(tmp_path, monkeypatch):
    file, generator = tmp_path / "run.pt", seeded(0)
    options = {"steps": 51, "batch_size": 1, "checkpoint": file}
    whole, times = torch.save, []

    def breaks_the_second_time(state, path):
        times.append(path)
        if len(times) == 2:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        whole(state, path)

    monkeypatch.setattr(torch, "save", breaks_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        pretrain(fresh(), generator=generator, **options)
    assert len(torch.load(file, weights_only=True)["losses"]) == 50


# Preferences


def test_equal_scores_tell_nothing_apart():
    model = load("sft")[0]
    asked = arithmetic.questions(64, held_out=True, generator=seeded(0))
    knows_nothing = new_reward_model(model)
    shares = measure_preferences(knows_nothing, model, asked, generator=seeded(0))
    assert shares["mixed"] > 0.2
    assert shares["right_over_wrong"] == 0
    assert shares["loss"] == pytest.approx(0.6931, abs=1e-4)


def test_a_chunk_in_which_nothing_is_decided_is_passed_over(monkeypatch):
    """The first of two chunks: all answers right; in the second some are not."""
    calls = []

    def annotator(asked, first, second):
        calls.append(len(asked))
        chances = preference_probability(asked, first, second)
        return torch.full_like(chances, 0.5) if len(calls) == 1 else chances

    monkeypatch.setattr(training, "preference_probability", annotator)
    model = load("sft")[0]
    reward_model = learn_preferences(
        model, compared=40, batch_size=2, generator=seeded(0)
    )
    assert len(calls) == 2
    assert reward_model.get_parameter("score.weight").count_nonzero() > 0


def test_preferences_that_decide_nothing_at_all_are_refused(monkeypatch):
    nothing = lambda asked, first, second: torch.full((len(asked),), 0.5)  # noqa: E731
    monkeypatch.setattr(training, "preference_probability", nothing)
    with pytest.raises(ValueError, match="In none of 6 pairs was one answer right"):
        learn_preferences(load("sft")[0], compared=6, generator=seeded(0))


def test_how_preferences_are_learnt(monkeypatch):
    """At temperature 1.3, one minibatch for so many pairs, and at falling rates."""
    seen = []

    def watched(reward_model, optimizer, pairs, chosen, *, minibatches, **options):
        rate = optimizer.param_groups[0]["lr"]
        seen.append((len(chosen), minibatches, rate))
        return fit_reward_model(
            reward_model, optimizer, pairs, chosen, minibatches=minibatches, **options
        )

    temperatures = []

    def policy(model, temperature):
        temperatures.append(temperature)
        return TransformerPolicy(model, temperature)

    monkeypatch.setattr(training, "fit_reward_model", watched)
    monkeypatch.setattr(training, "TransformerPolicy", policy)
    learn_preferences(load("sft")[0], compared=120, batch_size=2, generator=seeded(0))
    assert temperatures == [1.3]
    assert all(abs(pairs / 2 - parts) <= 0.5 for pairs, parts, _ in seen)
    rates = [rate for *_, rate in seen]
    assert rates[-1] < rates[0] / 100 < max(rates) / 100


def test_few_pairs_are_one_minibatch(monkeypatch):
    parts = []

    def watched(*given, minibatches, **options):
        parts.append(minibatches)
        return fit_reward_model(*given, minibatches=minibatches, **options)

    monkeypatch.setattr(training, "fit_reward_model", watched)
    learn_preferences(load("sft")[0], compared=30, batch_size=30, generator=seeded(0))
    assert parts == [1]


def test_the_shares_of_four_texts(monkeypatch):
    """Right with work, wrong with work, right without, and one that asks again."""
    asked = ["What is 1+2?", "What is 2+2?", "What is 3+4?", "What is 5+5?"]
    texts = [
        "<think>1+2=3</think>1+2 is 3",
        "<think>2+2=5</think>2+2 is 5",
        "3+4 is 7",
        "5+5 is 11",
    ]
    monkeypatch.setattr(little, "answer_texts", lambda *_: texts)
    shares = measure(load("base")[0], asked, generator=seeded(0))
    works = [arithmetic.shows_work(text) for text in texts]
    right = arithmetic.accuracy_reward(asked, texts)
    assert right == [1, 0, 1, 0]
    assert works == [True, True, False, False]
    assert shares["right"] == shares["worked"] == 0.5
    assert shares["right_worked"] == shares["right_direct"] == 0.5
    texts[3] = "5+5 is 10"
    shares = measure(load("base")[0], asked, generator=seeded(0))
    assert (shares["right_worked"], shares["right_direct"]) == (0.5, 1.0)
