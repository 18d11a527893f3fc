"""The beginning of a run: its folder, seed, device and precision."""

import importlib.util
import os
import platform
import sys
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from d2v.config import Job, recipe_file
from d2v.data.cores import granted_cores
from d2v.data.facts import everyones
from d2v.data.tables import read_sample
from d2v.errors import InputError
from d2v.hub import in_place_of, read_json, write_json
from d2v.training.engine import check_engine, sharding
from d2v.training.identity import check_config, check_data, checkpoint_fingerprint, fingerprint, plain
from d2v.training.machine import ask_for_huge_pages, environment, has_bf16
from d2v.training.resume import checkpoints
from d2v.training.signals import LAUNCHED

if TYPE_CHECKING:
    from accelerate import Accelerator

PREPARING = timedelta(hours=24)
"""How long processes wait for the one that reads the data first; if it fails, the launcher ends them."""


def start(config: Any) -> Job:
    """Begin a run: its folder with `config.yaml` and `environment.json`, the seed, Accelerate.

    Args:
        config: a recipe's configuration, see `d2v.config.Recipe`.

    Raises:
        InputError: the mode lacks its model, the folder holds another run, a resumed run has other options or data,
            this device lacks the precision, or the processes do not share a disk.
    """
    from accelerate.utils import broadcast_object_list, set_seed

    ask_for_huge_pages()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # characters that a terminal cannot show are escaped
            stream.reconfigure(errors="backslashreplace")
    check_options(config)
    config, beside = choose_folder(config)
    goes_on, changed = check_folder(config)
    accelerator = build_accelerator(config)
    set_threads(accelerator)
    if not accelerator.is_main_process:
        warnings.simplefilter("ignore")  # one process says what all would
    torch.set_flush_denormal(True)  # gradients too small to matter cost a CPU a tenth of its time
    set_seed(config.run.seed)
    source = recipe_file(type(config))
    job = Job(config, accelerator, source.stem if source else "d2v")
    (begun,) = broadcast_object_list([os.urandom(8).hex()])
    if job.is_main:
        write_beginning(job, begun, goes_on, changed)
        if beside:
            print(f"results are in {job.out}")
    check_disk(job, begun)
    return job


def check_options(config: Any) -> None:
    """Raise InputError for options and an environment that cannot be a run."""
    if config.mode in ("evaluate", "predict") and config.model is None:
        raise InputError(f"--mode {config.mode} needs --model, such as {config.run.out}/best")
    if config.data.submission:
        read_sample(Path(config.data.submission))
        if config.mode != "predict":
            raise InputError("data.submission is what --mode predict fills in")
    check_engine()
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "WORLD_SIZE" not in os.environ:
        raise InputError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} processes, of which each would be a run of its own in "
            f"{config.run.out}; set WORLD_SIZE, RANK and LOCAL_RANK as in recipes/README.md, Processes"
        )


def choose_folder(config: Any) -> tuple[Any, bool]:
    """The configuration, and whether its `run.out` is now a folder beside what training wrote, never over it."""
    beside = config.mode != "train" and (config.run.out == type(config)().run.out or holds_training(config.run.out))
    beside = beside or config.mode == "prepare"  # and so the folder is free for the run that follows
    if beside:
        config = replace(config, run=replace(config.run, out=str(Path(config.run.out, config.mode))))
    return config, beside


def check_folder(config: Any) -> tuple[bool, list[str]]:
    """Whether a run goes on in its folder, and which options it then has other values of.

    Raises:
        InputError: the folder is a file or the data, holds a run that does not go on, or one of other options.
    """
    run, out = config.run, Path(config.run.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"run.out {out}: is a file; should be a folder, new or of a run")
    if config.data.path and out.exists() and Path(config.data.path).exists() and out.samefile(config.data.path):
        raise InputError(f"run.out {out}: is where the data are (data.path); should be a folder of its own")
    saved = checkpoints(out) if config.mode == "train" else []
    if saved and run.resume:
        return True, check_config(config, saved[-1])
    if saved:
        raise InputError(f"{out}: holds a run; --run.resume true goes on with it, another --run.out begins a new one")
    if config.mode == "train" and (out / "best").is_dir():
        raise InputError(f"{out}: holds a run's best/ without its checkpoints; another --run.out begins a new one")
    return False, []


def build_accelerator(config: Any) -> "Accelerator":
    """Accelerate on this run's devices, in its precision, with its tracker; InputError where these are not there."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
        patch_environment,
    )

    AcceleratorState._reset_state()  # a second run in one process, as in a notebook, may have another precision
    run, tracker = config.run, config.run.tracker
    if tracker == "auto":
        tracker = "tensorboard" if importlib.util.find_spec("tensorboard") else None
    precision = run.precision if config.mode != "prepare" else "fp32"  # the machine that will train may have another
    if precision == "auto":
        precision = "bf16" if has_bf16() else "fp32"
    try:
        # Sharding is `d2v.training.engine`'s, on CPUs too.
        with warnings.catch_warnings(), patch_environment(ACCELERATE_USE_FSDP="false"):
            warnings.filterwarnings("ignore", "`log_with=")  # the line below says it
            accelerator = Accelerator(
                # Otherwise torchrun would start several runs of one process where there is no GPU.
                cpu=int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available(),
                mixed_precision={"fp32": "no"}.get(precision, precision),
                # Else ACCELERATE_GRADIENT_ACCUMULATION_STEPS divides each loss, on top of what `accumulate` does.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                log_with=tracker if config.mode == "train" else None,
                project_dir=Path(run.out),
                # Whether DDP looks for parameters without a gradient, `d2v.training.engine.wrap` decides.
                kwargs_handlers=[DistributedDataParallelKwargs(), InitProcessGroupKwargs(timeout=PREPARING)],
            )
    except ValueError as error:
        raise InputError(f"run.precision {run.precision}, run.tracker {run.tracker}: {error}") from error
    if config.mode == "train" and tracker and not accelerator.log_with:
        raise InputError(f"run.tracker {tracker}: not installed; pip install {tracker}, or --run.tracker null")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("run.precision fp16 needs a GPU, on a CPU it would quietly be fp32; use bf16 or fp32")
    if accelerator.mixed_precision == "fp16" and sharding():
        raise InputError("run.precision fp16 does not go with FSDP, whose gradients have no scaler; use bf16 or fp32")
    return accelerator


def set_threads(accelerator: "Accelerator") -> None:
    """As many threads as this process was granted cores, and no more than it was told to have."""
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1 and LAUNCHED in os.environ:
        # accelerate launch gives a process on a CPU one thread unless told otherwise: half or less of the machine.
        torch.set_num_threads(max(torch.get_num_threads(), granted_cores()))
    torch.set_num_threads(min(torch.get_num_threads(), granted_cores()))


def write_beginning(job: Job, begun: str, goes_on: bool, changed: list[str]) -> None:
    """Write and print what a run begins with: `config.yaml` and `environment.json`.

    Args:
        job: of the run; this is its main process.
        begun: a name of this session, that all processes know.
        goes_on: whether there are checkpoints that it goes on from.
        changed: options that it then has other values of.

    Raises:
        InputError: a run that goes on has other data.
    """
    config, out = job.config, job.out
    data = fingerprint(config.data.path, out)
    if goes_on:
        check_data(config, checkpoints(out)[-1], data)
    out.mkdir(parents=True, exist_ok=True)
    print(to_yaml(config))
    with in_place_of(out / "config.yaml") as beside:
        beside.write_text(to_yaml(config), "utf-8")
    precision = {"no": "fp32"}.get(job.accelerator.mixed_precision, job.accelerator.mixed_precision)
    file = out / "environment.json"
    before = read_json(file).get("precision", precision) if goes_on and file.is_file() else precision
    changed = [*changed, *[f"precision {precision} (was {before})"] * (before != precision)]
    made_of = {"data": data, "model": checkpoint_fingerprint(config.model) if config.model else None}
    world = {"precision": precision, "processes": job.accelerator.num_processes}
    write_json(file, environment() | world | made_of | {"run": begun})
    if changed:
        print(f"goes on with {', '.join(changed)}")


def holds_training(folder: str) -> bool:
    """Whether a folder is that of a training run, which other modes must not change."""
    import yaml

    out = Path(folder)
    if checkpoints(out) or (out / "best").is_dir():
        return True
    try:
        found = yaml.safe_load((out / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and found.get("mode") == "train"


def check_disk(job: Job, begun: str) -> None:
    """Raise InputError, on all processes, if one of them cannot read what the main process has written."""
    if job.accelerator.num_processes == 1:
        return
    file, patience = job.out / "environment.json", time.monotonic() + 30  # network disks show a file some seconds late
    while not (same := file.is_file() and read_json(file).get("run") == begun) and time.monotonic() < patience:
        time.sleep(0.2)
    blind = [name for name, sees in everyones(job, (platform.node(), same)) if not sees]
    if blind:
        raise InputError(f"{job.out}: {blind[0]} does not see what the first process writes there; use a shared disk")


def to_yaml(config: Any) -> str:
    """The configuration as YAML, every value resolved, as `--config` reads it."""
    import yaml

    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
