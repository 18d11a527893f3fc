"""The embedded demo sets: what eSpeak NG says, and how the sets are kept."""

import io
import os
import shutil
import sys

import numpy as np
import pytest

from d2v.data import demo
from d2v.errors import InputError

SIZES = {"train": 20, "validation": 4, "test": 6}


@pytest.fixture(autouse=True)
def needs_espeak():
    pytest.importorskip("espeakng_loader", reason="speech synthesis needs the extra `demo` (espeakng-loader)")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def splits(cache):
    return demo.number_words(cache, _sizes=SIZES)


def read(folder):
    """Name -> bytes of every file under `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def median_pitch(waveform):
    """Median over 64 ms windows, as loud as the whole, of the frequency at the autocorrelation's peak: 70 to 400 Hz."""
    windows = np.lib.stride_tricks.sliding_window_view(waveform, 1024)[::320]
    windows = windows[windows.std(axis=1) > waveform.std()]
    autocorrelation = np.fft.irfft(np.abs(np.fft.rfft(windows, 2048)) ** 2)[:, 40:229]
    return np.median(demo.SAMPLE_RATE / (40 + autocorrelation.argmax(axis=1)))


@pytest.mark.parametrize("voice", demo.TRAIN_VOICES + demo.TEST_VOICES)
def test_speech_is_plausible(voice):
    waveform = demo.speak("forty two seven", voice, rate=150)
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    assert 3 * 0.3 < len(waveform) / demo.SAMPLE_RATE < 3 * 0.8  # seconds a word
    loud = np.flatnonzero(np.abs(waveform) > 0.02 * np.abs(waveform).max())
    assert loud[0] / demo.SAMPLE_RATE < 0.1  # no long silence before
    assert 0.1 < np.abs(waveform).max() < 0.9  # neither silent nor clipped
    assert 0.02 < waveform.std() < 0.2


def test_voices_rate_and_pitch_are_heard():
    text = "one hundred eighty nine"
    man, woman, high = (
        demo.speak(text, voice, pitch=pitch)
        for voice, pitch in (("en-us+edward", 50), ("en-us+f2", 50), ("en-us+edward", 80))
    )
    assert 80 < median_pitch(man) < 125
    assert 160 < median_pitch(woman) < 240
    assert median_pitch(high) > 1.2 * median_pitch(man)
    assert len(demo.speak(text, "en-us+edward", rate=120)) > 1.3 * len(demo.speak(text, "en-us+edward", rate=180))


@pytest.mark.parametrize("voice", ["en-us+nobody", "nowhere", "nowhere+f2"])
def test_unknown_voice_is_an_error(voice):
    demo.speak("one", "en-us+f2")  # eSpeak NG would go on with the voice it has
    with pytest.raises(InputError, match="^voice: .*" + voice.replace("+", r"\+")):
        demo.speak("one", voice)


def test_rows(splits):
    import datasets
    import soundfile

    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    for rows in splits.values():
        assert rows.features["audio"] == datasets.Audio(decode=False)
        for row in rows:
            with soundfile.SoundFile(io.BytesIO(row["audio"]["bytes"])) as file:
                assert (file.format, file.subtype, file.samplerate, file.channels) == ("FLAC", "PCM_16", 16_000, 1)
                waveform = file.read()
            words = row["text"].split(" ")
            assert 1 <= len(words) <= 4 and set(words) <= set(demo.NUMBER_WORDS)
            assert row["text"] == row["text"].lower()
            assert 0.25 * len(words) < len(waveform) / 16_000 < 0.4 + 0.9 * len(words)
            assert waveform[:800].std() > 0  # noise before the first word
    paths = [row["audio"]["path"] for rows in splits.values() for row in rows]
    assert len(set(paths)) == len(paths)


def test_splits_are_disjoint(splits):
    speakers = {split: set(rows["speaker"]) for split, rows in splits.items()}
    assert len(speakers["train"]) >= 8 and speakers["validation"] <= speakers["train"] and len(speakers["test"]) == 2
    variants = {split: {name.split("+")[1] for name in names} for split, names in speakers.items()}
    assert not variants["train"] & variants["test"]
    assert set(splits["test"]["text"]) - set(splits["train"]["text"])


def test_content_is_a_function_of_the_seed(cache, splits, tmp_path):
    demo.speak("nine", "en-us+f2")  # what this process has said before does not matter
    demo.number_words(tmp_path / "same", _sizes=SIZES)
    assert read(tmp_path / "same") == read(cache)
    other = demo.number_words(tmp_path / "other", seed=1, _sizes=SIZES)
    assert other["train"]["text"] != splits["train"]["text"]


def test_cache_is_reused_and_never_half_written(splits, cache, tmp_path, monkeypatch):
    built = read(cache)
    assert len(built) == len(SIZES)  # no temporary file is left
    (tmp_path / "demo" / "tmpkilled" / "built").mkdir(parents=True)  # what a killed run leaves
    (tmp_path / "demo" / "tmpkilled" / "built" / "train.parquet").write_bytes(b"half")

    def child(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.subprocess, "run", child)
    demo.number_words(cache, _sizes=SIZES)  # starts no child
    with pytest.raises(KeyboardInterrupt):
        demo.number_words(tmp_path, _sizes=SIZES)
    assert os.listdir(tmp_path / "demo") == ["tmpkilled"]
    monkeypatch.undo()
    monkeypatch.setenv("D2V_CACHE", str(tmp_path))
    assert demo.number_words(_sizes=SIZES)["test"][:] == splits["test"][:]


def test_the_slower_of_two_processes_takes_the_set_of_the_faster(splits, cache, tmp_path, monkeypatch):
    run = demo.subprocess.run

    def run_slowly(*args, **kwargs):
        run(*args, **kwargs)
        shutil.copytree(cache / "demo", tmp_path / "demo", dirs_exist_ok=True)

    monkeypatch.setattr(demo.subprocess, "run", run_slowly)
    assert demo.number_words(tmp_path, _sizes=SIZES)["test"][:] == splits["test"][:]
    assert read(tmp_path) == read(cache)


def test_the_cached_folder_is_a_data_source(splits, cache, tmp_path):
    import datasets

    (folder,) = (cache / "demo").iterdir()
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    assert {split: rows[:] for split, rows in loaded.items()} == {split: rows[:] for split, rows in splits.items()}


def test_unwritable_cache_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file.*cannot keep the demo set there.*D2V_CACHE"):
        demo.number_words(tmp_path / "file", _sizes=SIZES)


def test_missing_package_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)  # makes its import fail
    demo._espeak.cache_clear()
    for call in (lambda: demo.speak("one", "en-us"), lambda: demo.number_words(tmp_path, _sizes=SIZES)):
        with pytest.raises(InputError, match=r'^[^\n]*pip install -e "\.\[demo\]"$'):
            call()
    assert not list(tmp_path.iterdir())
