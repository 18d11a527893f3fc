"""Folders with a card: CSV is text as in those without one, sounds need no FFmpeg, and a broken card is named."""

import gzip
import io
import tarfile

import numpy as np
import pytest
import soundfile

from d2v.config import Data
from d2v.data.audio import AudioData
from d2v.data.sources import read
from d2v.errors import InputError

CARD = "---\nconfigs:\n- config_name: default\n{}  data_files:\n  - split: train\n    path: {}\n---\n"
ROWS = [("007", "01"), ("null", "00"), ("", "01"), ('"so', "00"), ("NA", "01")]


def table(delimiter=",", header="text,label\n", rows=ROWS):
    return header.replace(",", delimiter) + "".join(f"{text}{delimiter}{label}\n" for text, label in rows)


def carded(folder, name, content, options="", card=CARD):
    (folder / "data").mkdir(parents=True)
    (folder / "data" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "README.md").write_text(card.format(options, f"data/{name}"), "utf-8")
    return str(folder)


CASES = {
    "CSV": ("rows.csv", table().replace('"so', '"""so"'), "", {}),
    "TSV": ("rows.tsv", table("\t"), "", {}),
    "packed": ("rows.tsv.gz", gzip.compress(table("\t").encode()), '  sep: "\\t"\n', {}),
    "BOM and bars": ("rows.csv", b"\xef\xbb\xbf" + table("|").replace("\n", "\r\n").encode(), "  sep: '|'\n", {}),
    "delimiter": ("rows.csv", table("|"), "", {"delimiter": "|"}),
    "header": ("rows.tsv", table("\t", header=""), "", {"header": ["text", "label"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_csv_of_a_card_is_text(case, tmp_path):
    name, content, options, data = CASES[case]
    rows = read(Data(path=carded(tmp_path / "set", name, content, options), **data))["train"]
    assert list(zip(rows["text"], rows["label"], strict=True)) == ROWS


def test_types_that_a_card_gives_are_kept(tmp_path):
    types = "dataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype: int64\nconfigs:"
    card = CARD.replace("configs:", types)
    assert read(Data(path=carded(tmp_path / "set", "a.csv", table(rows=ROWS[:1]), card=card)))["train"]["label"][:] == [
        1
    ]


def test_sounds_of_a_card_need_no_ffmpeg(tmp_path):
    folder = tmp_path / "set"
    carded(folder, "metadata.csv", "file_name,text\n0.wav,yes\n1.wav,no\n", card=CARD.replace("{}\n---", "data/*\n---"))
    for i in range(2):
        soundfile.write(folder / "data" / f"{i}.wav", np.zeros(100), 16_000)
    rows = read(AudioData(path=str(folder)))["train"]
    assert rows["text"][:] == ["yes", "no"] and [row["path"][-5:] for row in rows["audio"]] == ["0.wav", "1.wav"]


def test_archives_are_read_without_a_stream_too(tmp_path):
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(100), 16_000, format="WAV")
    with tarfile.open(tmp_path / "train-000.tar", "w") as archive:
        for name, content in (
            ("0.wav", sound.getvalue()),
            ("0.cls", b"3"),
            ("1.wav", sound.getvalue()),
            ("1.cls", b"4"),
        ):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    rows = read(AudioData(path=str(tmp_path)))["train"]
    assert rows["cls"][:] == [3, 4] and rows["wav"][0]["bytes"] == sound.getvalue()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("\ufeff" + CARD, "README.md: begins with a byte order mark; should be plain UTF-8"),
        (
            "---\nconfigs:\n- config_name: [a\n{}# {}\n---\n",
            "not a folder, file or hub id that can be read .*while parsing",
        ),
    ],
)
def test_a_card_that_cannot_be_read_is_named(card, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(Data(path=carded(tmp_path / "set", "a.csv", table(), card=card)))
