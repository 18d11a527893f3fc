"""The report on the data: one line per fact on the terminal, and all facts in `data.json` of the run's folder.

A fact is noted where something was chosen (files, splits) or not used as it stands (rows left out, labels renamed,
sound resampled). No line means that nothing was changed.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any

from d2v.config import Job
from d2v.hub import write_json

Decoded = tuple[str, str, str] | tuple[str, str, str, int]
"""A fact from decoding a row: the split, the kind, such as "channels mixed", and the place, such as "train, row 3: 2";
for a stream's block also the number of rows of which this is the first."""

COLLECTED: ContextVar[list[dict[str, Any]] | None] = ContextVar("collected", default=None)
"""The list that gets the facts instead, see `collecting`."""


def shorten(names: Iterable[str], most: int = 10) -> str:
    """The first names, and the number of others."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def note(job: Job, fact: str, line: str, **values: Any) -> None:
    """Note a fact: it is printed once, and kept in `data.json` with its values.

    Args:
        job: from `d2v.training.job.start`; its main process prints and writes.
        fact: its kind, such as "rows left out".
        line: the fact, for people.
        **values: the same for programs, such as `split`, `rows`, `of` and `first`.
    """
    entry = {"fact": fact, **values, "line": line}
    if (collected := COLLECTED.get()) is not None:
        collected.append(entry)
        return
    if entry in job.facts:
        return
    job.facts.append(entry)
    if job.is_main:
        print(line)
        job.out.mkdir(parents=True, exist_ok=True)
        write_json(job.out / "data.json", {"facts": job.facts})


@contextmanager
def collecting() -> Iterator[list[dict[str, Any]]]:
    """Within, facts are only collected: for a trial, or for a part of the rows, whose facts are noted together."""
    facts: list[dict[str, Any]] = []
    token = COLLECTED.set(facts)
    try:
        yield facts
    finally:
        COLLECTED.reset(token)


def note_decoded(job: Job, decoded: Iterable[Decoded]) -> None:
    """Note facts from decoding, counted by split and kind; a row counts once, however often it was decoded.

    Args:
        job: from `d2v.training.job.start`.
        decoded: of batches, where collate functions put it as `decoded`.
    """
    for split, fact, where, *rows in decoded:
        job.decoded.setdefault((split, fact), dict[str, int]()).setdefault(where, rows[0] if rows else 1)


def everyones(job: Job, value: Any) -> list[Any]:
    """A value of each process, on all of them."""
    from accelerate.utils import gather_object

    return gather_object([value]) if job.accelerator.num_processes > 1 else [value]


def say_decoded(job: Job) -> None:
    """Print and keep the counts of `note_decoded` since the last time; all processes call this."""
    new = {kind: dict(islice(places.items(), job.shared.get(kind, 0), None)) for kind, places in job.decoded.items()}
    for decoded in everyones(job, new):
        for kind, places in decoded.items():
            for where, rows in places.items():
                job.decoded.setdefault(kind, {}).setdefault(where, rows)
    job.shared.update({kind: len(places) for kind, places in job.decoded.items()})
    for (split, fact), places in job.decoded.items():
        count, first = sum(places.values()), next(iter(places))
        stale = [each for each in job.facts if (each.get("split"), each["fact"]) == (split, fact)]
        if any(each["rows"] == count for each in stale):
            continue
        for each in stale:
            job.facts.remove(each)
        rows = "1 row" if count == 1 else f"{count} rows; the first is"
        note(job, fact, f"{fact}: {rows} {first}", split=split, rows=count, first=first)
