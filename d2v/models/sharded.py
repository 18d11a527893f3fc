"""Models and tensors of which a process may have but a shard, see `d2v.training.engine`."""

from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether a model has gone through `d2v.training.engine.shard`."""
    return hasattr(model, "set_requires_gradient_sync")


def local(x: Tensor) -> Tensor:
    """This process's shard of a tensor; one that is not sharded as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


def full_tensor(x: Tensor) -> Tensor:
    """All of a tensor; every process calls this."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x
