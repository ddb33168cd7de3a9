"""The reward model: a language model that gives a whole answer one number, its score.

It is learnt from pairs of answers and a choice in each. Rows 2m and 2m + 1 of a batch
are the two answers of pair m, as `generate(..., group_size=2)` gives them.
"""

import copy
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from rl_notes.objectives import preference_loss
from rl_notes.policies import bare, in_float32
from rl_notes.trajectories import Trajectories
from rl_notes.updates._shared import require_optimizer


def new_reward_model(model: PreTrainedModel) -> PreTrainedModel:
    """A sequence classifier with one label that begins with a language model's weights.

    All but the output layer is copied. In its place stands a linear head without a
    bias, and it starts at zero: every answer has the score 0, and the first step of
    training changes the head alone.

    Args:
        model: A causal language model of which transformers has a sequence classifier,
            such as the policy that wrote the answers. It is not changed. An adapter is
            merged into it first: `model.merge_and_unload()`.
    """
    if bare(model) is not model:
        raise ValueError(
            f"The model is wrapped in {type(model).__name__}. Give the model itself, "
            "and of an adapter the merged one: `model.merge_and_unload()`."
        )
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"transformers has no sequence classifier for a {type(model).__name__}, so "
            "it cannot become a reward model."
        )
    auto = cast(Any, AutoModelForSequenceClassification)
    classifier = auto.from_config(config)
    if not isinstance(getattr(classifier, "score", None), nn.Linear):
        raise ValueError(
            f"{type(classifier).__name__} does not score with a linear head on the "
            "last hidden states, as a reward model does here."
        )
    classifier.base_model.load_state_dict(model.base_model.state_dict())
    with torch.no_grad():
        classifier.score.weight.zero_()
    weight = next(model.parameters())
    classifier.to(device=weight.device, dtype=weight.dtype)
    return cast(PreTrainedModel, classifier.eval())


def answer_scores(
    reward_model: nn.Module, trajectories: Trajectories
) -> Float[Tensor, " N"]:
    """Reward model scores r(q, o) of every row: question q, then answer o (score).

    It is read once, at the last token that was sampled: the end token, or where the
    answer was cut. `transformers` reads a sequence classifier at the last token that is
    not padding, which is the same unless a policy has sampled padding.

    A value function says what is to be expected after each prefix. This model judges
    what is finished, and nothing is meant by what it would say earlier.
    """
    lengths = trajectories.lengths  # o ends at observation s_L
    if not bool(trajectories.mask.any(dim=1).all()):
        raise ValueError("A row without a single sampled token has no answer to judge.")
    ids = trajectories.observations[:, : int(lengths.max()) + 1]
    places = torch.arange(ids.shape[1], device=ids.device)
    ids = torch.where(places <= lengths[:, None], ids, 0)
    classifier = cast(Any, bare(reward_model))
    hidden = classifier.base_model(input_ids=ids, use_cache=False).last_hidden_state
    rows = torch.arange(len(ids), device=ids.device)
    return in_float32(classifier.score(hidden[rows, lengths])[:, 0])


def fit_reward_model(
    reward_model: nn.Module,
    optimizer: torch.optim.Optimizer,
    answers: Trajectories,
    first_preferred: Bool[Tensor, " M"],
    *,
    epochs: int,
    minibatches: int,
    generator: torch.Generator,
) -> list[float]:
    """Train a reward model on choices: down the mean (preference) loss, in minibatches.

    In every epoch the pairs are shuffled by `generator` and dealt out to the
    minibatches, whose numbers of pairs differ by at most one. Each minibatch is one
    step of the optimizer.

    Args:
        reward_model: A sequence classifier with one label.
        optimizer: Of the parameters that are to be learnt: all, or the head alone.
        answers: 2M rows; rows 2m and 2m + 1 are the answers of pair m.
        first_preferred: Where row 2m was preferred to row 2m + 1.
        epochs: How often each pair is used.
        minibatches: Into how many parts an epoch deals the pairs out.
        generator: Shuffles the pairs.

    Returns:
        The mean loss of each minibatch, before the step that it led to.
    """
    pairs = len(first_preferred)
    _require_pairs(answers, pairs)
    require_optimizer(reward_model, optimizer, name="reward model")
    if epochs < 1 or not 1 <= minibatches <= pairs:
        raise ValueError(
            f"epochs={epochs} must be at least 1, and minibatches={minibatches} "
            f"between 1 and the number of pairs, {pairs}."
        )
    losses: list[float] = []
    with tqdm(total=epochs * minibatches, unit="step", leave=False) as bar:
        for _ in range(epochs):
            order = torch.randperm(pairs, generator=generator, device=generator.device)
            for part in order.to(first_preferred.device).tensor_split(minibatches):
                both = answers.select(torch.stack([2 * part, 2 * part + 1], 1).view(-1))
                scores = answer_scores(reward_model, both)
                losses.append(_step(optimizer, first_preferred[part], scores))
                bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


def _step(
    optimizer: torch.optim.Optimizer,
    first_preferred: Bool[Tensor, " M"],
    scores: Float[Tensor, " 2*M"],
) -> float:
    """One step down the mean loss of some pairs; return the loss before it."""
    first, second = scores[0::2], scores[1::2]
    chosen = torch.where(first_preferred, first, second)
    rejected = torch.where(first_preferred, second, first)
    loss = preference_loss(chosen, rejected).mean()
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            "The preference loss is not finite. Start again from good weights with a "
            "smaller learning rate."
        )
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def _require_pairs(answers: Trajectories, pairs: int) -> None:
    """Raise unless the rows are pairs of answers to the same question."""
    if pairs < 1 or len(answers.groups) != 2 * pairs:
        raise ValueError(
            f"There are {len(answers.groups)} answers and {pairs} choices. Each choice "
            "needs two answers, and they must be neighbours: sample with group_size=2."
        )
    if bool((answers.groups[0::2] != answers.groups[1::2]).any()):
        raise ValueError(
            "Rows 2m and 2m + 1 must answer the same question. Sample with "
            "group_size=2, and do not reorder the rows."
        )


def reliability(
    predicted: Float[Tensor, " N"], happened: Bool[Tensor, " N"], *, bins: int
) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"], Int[Tensor, " bins"]]:
    """Reliability diagram, by bins of the prediction (calibration).

    Whether what is predicted with 70 % happens in 70 % of cases.
    The predictions are sorted into `bins` intervals of equal width from 0 to 1. For
    each: the mean prediction, the share in which it happened, and the number of cases.
    Where there is no case, both shares are NaN.
    """
    if bins < 1 or len(predicted) == 0:
        raise ValueError("There must be a bin, and something predicted.")
    if not bool(((predicted >= 0) & (predicted <= 1)).all()):
        raise ValueError("predicted must hold probabilities, from 0 to 1.")
    place = (predicted * bins).long().clamp(max=bins - 1)
    members = nn.functional.one_hot(place, bins).to(predicted.dtype)  # [N, bins]
    count = members.sum(dim=0)
    mean = (members * predicted[:, None]).sum(dim=0) / count
    share = (members * happened[:, None]).sum(dim=0) / count
    return mean, share, count.long()
