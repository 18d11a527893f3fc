"""How a model is spread over the processes of a run: one copy per process (DDP), or one shard per process (FSDP2).

Accelerate says which. Sharding calls torch's `fully_shard` on every device, since Accelerate enables FSDP only on
GPUs: so tests on CPUs run the same code as GPUs. But FSDP moves all inputs of a model to the device, those of `HOST`
too, and a forward pass has to read them back. Checkpoints and `best/` hold whole tensors, so that any number of
processes can continue from them.
"""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from d2v.config import Job
from d2v.data.facts import note
from d2v.devices import overlaps
from d2v.errors import InputError
from d2v.models.cpu import keeping_joined_casts
from d2v.models.sharded import full_tensor, is_sharded, local
from d2v.models.transformer import Block

Module = TypeVar("Module", bound=nn.Module)

OTHERS = {
    "DEEPSPEED": "DeepSpeed",
    "MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG": "its parallelism",
}
"""Engines that `accelerate config` may choose as ACCELERATE_USE_*, and that the loop does not support."""

FSDP_OPTIONS = {
    "FSDP_VERSION": (("2",), "fsdp_version: 2"),
    "FSDP_RESHARD_AFTER_FORWARD": (("true",), "fsdp_reshard_after_forward: true"),
    "FSDP_OFFLOAD_PARAMS": (("false",), "fsdp_offload_params: false"),
    "FSDP_ACTIVATION_CHECKPOINTING": (("false",), "--run.gradient_checkpointing true in its place"),
}
"""Accelerate's settings for FSDP: the values that are supported, and how to set them."""


HOST = ("attention_mask", "labels", "masked", "auxiliary_at")
"""Batch entries that stay on the host because tensor shapes depend on them: no forward pass waits for the device.

`d2v.losses` move labels to the device of their logits.
"""


PATIENCE = timedelta(hours=2)
"""How long processes wait for one another in training: for a slow save, or the slowest share of an evaluation."""


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on a device, except those in `HOST`."""
    from accelerate.utils import send_to_device

    return send_to_device(batch, device, non_blocking=overlaps(device), skip_keys=list(HOST))


def host_of_sums(device: torch.device) -> torch.device:
    """Device on which sums in float64 are kept: Apple's GPUs have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


@contextmanager
def keeping_casts(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within, weights that autocast has cast to 16 bits for one batch are not cast again for the next.

    Nothing may change them meanwhile. The copies are neither saved nor averaged. For a sharded model they would be
    whole tensors, and are not kept.
    """
    if is_sharded(model):
        yield
        return
    with torch.autocast(device.type, enabled=False), keeping_joined_casts():
        yield


def wants(name: str) -> bool:
    """Whether Accelerate is configured for an engine."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1")


def check_engine() -> None:
    """Raise InputError if Accelerate is configured for something that d2v does not support."""
    for name, engine in OTHERS.items():
        if wants(name):
            raise InputError(
                f"accelerate is configured for {engine}, which d2v does not support; it runs DDP and FSDP2 "
                "(recipes/configs/accelerate)"
            )
    for name, (good, should) in FSDP_OPTIONS.items() if wants("FSDP") else ():
        if (value := os.environ.get(name, good[0])).lower() not in good:
            raise InputError(f"accelerate is configured for FSDP with {name} {value}; d2v takes {should}")
    if wants("FSDP") and torch.__version__ < "2.12":  # earlier ones miss tensors within a model's output
        raise InputError(f"accelerate is configured for FSDP, which takes torch 2.12 or newer, not {torch.__version__}")
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "")).lower() not in ("no", ""):
        raise InputError(
            f"accelerate is configured with dynamo_backend {backend}; d2v takes none, since batches without padding "
            "have shapes that compiled code does not know"
        )


def wait_less(job: Job) -> None:
    """Wait once more for the preparation, then never longer than `PATIENCE`, so that a hanging process ends the run."""
    if distributed():
        try:
            from torch.distributed import set_timeout
        except ImportError:  # an older torch
            from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout
        job.accelerator.wait_for_everyone()
        set_timeout(PATIENCE)


def distributed() -> bool:
    """Whether processes are connected."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def sharding() -> bool:
    """Whether this run's model is sharded: Accelerate is configured for FSDP, and processes are connected."""
    return wants("FSDP") and distributed()


def shard(model: nn.Module, device: torch.device) -> None:
    """Keep only this process's share of a model's weights, in place; a block's weights are whole while it computes.

    Gradients are reduced after every piece of an update, which costs time, but keeps them sharded too.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # about in-place changes of outputs; there are none
    for tensor in (*model.parameters(), *model.buffers()):
        torch.distributed.broadcast(tensor.detach(), 0)  # as DDP does: all processes start from the main one's weights
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # so parameters are shards outside of forward passes


def holds_shards(module: nn.Module) -> bool:
    """Whether a module, or one that it holds, has gone through `shard`."""
    return any(is_sharded(each) for each in module.modules())


def shard_like(x: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, the same on every process, sharded like another tensor."""
    if not hasattr(other, "to_local"):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(other.device), other.device_mesh, other.placements, src_data_rank=None)  # type: ignore[attr-defined]


def gathered(value: Any, keep: bool) -> Any:
    """A state with whole tensors on the CPU in place of sharded ones, or None in their place if they are not kept.

    Args:
        value: a tensor or plain value, or dicts, lists and tuples of them; every process calls this.
        keep: whether this process needs them.
    """
    if isinstance(value, Mapping):
        return {key: gathered(item, keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(item, keep) for item in value)
    if hasattr(value, "full_tensor"):
        full = full_tensor(value)
        return full.cpu() if keep else None
    return value


def shard_state(saved: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """An optimiser's state of whole tensors, fitted to this optimiser's parameters, which may be sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def fit(value: Any, parameter: Tensor) -> Any:
        alike = isinstance(value, Tensor) and value.shape == parameter.shape
        return shard_like(value, parameter) if alike else value

    state = {i: {key: fit(value, parameters[i]) for key, value in each.items()} for i, each in saved["state"].items()}
    return saved | {"state": state}


@torch.no_grad()
def load_whole(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load whole weights, the same on every process, into a sharded module.

    Raises:
        RuntimeError: names or shapes are not the module's.
    """
    own = module.state_dict()
    for name in own.keys() ^ weights.keys():
        raise RuntimeError(f"{name} is {'missing' if name in own else 'not in the model'}")
    for name, value in own.items():
        if value.shape != weights[name].shape:
            raise RuntimeError(f"{name} has shape {tuple(weights[name].shape)}, not {tuple(value.shape)}")
        local(value).copy_(local(shard_like(weights[name], value)))


def blank(model: Module) -> Module:
    """A copy of a model without memory for its weights, for `unsharded`."""
    memo: dict[int, Any] = {
        id(each): nn.Parameter(torch.empty_like(each, device="meta"), each.requires_grad) for each in model.parameters()
    }
    return copy.deepcopy(model, memo)


def unsharded(job: Job, model: Module, empty: Module) -> Module:
    """The model with whole weights, on the main process; every process calls this.

    Args:
        job: from `d2v.training.job.start`.
        model: sharded, or else it is returned as it is.
        empty: its copy from `blank`.
    """
    if not is_sharded(model):
        return model
    weights = gathered(model.state_dict(), keep=job.is_main)
    if job.is_main:
        empty.load_state_dict(weights, assign=True)
    return empty


def share_buffers(*models: nn.Module | None) -> None:
    """Give all processes the main one's batch statistics: after an update they differ, by each process's own rows.

    DDP does so at the next forward pass in training, which is too late for an evaluation.
    """
    if not distributed():
        return
    for buffer in (buffer for model in models if model is not None for buffer in model.buffers()):
        if buffer.is_floating_point():
            torch.distributed.broadcast(buffer, 0)


class Captured(Exception):
    """Raised when the inputs that a model would be called with are known."""


@contextmanager
def in_step(model: nn.Module, batches: Any, compute: Callable[[dict[str, Any]], Any]) -> Iterator[None]:
    """Within, all processes make equally many forward passes of a sharded model, or else they would wait for ever.

    A process with fewer passes, for fewer batches or windows of a batch, repeats its last one, and a process without a
    batch takes a first row of others; the results of these passes are discarded. Other models are left alone.

    Args:
        model: may be sharded.
        batches: from `d2v.data.loaders.eval_loader`.
        compute: called with a batch.
    """
    if not is_sharded(model):
        yield
        return
    last: list[Any] = []
    finished = False
    device = local(next(model.parameters())).device

    def anyone(goes_on: bool) -> bool:
        flag = torch.tensor(float(goes_on), device=device)
        torch.distributed.all_reduce(flag)
        return bool(flag)

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        last[:] = [args, kwargs]
        if finished:
            raise Captured
        anyone(True)

    handle = model.register_forward_pre_hook(keep, prepend=True, with_kwargs=True)
    try:
        yield
        finished = True
        for row in range(0 if last else len(batches.dataset)):
            with suppress(Captured):
                batch = batches.collate_fn([batches.dataset[row]])
                if batch["rows"]:  # the row could be decoded
                    compute(batch)
            if last:
                break
    finally:
        handle.remove()
    while anyone(False):
        model(*last[0], **last[1])


def wrap(job: Job, model: nn.Module, changing: Sequence[str], first_loss: Callable[[], Tensor]) -> nn.Module:
    """The model as training calls it: wrapped in DDP where several processes have copies.

    DDP waits for the gradient of every parameter. Looking for parameters without a gradient takes time in each update,
    so it is done only where there are some.

    Args:
        job: from `d2v.training.job.start`.
        model: may be sharded.
        changing: reasons why the parameters that get a gradient change from update to update.
        first_loss: computes the first batch's loss, whose gradient tells which parameters never get one.
    """
    accelerator = job.accelerator
    if is_sharded(model):
        return model
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        reasons = list(changing) or gather_object(without_gradient(model, first_loss()))[:1]
        accelerator.ddp_handler.find_unused_parameters = bool(reasons)
        if reasons:
            line = f"every update looks for parameters without a gradient, since {reasons[0]}"
            note(job, "unused parameters", line, reasons=reasons)
    prepared = accelerator.prepare(model)
    if isinstance(prepared, nn.parallel.DistributedDataParallel):
        prepared.device_ids = None  # else it moves all inputs to its device, `HOST` too
    return prepared


def without_gradient(model: nn.Module, loss: Tensor) -> list[str]:
    """Why a loss has no gradient with respect to some trained parameters; empty if no gradient is missing."""
    found, seen, nodes = set(), set(), [loss.grad_fn]
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        nodes += [following for following, _ in node.next_functions]
    names = [name for name, each in model.named_parameters() if each.requires_grad and each not in found]
    return [f"{names[0]} has none" + (f", nor have {len(names) - 1} others" if len(names) > 1 else "")] if names else []
