"""All steps of training for the little language model, and its reward model.

`python -m rl_notes.language.training` makes again the checkpoints that ship with this
package, "base", "sft", "reward" and "grpo", and says how good they are.
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
from rl_notes.language.answers import answer
from rl_notes.language.curriculum import GREEDY, UPDATES, three_lessons
from rl_notes.language.models import checkpoint_path, new_model
from rl_notes.language.preferences import (
    annotate,
    decided,
    preference_probability,
    sample_pairs,
)
from rl_notes.language.reward_model import (
    answer_scores,
    fit_reward_model,
    new_reward_model,
)
from rl_notes.objectives import preference_loss
from rl_notes.policies import TransformerPolicy
from rl_notes.updates._shared import require_optimizer

PRETRAINING_STEPS, FINE_TUNING_STEPS = 400, 1650
COMPARED = 128_000  # questions that the policy answers twice for the annotator
BASE_SEED, SFT_SEED, REWARD_SEED = 0, 3, 0
LEARNING_RATE = 3e-3
CHUNK = 50  # steps whose texts are drawn at once, and between which a run is saved
LARGEST_GRADIENT = 1.0
TEMPERATURE = 1.3  # of the answers that are compared

Row = tuple[list[int], list[bool]]  # token ids, and which of them carry loss
Rows = Callable[[int, torch.Generator], list[Row]]


def next_token_loss(
    model: nn.Module, ids: Int[Tensor, "N T"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """Next-token cross-entropy (language modelling loss): - log pi(a_t | s_t), in nats.

    Each token is predicted from those before it.
    The mean over the tokens where `mask` is True. The first token of a row has nothing
    before it and never counts. Rows are padded on the right.
    """
    counts = mask[:, 1:]
    if not bool(counts.any()):
        raise ValueError(
            "No token carries loss: the mask is True nowhere, or on first tokens only, "
            "before which there is nothing to predict them from."
        )
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # [N, T - 1, A]
    return nn.functional.cross_entropy(logits[counts], ids[:, 1:][counts])


def pretrain(
    model: PreTrainedModel,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = LEARNING_RATE,
    generator: torch.Generator,
    checkpoint: Path | str | None = None,
) -> list[float]:
    """Pre-training on the corpus of `arithmetic.documents`; every token carries loss.

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
    checkpoint: Path | str | None = None,
) -> list[float]:
    """Supervised fine-tuning (SFT) on `supervised_examples`; answers alone carry loss.

    An answer's end token is part of it: without its loss nothing would teach the model
    to stop.
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
    checkpoint: Path | str | None,
) -> list[float]:
    if steps < 1 or batch_size < 1 or not 0 < learning_rate < math.inf:
        raise ValueError(
            f"steps={steps} and batch_size={batch_size} must be at least 1, and "
            f"learning_rate={learning_rate} a positive number."
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    require_optimizer(model, optimizer, name="model")
    scheduler = OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    run = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    settings = [draw.__name__, steps, batch_size, learning_rate]
    losses: list[float] = []
    file = None if checkpoint is None else _writable(checkpoint)
    if file is not None and file.exists():
        losses = _resume(file, run, settings, generator)
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
            if file is not None:
                _save(file, run, settings, generator, losses)
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


def _writable(checkpoint: Path | str) -> Path:
    """The file to save a run in; refuse one that cannot be written, before any step."""
    path = Path(checkpoint)
    unfinished = _unfinished(path)
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        raise ValueError(
            f"The run cannot be saved in {path}: {error}. Give a file in a folder that "
            "exists and can be written to."
        ) from error
    return path


def _unfinished(path: Path) -> Path:
    """Where a run is written before it takes the place of the one before."""
    return path.with_name(f"{path.name}.unfinished")


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
    torch.save(state, _unfinished(path))
    _unfinished(path).replace(path)


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


def learn_preferences(
    model: PreTrainedModel,
    *,
    compared: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    generator: torch.Generator,
) -> PreTrainedModel:
    """Make a reward model from a policy's weights and a simulated annotator's choices.

    The policy answers each question twice, at a temperature of 1.3, so that there is
    more to choose from. The annotator names the better answer, in error in 15 % of
    cases and with no weakness. Where both are right, or both wrong, there is nothing to
    choose, and the pair is left out. Each other pair is used once.

    Args:
        model: The policy. It is not changed.
        compared: How many questions.
        batch_size: Pairs in one update.
        learning_rate: The largest one of a one-cycle schedule.
        generator: Source of every draw.

    Returns:
        A sequence classifier with one label.
    """
    reward_model = new_reward_model(model)
    optimizer = torch.optim.AdamW(reward_model.parameters(), lr=learning_rate)
    chunk = 10 * batch_size
    starts = range(0, compared, chunk)
    policy = TransformerPolicy(model, TEMPERATURE)
    scheduler = OneCycleLR(optimizer, max_lr=learning_rate, total_steps=len(starts))
    learnt = 0
    for start in tqdm(starts, unit="chunk"):
        asked = arithmetic.questions(
            min(chunk, compared - start), held_out=False, generator=generator
        )
        pairs = sample_pairs(policy, asked, generator=generator)
        chances = preference_probability(pairs.asked, pairs.first, pairs.second)
        pairs, chances = decided(pairs, chances)
        if len(chances) > 0:  # in a short chunk it may be that nothing is decided
            fit_reward_model(
                reward_model,
                optimizer,
                pairs.answers,
                annotate(chances, generator=generator),
                epochs=1,
                minibatches=max(1, round(len(chances) / batch_size)),
                generator=generator,
            )
            scheduler.step()
            learnt += len(chances)
    if learnt == 0:
        raise ValueError(
            f"In none of {compared} pairs was one answer right and the other wrong, so "
            "there was nothing to learn from. Compare more answers, or another "
            "policy's."
        )
    return reward_model


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
    policy = TransformerPolicy(model, temperature)
    _, _, answers = answer(policy, asked, generator=generator)
    found = (
        arithmetic.accuracy_reward(asked, answers),
        arithmetic.form_reward(asked, answers),
        [arithmetic.shows_work(text) for text in answers],
        [arithmetic.asks_again(text) for text in answers],
    )
    right, form, worked, again = torch.tensor(found, device="cpu").float()
    shown = worked.bool()
    return {
        "right": right.mean().item(),
        "form": form.mean().item(),
        "worked": worked.mean().item(),
        "right_worked": right[shown].mean().item(),
        "right_direct": right[~shown].mean().item(),
        "asks_again": again.mean().item(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the models from fixed seeds, write them to a folder and measure them."""
    parser = argparse.ArgumentParser(
        prog="python -m rl_notes.language.training", description=main.__doc__
    )
    shipped = checkpoint_path("base").parent
    parser.add_argument("--folder", type=Path, default=shipped)
    parser.add_argument("--pretraining-steps", type=int, default=PRETRAINING_STEPS)
    parser.add_argument("--fine-tuning-steps", type=int, default=FINE_TUNING_STEPS)
    parser.add_argument("--compared", type=int, default=COMPARED)
    parser.add_argument("--updates", type=int, nargs=3, default=UPDATES)
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
    generator = torch.Generator().manual_seed(REWARD_SEED)
    reward_model = learn_preferences(
        model, compared=given.compared, generator=generator
    )
    _write_reward_model(
        reward_model, model, given.folder / "reward.safetensors", given.questions
    )
    three_lessons(model, updates=given.updates)
    _write(model, given.folder / "grpo.safetensors", given.questions)


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


def measure_preferences(
    reward_model: PreTrainedModel,
    model: PreTrainedModel,
    asked: Sequence[str],
    *,
    generator: torch.Generator,
) -> dict[str, float]:
    """Let a policy answer each question twice; what a reward model makes of the pairs.

    `right_over_wrong` is the share, among pairs of a right and a wrong answer, in which
    the right one has the higher score; equal scores do not count for it. `loss` is the
    mean (preference) loss with an annotator's choices, 0.693 for a model that knows
    nothing.
    """
    pairs = sample_pairs(TransformerPolicy(model), asked, generator=generator)
    truth = [
        torch.tensor(arithmetic.accuracy_reward(pairs.asked, texts), device="cpu")
        for texts in (pairs.first, pairs.second)
    ]
    chances = preference_probability(pairs.asked, pairs.first, pairs.second)
    chosen = annotate(chances, generator=generator)
    with torch.no_grad():
        scores = answer_scores(reward_model, pairs.answers).cpu()
    difference = scores[0::2] - scores[1::2]
    loss = preference_loss(
        torch.where(chosen, difference, -difference), torch.zeros_like(difference)
    )
    mixed = truth[0] != truth[1]
    # The right answer's score less the wrong one's: equal scores tell nothing apart.
    lead = torch.where(truth[0] > truth[1], difference, -difference)
    return {
        "pairs": float(len(mixed)),
        "mixed": mixed.float().mean().item(),
        "right_over_wrong": (lead[mixed] > 0).float().mean().item(),
        "loss": loss.mean().item(),
    }


def _write_reward_model(
    reward_model: PreTrainedModel, model: PreTrainedModel, path: Path, n: int
) -> None:
    """Write the weights, and say how well held-out answers are told apart."""
    save_file(reward_model.state_dict(), path)
    tqdm.write(f"{path}, after {time.process_time():.0f} CPU-seconds in all")
    generator = torch.Generator().manual_seed(0)
    asked = arithmetic.questions(n, held_out=True, generator=generator)
    shares = measure_preferences(reward_model, model, asked, generator=generator)
    tqdm.write("  " + ", ".join(f"{name} {x:.3f}" for name, x in shares.items()))


if __name__ == "__main__":
    # One thread: sums in another order round differently, and so would the weights.
    torch.set_num_threads(1)
    main()
