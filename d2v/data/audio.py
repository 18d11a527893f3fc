"""Clips: their lengths, the parts of recordings that they are, and which cannot be used."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from d2v.config import Job, at_least
from d2v.data.cache import map_rows
from d2v.data.facts import Decoded, note
from d2v.data.parts import PartData, has_parts, part_name, read_parts, seconds_of
from d2v.data.rows import Rows, Split, check_rows, decode_rows
from d2v.data.streams import rows_of
from d2v.errors import InputError
from d2v.processors.audio import HEADER, AudioFeatureExtractor, AudioInfo, audio_info, load_audio, plain_header

if TYPE_CHECKING:
    import pyarrow as pa

Settle = Callable[[Any, float, Any], tuple[Any, Mapping[str, int]]]
LONGEST = 30.0
"""Default of `data.max_seconds` for clips that are not cropped, in seconds."""


@dataclass
class AudioData(PartData):
    """Data with sound.

    Attributes:
        audio_column: column of the sound, as `datasets` stores it, or of its paths.
        channel: number of the channel to read, from 1; by default the mean of all.
        batch_seconds: maximum seconds of sound in a batch, padding included.
        max_seconds: maximum length of a training clip, in seconds; by default 30, or no limit where clips are cropped.
        seconds_column: column of each recording's duration in seconds; by default, and where columns give parts in
            samples, headers are read instead.
    """

    modality: ClassVar[str] = "audio"
    unit: ClassVar[str] = "audio s"

    audio_column: str = "audio"
    channel: int | None = None
    batch_seconds: float = 100.0
    max_seconds: float | None = None
    seconds_column: str | None = None

    def __post_init__(self):
        super().__post_init__()
        at_least(1, "data", self, ("channel",))
        at_least(0.1, "data", self, ("crop_seconds",) if hasattr(self, "crop_seconds") else ())  # some frames

    @property
    def together(self) -> str | None:
        """The column of recordings; rows may be parts of one recording."""
        return self.audio_column

    @property
    def max_size(self) -> float:
        """Maximum seconds of a batch."""
        return self.batch_seconds


def clip_rows(
    job: Job,
    splits: Mapping[str, Split],
    rate: int,
    shortest: int,
    references: Mapping[str, Any],
    *,
    problem: Callable[[Any, float], str | None],
    eval_problem: Callable[[Any, float], str | None] = lambda reference, seconds: None,
    crop_seconds: float = math.inf,
    cropped: Sequence[str] = ("train",),
    settle: Settle | None = None,
) -> dict[str, Rows]:
    """The usable rows of each split, with their seconds. Only headers are read; damage shows in decoding.

    Args:
        job: its data have the options of `AudioData`.
        splits: from `d2v.data.load.load`.
        rate: samples per second.
        shortest: minimum number of samples of a clip.
        references: split -> each row's reference, or for a stream a function that returns those of a block; empty in
            prediction.
        problem, eval_problem: `problem(reference, seconds)` says what is wrong with a row of train, `eval_problem` with
            one of another split.
        crop_seconds: as for `clip_batch`; longer clips count as this long.
        cropped: the splits whose clips are cropped.
        settle: adapts references to the part that is read: `settle(reference, seconds, part)` returns a new one, and
            counts of its changes.

    Raises:
        InputError: a bad row, unless `data.bad_rows` skips it, or no good one.
    """
    data: AudioData = job.config.data
    if any(split.stream is not None for split in splits.values()):

        def of(part: Split) -> Rows:
            known = references.get(part.name)
            own = {} if known is None else {part.name: known(part) if callable(known) else known}
            options: Any = {"problem": problem, "eval_problem": eval_problem, "settle": settle, "cropped": cropped}
            options["crop_seconds"] = crop_seconds
            return clip_rows(job, {part.name: part}, rate, shortest, own, **options)[part.name]

        return {name: rows_of(split, of) for name, split in splits.items()}
    rows = {}
    for name, split in splits.items():
        training = name == "train"
        most = crop_seconds if name in cropped else math.inf
        longest = data.max_seconds or (LONGEST if most == math.inf else math.inf)
        told = data.seconds_column
        if told and has_parts(split, data):  # headers say if a file is the part, and its sampling rate
            note(job, "headers are read", f"{name}: rows are parts; headers are read, not {told}", split=name)
            told = None
        infos = told_seconds(split, told, rate) if told else read_headers(job, split)
        parts: list[Any] | None = read_parts(job, split, infos)
        channel = None if told else data.channel  # unread channels are checked in decoding
        seconds, reasons = check_clips(infos, parts, shortest / rate, longest if training else math.inf, channel)
        targets, done = references.get(name), []
        if targets is not None and settle is not None:
            settled = [settle(*each) for each in zip(targets, seconds, parts or [None] * len(split), strict=True)]
            targets, done = [target for target, _ in settled], [facts for _, facts in settled]
        if targets is not None:
            find = problem if training else eval_problem
            checked = zip(reasons, targets, seconds, strict=True)
            reasons = [reason or find(target, length) for reason, target, length in checked]
        good = check_rows(job, split, reasons)
        note_settled(job, split, {i: done[i] for i in good if done})
        note_headers(job, split, infos, good, rate)
        kept, ids = split.select(good), split.ids(data.audio_column)
        named = parts is None or ("id" in split.table.column_names and len(set(ids)) == len(ids))
        rows[name] = Rows(
            split=kept,
            ids=[ids[i] if named or parts is None else part_name(ids[i], parts[i]) for i in good],
            lengths=np.minimum(seconds[good], most).tolist(),
            references=None if targets is None else [targets[i] for i in good],
            parts=None if parts is None else [parts[i] for i in good],
        )
    return rows


class Headers(Sequence[AudioInfo | str]):
    """The header of each row's sound, an `AudioInfo`, or what is wrong with it; stored as (N,) arrays.

    Attributes:
        frames, rates, channels: of each sound; 0 if its header cannot be read.
        mended, problems: texts by row, for rows that have one.
    """

    def __init__(self, table: "pa.Table"):
        columns = [table.column(name).to_numpy() for name in ("frames", "rate", "channels")]
        self.frames, self.rates, self.channels = columns
        self.mended, self.problems = (texts_of(table.column(name)) for name in ("mended", "problem"))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: Any) -> Any:
        if i in self.problems:
            return self.problems[i]
        return AudioInfo(int(self.frames[i]), int(self.rates[i]), int(self.channels[i]), self.mended.get(i))

    @property
    def seconds(self) -> np.ndarray:
        """(N,) durations; 0 where unknown."""
        return self.frames / np.maximum(self.rates, 1)


def texts_of(column: "pa.ChunkedArray") -> dict[int, str]:
    """The values of a sparse column, by row."""
    import pyarrow.compute as pc

    there = np.flatnonzero(pc.is_valid(column).to_numpy())
    return dict(zip(there.tolist(), column.take(there).to_pylist(), strict=True))


def read_headers(job: Job, split: Split) -> Headers:
    """The headers of a split's sounds, read by all cores or from the cache; no sound is decoded."""
    column = job.config.data.audio_column
    found, rows = map_rows(job, split, [column], headers_of, "reading headers", files=True)
    return Headers(found.data.table.take(rows))


def told_seconds(split: Split, column: str, rate: int) -> Headers:
    """Headers made from a column of durations, as if all sounds had one channel and the model's rate."""
    import pyarrow as pa

    if column not in split.table.column_names:
        there = ", ".join(split.table.column_names)
        raise InputError(f"{split.name}: no column {column!r} (data.seconds_column); there are {there}")
    frames, problems = np.zeros(len(split), np.int64), [None] * len(split)
    values = split.column(column)
    for i, value in enumerate(values):
        try:
            seconds = seconds_of(value, 1.0, rate) or 0.0
        except (TypeError, ValueError):
            seconds = 0.0
        if 0 < seconds < math.inf:
            frames[i] = round(seconds * rate)
        else:
            problems[i] = f"{column} is {value!r:.40}; should be seconds (data.seconds_column)"  # type: ignore[call-overload]
    rates = np.full(len(split), rate, np.int32)
    columns = {"frames": frames, "rate": rates, "channels": np.ones(len(split), np.int32)}
    columns |= {"mended": pa.nulls(len(split), pa.string()), "problem": pa.array(problems, pa.string())}
    return Headers(pa.table(columns))


def is_plain_list(kind: "pa.DataType") -> bool:
    """Whether a column has lists of numbers, each one channel of sound."""
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and not pa.types.is_nested(kind.value_type)


def headers_of(table: "pa.Table") -> "pa.Table":
    """The columns of `Headers` for a table with a column of sound."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = table.column(0)
    infos: list[Any] = [None] * len(values)
    names = [field.name for field in values.type] if pa.types.is_struct(values.type) else []
    data = pc.struct_field(values, "bytes") if "bytes" in names else values
    if pa.types.is_binary(data.type) or pa.types.is_large_binary(data.type):
        heads, sizes = pc.binary_slice(data, 0, HEADER), pc.binary_length(data)
        pairs = zip(heads.to_pylist(), sizes.to_pylist(), strict=True)
        infos = [head and plain_header(head, size) for head, size in pairs]
    elif {"array", "sampling_rate"} <= set(names) and is_plain_list(values.type["array"].type):
        arrays, rates = pc.struct_field(values, "array"), pc.struct_field(values, "sampling_rate")
        pairs = zip(pc.list_value_length(arrays).to_pylist(), rates.to_pylist(), strict=True)
        infos = [
            AudioInfo(length, rate, 1) if length and isinstance(rate, int) and rate >= 1000 else None
            for length, rate in pairs
        ]
    known: dict[str, AudioInfo | str] = {}  # several rows may be parts of one file
    rest = [i for i, info in enumerate(infos) if not info]
    for i, value in zip(rest, values.take(pa.array(rest, pa.int64())).to_pylist(), strict=True):
        path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
        info = known.get(path) if isinstance(path, str) else None
        if info is None:
            try:
                info = audio_info(value)
            except Exception as error:  # nearly anything can come of a damaged file
                info = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error!s:.200}"
            if isinstance(path, str):
                known[path] = info
        infos[i] = info
    good = [AudioInfo(0, 0, 0) if isinstance(info, str) else info for info in infos]
    problems = [info if isinstance(info, str) else None for info in infos]
    columns = {"frames": pa.array([info.frames for info in good], pa.int64())}
    columns |= {name: pa.array([getattr(info, name) for info in good], pa.int32()) for name in ("rate", "channels")}
    columns["mended"] = pa.array([info.mended for info in good], pa.string())
    return pa.table(columns | {"problem": pa.array(problems, pa.string())})


def check_clips(
    infos: Headers, parts: Sequence[Any] | None, shortest: float, longest: float = math.inf, channel: int | None = None
) -> tuple[np.ndarray, list[str | None]]:
    """The clips' durations in seconds, (N,), and what is wrong with each, or None.

    Args:
        infos: from `read_headers`.
        parts: from `read_parts`: the part of its recording that each clip is; None if all are whole.
        shortest, longest: limits of a clip's seconds.
        channel: that is read; None for all.
    """
    seconds, reasons = infos.seconds, list[str | None]([None] * len(infos))
    for i, part in enumerate(parts or ()):
        if isinstance(part, tuple):
            seconds[i] = part[1] - part[0]
        elif isinstance(part, str):
            reasons[i], seconds[i] = part, 0.0
    for i in np.flatnonzero(~((shortest <= seconds) & (seconds <= longest))).tolist():
        bounds = f"a clip has {shortest:.3f} to {longest:g} s"
        reasons[i] = infos.problems.get(i) or reasons[i] or f"{seconds[i]:.3f} s of sound; {bounds}"
    for i in np.flatnonzero(infos.channels < (channel or 0)).tolist():
        reasons[i] = reasons[i] or f"no channel {channel}, there are {infos.channels[i]} (data.channel)"
    return seconds, reasons


def note_settled(job: Job, split: Split, done: Mapping[int, Mapping[str, int]]) -> None:
    """Note how often each kind of change was made to the references of a split's rows."""
    for fact in dict.fromkeys(fact for facts in done.values() for fact in facts):
        rows = [i for i, facts in done.items() if fact in facts]
        total, where = sum(done[i][fact] for i in rows), split.where(rows[0])
        line = f"{split.name}: {fact}, {total} in {len(rows)} of {len(done)} rows; the first in {where}"
        note(job, fact, line, split=split.name, count=total, rows=len(rows), of=len(done), first=where)


def note_headers(job: Job, split: Split, infos: Headers, good: np.ndarray, rate: int) -> None:
    """Note the changes to a split's sound: channels mixed, sound resampled, odd headers corrected.

    Args:
        job: its data have the options of `AudioData`.
        split: the rows.
        infos: of all rows.
        good: (n,) the rows that are used.
        rate: the model's samples per second.
    """

    def say(fact: str, rows: np.ndarray, values: Any, rest: str = "") -> None:
        if len(rows):
            first = f"{split.where(rows[0])}: {values[int(rows[0])]}"
            line = f"{split.name}: {fact} in {len(rows)} of {len(good)} rows; the first is {first}{rest}"
            note(job, fact, line, split=split.name, rows=len(rows), of=len(good), first=first)

    if job.config.data.channel is None:
        several = good[infos.channels[good] > 1]
        say("channels mixed", several, infos.channels, " channels (data.channel hears one)")
    say(f"sound resampled to {rate} Hz", good[infos.rates[good] != rate], infos.rates)
    say("header put right", np.intersect1d(good, list(infos.mended)).astype(np.int64), infos.mended)


def crop_start(length: int, samples: int, seed: tuple[int, ...]) -> int:
    """The first sample of a random crop of `samples` samples, drawn by `seed`; 0 for a shorter clip."""
    return int(np.random.default_rng(seed).integers(max(length - samples, 0) + 1))


def random_speed(clip: np.ndarray, seed: tuple[int, ...], most: float) -> np.ndarray:
    """A clip played faster or slower by a random share of at most `most`, such as 0.1; pitch changes too.

    Speed perturbation (Ko et al., 2015), with speeds from a range instead of three.
    """
    import soxr

    return soxr.resample(clip, 1 + np.random.default_rng((*seed, 1)).uniform(-most, most), 1.0)


def load_clips(
    rows: list[dict[str, Any]], data: AudioData, rate: int
) -> tuple[list[dict[str, Any]], list[np.ndarray], list[Decoded]]:
    """Decode the sound of a batch, only the part that each row is; see `d2v.data.rows.decode_rows`."""
    return decode_rows(rows, partial(load_clip, data=data, rate=rate), data.bad_rows)


def load_clip(row: dict[str, Any], data: AudioData, rate: int) -> np.ndarray:
    """The sound of a row, (S,)."""
    return load_audio(row[data.audio_column], rate, channel=data.channel, part=row.get("part"))


def long_recordings(batch: dict[str, Any], samples: float) -> dict[str, Any]:
    """The batch, or, if one of its clips exceeds `samples`, a batch of `recordings`, each normalised as a whole.

    See `d2v.decode.windows`; a list of arrays stays on the host.
    """
    if max(batch["lengths"]) <= samples:
        return batch
    clips = zip(batch["input_values"].numpy(), batch["lengths"], strict=True)
    kept = {key: value for key, value in batch.items() if key not in ("input_values", "attention_mask")}
    return kept | {"recordings": [values[:length] for values, length in clips]}


def clip_batch(
    rows: list[dict[str, Any]],
    extractor: AudioFeatureExtractor,
    data: AudioData,
    change: Callable[[np.ndarray, tuple[int, ...]], np.ndarray] | None = None,
    crop_seconds: float | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a batch that can be decoded, and the batch.

    Args:
        rows: of a split.
        extractor: of the model.
        data: says where the sound is, and what to do with damaged clips.
        change: `change(clip, seed)` augments a clip of train.
        crop_seconds: length of the random crops of longer clips of train.

    Returns:
        Rows, and `input_values` (B, S), `attention_mask` (B, S), the clips' `lengths` in samples, on the host, with
        `crop_seconds` their `starts`, the first samples of the crops, `rows`, `size`, and `decoded`, the rows left out.
    """
    rate = extractor.sampling_rate
    rows, clips, decoded = load_clips(rows, data, rate)
    if change is not None:
        clips = [change(clip, row["seed"]) if "seed" in row else clip for clip, row in zip(clips, rows, strict=True)]
    about: dict[str, Any] = {"rows": [row["row"] for row in rows], "decoded": decoded}
    if crop_seconds is not None and "seed" in rows[0]:
        samples, pairs = round(crop_seconds * rate), list(zip(clips, rows, strict=True))
        about["starts"] = [crop_start(len(clip), samples, row["seed"]) for clip, row in pairs]
        clips = [clip[first : first + samples] for clip, first in zip(clips, about["starts"], strict=True)]
    about["lengths"] = [len(clip) for clip in clips]
    return rows, extractor(clips) | about | {"size": sum(about["lengths"]) / rate}
