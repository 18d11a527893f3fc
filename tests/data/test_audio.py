"""Which rows of speech can be used, and what the others are told."""

import numpy as np
import pytest
import soundfile

from d2v.data.audio import (
    check_clips,
    load_clips,
    random_crop,
    random_speed,
    text_problem,
    transcript_problem,
)
from d2v.errors import InputError
from d2v.processors.audio import CTCTokenizer
from tests.tiny import flac, tones

TOKENIZER = CTCTokenizer.from_texts(["abc ab"])
GOOD = flac(tones("abc"))  # 0.3 s


def rows(*clips, **columns):
    """A split whose sounds are paths or bytes."""
    import datasets

    audio = [{"bytes": clip, "path": None} if isinstance(clip, bytes) else {"path": clip} for clip in clips]
    return datasets.Dataset.from_dict({"audio": audio} | columns)


def check(split, bad_rows="refuse", **options):
    return check_clips(split, "train", "audio", bad_rows=bad_rows, **{"shortest": 0.025} | options)


@pytest.fixture
def bad_clips(tmp_path):
    """What is wrong -> (clip, words of the message)."""
    (tmp_path / "notes.wav").write_text("these are notes")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "cut.flac").write_bytes(GOOD[:30])
    soundfile.write(tmp_path / "zero.wav", np.zeros(0, np.float32), 16_000)
    return {
        "missing": (str(tmp_path / "missing.wav"), ["missing.wav", "no such file"]),
        "no audio": (str(tmp_path / "notes.wav"), ["notes.wav", "not readable as audio"]),
        "empty": (str(tmp_path / "empty.wav"), ["empty.wav", "not readable as audio"]),
        "cut off": (str(tmp_path / "cut.flac"), ["cut.flac"]),
        "zero length": (str(tmp_path / "zero.wav"), ["zero.wav", "0 samples"]),
        "too short": (flac(np.zeros(399, np.float32)), ["0.025 s of sound", "0.025 to 1 s"]),
        "too long": (flac(np.zeros(16_100, np.float32)), ["1.006 s of sound", "0.025 to 1 s"]),
        "null": (None, ["no such file"]),
    }


KINDS = ["missing", "no audio", "empty", "cut off", "zero length", "too short", "too long", "null"]


@pytest.mark.parametrize("kind", KINDS)
def test_refusing_names_the_first_bad_row(bad_clips, kind):
    clip, words = bad_clips[kind]
    with pytest.raises(InputError) as caught:
        check(rows(GOOD, clip, "later.wav"), longest=1.0)
    message = str(caught.value)
    assert message.startswith("train, row 1: ") and "\n" not in message and "later" not in message
    assert message.endswith("(--data.bad_rows skip leaves such rows out)")
    assert all(word in message for word in words), message


def test_skipping_counts_them_and_keeps_the_rest(bad_clips, capsys):
    clips = [bad_clips[kind][0] for kind in KINDS]
    split = rows(clips[0], GOOD, *clips[1:], flac(tones("ab")), number=list(range(len(clips) + 2)))
    good, seconds = check(split, bad_rows="skip", longest=1.0)
    assert list(good["number"]) == [1, 9] and seconds == pytest.approx([0.3, 0.2])
    printed = capsys.readouterr().out
    assert printed.startswith("train: 8 of 10 rows left out; the first is row 0: ") and "missing.wav" in printed
    assert printed.count("\n") == 1


def test_bounds_belong_to_the_good(capsys):
    good, seconds = check(rows(flac(np.zeros(400, np.float32)), flac(np.zeros(16_000, np.float32))), longest=1.0)
    assert len(good) == 2 and seconds == [0.025, 1.0]
    assert len(check(rows(flac(np.zeros(160_000, np.float32))))[0]) == 1  # no bound above by default
    assert not capsys.readouterr().out


def test_damage_behind_the_header_takes_decoding():
    split = rows(GOOD, GOOD[: len(GOOD) // 2], number=[0, 1])
    assert len(check(split)[0]) == 2
    with pytest.raises(InputError, match=r"^train, row 1: <bytes>: damaged or cut-off"):
        check(split, decode=True)
    assert list(check(split, decode=True, bad_rows="skip")[0]["number"]) == [0]


def test_a_batch_is_decoded():
    batch = [
        {"audio": GOOD, "text": "abc"},
        {"audio": GOOD[: len(GOOD) // 2], "id": "clip-7"},
        {"audio": flac(tones("ab"))},
    ]
    with pytest.raises(InputError, match=r"^clip-7: <bytes>: damaged .*--data\.bad_rows skip leaves such rows out"):
        load_clips(batch, "audio", 16_000, "refuse")
    with pytest.warns(UserWarning, match="left out clip-7: <bytes>: damaged"):
        good, clips = load_clips(batch, "audio", 8_000, "skip")
    assert good == [batch[0], batch[2]] and [len(clip) for clip in clips] == [2400, 1600]
    with pytest.warns(UserWarning), pytest.raises(InputError, match="not one clip of a batch can be decoded"):
        load_clips(batch[1:2], "audio", 16_000, "skip")


def test_the_recipe_may_find_fault_too():
    def problem(row, seconds):
        return f"{row['text']!r} in {seconds:.1f} s" if row["text"] == "b" else None

    split = rows(GOOD, GOOD, text=["a", "b"])
    with pytest.raises(InputError, match=r"train, row 1: 'b' in 0\.3 s"):
        check(split, problem=problem)
    assert list(check(split, problem=problem, bad_rows="skip")[0]["text"]) == ["a"]


@pytest.mark.parametrize("value", [5, 0.5, [0.1, 0.2]])
def test_a_column_of_something_else(value):
    import datasets

    with pytest.raises(InputError, match=r"^train, row 0: .*; audio is a file's path or its bytes"):
        check(datasets.Dataset.from_dict({"audio": [value]}))


@pytest.mark.parametrize("bad_rows", ["refuse", "skip"])
def test_no_good_row_is_an_error(bad_rows):
    with pytest.raises(InputError, match=r"^train.*row 0: nowhere\.wav: no such file"):
        check(rows("nowhere.wav", "nor.wav"), bad_rows=bad_rows)


@pytest.mark.parametrize(
    ("text", "frames", "reason"),
    [
        ("abc", 3, None),
        ("abc", 2, "3 labels need 3 frames; the clip has 2"),
        ("aab", 4, None),
        ("aab", 3, "3 labels need 4 frames; the clip has 3"),  # a blank has to part equal labels
        ("a b", 3, None),
        ("  ", 9, "empty transcript"),
        ("", 9, "empty transcript"),
        ("axbz", 9, "characters 'xz' are not in the vocabulary; see data.case and data.remove"),
        ("ABC", 9, "characters 'ABC' are not in the vocabulary; see data.case and data.remove"),
        (None, 9, "a transcript should be text, not None"),
        (7, 9, "a transcript should be text, not 7"),
    ],
)
def test_transcripts(text, frames, reason):
    assert transcript_problem(text, TOKENIZER, frames) == reason
    assert text_problem(text) == (None if isinstance(text, str) else reason)  # to score, any text will do


def test_frames_are_enough_exactly_where_the_loss_is_finite():
    import torch

    from d2v.losses import ctc

    for text in ("abc", "aab", "aaaa", "ab ba"):
        labels = TOKENIZER.encode(text)
        for frames in range(1, 9):
            logits = torch.zeros(1, frames, len(TOKENIZER))
            loss, _ = ctc(logits, torch.tensor([labels]), torch.tensor([frames]), blank=TOKENIZER.pad_token_id)
            assert loss.isfinite() == (transcript_problem(text, TOKENIZER, frames) is None)


def test_speed_and_crop_follow_their_draw():
    clip = np.sin(np.arange(16_000) * 0.1).astype(np.float32)
    lengths = [len(random_speed(clip, 0.2, (0, 0, row))) for row in range(200)]
    assert 16_000 / 1.2 - 1 <= min(lengths) < 13_800 and 19_500 < max(lengths) <= 16_000 / 0.8 + 1
    faster = random_speed(clip, 0.2, (0, 0, int(np.argmin(lengths))))
    crossings = np.sum(np.diff(np.sign(faster[100:-100])) != 0) / (len(faster) - 200)
    assert crossings == pytest.approx(0.1 / np.pi * 16_000 / len(faster), rel=0.02)  # the pitch goes along
    for draw in ((0, 0, 1), (0, 1, 1), (1, 0, 1)):
        assert np.array_equal(random_speed(clip, 0.2, draw), random_speed(clip, 0.2, draw))
        assert np.array_equal(random_crop(clip, 100, draw), random_crop(clip, 100, draw))
    starts = {float(random_crop(np.arange(50.0), 40, (0, 0, row))[0]) for row in range(200)}
    assert starts == set(map(float, range(11)))
    assert np.array_equal(random_crop(clip, 16_001, (0, 0, 0)), clip)
