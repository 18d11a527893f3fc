"""How tensors get from the host to the device that computes."""

import torch
from torch import Tensor


def overlaps(device: torch.device) -> bool:
    """Whether a copy to a device may go on while the host does.

    CUDA first takes what is not pinned out of the host's hands. Apple's GPUs read it later, when the memory of a
    temporary tensor may hold something else.
    """
    return device.type == "cuda"


def moved(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, which the host waits for only where it has to."""
    return x.to(device, non_blocking=overlaps(device))
