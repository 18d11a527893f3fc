"""The device that computes, and how tensors get there from the host."""

import os

import torch
from torch import Tensor


def on_cuda() -> bool:
    """Whether this run computes on a GPU by CUDA; Accelerate may be configured for the CPU beside one.

    Who asks the GPU for anything takes some of its memory.
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "y", "t")
    return torch.cuda.is_available() and not asked


def overlaps(device: torch.device) -> bool:
    """Whether a copy to a device may go on while the host does.

    CUDA first takes what is not pinned out of the host's hands. Apple's GPUs read it later, when the memory of a
    temporary tensor may hold something else.
    """
    return device.type == "cuda"


def moved(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, which the host waits for only where it has to."""
    return x.to(device, non_blocking=overlaps(device))


def taken(x: Tensor, at: Tensor) -> Tensor:
    """`x[at]`, of (B, T, ...) what is where a mask (B, T) is True, (n, ...).

    Of a mask on the host, the places are found there, and no one waits for the device to say how many they are.
    """
    return x.flatten(0, at.ndim - 1).index_select(0, moved(at.flatten().nonzero().squeeze(1), x.device))
