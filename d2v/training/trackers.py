"""Trackers of Accelerate: project, run, configuration, and curves that a resumed run goes on with."""

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
"""In a run's folder: what trackers know the run by."""


def open_trackers(job: Job, step: int) -> bool:
    """Start the trackers of a run, those that it had if it goes on.

    Args:
        job: from `d2v.training.job.start`.
        step: updates done.

    Returns:
        Whether they know the run, and have curves of it.

    Raises:
        InputError: a tracker cannot be started.
    """
    run, accelerator, file = job.config.run, job.accelerator, job.out / TRACKED
    goes_on = run.resume and file.is_file()
    known = read_json(file) if goes_on else {"id": os.urandom(4).hex()}
    name, id = run_name(job.out), known["id"]
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step + 1},  # later points, of a run that was cut off, are drawn again
        "wandb": {"name": name, "id": id, "resume": "allow"},
        "trackio": {"name": f"{name} {id}", "resume": "allow"},  # which knows runs by their names alone
        "mlflow": {"run_name": name, "run_id": known.get("mlflow"), "tags": {"d2v": id}},
    }
    # With this name TensorBoard takes a stub of its own. Else it imports TensorFlow where that is installed, and beside
    # PyTorch that crashes on some machines.
    sys.modules.setdefault("tensorboard.compat.notf", sys.modules[__name__])
    try:
        accelerator.init_trackers(run.project, init_kwargs=options)
        if not goes_on:
            for tracker in accelerator.trackers:
                tracker.store_init_configuration(configuration(job))
    except Exception as error:  # each has its own, such as for a missing login
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"run.tracker {run.tracker}: {reason} (--run.tracker null does without)") from error
    if accelerator.trackers and job.is_main:
        for tracker in accelerator.trackers:
            if tracker.name == "mlflow":  # whose ids the server gives
                known["mlflow"] = tracker.tracker.info.run_id
        write_json(file, known)
    return goes_on


def configuration(job: Job) -> dict[str, int | float | str]:
    """The resolved configuration by the names of options; all trackers take numbers and texts, nothing else."""
    values = flat(plain(job.config))
    return {key: value if isinstance(value, int | float | str) else json.dumps(value) for key, value in values}


def run_name(out: Path) -> str:
    """What a run is called: its folder as seen from here, or of one elsewhere the last two names."""
    folder = out.resolve()
    here = Path.cwd()
    return folder.relative_to(here).as_posix() if here in folder.parents else "/".join(folder.parts[-2:])
