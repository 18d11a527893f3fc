"""The optimiser's parameter groups and the learning rate's course."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from d2v.config import Job, Optim
from d2v.data.facts import note
from d2v.models.base import PreTrainedModel
from d2v.models.sharded import local


def param_groups(model: PreTrainedModel, optim: Optim) -> list[dict]:
    """Trainable parameters by learning rate and weight decay.

    One-dimensional parameters (biases, norms, scales) have no weight decay, nor have images' class token and positions
    (`no_weight_decay` in BEiT's `modeling_finetune.py`). With layer decay, block i of L has a learning rate
    `layer_decay ** (L - i)` times the head's, and everything before the first block `layer_decay ** (L + 1)` times, as
    in BEiT (`optim_factory.py`), whatever the weight decay is.

    Returns:
        Groups for a torch optimiser; `lr` is the group's peak, and `peak_lr` keeps it.
    """
    depth = len(model.base_model.encoder.layers)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr = optim.lr * optim.layer_decay ** (depth + 1 - layer_of(name, model.base_model_prefix, depth))
            decayed = parameter.ndim > 1 and not name.endswith((".cls_token", ".position_embeddings"))
            decay = optim.weight_decay if decayed else 0.0
            group = {"params": [], "lr": lr, "peak_lr": lr, "weight_decay": decay}
            groups.setdefault((lr, decay), group)["params"].append(parameter)
    return list(groups.values())


AFTER = re.compile(r"\.(adapter|pooler|layernorm|encoder\.relative_position_bias)\.")
"""A headless model's modules after its blocks, and the table that all blocks share, which BEiT counts there too."""


def layer_of(name: str, base_prefix: str, depth: int) -> int:
    """0 for parameters before the first block, i + 1 for block i, depth + 1 for the head and all others after them."""
    if match := re.search(r"encoder\.layers\.(\d+)\.", name):
        return int(match[1]) + 1
    return 0 if name.startswith(base_prefix) and not AFTER.search(name) else depth + 1


def build_optimizer(model: PreTrainedModel, optim: Optim) -> torch.optim.AdamW:
    """AdamW in its fused form: one pass over memory, on a CPU too."""
    return torch.optim.AdamW(param_groups(model, optim), betas=optim.betas, eps=optim.eps, fused=True)


class Average(AveragedModel):
    """A copy of a model for the moving average of its weights and buffers.

    The decay rises with the number of updates n as (1 + n) / (10 + n), like TensorFlow's, up to `most`: otherwise a
    short run would keep its initial weights. torch's own method keeps n on the device, and reading it would wait for
    the device.
    """

    def __init__(self, model: nn.Module, most: float):
        super().__init__(model, use_buffers=True)
        self.most = most

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the model's weights and buffers to the average; the first ones are copied."""
        n = int(self.n_averaged)
        mean = get_ema_multi_avg_fn(min(self.most, (1 + n) / (10 + n)))
        groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for average, value in zip(tensors(self.module), tensors(model), strict=True):
            averages, values = groups.setdefault(average.dtype, ([], []))
            averages.append(average)
            values.append(value)
        for averages, values in groups.values():
            mean(averages, values, n) if n else torch._foreach_copy_(averages, values)
        self.n_averaged += 1


def tensors(model: nn.Module) -> list[Tensor]:
    """This process's share of a model's weights and buffers, without gradients."""
    return [local(each.detach()) for each in (*model.parameters(), *model.buffers())]


def build_average(model: nn.Module, optim: Optim) -> Average | None:
    """A copy of the model for the moving average of its weights and buffers; None without `optim.ema`."""
    if not optim.ema:
        return None

    return Average(model, optim.ema)


@contextmanager
def averaged(model: nn.Module, average: AveragedModel | None) -> Iterator[None]:
    """Within, the model has the average's weights and buffers, if there is an average; afterwards its own again."""

    @torch.no_grad()
    def swap(average: AveragedModel) -> None:
        for mine, other in zip(tensors(model), tensors(average.module), strict=True):
            kept = mine.clone()
            mine.copy_(other)  # not the tensors themselves: shards are views of what the engine computes with
            other.copy_(kept)

    if average is None:
        yield
        return
    swap(average)
    try:
        yield
    finally:
        swap(average)


def warm_up(optim: Optim, total: int) -> int:
    """Number of updates, of a run's `total`, in which the learning rate rises to its peak."""
    return round(optim.warmup * total) if optim.warmup < 1 else int(optim.warmup)


def note_warm_up(job: Job, total: int) -> None:
    """Add a note if a run of `total` updates ends before the learning rate has reached its peak."""
    optim = job.config.optim
    if (rises := warm_up(optim, total)) >= total > 1:
        line = f"the run ends after {total} updates, before optim.lr is reached: it rises for {rises} (optim.warmup)"
        note(job, "warm-up", line, updates=total, warmup=rises)


def lr_scale(step: int, total: int, optim: Optim) -> float:
    """The learning rate of an update as a share of its peak; a pure function, so there is no state to resume.

    Args:
        step: updates done before, from 0.
        total: updates of the whole run.
        optim: schedule, warm-up, and so on.
    """
    warmup = warm_up(optim, total)
    if step < warmup:
        # fairseq's tri-stage begins at its start scale, its other schedules one step up from it.
        risen = step if optim.schedule == "tri_stage" else step + 1
        return optim.start_scale + (1 - optim.start_scale) * risen / warmup
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "tri_stage":
        warmup += round(optim.hold * total)
    gone = min(max((step - warmup) / max(total - warmup, 1), 0.0), 1.0)
    final = optim.final_scale
    if optim.schedule == "tri_stage":
        return math.exp(math.log(final) * gone)
    left = {"linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2}
    return final + (1 - final) * left[optim.schedule]
