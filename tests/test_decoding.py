"""Greedy CTC decoding and the times of words."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.decoding import greedy, words_with_times
from d2v.processors.audio import CTCTokenizer

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
