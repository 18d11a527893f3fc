"""The embedded demo sets: what is in them, and how they are kept."""

import io
import os
import shutil
from collections import Counter

import numpy as np
import pytest

from d2v.demo import espeak, speech
from d2v.errors import InputError

SIZES = {speech.number_words: (20, 4, 6), speech.spoken_words: (120, 12, 24)}
SIZES |= {speech.conversations: (12, 2, 4), speech.voices: (90, 90, 96)}
MAKERS = list(SIZES)


@pytest.fixture(autouse=True)
def needs_espeak():
    pytest.importorskip("espeakng_loader", reason="speech synthesis needs the extra `demo` (espeakng-loader)")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Sets are made in this process, which spares each test of them a child's imports."""
    monkeypatch.setattr(espeak.subprocess, "run", lambda arguments, **options: exec(arguments[-1], {}))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def make(maker, folder=None, **options):
    return maker(folder, _sizes=SIZES[maker], **options)


@pytest.fixture
def splits(cache):
    return make(speech.number_words, cache)


def read(folder):
    """Name -> bytes of every file under `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def decode(row):
    import soundfile

    return soundfile.read(io.BytesIO(row["audio"]["bytes"]))[0]


def say_tones(monkeypatch):
    """Every word 0.3 s of a tone of its voice's own; returns the list of the texts said."""
    said = []

    def speak(text, voice, *, rate, pitch):
        said.append(text)
        seconds = np.arange(len(text.split()) * 3 * espeak.SAMPLE_RATE // 10) / espeak.SAMPLE_RATE
        return 0.1 * np.cos(2 * np.pi * frequency(voice.partition("+")[2]) * seconds)

    monkeypatch.setattr(speech, "speak", speak)
    return said


def frequency(name):
    names = speech.TRAIN_SPEAKERS + speech.TEST_SPEAKERS
    return 500 + 150 * names.index(name) if name in names else 500


# All sets


@pytest.mark.parametrize("maker", MAKERS)
def test_sound_is_flac_of_16_bit_at_16_khz(cache, maker):
    import datasets
    import soundfile

    splits = make(maker, cache)
    assert tuple(len(rows) for rows in splits.values()) == SIZES[maker]
    for rows in splits.values():
        assert rows.features["audio"] == datasets.Audio(decode=False)
        for row in rows:
            with soundfile.SoundFile(io.BytesIO(row["audio"]["bytes"])) as file:
                assert (file.format, file.subtype, file.samplerate, file.channels) == ("FLAC", "PCM_16", 16_000, 1)
                waveform = file.read()
            assert 0 < waveform[:800].std() < 0.2 and np.abs(waveform).max() < 0.99  # noise from the start, not clipped
    paths = [row["audio"]["path"] for rows in splits.values() for row in rows]
    assert len(set(paths)) == len(paths)


def test_content_is_a_function_of_the_seed(tmp_path, monkeypatch):
    monkeypatch.undo()
    make(speech.number_words, tmp_path / "first")
    espeak.speak("nine", "en-us+f2")  # what this process has said before does not matter
    make(speech.number_words, tmp_path / "second")
    assert read(tmp_path / "first") == read(tmp_path / "second")


@pytest.mark.parametrize("maker", MAKERS)
def test_rows_are_a_function_of_the_random_numbers(maker, monkeypatch):
    say_tones(monkeypatch)

    def rows(seed):
        made = getattr(speech, f"_{maker.__name__}")("train", 5, np.random.default_rng(seed))
        return [row | {"audio": row["audio"].tobytes()} for row in made]

    assert rows(0) == rows(0) != rows(1)


def test_the_seed_changes_the_content(splits, cache):
    assert make(speech.number_words, cache, seed=1)["train"]["text"] != splits["train"]["text"]


@pytest.mark.parametrize("maker", MAKERS)
def test_voices_of_test_are_unheard(cache, maker):
    few = maker in (speech.number_words, speech.spoken_words)
    known, unheard = (speech.TRAIN_VOICES, speech.TEST_VOICES) if few else (speech.TRAIN_SPEAKERS, speech.TEST_SPEAKERS)
    assert not {name.split("+")[-1] for name in known} & {name.split("+")[-1] for name in unheard}
    for split, rows in make(maker, cache).items():
        names = np.ravel(rows["speakers" if maker is speech.conversations else "speaker"])
        voices = {name.split(" ")[0] for name in names if name}  # a speaker may be a voice at a pitch
        assert voices <= set(unheard if split == "test" else known)


def test_there_are_many_speakers():
    names = speech.TRAIN_SPEAKERS + speech.TEST_SPEAKERS
    assert len(set(names)) == len(names) and len(speech.TRAIN_SPEAKERS) >= 20 and len(speech.TEST_SPEAKERS) >= 4


# Number words


def test_texts(splits):
    for rows in splits.values():
        for row in rows:
            words = row["text"].split(" ")
            assert 1 <= len(words) <= 4 and set(words) <= set(speech.NUMBER_WORDS)
            assert 0.25 * len(words) < len(decode(row)) / 16_000 < 0.4 + 0.9 * len(words)
    assert set(splits["test"]["text"]) - set(splits["train"]["text"])


# Single words


def test_labels_are_what_is_said(monkeypatch):
    said = say_tones(monkeypatch)
    rows = list(speech._spoken_words("train", 240, np.random.default_rng(0)))
    assert set(Counter(row["label"] for row in rows).values()) == {20}
    texts = iter(said)
    for row in rows:
        if row["label"] != "_silence_":
            text = next(texts)
            assert text == row["label"] if row["label"] != "_unknown_" else text in speech.OTHER_WORDS
        assert (row["speaker"] is None) == (row["label"] == "_silence_")
    assert next(texts, None) is None and not set(speech.OTHER_WORDS) & set(speech.NUMBER_WORDS)


def test_silence_is_steady_and_words_are_not(cache):
    """By the loudness of 20 ms frames: its standard deviation over its mean."""
    variations = {True: [], False: []}
    for row in make(speech.spoken_words, cache)["train"]:
        clip = decode(row)
        loudness = clip[: len(clip) // 320 * 320].reshape(-1, 320).std(axis=1)
        variations[row["label"] == "_silence_"].append(loudness.std() / loudness.mean())
        assert 0.3 < len(clip) / 16_000 < 1.3
    assert max(variations[True]) < 0.4 < 0.5 < min(variations[False])


# Conversations


def test_columns_are_those_of_mixtures(cache):
    from datasets import List, Value

    features = make(speech.conversations, cache)["train"].features
    turn = {"speaker_slot": Value("int64"), "start": Value("float64"), "end": Value("float64")}
    assert list(features) == ["id", "audio", "turns", "speakers"]
    assert features["id"] == Value("string") and features["turns"] == List(turn)
    assert features["speakers"] == List(Value("string"))


def test_turns(monkeypatch):
    say_tones(monkeypatch)
    follows = []
    for row in speech._conversations("train", 200, np.random.default_rng(0)):
        seconds, turns = len(row["audio"]) / 16_000, row["turns"]
        assert 4 <= seconds <= 6 and len(set(row["speakers"])) == 2 and len(turns) >= 2
        assert [turn["speaker_slot"] for turn in turns] == [i % 2 for i in range(len(turns))]
        assert all(0 < turn["start"] < turn["end"] <= seconds for turn in turns)
        assert all(
            turns[i]["end"] < turns[i + 2]["start"] for i in range(len(turns) - 2)
        )  # nobody talks over themselves
        follows += [turns[i]["end"] > turns[i + 1]["start"] for i in range(len(turns) - 1)]
    assert 0.6 < np.mean(follows) < 0.85


def test_turns_are_where_each_voice_sounds(monkeypatch):
    """Where a voice's tone is heard, in windows of 20 ms, is where its turns are."""
    say_tones(monkeypatch)
    for row in speech._conversations("train", 20, np.random.default_rng(1)):
        windows = row["audio"][: len(row["audio"]) // 320 * 320].reshape(-1, 320)
        centres = (np.arange(len(windows)) + 0.5) * 0.02
        for slot, name in enumerate(row["speakers"]):
            tone = np.exp(2j * np.pi * frequency(name) * np.arange(320) / 16_000)
            heard = np.abs(windows @ tone) / 160 > 0.025  # its amplitude is 0.05 to 0.1
            turns = [turn for turn in row["turns"] if turn["speaker_slot"] == slot]
            edges = np.array([(turn["start"], turn["end"]) for turn in turns])
            clear = (np.abs(centres[:, None] - edges.ravel()) > 0.02).all(
                axis=1
            )  # windows that no turn starts or ends in
            talks = ((edges[:, 0] < centres[:, None]) & (centres[:, None] < edges[:, 1])).any(axis=1)
            np.testing.assert_array_equal(heard[clear], talks[clear])


# Many voices


def test_voices_can_be_told_apart(cache):
    """Voices that were never heard, each clip by the nearest mean of the others' average log spectra."""

    def spectrum(clip):
        windows = np.lib.stride_tricks.sliding_window_view(clip, 512)[::160]
        windows = windows[windows.std(axis=1) > 0.3 * clip.std()] * np.hanning(512)
        power = (np.abs(np.fft.rfft(windows)) ** 2)[:, 1:].reshape(len(windows), 64, 4).sum(axis=2)
        logs = np.log(power + 1e-9)
        return (logs - logs.mean(axis=1, keepdims=True)).mean(axis=0)

    rows = make(speech.voices, cache)["test"]
    spectra, speakers = np.array([spectrum(decode(row)) for row in rows]), np.array(rows["speaker"])
    assert len(set(speakers)) == len(speech.TEST_SPEAKERS) * len(speech.PITCHES)
    right = 0
    for i, speaker in enumerate(speakers):
        others = np.arange(len(rows)) != i
        means = {name: spectra[others & (speakers == name)].mean(axis=0) for name in set(speakers)}
        right += speaker == min(means, key=lambda name: np.linalg.norm(spectra[i] - means[name]))
    assert right / len(rows) > 0.3  # by chance 0.04


# Keeping


def test_cache_is_reused_and_never_half_written(splits, cache, tmp_path, monkeypatch):
    assert not [path for path in (cache / "demo").iterdir() if path.name.startswith("tmp")]  # no temporary file is left
    (tmp_path / "demo" / "tmpkilled" / "built").mkdir(parents=True)  # what a killed run leaves
    (tmp_path / "demo" / "tmpkilled" / "built" / "train.parquet").write_bytes(b"half")

    def child(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(espeak.subprocess, "run", child)
    make(speech.number_words, cache)  # starts no child
    with pytest.raises(KeyboardInterrupt):
        make(speech.number_words, tmp_path)
    assert os.listdir(tmp_path / "demo") == ["tmpkilled"]
    monkeypatch.setenv("D2V_CACHE", str(cache))
    assert make(speech.number_words)["test"][:] == splits["test"][:]


def test_the_slower_of_two_processes_takes_the_set_of_the_faster(splits, cache, tmp_path, monkeypatch):
    def run_slowly(arguments, **options):
        built = arguments[-1].split("'")[1]
        shutil.copytree(next((cache / "demo").glob("number_words-*")), built)
        shutil.copytree(cache / "demo", tmp_path / "demo", dirs_exist_ok=True)

    monkeypatch.setattr(espeak.subprocess, "run", run_slowly)
    assert make(speech.number_words, tmp_path)["test"][:] == splits["test"][:]
    assert read(tmp_path) == read(cache)


@pytest.mark.parametrize("maker", MAKERS)
def test_the_cached_folder_is_a_data_source(cache, tmp_path, maker):
    import datasets

    splits = make(maker, cache)
    folder = next(folder for folder in (cache / "demo").glob(f"{maker.__name__}-*") if len(list(folder.iterdir())) == 3)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    assert loaded.keys() == splits.keys()
    assert {split: rows.features for split, rows in loaded.items()} == {s: rows.features for s, rows in splits.items()}


def test_unwritable_cache_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file.*cannot keep the demo set there.*D2V_CACHE"):
        make(speech.number_words, tmp_path / "file")
