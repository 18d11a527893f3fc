"""Transcripts and segments as Praat, players and scorers read them."""

import pytest

from d2v.data.annotations import read_annotations
from d2v.data.rows import Rows
from d2v.data.rttm import read_rttm
from d2v.decode.captions import clock, cues, segment_tiers, subtitles, text_grid, transcript_tiers, write_intervals
from tests.helpers import make_split

SEGMENTS = {"talk": [(0.0, 1.5, "ann"), (1.0, 2.25, "bob")], "silence": []}
WORDS = [{"word": "so", "start": 0.1, "end": 0.3}, {"word": '\u0444"x"', "start": 0.4, "end": 0.9}]


def test_segments_leave_in_every_format(tmp_path):
    write_intervals(tmp_path / "out", segment_tiers(SEGMENTS), ["textgrid", "srt", "vtt", "rttm"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{name}.{kind}" for name in SEGMENTS for kind in ("TextGrid", "srt", "vtt")} | {"all.rttm"}
    assert read_rttm(tmp_path / "out/all.rttm") == {"talk": SEGMENTS["talk"]}
    expected = "1\n00:00:00,000 --> 00:00:01,500\nann\n\n2\n00:00:01,000 --> 00:00:02,250\nbob\n"
    assert (tmp_path / "out/talk.srt").read_text() == expected
    assert (tmp_path / "out/talk.vtt").read_text() == "WEBVTT\n\n" + expected.replace(",", ".")
    assert (tmp_path / "out/silence.vtt").read_text() == "WEBVTT\n"
    write_intervals(tmp_path / "none", segment_tiers(SEGMENTS), [])
    assert not (tmp_path / "none").exists()


def test_textgrids_are_read_again(tmp_path):
    pytest.importorskip("pympi")
    tiers = {"text": [(0.5, 1.0, 'he said "so"'), (0.9, 2.0, "\u0439\u043e")], "words": [(0.5, 0.6, "he")], "none": []}
    (tmp_path / "a.TextGrid").write_text(text_grid(tiers), "utf-8")
    found = read_annotations(tmp_path / "a.TextGrid")
    assert {name: [interval[:3] for interval in rows] for name, rows in found.items()} == {
        "text": [(0.5, 1.0, 'he said "so"'), (1.0, 2.0, "\u0439\u043e")],  # cut where they overlap
        "words": [(0.5, 0.6, "he")],
        "none": [],
    }
    assert "size = 3" in text_grid(tiers) and text_grid({"a": []}).count("xmax = 1.0") == 3


def transcribed(parts, files, **columns):
    split = make_split("test", audio=[{"bytes": b"", "path": file} for file in files], **columns)
    rows = Rows(split, split.ids("audio"), [1.0] * len(files), parts=parts)
    return transcript_tiers(rows, [(row, {"text": "so x", "words": WORDS}) for row in range(len(files))], "audio")


def test_transcripts_have_the_times_of_their_recordings():
    tiers = transcribed([None, (10.0, 12.0), (20.0, 21.0)], ["a.wav", "b.wav", "b.wav"])
    assert tiers["a"]["text"] == [(0.1, 0.9, 'so \u0444"x"')]
    assert tiers["b"]["text"] == [(10.0, 12.0, "so x"), (20.0, 21.0, "so x")]
    assert [round(start, 3) for start, *_ in tiers["b"]["words"]] == [10.1, 10.4, 20.1, 20.4]
    assert list(transcribed([(1.0, 2.0)] * 2, ["b.wav"] * 2, id=["u1", "u2"])) == ["b"]  # utterances of one recording
    assert list(transcribed(None, ["x/a.wav", "y/a.wav"])) == ["000000_a", "000001_a"]
    named_alike = transcribed(None, ["x.wav", "y.wav"], id=["7", "7"])
    assert list(named_alike) == ["000000_7", "000001_7"] and len(named_alike["000000_7"]["words"]) == len(WORDS)
    shown = subtitles({"text": [(10.0, 12.0, "a --> b\nc"), (13.0, 14.0, "")]}, web=False)
    assert shown == "1\n00:00:10,000 --> 00:00:12,000\na -> b c\n"


def test_cues_end_at_pauses_and_before_they_are_too_long():
    words = [(i * 0.5, i * 0.5 + 0.4, "word") for i in range(40)] + [(25.0, 25.4, "late")]
    made = cues(words)
    assert " ".join(text for *_, text in made) == " ".join(text for *_, text in words)
    assert all(end - start <= 7 and len(text) <= 84 for start, end, text in made) and made[-1] == (25.0, 25.4, "late")
    assert cues([]) == []


def test_clock():
    assert clock(3723.0456, web=False) == "01:02:03,046" and clock(59.9996, web=True) == "00:01:00.000"


def test_signs_that_webvtt_takes_for_tags(tmp_path):
    write_intervals(tmp_path, {"a": {"text": [(0.0, 1.0, '<unk> & "co" --> x')]}}, ["srt", "vtt"])
    assert (tmp_path / "a.vtt").read_text().endswith('&lt;unk&gt; &amp; "co" -&gt; x\n')
    assert (tmp_path / "a.srt").read_text().endswith('<unk> & "co" -> x\n')
