"""A plugin of pytest: the tests' tensors and models live on the card.

    RL_NOTES_DEVICE=cuda pytest -p on_card tests/equations tests/updates

The tests name no device. Here CUDA is torch's default device, and what they draw from a
generator of the CPU is drawn there, so that the numbers are those of the CPU, and is
then moved to the card.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from rl_notes.device import pick_device

DRAWN: set[Any] = {torch.rand, torch.randn, torch.randint, torch.randperm}
FILLED: set[Any] = {
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.bernoulli_,
    torch.Tensor.exponential_,
}
FOR_NUMPY: set[Any] = {torch.Tensor.numpy, torch.Tensor.__array__}


class DrawnOnTheCPU(TorchFunctionMode):
    """What a generator of the CPU draws is moved to the default device.

    And numpy gets what it asks for, which it cannot read on a card.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in FOR_NUMPY:
            return func(args[0].cpu(), *args[1:], **options)
        generator = options.get("generator")
        if generator is None or generator.device.type != "cpu":
            return func(*args, **options)
        if func in DRAWN and options.get("device") is None:
            wanted = options.pop("requires_grad", False)
            drawn = func(*args, **options, device="cpu").to(pick_device())
            return drawn.requires_grad_(wanted)
        if func in FILLED and args[0].device.type != "cpu":
            filled = func(torch.empty_like(args[0], device="cpu"), *args[1:], **options)
            return args[0].copy_(filled)
        return func(*args, **options)


def pytest_configure() -> None:
    """Before any test is read: some keep tensors of their own."""
    torch.set_default_device(pick_device())
    mode: Any = DrawnOnTheCPU()
    mode.__enter__()
