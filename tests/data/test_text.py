"""Splits as tokens, and which tokenizer and model a run starts from."""

import pickle

import numpy as np
import pytest
import torch

from d2v.data.labels import Labels
from d2v.data.multiple_choice import ChoiceData, choice_rows
from d2v.data.question_answering import QuestionData, question_rows
from d2v.data.text import TextData, all_texts, text_rows, token_batch, tokenizer_for
from d2v.data.token_classification import TokenData, word_rows
from d2v.decode.text_classification import join_windows
from d2v.errors import InputError
from d2v.processors.text import Tokenizer
from tests.helpers import make_job, make_split, tiny_reader
from tests.tiny import sentences

TEXTS = sentences(40, seed=1)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300)


def rows(name="train", **columns):
    return make_split(name, **columns)


def encode_texts(tokenizer, split, columns, max_length):
    return [row["ids"] for row in text_rows(make_job(TextData()), tokenizer, split, columns, max_length).items]


def test_rows_are_encoded_as_the_tokenizer_does(tokenizer):
    found = encode_texts(tokenizer, rows(text=TEXTS), ["text"], 100)
    assert [ids.tolist() for ids in found] == [encoding.ids for encoding in tokenizer(TEXTS)]
    found = encode_texts(tokenizer, rows(b=TEXTS, a=TEXTS[::-1]), ["a", "b"], 100)
    assert [ids.tolist() for ids in found] == [encoding.ids for encoding in tokenizer(TEXTS[::-1], TEXTS)]


def test_many_rows_keep_their_order(tokenizer):
    texts = [f"the cat {i}" for i in range(2100)]  # more than are encoded at once
    found = encode_texts(tokenizer, rows(text=texts), ["text"], 20)
    assert [tokenizer.decode(found[i]) for i in (0, 999, 1000, 2099)] == [texts[i] for i in (0, 999, 1000, 2099)]


def test_what_is_cut_is_counted(tokenizer, capsys):
    texts = ["the cat", TEXTS[0], "the dog", TEXTS[1]]
    found = encode_texts(tokenizer, rows("validation", text=texts), ["text"], 5)
    whole = tokenizer(texts)
    assert capsys.readouterr().out == "validation: 2 of 4 texts cut to 5 tokens\n"
    assert list(map(len, found)) == [min(len(encoding), 5) for encoding in whole]
    assert all(ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id for ids in found)
    encode_texts(tokenizer, rows("validation", text=texts), ["text"], 100)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": ["x", None]}, "train, row 1: a is None; should be text"),
        ({"a": ["x", " \n"]}, "train, row 1: a is empty; should be text"),
        ({"a": [1, 2]}, "train, row 0: a is 1; should be text; 2 such rows of 2"),
        ({"a": ["x", ""], "b": ["y", " "]}, "train, row 1: a and b are empty; should be text"),
    ],
)
def test_a_row_without_text_is_named(tokenizer, columns, message):
    with pytest.raises(InputError) as error:
        encode_texts(tokenizer, rows(**columns), list(columns), 9)
    assert str(error.value) == f"{message} (--data.bad_rows skip leaves such rows out)"


def test_a_side_of_a_pair_may_be_empty(tokenizer):
    (ids,) = encode_texts(tokenizer, rows(a=["the cat"], b=[""]), ["a", "b"], 20)
    assert ids.tolist() == tokenizer(["the cat"], [""])[0].ids


def test_a_late_row_is_named_by_its_number(tokenizer):
    with pytest.raises(InputError, match="^train, row 1001: a is None"):
        encode_texts(tokenizer, rows(a=["x"] * 1001 + [None]), ["a"], 9)


def test_texts_of_several_columns():
    assert list(all_texts(rows(a=["x", None], b=["y", "z"]), ["a", "b"])) == ["x", "y", "z"]


def test_a_tokenizer_is_the_checkpoints_or_new(tmp_path):
    folder = str(tiny_reader(tmp_path))

    def refuse():
        raise AssertionError

    with_model, without = (make_job(TextData(vocab_size=280), model=model) for model in (folder, None))
    assert tokenizer_for(with_model, refuse).vocab == Tokenizer.from_pretrained(folder).vocab
    new = tokenizer_for(without, lambda: iter(TEXTS))
    assert len(new) == 280 and not new.add_prefix_space
    assert tokenizer_for(without, lambda: iter(TEXTS), add_prefix_space=True).add_prefix_space
    assert tokenizer_for(with_model, refuse, add_prefix_space=True).add_prefix_space


def test_tokens_are_added_in_training(tmp_path):
    folder = str(tiny_reader(tmp_path))
    job = make_job(TextData(add_tokens=["<user>", "the"]), model=folder)
    plain = Tokenizer.from_pretrained(folder)
    assert "the" in plain.vocab
    added = tokenizer_for(job, list)
    assert len(added) == len(plain) + 1 and added.vocab["<user>"] == len(plain)
    assert [fact["tokens"] for fact in job.facts] == [["<user>"]]
    (encoding,) = added(["a<user>b"])
    assert encoding.ids[2] == len(plain) and added.decode(encoding.ids) == "a<user>b"
    added.save_pretrained(tmp_path / "saved")
    assert Tokenizer.from_pretrained(tmp_path / "saved").vocab == added.vocab
    evaluate = make_job(TextData(add_tokens=["<user>"]), "evaluate", model=folder)
    assert len(tokenizer_for(evaluate, list)) == len(plain)
    new = tokenizer_for(make_job(TextData(vocab_size=280, add_tokens=["<user>"])), lambda: iter(TEXTS))
    assert new.vocab["<user>"] == 280
    with pytest.raises(InputError, match="add_tokens: ' ' should not be blank"):
        new.add_tokens([" "])


def test_rows_know_their_tokens(tokenizer):
    split = rows(text=TEXTS[:3], id=["x", "y", "z"]).select([2, 0])
    made = text_rows(make_job(TextData()), tokenizer, split, ["text"], 100, references=["b", "a"])
    assert made.ids == ["z", "x"] and made.lengths == [len(row["ids"]) for row in made.items]
    assert made[1]["reference"] == "a" and made[1]["ids"].tolist() == tokenizer(TEXTS[:1])[0].ids
    batch = token_batch(tokenizer, [row["ids"] for row in made.items])
    assert batch["lengths"] == batch["attention_mask"].sum(1).tolist() and batch["size"] == sum(made.lengths)


def test_rows_that_cannot_be_used_are_left_out(tokenizer):
    """A text or a reference: what is left keeps its ids, its references and its places in the file."""
    job, split = make_job(TextData(bad_rows="skip")), rows(text=["the cat", None, TEXTS[0], " ", "the dog"])
    made = text_rows(job, tokenizer, split, ["text"], 100, ["a", "b", "?", "c", "b"], {"?": "no class"}.get)
    assert (made.ids, made.references, made.split.where(1)) == (["0", "4"], ["a", "b"], "train, row 4")
    assert made.items[1]["ids"].tolist() == tokenizer(["the dog"])[0].ids
    (fact,) = job.facts
    assert (fact["rows"], fact["of"], fact["first"]) == (3, 5, "train, row 1: text is None; should be text")


def test_lengths_are_positive():
    with pytest.raises(InputError, match="data.batch_tokens should be at least 1, not 0"):
        TextData(batch_tokens=0)


def test_tokens_are_kept(tokenizer, tmp_path, monkeypatch, capsys):
    """A second start encodes nothing, whatever share is held out; another length, text or tokenizer is encoded."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("d2v.data.cache.WORTH", 30)
    calls, encode = [], Tokenizer.__call__
    monkeypatch.setattr(Tokenizer, "__call__", lambda *args, **options: calls.append(1) or encode(*args, **options))
    expected = [encoding.ids for encoding in encode(tokenizer, TEXTS)]

    def found(split, length=100, tokenizer=tokenizer):
        done = len(calls)
        rows = text_rows(make_job(TextData()), tokenizer, split, ["text"], length)
        assert rows.lengths == [len(item["ids"]) for item in rows.items]
        rows = pickle.loads(pickle.dumps(rows))  # for workers that are not forked
        return [item["ids"].tolist() for item in rows.items], len(calls) - done

    whole = rows(text=TEXTS)
    assert found(whole) == (expected, 1) and "making tokens of 40 rows, which are kept" in capsys.readouterr().out
    assert found(whole) == (expected, 0) and capsys.readouterr().out == ""
    order = np.random.default_rng(0).permutation(40)[:30]
    assert found(whole.select(order)) == ([expected[i] for i in order], 0)
    assert found(whole, 5) == ([encoding.ids for encoding in encode(tokenizer, TEXTS, max_length=5)], 1)
    assert found(rows(text=[*TEXTS[1:], "other"]))[1] == 1
    assert found(whole, tokenizer=Tokenizer.train(TEXTS, 280))[1] == 1
    assert found(whole.select(np.arange(12)))[1] == 1  # few rows are not kept, and not all of the table is encoded


CONTEXTS = [" ".join(TEXTS[i : i + 1 + i % 4]) for i in range(40)]
OF_TASKS = {
    "questions": (
        QuestionData(stride=2),
        {"question": [f" {text}?" for text in TEXTS], "context": CONTEXTS},
        lambda job, split, tokenizer: question_rows(job, split, tokenizer, 20),
    ),
    "choices": (
        ChoiceData(),
        {"prompt": TEXTS},
        lambda job, split, tokenizer: choice_rows(
            job, split, [{"prompt": text, "choices": [text, "a", "b"][: 2 + i % 2]} for i, text in enumerate(TEXTS)],
            None, tokenizer, 9,
        ),
    ),
    "words": (
        TokenData(stride=2),
        {"tokens": [text.split() for text in CONTEXTS]},
        lambda job, split, tokenizer: word_rows(
            job, split, split.column("tokens"), None, Labels(["a", "b"], "single_label"), tokenizer, 9
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", OF_TASKS)
def test_tokens_of_other_tasks_are_kept(task, tmp_path, monkeypatch, capsys):
    """What a second start reads is what it would have made, and it makes none."""
    data, columns, make = OF_TASKS[task]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    job, split = make_job(data, mode="predict"), rows(**columns)
    tokenizer = Tokenizer.train(TEXTS, 300, add_prefix_space=True)
    first = make(job, split, tokenizer)
    monkeypatch.setattr("d2v.data.cache.WORTH", 30)
    calls, encode = [], Tokenizer.__call__
    monkeypatch.setattr(Tokenizer, "__call__", lambda *args, **options: calls.append(1) or encode(*args, **options))
    for times in (1, 1):
        again = make(job, split, tokenizer)
        assert len(calls) == times and (again.lengths, again.ids) == (first.lengths, first.ids)
        for row, other in zip(first.items, again.items, strict=True):
            assert row.keys() == other.keys()
            assert all(same(row[key], other[key]) for key in row)
    assert capsys.readouterr().out.count("which are kept for the next start") == 1


def same(a, b):
    """Equal, arrays by type and element, and lists of them."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return (a.dtype, a.tolist()) == (b.dtype, b.tolist()) if isinstance(a, np.ndarray) else a == b


def test_a_vocabulary_of_many_texts_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    small = tokenizer_for(make_job(TextData(vocab_size=290)), lambda: TEXTS)
    monkeypatch.setattr("d2v.data.text.WORTH", 30)
    trained, train = [], Tokenizer.train.__func__
    monkeypatch.setattr(
        Tokenizer, "train", classmethod(lambda *args, **options: trained.append(1) or train(*args, **options))
    )
    for expected in ("train: learning a vocabulary from 40 texts, which is kept for the next start\n", ""):
        kept = tokenizer_for(make_job(TextData(vocab_size=290)), lambda: iter(TEXTS))
        assert kept.vocab == small.vocab and len(trained) == 1 and capsys.readouterr().out == expected
        assert [each.ids for each in kept(TEXTS)] == [each.ids for each in small(TEXTS)]
    tokenizer_for(make_job(TextData(vocab_size=280)), lambda: iter(TEXTS))
    tokenizer_for(make_job(TextData(vocab_size=290)), lambda: iter([*TEXTS, "more"]))
    tokenizer_for(make_job(TextData(vocab_size=290)), lambda: iter(TEXTS), add_prefix_space=True)
    assert len(trained) == 4


def test_long_texts_keep_their_head_their_tail_or_all_in_windows(tokenizer):
    text = "the red cat sees the old dog and the blue bird hears the small cat"
    whole = tokenizer([text])[0].ids
    split = make_split("validation", text=["the cat", text, "a dog"], id=["x", "y", "z"])
    for truncation, part in (("head", whole[1:7]), ("tail", whole[-7:-1])):
        job = make_job()
        rows = text_rows(job, tokenizer, split, ["text"], 8, [0, 1, 2], truncation=truncation)
        assert rows[1]["ids"].tolist() == [whole[0], *part, whole[-1]] and len(rows) == 3
        assert f"1 of 3 texts cut to {'their last ' if truncation == 'tail' else ''}8" in job.facts[0]["line"]
    job = make_job()
    rows = text_rows(job, tokenizer, split, ["text"], 8, [0, 1, 2], truncation="windows", stride=2)
    sources = [rows[i]["source"] for i in range(len(rows))]
    assert sources == [0, *[1] * (len(rows) - 2), 2] and [rows.ids[i] for i in (0, 1, -1)] == ["x", "y", "z"]
    assert [rows[i]["reference"] for i in range(len(rows))] == sources
    assert list(rows.lengths) == [len(rows[i]["ids"]) for i in range(len(rows))]
    windows = [rows[i]["ids"].tolist()[1:-1] for i in range(1, len(rows) - 1)]
    assert windows[0] + [token for window in windows[1:] for token in window[2:]] == whole[1:-1]
    assert f"1 of 3 texts are longer than 8 tokens and read in windows, {len(rows)} in all" in job.facts[0]["line"]
    pairs = make_split("validation", text=["the cat"], pair=[text])
    rows = text_rows(make_job(), tokenizer, pairs, ["text", "pair"], 16, truncation="windows", stride=2)
    assert len(rows) > 1 and all(rows[i]["ids"].tolist()[:3] == rows[0]["ids"].tolist()[:3] for i in range(len(rows)))
    with pytest.raises(InputError, match=r"data.truncation windows, data.stride, data.max_length"):
        text_rows(make_job(), tokenizer, split, ["text"], 8, truncation="windows", stride=6)


def test_a_pair_without_room_is_named_or_left_out(tokenizer):
    long = "the red cat sees the old dog " * 3
    split = make_split("validation", text=[*["the cat"] * 1500, long, "a dog"], pair=[long] * 1502)
    with pytest.raises(InputError, match=r"^validation, row 1500: the .* \(data.truncation windows, .*bad"):
        text_rows(make_job(), tokenizer, split, ["text", "pair"], 16, truncation="windows", stride=2)
    job = make_job(TextData(bad_rows="skip"))
    rows = text_rows(
        job, tokenizer, split.select([0, 1500, 1501]), ["text", "pair"], 16, truncation="windows", stride=2
    )
    assert set(rows.ids) == {"0", "1501"} and len(rows.split) == 2
    assert [rows[0]["source"], rows[len(rows) - 1]["source"]] == [0, 1]


def test_the_logits_of_a_text_s_windows_are_averaged(tokenizer):
    split = make_split("validation", text=["the cat", "the red cat sees the old dog and the blue bird"])
    rows = text_rows(make_job(), tokenizer, split, ["text"], 8, ["a", "b"], truncation="windows", stride=2)
    labels = Labels(["a", "b"], "single_label")
    logits = [(i, torch.tensor([1.0, 0.0]) if i != 2 else torch.tensor([-9.0, 0.0])) for i in range(len(rows))]
    first, second = join_windows(rows, logits, labels)
    mean = (len(rows) - 2 - 9) / (len(rows) - 1)
    assert (first[0], first[1]["label"], second[0], second[1]["label"]) == (0, "a", 1, "b")
    assert second[1]["scores"]["a"] == pytest.approx(1 / (1 + np.exp(-mean)))
    assert rows.compare([first, second])[0] == ["a", "b"]
