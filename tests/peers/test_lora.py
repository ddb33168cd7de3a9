"""Adapters: a policy, a value and a reward model of which only a few weights learn."""

import copy
import os
import subprocess
import sys
from functools import partial

import adapted_processes
import pytest
import torch
from peft import LoraConfig, get_peft_model

from rl_notes.language.generation import generate
from rl_notes.language.models import load
from rl_notes.language.reward_model import (
    answer_scores,
    fit_reward_model,
    new_reward_model,
)
from rl_notes.objectives import token_clip
from rl_notes.policies import (
    TransformerPolicy,
    TransformerValue,
    action_logprobs,
    state_values,
)
from rl_notes.updates import fit_value, grpo_update, trpo_update

# It still asks transformers by names that will change.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10]]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def with_adapter(model):
    """Rank 2 on two projections; its second matrix not at zero, so that it matters."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return adapted


def sampled(policy):
    options = {"group_size": 4, "max_new_tokens": 12, "generator": seeded(0)}
    return generate(policy, PROMPTS, **options)


@pytest.fixture
def adapted():
    return with_adapter(load("sft")[0])


def test_a_policy_with_an_adapter_samples_and_learns(adapted):
    policy = TransformerPolicy(adapted)
    batch = sampled(policy)
    merged = TransformerPolicy(copy.deepcopy(adapted).merge_and_unload())
    expected = action_logprobs(merged, batch).detach()
    torch.testing.assert_close(batch.logprobs, expected, rtol=0, atol=1e-4)
    before = {name: w.detach().clone() for name, w in adapted.named_parameters()}
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    advantages = torch.where(batch.mask, 1.0, 0.0)
    advantages[::2] *= -1
    stats = grpo_update(
        policy,
        optimizer,
        batch,
        advantages,
        objective=partial(token_clip, clip_low=0.2, clip_high=0.2),
        epochs=2,
        minibatches=1,
        generator=seeded(0),
        micro_batch=2,
    )
    assert stats.kl_mean > 0
    for name, weight in adapted.named_parameters():
        moved = not torch.equal(weight, before[name])
        assert moved == ("lora" in name), name
    batch = sampled(policy)
    found = trpo_update(policy, batch, advantages * 0 + 1, max_kl=0.01, damping=0.1)
    assert found.kl_mean <= 0.01


def test_a_value_with_an_adapter_learns_through_it(adapted):
    batch = sampled(TransformerPolicy(adapted))
    value = TransformerValue(adapted)
    with torch.no_grad():
        value.head.weight.normal_(std=0.1)
    merged = TransformerValue(copy.deepcopy(adapted).merge_and_unload())
    merged.head.load_state_dict(value.head.state_dict())
    found, expected = state_values(value, batch), state_values(merged, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    learns = [weight for weight in value.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in learns]
    fit_value(
        value,
        torch.optim.SGD(learns, lr=0.1),
        batch,
        torch.where(batch.mask, 1.0, 0.0),
        epochs=2,
        minibatches=1,
        generator=seeded(0),
    )
    assert len(learns) > 2
    for weight, old in zip(learns, before, strict=True):
        assert not torch.equal(weight, old)


@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_a_reward_model_is_made_of_the_merged_model(adapted):
    with pytest.raises(ValueError, match=r"model\.merge_and_unload\(\)"):
        new_reward_model(adapted)
    merged = copy.deepcopy(adapted).merge_and_unload()
    reward_model = new_reward_model(merged)
    assert reward_model.config.num_labels == 1


def test_a_reward_model_may_learn_by_an_adapter(adapted):
    batch = generate(
        TransformerPolicy(adapted),
        PROMPTS * 2,
        group_size=2,
        max_new_tokens=12,
        generator=seeded(0),
    )
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    reward_model = get_peft_model(new_reward_model(load("sft")[0]), config).eval()
    optimizer = torch.optim.SGD(reward_model.parameters(), lr=0.5)
    chosen = torch.tensor([True, False, True, False])
    options = {"epochs": 4, "minibatches": 1, "generator": seeded(0)}
    fit_reward_model(reward_model, optimizer, batch, chosen, **options)
    assert float(answer_scores(reward_model, batch).detach().abs().max()) > 0


def test_two_processes_train_an_adapter_as_one_does(tmp_path):
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", adapted_processes.__file__, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=240)
    alone = adapted_processes.stepped()
    moved = (alone["after"] - alone["before"]).norm()
    assert moved > 1e-3
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(found["before"], alone["before"])
        assert (found["after"] - alone["after"]).norm() <= 1e-5 * moved
