"""Trackers of Accelerate: project, run, configuration, and curves that a resumed run continues."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from d2v.config import Job
from d2v.errors import InputError
from d2v.hub import read_json, write_json
from d2v.training.identity import flat, plain

TRACKED = "tracker.json"
"""File in a run's folder: the ids by which trackers know the run."""


def open_trackers(job: Job, step: int) -> bool:
    """Start the trackers of a run; a resumed run continues in those that it had.

    Args:
        job: from `d2v.training.job.start`.
        step: updates done.

    Returns:
        Whether they know the run already, and have its curves.

    Raises:
        InputError: a tracker cannot be started.
    """
    run, accelerator, file = job.config.run, job.accelerator, job.out / TRACKED
    goes_on = run.resume and file.is_file()
    known = read_json(file) if goes_on else {"id": os.urandom(4).hex()}
    name, id = run_name(job.out), known["id"]
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step + 1},  # later points, of an interrupted run, are written again
        "wandb": {"name": name, "id": id, "resume": "allow"},
        "trackio": {"name": f"{name} {id}", "resume": "allow"},  # knows runs only by their names
        "mlflow": {"run_name": name, "run_id": known.get("mlflow"), "tags": {"d2v": id}},
    }
    # With this module TensorBoard uses its own stub. Otherwise it imports TensorFlow if installed, which crashes beside
    # PyTorch on some machines.
    sys.modules.setdefault("tensorboard.compat.notf", sys.modules[__name__])
    try:
        accelerator.init_trackers(run.project, init_kwargs=options)
        if not goes_on:
            for tracker in accelerator.trackers:
                tracker.store_init_configuration(configuration(job))
    except Exception as error:  # each tracker raises its own, such as for a missing login
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"run.tracker {run.tracker}: {reason} (--run.tracker null does without)") from error
    if accelerator.trackers and job.is_main:
        for tracker in accelerator.trackers:
            if tracker.name == "mlflow":  # its ids come from the server
                known["mlflow"] = tracker.tracker.info.run_id
        write_json(file, known)
    return goes_on


def configuration(job: Job) -> dict[str, int | float | str]:
    """The resolved configuration by option name; all trackers take numbers and texts, but nothing else."""
    values = flat(plain(job.config))
    return {key: value if isinstance(value, int | float | str) else json.dumps(value) for key, value in values}


def run_name(out: Path) -> str:
    """A run's name: its folder relative to this one, or the last two names of a folder elsewhere."""
    folder = out.resolve()
    here = Path.cwd()
    return folder.relative_to(here).as_posix() if here in folder.parents else "/".join(folder.parts[-2:])
