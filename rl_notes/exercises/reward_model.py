"""Exercises of the chapter on the reward model."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

from rl_notes.exercises.judging import judge
from rl_notes.objectives import preference_loss


def check_preference_loss(
    answer: Callable[[Tensor, Tensor], Tensor | EllipsisType | None],
) -> None:
    """Exercise: how badly two scores explain a choice, -log sigmoid(x - y).

    Called as answer(chosen [M], rejected [M]); returns one number per pair, [M].
    """
    generator = torch.Generator(device="cpu").manual_seed(10)
    pairs = torch.randn(2, 2, 5, generator=generator, device="cpu").double()
    inputs = [tuple(scores) for scores in pairs]
    far = torch.tensor([0.0, 900.0, -1.5], device="cpu").double()
    inputs.append((far, far.roll(1)))

    judge(
        answer,
        right=preference_loss,
        mistakes={
            "The sign is turned: this is a log-probability, and a loss is to be "
            "minimised.": lambda x, y: -preference_loss(x, y),
            "Chosen and rejected are exchanged.": lambda x, y: preference_loss(y, x),
            "This is the probability of the choice. Its logarithm is missing.": (
                lambda x, y: torch.sigmoid(x - y)
            ),
            "This is 1 less the probability of the choice. Take minus its logarithm.": (
                lambda x, y: torch.sigmoid(y - x)
            ),
            "This is the mean. Return one number per pair.": (
                lambda x, y: preference_loss(x, y).mean()
            ),
            "Right but for large differences, where the sigmoid is 0 in the computer "
            "and its logarithm infinite: use logsigmoid or softplus.": (
                lambda x, y: -torch.sigmoid(x - y).log()
            ),
            "A score by itself says nothing. Take the difference first.": (
                lambda x, y: preference_loss(x, 0 * x)
            ),
        },
        inputs=inputs,
    )


def check_score_at_end(
    answer: Callable[[Tensor, Tensor], Tensor | EllipsisType | None],
) -> None:
    """Exercise: the score of each answer, at its last token.

    Called as answer(everywhere [N, T + 1], mask [N, T]), where everywhere holds a
    number at every position of the rows; returns the scores [N].
    """
    generator = torch.Generator(device="cpu").manual_seed(11)
    inputs = []
    for begins, ends in (((2, 3), (5, 6)), ((1, 4, 2), (3, 5, 7))):
        first, after = (torch.tensor(x, device="cpu")[:, None] for x in (begins, ends))
        steps = torch.arange(int(after.max()) + 1, device="cpu")
        everywhere = torch.randn(
            len(begins), len(steps) + 1, generator=generator, device="cpu"
        )
        inputs.append((everywhere.double(), (steps >= first) & (steps < after)))

    def end(mask: Tensor) -> Tensor:
        return (mask * torch.arange(1, mask.shape[1] + 1, device="cpu")).amax(1)

    def at(everywhere: Tensor, place: Tensor) -> Tensor:
        return everywhere.gather(1, place[:, None])[:, 0]

    judge(
        answer,
        right=lambda x, mask: at(x, end(mask)),
        mistakes={
            "This is still the last column. For all rows but the longest that is "
            "padding.": lambda x, mask: x[:, -1],
            "This is one early. Action t is the token at position t + 1, so the end "
            "token is not in what you read.": lambda x, mask: at(x, end(mask) - 1),
            "This is one late: what stands there is padding.": (
                lambda x, mask: at(x, end(mask) + 1)
            ),
            "You counted the steps of the answer. The question stands before them.": (
                lambda x, mask: at(x, mask.sum(1))
            ),
            "This is the mean over the answer. The model was trained at its end.": (
                lambda x, mask: (x[:, 1:] * mask).sum(1) / mask.sum(1)
            ),
            "This is the largest number in the answer. The model was trained at its "
            "end.": lambda x, mask: x[:, 1:].masked_fill(~mask, -torch.inf).amax(1),
        },
        inputs=inputs,
    )
