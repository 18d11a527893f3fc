"""The beginning of a run: its folder, seed, device and precision."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch

import d2v
from d2v.config import Job
from d2v.errors import InputError
from d2v.pretrained import write_json
from d2v.training.resume import checkpoints

LAUNCHED = "ACCELERATE_MIXED_PRECISION"
"""Environment variable that `accelerate launch` sets, whatever the precision."""


def start(config: Any) -> Job:
    """Begin a run: its folder with `config.yaml` and `environment.json`, the seed, Accelerate.

    Args:
        config: a recipe's configuration, see `d2v.config.Recipe`.

    Raises:
        InputError: the mode lacks its model, the folder holds another run, or this device lacks the precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, set_seed

    run, out = config.run, Path(config.run.out)
    if config.mode != "train" and config.model is None:
        raise InputError(f"--mode {config.mode} needs --model, such as {run.out}/best")
    if config.mode == "train" and checkpoints(out) and not run.resume:
        raise InputError(f"{out}: holds a run; --run.resume true goes on with it, another --run.out begins a new one")
    AcceleratorState._reset_state()  # a second run in one process, as in a notebook, may have another precision
    tracker = run.tracker
    if tracker == "auto":
        tracker = "tensorboard" if importlib.util.find_spec("tensorboard") else None
    precision = run.precision
    if precision == "auto":
        precision = "bf16" if has_bf16() else "fp32"
    try:
        accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(precision, precision),
            log_with=tracker if config.mode == "train" else None,
            project_dir=out,
            # LayerDrop, masks that were not sampled and a frozen encoder leave parameters without a gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise InputError(f"run.precision {run.precision}, run.tracker {run.tracker}: {error}") from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("run.precision fp16 needs a GPU, on a CPU it would quietly be fp32; use bf16 or fp32")
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1 and LAUNCHED in os.environ:
        # accelerate launch gives a process on a CPU one thread unless told otherwise: half or less of the machine.
        torch.set_num_threads(max(torch.get_num_threads(), granted_cores()))
    torch.set_flush_denormal(True)  # gradients too small to matter cost a CPU a tenth of its time
    set_seed(run.seed)
    # A recipe is a script, or a module that a notebook or test has loaded from its file.
    source = getattr(sys.modules.get(type(config).__module__), "__file__", None)
    job = Job(config, accelerator, Path(source).stem if source else "d2v")
    if job.is_main:
        out.mkdir(parents=True, exist_ok=True)
        print(to_yaml(config))
        (out / "config.yaml").write_text(to_yaml(config), "utf-8")
        precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
        write_json(out / "environment.json", environment() | {"precision": precision})
    return job


def has_bf16() -> bool:
    """Whether this processor has instructions for bf16; without them it is slower than fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of x86, in no public module of torch
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def granted_cores() -> int:
    """Cores that this process may use: those of its affinity mask where the system has one, else the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Versions, machine and command of this run."""
    packages = ("torch", "accelerate", "datasets", "numpy", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    machine = {"command": sys.argv, "python": platform.python_version(), "device": device, "threads": threads}
    return machine | {"d2v": d2v.__version__} | versions


def to_yaml(config: Any) -> str:
    """The configuration as YAML, every value resolved, as `--config` reads it."""
    import yaml

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return plain(asdict(value))
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
