import math
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rl_notes.language import training
from rl_notes.language.arithmetic import (
    documents,
    is_held_out,
    questions,
    supervised_examples,
)
from rl_notes.language.models import new_model
from rl_notes.language.tokenizer import build, encode
from rl_notes.language.training import fine_tune, main, next_token_loss, pretrain

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
    texts = [tokens.decode(row) for ids, _ in batches for row in ids]
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


def test_the_command_on_a_short_run(tmp_path, capsys):
    """It writes both models, the second trained on from the first, and the same again.

    The seeds are fixed, so another run writes the same bytes.
    """
    short = ("--pretraining-steps", "3", "--fine-tuning-steps", "2")
    for folder in ("first", "second"):
        main([*short, "--questions", "20", "--folder", str(tmp_path / folder)])
    said = capsys.readouterr().out
    assert said.count("base.safetensors, after ") == 2
    assert said.count("sft.safetensors, after ") == 2
    assert said.count("temperature 1.0, n=20: right ") == 4
    for name in ("base", "sft"):
        files = [tmp_path / run / f"{name}.safetensors" for run in ("first", "second")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert 500_000 < files[0].stat().st_size < 600_000

    generator = torch.Generator().manual_seed(training.BASE_SEED)
    model = new_model(generator=generator)
    for name, loop, steps in (("base", pretrain, 3), ("sft", fine_tune, 2)):
        loop(model, steps=steps, generator=generator)
        generator.manual_seed(training.SFT_SEED)
        loaded = little(seed=9)
        loaded.load_state_dict(load_file(tmp_path / "first" / f"{name}.safetensors"))
        assert torch.equal(weights(loaded), weights(model))
