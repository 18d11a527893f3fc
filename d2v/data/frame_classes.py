"""The classes of segments, such as sound events: those of train, and how the data's are a given model's.

A segment is (start, end, label), in seconds.
"""

from collections.abc import Iterable, Mapping, Sequence

from d2v.config import Job
from d2v.data.facts import note
from d2v.data.labels import match_classes
from d2v.errors import InputError

Segment = tuple[float, float, str]


def segment_classes(recordings: Iterable[list[Segment] | str]) -> list[str]:
    """The labels of the segments of train, in order.

    Args:
        recordings: from `read_segments`; those that cannot be read are passed over, to be named by whoever checks them.

    Raises:
        InputError: there is no segment.
    """
    classes = {label for segments in recordings if not isinstance(segments, str) for *_, label in segments}
    if not classes:
        raise InputError("train: has no segment; data.segments_column, data.label_key and data.rttm say where they are")
    return sorted(classes)


def matched_segments(
    job: Job, segments: Mapping[str, Sequence[list[Segment] | str]], names: list[str]
) -> dict[str, list[list[Segment] | str]]:
    """The segments by the names of the model's classes, as `data.match` says; those of no class stay, to be named."""
    found = sorted(
        {label for split in segments.values() for each in split if not isinstance(each, str) for *_, label in each}
    )
    if not found:
        return {split: list(listed) for split, listed in segments.items()}
    known = match_classes(job.config.data.match, names, found)
    renamed = {label: names[i] for label, i in known.items() if label != names[i] and label in found}
    if renamed:
        shown = ", ".join(f"{label} is {name}" for label, name in renamed.items())
        note(job, "labels matched", f"segments: {shown} (data.match)", classes=renamed)
    return {
        split: [
            each if isinstance(each, str) else [(start, end, renamed.get(label, label)) for start, end, label in each]
            for each in listed
        ]
        for split, listed in segments.items()
    }
