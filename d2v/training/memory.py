"""Memory: free memory is given back; if there is too little, an error says where, and which options take less."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from d2v.config import Job
from d2v.data.streams import StreamUpdates
from d2v.errors import InputError
from d2v.training.report import peak_memory_mb

INPUTS = ("input_values", "pixel_values", "input_ids")


@contextmanager
def out_of_memory(job: Job, batches: Sequence[dict[str, Any]], source: Any, doing: str) -> Iterator[None]:
    """Within, an allocation that fails is an InputError.

    Args:
        job: from `d2v.training.job.start`.
        batches: to be computed.
        source: from `d2v.data.loaders.train_loader` or `eval_loader`; it knows the names of rows.
        doing: for the message, such as "update 3".
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # the CPU's allocator raises a RuntimeError, known only by its text
        words = str(error).lower()  # "you tried to allocate" on a CPU, "backend out of memory" on Apple's GPUs
        known = "tried to allocate" in words or "out of memory" in words
        if not (known or isinstance(error, torch.OutOfMemoryError | MemoryError)):
            raise
        raise InputError(out_of_memory_message(job, batches, source, doing)) from error


TRIMMED = 100
"""Updates between calls of `trim`: it takes some 20 ms, and the next update as long again for new pages."""


def trim(device: torch.device) -> None:
    """Give free CPU memory back to the system; only with glibc, otherwise nothing happens.

    Batches of ever-changing sizes fragment the heap, since oneDNN caches something for each size, so glibc asks for
    more: 1.2 GB grew to 2.8 in 1,000 updates of a small text model (benchmarks/flat.py).
    """
    if device.type == "cpu":
        with suppress(OSError, AttributeError, TypeError):  # Windows has no library without a name
            ctypes.CDLL(None).malloc_trim(0)


def out_of_memory_message(job: Job, batches: Sequence[dict[str, Any]], source: Any, doing: str) -> str:
    """The message for `out_of_memory`, about the largest batch."""

    def numbers(batch: dict[str, Any]) -> int:
        return sum(each.numel() for each in batch.values() if isinstance(each, Tensor))

    batch, run = max(batches, key=numbers), job.config.run
    rows = getattr(getattr(getattr(source, "loader", source), "dataset", None), "rows", None)
    numbered = batch.get("rows", ())
    shapes = [f"{name} {' x '.join(map(str, batch[name].shape))}" for name in INPUTS if name in batch]
    about = ", ".join(shapes) or f"{len(numbered)} rows"
    if rows is not None and len(numbered) and not isinstance(source, StreamUpdates):  # a stream no longer has its rows
        longest = max(numbered, key=lambda row: rows.lengths[row])
        about += f", row {rows.ids[longest]}" if len(numbered) == 1 else f", the longest row {rows.ids[longest]}"
    peak = peak_memory_mb()
    memory = f"; {peak / 1024:.1f} GB were in use at most" if peak else ""
    if doing == "evaluation" and getattr(job.config.data, "chunk_seconds", None):
        advice = "lower data.batch_seconds, so many seconds of windows are computed at once, or data.chunk_seconds"
    elif len(numbered) > 1:
        advice = f"--run.pieces {2 * run.pieces} computes the same in smaller pieces"
    elif job.training and not run.gradient_checkpointing:
        advice = "--run.gradient_checkpointing true keeps less for the backward pass, and changes nothing else"
    else:
        advice = "a single row is too much: shorten such rows, or take a smaller model"
    if job.training and list(job.out.glob("checkpoints/step-*")):
        advice += ", with --run.resume true from the last checkpoint on"
    return f"out of memory in {doing}: {about}{memory}; {advice}"
