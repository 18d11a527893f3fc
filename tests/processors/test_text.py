"""The byte-level BPE tokenizer against transformers': ids, offsets, windows and decoding, and the files of both."""

import argparse
import difflib
import inspect
import json
import logging
import pickle
import random
import shutil
from itertools import pairwise

import pytest
import tokenizers
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from d2v.errors import InputError
from d2v.processors.text import Tokenizer

transformers = pytest.importorskip("transformers")

SEEDED = settings(derandomize=True, deadline=None)
MODULES = (argparse, difflib, json, logging, random)
THINGS = [thing for module in MODULES for thing in vars(module).values() if callable(thing)]
CORPUS = [text for thing in (*MODULES, *THINGS) if (text := inspect.getdoc(thing))]  # English
FIELDS = ("ids", "offsets", "word_ids", "sequence_ids", "special_tokens_mask", "tokens")
PIECES = ["The", " parser", " argument", "'s", " .", "  ", "\n", "\u3000", "\x00", "\ufffd", "\u0120"]
PIECES += ["é", "e\u0301", " 👩\u200d👩\u200d👧", "日本", "<mask>", " <mask> ", "<s>", "</s>", "<pad>", "<unk>"]
# st.text() alone is rarely a word of the vocabulary.
text = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=8).map("".join)
words = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=6)


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.train(CORPUS, 700)


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    ours.save_pretrained(path)
    (path / "config.json").write_text('{"model_type": "data2vec-text"}')
    return path


@pytest.fixture(scope="module")
def both(folder):
    """Ours and theirs of the same files, without and with a space before the first word."""
    return {
        prefix: (
            Tokenizer.from_pretrained(folder, add_prefix_space=prefix),
            transformers.AutoTokenizer.from_pretrained(folder, add_prefix_space=prefix),
        )
        for prefix in (False, True)
    }


def fields(encoding):
    return {name: getattr(encoding, name) for name in FIELDS}


def windows(encodings):
    """All windows of truncated texts, and for each the row it comes from."""
    found = [(window, i) for i, first in enumerate(encodings) for window in (first, *first.overflowing)]
    return [window for window, _ in found], [i for _, i in found]


def assert_same(encodings, batch):
    """Ours, all windows, and a `BatchEncoding` of transformers'."""
    found, rows = windows(encodings)
    assert [fields(window) for window in found] == [fields(window) for window in batch.encodings]
    assert [window.ids for window in found] == batch["input_ids"]
    assert rows == batch.get("overflow_to_sample_mapping", rows)


# ---------------------------------------------------------------------------------------------------------------------
# Encoding and decoding
# ---------------------------------------------------------------------------------------------------------------------


@given(st.lists(text, min_size=1, max_size=3), st.booleans())
@example(["", " ", "a", CORPUS[0]], False)
@SEEDED
def test_texts(both, texts, prefix):
    ours, theirs = both[prefix]
    encodings = ours(texts)
    assert_same(encodings, theirs(texts))
    for row, encoding in zip(texts, encodings, strict=True):
        assert ours.decode(encoding.ids) == theirs.decode(encoding.ids, skip_special_tokens=True)
        assert ours.decode(encoding.ids, False) == theirs.decode(encoding.ids)
        if "<" not in row and not prefix:
            assert ours.decode(encoding.ids) == row


@given(
    st.lists(st.tuples(text, text), min_size=1, max_size=3),
    st.sampled_from(["longest_first", "only_first", "only_second"]),
    st.integers(8, 24),
    st.integers(0, 3),
)
@example([("Which parser?", CORPUS[0]), (CORPUS[1], "")], "only_second", 12, 3)
@example([("a" * 50, "b" * 50)], "longest_first", 9, 0)
@example([("b" * 5, "c" * 5)], "only_second", 12, 3)
@example([("b" * 5, "c" * 5)], "only_first", 12, 2)
@SEEDED
def test_truncated_pairs_and_their_windows(both, rows, truncation, max_length, stride):
    ours, theirs = both[False]
    texts, pairs = map(list, zip(*rows, strict=True))
    limits = {"max_length": max_length, "truncation": truncation, "stride": stride if truncation[0] == "o" else 0}
    try:
        wanted = theirs(texts, pairs, **limits, return_overflowing_tokens=True)
    except BaseException:  # the Rust code panics if the stride does not fit
        with pytest.raises(InputError, match=r"^row \d: the text .+ must be more than stride \d$"):
            ours(texts, pairs, **limits)
        return
    encodings = ours(texts, pairs, **limits)
    assert_same(encodings, wanted)
    assert all(len(window.ids) <= max_length for window in windows(encodings)[0])


@given(st.lists(text, min_size=1, max_size=3), st.integers(4, 12), st.integers(0, 1))
@SEEDED
def test_truncated_texts_and_their_windows(both, texts, max_length, stride):
    ours, theirs = both[False]
    encodings = ours(texts, max_length=max_length, stride=stride)
    options = {"max_length": max_length, "truncation": True, "stride": stride}
    assert_same(encodings, theirs(texts, **options, return_overflowing_tokens=True))
    first = [fields(encoding) for encoding in encodings]
    assert first == [fields(encoding) for encoding in theirs(texts, **options).encodings]


@given(st.lists(st.tuples(words, words), min_size=1, max_size=3), st.booleans(), st.integers(8, 24) | st.none())
@example([(["EU", "rejects", "German", "call", "."], ["👩\u200d👧", "e\u0301"])], True, None)
@SEEDED
def test_words(both, rows, paired, max_length):
    ours, theirs = both[True]
    texts, pairs = map(list, zip(*rows, strict=True))
    options = {"is_split_into_words": True, "max_length": max_length}
    wanted = theirs(texts, pairs if paired else None, **options, truncation=max_length is not None)
    encodings = ours(texts, pairs if paired else None, **options)
    assert [fields(encoding) for encoding in encodings] == [fields(encoding) for encoding in wanted.encodings]


@given(st.lists(st.integers(0, 699), max_size=12), st.booleans())
@SEEDED
def test_any_tokens_are_decoded(both, ids, skip):
    ours, theirs = both[False]
    assert len(ours) == 700
    assert (
        ours.decode(ids, skip) == ours.decode(torch.tensor(ids), skip) == theirs.decode(ids, skip_special_tokens=skip)
    )


def test_offsets_are_characters_without_the_space_before(ours):
    row = "The e\u0301 👩\u200d👧 parser"
    (encoding,) = ours([row])
    spans = [row[a:b] for a, b in encoding.offsets[1:-1]]
    assert "".join(dict.fromkeys(spans)) == row.replace(" ", "") and not any(" " in span for span in spans)
    emoji = [span for span in encoding.offsets if row[slice(*span)] == "👩"]
    assert len(emoji) > 1  # bytes of one character


def test_layout_of_a_pair(ours):
    (encoding,) = ours(["a"], ["b"])
    assert encoding.tokens == ["<s>", "a", "</s>", "</s>", "b", "</s>"]
    assert encoding.sequence_ids == [None, 0, None, None, 1, None]
    assert encoding.special_tokens_mask == [1, 0, 1, 1, 0, 1]


def test_windows_overlap_by_the_stride(ours):
    question, context = "Which parser?", CORPUS[0]
    whole = ours([context])[0].ids[1:-1]
    found, rows = windows(ours([question, "a"], [context, "b"], max_length=40, truncation="only_second", stride=10))
    assert rows == [0] * (len(rows) - 1) + [1] and len(rows) > 3
    kept = len(ours([question])[0].ids) + 1  # <s> A </s></s>
    parts = [window.ids[kept:-1] for window in found[:-1]]
    assert sum((part[10:] for part in parts[1:]), parts[0]) == whole
    assert all(a[-10:] == b[:10] for a, b in pairwise(parts))


def test_a_call_leaves_no_trace(ours):
    """A cache that goes by the pickle must find the same tokenizer after it was used."""
    before = pickle.dumps(ours)
    ours(["a b"], max_length=3)
    with pytest.raises(InputError):
        ours(["a b"], ["c d"], max_length=5, truncation="only_first", stride=1)
    assert pickle.dumps(ours) == before
    assert fields(pickle.loads(before)(CORPUS[:1])[0]) == fields(ours(CORPUS[:1])[0])


def test_pad(ours):
    batch = ours.pad([[0, 5, 1, 2], [0, 2]])
    assert batch["input_ids"].tolist() == [[0, 5, 1, 2], [0, 2, 1, 1]] and batch["input_ids"].dtype == torch.int64
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]  # a written <pad> is not padding


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------

# As the hub's RoBERTa checkpoints of 2020 have them.
MASK = {"content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False}
PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip"), False) | {"normalized": True}
OLD = {name: PLAIN | {"content": token} for name, token in [("bos_token", "<s>"), ("eos_token", "</s>")]}
OLD |= {name: PLAIN | {"content": token} for name, token in [("unk_token", "<unk>"), ("pad_token", "<pad>")]}
OLD |= {"sep_token": OLD["eos_token"], "cls_token": OLD["bos_token"], "mask_token": MASK}
NEW = PLAIN | {"content": "<ent>", "special": False}
LAYOUTS = {
    "tokenizer.json": (["tokenizer.json"], {}),
    "vocab and merges": (["vocab.json", "merges.txt"], {}),
    "special tokens": (["vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"], {}),
    "old": (
        ["vocab.json", "merges.txt"],
        {
            "special_tokens_map.json": OLD,
            "tokenizer_config.json": {name: token | {"__type": "AddedToken"} for name, token in OLD.items()}
            | {"add_prefix_space": True, "model_max_length": 512, "tokenizer_class": "RobertaTokenizer"},
        },
    ),
    "added tokens": (
        ["vocab.json", "merges.txt"],
        {"added_tokens.json": {"<b>": 701, "<a>": 700}, "special_tokens_map.json": {"mask_token": "<a>"}},
    ),
    "added tokens of the configuration": (
        ["tokenizer.json"],
        {
            "tokenizer_config.json": {"added_tokens_decoder": {"700": NEW, "4": MASK | {"special": True}}},
            "special_tokens_map.json": {"pad_token": "<ent>"},  # not read, since the configuration has added tokens
        },
    ),
    "other special tokens": (
        ["vocab.json", "merges.txt"],
        {
            "added_tokens.json": {"<a>": 700},
            "special_tokens_map.json": {"additional_special_tokens": ["<a>", "<ent>", "the"]},
        },
    ),
    "other special tokens of the configuration": (
        ["tokenizer.json"],
        {"tokenizer_config.json": {"additional_special_tokens": ["<b>", "<ent>"], "mask_token": "<empty>"}},
    ),
    "a token the vocabulary lacks": (["tokenizer.json"], {"tokenizer_config.json": {"pad_token": "<empty>"}}),
    "trained without a limit": (["tokenizer.json"], {"tokenizer_config.json": {"model_max_length": int(1e30)}}),
}
TEXTS = [*CORPUS[:3], *PIECES, "a <mask> b<mask>  c", "a <ent> <a><b> <empty> </s><s>", ""]


def lay_out(source, target, layout):
    names, files = LAYOUTS[layout]
    for name in names:
        shutil.copy(source / name, target)
    for name, entries in files.items():
        (target / name).write_text(json.dumps(entries))
    return Tokenizer.from_pretrained(target), transformers.RobertaTokenizerFast.from_pretrained(target)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_files(folder, tmp_path, layout):
    ours, theirs = lay_out(folder, tmp_path, layout)
    assert_same(ours(TEXTS), theirs(TEXTS))
    assert ours.vocab == theirs.get_vocab() and len(ours) == len(theirs)
    assert ours.add_prefix_space == theirs.add_prefix_space
    assert ours.model_max_length == (theirs.model_max_length if theirs.model_max_length < 1e20 else None)
    for name in ("bos", "eos", "pad", "unk", "mask"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    for encoding in ours(TEXTS):
        assert ours.decode(encoding.ids) == theirs.decode(encoding.ids, skip_special_tokens=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_open_on_both_sides(folder, tmp_path, layout):
    for name in ("before", "ours", "theirs"):
        (tmp_path / name).mkdir()
    ours, theirs = lay_out(folder, tmp_path / "before", layout)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(folder / "config.json", tmp_path / "ours")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert type(opened) is type(theirs)
    assert_same(ours(TEXTS), opened(TEXTS))
    assert opened.get_vocab() == ours.vocab and opened.model_max_length == theirs.model_max_length
    assert opened.special_tokens_map == theirs.special_tokens_map == ours.special_tokens
    for encoding in ours(TEXTS):
        assert ours.decode(encoding.ids) == opened.decode(encoding.ids, skip_special_tokens=True)
    for again in (Tokenizer.from_pretrained(tmp_path / "ours"), Tokenizer.from_pretrained(tmp_path / "theirs")):
        assert [fields(encoding) for encoding in again(TEXTS)] == [fields(encoding) for encoding in ours(TEXTS)]
        assert (again.vocab, again.model_max_length) == (ours.vocab, ours.model_max_length)


def test_vocabulary_and_merges_that_are_saved_are_the_tokenizer(folder, tmp_path):
    """Both layouts in one folder must not differ; `tokenizers` alone can read either."""
    model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    entries = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    assert json.loads(tokenizers.Tokenizer(model).to_str())["model"] == entries
    lines = (folder / "merges.txt").read_text("utf-8").splitlines()
    assert lines[0] == "#version: 0.2" and len(lines) == 1 + len(entries["merges"]) == 700 - 261 + 1


def test_merges_as_they_were_written_before_2024(folder, tmp_path):
    """`"a b"` instead of `["a", "b"]`, and no type of the model."""
    entries = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    entries["model"]["merges"] = [" ".join(merge) for merge in entries["model"]["merges"]]
    del entries["model"]["type"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(entries), "utf-8")
    found, wanted = Tokenizer.from_pretrained(tmp_path)(TEXTS), Tokenizer.from_pretrained(folder)(TEXTS)
    assert [fields(encoding) for encoding in found] == [fields(encoding) for encoding in wanted]


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def test_training_is_deterministic_whatever_the_order(ours):
    again = Tokenizer.train(iter(random.Random(0).sample(CORPUS, len(CORPUS))), 700)
    assert again.backend.to_str() == ours.backend.to_str()
    assert sorted(ours.vocab, key=ours.vocab.get)[:5] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    ids = ours.bos_token_id, ours.pad_token_id, ours.eos_token_id, ours.unk_token_id, ours.mask_token_id
    assert ids == (0, 1, 2, 3, 4)
    assert ours(["a <mask> a"])[0].tokens == ["<s>", "a", " <mask>", "Ġa", "</s>"]  # the space is the mask's


def test_training_as_the_backend_does(ours):
    backend = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(CORPUS, vocab_size=700, min_frequency=2, special_tokens=special, show_progress=False)
    assert backend.get_vocab() == ours.vocab


def test_training_counts():
    merges = lambda *texts, **options: len(Tokenizer.train(texts, 300, **options)) - 261  # noqa: E731
    assert merges("ab", "ab", "cd") == 1  # "ab"; "cd" is there once
    assert merges("ab", "ab", "cd", min_frequency=1) == 2
    assert merges("ab", "ab", "cd", add_prefix_space=True) == 2  # " a", " ab"
    assert merges() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t("one text"), "text: should be a list"),
        (lambda t: t(["a", 5]), "text 1: 5 must be a string"),
        (lambda t: t(["a", b"b"]), "text 1: b'b' must be a string"),
        (lambda t: t(["\ud800"]), r"text 0: '\\ud800' must be a string, of whole characters"),
        (lambda t: t(["a"], [None]), "pair 0: None must be a string"),
        (lambda t: t([["a"]], is_split_into_words=True), "needs a tokenizer with add_prefix_space=True"),
        (lambda t: t(["a"], max_length=2), "max_length is 2; must be above 2 special tokens"),
        (lambda t: t(["a"], ["b"], max_length=4), "max_length is 4; must be above 4 special tokens"),
        (lambda t: t(["a"], max_length=10, stride=8), r"must be above 2 special tokens \+ stride 8"),
        (lambda t: t(["a"], max_length=10, stride=-1), "stride -1"),
        (lambda t: t(["a"], truncation="both"), "truncation is 'both'; must be longest_first"),
        (lambda t: t(["a"], max_length=10, truncation="only_second"), "truncation is 'only_second'; must be"),
        (lambda t: t(["a"], ["b"], max_length=10, stride=1), "stride is 1; windows of pairs need"),
        (
            lambda t: t(["a", "b" * 9], ["c", "d"], max_length=12, truncation="only_second"),
            "row 1: the text that truncation 'only_second' keeps has 9 tokens, which leaves room for 0 ",
        ),
        (lambda t: t.decode([0, 700]), "token 700 is not in the vocabulary, which has 0 to 699"),
        (lambda t: t.decode([-100]), "token -100"),
        (lambda t: Tokenizer.train(["a", None], 300), "text 1: None must be a string"),
        (lambda t: Tokenizer.train(["a"], 260), "vocab_size is 260; must be 261 or more"),
    ],
)
def test_bad_input(ours, call, message):
    with pytest.raises(InputError, match=message) as caught:
        call(ours)
    assert "\n" not in str(caught.value)


def test_bad_words(both):
    for row, message in [("a b", "text 0: 'a b' must be a list"), (["a", None], "text 0, word 1: None must be")]:
        with pytest.raises(InputError, match=message):
            both[True][0]([row], is_split_into_words=True)


def test_options_are_judged_before_rows_that_need_no_cut(ours):
    """Rows that fit are encoded, however long the text that must stay."""
    (encoding,) = ours(["b" * 9], ["d"], max_length=14, truncation="only_second", stride=3)
    assert len(encoding.ids) == 14 and encoding.overflowing == []


def changed(name, change):
    """Apply `change` to the entries of a JSON file; what it returns, if anything, takes their place."""

    def apply(folder):
        entries = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(change(entries) or entries), "utf-8")

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "merges.txt").unlink(), "no tokenizer.json, nor vocab.json with merges.txt"),
        (lambda p: (p / "merges.txt").write_text("#version: 0.2\nĠ t\na b c\n", "utf-8"), "merges.txt, merge 2: "),
        (lambda p: (p / "merges.txt").write_text("Ġ\n", "utf-8"), "merges.txt, merge 1: .'Ġ'. must be two tokens"),
        (lambda p: (p / "merges.txt").write_text("z q\n", "utf-8"), "merges.txt, merge 1: .'z', 'q'. must be two"),
        (lambda p: (p / "merges.txt").write_bytes(b"\xff\xfe"), "merges.txt: not a readable text file"),
        (lambda p: (p / "vocab.json").write_text("[]"), "vocab.json: should hold a JSON object"),
        (lambda p: (p / "vocab.json").write_text("{"), "vocab.json: not a readable JSON file"),
        (lambda p: (p / "vocab.json").write_text("{}"), "vocab.json: the vocabulary must map tokens to the numbers"),
        (changed("vocab.json", lambda v: {i: t for t, i in v.items()}), "vocab.json: the vocabulary must map tokens"),
        (changed("vocab.json", lambda v: v.update(a=True)), "vocab.json: the vocabulary must map tokens"),
        (changed("vocab.json", lambda v: v.update(a=5000)), "vocab.json: the vocabulary must map tokens"),
        (changed("vocab.json", lambda v: v.update(xyzzy=v.pop("Ġ"))), "vocab.json: the vocabulary lacks 1 of 256"),
        (changed("tokenizer_config.json", lambda c: c.update(pad_token={"id": 1})), "the token .'id': 1. must be"),
        (changed("tokenizer_config.json", lambda c: c.update(padding_side="left")), "padding_side .+ must be 'right'"),
        (changed("tokenizer_config.json", lambda c: c.update(model_max_length="512")), "model_max_length .+ a number"),
        (changed("tokenizer_config.json", lambda c: c.update(extra_special_tokens="<a>")), "must be a list of tokens"),
        (changed("tokenizer_config.json", lambda c: c.update(additional_special_tokens=[3])), "the token 3 must be"),
        (lambda p: (p / "added_tokens.json").write_text('{"<a>": 900}'), "'<a>' has id 900; must be 700"),
    ],
)
def test_bad_files(folder, tmp_path, damage, message):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries.update(added_tokens=[{"content": "<a>"}]), "added_tokens must be a list of objects"),
        (lambda entries: entries.update(added_tokens={"<a>": 700}), "added_tokens must be a list of objects"),
        (lambda entries: entries.update(model="bpe"), "model and pre_tokenizer must be objects"),
        (lambda entries: entries.update(pre_tokenizer=["ByteLevel"]), "model and pre_tokenizer must be objects"),
    ],
)
def test_damaged_tokenizers(folder, tmp_path, change, message):
    shutil.copy(folder / "tokenizer.json", tmp_path)
    changed("tokenizer.json", change)(tmp_path)
    with pytest.raises(InputError, match=rf"tokenizer\.json: {message}"):
        Tokenizer.from_pretrained(tmp_path)
    shutil.copy(folder / "tokenizer.json", tmp_path)
    changed("tokenizer.json", lambda entries: entries.update(added_tokens=None))(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).vocab == Tokenizer.from_pretrained(folder).vocab


@pytest.mark.parametrize("tokens", [{"extra_special_tokens": {"entity": "<ent>"}}, {"extra_special_tokens": ["<ent>"]}])
def test_special_tokens_by_name(folder, tmp_path, tokens):
    shutil.copy(folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    (encoding,) = tokenizer(["an <ent> a"])
    assert 700 in encoding.ids and "<ent>" not in tokenizer.decode(encoding.ids) and len(tokenizer) == 701


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: entries["model"].update(type="WordPiece"),
        lambda entries: entries["model"].update(merges=None),
        lambda entries: entries.update(normalizer={"type": "Lowercase"}),
        lambda entries: entries.update(pre_tokenizer={"type": "Whitespace"}),
        lambda entries: entries.update(model=None),
    ],
)
def test_tokenizers_of_another_kind(folder, tmp_path, change):
    shutil.copy(folder / "tokenizer.json", tmp_path)
    changed("tokenizer.json", change)(tmp_path)
    with pytest.raises(InputError, match=r"tokenizer\.json: must be a byte-level BPE without a normalizer"):
        Tokenizer.from_pretrained(tmp_path)
