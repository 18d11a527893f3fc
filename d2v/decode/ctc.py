"""From CTC logits to text, and the logits of recordings of any length. With a language model: `d2v.decode.ctc_lm`.

Shapes: B batch, S samples, T frames, C vocabulary.
"""

from collections.abc import Callable
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.processors.ctc import CTCTokenizer

NEVER = -1e4  # a log probability far below all others, but finite: hypotheses that have it still differ by the rest


def greedy(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """The best class of every real frame, row by row.

    Args:
        logits: (B, T, C).
        lengths: (B,) real frames; what lies behind them is not decoded.
    """
    best = logits.argmax(dim=-1)  # (B, T)
    return [row[:length].tolist() for row, length in zip(best, lengths.tolist(), strict=True)]


def words_with_times(frames: list[int], tokenizer: CTCTokenizer, seconds_per_frame: float) -> list[dict[str, Any]]:
    """Words with `start` and `end` in seconds, from the frames of their first and last characters.

    Args:
        frames: best class of every frame.
        tokenizer: whose ids they are.
        seconds_per_frame: 0.02 in the released models.
    """
    words: list[dict[str, Any]] = []
    characters: list[int] = []
    begin = end = position = 0
    for token, group in groupby([*frames, tokenizer.word_delimiter_token_id]):
        length = len(list(group))
        if token == tokenizer.word_delimiter_token_id:
            if word := tokenizer.normalize(tokenizer.decode(characters, group=False)):
                times = {"start": round(begin * seconds_per_frame, 3), "end": round(end * seconds_per_frame, 3)}
                words.append({"word": word} | times)
            characters = []
        elif token != tokenizer.pad_token_id:
            begin = begin if characters else position
            characters.append(token)
            end = position + length
        position += length
    return words


def fit_vocabulary(logits: Tensor, size: int) -> Tensor:
    """Logits (B, T, C) for the tokens of a vocabulary, (B, T, size).

    A row of the head that has no token is never written, and neither is a token that has no row.
    """
    return F.pad(logits[..., :size], (0, max(size - logits.shape[-1], 0)), value=NEVER)


def transcribe(
    logits: Tensor,
    frames: Tensor,
    tokenizer: CTCTokenizer,
    hop: float,
    search: Callable[[Tensor, Tensor], list[str]] | None = None,
) -> list[dict[str, Any]]:
    """What greedy search makes of each row: its `text`, and its `words` with their times.

    Args:
        logits: (B, T, C).
        frames: (B,) real frames.
        tokenizer: of the model.
        hop: seconds from one frame to the next.
        search: beam search with a language model, whose text is `text_lm`.
    """
    logits = fit_vocabulary(logits, len(tokenizer))
    rows = greedy(logits, frames)
    texts = [tokenizer.normalize(tokenizer.decode(row)) for row in rows]  # as references are
    words = [words_with_times(row, tokenizer, hop) for row in rows]
    found: list[dict[str, Any]] = [{"text": text, "words": each} for text, each in zip(texts, words, strict=True)]
    if search is None:
        return found
    return [row | {"text_lm": text} for row, text in zip(found, search(logits, frames), strict=True)]


def windows(frames: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """Where to cut a recording into overlapping windows, and which frames to keep of each.

    All windows are of one length, the last one too: it ends where the recording ends. Every frame is kept once, from
    the window in which it is nearest the centre.

    Args:
        frames: of the recording.
        length: frames of a window.
        stride: frames that are not kept at either end of a window, unless the recording begins or ends there.

    Returns:
        For each window its first frame, the first that is kept of it, and the first that no longer is, all counted from
        the recording's beginning.
    """
    last = max(0, frames - length)
    firsts = [*range(0, last, length - 2 * stride), last]
    seams = [0, *((a + b + length) // 2 for a, b in pairwise(firsts)), frames]
    return [(first, start, end) for first, (start, end) in zip(firsts, pairwise(seams), strict=True)]


def windowed_logits(
    config: Data2VecAudioConfig, rate: int, chunk_seconds: float, stride_seconds: float | None, batch_seconds: float
) -> Callable[[Data2VecAudioForCTC, list[np.ndarray]], tuple[Tensor, Tensor]]:
    """A function that computes the logits of recordings of any length in windows, in bounded memory.

    Args:
        config: the model's.
        rate: samples a second.
        chunk_seconds: length of a window.
        stride_seconds: context at either end of a window whose logits are not kept; by default a sixth of the window,
            as in Hugging Face's pipeline for speech recognition (`stride_length_s`).
        batch_seconds: most seconds that are computed at once, but at least one window.

    Returns:
        A function of a model and of B waveforms on the host, (S,), each normalised as a whole. It returns logits
        (B, T, C) and the numbers of frames, (B,), on the host too.

    Raises:
        InputError: such windows cannot be, or the model has adapters, whose frames would not fit together.
    """
    hop, length = config.inputs_to_logits_ratio, config.frames(int(chunk_seconds * rate))
    stride = int((chunk_seconds / 6 if stride_seconds is None else stride_seconds) * rate) // hop
    if config.add_adapter:
        raise InputError("--data.chunk_seconds is for models without adapters (add_adapter)")
    if length < 1 or not 0 <= 2 * stride < length:
        raise InputError(
            f"--data.chunk_seconds {chunk_seconds:g} should be at least {config.shortest_clip / rate:g}, and "
            "--data.stride_seconds from 0 to less than half of it"
        )
    samples, rows = (length - 1) * hop + config.shortest_clip, max(1, int(batch_seconds // chunk_seconds))

    def compute(model: Data2VecAudioForCTC, recordings: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        joined, device = [], next(model.parameters()).device
        for recording in recordings:
            cuts, parts = windows(config.frames(len(recording)), length, stride), []
            for i in range(0, len(cuts), rows):
                some = cuts[i : i + rows]
                batch = np.stack([recording[first * hop :][:samples] for first, *_ in some])
                logits = model(torch.from_numpy(batch).to(device)).logits.cpu()
                parts += [
                    row[start - first : end - first] for row, (first, start, end) in zip(logits, some, strict=True)
                ]
            joined.append(torch.cat(parts))
        return pad_sequence(joined, batch_first=True), torch.tensor([len(logits) for logits in joined])

    return compute
