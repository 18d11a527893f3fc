"""Rich Transcription Time Marked files: who speaks when in which recording, and which file is of which sound."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from d2v.config import Job
from d2v.data.columns import read_columns
from d2v.data.facts import note
from d2v.data.files import walk
from d2v.data.frame_classes import Segment
from d2v.errors import InputError

OTHERS = {"SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP", "CB"}
OTHERS |= {"A/P", "SU", "SPKR-INFO"}
"""Types of lines that an RTTM file may have besides SPEAKER."""


Recordings = Mapping[str, Mapping[Path, Sequence[Segment]]]
"""Of each recording by name the segments that the files of each folder have."""


def read_rttm(path: str | os.PathLike, job: Job | None = None) -> dict[str, list[Segment]]:
    """The segments of each recording in a file, or in all files of a folder; see `read_rttm_folders`."""
    return {name: list(chain(*folders.values())) for name, folders in read_rttm_folders(path, job).items()}


def read_rttm_folders(path: str | os.PathLike, job: Job | None = None, channel: int | None = None) -> Recordings:
    """The segments of each recording by the folder of the file that has them (NIST RT-09, appendix A).

    Comments and lines of other types are passed over, and so are segments without a length.

    Args:
        path: of the file, or of a folder with such files; lines may lack the last two fields.
        job: where to note how many lines were passed over, if anywhere.
        channel: that is heard, from 1, if only one is; segments of others do not count where lines are of several.

    Raises:
        InputError: a line that is none; the message names file and line.
    """
    found: list[tuple[str, Path, str, Segment]] = []
    sources: dict[tuple[str, Path], dict[str, None]] = {}  # the files that have segments of a recording
    recordings: dict[str, dict[Path, list[Segment]]] = {}
    passed: Counter[str] = Counter()
    root = Path(path)
    files = [root / file for file in walk(root) if file.suffix.lower() == ".rttm"] if root.is_dir() else [root]
    if not files:
        raise InputError(f"{path}: no .rttm file in this folder (data.rttm)")
    for file in files:
        for where, fields in read_columns(file):
            fields[0] = fields[0].upper()
            if fields[0].startswith((";;", "#")):
                continue
            if fields[0] in OTHERS:
                passed[f"lines of type {fields[0]}"] += fields[0] != "SPKR-INFO"  # which says who speakers are
                if len(fields) > 1 and fields[0] != "SPKR-INFO":
                    recordings.setdefault(fields[1], {}).setdefault(file.parent, [])
                continue
            if fields[0] != "SPEAKER" or not 8 <= len(fields) <= 10:
                why = f"; it has {len(fields)} fields, and names have no blanks" if len(fields) > 10 else ""
                form = "SPEAKER <recording> 1 <onset> <duration> <NA> <NA> <speaker> <NA> <NA>"
                raise InputError(f"{where}: should be {form}{why}")
            try:
                onset, duration = float(fields[3]), float(fields[4])
            except ValueError:
                onset = duration = math.nan
            if not (0 <= onset < math.inf and 0 <= duration < math.inf):
                raise InputError(f"{where}: onset {fields[3]}, duration {fields[4]}; should be seconds, 0 or more")
            recordings.setdefault(fields[1], {}).setdefault(file.parent, [])
            if duration:
                # Rounded, so that segments which touch in the file also do in binary.
                sources.setdefault((fields[1], file.parent), {})[file.name] = None
                found.append((fields[1], file.parent, fields[2], (onset, round(onset + duration, 6), fields[7])))
            else:
                passed["segments without a length"] += 1
    several = len({number for *_, number, _ in found}) > 1  # many say 1 of whatever was recorded
    for name, folder, number, segment in found:
        if several and channel is not None and number != str(channel):
            passed["segments of other channels"] += 1
        else:
            recordings[name][folder].append(segment)
    if job and (several_files := {name: list(names) for (name, _), names in sources.items() if len(names) > 1}):
        name, names = next(iter(several_files.items()))
        line = f"{path}: {len(several_files)} recordings have segments in several files, which are added together"
        line += f"; the first is {name}, in {names[0]} and {names[1]} (data.rttm names one file)"
        note(job, "segments of several files", line, rows=len(several_files), first=name)
    for what, count in passed.items() if job else ():
        if count and job:
            note(job, f"{what} passed over", f"{path}: {count} {what} passed over", rows=count)
    return recordings


def nearest_folders(folders: Sequence[Path], file: str | None) -> list[Path]:
    """Which of some folders are nearest to a sound: that has most of its folders' names, or else that it is in."""
    if len(folders) < 2:
        return list(folders)
    place = Path(file or "").absolute().parent

    def nearness(folder: Path) -> tuple[int, bool]:
        shared = Counter(place.parts) & Counter(folder.absolute().parts)
        return shared.total(), place.is_relative_to(folder.absolute())

    best = max(map(nearness, folders))
    return [folder for folder in folders if nearness(folder) == best]
