"""Greedy CTC decoding, the times of words, and long recordings in windows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.decode.ctc import greedy, words_with_times
from d2v.decode.windows import windowed_logits, windows
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.processors.ctc import CTCTokenizer
from tests.tiny import TINY_AUDIO

TOKENS = {"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4, "c": 5}
TOKENIZER = CTCTokenizer(TOKENS)


def frames(text):
    """`_` is the blank, `|` the delimiter."""
    return [TOKENS["<pad>" if character == "_" else character] for character in text]


def test_greedy_stops_at_the_length():
    best = torch.tensor([[3, 3, 0, 4, 5], [5, 5, 5, 5, 5], [0, 1, 2, 3, 4]])
    logits = F.one_hot(best, 6).float() - 0.5
    assert greedy(logits, torch.tensor([4, 1, 5])) == [[3, 3, 0, 4], [5], [0, 1, 2, 3, 4]]
    logits[:, 4:] = torch.nan  # what is behind a row's length is not looked at
    assert greedy(logits, torch.tensor([4, 1, 0])) == [[3, 3, 0, 4], [5], []]


def test_decoding_by_hand():
    row = frames("__aa_abb||_c_|_|c_")
    assert TOKENIZER.decode(row) == "aab c c"
    assert words_with_times(row, TOKENIZER, 0.02) == [
        {"word": "aab", "start": 0.04, "end": 0.16},  # frames 2 to 7
        {"word": "c", "start": 0.22, "end": 0.24},
        {"word": "c", "start": 0.32, "end": 0.34},
    ]


def test_repeats_are_one_before_blanks_vanish():
    """Decoders that drop the blanks first, such as Hugging Face's with skip_special_tokens, hear one "a" here."""
    assert TOKENIZER.decode(frames("aa_a|b")) == "aa b"


@pytest.mark.parametrize("text", ["", "____", "|", "_|_||_"])
def test_silence_has_no_words(text):
    assert words_with_times(frames(text), TOKENIZER, 0.02) == []


def test_a_word_may_fill_the_clip():
    assert words_with_times(frames("abc"), TOKENIZER, 0.5) == [{"word": "abc", "start": 0.0, "end": 1.5}]
    assert words_with_times([1, 1], TOKENIZER, 0.5) == [{"word": "<unk>", "start": 0.0, "end": 1.0}]


@given(st.lists(st.integers(0, 5), max_size=30))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_words_are_those_of_the_text_and_their_times_ascend(row):
    words = words_with_times(row, TOKENIZER, 1.0)
    assert " ".join(word["word"] for word in words) == TOKENIZER.decode(row)
    times = [time for word in words for time in (word["start"], word["end"])]
    assert times == sorted(times) and all(word["start"] < word["end"] for word in words)
    assert not times or (times[0] >= 0 and times[-1] <= len(row))
    # A word's first and last frames are its first and last characters, and decode alone to that word.
    for word in words:
        part = row[int(word["start"]) : int(word["end"])]
        assert TOKENIZER.decode(part) == word["word"]
        assert part[0] not in (0, 2) and part[-1] not in (0, 2)


@given(st.integers(1, 300), st.integers(1, 60), st.integers(0, 29))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_windows_keep_every_frame_once_and_nearest_a_centre(frames, length, stride):
    stride = min(stride, (length - 1) // 2)
    cuts = windows(frames, length, stride)
    assert [frame for _, start, end in cuts for frame in range(start, end)] == list(range(frames))
    if frames <= length:
        assert cuts == [(0, 0, frames)]
        return
    centres = [first + (length - 1) / 2 for first, *_ in cuts]
    for centre, (first, start, end) in zip(centres, cuts, strict=True):
        assert 0 <= first <= start < end <= first + length <= frames
        assert start == 0 or start >= first + stride
        assert end == frames or end <= first + length - stride
        for frame in range(start, end):
            assert abs(frame - centre) == min(abs(frame - other) for other in centres)


def test_windows_by_hand():
    # 20 frames in windows of 10: of each, 2 frames at an inner end are context.
    assert windows(20, 10, 2) == [(0, 0, 8), (6, 8, 13), (10, 13, 20)]


def model_with(layers):
    torch.manual_seed(0)
    config = Data2VecAudioConfig(**TINY_AUDIO | {"num_hidden_layers": layers}, vocab_size=6)
    return Data2VecAudioForCTC(config).eval()


@torch.no_grad()
def test_windows_equal_the_whole_where_the_model_looks_no_farther_than_their_context():
    """Without attention a frame sees 18 frames on either side: two positional convolutions over 19 each."""
    model, recording = model_with(0), np.random.default_rng(0).normal(size=90_123).astype(np.float32)
    whole = model(torch.from_numpy(recording)[None]).logits
    for context, equal in ((18, True), (9, False)):
        hear = windowed_logits(model.config, 16_000, 1.0, context * 0.02, 1.0)
        logits, frames = hear(model, [recording])
        assert logits.shape == whole.shape and frames.tolist() == [whole.shape[1]]
        assert torch.allclose(logits, whole, atol=1e-5) == equal


@torch.no_grad()
def test_what_a_model_hears_at_once_does_not_grow_with_the_recording():
    model, random, heard = model_with(1), np.random.default_rng(0), []
    model.register_forward_pre_hook(lambda _, args: heard.append(tuple(args[0].shape)))
    hear = windowed_logits(model.config, 16_000, 0.5, None, 1.5)
    for seconds in (0.3, 2, 8):
        hear(model, [random.normal(size=int(16_000 * seconds)).astype(np.float32)])
    window = 23 * 320 + 400  # half a second holds 24 frames
    assert heard[0] == (1, 4800)  # shorter than a window, as it is
    assert heard[1] == (3, window) and {samples for _, samples in heard[1:]} == {window}
    assert max(rows for rows, _ in heard) == 3


@torch.no_grad()
def test_recordings_of_several_lengths():
    model, random = model_with(1), np.random.default_rng(0)
    clips = [random.normal(size=size).astype(np.float32) for size in (9000, 400, 40_000, 8000)]
    hear = windowed_logits(model.config, 16_000, 0.5, 0.1, 10)
    logits, frames = hear(model, clips)
    assert frames.tolist() == [model.config.frames(len(clip)) for clip in clips]
    for row, length, clip in zip(logits, frames, clips, strict=True):
        alone, _ = hear(model, [clip])
        assert torch.allclose(row[:length], alone[0], atol=1e-6) and not row[length:].any()
    short = model(torch.from_numpy(clips[3])[None]).logits[0]
    assert torch.equal(hear(model, [clips[3]])[0][0], short)


@pytest.mark.parametrize(
    ("chunk", "stride", "changes", "message"),
    [
        (0.02, None, {}, "chunk_seconds 0.02 should be at least 0.025"),
        (0.0, None, {}, "chunk_seconds 0 should be"),
        (-1.0, None, {}, "chunk_seconds -1 should be"),
        (1.0, 0.5, {}, "stride_seconds from 0 to less than half of it"),
        (1.0, -0.1, {}, "stride_seconds from 0"),
        (1.0, None, {"add_adapter": True}, "chunk_seconds is for models without adapters"),
    ],
)
def test_windows_that_cannot_be_are_named(chunk, stride, changes, message):
    with pytest.raises(InputError, match=message):
        windowed_logits(Data2VecAudioConfig(**changes), 16_000, chunk, stride, 10)
    windowed_logits(Data2VecAudioConfig(), 16_000, 1.0, 0.0, 10)  # letters need no neighbours
