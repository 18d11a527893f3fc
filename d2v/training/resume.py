"""Checkpoints of a run: everything it needs to continue exactly where it was.

A checkpoint is a dictionary of named states. Anything with `state_dict()` and `load_state_dict()` can be a state: a
model, an optimiser, the position in the data. It is written under another name and renamed when it is complete, so a
kill or a full disk never harms the previous one. Files are safetensors and a PyTorch archive of plain values, read
without running any code.
"""

import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from d2v.config import Job
from d2v.data.facts import note
from d2v.devices import on_cuda
from d2v.errors import InputError
from d2v.hub import in_place_of, read_json, write_json
from d2v.training.engine import gathered, holds_shards, load_whole, shard_state
from d2v.training.identity import RUN, check_made_of

FORMAT = 2
"""Version of the files that `save_checkpoint` writes."""

EVALUATED = "evaluated.json"
"""File in a checkpoint's folder: the counters after the evaluation there."""


class State(Protocol):
    """A state that can be saved and restored."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore a state that `state_dict` returned."""
        ...


class RandomState:
    """This process's random number generators."""

    def state_dict(self) -> dict[str, Any]:
        """Their states, as plain values."""
        state: Any = np.random.get_state()  # a tuple, though numpy declares a dictionary
        kind, keys, *rest = state
        return {
            "python": random.getstate(),
            "numpy": (kind, keys.tolist(), *rest),
            "torch": torch.get_rng_state(),
            "cuda": [torch.cuda.get_rng_state()] if on_cuda() else [],  # of this process's device
            "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore the generators."""
        random.setstate(state["python"])
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if state["cuda"] and on_cuda():
            torch.cuda.set_rng_state(state["cuda"][0])
        if state.get("mps") and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state["mps"][0])


def checkpoints(out: Path) -> list[Path]:
    """A run's complete checkpoints, oldest first."""
    return sorted(out.glob("checkpoints/step-*"))


def step_of(checkpoint: Path) -> int:
    """The number of updates after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(
    out: Path,
    step: int,
    states: Mapping[str, State | None],
    accelerator,
    keep_last: int,
    own: Mapping[str, State],
    made_of: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint and delete the oldest ones; all processes call this, the main one writes.

    Args:
        out: the run's folder.
        step: updates done.
        states: by name, the states that are equal on all processes; modules get files of their own, None is skipped.
        accelerator: from `d2v.training.job.start`.
        keep_last: number of checkpoints that are kept.
        own: by name, the states of which every process has its own.
        made_of: from `d2v.training.identity.run_identity`.

    Raises:
        InputError: the disk is full or not writable; the checkpoints before are untouched.
    """
    from accelerate.utils import gather_object

    main = accelerator.is_main_process
    modules = {name: accelerator.unwrap_model(state) for name, state in states.items() if isinstance(state, nn.Module)}
    shared = {name: state.state_dict() for name, state in states.items() if state is not None and name not in modules}
    shared = gathered(shared, keep=main)
    shards = {name: gathered(each.state_dict(), keep=main) for name, each in modules.items() if holds_shards(each)}
    owned = gather_object([{name: state.state_dict() for name, state in own.items()}])
    if main:
        path, temporary = out / "checkpoints" / f"step-{step:08d}", out / "checkpoints" / "unfinished"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            for name, module in modules.items():
                with in_place_of(temporary / f"{name}.safetensors") as beside:
                    save_file(shards[name], beside) if name in shards else save_model(module, str(beside))
            torch.save({"format": FORMAT, "states": shared, "processes": owned}, temporary / "state.pt")
            write_json(temporary / RUN, made_of or {"config": {}})
            shutil.rmtree(path, ignore_errors=True)  # the same step again, after an interrupted run was repeated
            os.replace(temporary, path)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = checkpoints(out)
            message = f"{kept[-1]} is untouched" if kept else "there is none before it"
            raise InputError(f"{path}: checkpoint cannot be written, is the disk full? ({error}); {message}") from error
        for old in checkpoints(out)[:-keep_last]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def note_evaluation(out: Path, progress: Any) -> None:
    """Keep the counters after an evaluation in the checkpoint that was written before it."""
    kept = [each for each in checkpoints(out) if step_of(each) == progress.step]
    if kept:
        write_json(kept[0] / EVALUATED, progress.state_dict())


def go_on(job: Job, states: Mapping[str, State | None], own: Mapping[str, State], made_of: Mapping[str, Any]) -> None:
    """Load the last checkpoint if the run is to be resumed and has one, but keep this session's learning rate.

    Args:
        job: from `d2v.training.job.start`.
        states, own, made_of: as for `save_checkpoint`; one of the states is the `optimizer`.

    Raises:
        InputError: as in `load_checkpoint`.
    """
    kept = checkpoints(job.out)
    if not (job.config.run.resume and kept):
        return
    groups = cast(Any, states["optimizer"]).param_groups
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    processes = load_checkpoint(kept[-1], states, job.accelerator, own, made_of)
    now, step = job.accelerator.num_processes, step_of(kept[-1])
    if processes != now:
        torch.manual_seed(hash((job.config.run.seed, step, job.accelerator.process_index)))
        line = f"processes: {now}, {processes} up to update {step}; updates have the same rows in the same order, but "
        line += "other random numbers of dropout and masks"
        note(job, "processes", line, step=step, processes=now, before=processes)
    for group, values in zip(cast(Any, states["optimizer"]).param_groups, settings, strict=True):
        group.update(values)


def load_checkpoint(
    path: Path,
    states: Mapping[str, State | None],
    accelerator,
    own: Mapping[str, State],
    made_of: Mapping[str, Any] | None = None,
) -> int:
    """Load a checkpoint, on every process.

    Args:
        path: of the checkpoint.
        states, accelerator, own, made_of: as for `save_checkpoint`.

    Raises:
        InputError: it is damaged, has other states than these, belongs to a run with another identity, or was written
            by another number of processes with more states of their own than random numbers.

    Returns:
        The number of processes that wrote it.
    """
    file = path / "state.pt"
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # nearly anything can come of a damaged file
        raise InputError(f"{file}: damaged; delete {path} to go on from the one before") from error
    if saved.get("format") != FORMAT:
        raise InputError(f"{file}: has format {saved.get('format')!r}, not {FORMAT}; it was written by another d2v")
    processes, rank = len(saved["processes"]), accelerator.process_index
    if (same := processes == accelerator.num_processes) is False and (others := own.keys() - {"random"}):
        raise InputError(
            f"{path}: written by {processes} processes, not {accelerator.num_processes}, and each has its own "
            f"{min(others)}; use as many to resume"
        )
    if made_of:
        check_made_of(made_of, path)
    try:
        for name, state in states.items():
            if isinstance(state, nn.Module) and holds_shards(module := accelerator.unwrap_model(state)):
                load_whole(module, load_file(path / f"{name}.safetensors"))
            elif isinstance(state, nn.Module):
                load_model(accelerator.unwrap_model(state), path / f"{name}.safetensors", device="cpu")
            elif state is not None:
                values = saved["states"][name]
                state.load_state_dict(shard_state(values, state) if name == "optimizer" else values)
        if (path / EVALUATED).is_file() and (progress := states.get("progress")):
            progress.load_state_dict(read_json(path / EVALUATED))
        for name, state in own.items() if same else ():
            state.load_state_dict(saved["processes"][rank][name])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except KeyError as error:
        raise InputError(f"{path}: has no {error.args[0]!r}; go on with the configuration that wrote it") from error
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        why = "damaged, or of another model than this configuration's"
        if "size of optimizer's group" in str(error) or "size mismatch" in str(error):
            why = "of another model than this configuration's, or written by an earlier d2v; best/ can be fine-tuned on"
        raise InputError(f"{path}: {why} ({error})") from error
    return processes


def replace_folder(folder: Path, write) -> None:
    """Fill a new folder by `write(path)` under another name, then replace the old one by it."""
    temporary, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
