"""Sound files, feature extractor and CTC tokenizer; the files and numbers of the last two against transformers."""

import io
import json
import logging
import random

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from d2v.errors import InputError
from d2v.processors.audio import HEADER, AudioFeatureExtractor, audio_info, load_audio, plain_header
from d2v.processors.ctc import CTCTokenizer

transformers = pytest.importorskip("transformers")

RATE = 16_000
SEEDED = settings(derandomize=True, deadline=None)
# facebook/data2vec-audio-base-960h: 32 entries, letters by frequency.
HUB_VOCAB = {c: i for i, c in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"])}


def tone(rate=RATE, seconds=0.5, hertz=1000.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def encoded(samples, rate=RATE, kind="WAV", subtype=None):
    """The bytes of a sound file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def dominant_hertz(samples):
    return np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * RATE / len(samples)


# ---------------------------------------------------------------------------------------------------------------------
# Sound files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "subtype", "atol"), [("WAV", "PCM_16", 4e-5), ("WAV", "FLOAT", 0), ("FLAC", "PCM_24", 2e-7)]
)
def test_every_source_gives_the_samples_that_were_written(tmp_path, kind, subtype, atol):
    samples = tone()
    data = encoded(samples, kind=kind, subtype=subtype)
    path = tmp_path / f"clip.{kind.lower()}"
    path.write_bytes(data)
    sources = [path, str(path), data, {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    for source in [*sources, {"bytes": data, "path": "inside/an/archive.wav"}]:
        loaded = load_audio(source)
        assert loaded.dtype == np.float32 and loaded.shape == samples.shape
        np.testing.assert_allclose(loaded, samples, rtol=0, atol=atol)
        assert audio_info(source).seconds == 0.5


@pytest.mark.parametrize("kind", ["OGG", "MP3"])
def test_lossy_files(kind):
    data = encoded(tone(), kind=kind)
    loaded = load_audio(data)
    assert abs(len(loaded) - RATE // 2) <= 1152  # an MP3 frame
    assert abs(dominant_hertz(loaded) - 1000) <= 2
    assert audio_info(data).seconds == pytest.approx(0.5, abs=0.08)


def test_channels_are_averaged():
    left, right = tone(hertz=440), tone(hertz=880)
    loaded = load_audio(encoded(np.stack([left, right], axis=1), subtype="FLOAT"))
    mean = (left.astype(np.float64) + right) / 2
    np.testing.assert_allclose(loaded, mean, rtol=0, atol=np.finfo(np.float32).eps * np.abs(mean).max())


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_resampling_keeps_length_pitch_and_level(rate):
    data = encoded(tone(rate), rate)
    loaded = load_audio(data)
    assert loaded.dtype == np.float32 and len(loaded) == RATE // 2
    assert abs(dominant_hertz(loaded) - 1000) <= 2
    middle = slice(1000, -1000)  # the filter rings at the ends
    np.testing.assert_allclose(loaded[middle], tone()[middle], atol=1e-3)
    assert audio_info(data).seconds == 0.5  # by its own rate
    assert len(load_audio(data, sampling_rate=rate)) == rate // 2


def test_resampling_does_not_alias():
    """A tone above half the new rate must vanish, not fold down to 16 - 12 = 4 kHz."""
    assert np.abs(load_audio(encoded(tone(48_000, hertz=12_000), 48_000)))[1000:-1000].max() < 1e-3


@pytest.mark.parametrize("read", [load_audio, audio_info])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not readable as audio"),
        (b"<html>404</html>" * 50, "not readable as audio"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS"),
        (encoded(tone()[:0]), "says 0 samples"),
        (encoded(tone())[:-3000], "cut off"),
        (encoded(tone(), kind="AIFF")[:-3000], "cut off"),
        (encoded(tone(seconds=5), kind="OGG")[:-20], "cut off"),
    ],
)
def test_bad_files_are_named_by_their_header(tmp_path, read, data, message):
    path = tmp_path / "bad clip.wav"
    path.write_bytes(data)
    for source, name in [
        (path, str(path)),
        (data, "<bytes>"),
        ({"bytes": data, "path": "a/b.flac"}, "a/b.flac"),
        ({"bytes": None, "path": str(path)}, str(path)),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            read(source)
        assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [load_audio, audio_info])
def test_missing_and_headerless_files(tmp_path, read):
    for source in (tmp_path / "none.wav", str(tmp_path), {"bytes": None, "path": str(tmp_path / "none.wav")}):
        with pytest.raises(InputError, match="no such file") as caught:
            read(source)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(InputError, match="<bytes>: no such file"):
        read({"bytes": None, "path": None})
    (tmp_path / "clip.raw").write_bytes(bytes(1000))
    with pytest.raises(InputError, match=r"clip\.raw: not readable as audio"):
        read(tmp_path / "clip.raw")


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.99])
def test_cut_off_flac_is_an_error_when_decoded(keep):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
    data = encoded(noise, kind="FLAC")
    assert len(load_audio(data)) == RATE
    with pytest.raises(InputError, match="<bytes>: damaged or cut-off"):
        load_audio(data[: int(len(data) * keep)])


def test_flac_without_a_length_is_an_error():
    data = bytearray(encoded(tone(), kind="FLAC"))
    data[21] &= 0xF0  # the 36 bits of STREAMINFO's total samples
    data[22:26] = bytes(4)
    for read in (load_audio, audio_info):
        with pytest.raises(InputError, match="known length"):
            read(bytes(data))


@pytest.mark.parametrize("claimed", [0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_is_whole(claimed):
    """eSpeak and FFmpeg write these sizes to standard output."""
    data = bytearray(encoded(tone()))
    at = data.find(b"data") + 4
    data[at : at + 4] = claimed.to_bytes(4, "little")
    np.testing.assert_array_equal(load_audio(bytes(data)), load_audio(encoded(tone())))
    assert audio_info(bytes(data)).seconds == 0.5


def claims(size, data=None):
    """A WAV whose header says so many bytes of sound."""
    data = bytearray(encoded(tone()) if data is None else data)
    at = data.find(b"data") + 4
    data[at : at + 4] = size.to_bytes(4, "little")
    return bytes(data)


SOUND = {
    "as it is": encoded(tone()),
    "2 bytes too many": claims(16_002),
    "its own header counted too": claims(16_044),
    "its last byte lost": encoded(tone())[:-1],
    "0 bytes": claims(0),
    "0 bytes of file too": claims(0)[:4] + bytes(4) + claims(0)[8:],
    "RIFF size wrong": encoded(tone())[:4] + b"\1\0\0\0" + encoded(tone())[8:],
    "bytes behind": encoded(tone()) + b"behind",
    "a chunk behind": encoded(tone()) + b"LIST\4\0\0\0abcd",
    "a chunk before": encoded(tone())[:36] + b"LIST\4\0\0\0abcd" + encoded(tone())[36:],
    "0 bytes, a chunk before": claims(0)[:36] + b"LIST\4\0\0\0abcd" + claims(0)[36:],
}
BEHIND = {"nothing": b"", "zeros": bytes(500), "text": b"hello" * 9, "a tag": b"TAG" + bytes(125), "less": b"O"}


@pytest.mark.parametrize("kind", SOUND)
def test_a_wav_is_whole_whose_sound_is(kind, tmp_path):
    """Players take these: a header that is off by a few bytes or says 0."""
    (tmp_path / "a.wav").write_bytes(SOUND[kind])
    last = 1 if kind == "its last byte lost" else 0
    for source in (SOUND[kind], str(tmp_path / "a.wav"), {"bytes": SOUND[kind], "path": "a.wav"}):
        np.testing.assert_array_equal(load_audio(source), load_audio(SOUND["as it is"])[: 8000 - last])
        info = audio_info(source)
        assert (info.frames, info.rate, info.channels) == (8000 - last, RATE, 1)
        put_right = kind.startswith(("2 bytes", "its", "0 bytes"))
        assert bool(info.mended) == put_right and (not put_right or "bytes of sound, there are 1" in info.mended)


def test_an_empty_wav_with_a_chunk_behind_is_empty():
    with pytest.raises(InputError, match="says 0 samples"):
        load_audio(encoded(tone()[:0]) + b"LIST\4\0\0\0abcd")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("behind", BEHIND)
def test_bytes_behind_the_last_page_of_an_ogg_do_not_matter(subtype, behind):
    data = encoded(tone(), kind="OGG", subtype=subtype)
    np.testing.assert_array_equal(load_audio(data + BEHIND[behind]), load_audio(data))
    info = audio_info(data + BEHIND[behind])
    assert info.frames == 8000 and bool(info.mended) == bool(BEHIND[behind])
    for cut in (data[:-10], data[: len(data) // 2]):
        with pytest.raises(InputError, match="cut off|malformed"):
            load_audio(cut + BEHIND[behind])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_second_recording_in_an_ogg_is_not_cut_away(subtype):
    """As `cat a.ogg b.ogg` and captures of radio are; only the first would be heard."""
    both = [encoded(tone()[:count], kind="OGG", subtype=subtype) for count in (8000, 6000)]
    with pytest.raises(InputError, match="cut off|malformed"):
        load_audio(b"".join(both))


SUBTYPES = {"WAV": "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT ULAW IMA_ADPCM", "WAVEX": "PCM_16", "FLAC": "PCM_16 PCM_24"}
KINDS = [(kind, subtype) for kind, several in (SUBTYPES | {"AIFF": "PCM_16"}).items() for subtype in several.split()]
RATES = [8000, 16_000, 44_100, 48_000]


@given(st.sampled_from(KINDS), st.integers(0, 300), st.integers(1, 6), st.sampled_from(RATES), st.binary(max_size=9))
@SEEDED
def test_the_quick_header_says_what_soundfile_does(kind, frames, channels, rate, behind):
    """Or nothing, which leaves the file to soundfile."""
    if kind[1] == "IMA_ADPCM":
        channels = 1
    data = encoded(np.zeros((frames, channels)), rate, *kind) + behind
    if info := plain_header(data[:HEADER], len(data)):
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            assert (info.frames, info.rate, info.channels) == (file.frames, file.samplerate, file.channels)
            assert info.mended is None and len(file.read()) == info.frames
    elif kind in (("WAV", "PCM_16"), ("WAV", "PCM_24"), ("FLAC", "PCM_16")):
        assert not frames or (channels * frames) % 2  # of an odd number of bytes


@given(st.integers(0, 60), st.integers(0, 255), st.sampled_from(["WAV", "FLAC"]))
@SEEDED
def test_the_quick_header_of_a_file_with_another_byte(place, value, kind):
    data = bytearray(encoded(tone(), kind=kind))
    data[place] = value
    if info := plain_header(bytes(data[:HEADER]), len(data)):
        try:
            with soundfile.SoundFile(io.BytesIO(bytes(data))) as file:
                assert (info.frames, info.rate, info.channels) == (file.frames, file.samplerate, file.channels)
        except soundfile.LibsndfileError:
            assert kind == "FLAC"  # damaged behind what says the length, which shows in decoding
            with pytest.raises(InputError):
                load_audio(bytes(data))


@pytest.mark.parametrize("channel", [1, 2, 3])
def test_a_channel_by_its_number(channel):
    clips = [tone(hertz=hertz) for hertz in (440, 880, 1320)]
    data = encoded(np.stack(clips, axis=1), subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(data, channel=channel), clips[channel - 1])
    for array in (np.stack(clips), np.stack(clips, axis=1)):  # as `datasets` and as soundfile have it
        source = {"array": array, "sampling_rate": RATE}
        np.testing.assert_array_equal(load_audio(source, channel=channel), clips[channel - 1])
        assert audio_info(source) == (8000, RATE, 3, None)
    with pytest.raises(InputError, match="<bytes>: has no channel 4; it has 3, counted from 1"):
        load_audio(data, channel=4)


@given(st.integers(0, 7900), st.integers(1, 4000))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_a_part_is_a_part_of_the_whole(first, length):
    for data in PARTS:
        whole = load_audio(data)
        part = load_audio(data, part=(first / RATE, min(first + length, 8000) / RATE))
        np.testing.assert_allclose(part, whole[first : first + length], atol=1e-6)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_a_part_of_mp3_takes_no_longer_the_later_it_begins(tmp_path, monkeypatch, mode):
    """Its frames lend one another bits, so some before it are decoded; not all."""
    noise = np.random.default_rng(0).standard_normal(20 * RATE) * (np.arange(20 * RATE) // RATE % 3 == 0) * 0.1
    soundfile.write(tmp_path / "a.mp3", noise, RATE, format="MP3", bitrate_mode=mode)
    whole, read = load_audio(tmp_path / "a.mp3"), soundfile.SoundFile.read
    frames = []
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, **k: frames.append(n) or read(self, n, **k))
    for start in (0.5, 3.1, 11.7, 18.2):
        part = load_audio(tmp_path / "a.mp3", part=(start, start + 1))
        np.testing.assert_allclose(part, whole[round(start * RATE) :][:RATE], atol=1e-6)
    assert max(frames) == 3 * RATE


PARTS = [encoded(tone()), encoded(tone(), kind="FLAC"), encoded(tone(), kind="OGG"), encoded(tone(), kind="MP3")]


@pytest.mark.parametrize("part", [(-0.1, 0.2), (0.2, 0.2), (0.3, 0.2), (0.6, 0.7), (0.1, 0.7), (0.5, None)])
def test_a_part_that_is_not_there(part):
    with pytest.raises(InputError, match="<bytes>: has no part from .* it lasts 0.5 s"):
        load_audio(encoded(tone()), part=part)
    assert len(load_audio(encoded(tone()), part=(0.1, None))) == 6400
    assert len(load_audio(encoded(tone()), part=(0.4, 0.55))) == 1600  # annotations are rounded


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_non_finite_samples(value):
    samples = tone().astype(np.float64)
    samples[100] = value  # 1e300 is infinite as float32
    with pytest.raises(InputError, match="<bytes>: has NaN or infinite"):
        load_audio(encoded(samples, subtype="DOUBLE"))


def test_one_sample_may_vanish_in_resampling():
    with pytest.raises(InputError, match="no samples at 100 Hz"):
        load_audio(encoded(tone()[:1]), sampling_rate=100)


# ---------------------------------------------------------------------------------------------------------------------
# Feature extractor
# ---------------------------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    offset=st.floats(-10, 10),
    scale=st.sampled_from([0.0, 1e-5, 1.0, 3e4]),
    do_normalize=st.booleans(),
    padding_value=st.sampled_from([0.0, -1.0]),
)
@SEEDED
def test_batches_equal_transformers(lengths, offset, scale, do_normalize, padding_value):
    rng = np.random.default_rng(sum(lengths))
    clips = [(offset + scale * rng.standard_normal(n)).astype(np.float32) for n in lengths]
    options = {"do_normalize": do_normalize, "padding_value": padding_value, "return_attention_mask": True}
    theirs = transformers.Wav2Vec2FeatureExtractor(**options)(
        clips, sampling_rate=RATE, padding=True, return_tensors="pt"
    )
    ours = AudioFeatureExtractor(**options)(clips)
    assert ours.keys() == theirs.keys() == {"input_values", "attention_mask"}
    assert ours["input_values"].dtype == torch.float32 and ours["attention_mask"].dtype == torch.bool
    assert torch.equal(ours["input_values"], theirs["input_values"])  # to the last bit
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"].bool())


def test_a_clip_is_normalised_over_its_own_samples():
    out = AudioFeatureExtractor()([np.array([3.0, 5.0]), np.array([1.0, 1.0, 4.0, 4.0])])
    expected = torch.tensor([[-1.0, 1, 0, 0], [-1, -1, 1, 1]])
    assert torch.allclose(out["input_values"], expected, rtol=8 * torch.finfo(torch.float32).eps)
    assert out["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("clip", [np.zeros((2, 5)), np.zeros(0), 1.0])
def test_clips_of_a_wrong_shape(clip):
    with pytest.raises(InputError, match="clip 1 has shape"):
        AudioFeatureExtractor()([np.ones(3), clip])


@pytest.mark.parametrize("save", ["processor_config.json", "preprocessor_config.json", "both"])
def test_feature_extractor_files_both_ways(tmp_path, save):
    """transformers opens either of our files, and we either of theirs; no field is lost."""
    fields = {"sampling_rate": 8_000, "padding_value": -1.0, "do_normalize": False, "return_attention_mask": False}
    ours = AudioFeatureExtractor(**fields)
    ours.save_pretrained(tmp_path / "ours")
    names = ["processor_config.json", "preprocessor_config.json"]
    for name in names:
        if save not in (name, "both"):
            (tmp_path / "ours" / name).unlink()
    assert AudioFeatureExtractor.from_pretrained(tmp_path / "ours") == ours
    theirs = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "ours")
    assert type(theirs) is transformers.Wav2Vec2FeatureExtractor
    expected = transformers.Wav2Vec2FeatureExtractor(**fields)
    assert {k: theirs.to_dict()[k] for k in expected.to_dict()} == expected.to_dict()
    theirs.save_pretrained(tmp_path / "theirs")
    assert AudioFeatureExtractor.from_pretrained(str(tmp_path / "theirs")) == ours


def test_feature_extractor_files_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        AudioFeatureExtractor.from_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    transformers.WhisperFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'WhisperFeatureExtractor'; must be 'Wav2Vec2FeatureExtractor'"):
        AudioFeatureExtractor.from_pretrained(tmp_path)
    for entries in ({"feature_size": 80}, {"padding_side": "left"}):
        file.write_text(json.dumps(entries))
        with pytest.raises(InputError, match="feature_size must be 1 and padding_side 'right'"):
            AudioFeatureExtractor.from_pretrained(tmp_path)
    for entries, message in (
        ({"sampling_rate": "16000"}, "AudioFeatureExtractor.sampling_rate should be int, not '16000'"),
        ({"sampling_rate": 0}, "sampling_rate is 0; must be in Hz, above 0"),
        ({"sampling_rate": -1}, "sampling_rate is -1; must be in Hz, above 0"),
        ({"do_normalize": "true"}, "AudioFeatureExtractor.do_normalize should be bool, not 'true'"),
    ):
        file.write_text(json.dumps(entries))
        with pytest.raises(InputError) as caught:
            AudioFeatureExtractor.from_pretrained(tmp_path)
        assert str(caught.value) == f"{tmp_path}: preprocessor_config.json: {message}"
    file.write_text(json.dumps({"padding_value": None, "return_attention_mask": None}))
    loaded = AudioFeatureExtractor.from_pretrained(tmp_path)
    assert (loaded.padding_value, loaded.return_attention_mask) == (0.0, False)
    file.write_text("{")
    with pytest.raises(InputError, match=r"preprocessor_config\.json: not a readable JSON"):
        AudioFeatureExtractor.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# CTC tokenizer
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours():
    return CTCTokenizer.from_texts(["hello abba", "it's a çà, 'é'"], case="lower", remove=",")


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory):
    """transformers' tokenizer of our files."""
    folder = tmp_path_factory.mktemp("tokenizer")
    ours.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder as facebook/data2vec-audio-base-960h has it."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "vocab.json").write_text(json.dumps(HUB_VOCAB))
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    config = {"do_lower_case": False, "word_delimiter_token": "|", "tokenizer_class": "Wav2Vec2CTCTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | config))
    return folder


def test_vocabulary_and_labels_by_hand():
    tokenizer = CTCTokenizer.from_texts(["Cab  a", "\tbA!"], case="lower", remove="!")
    assert tokenizer.vocab == {"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4, "c": 5}
    assert len(tokenizer) == 6
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.word_delimiter_token_id) == (0, 1, 2)
    assert tokenizer.encode(" A!b  caD ") == [3, 4, 2, 5, 3, 1]  # no delimiter at either end
    assert tokenizer.unknown("A d|e!") == {"d", "e"}
    assert tokenizer.encode("<pad>") == [1, 1, 3, 1, 1]  # a text cannot write special tokens
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


@pytest.mark.parametrize(
    ("group", "ids", "text"),
    [
        (True, [3, 3, 0, 3, 3, 4, 4], "aab"),  # a blank keeps double letters apart
        (False, [3, 3, 4], "aab"),  # labels hold them as they are
        (True, [2, 3, 2, 2, 0, 2, 4, 2, 0], "a b"),  # delimiters at the ends and in a row
        (True, [3, 0, 4, 2, 3, -100, -100], "ab a"),  # padding of gathered predictions
        (False, [3, 4, -100], "ab"),
        (True, [0, 0, -100], ""),
        (True, [3, 1, 1], "a<unk>"),
    ],
)
def test_decoding_by_hand(group, ids, text):
    tokenizer = CTCTokenizer.from_texts(["ab"])
    for kind in (list, np.array, torch.tensor):
        assert tokenizer.decode(kind(ids), group=group) == text


def test_labels_outside_the_vocabulary():
    for bad in (5, -1):
        with pytest.raises(InputError, match=f"label {bad} is not in the vocabulary, which has 0 to 4"):
            CTCTokenizer.from_texts(["ab"]).decode([3, bad])


def test_characters_to_remove_are_no_pattern():
    """In a regular expression's brackets `]^-` would close, negate or span."""
    tokenizer = CTCTokenizer.from_texts(["a]b^c-d\\e.f"], remove="]^-\\")
    assert "".join(c for c in tokenizer.vocab if len(c) == 1) == "|.abcdef"
    assert tokenizer.normalize("]^-\\[x]") == "[x"


def test_normalisation_by_hand():
    def normalize(text, **options):
        return CTCTokenizer.from_texts(["a"], form="NFKC", **options).normalize(text)

    assert normalize("e\N{COMBINING ACUTE ACCENT}") == "é"
    assert normalize("\N{FULLWIDTH LATIN CAPITAL LETTER A}\u00a0\u3000b") == "A b"
    assert normalize("a\N{FULLWIDTH COMMA}b", remove=",") == "ab"  # found after NFKC
    assert normalize("a…b", remove="…") == "ab" and normalize("a…b") == "a...b"  # and as it was typed
    assert normalize("don\N{ACUTE ACCENT}t", remove="\N{ACUTE ACCENT}") == "dont"  # NFKC would split the word
    assert normalize("Straße", case="upper") == "STRASSE"
    assert normalize("a|b | c") == "a b c"
    with pytest.raises(InputError, match="case is 'title'; must be keep, lower, upper"):
        normalize("", case="title")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("t\u02b0a", "tha"),  # aspirated: another sound
        ("\u0e19\u0e49\u0e33", "\u0e19\u0e49\u0e4d\u0e32"),  # Thai sara am
        ("\u3131", "\u1100"),  # a jamo by itself
        ("\ufb01", "fi"),
    ],
)
def test_letters_are_kept_apart_unless_asked(text, plain):
    """By NFC; a right answer is right then, also where the vocabulary has such a letter."""
    tokenizer = CTCTokenizer.from_texts([text])
    assert tokenizer.decode(tokenizer.encode(text), group=False) == tokenizer.normalize(text) == text
    assert CTCTokenizer.from_texts([text], form="NFKC").normalize(text) == plain


def test_nobody_says_invisible_characters():
    tokenizer = CTCTokenizer.from_texts(["\ufeffso\u00adft\u200b", "\u0645\u06cc\u200c\u062e"])
    assert tokenizer.normalize("\u200esoft\ufeff \u200b") == "soft"
    assert "\u200b" not in tokenizer.vocab and "\u200c" in tokenizer.vocab  # a joiner changes words
    older = CTCTokenizer({"<pad>": 0, "<unk>": 1, "|": 2, "\u00ad": 3})
    assert older.encode("\u00ad\u200b") == [3]  # but one that was learnt stays


def test_texts_are_replaced():
    tokenizer = CTCTokenizer.from_texts(["don\u2019t [noise] & so"], replace={"\u2019": "'", "[noise]": "", "&": "and"})
    assert tokenizer.normalize("don\u2019t [noise] & so") == "don't and so"
    with pytest.raises(InputError, match="replace: 'a' by 'aa' leaves what is to be replaced"):
        CTCTokenizer.from_texts(["a"], replace={"a": "aa"})
    with pytest.raises(InputError, match="form is 'NFD'; must be NFC, NFKC"):
        CTCTokenizer.from_texts(["a"], form="NFD")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"remove": [".", ","]}, "CTCTokenizer.remove should be str, not "),
        ({"replace": ["a", "b"]}, "CTCTokenizer.replace should be dict"),
        ({"replace": {"a": 3}}, "replace is {'a': 3}; must be texts by texts"),
        ({"case": ["lower"]}, "CTCTokenizer.case should be str, not "),
        ({"pad_token": {"id": 0}}, "CTCTokenizer.pad_token should be str, not {'id': 0}"),
        ({"bos_token": {"id": 0}}, "CTCTokenizer.bos_token should be str | None, not {'id': 0}"),
        ({"unk_token": None}, "CTCTokenizer.unk_token should be str, not None"),
    ],
)
def test_damaged_options_of_tokenizers(tmp_path, entries, message):
    CTCTokenizer.from_texts(["ab"]).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    with pytest.raises(InputError) as caught:
        CTCTokenizer.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: tokenizer_config.json: {message}")


def test_older_files_of_ours_keep_what_they_were_trained_with(tmp_path):
    CTCTokenizer.from_texts(["ab"], replace={"x": "y"}).save_pretrained(tmp_path)
    loaded = CTCTokenizer.from_pretrained(tmp_path)
    assert (loaded.form, loaded.replace) == ("NFC", {"x": "y"})
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    older = {key: value for key, value in config.items() if key not in ("form", "replace")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(older))
    assert CTCTokenizer.from_pretrained(tmp_path).form == "NFKC"  # before there was a choice
    del older["case"]  # and others' files say nothing of it
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(older))
    assert CTCTokenizer.from_pretrained(tmp_path).form == "NFC"


@given(text=st.text(), case=st.sampled_from(["keep", "lower", "upper"]), remove=st.text("]^-\\,.!?'aé", max_size=4))
@example(text="ΐ", case="upper", remove="")
@example(text="İ ẞ ŉ", case="lower", remove="")
@SEEDED
def test_round_trip(text, case, remove):
    """Labels give back the normalised text, the normal form is stable, and nothing in the text is unknown."""
    tokenizer = CTCTokenizer.from_texts([text, "b"], case=case, remove=remove)
    normal = tokenizer.normalize(text)
    labels = tokenizer.encode(text)
    assert tokenizer.decode(labels, group=False) == normal
    assert tokenizer.encode(normal) == labels and tokenizer.unknown(text) == set()
    assert not set(normal) & set(remove)
    blank = [i for label in labels for i in (label, label, 0)]  # a perfect model's output
    assert tokenizer.decode(blank) == normal


def test_size_is_that_of_transformers(ours, theirs):
    """Its own default adds <s> and </s>: two classes that are never trained."""
    assert type(theirs) is transformers.Wav2Vec2CTCTokenizer
    assert len(theirs) == len(ours) and theirs.get_vocab() == ours.vocab
    for name in ("pad", "unk", "word_delimiter"):
        assert getattr(theirs, f"{name}_token_id") == getattr(ours, f"{name}_token_id")
    assert theirs.bos_token is None and theirs.eos_token is None


@given(data=st.data())
@SEEDED
def test_decoding_equals_transformers(ours, theirs, data):
    label = st.integers(0, len(ours) - 1) | st.sampled_from([0, 0, 1, 2, 3])  # blanks, repeats and delimiters abound
    ids = [i for i in data.draw(st.lists(label)) for _ in range(data.draw(st.integers(1, 2)))]
    for group in (True, False):
        expected = " ".join(theirs.decode(ids, group_tokens=group).split())  # it keeps spaces in a row
        assert ours.decode(ids, group=group) == expected
        assert ours.decode([*ids, -100, -100], group=group) == expected  # where it would write <unk>


@given(text=st.text("helo abit's çàé|XYZ\t"))
@SEEDED
def test_encoding_equals_transformers(ours, theirs, text):
    assert ours.encode(text) == theirs(ours.normalize(text)).input_ids


def test_empty_transcripts():
    with pytest.raises(InputError, match="hold no characters"):
        CTCTokenizer.from_texts(["", " ", "..."], remove=".")


def test_tokenizer_files_both_ways(tmp_path, ours, theirs, caplog):
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        ours.save_pretrained(tmp_path / "ours")
        transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    transformers.utils.logging.disable_propagation()
    assert not caplog.records  # our two keys do not bother it
    assert CTCTokenizer.from_pretrained(tmp_path / "ours") == ours
    theirs.save_pretrained(tmp_path / "theirs")
    assert CTCTokenizer.from_pretrained(str(tmp_path / "theirs")) == ours  # they even come back
    small = CTCTokenizer.from_texts(["ab"], case="keep")
    small.save_pretrained(tmp_path / "small")
    assert CTCTokenizer.from_pretrained(tmp_path / "small") == small  # the case is read, not guessed


def test_opens_what_transformers_saved_with_its_defaults(tmp_path):
    """Tokens in brackets, <s> and </s> added after the vocabulary: what its fine-tuning examples leave."""
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "|": 2, "[UNK]": 3, "[PAD]": 4}))
    theirs = transformers.Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", unk_token="[UNK]", pad_token="[PAD]")
    theirs.save_pretrained(tmp_path)
    ours = CTCTokenizer.from_pretrained(tmp_path)
    assert ours.vocab == theirs.get_vocab() and len(ours) == len(theirs) == 7
    assert (ours.pad_token_id, ours.unk_token_id) == (4, 3)
    assert ours.decode([5, 0, 0, 4, 0, 2, 1, 6]) == "aa b"
    ours.save_pretrained(tmp_path / "again")
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "again")) == 7


def test_hub_format(hub, tmp_path):
    ours = CTCTokenizer.from_pretrained(hub)
    theirs = transformers.AutoTokenizer.from_pretrained(hub)
    assert len(ours) == len(theirs) == 32 and ours.pad_token_id == 0 and ours.word_delimiter_token_id == 4
    assert ours.case == "upper"  # else transcripts in small letters would be <unk> throughout
    assert ours.encode("it's a test") == theirs("IT'S A TEST").input_ids and ours.unknown("naïve") == {"Ï"}
    ids = ours.encode("hello")
    assert ours.decode([1, *ids[:3], 0, *ids[3:], 2]) == "HELLO"  # <s> and </s> are not written
    ours.save_pretrained(tmp_path)
    assert CTCTokenizer.from_pretrained(tmp_path) == ours
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize(("letters", "case"), [("ABÉ'", "upper"), ("abé'", "lower"), ("aB", "keep"), ("他们", "keep")])
def test_case_of_a_vocabulary_without_a_note(tmp_path, letters, case):
    vocab = {token: i for i, token in enumerate(["<pad>", "<unk>", "|", *letters])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    token = {"__type": "AddedToken", "content": "<unk>", "lstrip": False}  # as older versions wrote it
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"unk_token": token, "bos_token": None, "eos_token": None})
    )
    tokenizer = CTCTokenizer.from_pretrained(tmp_path)
    assert tokenizer.case == case and tokenizer.vocab == vocab


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (None, "no vocab.json"),
        ({"<pad>": 0, "<unk>": 1, "a": 2}, r"vocab\.json: no '|'"),
        ({"<pad>": 0, "<unk>": 1, "|": 3}, r"vocab\.json: must map 5 tokens to the numbers 0 to 4"),
        ({"eng": {"<pad>": 0}}, r"vocab\.json: must map"),  # several languages
    ],
)
def test_vocabularies_that_do_not_fit(tmp_path, vocab, message):
    if vocab is not None:
        (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(InputError, match=message):
        CTCTokenizer.from_pretrained(tmp_path)


def test_auto_processor_opens_what_both_save(tmp_path, ours, theirs):
    extractor = AudioFeatureExtractor()
    extractor.save_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is transformers.Wav2Vec2Processor
    clips, texts = [tone(seconds=0.02), tone(seconds=0.03, hertz=300)], ["Hello", "a  çà"]
    out = processor(audio=clips, text=[ours.normalize(t) for t in texts], sampling_rate=RATE, padding=True)
    batch = extractor(clips)
    np.testing.assert_array_equal(np.stack(out["input_values"]), batch["input_values"].numpy())
    labels = [ours.encode(t) for t in texts]
    width = max(map(len, labels))
    assert out["labels"] == [row + [ours.pad_token_id] * (width - len(row)) for row in labels]
    predicted = random.Random(0).choices(range(len(ours)), k=50)
    assert processor.batch_decode([predicted])[0].split() == ours.decode(predicted).split()

    processor.save_pretrained(tmp_path / "theirs")
    assert AudioFeatureExtractor.from_pretrained(tmp_path / "theirs") == extractor
    assert CTCTokenizer.from_pretrained(tmp_path / "theirs") == ours


def test_files_that_cannot_seek_are_heard():
    """GSM 6.10, as telephone exchanges record it."""
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(16_000) / 5), 8000, format="WAV", subtype="GSM610")
    whole = load_audio(file.getvalue(), 8000)
    assert len(whole) == audio_info(file.getvalue()).frames == 16_000
    assert np.array_equal(load_audio(file.getvalue(), 8000, part=(0.5, 1.5)), whole[4000:12_000])
