"""Text as one stream of tokens: nothing lost, every token scored once, masks as BERT draws them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2v.data.language_modeling import cut, masker, pieces, read_stream, training_windows, windows
from d2v.errors import InputError
from d2v.processors.text import Tokenizer

LINES = ["First Citizen:", "Before we proceed any further, hear me speak.", "", "All:", "Speak, speak. Zoë's £5."]
TOKENIZER = Tokenizer.train([line + "\n" for line in LINES] * 3, 290)
BOS, EOS, MASK = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.mask_token_id


def stream(separator: str | None = "\n"):
    return read_stream(pieces(LINES, separator, "train"), TOKENIZER, documents=separator is None)


def words(stream) -> list[str]:
    """The words of a stream, as its `starts` has them."""
    firsts = np.flatnonzero(stream.starts)
    return [TOKENIZER.decode(part, skip_special_tokens=False) for part in np.split(stream.ids, firsts[1:])]


def test_lines_are_one_text():
    text = stream()
    assert (text.ids[0], text.ids[-1]) == (BOS, EOS) and not {BOS, EOS} & set(text.ids[1:-1].tolist())
    assert TOKENIZER.decode(text.ids) == "\n".join(LINES)
    assert text.characters == len("\n".join(LINES))
    found = words(text)
    assert found[:8] == ["<s>", "First", " Citizen", ":", "\n", "Before", " we", " proceed"]
    assert found[-7:] == [".", " Zoë", "'s", " £", "5", ".", "</s>"]


def test_rows_are_documents():
    text, documents = stream(None), [line for line in LINES if line]
    assert (text.ids == BOS).sum() == (text.ids == EOS).sum() == len(documents)
    found = "".join(f"<s>{document}</s>" for document in documents)
    assert TOKENIZER.decode(text.ids, skip_special_tokens=False) == found == "".join(words(text))
    assert text.characters == sum(map(len, documents))


@pytest.mark.parametrize("separator", ["\n", None])
def test_many_rows_are_encoded_as_few(separator, monkeypatch):
    whole = stream(separator)
    monkeypatch.setattr("d2v.data.language_modeling.ROWS", 2)
    parts = stream(separator)
    assert np.array_equal(whole.ids, parts.ids) and np.array_equal(whole.starts, parts.starts)


@pytest.mark.parametrize("separator", ["\n", None])
def test_bad_rows(separator):
    with pytest.raises(InputError, match="train, row 1: None should be text"):
        pieces(["a", None], separator, "train")
    with pytest.raises(InputError, match="train: no row has any text"):
        pieces(["", " "], separator, "train")


def test_windows_by_hand():
    def found(*args) -> list[tuple]:
        return [tuple(window.values()) for window in windows(*args)]

    assert found(10, 4) == [(0, 0, 4), (4, 4, 8), (6, 8, 10)]
    assert found(9, 4, 2) == [(0, 0, 4), (2, 4, 6), (4, 6, 8), (5, 8, 9)]
    assert found(3, 4, 2) == [(0, 0, 3)]
    assert found(10, 4, 5) == found(10, 4)  # a stride beyond the window would leave items out


@given(st.integers(1, 200), st.integers(1, 50), st.data())
def test_every_token_is_scored_once_with_enough_before_it(length, size, data):
    stride = data.draw(st.none() | st.integers(1, 2 * size))
    found = windows(length, size, stride)
    assert [i for window in found for i in range(window["first"], window["end"])] == list(range(length))
    assert all(window["end"] - window["start"] == min(size, length) for window in found)
    if stride:
        assert all(window["first"] - window["start"] >= size - stride for window in found[1:])


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 9))
def test_an_epoch_has_every_token_once_but_for_less_than_a_window(length, size, epoch):
    values, rows = np.arange(length), training_windows(length, size)
    drawn = [cut(values, row | {"draw": (3, epoch, i)}, more=1) for i, row in enumerate(rows)]
    assert all(np.array_equal(block, np.arange(block[0], block[0] + len(block)) % length) for block in drawn)
    inner = np.concatenate([block[:-1] for block in drawn])
    assert len(np.unique(inner)) == len(inner) > length - size
    assert all(len(block) == min(size, length) + 1 for block in drawn)
    again = cut(values, rows[0] | {"draw": (3, epoch, 7)})
    assert np.array_equal(again, drawn[0][:-1])  # the epoch decides where to cut, not the row


def test_epochs_cut_differently():
    row = {"start": 0, "first": 0, "end": 100}
    firsts = [cut(np.arange(1000), row | {"draw": (0, epoch, 0)})[0] for epoch in range(20)]
    assert len(set(firsts)) > 10 and max(firsts) < 100
    assert cut(np.arange(1000), row, more=1).tolist() == list(range(101))  # in evaluation always the same


def masked(share, whole_words, draws):
    mask, text = masker(TOKENIZER, share, whole_words=whole_words), stream()
    return [mask(text.ids, text.starts, draw) for draw in draws]


@pytest.mark.parametrize("whole_words", [False, True])
def test_masks_are_drawn_as_bert_draws_them(whole_words):
    text, drawn = stream(), masked(0.15, whole_words, [(0, i) for i in range(3000)])
    ids = np.concatenate([ids[guessed] for ids, guessed in drawn])
    truth = np.concatenate([text.ids[guessed] for _, guessed in drawn])
    masks, kept = ids == MASK, ids == truth
    assert masks.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    others = ids[~masks & ~kept]
    assert len(set(others)) > 250 and others.min() >= 5  # any token but the five special ones
    for masked_ids, guessed in drawn:
        assert np.array_equal(masked_ids[~guessed], text.ids[~guessed])
        assert not guessed[[0, -1]].any()
    units = len(words(text)) - 2 if whole_words else len(text.ids) - 2
    starts = text.starts if whole_words else np.ones_like(text.starts)
    counts = [(guessed & starts).sum() for _, guessed in drawn]
    assert set(counts) == {int(0.15 * units), int(0.15 * units) + 1}
    assert np.mean(counts) == pytest.approx(0.15 * units, rel=0.01)


def test_whole_words_are_masked_as_a_whole():
    numbers, draws = stream().starts.cumsum(), [(1, i) for i in range(20)]

    def broken(whole_words: bool) -> int:
        """How often a word is masked in part."""
        drawn = masked(0.3, whole_words, draws)
        return sum(len(set(guessed[numbers == word])) == 2 for _, guessed in drawn for word in set(numbers))

    assert broken(True) == 0 < broken(False)


def test_a_mask_is_a_function_of_its_draw():
    (a, _), (b, _), (c, _) = masked(0.15, True, [(0, 1), (0, 1), (0, 2)])
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_a_short_text_has_one_token_to_guess():
    mask, ones = masker(TOKENIZER, 0.15, whole_words=True), np.ones(3, dtype=bool)
    (encoding,) = TOKENIZER(["a"])
    assert mask(np.array(encoding.ids), ones, (0,))[1].tolist() == [False, True, False]
    assert not mask(np.array([BOS, EOS]), ones[:2], (0,))[1].any()
