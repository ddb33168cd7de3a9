"""How every checker judges an answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Function = Callable[..., Any]
Inputs = Sequence[tuple[Any, ...]]


def judge(
    answer: Function,
    *,
    right: Function,
    mistakes: Mapping[str, Function],
    inputs: Inputs,
    tolerance: float = 1e-6,
) -> None:
    """Print nothing (unanswered), that it is right, or what is wrong with it."""
    given = [answer(*arguments) for arguments in inputs]
    if all(value is None or value is ... for value in given):
        return
    if _agree(given, right, inputs, tolerance):
        print("Right.")
        return
    for mistake, wrong in mistakes.items():
        if _agree(given, wrong, inputs, tolerance):
            print(f"Not yet. {mistake}")
            return
    for value, arguments in zip(given, inputs, strict=True):
        wanted = right(*arguments)
        if not _close(value, wanted, tolerance):
            print(f"Not yet. For {arguments} you gave {value}, right is {wanted}.")
            return


def _agree(
    given: Sequence[Any], function: Function, inputs: Inputs, tolerance: float
) -> bool:
    return all(
        _close(value, function(*arguments), tolerance)
        for value, arguments in zip(given, inputs, strict=True)
    )


def _close(value: Any, wanted: Any, tolerance: float) -> bool:
    """Are two numbers, lists or tensors equal, shapes included?"""
    try:
        value = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return False
    wanted = torch.as_tensor(wanted, dtype=torch.float64, device="cpu")
    if value.shape != wanted.shape:
        return False
    return bool(torch.allclose(value, wanted, rtol=0, atol=tolerance))
