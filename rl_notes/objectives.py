"""What is maximised, one number per step, and how steps become one scalar.

An aggregation is linear in its first argument. What stands where the mask is False
never enters, not even as NaN.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def mean_over_tokens(
    x: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """Every step weighs the same: sum_n sum_t x[n, t] / (number of steps).

    A long row weighs more than a short one.
    """
    return _masked(x, mask).sum() / mask.sum()


def mean_over_sequences(
    x: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """Every row weighs the same: (1/N) sum_n (1/L_n) sum_t x[n, t].

    L_n is the number of steps of row n. A row without a step counts as 0 and stays in
    N. A step of a long row weighs less than a step of a short one.
    """
    per_row = _masked(x, mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return per_row.mean()


def sum_over_constant(
    x: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], *, constant: float | int
) -> Float[Tensor, ""]:
    """The sum over all steps, divided by a number that the data do not change.

    sum_n sum_t x[n, t] / constant. With constant = N it is the aggregation of the
    policy gradient: summed within a row, averaged over rows.
    """
    if constant <= 0:
        raise ValueError(f"constant must be positive, but it is {constant}.")
    return _masked(x, mask).sum() / constant


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    """Set x to 0 where the mask is False; refuse shapes that would broadcast."""
    if x.shape != mask.shape:
        raise ValueError(
            f"One number per step is needed: x has shape {tuple(x.shape)}, the mask "
            f"{tuple(mask.shape)}."
        )
    if not bool(mask.any()):
        raise ValueError("The mask selects no step at all, so there is nothing to sum.")
    return torch.where(mask, x, 0)
