"""Sound files to batches of waveforms.

Shapes: B batch, S samples.
"""

import io
import math
import os
import re
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from d2v.errors import InputError
from d2v.hub import fetch_file, naming, of_lfs, read_json, write_json
from d2v.models.configuration import check_types

AudioSource = str | os.PathLike | bytes | dict[str, Any]

# libsndfile shortens a cut-off WAV, AIFF, AU or Ogg file without an error; only its log tells. Programs that write to a
# pipe cannot know the size and claim 2 GiB or more (eSpeak 0x7ffff000, FFmpeg 0xffffffff); such files are whole.
CUT_OFF = re.compile(r"(?:data|SSND|Data Size) *: (\d+) \(should be|Ogg ?: (?:File ended|Junk|Last page)")
SIZE_UNKNOWN = 0x7F000000
SLIP = 256
"""Bytes by which a WAV header may claim too much, such as its own; a download is cut off by more."""
HEADER = 128
"""Bytes from which `plain_header` reads the length of most WAV and FLAC files."""
OVERHANG = 0.1
"""Seconds by which a part may end after its recording: annotations are rounded, and lossy codecs pad or trim."""

Part = tuple[float, float | None]
"""Where a part of a recording begins and ends, in seconds; None for the recording's end."""


class AudioInfo(NamedTuple):
    """What the header of a sound file says."""

    frames: int
    rate: int
    channels: int
    mended: str | None = None
    """What is wrong with the file though all of its sound is there, or None."""

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.rate


LEAD = 2
"""Seconds of an MP3 file that are decoded before a part; its frames lend bits to the next eleven at the most."""


def load_audio(
    source: AudioSource, sampling_rate: int = 16_000, *, channel: int | None = None, part: Part | None = None
) -> np.ndarray:
    """Decode a sound file to one channel at the wanted rate.

    Args:
        source: a path, the bytes of a file, the `{"bytes", "path"}` of `datasets.Audio(decode=False)`, or the decoded
            `{"array", "sampling_rate"}`, of shape (samples,), (channels, samples) or (samples, channels).
        sampling_rate: of the result, in Hz.
        channel: number of the channel to decode, from 1; by default the mean of all.
        part: which seconds to decode; by default all. It may end up to `OVERHANG` after the recording.

    Returns:
        (S,) float32, full scale is 1. A file that is missing, not audio, damaged, cut off (WAV, AIFF, AU, FLAC and Ogg
        can tell), empty or not finite is an InputError, and so is a channel or a part that it does not have.
    """
    if decoded := _decoded(source):
        name, (samples, rate) = "array", decoded
        info = AudioInfo(len(samples), rate, samples.shape[1])
        first, last = _frames_of(part, name, info)
        samples = samples[first:last]
    else:
        name, file, info = _open(source)
        try:
            with file:
                rate = info.rate
                first, last = _frames_of(part, name, info)
                # The frames of MP3 need those before them: else what is sought begins with zeros. GSM 6.10 cannot seek.
                before = LEAD * rate if file.format == "MP3" else 0
                start = max(0, first - before) if file.seekable() else 0
                if start:
                    file.seek(start)
                samples = file.read(last - start, dtype="float32", always_2d=True)[first - start :]
        except InputError:
            raise
        except Exception as error:  # nearly anything can come of a damaged file
            raise InputError(f"{name}: damaged or cut-off audio ({getattr(error, 'error_string', error)})") from error
    if channel is None:
        samples = samples.mean(axis=1)  # (S,)
    elif not 1 <= channel <= samples.shape[1]:
        raise InputError(f"{name}: has no channel {channel}; it has {samples.shape[1]}, counted from 1")
    else:
        samples = samples[:, channel - 1]
    if not np.isfinite(samples).all():
        raise InputError(f"{name}: has NaN or infinite samples; audio must be finite")
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate, quality="HQ")
    if not samples.size:
        raise InputError(f"{name}: no samples at {sampling_rate} Hz; audio must not be empty")
    return samples


def _frames_of(part: Part | None, name: str, info: AudioInfo) -> tuple[int, int]:
    """The first frame of a part and the one behind its last; InputError if the recording does not have it."""
    if part is None:
        return 0, info.frames
    start, end = part[0], info.seconds if part[1] is None else part[1]
    if not (0 <= start < min(end, info.seconds) and end <= info.seconds + OVERHANG):
        raise InputError(f"{name}: has no part from {start:g} to {end:g} s; it lasts {info.seconds:g} s")
    return round(start * info.rate), min(round(end * info.rate), info.frames)


def audio_info(source: AudioSource) -> AudioInfo:
    """Length, rate and channels by the header alone; errors as in `load_audio`. MP3 files without one are estimated."""
    if decoded := _decoded(source):
        samples, rate = decoded
        return AudioInfo(len(samples), rate, samples.shape[1])
    data = source.get("bytes") if isinstance(source, dict) else source
    data = source.get("path") if isinstance(source, dict) and data is None else data
    if isinstance(data, bytes):
        head, size = data[:HEADER], len(data)
    elif is_file(data):
        with Path(data).open("rb") as opened:
            head, size = opened.read(HEADER), os.fstat(opened.fileno()).st_size
    else:
        head, size = b"", 0
    if info := plain_header(head, size):
        return info
    _, file, info = _open(source)
    file.close()
    return info


def plain_header(head: bytes, size: int) -> AudioInfo | None:
    """What the header of an undamaged WAV of PCM or FLAC says, as libsndfile would read it, but quicker; else None.

    Args:
        head: the first bytes of the file, `HEADER` of them or more.
        size: of the file.
    """
    if len(head) < 44:
        return None
    if head[:4] == b"RIFF" and head[8:20] == b"WAVEfmt \x10\0\0\0" and head[36:40] == b"data":
        kind, channels, rate, _, block, bits, length = struct.unpack("<HHIIHH4xI", head[20:44])
        whole = kind == 1 and bits in (8, 16, 24, 32) and block == channels * bits // 8 and rate and channels
        if whole and length and length % block == 0 and length % 2 == 0 and 44 + length <= size:
            return AudioInfo(length // block, rate, channels)
    # STREAMINFO comes first: 20 bits of rate, 3 of channels less one, 5 of bits less one, 36 of samples (RFC 9639).
    if head[:4] == b"fLaC" and head[4] & 0x7F == 0 and head[5:8] == b"\0\0\x22" and size > 86:
        bits = int.from_bytes(head[18:26], "big")
        rate, channels, frames = bits >> 44, (bits >> 41 & 7) + 1, bits & (1 << 36) - 1
        if rate and frames and (bits >> 36 & 31) + 1 in (8, 16, 24):
            return AudioInfo(frames, rate, channels)
    return None


def _decoded(source: AudioSource) -> tuple[np.ndarray, int] | None:
    """Samples, (S, channels), and rate of a source that is decoded already, both checked; else None."""
    if not isinstance(source, dict) or source.get("array") is None:
        return None
    try:
        samples = np.asarray(source["array"], np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"array: is no array of numbers ({error})") from error
    rate = source.get("sampling_rate")
    if samples.ndim == 2:  # channels first or last; there are fewer of them than samples
        samples = samples if samples.shape[0] > samples.shape[1] else samples.T
    elif samples.ndim == 1:
        samples = samples[:, None]
    else:
        raise InputError(f"array: has shape {samples.shape}; must be (samples,), or of a channel each")
    # From telephone codecs' and below to studio recorders': anything else is a mix-up of columns or units.
    number = float(rate) if isinstance(rate, int | float | np.number) and not isinstance(rate, bool) else math.nan
    if not (number.is_integer() and 1_000 <= number <= 384_000):
        raise InputError(f"sampling_rate: {rate!r} should be a whole number of Hz from 1000 to 384000")
    return samples, int(number)


def _open(source: AudioSource) -> tuple[str, soundfile.SoundFile, AudioInfo]:
    """The name for messages, the opened file, and its header, checked."""
    if isinstance(source, dict):
        data, path = source.get("bytes"), source.get("path")
    else:
        data, path = (source, None) if isinstance(source, bytes) else (None, source)
    name = "<bytes>" if path is None else f"{path!s:.200}"
    if data is None and not is_file(path):
        raise InputError(f"{name}: no such file; audio is a file's path or its bytes")
    opened = _try_open((path or "") if data is None else data)
    mended = None
    if not isinstance(opened, soundfile.SoundFile):
        again, what = _mend(Path(path or "").read_bytes() if data is None else data)
        reopened = _try_open(again) if what else opened
        if not isinstance(reopened, soundfile.SoundFile):
            raise InputError(f"{name}: {opened}")
        opened, mended = reopened, what
    return name, opened, AudioInfo(opened.frames, opened.samplerate, opened.channels, mended)


def is_file(path: Any) -> TypeGuard[str | os.PathLike]:
    """Whether this is the path of a file; what cannot be a path is none."""
    try:
        return isinstance(path, str | os.PathLike) and Path(path).is_file()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def _try_open(source: str | os.PathLike | bytes) -> soundfile.SoundFile | str:
    """The opened file, or what is wrong with it."""
    try:
        file = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except Exception as error:  # TypeError, for one: a headerless .raw file
        reason = getattr(error, "error_string", error)
        return f"not readable as audio, use WAV, FLAC, Ogg or MP3 ({reason}){of_lfs(source)}"
    cut = CUT_OFF.search(file.extra_info)
    if cut and int(cut[1] or 0) < SIZE_UNKNOWN:
        problem = "cut off, shorter than its header says; copy or write it again"
    elif not 0 < file.frames < 2**62:  # libsndfile says 2**63 - 1 where a FLAC header has no length
        problem = f"the header says {file.frames} samples; audio must have a known length above 0"
    else:
        return file
    file.close()
    return problem


def _mend(data: bytes) -> tuple[bytes, str | None]:
    """A file whose sound is all there, without what libsndfile stumbles over, and what that is; else None for it."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        place = 12
        while data[place : place + 4] != b"data" and place + 8 < len(data):
            size = struct.unpack("<I", data[place + 4 : place + 8])[0]
            place += 8 + size + size % 2
        if place + 8 >= len(data):
            return data, None
        size, there = struct.unpack("<I", data[place + 4 : place + 8])[0], len(data) - place - 8
        # An empty file may have chunks behind its sound; one that was written to a pipe has the sound itself there.
        streamed = size == 0 and not (data[place + 8 :][:4].isalpha() and there < 1024)
        if streamed or 0 < size - there <= SLIP:
            what = f"its header says {size} bytes of sound, there are {there}"
            return data[: place + 4] + struct.pack("<I", min(there, 2**32 - 1)) + data[place + 8 :], what
    place = 0
    while data[place : place + 4] == b"OggS" and place + 27 <= len(data):  # page after page (RFC 3533)
        last, segments = data[place + 5] & 4, data[place + 26]
        end = place + 27 + segments + sum(data[place + 27 : place + 27 + segments])
        if last and end < len(data) and data[end : end + 4] != b"OggS":  # which would be another recording
            return data[:end], f"{len(data) - end} bytes behind its last page"
        place = end
    return data, None


@dataclass
class AudioFeatureExtractor:
    """Waveforms to a padded batch; the fields are those of Hugging Face's `Wav2Vec2FeatureExtractor`.

    Attributes:
        feature_size: 1, a waveform.
        sampling_rate: that the model was trained at, in Hz.
        padding_side: "right".
        padding_value: of the samples after the end of a clip.
        do_normalize: scale each clip to zero mean and unit variance; data2vec was trained so.
        return_attention_mask: only kept for the file; the mask is always returned, as d2v's models skip the padding.
    """

    feature_size: int = 1
    sampling_rate: int = 16_000
    padding_side: str = "right"
    padding_value: float = 0.0
    do_normalize: bool = True
    return_attention_mask: bool = True

    def __post_init__(self):
        if (self.feature_size, self.padding_side) != (1, "right"):
            raise InputError("preprocessor_config.json: feature_size must be 1 and padding_side 'right'")
        with naming("preprocessor_config.json"):
            check_types(self)
        if self.sampling_rate < 1:
            raise InputError(f"preprocessor_config.json: sampling_rate is {self.sampling_rate}; must be in Hz, above 0")

    def __call__(self, clips: list[np.ndarray]) -> dict[str, Tensor]:
        """Normalise each clip over its own samples and pad to the longest.

        Args:
            clips: B arrays of any length, (S,) each.

        Returns:
            `input_values` (B, S) float32; `attention_mask` (B, S) bool, True where there is sound.
        """
        clips = [np.asarray(clip, np.float32) for clip in clips]
        for i, clip in enumerate(clips):
            if clip.ndim != 1 or not clip.size:
                raise InputError(f"clip {i} has shape {clip.shape}; must be (samples,) with at least one sample")
        shape = len(clips), max(map(len, clips), default=0)
        values = np.full(shape, self.padding_value, np.float32)  # (B, S)
        mask = np.zeros(shape, np.bool_)  # (B, S)
        for row, row_mask, clip in zip(values, mask, clips, strict=True):
            if self.do_normalize:  # 1e-7 as Hugging Face's zero_mean_unit_var_norm
                clip = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
            row[: len(clip)] = clip
            row_mask[: len(clip)] = True
        return {"input_values": torch.from_numpy(values), "attention_mask": torch.from_numpy(mask)}

    @classmethod
    def for_model(cls, source: str | Path | None) -> "AudioFeatureExtractor":
        """That of a checkpoint to train or to use, or data2vec's for a new model."""
        extractor = cls.from_pretrained(source) if source else cls()
        if not extractor.do_normalize:  # fairseq's base configurations say so, which were made for wav2vec 2.0
            raise InputError(f"{source}: has do_normalize false; data2vec was trained on normalised sound")
        return extractor

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "AudioFeatureExtractor":
        """From `processor_config.json` or `preprocessor_config.json` of a folder or hub repository."""
        entries = None
        if path := fetch_file(source, "processor_config.json"):
            entries = read_json(path).get("feature_extractor")  # missing before Hugging Face's version 5
        if entries is None:
            if not (path := fetch_file(source, "preprocessor_config.json")):
                raise InputError(
                    f"{source}: no preprocessor_config.json, nor processor_config.json with feature_extractor"
                )
            entries = read_json(path)
        if (kind := entries.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")) != "Wav2Vec2FeatureExtractor":
            raise InputError(f"{path}: feature_extractor_type is {kind!r}; must be 'Wav2Vec2FeatureExtractor'")
        with naming(source):
            own = {f.name: entries[f.name] for f in fields(cls) if entries.get(f.name) is not None}
            if "return_attention_mask" in entries:  # of which null says no
                own["return_attention_mask"] = entries["return_attention_mask"] or False
            return cls(**own)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json` and the `processor_config.json` that newer versions look for first."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        entries = {"feature_extractor_type": "Wav2Vec2FeatureExtractor"} | asdict(self)
        processor = {"processor_class": "Wav2Vec2Processor", "feature_extractor": entries}
        write_json(Path(folder) / "preprocessor_config.json", entries)
        write_json(Path(folder) / "processor_config.json", processor)
