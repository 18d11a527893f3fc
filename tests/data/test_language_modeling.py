"""Text as one stream of tokens: nothing lost, every token scored once, masks as BERT draws them."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2v.data.language_modeling import (
    LanguageData,
    cut,
    encode_prompts,
    gap_batch,
    gap_rows,
    masker,
    pieces,
    prompt_batch,
    prompt_rows,
    read_stream,
    stream_rows,
    training_windows,
    windows,
)
from d2v.errors import InputError
from d2v.losses import IGNORE
from d2v.processors.text import Tokenizer
from tests.helpers import make_job, make_split

LINES = ["First Citizen:", "Before we proceed any further, hear me speak.", "", "All:", "Speak, speak. Zoë's £5."]
TOKENIZER = Tokenizer.train([line + "\n" for line in LINES] * 3, 290)
BOS, EOS, MASK = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.mask_token_id


def cut_rows(texts: list, separator: str | None) -> list[str]:
    return list(pieces(make_job(LanguageData(separator=separator)), make_split(text=texts)))


def stream(separator: str | None = "\n"):
    return read_stream(cut_rows(LINES, separator), TOKENIZER, documents=separator is None)


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
    monkeypatch.setattr("d2v.data.running_text.CHUNK", 2)
    parts = stream(separator)
    assert np.array_equal(whole.ids, parts.ids) and np.array_equal(whole.starts, parts.starts)


@pytest.mark.parametrize("separator", ["\n", None])
def test_bad_rows(separator):
    with pytest.raises(InputError, match="train, row 1: text is None; should be text"):
        cut_rows(["a", None], separator)
    with pytest.raises(InputError, match="train: no row has any text"):
        cut_rows(["", " "], separator)


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
    found = list(windows(length, size, stride))
    assert len(found) == len(windows(length, size, stride))
    assert [i for window in found for i in range(window["first"], window["end"])] == list(range(length))
    assert all(window["end"] - window["start"] == min(size, length) for window in found)
    if stride:
        assert all(window["first"] - window["start"] >= size - stride for window in found[1:])


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 9))
def test_an_epoch_has_every_token_once_but_for_less_than_a_window(length, size, epoch):
    values, rows = np.arange(length), training_windows(length, size)
    cases = [cut(values, row | {"seed": (3, epoch, i)}, more=1) for i, row in enumerate(rows)]
    assert all(np.array_equal(block, np.arange(block[0], block[0] + len(block)) % length) for block in cases)
    inner = np.concatenate([block[:-1] for block in cases])
    assert len(np.unique(inner)) == len(inner) > length - size
    assert all(len(block) == min(size, length) + 1 for block in cases)
    again = cut(values, rows[0] | {"seed": (3, epoch, 7)})
    assert np.array_equal(again, cases[0][:-1])  # the epoch decides where to cut, not the row


def test_a_million_windows_take_no_memory():
    rows = stream_rows(make_split("train", text=LINES), 512 * 10**6, 512)
    assert len(rows) == 10**6 and len(pickle.dumps(rows.items)) < 200
    assert rows[10**6 - 1] == {"start": 512 * (10**6 - 1), "first": 512 * (10**6 - 1), "end": 512 * 10**6}
    with pytest.raises(IndexError):
        rows.items[10**6]


def test_epochs_cut_differently():
    row = {"start": 0, "first": 0, "end": 100}
    firsts = [cut(np.arange(1000), row | {"seed": (0, epoch, 0)})[0] for epoch in range(20)]
    assert len(set(firsts)) > 10 and max(firsts) < 100
    assert cut(np.arange(1000), row, more=1).tolist() == list(range(101))  # in evaluation always the same


def test_windows_as_rows():
    rows = stream_rows(make_split("test", text=LINES), 10, 4, stride=2, special=2, ahead=1)
    assert rows.items == windows(9, 4, 2) and rows.ids == ["0", "1", "2", "3"] and rows.lengths == [6] * 4
    rows = stream_rows(make_split("train", text=LINES), 10, 4, ahead=1)
    assert rows.items == training_windows(10, 4) == windows(8, 4) and rows.lengths == [4, 4]


def masked(share, whole_words, seeds):
    mask, text = masker(TOKENIZER, share, whole_words=whole_words), stream()
    return [mask(text.ids, text.starts, seed) for seed in seeds]


@pytest.mark.parametrize("whole_words", [False, True])
def test_masks_are_sampled_as_bert_samples_them(whole_words):
    text, cases = stream(), masked(0.15, whole_words, [(0, i) for i in range(3000)])
    ids = np.concatenate([ids[guessed] for ids, guessed in cases])
    truth = np.concatenate([text.ids[guessed] for _, guessed in cases])
    masks, kept = ids == MASK, ids == truth
    assert masks.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    others = ids[~masks & ~kept]
    assert len(set(others)) > 250 and others.min() >= 5  # any token but the five special ones
    for masked_ids, guessed in cases:
        assert np.array_equal(masked_ids[~guessed], text.ids[~guessed])
        assert not guessed[[0, -1]].any()
    units = len(words(text)) - 2 if whole_words else len(text.ids) - 2
    starts = text.starts if whole_words else np.ones_like(text.starts)
    counts = [(guessed & starts).sum() for _, guessed in cases]
    assert set(counts) == {int(0.15 * units), int(0.15 * units) + 1}
    assert np.mean(counts) == pytest.approx(0.15 * units, rel=0.01)


def test_whole_words_are_masked_as_a_whole():
    numbers, seeds = stream().starts.cumsum(), [(1, i) for i in range(20)]

    def broken(whole_words: bool) -> int:
        """How often a word is masked in part."""
        cases = masked(0.3, whole_words, seeds)
        return sum(len(set(guessed[numbers == word])) == 2 for _, guessed in cases for word in set(numbers))

    assert broken(True) == 0 < broken(False)


def test_a_mask_is_a_function_of_its_seed():
    (a, _), (b, _), (c, _) = masked(0.15, True, [(0, 1), (0, 1), (0, 2)])
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_a_short_text_has_one_token_to_guess():
    mask, ones = masker(TOKENIZER, 0.15, whole_words=True), np.ones(3, dtype=bool)
    (encoding,) = TOKENIZER(["a"])
    assert mask(np.array(encoding.ids), ones, (0,))[1].tolist() == [False, True, False]
    assert not mask(np.array([BOS, EOS]), ones[:2], (0,))[1].any()


def test_prompts_have_no_end_and_of_long_ones_the_end_is_read(capsys):
    texts = ["First", "", "All: Speak, speak. All: Speak, speak."]
    whole = [encoding.ids[:-1] for encoding in TOKENIZER(texts)]
    assert encode_prompts(TOKENIZER, texts, 100) == (whole, 0) and whole[1] == [BOS]
    assert capsys.readouterr().out == ""
    rows = prompt_rows(
        make_job(LanguageData()), make_split("test", id=["a", "b", "c"], text=texts), "text", TOKENIZER, 3, new=7
    )
    assert [row["ids"] for row in rows.items] == [ids[-3:] for ids in whole] and rows.ids == ["a", "b", "c"]
    assert rows.lengths == [len(row["ids"]) + 7 for row in rows.items]
    longer = sum(len(ids) > 3 for ids in whole)
    assert capsys.readouterr().out == f"test: of {longer} of 3 prompts only the last 3 tokens are read\n"
    batch = prompt_batch([rows[0], rows[2]], tokenizer=TOKENIZER)
    assert batch["prompts"] == [texts[0], texts[2]] and batch["lengths"] == batch["attention_mask"].sum(1).tolist()
    with pytest.raises(InputError, match="test, row 1: text is None; should be text"):
        prompt_rows(make_job(LanguageData()), make_split("test", text=["a", None]), "text", TOKENIZER, 3, 7)


def test_gaps_are_where_labels_are_not_ignored():
    split = make_split("test", text=["First<mask>", "<mask> we<mask> any further"])
    rows = gap_rows(make_job(LanguageData()), split, "text", TOKENIZER, 20)
    batch = gap_batch([rows[0], rows[1]], tokenizer=TOKENIZER)
    assert batch["texts"] == split.column("text") and batch["size"] == sum(rows.lengths)
    assert ((batch["labels"] != IGNORE) == (batch["input_ids"] == MASK)).all()
    assert (batch["labels"] != IGNORE).sum(1).tolist() == [1, 2]
    with pytest.raises(InputError, match="test, row 1: has no <mask> to fill"):
        gap_rows(make_job(LanguageData()), make_split("test", text=["a<mask>", "a"]), "text", TOKENIZER, 20)


def test_a_character_is_a_word_where_there_are_no_spaces():
    """Whole-word masking would hide all of a Chinese sentence at once; all bytes of a character are one word."""
    texts = ["\u4eca\u5929 we \u597d.", "two words"]
    read = read_stream(texts, TOKENIZER, documents=True)
    encodings = TOKENIZER(texts)
    starts = np.split(read.starts, [len(encodings[0].ids)])
    words, current = [], []
    for token, start in zip(encodings[0].ids[1:-1], starts[0][1:-1], strict=True):
        if start:
            current = []
            words.append(current)
        current.append(token)
    assert [TOKENIZER.decode(word) for word in words] == ["\u4eca", "\u5929", " we", " \u597d", "."]
    assert starts[1].sum() == 2 + 2  # the words, <s> and </s>, as ever


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("size", "special"), [(0, 2), (-1, 2), (0, 0)])
def test_windows_without_room_are_refused(split, size, special):
    with pytest.raises(InputError, match=rf"data.max_length is {size + special}; should be at least {special + 1}"):
        stream_rows(make_split(split, text=["a"]), 10, size, special=special)


@pytest.mark.parametrize("separator", [None, "\n"])
def test_the_tokens_of_a_long_text_are_kept_in_files(separator, tmp_path, monkeypatch, capsys):
    """A second start encodes nothing, and no process holds them; another tokenizer, text or share is encoded."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    split, job = make_split(text=LINES * 500), make_job(LanguageData(separator=separator))
    calls, encode = [], Tokenizer.__call__
    monkeypatch.setattr(Tokenizer, "__call__", lambda *args, **options: calls.append(1) or encode(*args, **options))

    def read(split=split, tokenizer=TOKENIZER):
        calls.clear()
        return read_stream(pieces(job, split), tokenizer, documents=separator is None)

    whole = read()
    monkeypatch.setattr("d2v.data.running_text.LONG", 0)
    kept = read()
    assert calls and "train: making tokens of 0 MB of text, which are kept" in capsys.readouterr().out
    again = read()
    assert not calls and not capsys.readouterr().out
    for stream in (kept, again, pickle.loads(pickle.dumps(again))):
        assert stream.ids.dtype == np.uint16 and isinstance(stream.ids, np.memmap)
        assert (stream.ids == whole.ids).all() and (stream.starts == whole.starts).all()
        assert stream.characters == whole.characters
        row = {"start": 3, "end": 40, "first": 3, "seed": (0, 1, 2)}
        assert cut(stream.ids, row).dtype == np.int32 and (cut(stream.ids, row) == cut(whole.ids, row)).all()
    assert len(pickle.dumps(kept)) < 1000
    for other in ({"split": split.select(np.arange(2000))}, {"tokenizer": Tokenizer.train(LINES, 280)}):
        assert len(read(**other).ids) != len(kept.ids) and calls
    size = sum(path.stat().st_size for path in (tmp_path / "d2v").iterdir())
    assert size < 4 * 3 * len(kept.ids)  # of three texts
