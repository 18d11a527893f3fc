"""Transcripts and segments in other programs' formats: Praat's TextGrid, subtitles as SRT and WebVTT, RTTM.

An interval is (start, end, text), in seconds of its recording.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

from d2v.config import Job
from d2v.data.diarization import Segment, one_word, recording_name
from d2v.data.rows import Rows
from d2v.decode.diarization import write_rttm

Interval = tuple[float, float, str]
Tiers = Mapping[str, Sequence[Interval]]
Recordings = Mapping[str, Tiers]
Format = Literal["textgrid", "srt", "vtt", "rttm"]
CUE_CHARACTERS, CUE_SECONDS, PAUSE = 84, 7.0, 1.0
"""Longest cue: two lines of 42 characters for 7 s (Netflix's Timed Text Style Guide); and the pause that ends one."""


def write_intervals(folder: Path, recordings: Recordings, formats: Iterable[Format]) -> None:
    """Write each recording's intervals to `<recording>.TextGrid`, `.srt` and `.vtt`, and all of them to `all.rttm`.

    Args:
        folder: made if needed.
        recordings: name -> tiers -> intervals. TextGrids have all tiers, the other formats all except `words`.
        formats: to write.
    """
    for kind in dict.fromkeys(formats):
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "rttm":
            speakers = {
                name: [(start, end, one_word(tier)) for tier, rows in apart(tiers).items() for start, end, _ in rows]
                for name, tiers in recordings.items()
            }
            write_rttm(folder / "all.rttm", speakers)
            continue
        for name, tiers in recordings.items():
            file = folder / (name + {"textgrid": ".TextGrid", "srt": ".srt", "vtt": ".vtt"}[kind])
            text = text_grid(tiers) if kind == "textgrid" else subtitles(apart(tiers), web=kind == "vtt")
            file.write_text(text, "utf-8")


def apart(tiers: Tiers) -> Tiers:
    """The tiers without `words`, whose texts another tier has."""
    return {name: rows for name, rows in tiers.items() if name != "words"}


def text_grid(tiers: Tiers) -> str:
    """Praat's text of interval tiers, which cover all of the time: gaps have an empty text, overlaps are cut."""
    last = max((end for rows in tiers.values() for _, end, _ in rows), default=0.0) or 1.0
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {last:.6f}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, rows) in enumerate(tiers.items(), 1):
        filled, time = [], 0.0
        for start, end, text in sorted(rows):
            start = max(start, time)
            if end - start > 1e-6:
                filled += [(time, start, "")] if start - time > 1e-6 else []
                filled.append((start, end, text))
                time = end
        filled += [(time, last, "")] if last - time > 1e-6 else []
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f"        name = {quoted(name)}"]
        lines += ["        xmin = 0", f"        xmax = {last:.6f}", f"        intervals: size = {len(filled)}"]
        for i, (start, end, text) in enumerate(filled, 1):
            lines += [f"        intervals [{i}]:", f"            xmin = {start:.6f}", f"            xmax = {end:.6f}"]
            lines.append(f"            text = {quoted(text)}")
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A text between quotation marks, in Praat's form."""
    return '"' + text.replace('"', '""') + '"'


def subtitles(tiers: Tiers, *, web: bool) -> str:
    """SRT, or WebVTT; with several tiers each cue begins with its tier's name, such as the speaker's."""
    rows = sorted((*row, name) for name, each in tiers.items() for row in each)
    blocks = ["WEBVTT\n"] if web else []
    for number, (start, end, text, name) in enumerate((row for row in rows if row[2]), 1):
        said = " ".join(text.replace("-->", "->").split())
        said = f"{name}: {said}" if len(tiers) > 1 and said != name else said
        said = escape(said, quote=False) if web else said  # there <unk> would be an invisible tag
        blocks.append(f"{number}\n{clock(start, web=web)} --> {clock(end, web=web)}\n{said}\n")
    return "\n".join(blocks)


def clock(seconds: float, *, web: bool) -> str:
    """A time such as 00:01:02,500 in SRT or 00:01:02.500 in WebVTT."""
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{'.' if web else ','}{rest % 1000:03d}"


def cues(words: Sequence[Interval]) -> list[Interval]:
    """Words as subtitles: a cue ends at a pause, or before it becomes too long to read."""
    made: list[Interval] = []
    for start, end, text in words:
        if made:
            first, last, said = made[-1]
            joined = f"{said} {text}"
            if start - last < PAUSE and end - first <= CUE_SECONDS and len(joined) <= CUE_CHARACTERS:
                made[-1] = (first, end, joined)
                continue
        made.append((start, end, text))
    return made


def transcript_tiers(rows: Rows, predictions: Sequence[tuple[int, dict[str, Any]]], audio_column: str) -> Recordings:
    """The tiers `text` and `words` of each recording, from transcripts with the times of words.

    Args:
        rows: the transcribed rows; parts of one recording are joined.
        predictions: of rows, from `d2v.decode.ctc.transcribe`.
        audio_column: of the recordings.
    """
    tiers: dict[str | int, dict[str, list[Interval]]] = {}  # by file, or by row if it is a whole recording
    called: list[str] = []
    files = rows.split.files(audio_column) if rows.parts else []
    for row, prediction in predictions:
        part = rows.parts[row] if rows.parts else None
        recording = (files[row] or rows.ids[row]) if part else row
        if recording not in tiers:
            called.append(str(recording) if part else rows.ids[row])
        each = tiers.setdefault(recording, {"text": [], "words": []})
        begin, end = part or (0.0, None)
        words = [(begin + word["start"], begin + word["end"], word["word"]) for word in prediction["words"]]
        each["words"] += words
        each["text"] += cues(words) if end is None else [(begin, end, prediction["text"])]
    names = list(map(recording_name, called))
    if len(set(names)) < len(names):
        names = [f"{number:06d}_{name}" for number, name in enumerate(names)]
    return dict(zip(names, tiers.values(), strict=True))


def segment_tiers(recordings: Mapping[str, Sequence[Segment]]) -> Recordings:
    """One tier per speaker or class of each recording's segments."""
    tiers: dict[str, dict[str, list[Interval]]] = {}
    for name, segments in recordings.items():
        each = tiers.setdefault(name, {})
        for start, end, label in segments:
            each.setdefault(label, []).append((start, end, label))
    return tiers


def export(job: Job, recordings: Recordings) -> None:
    """Write intervals to the run's `annotations/`, in the formats of its option `export`."""
    if job.is_main:
        write_intervals(job.out / "annotations", recordings, job.config.export)
