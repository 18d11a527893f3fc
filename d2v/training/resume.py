"""Checkpoints of a run: all that it takes to go on exactly where it was.

A checkpoint is written under another name and renamed when it is whole, so a kill or a full disk at any moment leaves
the one before. Files are safetensors and a PyTorch archive of plain values, read without running any code.
"""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from d2v.errors import InputError


def random_state() -> dict[str, Any]:
    """This process's random number generators, as plain values."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to what `random_state` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def checkpoints(out: Path) -> list[Path]:
    """A run's whole checkpoints, oldest first."""
    return sorted(out.glob("checkpoints/step-*"))


def save_state(out: Path, accelerator, model, optimizer, average, progress: dict[str, Any], keep_last: int) -> None:
    """Write a checkpoint and delete the oldest ones.

    Args:
        out: the run's folder.
        accelerator: all processes call this; the main one writes.
        model: as prepared by the accelerator.
        optimizer: its optimiser.
        average: the moving average of its weights, or None.
        progress: the loop's counters, plain values.
        keep_last: how many checkpoints stay.

    Raises:
        InputError: the disk is full or not writable; the checkpoints before are untouched.
    """
    from accelerate.utils import gather_object

    states = gather_object([random_state()])
    if accelerator.is_main_process:
        path, temporary = out / "checkpoints" / f"step-{progress['step']:08d}", out / "checkpoints" / "unfinished"
        shutil.rmtree(temporary, ignore_errors=True)
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        rest = {"optimizer": optimizer.state_dict(), "scaler": scaler, "progress": progress, "random": states}
        if average is not None:
            rest["average"] = average.state_dict()
        try:
            temporary.mkdir(parents=True)
            save_model(accelerator.unwrap_model(model), temporary / "model.safetensors")
            torch.save(rest, temporary / "state.pt")
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


def load_state(path: Path, accelerator, model, optimizer, average) -> dict[str, Any]:
    """Go back to a checkpoint: model, optimiser, average if there is one, and this process's random numbers.

    Returns:
        The loop's counters.

    Raises:
        InputError: another number of processes wrote it, or it does not fit the model.
    """
    try:
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # nearly anything can come of a damaged file
        raise InputError(f"{path / 'state.pt'}: damaged; delete {path} to go on from the one before") from error
    if (processes := len(state["random"])) != accelerator.num_processes:
        raise InputError(
            f"{path}: written by {processes} processes, not {accelerator.num_processes}; use as many to resume"
        )
    try:
        load_model(accelerator.unwrap_model(model), path / "model.safetensors", device=str(accelerator.device))
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
    except (KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: damaged, or of another model than this configuration's ({error})") from error
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    set_random_state(state["random"][accelerator.process_index])
    return state["progress"]


def replace_folder(folder: Path, write) -> None:
    """Fill a folder by `write(path)` under another name, then put it in the place of the old one."""
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
