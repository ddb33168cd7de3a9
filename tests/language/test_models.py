import socket

import huggingface_hub
import pytest
import torch
from batches import seeded
from language_models import exact, fresh

from rl_notes.language import tokenizer as little
from rl_notes.language.generation import generate
from rl_notes.language.models import load, new_model
from rl_notes.policies import TransformerPolicy

TEXT = [[1, 17, 3, 7, 13, 4, 16, 18]]


def weights(model):
    return torch.cat([weight.flatten() for weight in model.parameters()])


def test_a_new_model_depends_on_its_generator_alone():
    torch.manual_seed(0)
    first = weights(new_model(generator=seeded(3)))
    torch.manual_seed(1)
    assert torch.equal(first, weights(new_model(generator=seeded(3))))
    assert not torch.equal(first, weights(new_model(generator=seeded(4))))


def test_a_new_model_is_small_and_knows_nothing():
    model = new_model(generator=seeded(0))
    assert sum(weight.numel() for weight in model.parameters()) == 134_208
    assert not model.training
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight))
        else:  # normal: over 1,000 numbers each
            assert float(weight.mean()) == pytest.approx(0, abs=0.003)
            assert float(weight.std()) == pytest.approx(0.02, rel=0.08)
    with torch.no_grad():
        probabilities = model(torch.tensor(TEXT)).logits.softmax(-1)
    assert probabilities.shape == (1, 8, 22)
    assert float(probabilities.max()) < 2 / 22


def test_a_new_model_and_its_tokenizer_agree():
    model, tokenizer = new_model(generator=seeded(0)), little.build()
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings == tokenizer.model_max_length
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        expected = getattr(tokenizer, name)
        assert getattr(model.config, name) == expected
        assert getattr(model.generation_config, name) == expected


def curvature(model):
    """Differentiate the sum of squared gradients, as TRPO's products do."""
    logits = model(input_ids=torch.tensor(TEXT), use_cache=False).logits
    objective = logits.log_softmax(-1)[0, :, 5].sum()
    first = torch.autograd.grad(objective, list(model.parameters()), create_graph=True)
    return torch.autograd.grad(
        torch.stack([part.square().sum() for part in first]).sum(),
        list(model.parameters()),
        allow_unused=True,
    )


def test_attention_can_be_differentiated_twice():
    model = fresh(scale=3)
    key = model.model.layers[0].self_attn.k_proj.weight
    names = [weight is key for weight in model.parameters()]
    derivative = curvature(model)[names.index(True)]
    assert bool(torch.isfinite(derivative).all())
    assert float(derivative.norm()) > 0


def test_fused_attention_cannot():
    """Why the little model has eager attention. When this fails, it need not have."""
    model = fresh(scale=3)
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="not implemented"):
        curvature(model)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("A test reached for the network.")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_a_saved_model_is_loaded_as_one_of_the_hub(tmp_path, no_network):
    original, tokenizer = fresh(), little.build()
    original.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokens = load(str(tmp_path))
    assert not model.training
    assert model.config._attn_implementation == "eager"
    assert torch.equal(weights(model), weights(original))
    assert tokens.get_vocab() == tokenizer.get_vocab()
    prompts = little.encode(tokens, ["What is 47+85?", "What is 1+2?"])
    assert prompts == little.encode(tokenizer, ["What is 47+85?", "What is 1+2?"])
    sampled = [
        generate(
            TransformerPolicy(each, 0.7),
            prompts,
            group_size=2,
            max_new_tokens=12,
            generator=seeded(0),
        )
        for each in (model, original)
    ]
    assert torch.equal(sampled[0].actions, sampled[1].actions)
    assert torch.equal(sampled[0].logprobs, sampled[1].logprobs)
    curvature(model)


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "bsae"])
def test_an_unknown_name_is_refused_with_what_to_do(name, no_network):
    with pytest.raises(ValueError) as caught:
        load(name)
    message = str(caught.value)
    for part in (f"'{name}'", "'base'", "'sft'", "spelling", "online", "auth login"):
        assert part in message


# TransformerPolicy


def test_policy_is_causal_and_sees_the_whole_prefix():
    policy = TransformerPolicy(exact(fresh()))
    first = torch.randint(22, (1, 9), generator=seeded(0))
    with torch.no_grad():
        before = policy(first)
        for changed in range(9):
            second = first.clone()
            second[0, changed] = (second[0, changed] + 1) % 22
            moved = (policy(second) - before).abs().amax(dim=-1)[0]
            assert moved[:changed].tolist() == pytest.approx([0] * changed, abs=1e-12)
            assert float(moved[changed:].min()) > 1e-3


def test_temperature_divides_the_logits():
    model = fresh()
    ids = torch.tensor(TEXT)
    with torch.no_grad():
        expected = model(ids).logits / 0.25
        assert torch.equal(TransformerPolicy(model, 0.25)(ids), expected)
        assert torch.equal(TransformerPolicy(model)(ids), model(ids).logits)


def test_padding_on_the_right_changes_nothing_before_it():
    policy = TransformerPolicy(exact(fresh()))
    alone = torch.tensor([[1, 5, 6, 7]])
    padded = torch.tensor([[1, 5, 6, 7, 0, 0, 0], [1, 9, 8, 7, 6, 5, 4]])
    with torch.no_grad():
        torch.testing.assert_close(
            policy(padded)[:1, :4], policy(alone), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_policy_without_a_positive_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        TransformerPolicy(fresh(), temperature)
