"""Output during a run: lines of `log.jsonl`, the same values for trackers, and a progress bar."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2v.config import Job
from d2v.hub import in_place_of
from d2v.training.trackers import open_trackers


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a `log.jsonl`, without the values that were not finite."""
    return [{key: value for key, value in entry.items() if value is not None} for entry in read_lines(path)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a `log.jsonl` as they stand; a last line that a kill cut short is left out."""
    entries = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def of_evaluation(entry: Mapping[str, Any]) -> bool:
    """Whether a line of the log is of an evaluation."""
    return any(key.startswith("eval_") for key in entry)


def open_log(job: Job, progress: Any, total: int) -> "Log":
    """The log and the trackers of a run that stands at `progress`, a `d2v.training.loop.Progress`."""
    tracked = open_trackers(job, progress.step)
    unit, path = job.config.data.unit, job.out / "log.jsonl"
    return Log(path, progress.step, progress.evaluated, total, unit, job.accelerator, tracked=tracked)


class Log:
    """Adds up what updates report and writes averages at intervals; on the main process only.

    Args:
        path: of `log.jsonl`. Lines later than `step`, from a run that was cut off, are removed.
        step: updates done before.
        evaluated: updates before the last evaluation; lines of later evaluations, which are repeated, are removed too.
        total: updates of the whole run.
        unit: unit of batch sizes.
        accelerator: whose trackers get the values too.
        tracked: whether the trackers have had the removed lines; a resumed run writes these again, but not to the
            trackers.
    """

    def __init__(
        self, path: Path, step: int, evaluated: int, total: int, unit: str, accelerator, *, tracked: bool = False
    ):
        from tqdm import tqdm

        self.path, self.unit, self.accelerator = path, unit, accelerator
        self.main = accelerator.is_main_process
        self.tracked = {True: -1, False: -1}  # last step that trackers have, of evaluations and of other lines
        if self.main:
            kept = []
            for entry in read_lines(path):
                is_evaluation = of_evaluation(entry)
                kept += [entry] if entry["step"] <= (evaluated if is_evaluation else step) else []
                self.tracked[is_evaluation] = entry["step"] if tracked else -1
            with in_place_of(path) as beside:
                beside.write_text("".join(json.dumps(entry) + "\n" for entry in kept), "utf-8")
        # Not a terminal: no bar, only the lines of evaluations.
        self.bar = tqdm(
            total=total, initial=step, disable=None if self.main else True, unit="update", dynamic_ncols=True
        )
        self.reset()

    def reset(self) -> None:
        """Begin a new average."""
        self.loss = self.items = self.size = self.waited = 0.0
        self.since = time.perf_counter()

    def add(self, loss: float, items: float, size: float, waited: float) -> None:
        """Count an update: its summed loss, number of items, size, and seconds of waiting for data."""
        self.loss += loss
        self.items += items
        self.size += size
        self.waited += waited
        self.bar.update()

    def say(self, step: int, **values: float) -> None:
        """Write the averages since the last time, and these values."""
        seconds, rate = time.perf_counter() - self.since, f"{self.unit.replace(' ', '_')}_per_second"
        values = {"loss": self.loss / self.items if self.items else math.nan, rate: self.size / seconds} | values
        self.write(step, values | {"waiting_for_data": self.waited / seconds})
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}, lr {values['lr']:.1e}, {values[rate]:.0f} {self.unit}/s")
        self.reset()

    def say_evaluation(self, step: int, values: dict[str, float], best: str) -> None:
        """Write an evaluation's metrics, and show them above the bar."""
        self.write(step, {f"eval_{key}": value for key, value in values.items()})
        if self.main:
            shown = ", ".join(f"{key} {value:.4f}" for key, value in values.items())
            self.bar.write(f"update {step}: {shown} (best so far: {best})")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a line to `log.jsonl` and to the trackers."""
        if self.main:
            finite = {key: value if math.isfinite(value) else None for key, value in values.items()}  # else no JSON
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | finite) + "\n")
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard" or step > self.tracked[of_evaluation(values)]:  # others cannot overwrite
                tracker.log(values, step=step)

    def close(self) -> None:
        """Close bar and trackers."""
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
