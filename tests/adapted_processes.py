"""A step of a model with an adapter (LoRA), on one process or on several: torchrun."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from batches import seeded
from peft import LoraConfig, get_peft_model

from rl_notes.language.generation import generate
from rl_notes.language.models import load
from rl_notes.objectives import token_clip
from rl_notes.parallel import gather
from rl_notes.policies import TransformerPolicy
from rl_notes.updates import grpo_update


def stepped() -> dict[str, torch.Tensor]:
    """The weights that are trained, before and after."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    policy = TransformerPolicy(get_peft_model(load("sft")[0], config).eval())
    trained = [w for w in policy.parameters() if w.requires_grad]
    prompts = [[1, 5, 6], [1, 7, 8, 9, 10]]
    options = {"group_size": 4, "max_new_tokens": 12}
    batch = generate(policy, prompts, generator=seeded(0), **options)
    if dist.is_initialized():
        rows = torch.arange(8).tensor_split(dist.get_world_size())[dist.get_rank()]
        batch = gather(batch.select(rows).trimmed())
    signs = 1 - 2.0 * (torch.arange(8)[:, None] % 2)
    before = torch.nn.utils.parameters_to_vector(trained).detach()
    grpo_update(
        policy,
        torch.optim.SGD(trained, lr=0.1),
        batch,
        signs * batch.mask,
        objective=partial(token_clip, clip_low=0.2, clip_high=0.2),
        epochs=2,
        minibatches=1,
        generator=seeded(1),
        micro_batch=2,
    )
    after = torch.nn.utils.parameters_to_vector(trained).detach()
    return {"before": before, "after": after}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(stepped(), Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
