"""The logits of recordings of any length, computed in overlapping windows.

Shapes: B batch, S samples, T frames, C vocabulary, classes or speakers.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig

Windowed = Callable[[nn.Module, list[np.ndarray]], tuple[Tensor, Tensor]]
"""Computes the logits (B, T, C) and the numbers of frames (B,) of B waveforms."""


def frame_logits(
    model: nn.Module, batch: dict[str, Any], config: Data2VecAudioConfig, windowed: Windowed | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (B, T, C) of a batch from `d2v.data.audio.clip_batch`, and the numbers of frames (B,).

    Args:
        model: with one output per frame.
        batch: of clips, or of long `recordings`.
        config: the model's.
        windowed: from `windowed_logits`, for recordings.
    """
    if windowed and "recordings" in batch:
        return windowed(model, batch["recordings"])
    logits = model(batch["input_values"], batch["attention_mask"]).logits
    return logits, torch.tensor([config.frames(length) for length in batch["lengths"]])


def windows(frames: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """A recording's overlapping windows, and the frames to keep of each.

    All windows have the same length, also the last one, which ends where the recording ends. Every frame is kept once,
    from the window in which it is nearest the centre.

    Args:
        frames: number of frames of the recording.
        length: number of frames of a window.
        stride: number of frames that are dropped at either end of a window, unless the recording begins or ends there.

    Returns:
        For each window its first frame, the first frame kept, and the first frame no longer kept, all counted from the
        recording's beginning.
    """
    last = max(0, frames - length)
    firsts = [*range(0, last, length - 2 * stride), last]
    seams = [0, *((a + b + length) // 2 for a, b in pairwise(firsts)), frames]
    return [(first, start, end) for first, (start, end) in zip(firsts, pairwise(seams), strict=True)]


def windowed_logits(
    config: Data2VecAudioConfig,
    rate: int,
    chunk_seconds: float,
    stride_seconds: float | None,
    batch_seconds: float,
    align: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Windowed:
    """A function that computes the logits of recordings of any length in windows, in bounded memory.

    Args:
        config: the model's.
        rate: samples per second.
        chunk_seconds: length of a window.
        stride_seconds: context at either end of a window whose logits are not kept; by default a sixth of the window,
            as in Hugging Face's pipeline for speech recognition (`stride_length_s`).
        batch_seconds: maximum seconds that are computed at once, but at least one window.
        align: `align(before, after)` gets two neighbours' logits (T, C) of the same frames, and returns the order of
            the second's columns that matches the first; by default columns stay as they are.

    Returns:
        A function of a model and of B waveforms on the host, (S,), each normalised as a whole. It returns logits
        (B, T, C) and the numbers of frames, (B,), on the host too.

    Raises:
        InputError: the window lengths do not fit, or the model has adapters, whose frames would not fit together.
    """
    hop, length = config.inputs_to_logits_ratio, config.frames(round(chunk_seconds * rate))
    stride = int((chunk_seconds / 6 if stride_seconds is None else stride_seconds) * rate) // hop
    if config.add_adapter:
        raise InputError("--data.chunk_seconds is for models without adapters (add_adapter)")
    if length < 1 or not 0 <= 2 * stride < length:
        raise InputError(
            f"--data.chunk_seconds {chunk_seconds:g} should be at least {config.shortest_clip / rate:g}, and "
            "--data.stride_seconds from 0 to less than half of it"
        )
    if align is not None and stride == 0:
        raise InputError(
            "--data.stride_seconds, by default a sixth of the window, should be more than a frame of "
            f"{hop / rate:g}: the speakers of two windows are matched by what both hear"
        )
    samples, rows = (length - 1) * hop + config.shortest_clip, max(1, int(batch_seconds // chunk_seconds))

    def compute(model: nn.Module, recordings: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        joined, device = [], next(model.parameters()).device
        for recording in recordings:
            cuts, parts = windows(config.frames(len(recording)), length, stride), []
            before: tuple[int, Tensor] | None = None  # the previous window: its first frame, its logits
            for i in range(0, len(cuts), rows):
                some = cuts[i : i + rows]
                batch = np.stack([recording[first * hop :][:samples] for first, *_ in some])
                logits = model(torch.from_numpy(batch).to(device)).logits.cpu()
                for row, (first, start, end) in zip(logits, some, strict=True):
                    if align is not None and before is not None:
                        shared = before[1][first - before[0] :]
                        row = row[:, align(shared, row[: len(shared)])]
                    before = first, row
                    parts.append(row[start - first : end - first])
            joined.append(torch.cat(parts))
        return pad_sequence(joined, batch_first=True), torch.tensor([len(logits) for logits in joined])

    return compute
