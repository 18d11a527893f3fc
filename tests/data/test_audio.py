"""Which clips can be used, what the others are told, and what a batch of clips holds."""

import inspect
import io
import math
from functools import partial

import datasets
import numpy as np
import pytest
import soundfile

from benchmarks.recipe import load_recipe
from d2v.data.audio import (
    AudioData,
    check_clips,
    clip_batch,
    clip_rows,
    crop_start,
    load_clips,
    random_speed,
    read_headers,
)
from d2v.data.ctc import text_problem, transcript_problem
from d2v.data.rows import NoneDecodedError, Split
from d2v.data.sources import read
from d2v.errors import InputError
from d2v.processors.audio import AudioFeatureExtractor, audio_info
from d2v.processors.ctc import CTCTokenizer
from tests.helpers import make_job, make_split
from tests.tiny import flac, tones

TOKENIZER = CTCTokenizer.from_texts(["abc ab"])
GOOD = flac(tones("abc"))  # 0.3 s


def sounds(*clips, name="train", **columns):
    """A split whose sounds are paths or bytes."""
    audio = [{"bytes": clip, "path": None} if isinstance(clip, bytes) else {"path": clip} for clip in clips]
    return make_split(name, audio=audio, **columns)


def rows_of(
    split,
    references=None,
    problem=lambda *_: None,
    eval_problem=lambda *_: None,
    crop_seconds=np.inf,
    cropped=("train",),
    **options,
):
    """The rows of one split that can be used."""
    references = {} if references is None else {split.name: references}
    job = make_job(AudioData(**options))
    checks = {"problem": problem, "eval_problem": eval_problem, "crop_seconds": crop_seconds, "cropped": cropped}
    return clip_rows(job, {split.name: split}, 16_000, 400, references, **checks)[split.name]


def checked(split, shortest, longest=float("inf")):
    """Seconds of a split's clips, and what is wrong with them."""
    seconds, reasons = check_clips(read_headers(make_job(AudioData()), split), None, shortest, longest)
    return seconds.tolist(), reasons


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
def test_a_bad_clip_has_its_reason(bad_clips, kind):
    clip, words = bad_clips[kind]
    seconds, reasons = checked(sounds(GOOD, clip), shortest=0.025, longest=1.0)
    assert len(seconds) == len(reasons) == 2 and (seconds[0], reasons[0]) == (pytest.approx(0.3), None)
    assert all(word in reasons[1] for word in words), reasons[1]


@pytest.mark.parametrize("kind", KINDS)
def test_refusing_names_the_first_bad_row(bad_clips, kind):
    clip, words = bad_clips[kind]
    with pytest.raises(InputError) as caught:
        rows_of(sounds(GOOD, clip, "later.wav"), max_seconds=1.0)
    message = str(caught.value)
    assert message.startswith("train, row 1: ") and "\n" not in message and "later" not in message
    assert message.endswith("(--data.bad_rows skip leaves such rows out)")
    assert all(word in message for word in words), message


def test_skipping_counts_them_and_keeps_the_rest(bad_clips, capsys):
    clips = [bad_clips[kind][0] for kind in KINDS]
    split = sounds(clips[0], GOOD, *clips[1:], flac(tones("ab")), id=[f"clip-{i}" for i in range(len(clips) + 2)])
    rows = rows_of(split, references=list(range(10)), bad_rows="skip", max_seconds=1.0)
    assert rows.ids == ["clip-1", "clip-9"] and rows.lengths == pytest.approx([0.3, 0.2])
    assert rows.references == [1, 9] and [rows[i]["id"] for i in (0, 1)] == rows.ids
    assert [rows[i]["where"] for i in (0, 1)] == ["train, row 1", "train, row 9"]  # in the user's own file
    printed = capsys.readouterr().out
    assert printed.startswith("train: 8 of 10 rows left out; the first is train, row 0: ") and "missing.wav" in printed
    assert printed.count("\n") == 1


def test_bounds_belong_to_the_good(capsys):
    clips = [flac(np.zeros(count, np.float32)) for count in (400, 16_000, 160_000)]
    assert rows_of(sounds(*clips[:2]), max_seconds=1.0).lengths == [0.025, 1.0]
    assert rows_of(sounds(clips[2], name="test"), max_seconds=1.0).lengths == [10.0]  # what is scored may be longer
    assert checked(sounds(clips[2]), 0.025) == ([10.0], [None])  # no bound above by default
    assert not capsys.readouterr().out


def test_what_is_cropped_counts_as_its_crop():
    """In train alone, where it is checked at its full length."""
    lengths = {}
    for name in ("train", "test"):
        split = sounds(GOOD, flac(tones("a")), name=name)
        rows = rows_of(split, [0, 1], lambda _, seconds: lengths.setdefault(seconds, None), crop_seconds=0.2)
        assert rows.lengths == pytest.approx([0.2, 0.1] if name == "train" else [0.3, 0.1])
    assert list(lengths) == pytest.approx([0.3, 0.1])


def test_no_pass_decodes_only_to_check(monkeypatch):
    """Damage behind the header is met where the row is decoded, in all splits."""
    cut = GOOD[: len(GOOD) // 2]
    monkeypatch.setattr("d2v.data.audio.load_audio", None)
    for name in ("train", "test"):
        assert len(rows_of(sounds(GOOD, cut, name=name))) == 2


def test_a_batch_is_decoded():
    batch = [
        {"audio": GOOD, "text": "abc", "where": "train, row 6"},
        {"audio": GOOD[: len(GOOD) // 2], "where": "train, row 7"},
        {"audio": flac(tones("ab")), "where": "train, row 8"},
    ]
    message = r"^train, row 7: <bytes>: damaged .*--data\.bad_rows skip leaves such rows out"
    with pytest.raises(InputError, match=message):
        load_clips(batch, AudioData(), 16_000)
    good, clips, decoded = load_clips(batch, AudioData(bad_rows="skip"), 8_000)
    assert good == [batch[0], batch[2]] and [len(clip) for clip in clips] == [2400, 1600]
    ((split, fact, where),) = decoded
    assert (split, fact) == ("train", "left out, cannot be decoded") and where.startswith(
        "train, row 7: <bytes>: damaged"
    )
    with pytest.raises(NoneDecodedError, match="not one row of a batch can be decoded"):
        load_clips(batch[1:2], AudioData(bad_rows="skip"), 16_000)


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError("odd"), KeyError("odd"), OSError(5, "odd")])
def test_any_exception_while_decoding_is_a_bad_row(error, monkeypatch):
    def load(*args, **kwargs):
        raise error

    monkeypatch.setattr("d2v.data.audio.load_audio", load)
    with pytest.raises(InputError, match=rf"^train, row 0: {type(error).__name__}: .*odd.*bad_rows skip"):
        load_clips([{"audio": GOOD, "where": "train, row 0"}], AudioData(), 16_000)


def batch_of(clips, *, seeds=None, **options):
    rows = [{"audio": clip, "where": f"train, row {i}", "row": i} for i, clip in enumerate(clips)]
    rows = [row | {"seed": seed} for row, seed in zip(rows, seeds, strict=True)] if seeds else rows
    change = {name: options.pop(name) for name in ("change", "crop_seconds") if name in options}
    return clip_batch(rows, AudioFeatureExtractor(), AudioData(**options), **change)


def test_what_a_batch_holds():
    clips = [GOOD, flac(tones("ab")), GOOD[: len(GOOD) // 2]]
    rows, batch = batch_of(clips, bad_rows="skip")
    assert [where.partition(": ")[0] for *_, where in batch["decoded"]] == ["train, row 2"]
    assert [row["row"] for row in rows] == batch["rows"] == [0, 1] and "starts" not in batch
    assert batch["lengths"] == [4800, 3200] and batch["size"] == 0.5
    assert batch["input_values"].shape == (2, 4800) and batch["attention_mask"].sum(dim=1).tolist() == [4800, 3200]


def test_crops_of_a_batch_follow_the_seeds():
    seeds = [(0, 0, 0), (0, 0, 1)]
    _, batch = batch_of([GOOD, flac(tones("a"))], seeds=seeds, crop_seconds=0.2)
    assert batch["lengths"] == [3200, 1600] and batch["starts"] == [crop_start(4800, 3200, seeds[0]), 0]
    assert batch["size"] == pytest.approx(0.3)
    start, clip = batch["starts"][0], load_clips([{"audio": GOOD}], AudioData(), 16_000)[1][0]
    assert np.array_equal(batch["input_values"][0], AudioFeatureExtractor()([clip[start:][:3200]])["input_values"][0])
    assert batch_of([GOOD], crop_seconds=0.2)[1]["lengths"] == [4800]  # no seed, no crop


def test_a_change_comes_before_the_crop_and_in_train_alone():
    def twice(clip, seed):
        return np.concatenate([clip, clip])

    _, batch = batch_of([GOOD], seeds=[(0, 0, 0)], change=twice, crop_seconds=0.5)
    assert batch["lengths"] == [8000] and batch["starts"] == [crop_start(9600, 8000, (0, 0, 0))]
    assert batch_of([GOOD], change=twice)[1]["lengths"] == [4800]


def test_the_recipe_may_find_fault_too():
    def problem(text, seconds):
        return f"{text!r} in {seconds:.1f} s" if text == "b" else None

    for name, check in (("train", "problem"), ("test", "eval_problem")):
        split = sounds(GOOD, GOOD, name=name)
        with pytest.raises(InputError, match=rf"{name}, row 1: 'b' in 0\.3 s"):
            rows_of(split, ["a", "b"], **{check: problem})
        assert rows_of(split, ["a", "b"], **{check: problem}, bad_rows="skip").references == ["a"]


@pytest.mark.parametrize("value", [5, 0.5, [0.1, 0.2], "a" * 5000, "a\0b", {"path": "a\0b", "bytes": None}])
def test_a_column_of_something_else(value):
    with pytest.raises(InputError, match=r"^train, row 0: .*; audio is a file's path or its bytes"):
        rows_of(make_split(audio=[value]))


@pytest.mark.parametrize("bad_rows", ["refuse", "skip"])
def test_no_good_row_is_an_error(bad_rows):
    with pytest.raises(InputError, match=r"^train.*row 0: nowhere\.wav: no such file"):
        rows_of(sounds("nowhere.wav", "nor.wav"), bad_rows=bad_rows)


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
        (
            "axbz",
            9,
            "characters 'xz' are not in the vocabulary; see data.case, data.remove, data.replace and data.vocabulary",
        ),
        (
            "ABC",
            9,
            "characters 'ABC' are not in the vocabulary; see data.case, data.remove, data.replace and data.vocabulary",
        ),
        (None, 9, "a transcript should be text, not None"),
        (7, 9, "a transcript should be text, not 7"),
    ],
)
def test_transcripts(text, frames, reason):
    normalized = TOKENIZER.normalize(text) if isinstance(text, str) else text
    assert transcript_problem(normalized, TOKENIZER, frames) == reason
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


def test_speed_and_crop_follow_their_seed():
    clip = np.sin(np.arange(16_000) * 0.1).astype(np.float32)
    lengths = [len(random_speed(clip, (0, 0, row), 0.2)) for row in range(200)]
    assert 16_000 / 1.2 - 1 <= min(lengths) < 13_800 and 19_500 < max(lengths) <= 16_000 / 0.8 + 1
    faster = random_speed(clip, (0, 0, int(np.argmin(lengths))), 0.2)
    crossings = np.sum(np.diff(np.sign(faster[100:-100])) != 0) / (len(faster) - 200)
    assert crossings == pytest.approx(0.1 / np.pi * 16_000 / len(faster), rel=0.02)  # the pitch goes along
    for seed in ((0, 0, 1), (0, 1, 1), (1, 0, 1)):
        assert np.array_equal(random_speed(clip, seed, 0.2), random_speed(clip, seed, 0.2))
    assert {crop_start(50, 40, (0, 0, row)) for row in range(200)} == set(range(11))
    assert crop_start(16_000, 16_001, (0, 0, 0)) == 0


def test_clips_are_changed_before_they_are_cropped():
    """And only those of train, which have a seed."""
    clip = np.sin(np.arange(16_000) * 0.1).astype(np.float32)
    data, extractor = AudioData(), AudioFeatureExtractor(do_normalize=False)
    row = {"row": 0, "audio": {"array": clip, "sampling_rate": 16_000}, "where": "train, row 0"}
    change = partial(random_speed, most=0.2)
    _, batch = clip_batch([row | {"seed": (0, 0, 7)}], extractor, data, change, 0.1)
    (first,), other = batch["starts"], change(clip, (0, 0, 7))
    assert first == crop_start(len(other), 1600, (0, 0, 7)) and len(other) != len(clip)
    np.testing.assert_array_equal(batch["input_values"][0], other[first : first + 1600])
    _, batch = clip_batch([row], extractor, data, change, 0.1)
    np.testing.assert_array_equal(batch["input_values"][0], clip)


def test_what_is_done_to_sound_is_said(capsys):
    """Channels are mixed, or one is heard; sound is resampled; headers are put right."""
    stereo = flac(np.stack([tones("a"), tones("b")], axis=1))
    odd = io.BytesIO()
    soundfile.write(odd, tones("a"), 16_000, format="WAV")
    odd = odd.getvalue()[:-1]
    split = sounds(GOOD, stereo, flac(tones("a"), 8_000), odd, flac(np.zeros(9)), name="test")
    rows_of(split, bad_rows="skip")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "test: channels mixed in 1 of 4 rows; the first is test, row 1: 2 channels (data.channel hears one)",
        "test: sound resampled to 16000 Hz in 1 of 4 rows; the first is test, row 2: 8000",
        "test: header put right in 1 of 4 rows; the first is test, row 3: its header says 3200 bytes of sound, "
        "there are 3199",
    ]
    rows = rows_of(sounds(GOOD, stereo), bad_rows="skip", channel=2)
    assert rows.ids == ["1"] and "no channel 2, there are 1 (data.channel)" in capsys.readouterr().out
    _, batch = batch_of([stereo], channel=2)
    assert np.array_equal(batch["input_values"], batch_of([flac(tones("b"))])[1]["input_values"])


@pytest.mark.parametrize("form", ["array", "float rate", "bytes", "bare bytes", "stereo array"])
def test_sound_without_a_path_goes_by_its_number(form):
    clip = tones("abc")
    value = {
        "array": {"array": clip, "sampling_rate": 16_000},
        "bytes": {"bytes": flac(clip)},
        "bare bytes": flac(clip),
    }
    value["float rate"] = {"array": clip, "sampling_rate": 16_000.0}
    value["stereo array"] = {"array": np.stack([clip, clip]), "sampling_rate": 16_000}
    rows = rows_of(make_split("test", audio=[value[form]] * 3, text=["a", "b", "c"]))
    assert rows.ids == ["0", "1", "2"] and rows.lengths == pytest.approx([0.3] * 3)
    _, batch = clip_batch([rows[1] | {"row": 1}], AudioFeatureExtractor(), AudioData())
    assert batch["input_values"].shape == (1, 4800) and batch["rows"] == [1]


def test_crops_bound_batches_and_not_whole_clips():
    """25 s clips of which 1 s is heard go in batches as clips of 1 s do, and of 45 s as well."""
    clips = [flac(np.zeros(seconds * 16_000, np.float32)) for seconds in (25, 45, 1)]
    with pytest.raises(InputError, match=r"train, row 1: 45.000 s of sound; a clip has 0.025 to 30 s"):
        rows_of(sounds(*clips))
    assert rows_of(sounds(*clips), crop_seconds=1.0).lengths == [1.0, 1.0, 1.0]
    with pytest.raises(InputError, match="45.000 s of sound; a clip has 0.025 to 40 s"):
        rows_of(sounds(*clips), crop_seconds=1.0, max_seconds=40.0)  # if asked for
    assert rows_of(sounds(*clips), max_seconds=50.0).lengths == [25.0, 45.0, 1.0]
    recipe = load_recipe("audio_classification")
    assert "crop_seconds=data.crop_seconds or math.inf" in inspect.getsource(recipe.main)


def test_crops_of_pretraining_bound_held_out_batches_too():
    """25 s of a clip of which 1 s is heard were 25 of the seconds that a batch has room for."""
    clips = [flac(np.zeros(seconds * 16_000, np.float32)) for seconds in (25, 1)]
    both = ("train", "validation")
    for cropped, expected in ((both, [1.0, 1.0]), (("train",), [25.0, 1.0])):
        rows = rows_of(sounds(*clips, name="validation"), crop_seconds=1.0, cropped=cropped)
        assert rows.lengths == expected
    assert f'"cropped": {both}'.replace("'", '"') in inspect.getsource(load_recipe("pretrain_audio").main)


def test_headers_are_read_in_any_order_and_files_once(tmp_path, monkeypatch):
    for i, name in enumerate("ab"):
        soundfile.write(tmp_path / f"{name}.wav", tones("abc"[: i + 1]), 16_000)
    seen = []
    monkeypatch.setattr("d2v.data.audio.audio_info", lambda value: seen.append(value) or audio_info(value))
    paths = [str(tmp_path / f"{name}.wav") for name in "abab"] + ["gone.wav", "gone.wav"]
    infos = read_headers(make_job(AudioData()), make_split(audio=paths).select([3, 0, 2, 4, 5]))
    assert infos.frames.tolist() == [3200, 1600, 1600, 0, 0] and infos[0] == audio_info(paths[3])
    assert "gone.wav: no such file" in infos[3] and infos[3] == infos[4] and len(seen) == 3
    parts = make_split(audio=[GOOD, b"", flac(tones("a"))]).select([2, 0])
    assert read_headers(make_job(AudioData()), parts).frames.tolist() == [1600, 4800]


def test_headers_are_kept(tmp_path, monkeypatch, capsys):
    """A second start opens no file, whatever the seed and the share; a changed file is read again."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("d2v.data.cache.WORTH", 30)
    monkeypatch.setattr("d2v.data.cache.granted_cores", lambda: 1)
    paths = [str(tmp_path / f"{i}.wav") for i in range(40)]
    for i, path in enumerate(paths):
        soundfile.write(path, tones("abc"[: i % 3 + 1]), 16_000)
    datasets.Dataset.from_dict({"audio": paths}).to_json(tmp_path / "rows.jsonl")
    seen, job = [], make_job(AudioData())
    monkeypatch.setattr("d2v.data.audio.audio_info", lambda value: seen.append(value) or audio_info(value))
    table = read(AudioData(path=str(tmp_path / "rows.jsonl")))["train"]
    for split in (make_split(audio=paths), Split("train", table, np.arange(40), (("train", 40),))):
        first = read_headers(job, split)
        assert len(seen) == 40 and "train: reading headers of 40 rows, which are kept" in capsys.readouterr().out
        for rows in (np.arange(40), np.random.default_rng(1).permutation(40)[:35]):
            again = read_headers(job, split.select(rows))
            assert again.frames.tolist() == first.frames[rows].tolist() and again[0] == first[int(rows[0])]
        assert len(seen) == 40 and not capsys.readouterr().out
        soundfile.write(paths[0], tones("abcabc"), 16_000)
        assert read_headers(job, split).seconds[0] == 0.6 and len(seen) == 80
        soundfile.write(paths[0], tones("a"), 16_000)
        seen.clear()
        capsys.readouterr()
    size = sum(path.stat().st_size for path in (tmp_path / "cache/d2v").iterdir())
    assert size / len(list((tmp_path / "cache/d2v").iterdir())) < 200 * 40


def test_a_column_of_seconds_spares_the_headers(monkeypatch):
    monkeypatch.setattr("d2v.data.audio.audio_info", None)
    split = make_split(audio=["a.wav", "b.wav", "c.wav", "d.wav"], length=["2.5", "0:01", "", "x"])
    rows = rows_of(split, seconds_column="length", bad_rows="skip")
    assert rows.lengths == [2.5, 1.0] and rows.ids == ["a.wav", "b.wav"]
    with pytest.raises(
        InputError, match=r"train, row 2: length is ''; should be seconds \(data.seconds_column\); 2 such"
    ):
        rows_of(split, seconds_column="length")
    with pytest.raises(InputError, match=r"no column 'seconds' \(data.seconds_column\); there are audio, length"):
        rows_of(split, seconds_column="seconds")


@pytest.mark.parametrize("name", ["batch_seconds", "max_seconds"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan])
def test_lengths_are_above_nothing(name, value):
    with pytest.raises(InputError, match=f"data.{name} should be above 0, not {value:g}"):
        AudioData(**{name: value})
