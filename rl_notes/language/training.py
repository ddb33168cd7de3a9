"""Pre-training and supervised fine-tuning of the little language model.

`python -m rl_notes.language.training` makes again the two checkpoints that ship with
this package, "base" and "sft", and says how good they are.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm
from transformers import PreTrainedModel

from rl_notes.language import arithmetic, tokenizer
from rl_notes.language.generation import generate
from rl_notes.language.models import checkpoint_path, new_model
from rl_notes.policies import TransformerPolicy

PRETRAINING_STEPS, FINE_TUNING_STEPS = 400, 1650
BASE_SEED, SFT_SEED = 0, 3
LEARNING_RATE = 3e-3
CHUNK = 50  # steps whose texts are drawn at once, and between which a run is saved
LARGEST_GRADIENT = 1.0
GREEDY = 1e-3  # a temperature so low that the likeliest token is as good as certain

Row = tuple[list[int], list[bool]]  # token ids, and which of them carry loss
Rows = Callable[[int, torch.Generator], list[Row]]


def next_token_loss(
    model: nn.Module, ids: Int[Tensor, "N T"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """Cross-entropy of each token given those before it, in nats: - log pi(a_t | s_t).

    The mean over the tokens where `mask` is True. The first token of a row has nothing
    before it and never counts. Rows are padded on the right.
    """
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # [N, T - 1, A]
    counts = mask[:, 1:]
    return nn.functional.cross_entropy(logits[counts], ids[:, 1:][counts])


def pretrain(
    model: PreTrainedModel,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = LEARNING_RATE,
    generator: torch.Generator,
    checkpoint: Path | None = None,
) -> list[float]:
    """Train on the corpus of `arithmetic.documents`; every token carries loss.

    A document stands between the begin token and the end token. The optimizer is AdamW
    with a one-cycle schedule: the rate rises to `learning_rate` and falls to almost 0
    by the last step.

    Args:
        model: The little language model; it is changed in place.
        steps: How many updates.
        batch_size: Documents in one update.
        learning_rate: The largest one of the schedule.
        generator: Source of the texts.
        checkpoint: A file to save the run in, every 50 steps. If it is there, the run
            goes on from it, to the very weights of a run that never stopped.

    Returns:
        The loss before each update.
    """
    return _train(
        model, _document_rows, steps, batch_size, learning_rate, generator, checkpoint
    )


def fine_tune(
    model: PreTrainedModel,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = LEARNING_RATE,
    generator: torch.Generator,
    checkpoint: Path | None = None,
) -> list[float]:
    """Train on `arithmetic.supervised_examples`; only the answers carry loss.

    An answer's end token is part of it: without its loss no answer would ever end.
    Arguments and result are as in `pretrain`.
    """
    return _train(
        model, _example_rows, steps, batch_size, learning_rate, generator, checkpoint
    )


def _document_rows(n: int, generator: torch.Generator) -> list[Row]:
    tokens = tokenizer.build()
    texts = tokenizer.encode(tokens, arithmetic.documents(n, generator=generator))
    rows = [[*text, tokens.eos_token_id] for text in texts]
    return [(row, [True] * len(row)) for row in rows]


def _example_rows(n: int, generator: torch.Generator) -> list[Row]:
    tokens = tokenizer.build()
    examples = arithmetic.supervised_examples(n, generator=generator)
    prompts, completions = zip(*examples, strict=True)
    asked = tokenizer.encode(tokens, prompts)
    answers = tokenizer.encode(tokens, completions, begin=False)
    return [
        (
            [*prompt, *answer, tokens.eos_token_id],
            [False] * len(prompt) + [True] * (len(answer) + 1),
        )
        for prompt, answer in zip(asked, answers, strict=True)
    ]


def _batch(
    rows: Sequence[Row], device: torch.device
) -> tuple[Int[Tensor, "N T"], Bool[Tensor, "N T"]]:
    """Pad rows on the right; the padding (token 0) carries no loss."""
    ids, mask = (
        nn.utils.rnn.pad_sequence(
            [torch.tensor(column, device=device) for column in columns],
            batch_first=True,
        )
        for columns in zip(*rows, strict=True)
    )
    return ids, mask


def _train(
    model: PreTrainedModel,
    draw: Rows,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    checkpoint: Path | None,
) -> list[float]:
    if steps < 1 or batch_size < 1 or not 0 < learning_rate < math.inf:
        raise ValueError(
            f"steps={steps} and batch_size={batch_size} must be at least 1, and "
            f"learning_rate={learning_rate} a positive number."
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    scheduler = OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    run = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    settings = [draw.__name__, steps, batch_size, learning_rate]
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        losses = _resume(checkpoint, run, settings, generator)
    with tqdm(total=steps, initial=len(losses), unit="step") as bar:
        while len(losses) < steps:
            now = min(CHUNK, steps - len(losses))
            rows = draw(now * batch_size, generator)
            for start in range(0, len(rows), batch_size):
                ids, mask = _batch(rows[start : start + batch_size], model.device)
                losses.append(_update(model, optimizer, ids, mask))
                scheduler.step()
                bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            if checkpoint is not None:
                _save(checkpoint, run, settings, generator, losses)
    return losses


def _update(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    ids: Int[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
) -> float:
    """Take one step down the gradient of the loss; return the loss before it."""
    loss = next_token_loss(model, ids, mask)
    if not loss.isfinite():
        raise ValueError(
            f"The loss is {loss.item()}: training has failed. Start again from good "
            "weights with a smaller learning_rate."
        )
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
    optimizer.step()
    return loss.item()


def _save(
    path: Path,
    run: dict[str, Any],
    settings: list[Any],
    generator: torch.Generator,
    losses: list[float],
) -> None:
    state = {name: part.state_dict() for name, part in run.items()}
    state |= {"settings": settings, "losses": losses}
    state["generator"] = generator.get_state()
    # Whoever stops the program while it writes still has the file before.
    unfinished = path.with_name(f"{path.name}.unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def _resume(
    path: Path, run: dict[str, Any], settings: list[Any], generator: torch.Generator
) -> list[float]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["settings"] != settings:
        raise ValueError(
            f"{path} holds a run with other settings, {state['settings']} and not "
            f"{settings}. Give the same ones to go on with it, or another file."
        )
    for name, part in run.items():
        part.load_state_dict(state[name])
    generator.set_state(state["generator"])
    losses: list[float] = state["losses"]
    return losses


def measure(
    model: PreTrainedModel,
    asked: Sequence[str],
    *,
    temperature: float = 1.0,
    generator: torch.Generator,
) -> dict[str, float]:
    """Ask the little model each question once; the shares of what it answers.

    `right_worked` and `right_direct` are shares of the answers with and without work.
    """
    tokens = tokenizer.build()
    policy = TransformerPolicy(model, temperature)
    prompts = tokenizer.encode(tokens, asked)
    sampled = generate(policy, prompts, max_new_tokens=64, generator=generator)
    answers = [
        tokenizer.answer_text(tokens, row[mask].tolist())
        for row, mask in zip(sampled.actions, sampled.mask, strict=True)
    ]
    right = torch.tensor(arithmetic.accuracy_reward(asked, answers))
    form = torch.tensor(arithmetic.form_reward(asked, answers))
    worked = torch.tensor([arithmetic.shows_work(text) for text in answers])
    again = torch.tensor([arithmetic.asks_again(text) for text in answers])
    return {
        "right": right.mean().item(),
        "form": form.mean().item(),
        "worked": worked.float().mean().item(),
        "right_worked": right[worked].mean().item(),
        "right_direct": right[~worked].mean().item(),
        "asks_again": again.float().mean().item(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both models from fixed seeds, write them to a folder and measure them."""
    parser = argparse.ArgumentParser(
        prog="python -m rl_notes.language.training", description=main.__doc__
    )
    shipped = checkpoint_path("base").parent
    parser.add_argument("--folder", type=Path, default=shipped)
    parser.add_argument("--pretraining-steps", type=int, default=PRETRAINING_STEPS)
    parser.add_argument("--fine-tuning-steps", type=int, default=FINE_TUNING_STEPS)
    parser.add_argument("--questions", type=int, default=4000, help="to measure with")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(BASE_SEED)
    model = new_model(generator=generator)
    pretrain(model, steps=given.pretraining_steps, generator=generator)
    _write(model, given.folder / "base.safetensors", given.questions)
    generator = torch.Generator().manual_seed(SFT_SEED)
    fine_tune(model, steps=given.fine_tuning_steps, generator=generator)
    _write(model, given.folder / "sft.safetensors", given.questions)


def _write(model: PreTrainedModel, path: Path, n: int) -> None:
    """Write the weights, and say what the model does with n held-out questions."""
    save_file(model.state_dict(), path)
    tqdm.write(f"{path}, after {time.process_time():.0f} CPU-seconds in all")
    generator = torch.Generator().manual_seed(0)
    asked = arithmetic.questions(n, held_out=True, generator=generator)
    for temperature in (1.0, GREEDY):
        shares = measure(model, asked, temperature=temperature, generator=generator)
        texts = (f"{name} {share:.3f}" for name, share in shares.items())
        tqdm.write(f"  temperature {temperature}, n={n}: {', '.join(texts)}")


if __name__ == "__main__":
    # One thread: sums in another order round differently, and so would the weights.
    torch.set_num_threads(1)
    main()
