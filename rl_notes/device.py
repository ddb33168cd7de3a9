"""Where tensors live: the graphics card if there is one."""

import os

import torch


def pick_device() -> torch.device:
    """CUDA when it is there, else the CPU; the variable RL_NOTES_DEVICE overrides."""
    wanted = os.environ.get("RL_NOTES_DEVICE")
    if not wanted:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"RL_NOTES_DEVICE={wanted!r} cannot be used here ({error}). Set it "
            "to 'cpu', or unset it."
        ) from error
    return device
