import math
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from batches import seeded
from safetensors.torch import load_file
from torch import nn

from rl_notes.language import training
from rl_notes.language.arithmetic import (
    accuracy_reward,
    documents,
    is_held_out,
    numbers,
    questions,
    supervised_examples,
)
from rl_notes.language.curriculum import three_lessons
from rl_notes.language.models import SHIPPED, load, new_model
from rl_notes.language.preferences import (
    length,
    preference_probability,
    sample_pairs,
)
from rl_notes.language.reward_model import fit_reward_model, new_reward_model
from rl_notes.language.tokenizer import answer_text, build, encode
from rl_notes.language.training import (
    fine_tune,
    learn_preferences,
    main,
    measure_preferences,
    next_token_loss,
    pretrain,
)

LOOPS = (pretrain, fine_tune)


def little(seed=0):
    return new_model(generator=torch.Generator().manual_seed(seed))


def train(loop, *, steps, seed=1, model=None, **settings):
    """A short run; the model and its losses."""
    model = model or little()
    generator = torch.Generator().manual_seed(seed)
    settings = {"batch_size": 4, **settings}
    return model, loop(model, steps=steps, generator=generator, **settings)


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


class Fixed(nn.Module):
    """A language model that has the same logits wherever it is."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, input_ids, use_cache):
        assert not use_cache
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


@pytest.fixture
def batches(monkeypatch):
    """What the loop hands to its loss, batch by batch."""
    seen = []

    def spy(model, ids, mask):
        seen.append((ids, mask))
        return next_token_loss(model, ids, mask)

    monkeypatch.setattr(training, "next_token_loss", spy)
    return seen


# The loss


def test_the_loss_by_hand():
    """Logits log 1, log 2, log 5: the tokens have probabilities 1/8, 2/8, 5/8."""
    model = Fixed([0.0, math.log(2), math.log(5)])
    ids = torch.tensor([[2, 0, 1], [0, 2, 2]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    # Tokens 0 and 1 of the first row and 2 of the second; never a row's first token.
    by_hand = (math.log(8) + math.log(4) + math.log(8 / 5)) / 3
    assert next_token_loss(model, ids, mask).item() == pytest.approx(by_hand, rel=1e-6)


def test_each_token_is_predicted_from_those_before_it_alone():
    model, ids = little(), torch.tensor([[1, 18, 5, 9, 6, 10]])
    mask = torch.tensor([[False, False, False, True, False, False]])
    loss = next_token_loss(model, ids, mask)
    logprobs = model(input_ids=ids[:, :3]).logits[0, -1].log_softmax(-1)
    assert loss.item() == pytest.approx(-logprobs[ids[0, 3]].item(), rel=1e-5)
    later = ids.clone()
    later[:, 4:] = 7
    assert next_token_loss(model, later, mask).item() == loss.item()


def test_only_the_answer_is_learned():
    """The loss and its gradient are those of the answer alone, written out here."""
    model = little()
    ids, mask = training._batch(
        training._example_rows(6, torch.Generator().manual_seed(3)), model.device
    )
    examples = supervised_examples(6, generator=torch.Generator().manual_seed(3))
    logprobs, tokens = [], build()
    for prompt, completion in examples:
        asked, answer = encode(tokens, [prompt])[0], encode(tokens, [completion])[0]
        text = torch.tensor([[*asked, *answer[1:], tokens.eos_token_id]])
        scores = model(input_ids=text).logits[0].log_softmax(-1)
        for place in range(len(asked), text.shape[1]):
            logprobs.append(scores[place - 1, text[0, place]])
    expected = -torch.stack(logprobs).mean()
    loss = next_token_loss(model, ids, mask)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters)
    wanted = torch.autograd.grad(expected, parameters)
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True)
    )


def test_what_carries_loss(batches):
    """Answers with their end tokens in fine-tuning, whole documents before; no pad."""
    tokens = build()
    train(fine_tune, steps=2)
    train(pretrain, steps=2)
    learned = [
        [tokens.decode(row[kept]) for row, kept in zip(*batch, strict=True)]
        for batch in batches
    ]
    fine_tuned = supervised_examples(8, generator=torch.Generator().manual_seed(1))
    pretrained = documents(8, generator=torch.Generator().manual_seed(1))
    assert learned[0] + learned[1] == [f"{text}<eos>" for _, text in fine_tuned]
    assert learned[2] + learned[3] == [f"<bos>{text}<eos>" for text in pretrained]
    whole = [tokens.decode(row) for ids, _ in batches[:2] for row in ids]
    padded = re.compile("(<pad>)*")
    for text, (prompt, completion) in zip(whole, fine_tuned, strict=True):
        start = f"<bos>{prompt}{completion}<eos>"
        assert text.startswith(start)
        assert padded.fullmatch(text.removeprefix(start))
    assert any(text.endswith("<pad>") for text in whole)


def test_no_held_out_pair_is_ever_seen(batches):
    for loop in LOOPS:
        train(loop, steps=5, batch_size=64)
    tokens = build()
    texts = [str(tokens.decode(row)) for ids, _ in batches for row in ids]
    pairs = {
        (int(left), int(right))
        for text in texts
        for left, right in re.findall(r"(?<![0-9+])([0-9]+)\+([0-9]+)(?!\+)", text)
    }
    assert len(pairs) > 500
    assert not any(is_held_out(*pair) for pair in pairs)
    # One pair in ten is held out: so many drawn blindly would not all miss it.
    asked = questions(1, held_out=True, generator=torch.Generator().manual_seed(0))
    assert is_held_out(*map(int, re.findall("[0-9]+", asked[0])))


# The loops


@pytest.mark.parametrize("loop", LOOPS)
def test_the_loss_falls(loop):
    model, losses = train(loop, steps=40, batch_size=16)
    assert len(losses) == 40
    assert losses[0] == pytest.approx(math.log(22), rel=0.02)  # it starts uniform
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    assert not torch.equal(weights(model), weights(little()))


@pytest.mark.parametrize("loop", LOOPS)
def test_the_same_seeds_give_the_same_weights(loop):
    first, losses = train(loop, steps=3)
    second, again = train(loop, steps=3)
    other, _ = train(loop, steps=3, seed=2)
    assert losses == again
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_that_was_stopped_ends_with_the_same_weights(loop, tmp_path, monkeypatch):
    """Stopped in the middle of a chunk, and gone on with from other weights."""
    monkeypatch.setattr(training, "CHUNK", 3)
    unstopped, losses = train(loop, steps=8)
    file = tmp_path / "run.pt"
    calls = []

    def stopped(*batch):
        calls.append(batch)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return next_token_loss(*batch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "next_token_loss", stopped)
        train(loop, steps=8, checkpoint=file)
    assert len(calls) == 6
    resumed, all_losses = train(
        loop, steps=8, checkpoint=file, seed=5, model=little(seed=9)
    )
    assert torch.equal(weights(resumed), weights(unstopped))
    assert all_losses == losses
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_a_finished_run_is_not_run_again(tmp_path, batches):
    file = tmp_path / "run.pt"
    done, losses = train(pretrain, steps=2, checkpoint=file)
    loaded, again = train(pretrain, steps=2, checkpoint=file, model=little(seed=9))
    assert len(batches) == 2
    assert again == losses
    assert torch.equal(weights(loaded), weights(done))


def test_a_run_is_not_gone_on_with_under_other_settings(tmp_path):
    file = tmp_path / "run.pt"
    train(pretrain, steps=2, checkpoint=file)
    for loop, settings in (
        (fine_tune, {}),
        (pretrain, {"batch_size": 5}),
        (pretrain, {"learning_rate": 1e-3}),
    ):
        with pytest.raises(ValueError, match="holds a run with other settings"):
            train(loop, steps=2, checkpoint=file, **settings)


def test_the_largest_rate_is_the_one_asked_for(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(pretrain, steps=20, learning_rate=2e-3)
    assert max(rates) == pytest.approx(2e-3, rel=0.05)
    assert rates[0] < 2e-4
    assert rates[-1] < 1e-5
    assert 3 < rates.index(max(rates)) < 9


def test_a_huge_gradient_is_clipped(monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    model = little()
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    train(pretrain, steps=1, model=model)
    assert norms == [pytest.approx(1.0, rel=1e-3)]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loss_that_is_not_finite_is_refused(loop):
    model = little()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    before = weights(model)
    with pytest.raises(ValueError, match="The loss is nan: training has failed"):
        train(loop, steps=2, model=model)
    assert torch.equal(weights(model).nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 1, "batch_size": 0},
        {"steps": 1, "learning_rate": 0.0},
        {"steps": 1, "learning_rate": math.nan},
        {"steps": 1, "learning_rate": math.inf},
    ],
)
def test_bad_arguments_are_refused(wrong):
    for loop in LOOPS:
        with pytest.raises(ValueError, match="must be at least 1, and learning_rate"):
            train(loop, **wrong)


def test_the_progress_bar_is_silent_where_nobody_watches(capfd):
    train(pretrain, steps=2)
    assert capfd.readouterr() == ("", "")


# The command


def test_the_command_on_a_short_run(tmp_path, capsys, monkeypatch):
    """It writes all models, each trained on from the one before, from fixed seeds.

    After two steps no answer is right, so the annotator goes by length here.
    """
    by_length = partial(preference_probability, liking=length, weakness=1)
    monkeypatch.setattr(training, "preference_probability", by_length)
    steps = "--pretraining-steps 3 --fine-tuning-steps 2 --updates 1 1 1"
    short = f"{steps} --compared 40 --questions 20".split()
    main([*short, "--folder", str(tmp_path)])
    said = capsys.readouterr().out
    for name in SHIPPED:
        assert said.count(f"{name}.safetensors, after ") == 1
        assert 500_000 < (tmp_path / f"{name}.safetensors").stat().st_size < 600_000
    assert said.count("temperature 1.0, n=20: right ") == 3
    assert said.count("mixed 0.000, right_over_wrong nan, loss 0.6") == 1

    generator = torch.Generator().manual_seed(training.BASE_SEED)
    model = new_model(generator=generator)
    for name, loop, updates in (("base", pretrain, 3), ("sft", fine_tune, 2)):
        loop(model, steps=updates, generator=generator)
        generator.manual_seed(training.SFT_SEED)
        loaded = little(seed=9)
        loaded.load_state_dict(load_file(tmp_path / f"{name}.safetensors"))
        assert torch.equal(weights(loaded), weights(model))
    generator.manual_seed(training.REWARD_SEED)
    reward_model = learn_preferences(model, compared=40, generator=generator)
    loaded = new_reward_model(little(seed=9))
    loaded.load_state_dict(load_file(tmp_path / "reward.safetensors"))
    assert torch.equal(weights(loaded), weights(reward_model))
    three_lessons(model, updates=(1, 1, 1))
    loaded = little(seed=9)
    loaded.load_state_dict(load_file(tmp_path / "grpo.safetensors"))
    assert torch.equal(weights(loaded), weights(model))


# The reward model


def test_choices_of_a_policy_s_answers_are_learnt():
    """Of 5 steps nothing can be expected but that they go down the right way."""
    model = load("sft")[0]
    before = weights(model)
    choices, drawn = [], []

    def counted(policy, asked, **settings):
        drawn.append(len(asked))
        return sample_pairs(policy, asked, **settings)

    def spy(reward_model, optimizer, answers, first_preferred, **settings):
        choices.append((answers, first_preferred, settings))
        return fit_reward_model(
            reward_model, optimizer, answers, first_preferred, **settings
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit_reward_model", spy)
        patch.setattr(training, "sample_pairs", counted)
        reward_model = learn_preferences(
            model, compared=70, batch_size=4, generator=torch.Generator().manual_seed(0)
        )
    assert torch.equal(weights(model), before)
    assert reward_model.get_parameter("score.weight").count_nonzero() > 0
    assert drawn == [40, 30]  # questions
    assert len(choices) == 2
    for answers, first_preferred, settings in choices:
        rows = zip(answers.actions, answers.mask, strict=True)
        texts = [answer_text(build(), row[mask].tolist()) for row, mask in rows]
        asked = [question_in(row) for row in answers.observations]
        assert not any(is_held_out(*numbers(question)) for question in asked)
        truths = torch.tensor(accuracy_reward(asked, texts)).view(-1, 2)
        assert (truths[:, 0] != truths[:, 1]).all()
        agrees = (truths[:, 0] > truths[:, 1]) == first_preferred
        assert 0.5 < float(agrees.float().mean()) <= 1
        assert settings["minibatches"] == round(len(first_preferred) / 4)


def question_in(row):
    return build().decode(row).removeprefix("<bos>").split("?")[0] + "?"


def test_what_is_measured_of_a_reward_model(monkeypatch):
    """A judge that knows the truth is right on all pairs, and its opposite on none."""
    model, asked = load("sft")[0], questions(60, held_out=True, generator=seeded(1))
    judge = new_reward_model(model)
    tokens = build()

    def measured(sign):
        def truth(reward_model, answers):
            rows = zip(answers.actions, answers.mask, strict=True)
            texts = [answer_text(tokens, row[mask].tolist()) for row, mask in rows]
            given = [question_in(row) for row in answers.observations]
            return sign * torch.tensor(accuracy_reward(given, texts))

        monkeypatch.setattr(training, "answer_scores", truth)
        return measure_preferences(judge, model, asked, generator=seeded(2))

    best, worst, none = measured(4.0), measured(-4.0), measured(0.0)
    assert best["right_over_wrong"] == 1
    assert worst["right_over_wrong"] == 0
    assert best["mixed"] == worst["mixed"] > 0.2
    assert best["loss"] < none["loss"] < worst["loss"]
    assert none["loss"] == pytest.approx(math.log(2), abs=1e-6)
