"""Text as one stream of tokens: nothing lost, every token scored once, masks as BERT draws them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2v.data.language import blocks, drawn_block, masker, read_stream, windows
from d2v.errors import InputError
from d2v.processors.text import Tokenizer

LINES = ["First Citizen:", "Before we proceed any further, hear me speak.", "", "All:", "Speak, speak. Zoë's £5."]
TOKENIZER = Tokenizer.train([line + "\n" for line in LINES] * 3, 330)
BOS, EOS = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id


def words(stream) -> list[str]:
    """The words of a stream, as its `starts` has them."""
    firsts = np.flatnonzero(stream.starts)
    return [TOKENIZER.decode(part, skip_special_tokens=False) for part in np.split(stream.ids, firsts[1:])]


def test_lines_are_one_text():
    stream = read_stream(LINES, TOKENIZER, "\n", "train")
    assert (stream.ids[0], stream.ids[-1]) == (BOS, EOS) and not {BOS, EOS} & set(stream.ids[1:-1].tolist())
    assert TOKENIZER.decode(stream.ids) == "\n".join(LINES)
    assert stream.characters == len("\n".join(LINES))
    assert words(stream)[:8] == ["<s>", "First", " Citizen", ":", "\n", "Before", " we", " proceed"]
    assert (
        words(stream)[-7:] == [" speak", ".", " Zoë", "'s", " £", "5", "."] + ["</s>"] * 0
        or words(stream)[-1] == "</s>"
    )


def test_rows_are_documents():
    stream = read_stream(LINES, TOKENIZER, None, "train")
    documents = [line for line in LINES if line]
    assert (stream.ids == BOS).sum() == (stream.ids == EOS).sum() == len(documents)
    found = "".join(f"<s>{text}</s>" for text in documents)
    assert TOKENIZER.decode(stream.ids, skip_special_tokens=False) == found == "".join(words(stream))
    assert stream.characters == sum(map(len, documents))


def test_many_rows_are_encoded_as_few(monkeypatch):
    whole = read_stream(LINES, TOKENIZER, "\n", "train")
    monkeypatch.setattr("d2v.data.language.ROWS", 2)
    parts = read_stream(LINES, TOKENIZER, "\n", "train")
    assert np.array_equal(whole.ids, parts.ids) and np.array_equal(whole.starts, parts.starts)


@pytest.mark.parametrize("separator", ["\n", None])
def test_bad_rows(separator):
    with pytest.raises(InputError, match="train, row 1: None should be text"):
        read_stream(["a", None], TOKENIZER, separator, "train")
    with pytest.raises(InputError, match="train: no row has any text"):
        read_stream(["", " "], TOKENIZER, separator, "train")


def test_windows_by_hand():
    assert [tuple(window.values()) for window in windows(10, 4)] == [(0, 0, 4), (4, 4, 8), (6, 8, 10)]
    assert [tuple(w.values()) for w in windows(9, 4, 2)] == [(0, 0, 4), (2, 4, 6), (4, 6, 8), (5, 8, 9)]
    assert [tuple(window.values()) for window in windows(3, 4, 2)] == [(0, 0, 3)]


@given(st.integers(1, 200), st.integers(1, 50), st.data())
def test_every_token_is_scored_once_with_enough_before_it(length, size, data):
    stride = data.draw(st.none() | st.integers(1, size))
    found = windows(length, size, stride)
    assert [i for window in found for i in range(window["first"], window["end"])] == list(range(length))
    assert all(window["end"] - window["start"] == min(size, length) for window in found)
    if stride:
        assert all(window["first"] - window["start"] >= size - stride for window in found[1:])


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 9))
def test_blocks_of_an_epoch_are_other_parts_of_the_text(length, size, epoch):
    values, rows = np.arange(length), blocks(length, size)
    drawn = [drawn_block(values, row | {"draw": (3, epoch, i)}, size, more=1) for i, row in enumerate(rows)]
    assert all(np.array_equal(block, np.arange(block[0], block[0] + size + 1) % length) for block in drawn)
    inner = np.concatenate([block[:-1] for block in drawn])
    if length >= size:
        assert len(np.unique(inner)) == len(inner) > length - size  # nothing twice, less than a block left out
    again = drawn_block(values, rows[0] | {"draw": (3, epoch, 7)}, size)
    assert np.array_equal(again, drawn[0][:-1])  # the epoch decides where to cut, not the row


def test_epochs_cut_differently():
    firsts = [drawn_block(np.arange(1000), {"block": 0, "draw": (0, epoch, 0)}, 100)[0] for epoch in range(20)]
    assert len(set(firsts)) > 10 and max(firsts) < 100


def masked(share, whole_words, draws, stream):
    mask = masker(TOKENIZER, share, whole_words=whole_words)
    return [mask(stream.ids, stream.starts, draw) for draw in draws]


@pytest.mark.parametrize("whole_words", [False, True])
def test_masks_are_drawn_as_bert_draws_them(whole_words):
    stream = read_stream(LINES, TOKENIZER, "\n", "train")
    drawn = masked(0.15, whole_words, [(0, i) for i in range(2000)], stream)
    ids = np.concatenate([ids[guessed] for ids, guessed in drawn])
    truth = np.concatenate([stream.ids[guessed] for _, guessed in drawn])
    masks, kept = ids == TOKENIZER.mask_token_id, ids == truth
    assert masks.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)  # and the odd one drawn by chance
    drawn_ids = ids[~masks & ~kept]
    assert len(set(drawn_ids)) > 250 and drawn_ids.min() >= 5  # any token but the five special ones
    for masked_ids, guessed in drawn:
        assert np.array_equal(masked_ids[~guessed], stream.ids[~guessed])
        assert not guessed[[0, -1]].any()
    units = len(words(stream)) - 2 if whole_words else len(stream.ids) - 2
    starts = stream.starts if whole_words else np.ones_like(stream.starts)
    counts = [(guessed & starts).sum() for _, guessed in drawn]
    assert set(counts) == {int(0.15 * units), int(0.15 * units) + 1}
    assert np.mean(counts) == pytest.approx(0.15 * units, rel=0.01)


def test_whole_words_are_masked_as_a_whole():
    stream = read_stream(LINES, TOKENIZER, "\n", "train")
    numbers = stream.starts.cumsum()
    (_, guessed), (_, single) = (masked(0.3, whole, [(1, 2)], stream)[0] for whole in (True, False))
    assert all(len(set(guessed[numbers == word])) == 1 for word in numbers)
    assert any(len(set(single[numbers == word])) == 2 for word in numbers)


def test_a_mask_is_a_function_of_its_draw():
    stream = read_stream(LINES, TOKENIZER, "\n", "train")
    (a, _), (b, _), (c, _) = masked(0.15, True, [(0, 1), (0, 1), (0, 2)], stream)
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_a_short_text_has_one_token_to_guess():
    mask = masker(TOKENIZER, 0.15, whole_words=True)
    (encoding,) = TOKENIZER(["a"])
    _, guessed = mask(np.array(encoding.ids), np.array([True, True, True]), (0,))
    assert guessed.tolist() == [False, True, False]
    _, guessed = mask(np.array([BOS, EOS]), np.array([True, True]), (0,))
    assert not guessed.any()
