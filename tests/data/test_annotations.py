"""Tiers of ELAN and Praat: their intervals are the rows, or the segments, of the recordings beside them."""

from collections import Counter

import numpy as np
import pytest
import soundfile

from d2v.data.annotations import read_annotations
from d2v.data.audio import AudioData, clip_rows
from d2v.data.ctc import TranscriptData
from d2v.data.diarization import SegmentData, read_segments
from d2v.data.load import load
from d2v.data.verification import TrialData
from d2v.errors import InputError
from tests.helpers import make_job

pympi = pytest.importorskip("pympi")


def write(folder, count=3, encoding="utf-8", **tiers):
    """Recordings of 4 s, the first with an ELAN file, the second with a TextGrid, others with nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        soundfile.write(folder / f"{i}.wav", np.zeros(64_000, np.float32), 16_000)
    tiers = tiers or {"A": [(0.5, 1.0, "so"), (1.5, 2.5, "\u0439\u043e"), (3.0, 3.5, " ")], "B": [(0.7, 1.2, "ja")]}
    document = pympi.Elan.Eaf(author="me")
    document.remove_tier("default")
    for name, rows in tiers.items():
        document.add_tier(name, part="ann" if name == "A" else None)
        for start, end, text in rows:
            document.add_annotation(name, round(1000 * start), round(1000 * end), text)
    document.to_file(str(folder / "0.eaf"))
    grid = pympi.Praat.TextGrid(xmax=4.0)
    for name, rows in tiers.items():
        tier = grid.add_tier(name)
        for start, end, text in rows:
            tier.add_interval(start, end, text)
    grid.add_tier("points", tier_type="TextTier")
    grid.to_file(str(folder / "1.TextGrid"), codec=encoding)
    return folder


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_both_formats(encoding, tmp_path):
    write(tmp_path, encoding=encoding)
    expected = [(0.5, 1.0, "so", "A"), (1.5, 2.5, "\u0439\u043e", "A")]
    for file, speaker in (("0.eaf", "ann"), ("1.TextGrid", "A")):
        tiers = read_annotations(tmp_path / file)
        assert [interval[:4] for interval in tiers["A"]] == expected and tiers["A"][0].speaker == speaker
        assert [interval.text for interval in tiers["B"]] == ["ja"] and "points" not in tiers


GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 4
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "A"
        xmin = -1e-3
        xmax = 4
        intervals: size = 2
        intervals [1]:
            xmin = 5.684341886080802e-14
            xmax = 1.5e0
            text = "it ""is"" 1e-3"
        intervals [2]:
            xmin = 1.5
            xmax = 4
            text = "two
lines = 7"
    item [2]:
        class = "IntervalTier"
        name = "A"
        xmin = 0
        xmax = 4
        intervals: size = 1
        intervals [1]:
            xmin = -0.25
            xmax = 4
            text = "another"
"""


@pytest.mark.parametrize("line", ["\n", "\r\n", "\r"])
def test_praats_numbers_lines_and_tiers_of_one_name(line, tmp_path):
    (tmp_path / "a.TextGrid").write_bytes(GRID.replace("\n", line).encode())
    expected = [(0, 1.5, 'it "is" 1e-3'), (0, 4, "another"), (1.5, 4, "two\nlines = 7")]
    assert [interval[:3] for interval in read_annotations(tmp_path / "a.TextGrid")["A"]] == expected


def test_elans_times(tmp_path):
    """Annotations of one interval, some without times, and a recording that begins before the file's time."""
    document = pympi.Elan.Eaf(author="me")
    document.add_linked_file("file:///x/a.wav", "./a.wav", "audio/x-wav", time_origin=2000)
    document.add_tier("said")
    document.add_annotation("said", 500, 1500, "so it is")
    document.add_linguistic_type("subdivision", "Symbolic_Subdivision", False)
    document.add_tier("words", "subdivision", "said")
    for word in ("so", "it", "is"):
        document.add_ref_annotation("words", "said", 700, word)
    document.add_tier("parts")
    document.add_annotation("parts", 500, 600, "x")
    slot = next(reversed(document.timeslots))
    document.timeslots[slot] = None
    document.to_file(str(tmp_path / "a.eaf"))
    met = Counter()
    tiers = read_annotations(tmp_path / "a.eaf", met=met)
    assert [interval[:3] for interval in tiers["words"]] == [(2.5, 3.5, "so it is")] and not tiers["parts"]
    assert met["annotations have no times and are left out"] == 1
    assert met["intervals have several annotations, joined by spaces"] == 1
    assert met["intervals are heard 2 s later, as the file has it"] == 2


def test_recordings_that_lack_a_tier_are_not_silent(tmp_path):
    folder = write(tmp_path / "set")
    (folder / "2.TEXTGRID").write_text(GRID.replace('"A"', '"a"'))
    (folder / "metadata.csv").write_text("file_name,village,id\n" + "".join(f"{i}.wav,v{i},{i}\n" for i in range(3)))
    job, split = loaded(SegmentData(path=str(folder), tiers=["A"]), mode="evaluate")
    assert len(split) == 2 and split.column("village") == ["v0", "v1"]
    said = " ".join(fact["line"] for fact in job.facts)
    assert "1 of 3 recordings have no tier A and are left out; the first is of" in said and "2.TEXTGRID" in said
    job, split = loaded(TranscriptData(path=str(folder), tiers=["A"], group_column="village"))
    assert split.groups() == ["v0", "v0", "v1", "v1"] and split.column("text")[0] == "so"


@pytest.mark.parametrize("name", ["a.eaf", "a.TextGrid"])
def test_a_damaged_file_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"<a><b>")
    with pytest.raises(InputError, match=f"{name}: not readable as .*"):
        read_annotations(tmp_path / name)


def loaded(data, inputs=None, mode="predict"):
    job = make_job(data, mode=mode)
    return job, load(job, None, inputs=inputs or {"audio": "audio"}, targets={})["test"]


def test_intervals_are_rows_that_are_heard(tmp_path):
    job, split = loaded(TranscriptData(path=str(write(tmp_path / "set")), tiers=["A"]))
    assert split.column("text") == ["so", "\u0439\u043e"] * 2 and split.column("speaker") == ["ann"] * 2 + ["A"] * 2
    rows = clip_rows(job, {"test": split}, 16_000, 400, {}, problem=lambda *_: None)["test"]
    assert rows.lengths == pytest.approx([0.5, 1.0] * 2)
    assert [name.rpartition("/")[2] for name in rows.ids][:2] == ["0.wav#t=0.5,1.0", "0.wav#t=1.5,2.5"]
    said = " ".join(fact["line"] for fact in job.facts)
    assert "1 of 3 recordings have no .eaf or .TextGrid beside them and are left out" in said and "2.wav" in said
    assert len(loaded(AudioData(path=str(tmp_path / "set"), tiers=["*"]))[1]) == 6
    assert len(loaded(AudioData(path=str(tmp_path / "set")))[1]) == 3  # not asked for
    with pytest.raises(InputError, match=r"no tier 'C' \(data.tiers\) beside audio; there are A, B"):
        loaded(AudioData(path=str(tmp_path / "set"), tiers=["C"]))
    assert loaded(TrialData(path=str(tmp_path / "set"), tiers=["B"]))[1].column("speaker") == ["B", "B"]


@pytest.mark.parametrize(("key", "labels"), [("speaker", {"ann", "A", "B"}), ("text", {"so", "ja", "\u0439\u043e"})])
def test_tiers_are_segments_of_recordings(key, labels, tmp_path):
    data = SegmentData(path=str(write(tmp_path / "set")), tiers=["A", "B"], label_key=key)
    job, split = loaded(data, mode="evaluate")
    segments = read_segments(job, {"test": split})["test"]
    assert len(segments) == 2 and {label for each in segments for *_, label in each} == labels
    assert [each[:2] for each in segments[0]] == [(0.5, 1.0), (0.7, 1.2), (1.5, 2.5)]


def test_recordings_without_files(tmp_path):
    folder = write(tmp_path / "set")
    for name in ("0.eaf", "1.TextGrid"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"no tier 'A' .*; there are none"):
        loaded(AudioData(path=str(folder), tiers=["A"]))
    with pytest.raises(InputError, match="test: no intervals|train: no intervals"):
        loaded(AudioData(path=str(folder), tiers=["*"]))
