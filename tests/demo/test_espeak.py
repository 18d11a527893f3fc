"""What eSpeak NG says."""

import sys

import numpy as np
import pytest

from d2v.demo import espeak, speech
from d2v.errors import InputError

VOICES = speech.TRAIN_VOICES + speech.TEST_VOICES
VOICES += [f"en-us+{name}" for name in speech.TRAIN_SPEAKERS + speech.TEST_SPEAKERS]


@pytest.fixture(autouse=True)
def needs_espeak():
    pytest.importorskip("espeakng_loader", reason="speech synthesis needs the extra `demo` (espeakng-loader)")


def median_pitch(waveform):
    """Median over 64 ms windows, as loud as the whole, of the frequency at the autocorrelation's peak: 70 to 400 Hz."""
    windows = np.lib.stride_tricks.sliding_window_view(waveform, 1024)[::320]
    windows = windows[windows.std(axis=1) > waveform.std()]
    autocorrelation = np.fft.irfft(np.abs(np.fft.rfft(windows, 2048)) ** 2)[:, 40:229]
    return np.median(espeak.SAMPLE_RATE / (40 + autocorrelation.argmax(axis=1)))


@pytest.mark.parametrize("voice", sorted(set(VOICES)))
def test_speech_is_plausible(voice):
    waveform = espeak.speak("forty two seven", voice, rate=150)
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    assert 3 * 0.3 < len(waveform) / espeak.SAMPLE_RATE < 3 * 0.8  # seconds a word
    loud = np.flatnonzero(np.abs(waveform) > 0.02 * np.abs(waveform).max())
    assert loud[0] / espeak.SAMPLE_RATE < 0.15  # no long silence before
    assert 0.1 < np.abs(waveform).max() < 0.9  # neither silent nor clipped
    assert 0.015 < waveform.std() < 0.2


def test_voices_rate_and_pitch_are_heard():
    text = "one hundred eighty nine"
    man, woman, high = (
        espeak.speak(text, voice, pitch=pitch)
        for voice, pitch in (("en-us+edward", 50), ("en-us+f2", 50), ("en-us+edward", 80))
    )
    assert 80 < median_pitch(man) < 125
    assert 160 < median_pitch(woman) < 240
    assert median_pitch(high) > 1.2 * median_pitch(man)
    slow, quick = (espeak.speak(text, "en-us+edward", rate=rate) for rate in (120, 180))
    assert len(slow) > 1.3 * len(quick)


@pytest.mark.parametrize("voice", ["en-us+nobody", "nowhere", "nowhere+f2"])
def test_unknown_voice_is_an_error(voice):
    espeak.speak("one", "en-us+f2")  # eSpeak NG would go on with the voice it has
    with pytest.raises(InputError, match="^voice: .*" + voice.replace("+", r"\+")):
        espeak.speak("one", voice)


def test_missing_package_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)  # makes its import fail
    espeak.open_espeak.cache_clear()
    for call in (lambda: espeak.speak("one", "en-us"), lambda: speech.number_words(tmp_path)):
        with pytest.raises(InputError, match=r'^[^\n]*pip install -e "\.\[demo\]" in the clone of d2v$'):
            call()
    assert not list(tmp_path.iterdir())
